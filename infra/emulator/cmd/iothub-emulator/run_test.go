package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if os.Getenv("RUN_THE_COMMAND") != "" {
		main()
		os.Exit(0)
	}
	// azeventhubs v2.0.2 forgets the goroutine that renews the token of a link.
	const renewer = "github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2/internal.(*Namespace).startNegotiateClaimRenewer.func3"
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction(renewer))
}

// testTimeout bounds every wait of a test, so that a hang becomes a failure.
const testTimeout = 30 * time.Second

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}

// freePorts are flags for listening anywhere.
var freePorts = []string{"--amqp-addr", "127.0.0.1:0", "--amqps-addr", "127.0.0.1:0", "--mqtts-addr", "127.0.0.1:0", "--https-addr", "127.0.0.1:0"}

func noEnv(string) (string, bool) { return "", false }

// firstLine waits for the first line of what is written.
func firstLine(t *testing.T, r io.Reader) string {
	t.Helper()
	line := make(chan string, 1)
	go func() {
		text, _ := bufio.NewReader(r).ReadString('\n') // a cut off line fails the test
		line <- text
		_, _ = io.Copy(io.Discard, r) // lets the writer go on
	}()
	select {
	case text := <-line:
		return text
	case <-testContext(t).Done():
		t.Fatal("nothing was written")
		return ""
	}
}

var readyLine = regexp.MustCompile(`^iothub-emulator is ready: settings for clients are in (.*)\n$`)

// started runs the command until the function that it returns is called, which
// returns the command's result.
func started(t *testing.T, args ...string) (envFile string, stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	stdout, writer := io.Pipe()
	var stderr bytes.Buffer
	result := make(chan error, 1)
	go func() {
		result <- run(ctx, append([]string{"iothub-emulator"}, args...), writer, &stderr, noEnv)
		_ = writer.Close()
	}()
	ready := readyLine.FindStringSubmatch(firstLine(t, stdout))
	if ready == nil {
		t.Fatalf("no ready line: %v\n%s", <-result, stderr.String())
	}
	return ready[1], func() error {
		cancel()
		return <-result
	}
}

// settings reads what the command tells clients.
func settings(t *testing.T, file string) map[string]string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	env := make(map[string]string)
	for line := range strings.Lines(string(data)) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		env[name] = value
	}
	return env
}

func TestReadyAndInterrupted(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file, stop := started(t, append(freePorts, "--data-dir", dir)...)
	if file != filepath.Join(dir, "emulator.env") {
		t.Errorf("settings are in %s", file)
	}
	conn, err := net.Dial("tcp", settings(t, file)["EMULATOR_AMQP_ADDR"])
	if err != nil {
		t.Error(err)
	} else {
		_ = conn.Close()
	}
	if err := stop(); err != nil {
		t.Errorf("interrupted: %v", err)
	}
}

func TestInMemory(t *testing.T) {
	t.Parallel()
	file, stop := started(t, freePorts...)
	env := settings(t, file)
	if _, err := os.Stat(env["EMULATOR_CA_FILE"]); err != nil {
		t.Error(err)
	}
	if err := stop(); err != nil {
		t.Errorf("interrupted: %v", err)
	}
	if _, err := os.Stat(filepath.Dir(file)); !os.IsNotExist(err) {
		t.Errorf("the temporary directory is left: %v", err)
	}
}

func TestFailures(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = taken.Close() })
	config := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(config, []byte("Hub:\n  Tier: S9\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		args []string
		env  map[string]string
		want string
	}{
		"port taken": {
			args: append(freePorts, "--mqtts-addr", taken.Addr().String()),
			want: "can't listen on " + taken.Addr().String() + ": bind: address already in use; choose another address with --mqtts-addr, such as --mqtts-addr 127.0.0.1:0 for a free port",
		},
		"no address":            {args: []string{"--https-addr", "8443"}, want: `--https-addr is "8443" and must be a host and a port, such as 127.0.0.1:0 for a free port`},
		"no port":               {args: append(freePorts, "--amqp-addr", "127.0.0.1"), want: `--amqp-addr is "127.0.0.1" and must be a host and a port, such as 127.0.0.1:0 for a free port`},
		"no certificate":        {args: []string{"--device-ca", config}, want: "--device-ca: " + config + " holds no certificate in PEM"},
		"configuration":         {args: []string{"--config", config}, want: config + `:2: tier is "S9" and must be F1, S1, S2, S3, B1, B2 or B3`},
		"no configuration":      {args: []string{"--config", "missing"}, want: "read configuration: open missing: no such file or directory"},
		"unknown flag":          {args: []string{"--color"}, want: "flag provided but not defined: -color; see --help"},
		"argument":              {args: []string{"data"}, want: `unexpected argument "data"; see --help`},
		"feedback interval":     {args: []string{"--feedback-interval", "soon"}, want: `--feedback-interval is "soon" and must be a duration such as 500ms or 15s`},
		"tier":                  {args: []string{"--tier", "S9"}, want: `--tier: tier is "S9" and must be F1, S1, S2, S3, B1, B2 or B3`},
		"units without a tier":  {args: []string{"--units", "2"}, want: "--units needs --tier"},
		"too many units":        {args: []string{"--tier", "F1", "--units", "2"}, want: `--units is "2" and must be a number from 1 to 1 for tier F1`},
		"units in words":        {env: map[string]string{"IOTHUB_EMULATOR_TIER": "s1", "IOTHUB_EMULATOR_UNITS": "two"}, want: `--units is "two" and must be a number from 1 to 200 for tier S1`},
		"fault":                 {args: []string{"--fault", "cut", "--fault", "refuse,operation=c2d"}, want: "--fault refuse,operation=c2d: invalid fault: refuse needs a code such as 429; see --help"},
		"fault in environment":  {env: map[string]string{"IOTHUB_EMULATOR_FAULT": "cut;explode,after=1s"}, want: `--fault explode,after=1s: invalid fault: kind is "explode" and must be cut, delay, half-open, duplicate, refuse, expire-locks or disconnect; see --help`},
		"control for everybody": {args: []string{"--control-addr", "0.0.0.0:0"}, want: `control address "0.0.0.0:0" is not of the loopback interface, such as 127.0.0.1:9000`},
		"no device CA":          {args: append(freePorts, "--device-ca", "missing.pem"), want: "--device-ca: open missing.pem: no such file or directory"},
		"output":                {args: []string{"--output", "xml"}, want: `--output is "xml" and must be text or json`},
		"keys":                  {args: []string{"--show-keys", "some"}, want: `--show-keys is "some" and must be true, false or auto`},
		"log level":             {args: []string{"--log-level", "loud"}, want: `--log-level is "loud" and must be debug, info, warn or error`},
		"log format":            {args: []string{"--log-json", "maybe"}, want: `--log-json is "maybe" and must be true, false or auto`},
		"environment":           {env: map[string]string{"IOTHUB_EMULATOR_HUB_NAME": "a b"}, want: `hub name "a b" is not a host name`},
		"flag over environment": {args: []string{"--hub-name", "c d"}, env: map[string]string{"IOTHUB_EMULATOR_HUB_NAME": "a b"}, want: `hub name "c d" is not a host name`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			env := func(name string) (string, bool) { v, ok := tc.env[name]; return v, ok }
			err := run(ctx, append([]string{"iothub-emulator"}, tc.args...), io.Discard, io.Discard, env)
			if err == nil || err.Error() != tc.want {
				t.Errorf("got  %v\nwant %s", err, tc.want)
			}
		})
	}
}

func TestHelpNamesFlagsAndVariables(t *testing.T) {
	t.Parallel()
	var stdout bytes.Buffer
	if err := run(t.Context(), []string{"iothub-emulator", "--help"}, &stdout, io.Discard, noEnv); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"--data-dir DIR", "[$IOTHUB_EMULATOR_DATA_DIR]", "--config FILE", "--amqps-addr ADDRESS", `(default: "127.0.0.1:5671")`,
		"--tier TIER", "[$IOTHUB_EMULATOR_TIER]", "--fault FAULT", "[$IOTHUB_EMULATOR_FAULT, separated by ;]", "--device-ca FILE", "--control-addr ADDRESS", "--units NUMBER",
		"--output", "--show-keys", "cut,protocol=mqtt,device=sensor-*,after=10s",
		"--https-addr", `(default: "127.0.0.1:8443")`, "--mqtts-addr", `(default: "127.0.0.1:8883")`, "--amqp-addr", `(default: "127.0.0.1:5672")`,
	} {
		if !strings.Contains(stdout.String(), want) {
			t.Errorf("%s is missing in:\n%s", want, stdout.String())
		}
	}
}

// connectionStrings are the settings that are keys.
var connectionStrings = []string{"IOTHUB_CONNECTION_STRING", "SERVICEBUS_CONNECTION_STRING", "EVENTHUB_CONNECTION_STRING"}

// whatItSays runs the command until it is ready and returns what it wrote on
// standard output, and its settings.
func whatItSays(t *testing.T, args ...string) (string, map[string]string) {
	t.Helper()
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stdout, writer := io.Pipe()
	result := make(chan error, 1)
	go func() {
		result <- run(ctx, append(append([]string{"iothub-emulator", "--data-dir", dir}, freePorts...), args...), writer, io.Discard, noEnv)
		_ = writer.Close()
	}()
	said := make([]byte, 64<<10)
	n, err := stdout.Read(said) // it is all written at once
	if err != nil {
		t.Fatalf("nothing was written: %v", <-result)
	}
	env := settings(t, filepath.Join(dir, "emulator.env"))
	cancel()
	if err := <-result; err != nil {
		t.Error(err)
	}
	return string(said[:n]), env
}

func TestKeysAreShownWhenWanted(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		args []string
		want bool
	}{
		"not on a terminal": {nil, false},
		"wanted":            {[]string{"--show-keys", "true"}, true},
		"not wanted":        {[]string{"--show-keys=false"}, false},
		"JSON":              {[]string{"--output", "json"}, false},
		"JSON, wanted":      {[]string{"--output", "json", "--show-keys", "true"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			said, env := whatItSays(t, tc.args...)
			for _, setting := range connectionStrings {
				if env[setting] == "" {
					t.Errorf("%s is not among the settings", setting)
				}
				if strings.Contains(said, env[setting]) != tc.want {
					t.Errorf("shown or not against the flag: %s", setting)
				}
			}
			if strings.Contains(said, "SharedAccessKey=") != tc.want {
				t.Error("a key is shown or not against the flag")
			}
		})
	}
}

func TestOutputInJSON(t *testing.T) {
	t.Parallel()
	said, env := whatItSays(t, "--output", "json", "--control-addr", "127.0.0.1:0")
	if strings.Count(said, "\n") != 1 || !strings.HasSuffix(said, "\n") {
		t.Errorf("it is not one line: %q", said)
	}
	var got map[string]string
	if err := json.Unmarshal([]byte(said), &got); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(got["env"])
	for name, want := range map[string]string{
		"status": "ready", "hub": "localhost", "env": filepath.Join(dir, "emulator.env"), "dataDir": dir, "caFile": env["EMULATOR_CA_FILE"],
		"mqtts": env["EMULATOR_MQTTS_ADDR"], "amqps": env["EMULATOR_AMQPS_ADDR"], "amqp": env["EMULATOR_AMQP_ADDR"],
		"https": env["EMULATOR_HTTPS_ADDR"], "control": env["EMULATOR_CONTROL_ADDR"],
	} {
		if want == "" || got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
		delete(got, name)
	}
	if len(got) != 0 {
		t.Errorf("and there is %v", got)
	}
}

func TestFlagsReachTheEmulator(t *testing.T) {
	t.Parallel()
	said, env := whatItSays(t, "--control-addr", "127.0.0.1:0", "--tier", "S1", "--units", "2")
	if want := "http://" + env["EMULATOR_CONTROL_ADDR"] + "/faults"; !strings.Contains(said, want) {
		t.Errorf("%s is missing in:\n%s", want, said)
	}
	file, stop := started(t, append(freePorts, "--control-addr", "127.0.0.1:0", "--fault", "refuse,operation=c2d,code=429", "--fault", "cut,device=a*")...)
	defer func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}()
	request, err := http.NewRequestWithContext(testContext(t), http.MethodGet, "http://"+settings(t, file)["EMULATOR_CONTROL_ADDR"]+"/faults", nil)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"faults":[{"id":"1","hits":0,"kind":"refuse","operation":"c2d","code":429},{"id":"2","hits":0,"kind":"cut","device":"a*"}]}` + "\n"
	if string(body) != want {
		t.Errorf("got %s, want %s", body, want)
	}
}

// command starts the command as a process of its own.
func command(t *testing.T, dir string, args ...string) (*exec.Cmd, map[string]string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], slices.Concat(freePorts, []string{"--data-dir", dir}, args)...)
	cmd.Env = append(os.Environ(), "RUN_THE_COMMAND=1")
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	ready := readyLine.FindStringSubmatch(firstLine(t, stdout))
	if ready == nil {
		t.Fatal("no ready line")
	}
	return cmd, settings(t, ready[1])
}
