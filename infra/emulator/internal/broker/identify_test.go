package broker

import (
	"testing"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

func TestNamespaceIdentifiesMessages(t *testing.T) {
	t.Parallel()
	n := NewNamespace(store.Memory())
	t.Cleanup(n.Close)
	queue, err := n.CreateQueue("queue", QueueOptions{})
	if err != nil {
		t.Fatal(err)
	}
	shared := &amqp.Properties{}
	own := &amqp.Properties{MessageID: "own"}
	for _, p := range []*amqp.Properties{nil, shared, own} {
		if err := queue.Send(t.Context(), &amqp.Message{Properties: p, Data: [][]byte{{1}}}); err != nil {
			t.Fatal(err)
		}
	}
	if shared.MessageID != nil {
		t.Error("the caller's properties are changed")
	}
	seen := map[any]bool{}
	for _, d := range queue.Peek(0, 10) {
		id, _ := d.Message.Properties.MessageID.(string)
		if len(id) != 32 && id != "own" || seen[id] {
			t.Errorf("message ID is %q", id)
		}
		seen[id] = true
	}
	if len(seen) != 3 {
		t.Errorf("%d messages have IDs, want 3", len(seen))
	}
}
