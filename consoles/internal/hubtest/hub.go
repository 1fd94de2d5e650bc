// Package hubtest is a stand-in for a hub's MQTT side in tests: it accepts connections over TLS, answers what must be
// answered, shows the test every packet and sends what the test wants, also what a healthy hub never would.
package hubtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// Host is the hub's host name, which its certificate is for.
const Host = "hub.test"

// patience bounds every wait of a test.
const patience = 20 * time.Second

// Hub is a running stand-in. It stops when the test ends.
type Hub struct {
	// Address is where it listens, as host:port.
	Address string
	// Roots holds the certificate authority, CAFile is the same as a file.
	Roots  *x509.CertPool
	CAFile string

	listener net.Listener
	packets  chan packets.ControlPacket
	done     chan struct{}
	running  sync.WaitGroup

	mu     sync.Mutex
	refuse byte     // guarded by mu; the CONNACK code for new connections
	mute   bool     // guarded by mu; PUBLISH is not acknowledged
	conn   net.Conn // guarded by mu; the newest connection
}

// Start starts a hub on a free port of the loopback interface.
func Start(t *testing.T) *Hub {
	t.Helper()
	certificate, ca := newCertificate(t)
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{certificate}})
	if err != nil {
		t.Fatal(err)
	}
	h := &Hub{
		Address: listener.Addr().String(), Roots: x509.NewCertPool(), CAFile: filepath.Join(t.TempDir(), "ca.pem"),
		listener: listener, packets: make(chan packets.ControlPacket, 100), done: make(chan struct{}),
	}
	h.Roots.AppendCertsFromPEM(ca)
	if err := os.WriteFile(h.CAFile, ca, 0o600); err != nil {
		t.Fatal(err)
	}
	h.running.Go(h.accept)
	t.Cleanup(h.stop)
	return h
}

func newCertificate(t *testing.T) (certificate tls.Certificate, ca []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: Host}, DNSNames: []string{Host},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// ConnectionString returns a connection string of the device for this hub.
func (h *Hub) ConnectionString(deviceID string) string {
	return "HostName=" + Host + ";DeviceId=" + deviceID + ";SharedAccessKey=c2VjcmV0LWRldmljZS1rZXk="
}

// Refuse makes the hub answer new connections with the CONNACK code; 0 accepts them again.
func (h *Hub) Refuse(code byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refuse = code
}

// Mute makes the hub take messages without acknowledging them, or acknowledge again those that come from now on.
func (h *Hub) Mute(on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mute = on
}

// Drop cuts the newest connection.
func (h *Hub) Drop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.conn != nil {
		_ = h.conn.Close() // the goroutine that serves it notices
	}
}

// Send sends a message to the device at the quality of service 1.
func (h *Hub) Send(t *testing.T, topic, payload string, id uint16) {
	t.Helper()
	publish := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	publish.TopicName, publish.Payload, publish.Qos, publish.MessageID = topic, []byte(payload), 1, id
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.conn == nil {
		t.Fatal("no device is connected")
	}
	if err := publish.Write(h.conn); err != nil {
		t.Fatal(err)
	}
}

// Wait returns the next packet of type P from a device, and drops others before it.
func Wait[P packets.ControlPacket](t *testing.T, h *Hub) P {
	t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case got := <-h.packets:
			if p, ok := got.(P); ok {
				return p
			}
		case <-timeout:
			var want P
			t.Fatalf("no %T came", want)
		}
	}
}

func (h *Hub) accept() {
	for {
		conn, err := h.listener.Accept()
		if err != nil {
			return // closed
		}
		h.running.Go(func() { h.serve(conn) })
	}
}

func (h *Hub) serve(conn net.Conn) {
	defer conn.Close()
	for {
		packet, err := packets.ReadPacket(conn)
		if err != nil {
			return
		}
		h.answer(conn, packet)
		select {
		case h.packets <- packet:
		case <-h.done:
			return
		}
	}
}

func (h *Hub) answer(conn net.Conn, packet packets.ControlPacket) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var answer packets.ControlPacket
	switch p := packet.(type) {
	case *packets.ConnectPacket:
		connack := packets.NewControlPacket(packets.Connack).(*packets.ConnackPacket)
		connack.ReturnCode = h.refuse
		answer, h.conn = connack, conn
	case *packets.SubscribePacket:
		suback := packets.NewControlPacket(packets.Suback).(*packets.SubackPacket)
		suback.MessageID, suback.ReturnCodes = p.MessageID, p.Qoss
		answer = suback
	case *packets.PublishPacket:
		if p.Qos == 0 || h.mute {
			return
		}
		puback := packets.NewControlPacket(packets.Puback).(*packets.PubackPacket)
		puback.MessageID = p.MessageID
		answer = puback
	case *packets.PingreqPacket:
		answer = packets.NewControlPacket(packets.Pingresp)
	default:
		return
	}
	_ = answer.Write(conn) // a connection that is gone ends with its next read
}

func (h *Hub) stop() {
	close(h.done)
	_ = h.listener.Close()
	h.Drop()
	h.running.Wait()
}

// SeenUntilPublish reports whether a packet of type P came before the next message of a device.
func SeenUntilPublish[P packets.ControlPacket](t *testing.T, h *Hub) bool {
	t.Helper()
	seen := false
	for {
		got := Wait[packets.ControlPacket](t, h)
		if _, ok := got.(P); ok {
			seen = true
		}
		if _, ok := got.(*packets.PublishPacket); ok {
			return seen
		}
	}
}
