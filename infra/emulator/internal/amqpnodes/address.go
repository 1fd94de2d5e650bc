package amqpnodes

import (
	"net/url"
	"strings"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// kind is what sort of node an address names.
type kind uint8

const (
	kindUnknown kind = iota
	kindCBS
	kindEventsManagement  // $management
	kindManagement        // {entity}/$management
	kindDeviceBound       // /messages/devicebound
	kindFeedback          // /messages/serviceBound/feedback
	kindFileNotifications // /messages/serviceBound/filenotifications
	kindHubEvents         // /messages/events, and what is below
	kindTelemetry         // {identity}/messages/events
	kindC2D               // {identity}/messages/devicebound
	kindMethods           // {identity}/methods/devicebound
	kindTwin              // {identity}/twin
	kindConsumer          // {entity}/ConsumerGroups/{group}/Partitions/{partition}
	kindPartition         // {entity}/Partitions/{partition}
	kindEntity            // anything else
)

// address is a parsed link address.
type address struct {
	kind      kind
	path      string // without scheme, host and slashes at the ends
	target    hub.Target
	entity    string
	group     string
	partition string
}

// parseAddress accepts relative addresses with and without leading slash, and
// absolute ones with scheme and host, in any case: Node.js clients send the
// slash, C# clients absolute addresses, and documentation mixes the case.
func parseAddress(s string) address {
	if _, rest, ok := strings.Cut(s, "://"); ok {
		_, s, _ = strings.Cut(rest, "/")
	}
	a := address{path: strings.Trim(s, "/")}
	segments := strings.Split(a.path, "/")
	a.classify(segments)
	return a
}

func (a *address) classify(segments []string) {
	n := len(segments)
	is := func(i int, word string) bool {
		return i >= 0 && i < n && strings.EqualFold(segments[i], word)
	}
	switch {
	case a.path == "":
		a.kind = kindUnknown
	case n == 1 && is(0, "$cbs"):
		a.kind = kindCBS
	case n == 1 && is(0, "$management"):
		a.kind = kindEventsManagement
	case is(n-1, "$management"):
		a.kind, a.entity = kindManagement, strings.Join(segments[:n-1], "/")
	case is(0, "messages"):
		a.classifyHub(segments)
	case n > 1 && is(0, "devices"):
		a.classifyDevice(segments[1:])
	case n >= 5 && is(n-4, "consumergroups") && is(n-2, "partitions"):
		a.kind, a.entity = kindConsumer, strings.Join(segments[:n-4], "/")
		a.group, a.partition = segments[n-3], segments[n-1]
	case n >= 3 && is(n-2, "partitions"):
		a.kind, a.entity, a.partition = kindPartition, strings.Join(segments[:n-2], "/"), segments[n-1]
	default:
		a.kind, a.entity = kindEntity, a.path
	}
}

// classifyDevice is for addresses below /devices, the hub's device side:
// {device}/... and {device}/modules/{module}/... (IoT Hub docs: "Communicate with
// your IoT hub by using the AMQP protocol").
func (a *address) classifyDevice(segments []string) {
	if len(segments) > 2 && strings.EqualFold(segments[1], "modules") {
		a.target.ModuleID = unescapeID(segments[2])
		segments = append([]string{segments[0]}, segments[3:]...)
	}
	a.target.DeviceID = unescapeID(segments[0])
	switch strings.ToLower(strings.Join(segments[1:], "/")) {
	case "messages/events":
		a.kind = kindTelemetry
	case "messages/devicebound":
		a.kind = kindC2D
	case "methods/devicebound":
		a.kind = kindMethods
	case "twin":
		a.kind = kindTwin
	}
}

// unescapeID decodes an ID in an address. The IoT SDK for Java doesn't encode IDs
// (AmqpsTwinSenderLinkHandler.java), so one that can't be decoded is taken as it
// stands.
func unescapeID(s string) string {
	if id, err := url.PathUnescape(s); err == nil {
		return id
	}
	return s
}

// classifyHub is for addresses below /messages, the hub's service side.
func (a *address) classifyHub(segments []string) {
	switch path := strings.ToLower(a.path); path {
	case "messages/devicebound":
		a.kind = kindDeviceBound
	case "messages/servicebound/feedback":
		a.kind = kindFeedback
	case "messages/servicebound/filenotifications":
		a.kind = kindFileNotifications
	default:
		if path == "messages/events" || strings.HasPrefix(path, "messages/events/") {
			a.kind = kindHubEvents
		}
	}
}
