package sdks

import (
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator"
)

// feedbackInterval is short, because cases wait for feedback.
const feedbackInterval = 50 * time.Millisecond

// ports are those of the cloud. Most SDKs know no others.
const (
	httpsPort = "443"
	amqpsPort = "5671"
	mqttsPort = "8883"
)

// hub is an emulator and how SDKs find it.
type hub struct {
	*emulator.Emulator
	// host is what SDKs get as the name of hub and namespace.
	host string
	// files is a folder with the certificates of devices.
	files string
	// redirects are where connections to the cloud's ports of host really go, by
	// port; empty if the emulator listens there itself.
	redirects map[string]string
}

// startHub starts an emulator with the ports of the cloud on a loopback address of
// its own. Where the system doesn't allow that, it takes free ports, and the cases
// are told to redirect connections.
func startHub(t *testing.T) hub {
	t.Helper()
	files := t.TempDir()
	authorities := x509.NewCertPool()
	authorities.AddCert(deviceCertificates(t, files).Leaf)
	const attempts = 3 // an address may be taken
	for range attempts {
		ip := fmt.Sprintf("127.%d.%d.%d", 64+rand.IntN(128), rand.IntN(256), 1+rand.IntN(254))
		e, err := start(t, emulator.Options{
			AMQPAddr:  net.JoinHostPort(ip, "0"),
			AMQPSAddr: net.JoinHostPort(ip, amqpsPort),
			MQTTSAddr: net.JoinHostPort(ip, mqttsPort),
			HTTPSAddr: net.JoinHostPort(ip, httpsPort),
			DeviceCAs: authorities,
		})
		if err == nil {
			return hub{Emulator: e, host: ip, files: files}
		}
		if listen := new(emulator.ListenError); !errors.As(err, &listen) {
			t.Fatal(err)
		}
		t.Logf("without the ports of the cloud: %v", err)
		if !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
	}
	e, err := start(t, emulator.Options{DeviceCAs: authorities})
	if err != nil {
		t.Fatal(err)
	}
	return hub{Emulator: e, host: e.HubName(), files: files, redirects: map[string]string{
		httpsPort: e.HTTPSAddr(), amqpsPort: e.AMQPSAddr(), mqttsPort: e.MQTTSAddr(),
	}}
}

func start(t *testing.T, opts emulator.Options) (*emulator.Emulator, error) {
	t.Helper()
	cfg, err := emulator.ReadConfig(filepath.Join("javascript", "emulator.yaml"))
	if err != nil {
		return nil, err
	}
	opts.Config = cfg
	opts.FeedbackInterval = feedbackInterval
	opts.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	e, err := emulator.Start(t.Context(), opts)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Errorf("close emulator: %v", err)
		}
	})
	return e, nil
}

// env is what cases learn of the hub, by the names of emulator.env where there are
// any.
func (h hub) env(t *testing.T) map[string]string {
	t.Helper()
	ca := filepath.Join(h.files, "ca.pem")
	if err := os.WriteFile(ca, h.CAPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	var redirects []string
	for port, addr := range h.redirects {
		redirects = append(redirects, net.JoinHostPort(h.host, port)+"="+addr)
	}
	return map[string]string{
		emulator.EnvHub:                      strings.Replace(h.HubConnectionString(), "HostName="+h.HubName(), "HostName="+h.host, 1),
		emulator.EnvServiceBus:               h.overTLS(h.ServiceBusConnectionString()),
		emulator.EnvEventHub:                 h.overTLS(h.EventsConnectionString()),
		"SERVICEBUS_PLAIN_CONNECTION_STRING": h.ServiceBusConnectionString(),
		"NODE_EXTRA_CA_CERTS":                ca,
		"DEVICE_CERTIFICATES":                h.files,
		"REDIRECTS":                          strings.Join(redirects, ","),
	}
}

// overTLS makes of a connection string for the vendor's emulators one for the
// cloud.
func (h hub) overTLS(text string) string {
	var kept []string
	for part := range strings.SplitSeq(text, ";") {
		switch name, _, _ := strings.Cut(part, "="); name {
		case "Endpoint":
			part = "Endpoint=sb://" + h.host + "/"
		case "UseDevelopmentEmulator":
			continue
		}
		kept = append(kept, part)
	}
	return strings.Join(kept, ";")
}
