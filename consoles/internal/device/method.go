package device

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
)

// Topics of direct methods (IoT Hub docs: "Communicate with an IoT hub using the MQTT protocol", direct methods).
const (
	methodPrefix    = "$iothub/methods/POST/"
	methodFilter    = methodPrefix + "#"
	methodResponses = "$iothub/methods/res/"
	requestIDKey    = "$rid"
)

// atMostOnce is the quality of service of direct methods: an answer that comes late is worth nothing.
const atMostOnce = 0

// Answer is what a device says to a direct method call.
type Answer struct {
	// Status is a code of the device's choice; 200 means success by convention.
	Status int
	// Payload is JSON.
	Payload []byte
}

var errMethodTopic = errors.New("malformed direct method topic")

// parseMethodTopic takes "$iothub/methods/POST/{name}/?$rid={request ID}" apart.
func parseMethodTopic(topic string) (name, requestID string, err error) {
	rest, found := strings.CutPrefix(topic, methodPrefix)
	name, bag, separated := strings.Cut(rest, "/?")
	if !found || !separated || name == "" {
		return "", "", fmt.Errorf("%w: %q", errMethodTopic, topic)
	}
	values, err := url.ParseQuery(bag)
	if err != nil || values.Get(requestIDKey) == "" {
		return "", "", fmt.Errorf("%w: %q has no %s", errMethodTopic, topic, requestIDKey)
	}
	return name, values.Get(requestIDKey), nil
}

func responseTopic(status int, requestID string) string {
	return methodResponses + strconv.Itoa(status) + "/?" + requestIDKey + "=" + requestID
}

// onMethod takes a call from the MQTT client and leaves the answer to a goroutine. The library's own handler waits inside
// the MQTT client's handler until the answer is confirmed; but while a handler runs, that client reads nothing further and
// also can't take down a lost connection. A call at the wrong moment would so hang the connection for ever.
func (s *Session) onMethod(client mqtt.Client, message mqtt.Message) {
	name, requestID, err := parseMethodTopic(message.Topic())
	if err != nil {
		s.handlers.Warning(err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.calls.Go(func() {
		if err := s.call(client, name, requestID, bytes.TrimSpace(message.Payload())); err != nil {
			s.handlers.Warning(fmt.Errorf("answer method %q: %w", name, err))
		}
	})
}

// call answers one direct method call.
func (s *Session) call(client mqtt.Client, name, requestID string, payload []byte) error {
	answer := s.answer(name, payload)
	token := client.Publish(responseTopic(answer.Status, requestID), atMostOnce, false, answer.Payload)
	select {
	case <-token.Done():
		return token.Error()
	case <-s.done: // a message of this quality of service is not heard of again when its connection is gone
		return nil
	case <-time.After(s.timeout):
		return fmt.Errorf("not written within %s", s.timeout)
	}
}

func (s *Session) answer(name string, payload []byte) Answer {
	if len(payload) == 0 {
		payload = []byte("null")
	}
	if !json.Valid(payload) {
		return Answer{Status: http.StatusBadRequest, Payload: []byte(`{"error":"the payload is not JSON"}`)}
	}
	return s.handlers.Method(name, payload)
}
