package emulator_test

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
	"os"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"
	"github.com/Azure/go-amqp"
	"github.com/amenzhinsky/iothub/common"
	mqtt "github.com/eclipse/paho.mqtt.golang"
	"go.uber.org/goleak"

	"github.com/hubjobs/hubjobs/infra/emulator"
)

func TestMain(m *testing.M) {
	// azeventhubs v2.0.2 forgets the goroutine that renews the token of a link.
	const renewer = "github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2/internal.(*Namespace).startNegotiateClaimRenewer.func3"
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction(renewer))
}

// testTimeout bounds every wait of a test, so that a hang becomes a failure.
const testTimeout = 30 * time.Second

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}

const deviceID = "device-solver::job-1"

func check(t *testing.T, what string, got, want any) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// token makes a shared access signature as the SDK amenzhinsky/iothub does.
func token(t *testing.T, resource, policy, key string) string {
	t.Helper()
	sas, err := common.NewSharedAccessSignature(resource, policy, key, time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return sas.String()
}

// serviceToken is one of the policy in the hub's connection string.
func serviceToken(t *testing.T, connectionString string) string {
	t.Helper()
	cs, err := common.ParseConnectionString(connectionString, "HostName", "SharedAccessKeyName", "SharedAccessKey")
	if err != nil {
		t.Fatal(err)
	}
	return token(t, cs["HostName"], cs["SharedAccessKeyName"], cs["SharedAccessKey"])
}

func tlsConfig(t *testing.T, e *emulator.Emulator) *tls.Config {
	t.Helper()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(e.CAPEM()) {
		t.Fatal("the CA is no PEM certificate")
	}
	return &tls.Config{RootCAs: roots, ServerName: e.HubName(), MinVersion: tls.VersionTLS12}
}

// call makes a request to the hub's REST API and decodes the answer.
func call(t *testing.T, e *emulator.Emulator, auth, method, path string, body, answer any) int {
	t.Helper()
	var text bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&text).Encode(body); err != nil {
			t.Fatal(err)
		}
	}
	req, err := http.NewRequestWithContext(testContext(t), method, "https://"+e.HTTPSAddr()+path+"?api-version=2021-04-12", &text)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", auth)
	req.Header.Set("If-Match", "*")
	if method == http.MethodPut {
		req.Header.Del("If-Match") // creates
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: tlsConfig(t, e), DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if answer != nil {
		if err := json.Unmarshal(data, answer); err != nil {
			t.Fatalf("%s %s: %d %s", method, path, resp.StatusCode, data)
		}
	}
	return resp.StatusCode
}

// device is what the registry tells of a device.
type device struct {
	DeviceID                  string
	GenerationID              string
	ConnectionState           string
	CloudToDeviceMessageCount int
	Authentication            struct{ SymmetricKey struct{ PrimaryKey string } }
}

func createDevice(t *testing.T, e *emulator.Emulator, id string) device {
	t.Helper()
	var d device
	status := call(t, e, serviceToken(t, e.HubConnectionString()), http.MethodPut, "/devices/"+url.PathEscape(id), map[string]any{"deviceId": id}, &d)
	if status != http.StatusOK {
		t.Fatalf("create device: status %d", status)
	}
	return d
}

func getDevice(t *testing.T, e *emulator.Emulator, id string) device {
	t.Helper()
	var d device
	if status := call(t, e, serviceToken(t, e.HubConnectionString()), http.MethodGet, "/devices/"+url.PathEscape(id), nil, &d); status != http.StatusOK {
		t.Fatalf("get device: status %d", status)
	}
	return d
}

// paho returns the options of a device as the pipeline connects it.
func paho(t *testing.T, e *emulator.Emulator, id, key string) *mqtt.ClientOptions {
	t.Helper()
	return mqtt.NewClientOptions().
		AddBroker("tls://" + e.MQTTSAddr()).
		SetTLSConfig(tlsConfig(t, e)).
		SetProtocolVersion(4).
		SetCleanSession(false).
		SetAutoReconnect(false).
		SetAutoAckDisabled(true).
		SetClientID(id).
		SetUsername(e.HubName() + "/" + id + "/?api-version=2021-04-12").
		SetPassword(token(t, e.HubName()+"/devices/"+id, "", key))
}

// done waits for an operation of paho.
func done(t *testing.T, token mqtt.Token) {
	t.Helper()
	if !token.WaitTimeout(testTimeout) {
		t.Fatal("no answer")
	}
	if err := token.Error(); err != nil {
		t.Fatal(err)
	}
}

// connect connects a device that gives its cloud-to-device messages to a channel.
func connect(t *testing.T, opts *mqtt.ClientOptions) (mqtt.Client, <-chan mqtt.Message) {
	t.Helper()
	messages := make(chan mqtt.Message, 100)
	// Set before connecting: a hub that remembers the subscription of an earlier
	// connection delivers at once.
	opts.SetDefaultPublishHandler(func(_ mqtt.Client, m mqtt.Message) { messages <- m })
	client := mqtt.NewClient(opts)
	done(t, client.Connect())
	t.Cleanup(func() { client.Disconnect(0) })
	done(t, client.Subscribe("devices/"+opts.ClientID+"/messages/devicebound/#", 1, nil))
	return client, messages
}

func next[T any](t *testing.T, what string, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-testContext(t).Done():
		t.Fatalf("no %s", what)
		panic("unreachable")
	}
}

func publish(t *testing.T, client mqtt.Client, id, bag, body string) {
	t.Helper()
	done(t, client.Publish("devices/"+id+"/messages/events/"+bag, 1, false, body))
}

// serviceConn connects to the hub as a service.
func serviceConn(t *testing.T, e *emulator.Emulator) *amqp.Session {
	t.Helper()
	conn, err := amqp.Dial(testContext(t), "amqps://"+e.AMQPSAddr(), &amqp.ConnOptions{
		TLSConfig: tlsConfig(t, e),
		HostName:  e.HubName(),
		SASLType:  amqp.SASLTypePlain("iothubowner@sas.root."+e.HubName(), serviceToken(t, e.HubConnectionString())),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	session, err := conn.NewSession(testContext(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	return session
}

func sendC2D(t *testing.T, session *amqp.Session, id, messageID, body string) {
	t.Helper()
	sender, err := session.NewSender(testContext(t), "/messages/devicebound", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close(testContext(t))
	m := amqp.NewMessage([]byte(body))
	to := "/devices/" + url.PathEscape(id) + "/messages/devicebound"
	m.Properties = &amqp.MessageProperties{MessageID: messageID, To: &to}
	m.ApplicationProperties = map[string]any{"iothub-ack": "full", "from-device": "device-scheduler::job-1"}
	if err := sender.Send(testContext(t), m, nil); err != nil {
		t.Fatal(err)
	}
}

// feedbackRecord receives one batch of feedback and returns its records.
func feedbackRecords(t *testing.T, session *amqp.Session) []map[string]string {
	t.Helper()
	receiver, err := session.NewReceiver(testContext(t), "/messages/serviceBound/feedback", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer receiver.Close(testContext(t))
	m, err := receiver.Receive(testContext(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := receiver.AcceptMessage(testContext(t), m); err != nil {
		t.Fatal(err)
	}
	var records []map[string]string
	if err := json.Unmarshal(m.GetData(), &records); err != nil {
		t.Fatal(err)
	}
	return records
}

func serviceBus(t *testing.T, e *emulator.Emulator) *azservicebus.Client {
	t.Helper()
	client, err := azservicebus.NewClientFromConnectionString(e.ServiceBusConnectionString(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close(context.WithoutCancel(t.Context())) })
	return client
}

// receiveOne takes a message from a queue without settling it.
func receiveOne(t *testing.T, r *azservicebus.Receiver) *azservicebus.ReceivedMessage {
	t.Helper()
	msgs, err := r.ReceiveMessages(testContext(t), 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	return msgs[0]
}

func queueReceiver(t *testing.T, e *emulator.Emulator, queue string) *azservicebus.Receiver {
	t.Helper()
	r, err := serviceBus(t, e).NewReceiverForQueue(queue, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close(context.WithoutCancel(t.Context())) })
	return r
}

// firstEvent reads all partitions of the built-in endpoint until there is an event.
func firstEvent(t *testing.T, e *emulator.Emulator) *azeventhubs.ReceivedEventData {
	t.Helper()
	client, err := azeventhubs.NewConsumerClientFromConnectionString(e.EventsConnectionString(), "", azeventhubs.DefaultConsumerGroup, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close(context.WithoutCancel(t.Context()))
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	props, err := client.GetEventHubProperties(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	found := make(chan *azeventhubs.ReceivedEventData, len(props.PartitionIDs))
	var wg sync.WaitGroup
	for _, id := range props.PartitionIDs {
		p, err := client.NewPartitionClient(id, &azeventhubs.PartitionClientOptions{
			StartPosition: azeventhubs.StartPosition{Earliest: new(true)},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close(context.WithoutCancel(t.Context()))
		wg.Go(func() {
			events, err := p.ReceiveEvents(ctx, 1, nil)
			if err == nil && len(events) > 0 {
				found <- events[0]
			} else if !errors.Is(err, context.Canceled) {
				t.Errorf("partition %s: %v", id, err)
			}
		})
	}
	event := next(t, "event", found)
	cancel()
	wg.Wait()
	return event
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
