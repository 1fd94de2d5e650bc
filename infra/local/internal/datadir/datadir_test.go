package datadir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func open(t *testing.T, path string) *Dir {
	t.Helper()
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func closeDir(t *testing.T, d *Dir) {
	t.Helper()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestOneProcessAtATime(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "new", "data")
	first := open(t, path)
	_, err := Open(path)
	if !errors.Is(err, ErrInUse) {
		t.Fatalf("second Open: %v, want ErrInUse", err)
	}
	if want := fmt.Sprintf("by process %d", os.Getpid()); !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
		t.Errorf("%q names neither the folder nor its owner", err)
	}
	closeDir(t, first)
	closeDir(t, open(t, path))
}

func TestOpenHidesTheFolderFromGit(t *testing.T) {
	t.Parallel()
	d := open(t, t.TempDir())
	defer closeDir(t, d)
	content, err := os.ReadFile(d.File(".gitignore"))
	if err != nil || string(content) != "*\n" {
		t.Errorf(".gitignore: %q, %v", content, err)
	}
}

func TestTemporaryIsRemoved(t *testing.T) {
	t.Parallel()
	d, err := Temporary()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.File("content"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	closeDir(t, d)
	if _, err := os.Stat(d.Path()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
}

func TestOpenRefusesAFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if d, err := Open(path); err == nil {
		closeDir(t, d)
		t.Fatal("opened a file as a folder")
	}
}
