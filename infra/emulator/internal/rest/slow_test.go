package rest_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/rest"
)

// slow is how long clients have in these tests.
const slow = 50 * time.Millisecond

// all sends bytes and returns what the server says until it closes.
func (f *fixture) all(request string) string {
	f.t.Helper()
	nc, err := net.Dial("tcp", f.server.Listener.Addr().String())
	must(f.t, err)
	defer nc.Close()
	must(f.t, nc.SetDeadline(time.Now().Add(20*time.Second)))
	_, err = io.WriteString(nc, request)
	must(f.t, err)
	answer, err := io.ReadAll(nc)
	if err != nil {
		f.t.Errorf("the server keeps the connection: %v", err)
	}
	return string(answer)
}

// A body that never comes must not hold a connection for good, with a token or
// without one.
func TestBodyThatDoesNotCome(t *testing.T) {
	t.Parallel()
	f := newFixtureWith(t, &rest.Options{TransferTimeout: slow})
	const head = "PUT /devices/d1?api-version=2021-04-12 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\nAuthorization: %s\r\n\r\n{"
	if a := f.all(fmt.Sprintf(head, "none")); !strings.HasPrefix(a, "HTTP/1.1 401 ") {
		t.Errorf("without token: %s", a)
	}
	if a := f.all(fmt.Sprintf(head, f.policyToken(hub.PolicyOwner))); !strings.HasPrefix(a, "HTTP/1.1 400 ") {
		t.Errorf("with token: %s", a)
	}
}

// The answer of a method may take longer than a client has for its own part.
func TestMethodOutlivesTheDeadlines(t *testing.T) {
	t.Parallel()
	f := newFixtureWith(t, &rest.Options{TransferTimeout: slow})
	f.add("d1")
	s, err := f.hub.Connect(t.Context(), "d1", hub.ConnectOptions{})
	must(t, err)
	defer s.Close()
	s.HandleMethods(func(r hub.MethodRequest) {
		time.AfterFunc(4*slow, func() { s.RespondMethod(r.RequestID, hub.MethodResult{Status: 200}) })
	})
	a := f.call(http.MethodPost, "/twins/d1/methods", `{"methodName":"m"}`)
	if a.status != http.StatusOK {
		t.Errorf("answer: %s", a)
	}
}
