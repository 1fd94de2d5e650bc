// Package emulator is a local Azure IoT Hub, together with the Service Bus and
// Event Hubs entities that it routes to. It speaks the real protocols, so that
// unmodified SDKs work against it: MQTT, AMQP and HTTPS for devices, REST and AMQP
// for services, and Service Bus and Event Hubs as azservicebus and azeventhubs
// speak them.
//
//	e, err := emulator.Start(ctx, emulator.Options{DataDir: "data"})
//	if err != nil {
//		return err
//	}
//	defer e.Close()
//	fmt.Println(e.HubConnectionString())
//
// In a test, package emulatortest starts one with a single call. Several can run
// in one process. AddDevice registers a device, as clients of the registry can do
// too; Options and Config say what entities there are and where it listens.
//
// Everything that the emulator has accepted survives a kill of the process when
// it has a data directory. Keys are generated, kept there, and checked: a client
// with a wrong key is turned away.
//
// # Limits and faults
//
// A tier in the configuration puts the throttles and the daily quota of such a hub
// into force. InjectFault lets connections break, operations be refused, messages
// come twice, and more.
//
// # What is not there
//
// File upload, conditions of routes, rules of subscriptions, Service Bus sessions
// and Entra ID are not emulated. Where a configuration or a client asks for one, it
// is refused. The README beside this file says what else, and where the emulator is
// kinder than the cloud or stricter: for example, it sees a device's disconnection
// at once, stores a message at all its endpoints or at none, and keeps only the
// newest 32 MiB of a partition.
package emulator

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/accept"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqpnodes"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqpserver"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/devicejobs"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/fault"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/mqtt"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/quota"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/sas"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/tlsca"
)

// Emulator is a running emulator. Its methods are safe for concurrent use.
type Emulator struct {
	opts      Options
	log       *slog.Logger
	store     store.Store
	namespace *broker.Namespace
	hub       *hub.Hub
	jobs      *devicejobs.Runner
	faults    *fault.Injector
	quota     *quota.Gate // nil without a tier
	certs     *tlsca.Bundle
	keys      keyring // of the namespace
	listeners map[string]net.Listener

	cancel    context.CancelFunc // ends what serves
	serving   sync.WaitGroup
	closers   []func() error // in order of opening
	closeOnce sync.Once
	closeErr  error
}

// closeTimeout is how long connections have to end by themselves.
const closeTimeout = 5 * time.Second

// Start starts an emulator, to be closed by the caller. The context bounds the
// start alone. When Start returns, the emulator serves, and emulator.env is
// written. Addresses that can't be listened on give a *ListenError.
func Start(ctx context.Context, opts Options) (*Emulator, error) {
	opts = opts.withDefaults()
	if err := opts.check(); err != nil {
		return nil, err
	}
	e := &Emulator{opts: opts, log: opts.Logger, listeners: make(map[string]net.Listener)}
	for _, step := range []func(context.Context) error{e.openState, e.openCore, e.listen, e.serve, e.announce} {
		err := ctx.Err()
		if err == nil {
			err = step(ctx)
		}
		if err != nil {
			return nil, errors.Join(err, e.Close())
		}
	}
	return e, nil
}

// Close ends all connections and waits until nothing of the emulator runs any
// more. What was accepted is in the data directory.
func (e *Emulator) Close() error {
	e.closeOnce.Do(func() {
		if e.cancel != nil {
			e.cancel()
		}
		var errs []error
		for i := len(e.closers) - 1; i >= 0; i-- {
			errs = append(errs, e.closers[i]())
		}
		e.serving.Wait()
		e.closeErr = errors.Join(errs...)
	})
	return e.closeErr
}

// onClose registers f to be called by Close, in reverse order of registration.
func (e *Emulator) onClose(f func() error) { e.closers = append(e.closers, f) }

func (e *Emulator) openState(context.Context) error {
	e.store = store.Memory()
	if e.opts.DataDir != "" {
		dir, err := filepath.Abs(e.opts.DataDir)
		if err != nil {
			return fmt.Errorf("data directory: %w", err)
		}
		e.opts.DataDir = dir
		if e.store, err = store.Open(dir); err != nil {
			return err
		}
	}
	e.onClose(e.store.Close)
	if e.opts.DataDir != "" {
		// One that was left behind must not look as if this start were over.
		if err := e.removeEnv(); err != nil {
			return fmt.Errorf("remove old %s: %w", EnvFile, err)
		}
	}
	var err error
	if e.certs, err = tlsca.Load(e.opts.DataDir, &tlsca.Options{Names: e.opts.serverNames()}); err != nil {
		return fmt.Errorf("certificates: %w", err)
	}
	e.keys, err = openKeyring(e.store)
	return err
}

func (e *Emulator) openCore(ctx context.Context) error {
	e.namespace = broker.NewNamespace(e.store)
	e.onClose(func() error { e.namespace.Close(); return nil })
	e.faults = fault.New(subject{e}, e.log)
	cfg := e.opts.Config
	if err := cfg.build(e.namespace, e.faults.RepeatEntity); err != nil {
		return err
	}
	opts, err := cfg.hubOptions(e.namespace, e.opts.eventsName())
	if err != nil {
		return err
	}
	if opts.DeviceCAs, err = cfg.deviceCAs(e.opts.DeviceCAs); err != nil {
		return err
	}
	if err := e.openGate(&opts); err != nil {
		return err
	}
	opts.Name = e.opts.HubName
	opts.Logger = e.log
	opts.Feedback.Interval = e.opts.FeedbackInterval
	if e.hub, err = hub.Open(e.store, opts); err != nil {
		return err
	}
	e.onClose(func() error { e.hub.Close(); return nil })
	e.onClose(func() error { e.faults.Close(); return nil })
	if e.jobs, err = devicejobs.Open(ctx, e.store, e.hub, devicejobs.Options{Logger: e.log, MaxActive: cfg.Hub.maxJobs()}); err != nil {
		return err
	}
	e.onClose(func() error { e.jobs.Close(); return nil })
	return nil
}

// openGate makes what stands between the hub and its clients: faults, and the
// limits of a tier.
func (e *Emulator) openGate(opts *hub.Options) error {
	opts.Gate = e.faults
	h := e.opts.Config.Hub
	if h.Tier == "" {
		return nil
	}
	tier, err := quota.ParseTier(h.Tier)
	if err != nil {
		return err
	}
	if e.quota, err = quota.Open(e.store, tier, h.units()); err != nil {
		return err
	}
	opts.Gate, opts.Meter = hub.Gates{e.faults, e.quota}, e.quota
	return nil
}

// DailyMessages returns how many messages count against the daily quota of the
// hub's tier today (UTC), and the quota; both 0 for a hub without a tier.
func (e *Emulator) DailyMessages() (used, limit int64) {
	if e.quota == nil {
		return 0, 0
	}
	return e.quota.Used()
}

func (e *Emulator) listen(ctx context.Context) error {
	var lc net.ListenConfig
	limit := accept.NewLimit(e.opts.MaxConnections, func(n int) {
		e.log.Warn("connections are turned away", "limit", n)
	})
	for _, l := range []struct {
		name, addr, protocol string
		tls                  bool
	}{
		{ListenerAMQP, e.opts.AMQPAddr, fault.AMQP, false},
		{ListenerAMQPS, e.opts.AMQPSAddr, fault.AMQP, true},
		{ListenerMQTTS, e.opts.MQTTSAddr, fault.MQTT, true},
		{ListenerHTTPS, e.opts.HTTPSAddr, fault.HTTPS, true},
		{ListenerControl, e.opts.ControlAddr, "", false},
	} {
		if l.addr == "" {
			continue // there is no control API unless it is asked for
		}
		nl, err := lc.Listen(ctx, "tcp", l.addr)
		if err != nil {
			return &ListenError{Listener: l.name, Addr: l.addr, Err: cause(err)}
		}
		e.onClose(func() error { return ignoreClosed(nl.Close()) })
		if l.protocol != "" {
			nl = e.faults.Listener(limit.Listener(nl), l.protocol)
		}
		if l.tls {
			nl = tls.NewListener(nl, e.certs.ServerConfig())
		}
		e.listeners[l.name] = nl
	}
	return nil
}

// cause takes the address out of an error of package net, because the error
// around it says it already.
func cause(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// ignoreClosed is for listeners that the server before has closed.
func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (e *Emulator) serve(ctx context.Context) error {
	ctx, e.cancel = context.WithCancel(context.WithoutCancel(ctx))
	amqp, err := e.newAMQP()
	if err != nil {
		return err
	}
	devices := mqtt.NewServer(e.hub, e.verifier(sas.HubKeys, e.hub), &mqtt.Options{Logger: e.log})
	e.onClose(func() error { devices.Close(); return nil })
	e.serveHTTPS(ctx, amqp, devices)
	e.serveControl(ctx)
	e.serving.Go(func() {
		select {
		case err := <-e.store.Failed():
			e.log.Error("state is lost to the disk", "error", err)
		case <-ctx.Done():
		}
	})
	for _, name := range []string{ListenerAMQP, ListenerAMQPS} {
		e.run(name, func() error { return e.serveAMQP(ctx, amqp, e.listeners[name]) })
	}
	e.run(ListenerMQTTS, func() error {
		if err := devices.Serve(ctx, e.listeners[ListenerMQTTS]); !errors.Is(err, mqtt.ErrServerClosed) {
			return err
		}
		return nil
	})
	for _, f := range e.opts.Faults {
		if _, err := e.faults.Inject(f); err != nil {
			return err
		}
	}
	// What faults hold up must not hold up the end.
	e.onClose(func() error { e.faults.Clear(); return nil })
	return nil
}

// run runs a server until Close. One that ends before has lost its listener.
func (e *Emulator) run(name string, serve func() error) {
	e.serving.Go(func() {
		if err := serve(); err != nil {
			e.log.Error("listener failed", "listener", name, "error", err)
		}
	})
}

func (e *Emulator) newAMQP() (*amqpserver.Server, error) {
	nodes, err := amqpnodes.New(amqpnodes.Config{
		Hub:             e.hub,
		Namespace:       e.namespace,
		HubTokens:       e.verifier(sas.HubKeys, e.hub),
		EventsTokens:    e.verifier(sas.NamespaceKeys, e.hub),
		NamespaceTokens: e.verifier(sas.NamespaceKeys, e.keys),
		Access:          e.faults,
		EventsAddr:      e.AMQPSAddr(),
		Logger:          e.log,
	})
	if err != nil {
		return nil, err
	}
	server := amqpserver.New(amqpserver.Options{
		NewHandler:  nodes.NewHandler,
		ContainerID: e.opts.HubName,
		Plain:       nodes.Plain,
		External:    nodes.External,
		Logger:      e.log,
	})
	e.onClose(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		return server.Close(ctx)
	})
	return server, nil
}

// serveAMQP accepts connections until the listener is closed.
func (e *Emulator) serveAMQP(ctx context.Context, server *amqpserver.Server, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() }) // Close closes it again, and sees the error
	defer stop()
	warn := func(err error) { e.log.Warn("accept AMQP connection", "error", err) }
	for {
		nc, err := accept.Next(ctx, l, warn)
		switch {
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			if err == nil {
				_ = nc.Close() // it came too late to be told anything
			}
			return nil
		case err != nil:
			return err
		}
		e.serving.Go(func() {
			if err := server.ServeConn(ctx, nc); err != nil {
				e.log.Debug("AMQP connection ended", "peer", nc.RemoteAddr().String(), "error", err)
			}
		})
	}
}

// verifier checks tokens against a keyring, for all names that the emulator is
// reached under.
func (e *Emulator) verifier(mode sas.KeyMode, keys sas.Keyring) *sas.Verifier {
	hosts := []string{e.opts.HubName, "localhost", "127.0.0.1", "::1"}
	for _, l := range e.listeners {
		if host, _, err := net.SplitHostPort(l.Addr().String()); err == nil {
			hosts = append(hosts, host)
		}
	}
	return &sas.Verifier{Hosts: hosts, Mode: mode, Keys: keys}
}

// announce tells other programs how to connect, once that is possible. The file
// goes when the emulator does: its addresses may be somebody else's then.
func (e *Emulator) announce(context.Context) error {
	if e.opts.DataDir == "" {
		return nil
	}
	if err := e.WriteEnv(e.opts.DataDir); err != nil {
		return err
	}
	e.onClose(e.removeEnv)
	return nil
}

func (e *Emulator) removeEnv() error {
	err := os.Remove(filepath.Join(e.opts.DataDir, EnvFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
