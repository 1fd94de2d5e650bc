package mqtt_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/mqtt"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/sas"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// newBench is a fixture whose telemetry goes to the built-in endpoint alone,
// which drops what is old, on a TCP address without TLS.
func newBench(b *testing.B) (*fixture, string) {
	b.Helper()
	s := store.Memory()
	events, err := broker.OpenEventLog(s, hubName, broker.EventLogOptions{Partitions: 1})
	must(b, err)
	b.Cleanup(events.Close)
	h, err := hub.Open(s, hub.Options{Name: hubName, Events: events, FallbackRoute: true})
	must(b, err)
	b.Cleanup(h.Close)
	f := &fixture{t: b, hub: h}
	f.key = f.addDevice(deviceID)
	f.server = mqtt.NewServer(h, &sas.Verifier{Hosts: []string{hubName}, Keys: h}, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(b, err)
	done := make(chan error, 1)
	go func() { done <- f.server.Serve(context.Background(), l) }()
	b.Cleanup(func() {
		f.server.Close()
		<-done
	})
	return f, l.Addr().String()
}

// open connects the device of a packet and waits for the CONNACK.
func open(b *testing.B, addr string, p *packets.ConnectPacket) net.Conn {
	b.Helper()
	nc, err := net.Dial("tcp", addr)
	must(b, err)
	b.Cleanup(func() { nc.Close() })
	must(b, p.Write(nc))
	if ack, ok := readPacket(b, nc).(*packets.ConnackPacket); !ok || ack.ReturnCode != packets.Accepted {
		b.Fatalf("got %v", ack)
	}
	return nc
}

// BenchmarkPublish sends telemetry at QoS 1 with up to 64 messages on their way.
func BenchmarkPublish(b *testing.B) {
	f, addr := newBench(b)
	nc := open(b, addr, f.connectPacket())
	var packet bytes.Buffer
	topic := eventsTopic + "%24.mid=0123456789&%24.ct=application%2Fjson&kind=update&sequence=7"
	must(b, publishPacket(1, 1, topic, fmt.Sprintf("%0256d", 1)).Write(&packet))
	b.ReportAllocs()
	window := make(chan struct{}, 64)
	failed := make(chan error, 1)
	go func() {
		w := bufio.NewWriter(nc)
		for range b.N {
			select {
			case window <- struct{}{}:
			default:
				if err := w.Flush(); err != nil {
					failed <- err
					return
				}
				window <- struct{}{}
			}
			if _, err := w.Write(packet.Bytes()); err != nil {
				failed <- err
				return
			}
		}
		failed <- w.Flush()
	}()
	var ack [4]byte
	r := bufio.NewReader(nc)
	for range b.N {
		if _, err := io.ReadFull(r, ack[:]); err != nil {
			b.Fatal(err)
		}
		<-window
	}
	must(b, <-failed)
}

// BenchmarkIdle measures the memory of a connection that does nothing, without
// TLS and without what belongs to the client.
func BenchmarkIdle(b *testing.B) {
	f, addr := newBench(b)
	const devices = 1000
	logins := make([]*packets.ConnectPacket, devices)
	for i := range logins {
		id := fmt.Sprintf("device-%d", i)
		p := f.connectPacket()
		p.ClientIdentifier, p.Username = id, hubName+"/"+id+"/?api-version=2021-04-12"
		p.Password = []byte(token(b, hubName+"/devices/"+id, "", f.addDevice(id), time.Hour))
		logins[i] = p
	}
	for range b.N {
		before, clients := memory(), make([]net.Conn, devices)
		for i, p := range logins {
			clients[i] = open(b, addr, p)
		}
		b.ReportMetric(float64(memory()-before)/devices, "B/connection")
		for _, nc := range clients {
			nc.Close()
		}
		eventually(b, "all gone", func() bool { return f.hub.ServiceStatistics().Connected == 0 })
	}
}

// memory is what heap and stacks hold after a collection.
func memory() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}
