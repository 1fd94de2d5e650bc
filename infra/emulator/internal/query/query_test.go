package query_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/query"
)

// document is a query.Document made of JSON.
type document map[string]any

func (d document) Lookup(path []string) (any, bool) {
	var value any = map[string]any(d)
	for _, name := range path {
		inner, ok := value.(map[string]any)
		if !ok {
			return nil, false
		}
		if value, ok = inner[name]; !ok {
			return nil, false
		}
	}
	return value, true
}

func parseDocument(t testing.TB, text string) document {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	var doc document
	if err := d.Decode(&doc); err != nil {
		t.Fatal(err)
	}
	return doc
}

const example = `{
	"deviceId": "myDeviceId", "status": "enabled", "statusReason": null, "connectionState": "Disconnected",
	"lastActivityTime": "2021-05-07T00:50:38.0543092Z", "cloudToDeviceMessageCount": 3,
	"capabilities": {"iotEdge": true},
	"tags": {
		"location": {"region": "US", "plant": "Redmond43"}, "floor": 7, "load": 0.5, "big": 4503599627370495,
		"spare": false, "rooms": ["a", "b", 3], "my-key": "dash", "quote": "it's \"x\"", "umlaut": "Ä", "in": 1
	},
	"properties": {
		"desired": {"interval": 300, "$version": 4, "$metadata": {"$lastUpdated": "2024-01-01T00:00:00Z"}},
		"reported": {"interval": 300, "state": {"code": "ok"}, "$version": 7}
	}
}`

func TestWhere(t *testing.T) {
	t.Parallel()
	doc := parseDocument(t, example)
	for condition, want := range map[string]bool{
		// Comparisons.
		"tags.location.region = 'US'":       true,
		`tags.location.region = "US"`:       true,
		"tags.location.region = 'us'":       false,
		"tags.location.region != 'DE'":      true,
		"tags.location.region <> 'US'":      false,
		"'US' = tags.location.region":       true,
		"tags.floor = 7":                    true,
		"tags.floor = 7.0":                  true,
		"tags.floor = 0x7":                  true,
		"tags.floor = 0X07":                 true,
		"tags.floor = 7e0":                  true,
		"tags.floor = 70E-1":                true,
		"tags.floor >= 7":                   true,
		"tags.floor > 7":                    false,
		"tags.floor <= 7":                   true,
		"tags.floor < 7":                    false,
		"tags.load=.5":                      true,
		"tags.big = 4503599627370495":       true,
		"tags.big = 4503599627370494":       false,
		"tags.location.plant > 'Redmond4'":  true,
		"lastActivityTime < '2021-05-08'":   true,
		"tags.spare = false":                true,
		"tags.spare = FALSE":                true,
		"tags.spare < true":                 true,
		"tags.spare != true":                true,
		"capabilities.iotEdge = true":       true,
		"statusReason = null":               true,
		"statusReason != null":              false,
		"deviceId != null":                  true,
		"cloudToDeviceMessageCount > 2":     true,
		"properties.desired.$version = 4":   true,
		"tags.[[my-key]] = 'dash'":          true,
		"[[tags]].[[location]].region='US'": true,
		"tags.in = 1":                       true,
		"properties.desired.interval = properties.reported.interval": true,
		// Names of fields in any case, names of others exactly.
		"DEVICEID = 'myDeviceId'":                            true,
		"deviceid = 'mydeviceid'":                            false,
		"Properties.Reported.state.code = 'ok'":              true,
		"Properties.Reported.State.code = 'ok'":              false,
		"capabilities.IOTEDGE = true":                        true,
		"devices.tags.floor = 7":                             true,
		"Devices.deviceId = 'myDeviceId'":                    true,
		"properties.desired.$metadata.$lastUpdated > '2023'": true,
		// Types.
		"tags.floor = '7'":               false,
		"tags.floor != '7'":              true,
		"tags.floor < 'a'":               false,
		"tags.location = tags.location":  false,
		"tags.location != tags.location": false,
		"tags.rooms = ['a', 'b', 3]":     false,
		"null < 1":                       false,
		"null = null":                    true,
		// Undefined.
		"tags.none = 1":             false,
		"tags.none != 1":            false,
		"tags.none = null":          false,
		"tags.none = undefined":     false,
		"NOT tags.none = 1":         false,
		"NOT undefined":             false,
		"tags.floor.deeper = 1":     false,
		"tags.none = 1 OR true":     true,
		"tags.none = 1 AND true":    false,
		"NOT (tags.none=1 AND 1=2)": true,
		"NOT (tags.none=1 OR 1=2)":  false,
		// What isn't true counts as false.
		"null":                 false,
		"NOT null":             true,
		"'true'":               false,
		"1":                    false,
		"NOT 1":                true,
		"tags.spare":           false,
		"NOT tags.spare":       true,
		"capabilities.iotEdge": true,
		"[true]":               false,
		// Precedence.
		"1=1 OR 1=1 AND 1=2":                    true,
		"(1=1 OR 1=1) AND 1=2":                  false,
		"NOT 1=2 AND 1=1":                       true,
		"NOT (1=2 AND 1=1)":                     true,
		"NOT NOT 1=1":                           true,
		"not not not 1=1":                       false,
		"NOT deviceId = 'other'":                true,
		"tags.floor + 1 = 8 AND 2 * 3 + 4 = 10": true,
		"2 + 3 * 4 = 14":                        true,
		"(2 + 3) * 4 = 20":                      true,
		"10 - 4 - 3 = 3":                        true,
		"2 - -3 = 5":                            true,
		"-tags.floor = -7":                      true,
		"--1 = 1":                               true,
		"7 % 4 = 3":                             true,
		"7 / 2 = 3.5":                           true,
		"1 / 0 = 1 / 0":                         false,
		"'a' + 'b' = 'ab'":                      false,
		// IN and NIN.
		"tags.location.region IN ['US', 'DE']":  true,
		"tags.location.region in ['DE']":        false,
		"tags.location.region NIN ['DE', 'FR']": true,
		"tags.location.region NIN ['US']":       false,
		"tags.floor IN [1, 7, 'x', null]":       true,
		"tags.none IN ['US']":                   false,
		"tags.none NIN ['US']":                  false,
		"tags.floor IN []":                      false,
		"statusReason IN [null]":                true,
		"'b' IN tags.rooms":                     true,
		"3 IN tags.rooms":                       true,
		"'c' IN tags.rooms":                     false,
		"'c' NIN tags.rooms":                    true,
		"7 IN tags.floor":                       false,
		"NOT tags.floor IN [7]":                 false,
		// Functions.
		"is_defined(tags.location)":             true,
		"IS_DEFINED(tags.location.city)":        false,
		"NOT IS_DEFINED(tags.none)":             true,
		"is_defined(statusReason)":              true,
		"STARTSWITH(devices.deviceId, 'myDev')": true,
		"starts_with(deviceId, 'Dev')":          false,
		"STARTSWITH(tags.floor, '7')":           false,
		// Strings.
		`tags.quote = 'it\'s "x"'`:       true,
		`tags.quote = "it's \"x\""`:      true,
		`tags.quote = 'it\u0027s \"x\"'`: true,
		`tags.umlaut = 'Ä'`:              true,
		`tags.umlaut = '\u00c4'`:         true,
		`'\\' = "\\"`:                    true,
		`'' = ""`:                        true,
	} {
		q, err := query.Parse("SELECT * FROM devices WHERE " + condition)
		if err != nil {
			t.Errorf("%s: %v", condition, err)
			continue
		}
		if got := q.Matches(doc); got != want {
			t.Errorf("%s is %t", condition, got)
		}
	}
}

func TestSelect(t *testing.T) {
	t.Parallel()
	doc := parseDocument(t, example)
	for text, want := range map[string]string{
		"SELECT deviceId FROM devices":                            `{"deviceId":"myDeviceId"}`,
		"SELECT DeviceId, LastActivityTime FROM devices":          `{"deviceId":"myDeviceId","lastActivityTime":"2021-05-07T00:50:38.0543092Z"}`,
		"select deviceId as DeviceId from devices":                `{"DeviceId":"myDeviceId"}`,
		"SELECT tags.location.region, tags.none FROM devices":     `{"region":"US"}`,
		"SELECT tags.none FROM devices":                           `{}`,
		"SELECT capabilities.iotEdge AS edge FROM devices":        `{"edge":true}`,
		"SELECT tags.location AS l, tags.rooms AS r FROM devices": `{"l":{"plant":"Redmond43","region":"US"},"r":["a","b",3]}`,
		"SELECT devices.status FROM devices":                      `{"status":"enabled"}`,
		"SELECT tags.big, statusReason FROM devices":              `{"big":4503599627370495,"statusReason":null}`,
		"SELECT tags.[[my-key]] AS [[a b]] FROM devices":          `{"a b":"dash"}`,
		"SELECT count FROM devices":                               `{}`,
	} {
		q, err := query.Parse(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if q.Whole() || q.Aggregated() {
			t.Errorf("%s: whole or aggregated", text)
		}
		if got := encode(t, q.Project(doc)); got != want {
			t.Errorf("%s: got %s", text, got)
		}
	}
}

func encode(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestCollections(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]query.Query{
		"SELECT * FROM devices":                   {Collection: query.Devices},
		"select*from Devices":                     {Collection: query.Devices},
		"SELECT TOP 12 * FROM devices.modules":    {Collection: query.Modules, Top: 12},
		"SELECT * FROM DEVICES.Jobs":              {Collection: query.Jobs},
		"\n SELECT\t*\r\nFROM devices WHERE 1=1 ": {Collection: query.Devices},
	} {
		q, err := query.Parse(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if q.Collection != want.Collection || q.Top != want.Top || !q.Whole() || q.Aggregated() {
			t.Errorf("%s: got %s, top %d", text, q.Collection, q.Top)
		}
	}
	module := document{"moduleId": "m", "jobId": "j"}
	for _, text := range []string{
		"SELECT * FROM devices.modules WHERE devices.modules.moduleId = 'm' AND moduleId = 'm'",
		"SELECT * FROM devices.jobs WHERE devices.jobs.jobId = 'j'",
	} {
		q, err := query.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if !q.Matches(module) {
			t.Errorf("%s doesn't match", text)
		}
	}
}

func TestAggregates(t *testing.T) {
	t.Parallel()
	var docs []document
	for _, tags := range []string{
		`{"a":"x","n":1,"s":"m"}`, `{"a":"y","n":2.5,"s":"k"}`, `{"a":"x","n":4,"b":true}`, `{"n":"text"}`, `{"a":"x","o":{"p":1}}`, `{"a":null}`,
	} {
		docs = append(docs, parseDocument(t, `{"status":"enabled","tags":`+tags+`}`))
	}
	for text, want := range map[string]string{
		"SELECT COUNT() FROM devices":                                                                      `[{"$1":6}]`,
		"SELECT count() AS number FROM devices WHERE tags.a = 'x'":                                         `[{"number":3}]`,
		"SELECT COUNT() AS c FROM devices WHERE 1=2":                                                       `[{"c":0}]`,
		"SELECT SUM(tags.n) AS s, AVG(tags.n) AS a FROM devices":                                           `[{"a":2.5,"s":7.5}]`,
		"SELECT MIN(tags.n) AS l, MAX(tags.n) AS h FROM devices":                                           `[{"h":"text","l":1}]`,
		"SELECT MIN(tags.s), MAX(tags.s) FROM devices":                                                     `[{"$1":"k","$2":"m"}]`,
		"SELECT AVG(tags.z) AS a, MIN(tags.z) AS l, SUM(tags.z) AS s FROM devices":                         `[{"s":0}]`,
		"SELECT tags.a AS a, COUNT() AS n FROM devices GROUP BY tags.a":                                    `[{"n":1},{"a":"x","n":3},{"a":"y","n":1},{"a":null,"n":1}]`,
		"SELECT tags.a FROM devices GROUP BY tags.a":                                                       `[{},{"a":"x"},{"a":"y"},{"a":null}]`,
		"SELECT COUNT() AS n FROM devices GROUP BY status":                                                 `[{"n":6}]`,
		"SELECT COUNT() AS n FROM devices WHERE 1=2 GROUP BY status":                                       `[]`,
		"SELECT status, tags.a, COUNT() AS n FROM devices WHERE tags.a NIN [null] GROUP BY tags.a, Status": `[{"a":"x","n":3,"status":"enabled"},{"a":"y","n":1,"status":"enabled"}]`,
		"SELECT tags.o AS o, COUNT() AS n FROM devices WHERE is_defined(tags.o) GROUP BY tags.o":           `[{"n":1,"o":{"p":1}}]`,
	} {
		q, err := query.Parse(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if !q.Aggregated() || q.Whole() {
			t.Errorf("%s isn't aggregated", text)
		}
		groups := q.NewGroups()
		for _, d := range docs {
			if q.Matches(d) {
				groups.Add(d)
			}
		}
		rows := []map[string]any{}
		before := ""
		for i, row := range groups.Rows() {
			if i > 0 && row.Key <= before {
				t.Errorf("%s: keys %q and %q are not in order", text, before, row.Key)
			}
			before = row.Key
			rows = append(rows, row.Values)
		}
		if got := encode(t, rows); got != want {
			t.Errorf("%s: got %s", text, got)
		}
	}
}

// TestKeysOfGroups checks that long values make different groups with short keys.
func TestKeysOfGroups(t *testing.T) {
	t.Parallel()
	q, err := query.Parse("SELECT COUNT() AS n FROM devices GROUP BY tags.a")
	if err != nil {
		t.Fatal(err)
	}
	groups := q.NewGroups()
	for _, end := range []string{"a", "b"} {
		groups.Add(document{"tags": map[string]any{"a": strings.Repeat("x", 4000) + end}})
	}
	rows := groups.Rows()
	if len(rows) != 2 || len(rows[0].Key) > 256 {
		t.Errorf("got %d rows, the first with a key of %d bytes", len(rows), len(rows[0].Key))
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	const from = "SELECT * FROM devices "
	for text, want := range map[string]string{
		"":                                                   "at character 1: SELECT is expected and not the end",
		"SELEC * FROM devices":                               "at character 1: SELECT is expected and not SELEC",
		"SELECT FROM devices":                                "at character 8: *, a property or an aggregate such as COUNT() is expected and not FROM",
		"SELECT * devices":                                   "at character 10: FROM is expected and not devices",
		"SELECT * FROM twins":                                "at character 15: devices, devices.modules or devices.jobs is expected and not twins",
		"SELECT * FROM":                                      "at character 14: devices, devices.modules or devices.jobs is expected and not the end",
		"SELECT TOP 0 * FROM devices":                        "at character 12: a positive whole number is expected and not 0",
		"SELECT TOP 1.5 * FROM devices":                      "at character 12: a positive whole number is expected and not 1.5",
		"SELECT TOP x * FROM devices":                        "at character 12: a positive whole number is expected and not x",
		"SELECT TOP 99999999999 * FROM devices":              "at character 12: a positive whole number is expected and not 99999999999",
		from + "ORDER BY deviceId":                           "at character 23: there is no ORDER BY",
		from + "WHERE":                                       "at character 28: a property or value is expected and not the end",
		from + "WHERE a =":                                   "at character 32: a property or value is expected and not the end",
		from + "WHERE a = 'x":                                "at character 35: the string has no closing '",
		from + "WHERE a = 'x' b":                             "at character 37: an operator, WHERE, GROUP BY or the end is expected and not b",
		from + "WHERE a = 'it''s'":                           "at character 37: an operator, WHERE, GROUP BY or the end is expected and not 's'",
		from + `WHERE a = '\n'`:                              `at character 34: unknown escape: there are \', \", \\ and \uXXXX`,
		from + "WHERE a == 1":                                "at character 32: a property or value is expected and not =",
		from + "WHERE a = 1 = 2":                             "at character 35: an operator, WHERE, GROUP BY or the end is expected and not =",
		from + "WHERE (a = 1":                                "at character 35: ) is expected and not the end",
		from + "WHERE a = 1)":                                "at character 34: an operator, WHERE, GROUP BY or the end is expected and not )",
		from + "WHERE a IN ['x'":                             "at character 38: ] is expected and not the end",
		from + "WHERE a NOT IN ['x']":                        "at character 31: an operator, WHERE, GROUP BY or the end is expected and not NOT",
		from + "WHERE a. = 1":                                "at character 31: a name is expected after the dot",
		from + "WHERE ä ? 1":                                 "at character 31: unexpected character '?'",
		from + "WHERE a = 1x":                                "at character 33: a number is expected, such as 12, 1.5 or 0x1F",
		from + "WHERE a = 0x":                                "at character 33: a number is expected, such as 12, 1.5 or 0x1F",
		from + "WHERE a = 1.2.3":                             "at character 33: a number is expected, such as 12, 1.5 or 0x1F",
		from + "WHERE a = 1_000":                             "at character 33: a number is expected, such as 12, 1.5 or 0x1F",
		from + "WHERE lower(a) = 'x'":                        "at character 29: LOWER is no function of twin queries: there are IS_DEFINED and STARTSWITH",
		from + "WHERE is_defined('x')":                       "at character 40: a property is expected and not 'x'",
		from + "WHERE is_defined(a":                          "at character 41: ) is expected and not the end",
		from + "WHERE startswith(a)":                         "at character 41: , is expected and not )",
		from + "WHERE a LIKE 'x%'":                           "at character 31: an operator, WHERE, GROUP BY or the end is expected and not LIKE",
		from + "GROUP BY status":                             "at character 1: GROUP BY doesn't go with SELECT *",
		"SELECT status, COUNT() FROM devices":                "at character 8: status is neither an aggregate nor in GROUP BY",
		"SELECT tags.b FROM devices GROUP BY tags.a":         "at character 8: tags.b is neither an aggregate nor in GROUP BY",
		"SELECT MEDIAN(tags.a) FROM devices":                 "at character 8: MEDIAN is no aggregate: there are COUNT, SUM, AVG, MIN, MAX",
		"SELECT COUNT(*) FROM devices":                       "at character 14: ) is expected and not *",
		"SELECT SUM() FROM devices":                          "at character 12: a property is expected and not )",
		"SELECT a AS FROM devices":                           "at character 18: FROM is expected and not devices",
		"SELECT a AS b.c FROM devices":                       "at character 13: a name is expected and not b.c",
		"SELECT a, FROM devices":                             "at character 11: *, a property or an aggregate such as COUNT() is expected and not FROM",
		"SELECT jobId FROM devices.jobs":                     "at character 1: devices.jobs allows SELECT * only",
		from + "WHERE " + strings.Repeat("(", 200):           "at character 129: more than 100 levels of brackets and operators",
		from + "WHERE a = " + strings.Repeat("x", 60) + " y": "at character 94: an operator, WHERE, GROUP BY or the end is expected and not y",
		from + "WHERE " + strings.Repeat("x", 60) + ".":      "at character 90: a name is expected after the dot",
		strings.Repeat(" ", 8193):                            "at character 8193: a query has at most 8192 characters",
	} {
		_, err := query.Parse(text)
		var syntax *query.Error
		if !errors.As(err, &syntax) || err.Error() != want {
			t.Errorf("%.60s: got %v, want %s", text, err, want)
		}
	}
}

// TestLongQueries checks that texts of the greatest length are parsed and
// evaluated, whatever they repeat.
func TestLongQueries(t *testing.T) {
	t.Parallel()
	const start = "SELECT * FROM devices WHERE "
	fill := func(first, more string) string {
		text := start + first
		return text + strings.Repeat(more, (8192-len(text))/len(more))
	}
	for text, want := range map[string]bool{
		fill("1=1", " OR 1=1"):                                            true,
		fill("1=1", " AND 1=1"):                                           true,
		fill("1", "+1") + "":                                              false,
		fill("0=0", "+0"):                                                 true,
		start + strings.Repeat("NOT ", 2000) + "1=1":                      true,
		start + strings.Repeat("-", 8000) + "1=1":                         true,
		start + strings.Repeat("(", 99) + "1=1" + strings.Repeat(")", 99): true,
	} {
		q, err := query.Parse(text)
		if err != nil {
			t.Errorf("%.60s: %v", text, err)
			continue
		}
		if got := q.Matches(document{}); got != want {
			t.Errorf("%.60s: got %t", text, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"SELECT * FROM devices",
		"SELECT TOP 3 deviceId AS d, tags.[[a b]] FROM devices.modules WHERE NOT (tags.x >= 0x1F OR a NIN ['x', \"y\\u0041\", null, -1.5e3])",
		"SELECT tags.a, COUNT() AS n, SUM(tags.n), AVG(tags.n), MIN(tags.n), MAX(tags.n) FROM devices WHERE is_defined(tags.a) GROUP BY tags.a",
		"SELECT * FROM devices WHERE STARTSWITH(devices.deviceId, 'a') AND [[1,2],[3]] = undefined",
		"SELECT * FROM devices WHERE " + strings.Repeat("([-", 40),
		"SELECT * FROM devices WHERE a = '\\u00",
		"SELECT \x00\xff FROM [[",
	} {
		f.Add(seed)
	}
	doc := parseDocument(f, example)
	f.Fuzz(func(t *testing.T, text string) {
		q, err := query.Parse(text)
		if err != nil {
			var syntax *query.Error
			if !errors.As(err, &syntax) || syntax.Position < 1 || syntax.Position > len(text)+1 {
				t.Fatalf("%v", err)
			}
			return
		}
		q.Matches(doc)
		if !q.Aggregated() {
			if _, err := json.Marshal(q.Project(doc)); err != nil {
				t.Fatal(err)
			}
			return
		}
		groups := q.NewGroups()
		groups.Add(doc)
		if _, err := json.Marshal(groups.Rows()); err != nil {
			t.Fatal(err)
		}
	})
}

func ExampleParse() {
	_, err := query.Parse("SELECT * FROM devices WHERE tags.location.region == 'US'")
	fmt.Println(err)
	// Output: at character 51: a property or value is expected and not =
}

// TestBombs makes sure that a short text can't ask for too much. It is not parallel
// because it counts allocations.
func TestBombs(t *testing.T) {
	for name, text := range map[string]string{
		"items":  "SELECT " + strings.Repeat("COUNT(), ", 100) + "COUNT() FROM devices",
		"groups": "SELECT COUNT() FROM devices GROUP BY " + strings.Repeat("deviceId, ", 100) + "deviceId",
	} {
		var syntax *query.Error
		if _, err := query.Parse(text); !errors.As(err, &syntax) || !strings.Contains(syntax.Reason, "more than 100") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Constants are looked at once, and not for each document.
	q, err := query.Parse("SELECT * FROM devices WHERE deviceId IN [" + strings.Repeat("1, ", 2000) + "['x'], 'y']")
	if err != nil {
		t.Fatal(err)
	}
	doc := parseDocument(t, example)
	if n := testing.AllocsPerRun(10, func() { q.Matches(doc) }); n > 100 {
		t.Errorf("%v allocations for each document", n)
	}
}
