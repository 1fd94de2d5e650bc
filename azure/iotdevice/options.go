package iotdevice

import (
	"context"
	"crypto/x509"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/hubjobs/hubjobs/job"
)

// Defaults of Options.
const (
	DefaultKeepAlive     = 30 * time.Second
	DefaultTokenLifetime = time.Hour
	DefaultMinBackoff    = time.Second
	DefaultMaxBackoff    = 30 * time.Second
)

// Options of a device connection. The zero value sends only.
type Options struct {
	// Addr is the host:port to connect to instead of port 8883 of the hub. Certificates still name the hub.
	Addr string
	// RootCAs are the authorities to trust; nil: those of the system.
	RootCAs *x509.CertPool

	// Handle gets the cloud-to-device messages, one after the other in the order in which the hub delivers them. A
	// message is acknowledged when Handle returns nil. When it returns an error, that message and those behind it stay
	// with the hub, which delivers them again over a fresh connection after a pause; MQTT has no other way to refuse.
	// Its context ends when the client gives up or is closed in haste. nil: cloud-to-device messages stay with the hub.
	Handle func(context.Context, job.Message) error
	// Method answers direct methods, several at a time; payload and response are JSON, an empty response is none.
	// nil: the device takes no direct methods.
	Method func(ctx context.Context, name string, payload []byte) (status int, response []byte)

	// ConnectionString is asked for the connection string before connecting when Dial got none, and again when the hub
	// refuses the key. An error that is not job.Retryable ends the client. nil: what Dial got is all there is.
	ConnectionString func(context.Context) (string, error)

	// KeepAlive is how long the connection may be silent before it is probed; whole seconds. 0: DefaultKeepAlive.
	KeepAlive time.Duration
	// TokenLifetime is how long a shared access signature is valid. The client connects anew when about a fifth of that
	// is left, after what is under way has ended. 0: DefaultTokenLifetime.
	TokenLifetime time.Duration
	// MinBackoff and MaxBackoff bound the wait before connecting again, which doubles with each failure and is random
	// in its upper half. 0: DefaultMinBackoff and DefaultMaxBackoff.
	MinBackoff, MaxBackoff time.Duration

	Logger *slog.Logger // nil: no logs

	renewAfter time.Duration // for tests: instead of most of the token's life
	ackTimeout time.Duration // how long the hub may take for a PUBACK before the connection counts as dead
}

// renewal returns when to replace a token that has life left: not at the same time for all devices of a program.
func (o Options) renewal(life time.Duration) time.Duration {
	if o.renewAfter > 0 {
		return o.renewAfter
	}
	return life*3/4 + rand.N(max(life/10, 1))
}

func (o Options) withDefaults() Options {
	def := func(d *time.Duration, value time.Duration) {
		if *d <= 0 {
			*d = value
		}
	}
	def(&o.KeepAlive, DefaultKeepAlive)
	def(&o.TokenLifetime, DefaultTokenLifetime)
	def(&o.MinBackoff, DefaultMinBackoff)
	def(&o.MaxBackoff, DefaultMaxBackoff)
	def(&o.ackTimeout, ackTimeout)
	o.MaxBackoff = max(o.MaxBackoff, o.MinBackoff)
	o.KeepAlive = max(o.KeepAlive, time.Second) // MQTT counts seconds, and 0 would be no keep-alive at all
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}
