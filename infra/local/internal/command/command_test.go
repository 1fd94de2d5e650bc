package command

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/hubjobs/hubjobs/infra/local/internal/datadir"
)

// run runs a command line that is expected to end by itself.
func run(t *testing.T, env map[string]string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var out, errs strings.Builder
	code = Run(ctx, append([]string{"local"}, args...), func(name string) string { return env[name] }, &out, &errs)
	return code, out.String(), errs.String()
}

func TestUsageErrors(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		env  map[string]string
		args []string
		says string
	}{
		"unknown command":        {args: []string{"run"}, says: `no command "run"`},
		"unknown flag":           {args: []string{"up", "--port", "1"}, says: "-port"},
		"argument of up":         {args: []string{"up", "now"}, says: `"now"`},
		"argument of demo":       {args: []string{"demo", "now"}, says: `"now"`},
		"unknown output":         {args: []string{"demo", "--output", "xml"}, says: `"xml"`},
		"negative step time":     {args: []string{"up", "--step-time", "-1s"}, says: "--step-time"},
		"unknown step runner":    {args: []string{"up", "--step-runner", "magic"}, says: `"magic"`},
		"exec without directory": {args: []string{"up", "--step-runner", "exec"}, says: "--step-dir"},
		"absent step directory":  {args: []string{"up", "--step-runner", "exec", "--step-dir", "/nowhere"}, says: "/nowhere"},
		"steps that nobody runs": {env: map[string]string{"HUBJOBS_STEP_DIR": "."}, args: []string{"up"}, says: "--step-runner exec"},
		"timeout of zero":        {args: []string{"demo", "--timeout", "0s"}, says: "--timeout"},
		"no duration":            {env: map[string]string{"HUBJOBS_STEP_TIME": "soon"}, args: []string{"demo"}, says: "HUBJOBS_STEP_TIME"},
		"neither true nor false": {env: map[string]string{"HUBJOBS_KEEP": "maybe"}, args: []string{"demo"}, says: "HUBJOBS_KEEP"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			code, _, stderr := run(t, test.env, test.args...)
			if code != 1 {
				t.Errorf("exit code %d", code)
			}
			if !strings.HasPrefix(stderr, "local: ") || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, test.says) {
				t.Errorf("not one line about %s: %q", test.says, stderr)
			}
		})
	}
}

func TestHelpNamesEveryVariable(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"up", "demo"} {
		code, stdout, _ := run(t, map[string]string{"HUBJOBS_UI_ADDR": "127.0.0.1:4711"}, name, "--help")
		if code != 0 {
			t.Errorf("%s --help: exit code %d", name, code)
		}
		for _, l := range listeners {
			if !strings.Contains(stdout, "--"+l.flag) || !strings.Contains(stdout, "[$"+variable(l.flag)+"]") {
				t.Errorf("%s --help lacks %s or its variable", name, l.flag)
			}
		}
		if !strings.Contains(stdout, "127.0.0.1:4711") {
			t.Errorf("%s --help ignores the environment:\n%s", name, stdout)
		}
	}
}

func TestTakenPort(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { taken.Close() })
	tests := map[string]struct {
		env  map[string]string
		args []string
	}{
		"by flag":     {args: []string{"--ui-addr", taken.Addr().String()}},
		"by variable": {env: map[string]string{"HUBJOBS_UI_ADDR": taken.Addr().String()}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			code, _, stderr := run(t, test.env, append([]string{"demo"}, test.args...)...)
			if code != 1 {
				t.Errorf("exit code %d", code)
			}
			for _, part := range []string{taken.Addr().String() + " is taken", "web UI", "--ui-addr", "HUBJOBS_UI_ADDR"} {
				if !strings.Contains(stderr, part) {
					t.Errorf("%q lacks %q", stderr, part)
				}
			}
		})
	}
}

func TestDataDirectoryInUse(t *testing.T) {
	t.Parallel()
	dir, err := datadir.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	for _, name := range []string{"up", "demo"} {
		code, _, stderr := run(t, nil, name, "--data-dir", dir.Path())
		if code != 1 {
			t.Errorf("%s: exit code %d", name, code)
		}
		for _, part := range []string{dir.Path(), "in use", "--data-dir", "HUBJOBS_DATA_DIR"} {
			if !strings.Contains(stderr, part) {
				t.Errorf("%s: %q lacks %q", name, stderr, part)
			}
		}
	}
}

func TestInterruptedStart(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out, errs strings.Builder
	if code := Run(ctx, []string{"local", "demo"}, func(string) string { return "" }, &out, &errs); code != 130 {
		t.Errorf("exit code %d", code)
	}
	if errs.String() != "local: stopped\n" {
		t.Errorf("error stream: %q", errs.String())
	}
}

func TestEnvFileFlag(t *testing.T) {
	t.Parallel()
	for file, want := range map[string]string{
		".hubjobs/hubjobs.env":     "",
		"/tmp/d/hubjobs.env":       " --env-file /tmp/d/hubjobs.env",
		"/tmp/my data/hubjobs.env": ` --env-file "/tmp/my data/hubjobs.env"`,
	} {
		if got := envFileFlag(file); got != want {
			t.Errorf("%s: got %q, want %q", file, got, want)
		}
	}
}
