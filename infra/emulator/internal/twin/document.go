// Package twin is the document that a hub keeps beside each identity: tags and
// desired properties, which the service side writes, and reported properties,
// which the device writes (IoT Hub docs: "Understand and use device twins in IoT
// Hub"). It knows how writes merge, what they may not contain, and the versions
// and times that the hub adds; it knows no store and no clock.
package twin

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"time"
)

// Document is one state of a twin. It never changes: a write returns another
// one, which shares with it what the write left alone. So it can be read without
// a lock.
type Document struct {
	version  int64
	writes   int64 // of tags or desired properties; the ETag
	tags     object
	desired  half
	reported half
}

// half is desired or reported properties.
type half struct {
	values  object
	meta    *node
	version int64
}

// object is a JSON object. Its values are string, bool, json.Number, nil,
// []any and object.
type object = map[string]any

// New returns the twin of an identity that was just created.
func New(created time.Time) *Document {
	fresh := func() half {
		return half{values: object{}, meta: &node{stamp: stamp{at: created}}, version: 1}
	}
	return &Document{version: 2, writes: 1, tags: object{}, desired: fresh(), reported: fresh()}
}

// ETag names the state of tags and desired properties; without quotes.
func (d *Document) ETag() string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint64(nil, uint64(d.writes)))
}

// Version counts the writes of either side.
func (d *Document) Version() int64 { return d.version }

// DesiredVersion is $version of the desired properties.
func (d *Document) DesiredVersion() int64 { return d.desired.version }

// ReportedVersion is $version of the reported properties.
func (d *Document) ReportedVersion() int64 { return d.reported.version }

// Write is what the service side writes. A part that is nil, or null, stays as it
// is: replacing tags and replacing desired properties are operations of their own
// (IoT Hub docs, as above: "Back-end operations").
type Write struct {
	Tags    json.RawMessage
	Desired json.RawMessage
}

// Patch merges a write: null deletes, an object merges with an object, and
// anything else replaces what was there. It returns the twin after it, and what
// devices are told of the desired properties: the patch with $version, or nil
// if it has none. An error is an *Error.
func (d *Document) Patch(w Write, now time.Time) (*Document, []byte, error) {
	return d.write(w, now, false)
}

// Replace is Patch that leaves nothing of the parts that it writes. Devices are
// told all desired properties.
func (d *Document) Replace(w Write, now time.Time) (*Document, []byte, error) {
	return d.write(w, now, true)
}

func (d *Document) write(w Write, now time.Time, replace bool) (*Document, []byte, error) {
	tags, err := readSection("tags", w.Tags)
	if err != nil {
		return nil, nil, err
	}
	desired, err := readSection("properties.desired", w.Desired)
	if err != nil || tags == nil && desired == nil {
		return d, nil, err
	}
	next := *d
	next.version++
	next.writes++
	if tags != nil {
		if next.tags, err = writeTags(d.tags, tags, replace); err != nil {
			return nil, nil, err
		}
	}
	var notice []byte
	if desired != nil {
		if next.desired, err = d.desired.write("properties.desired", desired, stamp{now, d.desired.version + 1}, replace); err != nil {
			return nil, nil, err
		}
		if replace {
			desired = next.desired.values
		}
		notice = withVersion(desired, next.desired.version)
	}
	return &next, notice, nil
}

// Report merges a patch into the reported properties. An error is an *Error.
func (d *Document) Report(patch []byte, now time.Time) (*Document, error) {
	const section = "properties.reported"
	values, err := read(section, patch)
	if err != nil {
		return nil, err
	}
	if err := check(section, values); err != nil {
		return nil, err
	}
	next := *d
	next.version++
	// Metadata of reported properties has times only.
	next.reported, err = d.reported.write(section, values, stamp{at: now}, false)
	if err != nil {
		return nil, err
	}
	return &next, nil
}

func (h half) write(section string, patch object, s stamp, replace bool) (half, error) {
	before := h
	if replace {
		before = half{}
	}
	values, meta := merge(before.values, before.meta, patch, s)
	if err := checkSize(section, maxPropertiesSize, values); err != nil {
		return half{}, err
	}
	return half{values: values, meta: meta, version: h.version + 1}, nil
}

func writeTags(tags, patch object, replace bool) (object, error) {
	before := tags
	if replace {
		before = nil
	}
	values, _ := merge(before, nil, patch, stamp{})
	return values, checkSize("tags", maxTagsSize, values)
}

// readSection decodes a part that the service side writes. SDKs send whole twins
// back, so what the hub itself put into it is no part of the write.
func readSection(section string, text json.RawMessage) (object, error) {
	if len(text) == 0 || string(text) == "null" {
		return nil, nil
	}
	values, err := read(section, text)
	if err != nil {
		return nil, err
	}
	delete(values, keyMetadata)
	delete(values, keyVersion)
	return values, check(section, values)
}
