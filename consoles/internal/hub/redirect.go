package hub

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/Azure/go-amqp"
	"github.com/amenzhinsky/iothub/eventhub"

	"github.com/hubjobs/hubjobs/consoles/internal/endpoint"
)

// The hub's side of the redirect (IoT Hub docs: "Read device-to-cloud messages from the built-in endpoint"; iotservice,
// connectToEventHub). A receiver of this address is refused with amqp:link:redirect and told where the stream is.
const eventsAddress = "messages/events/"

// Claims-based security (AMQP CBS 1.0; iotservice, putToken).
const (
	cbsAddress    = "$cbs"
	cbsReplyTo    = "cbs"
	cbsTokenType  = "servicebus.windows.net:sastoken"
	tokenLifetime = 10 * time.Minute // only as long as it takes to be redirected
)

// stream is where the hub's built-in event stream is.
type stream struct {
	host string // may have a port
	name string // of the event hub
}

// discover asks the hub where its event stream is. The library can do it too, but only for a hub at port 5671.
func (c *Client) discover(ctx context.Context) (stream, error) {
	ctx, cancel := context.WithTimeout(ctx, c.options.Timeout)
	defer cancel()
	conn, err := c.dial(ctx)
	if err != nil {
		return stream{}, err
	}
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	defer conn.Close()
	session, err := conn.NewSession(ctx, nil)
	if err != nil {
		return stream{}, err
	}
	if err := c.putToken(ctx, session); err != nil {
		return stream{}, err
	}
	return redirected(refusal(ctx, session))
}

// dial connects to the hub itself, without a SASL layer as the token follows on $cbs.
func (c *Client) dial(ctx context.Context) (*amqp.Conn, error) {
	dialer := tls.Dialer{Config: endpoint.TLS(c.options.Roots, c.key.HostName)}
	transport, err := dialer.DialContext(ctx, "tcp", endpoint.Address(c.options.AMQPSAddress, c.key.HostName, amqpsPort))
	if err != nil {
		return nil, endpoint.Explain(err)
	}
	conn, err := amqp.NewConn(transport, &amqp.ConnOptions{HostName: endpoint.HostOnly(c.key.HostName), Timeout: c.options.Timeout})
	if err != nil {
		_ = transport.Close() // the error of connecting says more
		return nil, err
	}
	return conn, nil
}

// putToken authenticates the connection. The error is of kind [ErrRefused] if the hub does not accept the token.
func (c *Client) putToken(ctx context.Context, session *amqp.Session) error {
	token, err := c.key.Token(c.key.HostName, tokenLifetime)
	if err != nil {
		return fmt.Errorf("make token: %w", err)
	}
	answer, err := exchange(ctx, session, &amqp.Message{
		Value:      token.String(),
		Properties: &amqp.MessageProperties{To: new(cbsAddress), ReplyTo: new(cbsReplyTo)},
		ApplicationProperties: map[string]any{
			"operation": "put-token",
			"type":      cbsTokenType,
			"name":      c.key.HostName,
		},
	})
	if err != nil {
		return fmt.Errorf("put token: %w", err)
	}
	if err := eventhub.CheckMessageResponse(answer); err != nil {
		return fmt.Errorf("%w (%w)", ErrRefused, err)
	}
	return nil
}

// exchange sends a request to $cbs and returns the answer.
func exchange(ctx context.Context, session *amqp.Session, request *amqp.Message) (*amqp.Message, error) {
	sender, err := session.NewSender(ctx, cbsAddress, nil)
	if err != nil {
		return nil, err
	}
	receiver, err := session.NewReceiver(ctx, cbsAddress, nil)
	if err != nil {
		return nil, err
	}
	if err := sender.Send(ctx, request); err != nil {
		return nil, err
	}
	answer, err := receiver.Receive(ctx)
	if err != nil {
		return nil, err
	}
	return answer, receiver.AcceptMessage(ctx, answer)
}

// refusal attaches to the events address and returns the hub's refusal, which may come with the attach or after it.
func refusal(ctx context.Context, session *amqp.Session) error {
	receiver, err := session.NewReceiver(ctx, eventsAddress, nil)
	if err != nil {
		return err
	}
	_, err = receiver.Receive(ctx)
	return err
}

var errNoRedirect = errors.New("the hub did not say where its event stream is")

// redirected reads the place of the stream out of the refusal.
func redirected(refused error) (stream, error) {
	var remote *amqp.Error
	var detached *amqp.DetachError
	if errors.As(refused, &detached) {
		remote = detached.RemoteErr
	} else {
		errors.As(refused, &remote)
	}
	if remote == nil || remote.Condition != amqp.ErrCondLinkRedirect {
		return stream{}, fmt.Errorf("%w: %w", errNoRedirect, orNone(refused))
	}
	return place(remote.Info)
}

// place takes the name of the event hub from "address", which looks like amqps://{host}:5671/{name}/, and the host from
// "hostname", which may have a port of its own, or else from the address too.
func place(info map[string]any) (stream, error) {
	address, _ := info["address"].(string)
	target, err := url.Parse(address)
	if err != nil {
		return stream{}, fmt.Errorf("%w: redirected to %q", errNoRedirect, address)
	}
	found := stream{name: strings.Trim(target.Path, "/")}
	if found.host, _ = info["hostname"].(string); found.host == "" {
		found.host = target.Host
	}
	if found.host == "" || found.name == "" {
		return stream{}, fmt.Errorf("%w: redirected to %q", errNoRedirect, address)
	}
	return found, nil
}

func orNone(err error) error {
	if err == nil {
		return errors.New("it delivered a message instead")
	}
	return err
}
