// Package command is the command line of the local run.
package command

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"
)

// Run runs the command that args name, of which the first is the program's own name, and returns its exit code. It
// stops what it started when ctx ends.
func Run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	app, err := newApp(environment{getenv}, stdout, stderr)
	if err == nil {
		err = app.RunContext(ctx, args)
	}
	switch {
	case err == nil:
		return 0
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		fmt.Fprintln(stderr, "local: stopped")
		return 130 // as a shell reports a program that Ctrl-C has ended
	default:
		fmt.Fprintln(stderr, "local:", err)
		return 1
	}
}

func newApp(env environment, stdout, stderr io.Writer) (*cli.App, error) {
	up, err := upCommand(env, stdout, stderr)
	if err != nil {
		return nil, err
	}
	demo, err := demoCommand(env, stdout, stderr)
	if err != nil {
		return nil, err
	}
	return &cli.App{
		Name:            "local",
		Usage:           "hubjobs in one process: Temporal with its web UI, the IoT Hub emulator, and the three roles",
		Commands:        []*cli.Command{up, demo},
		Action:          refuseWords,
		Writer:          stdout,
		ErrWriter:       stderr,
		ExitErrHandler:  func(*cli.Context, error) {}, // Run reports the error, once
		HideHelpCommand: true,
		OnUsageError:    usageError,
	}, nil
}

// refuseWords is what the program does without a command: help, unless there is a word that should have been one.
func refuseWords(c *cli.Context) error {
	if c.Args().Present() {
		return fmt.Errorf("there is no command %q: use up, demo or --help", c.Args().First())
	}
	return cli.ShowAppHelp(c)
}

// noWords refuses arguments of a command that takes none.
func noWords(c *cli.Context) error {
	if c.Args().Present() {
		return fmt.Errorf("%s takes no argument, got %q", c.Command.Name, c.Args().First())
	}
	return nil
}

// usageError keeps the whole help text off the screen when one flag is wrong.
func usageError(_ *cli.Context, err error, _ bool) error {
	return fmt.Errorf("%w (see --help)", err)
}
