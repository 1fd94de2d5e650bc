package activities

import (
	"context"
	"slices"
	"sync"

	"github.com/hubjobs/hubjobs/job"
)

// maxRemembered is how many workflows a host remembers at the most. Those that end well are forgotten earlier.
const maxRemembered = 4096

// stepMemory is what a host knows of its steps without the server. While that is out of reach, heartbeats are lost and
// it gives up the attempt; the next one, which finds the same host, must not run beside it, nor run again what it has
// completed.
type stepMemory struct {
	mu    sync.Mutex
	turns map[string]*turn // by workflow ID
	order []string         // workflow IDs, oldest first
}

// turn is held by whoever runs a step of one workflow.
type turn struct {
	held   chan struct{} // holds a value while it is held, and then guards what follows
	step   stepKey       // completed last; zero for none
	output string
}

// stepKey tells the runs of a workflow's steps apart.
type stepKey struct{ sequence, attempt int }

func keyOf(in job.RunStepInput) stepKey { return stepKey{in.Sequence, in.Attempt} }

// take waits for the workflow's turn. The caller must release it.
func (m *stepMemory) take(ctx context.Context, workflowID string) (*turn, error) {
	t := m.turn(workflowID)
	select {
	case t.held <- struct{}{}:
		return t, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (m *stepMemory) turn(workflowID string) *turn {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t := m.turns[workflowID]; t != nil {
		return t
	}
	if m.turns == nil {
		m.turns = make(map[string]*turn)
	}
	if len(m.order) >= maxRemembered {
		delete(m.turns, m.order[0])
		m.order = m.order[1:]
	}
	t := &turn{held: make(chan struct{}, 1)}
	m.turns[workflowID] = t
	m.order = append(m.order, workflowID)
	return t
}

// forget drops what is known of a workflow that runs no more steps here.
func (m *stepMemory) forget(workflowID string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.turns, workflowID)
	m.order = slices.DeleteFunc(m.order, func(id string) bool { return id == workflowID })
}

func (t *turn) release() { <-t.held }
