//go:build unix

package steps

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"github.com/hubjobs/hubjobs/job"
)

const stepDir = "testdata/steps"

func newExec(t *testing.T) *Exec {
	t.Helper()
	e, err := NewExec(stepDir)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func step(jobID, name string) job.RunStepInput {
	return job.RunStepInput{
		JobID:   jobID,
		JobName: "Job 1",
		Step:    name,
		Index:   1,
		Attempt: 3,
	}
}

func TestNewExecRefuses(t *testing.T) {
	t.Parallel()
	for name, dir := range map[string]string{
		"no directory":    "",
		"nothing there":   filepath.Join(t.TempDir(), "missing"),
		"a file":          filepath.Join(stepDir, "Fail"),
		"a dangling link": dangling(t),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := NewExec(dir); err == nil {
				t.Errorf("NewExec(%q) succeeded", dir)
			}
		})
	}
}

func dangling(t *testing.T) string {
	t.Helper()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink("nowhere", link); err != nil {
		t.Fatal(err)
	}
	return link
}

func TestExecCheck(t *testing.T) {
	t.Parallel()
	absolute, err := filepath.Abs(filepath.Join(stepDir, "Fail"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		steps  []string
		reject string // the step that is rejected
		reason string // part of the reason
	}{
		{"all there", []string{"Read all the data", "Fail", "Done"}, "", ""},
		{"a link within the directory", []string{"Alias"}, "", ""},
		{"the last step needs none", []string{"Done"}, "", ""},
		{"missing", []string{"Fail", "Train the model"}, "Train the model", `no executable named "Train the model" in the solver's step directory`},
		{"other case", []string{"fail"}, "fail", "no executable"},
		{"not executable", []string{"plain.txt"}, "plain.txt", "not executable"},
		{"directory", []string{"adir"}, "adir", "not a regular file"},
		{"a link that leads out", []string{"Escape"}, "Escape", "leads out"},
		{"parent", []string{"../outside/secret"}, "../outside/secret", "can't be a path"},
		{"absolute", []string{absolute}, absolute, "can't be a path"},
		{"in a subdirectory", []string{"adir/.keep"}, "adir/.keep", "can't be a path"},
		{"backslash", []string{`adir\x`}, `adir\x`, "can't be a path"},
		{"dot", []string{"."}, ".", "can't be a path"},
		{"dot dot", []string{".."}, "..", "can't be a path"},
		{"empty", []string{""}, "", "can't be a path"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			step, reason := newExec(t).Check(c.steps)
			if step != c.reject {
				t.Errorf("rejected %q, want %q", step, c.reject)
			}
			if !strings.Contains(reason, c.reason) || (reason == "") != (c.reason == "") {
				t.Errorf("reason %q, want one with %q", reason, c.reason)
			}
		})
	}
}

func TestExecRun(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		step   string
		status job.Status
		reason string
		output []string // parts
	}{
		{step: "Read all the data", status: job.StatusCompleted, output: []string{
			"job=job-1 step=Read all the data index=1 attempt=3\n", "args=0\n", "hubjobs-step-"}},
		{step: "Fail", status: job.StatusFailed, reason: "exit status 3: the disk is full", output: []string{"half way there\n"}},
		{step: "Alias", status: job.StatusFailed, reason: "exit status 3: the disk is full"},
		{step: "Long output", status: job.StatusCompleted, output: []string{"line 1999\nthe end\n"}},
		{step: "Done", status: job.StatusCompleted},
		{step: "Escape", status: job.StatusFailed,
			reason: `no executable named "Escape" in the solver's step directory: it is a link that leads out of it`},
		{step: "../outside/secret", status: job.StatusFailed,
			reason: `no executable named "../outside/secret" in the solver's step directory: a step's name can't be a path`},
	} {
		t.Run(c.step, func(t *testing.T) {
			t.Parallel()
			out, err := newExec(t).Run(t.Context(), step("job-1", c.step))
			if err != nil {
				t.Fatal(err)
			}
			if out.Status != c.status || out.Reason != c.reason {
				t.Errorf("got status %q, reason %q; want %q, %q", out.Status, out.Reason, c.status, c.reason)
			}
			for _, part := range c.output {
				if !strings.Contains(out.Output, part) {
					t.Errorf("the output %q lacks %q", out.Output, part)
				}
			}
			if len(out.Output) > MaxOutput || !utf8.ValidString(out.Output) {
				t.Errorf("the output has %d bytes, valid UTF-8: %v", len(out.Output), utf8.ValidString(out.Output))
			}
			if strings.Contains(out.Output, "leaked") {
				t.Error("an executable outside of the step directory was run")
			}
		})
	}
}

func TestExecGivesNothingOfTheSolversEnvironment(t *testing.T) {
	t.Setenv("HUBJOBS_API_KEY", "key-1")
	out, err := newExec(t).Run(t.Context(), step("job-1", "Read all the data"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.Output, "HUBJOBS_API_KEY") {
		t.Errorf("the step saw the solver's API key: %q", out.Output)
	}
}

func TestExecDeletesTheWorkingDirectory(t *testing.T) {
	t.Parallel()
	out, err := newExec(t).Run(t.Context(), step("job-1", "Read all the data"))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(out.Output, "\n")
	if len(lines) < 3 || !filepath.IsAbs(lines[2]) {
		t.Fatalf("no working directory in %q", out.Output)
	}
	if _, err := os.Stat(lines[2]); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the working directory %s is still there: %v", lines[2], err)
	}
}

// alive returns a directory with a named pipe that a step's child opens for writing, and the pipe's reading end, which
// blocks until then, and which ends when the child does.
func alive(t *testing.T) (dir string, open func() *os.File) {
	t.Helper()
	dir = t.TempDir()
	path := filepath.Join(dir, "alive")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir, func() *os.File {
		f, err := os.Open(path)
		if err != nil {
			t.Error(err)
			return nil
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
}

func TestExecKillsTheWholeGroupWhenTheContextEnds(t *testing.T) {
	t.Parallel()
	cause := errors.New("time is up")
	ctx, cancel := context.WithCancelCause(t.Context())
	dir, open := alive(t)
	pipe := make(chan *os.File, 1)
	go func() {
		f := open()
		cancel(cause)
		pipe <- f
	}()
	out, err := newExec(t).Run(ctx, step(dir, "Hang"))
	if !errors.Is(err, cause) {
		t.Errorf("got error %v, want %v", err, cause)
	}
	if out.Status != "" || !strings.Contains(out.Output, "about to hang") {
		t.Errorf("got %+v, want no status and what was printed", out)
	}
	if _, err := io.ReadAll(<-pipe); err != nil { // ends only when the child is dead
		t.Error(err)
	}
}

func TestExecLeavesNoChildrenBehind(t *testing.T) {
	t.Parallel()
	dir, open := alive(t)
	pipe := make(chan *os.File, 1)
	go func() { pipe <- open() }()
	out, err := newExec(t).Run(t.Context(), step(dir, "Leave a child"))
	if err != nil || out.Status != job.StatusCompleted || out.Output != "done\n" {
		t.Errorf("got %+v, %v", out, err)
	}
	if _, err := io.ReadAll(<-pipe); err != nil {
		t.Error(err)
	}
}
