package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net/url"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/contrib/envconfig"
	"go.temporal.io/sdk/log"

	"github.com/hubjobs/hubjobs/azure/envfile"
	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/starter/internal/session"
	"github.com/hubjobs/hubjobs/starter/jobs"
)

const (
	defaultAddress   = "127.0.0.1:7233"
	defaultNamespace = "default"
)

// service is what the commands need of Temporal.
type service interface {
	session.Jobs
	Start(ctx context.Context, in job.JobInput) error
	Audit(ctx context.Context, id string) (job.Audit, error)
	Describe(ctx context.Context, id string) (jobs.Execution, error)
	List(ctx context.Context, f jobs.Filter) iter.Seq2[jobs.Execution, error]
	// Namespace is the Temporal namespace of all jobs.
	Namespace() string
	Close()
}

// connection says how to reach Temporal.
type connection struct {
	options client.Options
	timeout time.Duration
	verbose bool
}

// open connects to Temporal, and says so when that takes a while.
func (p *program) open(ctx context.Context, c *cli.Context) (service, error) {
	o, err := p.connection(c)
	if err != nil {
		return nil, err
	}
	done := p.busy("connecting to Temporal at " + o.options.HostPort)
	defer done()
	s, err := p.connect(ctx, o)
	return s, cause(ctx, err)
}

func (p *program) connection(c *cli.Context) (connection, error) {
	options, err := envconfig.LoadClientOptions(clientOptionsRequest(p.settings))
	if err != nil {
		return connection{}, fmt.Errorf("settings of the Temporal client: %w", err)
	}
	for _, set := range []struct {
		target          *string
		flag, otherwise string
	}{
		{&options.HostPort, "address", defaultAddress}, {&options.Namespace, "namespace", defaultNamespace},
	} {
		if value := c.String(set.flag); value != "" {
			*set.target = value
		}
		if *set.target == "" {
			*set.target = set.otherwise
		}
	}
	timeout := c.Duration("connect-timeout")
	if timeout <= 0 {
		return connection{}, usageError(c, "--connect-timeout is %s: it must be longer than 0s", timeout)
	}
	options.Logger = p.logger(c)
	return connection{options: options, timeout: timeout, verbose: c.Bool("verbose")}, nil
}

func clientOptionsRequest(s *envfile.Settings) envconfig.LoadClientOptionsRequest {
	return envconfig.LoadClientOptionsRequest{EnvLookup: s}
}

// logger keeps the SDK quiet: what it has to say reaches people as errors of the commands.
func (p *program) logger(c *cli.Context) log.Logger {
	w := io.Discard
	if c.Bool("verbose") {
		w = p.Stderr
	}
	return log.NewStructuredLogger(slog.New(slog.NewTextHandler(w, nil)))
}

// temporalService is a service over a real connection.
type temporalService struct {
	*jobs.Client
	temporal  client.Client
	namespace string
}

func (s *temporalService) Namespace() string { return s.namespace }
func (s *temporalService) Close()            { s.temporal.Close() }

func connectTemporal(ctx context.Context, o connection) (service, error) {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	c, err := client.DialContext(ctx, o.options)
	if err != nil {
		return nil, unreachable(o, err)
	}
	return &temporalService{Client: jobs.New(c), temporal: c, namespace: o.options.Namespace}, nil
}

// unreachable says in one line what to do about a connection that failed.
func unreachable(o connection, err error) error {
	address := o.options.HostPort
	_, away := errors.AsType[*serviceerror.Unavailable](err)
	_, late := errors.AsType[*serviceerror.DeadlineExceeded](err)
	if !away && !late && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("connect to Temporal at %s: %w", address, err)
	}
	text := fmt.Sprintf(`no Temporal server at %s: start one with "go run ./infra/local up", or set --address / TEMPORAL_ADDRESS`, address)
	if o.verbose {
		text += fmt.Sprintf(" (%v)", err)
	}
	return errors.New(text)
}

// page returns the address of a job's page in the web UI, or nothing when it isn't known where that is.
func page(ui, namespace, id string) string {
	if ui == "" {
		return ""
	}
	return strings.TrimRight(ui, "/") + "/namespaces/" + url.PathEscape(namespace) + "/workflows/" + url.PathEscape(id)
}

// busyAfter is how long something may take before a person on a terminal is told what is going on.
const busyAfter = time.Second

// busy tells a person on a terminal what takes so long, until done is called.
func (p *program) busy(what string) (done func()) {
	return p.busyWith(func() string { return what })
}

// busyWith is busy about something that changes. what is called from another goroutine.
func (p *program) busyWith(what func() string) (done func()) {
	if !p.Terminal.Err {
		return func() {}
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		p.showBusy(what, stop)
	}()
	return func() {
		close(stop)
		<-stopped
	}
}

// showBusy draws over one line, and leaves none behind. It is a convenience: errors of the stream don't matter.
func (p *program) showBusy(what func() string, stop <-chan struct{}) {
	tick := time.NewTicker(busyAfter)
	defer tick.Stop()
	for n := 1; ; n++ {
		select {
		case <-tick.C:
			_, _ = fmt.Fprintf(p.Stderr, "\r\x1b[2K%s ... %ds", what(), n)
		case <-stop:
			if n > 1 {
				_, _ = fmt.Fprint(p.Stderr, "\r\x1b[2K")
			}
			return
		}
	}
}
