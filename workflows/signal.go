package workflows

import "go.temporal.io/sdk/workflow"

// on makes the selector apply the signals of one name.
func on[T any](ctx workflow.Context, s workflow.Selector, signal string, apply func(T)) {
	s.AddReceive(workflow.GetSignalChannel(ctx, signal), func(c workflow.ReceiveChannel, _ bool) {
		var in T
		c.Receive(ctx, &in)
		apply(in)
	})
}

// drain applies the signals of one name that have come but were not received yet. A workflow does so before its last
// word: what it leaves behind is lost.
func drain[T any](ctx workflow.Context, signal string, apply func(T)) {
	for c := workflow.GetSignalChannel(ctx, signal); ; {
		var in T
		if !c.ReceiveAsync(&in) {
			return
		}
		apply(in)
	}
}
