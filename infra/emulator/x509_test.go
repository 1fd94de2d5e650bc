package emulator_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"github.com/hubjobs/hubjobs/infra/emulator"
	"github.com/hubjobs/hubjobs/infra/emulator/emulatortest"
)

// authority signs certificates of devices.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "devices"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	return authority{sign(t, template, template, key, key), key}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sign(t *testing.T, template, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// device returns a certificate for a device, and its key.
func (a authority) device(t *testing.T, id string) tls.Certificate {
	t.Helper()
	key := newKey(t)
	cert := sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: id},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, a.cert, key, a.key)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

func (a authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// Devices with certificates of the authorities that the options and the
// configuration name are let in, over TLS and over WebSockets.
func TestDevicesWithCertificates(t *testing.T) {
	t.Parallel()
	inOptions, inFile, unknown := newAuthority(t), newAuthority(t), newAuthority(t)
	file := filepath.Join(t.TempDir(), "devices.pem")
	if err := os.WriteFile(file, inFile.pem(), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := emulator.DefaultConfig()
	cfg.Hub.DeviceCertificateAuthorities = []string{file}
	e := emulatortest.Start(t, emulatortest.Config(cfg), func(o *emulator.Options) {
		o.DeviceCAs = x509.NewCertPool()
		o.DeviceCAs.AddCert(inOptions.cert)
	})
	const id = "sensor"
	body := map[string]any{"deviceId": id, "authentication": map[string]any{"type": "certificateAuthority"}}
	check(t, "create", call(t, e, serviceToken(t, e.HubConnectionString()), http.MethodPut, "/devices/"+id, body, nil), http.StatusOK)
	for name, a := range map[string]authority{"of the options": inOptions, "of the configuration": inFile, "unknown": unknown} {
		for _, server := range []string{"tls://" + e.MQTTSAddr(), "wss://" + e.HTTPSAddr() + "/$iothub/websocket"} {
			config := tlsConfig(t, e)
			config.Certificates = []tls.Certificate{a.device(t, id)}
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
