package fault_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestParse(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]fault.Fault{
		"cut": {Kind: fault.Cut},
		"cut,protocol=mqtt,device=sensor-*,after=10s": {Kind: fault.Cut, Protocol: fault.MQTT, Device: "sensor-*", After: 10 * time.Second},
		"cut,bytes=1000,count=3":                      {Kind: fault.Cut, Bytes: 1000, Count: 3},
		"delay,latency=200ms,jitter=50ms,seed=7":      {Kind: fault.Delay, Latency: 200 * time.Millisecond, Jitter: 50 * time.Millisecond, Seed: 7},
		"half-open,entity=jobs,duration=1m":           {Kind: fault.HalfOpen, Entity: "jobs", Duration: time.Minute},
		"duplicate,operation=d2c,probability=0.5":     {Kind: fault.Duplicate, Operation: "d2c", Probability: 0.5},
		"duplicate,operation=receive,entity=q":        {Kind: fault.Duplicate, Operation: fault.OpReceive, Entity: "q"},
		"refuse,operation=c2d,code=403004":            {Kind: fault.Refuse, Operation: "c2d", Code: 403004},
		"refuse,code=429,retryAfter=3s,device=a=b":    {Kind: fault.Refuse, Code: 429, RetryAfter: 3 * time.Second, Device: "a=b"},
		"expire-locks,entity=jobs/subscriptions/jobs": {Kind: fault.ExpireLocks, Entity: "jobs/subscriptions/jobs"},
		"disconnect,device=*,after=1s":                {Kind: fault.Disconnect, Device: "*", After: time.Second},
	} {
		got, err := fault.Parse(text)
		if err != nil || got != want {
			t.Errorf("%s: got %+v, %v", text, got, err)
			continue
		}
		data, err := json.Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		var again fault.Fault
		if err := json.Unmarshal(data, &again); err != nil || again != want {
			t.Errorf("%s: in JSON %s, and read as %+v, %v", text, data, again, err)
		}
	}
}

func TestFaultsThatMeanNothing(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                                       `kind is "" and must be cut, delay`,
		"break":                                  `kind is "break" and must be cut, delay`,
		"cut,":                                   `"" is no setting such as after=10s`,
		"cut,now":                                `"now" is no setting such as after=10s`,
		"cut,color=red":                          `"color" is no setting of a fault, or is there twice`,
		"cut,after=1s,after=2s":                  `"after" is no setting of a fault, or is there twice`,
		"cut,after=soon":                         `after: "soon" is no duration such as 500ms or 10s`,
		"cut,after=-1s":                          "after is -1s and must be from 0 to 720h0m0s",
		"cut,duration=1000h":                     "duration is 1000h0m0s and must be from 0 to 720h0m0s",
		"cut,count=many":                         `count: "many" is no such number`,
		"cut,count=-1":                           "bytes and count can't be negative",
		"cut,bytes=-1":                           "bytes and count can't be negative",
		"cut,after=1s,bytes=1":                   "a connection is cut after a time or a number of bytes, not both",
		"cut,after=5s,duration=5s":               "the fault is over after 5s, before it begins after 5s",
		"cut,protocol=coap":                      `protocol is "coap" and must be mqtt, amqp or https`,
		"refuse,code=429,device=d,entity=q":      "refuse has no use for device and entity",
		"cut,operation=d2c":                      "cut has no use for operation",
		"cut,latency=1s":                         "cut has no use for latency",
		"cut,code=429":                           "cut has no use for code",
		"cut,probability=1.1":                    "probability is 1.1 and must be from 0 to 1",
		"cut,probability=NaN":                    "probability is NaN and must be from 0 to 1",
		"delay":                                  "a delay needs a latency or a jitter",
		"delay,latency=1s,bytes=3":               "delay has no use for bytes",
		"refuse":                                 "refuse needs a code such as 429",
		"refuse,code=418":                        "code 418 is none that the hub answers with",
		"refuse,code=429,protocol=mqtt":          "refuse has no use for protocol",
		"refuse,code=429,operation=eat":          `refuse takes none of the operations "eat"; there are send, receive, connect, d2c`,
		"refuse,code=429,operation=d2c,entity=q": "d2c is no operation on an entity",
		"refuse,code=429,operation=send,device=d": "send is no operation of a device",
		"duplicate,operation=method":              `duplicate takes none of the operations "method"; there are d2c, c2d, receive`,
		"duplicate,code=429":                      "duplicate has no use for code",
		"expire-locks,count=1":                    "expire-locks has no use for count",
		"disconnect,entity=q":                     "disconnect has no use for entity",
		"disconnect,duration=1s":                  "disconnect has no use for duration",
	} {
		_, err := fault.Parse(text)
		if !errors.Is(err, fault.ErrInvalid) || !strings.HasPrefix(err.Error(), "invalid fault: "+want) {
			t.Errorf("%s: got %v, want %s", text, err, want)
		}
	}
}

func TestJSONKnowsItsNames(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		`{"kind":"cut","color":"red"}`, `{"kind":"cut","after":10}`, `{"kind":"cut","after":"soon"}`, `{"kind":"cut","count":"3"}`, `[]`,
	} {
		var f fault.Fault
		if err := json.Unmarshal([]byte(text), &f); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("cut,protocol=mqtt,device=sensor-*,after=10s")
	f.Add("refuse,code=429,retryAfter=3s,probability=0.5,seed=1,count=2")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := fault.Parse(text)
		if err != nil {
			return
		}
		data, err := json.Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		var again fault.Fault
		if err := json.Unmarshal(data, &again); err != nil || again != got {
			t.Errorf("%s: %+v became %+v: %v", data, got, again, err)
		}
	})
}
