package rest

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/google/uuid"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// Response headers of a cloud-to-device message, written as the hub does (IoT
// Hub docs: "Receive device bound notification"; azure-iot-http-base 1.14
// http.ts; azure-iot-sdk-csharp, CustomHeaderConstants.cs).
const (
	sentMessageID       = "iothub-messageid"
	sentCorrelationID   = "iothub-correlationid"
	sentUserID          = "iothub-userid"
	sentTo              = "iothub-to"
	sentExpiry          = "iothub-expiry"
	sentEnqueuedTime    = "iothub-enqueuedtime"
	sentSequenceNumber  = "iothub-sequencenumber"
	sentDeliveryCount   = "iothub-deliverycount"
	sentAck             = "iothub-ack"
	sentContentType     = "iothub-contenttype"
	sentContentEncoding = "iothub-contentencoding"
)

// headerTime is the form of times in headers: that of .NET, which is RFC 3339.
const headerTime = "2006-01-02T15:04:05.0000000Z"

// lockTimeout names the seconds that a lock should last: a header of the Java
// SDK, a query parameter of the C# SDK (HttpTransportHandler.cs).
const lockTimeout = "iothub-messagelocktimeout"

// maxLock is the longest lock; our own bound, that of Service Bus.
const maxLock = 5 * time.Minute

// receiveC2D answers with the next cloud-to-device message and locks it.
func (h *Handler) receiveC2D(ctx context.Context, r request) (response, error) {
	lock, err := lockDuration(r)
	if err != nil {
		return response{}, err
	}
	s, err := h.connect(ctx, r)
	if err != nil {
		return response{}, err
	}
	defer s.Close()
	d, err := s.Poll(ctx, lock)
	if err != nil || d == nil {
		return response{status: http.StatusNoContent}, err
	}
	return response{header: messageHeader(d), message: d.Message.Body()}, nil
}

// connect opens the session of one request.
func (h *Handler) connect(ctx context.Context, r request) (*hub.Session, error) {
	if h.identify != nil {
		h.identify(ctx, hub.Target{DeviceID: r.deviceID, ModuleID: r.moduleID})
	}
	return h.hub.Connect(ctx, r.deviceID, hub.ConnectOptions{ModuleID: r.moduleID, Auth: r.auth, Transient: true})
}

func lockDuration(r request) (time.Duration, error) {
	text := r.Header.Get(lockTimeout)
	for name, values := range r.URL.Query() {
		if http.CanonicalHeaderKey(name) == http.CanonicalHeaderKey(lockTimeout) {
			text = values[0]
		}
	}
	if text == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		return 0, hub.Errorf(hub.CodeArgumentInvalid, "%s is not a positive number of seconds", lockTimeout)
	}
	return time.Duration(min(n, int(maxLock/time.Second))) * time.Second, nil
}

// messageHeader holds all of a message but its body. Names keep their case,
// which is why it is no business of http.Header.Set. Properties whose names
// can't be those of headers are left out by net/http.
func messageHeader(d *broker.Delivery) http.Header {
	header := etag(uuid.UUID(d.LockToken).String())
	header.Set("Content-Type", "application/octet-stream")
	set := func(name, value string) { header[name] = []string{value} }
	set(sentEnqueuedTime, d.EnqueuedTime.UTC().Format(headerTime))
	set(sentSequenceNumber, strconv.FormatInt(d.SequenceNumber, 10))
	set(sentDeliveryCount, strconv.FormatUint(uint64(d.DeliveryCount), 10))
	for name, value := range d.Message.ApplicationProperties {
		if name == hub.PropertyAck {
			set(sentAck, hub.Text(value))
			continue
		}
		set(propertyPrefix+name, hub.Text(value))
	}
	for name, value := range systemProperties(d.Message.Properties) {
		set(name, value)
	}
	return header
}

// systemProperties are those that the sender set.
func systemProperties(p *amqp.Properties) map[string]string {
	values := make(map[string]string)
	if p == nil {
		return values
	}
	for name, id := range map[string]any{sentMessageID: p.MessageID, sentCorrelationID: p.CorrelationID} {
		if text, _ := id.(string); text != "" {
			values[name] = text
		}
	}
	for name, text := range map[string]*string{sentTo: p.To, sentContentType: p.ContentType, sentContentEncoding: p.ContentEncoding} {
		if text != nil {
			values[name] = *text
		}
	}
	if len(p.UserID) > 0 {
		values[sentUserID] = string(p.UserID)
	}
	if p.AbsoluteExpiryTime != nil {
		values[sentExpiry] = p.AbsoluteExpiryTime.UTC().Format(headerTime)
	}
	return values
}

// completeC2D removes a message, as dealt with or with the parameter reject as
// one that the device refuses.
func (h *Handler) completeC2D(ctx context.Context, r request) (response, error) {
	if q := r.URL.Query(); q.Has("reject") && q.Get("reject") != "false" {
		return h.settleC2D(ctx, r, broker.DeadLetter)
	}
	return h.settleC2D(ctx, r, broker.Complete)
}

func (h *Handler) abandonC2D(ctx context.Context, r request) (response, error) {
	return h.settleC2D(ctx, r, broker.Abandon)
}

func (h *Handler) settleC2D(ctx context.Context, r request, action broker.Action) (response, error) {
	token, err := lockToken(r)
	if err != nil {
		return response{}, err
	}
	s, err := h.connect(ctx, r)
	if err != nil {
		return response{}, err
	}
	defer s.Close()
	return response{status: http.StatusNoContent}, s.Settle(ctx, token, action)
}
