package activities

import (
	"context"
	"slices"

	"github.com/hubjobs/hubjobs/job"
)

// ledger is the heartbeat of an activity that hands over messages one by one: which are done, so that a retry goes on
// where the last attempt stopped.
type ledger struct {
	Done    []string      `json:"done,omitempty"` // message IDs
	Refused []job.Refusal `json:"refused,omitempty"`
}

func (l *ledger) has(messageID string) bool {
	return slices.Contains(l.Done, messageID) ||
		slices.ContainsFunc(l.Refused, func(r job.Refusal) bool { return r.MessageID == messageID })
}

// inOrder calls handle for each message that no attempt has handled yet. A returned refusal settles the message; an
// error ends the attempt.
func inOrder(ctx context.Context, messages []job.Message,
	handle func(context.Context, job.Message) (*job.Refusal, error)) (ledger, error) {
	done := lastDetails[ledger](ctx)
	beat := startHeartbeat(ctx, done)
	defer beat.stop()
	for _, m := range messages {
		if done.has(m.ID) {
			continue
		}
		refusal, err := withDeadline(ctx, func(ctx context.Context) (*job.Refusal, error) { return handle(ctx, m) })
		switch {
		case err != nil:
			return done, err
		case refusal != nil:
			done.Refused = append(done.Refused, *refusal)
		default:
			done.Done = append(done.Done, m.ID)
		}
		beat.update(ctx, done)
	}
	return done, nil
}
