package twin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"
)

// Keys that the hub puts into properties.
const (
	keyMetadata    = "$metadata"
	keyVersion     = "$version"
	keyUpdated     = "$lastUpdated"
	keyUpdatedWith = "$lastUpdatedVersion"
)

// timeFormat has the seven digits of fraction that the hub writes.
const timeFormat = "2006-01-02T15:04:05.0000000Z"

// Tags returns the tags in JSON.
func (d *Document) Tags() json.RawMessage { return encode(d.tags) }

// Desired returns the desired properties in JSON, with $metadata and $version.
func (d *Document) Desired() json.RawMessage { return d.desired.encode() }

// Reported returns the reported properties in JSON, with $metadata and $version.
func (d *Document) Reported() json.RawMessage { return d.reported.encode() }

// DeviceView returns the twin as its device sees it: desired and reported
// properties with $version, without tags and $metadata.
func (d *Document) DeviceView() []byte {
	b := []byte(`{"desired":`)
	b = append(b, withVersion(d.desired.values, d.desired.version)...)
	b = append(b, `,"reported":`...)
	b = append(b, withVersion(d.reported.values, d.reported.version)...)
	return append(b, '}')
}

// encode is json.Marshal that leaves <, > and & as they are. Documents hold
// nothing that can't be encoded.
func encode(value any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(value); err != nil {
		return []byte("{}")
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// open returns an object in JSON without its closing brace, ready for a key.
func open(values object) []byte {
	b := encode(values)
	b = b[:len(b)-1]
	if len(values) > 0 {
		b = append(b, ',')
	}
	return b
}

func withVersion(values object, version int64) []byte {
	b := append(open(values), `"`+keyVersion+`":`...)
	return append(strconv.AppendInt(b, version, 10), '}')
}

func (h half) encode() []byte {
	b := append(open(h.values), `"`+keyMetadata+`":`...)
	b = h.meta.append(b)
	b = append(b, `,"`+keyVersion+`":`...)
	return append(strconv.AppendInt(b, h.version, 10), '}')
}

func (n *node) append(b []byte) []byte {
	b = append(b, `{"`+keyUpdated+`":"`...)
	b = append(b, formatTime(n.at)...)
	b = append(b, '"')
	if n.version != 0 {
		b = append(b, `,"`+keyUpdatedWith+`":`...)
		b = strconv.AppendInt(b, n.version, 10)
	}
	for _, key := range slices.Sorted(maps.Keys(n.children)) {
		b = append(b, ',')
		b = append(b, encode(key)...)
		b = append(b, ':')
		b = n.children[key].append(b)
	}
	return append(b, '}')
}

func formatTime(t time.Time) string {
	if t.IsZero() {
		return "0001-01-01T00:00:00Z"
	}
	return t.UTC().Format(timeFormat)
}

// stored is how a document is kept.
type stored struct {
	Version  int64           `json:"version"`
	Writes   int64           `json:"writes"`
	Tags     json.RawMessage `json:"tags"`
	Desired  json.RawMessage `json:"desired"`
	Reported json.RawMessage `json:"reported"`
}

// Encode returns the document in the form that Decode reads.
func (d *Document) Encode() []byte {
	return encode(stored{d.version, d.writes, d.Tags(), d.Desired(), d.Reported()})
}

// Decode reads what Encode wrote.
func Decode(text []byte) (*Document, error) {
	var s stored
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, fmt.Errorf("twin: %w", err)
	}
	d := &Document{version: s.Version, writes: s.Writes}
	var err error
	if d.tags, err = read("tags", s.Tags); err != nil {
		return nil, err
	}
	if d.desired, err = decodeHalf("properties.desired", s.Desired); err != nil {
		return nil, err
	}
	d.reported, err = decodeHalf("properties.reported", s.Reported)
	return d, err
}

func decodeHalf(section string, text []byte) (half, error) {
	values, err := read(section, text)
	if err != nil {
		return half{}, err
	}
	h := half{values: values}
	if h.version, err = integer(values[keyVersion]); err != nil {
		return half{}, fmt.Errorf("%s.%s: %w", section, keyVersion, err)
	}
	if h.meta, err = decodeNode(values[keyMetadata]); err != nil {
		return half{}, fmt.Errorf("%s.%s: %w", section, keyMetadata, err)
	}
	delete(values, keyVersion)
	delete(values, keyMetadata)
	return h, nil
}

func decodeNode(value any) (*node, error) {
	fields, ok := value.(object)
	if !ok {
		return nil, errors.New("is no object")
	}
	text, _ := fields[keyUpdated].(string)
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", keyUpdated, err)
	}
	n := &node{stamp: stamp{at: at}, children: make(map[string]*node)}
	for key, value := range fields {
		switch key {
		case keyUpdated:
		case keyUpdatedWith:
			n.version, err = integer(value)
		default:
			n.children[key], err = decodeNode(value)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
	}
	return n, nil
}

func integer(value any) (int64, error) {
	n, ok := value.(json.Number)
	if !ok {
		return 0, errors.New("is no number")
	}
	return n.Int64()
}
