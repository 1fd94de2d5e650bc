package twin

import (
	"maps"
	"time"
)

// stamp is when, and with which version, a value was written. The version is 0
// where the hub shows none.
type stamp struct {
	at      time.Time
	version int64
}

// node is the metadata of a value: that of an object has children. The hub keeps
// it at every level, because a write that removes a key shows nowhere else.
type node struct {
	stamp
	children map[string]*node
}

func (n *node) child(key string) *node {
	if n == nil {
		return nil
	}
	return n.children[key]
}

// merge returns values with a patch applied (RFC 7396), and their metadata. It
// changes neither values nor meta.
func merge(values object, meta *node, patch object, s stamp) (object, *node) {
	out := maps.Clone(values)
	if out == nil {
		out = make(object, len(patch))
	}
	n := &node{stamp: s}
	if meta != nil {
		n.children = maps.Clone(meta.children)
	}
	if n.children == nil {
		n.children = make(map[string]*node, len(patch))
	}
	for key, value := range patch {
		switch value := value.(type) {
		case nil:
			delete(out, key)
			delete(n.children, key)
		case object:
			before, isObject := values[key].(object)
			var beforeMeta *node
			if isObject {
				beforeMeta = meta.child(key)
			}
			out[key], n.children[key] = merge(before, beforeMeta, value, s)
		default:
			out[key], n.children[key] = value, &node{stamp: s}
		}
	}
	return out, n
}
