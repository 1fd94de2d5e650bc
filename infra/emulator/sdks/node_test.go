package sdks

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	// The SDKs need Node 20, and the option --test-force-exit 20.14.
	minNode, minNodeMinor = 20, 14
	// installTimeout bounds npm: the SDKs with all they need are about 130 MB.
	installTimeout = 5 * time.Minute
)

// nodePath returns the program, or skips the test if there is none.
func nodePath(t *testing.T) string {
	t.Helper()
	node, err := exec.LookPath("node")
	if err != nil {
		t.Skip("Node is not installed")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	output, err := exec.CommandContext(ctx, node, "--version").Output()
	if err != nil {
		t.Fatalf("node --version: %v", err)
	}
	version := strings.TrimPrefix(strings.TrimSpace(string(output)), "v")
	var major, minor int
	if _, err := fmt.Sscanf(version, "%d.%d", &major, &minor); err != nil {
		t.Fatalf("node --version says %q", output)
	}
	if major < minNode || major == minNode && minor < minNodeMinor {
		t.Skipf("Node is %s; the cases need %d.%d or newer", version, minNode, minNodeMinor)
	}
	return node
}

// install returns the folder of the packages that the lock file of a folder names.
// They are kept in the user's cache, so that nothing appears in the repository and
// the next run needs no network. Several runs may install at once.
func install(t *testing.T, folder string) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatalf("folder for packages: %v", err)
	}
	lock, err := os.ReadFile(filepath.Join(folder, "package-lock.json"))
	if err != nil {
		t.Fatal(err)
	}
	hash := sha256.Sum256(lock)
	home := filepath.Join(cache, "hubjobs", "sdks-"+hex.EncodeToString(hash[:8]))
	if _, err := os.Stat(home); errors.Is(err, fs.ErrNotExist) {
		download(t, folder, home)
	} else if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(home, "node_modules")
}

// download lets npm install beside the target, and moves all of it there in one
// step: a folder with that name is always complete.
func download(t *testing.T, folder, target string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		t.Fatal(err)
	}
	work, err := os.MkdirTemp(filepath.Dir(target), "install-*")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(work)
	for _, name := range []string{"package.json", "package-lock.json", ".npmrc"} {
		data, err := os.ReadFile(filepath.Join(folder, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(work, name), data, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	npmInstall(t, work)
	if err := os.Rename(work, target); err != nil {
		if _, other := os.Stat(target); other != nil { // else another run was faster
			t.Fatal(err)
		}
	}
}

func npmInstall(t *testing.T, dir string) {
	t.Helper()
	npm, err := exec.LookPath("npm")
	if err != nil {
		t.Skip("npm is not installed")
	}
	ctx, cancel := context.WithTimeout(t.Context(), installTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error",
		"--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-timeout=60000")
	cmd.Dir = dir
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	killGroup(cmd)
	err = cmd.Run()
	switch {
	case err == nil:
	case os.Getenv("CI") != "":
		t.Fatalf("npm ci: %v\n%s", err, output.Bytes())
	default:
		t.Logf("npm ci:\n%s", output.Bytes())
		t.Skip("npm can't install the SDKs; without a network this is no failure, unless CI is set")
	}
}
