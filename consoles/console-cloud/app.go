package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/hubjobs/hubjobs/consoles/internal/endpoint"
	"github.com/hubjobs/hubjobs/consoles/internal/event"
	"github.com/hubjobs/hubjobs/consoles/internal/hub"
	"github.com/hubjobs/hubjobs/consoles/internal/settings"
)

// connectionVariable holds the hub's service connection string. There is no flag for it: the arguments of a process can be
// read by others.
const connectionVariable = "IOTHUB_CONNECTION_STRING"

// Settings that can come from a flag, the environment or a file.
var (
	settingCA     = settings.Setting{Flag: "ca-file", Variable: "EMULATOR_CA_FILE", Usage: "PEM `FILE` of the hub's certificate authority; else the system's count"}
	settingHTTPS  = settings.Setting{Flag: "https-addr", Variable: "EMULATOR_HTTPS_ADDR", Usage: "`HOST:PORT` to dial for the hub's REST interface; else the hub's own name, port 443"}
	settingAMQPS  = settings.Setting{Flag: "amqps-addr", Variable: "EMULATOR_AMQPS_ADDR", Usage: "`HOST:PORT` to dial for the hub's AMQP interface; else the hub's own name, port 5671"}
	settingOutput = settings.Setting{Flag: "output", Variable: "HUBJOBS_OUTPUT", Default: string(event.Text), Usage: "`FORMAT` of the output: text, or json for one object a line"}
)

// Names of the other flags.
const (
	flagSince = "since"
	flagAll   = "all"
)

// action is what a subcommand does with the hub.
type action func(ctx context.Context, c *cli.Context, client *hub.Client, printer *event.Printer) error

// run is the whole command.
func run(ctx context.Context, args []string, out, errOut io.Writer, getenv func(string) string) error {
	with := func(act action) cli.ActionFunc {
		return func(c *cli.Context) error { return perform(c, act, getenv) }
	}
	command := func(name, usage string, act action, own ...cli.Flag) *cli.Command {
		return &cli.Command{Name: name, Usage: usage, Flags: append(commonFlags(), own...),
			HideHelp: true, OnUsageError: usageError, Action: with(act)}
	}
	app := &cli.App{
		Name:            "console-cloud",
		Usage:           "shows a hub's statistics, devices and device messages; without a subcommand all three",
		Description:     "The hub's service connection string is taken from the environment variable " + connectionVariable + ".",
		Flags:           append(commonFlags(), monitorFlags()...),
		HideHelp:        true, // see helpFlag
		HideHelpCommand: true,
		Writer:          out,
		ErrWriter:       errOut,
		ExitErrHandler:  func(*cli.Context, error) {}, // main reports the error, once
		OnUsageError:    usageError,
		Action:          with(overview),
		Commands: []*cli.Command{
			command("stats", "show the number of connected devices and of identities", statistics),
			command("devices", "list the devices with their state and last activity", devices),
			command("monitor", "show the devices' messages with all their properties until Ctrl-C", monitor, monitorFlags()...),
		},
	}
	return app.RunContext(ctx, args)
}

func usageError(_ *cli.Context, err error, _ bool) error { return err }

// commonFlags returns the flags that can stand before or after the name of the subcommand.
func commonFlags() []cli.Flag {
	return []cli.Flag{settingCA.CLI(), settingHTTPS.CLI(), settingAMQPS.CLI(), settingOutput.CLI(), settings.Files(), helpFlag()}
}

// helpFlag takes the place of the library's own, which is one variable for all commands of a process.
func helpFlag() cli.Flag {
	return &cli.BoolFlag{Name: "help", Aliases: []string{"h"}, DisableDefaultText: true, Usage: "show help"}
}

func monitorFlags() []cli.Flag {
	return []cli.Flag{
		&cli.DurationFlag{Name: flagSince, Usage: "also show the messages of the `DURATION` before now, such as 10m"},
		&cli.BoolFlag{Name: flagAll, Usage: "show all messages that the hub still has"},
	}
}

// perform reads the settings and acts with them.
func perform(c *cli.Context, act action, getenv func(string) string) error {
	if c.Args().Present() {
		return fmt.Errorf("unexpected argument %q", c.Args().First())
	}
	variables, err := settings.Load(c, getenv)
	if err != nil {
		return err
	}
	format, err := event.ParseFormat(settingOutput.Read(c, variables))
	if err != nil {
		return err
	}
	printer := event.NewPrinter(c.App.Writer, format)
	client, err := newClient(c, variables, printer)
	if err != nil {
		return err
	}
	defer client.Close()
	err = act(c.Context, c, client, printer)
	if c.Context.Err() != nil {
		err = nil // the person ended it
	}
	return errors.Join(err, printer.Err())
}

func newClient(c *cli.Context, variables settings.Variables, printer *event.Printer) (*hub.Client, error) {
	connectionString := variables.Get(connectionVariable)
	if connectionString == "" {
		return nil, fmt.Errorf("the environment variable %s is not set: it must hold the hub's service connection string", connectionVariable)
	}
	options := &hub.Options{
		HTTPSAddress: settingHTTPS.Read(c, variables),
		AMQPSAddress: settingAMQPS.Read(c, variables),
		Warn:         func(err error) { printer.Print(event.Event{Kind: event.Failed, Error: err.Error()}) },
	}
	var err error
	if options.Roots, err = endpoint.Roots(settingCA.Read(c, variables)); err != nil {
		return nil, err
	}
	for flag, address := range map[string]string{settingHTTPS.Flag: options.HTTPSAddress, settingAMQPS.Flag: options.AMQPSAddress} {
		if err := endpoint.CheckAddress("--"+flag, address); err != nil {
			return nil, err
		}
	}
	return hub.New(connectionString, options)
}

// overview shows everything, one after the other.
func overview(ctx context.Context, c *cli.Context, client *hub.Client, printer *event.Printer) error {
	for _, act := range []action{statistics, devices, monitor} {
		if err := act(ctx, c, client, printer); err != nil {
			return err
		}
	}
	return nil
}

func statistics(ctx context.Context, _ *cli.Context, client *hub.Client, printer *event.Printer) error {
	s, err := client.Statistics(ctx)
	if err != nil {
		return err
	}
	printer.Print(event.Event{Kind: event.Counted, Host: client.Host(), Statistics: &s})
	return nil
}

func devices(ctx context.Context, _ *cli.Context, client *hub.Client, printer *event.Printer) error {
	return client.Devices(ctx, func(d event.Device) {
		printer.Print(event.Event{Kind: event.Listed, DeviceID: d.DeviceID, Device: &d})
	})
}

func monitor(ctx context.Context, c *cli.Context, client *hub.Client, printer *event.Printer) error {
	since := time.Now().Add(-settings.Nearest(c, flagSince).Duration(flagSince))
	if settings.Nearest(c, flagAll).Bool(flagAll) {
		since = time.Time{}
	}
	return client.Monitor(ctx, since,
		func(host string) { printer.Print(event.Event{Kind: event.Connected, Host: host}) },
		func(deviceID string, m event.Message) {
			printer.Print(event.Event{Kind: event.Observed, DeviceID: deviceID, Message: &m})
		})
}
