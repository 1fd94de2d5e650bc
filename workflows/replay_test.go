package workflows_test

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/workflows"
)

func replayer() worker.WorkflowReplayer {
	r := worker.NewWorkflowReplayer()
	r.RegisterWorkflowWithOptions(workflows.Job, workflow.RegisterOptions{Name: job.WorkflowJob})
	r.RegisterWorkflowWithOptions(workflows.Solve, workflow.RegisterOptions{Name: job.WorkflowSolve})
	r.RegisterWorkflowWithOptions(workflows.Relay, workflow.RegisterOptions{Name: job.WorkflowRelay})
	return r
}

// Each file is the history of a run of an earlier version, named by its situation. Today's code must be able to go on
// with it; files are added, never replaced.
func TestRecordedHistoriesReplay(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/histories/*.json")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			require.NoError(t, replayer().ReplayWorkflowHistoryFromJSONFile(nil, file))
		})
	}
}

// These histories are of no version that ever was: a step more, or one at another place.
func TestIncompatibleHistoriesAreRejected(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/incompatible/*.json")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			err := replayer().ReplayWorkflowHistoryFromJSONFile(nil, file)
			require.ErrorContains(t, err, "TMPRL1100", "the SDK's mark of a workflow that is not deterministic")
		})
	}
}
