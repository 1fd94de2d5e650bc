//go:build !unix

package steps

import (
	"io/fs"
	"os/exec"
)

// inherited are the environment variables of the solver that a step sees; programs on Windows fail without most of
// these.
var inherited = []string{"PATH", "PATHEXT", "SystemRoot", "SystemDrive", "ComSpec"}

func executable(fs.FileInfo) bool { return true }

// start runs the process. Without process groups only the step's own process can be killed.
func start(cmd *exec.Cmd) error { return cmd.Run() }

func killGroup(cmd *exec.Cmd) error { return cmd.Process.Kill() }
