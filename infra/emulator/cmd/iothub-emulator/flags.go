package main

import (
	"crypto/x509"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/hubjobs/hubjobs/infra/emulator"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/quota"
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
	flagControl  = "control-addr"
	flagDeviceCA = "device-ca"
	flagTier     = "tier"
	flagUnits    = "units"
	flagMaxConns = "max-connections"
	flagFault    = "fault"
	flagFeedback = "feedback-interval"
	flagOutput   = "output"
	flagShowKeys = "show-keys"
	flagLogLevel = "log-level"
	flagLogJSON  = "log-json"
	flagHelp     = "help"
)

// flagOf says which flag sets the address of a listener.
var flagOf = map[string]string{
	emulator.ListenerAMQPS:   flagAMQPS,
	emulator.ListenerAMQP:    flagAMQP,
	emulator.ListenerMQTTS:   flagMQTTS,
	emulator.ListenerHTTPS:   flagHTTPS,
	emulator.ListenerControl: flagControl,
}

// Values of flags that take one of three.
const (
	valueAuto  = "auto"
	valueTrue  = "true"
	valueFalse = "false"
)

// Values of --output.
const (
	outputText = "text"
	outputJSON = "json"
)

const description = `Programs connect to it as to a hub in the cloud. When it is ready, it says where
its settings for them are: a file emulator.env with connection strings,
addresses, and the file of the certificate authority that they have to trust
(EMULATOR_CA_FILE). Ctrl-C ends it.

   iothub-emulator
       everything in memory, on the ports shown below
   iothub-emulator --data-dir .iothub
       the same, with emulator.env in .iothub; devices, messages and keys are
       there again next time
   iothub-emulator --amqp-addr 127.0.0.1:0 --amqps-addr 127.0.0.1:0 \
       --mqtts-addr 127.0.0.1:0 --https-addr 127.0.0.1:0
       on free ports, for tests side by side
   iothub-emulator --tier S1 --units 2
       with the throttles and the daily quota of such a hub
   iothub-emulator --fault cut,protocol=mqtt,device=sensor-*,after=10s
       every connection of these devices is lost after 10 seconds

A fault is a kind and settings, separated by commas. Kinds: cut, delay, half-open
(connections); refuse, duplicate (operations and messages); expire-locks,
disconnect (once). Settings: protocol, device, operation, entity (whom it hits);
after, duration, count, probability, seed (when); bytes (of a cut); latency,
jitter (of a delay); code, retryAfter (of a refusal). With --control-addr, other
programs can add and remove faults:

   curl -H 'Content-Type: application/json' http://127.0.0.1:9000/faults \
       -d '{"kind": "refuse", "operation": "c2d", "code": 429, "duration": "30s"}'
   curl -X DELETE http://127.0.0.1:9000/faults

Every flag has an environment variable, shown in brackets; the flag wins.`

// list is a flag that may be given several times.
type list []string

// Set implements flag.Value.
func (l *list) Set(value string) error {
	*l = append(*l, value)
	return nil
}

// String implements flag.Value.
func (l *list) String() string { return strings.Join(*l, listSeparator) }

// listSeparator separates the values of a list in an environment variable.
const listSeparator = ";"

// lists are the flags of which there may be several. They are no slice flags of
// the library, because those cut their values at commas.
type lists struct{ faults, deviceCAs list }

func flags(env func(string) (string, bool), several *lists) []cli.Flag {
	text := func(name, value, usage string) cli.Flag {
		variable := variableOf(name)
		if v, ok := env(variable); ok {
			value = v
		}
		return &cli.StringFlag{Name: name, Value: value, Usage: usage + " [$" + variable + "]"}
	}
	multiple := func(name string, values *list, usage string) cli.Flag {
		return &cli.GenericFlag{Name: name, Value: values, Usage: usage + "; may be repeated [$" + variableOf(name) + ", separated by " + listSeparator + "]"}
	}
	return []cli.Flag{
		text(flagDataDir, "", "keep all state in `DIR`; without it, state is in memory and gone at the end"),
		text(flagConfig, "", "read entities and routes from `FILE`, JSON or YAML, in the format of the Service Bus and Event Hubs emulators"),
		text(flagHubName, "localhost", "host `NAME` of the hub, for connection strings and the certificate"),
		text(flagMQTTS, "127.0.0.1:8883", "`ADDRESS` for MQTT over TLS"),
		text(flagAMQPS, "127.0.0.1:5671", "`ADDRESS` for AMQP over TLS"),
		text(flagAMQP, "127.0.0.1:5672", "`ADDRESS` for AMQP without TLS, which Service Bus and Event Hubs SDKs use for emulators"),
		text(flagHTTPS, "127.0.0.1:8443", "`ADDRESS` for HTTPS, and for MQTT and AMQP over WebSockets"),
		multiple(flagDeviceCA, &several.deviceCAs, "let in devices with certificates that an authority in `FILE` (PEM) has signed"),
		text(flagTier, "", "put the throttles and the daily quota of `TIER` into force: F1, S1, S2, S3, B1, B2 or B3; without it there are none"),
		text(flagUnits, "", "`NUMBER` of units of the tier (default: 1)"),
		text(flagMaxConns, "20000", "accept `NUMBER` connections at a time, and close those that come on top"),
		multiple(flagFault, &several.faults, "begin with `FAULT` in force, such as cut,device=sensor-*,after=10s"),
		text(flagControl, "", "`ADDRESS` of an HTTP API for faults, on the loopback interface; without it there is none"),
		text(flagFeedback, "15s", "`DURATION` for which delivery feedback waits to be delivered in a batch"),
		text(flagOutput, outputText, "say that the emulator is ready as `FORMAT`: text, or json for one line"),
		text(flagShowKeys, valueAuto, "`WHETHER` to show connection strings when ready: true, false, or auto, which is true on a terminal"),
		text(flagLogLevel, "info", "`LEVEL` of what is logged: debug, info, warn or error"),
		text(flagLogJSON, valueAuto, "`WHETHER` to log in JSON: true, false, or auto, which is false on a terminal"),
	}
}

func variableOf(flag string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// or returns the values of a list flag, or those of its environment variable.
func (l list) or(flag string, env func(string) (string, bool)) []string {
	if v, ok := env(variableOf(flag)); ok && len(l) == 0 {
		return strings.Split(v, listSeparator)
	}
	return l
}

func options(c *cli.Context, several *lists, env func(string) (string, bool), stderr io.Writer) (emulator.Options, error) {
	opts := emulator.Options{
		DataDir:     c.String(flagDataDir),
		HubName:     c.String(flagHubName),
		AMQPSAddr:   c.String(flagAMQPS),
		AMQPAddr:    c.String(flagAMQP),
		MQTTSAddr:   c.String(flagMQTTS),
		HTTPSAddr:   c.String(flagHTTPS),
		ControlAddr: c.String(flagControl),
		Config:      emulator.DefaultConfig(),
	}
	var err error
	if opts.FeedbackInterval, err = time.ParseDuration(c.String(flagFeedback)); err != nil || opts.FeedbackInterval <= 0 {
		return opts, fmt.Errorf("--%s is %q and must be a duration such as 500ms or 15s", flagFeedback, c.String(flagFeedback))
	}
	if opts.MaxConnections, err = strconv.Atoi(c.String(flagMaxConns)); err != nil || opts.MaxConnections <= 0 {
		return opts, fmt.Errorf("--%s is %q and must be a positive number", flagMaxConns, c.String(flagMaxConns))
	}
	if opts.Logger, err = newLogger(c, stderr); err != nil {
		return opts, err
	}
	for _, text := range several.faults.or(flagFault, env) {
		f, err := emulator.ParseFault(text)
		if err != nil {
			return opts, fmt.Errorf("--%s %s: %w; see --help", flagFault, text, err)
		}
		opts.Faults = append(opts.Faults, f)
	}
	if file := c.String(flagConfig); file != "" {
		if opts.Config, err = emulator.ReadConfig(file); err != nil {
			return opts, err
		}
	}
	if opts.DeviceCAs, err = roots(several.deviceCAs.or(flagDeviceCA, env)); err != nil {
		return opts, err
	}
	return opts, limit(c, &opts.Config.Hub)
}

// roots reads the certificates of authorities from files; nil if there are none.
func roots(files []string) (*x509.CertPool, error) {
	if len(files) == 0 {
		return nil, nil
	}
	pool := x509.NewCertPool()
	for _, file := range files {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("--%s: %w", flagDeviceCA, err)
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("--%s: %s holds no certificate in PEM", flagDeviceCA, file)
		}
	}
	return pool, nil
}

// limit puts the flags about the tier above the configuration.
func limit(c *cli.Context, h *emulator.Hub) error {
	if name := c.String(flagTier); name != "" {
		tier, err := quota.ParseTier(name)
		if err != nil {
			return fmt.Errorf("--%s: %w", flagTier, err)
		}
		h.Tier, h.Units = string(tier), 1
	}
	text := c.String(flagUnits)
	if text == "" {
		return nil
	}
	tier, err := quota.ParseTier(h.Tier)
	if err != nil {
		return fmt.Errorf("--%s needs --%s", flagUnits, flagTier)
	}
	if h.Units, err = strconv.Atoi(text); err != nil || h.Units < 1 || h.Units > tier.MaxUnits() {
		return fmt.Errorf("--%s is %q and must be a number from 1 to %d for tier %s", flagUnits, text, tier.MaxUnits(), tier)
	}
	return nil
}

// oneOfThree reads a flag that is true, false or auto.
func oneOfThree(c *cli.Context, flag string, auto bool) (bool, error) {
	switch v := c.String(flag); v {
	case valueTrue:
		return true, nil
	case valueFalse:
		return false, nil
	case valueAuto:
		return auto, nil
	default:
		return false, fmt.Errorf("--%s is %q and must be true, false or auto", flag, v)
	}
}
