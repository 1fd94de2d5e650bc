package emulator_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"github.com/hubjobs/hubjobs/infra/emulator"
	"github.com/hubjobs/hubjobs/infra/emulator/emulatortest"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/x509test"
)

// Devices with certificates of the authorities that the options and the
// configuration name are let in, over TLS and over WebSockets.
func TestDevicesWithCertificates(t *testing.T) {
	t.Parallel()
	authority := func() *tls.Certificate { return x509test.Issue(t, "devices", nil, x509test.AsCA) }
	inOptions, inFile, unknown := authority(), authority(), authority()
	file := filepath.Join(t.TempDir(), "devices.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: inFile.Leaf.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := emulator.DefaultConfig()
	cfg.Hub.DeviceCertificateAuthorities = []string{file}
	e := emulatortest.Start(t, emulatortest.Config(cfg), func(o *emulator.Options) {
		o.DeviceCAs = x509.NewCertPool()
		o.DeviceCAs.AddCert(inOptions.Leaf)
	})
	const id = "sensor"
	body := map[string]any{"deviceId": id, "authentication": map[string]any{"type": "certificateAuthority"}}
	check(t, "create", call(t, e, serviceToken(t, e.HubConnectionString()), http.MethodPut, "/devices/"+id, body, nil), http.StatusOK)
	for name, a := range map[string]*tls.Certificate{"of the options": inOptions, "of the configuration": inFile, "unknown": unknown} {
		for _, server := range []string{"tls://" + e.MQTTSAddr(), "wss://" + e.HTTPSAddr() + "/$iothub/websocket"} {
			config := tlsConfig(t, e)
			config.Certificates = []tls.Certificate{*x509test.Issue(t, id, a, x509test.ForClients)}
			opts := paho(t, e, id, "").SetPassword("").SetTLSConfig(config)
			opts.Servers = nil
			client := mqtt.NewClient(opts.AddBroker(server))
			connecting := client.Connect()
			if !connecting.WaitTimeout(testTimeout) {
				t.Fatal("no answer")
			}
			if err := connecting.Error(); (err == nil) != (name != "unknown") {
				t.Errorf("%s, authority %s: %v", server, name, err)
			}
			if connecting.Error() == nil {
				publish(t, client, id, "", "hello")
			}
			client.Disconnect(0)
		}
	}
}
