package twin_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/twin"
)

var (
	created = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
	written = time.Date(2024, 2, 3, 4, 5, 6, 789012345, time.UTC)
)

const (
	createdText = "2024-01-01T00:00:00.0000000Z"
	writtenText = "2024-02-03T04:05:06.7890123Z"
)

func patch(t *testing.T, d *twin.Document, tags, desired string) (*twin.Document, string) {
	t.Helper()
	next, notice, err := d.Patch(write(tags, desired), written)
	if err != nil {
		t.Fatal(err)
	}
	return next, string(notice)
}

func write(tags, desired string) twin.Write {
	var w twin.Write
	if tags != "" {
		w.Tags = json.RawMessage(tags)
	}
	if desired != "" {
		w.Desired = json.RawMessage(desired)
	}
	return w
}

func check(t *testing.T, what string, got, want any) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// values returns a section without what the hub adds.
func values(t *testing.T, section json.RawMessage) string {
	t.Helper()
	var fields map[string]any
	if err := json.Unmarshal(section, &fields); err != nil {
		t.Fatal(err)
	}
	delete(fields, "$metadata")
	delete(fields, "$version")
	text, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestNew(t *testing.T) {
	t.Parallel()
	d := twin.New(created)
	check(t, "ETag", d.ETag(), "AAAAAAAAAAE=")
	check(t, "version", d.Version(), 2)
	check(t, "tags", string(d.Tags()), "{}")
	const properties = `{"$metadata":{"$lastUpdated":"` + createdText + `"},"$version":1}`
	check(t, "desired", string(d.Desired()), properties)
	check(t, "reported", string(d.Reported()), properties)
	check(t, "device's view", string(d.DeviceView()), `{"desired":{"$version":1},"reported":{"$version":1}}`)
	check(t, "created never", string(twin.New(time.Time{}).Desired()), `{"$metadata":{"$lastUpdated":"0001-01-01T00:00:00Z"},"$version":1}`)
}

func TestMerge(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ before, patch, after string }{
		"add":                         {`{"a":1}`, `{"b":2}`, `{"a":1,"b":2}`},
		"change":                      {`{"a":1}`, `{"a":"x"}`, `{"a":"x"}`},
		"delete":                      {`{"a":1,"b":2}`, `{"a":null}`, `{"b":2}`},
		"delete what isn't there":     {`{"a":1}`, `{"b":null}`, `{"a":1}`},
		"nothing":                     {`{"a":1}`, `{}`, `{"a":1}`},
		"objects merge":               {`{"a":{"b":1,"c":{"d":1}}}`, `{"a":{"c":{"e":2}}}`, `{"a":{"b":1,"c":{"d":1,"e":2}}}`},
		"delete within":               {`{"a":{"b":1,"c":2}}`, `{"a":{"b":null}}`, `{"a":{"c":2}}`},
		"the last within":             {`{"a":{"b":1}}`, `{"a":{"b":null}}`, `{"a":{}}`},
		"object takes the place":      {`{"a":1}`, `{"a":{"b":1,"c":null}}`, `{"a":{"b":1}}`},
		"value takes the place":       {`{"a":{"b":1}}`, `{"a":false}`, `{"a":false}`},
		"new object without nulls":    {`{}`, `{"a":{"b":{"c":null}}}`, `{"a":{"b":{}}}`},
		"array as a whole":            {`{"a":[1,{"b":2}]}`, `{"a":[{"c":3}]}`, `{"a":[{"c":3}]}`},
		"array in the place":          {`{"a":{"b":1}}`, `{"a":["x",1.5,true,[],{}]}`, `{"a":["x",1.5,true,[],{}]}`},
		"object in place of array":    {`{"a":[1]}`, `{"a":{"b":1}}`, `{"a":{"b":1}}`},
		"what the hub added":          {`{"a":1}`, `{"b":2,"$version":77,"$metadata":{"a":{"$lastUpdated":"x"}}}`, `{"a":1,"b":2}`},
		"keys differ by case":         {`{"a":1}`, `{"A":2}`, `{"A":2,"a":1}`},
		"numbers stay as they are":    {`{}`, `{"a":4503599627370495,"b":-4503599627370496,"c":1.0,"d":1e3,"e":-0.5}`, `{"a":4503599627370495,"b":-4503599627370496,"c":1.0,"d":1e3,"e":-0.5}`},
		"characters stay as they are": {`{}`, `{"a":"<&>ä\u0041\n"}`, `{"a":"<&>äA\n"}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			before, _ := patch(t, twin.New(created), tc.before, tc.before)
			report := func(d *twin.Document, text string) *twin.Document {
				next, err := d.Report([]byte(text), written)
				if err != nil {
					t.Fatal(err)
				}
				return next
			}
			beforeReport := report(before, tc.before)
			after, _ := patch(t, before, tc.patch, tc.patch)
			check(t, "tags", string(after.Tags()), tc.after)
			view := fmt.Sprintf(`{"desired":%s,"$version":3},"reported"`, strings.TrimSuffix(tc.after, "}"))
			if tc.after == "{}" {
				view = `{"desired":{"$version":3}`
			}
			if got := string(after.DeviceView()); !strings.HasPrefix(got, view) {
				t.Errorf("desired: got %s, want %s", got, view)
			}
			if !strings.Contains(tc.patch, "$") {
				check(t, "reported", strings.Contains(string(report(beforeReport, tc.patch).DeviceView()), `"reported":`+strings.TrimSuffix(tc.after, "}")), true)
			}
			// What was there has not changed.
			check(t, "tags before", string(before.Tags()), tc.before)
		})
	}
}

func TestReplace(t *testing.T) {
	t.Parallel()
	before, _ := patch(t, twin.New(created), `{"a":1}`, `{"a":{"b":1,"c":2}}`)
	after, notice, err := before.Replace(write("", `{"a":{"c":3,"d":null},"e":null,"$version":1}`), written)
	if err != nil {
		t.Fatal(err)
	}
	check(t, "desired", values(t, after.Desired()), `{"a":{"c":3}}`)
	check(t, "notice", string(notice), `{"a":{"c":3},"$version":3}`)
	check(t, "tags", string(after.Tags()), `{"a":1}`)
	after, notice, err = after.Replace(write(`{"b":2}`, ""), written)
	if err != nil {
		t.Fatal(err)
	}
	check(t, "tags replaced", string(after.Tags()), `{"b":2}`)
	check(t, "desired left alone", values(t, after.Desired()), `{"a":{"c":3}}`)
	check(t, "no notice", notice == nil, true)
	after, notice, err = after.Replace(write(`{}`, `{}`), written)
	check(t, "error", err, nil)
	check(t, "all gone", string(after.Tags())+values(t, after.Desired())+string(notice), `{}{}{"$version":4}`)
}

func TestVersions(t *testing.T) {
	t.Parallel()
	d := twin.New(created)
	state := func(d *twin.Document) string {
		return fmt.Sprintf("%s %d %d %d", d.ETag(), d.Version(), d.DesiredVersion(), d.ReportedVersion())
	}
	for _, step := range []struct{ tags, desired, reported, want, notice string }{
		{tags: `{"a":1}`, want: "AAAAAAAAAAI= 3 1 1"},
		{desired: `{"a":{"b":null}}`, want: "AAAAAAAAAAM= 4 2 1", notice: `{"a":{"b":null},"$version":2}`},
		{reported: `{"a":1}`, want: "AAAAAAAAAAM= 5 2 2"},
		{tags: `{"a":1}`, desired: `{"a":1,"$version":1,"$metadata":{}}`, want: "AAAAAAAAAAQ= 6 3 2", notice: `{"a":1,"$version":3}`},
		{desired: `{}`, want: "AAAAAAAAAAU= 7 4 2", notice: `{"$version":4}`},
		{tags: `null`, desired: `null`, want: "AAAAAAAAAAU= 7 4 2"},
		{want: "AAAAAAAAAAU= 7 4 2"},
		{reported: `{}`, want: "AAAAAAAAAAU= 8 4 3"},
	} {
		var notice string
		if step.reported != "" {
			next, err := d.Report([]byte(step.reported), written)
			if err != nil {
				t.Fatal(err)
			}
			d = next
		} else {
			d, notice = patch(t, d, step.tags, step.desired)
		}
		check(t, fmt.Sprintf("%+v", step), state(d), step.want)
		check(t, "notice", notice, step.notice)
	}
}

func TestMetadata(t *testing.T) {
	t.Parallel()
	d, _ := patch(t, twin.New(created), "", `{"a":{"b":1,"c":[1]},"d":2}`)
	d, _, err := d.Patch(write("", `{"a":{"b":null,"e":"x"}}`), written.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	const later = "2024-02-03T05:05:06.7890123Z"
	node := func(at string, version int, children string) string {
		return fmt.Sprintf(`{"$lastUpdated":"%s","$lastUpdatedVersion":%d%s}`, at, version, children)
	}
	check(t, "desired", string(d.Desired()),
		`{"a":{"c":[1],"e":"x"},"d":2,"$metadata":`+
			node(later, 3, `,"a":`+node(later, 3, `,"c":`+node(writtenText, 2, "")+`,"e":`+node(later, 3, ""))+`,"d":`+node(writtenText, 2, ""))+
			`,"$version":3}`)
	d, err = d.Report([]byte(`{"a":{"b":1}}`), written)
	if err != nil {
		t.Fatal(err)
	}
	const at = `{"$lastUpdated":"` + writtenText + `"`
	check(t, "reported", string(d.Reported()), `{"a":{"b":1},"$metadata":`+at+`,"a":`+at+`,"b":`+at+`}}},"$version":2}`)
	d, _, err = d.Replace(write("", `{"d":2}`), written)
	check(t, "error", err, nil)
	check(t, "replaced", string(d.Desired()), `{"d":2,"$metadata":`+node(writtenText, 4, `,"d":`+node(writtenText, 4, ""))+`,"$version":4}`)
}

// nested returns n objects, one in the other, with a value in the last.
func nested(n int, value string) string {
	return strings.Repeat(`{"a":`, n) + value + strings.Repeat("}", n)
}

// properties returns an object of n keys with four characters and strings of
// size bytes.
func properties(n, size int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,"%04d":"%s"`, i, strings.Repeat("x", size))
	}
	return "{" + b.String()[1:] + "}"
}

func TestLimits(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ text, want string }{
		"key of 1 KB":                   {`{"` + strings.Repeat("k", 1024) + `":1}`, ""},
		"longer key":                    {`{"` + strings.Repeat("k", 1025) + `":1}`, "S." + strings.Repeat("k", 64) + "…: name has 1025 bytes of at most 1024"},
		"other characters":              {`{"ä-_/:()#"[0:1]}`, "S: is no JSON: invalid character '[' after object key"},
		"unusual key":                   {`{"ä-_/:()@ ,;'\"\\":1}`, `S: name "ä-_/:()@ ,;'\"\\" has ' ': names can't have control characters, spaces, '.', '$' or '#'`},
		"usual key":                     {`{"ä-_/:()@,;'\"\\":1}`, ""},
		"empty key":                     {`{"":1}`, ""},
		"dot":                           {`{"a":{"b.c":1}}`, `S.a: name "b.c" has '.': names can't have control characters, spaces, '.', '$' or '#'`},
		"dollar":                        {`{"a":{"$version":1}}`, `S.a: name "$version" has '$': names can't have control characters, spaces, '.', '$' or '#'`},
		"number sign":                   {`{"m2(<#a":1}`, `S: name "m2(<#a" has '#': names can't have control characters, spaces, '.', '$' or '#'`},
		"control character":             {`{"a\u0001":1}`, `S: name "\"a\\x01\"" has '\x01': names can't have control characters, spaces, '.', '$' or '#'`},
		"control character C1":          {`{"a\u0085":1}`, `S: name "\"a\\u0085\"" has '\u0085': names can't have control characters, spaces, '.', '$' or '#'`},
		"in an object in an array":      {`{"a":[0,{"b c":1}]}`, `S.a[1]: name "b c" has ' ': names can't have control characters, spaces, '.', '$' or '#'`},
		"string of 4 KB":                {`{"a":"` + strings.Repeat("ä", 2048) + `"}`, ""},
		"longer string":                 {`{"a":{"b":"` + strings.Repeat("x", 4097) + `"}}`, "S.a.b: string has 4097 bytes of at most 4096"},
		"string in an array":            {`{"a":["` + strings.Repeat("x", 4097) + `"]}`, "S.a[0]: string has 4097 bytes of at most 4096"},
		"greatest integer":              {`{"a":4503599627370495}`, ""},
		"too great":                     {`{"a":4503599627370496}`, "S.a: integer is not between -4503599627370496 and 4503599627370495"},
		"least integer":                 {`{"a":-4503599627370496}`, ""},
		"too small":                     {`{"a":[-4503599627370497]}`, "S.a[0]: integer is not between -4503599627370496 and 4503599627370495"},
		"far too great":                 {`{"a":` + strings.Repeat("9", 400) + `}`, "S.a: integer is not between -4503599627370496 and 4503599627370495"},
		"great float":                   {`{"a":1e300}`, ""},
		"too great a float":             {`{"a":1e400}`, "S.a: number is too large"},
		"ten levels":                    {nested(11, "1"), ""},
		"eleven levels":                 {nested(12, "1"), "S" + strings.Repeat(".a", 11) + ": is deeper than 10 levels"},
		"ten levels of arrays":          {`{"a":` + strings.Repeat("[", 10) + strings.Repeat("]", 10) + "}", ""},
		"eleven of arrays":              {`{"a":` + strings.Repeat("[", 11) + strings.Repeat("]", 11) + "}", "S.a" + strings.Repeat("[0]", 10) + ": is deeper than 10 levels"},
		"null in an array":              {`{"a":[1,null]}`, "S.a[1]: is null, which can't be in an array"},
		"null in an object in an array": {`{"a":[{"b":null}]}`, "S.a[0].b: is null, which can't be in an array"},
		"array":                         {`[]`, "S: must be an object"},
		"string":                        {`"a"`, "S: must be an object"},
		"no JSON":                       {`{"a":}`, "S: is no JSON: invalid character '}' looking for beginning of value"},
		"cut":                           {`{"a":1`, "S: is no JSON: unexpected EOF"},
		"two documents":                 {`{} {}`, "S: is no JSON: more follows the end of the document"},
		"white space":                   {" \n{ } \t", ""},
		"very long text":                {"{}" + strings.Repeat(" ", 512<<10), "S: has 524290 bytes of JSON of at most 524288"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := twin.New(created)
			_, _, tagsErr := d.Patch(write(tc.text, ""), written)
			_, _, desiredErr := d.Patch(write("", tc.text), written)
			_, _, replaceErr := d.Replace(write("", tc.text), written)
			_, reportedErr := d.Report([]byte(tc.text), written)
			for section, err := range map[string]error{"tags": tagsErr, "properties.desired": desiredErr, "properties.reported": reportedErr} {
				want := ""
				if tc.want != "" {
					want = section + strings.TrimPrefix(tc.want, "S")
				}
				checkError(t, err, want)
			}
			check(t, "replacing", replaceErr, desiredErr)
		})
	}
	_, err := twin.New(created).Report([]byte(`{"$version":1}`), written)
	checkError(t, err, `properties.reported: name "$version" has '$': names can't have control characters, spaces, '.', '$' or '#'`)
	_, err = twin.New(created).Report([]byte(`null`), written)
	checkError(t, err, "properties.reported: must be an object")
	_, err = twin.New(created).Report(nil, written)
	checkError(t, err, "properties.reported: is no JSON: EOF")
}

func checkError(t *testing.T, err error, want string) {
	t.Helper()
	if want == "" {
		check(t, "error", err, nil)
		return
	}
	var e *twin.Error
	if !errors.As(err, &e) || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
		return
	}
	check(t, "format", errors.Is(err, twin.ErrFormat), strings.Contains(want, "no JSON"))
	check(t, "limit", errors.Is(err, twin.ErrLimit), !strings.Contains(want, "no JSON"))
}

func TestSizes(t *testing.T) {
	t.Parallel()
	d := twin.New(created)
	for name, tc := range map[string]struct {
		text string
		size int
	}{
		"keys and strings":   {properties(8, 1020), 8 << 10},
		"numbers and bools":  {`{"12":1,"34":true,"5":{"6":1.5}}`, 2 + 8 + 2 + 4 + 1 + 1 + 8},
		"control characters": {`{"a":"x\n\t\u0085y"}`, 3},
		"arrays":             {`{"a":[1,true,"xyz",{"b":1},"",{},[]]}`, 1 + 8 + 4 + 3 + 9 + 1 + 1 + 1},
		"more than one byte": {`{"ä":"€"}`, 2 + 3},
	} {
		// Fill up to the limit with one more property, and to one byte beyond.
		for _, beyond := range []int{0, 1} {
			fill := func(limit int) string {
				var b strings.Builder
				b.WriteString(strings.TrimSuffix(tc.text, "}"))
				left := limit - tc.size + beyond
				for i := 0; left > 0; i++ {
					n := min(left, 4000)
					if left-n > 0 && left-n < 4 {
						n -= 4
					}
					if n < 4 {
						fmt.Fprintf(&b, `,"%s":""`, strings.Repeat("z", n))
					} else {
						fmt.Fprintf(&b, `,"%04d":"%s"`, 9000+i, strings.Repeat("x", n-4))
					}
					left -= n
				}
				return b.String() + "}"
			}
			_, _, tags := d.Patch(write(fill(8<<10), ""), written)
			_, _, desired := d.Patch(write("", fill(32<<10)), written)
			_, reported := d.Report([]byte(fill(32<<10)), written)
			for section, err := range map[string]error{"tags: has 8193 bytes of at most 8192": tags, "properties.desired: has 32769 bytes of at most 32768": desired, "properties.reported: has 32769 bytes of at most 32768": reported} {
				if beyond == 0 {
					section = ""
				}
				t.Run(fmt.Sprintf("%s+%d", name, beyond), func(t *testing.T) { checkError(t, err, section) })
			}
		}
	}
	// A full twin takes no more, but can be changed and made smaller.
	full, err := d.Report([]byte(properties(8, 4092)), written)
	if err != nil {
		t.Fatal(err)
	}
	_, err = full.Report([]byte(`{"a":true}`), written)
	checkError(t, err, "properties.reported: has 32773 bytes of at most 32768")
	_, err = full.Report([]byte(`{"0000":null,"a":true}`), written)
	check(t, "making room", err, nil)
}

func TestLongNumbers(t *testing.T) {
	t.Parallel()
	d, _ := patch(t, twin.New(created), `{"a":0.`+strings.Repeat("3", 5000)+`,"b":[1.`+strings.Repeat("0", 100)+`]}`, "")
	check(t, "tags", string(d.Tags()), `{"a":0.3333333333333333,"b":[1]}`)
}

func TestEncode(t *testing.T) {
	t.Parallel()
	d, _ := patch(t, twin.New(created), `{"a":{"b":"<>"},"n":4503599627370495}`, `{"x":{"y":[1,{"z":1.50}]}}`)
	d, err := d.Report([]byte(`{"r":{"s":true}}`), written)
	if err != nil {
		t.Fatal(err)
	}
	for name, d := range map[string]*twin.Document{"written": d, "new": twin.New(created), "never": twin.New(time.Time{})} {
		text := d.Encode()
		again, err := twin.Decode(text)
		if err != nil {
			t.Fatal(err)
		}
		check(t, name, string(again.Encode()), string(text))
		check(t, "ETag of "+name, again.ETag(), d.ETag())
		check(t, "view of "+name, string(again.DeviceView()), string(d.DeviceView()))
	}
	again, err := twin.Decode(d.Encode())
	check(t, "error", err, nil)
	next, _ := patch(t, again, "", `{"x":{"w":1}}`)
	want, _ := patch(t, d, "", `{"x":{"w":1}}`)
	check(t, "goes on as it was", string(next.Encode()), string(want.Encode()))
	for _, text := range []string{
		``, `{}`, `[]`, `{"tags":{}}`, `{"tags":{},"desired":{},"reported":{}}`,
		`{"tags":{},"desired":{"$version":1},"reported":{}}`,
		`{"tags":{},"desired":{"$version":"1","$metadata":{"$lastUpdated":"2024-01-01T00:00:00Z"}},"reported":{}}`,
		`{"tags":{},"desired":{"$version":1,"$metadata":{"$lastUpdated":"then"}},"reported":{}}`,
		`{"tags":{},"desired":{"$version":1,"$metadata":{"$lastUpdated":"2024-01-01T00:00:00Z","a":1}},"reported":{}}`,
	} {
		if _, err := twin.Decode([]byte(text)); err == nil {
			t.Errorf("%s was decoded", text)
		}
	}
}

func TestLookup(t *testing.T) {
	t.Parallel()
	d, _ := patch(t, twin.New(created), `{"a":{"b":"x"},"n":7}`, `{"d":{"e":[1,2]}}`)
	d, err := d.Report([]byte(`{"r":false}`), written)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		section twin.Section
		path    string
		want    string // JSON; empty for none
	}{
		{twin.Tags, "", `{"a":{"b":"x"},"n":7}`},
		{twin.Tags, "a", `{"b":"x"}`},
		{twin.Tags, "a.b", `"x"`},
		{twin.Tags, "a.b.c", ""},
		{twin.Tags, "n", `7`},
		{twin.Tags, "A", ""},
		{twin.Tags, "$version", ""},
		{twin.Desired, "d.e", `[1,2]`},
		{twin.Desired, "d.e.f", ""},
		{twin.Desired, "$version", `2`},
		{twin.Desired, "$version.x", ""},
		{twin.Desired, "$metadata.$lastUpdated", `"` + writtenText + `"`},
		{twin.Desired, "$metadata.$lastUpdatedVersion", `2`},
		{twin.Desired, "$metadata.d.e", `{"$lastUpdated":"` + writtenText + `","$lastUpdatedVersion":2}`},
		{twin.Desired, "$metadata.d.e.$lastUpdated", `"` + writtenText + `"`},
		{twin.Desired, "$metadata.d.e.$lastUpdated.x", ""},
		{twin.Desired, "$metadata.none", ""},
		{twin.Reported, "r", `false`},
		{twin.Reported, "$version", `2`},
		{twin.Reported, "$metadata.$lastUpdatedVersion", ""},
		{twin.Reported, "", string(d.Reported())},
	} {
		var keys []string
		if tc.path != "" {
			keys = strings.Split(tc.path, ".")
		}
		value, ok := d.Lookup(tc.section, keys)
		text, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			text = nil
		}
		check(t, fmt.Sprint(tc.section, " ", tc.path), string(text), tc.want)
	}
}

// TestSharing checks that a write changes no document but the one that it makes,
// whatever both share.
func TestSharing(t *testing.T) {
	t.Parallel()
	first, _ := patch(t, twin.New(created), `{"a":{"b":{"c":1}}}`, `{"a":{"b":{"c":1}},"k":1}`)
	before := string(first.Encode())
	second, _ := patch(t, first, `{"a":{"b":{"c":2,"d":1}}}`, `{"a":{"b":{"c":null}},"k":null}`)
	third, _, err := first.Replace(write(`{"z":1}`, `{"z":1}`), written)
	check(t, "error", err, nil)
	check(t, "first", string(first.Encode()), before)
	check(t, "second", string(second.Tags()), `{"a":{"b":{"c":2,"d":1}}}`)
	check(t, "third", string(third.Tags()), `{"z":1}`)
}

func FuzzPatch(f *testing.F) {
	for _, seed := range []string{`{"a":{"b":null,"c":[1,{"d":"x"}]},"e":1.5e3}`, `{"$version":1}`, `[`, `{"a":` + strings.Repeat("[", 30)} {
		f.Add(seed, seed)
	}
	f.Fuzz(func(t *testing.T, first, second string) {
		d := twin.New(created)
		for _, text := range []string{first, second} {
			next, err := d.Report([]byte(text), written)
			if err != nil {
				var e *twin.Error
				if !errors.As(err, &e) || strings.Contains(err.Error(), "\n") {
					t.Fatalf("%q", err)
				}
				continue
			}
			d = next
		}
		again, err := twin.Decode(d.Encode())
		if err != nil {
			t.Fatal(err)
		}
		if string(again.Encode()) != string(d.Encode()) {
			t.Fatalf("got %s, want %s", again.Encode(), d.Encode())
		}
		if !json.Valid(d.DeviceView()) {
			t.Fatalf("%s", d.DeviceView())
		}
	})
}

func ExampleDocument_Patch() {
	d := twin.New(time.Time{})
	_, _, err := d.Patch(twin.Write{Tags: []byte(`{"location":{"post code":1}}`)}, time.Now())
	fmt.Println(err)
	// Output: tags.location: name "post code" has ' ': names can't have control characters, spaces, '.', '$' or '#'
}
