package steps

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/hubjobs/hubjobs/job"
)

// envSolverDir makes a process of this test a solver that runs the step "Orphan" of that directory.
const envSolverDir = "HUBJOBS_TEST_SOLVER_DIR"

// A step that went on after its solver was killed would run beside its own repetition on another solver.
func TestExecEndsWithAKilledSolver(t *testing.T) {
	t.Parallel()
	if dir := os.Getenv(envSolverDir); dir != "" {
		runOrphan(t, dir)
		return
	}
	dir := t.TempDir()
	alive := filepath.Join(dir, "alive") // open for writing as long as the step lives
	if err := syscall.Mkfifo(alive, 0o600); err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf("#!/bin/sh\nexec 3>'%s'\necho $$ >&3\nexec sleep 600\n", alive)
	if err := os.WriteFile(filepath.Join(dir, "Orphan"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	solver := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	solver.Env = append(os.Environ(), envSolverDir+"="+dir, "TMPDIR="+dir) // the working directory is left behind
	if err := solver.Start(); err != nil {
		t.Fatal(err)
	}
	step, err := os.Open(alive) // waits for the step
	if err != nil {
		t.Fatal(err)
	}
	defer step.Close()
	output := bufio.NewReader(step)
	var pid int
	if _, err := fmt.Fscanln(output, &pid); err != nil {
		t.Fatal(err)
	}
	if err := solver.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = solver.Wait() // says that it was killed
	if err := step.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(output); err != nil || len(rest) > 0 {
		t.Errorf("the step went on: %q, %v", rest, err)
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// patience bounds a wait that is over at once unless the test fails.
const patience = time.Minute

func runOrphan(t *testing.T, dir string) {
	e, err := NewExec(dir)
	if err != nil {
		t.Fatal(err)
	}
	in := job.RunStepInput{JobID: "j", JobName: "Job 1", Step: "Orphan", Attempt: 1}
	out, err := e.Run(t.Context(), in)
	t.Errorf("the step ended: %+v, %v", out, err)
}
