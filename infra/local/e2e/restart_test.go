package e2e

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/hubjobs/hubjobs/job"
)

// anyPort makes up and demo listen where nobody else does.
var anyPort = []string{
	"HUBJOBS_TEMPORAL_ADDR=127.0.0.1:0", "HUBJOBS_UI_ADDR=127.0.0.1:0", "HUBJOBS_AMQPS_ADDR=127.0.0.1:0",
	"HUBJOBS_AMQP_ADDR=127.0.0.1:0", "HUBJOBS_MQTTS_ADDR=127.0.0.1:0", "HUBJOBS_HTTPS_ADDR=127.0.0.1:0",
	"HUBJOBS_MANAGER_ADDR=127.0.0.1:0", "HUBJOBS_SOLVER_ADDR=127.0.0.1:0", "HUBJOBS_SCHEDULER_ADDR=127.0.0.1:0",
}

func TestDemo(t *testing.T) {
	t.Parallel()
	code, out, errs := run(t, nil, "infra/local", "demo", "--step-time", "0s", "--output", "json")
	require.Zero(t, code, errs)
	r := lastLine[struct {
		JobID         string  `json:"jobId"`
		Status        string  `json:"status"`
		Steps         int     `json:"steps"`
		Sent          int     `json:"sent"`
		Delivered     int     `json:"delivered"`
		Read          int     `json:"read"`
		HistoryEvents int     `json:"historyEvents"`
		Seconds       float64 `json:"seconds"`
		UIURL         string  `json:"uiUrl"`
	}](t, out)
	require.NoError(t, job.ValidateID(r.JobID))
	require.Equal(t, "Completed", r.Status)
	require.Equal(t, []int{7, 15, 15, 15}, []int{r.Steps, r.Sent, r.Delivered, r.Read})
	require.Contains(t, r.UIURL, "/workflows/"+r.JobID)
	require.Positive(t, r.Seconds)
	// A limit on costs: about 35 events an update would mean that nothing is batched any more.
	require.Less(t, r.HistoryEvents, 500)
	require.Contains(t, errs, "starting Temporal")
}

func TestJobContinuesAfterEverythingWasKilled(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	env := append([]string{"HUBJOBS_DATA_DIR=" + dir}, anyPort...)
	starterEnv := []string{"HUBJOBS_ENV_FILE=" + filepath.Join(dir, "hubjobs.env")}

	up := spawn(t, env, nil, "infra/local", "up")
	up.until(up.out, "what to do next", contains("starter"))
	id := "job-e2e-killed"
	code, _, errs := run(t, starterEnv, "starter", "run", "--detach", "--id", id, "--step-time", "1s", "--receipt-timeout", "5s")
	require.Zero(t, code, errs)
	follow := spawn(t, starterEnv, nil, "starter", "attach", id, "--output", "json")
	follow.until(follow.out, "third update", times(3, `"event":"update"`))
	up.signal(syscall.SIGKILL)
	<-up.done

	up = spawn(t, env, nil, "infra/local", "up")
	up.until(up.out, "what to do next", contains("starter"))
	code, out, errs := run(t, starterEnv, "starter", "attach", id, "--output", "json")
	require.Zero(t, code, errs+up.out.String()+up.errs.String())
	r := lastLine[result](t, out)
	require.Equal(t, job.StateCompleted, r.State, r.Reason)
	require.Len(t, r.Updates, 14, "an update was lost or applied twice")
	require.Equal(t, r.Messages.Sent, r.Messages.Read)

	code, out, errs = run(t, starterEnv, "starter", "hub", "devices", "--output", "json")
	require.Zero(t, code, errs)
	require.False(t, strings.Contains(out, id), "identities are left behind")
	up.signal(syscall.SIGINT)
	require.Contains(t, []int{0, 130}, up.wait(), up.errs.String())
}
