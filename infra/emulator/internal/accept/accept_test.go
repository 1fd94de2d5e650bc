package accept_test

import (
	"context"
	"errors"
	"net"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/accept"
)

// faulty fails with each of its errors in turn, and then accepts.
type faulty struct {
	net.Listener
	errs []error
}

func (l *faulty) Accept() (net.Conn, error) {
	if len(l.errs) > 0 {
		err := l.errs[0]
		l.errs = l.errs[1:]
		return nil, &net.OpError{Op: "accept", Err: err}
	}
	nc, other := net.Pipe()
	return nc, other.Close()
}

func TestFailuresThatPass(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var warnings []error
		l := &faulty{errs: []error{syscall.EMFILE, syscall.ENFILE, syscall.ECONNABORTED}}
		nc, err := accept.Next(t.Context(), l, func(err error) { warnings = append(warnings, err) })
		if err != nil {
			t.Fatal(err)
		}
		nc.Close()
		if len(warnings) != 3 || !errors.Is(warnings[0], syscall.EMFILE) {
			t.Errorf("warnings: %v", warnings)
		}
	})
}

func TestFailureThatStays(t *testing.T) {
	t.Parallel()
	if _, err := accept.Next(t.Context(), &faulty{errs: []error{net.ErrClosed}}, nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("error: %v", err)
	}
}

func TestContextEndsTheWait(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	l := &faulty{errs: []error{syscall.EMFILE, syscall.EMFILE}}
	if _, err := accept.Next(ctx, l, func(error) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("error: %v", err)
	}
}
