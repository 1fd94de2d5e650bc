package main

import (
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/hubjobs/hubjobs/infra/emulator"
)

// announcer says on standard output that the emulator is ready, and in which file
// clients find their settings.
type announcer struct {
	stdout io.Writer
	asJSON bool
	// keys shows connection strings, for people to copy. By default they go
	// nowhere but to a terminal: what is written elsewhere is kept in logs.
	keys bool
}

func newAnnouncer(c *cli.Context, stdout io.Writer) (*announcer, error) {
	a := &announcer{stdout: stdout}
	switch v := c.String(flagOutput); v {
	case outputText:
	case outputJSON:
		a.asJSON = true
	default:
		return nil, fmt.Errorf("--%s is %q and must be %s or %s", flagOutput, v, outputText, outputJSON)
	}
	var err error
	a.keys, err = oneOfThree(c, flagShowKeys, !a.asJSON && isTerminal(stdout))
	return a, err
}

// ready is what there is to say.
type ready struct {
	Status            string            `json:"status"` // always ready
	Env               string            `json:"env"`
	CAFile            string            `json:"caFile"`
	Hub               string            `json:"hub"`
	MQTTS             string            `json:"mqtts"`
	AMQPS             string            `json:"amqps"`
	AMQP              string            `json:"amqp"`
	HTTPS             string            `json:"https"`
	Control           string            `json:"control,omitempty"`
	DataDir           string            `json:"dataDir,omitempty"` // if it is kept
	ConnectionStrings map[string]string `json:"connectionStrings,omitempty"`
}

// announce tells of the settings in a directory, which is the data directory if
// it is kept.
func (a *announcer) announce(e *emulator.Emulator, dir string, kept bool) error {
	r := ready{
		Status:  "ready",
		Env:     filepath.Join(dir, emulator.EnvFile),
		CAFile:  e.CAFile(),
		Hub:     e.HubName(),
		MQTTS:   e.MQTTSAddr(),
		AMQPS:   e.AMQPSAddr(),
		AMQP:    e.AMQPAddr(),
		HTTPS:   e.HTTPSAddr(),
		Control: e.ControlAddr(),
	}
	if kept {
		r.DataDir = dir
	} else {
		r.CAFile = filepath.Join(dir, "ca.pem")
	}
	if a.keys {
		r.ConnectionStrings = map[string]string{
			emulator.EnvHub:        e.HubConnectionString(),
			emulator.EnvServiceBus: e.ServiceBusConnectionString(),
			emulator.EnvEventHub:   e.EventsConnectionString(),
		}
	}
	text := r.text()
	if a.asJSON {
		line, err := json.Marshal(r)
		if err != nil {
			return err
		}
		text = string(line) + "\n"
	}
	_, err := io.WriteString(a.stdout, text)
	return err
}

// text is for people. Programs may read the first line.
func (r ready) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "iothub-emulator is ready: settings for clients are in %s\n", r.Env)
	line := func(name, value string) { fmt.Fprintf(&b, "  %-15s %s\n", name, value) }
	line("hub", r.Hub)
	line("MQTT over TLS", r.MQTTS)
	line("AMQP over TLS", r.AMQPS)
	line("AMQP", r.AMQP)
	line("HTTPS", r.HTTPS)
	if r.Control != "" {
		line("faults", "http://"+r.Control+"/faults")
	}
	line("CA certificate", r.CAFile)
	if r.DataDir != "" {
		line("state", "in "+r.DataDir)
	} else {
		line("state", "in memory, gone when the emulator ends; --"+flagDataDir+" keeps it")
	}
	if r.ConnectionStrings != nil {
		b.WriteString("Connection strings, to copy:\n")
		line("hub", r.ConnectionStrings[emulator.EnvHub])
		line("Service Bus", r.ConnectionStrings[emulator.EnvServiceBus])
		line("events", r.ConnectionStrings[emulator.EnvEventHub])
	}
	b.WriteString("Ctrl-C ends it.\n")
	return b.String()
}
