package emulator

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/coder/websocket"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqpserver"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/mqtt"
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
	}
	e.onClose(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		if err := server.Shutdown(ctx); err != nil {
			return server.Close()
		}
		return nil
	})
	e.run(ListenerHTTPS, func() error {
		if err := server.Serve(e.listeners[ListenerHTTPS]); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
}

// handler tells WebSockets from requests. It is no http.ServeMux, because that
// cleans paths, and a device ID may consist of dots.
func (f *front) handler() http.HandlerFunc {
	e := f.emulator
	api := rest.NewHandler(e.hub, e.verifier(sas.HubKeys, e.hub), &rest.Options{Logger: e.log})
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
			f.devices.ServeConn(f.ctx, nc)
			return
		}
		if err := f.amqp.ServeConn(f.ctx, nc); err != nil {
			f.emulator.log.Debug("AMQP connection ended", "peer", r.RemoteAddr, "error", err)
		}
	}
}
