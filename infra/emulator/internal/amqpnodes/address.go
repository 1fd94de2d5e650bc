package amqpnodes

import "strings"

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
	kindDevice            // /devices/{id}/...
	kindConsumer          // {entity}/ConsumerGroups/{group}/Partitions/{partition}
	kindPartition         // {entity}/Partitions/{partition}
	kindEntity            // anything else
)

// address is a parsed link address.
type address struct {
	kind      kind
	path      string // without scheme, host and slashes at the ends
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
	case is(0, "devices"):
		a.kind = kindDevice
	case n >= 5 && is(n-4, "consumergroups") && is(n-2, "partitions"):
		a.kind, a.entity = kindConsumer, strings.Join(segments[:n-4], "/")
		a.group, a.partition = segments[n-3], segments[n-1]
	case n >= 3 && is(n-2, "partitions"):
		a.kind, a.entity, a.partition = kindPartition, strings.Join(segments[:n-2], "/"), segments[n-1]
	default:
		a.kind, a.entity = kindEntity, a.path
	}
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
