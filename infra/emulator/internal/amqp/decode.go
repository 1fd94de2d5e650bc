package amqp

import (
	"encoding/binary"
	"fmt"
	"math"
	"time"
	"unicode/utf8"
)

// Bounds on what a decoder accepts. Without them a few bytes could claim
// billions of elements, or a chain of nested lists exhaust the stack.
const (
	maxDepth    = 32
	maxElements = 65536 // of one list, map or array; go-amqp has the same bound
)

// DecodeValue decodes the first value in b and returns it with what follows.
// Maps whose keys are all strings or symbols come out as map[string]any, other
// maps as map[any]any; lists as []any; arrays as a slice of their element type.
func DecodeValue(b []byte) (v any, rest []byte, err error) {
	r := newReader(b)
	if v, err = r.value(0); err != nil {
		return nil, nil, err
	}
	return v, r.b, nil
}

// reader consumes b from the front.
type reader struct {
	b []byte
	// empties is how many more array elements without any bytes of their own may
	// be decoded. It is shared by nested readers: it is what bounds allocation
	// where the length of the input does not.
	empties *int
}

func newReader(b []byte) *reader {
	r := &struct {
		reader
		empties int
	}{reader{b: b}, maxElements} // in one piece: there is one for each frame
	r.reader.empties = &r.empties
	return &r.reader
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

func (r *reader) take(n uint64) ([]byte, error) {
	if n > uint64(len(r.b)) {
		return nil, malformed("%d bytes wanted, %d left", n, len(r.b))
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b, nil
}

func (r *reader) octet() (byte, error) {
	b, err := r.take(1)
	if err != nil {
		return 0, err
	}
	return b[0], nil
}

// length reads a size or count, one byte wide or four.
func (r *reader) length(wide bool) (uint64, error) {
	if !wide {
		n, err := r.octet()
		return uint64(n), err
	}
	b, err := r.take(4)
	if err != nil {
		return 0, err
	}
	return uint64(binary.BigEndian.Uint32(b)), nil
}

// peekNull consumes a null if one is next.
func (r *reader) peekNull() bool {
	if len(r.b) == 0 || r.b[0] != codeNull {
		return false
	}
	r.b = r.b[1:]
	return true
}

func (r *reader) value(depth int) (any, error) {
	code, err := r.octet()
	if err != nil {
		return nil, err
	}
	if code == codeDescribed {
		return r.described(depth + 1)
	}
	return r.constructed(code, depth)
}

func (r *reader) described(depth int) (any, error) {
	if depth > maxDepth {
		return nil, malformed("nested deeper than %d", maxDepth)
	}
	var d Described
	var err error
	if d.Descriptor, err = r.value(depth); err != nil {
		return nil, err
	}
	if d.Value, err = r.value(depth); err != nil {
		return nil, err
	}
	return d, nil
}

// constructed decodes the value that follows a constructor code.
func (r *reader) constructed(code byte, depth int) (any, error) {
	if depth > maxDepth {
		return nil, malformed("nested deeper than %d", maxDepth)
	}
	switch code {
	case codeList0:
		return []any{}, nil
	case codeList8, codeList32:
		return r.list(code == codeList32, depth+1)
	case codeMap8, codeMap32:
		return r.anyMap(code == codeMap32, depth+1)
	case codeArray8, codeArray32:
		return r.array(code == codeArray32, depth+1)
	}
	return r.scalar(code)
}

// scalar decodes the types that hold no other values.
func (r *reader) scalar(code byte) (any, error) {
	c, err := r.content(code)
	if err != nil {
		return nil, err
	}
	switch code {
	case codeNull:
		return nil, nil
	case codeTrue:
		return true, nil
	case codeFalse:
		return false, nil
	case codeBoolean:
		return c[0] != 0, nil
	case codeFloat:
		return math.Float32frombits(binary.BigEndian.Uint32(c)), nil
	case codeDouble:
		return math.Float64frombits(binary.BigEndian.Uint64(c)), nil
	case codeTimestamp:
		return time.UnixMilli(int64(binary.BigEndian.Uint64(c))).UTC(), nil
	case codeUUID:
		return UUID(c), nil
	case codeBinary8, codeBinary32:
		return append(make([]byte, 0, len(c)), c...), nil
	case codeString8, codeString32:
		return text(c)
	case codeSymbol8, codeSymbol32:
		s, err := text(c)
		return Symbol(s), err
	}
	return integer(code, c)
}

func integer(code byte, c []byte) (any, error) {
	switch code {
	case codeUint0:
		return uint32(0), nil
	case codeUlong0:
		return uint64(0), nil
	case codeUbyte:
		return c[0], nil
	case codeByte:
		return int8(c[0]), nil
	case codeSmallUint:
		return uint32(c[0]), nil
	case codeSmallUlong:
		return uint64(c[0]), nil
	case codeSmallInt:
		return int32(int8(c[0])), nil
	case codeSmallLong:
		return int64(int8(c[0])), nil
	case codeUshort:
		return binary.BigEndian.Uint16(c), nil
	case codeShort:
		return int16(binary.BigEndian.Uint16(c)), nil
	case codeUint:
		return binary.BigEndian.Uint32(c), nil
	case codeInt:
		return int32(binary.BigEndian.Uint32(c)), nil
	case codeUlong:
		return binary.BigEndian.Uint64(c), nil
	case codeLong:
		return int64(binary.BigEndian.Uint64(c)), nil
	}
	// char and the decimals end up here: go-amqp cannot decode them, so passing
	// them on would break the receiver instead of the sender.
	return nil, malformed("type code 0x%02x is not supported", code)
}

// uint reads an unsigned integer, boolean a boolean, binary bytes and text a
// string or symbol, if that is what comes next. Otherwise they read nothing and
// return no ok.
func (r *reader) uint() (v uint32, ok bool) {
	if len(r.b) == 0 {
		return 0, false
	}
	n := 0
	switch r.b[0] {
	case codeUint0:
	case codeSmallUint:
		n = 1
	case codeUint:
		n = 4
	default:
		return 0, false
	}
	if len(r.b) < 1+n {
		return 0, false
	}
	for _, c := range r.b[1 : 1+n] {
		v = v<<8 | uint32(c)
	}
	r.b = r.b[1+n:]
	return v, true
}

func (r *reader) boolean() (v, ok bool) {
	if len(r.b) == 0 || r.b[0] != codeTrue && r.b[0] != codeFalse {
		return false, false
	}
	v = r.b[0] == codeTrue
	r.b = r.b[1:]
	return v, true
}

func (r *reader) binary() (v []byte, ok bool, err error) {
	c, ok, err := r.variable(codeBinary8, codeBinary32)
	if !ok || err != nil {
		return nil, ok, err
	}
	return append(make([]byte, 0, len(c)), c...), true, nil
}

func (r *reader) text() (v string, ok bool, err error) {
	c, ok, err := r.variable(codeString8, codeString32)
	if !ok {
		c, ok, err = r.variable(codeSymbol8, codeSymbol32)
	}
	if !ok || err != nil {
		return "", ok, err
	}
	v, err = text(c)
	return v, true, err
}

// variable returns the bytes of a value with one of two constructors, if it has.
func (r *reader) variable(narrow, wide byte) (c []byte, ok bool, err error) {
	if len(r.b) == 0 || r.b[0] != narrow && r.b[0] != wide {
		return nil, false, nil
	}
	code := r.b[0]
	r.b = r.b[1:]
	c, err = r.content(code)
	return c, true, err
}

func text(c []byte) (string, error) {
	if !utf8.Valid(c) {
		return "", malformed("text is not valid UTF-8")
	}
	return string(c), nil
}

// content returns the bytes of a scalar. Its width follows from the first half
// of the constructor code (§1.2.1).
func (r *reader) content(code byte) ([]byte, error) {
	switch code >> 4 {
	case 0x4:
		return nil, nil
	case 0x5:
		return r.take(1)
	case 0x6:
		return r.take(2)
	case 0x7:
		return r.take(4)
	case 0x8:
		return r.take(8)
	case 0x9:
		return r.take(16)
	case 0xa, 0xb:
		n, err := r.length(code>>4 == 0xb)
		if err != nil {
			return nil, err
		}
		return r.take(n)
	}
	return nil, malformed("type code 0x%02x is not defined", code)
}

// compound reads size and count of a list, map or array, and returns a reader
// for its elements alone.
func (r *reader) compound(wide bool) (reader, int, error) {
	size, err := r.length(wide)
	if err != nil {
		return reader{}, 0, err
	}
	body, err := r.take(size)
	if err != nil {
		return reader{}, 0, err
	}
	inner := reader{b: body, empties: r.empties}
	count, err := inner.length(wide)
	if err != nil {
		return reader{}, 0, err
	}
	if count > maxElements {
		return reader{}, 0, malformed("%d elements, at most %d are accepted", count, maxElements)
	}
	return inner, int(count), nil
}

// entries reads size and count of a map, and returns the number of its entries.
func (r *reader) entries(wide bool) (reader, int, error) {
	inner, count, err := r.compound(wide)
	if err == nil && count%2 != 0 {
		err = malformed("map with an odd number of elements")
	}
	return inner, count / 2, err
}

// done reports bytes that a compound holds beyond its elements.
func (r *reader) done() error {
	if len(r.b) != 0 {
		return malformed("%d bytes beyond the last element", len(r.b))
	}
	return nil
}

func (r *reader) list(wide bool, depth int) ([]any, error) {
	inner, count, err := r.compound(wide)
	if err != nil {
		return nil, err
	}
	if count > len(inner.b) {
		return nil, malformed("%d elements in %d bytes", count, len(inner.b))
	}
	out := make([]any, count)
	for i := range out {
		if out[i], err = inner.value(depth); err != nil {
			return nil, err
		}
	}
	return out, inner.done()
}

// pairs calls f for every entry of a map whose constructor has been read.
func (r *reader) pairs(wide bool, depth int, f func(key, value any) error) error {
	inner, count, err := r.entries(wide)
	if err != nil {
		return err
	}
	for range count {
		key, err := inner.value(depth)
		if err != nil {
			return err
		}
		value, err := inner.value(depth)
		if err != nil {
			return err
		}
		if err := f(key, value); err != nil {
			return err
		}
	}
	return inner.done()
}

func (r *reader) anyMap(wide bool, depth int) (any, error) {
	named := map[string]any{}
	var mixed map[any]any
	err := r.pairs(wide, depth, func(key, value any) error {
		name, isName := keyName(key)
		if mixed == nil && isName {
			named[name] = value
			return nil
		}
		if !isName && !comparableKey(key) {
			return malformed("a %T cannot be a map key", key)
		}
		if mixed == nil {
			mixed = make(map[any]any, len(named)+1)
			for k, v := range named {
				mixed[k] = v
			}
		}
		if isName {
			key = name
		}
		mixed[key] = value
		return nil
	})
	if err != nil {
		return nil, err
	}
	if mixed != nil {
		return mixed, nil
	}
	return named, nil
}

func keyName(key any) (string, bool) {
	switch k := key.(type) {
	case string:
		return k, true
	case Symbol:
		return string(k), true
	}
	return "", false
}

// comparableKey lists the types that may be keys of a Go map; a key of any other
// type would panic.
func comparableKey(key any) bool {
	switch key.(type) {
	case bool, uint8, uint16, uint32, uint64, int8, int16, int32, int64, float32, float64, time.Time, UUID:
		return true
	}
	return false
}

func (r *reader) array(wide bool, depth int) (any, error) {
	inner, count, err := r.compound(wide)
	if err != nil {
		return nil, err
	}
	code, err := inner.octet()
	if err != nil {
		return nil, err
	}
	if err := inner.affords(code, count); err != nil {
		return nil, err
	}
	v, err := inner.elements(code, count, depth)
	if err != nil {
		return nil, err
	}
	return v, inner.done()
}

// affords checks an array's count against the bytes that are there, and against
// the budget where elements have no bytes.
func (r *reader) affords(code byte, count int) error {
	if code>>4 != 0x4 {
		if count > len(r.b) {
			return malformed("%d array elements in %d bytes", count, len(r.b))
		}
		return nil
	}
	if *r.empties -= count; *r.empties < 0 {
		return malformed("more than %d array elements without content", maxElements)
	}
	return nil
}

func (r *reader) elements(code byte, n, depth int) (any, error) {
	switch code {
	case codeTrue, codeFalse, codeBoolean:
		return typed[bool](r, code, n, depth)
	case codeUbyte:
		v, err := typed[uint8](r, code, n, depth)
		return UbyteArray(v), err
	case codeUshort:
		return typed[uint16](r, code, n, depth)
	case codeUint, codeSmallUint, codeUint0:
		return typed[uint32](r, code, n, depth)
	case codeUlong, codeSmallUlong, codeUlong0:
		return typed[uint64](r, code, n, depth)
	case codeByte:
		return typed[int8](r, code, n, depth)
	case codeShort:
		return typed[int16](r, code, n, depth)
	case codeInt, codeSmallInt:
		return typed[int32](r, code, n, depth)
	case codeLong, codeSmallLong:
		return typed[int64](r, code, n, depth)
	case codeFloat:
		return typed[float32](r, code, n, depth)
	case codeDouble:
		return typed[float64](r, code, n, depth)
	case codeTimestamp:
		return typed[time.Time](r, code, n, depth)
	case codeUUID:
		return typed[UUID](r, code, n, depth)
	case codeBinary8, codeBinary32:
		return typed[[]byte](r, code, n, depth)
	case codeString8, codeString32:
		return typed[string](r, code, n, depth)
	case codeSymbol8, codeSymbol32:
		return typed[Symbol](r, code, n, depth)
	case codeList0, codeList8, codeList32:
		return typed[[]any](r, code, n, depth)
	case codeMap8, codeMap32:
		return maps(r, code, n, depth)
	}
	return nil, malformed("arrays of type 0x%02x are not supported", code)
}

func typed[T any](r *reader, code byte, n, depth int) ([]T, error) {
	out := make([]T, n)
	for i := range out {
		v, err := r.constructed(code, depth)
		if err != nil {
			return nil, err
		}
		out[i] = v.(T) // the caller chose T from the same code
	}
	return out, nil
}

// maps decodes an array of maps. Each element could come out as either Go map
// type, so all are brought to the general one.
func maps(r *reader, code byte, n, depth int) ([]map[any]any, error) {
	out := make([]map[any]any, n)
	for i := range out {
		v, err := r.constructed(code, depth)
		if err != nil {
			return nil, err
		}
		switch m := v.(type) {
		case map[any]any:
			out[i] = m
		case map[string]any:
			out[i] = make(map[any]any, len(m))
			for k, e := range m {
				out[i][k] = e
			}
		}
	}
	return out, nil
}

// skip passes over one value without building it, for fields that nothing reads.
func (r *reader) skip(depth int) error {
	if depth > maxDepth {
		return malformed("nested deeper than %d", maxDepth)
	}
	code, err := r.octet()
	if err != nil {
		return err
	}
	switch {
	case code == codeDescribed:
		if err := r.skip(depth + 1); err != nil {
			return err
		}
		return r.skip(depth + 1)
	case code>>4 >= 0xc:
		size, err := r.length(code>>4 == 0xd || code>>4 == 0xf)
		if err != nil {
			return err
		}
		_, err = r.take(size)
		return err
	}
	_, err = r.content(code)
	return err
}
