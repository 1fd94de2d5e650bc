package steps

import (
	"os/exec"
	"runtime"
	"syscall"
)

// start makes the process the leader of a group of its own, so that its children can be killed with it, and runs it. The
// process dies with the solver, even one that is killed: the step is soon run elsewhere, and nobody would hear of an end
// of this run. The kernel sends the signal when the thread ends that started the process, so the thread is kept.
func start(cmd *exec.Cmd) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	return cmd.Run()
}
