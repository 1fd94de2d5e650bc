// Command local runs all of hubjobs in one process: Temporal with its web UI, the IoT Hub emulator, and the three
// roles. It needs no cloud, no container and no right beyond a user's own.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/hubjobs/hubjobs/infra/local/internal/command"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the process at once
	os.Exit(command.Run(ctx, os.Args, os.Getenv, os.Stdout, os.Stderr))
}
