package temporal_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/operatorservice/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/hubjobs/hubjobs/infra/local/temporal"
)

const queue = "greetings"

// greet waits for a signal when told to, so that a test can stop the server under a running workflow.
func greet(ctx workflow.Context, wait bool) (string, error) {
	if !wait {
		return "hello", nil
	}
	var name string
	workflow.GetSignalChannel(ctx, "name").Receive(ctx, &name)
	return "hello " + name, nil
}

func start(t *testing.T, opts temporal.Options) *temporal.Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	server, err := temporal.Start(ctx, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	return server
}

func dial(t *testing.T, server *temporal.Server) client.Client {
	t.Helper()
	c, err := server.Dial(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func startWorker(t *testing.T, c client.Client) worker.Worker {
	t.Helper()
	w := worker.New(c, queue, worker.Options{})
	w.RegisterWorkflow(greet)
	if err := w.Start(); err != nil {
		t.Fatal(err)
	}
	return w
}

func execute(t *testing.T, c client.Client, id string, wait bool) client.WorkflowRun {
	t.Helper()
	run, err := c.ExecuteWorkflow(t.Context(), client.StartWorkflowOptions{ID: id, TaskQueue: queue}, greet, wait)
	if err != nil {
		t.Fatal(err)
	}
	return run
}

func wantResult(t *testing.T, run client.WorkflowRun, want string) {
	t.Helper()
	var got string
	if err := run.Get(t.Context(), &got); err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Errorf("result %q, want %q", got, want)
	}
}

func TestServersDoNotMeet(t *testing.T) {
	t.Parallel()
	first, second := start(t, temporal.Options{}), start(t, temporal.Options{})
	if first.Address() == second.Address() {
		t.Fatalf("both on %s", first.Address())
	}
	for _, server := range []*temporal.Server{first, second} {
		c := dial(t, server)
		w := startWorker(t, c)
		t.Cleanup(w.Stop)
		wantResult(t, execute(t, c, "same-id", false), "hello") // would be a duplicate in a shared database
	}
}

func TestRestartContinues(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "temporal.db")

	before := start(t, temporal.Options{File: file})
	c := dial(t, before)
	w := startWorker(t, c)
	done, waiting := execute(t, c, "done", false), execute(t, c, "waiting", true)
	wantResult(t, done, "hello")
	waitForHistory(t, c, "waiting", 4) // started, and its first task scheduled, started and completed
	w.Stop()
	if err := before.Close(); err != nil {
		t.Fatal(err)
	}

	after := start(t, temporal.Options{File: file})
	c = dial(t, after)
	wantResult(t, c.GetWorkflow(t.Context(), "done", done.GetRunID()), "hello")
	if n := historyLength(t, c, "done"); n < 5 {
		t.Errorf("history of the closed workflow has %d events after the restart", n)
	}
	t.Cleanup(startWorker(t, c).Stop)
	if err := c.SignalWorkflow(t.Context(), "waiting", waiting.GetRunID(), "name", "again"); err != nil {
		t.Fatal(err)
	}
	wantResult(t, c.GetWorkflow(t.Context(), "waiting", waiting.GetRunID()), "hello again")
}

// waitForHistory returns when the workflow's history has the number of events.
func waitForHistory(t *testing.T, c client.Client, id string, events int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	iterator := c.GetWorkflowHistory(ctx, id, "", true, enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
	for range events {
		if _, err := iterator.Next(); err != nil {
			t.Fatal(err)
		}
	}
}

func historyLength(t *testing.T, c client.Client, id string) int {
	t.Helper()
	events := 0
	iterator := c.GetWorkflowHistory(t.Context(), id, "", false, enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
	for iterator.HasNext() {
		if _, err := iterator.Next(); err != nil {
			t.Fatal(err)
		}
		events++
	}
	return events
}

func TestWebUI(t *testing.T) {
	t.Parallel()
	server := start(t, temporal.Options{UIAddress: "127.0.0.1:0", Namespaces: []string{"jobs"}})
	if body := get(t, server.UIURL()+"/"); !strings.Contains(body, "<html") {
		t.Errorf("the root is no page: %.80q", body)
	}
	if body := get(t, server.UIURL()+"/api/v1/namespaces/jobs"); !strings.Contains(body, `"jobs"`) {
		t.Errorf("the web UI doesn't reach the server: %.200q", body)
	}
	if body := get(t, server.WorkflowURL("jobs", "job 1", "run")); !strings.Contains(body, "<html") {
		t.Errorf("the page of a workflow is no page: %.80q", body)
	}
	if want := server.UIURL() + "/namespaces/jobs/workflows/job%201"; server.WorkflowURL("jobs", "job 1", "") != want {
		t.Errorf("WorkflowURL = %s, want %s", server.WorkflowURL("jobs", "job 1", ""), want)
	}
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.UIURL(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if response, err := http.DefaultClient.Do(request); err == nil {
		response.Body.Close()
		t.Error("the web UI still answers after Close")
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	if response.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s: %.200s", url, response.Status, body)
	}
	return string(body)
}

func TestNamespaceSettings(t *testing.T) {
	t.Parallel()
	opts := temporal.Options{
		File:             filepath.Join(t.TempDir(), "temporal.db"),
		Namespaces:       []string{"jobs", "default"},
		SearchAttributes: map[string]enumspb.IndexedValueType{"HubJobsStatus": enumspb.INDEXED_VALUE_TYPE_KEYWORD},
	}
	for range 2 { // registering again on the same file must do no harm
		server := start(t, opts)
		c := dial(t, server)
		described, err := c.WorkflowService().DescribeNamespace(t.Context(), &workflowservice.DescribeNamespaceRequest{Namespace: "jobs"})
		if err != nil {
			t.Fatal(err)
		}
		if got := described.GetConfig().GetWorkflowExecutionRetentionTtl().AsDuration(); got != temporal.DefaultRetention {
			t.Errorf("retention %s, want %s", got, temporal.DefaultRetention)
		}
		listed, err := c.OperatorService().ListSearchAttributes(t.Context(), &operatorservice.ListSearchAttributesRequest{Namespace: "default"})
		if err != nil {
			t.Fatal(err)
		}
		if got := listed.GetCustomAttributes()["HubJobsStatus"]; got != enumspb.INDEXED_VALUE_TYPE_KEYWORD {
			t.Errorf("search attribute is %s", got)
		}
		if err := server.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestStartRefuses(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { taken.Close() })
	old := filepath.Join(t.TempDir(), "temporal.db")
	if err := os.WriteFile(old+".schema", []byte("0.1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		opts temporal.Options
		is   error
		says string
	}{
		"a taken frontend port": {opts: temporal.Options{Address: taken.Addr().String()}, says: taken.Addr().String()},
		"a taken web UI port":   {opts: temporal.Options{UIAddress: taken.Addr().String()}, says: taken.Addr().String()},
		"no address at all":     {opts: temporal.Options{Address: "here"}, says: `"here"`},
		"another schema":        {opts: temporal.Options{File: old}, is: temporal.ErrSchema, says: "0.1"},
		"a folder that is not there": {
			opts: temporal.Options{File: filepath.Join(t.TempDir(), "none", "temporal.db")}, says: "none",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, err := temporal.Start(t.Context(), test.opts)
			if err == nil {
				t.Fatal(errors.Join(errors.New("started"), server.Close()))
			}
			if test.is != nil && !errors.Is(err, test.is) {
				t.Errorf("%v is not %v", err, test.is)
			}
			if !strings.Contains(err.Error(), test.says) {
				t.Errorf("%q doesn't name %s", err, test.says)
			}
		})
	}
}

func TestUnfinishedSchemaIsMadeAnew(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "temporal.db")
	if err := os.WriteFile(file, []byte("cut off"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := dial(t, start(t, temporal.Options{File: file}))
	t.Cleanup(startWorker(t, c).Stop)
	wantResult(t, execute(t, c, "first", false), "hello")
}
