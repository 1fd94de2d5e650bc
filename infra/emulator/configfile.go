package emulator

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/configtree"
)

// problem is an error about a line of a configuration file, or, without a file,
// about a Config made in Go.
func problem(file string, line int, text string) error {
	if file == "" {
		return fmt.Errorf("configuration: %s", text)
	}
	return &configtree.Error{File: file, Line: line, Text: text}
}

// ReadConfig reads a configuration file; see ParseConfig.
func ReadConfig(path string) (*Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return ParseConfig(path, data)
}

// ParseConfig reads a configuration in JSON or YAML, in the format of the Service
// Bus emulator (UserConfig/Namespaces) and the Event Hubs emulator
// (UserConfig/NamespaceConfig) of the vendor, with a section Hub beside UserConfig
// for the IoT Hub. The name stands in errors, which say the line of everything
// that the emulator can't do: it ignores nothing but the vendor's section Logging.
//
// Formats: Azure/azure-service-bus-emulator-installer and
// Azure/azure-event-hubs-emulator-installer, file Config.json.
func ParseConfig(name string, data []byte) (*Config, error) {
	root, err := configtree.Parse(name, data)
	if err != nil {
		return nil, err
	}
	cfg := &Config{file: name}
	s := root.Section("the file")
	cfg.readUserConfig(s.Sub("UserConfig"))
	cfg.readHub(s.Sub("Hub"))
	s.Done()
	if err := root.Err(); err != nil {
		return nil, err
	}
	if err := cfg.check(""); err != nil {
		return nil, err
	}
	return cfg, nil
}

func (cfg *Config) readUserConfig(s *configtree.Section) {
	for i, n := range s.List("Namespaces") {
		if i > 0 {
			n.Refuse("the emulator has one Service Bus namespace only")
		}
		cfg.readServiceBus(n.Section("a namespace"))
	}
	for i, n := range s.List("NamespaceConfig") {
		if i > 0 {
			n.Refuse("the emulator has one Event Hubs namespace only")
		}
		cfg.readEventHubs(n.Section("a namespace"))
	}
	// These say where the vendor's emulators write their own logs.
	s.Get("Logging")
	s.Get("LoggingConfig")
	s.Done()
}

func (cfg *Config) readServiceBus(s *configtree.Section) {
	s.Text("Name") // clients don't see it
	for _, n := range s.List("Queues") {
		cfg.Queues = append(cfg.Queues, readQueue(n.Section("a queue")))
	}
	for _, n := range s.List("Topics") {
		cfg.Topics = append(cfg.Topics, readTopic(n.Section("a topic")))
	}
	s.Done()
}

func readQueue(s *configtree.Section) Queue {
	q := Queue{Name: s.Text("Name"), line: s.Line()}
	p := s.Sub("Properties")
	q.Delivery = readDelivery(p)
	q.DuplicateWindow = readDuplicateWindow(p)
	p.Done()
	s.Done()
	return q
}

// readDelivery reads the properties that queues and subscriptions share.
func readDelivery(p *configtree.Section) Delivery {
	refuseText(p, "ForwardTo", "forwarding is not emulated")
	refuseText(p, "ForwardDeadLetteredMessagesTo", "forwarding is not emulated")
	if p.Bool("RequiresSession", false) {
		p.Get("RequiresSession").Refuse("RequiresSession is true, but sessions are not emulated")
	}
	return Delivery{
		LockDuration:       p.Duration("LockDuration", minLock, maxLock),
		MaxDeliveryCount:   p.Int("MaxDeliveryCount", 1, maxDeliveries),
		DefaultTTL:         readTTL(p),
		DeadLetterOnExpiry: p.Bool("DeadLetteringOnMessageExpiration", false),
	}
}

func refuseText(s *configtree.Section, name, why string) {
	if n := s.Get(name); n != nil && n.Text(name) != "" {
		n.Refuse("%s is set, but %s", name, why)
	}
}

// maxUnits is the largest number of units that any tier has.
const maxUnits = 200

// longTTL and more is the vendor's way to say that messages don't expire.
const longTTL = 100 * 365 * 24 * time.Hour

func readTTL(p *configtree.Section) time.Duration {
	ttl := p.Duration("DefaultMessageTimeToLive", time.Second, math.MaxInt64)
	if ttl >= longTTL {
		return 0
	}
	return ttl
}

func readDuplicateWindow(p *configtree.Section) time.Duration {
	window := p.Duration("DuplicateDetectionHistoryTimeWindow", minDuplicateWindow, maxDuplicateWindow)
	if !p.Bool("RequiresDuplicateDetection", false) {
		return 0
	}
	if window == 0 {
		return broker.DefaultDuplicateWindow
	}
	return window
}

func readTopic(s *configtree.Section) Topic {
	t := Topic{Name: s.Text("Name"), line: s.Line()}
	p := s.Sub("Properties")
	t.DefaultTTL = readTTL(p)
	t.DuplicateWindow = readDuplicateWindow(p)
	p.Done()
	for _, n := range s.List("Subscriptions") {
		t.Subscriptions = append(t.Subscriptions, readSubscription(n.Section("a subscription")))
	}
	s.Done()
	return t
}

func readSubscription(s *configtree.Section) Subscription {
	sub := Subscription{Name: s.Text("Name"), line: s.Line()}
	p := s.Sub("Properties")
	sub.Delivery = readDelivery(p)
	p.Done()
	for _, n := range s.List("Rules") {
		checkRule(n.Section("a rule"))
	}
	s.Done()
	return sub
}

// checkRule accepts the one rule that subscriptions here follow: every message.
func checkRule(s *configtree.Section) {
	s.Text("Name")
	p := s.Sub("Properties")
	kind := p.Text("FilterType")
	if !strings.EqualFold(kind, "Sql") {
		s.Refuse("filter type %q is not emulated: a subscription gets every message, which is the rule FilterType Sql, SqlExpression 1=1", kind)
		return
	}
	f := p.Sub("SqlFilter")
	if sql := f.Text("SqlExpression"); strings.ReplaceAll(sql, " ", "") != "1=1" {
		s.Refuse("SQL filter %q is not emulated: a subscription gets every message, which is the filter 1=1", sql)
	}
	f.Done()
	if p.Get("Action") != nil {
		s.Refuse("rule actions are not emulated")
	}
	p.Done()
	s.Done()
}

func (cfg *Config) readEventHubs(s *configtree.Section) {
	s.Text("Name") // clients don't see it
	if kind := s.Text("Type"); kind != "" && !strings.EqualFold(kind, "EventHub") {
		s.Get("Type").Refuse("Type is %q and must be EventHub", kind)
	}
	for _, n := range s.List("Entities") {
		e := n.Section("an event hub")
		cfg.EventHubs = append(cfg.EventHubs, EventHub{
			Name:           e.Text("Name"),
			Partitions:     e.Int("PartitionCount", 1, broker.MaxPartitions),
			ConsumerGroups: readGroups(e),
			line:           e.Line(),
		})
		e.Done()
	}
	s.Done()
}

func readGroups(s *configtree.Section) []string {
	var groups []string
	for _, n := range s.List("ConsumerGroups") {
		g := n.Section("a consumer group")
		groups = append(groups, g.Text("Name"))
		g.Done()
	}
	return groups
}

func (cfg *Config) readHub(s *configtree.Section) {
	cfg.Hub = Hub{
		Partitions:      s.Int("PartitionCount", 1, broker.MaxPartitions),
		ConsumerGroups:  readGroups(s),
		Retention:       s.Duration("Retention", minRetention, maxRetention),
		NoFallbackRoute: !s.Bool("FallbackRoute", true),
		line:            s.Line(),
	}
	for _, n := range s.List("Routes") {
		cfg.readRoute(n.Section("a route"))
	}
	c := s.Sub("CloudToDevice")
	cfg.Hub.CloudToDevice = CloudToDevice{
		DefaultTTL:       c.Duration("DefaultTimeToLive", minHubTTL, maxHubTTL),
		MaxDeliveryCount: c.Int("MaxDeliveryCount", 1, maxHubDeliveries),
		LockDuration:     c.Duration("LockDuration", minLock, maxLock),
		CountEveryReturn: c.Bool("CountEveryReturn", false),
	}
	c.Done()
	f := s.Sub("Feedback")
	cfg.Hub.Feedback = Feedback{
		TTL:              f.Duration("TimeToLive", minHubTTL, maxHubTTL),
		MaxDeliveryCount: f.Int("MaxDeliveryCount", 1, maxHubDeliveries),
		LockDuration:     f.Duration("LockDuration", minLock, maxLock),
	}
	f.Done()
	cfg.readTier(s)
	cfg.readDeviceCAs(s)
	s.Done()
}

func (cfg *Config) readTier(s *configtree.Section) {
	h := &cfg.Hub
	h.Tier = s.Text("Tier")
	h.Units = s.Int("Units", 1, maxUnits)
	if n := s.Get("Tier"); n != nil {
		h.tierLine = n.Line()
	}
	if n := s.Get("Units"); n != nil {
		h.unitsLine = n.Line()
	}
}

// readDeviceCAs reads names of files, which are relative to the directory of the
// configuration.
func (cfg *Config) readDeviceCAs(s *configtree.Section) {
	h := &cfg.Hub
	for _, n := range s.List("DeviceCertificateAuthorities") {
		file := n.Text("a device certificate authority")
		if !filepath.IsAbs(file) {
			file = filepath.Join(filepath.Dir(cfg.file), file)
		}
		h.DeviceCertificateAuthorities = append(h.DeviceCertificateAuthorities, file)
		h.caLines = append(h.caLines, n.Line())
	}
}

func (cfg *Config) readRoute(s *configtree.Section) {
	r := Route{Name: s.Text("Name"), Endpoint: s.Text("Endpoint"), line: s.Line()}
	if source := s.Text("Source"); source != "" && !strings.EqualFold(source, "DeviceMessages") {
		s.Get("Source").Refuse("source %q is not emulated: routes take DeviceMessages", source)
	}
	if condition := s.Text("Condition"); condition != "" && !strings.EqualFold(condition, "true") {
		s.Get("Condition").Refuse("condition %q is not emulated: routes take every message, which is the condition true", condition)
	}
	if s.Bool("Enabled", true) {
		cfg.Hub.Routes = append(cfg.Hub.Routes, r)
	}
	s.Done()
}
