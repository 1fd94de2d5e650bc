package eventhubs

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	azeventhubs "github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"
	"github.com/Azure/go-amqp"

	"github.com/hubjobs/hubjobs/job"
)

type anyToken struct{}

func (anyToken) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	return azcore.AccessToken{Token: "x"}, nil
}

func TestNew(t *testing.T) {
	t.Parallel()
	const secret = "dG9wLXNlY3JldA=="
	const cs = "Endpoint=sb://h;SharedAccessKeyName=p;SharedAccessKey=" + secret
	for name, c := range map[string]struct {
		cfg Config
		ok  bool
	}{
		"entity path":              {Config{ConnectionString: cs + ";EntityPath=hub"}, true},
		"event hub":                {Config{ConnectionString: cs, EventHub: "hub"}, true},
		"both the same":            {Config{ConnectionString: cs + ";EntityPath=hub", EventHub: "hub"}, true},
		"credential":               {Config{Namespace: "n", EventHub: "hub", Credential: anyToken{}}, true},
		"both, different":          {Config{ConnectionString: cs + ";EntityPath=hub", EventHub: "other"}, false},
		"no event hub":             {Config{ConnectionString: cs}, false},
		"no key":                   {Config{ConnectionString: "Endpoint=sb://h;SharedAccessKeyName=p", EventHub: "hub"}, false},
		"malformed":                {Config{ConnectionString: secret, EventHub: "hub"}, false},
		"nothing":                  {Config{}, false},
		"credential, no event hub": {Config{Namespace: "n", Credential: anyToken{}}, false},
		"two ways":                 {Config{ConnectionString: cs, EventHub: "hub", Credential: anyToken{}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client, err := New(c.cfg)
			switch {
			case c.ok && err != nil:
				t.Errorf("got %v", err)
			case c.ok:
				if _, err := client.open(DefaultConsumerGroup); err != nil {
					t.Errorf("passed the check, but the SDK says %v", err)
				}
			case !errors.Is(err, job.ErrInvalid) || strings.Contains(err.Error(), secret):
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestDeviceMessage(t *testing.T) {
	t.Parallel()
	id, contentType := "m1", "application/json"
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.FixedZone("", 3600))
	got := deviceMessage("2", &azeventhubs.ReceivedEventData{
		EventData: azeventhubs.EventData{
			MessageID: &id, CorrelationID: "job-1", ContentType: &contentType, Body: []byte("{}"),
			Properties: map[string]any{"kind": "update", "n": int64(3)},
		},
		EnqueuedTime: &at, Offset: "4096", SequenceNumber: 17,
		SystemProperties: map[string]any{"iothub-connection-device-id": "d1", "iothub-enqueuedtime": at},
	})
	want := DeviceMessage{
		Partition: "2", Sequence: 17, Offset: "4096", EnqueuedAt: at.UTC(), DeviceID: "d1",
		MessageID: "m1", CorrelationID: "job-1", ContentType: "application/json", Body: []byte("{}"),
		Properties: map[string]string{"kind": "update", "n": "3"},
		System:     map[string]string{"iothub-connection-device-id": "d1", "iothub-enqueuedtime": "2026-01-02T02:04:05Z"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

func TestClassify(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		err  error
		want error
	}{
		"wrong key":         {&azeventhubs.Error{Code: azeventhubs.ErrorCodeUnauthorizedAccess}, job.ErrUnauthorized},
		"lost":              {&azeventhubs.Error{Code: azeventhubs.ErrorCodeConnectionLost}, job.ErrUnavailable},
		"partition taken":   {&azeventhubs.Error{Code: azeventhubs.ErrorCodeOwnershipLost}, job.ErrUnavailable},
		"no such group":     {&amqp.Error{Condition: amqp.ErrCondNotFound}, job.ErrNotFound},
		"no such partition": {&amqp.Error{Condition: "com.microsoft:argument-out-of-range"}, job.ErrInvalid},
		"anything":          {errors.New("reset"), job.ErrUnavailable},
	} {
		if err := classify("do it", c.err); !errors.Is(err, c.want) || !errors.Is(err, c.err) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}
