package command

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/urfave/cli/v2"

	"github.com/hubjobs/hubjobs/azure/servicebus"
	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/starter/deadletters"
	"github.com/hubjobs/hubjobs/starter/show"
)

func (p *program) deadLetterCommand() *cli.Command {
	return &cli.Command{
		Name: "deadletter", Usage: "look into the dead-letter queues, put messages back, or remove them",
		Subcommands: []*cli.Command{
			{
				Name: "list", Usage: "list dead letters with their reason, the oldest first",
				Description: "AGE is how long ago the message was first stored: Service Bus keeps no other time.",
				Flags: append(sourceFlags(),
					&cli.StringFlag{Name: "reason", Usage: "list only what was dead-lettered for `REASON`"},
					&cli.IntFlag{Name: "limit", Value: 50, Usage: "list at most `NUMBER` messages"},
					&cli.BoolFlag{Name: "newest", Usage: "list the newest first"}),
				Action: p.deadLetterAction(p.deadLetterList),
			},
			{
				Name: "show", ArgsUsage: "NUMBER", Usage: "show one dead letter whole: its properties and its body",
				Flags: sourceFlags(), Action: p.deadLetterAction(p.deadLetterShow),
			},
			{
				Name: "resubmit", ArgsUsage: "NUMBER ...", Usage: "put dead letters back to where they were sent",
				Description: resubmitDescription,
				Flags: append(append(sourceFlags(), selectionFlags()...),
					&cli.StringSliceFlag{Name: "set", Usage: "give the copies an application property, `NAME=VALUE`; repeat it for more (in the variable: one a line)"},
					&cli.StringSliceFlag{Name: "unset", Usage: "take the application property `NAME` off the copies; repeat it for more (in the variable: one a line)"}),
				Action: p.deadLetterAction(p.deadLetterResubmit),
			},
			{
				Name: "purge", ArgsUsage: "NUMBER ...", Usage: "remove dead letters for good",
				Description: "Ctrl-C ends it after the message at hand.",
				Flags: append(append(sourceFlags(), selectionFlags()...),
					&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "remove them without a question"}),
				Action: p.deadLetterAction(p.deadLetterPurge),
			},
		},
	}
}

const resubmitDescription = `Mend the cause first: what is refused again is dead-lettered again, with a new number.

Each message is sent as a copy, and its dead letter is removed when the copy is stored; when that is cut short, it
may come twice, and is never lost. A copy has all properties, and one more, "` + job.PropertyResubmitted + `". In ` + deadletters.QueueDeviceMessages + ` it keeps
its message ID. Everywhere else it gets a new one, with the old one in "` + job.PropertyOriginalID + `": where duplicates are
detected, as on the topic jobs, the old one would be dropped without a word. What was sent to a topic goes to all of
its subscriptions. Ctrl-C ends it after the message at hand.`

func sourceFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "queue", Usage: "`QUEUE` whose dead letters they are", DefaultText: deadletters.QueueDeviceMessages},
		&cli.StringFlag{Name: "subscription", Usage: "`TOPIC/NAME` of the subscription whose dead letters they are, such as jobs/jobs"},
	}
}

func selectionFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "all", Usage: "take all dead letters that are there now"},
		&cli.StringFlag{Name: "reason", Usage: "take those that were dead-lettered for `REASON`"},
	}
}

// deadLetterAction makes a command of one that works on a dead-letter queue and may be interrupted.
func (p *program) deadLetterAction(do func(context.Context, *cli.Context, *deadletters.Queue) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		from, err := deadLetterSource(c)
		if err != nil {
			return err
		}
		ctx, release := p.interruptible(c.Context)
		defer release()
		bus, err := p.openBus(p.settings)
		if err != nil {
			return err
		}
		defer func() { _ = bus.Close(context.WithoutCancel(ctx)) }() // whatever was sent is stored
		q := deadletters.Of(bus, from)
		return cause(ctx, explainBus(q, do(ctx, c, q)))
	}
}

func deadLetterSource(c *cli.Context) (servicebus.Source, error) {
	queue, subscription := c.String("queue"), c.String("subscription")
	switch {
	case queue != "" && subscription != "":
		return servicebus.Source{}, usageError(c, "name a --queue or a --subscription, not both")
	case subscription != "":
		// A topic's name may have slashes, a subscription's may not (Service Bus docs, "Service Bus quotas").
		at := strings.LastIndex(subscription, "/")
		if at < 1 || at == len(subscription)-1 {
			return servicebus.Source{}, usageError(c, "--subscription is %q: write TOPIC/NAME, such as jobs/jobs", subscription)
		}
		return servicebus.Source{Topic: subscription[:at], Subscription: subscription[at+1:]}, nil
	case queue == "":
		queue = deadletters.QueueDeviceMessages
	}
	return servicebus.Source{Queue: queue}, nil
}

func (p *program) deadLetterList(ctx context.Context, c *cli.Context, q *deadletters.Queue) error {
	switch {
	case c.Args().Present():
		return usageError(c, "unexpected argument %q", c.Args().First())
	case c.Int("limit") < 1:
		return usageError(c, "--limit is %d: it must be at least 1", c.Int("limit"))
	}
	done := p.busy("reading the dead letters of " + q.Name())
	found, more, err := q.List(ctx, deadletters.Filter{Reason: c.String("reason"), Limit: c.Int("limit"), Newest: c.Bool("newest")})
	done()
	switch {
	case err != nil:
		return err
	case asJSON(c):
		for _, r := range found {
			if err := show.JSON(p.Stdout, newDeadLetterEntry(r)); err != nil {
				return err
			}
		}
		return nil
	case len(found) == 0:
		return p.print("no dead letters\n")
	}
	if err := show.Table(p.Stdout, deadLetterHeadings, deadLetterRows(found, time.Now())); err != nil {
		return err
	}
	if more && p.Terminal.Err {
		_, _ = fmt.Fprintf(p.Stderr, "There are more; --limit shows them.\n") // a hint, no result
	}
	return nil
}

// deadLetterEntry is a dead letter as programs see it.
type deadLetterEntry struct {
	SequenceNumber int64     `json:"sequenceNumber"`
	EnqueuedAt     time.Time `json:"enqueuedAt,omitzero"`
	Reason         string    `json:"reason"`
	Description    string    `json:"description,omitempty"`
	DeviceID       string    `json:"deviceId,omitempty"`
	JobID          string    `json:"jobId,omitempty"`
	MessageID      string    `json:"messageId"`
	Kind           job.Kind  `json:"kind,omitempty"`
	Size           int       `json:"size"` // bytes of the body
	DeliveryCount  int       `json:"deliveryCount"`
}

// newDeadLetterEntry tells the kind that the message has, or else the one that its body shows.
func newDeadLetterEntry(r *servicebus.Received) deadLetterEntry {
	m := r.Message
	e := deadLetterEntry{
		SequenceNumber: r.SequenceNumber, EnqueuedAt: r.EnqueuedAt, Reason: r.DeadLetterReason, Description: r.DeadLetterDescription,
		DeviceID: m.From, JobID: m.CorrelationID, MessageID: m.ID, Kind: m.Kind, Size: len(m.Body), DeliveryCount: r.DeliveryCount,
	}
	if e.Kind == job.KindNone {
		e.Kind = job.Infer(m.Body)
	}
	if _, pair, ok := job.ParseDeviceID(m.From); ok && e.JobID == "" {
		e.JobID = pair
	}
	return e
}

var deadLetterHeadings = []string{"NUMBER", "AGE", "REASON", "DEVICE", "JOB", "MESSAGE", "KIND", "SIZE"}

func deadLetterRows(found []*servicebus.Received, now time.Time) [][]string {
	var rows [][]string
	for _, r := range found {
		e := newDeadLetterEntry(r)
		rows = append(rows, []string{
			strconv.FormatInt(e.SequenceNumber, 10), age(e.EnqueuedAt, now), e.Reason, e.DeviceID, e.JobID, e.MessageID, string(e.Kind),
			strconv.Itoa(e.Size),
		})
	}
	return rows
}

// age rounds to what people care about: seconds, minutes, hours or days. A clock that is behind makes it no less than 0.
func age(at, now time.Time) string {
	if at.IsZero() {
		return ""
	}
	d := max(0, now.Sub(at))
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dd", d/(24*time.Hour))
}

func (p *program) deadLetterShow(ctx context.Context, c *cli.Context, q *deadletters.Queue) error {
	if c.NArg() != 1 {
		return usageError(c, "name one dead letter by its number, got %d", c.NArg())
	}
	number, err := sequenceNumber(c, c.Args().First())
	if err != nil {
		return err
	}
	done := p.busy("reading the dead letters of " + q.Name())
	r, err := q.Find(ctx, number)
	done()
	if err != nil {
		return err
	}
	if asJSON(c) {
		return show.JSON(p.Stdout, struct {
			deadLetterEntry
			SystemProperties      map[string]string `json:"systemProperties"`
			ApplicationProperties map[string]string `json:"applicationProperties"`
			Body                  job.Body          `json:"body"` // text, or {"base64": "..."} when it isn't
		}{newDeadLetterEntry(r), r.SystemProperties(), r.Properties, r.Message.Body})
	}
	return p.showDeadLetter(r)
}

func (p *program) showDeadLetter(r *servicebus.Received) error {
	e := newDeadLetterEntry(r)
	err := show.Facts(p.Stdout, []show.Fact{
		{Name: "Number", Value: strconv.FormatInt(e.SequenceNumber, 10)},
		{Name: "Reason", Value: e.Reason},
		{Name: "Description", Value: e.Description},
		{Name: "Enqueued", Value: show.Time(e.EnqueuedAt, time.Local)},
		{Name: "Deliveries", Value: strconv.Itoa(e.DeliveryCount)},
		{Name: "Device", Value: e.DeviceID},
		{Name: "Job", Value: e.JobID},
		{Name: "Kind", Value: string(e.Kind)},
	})
	if err != nil {
		return err
	}
	var b strings.Builder
	writePropertyLines(&b, "System properties", r.SystemProperties())
	writePropertyLines(&b, "Application properties", r.Properties)
	fmt.Fprintf(&b, "\nBody, %s:\n%s", plural(e.Size, "byte"), bodyText(r.Message.Body))
	return p.print(b.String())
}

func writePropertyLines(b *strings.Builder, heading string, properties map[string]string) {
	if len(properties) == 0 {
		return
	}
	fmt.Fprintf(b, "\n%s:\n", heading)
	for _, name := range slices.Sorted(maps.Keys(properties)) {
		fmt.Fprintf(b, "  %s = %s\n", show.Clean(name), show.Clean(properties[name]))
	}
}

// hexHead is how much is shown of a body that is no text.
const hexHead = 256

// bodyText is a body for people: JSON indented, other text as it is, and the beginning of anything else in hex.
func bodyText(body []byte) string {
	switch {
	case len(body) == 0:
		return ""
	case !utf8.Valid(body):
		text := hex.Dump(body[:min(len(body), hexHead)])
		if len(body) > hexHead {
			text += "...\n"
		}
		return text
	}
	text := string(body)
	if json.Valid(body) {
		var indented strings.Builder
		e := json.NewEncoder(&indented)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		if e.Encode(json.RawMessage(body)) == nil {
			text = indented.String()
		}
	}
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(show.Clean(strings.TrimRight(line, "\r\n")) + "\n")
	}
	return b.String()
}

func sequenceNumber(c *cli.Context, text string) (int64, error) {
	number, err := strconv.ParseInt(text, 10, 64)
	if err != nil || number < 1 {
		return 0, usageError(c, "%q is no sequence number: starter deadletter list shows them", text)
	}
	return number, nil
}
