package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

var (
	killRounds = flag.Int("kill-rounds", 4, "how often TestKilledAtWork kills the emulator")
	killSeed   = flag.Uint64("kill-seed", rand.Uint64(), "what TestKilledAtWork does at random")
)

// fate is what clients know of a thing: its state as it was acknowledged last, and
// another one that was asked for and may have come about. Empty means that there
// is no such thing.
type fate struct {
	is, asked string
	open      bool // asked for, and not acknowledged
	was       bool // there once, for certain
}

// now is the fate of a thing that is known to be in a state.
func (f fate) now(state string) fate { return fate{is: state, was: f.was || state != ""} }

// ledger has the fate of all things that clients change, named <kind>/<name>. One
// client at a time changes a thing.
type ledger struct {
	mu       sync.Mutex
	things   map[string]fate
	acks     int           // since the start of the round
	enough   chan struct{} // closed after so many acks
	wanted   int
	answered map[string]int // acks of all rounds by kind
	counted  int            // acks of the round that count against the daily quota
}

// kindOf is the part of the name before the slash.
func kindOf(thing string) string {
	kind, _, _ := strings.Cut(thing, "/")
	return kind
}

// ask notes a change before it is asked for.
func (l *ledger) ask(state string, things ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, thing := range things {
		f := l.things[thing]
		f.asked, f.open = state, true
		l.things[thing] = f
	}
}

// ack notes that a change was acknowledged, unless something is known already of
// what followed.
func (l *ledger) ack(state string, things ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, thing := range things {
		if f := l.things[thing]; f.open && f.asked == state {
			l.things[thing] = f.now(state)
		}
	}
	switch kind := kindOf(things[0]); {
	case kind == "event", kind == "twin", kind == "reported", kind == "c2d" && state == sentState:
		l.counted++
		fallthrough
	default:
		l.answered[kind]++
	}
	if l.acks++; l.acks == l.wanted {
		close(l.enough)
	}
}

// change asks for a change and waits for it.
func (l *ledger) change(state string, do func() error, things ...string) error {
	l.ask(state, things...)
	err := do()
	if err == nil {
		l.ack(state, things...)
	}
	return err
}

// saw notes that a client met a thing in a state.
func (l *ledger) saw(thing, state string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.things[thing] = l.things[thing].now(state)
}

// of returns the names of the things of a kind that are, or may be, there.
func (l *ledger) of(prefix string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var names []string
	for thing, f := range l.things {
		if strings.HasPrefix(thing, prefix) && (f.is != "" || f.open && f.asked != "") {
			names = append(names, thing)
		}
	}
	slices.Sort(names)
	return names
}

func (l *ledger) state(thing string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.things[thing].is
}

// compare checks all things whose names begin with a prefix against what is there
// after a kill, which is what clients know from then on.
func (l *ledger) compare(t *testing.T, prefix string, found map[string]string) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for thing := range found {
		if _, known := l.things[thing]; !known {
			t.Errorf("%s is %q, and nobody asked for it", thing, found[thing])
		}
	}
	for thing, f := range l.things {
		if !strings.HasPrefix(thing, prefix) {
			continue
		}
		switch now := found[thing]; {
		case now == f.is, f.open && now == f.asked:
			l.things[thing] = f.now(now)
		case f.open:
			t.Errorf("%s is %q, was acknowledged as %q and asked to be %q", thing, now, f.is, f.asked)
		default:
			t.Errorf("%s is %q, was acknowledged as %q", thing, now, f.is)
		}
	}
}

// begin makes the ledger signal after so many acks.
func (l *ledger) begin(wanted int) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acks, l.wanted, l.enough, l.counted = 0, wanted, make(chan struct{}), 0
	return l.enough
}

// What the emulator has acknowledged holds after a kill at any moment, and nothing
// else does but what was asked for and not answered: messages, settlements,
// feedback, identities, twins, subscriptions, jobs and the count of the day.
func TestKilledAtWork(t *testing.T) {
	t.Parallel()
	t.Logf("-kill-rounds=%d -kill-seed=%d", *killRounds, *killSeed)
	rnd := rand.New(rand.NewPCG(*killSeed, 0))
	l := &ledger{things: make(map[string]fate), answered: make(map[string]int)}
	w := &work{ledger: l, feedback: make(map[string]bool)}
	dir := t.TempDir()
	for number := range *killRounds {
		w.round(t, dir, number, rnd)
		if t.Failed() {
			t.FailNow()
		}
	}
	last := w.start(t, dir, *killRounds, rnd.Uint64())
	last.check(t)
	last.checkEvents(testContext(t), t)
	last.awaitFeedback(testContext(t), t)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, kind := range slices.Sorted(maps.Keys(l.answered)) {
		t.Logf("%6d acknowledged: %s", l.answered[kind], kind)
	}
	t.Logf("%6d feedback records, %d segments of the log begun at most", len(w.feedback), w.segments)
}

// work is what all rounds have in common.
type work struct {
	*ledger

	feedbackMu sync.Mutex
	feedback   map[string]bool // message IDs with feedback; true when it was completed

	// What the last kill left: the count of the day, and the longest log of all.
	count struct {
		Day      string
		Messages int
	}
	segments int
}

// killFlags are a tier that counts messages and is too large to throttle any, and a
// log that doesn't tell of all that a client asked for in vain.
var killFlags = []string{"--tier", "S3", "--units", "10", "--log-level", "warn"}

// round starts the emulator, checks what the round before left, and kills it at
// work.
func (w *work) round(t *testing.T, dir string, number int, rnd *rand.Rand) {
	t.Helper()
	if rnd.IntN(2) == 0 {
		killAtStart(t, dir, time.Duration(rnd.IntN(150))*time.Millisecond)
	}
	r := w.start(t, dir, number, rnd.Uint64())
	r.check(t)
	wanted := 1 + rnd.IntN(600)
	if number%4 == 3 {
		wanted += 2000 // enough for checkpoints
	}
	enough := w.begin(wanted)
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	var clients sync.WaitGroup
	for name, client := range r.clients() {
		clients.Go(func() {
			if err := client(ctx); !r.killed.Load() && !t.Failed() {
				t.Errorf("round %d, %s: %v", number, name, err)
				cancel()
			}
		})
	}
	select {
	case <-enough:
	case <-ctx.Done():
		t.Errorf("round %d: fewer than %d changes were acknowledged", number, wanted)
	}
	r.killed.Store(true)
	if err := r.cmd.Process.Kill(); err != nil { // SIGKILL
		t.Fatal(err)
	}
	_ = r.cmd.Wait() // always "killed"
	cancel()
	clients.Wait()
	w.checkLeft(t, dir)
}

// killAtStart kills the emulator while it starts, where it brings the log of the
// round before into its state file.
func killAtStart(t *testing.T, dir string, after time.Duration) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], slices.Concat(freePorts, []string{"--data-dir", dir}, killFlags)...)
	cmd.Env = append(os.Environ(), "RUN_THE_COMMAND=1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	_ = cmd.Wait() // always "killed"
}

// checkLeft looks into what the kill left: whether all acknowledged messages of the
// round are in the count of the day, and how far the log is.
func (w *work) checkLeft(t *testing.T, dir string) {
	t.Helper()
	left := t.TempDir()
	if err := os.CopyFS(left, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	logs, err := filepath.Glob(filepath.Join(left, "state-*.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, log := range logs {
		var number int
		if _, err := fmt.Sscanf(filepath.Base(log), "state-%d.log", &number); err == nil {
			w.segments = max(w.segments, number)
		}
	}
	s, err := store.Open(left)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	before := w.count
	err = s.Load("quota/today", func(_ string, value []byte) error { return json.Unmarshal(value, &w.count) })
	if err != nil {
		t.Fatal(err)
	}
	if want := before.Messages + w.counted; w.count.Day == before.Day && w.count.Messages < want {
		t.Errorf("%d messages count after the round, and it should be %d at least", w.count.Messages, want)
	}
}

// padding makes messages and twins as long as makes for checkpoints.
func padding(n int) string { return strings.Repeat(".", n) }

// name makes the name of a thing.
func name(parts ...any) string {
	texts := make([]string, len(parts))
	for i, p := range parts {
		texts[i] = fmt.Sprint(p)
	}
	return strings.Join(texts, "-")
}
