package emulator_test

import (
	"strings"
	"testing"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"github.com/hubjobs/hubjobs/infra/emulator"
	"github.com/hubjobs/hubjobs/infra/emulator/emulatortest"
)

// maxTelemetry is the largest device-to-cloud message, with properties (IoT Hub
// docs: "IoT Hub quotas and throttling").
const maxTelemetry = 256 << 10

// What the hub takes, the queues and topics behind its routes have to take too,
// although the hub has added its properties by then.
func TestLargestTelemetry(t *testing.T) {
	t.Parallel()
	e := emulatortest.Start(t, emulatortest.Config(&emulator.Config{
		Queues: []emulator.Queue{{Name: "queue"}},
		Topics: []emulator.Topic{{Name: "topic", Subscriptions: []emulator.Subscription{{Name: "all"}}}},
		Hub: emulator.Hub{Routes: []emulator.Route{
			{Name: "queue", Endpoint: "queue"}, {Name: "topic", Endpoint: "topic"}, {Name: "events", Endpoint: "events"},
		}},
	}))
	key := createDevice(t, e, deviceID).Authentication.SymmetricKey.PrimaryKey
	client, _ := connect(t, paho(t, e, deviceID, key))
	const bag, properties = "%24.mid=m-1&kind=update", "m-1kindupdate"
	body := strings.Repeat("x", maxTelemetry-len(properties))
	publish(t, client, deviceID, bag, body)
	check(t, "in the queue", string(receiveOne(t, queueReceiver(t, e, "queue")).Body) == body, true)
	fromTopic, err := serviceBus(t, e).NewReceiverForSubscription("topic", "all", nil)
	if err != nil {
		t.Fatal(err)
	}
	check(t, "in the subscription", string(receiveOne(t, fromTopic).Body) == body, true)
	check(t, "in the events", string(firstEvent(t, e).Body) == body, true)

	// One byte more, and MQTT leaves the hub nothing but to close the connection.
	lost := make(chan error, 1)
	opts := paho(t, e, deviceID, key).SetConnectionLostHandler(func(_ mqtt.Client, err error) { lost <- err })
	client, _ = connect(t, opts)
	refused := client.Publish("devices/"+deviceID+"/messages/events/"+bag, 1, false, body+"x")
	next(t, "loss of the connection", lost)
	select {
	case <-refused.Done():
		if refused.Error() == nil {
			t.Error("a message that is too large was acknowledged")
		}
	default: // paho keeps it for the next connection
	}
}
