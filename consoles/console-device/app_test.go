package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/hubjobs/hubjobs/consoles/internal/hubtest"
	"github.com/hubjobs/hubjobs/consoles/internal/settings"
)

const (
	apiKey   = "the-api-key"
	deviceID = "device-solver::foo"
)

// withKey returns an environment with nothing but the API key.
func withKey(key string) func(string) string {
	return func(name string) string {
		if name == keyVariable {
			return key
		}
		return ""
	}
}

// startManager starts a manager that hands out identities of the hub and reports each request as "path".
func startManager(t *testing.T, hub *hubtest.Hub) (url string, requests <-chan string) {
	t.Helper()
	seen := make(chan string, 10)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("x-api-key") != apiKey {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		seen <- r.URL.Path
		_ = json.NewEncoder(w).Encode(map[string]string{"url": hub.ConnectionString(deviceID)})
	}))
	t.Cleanup(server.Close)
	return server.URL, seen
}

// process is a running command.
type process struct {
	in     *io.PipeWriter
	events chan map[string]any
	result chan error
}

// start runs the command with a pipe as input and JSON output.
func start(t *testing.T, ctx context.Context, args ...string) *process {
	t.Helper()
	inReader, inWriter := io.Pipe()
	outReader, outWriter := io.Pipe()
	p := &process{in: inWriter, events: make(chan map[string]any, 100), result: make(chan error, 1)}
	go func() {
		err := run(ctx, append([]string{"console-device", "--output", "json", "--device-id", deviceID}, args...),
			streams{in: inReader, out: outWriter, err: io.Discard}, withKey(apiKey))
		p.result <- err
		_ = outWriter.Close()
	}()
	go func() {
		defer close(p.events)
		for scanner := bufio.NewScanner(outReader); scanner.Scan(); {
			var e map[string]any
			if err := json.Unmarshal(scanner.Bytes(), &e); err != nil {
				t.Errorf("output is not JSON: %q", scanner.Text())
			}
			p.events <- e
		}
	}()
	t.Cleanup(func() { _ = inWriter.Close() })
	return p
}

// next returns the next event of that kind, without those before it.
func (p *process) next(t *testing.T, kind string) map[string]any {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		select {
		case e, more := <-p.events:
			if !more {
				t.Fatalf("the console ended without the event %q", kind)
			}
			if e["event"] == kind {
				return e
			}
		case <-timeout:
			t.Fatalf("no event %q came", kind)
		}
	}
}

// end waits for the end of the command.
func (p *process) end(t *testing.T) error {
	t.Helper()
	select {
	case err := <-p.result:
		return err
	case <-time.After(20 * time.Second):
		t.Fatal("the console did not end")
		return nil
	}
}

func (p *process) write(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(p.in, text); err != nil {
		t.Fatal(err)
	}
}

func hubArgs(hub *hubtest.Hub, managerURL string) []string {
	return []string{"--manager-url", managerURL, "--ca-file", hub.CAFile, "--mqtt-addr", hub.Address}
}

func TestConversation(t *testing.T) {
	t.Parallel()
	hub := hubtest.Start(t)
	managerURL, requests := startManager(t, hub)
	p := start(t, t.Context(), append(hubArgs(hub, managerURL), "--deregister", "--property", "to-device=other=x")...)
	if e := p.next(t, "connected"); e["host"] != hubtest.Host || e["deviceId"] != deviceID {
		t.Errorf("connected: %v", e)
	}

	p.write(t, "hello\r\n")
	sent := p.next(t, "sent")["message"].(map[string]any)
	if id, _ := sent["messageId"].(string); sent["body"] != "hello" || sent["correlationId"] != "foo" || id == "" {
		t.Errorf("sent: %v", sent)
	}
	published := hubtest.Wait[*packets.PublishPacket](t, hub)
	if string(published.Payload) != "hello" || !strings.Contains(published.TopicName, "to-device=other%3Dx") {
		t.Errorf("published: %v", published)
	}

	hub.Send(t, "devices/"+deviceID+"/messages/devicebound/%24.to=%2Fx&%24.mid=m1&%24.ct=text%2Fplain&iothub-ack=full&from-device=y", "hi", 1)
	received := p.next(t, "received")["message"].(map[string]any)
	want := map[string]any{
		"messageId": "m1", "body": "hi", "properties": map[string]any{"from-device": "y"},
		"systemProperties": map[string]any{"to": "/x", "content-type": "text/plain", "iothub-ack": "full"},
	}
	if got, expected := toJSON(t, received), toJSON(t, want); got != expected {
		t.Errorf("received %s, want %s", got, expected)
	}

	hub.Send(t, "$iothub/methods/POST/reboot/?$rid=1", `[1]`, 2)
	called := p.next(t, "method")["method"]
	if got := toJSON(t, called); got != `{"name":"reboot","payload":[1],"status":200}` {
		t.Errorf("method: %s", got)
	}
	answer := hubtest.Wait[*packets.PublishPacket](t, hub)
	if string(answer.Payload) != `{"deviceId":"device-solver::foo","method":"reboot","payload":[1]}` || answer.TopicName != "$iothub/methods/res/200/?$rid=1" {
		t.Errorf("answer: %v", answer)
	}

	p.write(t, "\n")
	p.next(t, "deregistered")
	if err := p.end(t); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"/negotiate/" + deviceID, "/deregister/" + deviceID} {
		if got := <-requests; got != want {
			t.Errorf("asked the manager for %s, want %s", got, want)
		}
	}
}

func toJSON(t *testing.T, value any) string {
	t.Helper()
	b, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestEndOfInput(t *testing.T) {
	t.Parallel()
	hub := hubtest.Start(t)
	managerURL, _ := startManager(t, hub)
	p := start(t, t.Context(), hubArgs(hub, managerURL)...)
	p.next(t, "connected")
	if err := p.in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.end(t); err != nil {
		t.Error(err)
	}
}

func TestInterrupt(t *testing.T) {
	t.Parallel()
	hub := hubtest.Start(t)
	hub.Mute(true) // so that it is interrupted while a message waits
	managerURL, requests := startManager(t, hub)
	ctx, interrupt := context.WithCancel(t.Context())
	p := start(t, ctx, append(hubArgs(hub, managerURL), "--deregister")...)
	p.next(t, "connected")
	p.write(t, "hello\n")
	hubtest.Wait[*packets.PublishPacket](t, hub)
	interrupt()
	p.next(t, "deregistered")
	if err := p.end(t); err != nil {
		t.Error(err)
	}
	<-requests
	if got := <-requests; got != "/deregister/"+deviceID {
		t.Errorf("asked the manager for %s", got)
	}
}

// A line that can't be sent does not end the console, but shows in its result.
func TestTooLargeLine(t *testing.T) {
	t.Parallel()
	hub := hubtest.Start(t)
	managerURL, _ := startManager(t, hub)
	p := start(t, t.Context(), hubArgs(hub, managerURL)...)
	p.write(t, strings.Repeat("x", 300<<10)+"\nsmall\n\n")
	if e := p.next(t, "error"); !strings.Contains(e["error"].(string), "256 KiB") {
		t.Errorf("error: %v", e)
	}
	p.next(t, "sent")
	if err := p.end(t); err == nil || err.Error() != "1 of 2 messages were not confirmed by the hub" {
		t.Errorf("result %v", err)
	}
}

func TestTextOutput(t *testing.T) {
	t.Parallel()
	hub := hubtest.Start(t)
	managerURL, _ := startManager(t, hub)
	keyFile := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(keyFile, []byte(apiKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errOut bytes.Buffer
	args := append(hubArgs(hub, managerURL), "--device-id", deviceID, "--api-key-file", keyFile)
	err := run(t.Context(), append([]string{"console-device"}, args...),
		streams{in: strings.NewReader("hello\n"), out: &out, err: &errOut}, withKey(""))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"connected to " + hubtest.Host + " as " + deviceID + "\n", "sent: hello\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("output lacks %q:\n%s", want, out.String())
		}
	}
	if !strings.Contains(errOut.String(), "An empty line ends.") {
		t.Errorf("the person is not told how to end: %q", errOut.String())
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	hub := hubtest.Start(t)
	hub.Refuse(packets.ErrRefusedNotAuthorised)
	managerURL, _ := startManager(t, hub)
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ok := slices.Clip(append(hubArgs(hub, managerURL), "--device-id", deviceID))
	tests := map[string]struct {
		args []string
		key  string
		want string
	}{
		"no device":      {nil, apiKey, "--device-id is required"},
		"bad device":     {[]string{"--device-id", "a b"}, apiKey, "device ID"},
		"bad output":     {append(ok, "--output", "xml"), apiKey, "output"},
		"bad address":    {append(ok, "--mqtt-addr", "localhost"), apiKey, "host:port"},
		"bad property":   {append(ok, "--property", "x"), apiKey, "NAME=VALUE"},
		"hub's property": {append(ok, "--property", "iothub-ack=full"), apiKey, "reserved"},
		"unknown flag":   {append(ok, "--bogus"), apiKey, "bogus"},
		"argument":       {append(ok, "hello"), apiKey, "unexpected argument"},
		"no CA":          {append(ok, "--ca-file", empty+"x"), apiKey, "certificate authority"},
		"no key":         {ok, "", "HUBJOBS_API_KEY"},
		"empty key file": {append(ok, "--api-key-file", empty), apiKey, "is empty"},
		"no key file":    {append(ok, "--api-key-file", empty+"x"), apiKey, "read API key"},
		"wrong key":      {ok, "wrong", "refused the API key"},
		"bad manager":    {append(ok, "--manager-url", "localhost"), apiKey, "manager's URL"},
		"refused by hub": {ok, apiKey, "refused the device"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := run(t.Context(), append([]string{"console-device"}, test.args...),
				streams{in: strings.NewReader("x\n"), out: io.Discard, err: io.Discard}, withKey(test.key))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("error %v, want one with %q", err, test.want)
			}
			if strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), apiKey) || strings.Contains(err.Error(), "SharedAccessKey=") {
				t.Errorf("error %q is more than one line or holds a secret", err)
			}
		})
	}
}

func TestReadmeNamesSettings(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []settings.Setting{settingDevice, settingManager, settingKeyFile, settingCA, settingAddress, settingOutput} {
		if !strings.Contains(string(readme), "| `--"+s.Flag+"` | `"+s.Variable+"` |") {
			t.Errorf("README.md has no line for --%s and %s", s.Flag, s.Variable)
		}
	}
}
