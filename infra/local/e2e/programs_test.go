package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds each wait of these tests. It is no expectation: a machine that is merely slow must not fail them.
const patience = 3 * time.Minute

// binaries are built once for all tests, on demand.
var binaries = struct {
	dir string
	one map[string]*sync.Once
	err map[string]error
	mu  sync.Mutex
}{one: map[string]*sync.Once{}, err: map[string]error{}}

func TestMain(m *testing.M) {
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "hubjobs-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binaries.dir = dir
	code := m.Run()
	if err := stopShared(); err != nil {
		fmt.Fprintln(os.Stderr, "the shared pipeline did not stop in order:", err)
		return 1
	}
	return code
}

// program returns the path of a program that is built from a folder of the repository.
func program(t *testing.T, folder string) string {
	t.Helper()
	binaries.mu.Lock()
	once := binaries.one[folder]
	if once == nil {
		once = &sync.Once{}
		binaries.one[folder] = once
	}
	binaries.mu.Unlock()
	path := filepath.Join(binaries.dir, strings.ReplaceAll(folder, "/", "-"))
	once.Do(func() {
		build := exec.Command("go", "build", "-o", path, ".")
		build.Dir = filepath.Join("..", "..", "..", folder)
		if out, err := build.CombinedOutput(); err != nil {
			err = fmt.Errorf("go build in %s: %w\n%s", folder, err, out)
			binaries.mu.Lock()
			binaries.err[folder] = err
			binaries.mu.Unlock()
		}
	})
	binaries.mu.Lock()
	defer binaries.mu.Unlock()
	if err := binaries.err[folder]; err != nil {
		t.Fatal(err)
	}
	return path
}

// process is a program that runs beside the test.
type process struct {
	t    *testing.T
	name string
	cmd  *exec.Cmd
	out  *watched // standard output
	errs *watched // error output
	done chan struct{}
}

// watched is output that a test can wait for while it is written.
type watched struct {
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{} // closed and replaced with each write
}

func newWatched() *watched { return &watched{changed: make(chan struct{})} }

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.changed)
	w.changed = make(chan struct{})
	return w.text.Write(p)
}

func (w *watched) get() (string, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.String(), w.changed
}

func (w *watched) String() string {
	s, _ := w.get()
	return s
}

// spawn starts a program. It is killed at the end of the test if it still runs.
func spawn(t *testing.T, env []string, stdin *os.File, folder string, args ...string) *process {
	t.Helper()
	p := &process{t: t, name: folder, out: newWatched(), errs: newWatched(), done: make(chan struct{})}
	p.cmd = exec.Command(program(t, folder), args...)
	p.cmd.Dir = t.TempDir() // no settings file lies around there
	p.cmd.Env = append(clean(os.Environ()), env...)
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.errs
	if stdin != nil {
		p.cmd.Stdin = stdin
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait() // the exit code is read from ProcessState
		close(p.done)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.done
	})
	return p
}

// clean drops the settings of the person who runs the tests.
func clean(env []string) []string {
	var kept []string
	for _, e := range env {
		foreign := false
		for _, prefix := range []string{"HUBJOBS_", "TEMPORAL_", "IOTHUB_", "SERVICEBUS_", "EVENTHUB_", "EMULATOR_"} {
			foreign = foreign || strings.HasPrefix(e, prefix)
		}
		if !foreign {
			kept = append(kept, e)
		}
	}
	return kept
}

// wait returns the exit code of the program when it has ended by itself.
func (p *process) wait() int {
	p.t.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(patience):
		p.t.Fatalf("%s does not end\n%s\n%s", p.name, p.out, p.errs)
		return -1
	}
}

// until waits until ok accepts what the program has written.
func (p *process) until(w *watched, what string, ok func(string) bool) string {
	p.t.Helper()
	deadline := time.After(patience)
	for {
		text, changed := w.get()
		if ok(text) {
			return text
		}
		select {
		case <-changed:
		case <-p.done:
			if text, _ := w.get(); ok(text) {
				return text
			}
			p.t.Fatalf("%s ended before %s\n%s\n%s", p.name, what, p.out, p.errs)
		case <-deadline:
			p.t.Fatalf("%s: no %s\n%s\n%s", p.name, what, p.out, p.errs)
		}
	}
}

func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// contains waits for a text.
func contains(text string) func(string) bool {
	return func(s string) bool { return strings.Contains(s, text) }
}

// times waits for a text to come n times.
func times(n int, text string) func(string) bool {
	return func(s string) bool { return strings.Count(s, text) >= n }
}

// run runs a program to its end.
func run(t *testing.T, env []string, folder string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	p := spawn(t, env, nil, folder, args...)
	code = p.wait()
	return code, p.out.String(), p.errs.String()
}

// within returns a context that ends with the test, or with its patience.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}
