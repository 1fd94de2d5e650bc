package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"go.uber.org/zap"
	"go.uber.org/zap/exp/zapslog"
	"go.uber.org/zap/zapcore"

	"github.com/hubjobs/hubjobs/infra/emulator"
)

// envPrefix begins the names of environment variables for flags. It differs from
// that of emulator.env, which tells clients where an emulator is.
const envPrefix = "IOTHUB_EMULATOR_"

// Names of flags.
const (
	flagDataDir  = "data-dir"
	flagConfig   = "config"
	flagHubName  = "hub-name"
	flagAMQPS    = "amqps-addr"
	flagAMQP     = "amqp-addr"
	flagMQTTS    = "mqtts-addr"
	flagHTTPS    = "https-addr"
	flagFeedback = "feedback-interval"
	flagLogLevel = "log-level"
	flagLogJSON  = "log-json"
	flagHelp     = "help"
)

// flagOf says which flag sets the address of a listener.
var flagOf = map[string]string{
	emulator.ListenerAMQPS: flagAMQPS,
	emulator.ListenerAMQP:  flagAMQP,
	emulator.ListenerMQTTS: flagMQTTS,
	emulator.ListenerHTTPS: flagHTTPS,
}

// run is the whole command. It ends without an error when ctx does.
func run(ctx context.Context, args []string, stdout, stderr io.Writer, env func(string) (string, bool)) error {
	app := &cli.App{
		Name:           "iothub-emulator",
		Usage:          "a local Azure IoT Hub with the Service Bus and Event Hubs entities it routes to",
		UsageText:      "iothub-emulator [--data-dir DIR] [--config FILE] [flags]",
		HideHelp:       true, // the library's own flag is one variable for all apps of a process
		Writer:         stdout,
		ErrWriter:      stderr,
		ExitErrHandler: func(*cli.Context, error) {}, // the error is returned
		OnUsageError:   func(_ *cli.Context, err error, _ bool) error { return fmt.Errorf("%w; see --help", err) },
		Flags:          append(flags(env), &cli.BoolFlag{Name: flagHelp, Aliases: []string{"h"}, Usage: "show this help"}),
		Action: func(c *cli.Context) error {
			if c.Bool(flagHelp) {
				return cli.ShowAppHelp(c)
			}
			return serve(c, stdout, stderr)
		},
	}
	return app.RunContext(ctx, args)
}

func flags(env func(string) (string, bool)) []cli.Flag {
	text := func(name, value, usage string) cli.Flag {
		variable := envPrefix + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
		if v, ok := env(variable); ok {
			value = v
		}
		return &cli.StringFlag{Name: name, Value: value, Usage: usage + " [$" + variable + "]"}
	}
	return []cli.Flag{
		text(flagDataDir, "", "keep all state in `DIR`; without it, state is in memory and gone at the end"),
		text(flagConfig, "", "read entities and routes from `FILE`, JSON or YAML, in the format of the Service Bus and Event Hubs emulators"),
		text(flagHubName, "localhost", "host `NAME` of the hub, for connection strings and the certificate"),
		text(flagAMQPS, "127.0.0.1:5671", "`ADDRESS` for AMQP over TLS"),
		text(flagAMQP, "127.0.0.1:5672", "`ADDRESS` for AMQP without TLS, which Service Bus and Event Hubs SDKs use for emulators"),
		text(flagMQTTS, "127.0.0.1:8883", "`ADDRESS` for MQTT over TLS"),
		text(flagHTTPS, "127.0.0.1:8443", "`ADDRESS` for HTTPS, and for MQTT and AMQP over WebSockets"),
		text(flagFeedback, "15s", "`DURATION` for which delivery feedback waits to be delivered in a batch"),
		text(flagLogLevel, "info", "`LEVEL` of what is logged: debug, info, warn or error"),
		text(flagLogJSON, "auto", "log in JSON: true, false, or auto, which is false on a terminal"),
	}
}

func serve(c *cli.Context, stdout, stderr io.Writer) error {
	if c.Args().Present() {
		return fmt.Errorf("unexpected argument %q; see --help", c.Args().First())
	}
	opts, err := options(c, stderr)
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
	return errors.Join(untilDone(c.Context, e, opts.DataDir, stdout), e.Close())
}

// untilDone serves until ctx ends. Without a data directory, the settings for
// clients are in a temporary one meanwhile.
func untilDone(ctx context.Context, e *emulator.Emulator, dir string, stdout io.Writer) (err error) {
	state := "in " + dir
	if dir == "" {
		state = "in memory, gone when the emulator ends; --" + flagDataDir + " keeps it"
		if dir, err = os.MkdirTemp("", "iothub-emulator-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
		if err := e.WriteEnv(dir); err != nil {
			return err
		}
	}
	if err := announce(e, dir, state, stdout); err != nil {
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
		return fmt.Errorf("can't listen on %s: %w; choose another address with --%s, such as --%s 127.0.0.1:0 for a free port", listen.Addr, listen.Err, flag, flag)
	}
	return err
}

func options(c *cli.Context, stderr io.Writer) (emulator.Options, error) {
	opts := emulator.Options{
		DataDir:   c.String(flagDataDir),
		HubName:   c.String(flagHubName),
		AMQPSAddr: c.String(flagAMQPS),
		AMQPAddr:  c.String(flagAMQP),
		MQTTSAddr: c.String(flagMQTTS),
		HTTPSAddr: c.String(flagHTTPS),
	}
	var err error
	if opts.FeedbackInterval, err = time.ParseDuration(c.String(flagFeedback)); err != nil || opts.FeedbackInterval <= 0 {
		return opts, fmt.Errorf("--%s is %q and must be a duration such as 500ms or 15s", flagFeedback, c.String(flagFeedback))
	}
	if opts.Logger, err = newLogger(c, stderr); err != nil {
		return opts, err
	}
	if file := c.String(flagConfig); file != "" {
		opts.Config, err = emulator.ReadConfig(file)
	}
	return opts, err
}

// newLogger logs for people on a terminal and in JSON elsewhere.
func newLogger(c *cli.Context, stderr io.Writer) (*slog.Logger, error) {
	level, err := zapcore.ParseLevel(c.String(flagLogLevel))
	if err != nil {
		return nil, fmt.Errorf("--%s is %q and must be debug, info, warn or error", flagLogLevel, c.String(flagLogLevel))
	}
	var asJSON bool
	switch v := c.String(flagLogJSON); v {
	case "true":
		asJSON = true
	case "false":
	case "auto":
		asJSON = !isTerminal(stderr)
	default:
		return nil, fmt.Errorf("--%s is %q and must be true, false or auto", flagLogJSON, v)
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

// announce says on standard output that the emulator is ready, and in which file
// clients find their settings. Keys are in that file only.
func announce(e *emulator.Emulator, dir, state string, stdout io.Writer) error {
	_, err := fmt.Fprintf(stdout, `iothub-emulator is ready: settings for clients are in %s
  hub             %s
  MQTT over TLS   %s
  AMQP over TLS   %s
  AMQP            %s
  HTTPS           %s
  state           %s
Ctrl-C ends it.
`, filepath.Join(dir, emulator.EnvFile), e.HubName(), e.MQTTSAddr(), e.AMQPSAddr(), e.AMQPAddr(), e.HTTPSAddr(), state)
	return err
}
