package fault_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/fault"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// pipe returns a connection that is subject to faults, and its other end.
func pipe(t *testing.T, in *fault.Injector, protocol string) (server *fault.Conn, client net.Conn) {
	t.Helper()
	client, far := net.Pipe()
	server = in.Conn(far, protocol)
	t.Cleanup(func() { _ = client.Close(); _ = server.Close() })
	return server, client
}

// arrival is what a reader got, and when.
type arrival struct {
	data  string
	after time.Duration
	err   error
}

// arrivals reads in the background until an error.
func arrivals(r io.Reader) <-chan arrival {
	start := time.Now()
	to := make(chan arrival, 100)
	go func() {
		defer close(to)
		for {
			b := make([]byte, 100)
			n, err := r.Read(b)
			to <- arrival{string(b[:n]), time.Since(start), err}
			if err != nil {
				return
			}
		}
	}()
	return to
}

func want(t *testing.T, from <-chan arrival, want arrival) {
	t.Helper()
	got := <-from
	if got.data != want.data || got.after != want.after || !errors.Is(got.err, want.err) {
		t.Errorf("got %q after %v, %v; want %q after %v, %v", got.data, got.after, got.err, want.data, want.after, want.err)
	}
}

func wantNothing(t *testing.T, from <-chan arrival) {
	t.Helper()
	synctest.Wait()
	select {
	case got := <-from:
		t.Errorf("got %q after %v, %v; want nothing yet", got.data, got.after, got.err)
	default:
	}
}

func send(t *testing.T, w io.Writer, data string) {
	t.Helper()
	if n, err := io.WriteString(w, data); n != len(data) || err != nil {
		t.Errorf("%d of %d bytes were sent: %v", n, len(data), err)
	}
}

func TestNoFault(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		in, _ := newInjector(t)
		server, client := pipe(t, in, fault.MQTT)
		atServer, atClient := arrivals(server), arrivals(client)
		send(t, client, "up")
		want(t, atServer, arrival{data: "up"})
		send(t, server, "down")
		want(t, atClient, arrival{data: "down"})
		_ = client.Close()
		want(t, atServer, arrival{err: io.EOF})
	})
}

func TestDelay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		in, _ := newInjector(t)
		server, client := pipe(t, in, fault.MQTT)
		atServer, atClient := arrivals(server), arrivals(client)
		synctest.Wait() // both are reading already
		id := inject(t, in, "delay,latency=1s")
		send(t, client, "one")
		time.Sleep(100 * time.Millisecond)
		send(t, client, "two")
		send(t, server, "three")
		send(t, server, "four") // doesn't wait for the one before
		want(t, atServer, arrival{data: "one", after: time.Second})
		want(t, atServer, arrival{data: "two", after: 1100 * time.Millisecond})
		want(t, atClient, arrival{data: "three", after: 1100 * time.Millisecond})
		want(t, atClient, arrival{data: "four", after: 1100 * time.Millisecond})
		wantHits(t, in, 1)
		in.Remove(id)
		send(t, client, "five")
		want(t, atServer, arrival{data: "five", after: 1100 * time.Millisecond})
		_ = client.Close()
		want(t, atServer, arrival{after: 1100 * time.Millisecond, err: io.EOF})
	})
}

// What a delay holds up goes on when the fault is removed.
func TestDelayEndsWithItsFault(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		in, _ := newInjector(t)
		server, client := pipe(t, in, fault.MQTT)
		atServer, atClient := arrivals(server), arrivals(client)
		synctest.Wait()
		short, long := inject(t, in, "delay,latency=1s"), inject(t, in, "delay,latency=1h")
		send(t, client, "up")
		send(t, server, "down")
		in.Remove(short) // the other one is still there
		time.Sleep(time.Minute)
		wantNothing(t, atServer)
		wantNothing(t, atClient)
		in.Remove(long)
		want(t, atServer, arrival{data: "up", after: time.Minute})
		want(t, atClient, arrival{data: "down", after: time.Minute})
	})
}

func TestJitterKeepsTheOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		in, _ := newInjector(t)
		inject(t, in, "delay,latency=100ms,jitter=1s,seed=3")
		server, client := pipe(t, in, fault.MQTT)
		atServer := arrivals(server)
		var last time.Duration
		different := false
		for i := range 20 {
			text := strings.Repeat("x", i+1)
			send(t, client, text)
			got := <-atServer
			if got.data != text {
				t.Fatalf("got %q, want %q", got.data, text)
			}
			delay := got.after - last
			if delay < 100*time.Millisecond || delay > 1100*time.Millisecond {
				t.Errorf("came after %v", delay)
			}
			different = different || delay != 100*time.Millisecond
			last = got.after
		}
		if !different {
			t.Error("there is no jitter")
		}
	})
}

func TestDelayDeliversBeforeClosing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		in, _ := newInjector(t)
		inject(t, in, "delay,latency=1s")
		server, client := pipe(t, in, fault.MQTT)
		atClient := arrivals(client)
		send(t, server, "bye")
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		want(t, atClient, arrival{data: "bye", after: time.Second})
		want(t, atClient, arrival{after: time.Second, err: io.EOF})
		if _, err := server.Write(nil); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write after Close: %v", err)
		}
		if _, err := server.Read(nil); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read after Close: %v", err)
		}
	})
}

func TestHalfOpen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		in, _ := newInjector(t)
		server, client := pipe(t, in, fault.AMQP)
		atServer, atClient := arrivals(server), arrivals(client)
		synctest.Wait()
		inject(t, in, "half-open,protocol=amqp,duration=1m")
		send(t, client, "up")
		send(t, server, "down") // as into the buffer of a socket
		time.Sleep(59 * time.Second)
		wantNothing(t, atServer)
		wantNothing(t, atClient)
		time.Sleep(time.Second)
		want(t, atServer, arrival{data: "up", after: time.Minute})
		want(t, atClient, arrival{data: "down", after: time.Minute})
		send(t, client, "again")
		want(t, atServer, arrival{data: "again", after: time.Minute})
		wantNone(t, in)
	})
}

func TestHalfOpenHidesTheEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		in, _ := newInjector(t)
		id := inject(t, in, "half-open,after=1s")
		server, client := pipe(t, in, fault.AMQP)
		atClient := arrivals(client)
		time.Sleep(2 * time.Second)
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Hour)
		wantNothing(t, atClient)
		in.Remove(id)
		want(t, atClient, arrival{after: time.Hour + 2*time.Second, err: io.EOF})

		id = inject(t, in, "half-open")
		server, client = pipe(t, in, fault.AMQP)
		atServer := arrivals(server)
		synctest.Wait()
		_ = client.Close()
		time.Sleep(time.Hour)
		wantNothing(t, atServer)
		in.Remove(id)
		want(t, atServer, arrival{after: time.Hour, err: io.EOF})
	})
}

func TestDeadlinesHoldInSpiteOfFaults(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		in, _ := newInjector(t)
		server, client := pipe(t, in, fault.MQTT)
		if err := server.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		atServer := arrivals(server)
		synctest.Wait()
		inject(t, in, "half-open")
		send(t, client, "held")
		want(t, atServer, arrival{after: 10 * time.Second, err: os.ErrDeadlineExceeded})
		if _, err := server.Write([]byte("late")); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("write: %v", err)
		}
		// A new deadline wakes who waits already.
		if err := server.SetReadDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		atServer = arrivals(server)
		synctest.Wait()
		if err := server.SetReadDeadline(time.Now()); err != nil {
			t.Fatal(err)
		}
		want(t, atServer, arrival{err: os.ErrDeadlineExceeded})
		if err := server.SetDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		in.Clear()
		want(t, arrivals(server), arrival{data: "held"}) // nothing is lost
	})
}

func TestWritersWaitWhenMuchIsHeldUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		in, _ := newInjector(t)
		inject(t, in, "half-open")
		server, client := pipe(t, in, fault.MQTT)
		piece := bytes.Repeat([]byte("x"), 10<<10)
		written := 0
		if err := server.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		for {
			n, err := server.Write(piece)
			written += n
			if err != nil {
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Error(err)
				}
				break
			}
		}
		if written < 50<<10 || written > 64<<10 {
			t.Errorf("%d bytes were taken", written)
		}
		in.Clear()
		if _, err := io.ReadFull(client, make([]byte, written)); err != nil {
			t.Error(err)
		}
	})
}

func TestCutAfterBytes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		in, _ := newInjector(t)
		inject(t, in, "cut,bytes=10,count=1")
		server, client := pipe(t, in, fault.MQTT)
		atServer, atClient := arrivals(server), arrivals(client)
		send(t, client, "1234")
		want(t, atServer, arrival{data: "1234"})
		wantHits(t, in, 0)
		send(t, server, "56789abcd")
		want(t, atClient, arrival{data: "56789a"})
		want(t, atClient, arrival{err: io.EOF}) // all that a pipe knows
		want(t, atServer, arrival{err: syscall.ECONNRESET})
		if _, err := server.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("write: %v", err)
		}
		_ = server.Close()
		synctest.Wait()
		wantNone(t, in) // it was for one connection
	})
}

func TestCutWhileReading(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		in, _ := newInjector(t)
		inject(t, in, "cut,bytes=5")
		server, client := pipe(t, in, fault.MQTT)
		atServer := arrivals(server)
		_, _ = client.Write([]byte("1234567"))
		synctest.Wait()
		wantHits(t, in, 1)
		for got := range atServer {
			if got.err != nil && !errors.Is(got.err, syscall.ECONNRESET) {
				t.Error(got.err)
			}
		}
	})
}

func TestCutAfterATime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		in, _ := newInjector(t)
		server, _ := pipe(t, in, fault.MQTT)
		atServer := arrivals(server)
		inject(t, in, "cut,device=sensor-*,after=10s")
		time.Sleep(5 * time.Second)
		wantNothing(t, atServer) // nobody knows whose it is
		server.SetPeer(hub.Target{DeviceID: "lamp"})
		time.Sleep(time.Minute)
		wantNothing(t, atServer)
		server.SetPeer(hub.Target{DeviceID: "sensor-1", ModuleID: "m"})
		time.Sleep(5 * time.Second)
		wantNothing(t, atServer)
		want(t, atServer, arrival{after: 75 * time.Second, err: syscall.ECONNRESET})
		wantHits(t, in, 1)
	})
}

func TestSelectionOfConnections(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		fault string
		known func(*fault.Conn)
		cut   bool
	}{
		"all":              {"cut", func(*fault.Conn) {}, true},
		"protocol":         {"cut,protocol=https", func(*fault.Conn) {}, true},
		"another protocol": {"cut,protocol=mqtt", func(*fault.Conn) {}, false},
		"protocol within a WebSocket": {"cut,protocol=mqtt", func(c *fault.Conn) {
			c.SetProtocol(fault.MQTT)
		}, true},
		"device":         {"cut,device=a*", func(c *fault.Conn) { c.SetPeer(hub.Target{DeviceID: "abc"}) }, true},
		"another device": {"cut,device=a*", func(c *fault.Conn) { c.SetPeer(hub.Target{DeviceID: "bcd"}) }, false},
		"one of several": {"cut,device=a*", func(c *fault.Conn) {
			c.SetPeer(hub.Target{DeviceID: "bcd"})
			c.SetPeer(hub.Target{DeviceID: "abc"})
		}, true},
		"entity":                   {"cut,entity=QUEUE", func(c *fault.Conn) { c.SetEntity("queue") }, true},
		"another entity":           {"cut,entity=queue", func(c *fault.Conn) { c.SetEntity("topic") }, false},
		"device and protocol":      {"cut,device=*,protocol=https", func(c *fault.Conn) { c.SetPeer(hub.Target{DeviceID: "d"}) }, true},
		"device, not the protocol": {"cut,device=*,protocol=amqp", func(c *fault.Conn) { c.SetPeer(hub.Target{DeviceID: "d"}) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, before := range []bool{true, false} {
				synctest.Test(t, func(t *testing.T) {
					in, _ := newInjector(t)
					if before {
						inject(t, in, tc.fault)
					}
					server, _ := pipe(t, in, fault.HTTPS)
					tc.known(server)
					if !before {
						inject(t, in, tc.fault)
					}
					err := server.SetDeadline(time.Now().Add(time.Second))
					if err == nil {
						_, err = server.Read(make([]byte, 1))
					}
					if cut := !errors.Is(err, os.ErrDeadlineExceeded); cut != tc.cut {
						t.Errorf("fault before the connection: %v, cut: %v", before, cut)
					}
				})
			}
		})
	}
}

func TestCountOfConnections(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		in, _ := newInjector(t)
		inject(t, in, "delay,latency=1s,count=2")
		slow := 0
		var first *fault.Conn
		for range 5 {
			server, client := pipe(t, in, fault.MQTT)
			if first == nil {
				first = server
			}
			atServer := arrivals(server)
			go func() { _, _ = client.Write([]byte("x")) }()
			if got := <-atServer; got.after == time.Second {
				slow++
			}
		}
		if slow != 2 {
			t.Errorf("%d of 5 are slow, want 2", slow)
		}
		wantHits(t, in, 2)
		_ = first.Close()
		synctest.Wait()
		wantHits(t, in, 2) // there is another one
		in.Clear()
	})
}

func TestProbabilityOfConnections(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		in, _ := newInjector(t)
		inject(t, in, "half-open,probability=0.5,seed=1")
		for range 200 {
			server, _ := pipe(t, in, fault.MQTT)
			server.SetPeer(hub.Target{DeviceID: "d"}) // no second choice
		}
		if n := in.Active()[0].Hits; n < 70 || n > 130 {
			t.Errorf("%d of 200 were hit", n)
		}
	})
}

// What real sockets see.
func TestSockets(t *testing.T) {
	t.Parallel()
	in, _ := newInjector(t)
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := in.Listener(inner, fault.MQTT)
	var serving sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); serving.Wait() })
	serving.Go(func() { // echoes
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer nc.Close()
				_, _ = io.Copy(struct{ io.Writer }{nc}, nc)
			})
		}
	})
	dial := func() net.Conn {
		t.Helper()
		nc, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = nc.Close() })
		_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
		return nc
	}
	echoed := func(nc net.Conn, text string) error {
		if _, err := io.WriteString(nc, text); err != nil {
			return err
		}
		_, err := io.ReadFull(nc, make([]byte, len(text)))
		return err
	}
	nc := dial()
	if err := echoed(nc, "hello"); err != nil {
		t.Fatal(err)
	}
	id := inject(t, in, "delay,latency=1ms")
	if err := echoed(nc, strings.Repeat("x", 300<<10)); err != nil {
		t.Error(err)
	}
	in.Remove(id)
	id = inject(t, in, "cut")
	if err := echoed(nc, "hello"); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("cut: %v", err)
	}
	if another, err := net.Dial("tcp", inner.Addr().String()); err == nil { // it may be cut as early as that
		if err := echoed(another, "hello"); err == nil {
			t.Error("a new connection isn't cut")
		}
		_ = another.Close()
	}
	in.Remove(id)
	if err := echoed(dial(), "hello"); err != nil {
		t.Error(err)
	}
	// What is half open is closed at last.
	nc = dial()
	if err := echoed(nc, "hello"); err != nil {
		t.Fatal(err)
	}
	inject(t, in, "half-open")
	in.Close()
	if _, err := nc.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after Close: %v", err)
	}
}

func BenchmarkConn(b *testing.B) {
	in := fault.New(&subject{}, nil)
	defer in.Close()
	c := in.Conn(discard{}, fault.MQTT)
	buf := make([]byte, 100)
	b.ReportAllocs()
	for b.Loop() {
		_, _ = c.Write(buf)
		_, _ = c.Read(buf)
	}
}

func BenchmarkAdmit(b *testing.B) {
	in := fault.New(&subject{}, nil)
	defer in.Close()
	b.ReportAllocs()
	for b.Loop() {
		_ = in.Admit(hub.OpD2C, hub.Target{DeviceID: "d"}, 100)
	}
}

// discard is a connection that does nothing.
type discard struct{ net.Conn }

func (discard) Read(b []byte) (int, error)  { return len(b), nil }
func (discard) Write(b []byte) (int, error) { return len(b), nil }
func (discard) Close() error                { return nil }
