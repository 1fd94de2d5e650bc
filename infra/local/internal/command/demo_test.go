package command

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hubjobs/hubjobs/infra/local/internal/report"
	"github.com/hubjobs/hubjobs/job"
)

// confirmed is the number of messages of the demo's job that a reader confirms: the job, and two updates a step.
var confirmed = 1 + 2*len(job.DefaultSteps())

func TestDemoShowsEverything(t *testing.T) {
	t.Parallel()
	code, stdout, stderr := run(t, nil, "demo", "--step-time", "20ms")
	if code != 0 {
		t.Fatalf("exit code %d: %s\n%s", code, stderr, stdout)
	}
	for _, step := range job.DefaultSteps() {
		for _, status := range []job.Status{job.StatusInProgress, job.StatusCompleted} {
			// once while it happens, once in the table
			if n := strings.Count(stdout, step+": "+string(status)); n != 2 {
				t.Errorf("%s: %s is shown %d times", step, status, n)
			}
		}
	}
	for _, part := range []string{"starting Temporal ... ready", "DELIVERED", "/namespaces/default/workflows/job-", "Completed, 7 of 7 steps"} {
		if !strings.Contains(stdout, part) {
			t.Errorf("the output lacks %q:\n%s", part, stdout)
		}
	}
}

func TestDemoJSON(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "data")
	code, stdout, stderr := run(t, nil, "demo", "--step-time", "20ms", "--output", "json", "--data-dir", data)
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	lines := strings.Split(strings.TrimSpace(stdout), "\n")
	var got report.Summary
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &got); err != nil {
		t.Fatalf("the last line is no JSON: %v\n%s", err, stdout)
	}
	if got.Status != job.StateCompleted || got.Steps != len(job.DefaultSteps()) {
		t.Errorf("%s after %d steps", got.Status, got.Steps)
	}
	if got.Sent != confirmed || got.Delivered != confirmed || got.Read != confirmed {
		t.Errorf("sent %d, delivered %d, read %d, want %d each", got.Sent, got.Delivered, got.Read, confirmed)
	}
	if got.HistoryEvents == 0 || got.Seconds == 0 || !strings.Contains(got.UIURL, "/workflows/"+got.JobID+"/") {
		t.Errorf("summary %+v", got)
	}
	if !strings.Contains(stderr, "starting Temporal ... ready") || !strings.Contains(stderr, "Train the model") {
		t.Errorf("no progress on the error stream: %s", stderr)
	}
	if _, err := os.Stat(filepath.Join(data, "temporal.db")); err != nil {
		t.Errorf("the data directory was not kept: %v", err)
	}
}

func TestDemoKeep(t *testing.T) {
	t.Parallel()
	ctx, interrupt := context.WithTimeout(t.Context(), 3*time.Minute)
	defer interrupt()
	output, stdout := io.Pipe()
	exited := make(chan int, 1)
	go func() {
		code := Run(ctx, []string{"local", "demo", "--keep", "--step-time", "20ms"}, func(string) string { return "" }, stdout, io.Discard)
		stdout.Close()
		exited <- code
	}()

	page := ""
	lines := bufio.NewScanner(output)
	for lines.Scan() && lines.Text() != upLine {
		if strings.HasPrefix(lines.Text(), "http://") {
			page = lines.Text()
		}
	}
	if lines.Text() != upLine {
		t.Fatalf("ended without %q", upLine)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, page, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatalf("the job's page is gone: %v", err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Errorf("the job's page %s answers %s", page, response.Status)
	}

	interrupt()
	if _, err := io.Copy(io.Discard, output); err != nil {
		t.Fatal(err)
	}
	if code := <-exited; code != 0 {
		t.Errorf("exit code %d after an interrupt", code)
	}
}

func TestDemoGivesUp(t *testing.T) {
	t.Parallel()
	code, _, stderr := run(t, nil, "demo", "--step-time", "10m", "--timeout", "15s")
	if code != 1 || !strings.Contains(stderr, "--timeout") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}
