package command

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/urfave/cli/v2"

	"github.com/hubjobs/hubjobs/azure/eventhubs"
	"github.com/hubjobs/hubjobs/azure/iothub"
	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/starter/show"
)

// registry is what the commands need of the hub's service side.
type registry interface {
	Statistics(ctx context.Context) (iothub.Statistics, error)
	Devices(ctx context.Context) iter.Seq2[iothub.Device, error]
	Close() error
}

// events is what the commands need of the hub's built-in endpoint.
type events interface {
	// Monitor calls fn for each message until ctx ends; it returns nil then.
	Monitor(ctx context.Context, o eventhubs.Options, fn func(eventhubs.DeviceMessage) error) error
}

func (p *program) hubCommand() *cli.Command {
	return &cli.Command{
		Name: "hub", Usage: "look into the IoT hub",
		Subcommands: []*cli.Command{
			{Name: "stats", Usage: "count devices and those that are connected", Action: p.hubAction(p.hubStats)},
			{Name: "devices", Usage: "list devices with their state and last activity", Action: p.hubAction(p.hubDevices)},
			{
				Name: "monitor", Usage: "show device messages as they come, with their properties", Action: p.hubAction(p.hubMonitor),
				Description: "Ctrl-C ends it.",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "partition", Usage: "read only the partition with this `ID`", DefaultText: "all"},
					&cli.BoolFlag{Name: "from-beginning", Usage: "begin with the oldest message that the hub keeps, not with the next"},
					&cli.StringFlag{Name: "consumer-group", Usage: "read as a member of consumer `GROUP`", DefaultText: eventhubs.DefaultConsumerGroup},
					&cli.IntFlag{Name: "limit", Usage: "end after `NUMBER` messages", DefaultText: "none"},
				},
			},
		},
	}
}

// hubAction makes a command of one that takes no arguments and may be interrupted.
func (p *program) hubAction(do func(context.Context, *cli.Context) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		if c.Args().Present() {
			return usageError(c, "unexpected argument %q", c.Args().First())
		}
		ctx, release := p.interruptible(c.Context)
		defer release()
		return cause(ctx, do(ctx, c))
	}
}

func (p *program) hubStats(ctx context.Context, c *cli.Context) error {
	hub, err := p.openRegistry(p.settings)
	if err != nil {
		return err
	}
	defer func() { _ = hub.Close() }() // nothing was written that it could lose
	done := p.busy("asking the hub")
	s, err := hub.Statistics(ctx)
	done()
	if err != nil {
		return err
	}
	if asJSON(c) {
		return show.JSON(p.Stdout, struct {
			Connected int `json:"connected"`
			Total     int `json:"total"`
			Enabled   int `json:"enabled"`
			Disabled  int `json:"disabled"`
		}{s.Connected, s.Total, s.Enabled, s.Disabled})
	}
	return show.Facts(p.Stdout, []show.Fact{
		{Name: "Connected", Value: strconv.Itoa(s.Connected)},
		{Name: "Devices", Value: strconv.Itoa(s.Total)},
		{Name: "Enabled", Value: strconv.Itoa(s.Enabled)},
		{Name: "Disabled", Value: strconv.Itoa(s.Disabled)},
	})
}

// deviceEntry is a device as programs see it.
type deviceEntry struct {
	DeviceID        string    `json:"deviceId"`
	Connected       bool      `json:"connected"`
	Enabled         bool      `json:"enabled"`
	StatusReason    string    `json:"statusReason,omitempty"`
	LastActivityAt  time.Time `json:"lastActivityAt,omitzero"`
	PendingMessages int       `json:"pendingMessages"`
}

func (p *program) hubDevices(ctx context.Context, c *cli.Context) error {
	hub, err := p.openRegistry(p.settings)
	if err != nil {
		return err
	}
	defer func() { _ = hub.Close() }() // nothing was written that it could lose
	devices, err := p.devices(ctx, hub)
	if err != nil {
		return err
	}
	if asJSON(c) {
		for _, d := range devices {
			if err := show.JSON(p.Stdout, deviceEntry{d.ID, d.Connected, d.Enabled, d.StatusReason, d.LastActivityAt, d.PendingMessages}); err != nil {
				return err
			}
		}
		return nil
	}
	if len(devices) == 0 {
		return p.print("no devices\n")
	}
	var rows [][]string
	for _, d := range devices {
		rows = append(rows, []string{
			d.ID, choose(d.Connected, "connected", "disconnected"), choose(d.Enabled, "enabled", "disabled "+d.StatusReason),
			show.Time(d.LastActivityAt, time.Local), strconv.Itoa(d.PendingMessages),
		})
	}
	return show.Table(p.Stdout, []string{"DEVICE", "STATE", "STATUS", "LAST ACTIVITY", "WAITING"}, rows)
}

func choose(first bool, a, b string) string {
	if first {
		return a
	}
	return strings.TrimSpace(b)
}

// devices reads the whole list before any of it is shown, so that its columns are aligned.
func (p *program) devices(ctx context.Context, hub registry) ([]iothub.Device, error) {
	done := p.busy("listing devices")
	defer done()
	var all []iothub.Device
	for d, err := range hub.Devices(ctx) {
		if err != nil {
			return nil, err
		}
		all = append(all, d)
	}
	slices.SortFunc(all, func(a, b iothub.Device) int { return strings.Compare(a.ID, b.ID) })
	return all, nil
}

// errEnough ends the monitor after --limit messages.
var errEnough = errors.New("enough messages")

func (p *program) hubMonitor(ctx context.Context, c *cli.Context) error {
	limit := c.Int("limit")
	if limit < 0 {
		return usageError(c, "--limit is %d: it can't be negative", limit)
	}
	source, err := p.openEvents(p.settings, p.monitorLogger(c))
	if err != nil {
		return err
	}
	o := eventhubs.Options{
		ConsumerGroup: c.String("consumer-group"), Partition: c.String("partition"), FromBeginning: c.Bool("from-beginning"),
	}
	if p.Terminal.Err {
		_, _ = fmt.Fprintf(p.Stderr, "Waiting for messages of %s; Ctrl-C ends.\n", partitionName(o.Partition))
	}
	seen := 0
	err = source.Monitor(ctx, o, func(m eventhubs.DeviceMessage) error {
		if err := p.showMessage(c, m); err != nil {
			return err
		}
		if seen++; seen == limit {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

func partitionName(id string) string {
	if id == "" {
		return "all partitions"
	}
	return "partition " + id
}

// messageEntry is a device message as programs see it.
type messageEntry struct {
	Partition             string            `json:"partition"`
	SequenceNumber        int64             `json:"sequenceNumber"`
	Offset                string            `json:"offset"`
	EnqueuedAt            time.Time         `json:"enqueuedAt,omitzero"`
	DeviceID              string            `json:"deviceId"`
	SystemProperties      map[string]string `json:"systemProperties"`
	ApplicationProperties map[string]string `json:"applicationProperties"`
	Body                  job.Body          `json:"body"` // text, or {"base64": "..."} when it isn't
}

func (p *program) showMessage(c *cli.Context, m eventhubs.DeviceMessage) error {
	system := systemProperties(m)
	if asJSON(c) {
		return show.JSON(p.Stdout, messageEntry{
			Partition: m.Partition, SequenceNumber: m.Sequence, Offset: m.Offset, EnqueuedAt: m.EnqueuedAt, DeviceID: m.DeviceID,
			SystemProperties: system, ApplicationProperties: m.Properties, Body: m.Body,
		})
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s  partition %s  #%d  %s\n", show.Time(m.EnqueuedAt, time.Local), m.Partition, m.Sequence, show.Clean(m.DeviceID))
	writeProperties(&b, "system", system)
	writeProperties(&b, "application", m.Properties)
	fmt.Fprintf(&b, "  %s\n", readable(m.Body))
	return p.print(b.String())
}

// systemProperties are those that IoT Hub's documentation calls so: what the hub stamped, and the standard ones that the
// device set ("Create and read IoT Hub messages").
func systemProperties(m eventhubs.DeviceMessage) map[string]string {
	all := make(map[string]string, len(m.System)+3)
	for name, value := range map[string]string{
		"message-id": m.MessageID, "correlation-id": m.CorrelationID, "content-type": m.ContentType,
	} {
		if value != "" {
			all[name] = value
		}
	}
	maps.Copy(all, m.System)
	return all
}

func writeProperties(b *strings.Builder, kind string, properties map[string]string) {
	if len(properties) == 0 {
		return
	}
	fmt.Fprintf(b, "  %s:", kind)
	for i, name := range slices.Sorted(maps.Keys(properties)) {
		if i > 0 {
			b.WriteString(",")
		}
		fmt.Fprintf(b, " %s=%s", show.Clean(name), show.Clean(properties[name]))
	}
	b.WriteString("\n")
}

// readable is a body on one line; what isn't text is told by its size.
func readable(body []byte) string {
	if !utf8.Valid(body) {
		return fmt.Sprintf("(%d bytes that are not text)", len(body))
	}
	return show.Clean(string(body))
}
