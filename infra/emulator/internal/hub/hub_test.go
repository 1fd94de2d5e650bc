package hub_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// deviceID has the colons of the pipeline's devices, and characters that have to
// be escaped in one place or another.
const deviceID = "device-solver::job-1%$'(?#)"

// fixture is a hub with the two usual routes.
type fixture struct {
	*hub.Hub
	queue  *broker.Queue
	events *broker.EventLog
}

func newHub(t *testing.T, s store.Store, change ...func(*hub.Options)) fixture {
	t.Helper()
	q, err := broker.OpenQueue(s, "device-messages", broker.QueueOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(q.Close)
	l, err := broker.OpenEventLog(s, "hub", broker.EventLogOptions{Partitions: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	opts := hub.Options{Name: "hub.local", Events: l, Routes: []hub.Route{{Name: "queue", Endpoint: q}, {Name: "events"}}}
	for _, f := range change {
		f(&opts)
	}
	h, err := hub.Open(s, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return fixture{h, q, l}
}

func openStore(t *testing.T, dir string) store.Store {
	t.Helper()
	s, err := store.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// afterKill opens what another process would find if this one were killed now.
func afterKill(t *testing.T, dir string) store.Store {
	t.Helper()
	other := t.TempDir()
	if err := os.CopyFS(other, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return openStore(t, other)
}

func create(t *testing.T, h fixture, id string) hub.Identity {
	t.Helper()
	d, err := h.CreateDevice(t.Context(), hub.Identity{DeviceID: id})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func list(t *testing.T, h fixture, top int) []hub.Identity {
	t.Helper()
	ids, err := h.ListDevices(top)
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

func connect(t *testing.T, h fixture, id string) *hub.Session {
	t.Helper()
	s, err := h.Connect(t.Context(), id, hub.ConnectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func msg(body string) *amqp.Message { return &amqp.Message{Data: [][]byte{[]byte(body)}} }

// c2d is a message whose body is its ID.
func c2d(id string, ack string) *amqp.Message {
	m := msg(id)
	m.Properties = &amqp.Properties{MessageID: id}
	if ack != "" {
		m.ApplicationProperties = map[string]any{hub.PropertyAck: ack}
	}
	return m
}

func sendC2D(t *testing.T, h fixture, id string, m *amqp.Message) {
	t.Helper()
	if err := h.SendC2D(t.Context(), id, m); err != nil {
		t.Fatal(err)
	}
}

// receiver returns a consumer as the MQTT front end uses it.
func receiver(t *testing.T, s *hub.Session) (*broker.Consumer, *broker.Queue) {
	t.Helper()
	c, err := s.Receive(broker.ConsumerOptions{HoldLocks: true})
	if err != nil {
		t.Fatal(err)
	}
	q, err := s.Queue()
	if err != nil {
		t.Fatal(err)
	}
	return c, q
}

func receive(t *testing.T, c *broker.Consumer) *broker.Delivery {
	t.Helper()
	ds, err := c.TryReceive(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if len(ds) == 0 {
		t.Fatal("no message is available")
	}
	return ds[0]
}

func settle(t *testing.T, q *broker.Queue, d *broker.Delivery, action broker.Action) {
	t.Helper()
	if err := q.Settle(t.Context(), d.LockToken, broker.Settlement{Action: action}); err != nil {
		t.Fatal(err)
	}
}

func check(t *testing.T, what string, got, want any) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func wantCode(t *testing.T, what string, err error, want hub.Code) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got %v, want %v", what, err, want)
	}
}

// feedbackOf returns the records of the batches that are waiting, "id status".
func feedbackOf(t *testing.T, h fixture) []string {
	t.Helper()
	var all []string
	for _, d := range h.Feedback().Peek(0, 100) {
		var records []struct {
			OriginalMessageID, StatusCode, DeviceID string
			EnqueuedTimeUTC                         time.Time
		}
		if err := json.Unmarshal(d.Message.Body(), &records); err != nil {
			t.Fatalf("%v: %s", err, d.Message.Body())
		}
		for _, r := range records {
			all = append(all, r.OriginalMessageID+" "+r.StatusCode)
			if r.EnqueuedTimeUTC.IsZero() || r.DeviceID == "" {
				t.Errorf("incomplete record %+v", r)
			}
		}
	}
	return all
}
