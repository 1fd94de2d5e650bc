package hub

import (
	"context"
	"fmt"
	"time"

	"github.com/amenzhinsky/iothub/eventhub"

	"github.com/hubjobs/hubjobs/consoles/internal/endpoint"
	"github.com/hubjobs/hubjobs/consoles/internal/event"
)

// closeGrace is how long a subscription may take to end in good order before its connection is cut.
const closeGrace = 3 * time.Second

// Monitor reads the messages that devices sent to the hub after the time, from all partitions of the built-in event
// stream, until the context ends, which is success, or the connection does. A zero time means from the start of the stream.
// connected is called with the stream's host when the stream is reached, observe with each message and its sender.
func (c *Client) Monitor(ctx context.Context, since time.Time, connected func(host string), observe func(deviceID string, m event.Message)) error {
	err := c.monitor(ctx, since, connected, observe)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (c *Client) monitor(ctx context.Context, since time.Time, connected func(host string), observe func(string, event.Message)) error {
	found, err := c.discover(ctx)
	if err != nil {
		return fmt.Errorf("find the event stream of %s: %w", c.key.HostName, err)
	}
	client, err := c.dialStream(ctx, found)
	if err != nil {
		return fmt.Errorf("connect to the event stream %q at %s: %w", found.name, found.host, endpoint.Explain(err))
	}
	defer client.Close()
	connected(endpoint.HostOnly(found.host))
	var options []eventhub.SubscribeOption
	if !since.IsZero() {
		options = append(options, eventhub.WithSubscribeSince(since))
	}
	err = subscribe(ctx, client, options, func(e *eventhub.Event) error {
		observe(observed(e.Message))
		return nil
	})
	return fmt.Errorf("read the event stream %q: %w", found.name, err)
}

// dialStream connects to the event stream. The library's call knows neither context nor deadline, so it runs on its own;
// should it succeed after nobody waits for it any more, the connection is closed again.
func (c *Client) dialStream(ctx context.Context, found stream) (*eventhub.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, c.options.Timeout)
	defer cancel()
	address := found.host // the library adds port 5671 where there is none
	if c.options.AMQPSAddress != "" {
		address = c.options.AMQPSAddress
	}
	type outcome struct {
		client *eventhub.Client
		err    error
	}
	dialled := make(chan outcome)
	go func() {
		client, err := eventhub.Dial(address, found.name, c.streamOptions(found.host)...)
		select {
		case dialled <- outcome{client, err}:
		case <-ctx.Done():
			if err == nil {
				_ = client.Close() // nobody is left to tell
			}
		}
	}()
	select {
	case o := <-dialled:
		return o.client, o.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// streamOptions authenticate with the policy's key, which the stream takes as a password.
func (c *Client) streamOptions(host string) []eventhub.Option {
	return []eventhub.Option{
		eventhub.WithTLSConfig(endpoint.TLS(c.options.Roots, host)),
		eventhub.WithSASLPlain(c.key.SharedAccessKeyName, c.key.SharedAccessKey),
	}
}

// subscribe reads until the context ends or the connection does. Two weaknesses of the library are contained here: it says
// farewell without a deadline when the context ends, and it panics on an answer without properties.
func subscribe(ctx context.Context, client *eventhub.Client, options []eventhub.SubscribeOption, handle func(*eventhub.Event) error) (err error) {
	ended := make(chan struct{})
	defer close(ended)
	defer context.AfterFunc(ctx, func() {
		select {
		case <-ended:
		case <-time.After(closeGrace):
			_ = client.Close() // ends the farewell
		}
	})()
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("unexpected answer: %v", p)
		}
	}()
	return client.Subscribe(ctx, handle, options...)
}
