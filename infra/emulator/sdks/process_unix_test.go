//go:build unix

package sdks

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// killGroup makes the end of the command's context kill what the command has
// started as well: npm runs Node, and Node what it likes.
func killGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = 10 * time.Second
	cmd.Cancel = func() error {
		err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		if errors.Is(err, syscall.ESRCH) {
			return os.ErrProcessDone
		}
		return err
	}
}
