package credential_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/hubjobs/hubjobs/azure/credential"
	"github.com/hubjobs/hubjobs/job"
)

func TestRootCAs(t *testing.T) {
	t.Parallel()
	if pool, err := credential.RootCAs(""); pool != nil || err != nil {
		t.Errorf("no file: got %v, %v; want the system's authorities", pool, err)
	}
	if _, err := credential.RootCAs(filepath.Join(t.TempDir(), "missing.pem")); !errors.Is(err, job.ErrInvalid) {
		t.Errorf("missing file: got %v", err)
	}
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, []byte("nothing in here"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := credential.RootCAs(file); !errors.Is(err, job.ErrInvalid) {
		t.Errorf("no certificate: got %v", err)
	}
}

func TestAzure(t *testing.T) {
	t.Parallel()
	for _, clientID := range []string{"", "11111111-2222-3333-4444-555555555555"} {
		if cred, err := credential.Azure(clientID); err != nil || cred == nil {
			t.Errorf("client ID %q: got %v, %v", clientID, cred, err)
		}
	}
}
