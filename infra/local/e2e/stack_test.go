package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.temporal.io/sdk/client"

	"github.com/hubjobs/hubjobs/infra/local/pipeline"
	"github.com/hubjobs/hubjobs/job"
)

// shared is one pipeline for all tests that don't stop it.
var shared struct {
	once  sync.Once
	stack *stack
	err   error
}

// stack is a running pipeline and what a test needs to talk to it.
type stack struct {
	*pipeline.Pipeline
	temporal client.Client
	env      []string // for programs
	dir      string
}

// theStack returns the pipeline that the tests share.
func theStack(t *testing.T) *stack {
	t.Helper()
	shared.once.Do(func() { shared.stack, shared.err = startStack(context.Background()) })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.stack
}

func startStack(ctx context.Context) (*stack, error) {
	dir, err := os.MkdirTemp(binaries.dir, "stack-")
	if err != nil {
		return nil, err
	}
	p, err := pipeline.Start(ctx, dir, &pipeline.Options{StepTime: 10 * time.Millisecond})
	if err != nil {
		return nil, err
	}
	s := &stack{Pipeline: p, dir: dir, env: []string{"HUBJOBS_ENV_FILE=" + p.EnvFile()}}
	s.temporal, err = client.Dial(client.Options{HostPort: p.Temporal().Address(), Namespace: pipeline.Namespace, Logger: silent{}})
	return s, err
}

func stopShared() error {
	if shared.stack == nil {
		return nil
	}
	shared.stack.temporal.Close()
	return shared.stack.Close()
}

// silent drops what the SDK logs.
type silent struct{}

func (silent) Debug(string, ...any) {}
func (silent) Info(string, ...any)  {}
func (silent) Warn(string, ...any)  {}
func (silent) Error(string, ...any) {}

// result is the last line that `starter run --output json` and its like write.
type result struct {
	Event string `json:"event"`
	job.Snapshot
}

// lastLine decodes the last line of JSON output.
func lastLine[T any](t *testing.T, out string) T {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(out), "\n")
	return decode[T](t, lines[len(lines)-1])
}

func decode[T any](t *testing.T, line string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(line), &v); err != nil {
		t.Fatalf("%v in %q", err, line)
	}
	return v
}

// everyLine decodes each line of JSON output.
func everyLine[T any](t *testing.T, out string) []T {
	t.Helper()
	var all []T
	for line := range strings.Lines(out) {
		all = append(all, decode[T](t, line))
	}
	return all
}

// settings reads a settings file.
func settings(t *testing.T, file string) map[string]string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	all := make(map[string]string)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if name, value, ok := strings.Cut(lines.Text(), "="); ok {
			all[name] = value
		}
	}
	return all
}
