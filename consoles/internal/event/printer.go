package event

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
)

// Format is how a [Printer] writes an event.
type Format string

const (
	// Text is for people: one line an event, and an indented line for each property of a message.
	Text Format = "text"
	// JSON is for programs: one JSON object a line.
	JSON Format = "json"
)

// ParseFormat returns the format of that name. The error names the formats that there are.
func ParseFormat(name string) (Format, error) {
	switch f := Format(name); f {
	case Text, JSON:
		return f, nil
	}
	return "", fmt.Errorf("output %q is unknown: use %q or %q", name, Text, JSON)
}

// Printer writes events. It may be used by several goroutines: an event is never torn apart by another.
type Printer struct {
	format Format
	now    func() time.Time

	mu  sync.Mutex
	out io.Writer // guarded by mu
	err error     // guarded by mu; the first failed write
}

// NewPrinter returns a printer that writes to out.
func NewPrinter(out io.Writer, format Format) *Printer {
	return &Printer{format: format, now: time.Now, out: out}
}

// Print writes the event, stamped with the present time if it has none. A failed write does not stop a console that is
// serving a connection; it is kept for [Printer.Err].
func (p *Printer) Print(e Event) {
	if e.Time.IsZero() {
		e.Time = p.now().UTC()
	}
	line, err := p.render(e)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		_, err = p.out.Write(line)
	}
	if err != nil && p.err == nil {
		p.err = fmt.Errorf("write output: %w", err)
	}
}

// Err returns the first error of writing, if there was one.
func (p *Printer) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

func (p *Printer) render(e Event) ([]byte, error) {
	if p.format == JSON {
		line, err := json.Marshal(e)
		return append(line, '\n'), err
	}
	lines := append([]string{e.Time.Format(time.TimeOnly) + " " + summary(e)}, details(e)...)
	return []byte(strings.Join(lines, "\n") + "\n"), nil
}

// summary is the first line of an event's text form, without the time.
func summary(e Event) string {
	switch e.Kind {
	case Connected:
		if e.DeviceID == "" {
			return "connected to " + e.Host
		}
		return fmt.Sprintf("connected to %s as %s", e.Host, e.DeviceID)
	case Disconnected:
		return "not connected: " + printable(e.Error)
	case Sent:
		return fmt.Sprintf("sent: %s", printable(e.Message.Body.String()))
	case Received:
		return fmt.Sprintf("received: %s", printable(e.Message.Body.String()))
	case Called:
		return fmt.Sprintf("method %s(%s) answered with %d", printable(e.Method.Name), printable(string(e.Method.Payload)), e.Method.Status)
	case Deregistered:
		return "deregistered " + e.DeviceID
	case Observed:
		return fmt.Sprintf("%s: %s", printable(e.DeviceID), printable(e.Message.Body.String()))
	case Listed:
		return listed(*e.Device)
	case Counted:
		s := e.Statistics
		return fmt.Sprintf("%d of %d devices connected (%d enabled, %d disabled)", s.Connected, s.Total, s.Enabled, s.Disabled)
	}
	return fmt.Sprintf("%s: %s", e.Kind, printable(e.Error))
}

func listed(d Device) string {
	activity := "never active"
	if !d.LastActivity.IsZero() {
		activity = "last active " + d.LastActivity.Format(time.RFC3339)
	}
	return fmt.Sprintf("%-40s %-12s %-8s %s, %d messages waiting",
		printable(d.DeviceID), printable(d.ConnectionState), printable(d.Status), activity, d.Waiting)
}

// details are the indented lines that follow the summary of a message that came in.
func details(e Event) []string {
	if e.Message == nil || e.Kind == Sent { // who typed a message knows what is in it
		return nil
	}
	var lines []string
	add := func(class, name string, value any) {
		lines = append(lines, fmt.Sprintf("    %-11s %s = %s", class, printable(name), printable(fmt.Sprint(value))))
	}
	if e.Kind != Observed { // an observed message has them among its system properties
		if e.Message.ID != "" {
			add("system", "message-id", e.Message.ID)
		}
		if e.Message.CorrelationID != "" {
			add("system", "correlation-id", e.Message.CorrelationID)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(e.Message.System)) {
		add("system", name, e.Message.System[name])
	}
	for _, name := range slices.Sorted(maps.Keys(e.Message.Properties)) {
		add("application", name, e.Message.Properties[name])
	}
	return lines
}

// printable escapes what would move the cursor, change colours or ring the bell of the terminal: the text comes from
// whoever can send a message.
func printable(s string) string {
	unsafe := func(r rune) bool { return r != '\t' && !unicode.IsPrint(r) }
	if !strings.ContainsFunc(s, unsafe) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if unsafe(r) {
			quoted := strconv.QuoteRune(r)
			b.WriteString(quoted[1 : len(quoted)-1])
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}
