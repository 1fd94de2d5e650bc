// Package pipeline runs all of hubjobs in this process: Temporal, the IoT Hub emulator, and the roles manager,
// scheduler and solver, over the same connections that separate processes would use.
package pipeline

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/hubjobs/hubjobs/activities"
	"github.com/hubjobs/hubjobs/activities/steps"
	"github.com/hubjobs/hubjobs/infra/emulator"
	"github.com/hubjobs/hubjobs/infra/local/internal/boot"
	"github.com/hubjobs/hubjobs/infra/local/temporal"
	"github.com/hubjobs/hubjobs/job"
)

// Names of files in the data directory.
const (
	EnvFileName = "hubjobs.env" // settings for programs that talk to this run
	LogFileName = "hubjobs.log" // one JSON object a line

	keyFileName = "api-key" // of the manager
)

// Namespace is the Temporal namespace of the local run.
const Namespace = temporal.DefaultNamespace

// DefaultStepTime is how long the solver takes for a step.
const DefaultStepTime = steps.DefaultStepTime

// Addresses says where the parts listen, as host and port. An empty one means a free port of 127.0.0.1.
type Addresses struct {
	Temporal  string // gRPC
	UI        string // HTTP: the Temporal web UI
	AMQPS     string // emulator
	AMQP      string // emulator
	MQTTS     string // emulator
	HTTPS     string // emulator
	Manager   string // HTTP
	Scheduler string // HTTP
	Solver    string // HTTP
}

// Options are the settings of a pipeline. Nil and zero values mean the defaults.
type Options struct {
	Addresses Addresses
	Steps     activities.StepRunner // of the solver; default steps.Simulate with StepTime
	StepTime  time.Duration         // of a simulated step; default DefaultStepTime; a job may bring its own
	LogLevel  zapcore.Level         // of the log file; default zapcore.InfoLevel, which is its zero value
	Progress  io.Writer             // gets a line for each part that starts; default io.Discard
}

// Pipeline is a running pipeline.
type Pipeline struct {
	dir    string
	opts   Options
	log    *zap.Logger
	parts  *boot.Running
	failed chan error

	// Each part sets its own during Start, for those that start after it.
	temporal  *temporal.Server
	hub       *emulator.Emulator
	roots     *x509.CertPool
	apiKey    string
	addresses Addresses // where the roles listen
}

// Start runs a pipeline that keeps everything in dir, a folder that no other process may use. It returns when jobs can
// be started. The caller must Close it.
func Start(ctx context.Context, dir string, opts *Options) (*Pipeline, error) {
	p := &Pipeline{dir: dir, opts: opts.withDefaults(), failed: make(chan error, 1)}
	p.parts = boot.New(p.opts.Progress)
	if err := p.start(ctx); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

func (p *Pipeline) start(ctx context.Context) (err error) {
	if p.log, err = openLog(p.file(LogFileName), p.opts.LogLevel); err != nil {
		return fmt.Errorf("log file: %w", err)
	}
	if p.apiKey, err = secret(p.file(keyFileName), rand.Text); err != nil {
		return fmt.Errorf("API key: %w", err)
	}
	err = p.parts.Start(ctx, p.temporalPart(), p.emulatorPart(), p.managerPart(), p.schedulerPart(), p.solverPart())
	if err != nil {
		return err
	}
	if err := writeSettings(p.EnvFile(), p.settings()); err != nil {
		return fmt.Errorf("settings file: %w", err)
	}
	return nil
}

// Temporal is the server that holds the jobs.
func (p *Pipeline) Temporal() *temporal.Server { return p.temporal }

// EnvFile is the path of a file with the settings that a program needs to talk to this pipeline.
func (p *Pipeline) EnvFile() string { return p.file(EnvFileName) }

// Failed brings the error of a part that has ended by itself.
func (p *Pipeline) Failed() <-chan error { return p.failed }

// Close stops everything, the parts that depend on others first, and waits for it.
func (p *Pipeline) Close() error {
	var errs []error
	if err := os.Remove(p.EnvFile()); !errors.Is(err, fs.ErrNotExist) { // its addresses may be somebody else's soon
		errs = append(errs, err)
	}
	errs = append(errs, p.parts.Close())
	if p.log != nil {
		_ = p.log.Sync() // not every kind of file can be synced
	}
	return errors.Join(errs...)
}

// Place is something that people may want to open or connect to.
type Place struct {
	Name  string
	Where string
}

// Places lists where the parts are.
func (p *Pipeline) Places() []Place {
	return []Place{
		{"web UI", p.temporal.UIURL()},
		{"Temporal", fmt.Sprintf("%s, namespace %s", p.temporal.Address(), Namespace)},
		{"manager", p.managerURL()},
		{"scheduler", "http://" + p.addresses.Scheduler},
		{"solver", "http://" + p.addresses.Solver},
		{"hub", fmt.Sprintf("MQTT %s, AMQP %s and %s, HTTPS %s", p.hub.MQTTSAddr(), p.hub.AMQPSAddr(), p.hub.AMQPAddr(), p.hub.HTTPSAddr())},
	}
}

// settings are what another program needs to talk to this pipeline.
func (p *Pipeline) settings() []setting {
	return append([]setting{
		{"TEMPORAL_ADDRESS", p.temporal.Address()},
		{"TEMPORAL_NAMESPACE", Namespace},
		{"HUBJOBS_UI_URL", p.temporal.UIURL()},
		{"HUBJOBS_MANAGER_URL", p.managerURL()},
		{"HUBJOBS_API_KEY_FILE", p.file(keyFileName)},
	}, p.hubSettings()...)
}

func (p *Pipeline) file(name string) string { return filepath.Join(p.dir, name) }

func (p *Pipeline) temporalPart() boot.Part {
	return boot.Part{Name: "Temporal", Start: func(ctx context.Context) (func() error, error) {
		server, err := temporal.Start(ctx, temporal.Options{
			Address:    p.opts.Addresses.Temporal,
			UIAddress:  p.opts.Addresses.UI,
			File:       p.file("temporal.db"),
			Namespaces: []string{Namespace},
			SearchAttributes: map[string]enumspb.IndexedValueType{
				job.SearchAttributeStatus: enumspb.INDEXED_VALUE_TYPE_KEYWORD,
				job.SearchAttributeStep:   enumspb.INDEXED_VALUE_TYPE_KEYWORD,
			},
			Logger: p.log.Named("temporal"),
		})
		if err != nil {
			return nil, err
		}
		p.temporal = server
		return server.Close, nil
	}}
}

func (o *Options) withDefaults() Options {
	d := Options{StepTime: DefaultStepTime, Progress: io.Discard}
	if o != nil {
		d.Addresses, d.LogLevel = o.Addresses, o.LogLevel
		if o.StepTime > 0 {
			d.StepTime = o.StepTime
		}
		d.Steps = o.Steps
		if o.Progress != nil {
			d.Progress = o.Progress
		}
	}
	if d.Steps == nil {
		d.Steps = steps.Simulate{StepTime: d.StepTime}
	}
	for _, addr := range []*string{
		&d.Addresses.Temporal, &d.Addresses.UI, &d.Addresses.AMQPS, &d.Addresses.AMQP, &d.Addresses.MQTTS,
		&d.Addresses.HTTPS, &d.Addresses.Manager, &d.Addresses.Scheduler, &d.Addresses.Solver,
	} {
		if *addr == "" {
			*addr = "127.0.0.1:0"
		}
	}
	return d
}
