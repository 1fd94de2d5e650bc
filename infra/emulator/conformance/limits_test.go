package conformance_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
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
	limitsPage    = `IoT Hub docs: "IoT Hub quotas and throttling"`
	limitsBilling = `IoT Hub docs: "Azure IoT Hub billing information"`
	limitsTiers   = `IoT Hub docs: "Choose the right IoT Hub tier and size for your solution"`
	limitsErrors  = `IoT Hub docs: "Understand Azure IoT Hub error codes"`
	limitsNode    = "azure-iot-sdk-node, common/transport/amqp/src/amqp_common_errors.ts"

	faultsDoc = "package emulator, type Fault"
	faultsAPI = "package emulator, Options.ControlAddr"
)

var limitsAndFaults = area{
	name:     "Limits and faults",
	emulated: slices.Concat(limitsThrottles, limitsAnswers, limitsQuota, limitsOfTiers, faultsOfConnections, faultsOfOperations, faultsSelected, faultsControl),
	refused: []behaviour{
		{"Throttles of other tiers", "an unknown tier is refused, with its line", limitsTiers, limitsRefusesTier("Hub:\n  Tier: GEN2", 2, "GEN2")},
		{"More units than the cloud has", "they are refused, with their line", limitsTiers, limitsRefusesTier("Hub:\n  Tier: F1\n  Units: 2", 3, "Units is 2")},
		{"Faults of other kinds", "one that doesn't exist is refused by name", faultsDoc, faultsRefuse("explode", `"explode"`)},
		{"Faults of other kinds", "a setting that doesn't exist is refused by name", faultsDoc, faultsRefuse("cut,colour=red", `"colour"`)},
		{"Faults of other kinds", "a setting that the kind has no use for is refused by name", faultsDoc, faultsRefuse("disconnect,latency=1s", "latency")},
		{"Faults of other kinds", "an operation that doesn't exist is refused by name", faultsDoc, faultsRefuse("refuse,code=429,operation=fly", `"fly"`)},
		{"Faults of other kinds", "a code that the hub doesn't have is refused", faultsDoc, faultsRefuse("refuse,code=418", "418")},
		{"A control API for others than this machine", "an address beyond loopback is refused", faultsAPI, faultsRefuseAddress},
	},
}

var limitsThrottles = []behaviour{
	limitsThrottle("100 operations on the registry a minute and unit", "F1", 1, 100, limitsOfRegistry),
	limitsThrottle("more units have more", "S1", 2, 200, limitsOfRegistry),
	limitsThrottle("S2 has as many as S1", "S2", 1, 100, limitsOfRegistry),
	limitsThrottle("20 queries a minute and unit", "S1", 1, 20, limitsOfQueries),
	limitsThrottle("100 operations on jobs a minute and unit", "S1", 1, 100, limitsOfJobs),
	limitsThrottle("160 KB of direct methods a second and unit, each in parts of 4 KB", "S1", 1, 160*60/128, limitsOfMethods),
	limitsThrottle("50 updates of twins a second, in parts of 4 KB", "S1", 1, 50*60/8, limitsOfTwinUpdates),
	limitsThrottle("1,000 receives over HTTPS a minute and unit", "S1", 1, 1000, limitsOfReceives),
	{"Throttles", "100 messages to devices a minute and unit, over AMQP", limitsPage, limitsOfC2D},
	{"Throttles", "100 messages of devices a second, over AMQP", limitsPage, limitsOfD2C},
	{"Throttles", "100 reads of twins a second, over MQTT", limitsPage, limitsOfTwinReads},
	{"Throttles", "one job at a time on S1", limitsPage, limitsOfConcurrentJobs("S1", 1)},
	{"Throttles", "five jobs at a time on S2", limitsPage, limitsOfConcurrentJobs("S2", 5)},
	{"Throttles", "S3 has more", limitsPage, limitsPasses(300, limitsS3, limitsOfRegistry)},
	{"Throttles", "one that is reached leaves other operations alone", limitsPage, limitsApart},
	{"No tier", "nothing is throttled or counted", "package emulator, Hub.Tier", limitsNone},
	{"No tier", "any number of jobs run at a time", "package emulator, Hub.Tier", limitsNoneOfJobs},
}

var limitsAnswers = []behaviour{
	{"Answers to throttled operations", "over HTTPS, 429 and how long to wait", "RFC 6585 §4", limitsAnswerHTTPS},
	{"Answers to throttled operations", "over AMQP, device-container-throttled", limitsNode, limitsAnswerAMQP},
	{"Answers to throttled operations", "twins over MQTT, 429", mqttPage, limitsAnswerTwinMQTT},
	{"Answers to throttled operations", "twins over AMQP, 429", amqpNodeTwin, limitsAnswerTwinAMQP},
	{"Answers to throttled operations", "over MQTT, telemetry is held back and then stored", limitsPage, limitsShapes},
	{"Answers to throttled operations", "over MQTT, the connection ends when that lasts too long", limitsPage, limitsDrops},
}

var limitsQuota = []behaviour{
	{"Daily quota", "beyond it, HTTPS is answered by 403002", limitsErrors, limitsQuotaHTTPS},
	{"Daily quota", "beyond it, AMQP is answered by quota-exceeded", limitsNode, limitsQuotaAMQP},
	{"Daily quota", "beyond it, MQTT connections of senders end", limitsErrors, limitsQuotaMQTT},
	{"Daily quota", "the registry goes on", limitsBilling, limitsQuotaRegistry},
	{"Daily quota", "is that of the tier and its units", limitsPage, limitsQuotaOfTiers},
	{"Daily quota", "a restart doesn't give it back", limitsErrors, limitsQuotaStays},
	{"Daily quota", "messages count by 4 KB", limitsBilling, limitsMeters("S1", 4<<10)},
	{"Daily quota", "messages of the free tier count by 0.5 KB", limitsBilling, limitsMeters("F1", 512)},
	{"Daily quota", "messages both ways, methods, twins and queries count", limitsBilling, limitsCounts},
}

var limitsOfTiers = []behaviour{
	{"Basic tiers", "have telemetry", limitsTiers, limitsBasicSends},
	{"Basic tiers", "have no messages to devices", limitsTiers, limitsBasicC2D},
	{"Basic tiers", "have no twins, methods and jobs", limitsTiers, limitsBasicREST},
}

var faultsOfConnections = []behaviour{
	{"Cut connections", "a device over MQTT is cut off", faultsDoc, faultsCutMQTT("cut,device=d")},
	{"Cut connections", "after some bytes", faultsDoc, faultsCutMQTT("cut,device=d,bytes=100")},
	{"Cut connections", "after a time", faultsDoc, faultsCutMQTT("cut,device=d,after=10ms")},
	{"Cut connections", "a device over AMQP is cut off", faultsDoc, faultsCutAMQP},
	{"Cut connections", "a request is cut off, as many as are wanted", faultsDoc, faultsCutRequests},
	{"Slow connections", "what is held back comes later, and nothing is lost", faultsDoc, faultsDelay},
	{"Slow connections", "data keeps its order", faultsDoc, faultsDelayKeepsOrder},
	{"Half-open connections", "nothing passes, and nobody knows", faultsDoc, faultsHalfOpen},
	{"Disconnects by the hub", "a device over MQTT is sent away", faultsDoc, faultsDisconnectMQTT},
	{"Disconnects by the hub", "a device over AMQP loses its links", faultsDoc, faultsDisconnectAMQP},
}

var faultsOfOperations = []behaviour{
	{"Duplicates", "a message of a device is stored twice", faultsDoc, faultsDuplicateD2C},
	{"Duplicates", "a message for a device comes again after it was completed", faultsDoc, faultsDuplicateC2D},
	{"Duplicates", "a message in a queue comes again after it was completed", faultsDoc, faultsDuplicateQueue},
	{"Refusals", "with any code of the hub, over HTTPS", faultsDoc, faultsRefuseHTTPS},
	{"Refusals", "with any code of the hub, over AMQP", faultsDoc, faultsRefuseAMQP},
	{"Refusals", "of connections", faultsDoc, faultsRefuseConnect},
	{"Refusals", "of what is done with queues", faultsDoc, faultsRefuseQueue},
	{"Refusals", "as many as are wanted", faultsDoc, faultsRefuseCount},
	{"Refusals", "for a while", faultsDoc, faultsRefuseWhile},
	{"Expired locks", "of messages in queues", faultsDoc, faultsExpireQueue},
	{"Expired locks", "of messages for devices", faultsDoc, faultsExpireC2D},
}

var faultsSelected = []behaviour{
	{"Selection of what goes wrong", "by device", faultsDoc, faultsByDevice},
	{"Selection of what goes wrong", "by protocol", faultsDoc, faultsByProtocol},
	{"Selection of what goes wrong", "by operation", faultsDoc, faultsByOperation},
	{"Selection of what goes wrong", "by queue", faultsDoc, faultsByEntity},
	{"Selection of what goes wrong", "by chance, which a seed repeats", faultsDoc, faultsByChance},
	{"Faults in force", "are listed with their hits, and removed one by one or all", faultsDoc, faultsListed},
	{"Faults in force", "may be there from the start", faultsDoc, faultsFromTheStart},
}

var faultsControl = []behaviour{
	{"Control API", "injects, lists and removes faults", faultsAPI, faultsOverHTTP},
	{"Control API", "refuses pages in browsers", faultsAPI, faultsRefusePages},
	{"Control API", "says in one line what is wrong with a fault", faultsAPI, faultsExplain},
	{"Control API", "is not there unless it is asked for", faultsAPI, faultsNoControl},
}

// limitsTier gives the hub a tier. Telemetry goes to the built-in endpoint alone.
func limitsTier(w *world, tier string, units int) {
	w.t.Helper()
	w.with(emulatortest.Config(&emulator.Config{Hub: emulator.Hub{Tier: tier, Units: units}}))
}

func limitsS3(w *world) { limitsTier(w, "S3", 1) }

// limitsClient makes requests on a connection that it keeps, as those do who
// reach a limit.
type limitsClient struct {
	w    *world
	http *http.Client
}

func limitsRequests(w *world) *limitsClient {
	w.t.Helper()
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: w.tls()}}
	w.t.Cleanup(c.CloseIdleConnections)
	return &limitsClient{w, c}
}

func (c *limitsClient) do(method, path string, body any) answer {
	c.w.t.Helper()
	req, err := http.NewRequestWithContext(c.w.t.Context(), method, "https://"+c.w.emulator().HTTPSAddr()+path+"?api-version="+apiVersion, c.w.encode(body))
	if err != nil {
		c.w.t.Fatal(err)
	}
	req.Header.Set("Authorization", c.w.policyToken("iothubowner"))
	resp, err := c.http.Do(req)
	if err != nil {
		c.w.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		c.w.t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, text}
}

// limitsOperation is one that is repeated until it is throttled, and how many of
// its kind were needed to prepare it.
type limitsOperation struct {
	spent int
	once  func() answer
}

// limitsThrottle is a case about an operation of which so many pass at once, and
// more only as time goes by: less than as many again while the case runs.
func limitsThrottle(says, tier string, units, budget int, prepare func(*world) limitsOperation) behaviour {
	return behaviour{"Throttles", says, limitsPage, func(t *testing.T, w *world) {
		limitsTier(w, tier, units)
		op := prepare(w)
		for passed := op.spent; passed < 3*budget; passed++ {
			a := op.once()
			if a.status != http.StatusTooManyRequests {
				continue
			}
			if name := a.code(); name != "ThrottlingException" {
				t.Errorf("the error is %s", name)
			}
			if passed < budget {
				t.Errorf("%d operations passed, want %d", passed, budget)
			}
			return
		}
		t.Errorf("%d operations passed, want %d", 3*budget, budget)
	}}
}

// limitsPasses is a case about an operation that passes so often.
func limitsPasses(n int, configure func(*world), prepare func(*world) limitsOperation) func(*testing.T, *world) {
	return func(_ *testing.T, w *world) {
		if configure != nil {
			configure(w)
		}
		op := prepare(w)
		for range n {
			w.must(op.once(), http.StatusOK)
		}
	}
}

func limitsOfRegistry(w *world) limitsOperation {
	w.newDevice("d")
	c := limitsRequests(w)
	return limitsOperation{1, func() answer { return c.do(http.MethodGet, "/devices/d", nil) }}
}

func limitsOfQueries(w *world) limitsOperation {
	c := limitsRequests(w)
	return limitsOperation{0, func() answer {
		return c.do(http.MethodPost, "/devices/query", map[string]any{"query": "SELECT * FROM devices"})
	}}
}

func limitsOfJobs(w *world) limitsOperation {
	c := limitsRequests(w)
	return limitsOperation{0, func() answer { return c.do(http.MethodGet, "/jobs/v2/query", nil) }}
}

func limitsOfMethods(w *world) limitsOperation {
	d := w.newDevice("d")
	device := w.mqtt(d, nil)
	device.AddRoute("$iothub/methods/POST/#", func(client paho.Client, m paho.Message) {
		_, rid, _ := strings.Cut(m.Topic(), "$rid=")
		client.Publish("$iothub/methods/res/200/?$rid="+rid, 0, false, "")
	})
	device.subscribe("$iothub/methods/POST/#", 0)
	c := limitsRequests(w)
	call := map[string]any{"methodName": "m", "payload": strings.Repeat("x", 128<<10-2)}
	return limitsOperation{0, func() answer { return c.do(http.MethodPost, "/twins/d/methods", call) }}
}

func limitsOfTwinUpdates(w *world) limitsOperation {
	w.newDevice("d")
	c := limitsRequests(w)
	desired := make(map[string]any)
	for i := range 7 {
		desired[fmt.Sprint("p", i)] = strings.Repeat("x", 4<<10)
	}
	patch := map[string]any{"properties": map[string]any{"desired": desired}} // between 28 and 32 KB
	return limitsOperation{0, func() answer { return c.do(http.MethodPatch, "/twins/d", patch) }}
}

func limitsOfReceives(w *world) limitsOperation {
	w.newDevice("d")
	c := limitsRequests(w)
	return limitsOperation{0, func() answer { return c.do(http.MethodGet, "/devices/d/messages/devicebound", nil) }}
}

func limitsOfC2D(t *testing.T, w *world) {
	limitsTier(w, "S1", 1)
	var devices []device
	for i := range 6 { // each has 50 messages at most
		devices = append(devices, w.newDevice(fmt.Sprint("d", i)))
	}
	sender := w.sender(w.amqpService("service"), "/messages/devicebound", nil)
	for n := range 300 {
		err := sender.Send(w.ctx(), w.c2d(devices[n%len(devices)], fmt.Sprint(n), "x"), nil)
		if err == nil {
			continue
		}
		limitsThrottled(w, err)
		if n < 100 {
			t.Errorf("%d messages passed, want 100", n)
		}
		return
	}
	t.Error("300 messages passed, want 100")
}

// limitsThrottled fails the case unless the error is AMQP's for throttled
// operations.
func limitsThrottled(w *world, err error) {
	w.t.Helper()
	var refused *amqp.Error
	if !errors.As(err, &refused) || refused.Condition != "com.microsoft:device-container-throttled" {
		w.t.Errorf("got %v", err)
		return
	}
	w.check("code", refused.Info["com.microsoft:error-code"], 429001)
}

// limitsOfD2C sends in bursts, because a device that waits for each answer is
// slower than the throttle.
func limitsOfD2C(t *testing.T, w *world) {
	const budget, burst = 6000, 500
	limitsTier(w, "S1", 1)
	d := w.newDevice("d")
	sender := w.sender(w.amqpDevice(d), d.path("/messages/events"), nil)
	m := amqp.NewMessage([]byte("x"))
	ctx := w.ctx()
	for passed := 0; passed < 3*budget; {
		var receipts []amqp.SendReceipt
		for range burst {
			receipt, err := sender.SendWithReceipt(ctx, m, nil)
			if err != nil {
				t.Fatal(err)
			}
			receipts = append(receipts, receipt)
		}
		for _, receipt := range receipts {
			state, err := receipt.Wait(ctx)
			if err != nil {
				t.Fatal(err)
			}
			rejected, refused := state.(*amqp.StateRejected)
			if !refused {
				passed++
				continue
			}
			limitsThrottled(w, rejected.Error)
			if passed < budget {
				t.Errorf("%d messages passed, want %d", passed, budget)
			}
			return
		}
	}
	t.Errorf("%d messages passed, want %d", 3*budget, budget)
}

// limitsOfTwinReads sends all requests before it looks at the answers, for the
// same reason.
func limitsOfTwinReads(t *testing.T, w *world) {
	const budget = 6000
	limitsTier(w, "S1", 1)
	c, _ := w.mqttPackets(w.newDevice("d"), nil)
	c.subscribe("$iothub/twin/res/#", 0)
	var requests strings.Builder
	request := publication("$iothub/twin/GET/?$rid=1", 0, 0, "")
	for range 3 * budget {
		if err := request.Write(&requests); err != nil {
			t.Fatal(err)
		}
	}
	sent := make(chan error, 1)
	go func() {
		_, err := io.WriteString(c.conn, requests.String())
		sent <- err
	}()
	defer func() { c.lose(); <-sent }()
	for passed := range 3 * budget {
		topic := expect[*packets.PublishPacket](c).TopicName
		if topic == "$iothub/twin/res/200/?$rid=1" {
			continue
		}
		w.check("topic", topic, "$iothub/twin/res/429/?$rid=1")
		if passed < budget {
			t.Errorf("%d reads passed, want %d", passed, budget)
		}
		return
	}
	t.Errorf("%d reads passed, want %d", 3*budget, budget)
}

// limitsOfConcurrentJobs starts jobs that call a method of a device which doesn't
// answer.
func limitsOfConcurrentJobs(tier string, most int) func(*testing.T, *world) {
	return func(_ *testing.T, w *world) {
		limitsTier(w, tier, 1)
		job := limitsHangingJobs(w, most)
		job["jobId"] = "another"
		a := w.rest(http.MethodPut, "/jobs/v2/another", job)
		w.refuses(a, http.StatusTooManyRequests, "ThrottlingMaxActiveJobCountExceeded")
	}
}

// limitsHangingJobs starts jobs, and returns the description of one.
func limitsHangingJobs(w *world, n int) map[string]any {
	w.t.Helper()
	c := w.mqtt(w.newDevice("d"), nil)
	c.subscribe("$iothub/methods/POST/#", 0)
	job := map[string]any{
		"type": "scheduleDeviceMethod", "queryCondition": "deviceId = 'd'", "maxExecutionTimeInSeconds": 60,
		"cloudToDeviceMethod": map[string]any{"methodName": "m", "responseTimeoutInSeconds": 60},
	}
	for i := range n {
		registryJob(w, fmt.Sprint("j", i), job)
		c.receive("$iothub/methods/POST/m/")
	}
	return job
}

func limitsNoneOfJobs(_ *testing.T, w *world) { limitsHangingJobs(w, 12) }

// limitsExhausted is a hub whose throttle for queries is reached.
func limitsExhausted(w *world) answer {
	w.t.Helper()
	limitsTier(w, "S1", 1)
	op := limitsOfQueries(w)
	for range 60 {
		if a := op.once(); a.status == http.StatusTooManyRequests {
			return a
		}
	}
	w.t.Fatal("queries are not throttled")
	return answer{}
}

func limitsApart(_ *testing.T, w *world) {
	limitsExhausted(w)
	d := w.newDevice("d")
	w.must(w.rest(http.MethodGet, "/twins/d", nil), http.StatusOK)
	w.mqtt(d, nil).publish("devices/d/messages/events/", 1, "x")
	if err := w.sendC2D(w.amqpService("service"), d, "m", "x", ""); err != nil {
		w.t.Error(err)
	}
}

func limitsNone(_ *testing.T, w *world) {
	limitsPasses(50, nil, limitsOfQueries)(w.t, w)
	limitsPasses(200, nil, limitsOfRegistry)(w.t, w)
	used, quota := w.emulator().DailyMessages()
	w.check("count and quota", []int64{used, quota}, []int64{0, 0})
}

func limitsAnswerHTTPS(t *testing.T, w *world) {
	a := limitsExhausted(w)
	w.refuses(a, http.StatusTooManyRequests, "ThrottlingException")
	if seconds, err := strconv.Atoi(a.header.Get("Retry-After")); err != nil || seconds < 1 || seconds > 60 {
		t.Errorf("Retry-After is %q", a.header.Get("Retry-After"))
	}
}

func limitsAnswerAMQP(_ *testing.T, w *world) {
	d := w.newDevice("d")
	faultsInject(w, "refuse,operation=d2c,code=429")
	sender := w.sender(w.amqpDevice(d), d.path("/messages/events"), nil)
	limitsThrottled(w, sender.Send(w.ctx(), amqp.NewMessage([]byte("x")), nil))
	w.emulator().ClearFaults()
	if err := sender.Send(w.ctx(), amqp.NewMessage([]byte("x")), nil); err != nil { // on the same link
		w.t.Error(err)
	}
}

func limitsAnswerTwinMQTT(_ *testing.T, w *world) {
	c := w.mqtt(w.newDevice("d"), nil)
	c.subscribe("$iothub/twin/res/#", 0)
	faultsInject(w, "refuse,operation=twin-update,code=429")
	c.publish("$iothub/twin/PATCH/properties/reported/?$rid=1", 0, "{}")
	w.check("topic", c.receive("$iothub/twin/").Topic(), "$iothub/twin/res/429/?$rid=1")
}

func limitsAnswerTwinAMQP(_ *testing.T, w *world) {
	c := amqpTwinOf(w, w.newDevice("d").identity())
	faultsInject(w, "refuse,operation=twin-update,code=429")
	c.ask(429, "PATCH", amqpReported, "{}")
}

func limitsShapes(_ *testing.T, w *world) {
	c := w.mqtt(w.newDevice("d"), nil)
	faultsInject(w, "refuse,operation=d2c,code=429,count=2")
	c.publish("devices/d/messages/events/", 1, "held back")
	w.check("faults left", len(w.emulator().Faults()), 0)
	w.expectRouted(w.routed(1)[0], shows{both: properties{"body": "held back"}})
}

func limitsDrops(_ *testing.T, w *world) {
	c := w.mqtt(w.newDevice("d"), nil)
	faultsInject(w, "refuse,operation=d2c,code=429,retryAfter=1h")
	c.Publish("devices/d/messages/events/", 1, false, "x")
	c.dropped()
}

// limitsLarge is a message that counts as 512 in the free tier.
const limitsLarge = 256<<10 - 100

// limitsUsedUp is a hub of the free tier most of whose quota is used up: there is
// none left for a large message.
func limitsUsedUp(w *world) device {
	w.t.Helper()
	limitsTier(w, "F1", 1)
	d := w.newDevice("d")
	c := limitsRequests(w)
	for range 8000 / 512 {
		w.must(c.do(http.MethodPost, d.path("/messages/events"), make([]byte, limitsLarge)), http.StatusNoContent)
	}
	return d
}

func limitsQuotaHTTPS(_ *testing.T, w *world) {
	d := limitsUsedUp(w)
	w.refuses(w.rest(http.MethodPost, d.path("/messages/events"), make([]byte, limitsLarge)), http.StatusForbidden, "IotHubQuotaExceeded")
}

func limitsQuotaAMQP(t *testing.T, w *world) {
	d := limitsUsedUp(w)
	sender := w.sender(w.amqpDevice(d), d.path("/messages/events"), nil)
	err := sender.Send(w.ctx(), amqp.NewMessage(make([]byte, limitsLarge)), nil)
	var refused *amqp.Error
	if !errors.As(err, &refused) || refused.Condition != "com.microsoft:quota-exceeded" {
		t.Fatalf("got %v", err)
	}
	w.check("code", refused.Info["com.microsoft:error-code"], 403002)
}

func limitsQuotaMQTT(_ *testing.T, w *world) {
	c := w.mqtt(limitsUsedUp(w), nil)
	c.Publish("devices/d/messages/events/", 1, false, make([]byte, limitsLarge))
	c.dropped()
}

func limitsQuotaRegistry(_ *testing.T, w *world) {
	d := limitsUsedUp(w)
	used, quota := w.emulator().DailyMessages()
	c := limitsRequests(w)
	for range quota - used {
		w.must(c.do(http.MethodPost, d.path("/messages/events"), nil), http.StatusNoContent)
	}
	w.refuses(c.do(http.MethodPost, d.path("/messages/events"), nil), http.StatusForbidden, "IotHubQuotaExceeded")
	w.registered(d)
	w.newDevice("another")
}

func limitsQuotaOfTiers(t *testing.T, w *world) {
	for _, tier := range []struct {
		name  string
		units int
		want  int64
	}{{"F1", 1, 8_000}, {"S1", 1, 400_000}, {"S1", 3, 1_200_000}, {"S2", 1, 6_000_000}, {"S3", 2, 600_000_000}, {"B1", 1, 400_000}} {
		other := newWorld(t)
		limitsTier(other, tier.name, tier.units)
		_, quota := other.emulator().DailyMessages()
		w.check(fmt.Sprintf("quota of %d %s", tier.units, tier.name), quota, tier.want)
	}
}

func limitsQuotaStays(t *testing.T, w *world) {
	w.with(emulatortest.DataDir(t.TempDir()))
	d := limitsUsedUp(w)
	before, _ := w.emulator().DailyMessages()
	w.restart()
	after, _ := w.emulator().DailyMessages()
	w.check("count", after, before)
	w.refuses(w.rest(http.MethodPost, d.path("/messages/events"), make([]byte, limitsLarge)), http.StatusForbidden, "IotHubQuotaExceeded")
}

// limitsCount is for how many messages something counts.
func limitsCount(w *world, something func()) int64 {
	w.t.Helper()
	before, _ := w.emulator().DailyMessages()
	something()
	after, _ := w.emulator().DailyMessages()
	return after - before
}

func limitsMeters(tier string, chunk int) func(*testing.T, *world) {
	return func(_ *testing.T, w *world) {
		limitsTier(w, tier, 1)
		d := w.newDevice("d")
		for chunks := range 3 {
			got := limitsCount(w, func() {
				body := make([]byte, chunk*chunks+chunk/2)
				w.must(w.rest(http.MethodPost, d.path("/messages/events"), body), http.StatusNoContent)
			})
			w.check(fmt.Sprintf("message of %d and a half parts", chunks), got, chunks+1)
		}
	}
}

func limitsCounts(t *testing.T, w *world) {
	limitsTier(w, "S1", 1)
	d := w.newDevice("d")
	c := w.mqtt(d, nil)
	c.answerMethods(`{"done":true}`)
	c.subscribe("$iothub/methods/POST/#", 0)
	c.subscribe("$iothub/twin/res/#", 0)
	service := w.amqpService("service")
	for what, op := range map[string]struct {
		do   func()
		want int64
	}{
		"operation on the registry": {func() { w.registered(d) }, 0},
		"message of a device":       {func() { c.publish("devices/d/messages/events/", 1, "x") }, 1},
		"empty message of a device": {func() { c.publish("devices/d/messages/events/", 1, "") }, 1},
		"message for a device":      {func() { _ = w.sendC2D(service, d, "m", "x", "") }, 1},
		"direct method, both ways":  {func() { w.must(w.mqttInvoke(d, "{}"), http.StatusOK) }, 2},
		"read of a twin":            {func() { w.must(w.rest(http.MethodGet, "/twins/d", nil), http.StatusOK) }, 1},
		"read by the device": {func() {
			c.publish("$iothub/twin/GET/?$rid=1", 0, "")
			c.receive("$iothub/twin/")
		}, 1},
		"update of a twin": {func() {
			w.must(w.rest(http.MethodPatch, "/twins/d", map[string]any{"tags": map[string]any{"a": 1}}), http.StatusOK)
		}, 1},
		"query": {func() {
			w.must(w.rest(http.MethodPost, "/devices/query", map[string]any{"query": "SELECT deviceId FROM devices"}), http.StatusOK)
		}, 1},
	} {
		w.check(what, limitsCount(w, op.do), op.want)
	}
	if used, _ := w.emulator().DailyMessages(); used == 0 {
		t.Error("nothing was counted")
	}
}

func limitsBasicSends(_ *testing.T, w *world) {
	limitsTier(w, "B1", 1)
	d := w.newDevice("d")
	w.mqtt(d, nil).publish("devices/d/messages/events/", 1, "x")
	w.check("event", string(w.events(1)[0].Body), "x")
}

func limitsBasicC2D(t *testing.T, w *world) {
	limitsTier(w, "B1", 1)
	err := w.sendC2D(w.amqpService("service"), w.newDevice("d"), "m", "x", "")
	var refused *amqp.Error
	if !errors.As(err, &refused) {
		t.Fatalf("got %v", err)
	}
	w.check("code", refused.Info["com.microsoft:error-code"], 403010)
}

func limitsBasicREST(_ *testing.T, w *world) {
	limitsTier(w, "B1", 1)
	w.newDevice("d")
	for _, r := range []struct {
		method, path string
		body         any
	}{
		{http.MethodGet, "/twins/d", nil},
		{http.MethodPatch, "/twins/d", map[string]any{"tags": map[string]any{"a": 1}}},
		{http.MethodPost, "/twins/d/methods", map[string]any{"methodName": "m"}},
		{http.MethodPut, "/jobs/v2/j", registryTwinJob("*")},
	} {
		a := w.rest(r.method, r.path, r.body)
		w.check(r.method+" "+r.path, fmt.Sprint(a.status, a.code()), "403OperationNotAvailableInCurrentTier")
	}
}

func limitsRefusesTier(yaml string, line int, text string) func(*testing.T, *world) {
	return func(t *testing.T, _ *world) {
		_, err := emulator.ParseConfig("case.yaml", []byte(yaml))
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("case.yaml:%d:", line)) || !strings.Contains(err.Error(), text) {
			t.Errorf("got %v", err)
		}
	}
}

// faultsInject puts a fault into force, written as for the flag --fault.
func faultsInject(w *world, text string) string {
	w.t.Helper()
	f, err := emulator.ParseFault(text)
	if err != nil {
		w.t.Fatal(err)
	}
	id, err := w.emulator().InjectFault(f)
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

// faultsSend sends a message of a device over HTTPS.
func faultsSend(w *world, d device, status int) {
	w.t.Helper()
	w.must(w.restAs(w.deviceToken(d), http.MethodPost, d.path("/messages/events"), []byte("over HTTPS")), status)
}

// faultsStored waits until the queue of device-to-cloud messages holds some with
// these bodies, and no others.
func faultsStored(w *world, want ...string) {
	w.t.Helper()
	r := w.busReceiver("device-messages", nil)
	w.eventually(fmt.Sprintf("the queue holds %v", want), func() bool {
		msgs, err := r.PeekMessages(w.ctx(), 100, &azservicebus.PeekMessagesOptions{FromSequenceNumber: new(int64(0))})
		if err != nil {
			w.t.Fatal(err)
		}
		var bodies []string
		for _, m := range msgs {
			bodies = append(bodies, string(m.Body))
		}
		if len(bodies) > len(want) {
			w.t.Fatalf("the queue holds %v, want %v", bodies, want)
		}
		return slices.Equal(bodies, want)
	})
}

func faultsCutMQTT(text string) func(*testing.T, *world) {
	return func(_ *testing.T, w *world) {
		d := w.newDevice("d")
		c, other := w.mqtt(d, nil), w.mqtt(w.newDevice("other"), nil)
		c.publish("devices/d/messages/events/", 1, "before")
		faultsInject(w, text)
		c.Publish("devices/d/messages/events/", 1, false, strings.Repeat("x", 1000))
		c.dropped()
		other.publish("devices/other/messages/events/", 1, "still here")
		w.emulator().ClearFaults()
		w.mqtt(d, nil).publish("devices/d/messages/events/", 1, "after")
	}
}

func faultsCutAMQP(t *testing.T, w *world) {
	d := w.newDevice("d")
	r := w.receiver(w.amqpDevice(d), d.path("/messages/devicebound"), nil)
	faultsInject(w, "cut,device=d,protocol=amqp")
	_, err := r.Receive(w.ctx(), nil)
	var lost *amqp.ConnError
	if !errors.As(err, &lost) {
		t.Errorf("got %v", err)
	}
	w.eventually("the device is disconnected", func() bool { return amqpStateOf(w, d) == "Disconnected" })
}

func faultsCutRequests(t *testing.T, w *world) {
	d := w.newDevice("d")
	faultsInject(w, "cut,protocol=https,device=d,count=2")
	for range 2 {
		req, err := http.NewRequestWithContext(w.ctx(), http.MethodPost, "https://"+w.emulator().HTTPSAddr()+d.path("/messages/events")+"?api-version="+apiVersion, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", w.deviceToken(d))
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: w.tls(), DisableKeepAlives: true}}
		if resp, err := client.Do(req); err == nil {
			_ = resp.Body.Close()
			t.Errorf("the request was answered with %d", resp.StatusCode)
		}
	}
	faultsSend(w, d, http.StatusNoContent)
}

// faultsHeld has a device send before another, and shows that it comes after the
// other. What is held up goes on when the fault is removed.
func faultsHeld(w *world, fault string) {
	w.t.Helper()
	slow, fast := w.mqtt(w.newDevice("slow"), nil), w.mqtt(w.newDevice("fast"), nil)
	id := faultsInject(w, fault)
	held := slow.Publish("devices/slow/messages/events/", 1, false, "sent first")
	fast.publish("devices/fast/messages/events/", 1, "sent second")
	faultsStored(w, "sent second")
	select {
	case <-held.Done():
		w.t.Error("the message that is held up was acknowledged")
	default:
	}
	w.check("state", amqpStateOf(w, device{id: "slow"}), "Connected")
	if !w.emulator().RemoveFault(id) {
		w.t.Error("the fault is gone")
	}
	if err := w.wait(held); err != nil {
		w.t.Fatal(err)
	}
	faultsStored(w, "sent second", "sent first")
}

func faultsDelay(_ *testing.T, w *world) { faultsHeld(w, "delay,device=slow,latency=1h") }

func faultsHalfOpen(_ *testing.T, w *world) { faultsHeld(w, "half-open,device=slow") }

func faultsDelayKeepsOrder(_ *testing.T, w *world) {
	c := w.mqtt(w.newDevice("d"), nil)
	faultsInject(w, "delay,device=d,latency=1ms,jitter=5ms,seed=1")
	var want []string
	for i := range 20 {
		want = append(want, fmt.Sprint(i))
		c.publish("devices/d/messages/events/", 0, fmt.Sprint(i))
	}
	faultsStored(w, want...)
	w.check("hits", w.emulator().Faults()[0].Hits, 1)
}

func faultsDisconnectMQTT(_ *testing.T, w *world) {
	d := w.newDevice("d")
	c, other := w.mqtt(d, nil), w.mqtt(w.newDevice("other"), nil)
	faultsInject(w, "disconnect,device=d")
	c.dropped()
	other.publish("devices/other/messages/events/", 1, "still here")
	w.mqtt(d, nil).publish("devices/d/messages/events/", 1, "back") // it is over at once
}

func faultsDisconnectAMQP(t *testing.T, w *world) {
	d := w.newDevice("d")
	r := w.receiver(w.amqpDevice(d), d.path("/messages/devicebound"), nil)
	faultsInject(w, "disconnect,device=d")
	if _, err := r.Receive(w.ctx(), nil); amqpCondition(err) == "" {
		t.Errorf("the link ends with %v", err)
	}
}

func faultsDuplicateD2C(_ *testing.T, w *world) {
	c := w.mqtt(w.newDevice("d"), nil)
	faultsInject(w, "duplicate,operation=d2c,count=1")
	for _, id := range []string{"m-1", "m-2"} {
		c.publish("devices/d/messages/events/%24.mid="+id, 1, id)
	}
	var ids, events []string
	for _, r := range w.routed(3) {
		ids, events = append(ids, r.queue.MessageID), append(events, *r.event.MessageID)
	}
	w.check("messages in the queue", ids, []string{"m-1", "m-1", "m-2"})
	w.check("events", events, []string{"m-1", "m-1", "m-2"})
}

func faultsDuplicateC2D(t *testing.T, w *world) {
	d := w.newDevice("d")
	service := w.amqpService("service")
	faultsInject(w, "duplicate,operation=c2d")
	if err := w.sendC2D(service, d, "m", "x", "full"); err != nil {
		t.Fatal(err)
	}
	r := w.receiver(w.amqpDevice(d), d.path("/messages/devicebound"), nil)
	for range 2 {
		m := w.receive(r)
		w.check("message", m.Properties.MessageID, "m")
		if err := r.AcceptMessage(w.ctx(), m); err != nil {
			t.Fatal(err)
		}
	}
	w.check("feedback", w.feedback(service, 1)[0].StatusCode, "Success")
	w.check("waiting", w.registered(d)["cloudToDeviceMessageCount"], 0)
}

func faultsDuplicateQueue(t *testing.T, w *world) {
	w.busSend("device-messages", &azservicebus.Message{MessageID: new("m-1")}, &azservicebus.Message{MessageID: new("m-2")})
	faultsInject(w, "duplicate,entity=device-messages,count=1")
	r := w.busReceiver("device-messages", nil)
	for _, want := range []string{"m-1", "m-1", "m-2"} {
		m := w.busReceive(r, 1)[0]
		w.check("message", m.MessageID, want)
		if err := r.CompleteMessage(w.ctx(), m, nil); err != nil {
			t.Fatal(err)
		}
	}
}

func faultsRefuseHTTPS(_ *testing.T, w *world) {
	d := w.newDevice("d")
	for code, name := range map[int]string{
		401: "IotHubUnauthorized", 403: "IotHubQuotaExceeded", 404: "DeviceNotFound", 429: "ThrottlingException",
		500: "ServerError", 503: "ServiceUnavailable", 504: "GatewayTimeout", 412001: "PreconditionFailed",
	} {
		id := faultsInject(w, fmt.Sprintf("refuse,operation=registry,retryAfter=1500ms,code=%d", code))
		a := w.rest(http.MethodGet, "/devices/d", nil)
		w.refuses(a, cmp.Or(code/1000, code), name)
		w.check("Retry-After", a.header.Get("Retry-After"), "2")
		w.emulator().RemoveFault(id)
	}
	w.registered(d)
}

func faultsRefuseAMQP(_ *testing.T, w *world) {
	d := w.newDevice("d")
	service := w.amqpService("service")
	for code, want := range map[int]amqp.ErrCond{
		401: amqp.ErrCondUnauthorizedAccess, 403: "com.microsoft:quota-exceeded", 404: amqp.ErrCondNotFound,
		429: "com.microsoft:device-container-throttled", 403004: amqp.ErrCondResourceLimitExceeded, 503: "com.microsoft:timeout",
	} {
		id := faultsInject(w, fmt.Sprintf("refuse,operation=c2d,code=%d", code))
		amqpRefused(w, fmt.Sprint("code ", code), w.sendC2D(service, d, "m", "x", ""), want)
		w.emulator().RemoveFault(id)
	}
	if err := w.sendC2D(service, d, "m", "x", ""); err != nil {
		w.t.Error(err)
	}
}

func faultsRefuseConnect(t *testing.T, w *world) {
	d := w.newDevice("d")
	faultsInject(w, "refuse,operation=connect,code=401,count=1")
	if _, err := w.tryMQTT(d, nil); !errors.Is(err, packets.ErrorRefusedNotAuthorised) {
		t.Errorf("401: %v", err)
	}
	faultsInject(w, "refuse,operation=connect,code=503,count=1")
	if _, err := w.tryMQTT(d, nil); !errors.Is(err, packets.ErrorRefusedServerUnavailable) {
		t.Errorf("503: %v", err)
	}
	w.mqtt(d, nil)
}

// faultsBus sends with a client that tries a few times.
func faultsBus(w *world, queue string, retries int32) error {
	w.t.Helper()
	client, err := azservicebus.NewClientFromConnectionString(w.emulator().ServiceBusConnectionString(), &azservicebus.ClientOptions{
		RetryOptions: azservicebus.RetryOptions{MaxRetries: retries, RetryDelay: time.Millisecond, MaxRetryDelay: time.Millisecond},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.closing("Service Bus client", client.Close)
	sender, err := client.NewSender(queue, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	w.closing("sender", func(ctx context.Context) error { return sender.Close(ctx) })
	return sender.SendMessage(w.ctx(), &azservicebus.Message{}, nil)
}

// once makes an SDK try once.
const faultsOnce = -1

func faultsUnauthorized(w *world, err error) {
	w.t.Helper()
	var refused *azservicebus.Error
	if !errors.As(err, &refused) || refused.Code != azservicebus.CodeUnauthorizedAccess {
		w.t.Errorf("got %v", err)
	}
}

func faultsRefuseQueue(_ *testing.T, w *world) {
	id := faultsInject(w, "refuse,operation=send,entity=device-messages,code=401")
	faultsUnauthorized(w, faultsBus(w, "device-messages", faultsOnce))
	w.emulator().RemoveFault(id)
	faultsInject(w, "refuse,operation=send,entity=device-messages,code=503,count=2")
	if err := faultsBus(w, "device-messages", 3); err != nil { // busy, which the SDK takes for a reason to try again
		w.t.Error(err)
	}
	w.check("faults left", len(w.emulator().Faults()), 0)
}

func faultsRefuseCount(_ *testing.T, w *world) {
	d := w.newDevice("d")
	faultsInject(w, "refuse,operation=d2c,code=503,count=3")
	for range 3 {
		faultsSend(w, d, http.StatusServiceUnavailable)
	}
	faultsSend(w, d, http.StatusNoContent)
}

func faultsRefuseWhile(_ *testing.T, w *world) {
	d := w.newDevice("d")
	faultsInject(w, "refuse,operation=d2c,code=503,duration=2s")
	faultsSend(w, d, http.StatusServiceUnavailable)
	w.eventually("messages pass again", func() bool {
		a := w.restAs(w.deviceToken(d), http.MethodPost, d.path("/messages/events"), []byte("x"))
		return a.status == http.StatusNoContent
	})
	w.check("faults left", len(w.emulator().Faults()), 0)
}

func faultsExpireQueue(t *testing.T, w *world) {
	w.busSend("device-messages", &azservicebus.Message{MessageID: new("m")})
	r := w.busReceiver("device-messages", nil)
	m := w.busReceive(r, 1)[0]
	faultsInject(w, "expire-locks,entity=jobs/subscriptions/jobs")
	if err := r.RenewMessageLock(w.ctx(), m, nil); err != nil {
		t.Errorf("locks of another entity: %v", err)
	}
	faultsInject(w, "expire-locks,entity=device-messages")
	var lost *azservicebus.Error
	if err := r.RenewMessageLock(w.ctx(), m, nil); !errors.As(err, &lost) || lost.Code != azservicebus.CodeLockLost {
		t.Errorf("renewal: %v", err)
	}
	w.check("delivery", w.busReceive(r, 1)[0].DeliveryCount, 2)
}

func faultsExpireC2D(_ *testing.T, w *world) {
	d := w.newDevice("d")
	amqpQueue(w, d, 1)
	r := w.receiver(w.amqpDevice(d), d.path("/messages/devicebound"), &amqp.ReceiverOptions{
		Credit: 2, SettlementMode: amqp.ReceiverSettleModeSecond.Ptr(),
	})
	first := w.receive(r)
	faultsInject(w, "expire-locks,device=d")
	again := w.receive(r)
	w.check("message", again.Properties.MessageID, first.Properties.MessageID)
	amqpRefused(w, "late settlement", r.AcceptMessage(w.ctx(), first), "com.microsoft:message-lock-lost")
	if err := r.AcceptMessage(w.ctx(), again); err != nil {
		w.t.Error(err)
	}
}

func faultsByDevice(_ *testing.T, w *world) {
	faultsInject(w, "refuse,operation=d2c,device=sensor-*,code=503")
	for id, want := range map[string]int{
		"sensor-1": http.StatusServiceUnavailable, "sensor-": http.StatusServiceUnavailable,
		"sensor": http.StatusNoContent, "my-sensor-1": http.StatusNoContent,
	} {
		faultsSend(w, w.newDevice(id), want)
	}
}

func faultsByProtocol(_ *testing.T, w *world) {
	d, e := w.newDevice("d"), w.newDevice("e")
	c := w.mqtt(d, nil)
	s := w.sender(w.amqpDevice(e), e.path("/messages/events"), nil)
	faultsInject(w, "cut,protocol=mqtt")
	c.dropped()
	if err := s.Send(w.ctx(), amqp.NewMessage([]byte("x")), nil); err != nil {
		w.t.Error(err)
	}
	faultsSend(w, d, http.StatusNoContent)
}

func faultsByOperation(_ *testing.T, w *world) {
	d := w.newDevice("d")
	faultsInject(w, "refuse,operation=twin-read,code=503")
	w.must(w.rest(http.MethodGet, "/twins/d", nil), http.StatusServiceUnavailable)
	w.must(w.rest(http.MethodPatch, "/twins/d", map[string]any{"tags": map[string]any{"a": 1}}), http.StatusOK)
	w.registered(d)
	faultsSend(w, d, http.StatusNoContent)
}

func faultsByEntity(_ *testing.T, w *world) {
	w.with(emulatortest.Config(&emulator.Config{Queues: []emulator.Queue{{Name: "orders"}, {Name: "bills"}}}))
	faultsInject(w, "refuse,operation=send,entity=Order*,code=401")
	faultsUnauthorized(w, faultsBus(w, "orders", faultsOnce))
	if err := faultsBus(w, "bills", faultsOnce); err != nil {
		w.t.Error(err)
	}
}

// faultsByChance compares the choices of three emulators.
func faultsByChance(t *testing.T, w *world) {
	choices := func(w *world, seed int) (all string) {
		d := w.newDevice("d")
		faultsInject(w, fmt.Sprintf("refuse,operation=d2c,code=503,probability=0.5,seed=%d", seed))
		c := limitsRequests(w)
		for range 40 {
			all += fmt.Sprint(c.do(http.MethodPost, d.path("/messages/events"), nil).status, " ")
		}
		return all
	}
	first, same, other := choices(w, 1), choices(newWorld(t), 1), choices(newWorld(t), 2)
	if !strings.Contains(first, "503") || !strings.Contains(first, "204") {
		t.Errorf("half of the messages should pass: %s", first)
	}
	w.check("choices with the same seed", same, first)
	if other == first {
		t.Errorf("the choices with another seed are the same: %s", first)
	}
}

func faultsListed(t *testing.T, w *world) {
	d, e := w.newDevice("d"), w.emulator()
	first := faultsInject(w, "refuse,operation=d2c,device=d,code=429")
	faultsInject(w, "cut,device=nobody")
	faultsInject(w, "half-open,device=nobody")
	faultsSend(w, d, http.StatusTooManyRequests)
	faultsSend(w, d, http.StatusTooManyRequests)
	all := e.Faults()
	if len(all) != 3 {
		t.Fatalf("there are %v", all)
	}
	w.check("first fault", []any{all[0].ID, all[0].Kind, all[0].Device, all[0].Code, all[0].Hits}, []any{first, emulator.FaultRefuse, "d", 429, 2})
	w.check("hits of the second", all[1].Hits, 0)
	if !e.RemoveFault(first) || e.RemoveFault(first) {
		t.Error("the fault is not removed once")
	}
	faultsSend(w, d, http.StatusNoContent)
	w.check("removed", e.ClearFaults(), 2)
	w.check("faults left", len(e.Faults()), 0)
}

func faultsFromTheStart(_ *testing.T, w *world) {
	w.with(func(o *emulator.Options) {
		o.Faults = []emulator.Fault{{Kind: emulator.FaultRefuse, Operation: "d2c", Code: 503, Count: 1}}
	})
	d := w.newDevice("d")
	faultsSend(w, d, http.StatusServiceUnavailable)
	faultsSend(w, d, http.StatusNoContent)
}

// faultsRequest makes a request to the control API. Headers are "name: value";
// the body's type is JSON unless they say otherwise.
func faultsRequest(w *world, method, path, body string, headers ...string) answer {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.ctx(), method, "http://"+w.emulator().ControlAddr()+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if name == "Host" {
			req.Host = value
		}
		req.Header.Set(name, value)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, text}
}

func faultsControlled(w *world) {
	w.t.Helper()
	w.with(func(o *emulator.Options) { o.ControlAddr = "127.0.0.1:0" })
}

func faultsOverHTTP(t *testing.T, w *world) {
	faultsControlled(w)
	d := w.newDevice("d")
	id, _ := w.must(faultsRequest(w, http.MethodPost, "/faults", `{"kind":"refuse","operation":"d2c","code":429,"retryAfter":"3s"}`), http.StatusCreated).object(t)["id"].(string)
	faultsSend(w, d, http.StatusTooManyRequests)
	w.check("faults", w.must(faultsRequest(w, http.MethodGet, "/faults", ""), http.StatusOK).object(t), map[string]any{"faults": []any{map[string]any{
		"id": id, "hits": 1, "kind": "refuse", "operation": "d2c", "code": 429, "retryAfter": "3s",
	}}})
	w.must(faultsRequest(w, http.MethodDelete, "/faults/"+url.PathEscape(id), ""), http.StatusNoContent)
	w.must(faultsRequest(w, http.MethodDelete, "/faults/"+url.PathEscape(id), ""), http.StatusNotFound)
	faultsSend(w, d, http.StatusNoContent)
	w.must(faultsRequest(w, http.MethodPost, "/faults", `{"kind":"cut","device":"nobody"}`), http.StatusCreated)
	w.check("removed", w.must(faultsRequest(w, http.MethodDelete, "/faults", ""), http.StatusOK).object(t), map[string]any{"removed": 1})
}

func faultsRefusePages(_ *testing.T, w *world) {
	faultsControlled(w)
	const fault = `{"kind":"cut"}`
	for what, headers := range map[string][]string{
		"page of another site": {"Origin: https://example.com"},
		"page of a file":       {"Origin: null"},
		"name of another site": {"Host: example.com"},
	} {
		w.check(what, faultsRequest(w, http.MethodPost, "/faults", fault, headers...).status, http.StatusForbidden)
		w.check(what+", reading", faultsRequest(w, http.MethodGet, "/faults", "", headers...).status, http.StatusForbidden)
	}
	w.check("form", faultsRequest(w, http.MethodPost, "/faults", fault, "Content-Type: text/plain").status, http.StatusUnsupportedMediaType)
	w.check("faults", len(w.emulator().Faults()), 0)
}

func faultsExplain(t *testing.T, w *world) {
	faultsControlled(w)
	for body, text := range map[string]string{
		`{"kind":`:                              "unexpected",
		`[]`:                                    "array",
		`{}`:                                    "kind",
		`{"kind":"explode"}`:                    "explode",
		`{"kind":"cut","colour":"red"}`:         "colour",
		`{"kind":"cut","after":"soon"}`:         "soon",
		`{"kind":"cut","latency":"1s"}`:         "latency",
		`{"kind":"refuse"}`:                     "code",
		`{"kind":"delay"}`:                      "latency",
		`{"kind":"cut","probability":2}`:        "probability",
		`{"kind":"cut","count":-1}`:             "count",
		`{"kind":"cut","protocol":"coap"}`:      "coap",
		`{"kind":"cut","bytes":1,"after":"1s"}`: "bytes",
	} {
		a := faultsRequest(w, http.MethodPost, "/faults", body)
		var refusal struct{ Error string }
		if err := json.Unmarshal(a.body, &refusal); err != nil {
			t.Errorf("%s: %s", body, a.body)
		}
		if a.status != http.StatusBadRequest || !strings.Contains(refusal.Error, text) || strings.Contains(refusal.Error, "\n") {
			t.Errorf("%s: status %d: %s", body, a.status, a.body)
		}
	}
	w.check("faults", len(w.emulator().Faults()), 0)
}

func faultsNoControl(_ *testing.T, w *world) {
	w.check("address", w.emulator().ControlAddr(), "")
	w.check("status of /faults over HTTPS", w.rest(http.MethodGet, "/faults", nil).status, http.StatusNotFound)
}

func faultsRefuse(text, want string) func(*testing.T, *world) {
	return func(t *testing.T, _ *world) {
		_, err := emulator.ParseFault(text)
		if !errors.Is(err, emulator.ErrInvalidFault) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v", err)
		}
	}
}

func faultsRefuseAddress(t *testing.T, _ *world) {
	for _, addr := range []string{"0.0.0.0:0", ":0", "example.com:9000"} {
		e, err := emulator.Start(t.Context(), emulator.Options{ControlAddr: addr})
		if err == nil {
			t.Errorf("%s: the emulator starts", addr)
			_ = e.Close()
		} else if !strings.Contains(err.Error(), "loopback") {
			t.Errorf("%s: %v", addr, err)
		}
	}
}
