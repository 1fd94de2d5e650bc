package mqtt

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// deliverMethod hands a method call to the device, at QoS 0 (IoT Hub docs:
// "Understand and invoke direct methods from IoT Hub"). The hub calls it.
func (c *conn) deliverMethod(r hub.MethodRequest) {
	p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	p.TopicName = methodRequestTopic(r.Name, r.RequestID)
	p.Payload = r.Payload
	if r.Payload == nil {
		// amenzhinsky/iothub decodes the payload and fails on an empty one.
		p.Payload = []byte("null")
	}
	if err := c.out.put(p); err != nil {
		c.end(err)
	}
}

// methodResponse takes the device's answer, given what follows the prefix of
// the topic.
func (c *conn) methodResponse(rest string, payload []byte) error {
	r, err := parseMethodResponse(rest)
	switch {
	case err != nil:
		return err
	case len(payload) > hub.MaxMethodPayload:
		return fmt.Errorf("method response has %d bytes of at most %d", len(payload), hub.MaxMethodPayload)
	case len(payload) > 0 && !json.Valid(payload):
		return errors.New("method response is not JSON")
	}
	result := hub.MethodResult{Status: r.status}
	if len(payload) > 0 {
		result.Payload = payload
	}
	c.session.RespondMethod(r.requestID, result)
	return nil
}
