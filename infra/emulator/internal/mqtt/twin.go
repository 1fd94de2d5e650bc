package mqtt

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
)

// topicTwin begins all twin topics.
const topicTwin = "$iothub/twin/"

// twinRequest is what a device wants of its twin.
type twinRequest struct {
	id string
	// patch is for the reported properties; nil to read the twin.
	patch []byte
	// base is the version of the reported properties that the patch is for; 0
	// for any.
	base int64
	// answered is whether the device listens for answers: one before the
	// SUBSCRIBE is lost.
	answered bool
	slot     *storing
}

// twins are the twin requests of a connection. They are carried out one after
// another by a goroutine of their own, which is there while there are any:
// writing waits for the disk, and the reader does not.
type twins struct {
	working sync.WaitGroup

	mu    sync.Mutex // guards all below
	queue []twinRequest
	busy  bool
	// notified counts the changes of desired properties that were delivered.
	notified uint64
}

// requestTwin takes a twin request of the device.
func (c *conn) requestTwin(ctx context.Context, p *publish) error {
	r, err := parseTwinRequest(p)
	if err != nil {
		return err
	}
	r.answered = c.subs.has(featureTwinResponses)
	c.session.Touch()
	r.slot = c.acks.begin(p)
	c.twins.mu.Lock()
	defer c.twins.mu.Unlock()
	c.twins.queue = append(c.twins.queue, r)
	if !c.twins.busy {
		c.twins.busy = true
		c.twins.working.Go(func() { c.answerTwins(ctx) })
	}
	return nil
}

func parseTwinRequest(p *publish) (r twinRequest, err error) {
	query, read := strings.CutPrefix(p.topic, topicTwinGet)
	if !read {
		var ok bool
		if query, ok = strings.CutPrefix(p.topic, topicTwinReported); !ok {
			return r, fmt.Errorf("%w: %q", errTopic, p.topic)
		}
		r.patch = p.payload // not nil even if empty
		if r.base, err = baseVersion(query); err != nil {
			return r, err
		}
	}
	r.id, err = requestID(query)
	return r, err
}

// next takes a request from the queue; not ok if there is none, and the
// goroutine has to end.
func (t *twins) next() (r twinRequest, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.queue) == 0 {
		t.queue, t.busy = nil, false
		return r, false
	}
	r = t.queue[0]
	t.queue = t.queue[1:]
	return r, true
}

// answerTwins carries out requests until there are none, or the connection ends.
func (c *conn) answerTwins(ctx context.Context) {
	for {
		r, ok := c.twins.next()
		if !ok {
			return
		}
		if ctx.Err() != nil {
			continue
		}
		if err := c.answerTwin(ctx, r); err != nil {
			c.end(err)
			continue
		}
		c.acknowledge(r.slot)
	}
}

func (c *conn) answerTwin(ctx context.Context, r twinRequest) error {
	if r.patch == nil {
		return c.readTwin(r)
	}
	version, err := c.session.UpdateReported(ctx, r.patch, r.base)
	if err != nil {
		return c.refuseTwin(r, err)
	}
	return c.answer(r, reportedTopic(r.id, version), nil)
}

// readTwin answers with the twin. It reads once more when a change of the desired
// properties was delivered in between: the device would take the twin for newer
// than the change.
func (c *conn) readTwin(r twinRequest) error {
	for {
		c.twins.mu.Lock()
		notified := c.twins.notified
		c.twins.mu.Unlock()
		twin, err := c.session.ReadTwin()
		if err != nil {
			return c.refuseTwin(r, err)
		}
		c.twins.mu.Lock()
		if notified == c.twins.notified {
			defer c.twins.mu.Unlock()
			return c.answer(r, twinResponseTopic(200, r.id), twin)
		}
		c.twins.mu.Unlock()
	}
}

// refuseTwin answers with an error: status 400, 429 or another of the hub's (IoT
// Hub docs: "Communicate with an IoT hub using the MQTT protocol").
func (c *conn) refuseTwin(r twinRequest, err error) error {
	if ended := c.session.Err(); ended != nil {
		return ended
	}
	e := hub.AsError(err)
	if e.Code == hub.CodeServerError {
		c.log().Warn("twin request failed", "error", err)
	}
	body, err := json.Marshal(e.Body())
	if err != nil {
		return fmt.Errorf("encode twin error: %w", err)
	}
	return c.answer(r, twinResponseTopic(e.Code.Status(), r.id), body)
}

func (c *conn) answer(r twinRequest, topic string, body []byte) error {
	if !r.answered {
		return nil
	}
	return c.out.publish(topic, body)
}

// deliverDesired tells the device of a change of its desired properties, at QoS
// 0: a device that was away reads its twin when it comes back (IoT Hub docs:
// "Understand and use device twins in IoT Hub", device reconnection flow). The
// hub calls it.
func (c *conn) deliverDesired(patch []byte, version int64) {
	c.twins.mu.Lock()
	c.twins.notified++
	err := c.out.publish(desiredTopic(version), patch)
	c.twins.mu.Unlock()
	if err != nil {
		c.end(err)
	}
}
