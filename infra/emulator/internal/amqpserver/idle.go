package amqpserver

import (
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
)

// Authorizer is a Handler whose peers have to show a token.
type Authorizer interface {
	// Authorized reports whether the peer has shown a valid one.
	Authorized() bool
}

// watchIdle ends a connection on which nobody shows a token, or that has no links
// (see Options), until the function that it returns is called.
func (c *conn) watchIdle() (stop func()) {
	c.lonely = newLonely(c)
	token := time.AfterFunc(c.opts.TokenTimeout, func() {
		if a, ok := c.handler.(Authorizer); ok && !a.Authorized() {
			c.forget("no valid token was put within the first %d milliseconds", c.opts.TokenTimeout)
		}
	})
	return func() {
		token.Stop()
		c.lonely.timer.Stop()
	}
}

// forget ends the connection for what was missing in a time.
func (c *conn) forget(format string, missing time.Duration) {
	c.shut(amqp.Errorf(amqp.CondConnectionForced, "The connection was closed by container '%s' because "+format+".",
		c.opts.ContainerID, missing.Milliseconds()))
}

// lonely ends a connection that has no links for some time. The reading goroutine
// uses it.
type lonely struct {
	conn    *conn
	timer   *time.Timer
	waiting bool
}

func newLonely(c *conn) *lonely {
	l := &lonely{conn: c}
	l.wait(c.opts.FirstLinkTimeout)
	return l
}

func (l *lonely) wait(limit time.Duration) {
	l.waiting = true
	l.timer = time.AfterFunc(limit, func() {
		l.conn.forget("it did not have any active links in the past %d milliseconds", limit)
	})
}

// watch takes over the number of links.
func (l *lonely) watch(links int) {
	switch {
	case l.waiting && links > 0:
		l.timer.Stop()
		l.waiting = false
	case !l.waiting && links == 0:
		l.wait(l.conn.opts.NoLinkTimeout)
	}
}
