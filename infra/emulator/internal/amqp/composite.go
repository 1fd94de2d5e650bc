package amqp

import "encoding/binary"

// composite writes a described list field by field (§1.3). Errors stick: callers
// write all fields and look once, in end. Trailing nulls are left out.
type composite struct {
	b         []byte
	start     int // of the list's header
	count     int // fields written
	keptCount int // fields up to the last that is not null
	keptLen   int // len(b) after that field
	err       error
}

func newComposite(b []byte, code byte) *composite {
	b, start := beginCompound(appendDescriptor(b, code))
	return &composite{b: b, start: start, keptLen: len(b)}
}

func (c *composite) null() {
	c.count++
	c.b = append(c.b, codeNull)
}

func (c *composite) field(v any) {
	if c.err != nil {
		return
	}
	b, err := AppendValue(c.b, v)
	if err != nil {
		c.err = err
		return
	}
	c.keep(b)
}

// keep takes over the bytes with a field that is not null.
func (c *composite) keep(b []byte) {
	c.b = b
	c.count++
	c.keptCount, c.keptLen = c.count, len(b)
}

// uint writes an unsigned integer. Unlike field, it allocates nothing: frames
// that come with each message are made of such fields.
func (c *composite) uint(v uint32) {
	if c.err == nil {
		c.keep(appendUint(c.b, v))
	}
}

// binary writes bytes if they are set, else null.
func (c *composite) binary(v []byte) {
	if v == nil || c.err != nil {
		c.null()
		return
	}
	if b, err := appendBinary(c.b, v); err != nil {
		c.err = err
	} else {
		c.keep(b)
	}
}

// text writes a string if it is set, else null.
func (c *composite) text(v *string) {
	if v == nil || c.err != nil {
		c.null()
		return
	}
	if b, err := appendString(c.b, *v); err != nil {
		c.err = err
	} else {
		c.keep(b)
	}
}

// uintPointer writes what p points to, or null.
func (c *composite) uintPointer(p *uint32) {
	if p == nil {
		c.null()
		return
	}
	c.uint(*p)
}

// optional writes v if it is set, else null.
func (c *composite) optional(set bool, v any) {
	if set {
		c.field(v)
	} else {
		c.null()
	}
}

// flag writes a boolean whose default is false.
func (c *composite) flag(v bool) { c.optional(v, true) }

// symbols writes a field that may hold several symbols.
func (c *composite) symbols(v []Symbol) { c.optional(len(v) > 0, v) }

// symbolMap writes a map with symbols for keys.
func (c *composite) symbolMap(m map[string]any) {
	c.optional(len(m) > 0, symbolMap(m))
}

// symbolMap is written with symbols for keys.
type symbolMap map[string]any

func (m symbolMap) appendTo(b []byte) ([]byte, error) { return appendSymbolMap(b, m) }

// pointer writes what p points to, or null.
func pointer[T any](c *composite, p *T) {
	if p == nil {
		c.null()
		return
	}
	c.field(*p)
}

func (c *composite) end() ([]byte, error) {
	if c.err != nil {
		return nil, c.err
	}
	if c.keptCount == 0 {
		return append(c.b[:c.start], codeList0), nil
	}
	return endCompound(c.b[:c.keptLen], c.start, c.keptCount, codeList8, codeList32)
}

// descriptor consumes the descriptor of a composite or section: a ulong that
// fits a byte. All descriptors of the specification do.
func (r *reader) descriptor() (byte, error) {
	code, err := r.octet()
	if err != nil {
		return 0, err
	}
	if code != codeDescribed {
		return 0, malformed("described type expected, got type code 0x%02x", code)
	}
	if code, err = r.octet(); err != nil {
		return 0, err
	}
	switch code {
	case codeSmallUlong:
		return r.octet()
	case codeUlong:
		b, err := r.take(8)
		if err != nil {
			return 0, err
		}
		if v := binary.BigEndian.Uint64(b); v <= 0xff {
			return byte(v), nil
		}
	}
	return 0, malformed("descriptor is not a small ulong")
}

// namedMap decodes a map whose keys are symbols or strings; null counts as
// empty.
func (r *reader) namedMap() (map[string]any, error) {
	if r.peekNull() {
		return nil, nil
	}
	code, err := r.octet()
	if err != nil {
		return nil, err
	}
	if code != codeMap8 && code != codeMap32 {
		return nil, malformed("map expected, got type code 0x%02x", code)
	}
	inner, count, err := r.entries(code == codeMap32)
	if err != nil {
		return nil, err
	}
	m := map[string]any{}
	for range count {
		name, err := inner.name()
		if err != nil {
			return nil, err
		}
		if m[name], err = inner.value(1); err != nil {
			return nil, err
		}
	}
	return m, inner.done()
}

// name decodes a string or symbol as a map key.
func (r *reader) name() (string, error) {
	if name, ok, err := r.text(); ok {
		return name, err
	}
	key, err := r.value(1)
	if err == nil {
		err = malformed("map key of type %T", key)
	}
	return "", err
}

// fields reads the list of a composite field by field. Fields that the sender
// left out or set to null leave their destination alone, so defaults are set
// beforehand. Errors stick until end.
type fields struct {
	r    reader
	left int
	err  error
}

func (r *reader) fields() *fields {
	code, err := r.octet()
	if err != nil {
		return &fields{err: err}
	}
	switch code {
	case codeList0:
		return &fields{r: reader{empties: r.empties}}
	case codeList8, codeList32:
		inner, count, err := r.compound(code == codeList32)
		return &fields{r: inner, left: count, err: err}
	}
	return &fields{err: malformed("list expected, got type code 0x%02x", code)}
}

// next reports whether the next field holds a value.
func (f *fields) next() bool {
	if f.err != nil || f.left == 0 {
		return false
	}
	f.left--
	return !f.r.peekNull()
}

func (f *fields) value() any {
	v, err := f.r.value(0)
	if err != nil {
		f.err = err
	}
	return v
}

func (f *fields) mismatch(v any) {
	if f.err == nil {
		f.err = malformed("a %T in a field of another type", v)
	}
}

// end returns the first error, or complains about fields beyond those read.
func (f *fields) end() error {
	if f.err != nil {
		return f.err
	}
	if f.left > 0 {
		return malformed("%d fields too many", f.left)
	}
	return f.r.done()
}

func field[T any](f *fields, dst *T) {
	if !f.next() || f.direct(dst) {
		return
	}
	v := f.value()
	t, ok := v.(T)
	if !ok {
		f.mismatch(v)
		return
	}
	*dst = t
}

func fieldPointer[T any](f *fields, dst **T) {
	if !f.next() {
		return
	}
	t := new(T)
	if !f.direct(t) {
		v := f.value()
		var ok bool
		if *t, ok = v.(T); !ok {
			f.mismatch(v)
			return
		}
	}
	*dst = t
}

// direct reads a field of one of the types that come with each message, without
// the allocation that a value of any type takes. It reports false, and has read
// nothing, if the field is not of that type.
func (f *fields) direct(dst any) bool {
	switch dst := dst.(type) {
	case *uint32:
		if v, ok := f.r.uint(); ok {
			*dst = v
			return true
		}
	case *bool:
		if v, ok := f.r.boolean(); ok {
			*dst = v
			return true
		}
	case *[]byte:
		v, ok, err := f.r.binary()
		if ok {
			*dst, f.err = v, err
		}
		return ok
	}
	return false
}

// textField reads a string or a symbol: clients are not strict about which.
func textField[T ~string](f *fields, dst *T) {
	var p *string
	if f.textPointer(&p); p != nil {
		*dst = T(*p)
	}
}

func (f *fields) textPointer(dst **string) {
	if !f.next() {
		return
	}
	s, ok, err := f.r.text()
	if !ok {
		f.mismatch(f.value())
		return
	}
	*dst, f.err = &s, err
}

func (f *fields) messageID(dst *any) {
	if !f.next() {
		return
	}
	switch v := f.value().(type) {
	case string, UUID, uint64, []byte:
		*dst = v
	default:
		f.mismatch(v)
	}
}

// symbols reads a field that may hold one symbol or an array of them (§1.3).
func (f *fields) symbols(dst *[]Symbol) {
	if !f.next() {
		return
	}
	switch v := f.value().(type) {
	case Symbol:
		*dst = []Symbol{v}
	case []Symbol:
		*dst = v
	default:
		f.mismatch(v)
	}
}

func (f *fields) namedMap(dst *map[string]any) {
	if !f.next() {
		return
	}
	m, err := f.r.namedMap()
	if err != nil {
		f.err = err
		return
	}
	*dst = m
}

// skip passes over a field that nothing reads.
func (f *fields) skip() {
	if f.next() {
		f.err = f.r.skip(0)
	}
}
