//go:build amd64 || arm64

package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"
)

// event is what a process did to a directory, or said on its standard output.
type event struct {
	kind  eventKind
	file  int            // number of the file
	at    int64          // offset of a write; new size
	data  []byte         // written, to the file or to standard output
	names map[string]int // files by name, from now on
}

type eventKind uint8

const (
	eventWrite eventKind = iota + 1
	eventResize
	eventNames
	eventSync      // of a file
	eventSyncNames // of the directory
	eventSaid
)

// Requests and options of ptrace(2) that package syscall doesn't name.
const (
	ptraceGetSyscallInfo = 0x420e
	ptraceExitKill       = 0x100000
	waitOwn              = syscall.WALL | 0x20000000 // __WNOTHREAD: children of this thread alone
)

// syscallInfo is struct ptrace_syscall_info.
type syscallInfo struct {
	Op   uint8 // 1 on entry, 2 on exit
	_    [3]uint8
	Arch uint32
	_    [2]uint64
	// On entry the number and the arguments, on exit the result.
	Nr   uint64
	Args [6]uint64
}

// tracer stops a process at each of its system calls. Those that change the
// directory run one at a time.
type tracer struct {
	t      *testing.T
	dir    string
	pid    int
	inodes map[uint64]int // numbers of the files that have names
	files  int            // number given last; that of an inode may be given anew
	names  map[string]int
	events []event
}

// trace runs this test binary with a variable of the environment, and returns the
// files in a directory and what it did to it, in order.
func trace(t *testing.T, dir, env string) (names map[string]int, events []event) {
	t.Helper()
	// All requests about a process have to come from the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), env)
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); errors.Is(err, syscall.EPERM) {
		t.Skip("this system lets nobody trace a process")
	} else if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, stdout) }() // ends with the process
	tr := &tracer{t: t, dir: dir, pid: cmd.Process.Pid}
	names = tr.lookAround()
	tr.names = names
	tr.run()
	_ = cmd.Wait() // the tracer has seen its end already
	if stderr.Len() > 0 {
		t.Fatalf("the process said: %s", &stderr)
	}
	return names, tr.events
}

func (tr *tracer) fail(what string, err error) {
	tr.t.Helper()
	if err != nil {
		tr.t.Fatalf("%s: %v", what, err)
	}
}

func (tr *tracer) run() {
	var status syscall.WaitStatus
	_, err := syscall.Wait4(tr.pid, &status, waitOwn, nil) // stopped at its start
	tr.fail("wait for the start", err)
	options := syscall.PTRACE_O_TRACESYSGOOD | syscall.PTRACE_O_TRACECLONE | ptraceExitKill
	tr.fail("trace", syscall.PtraceSetOptions(tr.pid, options))
	tr.fail("trace", syscall.PtraceSyscall(tr.pid, 0))
	for {
		thread, err := syscall.Wait4(-1, &status, waitOwn, nil)
		switch {
		case errors.Is(err, syscall.ECHILD):
			return // all threads have ended
		case errors.Is(err, syscall.EINTR):
			continue
		}
		tr.fail("wait for the process", err)
		if !status.Stopped() {
			continue
		}
		if status.StopSignal() == syscall.SIGTRAP|0x80 {
			if info := tr.info(thread); info.Op == 1 && tr.watched(info) {
				tr.finish(thread, info)
			}
		}
		tr.resume(thread, status)
	}
}

// resume lets a thread run to its next stop, with the signal that it was stopped
// for.
func (tr *tracer) resume(thread int, status syscall.WaitStatus) {
	signal := int(status.StopSignal())
	if signal == int(syscall.SIGTRAP) || signal == int(syscall.SIGTRAP|0x80) || signal == int(syscall.SIGSTOP) {
		signal = 0 // the tracer's own
	}
	if err := syscall.PtraceSyscall(thread, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
		tr.fail("go on", err)
	}
}

func (tr *tracer) info(thread int) syscallInfo {
	var info syscallInfo
	_, _, errno := syscall.Syscall6(syscall.SYS_PTRACE, ptraceGetSyscallInfo, uintptr(thread), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
	if errno != 0 && errno != syscall.ESRCH {
		tr.fail("read the system call", errno)
	}
	return info
}

// watched reports whether a system call may change a directory.
func (tr *tracer) watched(info syscallInfo) bool {
	switch info.Nr {
	case syscall.SYS_WRITE, syscall.SYS_PWRITE64, syscall.SYS_FTRUNCATE, syscall.SYS_FSYNC, syscall.SYS_FDATASYNC,
		syscall.SYS_OPENAT, syscall.SYS_LINKAT, syscall.SYS_RENAMEAT, syscall.SYS_UNLINKAT:
		return true
	}
	return false
}

// finish runs a thread to the end of a system call, while others may only begin
// theirs, and notes what it did.
func (tr *tracer) finish(thread int, call syscallInfo) {
	tr.fail("go on", syscall.PtraceSyscall(thread, 0))
	var status syscall.WaitStatus
	for {
		_, err := syscall.Wait4(thread, &status, waitOwn, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		tr.fail("wait for the system call", err)
		if !status.Stopped() {
			return // the process ended meanwhile
		}
		if status.StopSignal() == syscall.SIGTRAP|0x80 {
			break
		}
		tr.resume(thread, status)
	}
	if result := int64(tr.info(thread).Nr); result >= 0 {
		tr.note(call, result)
	}
}

func (tr *tracer) note(call syscallInfo, result int64) {
	switch call.Nr {
	case syscall.SYS_OPENAT, syscall.SYS_LINKAT, syscall.SYS_RENAMEAT, syscall.SYS_UNLINKAT:
		if names := tr.lookAround(); !maps.Equal(names, tr.names) {
			tr.events = append(tr.events, event{kind: eventNames, names: names})
			tr.names = names
		}
		return
	case syscall.SYS_WRITE:
		if call.Args[0] == 1 {
			tr.events = append(tr.events, event{kind: eventSaid, data: tr.memory(call.Args[1], result)})
		}
		return // the store writes its files by offset, but for that of the owner
	}
	path := fmt.Sprintf("/proc/%d/fd/%d", tr.pid, call.Args[0])
	target, err := os.Readlink(path)
	tr.fail("find the file", err)
	if target == tr.dir {
		tr.events = append(tr.events, event{kind: eventSyncNames})
		return
	}
	if filepath.Dir(target) != tr.dir {
		return
	}
	e := event{file: tr.inodes[inode(tr.t, path)]}
	switch call.Nr {
	case syscall.SYS_PWRITE64:
		e.kind, e.at, e.data = eventWrite, int64(call.Args[3]), make([]byte, result)
		f, err := os.Open(path)
		tr.fail("open the file", err)
		_, err = f.ReadAt(e.data, e.at)
		tr.fail("read what was written", errors.Join(err, f.Close()))
	case syscall.SYS_FTRUNCATE:
		e.kind, e.at = eventResize, int64(call.Args[1])
	default:
		e.kind = eventSync
	}
	tr.events = append(tr.events, e)
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Ino
}

// memory reads the memory of the process.
func (tr *tracer) memory(at uint64, n int64) []byte {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mem", tr.pid))
	tr.fail("open memory", err)
	defer f.Close()
	b := make([]byte, n)
	_, err = f.ReadAt(b, int64(at))
	tr.fail("read memory", err)
	return b
}

// lookAround returns the names in the directory.
func (tr *tracer) lookAround() map[string]int {
	entries, err := os.ReadDir(tr.dir)
	tr.fail("read the directory", err)
	inodes, names := make(map[uint64]int), make(map[string]int)
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".pid") {
			continue // for people only
		}
		n := inode(tr.t, filepath.Join(tr.dir, e.Name()))
		if known := tr.inodes[n]; known != 0 {
			inodes[n] = known
		} else if inodes[n] == 0 {
			tr.files++
			inodes[n] = tr.files
		}
		names[e.Name()] = inodes[n]
	}
	tr.inodes = inodes
	return names
}
