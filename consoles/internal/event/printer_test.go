package event

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

func TestPrint(t *testing.T) {
	t.Parallel()
	message := &Message{ID: "m1", CorrelationID: "foo", Body: Body("hello"),
		Properties: map[string]any{"b": 2, "a": "x"}, System: map[string]any{"to": "/devices/d"}}
	tests := map[string]struct {
		event      Event
		text, json string
	}{
		"connected": {
			Event{Kind: Connected, DeviceID: "d", Host: "h"},
			"12:00:00 connected to h as d\n",
			`{"time":"2026-01-02T12:00:00Z","event":"connected","deviceId":"d","host":"h"}`,
		},
		"disconnected": {
			Event{Kind: Disconnected, Error: "EOF"},
			"12:00:00 not connected: EOF\n",
			`{"time":"2026-01-02T12:00:00Z","event":"disconnected","error":"EOF"}`,
		},
		"sent": {
			Event{Kind: Sent, Message: &Message{ID: "m1", Body: Body("hello")}},
			"12:00:00 sent: hello\n",
			`{"time":"2026-01-02T12:00:00Z","event":"sent","message":{"messageId":"m1","body":"hello"}}`,
		},
		"received": {
			Event{Kind: Received, DeviceID: "d", Message: message},
			"12:00:00 received: hello\n    system      message-id = m1\n    system      correlation-id = foo\n" +
				"    system      to = /devices/d\n    application a = x\n    application b = 2\n",
			`{"time":"2026-01-02T12:00:00Z","event":"received","deviceId":"d","message":{"messageId":"m1","correlationId":"foo","body":"hello","properties":{"a":"x","b":2},"systemProperties":{"to":"/devices/d"}}}`,
		},
		"observed": {
			Event{Kind: Observed, DeviceID: "d", Message: message},
			"12:00:00 d: hello\n    system      to = /devices/d\n    application a = x\n    application b = 2\n",
			`{"time":"2026-01-02T12:00:00Z","event":"message","deviceId":"d","message":{"messageId":"m1","correlationId":"foo","body":"hello","properties":{"a":"x","b":2},"systemProperties":{"to":"/devices/d"}}}`,
		},
		"method": {
			Event{Kind: Called, Method: &Method{Name: "reboot", Payload: json.RawMessage(`{"a":1}`), Status: 200}},
			"12:00:00 method reboot({\"a\":1}) answered with 200\n",
			`{"time":"2026-01-02T12:00:00Z","event":"method","method":{"name":"reboot","payload":{"a":1},"status":200}}`,
		},
		"device": {
			Event{Kind: Listed, Device: &Device{DeviceID: "d", ConnectionState: "Connected", Status: "enabled", LastActivity: noon, Waiting: 3}},
			"12:00:00 d                                        Connected    enabled  last active 2026-01-02T12:00:00Z, 3 messages waiting\n",
			`{"time":"2026-01-02T12:00:00Z","event":"device","device":{"deviceId":"d","connectionState":"Connected","status":"enabled","lastActivityTime":"2026-01-02T12:00:00Z","cloudToDeviceMessageCount":3}}`,
		},
		"device never active": {
			Event{Kind: Listed, Device: &Device{DeviceID: "d", ConnectionState: "Disconnected", Status: "disabled"}},
			"12:00:00 d                                        Disconnected disabled never active, 0 messages waiting\n",
			`{"time":"2026-01-02T12:00:00Z","event":"device","device":{"deviceId":"d","connectionState":"Disconnected","status":"disabled","cloudToDeviceMessageCount":0}}`,
		},
		"statistics": {
			Event{Kind: Counted, Statistics: &Statistics{Total: 3, Enabled: 2, Disabled: 1}},
			"12:00:00 0 of 3 devices connected (2 enabled, 1 disabled)\n",
			`{"time":"2026-01-02T12:00:00Z","event":"statistics","statistics":{"connectedDeviceCount":0,"totalDeviceCount":3,"enabledDeviceCount":2,"disabledDeviceCount":1}}`,
		},
		"deregistered": {
			Event{Kind: Deregistered, DeviceID: "d"},
			"12:00:00 deregistered d\n",
			`{"time":"2026-01-02T12:00:00Z","event":"deregistered","deviceId":"d"}`,
		},
		"error": {
			Event{Kind: Failed, Error: "too large"},
			"12:00:00 error: too large\n",
			`{"time":"2026-01-02T12:00:00Z","event":"error","error":"too large"}`,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for format, want := range map[Format]string{Text: test.text, JSON: test.json + "\n"} {
				var out bytes.Buffer
				printer := NewPrinter(&out, format)
				printer.now = func() time.Time { return noon }
				printer.Print(test.event)
				if out.String() != want || printer.Err() != nil {
					t.Errorf("%s: got\n%swant\n%s(error %v)", format, out.String(), want, printer.Err())
				}
			}
		})
	}
}

// What a stranger sends must neither move the cursor of the terminal nor end the line.
func TestTextIsHarmless(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	NewPrinter(&out, Text).Print(Event{Kind: Received, Message: &Message{
		Body: Body("a\x1b[2J\r\nb\tü"), Properties: map[string]any{"k\n": "v\a"}}})
	if got := out.String(); strings.ContainsAny(got, "\x1b\r\a") || strings.Count(got, "\n") != 2 {
		t.Errorf("printed %q", got)
	}
	if !strings.Contains(out.String(), `a\x1b[2J\r\nb`+"\tü") {
		t.Errorf("printed %q", out.String())
	}
}

func TestBinaryBody(t *testing.T) {
	t.Parallel()
	if got := Body([]byte{0xff, 0x00}).String(); got != "base64:/wA=" {
		t.Errorf("binary body is %q", got)
	}
}

func TestPrintTogether(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	var printing sync.WaitGroup
	printer := NewPrinter(&out, JSON)
	for range 20 {
		printing.Go(func() { printer.Print(Event{Kind: Sent, Message: &Message{Body: Body(strings.Repeat("x", 1000))}}) })
	}
	printing.Wait()
	for line := range strings.Lines(out.String()) {
		if !json.Valid([]byte(line)) {
			t.Fatalf("torn line %q", line)
		}
	}
}

type brokenWriter struct{}

var errBroken = errors.New("broken")

func (brokenWriter) Write([]byte) (int, error) { return 0, errBroken }

func TestFailedWriteIsKept(t *testing.T) {
	t.Parallel()
	printer := NewPrinter(brokenWriter{}, Text)
	printer.Print(Event{Kind: Failed, Error: "x"})
	if !errors.Is(printer.Err(), errBroken) {
		t.Errorf("error %v, want %v", printer.Err(), errBroken)
	}
}

func TestParseFormat(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"text", "json"} {
		if got, err := ParseFormat(name); string(got) != name || err != nil {
			t.Errorf("%q gives %q, %v", name, got, err)
		}
	}
	if _, err := ParseFormat("xml"); err == nil {
		t.Error("xml is accepted")
	}
}
