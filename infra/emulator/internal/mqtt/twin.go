package mqtt

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// topicTwin begins all twin topics.
const topicTwin = "$iothub/twin/"

// twinRequest answers a twin request of the device: reads with its twin, writes
// with an error, because the hub here keeps no reported properties.
func (c *conn) twinRequest(topic string) error {
	var answer func() (int, any)
	query, ok := strings.CutPrefix(topic, topicTwinGet)
	if ok {
		answer = c.readTwin
	} else if query, ok = strings.CutPrefix(topic, topicTwinReported); ok {
		answer = refuseTwinWrite
	} else {
		return fmt.Errorf("%w: %q", errTopic, topic)
	}
	rid, err := requestID(query)
	if err != nil {
		return err
	}
	c.session.Touch()
	if _, ok := c.subs[featureTwinResponses]; !ok {
		return nil // an answer before the SUBSCRIBE would be lost as well
	}
	status, content := answer()
	p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	p.TopicName = twinResponseTopic(status, rid)
	if p.Payload, err = json.Marshal(content); err != nil {
		return fmt.Errorf("encode twin: %w", err)
	}
	return c.out.put(p)
}

// deviceTwin is a twin as its device sees it: without metadata (IoT Hub docs:
// "Understand and use device twins in IoT Hub").
type deviceTwin struct {
	Desired  map[string]json.RawMessage `json:"desired"`
	Reported map[string]json.RawMessage `json:"reported"`
}

func (c *conn) readTwin() (int, any) {
	twin, err := c.server.hub.GetTwin(c.deviceID)
	if err != nil {
		return twinFailure(hub.AsError(err))
	}
	var view deviceTwin
	if err := json.Unmarshal(twin.Properties.Desired, &view.Desired); err != nil {
		return twinFailure(hub.AsError(err))
	}
	if err := json.Unmarshal(twin.Properties.Reported, &view.Reported); err != nil {
		return twinFailure(hub.AsError(err))
	}
	delete(view.Desired, "$metadata")
	delete(view.Reported, "$metadata")
	return 200, view
}

func refuseTwinWrite() (int, any) {
	return twinFailure(&hub.Error{Code: hub.CodeInvalidOperation, Message: "reported properties are not emulated"})
}

// failure is the body of a twin answer that is an error (azure-iot-device-mqtt
// mqtt_twin_client.ts).
type failure struct {
	ErrorCode    int    `json:"errorCode"`
	TrackingID   string `json:"trackingId"`
	Message      string `json:"message"`
	TimestampUTC string `json:"timestampUtc"`
}

func twinFailure(e *hub.Error) (int, any) {
	return e.Code.Status(), failure{
		ErrorCode:    int(e.Code),
		TrackingID:   e.TrackingID,
		Message:      e.Message,
		TimestampUTC: time.Now().UTC().Format(time.RFC3339),
	}
}
