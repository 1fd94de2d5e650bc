package tlsca_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/tlsca"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func load(t *testing.T, dir string, opts *tlsca.Options) *tlsca.Bundle {
	t.Helper()
	b, err := tlsca.Load(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// handshake connects a client that trusts the CA alone and expects name.
func handshake(t *testing.T, b *tlsca.Bundle, name string) error {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", b.ServerConfig())
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		// The client closes without a word; how reading ends doesn't matter.
		_, _ = io.ReadAll(conn)
	}()
	defer func() { l.Close(); <-done }()
	conn, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{RootCAs: b.Roots(), ServerName: name})
	if err != nil {
		return err
	}
	return conn.Close()
}

func TestNames(t *testing.T) {
	t.Parallel()
	b := load(t, "", &tlsca.Options{Names: []string{"Hub.Azure-Devices.NET", "", "10.0.0.7", "localhost"}})
	for _, name := range []string{"localhost", "127.0.0.1", "::1", "hub.azure-devices.net", "10.0.0.7"} {
		if err := handshake(t, b, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := handshake(t, b, "elsewhere.example"); err == nil {
		t.Error("good for any name")
	}
	if b.CAPath != "" {
		t.Errorf("in memory, but CAPath = %q", b.CAPath)
	}
}

// Clients show the certificate that they have, whoever signed it, or none.
func TestCertificatesOfClients(t *testing.T) {
	t.Parallel()
	b, stranger := load(t, "", nil), load(t, "", nil)
	for name, shown := range map[string][]tls.Certificate{"none": nil, "of a stranger": {stranger.Certificate}} {
		l, err := tls.Listen("tcp", "127.0.0.1:0", b.ServerConfig())
		if err != nil {
			t.Fatal(err)
		}
		seen := make(chan []*x509.Certificate, 1)
		go func() {
			defer close(seen)
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			if server := conn.(*tls.Conn); server.Handshake() == nil {
				seen <- server.ConnectionState().PeerCertificates
			}
		}()
		conn, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{RootCAs: b.Roots(), ServerName: "localhost", Certificates: shown})
		if err != nil {
			t.Fatal(err)
		}
		chain, ok := <-seen
		if !ok || len(chain) != len(shown) || len(chain) == 1 && !bytes.Equal(chain[0].Raw, shown[0].Certificate[0]) {
			t.Errorf("%s: the server sees %d certificates, handshake done: %v", name, len(chain), ok)
		}
		_ = conn.Close()
		_ = l.Close()
	}
}

func TestKeptAcrossLoads(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "new", "tls")
	first := load(t, dir, nil)
	second := load(t, dir, nil)
	if !bytes.Equal(first.CAPEM, second.CAPEM) || !first.Certificate.Leaf.Equal(second.Certificate.Leaf) {
		t.Error("made anew without need")
	}
	if err := handshake(t, second, "localhost"); err != nil {
		t.Error(err)
	}
	onDisk, err := os.ReadFile(second.CAPath)
	if err != nil || !bytes.Equal(onDisk, second.CAPEM) {
		t.Errorf("CAPath does not hold CAPEM (%v)", err)
	}
	for _, name := range []string{"ca-key.pem", "server-key.pem"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", name, info.Mode())
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 4 {
		t.Errorf("%d entries in the directory, want 4 (%v)", len(entries), err)
	}
}

func TestRenewal(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(d time.Duration) func() time.Time { return func() time.Time { return start.Add(d) } }
	tests := map[string]struct {
		opts               tlsca.Options
		sameServer, sameCA bool
	}{
		"soon after":              {tlsca.Options{Now: at(day)}, true, true},
		"before the renewal time": {tlsca.Options{Now: at((397-30)*day - time.Second)}, true, true},
		"at the renewal time":     {tlsca.Options{Now: at((397 - 30) * day)}, false, true},
		"after the end":           {tlsca.Options{Now: at(500 * day)}, false, true},
		"clock set back":          {tlsca.Options{Now: at(-day)}, false, false},
		"another name":            {tlsca.Options{Now: at(day), Names: []string{"hub.local"}}, false, true},
		"CA near its end":         {tlsca.Options{Now: at(3640 * day)}, false, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			first := load(t, dir, &tlsca.Options{Now: at(0)})
			second := load(t, dir, &tt.opts)
			if got := first.Certificate.Leaf.Equal(second.Certificate.Leaf); got != tt.sameServer {
				t.Errorf("same server certificate: %v, want %v", got, tt.sameServer)
			}
			if got := bytes.Equal(first.CAPEM, second.CAPEM); got != tt.sameCA {
				t.Errorf("same CA: %v, want %v", got, tt.sameCA)
			}
			_, err := second.Certificate.Leaf.Verify(x509.VerifyOptions{
				DNSName: "localhost", Roots: second.Roots(), CurrentTime: tt.opts.Now(),
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}

func TestDroppedNameMakesAnew(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	load(t, dir, &tlsca.Options{Names: []string{"old.local"}})
	if err := handshake(t, load(t, dir, nil), "old.local"); err == nil {
		t.Error("still good for a name that was dropped")
	}
}

// TestHalfAPair is what a crash between two writes leaves behind.
func TestHalfAPair(t *testing.T) {
	t.Parallel()
	for _, lost := range []string{"server.pem", "server-key.pem", "ca.pem", "ca-key.pem"} {
		dir := t.TempDir()
		load(t, dir, nil)
		if err := os.Remove(filepath.Join(dir, lost)); err != nil {
			t.Fatal(err)
		}
		if err := handshake(t, load(t, dir, nil), "localhost"); err != nil {
			t.Errorf("without %s: %v", lost, err)
		}
	}
}

func TestDamagedFilesAreNotReplaced(t *testing.T) {
	t.Parallel()
	for _, damaged := range []string{"server.pem", "server-key.pem", "ca.pem", "ca-key.pem"} {
		dir := t.TempDir()
		load(t, dir, nil)
		path := filepath.Join(dir, damaged)
		if err := os.WriteFile(path, []byte("garbage"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := tlsca.Load(dir, nil); err == nil {
			t.Errorf("damaged %s: no error", damaged)
		}
		if data, _ := os.ReadFile(path); string(data) != "garbage" {
			t.Errorf("damaged %s was overwritten", damaged)
		}
	}
}

func TestMixedUpPairIsAnError(t *testing.T) {
	t.Parallel()
	dir, other := t.TempDir(), t.TempDir()
	load(t, dir, nil)
	load(t, other, nil)
	key, err := os.ReadFile(filepath.Join(other, "ca-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca-key.pem"), key, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := tlsca.Load(dir, nil); err == nil {
		t.Error("no error")
	}
}
