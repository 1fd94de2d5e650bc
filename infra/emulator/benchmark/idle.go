package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"time"

	"github.com/Azure/go-amqp"
	"github.com/eclipse/paho.mqtt.golang/packets"
	"golang.org/x/sync/errgroup"
)

// idleResult is the memory of an emulator with idle connections.
type idleResult struct {
	Devices int   `json:"devices"`
	Links   int   `json:"links"`
	Before  int64 `json:"bytesBefore"`
	Bytes   int64 `json:"bytes"`
	Peak    int64 `json:"peakBytes"`
}

func (r *idleResult) print(w io.Writer) error {
	const mib = 1 << 20
	_, err := fmt.Fprintf(w, "idle: %d devices over TLS and %d AMQP links: %d MiB in memory, %d MiB at most (%d MiB before they connected, %d bytes a device)\n",
		r.Devices, r.Links, r.Bytes/mib, r.Peak/mib, r.Before/mib, (r.Bytes-r.Before)/int64(max(r.Devices, 1)))
	return err
}

// linksPerConnection is how many links share a connection.
const linksPerConnection = 10

// measureIdle connects devices and links that then do nothing, and reads how
// much memory the emulator has.
func measureIdle(ctx context.Context, program string, devices, links int) (res idleResult, err error) {
	res = idleResult{Devices: devices, Links: links}
	dir, err := os.MkdirTemp("", "emulator-benchmark-")
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	e, err := startEmulator(ctx, program, dir, false)
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, e.stop()) }()
	if err := e.register(ctx, devices); err != nil {
		return res, err
	}
	before, err := e.usage()
	if err != nil {
		return res, err
	}
	res.Before = before.rss
	closeDevices, err := e.mqtt.connectIdle(ctx, devices)
	defer closeDevices()
	if err != nil {
		return res, err
	}
	closeLinks, err := e.amqp.openLinks(ctx, links)
	defer closeLinks()
	if err != nil {
		return res, err
	}
	after, err := e.usage()
	res.Bytes, res.Peak = after.rss, after.peak
	return res, err
}

// connectIdle connects devices. They come from several addresses, each of which
// has ports of its own.
func (a mqttAccess) connectIdle(ctx context.Context, n int) (closeAll func(), err error) {
	conns := make([]net.Conn, n)
	closeAll = func() {
		for _, nc := range conns {
			if nc != nil {
				nc.Close()
			}
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(4 * runtime.NumCPU())
	for i := range n {
		group.Go(func() error {
			nc, err := a.connectOne(ctx, i)
			conns[i] = nc
			return err
		})
	}
	return closeAll, group.Wait()
}

// devicesPerAddress is well below the number of ephemeral ports of an address.
const devicesPerAddress = 5000

func (a mqttAccess) connectOne(ctx context.Context, i int) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, clientTimeout)
	defer cancel()
	dialer := tls.Dialer{NetDialer: &net.Dialer{}, Config: a.tls}
	if runtime.GOOS == "linux" { // where all of 127.0.0.0/8 is this machine
		dialer.NetDialer.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+i/devicesPerAddress))}
	}
	nc, err := dialer.DialContext(ctx, "tcp", a.addr)
	if err != nil {
		return nil, fmt.Errorf("device %d: %w", i, err)
	}
	if err := a.greet(nc, deviceID(i)); err != nil {
		return nil, errors.Join(fmt.Errorf("device %d: %w", i, err), nc.Close())
	}
	return nc, nil
}

// greet exchanges CONNECT and CONNACK.
func (a mqttAccess) greet(nc net.Conn, id string) error {
	p := packets.NewControlPacket(packets.Connect).(*packets.ConnectPacket)
	p.ProtocolName, p.ProtocolVersion = "MQTT", 4
	p.ClientIdentifier, p.CleanSession = id, true
	p.Keepalive = uint16((20 * time.Minute).Seconds())
	user, password := a.login(id)
	p.UsernameFlag, p.Username = true, user
	p.PasswordFlag, p.Password = true, []byte(password)
	if err := nc.SetDeadline(time.Now().Add(clientTimeout)); err != nil {
		return err
	}
	if err := p.Write(nc); err != nil {
		return err
	}
	answer, err := packets.ReadPacket(nc)
	if err != nil {
		return err
	}
	if ack, ok := answer.(*packets.ConnackPacket); !ok || ack.ReturnCode != packets.Accepted {
		return fmt.Errorf("CONNECT was answered with %v", answer)
	}
	return nil
}

// openLinks opens links, half of them to send and half to receive.
func (a amqpAccess) openLinks(ctx context.Context, n int) (closeAll func(), err error) {
	var conns []*amqp.Conn
	closeAll = func() {
		for _, c := range conns {
			c.Close()
		}
	}
	var session *amqp.Session
	for i := range n {
		if i%linksPerConnection == 0 {
			var conn *amqp.Conn
			if conn, session, err = a.dial(ctx); err != nil {
				return closeAll, fmt.Errorf("connection of link %d: %w", i, err)
			}
			conns = append(conns, conn)
		}
		if i%2 == 0 {
			_, err = session.NewSender(ctx, a.queue, nil)
		} else {
			_, err = session.NewReceiver(ctx, a.queue, &amqp.ReceiverOptions{Credit: 10})
		}
		if err != nil {
			return closeAll, fmt.Errorf("link %d: %w", i, err)
		}
	}
	return closeAll, nil
}
