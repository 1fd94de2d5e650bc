package amqp_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
)

// form writes a value with its type, as testdata/values.txt does.
func form(v any) string {
	switch v := v.(type) {
	case nil:
		return "nil"
	case string:
		return fmt.Sprintf("string %q", v)
	case amqp.Symbol:
		return fmt.Sprintf("symbol %q", string(v))
	case []byte:
		return strings.TrimSpace(fmt.Sprintf("binary %x", v))
	case amqp.UUID:
		return "uuid " + v.String()
	case time.Time:
		return "time " + v.Format(time.RFC3339Nano)
	case amqp.Described:
		return "described " + form(v.Descriptor) + " " + form(v.Value)
	case []any:
		return "list [" + join(slices.Values(v), form) + "]"
	case map[string]any:
		keys := slices.Values(slices.Sorted(maps.Keys(v)))
		return "map {" + join(keys, func(k string) string { return fmt.Sprintf("%q: %s", k, form(v[k])) }) + "}"
	case map[any]any:
		return "anymap {" + join(maps.Keys(v), func(k any) string { return form(k) + ": " + form(v[k]) }) + "}"
	}
	return fmt.Sprintf("%T %v", v, v)
}

func join[T any](seq func(func(T) bool), f func(T) string) string {
	var parts []string
	for v := range seq {
		parts = append(parts, f(v))
	}
	return strings.Join(parts, ", ")
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatalf("%q: %v", s, err)
	}
	return b
}

// vector is one line of testdata/values.txt.
type vector struct {
	bytes    []byte
	form     string
	bothWays bool
}

func vectors(t testing.TB) []vector {
	t.Helper()
	text, err := os.ReadFile("testdata/values.txt")
	if err != nil {
		t.Fatal(err)
	}
	var list []vector
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		i := strings.IndexAny(line, "=>")
		list = append(list, vector{unhex(t, line[:i]), strings.TrimSpace(line[i+1:]), line[i] == '='})
	}
	return list
}

func TestValueVectors(t *testing.T) {
	t.Parallel()
	for _, v := range vectors(t) {
		t.Run(fmt.Sprintf("%x", v.bytes), func(t *testing.T) {
			t.Parallel()
			got, rest, err := amqp.DecodeValue(append(v.bytes, 0xee))
			if err != nil {
				t.Fatal(err)
			}
			if form(got) != v.form || len(rest) != 1 {
				t.Errorf("decoded %s, %d bytes left; want %s", form(got), len(rest), v.form)
			}
			again, err := amqp.AppendValue([]byte{0xdd}, got)
			if err != nil {
				t.Fatal(err)
			}
			if v.bothWays && !bytes.Equal(again[1:], v.bytes) {
				t.Errorf("encoded %x, want %x", again[1:], v.bytes)
			}
		})
	}
}

func TestLongValuesUseWideForms(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 256)
	list := make([]any, 256)
	for name, tt := range map[string]struct {
		value  any
		prefix string
	}{
		"string": {long, "b1 00000100 61"},
		"symbol": {amqp.Symbol(long), "b3 00000100 61"},
		"binary": {[]byte(long), "b0 00000100 61"},
		"list":   {list, "d0 00000104 00000100 40"},
		"map":    {map[string]any{"k": long}, "d1 0000010c 00000002 a1 01 6b b1"},
		"array":  {make([]int64, 32), "f0 00000105 00000020 81"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, err := amqp.AppendValue(nil, tt.value)
			if err != nil {
				t.Fatal(err)
			}
			if want := unhex(t, tt.prefix); !bytes.HasPrefix(b, want) {
				t.Errorf("encoded %x..., want %x...", b[:len(want)], want)
			}
			got, _, err := amqp.DecodeValue(b)
			if err != nil || form(got) != form(tt.value) {
				t.Errorf("decoded %.60s, error %v", form(got), err)
			}
		})
	}
}

func TestMalformedValues(t *testing.T) {
	t.Parallel()
	for name, b := range map[string]string{
		"nothing":                    "",
		"unknown code":               "99",
		"char":                       "73 00 00 00 61",
		"decimal":                    "74 00 00 00 00",
		"cut integer":                "70 00 00",
		"cut string":                 "a1 05 61",
		"string size beyond input":   "b1 ff ff ff ff 61",
		"invalid UTF-8":              "a1 01 ff",
		"list size beyond input":     "c0 09 01 40",
		"list without count":         "c0 00",
		"list with too few elements": "c0 02 02 40",
		"list with bytes left over":  "c0 03 01 40 40",
		"huge list count":            "d0 00 00 00 05 ff ff ff ff 40",
		"map with odd count":         "c1 02 01 40",
		"map with binary key":        "c1 04 02 a0 00 40",
		"map with list key":          "c1 03 02 45 40",
		"map with described key":     "c1 06 02 00 53 01 45 40",
		"huge array of nothing":      "f0 00 00 00 05 ff ff ff ff 41",
		"array of null":              "e0 02 01 40",
		"array of arrays":            "e0 04 01 e0 01 00",
		"array without constructor":  "e0 01 00",
		"descriptor without value":   "00 53 01",
		"deep lists":                 strings.Repeat("c0 fa 01", 80) + "40",
		"deep descriptors":           strings.Repeat("00", 200),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v, _, err := amqp.DecodeValue(unhex(t, b))
			if !errors.Is(err, amqp.ErrMalformed) {
				t.Errorf("decoded %v, error %v", v, err)
			}
		})
	}
}

func TestUnencodableValues(t *testing.T) {
	t.Parallel()
	for _, v := range []any{
		struct{}{}, make(chan int), "\xff", amqp.Symbol("\xff"), map[string]any{"k": struct{}{}},
		[]any{"\xff"}, []string{"\xff"}, map[string]any{"\xff": 1}, amqp.Described{Descriptor: struct{}{}},
	} {
		if b, err := amqp.AppendValue(nil, v); !errors.Is(err, amqp.ErrUnencodable) {
			t.Errorf("%T: encoded %x, error %v", v, b, err)
		}
	}
}

func TestMapsHaveOneEncoding(t *testing.T) {
	t.Parallel()
	m := map[string]any{}
	for i := range 50 {
		m[fmt.Sprint(i)] = i
	}
	first, err := amqp.AppendValue(nil, m)
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if again, _ := amqp.AppendValue(nil, m); !bytes.Equal(first, again) {
			t.Fatal("two encodings of one map differ")
		}
	}
}
