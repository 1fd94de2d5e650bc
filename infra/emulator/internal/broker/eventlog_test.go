package broker_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

func newLog(t *testing.T, s store.Store, opts broker.EventLogOptions) *broker.EventLog {
	t.Helper()
	l, err := broker.OpenEventLog(s, "hub", opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

func newReader(t *testing.T, l *broker.EventLog, opts broker.ReaderOptions) *broker.Reader {
	t.Helper()
	if opts.PartitionID == "" {
		opts.PartitionID = "0"
	}
	r, err := l.OpenReader(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func appendEvents(t *testing.T, l *broker.EventLog, bodies ...string) {
	t.Helper()
	if err := l.Append(t.Context(), broker.AppendOptions{PartitionID: "0"}, msgs(bodies...)...); err != nil {
		t.Fatal(err)
	}
}

// read names the events that a reader has not read yet.
func read(t *testing.T, r *broker.Reader) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // what is there is returned all the same
	es, err := r.Next(ctx, 1000)
	if err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	var all []string
	for _, e := range es {
		all = append(all, string(e.Message.Body()))
	}
	return strings.Join(all, " ")
}

func events(t *testing.T, l *broker.EventLog, start broker.Position) string {
	t.Helper()
	r := newReader(t, l, broker.ReaderOptions{Start: start})
	defer r.Close()
	return read(t, r)
}

func TestStartPositions(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLog(t, store.Memory(), broker.EventLogOptions{Partitions: 1})
		var times []time.Time
		for _, body := range []string{"a", "b", "c"} {
			appendEvents(t, l, body)
			times = append(times, time.Now())
			time.Sleep(time.Second)
		}
		r := newReader(t, l, broker.ReaderOptions{})
		es, err := r.Next(t.Context(), 1000)
		if err != nil {
			t.Fatal(err)
		}
		var offset int64
		if _, err := fmt.Sscan(es[1].Offset, &offset); err != nil {
			t.Fatal(err)
		}
		between, future := times[1].Add(-time.Millisecond), times[2].Add(time.Hour)
		for name, tc := range map[string]struct {
			start broker.Position
			want  string
		}{
			"earliest":                    {broker.Position{}, "a b c"},
			"latest":                      {broker.Position{Latest: true}, ""},
			"offset of the beginning":     {broker.Position{Offset: new(int64(-1))}, "a b c"},
			"behind an offset":            {broker.Position{Offset: &offset}, "c"},
			"at an offset":                {broker.Position{Offset: &offset, Inclusive: true}, "b c"},
			"behind an unknown offset":    {broker.Position{Offset: new(offset + 1)}, "c"},
			"offset beyond the end":       {broker.Position{Offset: new(int64(1 << 40))}, ""},
			"behind a sequence number":    {broker.Position{SequenceNumber: new(int64(1))}, "c"},
			"at a sequence number":        {broker.Position{SequenceNumber: new(int64(1)), Inclusive: true}, "b c"},
			"sequence number before all":  {broker.Position{SequenceNumber: new(int64(-1))}, "a b c"},
			"behind a time":               {broker.Position{EnqueuedTime: &times[1]}, "c"},
			"at a time":                   {broker.Position{EnqueuedTime: &times[1], Inclusive: true}, "b c"},
			"behind a time between":       {broker.Position{EnqueuedTime: &between}, "b c"},
			"time before all":             {broker.Position{EnqueuedTime: new(times[0].Add(-time.Hour))}, "a b c"},
			"time in the future":          {broker.Position{EnqueuedTime: &future}, ""},
			"inclusive from the earliest": {broker.Position{Inclusive: true}, "a b c"},
		} {
			check(t, name, events(t, l, tc.start), tc.want)
		}
		// Events before the time that a reader asked for are not for it, even
		// if they come later.
		r = newReader(t, l, broker.ReaderOptions{Start: broker.Position{EnqueuedTime: &future}})
		appendEvents(t, l, "too early")
		check(t, "read before the time", read(t, r), "")
		time.Sleep(2 * time.Hour)
		appendEvents(t, l, "in time")
		check(t, "read after the time", read(t, r), "in time")
	})
}

func TestReaderWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLog(t, store.Memory(), broker.EventLogOptions{Partitions: 1})
		got := make(chan string, 2)
		for range 2 { // every reader gets every event
			r := newReader(t, l, broker.ReaderOptions{Start: broker.Position{Latest: true}})
			go func() {
				es, err := r.Next(t.Context(), 10)
				if err != nil {
					got <- err.Error()
					return
				}
				got <- string(es[0].Message.Body())
			}()
		}
		synctest.Wait()
		appendEvents(t, l, "a")
		check(t, "first", <-got, "a")
		check(t, "second", <-got, "a")
	})
}

// A transaction that was staged first but commits last must not be passed by.
func TestNoEventIsPassedBy(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*testing.T, *broker.Tx) string{
		"committed late": func(t *testing.T, tx *broker.Tx) string {
			if err := tx.Commit(t.Context()); err != nil {
				t.Error(err)
			}
			return "first second"
		},
		"aborted": func(_ *testing.T, tx *broker.Tx) string { tx.Abort(); return "second" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := store.Memory()
			l := newLog(t, s, broker.EventLogOptions{Partitions: 1})
			tx := broker.NewTx(s)
			if err := l.Stage(tx, broker.AppendOptions{}, msg("first")); err != nil {
				t.Fatal(err)
			}
			r := newReader(t, l, broker.ReaderOptions{})
			appendEvents(t, l, "second")
			check(t, "before", read(t, r), "")
			want := end(t, tx)
			check(t, "after", read(t, r), want)
		})
	}
}

func TestPartitionOfAKey(t *testing.T) {
	t.Parallel()
	l := newLog(t, store.Memory(), broker.EventLogOptions{Partitions: 4})
	used := make(map[string]bool)
	for i := range 100 {
		key := fmt.Sprint("device-", i)
		id := l.PartitionFor(key)
		used[id] = true
		check(t, "same key, same partition", l.PartitionFor(key), id)
	}
	check(t, "partitions used by 100 keys", len(used), 4)
	check(t, "in turn", l.PartitionFor("")+l.PartitionFor("")+l.PartitionFor(""), "012")
	check(t, "names", l.PartitionIDs(), "[0 1 2 3]")
	if err := l.Append(t.Context(), broker.AppendOptions{PartitionID: "4"}, msg("a")); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("append to an unknown partition: %v", err)
	}
}

func TestOwnerLevels(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		first, second *int64
		refused       error // the second
		ended         error // the first
	}{
		"none, none":     {},
		"none, level":    {second: new(int64(0)), ended: broker.ErrStolen},
		"level, none":    {first: new(int64(0)), refused: broker.ErrOwned},
		"level, lower":   {first: new(int64(2)), second: new(int64(1)), refused: broker.ErrOwned},
		"level, same":    {first: new(int64(2)), second: new(int64(2)), ended: broker.ErrStolen},
		"level, higher":  {first: new(int64(2)), second: new(int64(3)), ended: broker.ErrStolen},
		"zero, negative": {first: new(int64(0)), second: new(int64(-1)), refused: broker.ErrOwned},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := newLog(t, store.Memory(), broker.EventLogOptions{Partitions: 1, ConsumerGroups: []string{"other"}})
				first := newReader(t, l, broker.ReaderOptions{OwnerLevel: tc.first})
				elsewhere := newReader(t, l, broker.ReaderOptions{OwnerLevel: tc.first, ConsumerGroup: "other"})
				result := make(chan error, 1)
				go func() {
					_, err := first.Next(t.Context(), 1)
					result <- err
				}()
				synctest.Wait()
				second, err := l.OpenReader(broker.ReaderOptions{PartitionID: "0", OwnerLevel: tc.second})
				if !errors.Is(err, tc.refused) {
					t.Fatalf("second reader: got %v, want %v", err, tc.refused)
				}
				appendEvents(t, l, "a")
				if err := <-result; !errors.Is(err, tc.ended) {
					t.Errorf("first reader: got %v, want %v", err, tc.ended)
				}
				check(t, "another group", read(t, elsewhere), "a")
				if second != nil {
					check(t, "second reader", read(t, second), "a")
					second.Close()
				}
			})
		})
	}
}

func TestPartitionIsFreeWhenItsOwnerIsGone(t *testing.T) {
	t.Parallel()
	l := newLog(t, store.Memory(), broker.EventLogOptions{Partitions: 1})
	r := newReader(t, l, broker.ReaderOptions{OwnerLevel: new(int64(5))})
	r.Close()
	if _, err := r.Next(t.Context(), 1); !errors.Is(err, broker.ErrClosed) {
		t.Errorf("next after close: %v", err)
	}
	var open []*broker.Reader
	for range broker.MaxReaders {
		open = append(open, newReader(t, l, broker.ReaderOptions{}))
	}
	if _, err := l.OpenReader(broker.ReaderOptions{PartitionID: "0"}); !errors.Is(err, broker.ErrTooManyReaders) {
		t.Errorf("one reader too many: %v", err)
	}
	open[0].Close()
	newReader(t, l, broker.ReaderOptions{})
}

func TestUnknownReaderTargets(t *testing.T) {
	t.Parallel()
	l := newLog(t, store.Memory(), broker.EventLogOptions{Partitions: 1, ConsumerGroups: []string{"Mine"}})
	for _, opts := range []broker.ReaderOptions{
		{PartitionID: "1"}, {PartitionID: ""}, {PartitionID: "0", ConsumerGroup: "other"},
	} {
		if _, err := l.OpenReader(opts); !errors.Is(err, broker.ErrNotFound) {
			t.Errorf("reader of %+v: %v", opts, err)
		}
	}
	newReader(t, l, broker.ReaderOptions{ConsumerGroup: "MINE"})
	newReader(t, l, broker.ReaderOptions{ConsumerGroup: "$default"})
}

func TestRetention(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLog(t, store.Memory(), broker.EventLogOptions{Partitions: 1, Retention: time.Hour})
		appendEvents(t, l, "a")
		time.Sleep(30 * time.Minute)
		appendEvents(t, l, "b")
		check(t, "young", events(t, l, broker.Position{}), "a b")
		time.Sleep(31 * time.Minute)
		check(t, "one too old", events(t, l, broker.Position{}), "b")
		check(t, "sequence number of the old one", events(t, l, broker.Position{SequenceNumber: new(int64(0)), Inclusive: true}), "b")
		time.Sleep(time.Hour)
		p, err := l.Partition("0")
		if err != nil {
			t.Fatal(err)
		}
		check(t, "empty", p.Empty, true)
		check(t, "begins", p.BeginSequenceNumber, 2)
		check(t, "last", p.LastEnqueuedSequenceNumber, 1)
	})
}

func TestSizeBound(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	opts := broker.EventLogOptions{Partitions: 1, MaxBytes: 10_000}
	l := newLog(t, openStore(t, dir), opts)
	for i := range 50 {
		appendEvents(t, l, fmt.Sprint(i)+strings.Repeat(".", 1000))
	}
	p, err := l.Partition("0")
	if err != nil {
		t.Fatal(err)
	}
	check(t, "last", p.LastEnqueuedSequenceNumber, 49)
	if kept := p.LastEnqueuedSequenceNumber - p.BeginSequenceNumber + 1; kept < 5 || kept > 10 {
		t.Errorf("%d events of 1 kB are kept in 10 kB", kept)
	}
	stored := 0
	err = afterKill(t, dir).Load("e/hub/p0/m", func(string, []byte) error { stored++; return nil })
	if err != nil {
		t.Fatal(err)
	}
	if stored > 10 {
		t.Errorf("%d events are stored", stored)
	}
}

func TestPropertiesOfAnUnusedPartition(t *testing.T) {
	t.Parallel()
	l := newLog(t, store.Memory(), broker.EventLogOptions{})
	p, err := l.Partition("3")
	if err != nil {
		t.Fatal(err)
	}
	check(t, "properties", fmt.Sprintf("%+v", p),
		"{ID:3 BeginSequenceNumber:0 LastEnqueuedSequenceNumber:-1 LastEnqueuedOffset:-1 LastEnqueuedTime:0001-01-01 00:00:00 +0000 UTC Empty:true}")
	if _, err := l.Partition("4"); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("unknown partition: %v", err)
	}
}
