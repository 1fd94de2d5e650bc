package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"
	"go.uber.org/zap"
	"go.uber.org/zap/exp/zapslog"
	"go.uber.org/zap/zapcore"

	"github.com/hubjobs/hubjobs/infra/emulator"
)

// run is the whole command. It ends without an error when ctx does.
func run(ctx context.Context, args []string, stdout, stderr io.Writer, env func(string) (string, bool)) error {
	several := new(lists)
	app := &cli.App{
		Name:           "iothub-emulator",
		Usage:          "a local Azure IoT Hub with the Service Bus and Event Hubs entities it routes to",
		UsageText:      "iothub-emulator [--data-dir DIR] [--config FILE] [flags]",
		Description:    description,
		HideHelp:       true, // the library's own flag is one variable for all apps of a process
		Writer:         stdout,
		ErrWriter:      stderr,
		ExitErrHandler: func(*cli.Context, error) {}, // the error is returned
		OnUsageError:   func(_ *cli.Context, err error, _ bool) error { return fmt.Errorf("%w; see --help", err) },
		Flags:          append(flags(env, several), &cli.BoolFlag{Name: flagHelp, Aliases: []string{"h"}, Usage: "show this help"}),
		Action: func(c *cli.Context) error {
			if c.Bool(flagHelp) {
				return cli.ShowAppHelp(c)
			}
			opts, err := options(c, several, env, stderr)
			if err != nil {
				return err
			}
			return serve(c, opts, stdout)
		},
	}
	return app.RunContext(ctx, args)
}

func serve(c *cli.Context, opts emulator.Options, stdout io.Writer) error {
	if c.Args().Present() {
		return fmt.Errorf("unexpected argument %q; see --help", c.Args().First())
	}
	out, err := newAnnouncer(c, stdout)
	if err != nil {
		return err
	}
	e, err := emulator.Start(c.Context, opts)
	if err != nil {
		if c.Context.Err() != nil {
			return nil // ended before it was ready
		}
		return explain(err)
	}
	return errors.Join(untilDone(c.Context, e, opts.DataDir, out), e.Close())
}

// untilDone serves until ctx ends. Without a data directory, the settings for
// clients are in a temporary one meanwhile.
func untilDone(ctx context.Context, e *emulator.Emulator, dir string, out *announcer) (err error) {
	kept := dir != ""
	if !kept {
		if dir, err = os.MkdirTemp("", "iothub-emulator-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
		if err := e.WriteEnv(dir); err != nil {
			return err
		}
	}
	if dir, err = filepath.Abs(dir); err != nil { // readers may be elsewhere
		return err
	}
	if err := out.announce(e, dir, kept); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// explain adds what a person can do about an error.
func explain(err error) error {
	var listen *emulator.ListenError
	if errors.As(err, &listen) {
		flag := flagOf[listen.Listener]
		var malformed *net.AddrError
		if errors.As(err, &malformed) {
			return fmt.Errorf("--%s is %q and must be a host and a port, such as 127.0.0.1:0 for a free port", flag, listen.Addr)
		}
		return fmt.Errorf("can't listen on %s: %w; choose another address with --%s, such as --%s 127.0.0.1:0 for a free port", listen.Addr, listen.Err, flag, flag)
	}
	return err
}

// newLogger logs for people on a terminal and in JSON elsewhere.
func newLogger(c *cli.Context, stderr io.Writer) (*slog.Logger, error) {
	level, err := zapcore.ParseLevel(c.String(flagLogLevel))
	if err != nil {
		return nil, fmt.Errorf("--%s is %q and must be debug, info, warn or error", flagLogLevel, c.String(flagLogLevel))
	}
	asJSON, err := oneOfThree(c, flagLogJSON, !isTerminal(stderr))
	if err != nil {
		return nil, err
	}
	cfg := zap.NewProductionEncoderConfig()
	cfg.EncodeTime = zapcore.RFC3339TimeEncoder
	encoder := zapcore.NewConsoleEncoder(cfg)
	if asJSON {
		encoder = zapcore.NewJSONEncoder(cfg)
	}
	core := zapcore.NewCore(encoder, zapcore.Lock(zapcore.AddSync(stderr)), level)
	return slog.New(zapslog.NewHandler(core)), nil
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
