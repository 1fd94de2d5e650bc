package configtree_test

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/configtree"
)

func parse(t *testing.T, text string) *configtree.Section {
	t.Helper()
	n, err := configtree.Parse("f", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return n.Section("the file")
}

func TestBothFormatsGiveTheSameTree(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"YAML":             "text: hello\nflag: true\nnumber: 7\nnothing:\nlist:\n  - a\n  - b\nsub:\n  time: PT1M\n",
		"JSON":             `{"text": "hello", "flag": true, "number": 7, "nothing": null, "list": ["a", "b"], "sub": {"time": "PT1M"}}`,
		"JSON with tabs":   "{\n\t\"text\": \"hello\",\n\t\"flag\": true, \"number\": 7,\n\t\"nothing\": null, \"list\": [\"a\",\n\t\"b\"], \"sub\": {\"time\": \"PT1M\"}}",
		"other case":       "TEXT: hello\nFlag: TRUE\nNumber: \"7\"\nLIST: [a, b]\nSub: {Time: PT1M}\n",
		"byte order mark":  "\xef\xbb\xbf{\"text\": \"hello\", \"flag\": true, \"number\": 7, \"list\": [\"a\", \"b\"], \"sub\": {\"time\": \"PT1M\"}}",
		"windows newlines": "text: hello\r\nflag: true\r\nnumber: 7\r\nlist: [a, b]\r\nsub:\r\n  time: PT1M\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := parse(t, text)
			if got := s.Text("text"); got != "hello" {
				t.Errorf("text: %q", got)
			}
			if !s.Bool("flag", false) || !s.Bool("missing", true) {
				t.Error("flags are wrong")
			}
			if got := s.Int("number", 0, 10); got != 7 {
				t.Errorf("number: %d", got)
			}
			if s.Get("nothing") != nil {
				t.Error("null is something")
			}
			var items []string
			for _, n := range s.List("list") {
				items = append(items, n.Text("item"))
			}
			if got := strings.Join(items, ","); got != "a,b" {
				t.Errorf("list: %s", got)
			}
			sub := s.Sub("sub")
			if got := sub.Duration("time", 0, time.Hour); got != time.Minute {
				t.Errorf("duration: %s", got)
			}
			sub.Done()
			s.Done()
			if err := s.Err(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestProblemsNameTheirLine(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ text, want string }{
		"JSON": {
			"{\n  \"text\": [],\n  \"flag\": 1,\n  \"number\":\n    11,\n  \"list\": {},\n  \"sub\": {\n    \"time\": \"1h\",\n    \"more\": 1\n  }\n}",
			"f:2: text must be a single value and not a list\nf:3: flag is \"1\" and must be true or false\n" +
				"f:5: number is \"11\" and must be a whole number from 0 to 10\nf:6: list must be a list and not a section\n" +
				"f:8: time is \"1h\" and must be a duration like PT30S, PT5M, PT1H or P1D\nf:9: more is not a setting here that the emulator knows",
		},
		"YAML": {
			"text: a\nflag: yes\nnumber: x\nlist: a\nsub:\n  time: PT2H\nother: 1\nText: b\n",
			"f:2: flag is \"yes\" and must be true or false\nf:3: number is \"x\" and must be a whole number from 0 to 10\n" +
				"f:4: list must be a list and not a single value\nf:6: time is PT2H and must be from PT0S to PT1H\n" +
				"f:7: other is not a setting here that the emulator knows\nf:8: Text is set twice",
		},
		"no section":       {"- a\n", "f:1: the file must be a section and not a list"},
		"section expected": {"sub: a\n", "f:1: sub must be a section and not a single value"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := parse(t, tc.text)
			s.Text("text")
			s.Bool("flag", false)
			s.Int("number", 0, 10)
			s.List("list")
			sub := s.Sub("sub")
			sub.Duration("time", 0, time.Hour)
			sub.Done()
			s.Done()
			if err := s.Err(); err == nil || err.Error() != tc.want {
				t.Errorf("got:\n%v\nwant:\n%s", err, tc.want)
			}
		})
	}
}

func TestFilesThatCanNotBeRead(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ text, want string }{
		"empty":              {"", "f: file is empty"},
		"comment only":       {"# nothing\n", "f: file is empty"},
		"JSON cut off":       {"{\n\"a\": 1,\n", "f:2: not valid JSON: unexpected end of the file"},
		"JSON comma":         {"{\n\"a\": 1,\n}", "f:3: not valid JSON"},
		"JSON twice":         {"{}\n{}", "f:2: there is more behind the end"},
		"JSON comment":       {"{\n// c\n}", "f:2: not valid JSON"},
		"YAML":               {"a: 1\nb: [\n", "f:2: not valid YAML"},
		"YAML tab":           {"a:\n\tb: 1\n", "f:2: not valid YAML"},
		"YAML alias":         {"a: &x 1\nb: *x\n", "f:2: aliases are not supported"},
		"YAML in itself":     {"a: &x [*x]\n", "f:1: "},
		"YAML two documents": {"a: 1\n---\nb: 1\n", "f:2: file has more than one YAML document"},
		"name not a word":    {"? [a]\n: b\n", "f:1: the name of a setting must be a word"},
		"JSON too deep":      {"{\"a\":" + strings.Repeat("[", 100), "f:1: nested too deeply"},
		"YAML too deep":      {strings.Repeat("[", 100) + strings.Repeat("]", 100), "f:1: nested too deeply"},
		"too large":          {strings.Repeat("#", 5<<20), "f: file has more than"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := configtree.Parse("f", []byte(tc.text))
			if err == nil || !strings.HasPrefix(err.Error(), tc.want) {
				t.Errorf("got %v, want %s", err, tc.want)
			}
		})
	}
}

func TestDurations(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{
		"PT20S": 20 * time.Second, "PT1M": time.Minute, "PT1H30M": 90 * time.Minute, "P1D": 24 * time.Hour,
		"P2W": 14 * 24 * time.Hour, "P1DT1S": 24*time.Hour + time.Second, "PT0.5S": 500 * time.Millisecond, "PT0S": 0,
		"P10675199DT2H48M5.4775807S": math.MaxInt64, // TimeSpan.MaxValue of .NET
	} {
		s := parse(t, "d: "+text)
		if got := s.Duration("d", 0, math.MaxInt64); got != want || s.Err() != nil {
			t.Errorf("%s: %s %v", text, got, s.Err())
		}
	}
	for _, text := range []string{"P", "PT", "1h", "T1H", "P1H", "PT1D", "PT-1S", "-PT1S", "PT1S1M", "PT1e3S", "PT.S", "PTNaNS", "PTInfS", "PT1", "P1Y", "pt1s", "PT1S ."} {
		s := parse(t, "d: "+text)
		if got := s.Duration("d", 0, math.MaxInt64); s.Err() == nil {
			t.Errorf("%s was read as %s", text, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		`{"UserConfig": {"Namespaces": [{"Name": "n", "Queues": [{"Name": "q"}]}]}}`,
		"UserConfig:\n  Namespaces:\n    - Name: n\n", "{", "[", "a: &x [*x]", "\xef\xbb\xbf{}", "? a\n: b", "{\"a\":1}}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		n, err := configtree.Parse("f", data)
		if err != nil {
			return
		}
		s := n.Section("file")
		s.Text("a")
		s.Done()
		_ = s.Err()
	})
}
