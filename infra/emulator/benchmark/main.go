package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newApp().RunContext(ctx, os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "benchmark:", err)
		os.Exit(1)
	}
}

func newApp() *cli.App {
	return &cli.App{
		Name:            "benchmark",
		Usage:           "measure the emulator beside Mosquitto and RabbitMQ",
		HideHelpCommand: true,
		Action:          run,
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "only", Usage: "run these `SCENARIOS` alone"},
			&cli.IntFlag{Name: "rounds", Value: 5, Usage: "`NUMBER` of rounds, after one to warm up"},
			&cli.IntFlag{Name: "messages", Value: 40_000, Usage: "`NUMBER` of messages in a round"},
			&cli.IntFlag{Name: "connections", Value: 4, Usage: "`NUMBER` of connections"},
			&cli.IntFlag{Name: "window", Value: 100, Usage: "`NUMBER` of unacknowledged messages of a connection"},
			&cli.IntFlag{Name: "size", Value: 256, Usage: "`BYTES` of a message's body"},
			&cli.IntFlag{Name: "devices", Value: 10_000, Usage: "`NUMBER` of idle devices for the memory measurement"},
			&cli.IntFlag{Name: "links", Value: 1_000, Usage: "`NUMBER` of AMQP links for the memory measurement"},
			&cli.StringFlag{Name: "emulator", Usage: "measure this `PROGRAM` instead of the emulator as it is built here"},
			&cli.StringFlag{Name: "output", Value: "table", Usage: "`FORMAT`: table or json"},
		},
	}
}

// Names of the scenarios.
const (
	telemetryMemory = "telemetry-memory"
	telemetryKept   = "telemetry-kept"
	telemetryDisk   = "telemetry-disk"
	queueMemory     = "queue-memory"
	queueDisk       = "queue-disk"
	idleMemory      = "idle-memory"
)

var scenarioNames = []string{telemetryMemory, telemetryKept, telemetryDisk, queueMemory, queueDisk, idleMemory}

// report is what is written with --output json.
type report struct {
	Comparisons []result    `json:"comparisons"`
	Memory      *idleResult `json:"memory,omitempty"`
}

func run(c *cli.Context) (err error) {
	only := c.StringSlice("only")
	for _, name := range only {
		if !slices.Contains(scenarioNames, name) {
			return fmt.Errorf("no scenario %q; there are %q", name, scenarioNames)
		}
	}
	if format := c.String("output"); format != "table" && format != "json" {
		return fmt.Errorf("--output is %q and must be table or json", format)
	}
	program := c.String("emulator")
	if program == "" {
		dir, err := os.MkdirTemp("", "emulator-benchmark-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		if program, err = buildEmulator(c.Context, dir); err != nil {
			return err
		}
	}
	if program, err = filepath.Abs(program); err != nil {
		return err
	}
	rep, err := measureAll(c, program, only)
	if err != nil {
		return err
	}
	return write(c.App.Writer, c.String("output"), rep)
}

func measureAll(c *cli.Context, program string, only []string) (report, error) {
	var rep report
	for _, s := range scenarios(c) {
		if len(only) > 0 && !slices.Contains(only, s.name) {
			continue
		}
		rival := "mosquitto"
		if s.name == queueMemory || s.name == queueDisk {
			rival = "rabbitmq"
		}
		r, err := compare(c.Context, program, s, rival, c.Int("rounds"), c.App.ErrWriter)
		if err != nil {
			return rep, err
		}
		rep.Comparisons = append(rep.Comparisons, r)
	}
	if len(only) > 0 && !slices.Contains(only, idleMemory) {
		return rep, nil
	}
	idle, err := measureIdle(c.Context, program, c.Int("devices"), c.Int("links"))
	rep.Memory = &idle
	return rep, err
}

func scenarios(c *cli.Context) []scenario {
	l := load{
		messages:    c.Int("messages"),
		connections: c.Int("connections"),
		window:      c.Int("window"),
		payload:     make([]byte, c.Int("size")),
	}
	kept := l
	kept.parked = true
	publish := func(ctx context.Context, s *server, l load) (time.Duration, error) { return s.mqtt.publish(ctx, l) }
	exchange := func(ctx context.Context, s *server, l load) (time.Duration, error) { return s.amqp.exchange(ctx, l) }
	return []scenario{
		{telemetryMemory, false, l, startMosquitto, publish, "the emulator keeps messages for readers of the events endpoint; Mosquitto, without a subscriber, keeps nothing"},
		{telemetryKept, false, kept, startMosquitto, publish, "both keep messages in memory: Mosquitto for a subscriber that is away"},
		{telemetryDisk, true, kept, startMosquitto, publish, "the emulator acknowledges what is on the disk; Mosquitto acknowledges at once and writes its state every second"},
		{queueMemory, false, l, startRabbitMQ, exchange, "both in memory"},
		{queueDisk, true, l, startRabbitMQ, exchange, "both acknowledge what is on the disk"},
	}
}

func write(w io.Writer, format string, rep report) error {
	if format == "json" {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(rep)
	}
	if len(rep.Comparisons) > 0 {
		if err := table(w, rep.Comparisons); err != nil {
			return err
		}
	}
	if rep.Memory != nil {
		return rep.Memory.print(w)
	}
	return nil
}
