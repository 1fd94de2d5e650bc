// Command starter starts jobs, follows them, and shows what became of them and of their messages. It talks to Temporal
// alone; its hub commands talk to the IoT hub, its deadletter commands to Service Bus. See starter --help.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"

	"github.com/hubjobs/hubjobs/starter/internal/command"
)

func main() {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	os.Exit(command.Run(context.Background(), command.Process{
		Args:    os.Args,
		Stdin:   os.Stdin,
		Stdout:  os.Stdout,
		Stderr:  os.Stderr,
		Environ: os.Environ(),
		Signals: signals,
		Terminal: command.Terminal{
			In:    isTerminal(os.Stdin),
			Out:   isTerminal(os.Stdout) && os.Getenv("TERM") != "dumb",
			Err:   isTerminal(os.Stderr),
			Width: width,
		},
	}))
}

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

func width() int {
	columns, _, err := term.GetSize(int(os.Stdout.Fd()))
	if err != nil {
		return 0
	}
	return columns
}
