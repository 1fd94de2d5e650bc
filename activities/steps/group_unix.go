//go:build unix

package steps

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"syscall"
)

// inherited are the environment variables of the solver that a step sees.
var inherited = []string{"PATH", "LANG", "LC_ALL", "TZ"}

func executable(info fs.FileInfo) bool { return info.Mode().Perm()&0o111 != 0 }

func killGroup(cmd *exec.Cmd) error {
	err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	if errors.Is(err, syscall.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}
