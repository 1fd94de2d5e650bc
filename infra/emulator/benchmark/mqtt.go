package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"golang.org/x/sync/errgroup"
)

// clientTimeout bounds each step of a client.
const clientTimeout = time.Minute

// load is what clients do in one round.
type load struct {
	messages    int // in all
	connections int
	window      int // messages of a connection that wait for their acknowledgement
	payload     []byte
	parked      bool // a subscriber is away, and a broker has to keep messages for it
}

// parkedSubscriber is the client for which a broker keeps messages.
const parkedSubscriber = "benchmark-parked"

func (a mqttAccess) dial(id string, clean bool) (mqtt.Client, error) {
	opts := mqtt.NewClientOptions().
		AddBroker("ssl://" + a.addr).
		SetClientID(id).
		SetCleanSession(clean).
		SetTLSConfig(a.config()).
		SetConnectTimeout(clientTimeout).
		SetAutoReconnect(false).
		SetOrderMatters(false)
	if a.login != nil {
		user, password := a.login(id)
		opts.SetUsername(user).SetPassword(password)
	}
	client := mqtt.NewClient(opts)
	return client, finished(client.Connect())
}

// config has the server's address as the name that is verified.
func (a mqttAccess) config() *tls.Config { return a.tls.Clone() }

func finished(t mqtt.Token) error {
	if !t.WaitTimeout(clientTimeout) {
		return errors.New("no answer from the broker")
	}
	return t.Error()
}

const disconnectQuiesce = 250 // milliseconds

// publish sends the load's messages at QoS 1 and returns the time from the first
// to the last acknowledgement.
func (a mqttAccess) publish(ctx context.Context, l load) (time.Duration, error) {
	if l.parked && a.keepsNothing {
		if err := a.park(); err != nil {
			return 0, fmt.Errorf("park a subscriber: %w", err)
		}
	}
	clients := make([]mqtt.Client, l.connections)
	for i := range clients {
		var err error
		if clients[i], err = a.dial(deviceID(i), true); err != nil {
			return 0, fmt.Errorf("connect device %d: %w", i, err)
		}
		defer clients[i].Disconnect(disconnectQuiesce)
	}
	group, ctx := errgroup.WithContext(ctx)
	began := time.Now()
	for i, c := range clients {
		topic := "devices/" + deviceID(i) + "/messages/events/"
		group.Go(func() error { return publishAll(ctx, c, topic, l) })
	}
	err := group.Wait()
	return time.Since(began), err
}

// publishAll keeps a window of messages under way on one connection.
func publishAll(ctx context.Context, c mqtt.Client, topic string, l load) error {
	window := make(chan mqtt.Token, l.window)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(window)
		for range l.messages / l.connections {
			select {
			case window <- c.Publish(topic, 1, false, l.payload):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	group.Go(func() error {
		for token := range window {
			if err := finished(token); err != nil {
				return err
			}
		}
		return nil
	})
	return group.Wait()
}

// park makes the broker forget what it kept, and keep what follows.
func (a mqttAccess) park() error {
	for _, clean := range []bool{true, false} {
		c, err := a.dial(parkedSubscriber, clean)
		if err != nil {
			return err
		}
		if !clean {
			err = finished(c.Subscribe("devices/#", 1, nil))
		}
		c.Disconnect(disconnectQuiesce)
		if err != nil {
			return err
		}
	}
	return nil
}
