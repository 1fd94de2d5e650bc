package fault

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"strings"
)

// maxBody bounds a fault in JSON, in bytes.
const maxBody = 64 << 10

// Handler returns the control API, in JSON:
//
//	POST   /faults       a Fault; answers 201 with its ID: {"id":"1"}
//	GET    /faults       answers {"faults":[{"id":"1","hits":0,"kind":"cut"}]}
//	DELETE /faults/{id}  answers 204
//	DELETE /faults       ends all; answers {"removed":1}
//
// Errors are answered as {"error":"..."}. It knows no users, so it serves whoever
// reaches it; but not pages in a browser, which could reach it from anywhere:
// requests of other sites have a header Origin or another Host than a loopback
// address, and can't have a body of type application/json.
func (in *Injector) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /faults", in.servePost)
	mux.HandleFunc("GET /faults", func(w http.ResponseWriter, _ *http.Request) {
		write(w, http.StatusOK, map[string]any{"faults": in.Active()})
	})
	mux.HandleFunc("DELETE /faults", func(w http.ResponseWriter, _ *http.Request) {
		write(w, http.StatusOK, map[string]int{"removed": in.Clear()})
	})
	mux.HandleFunc("DELETE /faults/{id}", func(w http.ResponseWriter, r *http.Request) {
		if !in.Remove(r.PathValue("id")) {
			fail(w, http.StatusNotFound, errors.New("there is no such fault"))
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	return guard(mux)
}

// guard refuses what a page in a browser can send.
func guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("Origin") != "":
			fail(w, http.StatusForbidden, errors.New("requests from web pages are refused"))
		case !isLoopback(r.Host):
			fail(w, http.StatusForbidden, errors.New("the header Host must be a loopback address or localhost"))
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// isLoopback reports whether the host of an address, with or without port, can
// only be this machine. Other names can be made to lead here by whoever owns
// them.
func isLoopback(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.Trim(hostport, "[]")
	}
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}

func (in *Injector) servePost(w http.ResponseWriter, r *http.Request) {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		fail(w, http.StatusUnsupportedMediaType, errors.New("the header Content-Type must be application/json"))
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		fail(w, http.StatusRequestEntityTooLarge, err)
		return
	}
	var f Fault
	switch err := json.Unmarshal(body, &f); {
	case errors.Is(err, ErrInvalid):
		fail(w, http.StatusBadRequest, err)
		return
	case err != nil:
		fail(w, http.StatusBadRequest, fmt.Errorf("the body is not valid JSON: %w", err))
		return
	}
	id, err := in.Inject(f)
	switch {
	case errors.Is(err, ErrInvalid):
		fail(w, http.StatusBadRequest, err)
	case err != nil:
		fail(w, http.StatusServiceUnavailable, err)
	default:
		write(w, http.StatusCreated, map[string]string{"id": id})
	}
}

func fail(w http.ResponseWriter, status int, err error) {
	write(w, status, map[string]string{"error": err.Error()})
}

func write(w http.ResponseWriter, status int, body any) {
	text, err := json.Marshal(body)
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(text, '\n')) // a client that has gone needs no answer
}

// MarshalJSON writes the fault with its ID and hits.
func (a Active) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		ID   string `json:"id"`
		Hits int    `json:"hits"`
		wire
	}{a.ID, a.Hits, wireOf(a.Fault)})
}
