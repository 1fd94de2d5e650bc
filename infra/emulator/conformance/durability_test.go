package conformance_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"
	"github.com/Azure/go-amqp"
	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/hubjobs/hubjobs/infra/emulator"
	"github.com/hubjobs/hubjobs/infra/emulator/emulatortest"
)

const (
	durableSettling  = `Service Bus docs: "Message transfers, locks, and settlement"`
	durableSequence  = `Service Bus docs: "Message sequencing and timestamps"`
	durableEmulator  = "README of the emulator"
	durableRegistry  = `IoT Hub docs: "Understand the identity registry in your IoT hub"`
	durableEventHubs = `Event Hubs docs: "Features and terminology in Azure Event Hubs"`
)

var durability = area{
	name: "Durability",
	emulated: slices.Concat(durableHub, durableEntities, []behaviour{
		{"Kill at any moment", "what was acknowledged is there, and what was settled is gone", durableEmulator, durableSurvivesKill},
		{"Damaged state", "is reported and left alone: a file cut off", durableEmulator, durableReports(func(b []byte) []byte { return b[:len(b)/2] })},
		{"Damaged state", "is reported and left alone: an empty file", durableEmulator, durableReports(func([]byte) []byte { return nil })},
		{"Damaged state", "is reported and left alone: pages wiped", durableEmulator, durableReports(func(b []byte) []byte { clear(b[len(b)/4:]); return b })},
		{"One process for each directory", "a second one is told who has it", durableEmulator, durableOneProcess},
		{"State in memory", "the command says so", durableEmulator, durableInMemory},
	}),
}

var durableHub = []behaviour{
	{"Restart", "identities, modules and their keys", durableRegistry, durableIdentities},
	{"Restart", "twins", `IoT Hub docs: "Understand and use device twins in IoT Hub"`, durableTwins},
	{"Restart", "cloud-to-device messages, in order, with delivery counts", c2dPage, durableC2D},
	{"Restart", "the expiry of cloud-to-device messages", c2dPage, durableExpiry},
	{"Restart", "feedback that waits for its batch", c2dPage, durableWaitingFeedback},
	{"Restart", "feedback that waits for its receiver", c2dPage, durableQueuedFeedback},
	{"Restart", "sessions of MQTT devices", "MQTT 3.1.1 §4.1", durableMQTTSession},
	{"Restart", "keys of policies, and the certificate", durableEmulator, durableKeys},
	{"Restart", "nobody is connected", durableRegistry, durableDisconnects},
}

var durableEntities = []behaviour{
	{"Restart", "messages in queues, with sequence numbers and delivery counts", durableSequence, durableQueues},
	{"Restart", "messages in subscriptions", durableSettling, durableSubscriptions},
	{"Restart", "completed messages stay completed", durableSettling, durableCompletes},
	{"Restart", "deferred messages", `Service Bus docs: "Message deferral"`, durableDefers},
	{"Restart", "dead-lettered messages", `Service Bus docs: "Overview of Service Bus dead-letter queues"`, durableDeadLetters},
	{"Restart", "scheduled messages", durableSequence, durableSchedules},
	{"Restart", "IDs for duplicate detection", `Service Bus docs: "Duplicate detection"`, durableDuplicates},
	{"Restart", "events, with sequence numbers and offsets", durableEventHubs, durableEvents},
}

// durable gives the emulator a directory for its state.
func (w *world) durable() (dir string) {
	dir = w.t.TempDir()
	w.with(emulatortest.DataDir(dir))
	return dir
}

// stop ends the emulator; another one starts when it is next asked for.
func (w *world) stop() {
	w.t.Helper()
	if err := w.emulator().Close(); err != nil {
		w.t.Fatal(err)
	}
	w.started = nil
}

func durableIdentities(_ *testing.T, w *world) {
	w.durable()
	d := w.newDeviceOf(map[string]any{"deviceId": "d", "status": "disabled", "statusReason": "lost"})
	m := w.newModule(d, "m")
	read := func() string {
		device := w.registered(d)
		module := w.must(w.rest(http.MethodGet, m.path(""), nil), http.StatusOK)
		return fmt.Sprint(device) + string(module.body)
	}
	before := read()
	w.restart()
	w.check("identities", read(), before)
}

func durableTwins(_ *testing.T, w *world) {
	w.durable()
	c := w.mqtt(w.newDevice("d"), nil)
	c.subscribe("$iothub/twin/res/#", 0)
	c.publish("$iothub/twin/PATCH/properties/reported/?$rid=1", 0, `{"battery":60}`)
	c.receive("$iothub/twin/res/204/")
	w.must(w.rest(http.MethodPatch, "/twins/d", map[string]any{
		"tags": map[string]any{"site": "north"}, "properties": map[string]any{"desired": map[string]any{"every": "5m"}},
	}), http.StatusOK)
	read := func() map[string]any {
		twin := w.must(w.rest(http.MethodGet, "/twins/d", nil), http.StatusOK).object(w.t)
		for _, name := range []string{"connectionState", "connectionStateUpdatedTime", "lastActivityTime"} {
			delete(twin, name)
		}
		return twin
	}
	before := read()
	w.restart()
	w.check("twin", read(), before)
}

func durableC2D(_ *testing.T, w *world) {
	w.durable()
	d := w.newDevice("d")
	w.c2dSends(w.c2dSender(), d, "full", "abandoned", "locked", "untouched", "completed")
	_, lock := w.httpLocked(d, "")
	_, second := w.httpLocked(d, "")
	_, third := w.httpLocked(d, "")
	_, fourth := w.httpLocked(d, "")
	for _, abandoned := range []string{lock, third} {
		w.must(w.httpSettle(d, abandoned, "/abandon"), http.StatusNoContent)
	}
	w.must(w.httpSettle(d, fourth, ""), http.StatusNoContent)
	w.restart()
	for _, want := range []string{"abandoned 1", "locked 0", "untouched 1"} {
		a, _ := w.httpLocked(d, "")
		w.check("message", string(a.body)+" "+a.header.Get("iothub-deliverycount"), want)
	}
	w.must(w.httpNext(d, ""), http.StatusNoContent)
	w.refuses(w.httpSettle(d, second, ""), http.StatusPreconditionFailed, "DeviceMessageLockLost")
}

func durableExpiry(t *testing.T, w *world) {
	w.durable()
	d := w.newDevice("d")
	if err := w.c2dSend(w.c2dSender(), d, "m", "full", soonExpired); err != nil {
		t.Fatal(err)
	}
	w.restart()
	w.check("feedback", w.feedback(w.amqpService("service"), 1)[0].StatusCode, "Expired")
}

func durableWaitingFeedback(_ *testing.T, w *world) {
	w.durable()
	w.with(everyHour)
	w.c2dPurged(w.newDevice("d"), "one", "two")
	w.stop()
	w.with(func(o *emulator.Options) { o.FeedbackInterval = emulatortest.FeedbackInterval })
	w.check("feedback", c2dOutcomesOf(w.feedback(w.amqpService("service"), 2)), []string{"one Purged", "two Purged"})
}

func durableQueuedFeedback(_ *testing.T, w *world) {
	w.durable()
	w.c2dPurged(w.newDevice("d"), "settled")
	w.feedback(w.amqpService("service"), 1)
	w.c2dPurged(w.newDevice("e"), "locked")
	w.c2dNext(w.c2dFeedbackReceiver())
	w.restart()
	records := w.feedback(w.amqpService("service"), 1)
	w.check("feedback", len(records), 1)
	w.check("feedback", records[0].OriginalMessageID, "locked")
}

func durableMQTTSession(_ *testing.T, w *world) {
	w.durable()
	d := w.newDevice("d")
	c, _ := w.mqttPackets(d, nil)
	c.subscribe("devices/d/messages/devicebound/#", 1)
	w.c2dSends(w.c2dSender(), d, "", "unacknowledged")
	expect[*packets.PublishPacket](c)
	w.restart()
	c, present := w.mqttPackets(d, nil)
	w.check("session present", present, true)
	w.check("message", string(expect[*packets.PublishPacket](c).Payload), "unacknowledged")
}

func durableKeys(_ *testing.T, w *world) {
	w.durable()
	d := w.newDevice("d")
	token := w.deviceToken(d)
	read := func() string {
		text := string(w.emulator().CAPEM())
		for _, policy := range []string{"iothubowner", "service", "device", "registryRead", "registryReadWrite"} {
			text += w.policyKey(policy)
		}
		_, key, _ := strings.Cut(w.emulator().ServiceBusConnectionString(), "SharedAccessKeyName=")
		return text + key
	}
	before := read()
	w.restart()
	w.check("keys", read(), before)
	w.mqtt(d, func(o *paho.ClientOptions) { o.SetPassword(token) })
}

func durableDisconnects(_ *testing.T, w *world) {
	w.durable()
	d := w.newDevice("d")
	w.mqtt(d, nil)
	w.check("connection state", w.registered(d)["connectionState"], "Connected")
	w.restart()
	w.check("connection state", w.registered(d)["connectionState"], "Disconnected")
	if seen := fmt.Sprint(w.registered(d)["lastActivityTime"]); strings.HasPrefix(seen, "0001") {
		w.t.Errorf("last activity %s", seen)
	}
}

// durableMessages are messages with bodies that are their IDs.
func durableMessages(ids ...string) []*azservicebus.Message {
	all := make([]*azservicebus.Message, len(ids))
	for i, id := range ids {
		all[i] = &azservicebus.Message{MessageID: &id, Body: []byte(id)}
	}
	return all
}

// durableReceive receives n messages of the pipeline's queue and indexes them by
// ID.
func (w *world) durableReceive(n int) (*azservicebus.Receiver, map[string]*azservicebus.ReceivedMessage) {
	w.t.Helper()
	r := w.busReceiver("device-messages", nil)
	all := make(map[string]*azservicebus.ReceivedMessage)
	for _, m := range w.busReceive(r, n) {
		all[m.MessageID] = m
	}
	return r, all
}

func durableQueues(t *testing.T, w *world) {
	w.durable()
	w.busSend("device-messages", durableMessages("abandoned", "locked")...)
	r, before := w.durableReceive(2)
	if err := r.AbandonMessage(w.ctx(), before["abandoned"], nil); err != nil {
		t.Fatal(err)
	}
	w.restart()
	w.busSend("device-messages", durableMessages("new")...)
	_, after := w.durableReceive(3)
	for _, id := range []string{"abandoned", "locked"} {
		w.check("body", string(after[id].Body), id)
		w.check("sequence number", *after[id].SequenceNumber, *before[id].SequenceNumber)
		w.check("enqueued time", after[id].EnqueuedTime.UTC(), before[id].EnqueuedTime.UTC())
	}
	w.check("delivery count", after["abandoned"].DeliveryCount, before["abandoned"].DeliveryCount+1)
	if *after["new"].SequenceNumber <= *after["locked"].SequenceNumber {
		t.Errorf("sequence number %d after %d", *after["new"].SequenceNumber, *after["locked"].SequenceNumber)
	}
}

func durableSubscriptions(t *testing.T, w *world) {
	w.durable()
	w.busSend("jobs", durableMessages("one", "two")...)
	w.restart()
	r, err := w.serviceBus().NewReceiverForSubscription("jobs", "jobs", nil)
	if err != nil {
		t.Fatal(err)
	}
	w.closing("receiver", r.Close)
	w.check("messages", w.peeked(r), []string{"one", "two"})
}

// peeked returns the IDs of all messages of a receiver's entity, locked ones too.
func (w *world) peeked(r *azservicebus.Receiver) []string {
	w.t.Helper()
	var ids []string
	for {
		found, err := r.PeekMessages(w.ctx(), 250, nil)
		if err != nil {
			w.t.Fatal(err)
		}
		if len(found) == 0 {
			return ids
		}
		for _, m := range found {
			ids = append(ids, m.MessageID)
		}
	}
}

func durableCompletes(t *testing.T, w *world) {
	w.durable()
	w.busSend("device-messages", durableMessages("completed", "other")...)
	r, all := w.durableReceive(2)
	if err := r.CompleteMessage(w.ctx(), all["completed"], nil); err != nil {
		t.Fatal(err)
	}
	w.restart()
	w.check("messages", w.peeked(w.busReceiver("device-messages", nil)), []string{"other"})
}

func durableDefers(t *testing.T, w *world) {
	w.durable()
	w.busSend("device-messages", durableMessages("deferred")...)
	r, all := w.durableReceive(1)
	if err := r.DeferMessage(w.ctx(), all["deferred"], nil); err != nil {
		t.Fatal(err)
	}
	w.restart()
	numbers := []int64{*all["deferred"].SequenceNumber}
	found, err := w.busReceiver("device-messages", nil).ReceiveDeferredMessages(w.ctx(), numbers, nil)
	if err != nil || len(found) != 1 || found[0].MessageID != "deferred" {
		t.Errorf("got %v, %v", found, err)
	}
}

func durableDeadLetters(t *testing.T, w *world) {
	w.durable()
	w.busSend("device-messages", durableMessages("poison")...)
	r, all := w.durableReceive(1)
	if err := r.DeadLetterMessage(w.ctx(), all["poison"], &azservicebus.DeadLetterOptions{Reason: new("Bad")}); err != nil {
		t.Fatal(err)
	}
	w.restart()
	dead := w.busReceiver("device-messages", &azservicebus.ReceiverOptions{SubQueue: azservicebus.SubQueueDeadLetter})
	m := w.busReceive(dead, 1)[0]
	w.check("message", m.MessageID+" "+*m.DeadLetterReason, "poison Bad")
}

func durableSchedules(t *testing.T, w *world) {
	w.durable()
	sender, err := w.serviceBus().NewSender("device-messages", nil)
	if err != nil {
		t.Fatal(err)
	}
	w.closing("sender", sender.Close)
	for id, at := range map[string]time.Time{"soon": time.Now().Add(time.Second), "later": time.Now().Add(time.Hour)} {
		if _, err := sender.ScheduleMessages(w.ctx(), durableMessages(id), at, nil); err != nil {
			t.Fatal(err)
		}
	}
	w.restart()
	_, all := w.durableReceive(1)
	if all["soon"] == nil {
		t.Errorf("got %v", all)
	}
	left := w.peeked(w.busReceiver("device-messages", nil))
	if !slices.Contains(left, "later") {
		t.Errorf("left are %v", left)
	}
}

func durableDuplicates(_ *testing.T, w *world) {
	w.durable()
	w.configure("UserConfig: {Namespaces: [{Queues: [{Name: once, Properties: {RequiresDuplicateDetection: true}}]}]}")
	w.busSend("once", durableMessages("one")...)
	w.restart()
	w.busSend("once", durableMessages("one", "two")...)
	w.check("messages", w.peeked(w.busReceiver("once", nil)), []string{"one", "two"})
}

func durableEvents(_ *testing.T, w *world) {
	w.durable()
	d := w.newDevice("d")
	read := func(n int) []string {
		all := make([]string, n)
		for i, e := range w.events(n) {
			all[i] = fmt.Sprint(string(e.Body), " ", e.SequenceNumber, " ", e.Offset, " ", e.EnqueuedTime.UTC())
		}
		return all
	}
	w.httpPost(d, "one")
	w.httpPost(d, "two")
	before := read(2)
	w.restart()
	w.httpPost(d, "three")
	events := w.events(3)
	w.check("the next sequence number", events[2].SequenceNumber, events[1].SequenceNumber+1)
	w.check("events", read(3)[:2], before)
}

// traffic are clients of a process that is about to be killed, and what it has
// acknowledged to them.
type traffic struct {
	w        *world
	settings map[string]string
	wg       sync.WaitGroup

	mu    sync.Mutex
	acked map[string][]string // by kind, in order
	tried map[string]bool     // what may have been completed
}

// do lets a client act until it fails or the context ends.
func (tr *traffic) do(ctx context.Context, kind string, act func(n int) (id string, err error)) {
	tr.wg.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			id, err := act(n)
			if err != nil {
				return
			}
			tr.mu.Lock()
			tr.acked[kind] = append(tr.acked[kind], id)
			tr.mu.Unlock()
		}
	})
}

func (tr *traffic) count(kind string) int {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return len(tr.acked[kind])
}

// Kinds of traffic.
const (
	kindTelemetry = "telemetry"
	kindSent      = "sent to a topic"
	kindCompleted = "completed in a subscription"
	kindC2D       = "cloud-to-device"
	kindTwin      = "twin"
)

// durableSurvivesKill kills the real command in the midst of traffic and looks at
// what it leaves behind.
func durableSurvivesKill(t *testing.T, w *world) {
	dir := w.durable()
	d := w.newDevice("d")
	credentials, token, owner := w.tls(), w.deviceToken(d), w.policyToken("iothubowner")
	w.stop()
	p := w.command("--data-dir", dir)
	settings, _ := p.ready()
	tr := &traffic{w: w, settings: settings, acked: make(map[string][]string), tried: make(map[string]bool)}
	ctx, cancel := context.WithCancel(w.ctx())
	tr.telemetry(ctx, d, func(o *paho.ClientOptions) { o.SetTLSConfig(credentials).SetPassword(token) })
	tr.serviceBus(ctx)
	tr.c2d(ctx, d, &amqp.ConnOptions{TLSConfig: credentials, HostName: "localhost", SASLType: amqp.SASLTypePlain("iothubowner@sas.root.localhost", owner)})
	tr.twins(ctx, &http.Client{Transport: &http.Transport{TLSClientConfig: credentials, DisableKeepAlives: true}}, owner)
	w.eventually("traffic of each kind", func() bool {
		return tr.count(kindTelemetry) >= 50 && tr.count(kindSent) >= 50 && tr.count(kindCompleted) >= 20 && tr.count(kindC2D) >= 20 && tr.count(kindTwin) >= 5
	})
	p.kill()
	cancel()
	tr.wg.Wait()
	tr.expectTelemetry()
	tr.expectEntities()
	tr.expectC2D(d)
	tr.expectTwin(d)
	t.Logf("acknowledged: %d, %d, %d, %d, %d", tr.count(kindTelemetry), tr.count(kindSent), tr.count(kindCompleted), tr.count(kindC2D), tr.count(kindTwin))
}

func (tr *traffic) telemetry(ctx context.Context, d device, authenticate func(*paho.ClientOptions)) {
	tr.w.t.Helper()
	opts := paho.NewClientOptions().AddBroker("tls://" + tr.settings[emulator.EnvMQTTSAddr]).
		SetProtocolVersion(4).SetAutoReconnect(false).SetClientID(d.id).SetUsername("localhost/" + d.id)
	authenticate(opts)
	client := paho.NewClient(opts)
	if err := tr.w.wait(client.Connect()); err != nil {
		tr.w.t.Fatal(err)
	}
	tr.w.t.Cleanup(func() { client.Disconnect(0) })
	tr.do(ctx, kindTelemetry, func(n int) (string, error) {
		id := strconv.Itoa(n)
		token := client.Publish("devices/"+d.id+"/messages/events/%24.mid="+id, 1, false, id)
		select {
		case <-token.Done():
			return id, token.Error()
		case <-ctx.Done():
			return "", ctx.Err()
		}
	})
}

func (tr *traffic) serviceBus(ctx context.Context) {
	w := tr.w
	w.t.Helper()
	client, err := azservicebus.NewClientFromConnectionString(tr.settings[emulator.EnvServiceBus], nil)
	if err != nil {
		w.t.Fatal(err)
	}
	w.closing("Service Bus client", client.Close)
	sender, err := client.NewSender("jobs", nil)
	if err != nil {
		w.t.Fatal(err)
	}
	w.closing("sender", sender.Close)
	receiver, err := client.NewReceiverForSubscription("jobs", "jobs", nil)
	if err != nil {
		w.t.Fatal(err)
	}
	w.closing("receiver", receiver.Close)
	tr.do(ctx, kindSent, func(n int) (string, error) {
		id := strconv.Itoa(n)
		return id, sender.SendMessage(ctx, durableMessages(id)[0], nil)
	})
	tr.do(ctx, kindCompleted, func(int) (string, error) {
		found, err := receiver.ReceiveMessages(ctx, 1, nil)
		for err == nil && len(found) == 0 { // as it may be after an interruption
			found, err = receiver.ReceiveMessages(ctx, 1, nil)
		}
		if err != nil {
			return "", err
		}
		tr.mu.Lock()
		tr.tried[found[0].MessageID] = true
		tr.mu.Unlock()
		return found[0].MessageID, receiver.CompleteMessage(ctx, found[0], nil)
	})
}

func (tr *traffic) c2d(ctx context.Context, d device, opts *amqp.ConnOptions) {
	w := tr.w
	w.t.Helper()
	conn, err := amqp.Dial(w.ctx(), "amqps://"+tr.settings[emulator.EnvAMQPSAddr], opts)
	if err != nil {
		w.t.Fatal(err)
	}
	w.closing("AMQP connection", func(context.Context) error { return conn.Close() })
	session, err := conn.NewSession(w.ctx(), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	sender := w.sender(session, "/messages/devicebound", nil)
	tr.do(ctx, kindC2D, func(n int) (string, error) {
		id := strconv.Itoa(n)
		return id, sender.Send(ctx, w.c2d(d, id, id), nil) // the queue is full after 50
	})
}

func (tr *traffic) twins(ctx context.Context, client *http.Client, token string) {
	address := "https://" + tr.settings[emulator.EnvHTTPSAddr] + "/twins/d?api-version=" + apiVersion
	tr.do(ctx, kindTwin, func(n int) (string, error) {
		body := strings.NewReader(fmt.Sprintf(`{"tags":{"n":%d}}`, n))
		req, err := http.NewRequestWithContext(ctx, http.MethodPatch, address, body)
		if err != nil {
			return "", err
		}
		req.Header.Set("Authorization", token)
		resp, err := client.Do(req)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return "", fmt.Errorf("status %d", resp.StatusCode)
		}
		return strconv.Itoa(n), nil
	})
}

// expectAll fails the case unless everything that was acknowledged is there. The
// last of a kind may be there although its acknowledgement was lost.
func (tr *traffic) expectAll(kind string, there []string) {
	tr.w.t.Helper()
	for _, id := range tr.acked[kind] {
		if !slices.Contains(there, id) {
			tr.w.t.Errorf("%s: %s is lost", kind, id)
		}
	}
	if extra := len(there) - len(tr.acked[kind]); extra > 1 {
		tr.w.t.Errorf("%s: %d more than were acknowledged", kind, extra)
	}
}

func (tr *traffic) expectTelemetry() {
	w := tr.w
	w.t.Helper()
	queued := w.peeked(w.busReceiver("device-messages", nil))
	tr.expectAll(kindTelemetry, queued)
	for i, e := range w.events(len(queued)) {
		w.check("event", string(e.Body), queued[i])
	}
}

func (tr *traffic) expectEntities() {
	w := tr.w
	w.t.Helper()
	r, err := w.serviceBus().NewReceiverForSubscription("jobs", "jobs", nil)
	if err != nil {
		w.t.Fatal(err)
	}
	w.closing("receiver", r.Close)
	left := w.peeked(r)
	for _, id := range tr.acked[kindCompleted] {
		if slices.Contains(left, id) {
			w.t.Errorf("%s is back after it was completed", id)
		}
	}
	tr.expectAll(kindSent, slices.AppendSeq(slices.DeleteFunc(left, func(id string) bool { return tr.tried[id] }), maps.Keys(tr.tried)))
}

func (tr *traffic) expectC2D(d device) {
	w := tr.w
	w.t.Helper()
	var there []string
	for {
		a := w.httpNext(d, "")
		if a.status == http.StatusNoContent {
			break
		}
		there = append(there, string(w.must(a, http.StatusOK).body))
	}
	tr.expectAll(kindC2D, there)
	if !slices.IsSortedFunc(there, func(a, b string) int { return len(a)*1000 - len(b)*1000 + strings.Compare(a, b) }) {
		w.t.Errorf("cloud-to-device messages are out of order: %v", there)
	}
}

func (tr *traffic) expectTwin(d device) {
	w := tr.w
	w.t.Helper()
	var twin struct{ Tags struct{ N int } }
	w.must(w.rest(http.MethodGet, "/twins/"+d.id, nil), http.StatusOK).decode(w.t, &twin)
	if last := tr.count(kindTwin) - 1; twin.Tags.N != last && twin.Tags.N != last+1 {
		w.t.Errorf("the twin has %d, and %d was acknowledged last", twin.Tags.N, last)
	}
}

// durableReports starts the command on a state file that is damaged.
func durableReports(damage func([]byte) []byte) func(*testing.T, *world) {
	return func(t *testing.T, w *world) {
		dir := w.durable()
		var items []any // enough of them to fill most of the file
		for i := range 100 {
			items = append(items, map[string]any{"id": fmt.Sprint("device-", i), "importMode": "create"})
		}
		w.must(w.rest(http.MethodPost, "/devices", items), http.StatusOK)
		w.stop()
		path := filepath.Join(dir, "state.db")
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		damaged := damage(whole)
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		report := w.command("--data-dir", dir).failed()
		if strings.Count(report, "\n") != 1 || !strings.Contains(report, "damaged") || !strings.Contains(report, path) {
			t.Errorf("the command reports %q", report)
		}
		after, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(after, damaged) {
			t.Errorf("the file has changed: %v", err)
		}
	}
}

func durableOneProcess(t *testing.T, w *world) {
	dir := t.TempDir()
	first := w.command("--data-dir", dir)
	first.ready()
	report := w.command("--data-dir", dir).failed()
	pid := strconv.Itoa(first.cmd.Process.Pid)
	if strings.Count(report, "\n") != 1 || !strings.Contains(report, "in use") || !strings.Contains(report, pid) {
		t.Errorf("the command reports %q, and process %s has the directory", report, pid)
	}
}

func durableInMemory(t *testing.T, w *world) {
	p := w.command()
	settings, said := p.ready()
	if !strings.Contains(said, "in memory") {
		t.Errorf("the command says\n%s", said)
	}
	p.interrupt()
	if _, err := os.Stat(settings[emulator.EnvCAFile]); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("something is left on the disk: %v", err)
	}
}
