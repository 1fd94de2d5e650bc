package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// library is the module of the consoles' library. Its folder tests holds what its authors run against a hub in Azure.
const library = "github.com/amenzhinsky/iothub"

// suiteTimeout bounds a run of the library's tests.
const suiteTimeout = 2 * time.Minute

// The library's tests in v0.9.1: each case over each transport.
var (
	suiteTransports = []string{"mqtt", "mqtt-ws"}
	suiteCases      = []string{
		"x509/DeviceToCloud",
		"sas/DeviceToCloud",
		"sas/CloudToDevice",
		"sas/DirectMethod",
		"sas/UpdateDeviceTwin",
		"sas/SubscribeTwin",
	}
)

// TestLibrarySuite runs the library's own tests against the emulator. The library has the ports of the cloud and the
// roots that it trusts built in: the emulator gets an address with those ports, and an overlay of the build adds the
// emulator's authority to the roots.
func TestLibrarySuite(t *testing.T) {
	t.Parallel()
	ip := cloudPorts(t)
	e := startEmulator(t, t.TempDir(), "--amqps-addr", ip+":5671", "--mqtts-addr", ip+":8883", "--https-addr", ip+":443", "--amqp-addr", ip+":0")
	ca, err := os.ReadFile(e.settings["EMULATOR_CA_FILE"])
	if err != nil {
		t.Fatal(err)
	}
	dir := copyLibrary(t)
	binary := buildSuite(t, dir, ca)
	hub := strings.Replace(e.settings["IOTHUB_CONNECTION_STRING"], "HostName=localhost", "HostName="+ip, 1)
	// One at a time: they share their devices, and a case leaves a receiver of feedback behind that would take that of
	// the next one.
	for _, transport := range suiteTransports {
		t.Run(transport, func(t *testing.T) { runSuite(t, binary, filepath.Join(dir, "tests"), hub, transport) })
	}
}

// cloudPorts returns a loopback address with the ports of the cloud free, or skips the test if there is none.
func cloudPorts(t *testing.T) string {
	t.Helper()
	const attempts = 10
	for range attempts {
		ip := fmt.Sprintf("127.%d.%d.%d", 64+rand.IntN(128), rand.IntN(256), 1+rand.IntN(254))
		err := canListen(ip, "443", "5671", "8883")
		switch {
		case err == nil:
			return ip
		case errors.Is(err, syscall.EADDRINUSE):
		default:
			t.Skipf("the library's ports are fixed, and can't be had here: %v", err)
		}
	}
	t.Skipf("the library's ports are fixed, and taken on %d addresses", attempts)
	return ""
}

func canListen(ip string, ports ...string) error {
	for _, port := range ports {
		l, err := net.Listen("tcp", net.JoinHostPort(ip, port))
		if err != nil {
			return err
		}
		if err := l.Close(); err != nil {
			return err
		}
	}
	return nil
}

// copyLibrary copies the library's source: Go lets no overlay change the module cache.
func copyLibrary(t *testing.T) string {
	t.Helper()
	source := strings.TrimSpace(string(goCommand(t, "list", "-m", "-f", "{{.Dir}}", library)))
	dir := t.TempDir()
	err := filepath.WalkDir(source, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(source, path)
		if err != nil {
			return err
		}
		target := filepath.Join(dir, name)
		if entry.IsDir() {
			return os.MkdirAll(target, 0o755)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(target, data, 0o644) // those of the module cache are read-only
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// trust is the file that the overlay adds to the library.
const trust = `package common

func init() { caCerts = append(caCerts, %q...) }
`

// buildSuite builds the library's tests, with the modules that the consoles use.
func buildSuite(t *testing.T, dir string, ca []byte) string {
	t.Helper()
	work := t.TempDir()
	addition := filepath.Join(work, "trust.go")
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(dir, "common", "trust.go"): addition}})
	if err != nil {
		t.Fatal(err)
	}
	module, err := os.ReadFile(filepath.Join("..", "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	sums, err := os.ReadFile(filepath.Join("..", "go.sum"))
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"trust.go":     fmt.Appendf(nil, trust, "\n"+string(ca)),
		"overlay.json": overlay,
		"go.mod":       fmt.Appendf(module, "\nreplace %s => %q\n", library, filepath.ToSlash(dir)),
		"go.sum":       sums,
	} {
		if err := os.WriteFile(filepath.Join(work, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	binary := filepath.Join(work, "suite.test")
	goCommand(t, "test", "-c", "-o", binary, "-modfile", filepath.Join(work, "go.mod"), "-overlay", filepath.Join(work, "overlay.json"), library+"/tests")
	return binary
}

// goCommand runs the go command in the consoles' module and returns its output.
func goCommand(t *testing.T, args ...string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = ".."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	output, err := cmd.Output()
	if err != nil {
		t.Fatalf("go %s: %v\n%s", args[0], err, stderr.Bytes())
	}
	return output
}

// passedLine is the line of a case that passed.
var passedLine = regexp.MustCompile(`(?m)^ *--- PASS: TestEnd2End/(\S+)`)

// runSuite runs the library's tests of one transport in their folder, and makes a test of each case.
func runSuite(t *testing.T, binary, dir, hub, transport string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), suiteTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "-test.v", "-test.run", "^TestEnd2End$/^"+transport+"$", "-test.timeout", suiteTimeout.String())
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TEST_IOTHUB_SERVICE_CONNECTION_STRING="+hub)
	output, err := cmd.CombinedOutput()
	t.Logf("output of the suite:\n%s", output)
	if err != nil {
		t.Errorf("the suite: %v", err)
	}
	if bytes.Contains(output, []byte("timed out")) {
		t.Error("the suite waited in vain, which it doesn't count as a failure")
	}
	passed := map[string]bool{}
	for _, match := range passedLine.FindAllSubmatch(output, -1) {
		passed[string(match[1])] = true
	}
	for _, name := range suiteCases {
		t.Run(name, func(t *testing.T) {
			if !passed[transport+"/"+name] {
				t.Error("it did not pass; the output of the suite says why")
			}
		})
	}
}
