package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait. It is long because other tests may take the processors meanwhile.
const patience = 2 * time.Minute

// binaries are the folder that TestMain builds the programs into.
var binaries string

func TestMain(m *testing.M) { os.Exit(build(m)) }

func build(m *testing.M) int {
	var err error
	if binaries, err = os.MkdirTemp("", "consoles"); err != nil {
		panic(err)
	}
	defer os.RemoveAll(binaries)
	for _, program := range []struct{ module, path string }{
		{"../..", "./infra/emulator/cmd/iothub-emulator"},
		{"..", "./console-device"},
		{"..", "./console-cloud"},
	} {
		build := exec.Command("go", "build", "-o", binaries+string(filepath.Separator), program.path)
		build.Dir, build.Stdout, build.Stderr = program.module, os.Stdout, os.Stderr
		if err := build.Run(); err != nil {
			return 1 // the compiler has said why
		}
	}
	return m.Run()
}

// process is a running program.
type process struct {
	name   string
	cmd    *exec.Cmd
	in     io.WriteCloser
	lines  chan string // of the standard output
	stderr bytes.Buffer
	ended  chan error
}

// start starts a program with nothing but these variables in its environment. It is killed when the test ends.
func start(t *testing.T, environment []string, name string, args ...string) *process {
	t.Helper()
	p := &process{name: name, lines: make(chan string, 1000), ended: make(chan error, 1)}
	p.cmd = exec.Command(filepath.Join(binaries, name), args...)
	p.cmd.Env, p.cmd.Stderr = environment, &p.stderr
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go p.read(out)
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // it may have ended already
		p.end(t)
	})
	return p
}

func (p *process) read(out io.Reader) {
	defer close(p.lines)
	scanner := bufio.NewScanner(out)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		p.lines <- scanner.Text()
	}
	p.ended <- p.cmd.Wait()
}

// write writes a line to the program's standard input.
func (p *process) write(t *testing.T, line string) {
	t.Helper()
	if _, err := io.WriteString(p.in, line+"\n"); err != nil {
		t.Fatal(err)
	}
}

// next returns the next event of that kind, without those before it.
func (p *process) next(t *testing.T, kind string) map[string]any {
	t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case line, more := <-p.lines:
			if !more {
				t.Fatalf("%s ended without the event %q: %s", p.name, kind, p.stderr.String())
			}
			var e map[string]any
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				t.Fatalf("%s printed %q, which is not JSON", p.name, line)
			}
			if e["event"] == kind {
				return e
			}
			t.Logf("%s: %s", p.name, line)
		case <-timeout:
			t.Fatalf("%s did not report %q in %s", p.name, kind, patience)
		}
	}
}

// end waits for the end of the program and returns its error.
func (p *process) end(t *testing.T) error {
	t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case _, more := <-p.lines:
			if !more {
				p.lines = nil
			}
		case err := <-p.ended:
			p.ended <- err // for those who ask again
			return err
		case <-timeout:
			t.Errorf("%s did not end", p.name)
			return nil
		}
	}
}

// interrupt is Ctrl-C, after which a console must end in good order.
func (p *process) interrupt(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := p.end(t); err != nil {
		t.Errorf("%s after Ctrl-C: %v: %s", p.name, err, p.stderr.String())
	}
}

// emulator is a running emulator.
type emulator struct {
	*process
	file     string            // emulator.env
	settings map[string]string // what is in it
}

// startEmulator starts an emulator on free ports, or on those given as arguments, and waits until it is ready.
func startEmulator(t *testing.T, dataDir string, args ...string) *emulator {
	t.Helper()
	if args == nil {
		for _, name := range []string{"amqps", "amqp", "mqtts", "https"} {
			args = append(args, "--"+name+"-addr", "127.0.0.1:0")
		}
	}
	file := filepath.Join(dataDir, "emulator.env")
	_ = os.Remove(file) // of an earlier run; a new one says that it is ready
	e := &emulator{file: file, process: start(t, os.Environ(), "iothub-emulator", append([]string{"--data-dir", dataDir, "--feedback-interval", "100ms"}, args...)...)}
	deadline := time.Now().Add(patience)
	for {
		if content, err := os.ReadFile(file); err == nil {
			e.settings = parse(string(content))
			return e
		}
		select {
		case err := <-e.ended:
			t.Fatalf("the emulator ended: %v: %s", err, e.stderr.String())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("the emulator was not ready in %s", patience)
		}
	}
}

// parse reads lines of the form NAME=VALUE, whose value may be in quotes.
func parse(content string) map[string]string {
	settings := map[string]string{}
	for line := range strings.Lines(content) {
		if name, value, found := strings.Cut(strings.TrimSpace(line), "="); found && !strings.HasPrefix(name, "#") {
			settings[name] = strings.Trim(value, `'"`)
		}
	}
	return settings
}
