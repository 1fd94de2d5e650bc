package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hubjobs/hubjobs/activities/steps"
	"github.com/hubjobs/hubjobs/workers/manager"
	"github.com/hubjobs/hubjobs/workers/scheduler"
	"github.com/hubjobs/hubjobs/workers/solver"
)

func TestMain(m *testing.M) {
	// What the developer's own shell has set must not decide.
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		for _, prefix := range []string{"HUBJOBS_", "IOTHUB_", "SERVICEBUS_", "EMULATOR_", "AZURE_", "TEMPORAL_", "APP_API_"} {
			if strings.HasPrefix(name, prefix) {
				os.Unsetenv(name)
			}
		}
	}
	os.Setenv("TEMPORAL_CONFIG_FILE", os.DevNull)
	goleak.VerifyTestMain(m)
}

const (
	hubSecret = "HostName=localhost;SharedAccessKeyName=iothubowner;SharedAccessKey=aHVic2VjcmV0"
	busSecret = "Endpoint=sb://localhost:5672;SharedAccessKeyName=x;SharedAccessKey=bussecret;UseDevelopmentEmulator=true"
)

// captured is what the roles were started with.
type captured struct {
	manager   *manager.Settings
	scheduler *scheduler.Settings
	solver    *solver.Settings
	stdout    bytes.Buffer
	err       error
}

// start runs the command line with roles that end at once. It sets environment variables, so its tests can't be parallel.
func start(t *testing.T, env map[string]string, args ...string) *captured {
	t.Helper()
	for name, value := range env {
		t.Setenv(name, value)
	}
	var c captured
	app := newApp(&c.stdout, io.Discard, roles{
		manager:   func(_ context.Context, s manager.Settings) error { c.manager = &s; return nil },
		scheduler: func(_ context.Context, s scheduler.Settings) error { c.scheduler = &s; return nil },
		solver:    func(_ context.Context, s solver.Settings) error { c.solver = &s; return nil },
	})
	c.err = app.RunContext(t.Context(), append([]string{"workers"}, args...))
	return &c
}

func TestManagerSettings(t *testing.T) {
	c := start(t, map[string]string{
		"HUBJOBS_API_KEY": "k", "IOTHUB_CONNECTION_STRING": hubSecret, "SERVICEBUS_CONNECTION_STRING": busSecret,
		"EMULATOR_HTTPS_ADDR": "127.0.0.1:8443", "EMULATOR_AMQPS_ADDR": "127.0.0.1:5671",
		"HUBJOBS_HUB_TIER": "s1", "HUBJOBS_HUB_UNITS": "2", "HUBJOBS_HTTP_ADDR": ":8080",
		"TEMPORAL_ADDRESS": "temporal:7233", "TEMPORAL_NAMESPACE": "jobs",
	}, "manager")
	if c.err != nil {
		t.Fatal(c.err)
	}
	s := c.manager
	if s.APIKey != "k" || s.Hub.ConnectionString != hubSecret || s.ServiceBus.ConnectionString != busSecret {
		t.Error("a secret did not arrive")
	}
	if s.Hub.HTTPSAddr != "127.0.0.1:8443" || s.Hub.AMQPSAddr != "127.0.0.1:5671" || s.HTTPAddr != ":8080" {
		t.Errorf("addresses: %q, %q, %q", s.Hub.HTTPSAddr, s.Hub.AMQPSAddr, s.HTTPAddr)
	}
	if s.Limits != (manager.Limits{Tier: manager.TierS1, Units: 2}) {
		t.Errorf("limits: %+v", s.Limits)
	}
	if s.Temporal.HostPort != "temporal:7233" || s.Temporal.Namespace != "jobs" {
		t.Errorf("Temporal: %q, %q", s.Temporal.HostPort, s.Temporal.Namespace)
	}
}

func TestManagerWithAManagedIdentity(t *testing.T) {
	c := start(t, map[string]string{
		"HUBJOBS_API_KEY": "k", "IOTHUB_HOSTNAME": "h.azure-devices.net", "SERVICEBUS_NAMESPACE": "n.servicebus.windows.net",
		"AZURE_CLIENT_ID": "00000000-0000-0000-0000-000000000001",
	}, "manager")
	if c.err != nil {
		t.Fatal(c.err)
	}
	s := c.manager
	if s.Hub.HostName != "h.azure-devices.net" || s.Hub.Credential == nil || s.ServiceBus.Namespace != "n.servicebus.windows.net" || s.ServiceBus.Credential == nil {
		t.Errorf("hub %q with %v, bus %q with %v", s.Hub.HostName, s.Hub.Credential, s.ServiceBus.Namespace, s.ServiceBus.Credential)
	}
	if s.HTTPAddr != "127.0.0.1:8080" {
		t.Errorf("listens on %q without having been told so", s.HTTPAddr)
	}
}

func TestSchedulerSettings(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte("from-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := start(t, map[string]string{"HUBJOBS_MANAGER_URL": "http://manager:8080", "EMULATOR_MQTTS_ADDR": "127.0.0.1:8883"},
		"scheduler", "--host", "h1", "--api-key-file", file)
	if c.err != nil {
		t.Fatal(c.err)
	}
	h := c.scheduler.Host
	if h.Name != "h1" || h.APIKey != "from-file" || h.ManagerURL != "http://manager:8080" || h.MQTTAddr != "127.0.0.1:8883" {
		t.Errorf("got %q, %q, %q", h.Name, h.ManagerURL, h.MQTTAddr)
	}
}

func TestSolverSettings(t *testing.T) {
	env := map[string]string{
		"HUBJOBS_API_KEY": "k", "HUBJOBS_MANAGER_URL": "http://manager:8080", "SERVICEBUS_CONNECTION_STRING": busSecret,
		"APP_API_TOKEN": "t", "HUBJOBS_STEP_TIMEOUT": "5m",
	}
	t.Run("simulate", func(t *testing.T) {
		c := start(t, env, "solver", "--step-time", "0s", "--step-retries", "2", "--receipt-timeout", "1m")
		if c.err != nil {
			t.Fatal(c.err)
		}
		s := c.solver
		if s.Steps != (steps.Simulate{}) || s.Defaults.StepRetries != 2 || s.Defaults.StepTimeout != 5*time.Minute || s.Defaults.ReceiptTimeout != time.Minute {
			t.Errorf("steps %+v, defaults %+v", s.Steps, s.Defaults)
		}
		if s.ServiceBus == nil || s.ServiceBus.ConnectionString != busSecret || s.DaprToken != "t" || s.PubSub != "pubsub" {
			t.Errorf("bus %v, pubsub %q", s.ServiceBus, s.PubSub)
		}
	})
	t.Run("defaults", func(t *testing.T) {
		if c := start(t, env, "solver"); c.err != nil || c.solver.Steps != (steps.Simulate{StepTime: 6 * time.Second}) {
			t.Errorf("got %+v, %v", c.solver, c.err)
		}
	})
	t.Run("exec behind a sidecar", func(t *testing.T) {
		env := map[string]string{"HUBJOBS_API_KEY": "k", "HUBJOBS_MANAGER_URL": "http://manager:8080", "SERVICEBUS_CONNECTION_STRING": ""}
		c := start(t, env, "solver", "--jobs-from", "http", "--dapr-pubsub", "mine", "--step-runner", "exec", "--step-dir", t.TempDir())
		if c.err != nil {
			t.Fatal(c.err)
		}
		if _, ok := c.solver.Steps.(*steps.Exec); !ok || c.solver.ServiceBus != nil || c.solver.PubSub != "mine" {
			t.Errorf("got %+v", c.solver)
		}
	})
}

// envFile writes what a local run leaves for others.
func envFile(t *testing.T, lines ...string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "hubjobs.env")
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestEnvFile(t *testing.T) {
	key := filepath.Join(t.TempDir(), "api-key")
	if err := os.WriteFile(key, []byte("key-of-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	file := envFile(t,
		"TEMPORAL_ADDRESS=file:7233", "HUBJOBS_MANAGER_URL=http://file:8080", "HUBJOBS_API_KEY_FILE="+key,
		"IOTHUB_CONNECTION_STRING="+hubSecret, "SERVICEBUS_CONNECTION_STRING="+busSecret,
		"EMULATOR_MQTTS_ADDR=file:8883", "HUBJOBS_STEP_TIMEOUT=5m", "HUBJOBS_STEP_RETRIES=3",
	)
	t.Run("everything from the file", func(t *testing.T) {
		c := start(t, nil, "solver", "--env-file", file)
		if c.err != nil {
			t.Fatal(c.err)
		}
		s := c.solver
		if s.Temporal.HostPort != "file:7233" || s.Host.ManagerURL != "http://file:8080" || s.Host.APIKey != "key-of-file" || s.Host.MQTTAddr != "file:8883" {
			t.Errorf("got %q, %q, %q", s.Temporal.HostPort, s.Host.ManagerURL, s.Host.MQTTAddr)
		}
		if s.ServiceBus.ConnectionString != busSecret || s.Defaults.StepTimeout != 5*time.Minute || s.Defaults.StepRetries != 3 {
			t.Errorf("defaults %+v, or the bus is another", s.Defaults)
		}
	})
	t.Run("the environment counts before the file, and a flag before both", func(t *testing.T) {
		c := start(t, map[string]string{
			"HUBJOBS_ENV_FILE": file, "TEMPORAL_ADDRESS": "env:7233", "HUBJOBS_MANAGER_URL": "http://env:8080", "EMULATOR_MQTTS_ADDR": "",
			"HUBJOBS_STEP_TIMEOUT": "6m", "HUBJOBS_API_KEY": "key-of-env",
		}, "solver", "--manager-url", "http://flag:8080")
		if c.err != nil {
			t.Fatal(c.err)
		}
		s := c.solver
		if s.Temporal.HostPort != "env:7233" || s.Host.ManagerURL != "http://flag:8080" || s.Host.APIKey != "key-of-env" || s.Host.MQTTAddr != "file:8883" {
			t.Errorf("got %q, %q, %q", s.Temporal.HostPort, s.Host.ManagerURL, s.Host.MQTTAddr)
		}
		if s.Defaults.StepTimeout != 6*time.Minute {
			t.Errorf("step timeout %s", s.Defaults.StepTimeout)
		}
	})
	t.Run("a managed identity counts before a secret of the file", func(t *testing.T) {
		c := start(t, map[string]string{"IOTHUB_HOSTNAME": "h.azure-devices.net"}, "manager", "--env-file", file, "--servicebus-namespace", "n.servicebus.windows.net")
		if c.err != nil {
			t.Fatal(c.err)
		}
		s := c.manager
		if s.Hub.ConnectionString != "" || s.Hub.HostName != "h.azure-devices.net" || s.ServiceBus.ConnectionString != "" || s.ServiceBus.Namespace != "n.servicebus.windows.net" {
			t.Errorf("hub %q, bus %q", s.Hub.HostName, s.ServiceBus.Namespace)
		}
	})
	t.Run("the default file", func(t *testing.T) {
		t.Chdir(t.TempDir())
		if c := start(t, nil, "scheduler"); c.err == nil {
			t.Error("no file, and yet there are settings")
		}
		if err := os.Mkdir(".hubjobs", 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file, filepath.FromSlash(".hubjobs/hubjobs.env")); err != nil {
			t.Fatal(err)
		}
		if c := start(t, nil, "scheduler"); c.err != nil || c.scheduler.Host.APIKey != "key-of-file" {
			t.Errorf("got %+v", c.err)
		}
		if c := start(t, nil, "scheduler", "--env-file", os.DevNull); c.err == nil {
			t.Error("another file was named, and yet the default one was read")
		}
	})
	t.Run("a wrong value", func(t *testing.T) {
		bad := envFile(t, "HUBJOBS_STEP_TIMEOUT=soon")
		if c := start(t, nil, "solver", "--env-file", bad); c.err == nil || !strings.Contains(c.err.Error(), bad+": HUBJOBS_STEP_TIMEOUT: ") {
			t.Errorf("got %v", c.err)
		}
	})
}

func TestWrongSettingsAreOneClearLine(t *testing.T) {
	fine := map[string]string{
		"HUBJOBS_API_KEY": "k", "HUBJOBS_MANAGER_URL": "http://manager:8080",
		"IOTHUB_CONNECTION_STRING": hubSecret, "SERVICEBUS_CONNECTION_STRING": busSecret,
	}
	for _, c := range []struct {
		name string
		env  map[string]string // over fine
		args []string
		want string
	}{
		{"no such role", nil, []string{"boss"}, `no role "boss"`},
		{"no such flag", nil, []string{"manager", "--bogus"}, "-bogus"},
		{"an argument", nil, []string{"solver", "now"}, `no arguments, but got "now"`},
		{"no API key", map[string]string{"HUBJOBS_API_KEY": " "}, []string{"manager"}, "set HUBJOBS_API_KEY"},
		{"an API key file that isn't there", nil, []string{"manager", "--api-key-file", "/nowhere/key"}, "/nowhere/key"},
		{"no hub", map[string]string{"IOTHUB_CONNECTION_STRING": ""}, []string{"manager"}, "set IOTHUB_CONNECTION_STRING"},
		{"no Service Bus", map[string]string{"SERVICEBUS_CONNECTION_STRING": ""}, []string{"manager"}, "set SERVICEBUS_CONNECTION_STRING"},
		{"no Service Bus for the solver", map[string]string{"SERVICEBUS_CONNECTION_STRING": ""}, []string{"solver"}, "set SERVICEBUS_CONNECTION_STRING"},
		{"a tier that isn't", nil, []string{"manager", "--hub-tier", "S9"}, `"S9"`},
		{"units that aren't a number", nil, []string{"manager", "--hub-units", "many"}, "many"},
		{"no manager", map[string]string{"HUBJOBS_MANAGER_URL": ""}, []string{"scheduler"}, "set HUBJOBS_MANAGER_URL"},
		{"a manager that isn't a URL", nil, []string{"scheduler", "--manager-url", "manager:8080"}, "should look like"},
		{"a step runner that isn't", nil, []string{"solver", "--step-runner", "magic"}, `"magic"`},
		{"exec without a directory", nil, []string{"solver", "--step-runner", "exec"}, "--step-dir"},
		{"exec in a directory that isn't there", nil, []string{"solver", "--step-runner", "exec", "--step-dir", "/nowhere"}, "/nowhere"},
		{"a step directory and nothing that uses it", nil, []string{"solver", "--step-dir", "."}, "--step-runner exec"},
		{"an env file that isn't there", nil, []string{"manager", "--env-file", "/nowhere/hubjobs.env"}, "/nowhere/hubjobs.env"},
		{"an env file that isn't one", nil, []string{"manager", "--env-file", "app_test.go"}, "app_test.go:1: this is not NAME=VALUE"},
		{"a negative step time", nil, []string{"solver", "--step-time", "-1s"}, "negative"},
		{"jobs from elsewhere", nil, []string{"solver", "--jobs-from", "mail"}, `"mail"`},
		{"a log level that isn't", nil, []string{"manager", "--log-level", "loud"}, `"loud"`},
		{"a log format that isn't", nil, []string{"manager", "--log-format", "poem"}, `"poem"`},
		{"authorities that aren't there", nil, []string{"manager", "--emulator-ca-file", "/nowhere/ca.pem"}, "/nowhere/ca.pem"},
		{"a Temporal profile that isn't there", map[string]string{"TEMPORAL_PROFILE": "other"}, []string{"manager"}, "Temporal"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for name, value := range fine {
				t.Setenv(name, value)
			}
			got := start(t, c.env, c.args...)
			if got.err == nil || !strings.Contains(got.err.Error(), c.want) {
				t.Fatalf("got %v, want something about %s", got.err, c.want)
			}
			text := got.err.Error()
			if strings.Contains(text, "\n") || strings.Contains(text, "aHVic2VjcmV0") || strings.Contains(text, "bussecret") {
				t.Errorf("the error is not one line without secrets: %q", text)
			}
			if got.manager != nil || got.scheduler != nil || got.solver != nil {
				t.Error("a role was started all the same")
			}
		})
	}
}

func TestHelp(t *testing.T) {
	for _, args := range [][]string{nil, {"--help"}, {"solver", "--help"}} {
		c := start(t, map[string]string{"HUBJOBS_API_KEY": "the-key"}, args...)
		if c.err != nil || !strings.Contains(c.stdout.String(), "workers") || strings.Contains(c.stdout.String(), "the-key") {
			t.Errorf("%q: got %v, %s", args, c.err, &c.stdout)
		}
	}
}

func TestRoleErrorsComeBack(t *testing.T) {
	t.Setenv("HUBJOBS_API_KEY", "k")
	t.Setenv("HUBJOBS_MANAGER_URL", "http://manager")
	boom := errors.New("boom")
	app := newApp(io.Discard, io.Discard, roles{scheduler: func(context.Context, scheduler.Settings) error { return boom }})
	if err := app.RunContext(t.Context(), []string{"workers", "scheduler"}); !errors.Is(err, boom) {
		t.Errorf("got %v", err)
	}
}

func TestInterruptedWhileStarting(t *testing.T) {
	t.Setenv("HUBJOBS_API_KEY", "k")
	t.Setenv("HUBJOBS_MANAGER_URL", "http://manager")
	t.Setenv("TEMPORAL_ADDRESS", "127.0.0.1:1")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := run(ctx, []string{"workers", "scheduler"}, io.Discard, io.Discard); err != nil {
		t.Errorf("got %v", err)
	}
}

func TestLogger(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ level, format, want string }{
		{"info", "json", `"msg":"shown"`},
		{"info", "auto", `"msg":"shown"`}, // no terminal
		{"debug", "console", "shown"},
		{"error", "json", ""},
	} {
		var out bytes.Buffer
		log, err := newLogger(&out, c.level, c.format)
		if err != nil {
			t.Fatal(err)
		}
		log.Info("shown", "job", "job-1", "took", time.Second)
		log.Debug("details")
		if !strings.Contains(out.String(), c.want) || (out.Len() == 0) != (c.want == "") {
			t.Errorf("%s, %s: got %q", c.level, c.format, &out)
		}
		if strings.Contains(out.String(), "details") != (c.level == "debug") {
			t.Errorf("%s: got %q", c.level, &out)
		}
	}
}

func TestLoggerWritesJSON(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log, err := newLogger(&out, "info", "json")
	if err != nil {
		t.Fatal(err)
	}
	log.With("role", "manager").Error("it failed", "error", errors.New("why"), slog.Group("message", "id", "m1"))
	var line map[string]any
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatalf("%q: %v", &out, err)
	}
	if line["level"] != "error" || line["error"] != "why" || line["role"] != "manager" || line["stacktrace"] != nil {
		t.Errorf("got %v", line)
	}
}
