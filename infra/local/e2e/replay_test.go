package e2e

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/workflows"
)

// record makes TestHistoriesReplay keep the histories that it has replayed, for the replay test of package workflows:
//
//	go test ./infra/local/e2e -run TestHistoriesReplay -record "$PWD/workflows/testdata/histories"
var record = flag.String("record", "", "folder to write the replayed histories to")

func TestHistoriesReplay(t *testing.T) {
	t.Parallel()
	s := theStack(t)
	for name, c := range map[string]struct {
		flags []string
		after string // text that is waited for before the job is cancelled; empty: it isn't
		code  int
	}{
		"completed":             {flags: []string{"--step-time", "0s"}},
		"completed-slowly":      {flags: []string{"--step-time", "1200ms", "--step", "Collect", "--step", "Train"}},
		"cancelled":             {flags: []string{"--step-time", "1h"}, after: `"event":"update"`, code: 3},
		"deadline-passed":       {flags: []string{"--step-time", "1h", "--timeout", "3s"}, code: 5},
		"step-timed-out":        {flags: []string{"--step-time", "1h", "--step-timeout", "1s"}, code: 2},
		"step-failed-and-again": {flags: []string{"--step-time", "1h", "--step-timeout", "1s", "--step-retries", "1"}, code: 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			id := "job-ann-" + name
			p := spawn(t, s.env, nil, "starter", append([]string{"run", "--output", "json", "--user", "ann", "--id", id}, c.flags...)...)
			if c.after != "" {
				p.until(p.out, c.after, contains(c.after))
				code, _, errs := run(t, s.env, "starter", "cancel", id, "--reason", "changed my mind", "--user", "ann")
				require.Zero(t, code, errs)
			}
			require.Equal(t, c.code, p.wait(), p.out.String()+p.errs.String())
			var solved job.SolveResult
			require.NoError(t, s.temporal.GetWorkflow(within(t), job.SolveWorkflowID(id), "").Get(within(t), &solved))
			s.replay(t, id, "job-"+name)
			s.replay(t, job.SolveWorkflowID(id), "solve-"+name)
		})
	}
}

// replay replays a workflow's history with today's code, and keeps it if that was asked for.
func (s *stack) replay(t *testing.T, workflowID, file string) {
	t.Helper()
	history := &historypb.History{}
	iter := s.temporal.GetWorkflowHistory(within(t), workflowID, "", false, enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
	for iter.HasNext() {
		event, err := iter.Next()
		require.NoError(t, err)
		history.Events = append(history.Events, event)
	}
	replayer := worker.NewWorkflowReplayer()
	for name, f := range map[string]any{
		job.WorkflowJob: workflows.Job, job.WorkflowSolve: workflows.Solve, job.WorkflowRelay: workflows.Relay,
	} {
		replayer.RegisterWorkflowWithOptions(f, workflow.RegisterOptions{Name: name})
	}
	require.NoError(t, replayer.ReplayWorkflowHistory(silent{}, history))
	if *record == "" {
		return
	}
	text, err := protojson.MarshalOptions{Multiline: true, Indent: " "}.Marshal(history)
	require.NoError(t, err)
	// Who ran it where is no part of what is replayed.
	text = regexp.MustCompile(`"identity":( *)"[^"]*"`).ReplaceAll(text, []byte(`"identity":$1"worker"`))
	require.NoError(t, os.WriteFile(filepath.Join(*record, file+".json"), append(text, '\n'), 0o644))
}
