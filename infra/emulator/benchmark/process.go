package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	startTimeout = 90 * time.Second
	stopTimeout  = 20 * time.Second
)

// process is a server that was started for a measurement.
type process struct {
	cmd    *exec.Cmd
	output tail
	ended  chan struct{} // closed when the process has ended
}

// tail keeps the end of what a process writes, for errors.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

const tailSize = 8 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if n := len(t.buf) - tailSize; n > 0 {
		t.buf = append(t.buf[:0], t.buf[n:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.buf))
}

// start starts a command.
func start(cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd, ended: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &p.output, &p.output
	ownGroup(cmd)
	cmd.Cancel = func() error { return terminate(cmd) }
	cmd.WaitDelay = stopTimeout
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = cmd.Wait() // how it ended doesn't matter
		close(p.ended)
	}()
	return p, nil
}

// awaitPort waits until the process listens on an address.
func (p *process) awaitPort(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	retry := time.NewTicker(50 * time.Millisecond)
	defer retry.Stop()
	var dialer net.Dialer
	for {
		nc, err := dialer.DialContext(ctx, "tcp", addr)
		if err == nil {
			return nc.Close()
		}
		select {
		case <-retry.C:
		case <-p.ended:
			return fmt.Errorf("it ended: %s", p.output.String())
		case <-ctx.Done():
			return fmt.Errorf("it doesn't listen on %s: %w: %s", addr, ctx.Err(), p.output.String())
		}
	}
}

// stop asks the process to end, and ends it and its children if it doesn't.
func (p *process) stop() error {
	if err := terminate(p.cmd); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case <-p.ended:
	case <-timer.C:
		_ = killGroup(p.cmd) // the wait says whether it worked
		<-p.ended
	}
	return nil
}

// usage is what a process and its children have used so far.
type usage struct {
	cpu  time.Duration
	rss  int64 // bytes in memory now
	peak int64 // bytes in memory at most
}

// clockTick is the unit of processor time in /proc, the same on all
// architectures of Linux that Go runs on (proc(5): USER_HZ).
const clockTick = 10 * time.Millisecond

var errNoUsage = errors.New("processor time and memory of other processes are only read on Linux")

// usage reads /proc.
func (p *process) usage() (usage, error) {
	var total usage
	for _, pid := range family(p.cmd.Process.Pid) {
		u, err := usageOf(pid)
		if err != nil {
			return usage{}, err
		}
		total.cpu += u.cpu
		total.rss += u.rss
		total.peak += u.peak
	}
	return total, nil
}

// family is a process and all its descendants.
func family(pid int) []int {
	all := []int{pid}
	for i := 0; i < len(all); i++ {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", all[i], all[i]))
		if err != nil {
			continue
		}
		for _, child := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(child); err == nil {
				all = append(all, n)
			}
		}
	}
	return all
}

func usageOf(pid int) (usage, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return usage{}, fmt.Errorf("%w: %w", errNoUsage, err)
	}
	// The command in parentheses may hold spaces; the numbers follow it.
	_, rest, _ := strings.Cut(string(stat[bytes.LastIndexByte(stat, ')'):]), " ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return usage{}, errNoUsage
	}
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		return usage{}, err
	}
	u := usage{cpu: time.Duration(user+system) * clockTick}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	u.rss, u.peak = kilobytes(status, "VmRSS:"), kilobytes(status, "VmHWM:")
	return u, err
}

// kilobytes reads a line such as "VmRSS:  1234 kB".
func kilobytes(status []byte, name string) int64 {
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			if err == nil {
				return n << 10
			}
		}
	}
	return 0
}

// freePort returns a port of 127.0.0.1 that nobody listens on just now.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, errors.Join(err, l.Close())
}
