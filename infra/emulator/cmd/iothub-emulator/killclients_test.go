package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"
	"github.com/Azure/go-amqp"
	"github.com/amenzhinsky/iothub/common"
	mqtt "github.com/eclipse/paho.mqtt.golang"
)

// killRound is one life of the emulator, with the clients that use it.
type killRound struct {
	*work
	number int
	cmd    *exec.Cmd
	env    map[string]string
	hub    map[string]string // parts of the connection string
	tls    *tls.Config
	http   *http.Client
	bus    *azservicebus.Client
	killed atomic.Bool
	seed   uint64
}

const (
	workQueue = "device-messages"
	deviceKey = "a2V5IG9mIGFsbCBkZXZpY2VzIG9mIHRoaXMgdGVzdCE=" // known to this test alone
	// connections is how many clients of a kind work side by side.
	connections = 3
)

func (w *work) start(t *testing.T, dir string, number int, seed uint64) *killRound {
	t.Helper()
	cmd, env := command(t, dir, killFlags...)
	hub, err := common.ParseConnectionString(env["IOTHUB_CONNECTION_STRING"], "HostName", "SharedAccessKeyName", "SharedAccessKey")
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(env["EMULATOR_CA_FILE"])
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	r := &killRound{
		work: w, number: number, cmd: cmd, env: env, hub: hub, seed: seed, bus: serviceBus(t, env),
		tls: &tls.Config{RootCAs: roots, ServerName: hub["HostName"], MinVersion: tls.VersionTLS12},
	}
	transport := &http.Transport{TLSClientConfig: r.tls, MaxIdleConnsPerHost: 16}
	t.Cleanup(transport.CloseIdleConnections)
	r.http = &http.Client{Transport: transport}
	if number == 0 {
		for i := range connections {
			for _, kind := range []string{"telemetry", "c2d", "kept", "twin"} {
				r.must(t, r.putDevice(testContext(t), name(kind, i), "", true))
			}
		}
	}
	return r
}

func serviceBus(t *testing.T, env map[string]string) *azservicebus.Client {
	t.Helper()
	client, err := azservicebus.NewClientFromConnectionString(env["SERVICEBUS_CONNECTION_STRING"], &azservicebus.ClientOptions{
		RetryOptions: azservicebus.RetryOptions{MaxRetries: -1}, // an emulator that is killed doesn't come back
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close(context.WithoutCancel(t.Context())) })
	return client
}

func (r *killRound) must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("round %d: %v", r.number, err)
	}
}

// clients are to run until the emulator is killed.
func (r *killRound) clients() map[string]func(context.Context) error {
	all := map[string]func(context.Context) error{"feedback": r.readFeedback}
	for i := range connections {
		for kind, client := range map[string]func(context.Context, int, *rand.Rand) error{
			"sender": r.sendToQueue, "topic": r.sendToTopic, "receiver": r.settleFromQueue, "telemetry": r.publish, "commands": r.command,
			"registry": r.register, "twins": r.patchTwin, "kept": r.subscribe, "jobs": r.scheduleJobs,
		} {
			rnd := rand.New(rand.NewPCG(r.seed, uint64(len(all))))
			all[name(kind, i)] = func(ctx context.Context) error { return client(ctx, i, rnd) }
		}
	}
	return all
}

// check compares everything that can be asked for with the ledger.
func (r *killRound) check(t *testing.T) {
	t.Helper()
	ctx := testContext(t)
	r.checkQueue(ctx, t)
	r.checkTopic(ctx, t)
	r.checkRegistry(ctx, t)
	r.checkJobs(ctx, t)
	for i := range connections {
		r.checkCommands(ctx, t, i)
		r.checkTwins(ctx, t, i)
		r.checkKept(ctx, t, i)
	}
}

// --- Service Bus ---

// sendToQueue sends messages, and schedules some for much later, of which it
// cancels some.
func (r *killRound) sendToQueue(ctx context.Context, i int, rnd *rand.Rand) error {
	sender, err := r.bus.NewSender(workQueue, nil)
	if err != nil {
		return err
	}
	for n := 0; ; n++ {
		body := name("sent", r.number, i, n)
		m := &azservicebus.Message{Body: []byte(body), ApplicationProperties: map[string]any{"padding": padding(rnd.IntN(10_000))}}
		if rnd.IntN(4) > 0 {
			err = r.change("active 0", func() error { return sender.SendMessage(ctx, m, nil) }, "queue/"+body)
		} else {
			err = r.schedule(ctx, sender, m, rnd.IntN(2) == 0)
		}
		if err != nil {
			return err
		}
	}
}

func (r *killRound) schedule(ctx context.Context, sender *azservicebus.Sender, m *azservicebus.Message, cancel bool) error {
	var numbers []int64
	thing := "queue/" + string(m.Body)
	err := r.change("scheduled", func() (err error) {
		numbers, err = sender.ScheduleMessages(ctx, []*azservicebus.Message{m}, time.Now().Add(time.Hour), nil)
		return err
	}, thing)
	if err != nil || !cancel {
		return err
	}
	return r.change("", func() error { return sender.CancelScheduledMessages(ctx, numbers, nil) }, thing)
}

// settleFromQueue receives messages and does one of all that there is to do to them.
func (r *killRound) settleFromQueue(ctx context.Context, _ int, rnd *rand.Rand) error {
	receiver, err := r.bus.NewReceiverForQueue(workQueue, nil)
	if err != nil {
		return err
	}
	for {
		msgs, err := receiver.ReceiveMessages(ctx, 1+rnd.IntN(3), nil)
		if err != nil {
			return err
		}
		for _, m := range msgs {
			if err := r.settle(ctx, receiver, m, rnd.IntN(10)); err != nil {
				return err
			}
		}
	}
}

func (r *killRound) settle(ctx context.Context, receiver *azservicebus.Receiver, m *azservicebus.ReceivedMessage, dice int) error {
	thing := "queue/" + string(m.Body)
	abandoned := m.DeliveryCount - 1
	r.saw(thing, fmt.Sprint("active ", abandoned))
	switch {
	case dice < 5:
		return r.change("", func() error { return receiver.CompleteMessage(ctx, m, nil) }, thing)
	case dice < 7 && abandoned < 8: // before it would be dead-lettered for that
		return r.change(fmt.Sprint("active ", abandoned+1), func() error { return receiver.AbandonMessage(ctx, m, nil) }, thing)
	case dice < 8:
		return r.change("deferred", func() error { return receiver.DeferMessage(ctx, m, nil) }, thing)
	case dice < 9:
		return r.change("dead", func() error { return receiver.DeadLetterMessage(ctx, m, nil) }, thing)
	}
	return nil // stays locked
}

// checkQueue looks at all messages of the queue without receiving them.
func (r *killRound) checkQueue(ctx context.Context, t *testing.T) {
	t.Helper()
	found := make(map[string]string)
	for _, sub := range []azservicebus.SubQueue{0, azservicebus.SubQueueDeadLetter} {
		receiver, err := r.bus.NewReceiverForQueue(workQueue, &azservicebus.ReceiverOptions{SubQueue: sub})
		r.must(t, err)
		r.peek(ctx, t, receiver, "queue/", found, func(m *azservicebus.ReceivedMessage) string {
			switch {
			case sub == azservicebus.SubQueueDeadLetter:
				return "dead"
			case m.State == azservicebus.MessageStateDeferred:
				return "deferred"
			case m.State == azservicebus.MessageStateScheduled:
				return "scheduled"
			}
			return fmt.Sprint("active ", m.DeliveryCount-1)
		})
	}
	r.compare(t, "queue/", found)
}

// peek looks at all messages of a queue or subscription.
func (r *killRound) peek(ctx context.Context, t *testing.T, receiver *azservicebus.Receiver, kind string, found map[string]string, state func(*azservicebus.ReceivedMessage) string) {
	t.Helper()
	defer func() { r.must(t, receiver.Close(ctx)) }()
	for {
		msgs, err := receiver.PeekMessages(ctx, 100, nil)
		r.must(t, err)
		if len(msgs) == 0 {
			return
		}
		for _, m := range msgs {
			thing := kind + string(m.Body)
			if before, twice := found[thing]; twice {
				t.Errorf("%s is there as %s and as %s", thing, before, state(m))
			}
			found[thing] = state(m)
		}
	}
}

// sendToTopic sends messages to a topic that detects duplicates.
func (r *killRound) sendToTopic(ctx context.Context, i int, _ *rand.Rand) error {
	sender, err := r.bus.NewSender("jobs", nil)
	if err != nil {
		return err
	}
	for n := 0; ; n++ {
		id := name("topic", r.number, i, n)
		m := &azservicebus.Message{Body: []byte(id), MessageID: &id}
		if err := r.change("there", func() error { return sender.SendMessage(ctx, m, nil) }, "topic/"+id); err != nil {
			return err
		}
	}
}

// checkTopic sends messages again, as clients do that had no answer, and finds each
// once.
func (r *killRound) checkTopic(ctx context.Context, t *testing.T) {
	t.Helper()
	sender, err := r.bus.NewSender("jobs", nil)
	r.must(t, err)
	again := r.of(name("topic/topic", r.number-1) + "-")
	for _, thing := range again {
		id := strings.TrimPrefix(thing, "topic/")
		r.must(t, sender.SendMessage(ctx, &azservicebus.Message{Body: []byte(id), MessageID: &id}, nil))
		r.saw(thing, "there")
	}
	receiver, err := r.bus.NewReceiverForSubscription("jobs", "jobs", nil)
	r.must(t, err)
	found := make(map[string]string)
	r.peek(ctx, t, receiver, "topic/", found, func(*azservicebus.ReceivedMessage) string { return "there" })
	r.compare(t, "topic/", found)
}

// --- devices over MQTT ---

// token is that of the hub's policy, or of a device.
func (r *killRound) token(device string) (string, error) {
	resource, policy, key := r.hub["HostName"], r.hub["SharedAccessKeyName"], r.hub["SharedAccessKey"]
	if device != "" {
		resource, policy, key = resource+"/devices/"+device, "", deviceKey
	}
	sas, err := common.NewSharedAccessSignature(resource, policy, key, time.Now().Add(time.Hour))
	if err != nil {
		return "", err
	}
	return sas.String(), nil
}

// answered waits for an operation of paho, which doesn't end all of them with the
// connection.
func answered(ctx context.Context, token mqtt.Token) error {
	select {
	case <-token.Done():
		return token.Error()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// connect connects a device, and reports whether the hub knew its session.
func (r *killRound) connect(ctx context.Context, device string, clean bool, handler mqtt.MessageHandler) (mqtt.Client, bool, error) {
	password, err := r.token(device)
	if err != nil {
		return nil, false, err
	}
	client := mqtt.NewClient(mqtt.NewClientOptions().
		AddBroker("tls://" + r.env["EMULATOR_MQTTS_ADDR"]).
		SetTLSConfig(r.tls).
		SetProtocolVersion(4).
		SetCleanSession(clean).
		SetAutoReconnect(false).
		SetClientID(device).
		SetUsername(r.hub["HostName"] + "/" + device + "/?api-version=2021-04-12").
		SetPassword(password).
		SetDefaultPublishHandler(handler))
	token := client.Connect()
	if err := answered(ctx, token); err != nil {
		client.Disconnect(0)
		return nil, false, err
	}
	return client, token.(*mqtt.ConnectToken).SessionPresent(), nil
}

// publish sends telemetry, which has to be in the queue and among the events, and
// reported properties.
func (r *killRound) publish(ctx context.Context, i int, _ *rand.Rand) error {
	device := name("telemetry", i)
	answers := make(chan string, 10)
	client, _, err := r.connect(ctx, device, true, func(_ mqtt.Client, m mqtt.Message) { answers <- m.Topic() })
	if err != nil {
		return err
	}
	defer client.Disconnect(0)
	if err := answered(ctx, client.Subscribe("$iothub/twin/res/#", 0, nil)); err != nil {
		return err
	}
	for n := 0; ; n++ {
		body := name("telemetry", r.number, i, n)
		r.ask("there", "event/"+body)
		err := r.change("active 0", func() error {
			return answered(ctx, client.Publish("devices/"+device+"/messages/events/", 1, false, body))
		}, "queue/"+body)
		if err != nil {
			return err
		}
		r.ack("there", "event/"+body)
		if n%3 > 0 {
			continue
		}
		if err := r.change(body, func() error { return report(ctx, client, n, body, answers) }, "reported/"+device); err != nil {
			return err
		}
	}
}

func report(ctx context.Context, client mqtt.Client, n int, value string, answers <-chan string) error {
	topic := fmt.Sprintf("$iothub/twin/PATCH/properties/reported/?$rid=%d", n)
	if err := answered(ctx, client.Publish(topic, 0, false, fmt.Sprintf(`{"value":%q}`, value))); err != nil {
		return err
	}
	select {
	case answer := <-answers:
		if want := fmt.Sprintf("$iothub/twin/res/204/?$rid=%d&", n); !strings.HasPrefix(answer, want) {
			return fmt.Errorf("reported properties were answered with %s", answer)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// subscribe changes what the hub keeps of a device's persistent session.
func (r *killRound) subscribe(ctx context.Context, i int, rnd *rand.Rand) error {
	device := name("kept", i)
	const filter = "$iothub/methods/POST/#"
	for {
		thing, clean := "kept/"+device, rnd.IntN(4) == 0
		state := "none"
		if before := r.state(thing); !clean {
			state = strings.Replace(before, "none", "session", 1)
		}
		var client mqtt.Client
		err := r.change(state, func() (err error) {
			client, _, err = r.connect(ctx, device, clean, func(mqtt.Client, mqtt.Message) {})
			return err
		}, thing)
		for n := 0; err == nil && !clean && n < 4; n++ {
			if rnd.IntN(2) == 0 {
				err = r.change("session methods", func() error { return answered(ctx, client.Subscribe(filter, 0, nil)) }, thing)
			} else {
				err = r.change("session", func() error { return answered(ctx, client.Unsubscribe(filter)) }, thing)
			}
		}
		if client != nil {
			client.Disconnect(0)
		}
		if err != nil {
			return err
		}
	}
}

// checkKept takes up the session of a device, and has a method called to see
// whether it is subscribed.
func (r *killRound) checkKept(ctx context.Context, t *testing.T, i int) {
	t.Helper()
	device := name("kept", i)
	client, present, err := r.connect(ctx, device, false, func(c mqtt.Client, m mqtt.Message) {
		_, rid, _ := strings.Cut(m.Topic(), "?")
		c.Publish("$iothub/methods/res/200/?"+rid, 0, false, "{}")
	})
	r.must(t, err)
	defer client.Disconnect(0)
	status, _, err := r.call(ctx, "", http.MethodPost, "/twins/"+device+"/methods", map[string]any{"methodName": "m", "payload": 1}, nil)
	r.must(t, err)
	state := map[bool]string{false: "none", true: "session"}[present]
	if status == http.StatusOK {
		state += " methods"
	} else if status != http.StatusNotFound {
		t.Errorf("method of %s: status %d", device, status)
	}
	thing := "kept/" + device
	if r.number == 0 {
		r.saw(thing, state)
	}
	r.compare(t, thing, map[string]string{thing: state})
	r.saw(thing, strings.Replace(state, "none", "session", 1)) // this was a connection too
}

// --- REST ---

// call makes a request as the service or as a device.
func (r *killRound) call(ctx context.Context, device, method, path string, body any, answer any) (int, http.Header, error) {
	auth, err := r.token(device)
	if err != nil {
		return 0, nil, err
	}
	var text bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&text).Encode(body); err != nil {
			return 0, nil, err
		}
	}
	address, query, _ := strings.Cut(path, "?")
	req, err := http.NewRequestWithContext(ctx, method, "https://"+r.env["EMULATOR_HTTPS_ADDR"]+address+"?api-version=2021-04-12&"+query, &text)
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Authorization", auth)
	if strings.HasSuffix(query, "update") || method == http.MethodDelete {
		req.Header.Set("If-Match", "*")
	}
	resp, err := r.http.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err == nil && answer != nil && resp.StatusCode < 300 && len(data) > 0 {
		err = json.Unmarshal(data, answer)
	}
	return resp.StatusCode, resp.Header, err
}

// ok is call that wants success.
func (r *killRound) ok(ctx context.Context, method, path string, body any, answer any) error {
	status, _, err := r.call(ctx, "", method, path, body, answer)
	if err == nil && status >= 300 {
		err = fmt.Errorf("%s %s: status %d", method, path, status)
	}
	return err
}

// putDevice creates or updates a device that has a mark of the change.
func (r *killRound) putDevice(ctx context.Context, id, mark string, create bool) error {
	path := "/devices/" + id
	if !create {
		path += "?update"
	}
	return r.ok(ctx, http.MethodPut, path, identity(id, mark), nil)
}

func identity(id, mark string) map[string]any {
	return map[string]any{
		"deviceId": id, "status": "enabled", "statusReason": mark,
		"authentication": map[string]any{"symmetricKey": map[string]any{"primaryKey": deviceKey, "secondaryKey": deviceKey}},
	}
}

// register creates, changes and deletes devices and modules, by themselves and in
// bulk.
func (r *killRound) register(ctx context.Context, i int, rnd *rand.Rand) error {
	for n := 0; ; n++ {
		mark := name("mark", r.number, i, n)
		var err error
		switch id := name("device", i, rnd.IntN(6)); {
		case rnd.IntN(6) == 0:
			err = r.bulk(ctx, i, rnd, mark)
		case r.state("registry/"+id) == "":
			err = r.change(mark, func() error { return r.putDevice(ctx, id, mark, true) }, "registry/"+id)
		case rnd.IntN(3) == 0:
			things := append([]string{"registry/" + id}, r.of("modules/"+id+"/")...)
			err = r.change("", func() error { return r.ok(ctx, http.MethodDelete, "/devices/"+id, nil, nil) }, things...)
		case rnd.IntN(2) == 0:
			err = r.change(mark, func() error { return r.putDevice(ctx, id, mark, false) }, "registry/"+id)
		default:
			err = r.changeModule(ctx, id, name("module", rnd.IntN(3)), mark)
		}
		if err != nil {
			return err
		}
	}
}

func (r *killRound) changeModule(ctx context.Context, device, module, mark string) error {
	thing, path := "modules/"+device+"/"+module, "/devices/"+device+"/modules/"+module
	body := map[string]any{"deviceId": device, "moduleId": module, "managedBy": mark}
	if r.state(thing) == "" {
		return r.change(mark, func() error { return r.ok(ctx, http.MethodPut, path, body, nil) }, thing)
	}
	return r.change("", func() error { return r.ok(ctx, http.MethodDelete, path, nil, nil) }, thing)
}

// bulk creates or deletes all devices of a group of its own.
func (r *killRound) bulk(ctx context.Context, i int, rnd *rand.Rand, mark string) error {
	group := rnd.IntN(3)
	things, items := make([]string, 5), make([]map[string]any, 5)
	mode := "create"
	for n := range things {
		id := name("bulk", i, group, n)
		things[n] = "registry/" + id
		if r.state(things[n]) != "" {
			mode = "delete"
		}
		items[n] = map[string]any{"id": id, "status": "enabled", "statusReason": mark, "authentication": map[string]any{}}
	}
	if mode == "delete" {
		mark = ""
	}
	kept := things[:0]
	for n, thing := range things {
		items[n]["importMode"] = mode
		if mode == "create" || r.state(thing) != "" { // a kill may have left some of them
			kept = append(kept, thing)
		}
	}
	return r.change(mark, func() error {
		status, _, err := r.call(ctx, "", http.MethodPost, "/devices", items, nil)
		if err == nil && status != http.StatusOK && len(kept) == len(items) {
			err = fmt.Errorf("bulk %s: status %d", mode, status)
		}
		return err
	}, kept...)
}

func (r *killRound) checkRegistry(ctx context.Context, t *testing.T) {
	t.Helper()
	var devices []struct{ DeviceID, StatusReason string }
	r.must(t, r.ok(ctx, http.MethodGet, "/devices?top=1000", nil, &devices))
	found, foundModules := make(map[string]string), make(map[string]string)
	for _, d := range devices {
		if !strings.HasPrefix(d.DeviceID, "device-") && !strings.HasPrefix(d.DeviceID, "bulk-") {
			continue
		}
		found["registry/"+d.DeviceID] = d.StatusReason
		var modules []struct{ ModuleID, ManagedBy string }
		r.must(t, r.ok(ctx, http.MethodGet, "/devices/"+d.DeviceID+"/modules", nil, &modules))
		for _, m := range modules {
			foundModules["modules/"+d.DeviceID+"/"+m.ModuleID] = m.ManagedBy
		}
	}
	r.compare(t, "registry/", found)
	r.compare(t, "modules/", foundModules)
}

func (r *killRound) patchTwin(ctx context.Context, i int, rnd *rand.Rand) error {
	device := name("twin", i)
	for n := 0; ; n++ {
		value := name(r.number, n)
		desired := map[string]any{"value": value, "padding": paddings(rnd.IntN(8))}
		body := map[string]any{"tags": map[string]any{"value": value}, "properties": map[string]any{"desired": desired}}
		if err := r.change(value, func() error { return r.ok(ctx, http.MethodPatch, "/twins/"+device, body, nil) }, "twin/"+device); err != nil {
			return err
		}
	}
}

// paddings is as much padding as a property may have, several times.
func paddings(n int) map[string]string {
	all := make(map[string]string)
	for i := range n {
		all[name("padding", i)] = padding(4000)
	}
	return all
}

func (r *killRound) checkTwins(ctx context.Context, t *testing.T, i int) {
	t.Helper()
	for _, device := range []string{name("twin", i), name("telemetry", i)} {
		var twin struct {
			Tags       struct{ Value string }
			Properties struct{ Desired, Reported struct{ Value string } }
		}
		r.must(t, r.ok(ctx, http.MethodGet, "/twins/"+device, nil, &twin))
		if twin.Tags.Value != twin.Properties.Desired.Value {
			t.Errorf("half of a patch of %s is there: %q and %q", device, twin.Tags.Value, twin.Properties.Desired.Value)
		}
		r.compareOne(t, "twin/"+device, twin.Properties.Desired.Value)
		r.compareOne(t, "reported/"+device, twin.Properties.Reported.Value)
	}
}

func (r *killRound) compareOne(t *testing.T, thing, state string) {
	t.Helper()
	found := make(map[string]string)
	if state != "" {
		found[thing] = state
	}
	r.compare(t, thing, found)
}

// scheduleJobs makes jobs that are due much later, and cancels every other one.
func (r *killRound) scheduleJobs(ctx context.Context, i int, _ *rand.Rand) error {
	start := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
	for n := 0; ; n++ {
		id := name("job", r.number, i, n)
		body := map[string]any{"jobId": id, "type": "scheduleUpdateTwin", "startTime": start, "updateTwin": map[string]any{"etag": "*", "tags": map[string]any{"job": id}}}
		err := r.change("scheduled", func() error { return r.ok(ctx, http.MethodPut, "/jobs/v2/"+id, body, nil) }, "jobs/"+id)
		if err == nil && n%2 == 0 {
			err = r.change("cancelled", func() error { return r.ok(ctx, http.MethodPost, "/jobs/v2/"+id+"/cancel", nil, nil) }, "jobs/"+id)
		}
		if err != nil {
			return err
		}
	}
}

func (r *killRound) checkJobs(ctx context.Context, t *testing.T) {
	t.Helper()
	found := make(map[string]string)
	for _, thing := range r.of("jobs/") {
		var job struct{ Status string }
		status, _, err := r.call(ctx, "", http.MethodGet, "/jobs/v2/"+strings.TrimPrefix(thing, "jobs/"), nil, &job)
		r.must(t, err)
		if status == http.StatusOK {
			found[thing] = job.Status
		}
	}
	r.compare(t, "jobs/", found)
}

// --- cloud-to-device messages ---

// sentState is the state of a message that was not abandoned yet.
const sentState = "queued 0"

// command sends messages to a device over AMQP, and is the device too, over HTTPS.
func (r *killRound) command(ctx context.Context, i int, rnd *rand.Rand) error {
	auth, err := r.token("")
	if err != nil {
		return err
	}
	conn, err := amqp.Dial(ctx, "amqps://"+r.env["EMULATOR_AMQPS_ADDR"], &amqp.ConnOptions{
		TLSConfig: r.tls,
		HostName:  r.hub["HostName"],
		SASLType:  amqp.SASLTypePlain(r.hub["SharedAccessKeyName"]+"@sas.root."+r.hub["HostName"], auth),
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	session, err := conn.NewSession(ctx, nil)
	if err != nil {
		return err
	}
	sender, err := session.NewSender(ctx, "/messages/devicebound", nil)
	if err != nil {
		return err
	}
	device := name("c2d", i)
	for n := 0; ; n++ {
		switch waiting := r.of("c2d/" + device + "-"); {
		case len(waiting) > 20 && rnd.IntN(20) == 0:
			err = r.purge(ctx, device, waiting)
		case len(waiting) > 30 || len(waiting) > 0 && rnd.IntN(2) == 0:
			err = r.receiveCommand(ctx, device, rnd.IntN(4))
		default:
			id := name(device, r.number, n)
			err = r.change(sentState, func() error { return sender.Send(ctx, commandMessage(device, id, rnd.IntN(60_000)), nil) }, "c2d/"+id)
		}
		if err != nil {
			return err
		}
	}
}

func commandMessage(device, id string, length int) *amqp.Message {
	m := amqp.NewMessage([]byte(padding(length)))
	to := "/devices/" + url.PathEscape(device) + "/messages/devicebound"
	m.Properties = &amqp.MessageProperties{MessageID: id, To: &to}
	m.ApplicationProperties = map[string]any{"iothub-ack": "full"}
	return m
}

func (r *killRound) purge(ctx context.Context, device string, waiting []string) error {
	return r.change("", func() error { return r.ok(ctx, http.MethodDelete, "/devices/"+device+"/commands", nil, nil) }, waiting...)
}

// receiveCommand takes a message and completes, rejects or abandons it.
func (r *killRound) receiveCommand(ctx context.Context, device string, dice int) error {
	thing, state, lock, err := r.poll(ctx, device)
	if err != nil {
		return err
	}
	if thing == "" {
		return errors.New("the device has messages and gets none")
	}
	var count int
	if _, err := fmt.Sscanf(state, "queued %d", &count); err != nil {
		return err
	}
	method, path, next := http.MethodDelete, "/devices/"+device+"/messages/devicebound/"+lock, ""
	switch {
	case dice == 0 && count < 8: // before it would end for that
		method, path, next = http.MethodPost, path+"/abandon", fmt.Sprint("queued ", count+1)
	case dice == 1:
		path += "?reject"
	}
	return r.change(next, func() error {
		status, _, err := r.call(ctx, device, method, path, nil, nil)
		if err == nil && status != http.StatusNoContent {
			err = fmt.Errorf("%s %s: status %d", method, path, status)
		}
		return err
	}, thing)
}

// poll takes the device's next message, with its state in the ledger.
func (r *killRound) poll(ctx context.Context, device string) (thing, state, lock string, err error) {
	status, header, err := r.call(ctx, device, http.MethodGet, "/devices/"+device+"/messages/devicebound", nil, nil)
	switch {
	case err != nil || status == http.StatusNoContent:
		return "", "", "", err
	case status != http.StatusOK:
		return "", "", "", fmt.Errorf("poll: status %d", status)
	}
	return "c2d/" + header.Get("iothub-messageid"), "queued " + header.Get("iothub-deliverycount"), strings.Trim(header.Get("ETag"), `"`), nil
}

// checkCommands takes all messages of a device, and completes them.
func (r *killRound) checkCommands(ctx context.Context, t *testing.T, i int) {
	t.Helper()
	device := name("c2d", i)
	found, locks := make(map[string]string), make(map[string]string)
	for {
		thing, state, lock, err := r.poll(ctx, device)
		r.must(t, err)
		if thing == "" {
			break
		}
		found[thing], locks[thing] = state, lock
	}
	r.compare(t, "c2d/"+device+"-", found)
	for thing, lock := range locks {
		r.must(t, r.change("", func() error {
			status, _, err := r.call(ctx, device, http.MethodDelete, "/devices/"+device+"/messages/devicebound/"+lock, nil, nil)
			if err == nil && status != http.StatusNoContent {
				err = fmt.Errorf("complete: status %d", status)
			}
			return err
		}, thing))
	}
}

// readFeedback takes batches of feedback, and completes them.
func (r *killRound) readFeedback(ctx context.Context) error {
	for {
		ids, lock, err := r.takeFeedback(ctx)
		if err != nil {
			return err
		}
		if lock == "" {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(100 * time.Millisecond): // the hub tells nobody who asks over HTTPS
				continue
			}
		}
		if err := r.ok(ctx, http.MethodDelete, "/messages/serviceBound/feedback/"+lock, nil, nil); err != nil {
			return err
		}
		r.feedbackMu.Lock()
		for _, id := range ids {
			r.feedback[id] = true
		}
		r.feedbackMu.Unlock()
	}
}

func (r *killRound) takeFeedback(ctx context.Context) (ids []string, lock string, err error) {
	var records []struct{ OriginalMessageID string }
	status, header, err := r.call(ctx, "", http.MethodGet, "/messages/serviceBound/feedback", nil, &records)
	if err != nil || status == http.StatusNoContent {
		return nil, "", err
	}
	r.feedbackMu.Lock()
	defer r.feedbackMu.Unlock()
	for _, record := range records {
		id := record.OriginalMessageID
		if r.feedback[id] {
			return nil, "", fmt.Errorf("feedback of %s was completed and is there again", id)
		}
		r.feedback[id] = false
		ids = append(ids, id)
	}
	return ids, strings.Trim(header.Get("ETag"), `"`), nil
}

// awaitFeedback reads feedback until there is some of all messages that are gone.
func (r *killRound) awaitFeedback(ctx context.Context, t *testing.T) {
	t.Helper()
	for {
		missing := r.withoutFeedback()
		if len(missing) == 0 {
			return
		}
		_, lock, err := r.takeFeedback(ctx)
		if err != nil {
			t.Fatalf("no feedback of %d messages, %s among them: %v", len(missing), missing[0], err)
		}
		if lock == "" {
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
}

// withoutFeedback returns the messages that were there, are gone, and nobody was
// told of.
func (r *killRound) withoutFeedback() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.feedbackMu.Lock()
	defer r.feedbackMu.Unlock()
	var missing []string
	for thing, f := range r.things {
		id, isCommand := strings.CutPrefix(thing, "c2d/")
		if _, told := r.feedback[id]; isCommand && f.was && f.is == "" && !f.open && !told {
			missing = append(missing, id)
		}
	}
	return missing
}

// --- events ---

// checkEvents reads all events of the built-in endpoint.
func (r *killRound) checkEvents(ctx context.Context, t *testing.T) {
	t.Helper()
	client, err := azeventhubs.NewConsumerClientFromConnectionString(r.env["EVENTHUB_CONNECTION_STRING"], "", azeventhubs.DefaultConsumerGroup, nil)
	r.must(t, err)
	defer client.Close(context.WithoutCancel(t.Context()))
	props, err := client.GetEventHubProperties(ctx, nil)
	r.must(t, err)
	var mu sync.Mutex
	found := make(map[string]string)
	var readers sync.WaitGroup
	for _, id := range props.PartitionIDs {
		readers.Go(func() {
			bodies, err := readPartition(ctx, client, id)
			if err != nil {
				t.Errorf("partition %s: %v", id, err)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, body := range bodies {
				found["event/"+body] = "there"
			}
		})
	}
	readers.Wait()
	r.compare(t, "event/", found)
}

func readPartition(ctx context.Context, client *azeventhubs.ConsumerClient, id string) ([]string, error) {
	props, err := client.GetPartitionProperties(ctx, id, nil)
	if err != nil || props.IsEmpty {
		return nil, err
	}
	p, err := client.NewPartitionClient(id, &azeventhubs.PartitionClientOptions{StartPosition: azeventhubs.StartPosition{Earliest: new(true)}})
	if err != nil {
		return nil, err
	}
	defer p.Close(context.WithoutCancel(ctx))
	var bodies []string
	for {
		events, err := p.ReceiveEvents(ctx, 1, nil)
		if err != nil {
			return nil, err
		}
		for _, e := range events {
			bodies = append(bodies, string(e.Body))
			if e.SequenceNumber >= props.LastEnqueuedSequenceNumber {
				return bodies, nil
			}
		}
	}
}
