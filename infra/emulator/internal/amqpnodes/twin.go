package amqpnodes

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqpserver"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// Message annotations of twin messages, and the resources that they name
// (azure-iot-device-amqp 1.14, amqp_twin_client.ts). Status is an int and version
// a long: the IoT SDK for C takes no other type (iothubtransport_amqp_twin_messenger.c).
const (
	annotOperation = "operation"
	annotResource  = "resource"
	annotStatus    = "status"
	annotVersion   = "version"

	resourceReported = "properties/reported"
	resourceDesired  = "notifications/twin/properties/desired"
)

// Bounds on the twin requests of a link.
const (
	// maxTwinRequests is how many may be under way.
	maxTwinRequests = 32
	// maxTwinRequest is the largest in bytes: more than the reported
	// properties of a twin may have, so that it is the hub that refuses a large
	// patch.
	maxTwinRequest = 128 << 10
)

// twinRequests takes the twin requests of a device. They are dealt with one after
// the other, because patches of the reported properties depend on their order.
type twinRequests struct {
	*deviceLink
	queue chan *amqpserver.Incoming
}

func (h *handler) openTwinRequests(ctx context.Context, addr address, a *amqpserver.Attach) (amqpserver.Target, error) {
	l, err := h.joinPair(ctx, addr, a, false)
	if err != nil {
		return nil, err
	}
	a.MaxMessageSize = maxTwinRequest
	a.Credit = maxTwinRequests
	t := &twinRequests{l, make(chan *amqpserver.Incoming, maxTwinRequests)}
	h.wg.Go(func() { t.work(ctx) })
	return t, nil
}

// Deliver hands a request on. There is room: a request has its credit given again
// when it has been dealt with.
func (t *twinRequests) Deliver(ctx context.Context, in *amqpserver.Incoming) {
	select {
	case t.queue <- in:
	case <-ctx.Done():
	}
}

// work deals with requests until the link ends.
func (t *twinRequests) work(ctx context.Context) {
	for {
		select {
		case in := <-t.queue:
			if err := t.answer(ctx, in); err != nil {
				in.Reject(err)
			} else {
				in.Accept()
			}
		case <-ctx.Done():
			return
		}
	}
}

// answer gives the device the answer to one request. An error means that there is
// none.
func (t *twinRequests) answer(ctx context.Context, in *amqpserver.Incoming) error {
	if err := t.check(); err != nil {
		return err
	}
	m, err := in.Message()
	if err == nil {
		err = flatten(m)
	}
	if err != nil {
		return err
	}
	if n := echoSize(m.Properties); n > maxEcho {
		return amqp.Errorf(amqp.CondInvalidField, "the correlation ID has more than %d bytes", maxEcho)
	}
	receiver, err := t.receiver()
	if err != nil {
		return err
	}
	t.session.Touch()
	answer, err := t.run(ctx, m)
	if err != nil {
		answer = twinFailure(hub.AsError(err))
	}
	answer.Properties = &amqp.Properties{}
	if m.Properties != nil {
		answer.Properties.CorrelationID = m.Properties.CorrelationID
	}
	receiver.push(answer, len(answer.Body()))
	return nil
}

// run does what a request asks for.
func (t *twinRequests) run(ctx context.Context, m *amqp.Message) (*amqp.Message, error) {
	operation, _ := m.Annotations[annotOperation].(string)
	resource, _ := m.Annotations[annotResource].(string)
	switch strings.ToUpper(operation) + " " + strings.ToLower(strings.Trim(resource, "/")) {
	case "GET ":
		twin, err := t.session.ReadTwin()
		return twinSuccess(twin), err
	case "PATCH " + resourceReported:
		base, err := baseVersion(m)
		if err != nil {
			return nil, err
		}
		version, err := t.session.UpdateReported(ctx, m.Body(), base)
		answer := twinSuccess(nil)
		answer.Annotations[annotVersion] = version
		return answer, err
	case "PUT " + resourceDesired:
		return twinSuccess(nil), t.watchDesired()
	case "DELETE " + resourceDesired:
		t.ignoreDesired()
		return twinSuccess(nil), nil
	}
	return nil, hub.Errorf(hub.CodeInvalidOperation, "a twin has no operation %s on the resource %s", shorten(operation), shorten(resource))
}

// baseVersion is the version that the reported properties must have for an update;
// 0 if the device doesn't say, as only azure-iot-sdk-java does
// (AmqpsTwinSenderLinkHandler.java, which writes an int).
func baseVersion(m *amqp.Message) (int64, error) {
	var version int64
	switch v := m.Annotations[annotVersion].(type) {
	case nil:
		return 0, nil
	case int32:
		version = int64(v)
	case int64:
		version = v
	}
	if version < 1 {
		return 0, hub.Errorf(hub.CodeArgumentInvalid, "the annotation %s is not a version", annotVersion)
	}
	return version, nil
}

// shorten keeps a text that a device sent from filling an answer.
func shorten(s string) string {
	const most = 100
	return strings.ToValidUTF8(s[:min(len(s), most)], "?")
}

func twinSuccess(body []byte) *amqp.Message {
	return &amqp.Message{
		Annotations: map[string]any{annotStatus: int32(http.StatusOK)},
		Data:        [][]byte{body},
	}
}

// twinFailure is the answer to a request that the hub refuses. The SDKs show the
// body in their errors.
func twinFailure(e *hub.Error) *amqp.Message {
	body, err := json.Marshal(e.Body())
	if err != nil {
		body = []byte("{}") // a number and strings: it never fails
	}
	return &amqp.Message{
		Annotations: map[string]any{annotStatus: int32(e.Code.Status())},
		Data:        [][]byte{body},
	}
}

// watchDesired lets the receiving link of the pair have changes of the desired
// properties. They come without correlation ID.
func (t *twinRequests) watchDesired() error {
	t.handler.mu.Lock()
	defer t.handler.mu.Unlock()
	served := t.serve(t.deviceLink, func(receiver *deviceLink) {
		t.session.WatchDesired(func(patch []byte, version int64) {
			receiver.push(&amqp.Message{
				Annotations: map[string]any{annotVersion: version},
				Data:        [][]byte{patch},
			}, len(patch))
		})
	})
	if !served {
		return hub.Errorf(hub.CodeInvalidOperation, "the receiving link has gone")
	}
	return nil
}

func (t *twinRequests) ignoreDesired() {
	t.handler.mu.Lock()
	defer t.handler.mu.Unlock()
	t.ceaseToServe(t.deviceLink)
}
