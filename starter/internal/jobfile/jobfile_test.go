package jobfile_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/starter/internal/jobfile"
)

func TestParse(t *testing.T) {
	t.Parallel()
	stepTime := 250 * time.Millisecond
	full := job.Options{
		Solver:  job.SolverOptions{StepTime: &stepTime, StepTimeout: time.Minute, StepRetries: 2},
		Timeout: time.Hour, AcceptTimeout: 10 * time.Minute, ReceiptTimeout: 30 * time.Second, ReceiptAttempts: 4,
		CancelTimeout: 20 * time.Second, MessageTTL: 2 * time.Hour, Window: 6,
	}
	for _, test := range []struct {
		name, path, text string
		jobName          string
		steps            []string
		options          job.Options
	}{
		{
			name: "YAML with everything", path: "job.yaml", jobName: "Nightly", steps: []string{"Read, then check", "Train: now"}, options: full,
			text: "name: Nightly\nsteps:\n  - Read, then check\n  - 'Train: now'\noptions:\n  stepTime: 250ms\n  stepTimeout: 1m\n" +
				"  stepRetries: 2\n  timeout: 1h\n  acceptTimeout: 10m\n  receiptTimeout: 30s\n  receiptAttempts: 4\n" +
				"  cancelTimeout: 20s\n  messageTtl: 2h\n  window: 6\n",
		},
		{
			name: "JSON with everything", path: "job.json", jobName: "Nightly", steps: []string{"Read", "Smile 😀"}, options: full,
			text: "{\n\t\"name\": \"Nightly\",\n\t\"steps\": [\"Read\", \"Smile \\ud83d\\ude00\"],\n\t\"options\": {\"stepTime\": \"250ms\", \"stepTimeout\": \"1m\", " +
				`"stepRetries": 2, "timeout": "1h", "acceptTimeout": "10m", "receiptTimeout": "30s", "receiptAttempts": 4, ` +
				`"cancelTimeout": "20s", "messageTtl": "2h", "window": 6}}`,
		},
		{name: "JSON by its looks", path: "job", text: ` {"steps": ["\u0041"]}`, steps: []string{"A"}},
		{name: "words that look like values, in quotes", path: "j.yml", text: "steps: ['1', \"yes\", \"null\"]", steps: []string{"1", "yes", "null"}},
		{name: "no steps yet", path: "j.yml", text: "name: N\nsteps:\n", jobName: "N"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f, err := jobfile.Parse(test.path, []byte(test.text))
			if err != nil {
				t.Fatal(err)
			}
			if f.Name != test.jobName || !reflect.DeepEqual(f.Steps, test.steps) || !reflect.DeepEqual(f.Options, test.options) {
				t.Errorf("got name %q, steps %q, options %+v", f.Name, f.Steps, f.Options)
			}
		})
	}
}

func TestParseErrors(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, path, text, want string
	}{
		{"empty", "j.yaml", " \n", "j.yaml: the file is empty"},
		{"only a comment", "j.yaml", "# nothing\n", "j.yaml: the file is empty"},
		{"YAML syntax", "j.yaml", "name: N\nsteps: [a\n", "j.yaml:"},
		{"tab in YAML", "j.yaml", "name: N\nsteps:\n\t- a\n", "j.yaml:3: found character that cannot start any token"},
		{"second document", "j.yaml", "name: N\n---\nname: M\n", "j.yaml:2: there is a second document"},
		{"a list", "j.yaml", "- a\n- b\n", "j.yaml:1: the file must be an object with the members name, steps, options"},
		{"text", "j.yaml", "hello\n", "j.yaml:1: the file must be an object"},
		{"unknown member", "j.yaml", "name: N\nstep: [a]\n", `j.yaml:2: unknown member "step": the file has name, steps, options`},
		{"option in the wrong place", "j.yaml", "name: N\nstepTime: 1s\n", `j.yaml:2: unknown member "stepTime"`},
		{"unknown option", "j.yaml", "options:\n  timeout: 1h\n  stepTimes: 1s\n", `j.yaml:3: unknown member "stepTimes": options has stepTime,`},
		{"member twice", "j.yaml", "name: N\nname: M\n", "j.yaml:2: name stands here for the second time"},
		{"name is a number", "j.yaml", "name: 12\n", "j.yaml:1: name: is not text: put it in quotes"},
		{"empty name", "j.yaml", "name: ''\n", "j.yaml:1: name: is empty"},
		{"steps is text", "j.yaml", "steps: a\n", "j.yaml:1: steps: must be a list of names"},
		{"step is a number", "j.yaml", "steps:\n - a\n - 2\n", "j.yaml:3: step 2: is not text: put it in quotes"},
		{"step is a list", "j.yaml", "steps:\n - a\n - [b]\n", "j.yaml:3: step 2: is not text"},
		{"step is an alias", "j.yaml", "steps:\n - &x a\n - *x\n", "j.yaml:3: step 2: is not text"},
		{"merge key", "j.yaml", "options:\n  <<: {window: 3}\n", `j.yaml:2: unknown member "<<"`},
		{"options is a list", "j.yaml", "name: N\noptions:\n  - window\n", "j.yaml:3: options must be an object"},
		{"duration without a unit", "j.yaml", "options:\n  timeout: 60\n", `j.yaml:2: timeout: "60" is no duration: write one like 500ms, 90s, 10m or 2h`},
		{"duration is a list", "j.yaml", "options:\n  timeout: [1h]\n", `j.yaml:2: timeout: "" is no duration`},
		{"negative duration", "j.yaml", "options:\n  stepTime: -1s\n", "j.yaml:2: stepTime: -1s is negative"},
		{"number is a duration", "j.yaml", "options:\n\n  window: 3s\n", `j.yaml:3: window: "3s" is no whole number`},
		{"number out of range", "j.yaml", "options:\n  timeout: 1h\n  window: 51\n", "j.yaml:3: window: invalid: the window is 51"},
		{"too long a time to live", "j.yaml", "options:\n  messageTtl: 49h\n", "j.yaml:2: messageTtl: invalid: the message TTL is 49h0m0s, IoT Hub allows at most 48h"},
		{"JSON syntax", "j.json", "{\n\"name\": \"N\",\n}", "j.json:3: invalid character '}'"},
		{"JSON cut off", "j.json", "{\n\"name\": \"N\",\n\"steps\": [\"a\"", "j.json:3: the JSON ends too early"},
		{"JSON with more", "j.json", "{\"steps\": [\"a\"]}\n{}", "j.json:2: there is more after the end of the JSON object"},
		{"JSON unknown member", "j.json", "{\n\"steps\": [\"a\"],\n\"Name\": \"N\"}", `j.json:3: unknown member "Name"`},
		{"JSON step is null", "j.json", "{\"steps\": [\"a\",\n null]}", "j.json:2: step 2: is not text"},
		{"JSON number as text", "j.json", "{\"options\": {\n\"window\": \"3\"}}", `j.json:2: window: "3" is no whole number`},
		{"YAML in a JSON file", "j.json", "name: N\n", "j.json:1: invalid character"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f, err := jobfile.Parse(test.path, []byte(test.text))
			if err == nil || !strings.HasPrefix(err.Error(), test.want) {
				t.Fatalf("got %+v, error %v, want %q", f, err, test.want)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("the error has more than one line: %q", err)
			}
		})
	}
}

func TestJob(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 10_000)
	many := "name: N\nsteps:\n" + strings.Repeat("  - s\n", job.MaxSteps+1)
	for _, test := range []struct {
		name, text string
		givenName  string
		givenSteps []string
		want       string // the job, or the error
	}{
		{name: "from the file", text: "name: N\nsteps: [a, b]\n", want: "N [a b Done]"},
		{name: "default name", text: "steps: [a, Done]\n", want: "Job 1 [a Done]"},
		{name: "a name given", text: "name: N\nsteps: [a]\n", givenName: "M", want: "M [a Done]"},
		{name: "steps given", text: "name: N\nsteps: [a]\n", givenSteps: []string{"b", "c"}, want: "N [b c Done]"},
		{name: "steps given to a file without", text: "name: N\n", givenSteps: []string{"b"}, want: "N [b Done]"},
		{name: "no steps", text: "name: N\nsteps: []\n", want: "job.yaml:2: invalid: a job needs at least one step"},
		{name: "no list of steps", text: "name: N\n", want: "job.yaml: invalid: a job needs at least one step"},
		{name: "an empty step", text: "steps:\n  - a\n  - ''\n", want: "job.yaml:3: invalid: step 2 is empty: give it a name"},
		{name: "a long step", text: "steps:\n\n  - a\n  - b\n  - " + long + "\n", want: "job.yaml:5: invalid: step 3 is 10000 characters long, the limit is 256"},
		{name: "too many steps", text: many, want: fmt.Sprintf("job.yaml:3: invalid: a job has at most %d steps, this one has %d", job.MaxSteps, job.MaxSteps+2)},
		{name: "a long name", text: "steps: [a]\nname: " + long + "\n", want: "job.yaml:2: invalid: job name is 10000 characters long, the limit is 256"},
		{name: "a long name given", text: "steps: [a]\n", givenName: long, want: "invalid: job name is 10000 characters long, the limit is 256"},
		{name: "a long step given", text: "steps: [a]\n", givenSteps: []string{long}, want: "invalid: step 1 is 10000 characters long, the limit is 256"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f, err := jobfile.Parse("job.yaml", []byte(test.text))
			if err != nil {
				t.Fatal(err)
			}
			j, err := f.Job("job-1", test.givenName, test.givenSteps)
			got := fmt.Sprintf("%s %v", j.Name, j.Steps)
			if err != nil {
				got = err.Error()
				if !errors.Is(err, job.ErrInvalid) {
					t.Errorf("%v doesn't match job.ErrInvalid", err)
				}
			}
			if got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestRead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := jobfile.Read(filepath.Join(dir, "absent.yaml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	if _, err := jobfile.Read(dir); err == nil {
		t.Error("a folder was read as a job file")
	}
	huge := filepath.Join(dir, "huge.yaml")
	if err := os.WriteFile(huge, make([]byte, 5<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := jobfile.Read(huge); err == nil || !strings.HasSuffix(err.Error(), "huge.yaml: the file is over 4 MiB") {
		t.Errorf("a huge file: %v", err)
	}
}

// FuzzParse checks that no file makes the parser panic, and that both forms of one job say the same.
func FuzzParse(f *testing.F) {
	f.Add("name: N\nsteps: [a, b]\noptions: {window: 3, timeout: 1h}")
	f.Add("{\"steps\": [\"a\"")
	f.Add("a: &x [*x]")
	f.Add("--- {}\n--- []")
	f.Add("{\"name\": \"\\ud83d\"}")
	f.Fuzz(func(t *testing.T, text string) {
		file, err := jobfile.Parse("job.yaml", []byte(text))
		if err != nil {
			return
		}
		j, err := file.Job("job-1", "", nil)
		if err != nil {
			return
		}
		again, err := json.Marshal(map[string]any{"name": j.Name, "steps": j.Steps})
		if err != nil {
			t.Fatal(err)
		}
		other, err := jobfile.Parse("job.json", again)
		if err != nil {
			t.Fatalf("%s: %v", again, err)
		}
		if !reflect.DeepEqual(other.Steps, j.Steps) || other.Name != j.Name {
			t.Fatalf("%+v became %+v", j, other)
		}
	})
}
