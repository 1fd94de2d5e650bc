package e2e

import (
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/hubjobs/hubjobs/job"
)

// console is a device console with a keyboard.
type console struct {
	*process
	keyboard *os.File
}

// newConsole starts a device console and waits until it is connected.
func newConsole(t *testing.T, s *stack, deviceID string) console {
	t.Helper()
	screen, keyboard, err := os.Pipe()
	require.NoError(t, err)
	t.Cleanup(func() { _ = keyboard.Close() })
	p := spawn(t, s.env, screen, "consoles/console-device", "--device-id", deviceID, "--deregister", "--output", "json")
	require.NoError(t, screen.Close())
	p.until(p.out, "connection", contains(`"event":"connected"`))
	return console{p, keyboard}
}

func (c console) types(line string) {
	c.t.Helper()
	_, err := c.keyboard.WriteString(line + "\n")
	require.NoError(c.t, err)
}

// event is a line of a console's output.
type event struct {
	Event    string `json:"event"`
	DeviceID string `json:"deviceId"`
	Message  struct {
		Body       string         `json:"body"`
		Properties map[string]any `json:"properties"`
		System     map[string]any `json:"systemProperties"`
	} `json:"message"`
}

func TestTwoConsolesTalkThroughHubAndRelay(t *testing.T) {
	t.Parallel()
	s := theStack(t)
	scheduler, solver := "device-scheduler::foo", "device-solver::foo"
	one, other := newConsole(t, s, scheduler), newConsole(t, s, solver)
	cloud := spawn(t, s.env, nil, "consoles/console-cloud", "monitor", "--all", "--output", "json")

	one.types("Is anybody there?")
	other.until(other.out, "the question", contains("Is anybody there?"))
	for _, answer := range []string{"Yes: three of us, at 100 %.", "first", "second", "third"} {
		other.types(answer)
		one.until(one.out, answer, contains(answer))
	}
	var heard []string
	for _, e := range everyLine[event](t, one.out.String()) {
		if e.Event == "received" {
			heard = append(heard, e.Message.Body)
		}
	}
	require.Equal(t, []string{"Yes: three of us, at 100 %.", "first", "second", "third"}, heard)
	require.Contains(t, one.out.String(), solver, "the message does not say who sent it")

	cloud.until(cloud.out, "device message", contains("third"))
	require.Contains(t, cloud.out.String(), "iothub-connection-device-id")
	cloud.signal(syscall.SIGINT)
	require.Zero(t, cloud.wait(), cloud.errs.String())

	code, out, errs := run(t, s.env, "consoles/console-cloud", "devices", "--output", "json")
	require.Zero(t, code, errs)
	require.Contains(t, out, scheduler)
	require.Contains(t, out, `"Connected"`)
	code, out, errs = run(t, s.env, "consoles/console-cloud", "stats", "--output", "json")
	require.Zero(t, code, errs)
	require.Contains(t, out, `"statistics"`)

	audit, err := s.temporal.QueryWorkflow(within(t), job.RelayWorkflowID("foo"), "", job.QueryAudit)
	require.NoError(t, err, "the pair's messages did not travel through a Relay workflow")
	var rows job.Audit
	require.NoError(t, audit.Get(&rows))
	require.Len(t, rows.Messages, 5)
	s.replay(t, job.RelayWorkflowID("foo"), "relay-pair")

	for _, c := range []console{one, other} {
		c.types("") // an empty line ends a console
		require.Zero(t, c.wait(), c.errs.String())
	}
	code, out, errs = run(t, s.env, "starter", "hub", "devices", "--output", "json")
	require.Zero(t, code, errs)
	require.False(t, strings.Contains(out, "::foo"), "identities are left behind")
}
