package report

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/hubjobs/hubjobs/job"
)

var start = time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)

func after(d time.Duration) time.Time { return start.Add(d) }

func example() Report {
	return Report{
		Snapshot: job.Snapshot{
			JobID: "job-1", State: job.StateUnconfirmed, Reason: "2 messages were never read",
			Steps: []string{"Work", job.StepDone}, StepsDone: 2, StartedAt: start,
			Messages: job.Counts{Sent: 2, Accepted: 2, Delivered: 1, Read: 1},
		},
		Audit: job.Audit{Messages: []job.MessageRow{
			{Kind: job.KindJob, From: "device-scheduler::job-1", SentAt: after(120 * time.Millisecond),
				DeliveredAt: after(250 * time.Millisecond), ReadAt: after(time.Second)},
			{Kind: job.KindUpdate, From: "device-solver::job-1", Step: "Work", Status: job.StatusInProgress, SentAt: after(2 * time.Second)},
			{Kind: job.KindReceipt, From: "device-solver::job-1", SentAt: after(time.Second)},
		}},
		Events: 71,
		Took:   3456 * time.Millisecond,
		URL:    "http://127.0.0.1:8233/namespaces/default/workflows/job-1/run/history",
	}
}

func TestWriteText(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	if err := example().WriteText(&out); err != nil {
		t.Fatal(err)
	}
	const want = `
MESSAGE            FROM       SENT    DELIVERED  READ
job                scheduler  0.12 s  0.25 s     1.00 s
Work: In Progress  solver     2.00 s  -          -
all                both       2       1          1

job-1: Unconfirmed, 2 of 2 steps, 71 history events, 3.5 s
2 messages were never read
http://127.0.0.1:8233/namespaces/default/workflows/job-1/run/history
`
	if out.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", out.String(), want)
	}
}

func TestWriteJSON(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	if err := example().WriteJSON(&out); err != nil {
		t.Fatal(err)
	}
	if strings.Count(out.String(), "\n") != 1 || !strings.HasSuffix(out.String(), "\n") {
		t.Errorf("not one line: %q", out.String())
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(out.String()), &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"jobId": "job-1", "status": "Unconfirmed", "reason": "2 messages were never read",
		"steps": 2.0, "sent": 2.0, "delivered": 1.0, "read": 1.0,
		"historyEvents": 71.0, "seconds": 3.456,
		"uiUrl": "http://127.0.0.1:8233/namespaces/default/workflows/job-1/run/history",
	}
	for name, value := range want {
		if got[name] != value {
			t.Errorf("%s = %v, want %v", name, got[name], value)
		}
	}
}
