package integration

import (
	"context"
	"encoding/json"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.temporal.io/api/operatorservice/v1"
	"go.temporal.io/sdk/client"

	"github.com/hubjobs/hubjobs/activities/steps"
	"github.com/hubjobs/hubjobs/azure/iothub"
	"github.com/hubjobs/hubjobs/azure/servicebus"
	"github.com/hubjobs/hubjobs/infra/local/temporal"
	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/workers/host"
	"github.com/hubjobs/hubjobs/workers/manager"
	"github.com/hubjobs/hubjobs/workers/scheduler"
	"github.com/hubjobs/hubjobs/workers/solver"
)

const patience = 2 * time.Minute

// server is the one Temporal server of all tests.
var server *temporal.Server

func TestMain(m *testing.M) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	var err error
	server, err = temporal.Start(ctx, temporal.Options{})
	cancel()
	if err != nil {
		log.Fatal(err)
	}
	code := m.Run()
	if leaked := leaks(); leaked != "" {
		log.Printf("the roles left goroutines behind:\n%s", leaked)
		code = 1
	}
	if err := server.Close(); err != nil {
		log.Print(err)
		code = 1
	}
	os.Exit(code)
}

// leaks returns the goroutines in which code of ours still runs, once it has had time to end. The Temporal server's own
// are none of ours.
func leaks() string {
	var found []string
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
		stacks := make([]byte, 16<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		found = found[:0]
		for _, stack := range strings.Split(string(stacks), "\n\n") {
			for _, ours := range []string{"hubjobs/workers/role", "hubjobs/workers/host", "hubjobs/workers/router",
				"hubjobs/workers/manager", "hubjobs/workers/s", "hubjobs/activities", "hubjobs/azure"} {
				if strings.Contains(stack, ours) {
					found = append(found, stack)
					break
				}
			}
		}
		if len(found) == 0 {
			return ""
		}
	}
	return strings.Join(found, "\n\n")
}

// running is a role in this process.
type running struct {
	httpAddr string
	stop     context.CancelFunc
	ended    chan error
}

// launch runs a role until the test ends, and returns when it is ready.
func launch(t *testing.T, role func(ctx context.Context, ready func(string)) error) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	r := &running{stop: cancel, ended: make(chan error, 1)}
	ready := make(chan string, 1)
	go func() {
		r.ended <- role(ctx, func(addr string) { ready <- addr })
		close(r.ended)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-r.ended; err != nil {
			t.Errorf("the role ended with %v", err)
		}
	})
	select {
	case r.httpAddr = <-ready:
	case err := <-r.ended:
		t.Fatalf("the role did not start: %v", err)
	case <-time.After(patience):
		t.Fatal("the role was not ready in time")
	}
	return r
}

// end stops a role and waits until it has stopped.
func (r *running) end(t *testing.T) {
	t.Helper()
	r.stop()
	if err := <-r.ended; err != nil {
		t.Errorf("stopped with %v", err)
	}
}

// request makes an HTTP request over a connection of its own, with an API key if one is given.
func request(t *testing.T, method, url, body string, key ...string) (int, string) {
	t.Helper()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range key {
		req.Header.Set("x-api-key", k)
	}
	resp, err := (&http.Client{Transport: transport, Timeout: patience}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, strings.TrimSpace(string(answer))
}

// ready waits until the role says that it is.
func (r *running) ready(t *testing.T) {
	t.Helper()
	var status int
	var answer string
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if status, answer = request(t, "GET", "http://"+r.httpAddr+"/readyz", ""); status == http.StatusOK {
			return
		}
	}
	t.Fatalf("readyz still answers %d %s", status, answer)
}

// A solver that gets its jobs over HTTP, with a manager that knows no devices: the job is over before it began.
func TestSolverRole(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	asked := make(map[string]int)
	fake := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		asked[r.Header.Get("x-api-key")+" "+r.URL.String()]++
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"error":"there is no device"}`)
	}))
	defer fake.Close()
	r := launch(t, func(ctx context.Context, ready func(string)) error {
		return solver.Run(ctx, solver.Settings{
			Temporal: client.Options{HostPort: server.Address()},
			Host:     host.Settings{Name: "h1", ManagerURL: fake.URL, APIKey: "k"},
			Steps:    steps.Simulate{},
			Ready:    ready,
		})
	})
	r.ready(t)
	const body = `{"Name":"Job 1","CorrelationId":"job-1","Steps":["a","Done"]}`
	for range 2 { // the second time it is started already
		if status, answer := request(t, "POST", "http://"+r.httpAddr+"/jobs", body); status != 200 || answer != `{"status":"SUCCESS"}` {
			t.Fatalf("got %d %s", status, answer)
		}
	}
	c := dial(t)
	var result job.SolveResult
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := c.GetWorkflow(ctx, "solve/job-1", "").Get(ctx, &result); err != nil {
		t.Fatal(err)
	}
	if result.JobID != "job-1" || result.StepsRun != 0 || result.Status != job.StatusCancelled {
		t.Errorf("got %+v", result)
	}
	mu.Lock()
	defer mu.Unlock()
	if asked["k /negotiate/device-solver::job-1?existing=true"] == 0 || len(asked) != 1 {
		t.Errorf("the manager was asked %v", asked)
	}
}

func dial(t *testing.T) client.Client {
	t.Helper()
	c, err := server.Dial(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestSchedulerRole(t *testing.T) {
	t.Parallel()
	r := launch(t, func(ctx context.Context, ready func(string)) error {
		return scheduler.Run(ctx, scheduler.Settings{
			Temporal: client.Options{HostPort: server.Address()},
			Host:     host.Settings{Name: "h1", ManagerURL: "http://127.0.0.1:1", APIKey: "k"},
			Ready:    ready,
		})
	})
	r.ready(t)
	c := dial(t)
	for _, queue := range []string{job.TaskQueueScheduler, job.HostTaskQueue(job.RoleScheduler, "h1")} {
		awaitPoller(t, c, queue, "scheduler/h1@")
	}
	r.end(t)
}

// awaitPoller waits until a worker whose identity begins like that polls the queue for activities.
func awaitPoller(t *testing.T, c client.Client, queue, identity string) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		d, err := c.DescribeTaskQueue(t.Context(), queue, 2) // TASK_QUEUE_TYPE_ACTIVITY
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range d.GetPollers() {
			if strings.HasPrefix(p.GetIdentity(), identity) {
				return
			}
		}
	}
	t.Errorf("nobody like %q polls %s", identity, queue)
}

// A manager whose hub is out of reach works all the same: it is ready as soon as its receivers try.
func TestManagerRole(t *testing.T) {
	t.Parallel()
	r := launch(t, func(ctx context.Context, ready func(string)) error {
		return manager.Run(ctx, manager.Settings{
			Temporal: client.Options{HostPort: server.Address()},
			Hub: iothub.Config{
				ConnectionString: "HostName=localhost;SharedAccessKeyName=iothubowner;SharedAccessKey=c2VjcmV0",
				HTTPSAddr:        "127.0.0.1:1", AMQPSAddr: "127.0.0.1:1",
			},
			ServiceBus: servicebus.Config{
				ConnectionString: "Endpoint=sb://127.0.0.1:1;SharedAccessKeyName=x;SharedAccessKey=secret;UseDevelopmentEmulator=true",
			},
			APIKey: "k",
			Limits: manager.Limits{Tier: manager.TierS1},
			Logger: slog.New(slog.DiscardHandler),
			Ready:  ready,
		})
	})
	r.ready(t)
	if status, _ := request(t, "GET", "http://"+r.httpAddr+"/negotiate/d", ""); status != http.StatusUnauthorized {
		t.Errorf("negotiate without a key: got %d", status)
	}
	if _, metrics := request(t, "GET", "http://"+r.httpAddr+"/metrics", ""); !strings.Contains(metrics, "hubjobs_routed_messages_total 0") {
		t.Error("no metrics")
	}
	c := dial(t)
	attributes, err := c.OperatorService().ListSearchAttributes(t.Context(),
		&operatorservice.ListSearchAttributesRequest{Namespace: client.DefaultNamespace})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{job.SearchAttributeStatus, job.SearchAttributeStep} {
		if _, there := attributes.GetCustomAttributes()[name]; !there {
			text, _ := json.Marshal(attributes.GetCustomAttributes())
			t.Errorf("search attribute %s is not registered: %s", name, text)
		}
	}
	for _, queue := range []string{job.TaskQueueJobs, job.TaskQueueRegistry, job.TaskQueueDispatch} {
		awaitPoller(t, c, queue, "manager@")
	}
	r.end(t)
}
