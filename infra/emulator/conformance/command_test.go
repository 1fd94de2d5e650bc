package conformance_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/hubjobs/hubjobs/infra/emulator"
)

// commandDir holds the emulator's command, once it is built, until TestMain
// removes it.
var commandDir string

// buildCommand builds the command when it is first needed and returns its path.
var buildCommand = sync.OnceValues(func() (string, error) {
	var err error
	if commandDir, err = os.MkdirTemp("", "iothub-emulator-"); err != nil {
		return "", err
	}
	path := filepath.Join(commandDir, "iothub-emulator.exe") // a name that runs everywhere
	if out, err := exec.Command("go", "build", "-o", path, "../cmd/iothub-emulator").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the command: %w\n%s", err, out)
	}
	return path, nil
})

// process is a run of the command. It is killed with the case, if not before.
type process struct {
	w      *world
	cmd    *exec.Cmd
	stdout io.Reader
	stderr bytes.Buffer
}

// command starts the emulator's command on free ports.
func (w *world) command(args ...string) *process {
	w.t.Helper()
	path, err := buildCommand()
	if err != nil {
		w.t.Fatal(err)
	}
	const free = "127.0.0.1:0"
	p := &process{w: w, cmd: exec.CommandContext(w.ctx(), path, append([]string{
		"--amqp-addr", free, "--amqps-addr", free, "--mqtts-addr", free, "--https-addr", free, "--log-level", "warn",
	}, args...)...)}
	p.cmd.Stderr = &p.stderr
	if p.stdout, err = p.cmd.StdoutPipe(); err != nil {
		w.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(p.kill)
	return p
}

// kill ends the process as the system does that has no memory left: at once.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	_ = p.cmd.Wait()         // that it was killed is no news
}

// interrupt ends the process as Ctrl-C does, which is a success.
func (p *process) interrupt() {
	p.w.t.Helper()
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		p.w.t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, p.stdout) // Wait must not come before the end of it
	if err := p.cmd.Wait(); err != nil {
		p.w.t.Fatalf("the command ends with %v\n%s", err, p.stderr.String())
	}
}

// ready waits until the emulator serves, and returns the settings for clients and
// what the command says of itself up to its last line.
func (p *process) ready() (settings map[string]string, said string) {
	p.w.t.Helper()
	lines := bufio.NewReader(p.stdout)
	for !strings.Contains(said, "Ctrl-C") {
		line, err := lines.ReadString('\n')
		if err != nil {
			p.w.t.Fatalf("the command ends with %v\n%s%s", err, said, p.failed())
		}
		said += line
	}
	_, file, _ := strings.Cut(strings.SplitN(said, "\n", 2)[0], " are in ")
	text, err := os.ReadFile(file)
	if err != nil {
		p.w.t.Fatal(err)
	}
	settings = make(map[string]string)
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		settings[name] = value
	}
	if settings[emulator.EnvHub] == "" {
		p.w.t.Fatalf("%s has no connection string", file)
	}
	return settings, said
}

// failed waits until the command ends by itself, and returns what it wrote to
// standard error. It has to end with a failure.
func (p *process) failed() string {
	p.w.t.Helper()
	_, _ = io.Copy(io.Discard, p.stdout) // Wait must not come before the end of it
	err := p.cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() <= 0 {
		p.w.t.Fatalf("the command ends with %v", err)
	}
	return p.stderr.String()
}
