package emulator

import (
	"cmp"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// Listeners, as ListenError names them.
const (
	ListenerAMQP  = "amqp"
	ListenerAMQPS = "amqps"
	ListenerMQTTS = "mqtts"
	ListenerHTTPS = "https"
	// ListenerControl is that of the control API.
	ListenerControl = "control"
)

// freePort is the address of a listener that is given none.
const freePort = "127.0.0.1:0"

// Options say how the emulator runs. The zero value is an emulator on free ports
// of the loopback interface that keeps everything in memory.
type Options struct {
	// DataDir keeps all state, certificates and keys between runs, and gets the
	// file emulator.env; it is made if it doesn't exist. Empty keeps nothing.
	DataDir string
	// AMQPAddr, AMQPSAddr, MQTTSAddr and HTTPSAddr are the addresses to listen
	// on, host:port; default is a free port of 127.0.0.1. Plain AMQP carries
	// tokens in the clear: leave it on loopback or in a private network.
	AMQPAddr, AMQPSAddr, MQTTSAddr, HTTPSAddr string
	// ControlAddr is the address of the control API, through which other
	// programs inject faults: POST, GET and DELETE of /faults, over plain HTTP. It
	// must be of the loopback interface, because it asks for no key. Empty means
	// that there is none.
	ControlAddr string
	// HubName is the hub's host name, in connection strings and in the
	// certificate; default localhost.
	HubName string
	// Config are the entities; nil means DefaultConfig.
	Config *Config
	// DeviceCAs are the roots of devices that authenticate with certificates
	// signed by an authority, beside those that Config names; nil means none.
	DeviceCAs *x509.CertPool
	// MaxConnections is how many connections may be open, of all protocols
	// together; more are closed as they come. Default 20,000.
	MaxConnections int
	// Faults are in force from the start; see InjectFault.
	Faults []Fault
	// FeedbackInterval is how long delivery feedback waits for more of it before
	// it is delivered; default 15 s, as in the cloud. Tests shorten it.
	FeedbackInterval time.Duration
	// Logger gets what an operator wants to know, and never a key or token; nil
	// means none.
	Logger *slog.Logger
}

// defaultMaxConnections is enough for ten thousand devices and those who talk to
// them, and bounds what they cost to a few hundred megabytes.
const defaultMaxConnections = 20_000

func (o Options) withDefaults() Options {
	for _, addr := range []*string{&o.AMQPAddr, &o.AMQPSAddr, &o.MQTTSAddr, &o.HTTPSAddr} {
		*addr = cmp.Or(*addr, freePort)
	}
	o.HubName = cmp.Or(o.HubName, hub.DefaultName)
	o.MaxConnections = cmp.Or(o.MaxConnections, defaultMaxConnections)
	if o.Config == nil {
		o.Config = DefaultConfig()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// maxHostName is the longest name in DNS (RFC 1035 §2.3.4).
const maxHostName = 253

func (o Options) check() error {
	if len(o.HubName) > maxHostName || net.ParseIP(o.HubName) != nil || !namePattern.MatchString(o.HubName) {
		return fmt.Errorf("hub name %q is not a host name", o.HubName)
	}
	if o.MaxConnections < 0 {
		return fmt.Errorf("the number of connections is %d and must be positive", o.MaxConnections)
	}
	if o.FeedbackInterval < 0 {
		return fmt.Errorf("feedback interval %s is negative", o.FeedbackInterval)
	}
	if o.ControlAddr != "" && !isLoopback(o.ControlAddr) {
		return fmt.Errorf("control address %q is not of the loopback interface, such as 127.0.0.1:9000", o.ControlAddr)
	}
	for _, f := range o.Faults {
		if err := f.Check(); err != nil {
			return err
		}
	}
	return o.Config.check(o.eventsName())
}

// isLoopback reports whether only this machine can reach an address.
func isLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	return err == nil && (host == "localhost" || net.ParseIP(host).IsLoopback())
}

// eventsName is the name of the hub's built-in endpoint: like in the cloud, the
// hub's name without its domain.
func (o Options) eventsName() string {
	name, _, _ := strings.Cut(o.HubName, ".")
	return name
}

// serverNames are the names that clients may dial, and so look for in the
// certificate: the hub's, and the hosts of the addresses.
func (o Options) serverNames() []string {
	names := []string{o.HubName}
	for _, addr := range []string{o.AMQPSAddr, o.MQTTSAddr, o.HTTPSAddr} {
		host, _, err := net.SplitHostPort(addr)
		if ip := net.ParseIP(host); err != nil || host == "" || ip != nil && ip.IsUnspecified() {
			continue // Listen complains of a bad address; all interfaces have no name
		}
		names = append(names, host)
	}
	return names
}

// ListenError says that an address can't be listened on.
type ListenError struct {
	// Listener is one of the Listener constants.
	Listener string
	Addr     string
	Err      error
}

// Error implements error.
func (e *ListenError) Error() string {
	return fmt.Sprintf("listen for %s on %s: %v", strings.ToUpper(e.Listener), e.Addr, e.Err)
}

// Unwrap returns the cause.
func (e *ListenError) Unwrap() error { return e.Err }
