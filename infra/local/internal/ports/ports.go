// Package ports finds out before anything starts whether all of it can listen where it should.
package ports

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
)

// Port is an address that something will listen on, and how people change it.
type Port struct {
	Name string // what listens there
	Addr string // host and port; port 0 stands for any free one
	Flag string // without its dashes
	Env  string
}

// Error lists the ports that can't be had.
type Error struct {
	Failures []Failure
}

// Failure is one port that can't be had, and why.
type Failure struct {
	Port
	Cause error
}

// Check tries to listen on each port and lets go of it again. When some can't be had, the returned error is an *Error
// that names them all.
func Check(ctx context.Context, ports []Port) error {
	var failed Error
	var config net.ListenConfig
	for _, port := range ports {
		listener, err := config.Listen(ctx, "tcp", port.Addr)
		if err != nil {
			failed.Failures = append(failed.Failures, Failure{port, err})
			continue
		}
		defer listener.Close() // after the loop, so that two of the ports can't be the same
	}
	if len(failed.Failures) == 0 {
		return nil
	}
	return &failed
}

// Error gives each port a line of its own.
func (e *Error) Error() string {
	text := ""
	for i, failure := range e.Failures {
		if i > 0 {
			text += "\n"
		}
		text += failure.line()
	}
	return text
}

// Unwrap returns the causes.
func (e *Error) Unwrap() []error {
	causes := make([]error, len(e.Failures))
	for i, failure := range e.Failures {
		causes[i] = failure.Cause
	}
	return causes
}

func (f Failure) line() string {
	problem := fmt.Sprintf("can't listen on %s for %s (%v)", f.Addr, f.Name, f.Cause)
	if errors.Is(f.Cause, syscall.EADDRINUSE) {
		problem = fmt.Sprintf("%s is taken, and %s needs it", f.Addr, f.Name)
	}
	return fmt.Sprintf("%s: choose another with --%s HOST:PORT or %s (port 0 picks a free one)", problem, f.Flag, f.Env)
}
