package twin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"unicode"
)

// Limits of the cloud (IoT Hub docs: "Understand and use device twins in IoT
// Hub", Tags and properties format, Device twin size). Sizes are in bytes.
const (
	maxTagsSize       = 8 << 10
	maxPropertiesSize = 32 << 10
	maxKeyLength      = 1 << 10
	maxStringLength   = 4 << 10
	maxDepth          = 10
	maxTextSize       = 512 << 10 // of a write in JSON; our own, before it is decoded
	minInteger        = -1 << 52
	maxInteger        = 1<<52 - 1
)

// Kinds of refusal, for errors.Is.
var (
	// ErrFormat means that a document is no JSON.
	ErrFormat = errors.New("not JSON")
	// ErrLimit means that a document has what a twin can't hold.
	ErrLimit = errors.New("not allowed in a twin")
)

// Error says what is wrong with a write, and where.
type Error struct {
	// Path leads to the value, such as tags.location.city.
	Path string
	// Reason is one line for people.
	Reason string
	kind   error
}

// Error implements error.
func (e *Error) Error() string { return e.Path + ": " + e.Reason }

// Unwrap returns ErrFormat or ErrLimit.
func (e *Error) Unwrap() error { return e.kind }

// path leads to a value that is looked at; it becomes text only for an error.
type path struct {
	parent *path
	name   string
}

func (p *path) String() string {
	var names []string
	for ; p != nil; p = p.parent {
		names = append([]string{shorten(p.name)}, names...)
	}
	return strings.ReplaceAll(strings.Join(names, "."), ".[", "[")
}

// shorten keeps messages readable; keys may be any text of any length.
func shorten(name string) string {
	const most = 64
	if r := []rune(name); len(r) > most {
		name = string(r[:most]) + "…"
	}
	if strings.ContainsFunc(name, unicode.IsControl) {
		name = strconv.Quote(name)
	}
	return name
}

func limit(p *path, format string, args ...any) error {
	return &Error{Path: p.String(), Reason: fmt.Sprintf(format, args...), kind: ErrLimit}
}

// read decodes a section, which must be an object.
func read(section string, text []byte) (object, error) {
	if len(text) > maxTextSize {
		return nil, limit(&path{name: section}, "has %d bytes of JSON of at most %d", len(text), maxTextSize)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var value any
	err := d.Decode(&value)
	if err == nil {
		if _, more := d.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("more follows the end of the document")
		}
	}
	if err != nil {
		return nil, &Error{Path: section, Reason: "is no JSON: " + err.Error(), kind: ErrFormat}
	}
	values, ok := value.(object)
	if !ok {
		return nil, limit(&path{name: section}, "must be an object")
	}
	return values, nil
}

// check looks for what a patch may not contain, and brings long numbers into
// their short form. A patch may contain null, but not in an array.
func check(section string, values object) error {
	return checkObject(&path{name: section}, values, 0, false)
}

func checkObject(at *path, values object, depth int, inArray bool) error {
	if depth > maxDepth {
		return limit(at, "is deeper than %d levels", maxDepth)
	}
	for key, value := range values {
		if err := checkKey(at, key); err != nil {
			return err
		}
		checked, err := checkValue(&path{at, key}, value, depth+1, inArray)
		if err != nil {
			return err
		}
		values[key] = checked
	}
	return nil
}

// checkKey allows what the hub does: beside the characters that are documented,
// it refuses the number sign and other white space (azure-iot-sdk-java issue 243;
// iotedge, ReportedPropertiesValidator.cs).
func checkKey(at *path, key string) error {
	if len(key) > maxKeyLength {
		return limit(&path{at, key}, "name has %d bytes of at most %d", len(key), maxKeyLength)
	}
	for _, r := range key {
		if unicode.IsControl(r) || unicode.IsSpace(r) || strings.ContainsRune(".$#", r) {
			return limit(at, "name %q has %q: names can't have control characters, spaces, '.', '$' or '#'", shorten(key), r)
		}
	}
	return nil
}

func checkValue(at *path, value any, depth int, inArray bool) (any, error) {
	switch value := value.(type) {
	case nil:
		if inArray {
			return nil, limit(at, "is null, which can't be in an array")
		}
	case string:
		if len(value) > maxStringLength {
			return nil, limit(at, "string has %d bytes of at most %d", len(value), maxStringLength)
		}
	case json.Number:
		return checkNumber(at, value)
	case object:
		return value, checkObject(at, value, depth, inArray)
	case []any:
		return value, checkArray(at, value, depth)
	}
	return value, nil
}

func checkArray(at *path, values []any, depth int) error {
	if depth > maxDepth {
		return limit(at, "is deeper than %d levels", maxDepth)
	}
	for i, value := range values {
		checked, err := checkValue(&path{at, "[" + strconv.Itoa(i) + "]"}, value, depth+1, true)
		if err != nil {
			return err
		}
		values[i] = checked
	}
	return nil
}

func checkNumber(at *path, n json.Number) (any, error) {
	if !strings.ContainsAny(n.String(), ".eE") {
		i, err := n.Int64()
		if err != nil || i < minInteger || i > maxInteger {
			return nil, limit(at, "integer is not between %d and %d", int64(minInteger), int64(maxInteger))
		}
		return n, nil
	}
	f, err := n.Float64()
	if err != nil || math.IsInf(f, 0) {
		return nil, limit(at, "number is too large")
	}
	const longest = 24 // digits of a float64 in its shortest form, and some
	if len(n) > longest {
		n = json.Number(strconv.FormatFloat(f, 'g', -1, 64))
	}
	return n, nil
}

// checkSize refuses a section that is too large.
func checkSize(section string, most int, values object) error {
	if n := size(values); n > most {
		return limit(&path{name: section}, "has %d bytes of at most %d", n, most)
	}
	return nil
}

// size counts as the cloud does (IoT Hub docs, as above: "Device twin size"):
// keys and strings without control characters, 8 for a number and 4 for a bool.
func size(value any) int {
	switch value := value.(type) {
	case string:
		return textSize(value)
	case json.Number:
		return 8
	case bool:
		return 4
	case object:
		n := 0
		for key, v := range value {
			n += textSize(key) + size(v)
		}
		return n
	case []any:
		n := 0
		for _, v := range value {
			// An element that has no size by that rule still takes memory.
			n += max(1, size(v))
		}
		return n
	}
	return 0
}

func textSize(s string) int {
	n := len(s)
	for _, r := range s {
		if unicode.IsControl(r) {
			n -= len(string(r))
		}
	}
	return n
}
