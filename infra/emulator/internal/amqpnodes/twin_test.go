package amqpnodes_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	client "github.com/Azure/go-amqp"
	"github.com/google/uuid"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// twinClient is a device with links for its twin.
type twinClient struct {
	t        *testing.T
	sender   *client.Sender
	receiver *client.Receiver
}

func (e *emulator) twin(t *testing.T, target hub.Target) *twinClient {
	t.Helper()
	sender, receiver := attachPair(t, e.startDevice(t, target), address(target, nodeTwin), pair{"twin:1", "twin:1"})
	return &twinClient{t, sender, receiver}
}

// request is a twin request; resource and body may be empty.
func twinRequest(correlation any, operation, resource, body string) *client.Message {
	m := &client.Message{
		Annotations: client.Annotations{"operation": operation},
		Properties:  &client.MessageProperties{CorrelationID: correlation},
		Data:        [][]byte{[]byte(body)},
	}
	if resource != "" {
		m.Annotations["resource"] = resource
		m.Annotations["version"] = nil // which the IoT SDK for C# sends
	}
	return m
}

// do sends a request and returns the answer.
func (c *twinClient) do(operation, resource, body string) *client.Message {
	c.t.Helper()
	id := uuid.NewString()
	if err := c.sender.Send(testContext(c.t), twinRequest(id, operation, resource, body), nil); err != nil {
		c.t.Fatal(err)
	}
	m := take(c.t, c.receiver)
	if m.Properties.CorrelationID != id {
		c.t.Fatalf("answer to %v, not to %s: %s", m.Properties.CorrelationID, id, m.GetData())
	}
	return m
}

// TestReportedVersion has a device write its properties on condition that nobody
// else has, as the IoT SDK for Java does.
func TestReportedVersion(t *testing.T) {
	t.Parallel()
	c := start(t).twin(t, bare)
	for _, tt := range []struct {
		version any
		status  int32
	}{{int32(1), 200}, {int32(1), 412}, {int64(2), 200}, {nil, 200}, {int32(0), 400}, {"4", 400}} {
		request := twinRequest("id", "PATCH", reported, `{"a":1}`)
		request.Annotations["version"] = tt.version
		if err := c.sender.Send(testContext(t), request, nil); err != nil {
			t.Fatal(err)
		}
		if m := take(t, c.receiver); m.Annotations["status"] != tt.status {
			t.Errorf("version %v: %v %s, want status %d", tt.version, m.Annotations, m.GetData(), tt.status)
		}
	}
	if twin := c.read(); twin.Reported["$version"] != 4.0 {
		t.Errorf("reported: %v", twin.Reported)
	}
}

func (c *twinClient) mustDo(operation, resource, body string) *client.Message {
	c.t.Helper()
	m := c.do(operation, resource, body)
	if m.Annotations["status"] != int32(200) {
		c.t.Fatalf("%s %s: %v %s", operation, resource, m.Annotations, m.GetData())
	}
	return m
}

func (c *twinClient) read() (twin struct{ Desired, Reported map[string]any }) {
	c.t.Helper()
	if err := json.Unmarshal(c.mustDo("GET", "", " ").GetData(), &twin); err != nil {
		c.t.Fatal(err)
	}
	return twin
}

const (
	reported = "/properties/reported"
	desired  = "/notifications/twin/properties/desired"
)

func (e *emulator) patchDesired(t *testing.T, target hub.Target, patch string) {
	t.Helper()
	var p hub.TwinPatch
	p.Properties.Desired = json.RawMessage(patch)
	must[hub.Twin](t)(e.hub.PatchTwin(testContext(t), target, p, ""))
}

func TestTwin(t *testing.T) {
	t.Parallel()
	for name, target := range map[string]hub.Target{"device": bare, "module": module} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := start(t)
			c := e.twin(t, target)
			if twin := c.read(); twin.Desired["$version"] != 1.0 || twin.Reported["$version"] != 1.0 {
				t.Errorf("new twin: %v", twin)
			}
			answer := c.mustDo("PATCH", reported, `{"fw":{"v":1},"old":true}`)
			if answer.Annotations["version"] != int64(2) {
				t.Errorf("annotations: %v", answer.Annotations)
			}
			c.mustDo("PATCH", reported, `{"old":null}`)
			if twin := c.read(); fmt.Sprint(twin.Reported) != "map[$version:3 fw:map[v:1]]" {
				t.Errorf("reported: %v", twin.Reported)
			}

			e.patchDesired(t, target, `{"unseen":1}`)
			c.mustDo("PUT", desired, "")
			e.patchDesired(t, target, `{"speed":7}`)
			change := take(t, c.receiver)
			var patch map[string]any
			if err := json.Unmarshal(change.GetData(), &patch); err != nil {
				t.Fatal(err)
			}
			if fmt.Sprint(patch) != "map[$version:3 speed:7]" || change.Annotations["version"] != int64(3) {
				t.Errorf("patch %v, annotations %v", patch, change.Annotations)
			}
			if p := change.Properties; p != nil && p.CorrelationID != nil {
				t.Errorf("correlation ID: %v", p.CorrelationID)
			}
			c.mustDo("DELETE", desired, "")
			e.patchDesired(t, target, `{"speed":8}`)
			if twin := c.read(); twin.Desired["speed"] != 8.0 || twin.Desired["unseen"] != 1.0 {
				t.Errorf("desired: %v", twin.Desired)
			}
		})
	}
}

// The IoT SDK for Java gives correlation IDs as UUIDs and wants them back so.
func TestTwinCorrelation(t *testing.T) {
	t.Parallel()
	c := start(t).twin(t, bare)
	for _, id := range []any{client.UUID{1}, []byte{1, 2}, "text", uint64(7), nil} {
		if err := c.sender.Send(testContext(t), twinRequest(id, "GET", "", ""), nil); err != nil {
			t.Fatal(err)
		}
		if m := take(t, c.receiver); fmt.Sprintf("%T %v", m.Properties.CorrelationID, m.Properties.CorrelationID) != fmt.Sprintf("%T %v", id, id) {
			t.Errorf("correlation ID: %v, want %v", m.Properties.CorrelationID, id)
		}
	}
	long := strings.Repeat("x", 1025)
	wantCondition(t, c.sender.Send(testContext(t), twinRequest(long, "GET", "", ""), nil), "amqp:invalid-field")
}

func TestTwinRefusals(t *testing.T) {
	t.Parallel()
	c := start(t).twin(t, bare)
	for name, tt := range map[string]struct{ operation, resource, body string }{
		"no JSON":           {"PATCH", reported, "{"},
		"no object":         {"PATCH", reported, "[]"},
		"too large":         {"PATCH", reported, `{"a":["` + strings.Repeat("x", 40<<10) + `"]}`},
		"unknown operation": {"POST", reported, "{}"},
		"unknown resource":  {"PATCH", "/properties/desired", "{}"},
		"no operation":      {"", "", ""},
		"long resource":     {"PUT", strings.Repeat("x", 10_000), ""},
	} {
		m := c.do(tt.operation, tt.resource, tt.body)
		var body struct {
			ErrorCode           int
			Message, TrackingID string
		}
		if err := json.Unmarshal(m.GetData(), &body); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		status, _ := m.Annotations["status"].(int32)
		if status < 400 || status > 413 || body.ErrorCode/1000 != int(status) || body.Message == "" || len(body.Message) > 1000 {
			t.Errorf("%s: status %d, %+v", name, status, body)
		}
	}
	c.mustDo("PATCH", reported, `{"still":"there"}`)
}

func TestTwinNeedsAReceiver(t *testing.T) {
	t.Parallel()
	e := start(t)
	session := e.startDevice(t, bare)
	sender, _ := attachPair(t, session, address(bare, nodeTwin), pair{"twin:1", "twin:2"})
	wantCondition(t, sender.Send(testContext(t), twinRequest("x", "GET", "", ""), nil), "amqp:precondition-failed")
	_, err := session.NewReceiver(testContext(t), address(bare, nodeTwin), &client.ReceiverOptions{
		Properties: map[string]any{"com.microsoft:channel-correlation-id": strings.Repeat("x", 1025)},
	})
	wantCondition(t, err, "amqp:invalid-field")
}

// Patches under way together are applied in the order in which they were sent.
func TestTwinPatchesKeepTheirOrder(t *testing.T) {
	t.Parallel()
	e := start(t)
	session := e.startDevice(t, bare)
	sender, receiver := attachPair(t, session, address(bare, nodeTwin), pair{})
	const n = 200
	receipts := make([]client.SendReceipt, n)
	for i := range n {
		m := twinRequest(fmt.Sprint(i), "PATCH", reported, fmt.Sprintf(`{"last":%d}`, i))
		receipts[i] = must[client.SendReceipt](t)(sender.SendWithReceipt(testContext(t), m, nil))
		if i >= 5 { // so many answers have come that credit is left
			if got := take(t, receiver).Properties.CorrelationID; got != fmt.Sprint(i-5) {
				t.Errorf("answer to %v, want %d", got, i-5)
			}
		}
	}
	for _, r := range receipts {
		must[client.DeliveryState](t)(r.Wait(testContext(t)))
	}
	twin := must[hub.Twin](t)(e.hub.GetTwin(bare))
	contains(t, string(twin.Properties.Reported), fmt.Sprintf(`"last":%d`, n-1))
}

// A device that gives no credit must not be able to fill the memory with answers.
func TestTwinAnswersThatNobodyTakes(t *testing.T) {
	t.Parallel()
	e := start(t)
	session := e.startDevice(t, bare)
	receiver := must[*client.Receiver](t)(session.NewReceiver(testContext(t), address(bare, nodeTwin), &client.ReceiverOptions{Credit: -1}))
	sender := newSender(t, session, address(bare, nodeTwin))
	for range 1001 {
		if err := sender.Send(testContext(t), twinRequest("x", "GET", "", ""), nil); err != nil {
			t.Fatal(err)
		}
	}
	wantDetached(t, receiver, client.ErrCondResourceLimitExceeded)
}
