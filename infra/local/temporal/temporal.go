// Package temporal runs a complete Temporal server inside this process: the four services, a SQLite store and,
// if asked for, the web UI.
//
// It is meant for development machines and tests. Everything listens on the address that the caller names and
// on ports of 127.0.0.1 that nobody else uses, so any number of servers can live on one machine and in one
// process. With a database file a server can be killed at any moment: the next one on the same file continues
// every workflow where it was.
package temporal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"sync"
	"time"

	"github.com/google/uuid"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/client"
	sdklog "go.temporal.io/sdk/log"
	"go.temporal.io/server/temporal"
	"go.uber.org/zap"
	"go.uber.org/zap/exp/zapslog"
)

const (
	// DefaultNamespace is registered when Options.Namespaces is empty.
	DefaultNamespace = "default"

	// DefaultRetention is how long a closed workflow stays visible when Options.Retention is zero.
	DefaultRetention = 7 * 24 * time.Hour

	// startTimeout bounds the time from a started server to a namespace that answers. It is generous because a
	// loaded build machine may need many times the usual half second.
	startTimeout = 90 * time.Second

	// stopTimeout bounds Close. The server itself would allow five minutes for each service.
	stopTimeout = 20 * time.Second
)

// Options say where a server listens and what it keeps. The zero value is a server in memory, on a free port
// of 127.0.0.1, without a web UI.
type Options struct {
	// Address is the host and port of the gRPC frontend. Empty means 127.0.0.1:0; port 0 picks a free one.
	Address string

	// UIAddress is the host and port of the web UI. Empty means no web UI; port 0 picks a free one.
	UIAddress string

	// File is the path of the SQLite database; it is created when missing, its folder must exist. Empty keeps
	// everything in memory until Close. One server at a time may use a file.
	File string

	// Namespaces are registered before the frontend answers. Empty means DefaultNamespace alone.
	Namespaces []string

	// Retention of the namespaces that this start registers; one that the file already holds keeps its own.
	// Zero means DefaultRetention; the server allows no less than an hour.
	Retention time.Duration

	// SearchAttributes are registered in every namespace of Namespaces, unless they are there already.
	SearchAttributes map[string]enumspb.IndexedValueType

	// Logger takes the server's messages from level error upwards. Nil drops them.
	Logger *zap.Logger

	// memoryName tells databases in memory apart; one of a running process with the same name would be shared.
	memoryName string
}

// Server is a running server. Its methods may be called from any goroutine.
type Server struct {
	address   string
	namespace string
	uiURL     string
	logger    *zap.Logger
	server    temporal.Server
	ui        *webUI
	closeOnce sync.Once
	closeErr  error
}

// Start runs a server and returns when its frontend serves every namespace and its web UI answers. The caller
// must Close it. When ctx ends first, whatever was started is stopped again.
func Start(ctx context.Context, opts Options) (*Server, error) {
	opts = opts.withDefaults()
	addrs, err := newAddresses(ctx, opts.Address, opts.UIAddress)
	if err != nil {
		return nil, err
	}
	if err := prepareStore(opts); err != nil {
		return nil, err
	}
	server, err := newServer(opts, addrs)
	if err != nil {
		return nil, fmt.Errorf("configure the Temporal server: %w", err)
	}
	s := &Server{address: addrs.client, namespace: opts.Namespaces[0], logger: opts.Logger, server: server}
	if err := server.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start the Temporal server: %w", err), s.Close())
	}
	if err := s.finishStart(ctx, opts, addrs.ui); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// finishStart does what needs a frontend that answers.
func (s *Server) finishStart(ctx context.Context, opts Options, uiAddr *net.TCPAddr) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for _, namespace := range opts.Namespaces {
		if err := s.prepareNamespace(ctx, namespace, opts.SearchAttributes); err != nil {
			return fmt.Errorf("namespace %q on %s: %w", namespace, s.address, err)
		}
	}
	if uiAddr == nil {
		return nil
	}
	ui, err := startUI(ctx, uiAddr, s.address, s.namespace)
	if err != nil {
		return err
	}
	s.ui, s.uiURL = ui, ui.url
	return nil
}

// Address is the host and port of the gRPC frontend, to be dialled from this machine.
func (s *Server) Address() string { return s.address }

// UIURL is the root of the web UI without a slash at its end, or empty when it was not asked for.
func (s *Server) UIURL() string { return s.uiURL }

// WorkflowURL is the page of one run in the web UI. Without a run ID it is the page that leads to the newest.
func (s *Server) WorkflowURL(namespace, workflowID, runID string) string {
	page := s.uiURL + "/namespaces/" + url.PathEscape(namespace) + "/workflows/" + url.PathEscape(workflowID)
	if runID == "" {
		return page
	}
	return page + "/" + url.PathEscape(runID) + "/history"
}

// Dial connects a client to a namespace; an empty one means the first that the server was started with. Log
// messages below the level warning are dropped, for the server is known to be there.
func (s *Server) Dial(ctx context.Context, namespace string) (client.Client, error) {
	if namespace == "" {
		namespace = s.namespace
	}
	return client.DialContext(ctx, client.Options{
		HostPort:  s.address,
		Namespace: namespace,
		Logger:    quietLogger(s.logger),
	})
}

// Close stops the web UI and the server and waits for both, for at most 20 seconds. More calls do nothing and
// return what the first returned.
func (s *Server) Close() error {
	s.closeOnce.Do(func() { s.closeErr = s.stop() })
	return s.closeErr
}

func (s *Server) stop() error {
	if s.ui != nil {
		s.ui.close()
	}
	done := make(chan error, 1)
	go func() { done <- s.server.Stop() }()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("stop the Temporal server: %w", err)
		}
		return nil
	case <-time.After(stopTimeout):
		return fmt.Errorf("stop the Temporal server: still running after %s", stopTimeout)
	}
}

func (o Options) withDefaults() Options {
	if o.Address == "" {
		o.Address = net.JoinHostPort(loopback, "0")
	}
	if len(o.Namespaces) == 0 {
		o.Namespaces = []string{DefaultNamespace}
	}
	if o.Retention == 0 {
		o.Retention = DefaultRetention
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	o.memoryName = "hubjobs-" + uuid.NewString()
	return o
}

// quietLogger hands a client's warnings and errors to zap.
func quietLogger(logger *zap.Logger) sdklog.Logger {
	quiet := logger.WithOptions(zap.IncreaseLevel(zap.WarnLevel))
	return sdklog.NewStructuredLogger(slog.New(zapslog.NewHandler(quiet.Core())))
}
