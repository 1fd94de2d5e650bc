package iotdevice

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/hubjobs/hubjobs/azure/credential"
	"github.com/hubjobs/hubjobs/azure/internal/backoff"
	"github.com/hubjobs/hubjobs/job"
)

const (
	// maxRefusals is how often in a row the hub may refuse the key before the client ends: it can be that the key has
	// just been replaced or the device been disabled for a moment.
	maxRefusals = 5
	// dropFactor times MaxBackoff is the longest wait after connections that didn't last.
	dropFactor = 10
	// maxDrain is how long a connection may be kept for what is under way before a planned reconnect.
	maxDrain = 30 * time.Second
	// maxMethods is how many direct methods run at a time.
	maxMethods = 16
)

var errClosed = errors.New("the client is closed")

// Client is one device's connection to its hub. Its methods may be called concurrently.
//
// After a loss it connects again by itself, waiting longer after each failure. When another host connects as the same
// device, the hub drops this connection, as it allows one. The two must not take it from each other for ever: a
// connection that didn't last longer than the longest wait counts as a failure, and the waits grow to ten times
// MaxBackoff, so that the one that comes back sooner soon keeps it nearly all the time.
type Client struct {
	opts     Options
	log      *slog.Logger
	arrivals *queue[arrival]
	methods  chan struct{} // holds one value for each direct method that runs

	mu      sync.Mutex
	conn    *connection   // nil while not connected
	changed chan struct{} // closed when conn changes
	err     error         // why the client ended; nil before, and after Close

	stop       context.CancelFunc // begins to close
	abandon    context.CancelFunc // ends handlers and waits
	background sync.WaitGroup     // run, handle, and direct methods
	done       chan struct{}      // closed when the client has ended
}

// Dial connects a device and returns when that has succeeded. ctx bounds only that. An empty connection string is asked
// for with opts.ConnectionString.
//
// The error matches job.ErrInvalid (the connection string), job.ErrUnauthorized (the hub refused the key, or there is
// no such device), job.ErrThrottled or job.ErrUnavailable.
func Dial(ctx context.Context, connectionString string, opts Options) (*Client, error) {
	opts = opts.withDefaults()
	device, err := readDevice(ctx, connectionString, opts.ConnectionString)
	if err != nil {
		return nil, err
	}
	c := &Client{
		opts: opts, log: opts.Logger.With("device", device.DeviceID),
		arrivals: newQueue[arrival](), methods: make(chan struct{}, maxMethods),
		changed: make(chan struct{}), done: make(chan struct{}),
	}
	conn, err := connect(ctx, device, opts, c.arrivals)
	if errors.Is(err, job.ErrUnauthorized) && connectionString != "" && opts.ConnectionString != nil {
		if device, err = readDevice(ctx, "", opts.ConnectionString); err == nil {
			conn, err = connect(ctx, device, opts, c.arrivals)
		}
	}
	if err != nil {
		return nil, err
	}
	c.start(context.WithoutCancel(ctx), conn)
	return c, nil
}

func (c *Client) start(ctx context.Context, conn *connection) {
	handling, abandon := context.WithCancel(ctx)
	running, stop := context.WithCancel(handling)
	c.stop, c.abandon = stop, abandon
	c.conn = conn
	c.background.Add(2)
	go func() {
		defer c.background.Done()
		c.handle(running, handling)
	}()
	go func() {
		defer c.background.Done()
		c.finish(c.run(running, handling, conn))
	}()
}

func readDevice(ctx context.Context, connectionString string, source func(context.Context) (string, error)) (credential.Device, error) {
	if connectionString == "" && source != nil {
		var err error
		if connectionString, err = source(ctx); err != nil {
			return credential.Device{}, fmt.Errorf("ask for the device's connection string: %w", err)
		}
	}
	device, err := credential.ParseDevice(connectionString)
	if err != nil {
		return credential.Device{}, err
	}
	if strings.ContainsAny(device.DeviceID, "+#") { // wildcards in topics (MQTT 3.1.1 §4.7.1)
		return credential.Device{}, &job.Error{Op: "connect device " + device.DeviceID, Kind: job.ErrInvalid,
			Err: errors.New("device IDs with + or # can't be used over MQTT")}
	}
	return device, nil
}

// run keeps the device connected until ctx ends or there is no use in trying on.
func (c *Client) run(ctx, handling context.Context, conn *connection) error {
	drops := backoff.Backoff{Initial: c.opts.MinBackoff, Max: dropFactor * c.opts.MaxBackoff}
	refusals := backoff.Backoff{Initial: c.opts.MinBackoff, Max: c.opts.MaxBackoff}
	for {
		c.set(conn)
		why := c.serve(ctx, conn, &refusals)
		c.retire(handling, conn, why)
		if ctx.Err() != nil {
			return nil
		}
		var wait time.Duration
		if why == endLost {
			if time.Since(conn.opened) > c.opts.MaxBackoff {
				drops.Reset()
			}
			wait = drops.Next()
			c.log.WarnContext(ctx, "lost the connection to the hub", "error", conn.reason, "wait", wait)
		}
		var err error
		if conn, err = c.reconnect(ctx, conn.device, wait); err != nil || conn == nil {
			return err
		}
		c.log.InfoContext(ctx, "connected to the hub again")
	}
}

// end is why a connection is given up.
type end int

const (
	endLost    end = iota // it broke
	endRenew              // its token runs out
	endRefused            // Handle failed: the hub shall deliver again
	endClosed             // the client is being closed
)

// serve waits until the connection has to be given up. After Handle failed it stays for a while: for what the device
// has to send, it is as good as ever.
func (c *Client) serve(ctx context.Context, conn *connection, refusals *backoff.Backoff) end {
	renew := time.NewTimer(c.opts.renewal(time.Until(conn.expires)))
	defer renew.Stop()
	refused := conn.refused
	var retry <-chan time.Time
	for {
		select {
		case <-conn.lost:
			return endLost
		case <-renew.C:
			return endRenew
		case <-ctx.Done():
			return endClosed
		case <-retry:
			return endRefused
		case <-refused:
			if time.Since(conn.opened) > c.opts.MaxBackoff { // it was going well
				refusals.Reset()
			}
			refused = nil
			retry = time.After(refusals.Next())
		}
	}
}

// retire takes a connection out of use. When that is planned, what is under way may end first: handlers, so that they
// are acknowledged, then publishes.
func (c *Client) retire(handling context.Context, conn *connection, why end) {
	if why != endLost {
		limit := time.NewTimer(min(maxDrain, time.Until(conn.expires)))
		defer limit.Stop()
		drained(handling, conn, conn.handling, limit)
		c.set(nil)
		drained(handling, conn, conn.publishing, limit)
	}
	c.set(nil)
	conn.handling.drain()
	conn.publishing.drain()
	conn.close()
}

func drained(ctx context.Context, conn *connection, t *tracker, limit *time.Timer) {
	select {
	case <-t.drain():
	case <-conn.lost:
	case <-ctx.Done():
	case <-limit.C:
		limit.Reset(0) // for the next wait
	}
}

// reconnect tries until it has a connection. It returns nil without an error when ctx ends, and the error when the hub
// keeps refusing the key or nothing but a change of configuration can help.
func (c *Client) reconnect(ctx context.Context, device credential.Device, wait time.Duration) (*connection, error) {
	failures := backoff.Backoff{Initial: c.opts.MinBackoff, Max: c.opts.MaxBackoff}
	for refused := 0; ; wait = failures.Next() {
		if backoff.Wait(ctx, wait) != nil {
			return nil, nil
		}
		conn, err := c.attempt(ctx, &device, refused > 0)
		switch {
		case err == nil:
			return conn, nil
		case ctx.Err() != nil:
			return nil, nil
		case errors.Is(err, job.ErrUnauthorized):
			if refused++; refused >= maxRefusals {
				return nil, err
			}
		case !job.Retryable(err):
			return nil, err
		}
		c.log.WarnContext(ctx, "could not connect to the hub", "error", err)
	}
}

// attempt connects once, after asking for the connection string again when the last one was refused.
func (c *Client) attempt(ctx context.Context, device *credential.Device, refused bool) (*connection, error) {
	if refused && c.opts.ConnectionString != nil {
		fresh, err := readDevice(ctx, "", c.opts.ConnectionString)
		if err != nil {
			return nil, err
		}
		if fresh.DeviceID != device.DeviceID {
			return nil, &job.Error{Op: "connect device " + device.DeviceID, Kind: job.ErrInvalid,
				Err: fmt.Errorf("the new connection string is that of device %s", fresh.DeviceID)}
		}
		*device = fresh
	}
	return connect(ctx, *device, c.opts, c.arrivals)
}

// set makes conn the connection in use, nil for none.
func (c *Client) set(conn *connection) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == conn {
		return
	}
	c.conn = conn
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *Client) get() (conn *connection, changed <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conn, c.changed
}

// finish records why the client ended and lets everyone know.
func (c *Client) finish(err error) {
	c.mu.Lock()
	c.err = err
	c.mu.Unlock()
	if err != nil {
		c.log.Error("gave up connecting to the hub", "error", err)
	}
	c.abandon()
	close(c.done)
}

// Done is closed when the client has ended: after Close, or because the hub keeps refusing the device. Then Err says why.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err returns why the client ended; nil while it runs and after Close. It matches job.ErrUnauthorized when the hub kept
// refusing the key or the device is gone.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Connected reports whether the device is connected just now.
func (c *Client) Connected() bool {
	conn, _ := c.get()
	return conn != nil && conn.open()
}

// Close disconnects and waits for what runs in the background. Until ctx ends, the message being handled and publishes
// under way may finish; then they are given up, and the error matches ctx's. A message that was not handled stays with
// the hub.
func (c *Client) Close(ctx context.Context) error {
	c.stop()
	ended := make(chan struct{})
	go func() {
		c.background.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
	}
	c.abandon()
	select {
	case <-ended:
	case <-time.After(2 * disconnectTimeout): // a handler that doesn't heed its context is left behind
	}
	return &job.Error{Op: "disconnect the device", Kind: job.ErrUnavailable, Err: ctx.Err()}
}
