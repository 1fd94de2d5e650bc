package sdks

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// fileTimeout bounds one file of cases. Each case has a shorter bound of its own.
const fileTimeout = 3 * time.Minute

// casesSuffix ends the names of the files that hold cases.
const casesSuffix = ".test.js"

// TestJavaScript runs each file of cases against an emulator of its own, so that
// what they do to feedback, statistics and queries stays among themselves.
func TestJavaScript(t *testing.T) {
	t.Parallel()
	node := nodePath(t)
	modules := install(t, "javascript")
	files, err := filepath.Glob(filepath.Join("javascript", "*"+casesSuffix))
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases found: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), casesSuffix), func(t *testing.T) {
			t.Parallel()
			env := startHub(t).env(t)
			env["NODE_PATH"] = modules
			output, exit := runFile(t, node, filepath.Base(file), env)
			reportCases(t, output, exit)
		})
	}
}

// runFile runs a file of cases. It returns what the reporter wrote, and how node
// ended.
func runFile(t *testing.T, node, file string, env map[string]string) ([]byte, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), fileTimeout)
	defer cancel()
	// Without --test, which would run the file in one more process. With an end by
	// force, because the Event Hubs SDK leaves timers of a minute behind.
	cmd := exec.CommandContext(ctx, node, "--no-deprecation", "--require=./redirect.js", "--test-force-exit",
		"--test-reporter=./reporter.js", "--test-reporter-destination=stdout", file)
	cmd.Dir = "javascript"
	cmd.Env = os.Environ()
	for _, name := range slices.Sorted(maps.Keys(env)) {
		cmd.Env = append(cmd.Env, name+"="+env[name])
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	killGroup(cmd)
	err := cmd.Run()
	if stderr.Len() > 0 {
		t.Logf("standard error of node:\n%s", stderr.Bytes())
	}
	if ctx.Err() != nil {
		t.Errorf("node did not end in %s", fileTimeout)
	}
	return stdout.Bytes(), err
}

// result is a line of the reporter: a case or a suite that is over.
type result struct {
	Name string `json:"name"`
	// Outcome is passed, failed or skipped; or ended for a suite.
	Outcome string `json:"outcome"`
	// Detail is the error, or the reason for skipping.
	Detail       string  `json:"detail"`
	Milliseconds float64 `json:"milliseconds"`
}

// reportCases makes a test of each case. exit is the error of the process, which
// must have one of the cases as its reason.
func reportCases(t *testing.T, output []byte, exit error) {
	t.Helper()
	cases, failed, ended := 0, 0, false
	for line := range bytes.Lines(output) {
		var r result
		if err := json.Unmarshal(line, &r); err != nil {
			t.Logf("%s", bytes.TrimSpace(line)) // of a case or an SDK
			continue
		}
		if r.Outcome == "ended" {
			ended = true
			continue
		}
		cases++
		if !t.Run(r.Name, func(t *testing.T) { r.report(t) }) {
			failed++
		}
	}
	if cases == 0 || !ended || exit != nil && failed == 0 {
		t.Errorf("the cases ended too early, after %d: %v", cases, exit)
	}
}

func (r result) report(t *testing.T) {
	t.Helper()
	took := fmt.Sprintf("took %s", time.Duration(r.Milliseconds*float64(time.Millisecond)).Round(time.Millisecond))
	switch r.Outcome {
	case "passed":
		t.Log(took)
	case "skipped":
		t.Skip(r.Detail)
	default:
		t.Errorf("%s\n%s", took, r.Detail)
	}
}
