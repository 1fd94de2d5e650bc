package fault

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// duration is a time.Duration that is written as text, such as 10s.
type duration time.Duration

// MarshalText implements encoding.TextMarshaler.
func (d duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is no duration such as 500ms or 10s", text)
	}
	*d = duration(v)
	return nil
}

// wire is a Fault as it is written, in JSON and in the text of Parse, which have
// the same names.
type wire struct {
	Kind        Kind     `json:"kind"`
	Protocol    string   `json:"protocol,omitempty"`
	Device      string   `json:"device,omitempty"`
	Operation   string   `json:"operation,omitempty"`
	Entity      string   `json:"entity,omitempty"`
	After       duration `json:"after,omitzero"`
	Bytes       int64    `json:"bytes,omitempty"`
	Duration    duration `json:"duration,omitzero"`
	Count       int      `json:"count,omitempty"`
	Probability float64  `json:"probability,omitempty"`
	Seed        uint64   `json:"seed,omitempty"`
	Latency     duration `json:"latency,omitzero"`
	Jitter      duration `json:"jitter,omitzero"`
	Code        int      `json:"code,omitempty"`
	RetryAfter  duration `json:"retryAfter,omitzero"`
}

func (w *wire) fault() Fault {
	return Fault{
		Kind: w.Kind, Protocol: w.Protocol, Device: w.Device, Operation: w.Operation, Entity: w.Entity,
		After: time.Duration(w.After), Bytes: w.Bytes, Duration: time.Duration(w.Duration),
		Count: w.Count, Probability: w.Probability, Seed: w.Seed,
		Latency: time.Duration(w.Latency), Jitter: time.Duration(w.Jitter),
		Code: w.Code, RetryAfter: time.Duration(w.RetryAfter),
	}
}

func wireOf(f Fault) wire {
	return wire{
		Kind: f.Kind, Protocol: f.Protocol, Device: f.Device, Operation: f.Operation, Entity: f.Entity,
		After: duration(f.After), Bytes: f.Bytes, Duration: duration(f.Duration),
		Count: f.Count, Probability: f.Probability, Seed: f.Seed,
		Latency: duration(f.Latency), Jitter: duration(f.Jitter),
		Code: f.Code, RetryAfter: duration(f.RetryAfter),
	}
}

// MarshalJSON writes durations as text, such as "10s".
func (f Fault) MarshalJSON() ([]byte, error) { return json.Marshal(wireOf(f)) }

// UnmarshalJSON is the reverse of MarshalJSON. Names that it doesn't know are an
// error.
func (f *Fault) UnmarshalJSON(data []byte) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	var w wire
	if err := d.Decode(&w); err != nil {
		return invalid("%s", plain(err))
	}
	*f = w.fault()
	return nil
}

// plain is an error of encoding/json without the names of Go types.
func plain(err error) string {
	var wrong *json.UnmarshalTypeError
	if !errors.As(err, &wrong) {
		return strings.TrimPrefix(err.Error(), "json: ")
	}
	if wrong.Field == "" {
		return "it is a JSON " + wrong.Value + ` and must be an object such as {"kind": "cut"}`
	}
	want := "a text"
	switch wrong.Type {
	case reflect.TypeFor[duration]():
		want = `a text such as "500ms" or "10s"`
	case reflect.TypeFor[int](), reflect.TypeFor[int64](), reflect.TypeFor[uint64]():
		want = "a whole number"
	case reflect.TypeFor[float64]():
		want = "a number"
	}
	return wrong.Field + " is a JSON " + wrong.Value + " and must be " + want
}

// settings are the fields by the names that Parse takes.
func (w *wire) settings() map[string]any {
	return map[string]any{
		"protocol": &w.Protocol, "device": &w.Device, "operation": &w.Operation, "entity": &w.Entity,
		"after": &w.After, "bytes": &w.Bytes, "duration": &w.Duration,
		"count": &w.Count, "probability": &w.Probability, "seed": &w.Seed,
		"latency": &w.Latency, "jitter": &w.Jitter,
		"code": &w.Code, "retryAfter": &w.RetryAfter,
	}
}

// Parse reads a fault as people write it: its kind and then settings, all
// separated by commas, such as
//
//	cut,protocol=mqtt,device=sensor-*,after=10s
//
// The names are those of JSON. A value can't have a comma.
func Parse(text string) (Fault, error) {
	kind, rest, more := strings.Cut(text, ",")
	w := wire{Kind: Kind(kind)}
	settings := w.settings()
	for more {
		var part string
		part, rest, more = strings.Cut(rest, ",")
		name, value, ok := strings.Cut(part, "=")
		field, known := settings[name]
		switch {
		case !ok:
			return Fault{}, invalid("%q is no setting such as after=10s", part)
		case !known:
			return Fault{}, invalid("%q is no setting of a fault, or is there twice", name)
		}
		delete(settings, name)
		if err := set(field, value); err != nil {
			return Fault{}, invalid("%s: %v", name, err)
		}
	}
	f := w.fault()
	return f, f.Check()
}

// set reads a value into a field of wire.
func set(field any, value string) error {
	var err error
	switch field := field.(type) {
	case *string:
		*field = value
	case *duration:
		return field.UnmarshalText([]byte(value))
	case *int:
		*field, err = strconv.Atoi(value)
	case *int64:
		*field, err = strconv.ParseInt(value, 10, 64)
	case *uint64:
		*field, err = strconv.ParseUint(value, 10, 64)
	case *float64:
		*field, err = strconv.ParseFloat(value, 64)
	}
	if err != nil {
		return fmt.Errorf("%q is no such number", value)
	}
	return nil
}
