package job_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hubjobs/hubjobs/job"
)

const id = "job-ann-2026-01-02-03-04-05-abc"

func golden(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "wire", name))
	require.NoError(t, err)
	return []byte(strings.TrimSuffix(string(b), "\n"))
}

func TestWireForm(t *testing.T) {
	t.Parallel()
	j, err := job.New(id, "", job.DefaultSteps())
	require.NoError(t, err)
	encode := func(b job.Body, err error) []byte {
		require.NoError(t, err)
		return b
	}
	for name, got := range map[string][]byte{
		"job.json":    encode(job.Encode(j)),
		"update.json": encode(job.Encode(job.Update{Name: "Job 1", CorrelationID: id, Step: "Train the model", Status: job.StatusInProgress})),
		"failed.json": encode(job.Encode(job.Update{Name: "Job 1", CorrelationID: id, Step: "Train the model", Status: job.StatusFailed, Reason: "exit status 3"})),
		"receipt.json": encode(job.Encode(job.Receipt{CorrelationID: id, ReadAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
			MessageIDs: []string{job.MessageID(id, job.RoleSolver, 1), job.MessageID(id, job.RoleSolver, 2)}})),
	} {
		require.Equal(t, string(golden(t, name)), string(got), name)
	}
}

func TestDecodeIgnoresCaseAndUnknownMembers(t *testing.T) {
	t.Parallel()
	u, err := job.DecodeUpdate([]byte(`{"name":"n","correlationid":"` + id + `","STEP":"s","status":"Completed","Extra":{"a":1}}`))
	require.NoError(t, err)
	require.Equal(t, job.Update{Name: "n", CorrelationID: id, Step: "s", Status: job.StatusCompleted}, u)
	j, err := job.DecodeJob([]byte(` {"name":"n","correlationId":"` + id + `","steps":["a"]} `))
	require.NoError(t, err)
	require.Equal(t, []string{"a"}, j.Steps)
}

func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		kind job.Kind
		body string
		want string
	}{
		"nothing":              {job.KindUpdate, "", "the body is not a JSON object"},
		"text":                 {job.KindJob, "hello", "the body is not a JSON object"},
		"null":                 {job.KindReceipt, "null", "the body is not a JSON object"},
		"cut off":              {job.KindUpdate, `{"Step":`, "unexpected EOF"},
		"more than one":        {job.KindUpdate, string(golden(t, "update.json")) + "{}", "more after the JSON object"},
		"unknown status":       {job.KindUpdate, `{"CorrelationId":"x","Step":"s","Status":"Fine"}`, `unknown status "Fine"`},
		"no step":              {job.KindUpdate, `{"CorrelationId":"x","Status":"Completed"}`, "step is empty"},
		"no steps":             {job.KindJob, `{"Name":"n","CorrelationId":"x","Steps":[]}`, "at least one step"},
		"empty step":           {job.KindJob, `{"Name":"n","CorrelationId":"x","Steps":["a",""]}`, "step 2 is empty"},
		"long step":            {job.KindJob, `{"Name":"n","CorrelationId":"x","Steps":["` + strings.Repeat("x", 10000) + `"]}`, "step 1 is 10000 characters long, the limit is 256"},
		"control character":    {job.KindJob, `{"Name":"n","CorrelationId":"x","Steps":["a\u0007"]}`, "control character U+0007"},
		"bad job ID":           {job.KindJob, `{"Name":"n","CorrelationId":"a b","Steps":["a"]}`, `contains ' '`},
		"steps of wrong type":  {job.KindJob, `{"Name":"n","CorrelationId":"x","Steps":"a"}`, "cannot unmarshal"},
		"receipt for nothing":  {job.KindReceipt, `{"CorrelationId":"x","MessageIds":[],"ReadAt":"2026-01-02T03:04:05Z"}`, "names no message"},
		"receipt without time": {job.KindReceipt, `{"CorrelationId":"x","MessageIds":["a"],"ReadAt":"yesterday"}`, "parsing time"},
		"too large":            {job.KindUpdate, "{" + strings.Repeat(" ", job.MaxDeviceToCloudSize) + "}", "too large"},
		"unknown kind":         {"gossip", "{}", `unknown message kind "gossip"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := job.Message{Kind: c.kind, Body: job.Body(c.body)}.Check()
			require.ErrorIs(t, err, job.ErrInvalid)
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestCheckInfersTheKind(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]job.Kind{
		string(golden(t, "job.json")):     job.KindJob,
		string(golden(t, "update.json")):  job.KindUpdate,
		string(golden(t, "receipt.json")): job.KindReceipt,
		"hello":                           job.KindNone,
		`{"steps":3}`:                     job.KindNone, // looks like a job, is none, and never claimed to be one
		"\xff\xfe":                        job.KindNone,
	} {
		m, err := job.Message{Body: job.Body(body)}.Check()
		require.NoError(t, err, body)
		require.Equal(t, want, m.Kind, body)
	}
}

func TestApplicationPropertiesRoundTrip(t *testing.T) {
	t.Parallel()
	m := job.Message{Kind: job.KindUpdate, Sequence: 3, To: "device-a::x", From: "device-b::x", Traceparent: "00-1-2-01",
		Properties: map[string]string{"colour": "red"}}
	p := m.ApplicationProperties()
	require.Equal(t, map[string]string{"kind": "update", "sequence": "3", "to-device": "device-a::x",
		"from-device": "device-b::x", "traceparent": "00-1-2-01", "colour": "red"}, p)
	var back job.Message
	back.SetApplicationProperties(p)
	require.Equal(t, m, back)

	var odd job.Message
	odd.SetApplicationProperties(map[string]string{"sequence": "-1"})
	require.Zero(t, odd.Sequence)
}

func TestBodyInHistory(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]string{
		`{"a":1}`: `"{\"a\":1}"`, "": `""`, "\xff": `{"base64":"/w=="}`,
	} {
		b, err := json.Marshal(job.Body(body))
		require.NoError(t, err)
		require.Equal(t, want, string(b))
		var back job.Body
		require.NoError(t, json.Unmarshal(b, &back))
		require.Equal(t, body, string(back))
	}
	var b job.Body
	require.ErrorIs(t, json.Unmarshal([]byte(`{"base64":"!"}`), &b), job.ErrInvalid)
}

func FuzzCheck(f *testing.F) {
	for _, name := range []string{"job.json", "update.json", "failed.json", "receipt.json"} {
		b, err := os.ReadFile(filepath.Join("testdata", "wire", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add("", b)
		f.Add("update", b)
		f.Add("job", b[:len(b)/2])
	}
	f.Fuzz(func(t *testing.T, kind string, body []byte) {
		m, err := job.Message{Kind: job.Kind(kind), Body: body}.Check()
		if err != nil {
			if !errors.Is(err, job.ErrInvalid) {
				t.Fatalf("error of another kind: %v", err)
			}
			if strings.ContainsAny(err.Error(), "\n") {
				t.Fatalf("more than one line: %q", err)
			}
			return
		}
		again, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		var back job.Message
		if err := json.Unmarshal(again, &back); err != nil {
			t.Fatalf("%s: %v", again, err)
		}
		if string(back.Body) != string(m.Body) {
			t.Fatalf("body changed: %q, was %q", back.Body, m.Body)
		}
	})
}
