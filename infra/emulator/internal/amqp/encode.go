package amqp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"
	"unicode/utf8"
)

// ErrUnencodable is wrapped by errors about Go values that have no AMQP form.
var ErrUnencodable = errors.New("value has no amqp encoding")

// appender is implemented by the composites of this package.
type appender interface {
	appendTo(b []byte) ([]byte, error)
}

// AppendValue appends the encoding of v to b. It takes every type that
// [DecodeValue] gives back, and int and uint (as long and ulong). Keys of a
// map[string]any are written as strings, those of a map[Symbol]any as symbols.
func AppendValue(b []byte, v any) ([]byte, error) {
	switch t := v.(type) {
	case nil:
		return append(b, codeNull), nil
	case bool:
		return appendBool(b, t), nil
	case float32:
		return binary.BigEndian.AppendUint32(append(b, codeFloat), math.Float32bits(t)), nil
	case float64:
		return binary.BigEndian.AppendUint64(append(b, codeDouble), math.Float64bits(t)), nil
	case time.Time:
		return binary.BigEndian.AppendUint64(append(b, codeTimestamp), uint64(t.UnixMilli())), nil
	case UUID:
		return append(append(b, codeUUID), t[:]...), nil
	case []byte:
		return appendBinary(b, t)
	case string:
		return appendString(b, t)
	case Symbol:
		return appendSymbol(b, t)
	case Described:
		return appendDescribed(b, t)
	case appender:
		return t.appendTo(b)
	}
	if out, ok := appendInteger(b, v); ok {
		return out, nil
	}
	return appendCompound(b, v)
}

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, codeTrue)
	}
	return append(b, codeFalse)
}

func appendInteger(b []byte, v any) ([]byte, bool) {
	switch t := v.(type) {
	case uint8:
		return append(b, codeUbyte, t), true
	case uint16:
		return binary.BigEndian.AppendUint16(append(b, codeUshort), t), true
	case uint32:
		return appendUint(b, t), true
	case uint64:
		return appendUlong(b, t), true
	case uint:
		return appendUlong(b, uint64(t)), true
	case int8:
		return append(b, codeByte, byte(t)), true
	case int16:
		return binary.BigEndian.AppendUint16(append(b, codeShort), uint16(t)), true
	case int32:
		if t == int32(int8(t)) {
			return append(b, codeSmallInt, byte(t)), true
		}
		return binary.BigEndian.AppendUint32(append(b, codeInt), uint32(t)), true
	case int64:
		return appendLong(b, t), true
	case int:
		return appendLong(b, int64(t)), true
	}
	return b, false
}

func appendUint(b []byte, v uint32) []byte {
	switch {
	case v == 0:
		return append(b, codeUint0)
	case v <= math.MaxUint8:
		return append(b, codeSmallUint, byte(v))
	}
	return binary.BigEndian.AppendUint32(append(b, codeUint), v)
}

func appendUlong(b []byte, v uint64) []byte {
	switch {
	case v == 0:
		return append(b, codeUlong0)
	case v <= math.MaxUint8:
		return append(b, codeSmallUlong, byte(v))
	}
	return binary.BigEndian.AppendUint64(append(b, codeUlong), v)
}

func appendLong(b []byte, v int64) []byte {
	if v == int64(int8(v)) {
		return append(b, codeSmallLong, byte(v))
	}
	return binary.BigEndian.AppendUint64(append(b, codeLong), uint64(v))
}

// appendVariable writes a value of the variable-width category with the shorter
// constructor that fits.
func appendVariable[T string | Symbol | []byte](b []byte, narrow, wide byte, v T) ([]byte, error) {
	if len(v) <= math.MaxUint8 {
		b = append(b, narrow, byte(len(v)))
		return append(b, v...), nil
	}
	if uint64(len(v)) > math.MaxUint32 {
		return nil, fmt.Errorf("%w: %d bytes", ErrUnencodable, len(v))
	}
	b = binary.BigEndian.AppendUint32(append(b, wide), uint32(len(v)))
	return append(b, v...), nil
}

func appendBinary(b, v []byte) ([]byte, error) {
	return appendVariable(b, codeBinary8, codeBinary32, v)
}

func appendString(b []byte, v string) ([]byte, error) {
	if !utf8.ValidString(v) {
		return nil, fmt.Errorf("%w: string is not valid UTF-8", ErrUnencodable)
	}
	return appendVariable(b, codeString8, codeString32, v)
}

func appendSymbol(b []byte, v Symbol) ([]byte, error) {
	if !utf8.ValidString(string(v)) {
		return nil, fmt.Errorf("%w: symbol is not valid UTF-8", ErrUnencodable)
	}
	return appendVariable(b, codeSymbol8, codeSymbol32, v)
}

func appendDescribed(b []byte, d Described) ([]byte, error) {
	b, err := AppendValue(append(b, codeDescribed), d.Descriptor)
	if err != nil {
		return nil, err
	}
	return AppendValue(b, d.Value)
}

func appendCompound(b []byte, v any) ([]byte, error) {
	switch t := v.(type) {
	case []any:
		return appendList(b, t)
	case map[string]any:
		return appendMap(b, t, appendString)
	case map[Symbol]any:
		return appendMap(b, t, appendSymbol)
	case map[any]any:
		return appendMixedMap(b, t)
	}
	return appendArrayValue(b, v)
}

// Length of the widest header of a compound: constructor, size and count.
const wideHeader = 9

// beginCompound leaves room for the widest header; endCompound fills it in, and
// closes the gap where the narrow form is enough.
func beginCompound(b []byte) ([]byte, int) {
	start := len(b)
	return append(b, make([]byte, wideHeader)...), start
}

func endCompound(b []byte, start, count int, narrow, wide byte) ([]byte, error) {
	body := len(b) - start - wideHeader
	if body+1 <= math.MaxUint8 && count <= math.MaxUint8 {
		b[start], b[start+1], b[start+2] = narrow, byte(body+1), byte(count)
		return slices.Delete(b, start+3, start+wideHeader), nil
	}
	if uint64(body)+4 > math.MaxUint32 || uint64(count) > math.MaxUint32 {
		return nil, fmt.Errorf("%w: %d elements in %d bytes", ErrUnencodable, count, body)
	}
	b[start] = wide
	binary.BigEndian.PutUint32(b[start+1:], uint32(body+4))
	binary.BigEndian.PutUint32(b[start+5:], uint32(count))
	return b, nil
}

func appendList(b []byte, v []any) ([]byte, error) {
	if len(v) == 0 {
		return append(b, codeList0), nil
	}
	b, start := beginCompound(b)
	var err error
	for _, e := range v {
		if b, err = AppendValue(b, e); err != nil {
			return nil, err
		}
	}
	return endCompound(b, start, len(v), codeList8, codeList32)
}

// appendMap writes entries in the order of their keys, so that one message always
// has one encoding.
func appendMap[K ~string](b []byte, m map[K]any, appendKey func([]byte, K) ([]byte, error)) ([]byte, error) {
	var few [16]K // most maps need no more
	keys := few[:0]
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	b, start := beginCompound(b)
	var err error
	for _, k := range keys {
		if b, err = appendKey(b, k); err != nil {
			return nil, err
		}
		if b, err = AppendValue(b, m[k]); err != nil {
			return nil, fmt.Errorf("map entry %v: %w", k, err)
		}
	}
	return endCompound(b, start, 2*len(m), codeMap8, codeMap32)
}

// appendMixedMap does the same for keys of any types, in the order of their
// encodings.
func appendMixedMap(b []byte, m map[any]any) ([]byte, error) {
	entries := make([][]byte, 0, len(m))
	for k, v := range m {
		entry, err := AppendValue(nil, k)
		if err != nil {
			return nil, err
		}
		if entry, err = AppendValue(entry, v); err != nil {
			return nil, fmt.Errorf("map entry %v: %w", k, err)
		}
		entries = append(entries, entry)
	}
	slices.SortFunc(entries, slices.Compare)
	b, start := beginCompound(b)
	for _, entry := range entries {
		b = append(b, entry...)
	}
	return endCompound(b, start, 2*len(m), codeMap8, codeMap32)
}

// appendSymbolMap writes a map with symbols for keys; annotations and property
// maps of performatives are such maps (§3.2.10).
func appendSymbolMap(b []byte, m map[string]any) ([]byte, error) {
	return appendMap(b, m, func(b []byte, k string) ([]byte, error) { return appendSymbol(b, Symbol(k)) })
}

func appendArrayValue(b []byte, v any) ([]byte, error) {
	switch t := v.(type) {
	case []bool:
		return appendArray(b, codeBoolean, t)
	case UbyteArray:
		return appendArray(b, codeUbyte, t)
	case []uint16:
		return appendArray(b, codeUshort, t)
	case []uint32:
		return appendArray(b, codeUint, t)
	case []uint64:
		return appendArray(b, codeUlong, t)
	case []int8:
		return appendArray(b, codeByte, t)
	case []int16:
		return appendArray(b, codeShort, t)
	case []int32:
		return appendArray(b, codeInt, t)
	case []int64:
		return appendArray(b, codeLong, t)
	case []float32:
		return appendArray(b, codeFloat, t)
	case []float64:
		return appendArray(b, codeDouble, t)
	case []time.Time:
		return appendArray(b, codeTimestamp, t)
	case []UUID:
		return appendArray(b, codeUUID, t)
	case [][]byte:
		return appendArray(b, codeBinary32, t)
	case []string:
		return appendArray(b, codeString32, t)
	case []Symbol:
		return appendArray(b, codeSymbol32, t)
	case [][]any:
		return appendArray(b, codeList32, t)
	case []map[any]any:
		return appendArray(b, codeMap32, t)
	}
	return nil, fmt.Errorf("%w: %T", ErrUnencodable, v)
}

// appendArray writes an array. All elements share one constructor, so each is
// written in the widest form of its type and without a code of its own. An empty
// array still names its element type (§1.6.24).
func appendArray[T any](b []byte, code byte, v []T) ([]byte, error) {
	b, start := beginCompound(b)
	b = append(b, code)
	var err error
	for _, e := range v {
		if b, err = appendElement(b, e); err != nil {
			return nil, err
		}
	}
	return endCompound(b, start, len(v), codeArray8, codeArray32)
}

func appendElement(b []byte, v any) ([]byte, error) {
	switch t := v.(type) {
	case bool:
		if t {
			return append(b, 1), nil
		}
		return append(b, 0), nil
	case uint8:
		return append(b, t), nil
	case uint16:
		return binary.BigEndian.AppendUint16(b, t), nil
	case uint32:
		return binary.BigEndian.AppendUint32(b, t), nil
	case uint64:
		return binary.BigEndian.AppendUint64(b, t), nil
	case int8:
		return append(b, byte(t)), nil
	case int16:
		return binary.BigEndian.AppendUint16(b, uint16(t)), nil
	case int32:
		return binary.BigEndian.AppendUint32(b, uint32(t)), nil
	case int64:
		return binary.BigEndian.AppendUint64(b, uint64(t)), nil
	case float32:
		return binary.BigEndian.AppendUint32(b, math.Float32bits(t)), nil
	case float64:
		return binary.BigEndian.AppendUint64(b, math.Float64bits(t)), nil
	case time.Time:
		return binary.BigEndian.AppendUint64(b, uint64(t.UnixMilli())), nil
	case UUID:
		return append(b, t[:]...), nil
	}
	return appendWideElement(b, v)
}

// appendWideElement writes elements of variable or compound types: a four-byte
// size, then (for compounds) a four-byte count, then the content.
func appendWideElement(b []byte, v any) ([]byte, error) {
	switch t := v.(type) {
	case []byte:
		return append(binary.BigEndian.AppendUint32(b, uint32(len(t))), t...), nil
	case string:
		return appendTextElement(b, t)
	case Symbol:
		return appendTextElement(b, string(t))
	}
	encoded, err := appendCompound(nil, v)
	if err != nil {
		return nil, err
	}
	count, body := compoundBody(encoded)
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)+4))
	b = binary.BigEndian.AppendUint32(b, count)
	return append(b, body...), nil
}

func appendTextElement(b []byte, v string) ([]byte, error) {
	if !utf8.ValidString(v) {
		return nil, fmt.Errorf("%w: text is not valid UTF-8", ErrUnencodable)
	}
	return append(binary.BigEndian.AppendUint32(b, uint32(len(v))), v...), nil
}

// compoundBody splits an encoded list or map, in any of its forms, into its
// count and its elements.
func compoundBody(encoded []byte) (uint32, []byte) {
	switch encoded[0] {
	case codeList0:
		return 0, nil
	case codeList8, codeMap8:
		return uint32(encoded[2]), encoded[3:]
	}
	return binary.BigEndian.Uint32(encoded[5:]), encoded[wideHeader:]
}
