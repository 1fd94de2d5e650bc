package conformance_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// Where queries are documented.
const (
	queriesPage     = "IoT Hub docs: IoT Hub query language for device and module twins, jobs, and message routing"
	queriesTwinPage = "IoT Hub docs: Queries for IoT Hub device and module twins"
	queriesJobPage  = "IoT Hub docs: Queries for IoT Hub jobs"
	queriesREST     = "IoT Hub REST API: Query - Get Twins"
	queriesNode     = "azure-iothub 1.16, query.ts"
	queriesExplorer = "Azure/azure-iot-explorer, dataplaneServiceHelper.ts"
)

var queries = area{
	name: "Queries",
	emulated: []behaviour{
		{"SELECT", "an asterisk selects whole twins", queriesTwinPage, queriesWhole},
		{"SELECT", "TOP selects up to a number of them", queriesPage, queriesTop},
		{"SELECT", "properties have the name of their last part", queriesTwinPage, queriesProject},
		{"SELECT", "AS gives them another name", queriesPage, queriesAlias},
		{"SELECT", "what a twin doesn't have is left out", queriesPage, queriesMissing},

		queriesFind("WHERE", "tags", queriesTwinPage, map[string]string{
			"tags.site.building = '43'":    "a b",
			"tags.site.floor = 1":          "a c",
			"tags.site.building = 'other'": "",
			"tags.fresh = true":            "e",
		}),
		queriesFind("WHERE", "desired and reported properties", queriesTwinPage, map[string]string{
			"properties.desired.speed = 20":                                      "b",
			"properties.reported.battery < 60":                                   "a",
			"properties.desired.speed = properties.reported.speed":               "b",
			"properties.desired.speed != properties.reported.speed":              "a",
			"properties.desired.$version > 1 AND properties.reported.$version=2": "a b",
		}),
		queriesFind("WHERE", "fields that come from the registry", queriesTwinPage, map[string]string{
			"deviceId = 'c'":                            "c",
			"status = 'disabled'":                       "c",
			"status = 'enabled' AND deviceId > 'c'":     "d e",
			"connectionState = 'Connected'":             "a b",
			"capabilities.iotEdge = true":               "e",
			"authenticationType = 'sas'":                "a b c d e",
			"cloudToDeviceMessageCount = 0":             "a b c d e",
			"lastActivityTime >= '2020-01-01T00:00:00'": "a b",
			"statusReason = 'broken'":                   "c",
			"devices.deviceId = 'd'":                    "d",
		}),
		queriesFind("WHERE", "comparisons", queriesPage, map[string]string{
			"properties.desired.speed = 20":  "b",
			"properties.desired.speed != 20": "a c",
			"properties.desired.speed <> 20": "a c",
			"properties.desired.speed < 20":  "a",
			"properties.desired.speed <= 20": "a b",
			"properties.desired.speed > 20":  "c",
			"properties.desired.speed >= 20": "b c",
			"tags.site.building < '44'":      "a b",
		}),
		queriesFind("WHERE", "values of different types are different", queriesPage, map[string]string{
			"tags.site.floor = '1'":                       "",
			"tags.site.building = 43":                     "",
			"tags.fresh = 'true'":                         "",
			"tags.site = tags.site":                       "", // objects are not compared
			"tags.nothing = undefined":                    "",
			"tags.site.floor = 1 AND tags.fresh != false": "",
		}),
		queriesFind("WHERE", "AND, OR, NOT and brackets", queriesPage, map[string]string{
			"tags.site.floor = 1 AND tags.site.building = '43'":                   "a",
			"deviceId = 'd' OR deviceId = 'e'":                                    "d e",
			"NOT status = 'enabled'":                                              "c",
			"deviceId = 'a' OR deviceId = 'b' AND status = 'disabled'":            "a",
			"(deviceId = 'a' OR deviceId = 'c') AND status = 'disabled'":          "c",
			"NOT (deviceId = 'a' OR deviceId = 'b') AND NOT capabilities.iotEdge": "c d",
		}),
		queriesFind("WHERE", "IN and NIN", queriesTwinPage, map[string]string{
			"tags.site.building IN ['44', '45']":        "c",
			"tags.site.floor IN [1, 2] ":                "a b c",
			"tags.site.building NIN ['44', '45']":       "a b",
			"deviceId IN ['a', 'e', 'nobody']":          "a e",
			"deviceId NIN ['a', 'b', 'c', 'd', 'e']":    "",
			"properties.reported.fw IN [\"1.0\", 2, 3]": "a",
		}),
		queriesFind("WHERE", "arithmetic", queriesPage, map[string]string{
			"properties.desired.speed + 5 = 25":       "b",
			"properties.desired.speed - 5 * 2 = 0":    "a",
			"(properties.desired.speed - 5) * 2 = 50": "c",
			"properties.desired.speed / 4 = 2.5":      "a",
			"properties.desired.speed % 20 = 10":      "a c",
			"properties.desired.speed = 0x14":         "b",
			"properties.desired.speed > -1.5e1 + 35":  "c",
		}),
		queriesFind("WHERE", "IS_DEFINED", queriesTwinPage, map[string]string{
			"IS_DEFINED(tags.site)":                       "a b c",
			"is_defined(properties.reported.battery)":     "a b",
			"NOT IS_DEFINED(tags.site.building)":          "d e",
			"IS_DEFINED(tags.fresh) OR deviceId = 'a'":    "a e",
			"is_defined(properties.desired.speed.deeper)": "",
		}),
		queriesFind("WHERE", "STARTSWITH", queriesExplorer, map[string]string{
			"STARTSWITH(tags.site.building, '4')":       "a b c",
			"STARTSWITH(devices.deviceId, 'a')":         "a",
			"startswith(properties.reported.fw, '1.1')": "b",
		}),
		queriesFind("WHERE", "strings in either quotes, with escapes", queriesPage, map[string]string{
			`tags.note = 'it\'s "new"'`:          "e",
			`tags.note = "it's \"new\""`:         "e",
			`tags.note = 'it\u0027s \u0022new"'`: "e",
			`tags.site.building = "43"`:          "a b",
			`tags.back = 'a\\b'`:                 "e",
		}),
		queriesFind("WHERE", "only what is true counts", queriesPage, map[string]string{
			"tags.fresh": "e",
			"'true'":     "",
			"1":          "",
			"null":       "",
			"undefined":  "",
			"1 = 1":      "a b c d e",
			"tags.site":  "",
			// A value that is no boolean counts as false, where there is one.
			"NOT tags.site.floor": "a b c",
		}),
		{"WHERE", "names of keywords and fields don't mind case, those of properties do", queriesTwinPage, queriesCase},

		{"Aggregates", "COUNT counts", queriesTwinPage, queriesCount},
		{"Aggregates", "GROUP BY counts each value", queriesTwinPage, queriesGroups},
		{"Aggregates", "SUM, AVG, MIN and MAX", queriesPage, queriesSums},

		{"Collections", "module twins", queriesTwinPage, queriesModules},
		{"Collections", "jobs on devices", queriesJobPage, queriesJobs},
		{"Collections", "jobs know no projections and no aggregates", queriesJobPage, queriesJobLimits},

		{"Pages", "all results come once, on pages of the size asked for", queriesREST, queriesPages},
		{"Pages", "the header x-ms-continuation is there only while there is more", queriesNode, queriesLastPage},
		{"Pages", "a page has at most 100 results", queriesREST, queriesLargestPage},
		{"Pages", "TOP counts over pages", queriesPage, queriesTopPages},
		{"Pages", "groups come on pages", queriesREST, queriesGroupPages},
		{"Pages", "the header x-ms-item-type tells twins from other results", queriesREST, queriesTypes},
		{"Pages", "a continuation of another query is refused", queriesREST, queriesOtherContinuation},
		{"Pages", "the service client reads all pages", queriesREST, queriesClient},

		{"Errors in queries", "a query that is none is refused with its position", queriesREST, queriesErrors},
		{"Errors in queries", "a query has up to 8192 characters", queriesTwinPage, queriesLength},
		{"Errors in queries", "a request without query is refused", queriesREST, queriesEmpty},
	},
	refused: []behaviour{
		{"Functions of routing queries", "they are refused with their position", queriesPage, queriesRoutingFunctions},
		{"ORDER BY and joins", "they are refused with their position", queriesTwinPage, queriesOrder},
	},
}

// queriesFleet registers five devices, of which two are connected.
func queriesFleet(w *world) {
	w.t.Helper()
	item := func(id string, tags, desired, more map[string]any) map[string]any {
		all := map[string]any{
			"id": id, "importMode": "create", "tags": tags, "properties": map[string]any{"desired": desired},
		}
		for name, value := range more {
			all[name] = value
		}
		return all
	}
	site := func(building string, floor int) map[string]any {
		return map[string]any{"site": map[string]any{"building": building, "floor": floor}}
	}
	speed := func(n int) map[string]any { return map[string]any{"speed": n} }
	w.check("success", registryChangeMany(w,
		item("a", site("43", 1), speed(10), nil),
		item("b", site("43", 2), speed(20), nil),
		item("c", site("44", 1), speed(30), map[string]any{"status": "disabled", "statusReason": "broken"}),
		item("d", nil, nil, nil),
		item("e", map[string]any{"fresh": true, "note": `it's "new"`, "back": `a\b`}, nil, map[string]any{"capabilities": map[string]any{"iotEdge": true}}),
	).IsSuccessful, true)
	for id, reported := range map[string]string{
		"a": `{"battery":50,"fw":"1.0","speed":5}`,
		"b": `{"battery":90,"fw":"1.1","speed":20}`,
	} {
		key, _ := at(w.registered(device{id: id}), "authentication", "symmetricKey", "primaryKey").(string)
		twinsMQTT(w, identity{deviceID: id, key: key}).report(reported)
	}
}

// queriesAsk asks for a page.
func queriesAsk(w *world, query string, headers ...string) answer {
	w.t.Helper()
	return w.rest(http.MethodPost, "/devices/query", map[string]any{"query": query}, headers...)
}

// queriesRows are the results of a query that has one page.
func queriesRows(w *world, query string) []map[string]any {
	w.t.Helper()
	var rows []map[string]any
	w.must(queriesAsk(w, query), http.StatusOK).decode(w.t, &rows)
	return rows
}

// queriesIDs are the devices that a query finds, in order.
func queriesIDs(rows []map[string]any) string {
	var ids []string
	for _, row := range rows {
		ids = append(ids, fmt.Sprint(row["deviceId"]))
	}
	slices.Sort(ids)
	return strings.Join(ids, " ")
}

// queriesFind is the case of conditions and the devices of the fleet that fulfil
// them.
func queriesFind(feature, says, source string, conditions map[string]string) behaviour {
	return behaviour{feature, says, source, func(_ *testing.T, w *world) {
		queriesFleet(w)
		for condition, want := range conditions {
			w.check(condition, queriesIDs(queriesRows(w, "SELECT * FROM devices WHERE "+condition)), want)
		}
	}}
}

func queriesWhole(_ *testing.T, w *world) {
	queriesFleet(w)
	rows := queriesRows(w, "SELECT * FROM devices")
	w.check("devices", queriesIDs(rows), "a b c d e")
	for _, row := range rows {
		id := identity{deviceID: row["deviceId"].(string)}
		w.check("twin of "+id.deviceID, row, twinsGet(w, id))
	}
}

func queriesTop(_ *testing.T, w *world) {
	queriesFleet(w)
	for query, want := range map[string]int{
		"SELECT TOP 2 * FROM devices":                             2,
		"SELECT TOP 9 * FROM devices":                             5,
		"SELECT TOP 1 deviceId FROM devices WHERE tags.fresh":     1,
		"SELECT TOP 3 * FROM devices WHERE is_defined(tags.site)": 3,
	} {
		w.check(query, len(queriesRows(w, query)), want)
	}
}

// queriesCheck compares the results of a query with JSON.
func queriesCheck(w *world, query, want string) {
	w.t.Helper()
	text, err := json.Marshal(queriesRows(w, query))
	if err != nil {
		w.t.Fatal(err)
	}
	w.check(query, string(text), want)
}

func queriesProject(_ *testing.T, w *world) {
	queriesFleet(w)
	queriesCheck(w, "SELECT DeviceId, tags.site.floor, properties.reported.fw FROM devices WHERE deviceId = 'a'",
		`[{"deviceId":"a","floor":1,"fw":"1.0"}]`)
	queriesCheck(w, "SELECT tags.site FROM devices WHERE deviceId = 'b'", `[{"site":{"building":"43","floor":2}}]`)
}

func queriesAlias(_ *testing.T, w *world) {
	queriesFleet(w)
	queriesCheck(w, "SELECT deviceId AS id, properties.desired.speed AS wanted FROM devices WHERE status = 'disabled'",
		`[{"id":"c","wanted":30}]`)
}

func queriesMissing(_ *testing.T, w *world) {
	queriesFleet(w)
	queriesCheck(w, "SELECT deviceId, tags.site.floor FROM devices WHERE deviceId IN ['c', 'd']",
		`[{"deviceId":"c","floor":1},{"deviceId":"d"}]`)
}

func queriesCase(_ *testing.T, w *world) {
	queriesFleet(w)
	for query, want := range map[string]string{
		"select * from DEVICES where DEVICEID = 'a'":                                 "a",
		"Select * From devices Where Status = 'disabled' Or Tags.fresh = True":       "c e",
		"SELECT * FROM devices WHERE tags.Fresh = true":                              "",
		"SELECT * FROM devices WHERE deviceId = 'A'":                                 "",
		"select top 1 * from devices where properties.Desired.speed in [30] and 1=1": "c",
	} {
		w.check(query, queriesIDs(queriesRows(w, query)), want)
	}
}

func queriesCount(_ *testing.T, w *world) {
	queriesCheck(w, "SELECT COUNT() AS n FROM devices", `[{"n":0}]`)
	queriesFleet(w)
	queriesCheck(w, "SELECT COUNT() AS n FROM devices", `[{"n":5}]`)
	queriesCheck(w, "SELECT count() as n FROM devices WHERE tags.site.building = '43'", `[{"n":2}]`)
}

func queriesGroups(_ *testing.T, w *world) {
	queriesFleet(w)
	rows := queriesRows(w, "SELECT tags.site.building AS building, COUNT() AS n FROM devices WHERE is_defined(tags.site) GROUP BY tags.site.building")
	counts := make(map[any]any)
	for _, row := range rows {
		counts[row["building"]] = row["n"]
	}
	w.check("devices by building", counts, map[any]any{"43": 2, "44": 1})
}

func queriesSums(_ *testing.T, w *world) {
	queriesFleet(w)
	queriesCheck(w, "SELECT SUM(properties.desired.speed) AS sum, AVG(properties.desired.speed) AS mean, "+
		"MIN(properties.desired.speed) AS least, MAX(properties.desired.speed) AS most FROM devices",
		`[{"least":10,"mean":20,"most":30,"sum":60}]`)
}

func queriesModules(_ *testing.T, w *world) {
	d, e := w.newDevice("d"), w.newDevice("e")
	for _, m := range []identity{w.newModule(d, "camera"), w.newModule(d, "lamp"), w.newModule(e, "lamp")} {
		twinsSet(w, m, fmt.Sprintf(`{"tags":{"of":%q},"properties":{"desired":{"level":3}}}`, m.deviceID))
	}
	for query, want := range map[string]string{
		"SELECT * FROM devices.modules":                                                                                       "d/camera d/lamp e/lamp",
		"SELECT * FROM devices.modules WHERE moduleId = 'lamp'":                                                               "d/lamp e/lamp",
		"SELECT * FROM devices.modules WHERE tags.of = 'd' AND properties.desired.level = 3":                                  "d/camera d/lamp",
		"SELECT * FROM devices.modules WHERE devices.modules.moduleId = 'lamp' AND deviceId IN ['e']":                         "e/lamp",
		"SELECT deviceId, moduleId FROM devices.modules WHERE devices.deviceId = 'd' AND devices.modules.moduleId = 'camera'": "d/camera",
	} {
		var found []string
		for _, row := range queriesRows(w, query) {
			found = append(found, fmt.Sprint(row["deviceId"], "/", row["moduleId"]))
		}
		slices.Sort(found)
		w.check(query, strings.Join(found, " "), want)
	}
	w.check("devices", len(queriesRows(w, "SELECT * FROM devices")), 2)
}

func queriesJobs(_ *testing.T, w *world) {
	queriesFleet(w)
	registryJob(w, "one", registryTwinJob("deviceId IN ['a', 'b']"))
	registryJobEnd(w, "one", "completed")
	registryJob(w, "two", registryTwinJob("deviceId = 'a'"))
	registryJobEnd(w, "two", "completed")
	for condition, want := range map[string]string{
		"":                                   "one a, one b, two a",
		" WHERE devices.jobs.deviceId = 'a'": "one a, two a",
		" WHERE devices.jobs.jobId = 'one'":  "one a, one b",
		" WHERE devices.jobs.deviceId = 'a' AND devices.jobs.status = 'completed'" +
			" AND devices.jobs.jobType = 'scheduleUpdateTwin' AND devices.jobs.createdDateTimeUtc > '2020-01-01'": "one a, two a",
		" WHERE devices.jobs.status = 'failed'": "",
	} {
		var found []string
		for _, row := range queriesRows(w, "SELECT * FROM devices.jobs"+condition) {
			found = append(found, fmt.Sprint(row["jobId"], " ", row["deviceId"]))
		}
		w.check("jobs"+condition, strings.Join(found, ", "), want)
	}
}

func queriesJobLimits(_ *testing.T, w *world) {
	for _, query := range []string{
		"SELECT jobId FROM devices.jobs",
		"SELECT COUNT() AS n FROM devices.jobs",
		"SELECT jobId, COUNT() AS n FROM devices.jobs GROUP BY jobId",
	} {
		w.must(queriesAsk(w, query), http.StatusBadRequest)
	}
}

// queriesMany registers n devices.
func queriesMany(w *world, n int) {
	w.t.Helper()
	for start := 0; start < n; start += 100 {
		var items []map[string]any
		for i := start; i < min(n, start+100); i++ {
			items = append(items, map[string]any{"id": fmt.Sprintf("d%03d", i), "importMode": "create", "tags": map[string]any{"n": i}})
		}
		w.check("success", registryChangeMany(w, items...).IsSuccessful, true)
	}
}

// queriesFollow reads all pages, and returns how many results each has, and those.
func queriesFollow(w *world, query, size string) (sizes []int, all []map[string]any) {
	w.t.Helper()
	for continuation := ""; ; {
		headers := []string{"x-ms-max-item-count: " + size}
		if continuation != "" {
			headers = append(headers, "x-ms-continuation: "+continuation)
		}
		a := w.must(queriesAsk(w, query, headers...), http.StatusOK)
		var rows []map[string]any
		a.decode(w.t, &rows)
		sizes, all = append(sizes, len(rows)), append(all, rows...)
		if continuation = a.header.Get("x-ms-continuation"); continuation == "" {
			return sizes, all
		}
	}
}

func queriesPages(_ *testing.T, w *world) {
	queriesMany(w, 10)
	sizes, all := queriesFollow(w, "SELECT * FROM devices WHERE tags.n != 4", "4")
	w.check("pages", sizes, []int{4, 4, 1})
	w.check("devices", queriesIDs(all), "d000 d001 d002 d003 d005 d006 d007 d008 d009")
}

func queriesLastPage(t *testing.T, w *world) {
	queriesMany(w, 4)
	sizes, _ := queriesFollow(w, "SELECT * FROM devices", "2")
	w.check("pages", sizes, []int{2, 2})
	for _, query := range []string{"SELECT * FROM devices", "SELECT * FROM devices WHERE deviceId = 'nobody'", "SELECT COUNT() AS n FROM devices"} {
		if header := w.must(queriesAsk(w, query), http.StatusOK).header; header.Values("x-ms-continuation") != nil {
			t.Errorf("%s: %v", query, header)
		}
	}
}

func queriesLargestPage(_ *testing.T, w *world) {
	queriesMany(w, 101)
	for _, size := range []string{"100", "1000"} {
		sizes, all := queriesFollow(w, "SELECT * FROM devices", size)
		w.check("pages", sizes, []int{100, 1})
		w.check("devices", len(all), 101)
	}
	for _, size := range []string{"0", "-1", "many"} {
		w.must(queriesAsk(w, "SELECT * FROM devices", "x-ms-max-item-count: "+size), http.StatusBadRequest)
	}
}

func queriesTopPages(_ *testing.T, w *world) {
	queriesMany(w, 10)
	for top, want := range map[int][]int{5: {2, 2, 1}, 4: {2, 2}, 2: {2}} {
		sizes, _ := queriesFollow(w, fmt.Sprintf("SELECT TOP %d * FROM devices", top), "2")
		w.check(fmt.Sprint("pages of TOP ", top), sizes, want)
	}
}

func queriesGroupPages(_ *testing.T, w *world) {
	queriesMany(w, 5)
	sizes, all := queriesFollow(w, "SELECT tags.n AS n, COUNT() AS devices FROM devices GROUP BY tags.n", "2")
	w.check("pages", sizes, []int{2, 2, 1})
	seen := make(map[any]bool)
	for _, row := range all {
		seen[row["n"]] = true
	}
	w.check("groups", len(seen), 5)
}

func queriesTypes(_ *testing.T, w *world) {
	queriesFleet(w)
	for query, want := range map[string]string{
		"SELECT * FROM devices":                 "twin",
		"SELECT * FROM devices.modules":         "twin",
		"SELECT deviceId FROM devices":          "raw",
		"SELECT COUNT() AS n FROM devices":      "raw",
		"SELECT * FROM devices.jobs":            "deviceJob",
		"SELECT TOP 1 * FROM devices WHERE 1=2": "twin",
	} {
		w.check(query, w.must(queriesAsk(w, query), http.StatusOK).header.Get("x-ms-item-type"), want)
	}
}

func queriesOtherContinuation(_ *testing.T, w *world) {
	queriesMany(w, 3)
	first := w.must(queriesAsk(w, "SELECT * FROM devices", "x-ms-max-item-count: 1"), http.StatusOK)
	for _, token := range []string{first.header.Get("x-ms-continuation"), "rubbish"} {
		a := queriesAsk(w, "SELECT deviceId FROM devices", "x-ms-continuation: "+token)
		w.refuses(a, http.StatusBadRequest, "ArgumentInvalid")
	}
}

func queriesClient(t *testing.T, w *world) {
	queriesMany(w, 205)
	seen := make(map[string]bool)
	for d, err := range w.service().Devices(w.ctx()) {
		if err != nil {
			t.Fatal(err)
		}
		seen[d.ID] = true
	}
	w.check("devices", len(seen), 205)
}

// queriesRefused asks in vain. The refusal names the character where the query goes
// wrong.
func queriesRefused(w *world, query string, character int) {
	w.t.Helper()
	a := queriesAsk(w, query)
	w.refuses(a, http.StatusBadRequest, "ArgumentInvalid")
	if want := fmt.Sprintf("at character %d:", character); !strings.Contains(string(a.body), want) {
		w.t.Errorf("%s: %s, want %q", query, a.body, want)
	}
}

func queriesErrors(_ *testing.T, w *world) {
	for query, character := range map[string]int{
		"DELETE FROM devices":                               1,
		"SELECT FROM devices":                               8,
		"SELECT * FROM twins":                               15,
		"SELECT * devices":                                  10,
		"SELECT TOP many * FROM devices":                    12,
		"SELECT * FROM devices WHERE":                       28,
		"SELECT * FROM devices WHERE status =":              37,
		"SELECT * FROM devices WHERE status = 'enabled":     46,
		"SELECT * FROM devices WHERE (status = 'enabled'":   48,
		"SELECT * FROM devices WHERE status = = 'enabled'":  38,
		"SELECT * FROM devices WHERE deviceId IN ['a' 'b']": 46,
		"SELECT * FROM devices WHERE tags. = 1":             34,
		"SELECT * FROM devices WHERE status = 'a' ; DROP":   42,
		"SELECT deviceId, COUNT() AS n FROM devices":        8,
	} {
		queriesRefused(w, query, character)
	}
}

func queriesLength(_ *testing.T, w *world) {
	const query = "SELECT * FROM devices WHERE deviceId = 'd'"
	longest := query + strings.Repeat(" ", 8192-len(query))
	w.must(queriesAsk(w, longest), http.StatusOK)
	w.must(queriesAsk(w, longest+" "), http.StatusBadRequest)
}

func queriesEmpty(_ *testing.T, w *world) {
	for _, body := range []string{`{}`, `{"query":""}`, `{"query":null}`, `{`, `[]`, ``} {
		w.must(w.rest(http.MethodPost, "/devices/query", []byte(body)), http.StatusBadRequest)
	}
}

func queriesRoutingFunctions(_ *testing.T, w *world) {
	for _, function := range []string{"LOWER(deviceId) = 'a'", "CONTAINS(deviceId, 'a')", "AS_NUMBER(tags.n) > 1", "IS_STRING(tags.n)", "LENGTH(deviceId) = 1"} {
		queriesRefused(w, "SELECT * FROM devices WHERE "+function, 29)
	}
}

func queriesOrder(_ *testing.T, w *world) {
	queriesRefused(w, "SELECT * FROM devices ORDER BY deviceId", 23)
	queriesRefused(w, "SELECT * FROM devices JOIN devices.modules", 23)
	queriesRefused(w, "SELECT * FROM devices, devices.modules", 22)
}
