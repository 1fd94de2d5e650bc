package device

import (
	"errors"
	"maps"
	"strings"
	"testing"
)

func TestOutgoing(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		message Outgoing
		want    map[string]string
	}{
		"text": {
			message: Outgoing{Body: []byte("hello"), Properties: map[string]string{"to-device": "b"}},
			want:    map[string]string{"to-device": "b", "$.ct": "text/plain", "$.ce": "utf-8"},
		},
		"object": {
			message: Outgoing{Body: []byte(`{"a":1}`)},
			want:    map[string]string{"$.ct": "application/json", "$.ce": "utf-8"},
		},
		"number is text":  {message: Outgoing{Body: []byte("1")}, want: map[string]string{"$.ct": "text/plain", "$.ce": "utf-8"}},
		"null is text":    {message: Outgoing{Body: []byte("null")}, want: map[string]string{"$.ct": "text/plain", "$.ce": "utf-8"}},
		"binary has none": {message: Outgoing{Body: []byte{0xff}}, want: map[string]string{}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := test.message.libraryMessage()
			if err != nil {
				t.Fatal(err)
			}
			if !maps.Equal(got.Properties, test.want) {
				t.Errorf("properties are %v, want %v", got.Properties, test.want)
			}
		})
	}
}

func TestOutgoingLimit(t *testing.T) {
	t.Parallel()
	fits := Outgoing{ID: "id", Body: make([]byte, maxMessage-4), Properties: map[string]string{"k": "v"}}
	if _, err := fits.libraryMessage(); err != nil {
		t.Errorf("a message of exactly the limit: %v", err)
	}
	fits.Body = append(fits.Body, 0)
	if _, err := fits.libraryMessage(); !errors.Is(err, ErrTooLarge) {
		t.Errorf("one byte more: error %v, want %v", err, ErrTooLarge)
	}
}

func TestOutgoingReservedProperty(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", "$.mid", "iothub-connection-device-id"} {
		if _, err := (Outgoing{Properties: map[string]string{name: "x"}}).libraryMessage(); err == nil {
			t.Errorf("property %q is accepted", name)
		}
	}
}

func TestCheckID(t *testing.T) {
	t.Parallel()
	for _, id := range []string{"a", "device-solver::job-1", "x.y", strings.Repeat("a", 128), "A0-:.+%_#*?!(),=@$'"} {
		if err := CheckID(id); err != nil {
			t.Errorf("%q: %v", id, err)
		}
	}
	for _, id := range []string{"", ".", "..", "a b", "a/b", "ä", "a\x00", strings.Repeat("a", 129)} {
		if CheckID(id) == nil {
			t.Errorf("%q is accepted", id)
		}
	}
}

func TestPairName(t *testing.T) {
	t.Parallel()
	for id, want := range map[string]string{
		"device-scheduler::foo": "foo", "device-solver::foo": "foo", "single": "", "a::b::c": "b::c", "a::": "",
	} {
		if got := PairName(id); got != want {
			t.Errorf("pair name of %q is %q, want %q", id, got, want)
		}
	}
}

func TestParseMethodTopic(t *testing.T) {
	t.Parallel()
	name, requestID, err := parseMethodTopic("$iothub/methods/POST/reboot.now/?$rid=1a")
	if name != "reboot.now" || requestID != "1a" || err != nil {
		t.Errorf("got %q, %q, %v", name, requestID, err)
	}
	for _, topic := range []string{
		"", "$iothub/methods/POST/", "$iothub/methods/POST//?$rid=1", "$iothub/methods/POST/reboot",
		"$iothub/methods/POST/reboot/?", "$iothub/methods/POST/reboot/?$rid=", "$iothub/methods/POST/reboot/?x=%zz", "other/reboot/?$rid=1",
	} {
		if _, _, err := parseMethodTopic(topic); !errors.Is(err, errMethodTopic) {
			t.Errorf("%q: error %v, want %v", topic, err, errMethodTopic)
		}
	}
}

func FuzzParseMethodTopic(f *testing.F) {
	f.Add("$iothub/methods/POST/reboot/?$rid=1")
	f.Add("$iothub/methods/POST/?$rid=1")
	f.Fuzz(func(t *testing.T, topic string) {
		name, requestID, err := parseMethodTopic(topic)
		if err == nil && (name == "" || requestID == "") {
			t.Errorf("%q gives name %q and request ID %q without an error", topic, name, requestID)
		}
	})
}
