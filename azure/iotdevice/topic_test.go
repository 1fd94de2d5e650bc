package iotdevice

import (
	"reflect"
	"strings"
	"testing"

	"github.com/hubjobs/hubjobs/job"
)

func TestEventTopic(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		m    job.Message
		want string
	}{
		"bare": {job.Message{}, "devices/d::1/messages/events/"},
		"system properties": {
			job.Message{ID: "m 1", CorrelationID: "job-1", ContentType: "application/json", ContentEncoding: "utf-8"},
			"devices/d::1/messages/events/%24.mid=m%201&%24.cid=job-1&%24.ct=application%2Fjson&%24.ce=utf-8",
		},
		"application properties": {
			job.Message{Kind: job.KindUpdate, Sequence: 2, To: "s::1", Properties: map[string]string{"a&b": "c=d+e", "empty": ""}},
			"devices/d::1/messages/events/a%26b=c%3Dd%2Be&empty=&kind=update&sequence=2&to-device=s%3A%3A1",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := eventTopic("d::1", c.m)
			if err != nil || got != c.want {
				t.Errorf("got %q, %v\nwant %q", got, err, c.want)
			}
		})
	}
}

func TestEventTopicRefusesReservedNames(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", "$.mid", "$.anything"} {
		if topic, err := eventTopic("d", job.Message{Properties: map[string]string{name: "x"}}); err == nil {
			t.Errorf("property %q became %q", name, topic)
		}
	}
}

func TestParseDevicebound(t *testing.T) {
	t.Parallel()
	const prefix = "devices/device-scheduler::1/messages/devicebound/"
	for name, c := range map[string]struct {
		bag  string
		want job.Message
	}{
		"empty": {"", job.Message{}},
		"all": {
			"%24.mid=m1&%24.cid=job-1&%24.ct=application%2Fjson&%24.ce=utf-8&%24.uid=u&%24.exp=2026-01-01T00%3A00%3A00Z" +
				"&%24.to=%2Fdevices%2Fdevice-scheduler%3A%3A1%2Fmessages%2FdeviceBound&iothub-ack=full" +
				"&kind=update&sequence=3&from-device=device-solver%3A%3A1&traceparent=00-1-2-01&site=north%20%26%20south",
			job.Message{
				ID: "m1", CorrelationID: "job-1", ContentType: "application/json", ContentEncoding: "utf-8", Kind: job.KindUpdate,
				Sequence: 3, From: "device-solver::1", Traceparent: "00-1-2-01", Properties: map[string]string{"site": "north & south"},
			},
		},
		"question mark before": {"?%24.mid=m1", job.Message{ID: "m1"}},
		"not encoded":          {"$.mid=m1&a=b+c", job.Message{ID: "m1", Properties: map[string]string{"a": "b+c"}}},
		"without value":        {"flag&%24.mid=m1", job.Message{ID: "m1", Properties: map[string]string{"flag": ""}}},
		"badly encoded":        {"a=100%&b=%zz", job.Message{Properties: map[string]string{"a": "100%", "b": "%zz"}}},
		"another target":       {"to-device=someone-else", job.Message{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.want.To, c.want.Body = "device-scheduler::1", job.Body("x")
			got, ok := parseDevicebound("device-scheduler::1", prefix+c.bag, []byte("x"))
			if !ok || !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %+v, %v\nwant %+v", got, ok, c.want)
			}
		})
	}
	for _, topic := range []string{"", "devices/other/messages/devicebound/", "$iothub/twin/res/200/?$rid=1"} {
		if _, ok := parseDevicebound("device-scheduler::1", topic, nil); ok {
			t.Errorf("%q was taken for a cloud-to-device message", topic)
		}
	}
}

func TestParseMethod(t *testing.T) {
	t.Parallel()
	for topic, want := range map[string][2]string{
		"$iothub/methods/POST/reboot/?$rid=1f":       {"reboot", "1f"},
		"$iothub/methods/POST/reboot/?%24rid=1f&x=y": {"reboot", "1f"},
		"$iothub/methods/POST/reboot/?$rid=":         {},
		"$iothub/methods/POST//?$rid=1":              {},
		"$iothub/methods/POST/reboot":                {},
		"devices/d/messages/devicebound/":            {},
	} {
		name, id, ok := parseMethod(topic)
		if [2]string{name, id} != want || ok != (want[0] != "") {
			if ok || want[0] != "" {
				t.Errorf("%s: got %q, %q, %v", topic, name, id, ok)
			}
		}
	}
	if got := methodResultTopic(200, "1f"); got != "$iothub/methods/res/200/?$rid=1f" {
		t.Errorf("got %s", got)
	}
}

// What a device writes into a bag, a device reads from one.
func FuzzBag(f *testing.F) {
	f.Add("m1", "site", "a b&c=d+e%/#?ü")
	f.Add("", "$", "\x00")
	f.Fuzz(func(t *testing.T, id, name, value string) {
		in := job.Message{ID: id, Properties: map[string]string{name: value}}
		topic, err := eventTopic("d", in)
		if err != nil {
			return
		}
		bag := strings.TrimPrefix(topic, topicEvents("d"))
		if strings.ContainsAny(bag, "/+# ") {
			t.Fatalf("%q is no topic", topic)
		}
		out, ok := parseDevicebound("d", topicDevicebound("d")+bag, nil)
		if !ok || out.ID != id {
			t.Fatalf("got %+v, %v", out, ok)
		}
		want := job.Message{}
		want.SetApplicationProperties(in.ApplicationProperties())
		want.To, out.ID = "d", ""
		delete(want.Properties, propertyAck)
		if len(want.Properties) == 0 {
			want.Properties = nil
		}
		if !reflect.DeepEqual(out, want) {
			t.Fatalf("wrote %+v, read %+v", want, out)
		}
	})
}

func FuzzParseDevicebound(f *testing.F) {
	f.Add("devices/d/messages/devicebound/%24.mid=m1&a")
	f.Fuzz(func(t *testing.T, topic string) {
		if m, ok := parseDevicebound("d", topic, nil); ok && m.To != "d" {
			t.Errorf("goes to %q", m.To)
		}
		parseMethod(topic)
	})
}
