package iothub

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/Azure/go-amqp"

	"github.com/hubjobs/hubjobs/azure/internal/backoff"
	"github.com/hubjobs/hubjobs/job"
)

var errClosed = &job.Error{Kind: job.ErrUnavailable, Err: errors.New("the client is closed")}

// connector makes the one AMQP connection that all calls share, when it is needed and again when it was lost.
type connector struct {
	addr string
	host string
	tls  *tls.Config
	auth authenticator
	log  *slog.Logger

	lock    chan struct{} // holds one value while nobody has the lock; guards the fields below
	current *connection
	closed  bool
	renewal sync.WaitGroup
}

func newConnector(addr string, tlsConfig *tls.Config, auth authenticator, log *slog.Logger) *connector {
	host := auth.hostName()
	if addr == "" {
		addr = net.JoinHostPort(host, "5671") // AMQP over TLS (IANA)
	}
	k := &connector{addr: addr, host: host, tls: tlsConfig, auth: auth, log: log, lock: make(chan struct{}, 1)}
	k.lock <- struct{}{}
	return k
}

// get returns the connection, made or found alive.
func (k *connector) get(ctx context.Context) (*connection, error) {
	select {
	case <-k.lock:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { k.lock <- struct{}{} }()
	if k.closed {
		return nil, errClosed
	}
	if k.current != nil && k.current.alive() {
		return k.current, nil
	}
	conn, err := k.connect(ctx)
	if err != nil {
		return nil, err
	}
	k.current = conn
	return conn, nil
}

func (k *connector) close() {
	<-k.lock
	k.closed = true
	if k.current != nil {
		k.current.close()
	}
	k.lock <- struct{}{}
	k.renewal.Wait()
}

// connect dials, authorises, and starts renewing the authorisation until the connection ends.
func (k *connector) connect(ctx context.Context) (*connection, error) {
	raw, err := (&tls.Dialer{Config: k.tls}).DialContext(ctx, "tcp", k.addr)
	if err != nil {
		return nil, err
	}
	conn, err := amqp.NewConn(ctx, raw, &amqp.ConnOptions{HostName: k.host, SASLType: amqp.SASLTypeAnonymous()})
	if err != nil {
		return nil, err
	}
	c := &connection{conn: conn, senderLock: make(chan struct{}, 1)}
	c.senderLock <- struct{}{}
	expires, err := k.authorise(ctx, c)
	if err != nil {
		c.close()
		return nil, err
	}
	k.log.DebugContext(ctx, "connected to the hub over AMQP", "addr", k.addr)
	k.renewal.Add(1)
	go func() {
		defer k.renewal.Done()
		k.renew(context.WithoutCancel(ctx), c, expires) // the connection outlives the call that made it
	}()
	return c, nil
}

func (k *connector) authorise(ctx context.Context, c *connection) (expires time.Time, err error) {
	t, err := k.auth.cbsToken(ctx)
	if err != nil {
		return time.Time{}, err
	}
	if c.claims == nil {
		if c.claims, err = openClaims(ctx, c.conn); err != nil {
			return time.Time{}, err
		}
	}
	return t.expires, c.claims.put(ctx, t)
}

// renewTimeout bounds one attempt to renew.
const renewTimeout = 30 * time.Second

// renew puts a fresh token when a fifth of the old one's life is left. Where that fails until the old token has ended,
// it closes the connection: the hub would do so anyway, and the next call makes a new one.
func (k *connector) renew(ctx context.Context, c *connection, expires time.Time) {
	retry := backoff.Backoff{Initial: time.Second, Max: 30 * time.Second}
	wait := time.Until(expires) * 4 / 5
	for {
		timer := time.NewTimer(wait)
		select {
		case <-c.conn.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		next, err := k.renewOnce(ctx, c)
		switch {
		case err == nil:
			expires = next
			wait = time.Until(expires) * 4 / 5
			retry.Reset()
		case !c.alive():
			return
		case time.Now().After(expires):
			k.log.WarnContext(ctx, "could not renew the authorisation of the AMQP connection in time", "error", classify("", err))
			c.close()
			return
		default:
			wait = retry.Next()
		}
	}
}

func (k *connector) renewOnce(ctx context.Context, c *connection) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	return k.authorise(ctx, c)
}

// connection is one authorised AMQP connection.
type connection struct {
	conn   *amqp.Conn
	claims *claims // of whoever authorises: first connect, then renew

	senderLock chan struct{} // holds one value while nobody has the lock; guards sender
	sender     *amqp.Sender
}

func (c *connection) alive() bool {
	select {
	case <-c.conn.Done():
		return false
	default:
		return true
	}
}

// close ends the connection. Its error says nothing that anyone could act on.
func (c *connection) close() { _ = c.conn.Close() }

// sharedSender returns the link that all cloud-to-device messages share, attached when it is needed.
func (c *connection) sharedSender(ctx context.Context) (*amqp.Sender, error) {
	select {
	case <-c.senderLock:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { c.senderLock <- struct{}{} }()
	if c.sender != nil {
		return c.sender, nil
	}
	_, sender, err := c.newSender(ctx)
	if err != nil {
		return nil, err
	}
	c.sender = sender
	return sender, nil
}

// forget makes the next call of sharedSender attach a new link, unless another caller has done so already.
func (c *connection) forget(s *amqp.Sender) {
	<-c.senderLock
	if c.sender == s {
		c.sender = nil
	}
	c.senderLock <- struct{}{}
}

// newSender attaches a link for cloud-to-device messages in a session of its own.
func (c *connection) newSender(ctx context.Context) (*amqp.Session, *amqp.Sender, error) {
	session, err := c.conn.NewSession(ctx, nil)
	if err != nil {
		return nil, nil, err
	}
	sender, err := session.NewSender(ctx, addressDevicebound, nil)
	if err != nil {
		_ = session.Close(ctx) // the link's error is the one to tell
		return nil, nil, err
	}
	return session, sender, nil
}
