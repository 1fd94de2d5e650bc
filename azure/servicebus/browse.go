package servicebus

import (
	"context"
	"iter"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"
)

// browseBatch is how many messages one call asks for. The service gives 250 at most (Service Bus docs, "Message
// browsing"), and fewer of large ones.
const browseBatch = 64

// Browse yields the messages of a source in the order of their sequence numbers, from the given number on, without
// locking them: those that somebody else has locked as well. It ends where the source ended when that was reached. An
// error is the last thing it yields.
func (c *Client) Browse(ctx context.Context, from Source, first int64) iter.Seq2[*Received, error] {
	return func(yield func(*Received, error) bool) {
		receiver, err := c.newReceiver("browse", from)
		if err != nil {
			yield(nil, err)
			return
		}
		defer c.closeReceiver(context.WithoutCancel(ctx), receiver)
		for {
			messages, err := c.peek(ctx, from, receiver, first, browseBatch)
			if err != nil {
				yield(nil, err)
				return
			}
			for _, m := range messages {
				r := received(m)
				if !yield(&r, nil) {
					return
				}
				first = r.SequenceNumber + 1
			}
			if len(messages) == 0 {
				return
			}
		}
	}
}

// Find looks for messages by their sequence numbers, without locking them. What isn't there isn't in the result.
func (c *Client) Find(ctx context.Context, from Source, numbers ...int64) (map[int64]*Received, error) {
	receiver, err := c.newReceiver("browse", from)
	if err != nil {
		return nil, err
	}
	defer c.closeReceiver(context.WithoutCancel(ctx), receiver)
	found := make(map[int64]*Received, len(numbers))
	for _, number := range numbers {
		messages, err := c.peek(ctx, from, receiver, number, 1)
		if err != nil {
			return nil, err
		}
		for _, m := range messages {
			if r := received(m); r.SequenceNumber == number {
				found[number] = &r
			}
		}
	}
	return found, nil
}

func (c *Client) peek(ctx context.Context, from Source, receiver *azservicebus.Receiver, first int64, count int) ([]*azservicebus.ReceivedMessage, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	messages, err := receiver.PeekMessages(ctx, count, &azservicebus.PeekMessagesOptions{FromSequenceNumber: &first})
	return messages, classify("browse "+from.String(), err)
}
