package emulator

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/coder/websocket"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqpserver"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/fault"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/mqtt"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/netconn"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/rest"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/sas"
)

// Paths of WebSockets (IoT Hub docs: "Choose a device communication protocol";
// azservicebus v1.11, internal/namespace.go).
const (
	hubWebSocketPath        = "/$iothub/websocket"
	serviceBusWebSocketPath = "/$servicebus/websocket"
)

// Sub-protocols of WebSockets (OASIS "AMQP WebSocket Binding" §2.1; MQTT 3.1.1
// §6). The Node SDKs ask for AMQPWSB10, others for the name in the standard.
const (
	protocolMQTT      = "mqtt"
	protocolAMQP      = "amqp"
	protocolAMQPAzure = "AMQPWSB10"
)

// Bounds on HTTP clients, which hold a connection before they show a token.
const (
	// readHeaderTimeout is how long a client may take to say what it wants.
	readHeaderTimeout = 10 * time.Second
	// idleTimeout is how long a connection may wait for its next request.
	idleTimeout = 2 * time.Minute
	// maxHeader bounds the headers of a request in bytes: telemetry over HTTP
	// has its properties there.
	maxHeader = 128 << 10
)

// front are the servers behind the HTTPS listener.
type front struct {
	emulator *Emulator
	ctx      context.Context // ends when the emulator closes; bounds WebSockets, which outlive their request
	amqp     *amqpserver.Server
	devices  *mqtt.Server
}

func (e *Emulator) serveHTTPS(ctx context.Context, amqp *amqpserver.Server, devices *mqtt.Server) {
	f := &front{emulator: e, ctx: ctx, amqp: amqp, devices: devices}
	server := &http.Server{
		Handler:           f.handler(),
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(e.log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext:       withConn,
	}
	e.serveHTTP(ListenerHTTPS, server)
}

// controlTimeout bounds a request to the control API.
const controlTimeout = 10 * time.Second

// serveControl serves the control API, if there is to be one.
func (e *Emulator) serveControl(ctx context.Context) {
	if e.listeners[ListenerControl] == nil {
		return
	}
	e.serveHTTP(ListenerControl, &http.Server{
		Handler:      e.faults.Handler(),
		ReadTimeout:  controlTimeout,
		WriteTimeout: controlTimeout,
		IdleTimeout:  idleTimeout,
		ErrorLog:     slog.NewLogLogger(e.log.Handler(), slog.LevelDebug),
		BaseContext:  func(net.Listener) context.Context { return ctx },
	})
}

// serveHTTP runs a server on a listener until Close.
func (e *Emulator) serveHTTP(listener string, server *http.Server) {
	e.onClose(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		if err := server.Shutdown(ctx); err != nil {
			return server.Close()
		}
		return nil
	})
	e.run(listener, func() error {
		if err := server.Serve(e.listeners[listener]); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
}

// connKey is the key of a request's connection in its context.
type connKey struct{}

func withConn(ctx context.Context, nc net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, nc)
}

// socket is a WebSocket as a connection that knows what it runs on: who looks for
// the client's certificate, or wants to say whose connection it is, finds there
// what a connection without a WebSocket has.
type socket struct {
	net.Conn
	below *tls.Conn
}

// ConnectionState returns that of the TLS connection.
func (s socket) ConnectionState() tls.ConnectionState { return s.below.ConnectionState() }

// NetConn returns the connection below TLS.
func (s socket) NetConn() net.Conn { return s.below.NetConn() }

// faulty returns the connection of a request that is subject to faults, or nil.
func faulty(ctx context.Context) *fault.Conn {
	nc, _ := ctx.Value(connKey{}).(net.Conn)
	c, _ := netconn.As[*fault.Conn](nc)
	return c
}

// identify tells whose connection that of a request is.
func identify(ctx context.Context, t hub.Target) {
	if c := faulty(ctx); c != nil {
		c.SetPeer(t)
	}
}

// newSocket returns the connection of a WebSocket that a request asked for.
func newSocket(r *http.Request, ws net.Conn, protocol string) net.Conn {
	below, ok := r.Context().Value(connKey{}).(*tls.Conn)
	if !ok {
		return ws
	}
	if c := faulty(r.Context()); c != nil {
		c.SetProtocol(protocol)
	}
	return socket{Conn: ws, below: below}
}

// handler tells WebSockets from requests. It is no http.ServeMux, because that
// cleans paths, and a device ID may consist of dots.
func (f *front) handler() http.HandlerFunc {
	e := f.emulator
	api := rest.NewHandler(e.hub, e.verifier(sas.HubKeys, e.hub), &rest.Options{Jobs: e.jobs, Logger: e.log, Identify: identify})
	ofHub := f.webSocket(protocolMQTT, protocolAMQPAzure, protocolAMQP)
	ofServiceBus := f.webSocket(protocolAMQPAzure, protocolAMQP)
	return func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case hubWebSocketPath:
			ofHub(w, r)
		case serviceBusWebSocketPath:
			ofServiceBus(w, r)
		default:
			api.ServeHTTP(w, r)
		}
	}
}

// webSocket serves the protocol that client and server agree on.
func (f *front) webSocket(protocols ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		// Counted while the request still holds up the server's shutdown, so
		// that Close waits for it afterwards.
		f.emulator.serving.Add(1)
		defer f.emulator.serving.Done()
		conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{
			Subprotocols: protocols,
			// Pages of other origins can do no harm: who connects has nothing
			// before showing a token inside.
			InsecureSkipVerify: true,
		})
		if err != nil {
			return // Accept has answered
		}
		if !slices.Contains(protocols, conn.Subprotocol()) {
			_ = conn.Close(websocket.StatusPolicyViolation, "ask for one of the sub-protocols mqtt, AMQPWSB10 and amqp")
			return
		}
		nc := websocket.NetConn(f.ctx, conn, websocket.MessageBinary)
		defer nc.Close()
		if conn.Subprotocol() == protocolMQTT {
			f.devices.ServeConn(f.ctx, newSocket(r, nc, fault.MQTT))
			return
		}
		if err := f.amqp.ServeConn(f.ctx, newSocket(r, nc, fault.AMQP)); err != nil {
			f.emulator.log.Debug("AMQP connection ended", "peer", r.RemoteAddr, "error", err)
		}
	}
}
