package mqtt

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// deliverMethod hands a method call to the device, at QoS 0 (IoT Hub docs:
// "Understand and invoke direct methods from IoT Hub"). The hub calls it.
func (c *conn) deliverMethod(r hub.MethodRequest) {
	payload := r.Payload
	if payload == nil {
		// amenzhinsky/iothub decodes the payload and fails on an empty one.
		payload = []byte("null")
	}
	if err := c.out.publish(methodRequestTopic(r.Name, r.RequestID), payload); err != nil {
		c.end(err)
	}
}

// respondMethod takes the device's answer, given what follows the prefix of
// the topic.
func (c *conn) respondMethod(rest string, payload []byte) error {
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
