package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/amenzhinsky/iothub/common"

	"github.com/hubjobs/hubjobs/consoles/internal/device"
	"github.com/hubjobs/hubjobs/consoles/internal/event"
)

// maxLine bounds a line of input, in bytes. It is above the hub's limit for a message, so that a line between the two is
// refused by itself and the console goes on.
const maxLine = 1 << 20

// console is one run of the conversation.
type console struct {
	deviceID   string
	properties map[string]string
	printer    *event.Printer
}

// connectAndConverse serves the device until the input or the context ends.
func (c *console) connectAndConverse(ctx context.Context, connectionString string, options *device.Options, std streams) error {
	session, err := device.Connect(ctx, connectionString, c.handlers(), options)
	if err != nil {
		return unlessInterrupted(ctx, err)
	}
	fmt.Fprintln(std.err, "Type a line and press Enter to send it. An empty line ends.")
	return errors.Join(c.converse(ctx, session, std.in), session.Close())
}

func (c *console) handlers() device.Handlers {
	return device.Handlers{
		Message: func(m *common.Message) { c.print(event.Event{Kind: event.Received, Message: received(m)}) },
		Method:  c.answer,
		Up:      func(host string) { c.print(event.Event{Kind: event.Connected, Host: host}) },
		Down:    func(err error) { c.print(event.Event{Kind: event.Disconnected, Error: text(err)}) },
		Warning: func(err error) { c.print(event.Event{Kind: event.Failed, Error: text(err)}) },
	}
}

func (c *console) print(e event.Event) {
	e.DeviceID = c.deviceID
	c.printer.Print(e)
}

// text allows for a connection that was lost without a reason.
func text(err error) string {
	if err == nil {
		return "connection closed"
	}
	return err.Error()
}

// systemNames are those of system properties that the library does not know and leaves among the others, by their keys in
// an MQTT topic.
var systemNames = map[string]string{"$.ct": "content-type", "$.ce": "content-encoding"}

// received brings a cloud-to-device message into the form that is shown.
func received(m *common.Message) *event.Message {
	shown := &event.Message{ID: m.MessageID, CorrelationID: m.CorrelationID, Body: m.Payload,
		Properties: map[string]any{}, System: map[string]any{}}
	for name, value := range m.Properties {
		switch known, system := systemNames[name]; {
		case system:
			shown.System[known] = value
		case device.CheckProperty(name) != nil: // the hub's own
			shown.System[name] = value
		default:
			shown.Properties[name] = value
		}
	}
	if m.To != "" {
		shown.System["to"] = m.To
	}
	if m.UserID != "" {
		shown.System["user-id"] = m.UserID
	}
	if m.ExpiryTime != nil {
		shown.System["absolute-expiry-time"] = *m.ExpiryTime
	}
	return shown
}

// answer shows a direct method call and echoes it.
func (c *console) answer(name string, payload []byte) device.Answer {
	echo, err := json.Marshal(struct {
		DeviceID string          `json:"deviceId"`
		Method   string          `json:"method"`
		Payload  json.RawMessage `json:"payload"`
	}{c.deviceID, name, payload})
	status := http.StatusOK
	if err != nil {
		status, echo = http.StatusInternalServerError, []byte("null")
	}
	c.print(event.Event{Kind: event.Called, Method: &event.Method{Name: name, Payload: payload, Status: status}})
	return device.Answer{Status: status, Payload: echo}
}

// converse sends each line of the input. A message that could not be sent is shown, and counted for the result: the next
// line may well succeed.
func (c *console) converse(ctx context.Context, session *device.Session, in io.Reader) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	lines := readLines(ctx, in)
	failed, total := 0, 0
	for {
		select {
		case <-ctx.Done():
			return nil
		case l, more := <-lines:
			if !more {
				return unconfirmed(failed, total)
			}
			if l.err != nil {
				return l.err
			}
			total++
			if err := c.send(ctx, session, l.text); err != nil && ctx.Err() == nil {
				failed++
				c.print(event.Event{Kind: event.Failed, Error: err.Error()})
			}
		}
	}
}

func unconfirmed(failed, total int) error {
	if failed == 0 {
		return nil
	}
	return fmt.Errorf("%d of %d messages were not confirmed by the hub", failed, total)
}

func (c *console) send(ctx context.Context, session *device.Session, line string) error {
	message := device.Outgoing{
		ID:            rand.Text(), // with an ID, a router can ask the hub for feedback and recognise a repeat
		CorrelationID: device.PairName(c.deviceID),
		Body:          []byte(line),
		Properties:    c.properties,
	}
	if err := session.Send(ctx, message); err != nil {
		return fmt.Errorf("send message %s: %w", message.ID, err)
	}
	shown := &event.Message{ID: message.ID, CorrelationID: message.CorrelationID, Body: message.Body, Properties: map[string]any{}}
	for name, value := range c.properties {
		shown.Properties[name] = value
	}
	c.print(event.Event{Kind: event.Sent, Message: shown})
	return nil
}

// line is a line of input without its end, or the error that ended the input.
type line struct {
	text string
	err  error
}

// readLines delivers the lines of the input up to the first empty one, the end of the input or that of the context, and
// then closes the channel. A read from a terminal can't be interrupted: when the context ends, the goroutine that reads
// stays until the next line or the end of the process.
func readLines(ctx context.Context, in io.Reader) <-chan line {
	lines := make(chan line)
	go func() {
		defer close(lines)
		scanner := bufio.NewScanner(in)
		scanner.Buffer(nil, maxLine)
		for scanner.Scan() && scanner.Text() != "" {
			if !deliver(ctx, lines, line{text: scanner.Text()}) {
				return
			}
		}
		if err := scanner.Err(); err != nil {
			deliver(ctx, lines, line{err: fmt.Errorf("read input: %w", err)})
		}
	}()
	return lines
}

// deliver reports whether the line was taken before the context ended.
func deliver(ctx context.Context, lines chan<- line, l line) bool {
	select {
	case lines <- l:
		return true
	case <-ctx.Done():
		return false
	}
}
