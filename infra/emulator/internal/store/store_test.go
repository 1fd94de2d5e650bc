package store_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("STORE_TEST_WRITER"); dir != "" {
		writeForever(dir)
	}
	goleak.VerifyTestMain(m)
}

func open(t *testing.T, dir string) store.Store {
	t.Helper()
	s, err := store.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func contents(t *testing.T, s store.Store, prefix string) string {
	t.Helper()
	var b strings.Builder
	err := s.Load(prefix, func(k string, v []byte) error {
		fmt.Fprintf(&b, "%s=%s ", k, v)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(b.String())
}

func update(t *testing.T, s store.Store, ops ...store.Op) {
	t.Helper()
	if err := store.Update(t.Context(), s, ops...); err != nil {
		t.Fatal(err)
	}
}

func TestChangesSurviveReopening(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	update(t, s, store.Put("a/1", []byte("x")), store.Put("a/2", []byte("y")), store.Put("b/1", nil))
	update(t, s, store.Put("a/1", []byte("z")), store.Delete("a/2"), store.Delete("never"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	if got := contents(t, s, ""); got != "a/1=z b/1=" {
		t.Errorf("contents: %q", got)
	}
	if got := contents(t, s, "a/"); got != "a/1=z" {
		t.Errorf("contents of a/: %q", got)
	}
}

func TestDeletePrefixLeavesNeighbours(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	var ops []store.Op
	for i := range 1000 {
		ops = append(ops, store.Put(fmt.Sprintf("q/1/%04d", i), make([]byte, 100)))
	}
	update(t, s, append(ops, store.Put("q/0", []byte("before")), store.Put("q/10", []byte("after")))...)
	update(t, s, store.DeletePrefix("q/1/"))
	if got := contents(t, s, ""); got != "q/0=before q/10=after" {
		t.Errorf("contents: %q", got)
	}
}

func TestConcurrentUpdatesAreAllKept(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			if err := store.Update(t.Context(), s, store.Put(fmt.Sprintf("k/%03d", i), nil)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := strings.Count(contents(t, s, "k/"), "="); n != 200 {
		t.Errorf("%d of 200 keys", n)
	}
}

func TestDoneComesInOrderOfSubmission(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	var got []int // only touched by the committing goroutine, then after Update
	for i := range 500 {
		s.Submit(func(err error) {
			if err == nil {
				got = append(got, i)
			}
		}, store.Put("k", []byte{byte(i)}))
	}
	update(t, s)
	for i, v := range got {
		if i != v {
			t.Fatalf("position %d: change %d", i, v)
		}
	}
	if len(got) != 500 {
		t.Fatalf("%d of 500 changes done", len(got))
	}
}

func TestEndedContextPreventsChange(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := store.Update(ctx, s, store.Put("k", nil)); !errors.Is(err, context.Canceled) {
		t.Errorf("error: %v", err)
	}
	if got := contents(t, s, ""); got != "" {
		t.Errorf("contents: %q", got)
	}
}

func TestCloseFinishesWhatWasSubmitted(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	results := make(chan error, 1)
	s.Submit(func(err error) { results <- err }, store.Put("k", nil))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-results; err != nil {
		t.Errorf("submitted before Close: %v", err)
	}
	if err := store.Update(t.Context(), s, store.Put("l", nil)); !errors.Is(err, store.ErrClosed) {
		t.Errorf("submitted after Close: %v", err)
	}
	if got := contents(t, open(t, dir), ""); got != "k=" {
		t.Errorf("contents: %q", got)
	}
}

func TestDirectoryIsHeldByOne(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open(t, dir)
	_, err := store.Open(dir)
	if !errors.Is(err, store.ErrInUse) {
		t.Fatalf("second Open: %v", err)
	}
	if want := fmt.Sprintf("process %d", os.Getpid()); !strings.Contains(err.Error(), want) {
		t.Errorf("error doesn't name %s: %v", want, err)
	}
}

func TestDamagedFileIsRefusedAndKept(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func([]byte) []byte{
		"empty":    func([]byte) []byte { return nil },
		"cut off":  func(b []byte) []byte { return b[:len(b)/2] },
		"one page": func(b []byte) []byte { return b[:4096] },
		"text":     func([]byte) []byte { return []byte(strings.Repeat("not a database\n", 4096)) },
		"zeros":    func(b []byte) []byte { return make([]byte, len(b)) },
		"value changed": func(b []byte) []byte {
			return []byte(strings.ReplaceAll(string(b), "needle", "noodle"))
		},
		"pages wiped": func(b []byte) []byte {
			clear(b[2*4096:])
			return b
		},
		"pages scrambled": func(b []byte) []byte {
			for i := 2 * 4096; i < len(b); i++ {
				b[i] ^= byte(i * 7)
			}
			return b
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := open(t, dir)
			for i := range 100 {
				update(t, s, store.Put(fmt.Sprint("key", i), []byte(strings.Repeat("needle", 100))))
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, "state.db")
			whole, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			damaged := damage(whole)
			if err := os.WriteFile(path, damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := store.Open(dir); !errors.Is(err, store.ErrDamaged) {
				t.Errorf("Open: %v", err)
			}
			if after, err := os.ReadFile(path); err != nil || string(after) != string(damaged) {
				t.Errorf("the file was changed (%v)", err)
			}
		})
	}
}

// beforeWriting limits what the process may write, where the system can.
var beforeWriting func() error

// writeForever counts up under one key, and says so on standard output after
// each number that the store took, until the process is killed.
func writeForever(dir string) {
	if os.Getenv("STORE_TEST_LIMIT") != "" {
		if err := beforeWriting(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	s, err := store.Open(dir)
	for i := 0; err == nil; i++ {
		key := fmt.Sprintf("n/%08d", i)
		size := i % 3000
		if os.Getenv("STORE_TEST_LARGE") != "" {
			size = 100_000 // a checkpoint after every 80 changes
		}
		if err = store.Update(context.Background(), s, store.Put(key, make([]byte, size)), store.Put("last", []byte(key))); err == nil {
			fmt.Println(key)
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func TestKilledProcessLosesNothingAcknowledged(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for i, kill := range []int{1, 37, 150, 84, 166, 250} {
		var env []string
		if i > 2 { // during checkpoints
			env = []string{"STORE_TEST_LARGE=1"}
		}
		last := killAfter(t, dir, kill, env...)
		s := open(t, dir)
		if got := contents(t, s, last); !strings.HasPrefix(got, last+"=") {
			t.Fatalf("%s was acknowledged and is not there", last)
		}
		var number int
		if _, err := fmt.Sscanf(last, "n/%d", &number); err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(contents(t, s, "n/"), "="); n <= number {
			t.Fatalf("%d keys, and %d were acknowledged", n, number+1)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// killAfter kills a writing process after n acknowledged changes and returns
// the last one.
func killAfter(t *testing.T, dir string, n int, env ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(append(os.Environ(), "STORE_TEST_WRITER="+dir), env...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var last string
	for lines := bufio.NewScanner(out); lines.Scan(); n-- {
		last = lines.Text()
		if n == 1 {
			if err := cmd.Process.Kill(); err != nil { // SIGKILL
				t.Fatal(err)
			}
		}
	}
	_ = cmd.Wait() // always "killed"
	if last == "" {
		t.Fatal("the writer wrote nothing")
	}
	return last
}
