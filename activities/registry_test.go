package activities

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/hubjobs/hubjobs/job"
)

// registry is an identity registry in memory.
type registry struct {
	devices map[string]bool
	err     error
}

func (r *registry) EnsureDevice(_ context.Context, id string) (bool, error) {
	if r.err != nil {
		return false, r.err
	}
	created := !r.devices[id]
	r.devices[id] = true
	return created, nil
}

func (r *registry) DeleteDevice(_ context.Context, id string) (bool, error) {
	if r.err != nil {
		return false, r.err
	}
	existed := r.devices[id]
	delete(r.devices, id)
	return existed, nil
}

func TestNegotiate(t *testing.T) {
	t.Parallel()
	r := &registry{devices: map[string]bool{"device-solver::job-1": true}}
	a := &Identities{Registry: r}
	in := job.NegotiateInput{DeviceIDs: []string{"device-scheduler::job-1", "device-solver::job-1"}}
	for _, want := range [][]string{{"device-scheduler::job-1"}, nil} { // the second time is a retry
		out, err := run(t, attempt{}, job.Negotiate, a.Negotiate, in)
		if err != nil || !slices.Equal(out.Created, want) {
			t.Errorf("got %v, %v; want %v created", out.Created, err, want)
		}
	}
	if len(r.devices) != 2 {
		t.Errorf("the registry has %v", r.devices)
	}
}

func TestDeregister(t *testing.T) {
	t.Parallel()
	r := &registry{devices: map[string]bool{"d1": true}}
	a := &Identities{Registry: r}
	if _, err := run(t, attempt{}, job.Deregister, a.Deregister, job.DeregisterInput{DeviceIDs: []string{"d1", "d2"}}); err != nil {
		t.Fatal(err)
	}
	if len(r.devices) != 0 {
		t.Errorf("the registry still has %v", r.devices)
	}
}

func TestIdentitiesFail(t *testing.T) {
	t.Parallel()
	a := &Identities{Registry: &registry{err: &job.Error{Op: "PUT", Kind: job.ErrThrottled}}}
	for name, c := range map[string]struct {
		id       string
		typeName string
		message  string
	}{
		"the registry's error":      {"d1", "Throttled", `device "d1": PUT: throttled`},
		"a device ID that can't be": {"d 1", "Invalid", `the device ID "d 1" contains ' '`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := run(t, attempt{}, job.Negotiate, a.Negotiate, job.NegotiateInput{DeviceIDs: []string{c.id}})
			if app := application(t, err); app.Type() != c.typeName || !strings.Contains(app.Message(), c.message) {
				t.Errorf("Negotiate: got %s: %s", app.Type(), app.Message())
			}
			_, err = run(t, attempt{}, job.Deregister, a.Deregister, job.DeregisterInput{DeviceIDs: []string{c.id}})
			if app := application(t, err); app.Type() != c.typeName || !strings.Contains(app.Message(), c.message) {
				t.Errorf("Deregister: got %s: %s", app.Type(), app.Message())
			}
		})
	}
}
