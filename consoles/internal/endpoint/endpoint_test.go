package endpoint

import (
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRoots(t *testing.T) {
	t.Parallel()
	if pool, err := Roots(""); pool != nil || err != nil {
		t.Errorf("no file gives %v, %v: want the system's roots", pool, err)
	}
	if _, err := Roots(filepath.Join(t.TempDir(), "missing.pem")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: error %v", err)
	}
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Roots(empty); err == nil {
		t.Error("a file without a certificate is accepted")
	}
}

// The address that is dialled must not matter for which certificate is right.
func TestTLSChecksHostName(t *testing.T) {
	t.Parallel()
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	file := filepath.Join(t.TempDir(), "ca.pem")
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(file, certificate, 0o600); err != nil {
		t.Fatal(err)
	}
	roots, err := Roots(file)
	if err != nil {
		t.Fatal(err)
	}
	for host, ok := range map[string]bool{"example.com": true, "example.com:8883": true, "other.test": false} {
		conn, err := tls.Dial("tcp", server.Listener.Addr().String(), TLS(roots, host))
		if err == nil {
			err = conn.Close()
		}
		if (err == nil) != ok {
			t.Errorf("host %q: error %v", host, err)
		}
		if !ok && !strings.Contains(Explain(err).Error(), "EMULATOR_CA_FILE") {
			t.Errorf("host %q: error %v does not say what to do", host, Explain(err))
		}
	}
}

func TestExplainLeavesOtherErrors(t *testing.T) {
	t.Parallel()
	other := fmt.Errorf("other")
	if got := Explain(other); got != other {
		t.Errorf("got %v", got)
	}
}

func TestAddress(t *testing.T) {
	t.Parallel()
	tests := []struct{ override, host, want string }{
		{"", "hub.test", "hub.test:8883"},
		{"", "hub.test:443", "hub.test:8883"},
		{"127.0.0.1:1883", "hub.test", "127.0.0.1:1883"},
	}
	for _, test := range tests {
		if got := Address(test.override, test.host, "8883"); got != test.want {
			t.Errorf("override %q and host %q give %q, want %q", test.override, test.host, got, test.want)
		}
	}
}

func TestCheckAddress(t *testing.T) {
	t.Parallel()
	for address, ok := range map[string]bool{"": true, "localhost:1": true, "[::1]:1": true, "localhost": false, "::1": false} {
		if err := CheckAddress("--addr", address); (err == nil) != ok {
			t.Errorf("%q: error %v", address, err)
		}
	}
}
