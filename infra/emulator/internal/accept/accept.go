// Package accept accepts connections in spite of failures that pass, such as
// too many open files: a crowd of clients must not end a listener for good.
package accept

import (
	"context"
	"errors"
	"net"
	"syscall"
	"time"
)

// pause is how long to wait after a failure that may pass.
const pause = 50 * time.Millisecond

// Next returns the next connection, or the error that ends the listener. It
// tells warn, if not nil, of failures after which it tries again, until ctx ends.
func Next(ctx context.Context, l net.Listener, warn func(error)) (net.Conn, error) {
	for {
		nc, err := l.Accept()
		if err == nil || !passes(err) {
			return nc, err
		}
		if warn != nil {
			warn(err)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, context.Cause(ctx)
		}
	}
}

// passes reports whether Accept may succeed later.
func passes(err error) bool {
	for _, errno := range []error{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED,
	} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}
