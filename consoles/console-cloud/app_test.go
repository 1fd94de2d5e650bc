package main

import (
	"bytes"
	"context"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hubjobs/hubjobs/consoles/internal/settings"
)

const (
	secret           = "c2VjcmV0"
	connectionString = "HostName=example.com;SharedAccessKeyName=service;SharedAccessKey=" + secret // example.com: httptest's certificate
)

func environment(name string) string {
	if name == connectionVariable {
		return connectionString
	}
	return ""
}

// startHub starts the REST interface of a hub with one device, and returns the flags that lead to it.
func startHub(t *testing.T, status int) []string {
	t.Helper()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(status)
		answers := map[string]string{
			"/statistics/devices": `{"totalDeviceCount":1,"enabledDeviceCount":1}`,
			"/statistics/service": `{"connectedDeviceCount":1}`,
			"/devices/query":      `[{"deviceId":"d","connectionState":"Connected","status":"enabled","lastActivityTime":"2026-01-02T12:00:00Z"}]`,
		}
		_, _ = io.WriteString(w, answers[r.URL.Path])
	}))
	t.Cleanup(server.Close)
	file := filepath.Join(t.TempDir(), "ca.pem")
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(file, certificate, 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"--ca-file", file, "--https-addr", server.Listener.Addr().String(), "--amqps-addr", "127.0.0.1:1"}
}

func runWith(ctx context.Context, args ...string) (string, error) {
	var out bytes.Buffer
	err := run(ctx, append([]string{"console-cloud"}, args...), &out, io.Discard, environment)
	return out.String(), err
}

func TestStatsAndDevices(t *testing.T) {
	t.Parallel()
	hub := startHub(t, http.StatusOK)
	tests := map[string]struct {
		args []string
		want string
	}{
		"stats":              {append(hub, "stats"), "1 of 1 devices connected (1 enabled, 0 disabled)\n"},
		"flags before":       {append(hub, "--output", "json", "stats"), `"connectedDeviceCount":1`},
		"flags after":        {append([]string{"stats", "--output", "json"}, hub...), `"connectedDeviceCount":1`},
		"nearest flag":       {append(hub, "--output", "text", "devices", "--output", "json"), `"deviceId":"d"`},
		"devices":            {append(hub, "devices"), "d                                        Connected    enabled  last active 2026-01-02T12:00:00Z"},
		"help names the key": {[]string{"--help"}, connectionVariable},
		"help of a command":  {[]string{"monitor", "-h"}, "--since"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out, err := runWith(t.Context(), test.args...)
			if err != nil || !strings.Contains(out, test.want) {
				t.Errorf("output %q, error %v, want %q", out, err, test.want)
			}
		})
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	hub, refusing := startHub(t, http.StatusOK), startHub(t, http.StatusUnauthorized)
	tests := map[string]struct {
		args []string
		want string
	}{
		"refused":          {append(refusing, "stats"), "refused the credentials"},
		"no certificate":   {[]string{"stats", "--https-addr", hub[3]}, "EMULATOR_CA_FILE"},
		"no AMQP":          {append(hub, "monitor"), "find the event stream"},
		"all in a row":     {hub, "find the event stream"},
		"unknown command":  {[]string{"bogus"}, "unexpected argument"},
		"unknown flag":     {[]string{"stats", "--bogus"}, "bogus"},
		"bad output":       {[]string{"--output", "xml", "stats"}, "output"},
		"bad address":      {[]string{"stats", "--https-addr", "localhost"}, "--https-addr"},
		"bad AMQP address": {[]string{"stats", "--amqps-addr", "localhost"}, "--amqps-addr"},
		"bad since":        {[]string{"monitor", "--since", "x"}, "since"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := runWith(t.Context(), test.args...)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("error %v, want one with %q", err, test.want)
			}
			if strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), secret) {
				t.Errorf("error %q is more than one line or holds a secret", err)
			}
		})
	}
}

func TestConnectionStringIsRequired(t *testing.T) {
	t.Parallel()
	err := run(t.Context(), []string{"console-cloud", "stats"}, io.Discard, io.Discard, func(string) string { return "" })
	if err == nil || !strings.Contains(err.Error(), connectionVariable) {
		t.Errorf("error %v", err)
	}
}

func TestInterruptIsSuccess(t *testing.T) {
	t.Parallel()
	ctx, interrupt := context.WithCancel(t.Context())
	interrupt()
	if _, err := runWith(ctx, append(startHub(t, http.StatusOK), "stats")...); err != nil {
		t.Error(err)
	}
}

func TestReadmeNamesSettings(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []settings.Setting{settingCA, settingHTTPS, settingAMQPS, settingOutput} {
		if !strings.Contains(string(readme), "| `--"+s.Flag+"` | `"+s.Variable+"` |") {
			t.Errorf("README.md has no line for --%s and %s", s.Flag, s.Variable)
		}
	}
}
