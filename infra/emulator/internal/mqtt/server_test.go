package mqtt_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/mqtt"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// faultyListener fails with each error in turn.
type faultyListener struct {
	net.Listener
	mu   sync.Mutex
	errs []error
}

func (l *faultyListener) Accept() (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.errs) == 0 {
		return nil, net.ErrClosed
	}
	err := l.errs[0]
	l.errs = l.errs[1:]
	return nil, err
}

func (l *faultyListener) Close() error { return nil }

func TestServeEndsWithItsListener(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Memory(), nil)
	broken := errors.New("broken")
	passing := &net.OpError{Op: "accept", Err: syscall.EMFILE}
	l := &faultyListener{errs: []error{passing, passing, broken}}
	if err := f.server.Serve(t.Context(), l); !errors.Is(err, broken) || len(l.errs) != 0 {
		t.Errorf("Serve: %v, %d errors left", err, len(l.errs))
	}
}

func TestServeEndsWithItsContext(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Memory(), nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.server.Serve(ctx, l) }()
	nc, err := net.Dial("tcp", l.Addr().String())
	must(t, err)
	c := newClient(t, nc)
	f.login(c)
	cancel()
	if err := <-done; !errors.Is(err, mqtt.ErrServerClosed) {
		t.Errorf("Serve: %v", err)
	}
	c.expectClosed()
	if _, err := net.DialTimeout("tcp", l.Addr().String(), patience); err == nil {
		t.Error("still listening")
	}
}

func TestServeAfterClose(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Memory(), nil)
	f.server.Close()
	f.server.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	if err := f.server.Serve(t.Context(), l); !errors.Is(err, mqtt.ErrServerClosed) {
		t.Errorf("Serve: %v", err)
	}
}

// record is a log that can be read while it is written.
type record struct {
	mu   sync.Mutex
	text strings.Builder
}

func (r *record) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.Write(p)
}

// TestLogs makes sure that a refusal says who and why, and never shows a token.
func TestLogs(t *testing.T) {
	t.Parallel()
	var r record
	log := slog.New(slog.NewTextHandler(&r, &slog.HandlerOptions{Level: slog.LevelDebug}))
	f := newFixture(t, store.Memory(), &mqtt.Options{Logger: log})
	wrong := token(t, hubName, "", "AAAAAAAAAAAAAAAAAAAAAA==", time.Hour)
	f.login(f.pipe(), func(p *packets.ConnectPacket) { p.Password = []byte(wrong) })
	c := f.connected()
	c.publish(1, eventsTopic, "x")
	c.send(packets.NewControlPacket(packets.Disconnect))
	c.expectClosed()
	f.server.Close()
	text := r.text.String()
	for _, want := range []string{deviceID, "not signed with this key", "device disconnected"} {
		if !strings.Contains(text, want) {
			t.Errorf("log lacks %q:\n%s", want, text)
		}
	}
	for _, secret := range []string{"SharedAccessSignature", "sig=", f.key} {
		if strings.Contains(text, secret) {
			t.Errorf("log shows %q:\n%s", secret, text)
		}
	}
}
