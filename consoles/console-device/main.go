// Command console-device is a simulated device at a terminal. It asks the manager for an identity, connects to the hub with
// it, sends each line that is typed as a message and shows the messages and direct method calls that come. Two of them
// named device-scheduler::foo and device-solver::foo talk to each other.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the process at once
	if err := run(ctx, os.Args, streams{in: os.Stdin, out: os.Stdout, err: os.Stderr}, os.Getenv); err != nil {
		fmt.Fprintln(os.Stderr, "console-device:", err)
		os.Exit(1)
	}
}
