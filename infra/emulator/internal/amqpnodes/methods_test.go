package amqpnodes_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	client "github.com/Azure/go-amqp"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// pair are the two links of a device for methods or its twin.
type pair struct {
	requests, responses string // correlation IDs, if not empty
}

// attachPair attaches links to a node of an identity. Their settle modes are those
// of the IoT SDK for C#.
func attachPair(t *testing.T, s *client.Session, a string, p pair) (*client.Sender, *client.Receiver) {
	t.Helper()
	properties := func(id string) map[string]any {
		if id == "" {
			return nil
		}
		return map[string]any{"com.microsoft:channel-correlation-id": id, "com.microsoft:api-version": "2021-04-12"}
	}
	sender := must[*client.Sender](t)(s.NewSender(testContext(t), a, &client.SenderOptions{Properties: properties(p.requests)}))
	receiver := must[*client.Receiver](t)(s.NewReceiver(testContext(t), a, &client.ReceiverOptions{
		Properties: properties(p.responses), RequestedSenderSettleMode: client.SenderSettleModeSettled.Ptr(), Credit: 10,
	}))
	return sender, receiver
}

var paired = pair{"methods:1", "methods:1"}

// invocation is a method call under way.
type invocation struct {
	result hub.MethodResult
	err    error
}

// invoke calls a method; payload may be nil.
func (e *emulator) invoke(t *testing.T, target hub.Target, payload json.RawMessage) <-chan invocation {
	t.Helper()
	done := make(chan invocation, 1)
	ctx, cancel := context.WithCancel(testContext(t))
	var wg sync.WaitGroup
	wg.Go(func() {
		result, err := e.hub.InvokeMethod(ctx, target, hub.MethodCall{Name: "reboot", Payload: payload})
		done <- invocation{result, err}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return done
}

func TestMethods(t *testing.T) {
	t.Parallel()
	for name, target := range map[string]hub.Target{"device": bare, "module": module} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := start(t)
			sender, receiver := attachPair(t, e.startDevice(t, target), address(target, nodeMethods), paired)
			for correlation, as := range map[string]func(client.UUID) any{
				"as UUID":   func(u client.UUID) any { return u },
				"as string": func(u client.UUID) any { return u.String() },
			} {
				call := e.invoke(t, target, json.RawMessage(`{"a":1}`))
				request := take(t, receiver)
				id, ok := request.Properties.CorrelationID.(client.UUID)
				if !ok || id[6]>>4 != 4 || id[8]>>6 != 2 {
					t.Fatalf("correlation ID: %#v", request.Properties.CorrelationID)
				}
				if request.ApplicationProperties["IoThub-methodname"] != "reboot" || string(request.GetData()) != `{"a":1}` {
					t.Errorf("request: %v %s", request.ApplicationProperties, request.GetData())
				}
				response := client.NewMessage([]byte(`{"b":2}`))
				response.Properties = &client.MessageProperties{CorrelationID: as(id)}
				response.ApplicationProperties = map[string]any{"IoThub-status": int32(201)}
				if err := sender.Send(testContext(t), response, nil); err != nil {
					t.Fatal(err)
				}
				if got := <-call; got.err != nil || got.result.Status != 201 || string(got.result.Payload) != `{"b":2}` {
					t.Errorf("%s: %+v", correlation, got)
				}
			}
		})
	}
}

func TestMethodWithoutPayload(t *testing.T) {
	t.Parallel()
	e := start(t)
	sender, receiver := attachPair(t, e.startDevice(t, bare), address(bare, nodeMethods), pair{})
	call := e.invoke(t, bare, nil)
	request := take(t, receiver)
	if string(request.GetData()) != "null" {
		t.Errorf("payload: %q", request.GetData())
	}
	response := &client.Message{
		Properties:            &client.MessageProperties{CorrelationID: request.Properties.CorrelationID},
		ApplicationProperties: map[string]any{"IoThub-status": int32(200)},
		Data:                  [][]byte{nil},
	}
	if err := sender.Send(testContext(t), response, nil); err != nil {
		t.Fatal(err)
	}
	if got := <-call; got.err != nil || got.result.Payload != nil {
		t.Errorf("%+v", got)
	}
}

// wantCall calls a method, and takes the request.
func (e *emulator) wantCall(t *testing.T, r *client.Receiver) {
	t.Helper()
	e.invoke(t, bare, nil)
	take(t, r)
}

// waitOffline waits until calls find nobody to listen. A call that still finds
// somebody gets no answer.
func (e *emulator) waitOffline(t *testing.T) {
	t.Helper()
	waitUntil(t, "the device gets no calls", func() bool {
		ctx, cancel := context.WithTimeout(testContext(t), 100*time.Millisecond)
		defer cancel()
		_, err := e.hub.InvokeMethod(ctx, bare, hub.MethodCall{Name: "m"})
		return errors.Is(err, hub.CodeDeviceNotOnline)
	})
}

func TestMethodsNeedAPair(t *testing.T) {
	t.Parallel()
	for name, p := range map[string]pair{
		"different correlation": {"methods:1", "methods:2"},
		"one without":           {"methods:1", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := start(t)
			attachPair(t, e.startDevice(t, bare), address(bare, nodeMethods), p)
			if got := <-e.invoke(t, bare, nil); !errors.Is(got.err, hub.CodeDeviceNotOnline) {
				t.Errorf("error: %v", got.err)
			}
		})
	}
}

func TestMethodsEndWithThePair(t *testing.T) {
	t.Parallel()
	e := start(t)
	session := e.startDevice(t, bare)
	sender, receiver := attachPair(t, session, address(bare, nodeMethods), paired)
	e.wantCall(t, receiver)
	if err := sender.Close(testContext(t)); err != nil {
		t.Fatal(err)
	}
	e.waitOffline(t)
	_, newer := attachPair(t, session, address(bare, nodeMethods), pair{"methods:2", "methods:2"})
	e.wantCall(t, newer)
	// The end of the older link doesn't matter to the newer pair.
	if err := receiver.Close(testContext(t)); err != nil {
		t.Fatal(err)
	}
	e.wantCall(t, newer)
	if err := newer.Close(testContext(t)); err != nil {
		t.Fatal(err)
	}
	e.waitOffline(t)
}

func TestBadMethodResponses(t *testing.T) {
	t.Parallel()
	e := start(t)
	sender, _ := attachPair(t, e.startDevice(t, bare), address(bare, nodeMethods), paired)
	status := map[string]any{"IoThub-status": int32(200)}
	for name, tt := range map[string]struct {
		m    *client.Message
		want client.ErrCond
	}{
		"no status":       {&client.Message{Data: [][]byte{[]byte("{}")}}, "com.microsoft:argument-error"},
		"status as text":  {&client.Message{Data: [][]byte{[]byte("{}")}, ApplicationProperties: map[string]any{"IoThub-status": "200"}}, "com.microsoft:argument-error"},
		"not JSON":        {&client.Message{Data: [][]byte{[]byte("{")}, ApplicationProperties: status}, "com.microsoft:argument-error"},
		"too large":       {&client.Message{Data: [][]byte{make([]byte, hub.MaxMethodPayload+1)}, ApplicationProperties: status}, client.ErrCondMessageSizeExceeded},
		"no call":         {&client.Message{Data: [][]byte{[]byte("{}")}, ApplicationProperties: status}, ""},
		"no call of ours": {&client.Message{Properties: &client.MessageProperties{CorrelationID: "x"}, ApplicationProperties: status, Data: [][]byte{nil}}, ""},
		"short ID":        {&client.Message{Properties: &client.MessageProperties{CorrelationID: []byte{1}}, ApplicationProperties: status, Data: [][]byte{nil}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			wantCondition(t, sender.Send(testContext(t), tt.m, nil), tt.want)
		})
	}
}

// A device that gives no credit must not be able to fill the memory with calls.
func TestCallsThatNobodyTakes(t *testing.T) {
	t.Parallel()
	e := start(t)
	session := e.startDevice(t, bare)
	receiver := must[*client.Receiver](t)(session.NewReceiver(testContext(t), address(bare, nodeMethods), &client.ReceiverOptions{Credit: -1}))
	newSender(t, session, address(bare, nodeMethods))
	payload := json.RawMessage(`"` + strings.Repeat("x", hub.MaxMethodPayload-2) + `"`)
	for range 100 {
		e.invoke(t, bare, payload)
	}
	wantDetached(t, receiver, client.ErrCondResourceLimitExceeded)
}
