package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// entities are what the emulator is given: a queue, and no route, so that
// device-to-cloud messages go to the built-in endpoint.
const entities = `UserConfig:
  Namespaces:
    - Name: local
      Queues:
        - Name: benchmark
Hub:
  FallbackRoute: true
`

// deviceKey is the key of all devices.
var deviceKey = []byte("0123456789abcdef0123456789abcdef")

// emulatorServer is a running emulator, with what its other uses need.
type emulatorServer struct {
	*server
	hub   string
	https string
	owner string // key of the policy iothubowner
	tls   *tls.Config
}

// buildEmulator compiles the emulator.
func buildEmulator(ctx context.Context, dir string) (string, error) {
	path := filepath.Join(dir, "iothub-emulator")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", path, "github.com/hubjobs/hubjobs/infra/emulator/cmd/iothub-emulator")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the emulator: %w: %s", err, bytes.TrimSpace(out))
	}
	return path, nil
}

var envFile = regexp.MustCompile(`\S*emulator\.env`)

// startEmulator starts the program with the entities, and in a data directory if
// onDisk.
func startEmulator(ctx context.Context, program, dir string, onDisk bool) (*emulatorServer, error) {
	config := filepath.Join(dir, "entities.yaml")
	if err := os.WriteFile(config, []byte(entities), 0o600); err != nil {
		return nil, err
	}
	args := []string{"--config", config, "--log-level", "error"}
	for _, flag := range []string{"--amqp-addr", "--amqps-addr", "--mqtts-addr", "--https-addr"} {
		args = append(args, flag, "127.0.0.1:0")
	}
	if onDisk {
		args = append(args, "--data-dir", filepath.Join(dir, "data"))
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "TMPDIR="+dir) // for the settings, without a data directory
	p, err := start(cmd)
	if err != nil {
		return nil, err
	}
	env, err := readEnv(ctx, p)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start the emulator: %w", err), p.stop())
	}
	e, err := newEmulatorServer(p, env)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("settings of the emulator: %w", err), p.stop())
	}
	return e, nil
}

// readEnv waits until the process names the file with the settings, and reads it.
func readEnv(ctx context.Context, p *process) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	retry := time.NewTicker(10 * time.Millisecond)
	defer retry.Stop()
	for {
		if file := envFile.FindString(p.output.String()); file != "" {
			return parseEnv(file)
		}
		select {
		case <-retry.C:
		case <-p.ended:
			return nil, fmt.Errorf("it ended: %s", p.output.String())
		case <-ctx.Done():
			return nil, fmt.Errorf("it says nothing of its settings: %w: %s", ctx.Err(), p.output.String())
		}
	}
}

func parseEnv(file string) (map[string]string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	env := make(map[string]string)
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		env[name] = value
	}
	return env, nil
}

// connectionString reads the parts of one.
func connectionString(text string) map[string]string {
	parts := make(map[string]string)
	for part := range strings.SplitSeq(text, ";") {
		name, value, _ := strings.Cut(part, "=")
		parts[name] = value
	}
	return parts
}

func newEmulatorServer(p *process, env map[string]string) (*emulatorServer, error) {
	pem, err := os.ReadFile(env["EMULATOR_CA_FILE"])
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, errors.New("no certificate in EMULATOR_CA_FILE")
	}
	hub, bus := connectionString(env["IOTHUB_CONNECTION_STRING"]), connectionString(env["SERVICEBUS_CONNECTION_STRING"])
	e := &emulatorServer{
		hub:   hub["HostName"],
		https: "https://" + env["EMULATOR_HTTPS_ADDR"],
		owner: hub["SharedAccessKey"],
		tls:   &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
	}
	e.server = &server{
		name:    "emulator",
		process: p,
		mqtt:    mqttAccess{addr: env["EMULATOR_MQTTS_ADDR"], tls: e.tls, login: e.login},
		amqp: amqpAccess{
			addr:     env["EMULATOR_AMQP_ADDR"],
			user:     bus["SharedAccessKeyName"],
			password: bus["SharedAccessKey"],
			queue:    "benchmark",
		},
	}
	return e, nil
}

func (e *emulatorServer) login(device string) (user, password string) {
	resource := url.QueryEscape(e.hub + "/devices/" + device)
	return e.hub + "/" + device + "/?api-version=2021-04-12", signature(resource, deviceKey, "")
}

// signature makes a shared access signature (IoT Hub docs: "Control access to
// IoT Hub by using shared access signatures").
func signature(resource string, key []byte, policy string) string {
	expiry := fmt.Sprint(time.Now().Add(time.Hour).Unix())
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(resource + "\n" + expiry))
	sig := url.QueryEscape(base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	token := "SharedAccessSignature sr=" + resource + "&sig=" + sig + "&se=" + expiry
	if policy != "" {
		token += "&skn=" + policy
	}
	return token
}

func deviceID(i int) string { return fmt.Sprintf("benchmark-%05d", i) }

// register creates the first n devices.
func (e *emulatorServer) register(ctx context.Context, n int) error {
	key, err := base64.StdEncoding.DecodeString(e.owner)
	if err != nil {
		return err
	}
	token := signature(url.QueryEscape(e.hub), key, "iothubowner")
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: e.tls, MaxIdleConnsPerHost: registrars}}
	defer client.CloseIdleConnections()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(registrars)
	for i := range n {
		group.Go(func() error { return e.createDevice(ctx, client, token, deviceID(i)) })
	}
	return group.Wait()
}

// registrars is how many devices are registered at a time.
const registrars = 8

func (e *emulatorServer) createDevice(ctx context.Context, client *http.Client, token, id string) error {
	key := base64.StdEncoding.EncodeToString(deviceKey)
	body := fmt.Sprintf(`{"deviceId":%q,"status":"enabled","authentication":{"type":"sas","symmetricKey":{"primaryKey":%q,"secondaryKey":%[2]q}}}`, id, key)
	target := e.https + "/devices/" + id + "?api-version=2021-04-12"
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, target, strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", token)
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	text, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return err
	}
	if resp.StatusCode >= http.StatusMultipleChoices {
		return fmt.Errorf("create device %s: %s: %s", id, resp.Status, text)
	}
	return nil
}
