// Command iothub-emulator runs a local Azure IoT Hub with the Service Bus and
// Event Hubs entities that it routes to. See its flags with --help, and package
// emulator for what it does.
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
	if err := run(ctx, os.Args, os.Stdout, os.Stderr, os.LookupEnv); err != nil {
		fmt.Fprintln(os.Stderr, "iothub-emulator:", err)
		os.Exit(1)
	}
}
