package role

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"
)

const (
	// checkTimeout bounds all checks of one readiness probe.
	checkTimeout = 3 * time.Second

	// drainTimeout is how long a stopping server waits for requests under way.
	drainTimeout = 5 * time.Second

	requestTimeout = 30 * time.Second
)

// Check reports why a part of the process is not ready; nil when it is. Its error is shown to whoever asks for
// readiness, so it must hold no secrets.
type Check func(context.Context) error

// Health adds GET /healthz, which answers as long as the process does, and GET /readyz, which answers 503 as long as a
// check fails.
func Health(mux *http.ServeMux, checks ...Check) {
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		JSON(w, http.StatusOK, map[string]string{"status": "ok"})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), checkTimeout)
		defer cancel()
		for _, check := range checks {
			if err := check(ctx); err != nil {
				Error(w, http.StatusServiceUnavailable, err.Error())
				return
			}
		}
		JSON(w, http.StatusOK, map[string]string{"status": "ready"})
	})
}

// JSON answers with v.
func JSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	// The only error is that of a client that is gone.
	_ = json.NewEncoder(w).Encode(v)
}

// Error answers with {"error": message}.
func Error(w http.ResponseWriter, status int, message string) {
	JSON(w, status, map[string]string{"error": message})
}

// Server is an HTTP server that listens.
type Server struct {
	listener net.Listener
	server   *http.Server
}

// loopback is where a server listens that was not told where: a free port that no other machine reaches.
const loopback = "127.0.0.1:0"

// Listen opens addr, "host:port"; port 0 takes a free one, and an empty addr a free one on loopback. Serve or Close must
// follow.
func Listen(ctx context.Context, addr string, h http.Handler, log *slog.Logger) (*Server, error) {
	if addr == "" {
		addr = loopback
	}
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for HTTP: %w", err)
	}
	return &Server{listener: l, server: &http.Server{
		Handler:           http.TimeoutHandler(h, requestTimeout, `{"error":"the request took too long"}`),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       requestTimeout,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}}, nil
}

// Addr returns the address that the server listens on.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Serve answers requests until ctx ends, and then those that are under way.
func (s *Server) Serve(ctx context.Context) error {
	ended := make(chan error, 1)
	go func() { ended <- s.server.Serve(s.listener) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serve HTTP: %w", err)
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	err := s.server.Shutdown(ctx)
	if err != nil {
		err = errors.Join(err, s.server.Close())
	}
	<-ended
	return err
}

// Close closes a server that was never served.
func (s *Server) Close() error { return s.listener.Close() }
