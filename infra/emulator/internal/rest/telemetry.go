package rest

import (
	"context"
	"encoding/base64"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// batchType is the content type of several messages in one request.
const batchType = "application/vnd.microsoft.iothub.json"

const (
	// maxBatch is how many messages a request may have (IoT Hub docs: "IoT Hub
	// quotas and throttling").
	maxBatch = 500
	// maxBatchBody is the largest body of a batch in bytes. The limit of the hub
	// is for the messages in it, which are smaller than their base64 in JSON.
	maxBatchBody = 2 * hub.MaxD2CMessageSize
)

// sendEvents takes device-to-cloud messages: one, or a batch of which all are
// stored or none.
func (h *Handler) sendEvents(ctx context.Context, r request) (response, error) {
	read := readEvent
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err == nil && t == batchType {
		read = readBatch
	}
	messages, err := read(r)
	if err != nil {
		return response{}, err
	}
	s, err := h.connect(ctx, r)
	if err != nil {
		return response{}, err
	}
	defer s.Close()
	return response{status: http.StatusNoContent}, s.PublishBatch(ctx, messages)
}

// readEvent reads a request that is one message: its properties are headers.
// Names of application properties come in lower case, because net/http doesn't
// keep the case of header names.
func readEvent(r request) ([]*amqp.Message, error) {
	body, err := readBody(r, hub.MaxD2CMessageSize)
	if err != nil {
		return nil, err
	}
	m := newEvent(body)
	for name, values := range r.Header {
		if err := setProperty(m, strings.ToLower(name), strings.Join(values, ",")); err != nil {
			return nil, err
		}
	}
	return []*amqp.Message{m}, nil
}

// batched is a message of a batch (IoT Hub docs: "Send device event";
// azure-iot-sdk-c, iothubtransporthttp.c).
type batched struct {
	Body string `json:"body"`
	// Base64 is whether the body is base64; nil means that it is.
	Base64 *bool `json:"base64Encoded"`
	// Properties have the names of the headers of a single message.
	Properties map[string]string `json:"properties"`
}

func readBatch(r request) ([]*amqp.Message, error) {
	var batch []batched
	if err := readJSON(r, maxBatchBody, &batch); err != nil {
		return nil, err
	}
	if len(batch) == 0 || len(batch) > maxBatch {
		return nil, hub.Errorf(hub.CodeArgumentInvalid, "a batch has 1 to %d messages", maxBatch)
	}
	messages := make([]*amqp.Message, len(batch))
	for i, b := range batch {
		var err error
		if messages[i], err = b.message(); err != nil {
			return nil, err
		}
	}
	return messages, nil
}

func (b batched) message() (*amqp.Message, error) {
	body := []byte(b.Body)
	if b.Base64 == nil || *b.Base64 {
		var err error
		if body, err = base64.StdEncoding.DecodeString(b.Body); err != nil {
			return nil, hub.Errorf(hub.CodeFormatError, "the body of a message in the batch is not base64")
		}
	}
	m := newEvent(body)
	for name, value := range b.Properties {
		if err := setProperty(m, name, value); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func newEvent(body []byte) *amqp.Message {
	return &amqp.Message{
		Properties:            new(amqp.Properties),
		ApplicationProperties: make(map[string]any),
		Annotations:           make(map[string]any),
		Data:                  [][]byte{body},
	}
}

// propertyPrefix begins the names of application properties.
const propertyPrefix = "iothub-app-"

// setProperty sets a property by its name as a header, and ignores what is no
// property (IoT Hub docs: "Send device event"; azure-iot-device-http 1.14
// http.ts; azure-iot-sdk-csharp, HttpTransportHandler.cs). Headers are bytes, and
// AMQP wants text.
func setProperty(m *amqp.Message, name, value string) error {
	value = strings.ToValidUTF8(value, "")
	if n := len(propertyPrefix); len(name) > n && strings.EqualFold(name[:n], propertyPrefix) {
		m.ApplicationProperties[name[n:]] = value
		return nil
	}
	if value == "" {
		return nil
	}
	p := m.Properties
	switch name = strings.ToLower(name); name {
	case "iothub-messageid":
		p.MessageID = value
	case "iothub-correlationid":
		p.CorrelationID = value
	case "iothub-userid":
		p.UserID = []byte(value)
	case "iothub-to":
		p.To = &value
	case "iothub-contenttype":
		p.ContentType = &value
	case "iothub-contentencoding":
		p.ContentEncoding = &value
	case "iothub-expiry":
		return setExpiry(p, value)
	case "iothub-creationtimeutc":
		m.ApplicationProperties[hub.PropertyCreationTime] = value
	case "iothub-messageschema":
		m.ApplicationProperties[hub.PropertySchema] = value
	case hub.AnnotationInterface, hub.AnnotationComponent, hub.AnnotationModel:
		m.Annotations[name] = value
	}
	return nil
}

func setExpiry(p *amqp.Properties, value string) error {
	t, err := time.Parse(time.RFC3339, value)
	if err != nil {
		return hub.Errorf(hub.CodeArgumentInvalid, "the expiry of the message is not a time in RFC 3339")
	}
	p.AbsoluteExpiryTime = &t
	return nil
}
