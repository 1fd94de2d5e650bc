package amqpnodes_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqpnodes"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqpserver"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// wire is a connection of a client that sends what it likes. It is for a bubble.
type wire struct {
	t    *testing.T
	conn net.Conn

	mu     sync.Mutex
	frames []amqp.Frame // as the server sent them
}

// certified is a connection whose client has shown certificates.
type certified struct {
	net.Conn
	chain []*x509.Certificate
}

func (c certified) ConnectionState() tls.ConnectionState {
	return tls.ConnectionState{PeerCertificates: c.chain}
}

// newWire connects with SASL PLAIN, or without SASL if there is no user, and
// begins a session.
func newWire(t *testing.T, e *emulator, user, password string, chain ...*x509.Certificate) *wire {
	t.Helper()
	e.addr = "127.0.0.1:5671"
	nodes, err := amqpnodes.New(e.config())
	if err != nil {
		t.Fatal(err)
	}
	server := amqpserver.New(amqpserver.Options{NewHandler: nodes.NewHandler, Plain: nodes.Plain})
	ours, theirs := net.Pipe()
	w := &wire{t: t, conn: ours}
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.ServeConn(context.Background(), certified{theirs, chain}) })
	wg.Go(w.read)
	t.Cleanup(func() {
		ours.Close()
		wg.Wait()
	})
	if user != "" {
		init := &amqp.SASLInit{Mechanism: "PLAIN", InitialResponse: fmt.Appendf(nil, "\x00%s\x00%s", user, password)}
		hello, err := amqp.AppendSASLFrame(amqp.SASLHeader[:], init)
		if err != nil {
			t.Fatal(err)
		}
		w.write(hello)
	}
	w.write(amqp.AMQPHeader[:])
	w.send(nil, &amqp.Open{ContainerID: "fuzz", MaxFrameSize: 1 << 16, ChannelMax: 9})
	w.send(nil, &amqp.Begin{IncomingWindow: 1000, OutgoingWindow: 1000})
	return w
}

func (w *wire) write(b []byte) {
	_, _ = w.conn.Write(b) // fails once the server has closed
	synctest.Wait()
}

// send sends a frame and waits until the server has nothing more to do.
func (w *wire) send(payload []byte, p amqp.Performative) {
	w.t.Helper()
	b, err := amqp.AppendFrame(nil, 0, p, payload)
	if err != nil {
		w.t.Fatal(err)
	}
	w.write(b)
}

func (w *wire) read() {
	for {
		var head [amqp.ProtocolHeadSize]byte
		if _, err := io.ReadFull(w.conn, head[:]); err != nil {
			return
		}
		if strings.HasPrefix(string(head[:]), "AMQP") {
			continue
		}
		size, err := amqp.FrameSize([4]byte(head[:4]), 1<<16)
		if err != nil {
			w.t.Error(err)
			return
		}
		b := append(head[:], make([]byte, size-len(head))...)
		if _, err := io.ReadFull(w.conn, b[len(head):]); err != nil {
			return
		}
		frame, err := amqp.DecodeFrame(b)
		if err != nil {
			w.t.Errorf("%x: %v", b, err)
		}
		frame.Payload = slices.Clone(frame.Payload)
		w.mu.Lock()
		w.frames = append(w.frames, frame)
		w.mu.Unlock()
	}
}

// heard returns the frames of one type that the server sent.
func heard[T any](w *wire) []T {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []T
	for _, f := range w.frames {
		if p, ok := f.Body.(T); ok {
			all = append(all, p)
		}
	}
	return all
}

// messages returns what the server sent, in single frames.
func (w *wire) messages() []*amqp.Message {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []*amqp.Message
	for _, f := range w.frames {
		t, ok := f.Body.(*amqp.Transfer)
		if !ok {
			continue
		}
		m := new(amqp.Message)
		if err := m.UnmarshalBinary(f.Payload); err != nil || t.More {
			w.t.Fatalf("%x: %v", f.Payload, err)
		}
		all = append(all, m)
	}
	return all
}

// pair attaches a sending and a receiving link to a node; both have handles for
// what they are.
const sending, receiving = 0, 1

func (w *wire) pair(address string) {
	w.t.Helper()
	credit, handle := uint32(100), uint32(receiving)
	w.send(nil, &amqp.Attach{Name: "r", Handle: receiving, Role: amqp.RoleReceiver, Source: &amqp.Source{Address: address}, Target: &amqp.Target{Address: "me"}})
	w.send(nil, &amqp.Flow{IncomingWindow: 1000, OutgoingWindow: 1000, Handle: &handle, LinkCredit: &credit})
	w.attach(address)
}

func (w *wire) attach(address string) {
	w.t.Helper()
	w.send(nil, &amqp.Attach{Name: "s", Handle: sending, Role: amqp.RoleSender, Source: &amqp.Source{Address: "me"}, Target: &amqp.Target{Address: address}})
}

// transfer sends a message and returns its outcome; nil without one, which there
// must be while the link is attached.
func (w *wire) transfer(payload []byte, format uint32) amqp.DeliveryState {
	w.t.Helper()
	const frameLimit = 60_000
	id := uint32(0)
	t := &amqp.Transfer{Handle: sending, DeliveryID: &id, DeliveryTag: []byte("1"), MessageFormat: &format}
	for len(payload) > frameLimit {
		t.More = true
		w.send(payload[:frameLimit], t)
		payload = payload[frameLimit:]
		t = &amqp.Transfer{Handle: sending}
	}
	w.send(payload, t)
	outcomes := heard[*amqp.Disposition](w)
	switch {
	case len(outcomes) > 1:
		w.t.Fatalf("one message has %d outcomes", len(outcomes))
	case len(outcomes) == 1:
		return outcomes[0].State
	case !slices.ContainsFunc(heard[*amqp.Detach](w), func(d *amqp.Detach) bool { return d.Handle == sending }):
		w.t.Fatal("a message has no outcome, and the link is attached")
	}
	return nil
}

// wantHonest fails the test for refusals that say nothing, because the server
// failed.
func (w *wire) wantHonest() {
	w.t.Helper()
	var errs []*amqp.Error
	for _, d := range heard[*amqp.Disposition](w) {
		if r, ok := d.State.(*amqp.Rejected); ok {
			if errs = append(errs, r.Error); r.Error == nil {
				w.t.Error("rejected without a reason")
			}
		}
	}
	for _, d := range heard[*amqp.Detach](w) {
		errs = append(errs, d.Error)
	}
	for _, e := range errs {
		if e != nil && e.Condition == amqp.CondInternalError {
			w.t.Errorf("the server failed: %v", e)
		}
	}
	for _, c := range heard[*amqp.Close](w) {
		w.t.Errorf("the server closed the connection: %v", c.Error)
	}
}

// statuses are those of replies, under either name.
func statuses(t *testing.T, replies []*amqp.Message) []int32 {
	t.Helper()
	var all []int32
	for _, m := range replies {
		status, ok := m.ApplicationProperties["status-code"].(int32)
		if !ok {
			status, ok = m.ApplicationProperties["statusCode"].(int32)
		}
		if !ok {
			t.Errorf("reply without status: %+v", m.ApplicationProperties)
		}
		all = append(all, status)
	}
	return all
}

func encoded(tb testing.TB, m *amqp.Message) []byte {
	tb.Helper()
	b, err := m.MarshalBinary()
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func ptr[T any](v T) *T { return &v }

// requestSeeds are requests of one operation with different bodies.
func requestSeeds(f *testing.F, operation string, bodies ...any) {
	f.Helper()
	for _, body := range bodies {
		f.Add(encoded(f, &amqp.Message{
			Properties:            &amqp.Properties{MessageID: "1", ReplyTo: ptr("me")},
			ApplicationProperties: map[string]any{"operation": operation, "type": "servicebus.windows.net:sastoken", "name": "sb://localhost/queue"},
			Value:                 body, HasValue: true,
		}))
	}
}

// FuzzPutToken sends any request to $cbs. No token gets in that nobody signed.
func FuzzPutToken(f *testing.F) {
	requestSeeds(f, "put-token", "SharedAccessSignature sr=localhost&sig=a&se=1&skn=iothubowner", "Bearer x", nil, int32(1), map[string]any{"a": []any{}})
	requestSeeds(f, "delete-token", "x")
	f.Add(encoded(f, &amqp.Message{Properties: &amqp.Properties{MessageID: []byte{0xff}, CorrelationID: uint64(1)}, Data: [][]byte{{1}}}))
	f.Fuzz(func(t *testing.T, payload []byte) {
		synctest.Test(t, func(t *testing.T) {
			w := newWire(t, newCore(t, func(*hub.Options) {}), "", "")
			w.pair("$cbs")
			outcome := w.transfer(payload, 0)
			replies := w.messages()
			if _, accepted := outcome.(*amqp.Accepted); accepted != (len(replies) == 1) {
				t.Errorf("outcome %T with %d replies", outcome, len(replies))
			}
			for _, status := range statuses(t, replies) {
				if !slices.Contains([]int32{400, 401, 403, 404}, status) {
					t.Errorf("status %d", status)
				}
			}
			w.wantHonest()
		})
	})
}

// FuzzManagement sends any request to the nodes that manage entities.
func FuzzManagement(f *testing.F) {
	entities := []string{"queue/$management", "topic/$management", "topic/Subscriptions/first/$management", "queue/$DeadLetterQueue/$management", "$management"}
	seed := func(operation string, body map[string]any) {
		f.Add(byte(len(operation)), encoded(f, &amqp.Message{
			Properties:            &amqp.Properties{MessageID: "1"},
			ApplicationProperties: map[string]any{"operation": operation, "name": otherName, "type": "com.microsoft:partition", "partition": "0"},
			Value:                 body, HasValue: true,
		}))
	}
	inner := encoded(f, &amqp.Message{Data: [][]byte{[]byte("later")}})
	seed("READ", nil)
	seed("com.microsoft:renew-lock", map[string]any{"lock-tokens": []amqp.UUID{{1}}})
	seed("com.microsoft:peek-message", map[string]any{"from-sequence-number": int64(0), "message-count": int32(10)})
	seed("com.microsoft:receive-by-sequence-number", map[string]any{"sequence-numbers": []int64{1}, "receiver-settle-mode": uint32(1)})
	seed("com.microsoft:update-disposition", map[string]any{"lock-tokens": []any{amqp.UUID{1}}, "disposition-status": "suspended", "deadletter-reason": "r", "properties-to-modify": map[string]any{"a": int32(1)}})
	seed("com.microsoft:schedule-message", map[string]any{"messages": []any{map[string]any{"message": inner, "message-id": "1"}}})
	seed("com.microsoft:cancel-scheduled-message", map[string]any{"sequence-numbers": []int64{1, -1}})
	f.Fuzz(func(t *testing.T, entity byte, payload []byte) {
		synctest.Test(t, func(t *testing.T) {
			e := newCore(t, func(*hub.Options) {})
			queue, err := e.namespace.Source("queue")
			if err != nil {
				t.Fatal(err)
			}
			if err := queue.Send(t.Context(), &amqp.Message{Data: [][]byte{[]byte("there")}}); err != nil {
				t.Fatal(err)
			}
			w := newWire(t, e, rootName, rootKey)
			w.pair(entities[int(entity)%len(entities)])
			outcome := w.transfer(payload, 0)
			replies := w.messages()
			if _, accepted := outcome.(*amqp.Accepted); accepted != (len(replies) == 1) {
				t.Errorf("outcome %T with %d replies", outcome, len(replies))
			}
			for _, status := range statuses(t, replies) {
				if status < 200 || status == 500 || status > 501 {
					t.Errorf("status %d: %+v", status, replies[0].ApplicationProperties)
				}
			}
			w.wantHonest()
			// What was stored can be read again.
			for _, d := range queue.Peek(0, 100) {
				encoded(t, d.Message)
			}
		})
	})
}

// FuzzDevice sends any message to the nodes of a device, or to any address. It
// never does anything in the name of another device.
func FuzzDevice(f *testing.F) {
	own, other := hub.Target{DeviceID: device}, hub.Target{DeviceID: "other"}
	nodes := []string{address(own, nodeEvents), address(own, nodeTwin), address(own, nodeMethods)}
	one := encoded(f, &amqp.Message{
		Annotations:           map[string]any{"iothub-connection-device-id": "other", "dt-subject": "c"},
		ApplicationProperties: map[string]any{"iothub-connection-device-id": "other", "a": []any{nil}},
		Data:                  [][]byte{[]byte("hello")},
	})
	f.Add(byte(0), "", one)
	f.Add(byte(0x80), "", encoded(f, &amqp.Message{Data: [][]byte{one, one}}))
	patch := func(operation, resource, body string) {
		f.Add(byte(1), "", encoded(f, &amqp.Message{
			Annotations: map[string]any{"operation": operation, "resource": resource},
			Properties:  &amqp.Properties{CorrelationID: amqp.UUID{1}},
			Data:        [][]byte{[]byte(body)},
		}))
	}
	patch("GET", "", "")
	patch("PATCH", "/properties/reported", `{"a":{"b":[1,2]},"c":null}`)
	patch("PUT", "/notifications/twin/properties/desired", "")
	patch("DELETE", "/notifications/twin/properties/desired", "")
	f.Add(byte(2), "", encoded(f, &amqp.Message{
		Properties:            &amqp.Properties{CorrelationID: amqp.UUID{6: 0x40, 8: 0x80}},
		ApplicationProperties: map[string]any{"IoThub-status": int32(200)},
		Data:                  [][]byte{[]byte(`{}`)},
	}))
	f.Add(byte(3), address(other, nodeEvents), one)
	f.Add(byte(3), "/devices/other%2F..%2F"+device+"/messages/events", one)
	f.Add(byte(3), "x://localhost/devices/"+device+"/../other/twin", one)
	f.Add(byte(3), "/messages/devicebound", one)
	f.Fuzz(func(t *testing.T, node byte, anywhere string, payload []byte) {
		synctest.Test(t, func(t *testing.T) {
			e := newCore(t, func(*hub.Options) {})
			e.create(t, own)
			e.create(t, other)
			w := newWire(t, e, device+"@sas."+hubName, e.identityToken(t, own))
			to := append(nodes, strings.ToValidUTF8(anywhere, "?"))[node&3]
			format := uint32(0)
			if node&0x80 != 0 {
				format = amqp.BatchFormat
			}
			w.pair(to)
			w.transfer(payload, format)
			w.messages()
			w.wantHonest()
			e.wantOnly(t, own, other)
		})
	})
}

// wantOnly fails the test if something was done in the name of another identity,
// or what was done can't be read.
func (e *emulator) wantOnly(t *testing.T, own, other hub.Target) {
	t.Helper()
	for _, event := range e.allEvents(t) {
		encoded(t, event.Message)
		if id := event.Message.Annotations[hub.PropertyDeviceID]; id != own.DeviceID {
			t.Errorf("a message in the name of %v", id)
		}
	}
	identity, err := e.hub.GetDevice(other.DeviceID)
	if err != nil {
		t.Fatal(err)
	}
	twin, err := e.hub.GetTwin(other)
	if err != nil {
		t.Fatal(err)
	}
	if identity.ConnectionState == hub.Connected || !identity.LastActivityTime.IsZero() || identity.CloudToDeviceMessageCount > 0 || twin.Version != 2 {
		t.Errorf("somebody was active in the name of %v: %+v", other, twin)
	}
	if twin, err = e.hub.GetTwin(own); err != nil {
		t.Fatal(err)
	}
	if _, err := json.Marshal(twin); err != nil {
		t.Error(err)
	}
}

// allEvents returns what is in the built-in endpoint.
func (e *emulator) allEvents(t *testing.T) []*broker.Event {
	t.Helper()
	var all []*broker.Event
	for _, id := range e.events.PartitionIDs() {
		p, err := e.events.Partition(id)
		if err != nil {
			t.Fatal(err)
		}
		if p.Empty {
			continue
		}
		r, err := e.events.OpenReader(broker.ReaderOptions{PartitionID: id})
		if err != nil {
			t.Fatal(err)
		}
		events, err := r.Next(t.Context(), 1000)
		r.Close()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, events...)
	}
	return all
}

// FuzzService sends any cloud-to-device message, which its device then gets as it
// is.
func FuzzService(f *testing.F) {
	seed := func(m *amqp.Message) {
		m.Properties.To = ptr(toDevice)
		f.Add(encoded(f, m))
	}
	seed(&amqp.Message{Properties: &amqp.Properties{MessageID: "1"}, Data: [][]byte{[]byte("hello"), []byte("world")}, ApplicationProperties: map[string]any{"iothub-ack": "full"}})
	seed(&amqp.Message{Properties: &amqp.Properties{MessageID: amqp.UUID{1}, CorrelationID: []byte{0xff}}, Value: "text", HasValue: true})
	seed(&amqp.Message{Properties: &amqp.Properties{}, Annotations: map[string]any{"a": []any{map[string]any{}}}, Header: &amqp.Header{TTL: 1}})
	f.Fuzz(func(t *testing.T, payload []byte) {
		synctest.Test(t, func(t *testing.T) {
			e := newCore(t, func(*hub.Options) {})
			own := hub.Target{DeviceID: device}
			e.create(t, own)
			service := newWire(t, e, "service@sas.root."+hubName, e.hubToken(t, "service"))
			service.attach("/messages/devicebound")
			_, accepted := service.transfer(payload, 0).(*amqp.Accepted)
			service.wantHonest()
			w := newWire(t, e, device+"@sas."+hubName, e.identityToken(t, own))
			w.pair(address(own, nodeC2D)) // the sending half is refused
			if got := len(heard[*amqp.Transfer](w)); accepted && got == 0 && e.pending(t) > 0 || !accepted && got > 0 {
				t.Errorf("accepted: %t, and the device has got %d", accepted, got)
			}
			for _, d := range heard[*amqp.Detach](w) {
				if d.Handle == receiving {
					t.Errorf("the message ends its link: %v", d.Error)
				}
			}
		})
	})
}

func (e *emulator) pending(t *testing.T) int {
	t.Helper()
	identity, err := e.hub.GetDevice(device)
	if err != nil {
		t.Fatal(err)
	}
	return identity.CloudToDeviceMessageCount
}
