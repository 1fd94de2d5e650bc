package pipeline

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/client"
	"go.uber.org/zap/zapcore"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/starter/follow"
	"github.com/hubjobs/hubjobs/starter/jobs"
)

func start(t *testing.T, dir string) *Pipeline {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	p, err := Start(ctx, dir, &Options{StepTime: 20 * time.Millisecond, LogLevel: zapcore.DebugLevel})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func TestSettingsFile(t *testing.T) {
	t.Parallel()
	p := start(t, t.TempDir())
	content, err := os.ReadFile(p.EnvFile())
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(p.EnvFile())
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("others may read the keys: %s", info.Mode())
	}
	for _, line := range []string{
		"TEMPORAL_ADDRESS=" + p.Temporal().Address(),
		"TEMPORAL_NAMESPACE=default",
		"HUBJOBS_UI_URL=" + p.Temporal().UIURL(),
		"HUBJOBS_MANAGER_URL=http://" + p.addresses.Manager,
		"HUBJOBS_API_KEY_FILE=" + p.file(keyFileName),
		"IOTHUB_CONNECTION_STRING=" + p.hub.HubConnectionString(),
		"SERVICEBUS_CONNECTION_STRING=" + p.hub.ServiceBusConnectionString(),
		"EMULATOR_CA_FILE=" + p.hub.CAFile(),
		"EMULATOR_MQTTS_ADDR=" + p.hub.MQTTSAddr(),
	} {
		if !strings.Contains("\n"+string(content), "\n"+line+"\n") {
			t.Errorf("the settings file lacks %q", line)
		}
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(p.EnvFile()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the settings outlive what they are for: %v", err)
	}
}

func TestRolesAreReady(t *testing.T) {
	t.Parallel()
	p := start(t, t.TempDir())
	for name, addr := range map[string]string{
		"manager": p.addresses.Manager, "scheduler": p.addresses.Scheduler, "solver": p.addresses.Solver,
	} {
		waitFor(t, name+" is ready", func(ctx context.Context) bool { return ready(ctx, t, addr) })
	}
}

func ready(ctx context.Context, t *testing.T, addr string) bool {
	t.Helper()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/readyz", nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return false
	}
	response.Body.Close()
	return response.StatusCode == http.StatusOK
}

// waitFor tries until it is so, for at most a minute.
func waitFor(t *testing.T, what string, is func(context.Context) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for !is(ctx) {
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain: %s", what)
		case <-ticker.C:
		}
	}
}

func TestAPartThatCannotStart(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { taken.Close() })
	dir := t.TempDir()
	_, err = Start(t.Context(), dir, &Options{Addresses: Addresses{Solver: taken.Addr().String()}})
	if err == nil || !strings.Contains(err.Error(), "start solver") || !strings.Contains(err.Error(), taken.Addr().String()) {
		t.Fatalf("error %v", err)
	}
	start(t, dir) // what had started already has let go of the folder
}

func TestARoleThatEndsByItself(t *testing.T) {
	t.Parallel()
	cause := errors.New("no disk")
	tests := map[string]struct {
		ready bool
		end   error
		want  error
	}{
		"before it is ready":               {end: cause, want: cause},
		"before it is ready, with no word": {want: errNoReason},
		"later":                            {ready: true, end: cause, want: cause},
		"later, with no word":              {ready: true, want: errNoReason},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := &Pipeline{failed: make(chan error, 1)}
			var addr string
			stop, err := p.rolePart("role", &addr, func(_ context.Context, ready func(string)) error {
				if test.ready {
					ready("127.0.0.1:1")
				}
				return test.end
			}).Start(t.Context())
			if stop != nil { // it may have been ready first, or ended first
				err = <-p.Failed()
				if err := stop(); err != nil {
					t.Errorf("stopping says it again: %v", err)
				}
			}
			if !errors.Is(err, test.want) {
				t.Errorf("error %v, want %v", err, test.want)
			}
		})
	}
}

func TestAnInterruptedRole(t *testing.T) {
	t.Parallel()
	p := &Pipeline{failed: make(chan error, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	var addr string
	_, err := p.rolePart("role", &addr, func(role context.Context, _ func(string)) error {
		cancel()
		<-role.Done()
		return nil
	}).Start(ctx)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// TestNoSecrets looks for every secret of a run where none may be: in the histories of its workflows and in the log.
func TestNoSecrets(t *testing.T) {
	t.Parallel()
	p := start(t, t.TempDir())
	connection, err := p.Temporal().Dial(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(connection.Close)
	const id = "job-1"
	secrets := runJob(t, p, jobs.New(connection), id)
	places := map[string][]byte{
		"the history of the job":    history(t, connection, job.JobWorkflowID(id)),
		"the history of its solver": history(t, connection, job.SolveWorkflowID(id)),
	}
	if places["the log"], err = os.ReadFile(p.file(LogFileName)); err != nil {
		t.Fatal(err)
	}
	for place, content := range places {
		if !bytes.Contains(content, []byte(id)) {
			t.Errorf("%s doesn't even name the job", place)
		}
		for name, secret := range secrets {
			if bytes.Contains(content, []byte(secret)) {
				t.Errorf("%s shows %s", place, name)
			}
		}
	}
}

// runJob runs a job to its end and returns the secrets of the run, those of its devices included.
func runJob(t *testing.T, p *Pipeline, service *jobs.Client, id string) map[string]string {
	t.Helper()
	secrets := map[string]string{
		"a token":             "SharedAccessSignature",
		"the API key":         p.apiKey,
		"the hub's key":       key(t, p.hub.HubConnectionString()),
		"the namespace's key": key(t, p.hub.ServiceBusConnectionString()),
	}
	j, err := job.New(id, "", job.DefaultSteps())
	if err != nil {
		t.Fatal(err)
	}
	if err := service.Start(t.Context(), job.JobInput{Job: j}); err != nil {
		t.Fatal(err)
	}
	last, err := follow.Job(t.Context(), service, id, nil, func(e follow.Event) error {
		for _, role := range []job.Role{job.RoleScheduler, job.RoleSolver} {
			// There is no such device before it is negotiated, nor at the end.
			if text, err := p.hub.DeviceConnectionString(job.DeviceID(role, id)); err == nil {
				secrets["the key of the "+role.Short()+"'s device"] = key(t, text)
			}
		}
		return nil
	})
	if err != nil || last.State != job.StateCompleted {
		t.Fatalf("the job ended %s (%s): %v", last.State, last.Reason, err)
	}
	if len(secrets) != 6 {
		t.Fatalf("the devices' keys were not seen, only %d secrets", len(secrets))
	}
	return secrets
}

// key takes the key out of a connection string.
func key(t *testing.T, connectionString string) string {
	t.Helper()
	for part := range strings.SplitSeq(connectionString, ";") {
		if key, ok := strings.CutPrefix(part, "SharedAccessKey="); ok {
			return key
		}
	}
	t.Fatal("a connection string without a key")
	return ""
}

// history is the whole history of a workflow as text, and, because JSON has payloads in base64, once more as bytes.
func history(t *testing.T, c client.Client, workflowID string) []byte {
	t.Helper()
	var all bytes.Buffer
	events := c.GetWorkflowHistory(t.Context(), workflowID, "", false, enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
	for events.HasNext() {
		event, err := events.Next()
		if err != nil {
			t.Fatal(err)
		}
		raw, err := proto.Marshal(event)
		if err != nil {
			t.Fatal(err)
		}
		text, err := protojson.Marshal(event)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(raw)
		all.Write(text)
	}
	return all.Bytes()
}
