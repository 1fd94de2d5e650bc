package amqp

import (
	"slices"
	"time"
)

// Clone returns a deep copy of m: no later change of one shows in the other.
func (m *Message) Clone() *Message {
	c := *m
	if m.Header != nil {
		h := *m.Header
		c.Header = &h
	}
	if m.Properties != nil {
		c.Properties = m.Properties.clone()
	}
	c.DeliveryAnnotations = cloneNamed(m.DeliveryAnnotations)
	c.Annotations = cloneNamed(m.Annotations)
	c.ApplicationProperties = cloneNamed(m.ApplicationProperties)
	c.Footer = cloneNamed(m.Footer)
	c.Value = cloneValue(m.Value)
	c.Data = cloneEach(m.Data, slices.Clone[[]byte])
	c.Sequence = cloneEach(m.Sequence, cloneList)
	return &c
}

func (p *Properties) clone() *Properties {
	c := *p
	c.MessageID = cloneValue(p.MessageID)
	c.UserID = slices.Clone(p.UserID)
	c.CorrelationID = cloneValue(p.CorrelationID)
	for _, s := range []**string{
		&c.To, &c.Subject, &c.ReplyTo, &c.ContentType, &c.ContentEncoding, &c.GroupID, &c.ReplyToGroupID,
	} {
		*s = clonePointer(*s)
	}
	c.AbsoluteExpiryTime = clonePointer(p.AbsoluteExpiryTime)
	c.CreationTime = clonePointer(p.CreationTime)
	c.GroupSequence = clonePointer(p.GroupSequence)
	return &c
}

func clonePointer[T any](p *T) *T {
	if p == nil {
		return nil
	}
	v := *p
	return &v
}

func cloneNamed(m map[string]any) map[string]any {
	if m == nil {
		return nil
	}
	c := make(map[string]any, len(m))
	for k, v := range m {
		c[k] = cloneValue(v)
	}
	return c
}

func cloneEach[T any](s []T, clone func(T) T) []T {
	if s == nil {
		return nil
	}
	c := make([]T, len(s))
	for i, e := range s {
		c[i] = clone(e)
	}
	return c
}

func cloneList(s []any) []any { return cloneEach(s, cloneValue) }

// cloneValue copies the types that share memory; all others are values already.
func cloneValue(v any) any {
	switch t := v.(type) {
	case []byte:
		return slices.Clone(t)
	case []any:
		return cloneList(t)
	case map[string]any:
		return cloneNamed(t)
	case map[any]any:
		return cloneMixed(t)
	case Described:
		return Described{Descriptor: cloneValue(t.Descriptor), Value: cloneValue(t.Value)}
	case [][]byte:
		return cloneEach(t, slices.Clone[[]byte])
	case [][]any:
		return cloneEach(t, cloneList)
	case []map[any]any:
		return cloneEach(t, cloneMixed)
	}
	return cloneArray(v)
}

func cloneMixed(m map[any]any) map[any]any {
	c := make(map[any]any, len(m))
	for k, v := range m {
		c[k] = cloneValue(v)
	}
	return c
}

func cloneArray(v any) any {
	switch t := v.(type) {
	case []bool:
		return slices.Clone(t)
	case UbyteArray:
		return slices.Clone(t)
	case []uint16:
		return slices.Clone(t)
	case []uint32:
		return slices.Clone(t)
	case []uint64:
		return slices.Clone(t)
	case []int8:
		return slices.Clone(t)
	case []int16:
		return slices.Clone(t)
	case []int32:
		return slices.Clone(t)
	case []int64:
		return slices.Clone(t)
	case []float32:
		return slices.Clone(t)
	case []float64:
		return slices.Clone(t)
	case []time.Time:
		return slices.Clone(t)
	case []UUID:
		return slices.Clone(t)
	case []string:
		return slices.Clone(t)
	case []Symbol:
		return slices.Clone(t)
	}
	return v
}
