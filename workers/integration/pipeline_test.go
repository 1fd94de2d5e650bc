package integration

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.temporal.io/sdk/client"

	"github.com/hubjobs/hubjobs/activities"
	"github.com/hubjobs/hubjobs/activities/steps"
	"github.com/hubjobs/hubjobs/azure/iotdevice"
	"github.com/hubjobs/hubjobs/azure/iothub"
	"github.com/hubjobs/hubjobs/azure/servicebus"
	"github.com/hubjobs/hubjobs/infra/emulator"
	"github.com/hubjobs/hubjobs/infra/emulator/emulatortest"
	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/workers/host"
	"github.com/hubjobs/hubjobs/workers/manager"
	"github.com/hubjobs/hubjobs/workers/scheduler"
	"github.com/hubjobs/hubjobs/workers/solver"
)

const apiKey = "the-key"

// pipeline is a hub of its own with roles, on the tests' one Temporal server.
type pipeline struct {
	hub     *emulator.Emulator
	roots   *x509.CertPool
	bus     servicebus.Config
	manager *running
	client  client.Client
}

// startPipeline starts one with all three roles.
func startPipeline(t *testing.T, runner activities.StepRunner) *pipeline {
	t.Helper()
	p := startHub(t)
	p.startManager(t)
	p.startScheduler(t)
	p.startSolver(t, runner, p.hub.MQTTSAddr())
	return p
}

// startHub starts one without roles. Its workers take from the task queues of the one server whatever is there, so tests
// with a pipeline don't run side by side.
func startHub(t *testing.T) *pipeline {
	t.Helper()
	p := &pipeline{hub: emulatortest.Start(t), client: dial(t), roots: x509.NewCertPool()}
	p.roots.AppendCertsFromPEM(p.hub.CAPEM())
	p.bus = servicebus.Config{ConnectionString: p.hub.ServiceBusConnectionString(), Logger: logger(t)}
	return p
}

func temporalOptions() client.Options { return client.Options{HostPort: server.Address()} }

// startManager starts a manager, where the last one listened if there was one.
func (p *pipeline) startManager(t *testing.T) *running {
	t.Helper()
	addr := ""
	if p.manager != nil {
		addr = p.manager.httpAddr
	}
	p.manager = launch(t, func(ctx context.Context, ready func(string)) error {
		return manager.Run(ctx, manager.Settings{Temporal: temporalOptions(), Hub: p.hubConfig(t), ServiceBus: p.bus,
			APIKey: apiKey, HTTPAddr: addr, Logger: logger(t), Ready: ready})
	})
	return p.manager
}

// startScheduler starts a scheduler. It has always the same name, so that nobody has to find out first that the last one
// is gone.
func (p *pipeline) startScheduler(t *testing.T) *running {
	t.Helper()
	return launch(t, func(ctx context.Context, ready func(string)) error {
		return scheduler.Run(ctx, scheduler.Settings{
			Temporal: temporalOptions(), Host: p.host(p.hub.MQTTSAddr()), Logger: logger(t), Ready: ready})
	})
}

// startSolver starts a solver, always of the same name, whose devices connect to an address of the hub.
func (p *pipeline) startSolver(t *testing.T, runner activities.StepRunner, mqttAddr string) *running {
	t.Helper()
	return launch(t, func(ctx context.Context, ready func(string)) error {
		return solver.Run(ctx, solver.Settings{
			Temporal: temporalOptions(), Host: p.host(mqttAddr), Steps: runner, ServiceBus: &p.bus, Logger: logger(t), Ready: ready})
	})
}

func (p *pipeline) host(mqttAddr string) host.Settings {
	return host.Settings{Name: "host", ManagerURL: "http://" + p.manager.httpAddr, APIKey: apiKey, MQTTAddr: mqttAddr, RootCAs: p.roots}
}

func (p *pipeline) hubConfig(t *testing.T) iothub.Config {
	return iothub.Config{
		ConnectionString: p.hub.HubConnectionString(), HTTPSAddr: p.hub.HTTPSAddr(), AMQPSAddr: p.hub.AMQPSAddr(),
		RootCAs: p.roots, Logger: logger(t),
	}
}

func logger(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// run runs a job to its end.
func (p *pipeline) run(t *testing.T, id string, names ...string) job.Result {
	t.Helper()
	p.start(t, id, job.Options{}, names...)
	return p.result(t, id)
}

// start starts a job.
func (p *pipeline) start(t *testing.T, id string, o job.Options, names ...string) {
	t.Helper()
	j, err := job.New(id, "", names)
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.client.ExecuteWorkflow(t.Context(), client.StartWorkflowOptions{ID: id, TaskQueue: job.TaskQueueJobs},
		job.WorkflowJob, job.JobInput{Job: j, Options: o})
	if err != nil {
		t.Fatal(err)
	}
}

// result waits for the end of a job.
func (p *pipeline) result(t *testing.T, id string) job.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var result job.Result
	if err := p.client.GetWorkflow(ctx, id, "").Get(ctx, &result); err != nil {
		t.Logf("the job ended with %v", err)
		return p.status(t, id)
	}
	return result
}

// status asks for the state of a job.
func (p *pipeline) status(t *testing.T, id string) job.Result {
	t.Helper()
	value, err := p.client.QueryWorkflow(t.Context(), id, "", job.QueryStatus)
	if err != nil {
		t.Fatal(err)
	}
	var result job.Result
	if err := value.Get(&result); err != nil {
		t.Fatal(err)
	}
	return result
}

func TestPipeline(t *testing.T) {
	runner, err := steps.NewExec("../../activities/steps/testdata/steps")
	if err != nil {
		t.Fatal(err)
	}
	p := startPipeline(t, runner)
	for _, c := range []struct {
		id     string
		steps  []string
		state  job.State
		reason string
		done   int
	}{
		{"job-fine", []string{"Read all the data", "Long output"}, job.StateCompleted, "", 3},
		{"job-failing", []string{"Read all the data", "Fail"}, job.StateFailed, "the disk is full", 1},
		{"job-rejected", []string{"Read all the data", "Escape"}, job.StateRejected, `"Escape"`, 0},
	} {
		t.Run(c.id, func(t *testing.T) {
			got := p.run(t, c.id, c.steps...)
			if got.State != c.state || got.StepsDone != c.done || !strings.Contains(got.Reason, c.reason) {
				t.Errorf("got %+v", got)
			}
			if m := got.Messages; m.Read != m.Sent || m.Sent == 0 {
				t.Errorf("messages: %+v", m)
			}
		})
	}
	p.awaitNoDevices(t)
}

// A job leaves no identities behind, even when a device was still connected as they were deleted.
func (p *pipeline) awaitNoDevices(t *testing.T) {
	t.Helper()
	hub, err := iothub.New(p.hubConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	defer hub.Close()
	var left []string
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		left = nil
		for d, err := range hub.Devices(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			left = append(left, d.ID)
		}
		if len(left) == 0 {
			return
		}
	}
	t.Errorf("identities were left behind: %v", left)
}

// connect gets a device's connection string over HTTP, as people with a console do, and connects it.
func (p *pipeline) connect(t *testing.T, deviceID string, handle func(context.Context, job.Message) error) *iotdevice.Client {
	t.Helper()
	status, answer := request(t, "GET", "http://"+p.manager.httpAddr+"/negotiate/"+deviceID, "", apiKey)
	var body struct{ URL string }
	if err := json.Unmarshal([]byte(answer), &body); err != nil || status != http.StatusOK {
		t.Fatalf("negotiate: %d, %v", status, err)
	}
	c, err := iotdevice.Dial(t.Context(), body.URL, iotdevice.Options{
		Addr: p.hub.MQTTSAddr(), RootCAs: p.roots, Handle: handle, Logger: logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return c
}

func TestMessagesWithoutAJob(t *testing.T) {
	p := startPipeline(t, steps.Simulate{})
	received := make(chan job.Message, 1)
	p.connect(t, "device-scheduler::us", func(_ context.Context, m job.Message) error {
		received <- m
		return nil
	})
	us := p.connect(t, "device-solver::us", nil)
	them := p.connect(t, "device-solver::them", nil) // whose counterpart doesn't exist
	thermostat := p.connect(t, "thermostat", nil)
	for _, send := range []struct {
		from    *iotdevice.Client
		message job.Message
	}{
		{us, job.Message{ID: "to-us", Body: job.Body("hello")}},
		{us, job.Message{ID: "no-update", Kind: job.KindUpdate, Body: job.Body("hello")}},
		{us, job.Message{ID: "to-no-device", To: "no such/device", Body: job.Body("hello")}},
		{them, job.Message{ID: "to-nobody", Body: job.Body("hello"), Properties: map[string]string{"own": "kept"}}},
		{thermostat, job.Message{ID: "too-hot", Body: job.Body("451")}},
	} {
		if err := send.from.Publish(t.Context(), send.message); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case m := <-received:
		if m.ID != "to-us" || m.From != "device-solver::us" || string(m.Body) != "hello" {
			t.Errorf("received %+v", m)
		}
	case <-time.After(patience):
		t.Error("nothing was received")
	}
	dead := p.deadLetters(t, 4)
	for id, reason := range map[string]job.Reason{
		"to-no-device": job.ReasonDeviceNotFound,
		"no-update":    job.ReasonInvalidMessage, "to-nobody": job.ReasonDeviceNotFound, "too-hot": job.ReasonDeviceIDNotFound,
	} {
		d := dead[id]
		if d == nil || d.DeadLetterReason != string(reason) || d.DeadLetterDescription == "" {
			t.Errorf("dead letter %s: got %+v, want reason %s", id, d, reason)
		}
	}
	if d := dead["to-nobody"]; d != nil && (d.Message.From != "device-solver::them" || d.Properties["own"] != "kept" || string(d.Message.Body) != "hello") {
		t.Errorf("the message came back changed: %+v", d.Message)
	}
}

// deadLetters takes n messages out of the dead-letter queue, by message ID.
func (p *pipeline) deadLetters(t *testing.T, n int) map[string]*servicebus.Delivery {
	t.Helper()
	bus, err := servicebus.New(p.bus)
	if err != nil {
		t.Fatal(err)
	}
	defer bus.Close(context.WithoutCancel(t.Context()))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	found := make(map[string]*servicebus.Delivery)
	err = bus.Receive(ctx, servicebus.Source{Queue: "device-messages", DeadLetter: true}, servicebus.ReceiveOptions{},
		func(ctx context.Context, batch []*servicebus.Delivery) {
			for _, d := range batch {
				found[d.Message.ID] = d
				if err := d.Complete(ctx); err != nil {
					t.Error(err)
				}
			}
			if len(found) == n {
				cancel()
			}
		})
	if err != nil {
		t.Error(err)
	}
	return found
}
