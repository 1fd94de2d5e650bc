package command

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/hubjobs/hubjobs/infra/local/internal/ports"
	"github.com/hubjobs/hubjobs/infra/local/pipeline"
)

// anyPort is the address of a port of the kernel's choice.
const anyPort = "127.0.0.1:0"

// environment makes flags whose default an environment variable can replace.
type environment struct {
	getenv func(string) string
}

// variable is the name of a flag's environment variable: HUBJOBS_UI_ADDR for ui-addr.
func variable(flag string) string {
	return "HUBJOBS_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

func usage(flag, text string) string { return text + " [$" + variable(flag) + "]" }

func (e environment) text(flag, value, text string) *cli.StringFlag {
	if set := e.getenv(variable(flag)); set != "" {
		value = set
	}
	return &cli.StringFlag{Name: flag, Value: value, Usage: usage(flag, text)}
}

func (e environment) duration(flag string, value time.Duration, text string) (*cli.DurationFlag, error) {
	if set := e.getenv(variable(flag)); set != "" {
		var err error
		if value, err = time.ParseDuration(set); err != nil {
			return nil, fmt.Errorf("%s: %q is no duration such as 1s or 5m", variable(flag), set)
		}
	}
	return &cli.DurationFlag{Name: flag, Value: value, Usage: usage(flag, text)}, nil
}

func (e environment) yes(flag, text string) (*cli.BoolFlag, error) {
	value := false
	if set := e.getenv(variable(flag)); set != "" {
		var err error
		if value, err = strconv.ParseBool(set); err != nil {
			return nil, fmt.Errorf("%s: %q is neither true nor false", variable(flag), set)
		}
	}
	return &cli.BoolFlag{Name: flag, Value: value, Usage: usage(flag, text)}, nil
}

// listener is one of the addresses that a run listens on.
type listener struct {
	name  string // what listens there
	flag  string
	fixed string // the address where nothing else is said
	field func(*pipeline.Addresses) *string
}

var listeners = []listener{
	{"Temporal", "temporal-addr", "127.0.0.1:7233", func(a *pipeline.Addresses) *string { return &a.Temporal }},
	{"the Temporal web UI", "ui-addr", "127.0.0.1:8233", func(a *pipeline.Addresses) *string { return &a.UI }},
	{"the hub's AMQP over TLS", "amqps-addr", "127.0.0.1:5671", func(a *pipeline.Addresses) *string { return &a.AMQPS }},
	{"the hub's AMQP", "amqp-addr", "127.0.0.1:5672", func(a *pipeline.Addresses) *string { return &a.AMQP }},
	{"the hub's MQTT over TLS", "mqtts-addr", "127.0.0.1:8883", func(a *pipeline.Addresses) *string { return &a.MQTTS }},
	{"the hub's HTTPS", "https-addr", "127.0.0.1:8443", func(a *pipeline.Addresses) *string { return &a.HTTPS }},
	{"the manager's HTTP", "manager-addr", "127.0.0.1:8080", func(a *pipeline.Addresses) *string { return &a.Manager }},
	{"the solver's HTTP", "solver-addr", "127.0.0.1:8081", func(a *pipeline.Addresses) *string { return &a.Solver }},
	{"the scheduler's HTTP", "scheduler-addr", "127.0.0.1:8082", func(a *pipeline.Addresses) *string { return &a.Scheduler }},
}

// pipelineFlags are those that both commands have: the level of the log, and an address for each listener. Unless they
// are fixed, the addresses have ports of the kernel's choice.
func (e environment) pipelineFlags(fixed bool) []cli.Flag {
	flags := []cli.Flag{e.text(flagLogLevel, "info", "write to the log file what has that `LEVEL` or is worse: debug, info, warn or error")}
	for _, l := range listeners {
		value := anyPort
		if fixed {
			value = l.fixed
		}
		flags = append(flags, e.text(l.flag, value, "let "+l.name+" listen on `HOST:PORT`"))
	}
	return flags
}

// addresses reads the flags and finds out whether all of them can be had.
func addresses(c *cli.Context) (pipeline.Addresses, error) {
	var result pipeline.Addresses
	wanted := make([]ports.Port, 0, len(listeners))
	for _, l := range listeners {
		*l.field(&result) = c.String(l.flag)
		wanted = append(wanted, ports.Port{Name: l.name, Addr: c.String(l.flag), Flag: l.flag, Env: variable(l.flag)})
	}
	return result, ports.Check(c.Context, wanted)
}

// positive refuses a duration that is not above zero.
func positive(flag string, d time.Duration) error {
	if d <= 0 {
		return fmt.Errorf("--%s must be above zero, got %s", flag, d)
	}
	return nil
}

// notNegative refuses a duration below zero.
func notNegative(flag string, d time.Duration) error {
	if d < 0 {
		return fmt.Errorf("--%s must not be below zero, got %s", flag, d)
	}
	return nil
}
