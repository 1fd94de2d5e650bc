package job_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hubjobs/hubjobs/job"
)

func TestNewID(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 4, 4, 5, 0, time.FixedZone("", 3600))
	for user, want := range map[string]string{
		"ann":                   "job-ann-2026-01-02-03-04-05-abc",
		`CORP\Ann.B`:            "job-corpannb-2026-01-02-03-04-05-abc",
		"":                      "job-user-2026-01-02-03-04-05-abc",
		"山田":                    "job-user-2026-01-02-03-04-05-abc",
		strings.Repeat("a", 99): "job-" + strings.Repeat("a", 32) + "-2026-01-02-03-04-05-abc",
	} {
		got := job.NewID(user, at, "abc")
		require.Equal(t, want, got)
		require.NoError(t, job.ValidateID(got))
	}
}

func TestIDsMadeFromTheLongestJobIDAreValid(t *testing.T) {
	t.Parallel()
	longest := strings.Repeat("x", job.MaxIDLength)
	require.NoError(t, job.ValidateID(longest))
	require.ErrorIs(t, job.ValidateID(longest+"x"), job.ErrInvalid)
	require.NoError(t, job.ValidateDeviceID(job.DeviceID(job.RoleScheduler, longest)))
	for _, id := range []string{
		job.MessageID(longest, job.RoleScheduler, 2*job.MaxSteps+1),
		job.ReceiptID(longest, job.RoleScheduler, 2*job.MaxSteps+1),
	} {
		require.LessOrEqual(t, len(id), job.MaxMessageIDLength)
	}
}

func TestValidateID(t *testing.T) {
	t.Parallel()
	for id, want := range map[string]string{"": "empty", "a::b": `contains "::"`, "a/b": "contains '/'", "a\n": `contains '\n'`} {
		err := job.ValidateID(id)
		require.ErrorIs(t, err, job.ErrInvalid)
		require.ErrorContains(t, err, want)
	}
}

func TestValidateDeviceID(t *testing.T) {
	t.Parallel()
	require.NoError(t, job.ValidateDeviceID("aZ9-:.+%_#*?!(),=@;$'"))
	require.NoError(t, job.ValidateDeviceID(strings.Repeat("d", 128)))
	for _, id := range []string{"", strings.Repeat("d", 129), "a b", "ü", "a/b"} {
		require.ErrorIs(t, job.ValidateDeviceID(id), job.ErrInvalid, id)
	}
}

func TestCounterpart(t *testing.T) {
	t.Parallel()
	for id, want := range map[string]string{
		"device-scheduler::foo":      "device-solver::foo",
		"device-solver::foo":         "device-scheduler::foo",
		"device-solver::foo::bar":    "device-scheduler::foo::bar",
		"device-solver::":            "",
		"::foo":                      "",
		"device-solver":              "",
		"camera::foo":                "",
		"DEVICE-SOLVER::foo":         "", // device IDs are case-sensitive
		"device-scheduler::job-1::2": "device-solver::job-1::2",
	} {
		got, ok := job.Counterpart(id)
		require.Equal(t, want, got, id)
		require.Equal(t, want != "", ok, id)
	}
}

func TestTarget(t *testing.T) {
	t.Parallel()
	target, ok := job.Message{From: "device-solver::x", To: "device-a::b"}.Target()
	require.True(t, ok)
	require.Equal(t, "device-a::b", target)
	target, ok = job.Message{From: "device-solver::x"}.Target()
	require.True(t, ok)
	require.Equal(t, "device-scheduler::x", target)
}

func TestNewAppendsDone(t *testing.T) {
	t.Parallel()
	j, err := job.New("x", "", []string{"a"})
	require.NoError(t, err)
	require.Equal(t, []string{"a", "Done"}, j.Steps)
	require.Equal(t, job.DefaultName, j.Name)
	_, err = job.New("x", "", nil)
	require.ErrorIs(t, err, job.ErrInvalid)
	for name, steps := range map[string][]string{
		"too many":         make([]string, job.MaxSteps+1),
		"done too early":   {"a", job.StepDone, "b"},
		"too much to send": slices.Repeat([]string{strings.Repeat("x", job.MaxStepLength)}, 300),
	} {
		_, err = job.New("x", "", steps)
		require.ErrorIs(t, err, job.ErrInvalid, name)
	}
}

func TestTheLargestJobFitsIntoItsMessages(t *testing.T) {
	t.Parallel()
	id := strings.Repeat("x", job.MaxIDLength)
	j, err := job.New(id, "n", slices.Repeat([]string{strings.Repeat("ü", job.MaxStepLength)}, 118))
	require.NoError(t, err)
	body, err := job.Encode(j)
	require.NoError(t, err)
	m := job.Message{ID: job.MessageID(id, job.RoleScheduler, 1), CorrelationID: id, Kind: job.KindJob, Sequence: 1,
		From: job.DeviceID(job.RoleScheduler, id), To: job.DeviceID(job.RoleSolver, id), Body: body,
		ContentType: job.ContentTypeJSON, ContentEncoding: job.ContentEncodingUTF8}
	require.Greater(t, m.Size(), job.MaxJobSize-job.MaxStepLength*2)
	require.LessOrEqual(t, m.Size(), job.MaxCloudToDeviceSize)
}

func TestErrorKinds(t *testing.T) {
	t.Parallel()
	err := error(&job.Error{Op: "send to d1", Kind: job.ErrQueueFull, Err: errors.New("50 wait")})
	require.EqualError(t, err, "send to d1: device queue is full: 50 wait")
	require.Equal(t, "QueueFull", job.ErrorType(err))
	require.True(t, job.Retryable(err))
	require.False(t, job.Retryable(&job.Error{Kind: job.ErrTooLarge}))
	require.True(t, job.Retryable(&job.Error{Kind: job.ErrThrottled}))
	require.Equal(t, "Unknown", job.ErrorType(errors.New("x")))
}

func TestOptions(t *testing.T) {
	t.Parallel()
	require.NoError(t, job.Options{}.WithDefaults().Validate())
	negative := -time.Second
	for name, o := range map[string]job.Options{
		"timeout": {Timeout: -1}, "TTL over two days": {MessageTTL: 49 * time.Hour}, "window": {Window: 51},
		"attempts": {ReceiptAttempts: 101}, "retries": {Solver: job.SolverOptions{StepRetries: -1}},
		"step time": {Solver: job.SolverOptions{StepTime: &negative}},
	} {
		require.ErrorIs(t, o.Validate(), job.ErrInvalid, name)
	}
	require.NoError(t, job.Options{MessageTTL: 48 * time.Hour, Window: 50, ReceiptAttempts: 100}.Validate())
}
