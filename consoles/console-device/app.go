package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/hubjobs/hubjobs/consoles/internal/device"
	"github.com/hubjobs/hubjobs/consoles/internal/endpoint"
	"github.com/hubjobs/hubjobs/consoles/internal/event"
	"github.com/hubjobs/hubjobs/consoles/internal/manager"
	"github.com/hubjobs/hubjobs/consoles/internal/settings"
)

// keyVariable holds the manager's API key. There is no flag for it: the arguments of a process can be read by others.
const keyVariable = "HUBJOBS_API_KEY"

// Settings that can come from a flag, the environment or a file.
var (
	settingDevice  = settings.Setting{Flag: "device-id", Variable: "HUBJOBS_DEVICE_ID", Usage: "`ID` of the device, such as device-scheduler::foo; required"}
	settingManager = settings.Setting{Flag: "manager-url", Variable: "HUBJOBS_MANAGER_URL", Default: manager.DefaultURL, Usage: "`URL` of the manager"}
	settingKeyFile = settings.Setting{Flag: "api-key-file", Variable: "HUBJOBS_API_KEY_FILE", Usage: "`FILE` that holds the manager's API key"}
	settingCA      = settings.Setting{Flag: "ca-file", Variable: "EMULATOR_CA_FILE", Usage: "PEM `FILE` of the hub's certificate authority; else the system's count"}
	settingAddress = settings.Setting{Flag: "mqtt-addr", Variable: "EMULATOR_MQTTS_ADDR", Usage: "`HOST:PORT` to dial for the hub; else the hub's own name, port 8883"}
	settingOutput  = settings.Setting{Flag: "output", Variable: "HUBJOBS_OUTPUT", Default: string(event.Text), Usage: "`FORMAT` of the output: text, or json for one object a line"}
)

// Names of the other flags.
const (
	flagProperty   = "property"
	flagDeregister = "deregister"
)

// streams are the standard streams of the process.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

// arguments are what the console was told, checked.
type arguments struct {
	deviceID   string
	managerURL string
	apiKey     string
	caFile     string
	address    string
	properties map[string]string
	format     event.Format
	deregister bool
}

// run is the whole command. It returns when the input or the context ends, which is success.
func run(ctx context.Context, args []string, std streams, getenv func(string) string) error {
	app := &cli.App{
		Name:            "console-device",
		Usage:           "a simulated device: sends a message for each line, shows messages and direct methods",
		Description:     "The manager's API key is taken from the environment variable " + keyVariable + " or from --" + settingKeyFile.Flag + ".",
		Flags:           flags(),
		HideHelp:        true, // see helpFlag
		HideHelpCommand: true,
		Reader:          std.in,
		Writer:          std.out,
		ErrWriter:       std.err,
		ExitErrHandler:  func(*cli.Context, error) {}, // main reports the error, once
		OnUsageError:    func(_ *cli.Context, err error, _ bool) error { return err },
		Action: func(c *cli.Context) error {
			a, err := readArguments(c, getenv)
			if err != nil {
				return err
			}
			return serve(c.Context, a, std)
		},
	}
	return app.RunContext(ctx, args)
}

func flags() []cli.Flag {
	return []cli.Flag{
		settingDevice.CLI(), settingManager.CLI(), settingKeyFile.CLI(), settingCA.CLI(), settingAddress.CLI(), settingOutput.CLI(),
		&cli.StringSliceFlag{Name: flagProperty, Usage: "application property `NAME=VALUE` of each message; can be repeated"},
		&cli.BoolFlag{Name: flagDeregister, Usage: "remove the device's identity at the end"},
		settings.Files(), helpFlag(),
	}
}

// helpFlag takes the place of the library's own, which is one variable for all commands of a process.
func helpFlag() cli.Flag {
	return &cli.BoolFlag{Name: "help", Aliases: []string{"h"}, DisableDefaultText: true, Usage: "show help"}
}

func readArguments(c *cli.Context, getenv func(string) string) (arguments, error) {
	if c.Args().Present() {
		return arguments{}, fmt.Errorf("unexpected argument %q", c.Args().First())
	}
	variables, err := settings.Load(c, getenv)
	if err != nil {
		return arguments{}, err
	}
	a := arguments{
		deviceID:   settingDevice.Read(c, variables),
		managerURL: settingManager.Read(c, variables),
		caFile:     settingCA.Read(c, variables),
		address:    settingAddress.Read(c, variables),
		deregister: c.Bool(flagDeregister),
	}
	if a.deviceID == "" {
		return arguments{}, errors.New("--" + settingDevice.Flag + " is required, such as --" + settingDevice.Flag + " device-scheduler::foo")
	}
	var errKey, errProperty, errFormat error
	a.apiKey, errKey = readKey(settingKeyFile.Read(c, variables), variables)
	a.properties, errProperty = parseProperties(c.StringSlice(flagProperty))
	a.format, errFormat = event.ParseFormat(settingOutput.Read(c, variables))
	for _, err := range []error{
		device.CheckID(a.deviceID), endpoint.CheckAddress("--"+settingAddress.Flag, a.address), errKey, errProperty, errFormat,
	} {
		if err != nil {
			return arguments{}, err // one at a time: one clear line
		}
	}
	return a, nil
}

// readKey takes the API key from the file if there is one, else from the variables. No key at all is left to the
// manager's client to report.
func readKey(file string, variables settings.Variables) (string, error) {
	if file == "" {
		return variables.Get(keyVariable), nil
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("read API key: %w", err)
	}
	key := string(bytes.TrimSpace(content))
	if key == "" {
		return "", fmt.Errorf("read API key: %s is empty", file)
	}
	return key, nil
}

func parseProperties(pairs []string) (map[string]string, error) {
	properties := make(map[string]string, len(pairs))
	for _, pair := range pairs {
		name, value, found := strings.Cut(pair, "=")
		if !found {
			return nil, fmt.Errorf("property %q must have the form NAME=VALUE", pair)
		}
		if err := device.CheckProperty(name); err != nil {
			return nil, err
		}
		properties[name] = value
	}
	return properties, nil
}

// serve negotiates, connects and converses.
func serve(ctx context.Context, a arguments, std streams) error {
	client, err := manager.New(a.managerURL, a.apiKey)
	if err != nil {
		return err
	}
	roots, err := endpoint.Roots(a.caFile)
	if err != nil {
		return err
	}
	printer := event.NewPrinter(std.out, a.format)
	connectionString, err := client.Negotiate(ctx, a.deviceID)
	if err != nil {
		return unlessInterrupted(ctx, err)
	}
	console := &console{deviceID: a.deviceID, properties: a.properties, printer: printer}
	err = console.connectAndConverse(ctx, connectionString, &device.Options{Roots: roots, Address: a.address}, std)
	if a.deregister {
		err = errors.Join(err, deregister(ctx, client, a.deviceID, printer))
	}
	return errors.Join(err, printer.Err())
}

// unlessInterrupted returns nil if the person ended the console, for then whatever was under way could not succeed.
func unlessInterrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// deregister removes the identity also after Ctrl-C; the manager's client bounds the time that it takes.
func deregister(ctx context.Context, client *manager.Client, deviceID string, printer *event.Printer) error {
	if err := client.Deregister(context.WithoutCancel(ctx), deviceID); err != nil {
		return err
	}
	printer.Print(event.Event{Kind: event.Deregistered, DeviceID: deviceID})
	return nil
}
