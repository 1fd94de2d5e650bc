//go:build unix && !linux

package steps

import (
	"os/exec"
	"syscall"
)

// start makes the process the leader of a group of its own, so that its children can be killed with it, and runs it. A
// step outlives a solver that is killed: this system can't tie the two together.
func start(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd.Run()
}
