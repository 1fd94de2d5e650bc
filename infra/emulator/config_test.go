package emulator_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator"
	"github.com/hubjobs/hubjobs/infra/emulator/emulatortest"
)

func TestConfigFiles(t *testing.T) {
	t.Parallel()
	for file, want := range map[string]emulator.Config{
		"servicebus.json": {
			Queues: []emulator.Queue{{Name: "queue.1", Delivery: emulator.Delivery{LockDuration: time.Minute, MaxDeliveryCount: 3, DefaultTTL: time.Hour}}},
			Topics: []emulator.Topic{{
				Name: "topic.1", DuplicateWindow: 20 * time.Second,
				Subscriptions: []emulator.Subscription{{Name: "subscription.1", Delivery: emulator.Delivery{
					LockDuration: 30 * time.Second, MaxDeliveryCount: 10, DefaultTTL: 14 * 24 * time.Hour, DeadLetterOnExpiry: true,
				}}},
			}},
		},
		"eventhubs.json": {EventHubs: []emulator.EventHub{{Name: "eh1", Partitions: 2, ConsumerGroups: []string{"cg1"}}}},
		"full.yaml": {
			Queues: []emulator.Queue{{Name: "device-messages", Delivery: emulator.Delivery{
				LockDuration: 2 * time.Minute, MaxDeliveryCount: 5, DefaultTTL: 24 * time.Hour, DeadLetterOnExpiry: true,
			}}},
			Topics: []emulator.Topic{{
				Name: "jobs", DefaultTTL: time.Hour, DuplicateWindow: 10 * time.Minute,
				Subscriptions: []emulator.Subscription{{Name: "jobs", Delivery: emulator.Delivery{MaxDeliveryCount: 3}}},
			}},
			EventHubs: []emulator.EventHub{{Name: "telemetry", Partitions: 8, ConsumerGroups: []string{"dashboard"}}},
			Hub: emulator.Hub{
				Partitions: 2, Retention: 7 * 24 * time.Hour, ConsumerGroups: []string{"console"}, NoFallbackRoute: true,
				Routes:        []emulator.Route{{Name: "to-queue", Endpoint: "device-messages"}, {Name: "to-events", Endpoint: "events"}},
				CloudToDevice: emulator.CloudToDevice{DefaultTTL: 2 * time.Hour, MaxDeliveryCount: 20, LockDuration: 30 * time.Second, CountEveryReturn: true},
				Feedback:      emulator.Feedback{TTL: 3 * time.Hour, MaxDeliveryCount: 30, LockDuration: 10 * time.Second},
				Tier:          "S1", Units: 2,
				DeviceCertificateAuthorities: []string{filepath.Join("testdata", "device-ca.pem")},
			},
		},
	} {
		t.Run(file, func(t *testing.T) {
			t.Parallel()
			got, err := emulator.ReadConfig(filepath.Join("testdata", file))
			if err != nil {
				t.Fatal(err)
			}
			check(t, "configuration", asJSON(t, got), asJSON(t, &want))
			emulatortest.Start(t, emulatortest.Config(got))
		})
	}
}

// asJSON shows the exported fields.
func asJSON(t *testing.T, cfg *emulator.Config) string {
	t.Helper()
	text, err := json.MarshalIndent(cfg, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestConfigProblemsAreToldByLine(t *testing.T) {
	t.Parallel()
	const queues = "UserConfig:\n  Namespaces:\n    - Queues:\n"
	const topics = "UserConfig:\n  Namespaces:\n    - Topics:\n"
	for name, tc := range map[string]struct {
		text string
		want []string
	}{
		"unknown section":  {"UserConfig: {}\nOther: {}\n", []string{"c:2: Other is not a setting here"}},
		"unknown property": {queues + "        - Name: q\n          Properties:\n            Color: red\n", []string{"c:6: Color is not a setting here"}},
		"two namespaces": {
			"UserConfig:\n  Namespaces:\n    - Name: a\n    - Name: b\n",
			[]string{"c:4: the emulator has one Service Bus namespace only"},
		},
		"two event hubs namespaces": {
			"UserConfig:\n  NamespaceConfig:\n    - Name: a\n    - Name: b\n",
			[]string{"c:4: the emulator has one Event Hubs namespace only"},
		},
		"kafka": {"UserConfig:\n  NamespaceConfig:\n    - Type: Kafka\n", []string{`c:3: Type is "Kafka"`}},
		"sessions": {
			queues + "        - Name: q\n          Properties:\n            RequiresSession: true\n",
			[]string{"c:6: RequiresSession is true, but sessions are not emulated"},
		},
		"forwarding": {
			queues + "        - Name: q\n          Properties:\n            ForwardTo: x\n            ForwardDeadLetteredMessagesTo: y\n",
			[]string{"c:6: ForwardTo is set", "c:7: ForwardDeadLetteredMessagesTo is set"},
		},
		"all at once": {
			queues + "        - Name: q\n          Properties:\n            LockDuration: 1m\n            MaxDeliveryCount: 0\n            DefaultMessageTimeToLive: PT0S\n            RequiresDuplicateDetection: perhaps\n            DuplicateDetectionHistoryTimeWindow: PT1S\n",
			[]string{"c:6: LockDuration", "c:7: MaxDeliveryCount", "c:8: DefaultMessageTimeToLive", "c:9: RequiresDuplicateDetection", "c:10: DuplicateDetectionHistoryTimeWindow"},
		},
		"lock too long":       {queues + "        - Name: q\n          Properties: {LockDuration: PT6M}\n", []string{"c:5: LockDuration is PT6M and must be from PT5S to PT5M"}},
		"queue without name":  {queues + "        - Properties: {}\n", []string{`c:4: queue has the name ""`}},
		"queue with a space":  {queues + "        - Name: a b\n", []string{`c:4: queue has the name "a b"`}},
		"queue of the hub":    {queues + "        - Name: Messages/q\n", []string{"c:4: queue Messages/q has a name that is an address of the hub"}},
		"queue named $cbs":    {queues + "        - Name: $cbs\n", []string{`c:4: queue has the name "$cbs"`}},
		"subscription's name": {queues + "        - Name: a/Subscriptions/b\n", []string{"c:4: queue a/Subscriptions/b has a name that is the address of a subscription"}},
		"queue twice":         {queues + "        - Name: q\n        - Name: Q\n", []string{"c:5: queue Q has the name of another queue"}},
		"queue and topic": {
			queues + "        - Name: q\n      Topics:\n        - Name: q\n",
			[]string{"c:6: topic q has the name of another queue"},
		},
		"subscription twice": {
			topics + "        - Name: t\n          Subscriptions:\n            - Name: s\n            - Name: S\n",
			[]string{"c:7: subscription S of topic t is there twice"},
		},
		"subscription's name too long": {
			topics + "        - Name: t\n          Subscriptions:\n            - Name: " + strings.Repeat("s", 51) + "\n",
			[]string{"c:6: topic t has a subscription with the name"},
		},
		"SQL filter": {
			topics + "        - Name: t\n          Subscriptions:\n            - Name: s\n              Rules:\n                - Name: r\n                  Properties:\n                    FilterType: Sql\n                    SqlFilter: {SqlExpression: color = 'red'}\n",
			[]string{"c:8: SQL filter \"color = 'red'\" is not emulated"},
		},
		"correlation filter": {
			topics + "        - Name: t\n          Subscriptions:\n            - Name: s\n              Rules:\n                - Name: r\n                  Properties:\n                    FilterType: Correlation\n                    CorrelationFilter: {ContentType: x}\n",
			[]string{`c:8: filter type "Correlation" is not emulated`},
		},
		"33 partitions":        {"Hub: {PartitionCount: 33}\n", []string{`c:1: PartitionCount is "33" and must be a whole number from 1 to 32`}},
		"group twice":          {"Hub:\n  ConsumerGroups:\n    - Name: a\n    - Name: A\n", []string{"c:2: consumer group A of the hub is there twice"}},
		"retention too long":   {"Hub: {Retention: P8D}\n", []string{"c:1: Retention is P8D and must be from P1D to P7D"}},
		"unknown tier":         {"Hub:\n  PartitionCount: 4\n  Units: 1\n  Tier: S4\n", []string{`c:4: tier is "S4" and must be F1, S1, S2, S3, B1, B2 or B3`}},
		"too many units":       {"Hub:\n  Tier: S3\n  Units: 11\n", []string{"c:3: Units is 11 and must be from 1 to 10 for tier S3"}},
		"no units":             {"Hub:\n  Tier: S3\n  Units: 0\n", []string{`c:3: Units is "0" and must be a whole number from 1 to 200`}},
		"units of no tier":     {"Hub:\n  PartitionCount: 4\n  Units: 1\n", []string{"c:3: Units is 1, but there is no Tier"}},
		"authorities":          {"Hub:\n  DeviceCertificateAuthorities:\n    - a.pem\n    - {File: b.pem}\n", []string{"c:4: a device certificate authority must be"}},
		"route to nowhere":     {"Hub:\n  Routes:\n    - Name: r\n      Endpoint: q\n", []string{`c:3: route r leads to "q", which is neither a queue or topic`}},
		"route without a name": {"Hub:\n  Routes:\n    - Endpoint: events\n", []string{`c:3: route "" has no name of its own`}},
		"route's condition":    {"Hub:\n  Routes:\n    - Name: r\n      Endpoint: events\n      Condition: temperature > 20\n", []string{`c:5: condition "temperature > 20" is not emulated`}},
		"route's source":       {"Hub:\n  Routes:\n    - Name: r\n      Endpoint: events\n      Source: TwinChangeEvents\n", []string{`c:5: source "TwinChangeEvents" is not emulated`}},
		"route to a topic with duplicate detection": {
			topics + "        - Name: t\n          Properties: {RequiresDuplicateDetection: true}\nHub:\n  Routes:\n    - Name: r\n      Endpoint: T\n",
			[]string{"c:8: route r leads to T, which has duplicate detection on"},
		},
		"syntax": {"UserConfig: [\n", []string{"c:1: not valid YAML"}},
		"empty":  {"", []string{"c: file is empty"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := emulator.ParseConfig("c", []byte(tc.text))
			if err == nil {
				t.Fatal("it was accepted")
			}
			lines := strings.Split(err.Error(), "\n")
			if len(lines) != len(tc.want) {
				t.Fatalf("got %d problems, want %d:\n%v", len(lines), len(tc.want), err)
			}
			for i, want := range tc.want {
				if !strings.HasPrefix(lines[i], want) {
					t.Errorf("got %s, want %s", lines[i], want)
				}
			}
		})
	}
}

func TestConfigMadeInGoIsChecked(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		cfg  emulator.Config
		want string
	}{
		"lock":      {emulator.Config{Queues: []emulator.Queue{{Name: "q", Delivery: emulator.Delivery{LockDuration: time.Second}}}}, "configuration: lock duration of queue q is 1s"},
		"count":     {emulator.Config{Queues: []emulator.Queue{{Name: "q", Delivery: emulator.Delivery{MaxDeliveryCount: -1}}}}, "configuration: max delivery count of queue q is -1"},
		"lifetime":  {emulator.Config{Queues: []emulator.Queue{{Name: "q", Delivery: emulator.Delivery{DefaultTTL: -1}}}}, "configuration: time to live of queue q is negative"},
		"window":    {emulator.Config{Topics: []emulator.Topic{{Name: "t", DuplicateWindow: time.Second}}}, "configuration: duplicate window of topic t is 1s"},
		"partition": {emulator.Config{EventHubs: []emulator.EventHub{{Name: "e", Partitions: 33}}}, "configuration: number of partitions of event hub e is 33"},
		"group":     {emulator.Config{EventHubs: []emulator.EventHub{{Name: "e", ConsumerGroups: []string{"a b"}}}}, "configuration: event hub e has a consumer group"},
		"units":     {emulator.Config{Hub: emulator.Hub{Units: 1}}, "configuration: Units is 1, but there is no Tier"},
		"tier":      {emulator.Config{Hub: emulator.Hub{Tier: "F1", Units: 2}}, "configuration: Units is 2 and must be from 1 to 1 for tier F1"},
		"authority": {emulator.Config{Hub: emulator.Hub{DeviceCertificateAuthorities: []string{"config_test.go"}}}, "configuration: device certificate authority: config_test.go holds no certificate"},
		"feedback":  {emulator.Config{Hub: emulator.Hub{Feedback: emulator.Feedback{TTL: time.Second}}}, "configuration: time to live of feedback is 1s"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, err := emulator.Start(t.Context(), emulator.Options{Config: &tc.cfg})
			if err == nil {
				_ = e.Close()
				t.Fatal("it started")
			}
			if !strings.HasPrefix(err.Error(), tc.want) {
				t.Errorf("got %v, want %s", err, tc.want)
			}
		})
	}
}

// Files are looked for where the configuration is, and named with its line.
func TestConfigNamesFilesOfAuthorities(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	config := filepath.Join(dir, "config.yaml")
	text := "Hub:\n  DeviceCertificateAuthorities:\n    - good.pem\n    - bad.pem\n"
	good, err := os.ReadFile(filepath.Join("testdata", "device-ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"config.yaml": []byte(text), "good.pem": good} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	start := func() error {
		cfg, err := emulator.ReadConfig(config)
		if err != nil {
			t.Fatal(err)
		}
		e, err := emulator.Start(t.Context(), emulator.Options{Config: cfg})
		if err == nil {
			_ = e.Close()
		}
		return err
	}
	want := config + ":4: device certificate authority: open " + filepath.Join(dir, "bad.pem")
	if err := start(); err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("missing: got %v, want %s", err, want)
	}
	if err := os.WriteFile(filepath.Join(dir, "bad.pem"), good, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := start(); err != nil {
		t.Error(err)
	}
}

func TestReadConfigOfNoFile(t *testing.T) {
	t.Parallel()
	_, err := emulator.ReadConfig(filepath.Join(t.TempDir(), "missing.yaml"))
	if err == nil || !strings.Contains(err.Error(), "missing.yaml") {
		t.Errorf("got %v", err)
	}
}

func FuzzParseConfig(f *testing.F) {
	for _, file := range []string{"servicebus.json", "eventhubs.json", "full.yaml"} {
		data, err := os.ReadFile(filepath.Join("testdata", file))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("Hub: {Routes: [{Name: r, Endpoint: events}]}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg, err := emulator.ParseConfig("c", data)
		if err == nil && cfg == nil {
			t.Error("neither a configuration nor an error")
		}
	})
}
