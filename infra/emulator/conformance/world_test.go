package conformance_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"
	"github.com/Azure/go-amqp"
	"github.com/amenzhinsky/iothub/common"
	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/hubjobs/hubjobs/azure/iothub"
	"github.com/hubjobs/hubjobs/infra/emulator"
	"github.com/hubjobs/hubjobs/infra/emulator/emulatortest"
)

// waitTimeout bounds every wait of a case, so that a hang becomes a failure.
const waitTimeout = 60 * time.Second

// apiVersion is that of the requests to the hub.
const apiVersion = "2021-04-12"

// world is an emulator and clients that connect to it. Everything is closed with
// the case.
type world struct {
	t       *testing.T
	options []emulatortest.Option
	started *emulator.Emulator
}

func newWorld(t *testing.T) *world { return &world{t: t} }

// with sets options of an emulator that has not been started yet.
func (w *world) with(options ...emulatortest.Option) *world {
	w.t.Helper()
	if w.started != nil {
		w.t.Fatal("the emulator has been started")
	}
	w.options = append(w.options, options...)
	return w
}

// configure gives the emulator the entities of a configuration in YAML.
func (w *world) configure(yaml string) *world {
	w.t.Helper()
	cfg, err := emulator.ParseConfig("case.yaml", []byte(yaml))
	if err != nil {
		w.t.Fatal(err)
	}
	return w.with(emulatortest.Config(cfg))
}

// emulator returns the emulator, which is started when it is first asked for.
func (w *world) emulator() *emulator.Emulator {
	w.t.Helper()
	if w.started == nil {
		w.started = emulatortest.Start(w.t, w.options...)
	}
	return w.started
}

// restart ends the emulator and starts another with the same options.
func (w *world) restart() {
	w.t.Helper()
	if err := w.emulator().Close(); err != nil {
		w.t.Fatal(err)
	}
	w.started = emulatortest.Start(w.t, w.options...)
}

func (w *world) ctx() context.Context {
	ctx, cancel := context.WithTimeout(w.t.Context(), waitTimeout)
	w.t.Cleanup(cancel)
	return ctx
}

// closing is for closing clients in a cleanup, when the test's context has ended.
func (w *world) closing(what string, end func(context.Context) error) {
	w.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), waitTimeout)
		defer cancel()
		_ = end(ctx) // the case may have broken the connection on purpose
	})
}

func (w *world) roots() *x509.CertPool {
	w.t.Helper()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(w.emulator().CAPEM()) {
		w.t.Fatal("the CA is no PEM certificate")
	}
	return roots
}

func (w *world) tls() *tls.Config {
	return &tls.Config{RootCAs: w.roots(), ServerName: w.emulator().HubName(), MinVersion: tls.VersionTLS12}
}

// token makes a shared access signature; policy is empty for a device's own key.
func (w *world) token(resource, policy, key string, life time.Duration) string {
	w.t.Helper()
	sas, err := common.NewSharedAccessSignature(resource, policy, key, time.Now().Add(life))
	if err != nil {
		w.t.Fatal(err)
	}
	return sas.String()
}

// policyToken is a token of one of the hub's policies, for the whole hub.
func (w *world) policyToken(policy string) string {
	w.t.Helper()
	return w.token(w.emulator().HubName(), policy, w.policyKey(policy), time.Hour)
}

func (w *world) policyKey(policy string) string {
	w.t.Helper()
	text, err := w.emulator().PolicyConnectionString(policy)
	if err != nil {
		w.t.Fatal(err)
	}
	cs, err := common.ParseConnectionString(text, "SharedAccessKey")
	if err != nil {
		w.t.Fatal(err)
	}
	return cs["SharedAccessKey"]
}

// answer is that of the hub's REST API.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// decode reads the body.
func (a answer) decode(t *testing.T, into any) {
	t.Helper()
	if err := json.Unmarshal(a.body, into); err != nil {
		t.Fatalf("status %d, body %s: %v", a.status, a.body, err)
	}
}

// object is the body as an object.
func (a answer) object(t *testing.T) map[string]any {
	t.Helper()
	var object map[string]any
	a.decode(t, &object)
	return object
}

// code is the hub's name of the error.
func (a answer) code() string { return a.header.Get("iothub-errorcode") }

// rest makes a request to the hub's REST API as iothubowner. The path may have a
// query; a body other than nil and []byte is encoded as JSON; headers are "name:
// value".
func (w *world) rest(method, path string, body any, headers ...string) answer {
	w.t.Helper()
	return w.restAs(w.policyToken("iothubowner"), method, path, body, headers...)
}

// restAs is rest with a token; an empty one is left out.
func (w *world) restAs(token, method, path string, body any, headers ...string) answer {
	w.t.Helper()
	return w.restOver(w.tls(), token, method, path, body, headers...)
}

// restOver is restAs over a TLS configuration, such as one with a certificate.
func (w *world) restOver(config *tls.Config, token, method, path string, body any, headers ...string) answer {
	w.t.Helper()
	path, query, _ := strings.Cut(path, "?")
	address := "https://" + w.emulator().HTTPSAddr() + path + "?api-version=" + apiVersion
	if query != "" {
		address += "&" + query
	}
	req, err := http.NewRequestWithContext(w.ctx(), method, address, w.encode(body))
	if err != nil {
		w.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", token)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ":")
		req.Header.Set(name, strings.TrimSpace(value))
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, data}
}

func (w *world) encode(body any) io.Reader {
	w.t.Helper()
	switch body := body.(type) {
	case nil:
		return http.NoBody
	case []byte:
		return bytes.NewReader(body)
	}
	text, err := json.Marshal(body)
	if err != nil {
		w.t.Fatal(err)
	}
	return bytes.NewReader(text)
}

// must fails the case unless the hub answered with the status.
func (w *world) must(a answer, status int) answer {
	w.t.Helper()
	if a.status != status {
		w.t.Fatalf("status %d %s, want %d: %s", a.status, a.code(), status, a.body)
	}
	return a
}

// device is a device identity that the case has made.
type device struct {
	id, primary, secondary string
}

// path returns /devices/{id} and what follows.
func (d device) path(rest string) string { return "/devices/" + url.PathEscape(d.id) + rest }

// newDevice registers a device with generated keys.
func (w *world) newDevice(id string) device {
	w.t.Helper()
	return w.newDeviceOf(map[string]any{"deviceId": id})
}

// newDeviceOf registers a device as described.
func (w *world) newDeviceOf(description map[string]any) device {
	w.t.Helper()
	id, _ := description["deviceId"].(string)
	var made struct {
		Authentication struct {
			SymmetricKey struct{ PrimaryKey, SecondaryKey string }
		}
	}
	w.must(w.rest(http.MethodPut, device{id: id}.path(""), description), http.StatusOK).decode(w.t, &made)
	keys := made.Authentication.SymmetricKey
	return device{id, keys.PrimaryKey, keys.SecondaryKey}
}

// registered is the identity as the registry has it now.
func (w *world) registered(d device) map[string]any {
	w.t.Helper()
	return w.must(w.rest(http.MethodGet, d.path(""), nil), http.StatusOK).object(w.t)
}

// deviceToken is a token that the device signs itself.
func (w *world) deviceToken(d device) string {
	w.t.Helper()
	return w.token(w.emulator().HubName()+"/devices/"+d.id, "", d.primary, time.Hour)
}

// service is the pipeline's own client of the service side.
func (w *world) service() *iothub.Client {
	w.t.Helper()
	c, err := iothub.New(iothub.Config{
		ConnectionString: w.emulator().HubConnectionString(),
		HTTPSAddr:        w.emulator().HTTPSAddr(),
		AMQPSAddr:        w.emulator().AMQPSAddr(),
		RootCAs:          w.roots(),
		Timeout:          waitTimeout,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.closing("service client", func(context.Context) error { return c.Close() })
	return c
}

// mqttOptions are those of a device that connects with its own key and
// acknowledges cloud-to-device messages by itself.
func (w *world) mqttOptions(d device) *paho.ClientOptions {
	w.t.Helper()
	e := w.emulator()
	return paho.NewClientOptions().
		AddBroker("tls://" + e.MQTTSAddr()).
		SetTLSConfig(w.tls()).
		SetProtocolVersion(4).
		SetCleanSession(false).
		SetAutoReconnect(false).
		SetConnectTimeout(waitTimeout).
		SetClientID(d.id).
		SetUsername(e.HubName() + "/" + d.id + "/?api-version=" + apiVersion).
		SetPassword(w.deviceToken(d))
}

// mqtt is a connected MQTT client and all that comes to it.
type mqttClient struct {
	paho.Client
	w        *world
	messages chan paho.Message
	lost     chan error
}

// mqtt connects a device with the options of mqttOptions after change, if that is
// not nil.
func (w *world) mqtt(d device, change func(*paho.ClientOptions)) *mqttClient {
	w.t.Helper()
	c, err := w.tryMQTT(d, change)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// tryMQTT is mqtt for connections that may be refused.
func (w *world) tryMQTT(d device, change func(*paho.ClientOptions)) (*mqttClient, error) {
	w.t.Helper()
	c := &mqttClient{w: w, messages: make(chan paho.Message, 1000), lost: make(chan error, 1)}
	opts := w.mqttOptions(d)
	// Set before connecting: a hub that remembers the subscriptions of an earlier
	// connection delivers at once.
	opts.SetDefaultPublishHandler(func(_ paho.Client, m paho.Message) { c.messages <- m })
	opts.SetConnectionLostHandler(func(_ paho.Client, err error) { c.lost <- err })
	if change != nil {
		change(opts)
	}
	c.Client = paho.NewClient(opts)
	if err := w.wait(c.Connect()); err != nil {
		return nil, err
	}
	w.t.Cleanup(func() { c.Disconnect(0) })
	return c, nil
}

// wait waits for an operation of paho.
func (w *world) wait(token paho.Token) error {
	w.t.Helper()
	if !token.WaitTimeout(waitTimeout) {
		w.t.Fatal("the hub did not answer")
	}
	return token.Error()
}

func (c *mqttClient) subscribe(filter string, qos byte) {
	c.w.t.Helper()
	if err := c.w.wait(c.Subscribe(filter, qos, nil)); err != nil {
		c.w.t.Fatal(err)
	}
}

func (c *mqttClient) publish(topic string, qos byte, payload string) {
	c.w.t.Helper()
	if err := c.w.wait(c.Client.Publish(topic, qos, false, payload)); err != nil {
		c.w.t.Fatal(err)
	}
}

// receive returns the next message on a topic that begins with the prefix. Others
// are lost.
func (c *mqttClient) receive(prefix string) paho.Message {
	c.w.t.Helper()
	ctx := c.w.ctx()
	for {
		select {
		case m := <-c.messages:
			if strings.HasPrefix(m.Topic(), prefix) {
				return m
			}
		case <-ctx.Done():
			c.w.t.Fatalf("no message on %s", prefix)
		}
	}
}

// dropped waits until the hub has closed the connection.
func (c *mqttClient) dropped() {
	c.w.t.Helper()
	next(c.w, "end of the connection", c.lost)
}

// amqp connects to the hub over AMQP with TLS and puts tokens for resources, by
// resource. Without tokens nothing is put.
func (w *world) amqp(tokens map[string]string, change func(*amqp.ConnOptions)) *amqp.Session {
	w.t.Helper()
	e := w.emulator()
	opts := &amqp.ConnOptions{TLSConfig: w.tls(), HostName: e.HubName(), SASLType: amqp.SASLTypeAnonymous()}
	if change != nil {
		change(opts)
	}
	conn, err := amqp.Dial(w.ctx(), "amqps://"+e.AMQPSAddr(), opts)
	if err != nil {
		w.t.Fatal(err)
	}
	w.closing("AMQP connection", func(context.Context) error { return conn.Close() })
	session, err := conn.NewSession(w.ctx(), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	for resource, token := range tokens {
		if err := w.putToken(session, resource, token); err != nil {
			w.t.Fatal(err)
		}
	}
	return session
}

// amqpDevice connects as a device with its own key.
func (w *world) amqpDevice(d device) *amqp.Session {
	w.t.Helper()
	resource := w.emulator().HubName() + "/devices/" + d.id
	return w.amqp(map[string]string{resource: w.deviceToken(d)}, nil)
}

// amqpService connects as a policy.
func (w *world) amqpService(policy string) *amqp.Session {
	w.t.Helper()
	return w.amqp(map[string]string{w.emulator().HubName(): w.policyToken(policy)}, nil)
}

// putToken gives the hub a token as the SDKs do (azure-iot-amqp-base,
// amqp_cbs.ts).
func (w *world) putToken(session *amqp.Session, resource, token string) error {
	w.t.Helper()
	receiver, err := session.NewReceiver(w.ctx(), "$cbs", nil)
	if err != nil {
		return err
	}
	defer receiver.Close(w.ctx())
	sender, err := session.NewSender(w.ctx(), "$cbs", nil)
	if err != nil {
		return err
	}
	defer sender.Close(w.ctx())
	err = sender.Send(w.ctx(), &amqp.Message{
		Value:      token,
		Properties: &amqp.MessageProperties{MessageID: "put-token", To: new("$cbs"), ReplyTo: new("cbs")},
		ApplicationProperties: map[string]any{
			"operation": "put-token", "type": "servicebus.windows.net:sastoken", "name": url.QueryEscape(resource),
		},
	}, nil)
	if err != nil {
		return err
	}
	reply, err := receiver.Receive(w.ctx(), nil)
	if err != nil {
		return err
	}
	if err := receiver.AcceptMessage(w.ctx(), reply); err != nil {
		return err
	}
	if status := reply.ApplicationProperties["status-code"]; status != int32(200) {
		return fmt.Errorf("put-token: %v %v", status, reply.ApplicationProperties["status-description"])
	}
	return nil
}

func (w *world) sender(s *amqp.Session, address string, opts *amqp.SenderOptions) *amqp.Sender {
	w.t.Helper()
	sender, err := s.NewSender(w.ctx(), address, opts)
	if err != nil {
		w.t.Fatal(err)
	}
	return sender
}

func (w *world) receiver(s *amqp.Session, address string, opts *amqp.ReceiverOptions) *amqp.Receiver {
	w.t.Helper()
	receiver, err := s.NewReceiver(w.ctx(), address, opts)
	if err != nil {
		w.t.Fatal(err)
	}
	return receiver
}

func (w *world) receive(r *amqp.Receiver) *amqp.Message {
	w.t.Helper()
	m, err := r.Receive(w.ctx(), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return m
}

// c2d is a cloud-to-device message as the service SDKs make it.
func (w *world) c2d(d device, id, body string) *amqp.Message {
	m := amqp.NewMessage([]byte(body))
	m.Properties = &amqp.MessageProperties{MessageID: id, To: new(d.path("/messages/devicebound"))}
	return m
}

// sendC2D sends a cloud-to-device message over a link of its own. ack is empty, or
// the feedback that is asked for.
func (w *world) sendC2D(s *amqp.Session, d device, id, body, ack string) error {
	w.t.Helper()
	sender := w.sender(s, "/messages/devicebound", nil)
	defer sender.Close(w.ctx())
	m := w.c2d(d, id, body)
	if ack != "" {
		m.ApplicationProperties = map[string]any{"iothub-ack": ack}
	}
	return sender.Send(w.ctx(), m, nil)
}

// feedbackRecord is a record as the hub writes it (IoT Hub docs: "Send
// cloud-to-device messages from an IoT hub").
type feedbackRecord struct {
	OriginalMessageID  string `json:"originalMessageId"`
	Description        string `json:"description"`
	DeviceGenerationID string `json:"deviceGenerationId"`
	DeviceID           string `json:"deviceId"`
	EnqueuedTimeUTC    string `json:"enqueuedTimeUtc"`
	StatusCode         string `json:"statusCode"`
}

// feedback receives and completes batches until it has the records of n messages.
func (w *world) feedback(s *amqp.Session, n int) []feedbackRecord {
	w.t.Helper()
	receiver := w.receiver(s, "/messages/serviceBound/feedback", nil)
	defer receiver.Close(w.ctx())
	var all []feedbackRecord
	for len(all) < n {
		m := w.receive(receiver)
		var records []feedbackRecord
		if err := json.Unmarshal(m.GetData(), &records); err != nil {
			w.t.Fatal(err)
		}
		if err := receiver.AcceptMessage(w.ctx(), m); err != nil {
			w.t.Fatal(err)
		}
		all = append(all, records...)
	}
	return all
}

// serviceBus is the vendor's client.
func (w *world) serviceBus() *azservicebus.Client {
	w.t.Helper()
	client, err := azservicebus.NewClientFromConnectionString(w.emulator().ServiceBusConnectionString(), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	w.closing("Service Bus client", client.Close)
	return client
}

// busReceiver receives from a queue under a lock.
func (w *world) busReceiver(queue string, opts *azservicebus.ReceiverOptions) *azservicebus.Receiver {
	w.t.Helper()
	r, err := w.serviceBus().NewReceiverForQueue(queue, opts)
	if err != nil {
		w.t.Fatal(err)
	}
	w.closing("receiver", r.Close)
	return r
}

// busSend sends messages one by one to a queue or topic.
func (w *world) busSend(entity string, msgs ...*azservicebus.Message) {
	w.t.Helper()
	s, err := w.serviceBus().NewSender(entity, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	defer s.Close(w.ctx())
	for _, m := range msgs {
		if err := s.SendMessage(w.ctx(), m, nil); err != nil {
			w.t.Fatal(err)
		}
	}
}

// busReceive receives n messages.
func (w *world) busReceive(r *azservicebus.Receiver, n int) []*azservicebus.ReceivedMessage {
	w.t.Helper()
	var all []*azservicebus.ReceivedMessage
	for len(all) < n {
		msgs, err := r.ReceiveMessages(w.ctx(), n-len(all), nil)
		if err != nil {
			w.t.Fatal(err)
		}
		all = append(all, msgs...)
	}
	return all
}

// eventHub is the vendor's client of the built-in endpoint.
func (w *world) eventHub(group string) *azeventhubs.ConsumerClient {
	w.t.Helper()
	client, err := azeventhubs.NewConsumerClientFromConnectionString(w.emulator().EventsConnectionString(), "", group, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	w.closing("Event Hubs client", client.Close)
	return client
}

// events returns the first n events of the built-in endpoint, from the earliest.
// Those of one device are in order.
func (w *world) events(n int) []*azeventhubs.ReceivedEventData {
	w.t.Helper()
	client := w.eventHub(azeventhubs.DefaultConsumerGroup)
	ctx, cancel := context.WithCancel(w.ctx())
	props, err := client.GetEventHubProperties(ctx, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	found := make(chan *azeventhubs.ReceivedEventData)
	var wg sync.WaitGroup
	for _, id := range props.PartitionIDs {
		p, err := client.NewPartitionClient(id, &azeventhubs.PartitionClientOptions{
			StartPosition: azeventhubs.StartPosition{Earliest: new(true)},
		})
		if err != nil {
			w.t.Fatal(err)
		}
		wg.Go(func() {
			defer p.Close(context.WithoutCancel(ctx))
			for {
				events, err := p.ReceiveEvents(ctx, 1, nil)
				if err != nil {
					if !errors.Is(err, context.Canceled) {
						w.t.Errorf("partition %s: %v", id, err)
					}
					return
				}
				for _, e := range events {
					select {
					case found <- e:
					case <-ctx.Done():
						return
					}
				}
			}
		})
	}
	defer wg.Wait()
	defer cancel()
	all := make([]*azeventhubs.ReceivedEventData, n)
	for i := range all {
		all[i] = next(w, "event", found)
	}
	return all
}

// next takes a value from a channel.
func next[T any](w *world, what string, from <-chan T) T {
	w.t.Helper()
	select {
	case v := <-from:
		return v
	case <-w.ctx().Done():
		w.t.Fatalf("no %s", what)
		panic("unreachable")
	}
}

// eventually repeats a check that asks the emulator, until it holds.
func (w *world) eventually(what string, holds func() bool) {
	w.t.Helper()
	ctx := w.ctx()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			w.t.Fatalf("never: %s", what)
		}
	}
}

// check compares what people read of two values.
func (w *world) check(what string, got, want any) {
	w.t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		w.t.Errorf("%s: got %v, want %v", what, got, want)
	}
}
