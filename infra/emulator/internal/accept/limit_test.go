package accept_test

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/accept"
)

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func dial(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return nc
}

func accepted(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return nc
}

// mustBeClosed waits until the other end has closed a connection.
func mustBeClosed(t *testing.T, nc net.Conn) {
	t.Helper()
	if err := nc.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var timeout net.Error
	if _, err := nc.Read(make([]byte, 1)); err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		t.Errorf("the connection is open: %v", err)
	}
}

func TestConnectionsBeyondTheLimitAreClosed(t *testing.T) {
	t.Parallel()
	var told atomic.Int64
	limit := accept.NewLimit(2, func(n int) { told.Add(int64(n)) })
	inner := listen(t)
	a, b := limit.Listener(inner), limit.Listener(listen(t))
	dial(t, a)
	first := accepted(t, a)
	dial(t, b)
	accepted(t, b)

	turnedAway := []net.Conn{dial(t, a), dial(t, a)}
	next := make(chan net.Conn, 1)
	go func() {
		nc, err := a.Accept()
		if err != nil {
			nc = nil
		}
		next <- nc
	}()
	for _, nc := range turnedAway {
		mustBeClosed(t, nc)
	}
	if told.Load() != 2 || limit.Open() != 2 {
		t.Errorf("told %d, %d connections open", told.Load(), limit.Open())
	}

	for range 2 { // closing twice makes room for one only
		first.Close()
	}
	client := dial(t, a)
	got := <-next
	if got == nil {
		t.Fatal("no connection was accepted after one was closed")
	}
	defer got.Close()
	if _, err := client.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(got, make([]byte, 1)); err != nil {
		t.Errorf("the accepted connection is not the new one: %v", err)
	}
	mustBeClosedNow := dial(t, a)
	go func() { _, _ = a.Accept() }() // ends with the listener
	mustBeClosed(t, mustBeClosedNow)
}
