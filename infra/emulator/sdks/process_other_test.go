//go:build !unix

package sdks

import (
	"os/exec"
	"time"
)

// killGroup bounds the wait for what a killed command has started: there are no
// process groups to kill here.
func killGroup(cmd *exec.Cmd) { cmd.WaitDelay = 10 * time.Second }
