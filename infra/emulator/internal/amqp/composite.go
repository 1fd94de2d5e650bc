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
	c.b = b
	c.count++
	c.keptCount, c.keptLen = c.count, len(b)
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
	m := map[string]any{}
	err = r.pairs(code == codeMap32, 1, func(key, value any) error {
		name, ok := keyName(key)
		if !ok {
			return malformed("map key of type %T", key)
		}
		m[name] = value
		return nil
	})
	return m, err
}

// fields reads the list of a composite field by field. Fields that the sender
// left out or set to null leave their destination alone, so defaults are set
// beforehand. Errors stick until end.
type fields struct {
	r    *reader
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
		return &fields{r: &reader{empties: r.empties}}
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
	if !f.next() {
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
	v := f.value()
	t, ok := v.(T)
	if !ok {
		f.mismatch(v)
		return
	}
	*dst = &t
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
	v := f.value()
	s, ok := keyName(v)
	if !ok {
		f.mismatch(v)
		return
	}
	*dst = &s
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
