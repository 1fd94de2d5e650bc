package twin

import "encoding/json"

// Section is a part of a twin.
type Section int

const (
	Tags Section = iota
	Desired
	Reported
)

// Lookup returns the value at a path of keys in a section, and whether there is
// one. It is a string, bool or json.Number, or an object or array, which the
// caller must not change. Desired and reported properties have $version and
// $metadata too; all of such a section is JSON text.
func (d *Document) Lookup(s Section, keys []string) (any, bool) {
	switch s {
	case Desired:
		return d.desired.lookup(keys)
	case Reported:
		return d.reported.lookup(keys)
	}
	return find(d.tags, keys)
}

func (h half) lookup(keys []string) (any, bool) {
	if len(keys) == 0 {
		return json.RawMessage(h.encode()), true
	}
	switch keys[0] {
	case keyVersion:
		return h.version, len(keys) == 1
	case keyMetadata:
		return h.meta.lookup(keys[1:])
	}
	return find(h.values, keys)
}

func (n *node) lookup(keys []string) (any, bool) {
	for i, key := range keys {
		last := i == len(keys)-1
		switch {
		case key == keyUpdated:
			return formatTime(n.at), last
		case key == keyUpdatedWith:
			return n.version, last && n.version != 0
		}
		if n = n.child(key); n == nil {
			return nil, false
		}
	}
	return json.RawMessage(n.append(nil)), true
}

func find(values object, keys []string) (any, bool) {
	var value any = values
	for _, key := range keys {
		inner, ok := value.(object)
		if !ok {
			return nil, false
		}
		if value, ok = inner[key]; !ok {
			return nil, false
		}
	}
	return value, true
}
