package broker

import "github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"

// What parts of a decoded message take in memory, in bytes, beside what
// MessageSize counts.
const (
	sliceWeight   = 24
	elementWeight = 16 // an element of a list, or the header of a text
	entryWeight   = 80 // an entry of a map
	mapWeight     = 336
)

// weight returns about how much memory a message takes. Limits on what an entity
// holds count it: a list of nothing has no size, and maps of next to nothing fill
// sixty times what they take on the wire.
func weight(m *amqp.Message) int {
	n := MessageSize(m) + sliceWeight*max(0, len(m.Data)-1)
	for _, properties := range []map[string]any{m.Annotations, m.ApplicationProperties} {
		n += entryWeight * len(properties)
		for _, v := range properties {
			n += valueWeight(v)
		}
	}
	for _, s := range m.Sequence {
		n += valueWeight(s)
	}
	return n + valueWeight(m.Value)
}

// valueWeight is what a value adds to its size.
func valueWeight(v any) int {
	switch v := v.(type) {
	case map[string]any:
		n := mapWeight + entryWeight*len(v)
		for _, e := range v {
			n += valueWeight(e)
		}
		return n
	case map[any]any:
		n := mapWeight + entryWeight*len(v)
		for _, e := range v {
			n += valueWeight(e)
		}
		return n
	case []any:
		return eachWeight(v, elementWeight)
	case [][]any:
		return eachWeight(v, sliceWeight)
	case []map[any]any:
		return eachWeight(v, 0)
	case []string:
		return elementWeight * len(v)
	case []amqp.Symbol:
		return elementWeight * len(v)
	case [][]byte:
		return sliceWeight * len(v)
	case amqp.Described:
		return 2*elementWeight + valueWeight(v.Descriptor) + valueWeight(v.Value)
	}
	return 0
}

func eachWeight[T any](list []T, each int) int {
	n := each * len(list)
	for _, e := range list {
		n += valueWeight(e)
	}
	return n
}
