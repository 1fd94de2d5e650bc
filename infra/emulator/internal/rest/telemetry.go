package rest

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// Request headers of telemetry, as net/http writes them (IoT Hub docs: "Send
// device event"; azure-iot-device-http 1.14 http.ts).
const (
	headerMessageID       = "Iothub-Messageid"
	headerCorrelationID   = "Iothub-Correlationid"
	headerUserID          = "Iothub-Userid"
	headerTo              = "Iothub-To"
	headerExpiry          = "Iothub-Expiry"
	headerContentType     = "Iothub-Contenttype"
	headerContentEncoding = "Iothub-Contentencoding"
	headerInterfaceID     = "Iothub-Interface-Id"
	headerPropertyPrefix  = "Iothub-App-"
)

// batchType is the content type of several messages in one request.
const batchType = "application/vnd.microsoft.iothub.json"

// sendEvent takes one device-to-cloud message.
func (h *Handler) sendEvent(ctx context.Context, r request) (response, error) {
	if mediaType, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";"); strings.EqualFold(mediaType, batchType) {
		return response{}, &notEmulatedError{"batches of messages over HTTP"}
	}
	body, err := readBody(r, hub.MaxD2CMessageSize)
	if err != nil {
		return response{}, err
	}
	m, err := telemetry(r.Header, body)
	if err != nil {
		return response{}, err
	}
	scope := "device"
	if r.claims.Policy != "" {
		scope = "hub"
	}
	s, err := h.hub.Connect(ctx, r.deviceID, hub.ConnectOptions{Auth: hub.AuthMethod{Scope: scope, Type: "sas"}, Transient: true})
	if err != nil {
		return response{}, err
	}
	defer s.Close()
	return response{status: http.StatusNoContent}, s.Publish(ctx, m)
}

// telemetry makes the message of a request. Names of application properties
// come in lower case, because HTTP doesn't keep the case of header names.
func telemetry(header http.Header, body []byte) (*amqp.Message, error) {
	text := func(name string) *string {
		if value := strings.ToValidUTF8(header.Get(name), ""); value != "" {
			return &value
		}
		return nil
	}
	m := &amqp.Message{
		Properties: &amqp.Properties{
			To:              text(headerTo),
			ContentType:     text(headerContentType),
			ContentEncoding: text(headerContentEncoding),
		},
		ApplicationProperties: make(map[string]any),
		Data:                  [][]byte{body},
	}
	if id := text(headerMessageID); id != nil {
		m.Properties.MessageID = *id
	}
	if id := text(headerUserID); id != nil {
		m.Properties.UserID = []byte(*id)
	}
	if id := text(headerCorrelationID); id != nil {
		m.Properties.CorrelationID = *id
	}
	if id := text(headerInterfaceID); id != nil {
		m.Annotations = map[string]any{"iothub-interface-id": *id}
	}
	if value := header.Get(headerExpiry); value != "" {
		t, err := time.Parse(time.RFC3339, value)
		if err != nil {
			return nil, refuse(hub.CodeArgumentInvalid, "header %s is not a time in RFC 3339", headerExpiry)
		}
		m.Properties.AbsoluteExpiryTime = &t
	}
	for name, values := range header {
		if key, ok := strings.CutPrefix(name, headerPropertyPrefix); ok && key != "" {
			m.ApplicationProperties[strings.ToLower(key)] = strings.ToValidUTF8(strings.Join(values, ","), "")
		}
	}
	return m, nil
}
