package node

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"sluice/raftfsm/state"
)

func TestFreshness_CallerJoinsTheNextProbe(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var probes atomic.Int64
		f := newFreshness(func(ctx context.Context, _ time.Duration) (uint64, error) {
			probes.Add(1)
			time.Sleep(10 * time.Millisecond)
			return 7, nil
		}, func(context.Context, uint64) error { return nil }, 5*time.Second)
		defer f.close()
		if f.fresh() {
			t.Error("fresh before anything was proved")
		}
		results := make(chan error, 12)
		catchUp := func() { results <- f.catchUp(t.Context()) }
		go catchUp()
		synctest.Wait() // its probe is under way
		called := time.Now()
		for range 10 {
			go catchUp()
		}
		synctest.Wait()
		for range 11 {
			if err := <-results; err != nil {
				t.Fatal(err)
			}
		}
		if got := probes.Load(); got != 2 {
			t.Errorf("%d probes for 1 + 10 callers, want 2", got)
		}
		if at := f.asOf.Load(); at.Before(called) {
			t.Errorf("fresh as of %s before the callers came", called.Sub(*at))
		}
		if !f.fresh() {
			t.Error("not fresh after a probe")
		}
		time.Sleep(5*time.Second + time.Millisecond)
		if f.fresh() {
			t.Error("fresh beyond the greatest age")
		}
	})
}

func TestFreshness_ProbeTriesAgainAndGivesUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var fail atomic.Int64
		fail.Store(5)
		f := newFreshness(func(context.Context, time.Duration) (uint64, error) {
			if fail.Add(-1) >= 0 {
				return 0, errNotLeader
			}
			return 1, nil
		}, func(context.Context, uint64) error { return nil }, 5*time.Second)
		defer f.close()
		if err := f.catchUp(t.Context()); err != nil {
			t.Errorf("after five misses: %v", err)
		}
		fail.Store(1 << 40)
		began := time.Now()
		err := f.catchUp(t.Context())
		if !errors.Is(err, errUnavailable) || time.Since(began) > probeTimeout+time.Second {
			t.Errorf("without a leader: %v after %s", err, time.Since(began))
		}
	})
}

// A probe is as of its beginning, not of its end, and does not count before the entry was applied here.
func TestFreshness_AsOfTheAsking(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		applied := false
		f := newFreshness(func(context.Context, time.Duration) (uint64, error) {
			time.Sleep(300 * time.Millisecond)
			return 9, nil
		}, func(_ context.Context, index uint64) error {
			time.Sleep(200 * time.Millisecond)
			applied = index == 9
			return nil
		}, 5*time.Second)
		defer f.close()
		t0 := time.Now()
		if err := f.catchUp(t.Context()); err != nil || !applied {
			t.Fatalf("%v, applied: %t", err, applied)
		}
		if at := f.asOf.Load(); !at.Equal(t0) {
			t.Errorf("fresh as of %s after the asking, want 0s", at.Sub(t0))
		}
		if age, _ := f.age(time.Now()); age != 500*time.Millisecond {
			t.Errorf("%s old, want 500ms", age)
		}
	})
}

func TestBarriers_OneEntryForAllWhoWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var entries atomic.Int64
		b := newBarriers(func(_ context.Context, cmd state.Command) (state.Result, error) {
			n := entries.Add(1)
			time.Sleep(time.Millisecond)
			return state.Result{Index: uint64(n)}, nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			b.run(ctx)
		}()
		results := make(chan uint64, 10)
		for range 10 {
			go func() {
				index, err := b.ask(ctx, 300*time.Millisecond)
				if err != nil {
					t.Error(err)
				}
				results <- index
			}()
		}
		synctest.Wait()
		// The horizon comes while they wait: its entry answers them all, and none of their own is needed.
		if _, err := b.commit(ctx, state.Horizon{}); err != nil {
			t.Fatal(err)
		}
		for range 10 {
			if index := <-results; index != 1 {
				t.Errorf("answered with entry %d", index)
			}
		}
		time.Sleep(time.Second)
		if got := entries.Load(); got != 1 {
			t.Errorf("%d entries, want 1", got)
		}
		// Nobody else proposes: when the patience ends, a barrier comes.
		began := time.Now()
		if _, err := b.ask(ctx, 300*time.Millisecond); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < 300*time.Millisecond || took > 310*time.Millisecond {
			t.Errorf("answered after %s, want its patience of 300ms", took)
		}
		began = time.Now()
		if _, err := b.ask(ctx, 0); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 5*time.Millisecond {
			t.Errorf("without patience answered after %s", took)
		}
		cancel()
		<-done
	})
}

func TestClocks_Skew(t *testing.T) {
	t.Parallel()
	base := time.Now()
	for _, tt := range []struct {
		name    string
		offsets []time.Duration // of the peers' clocks from this one's
		rtt     time.Duration
		want    time.Duration
	}{
		{"alone", nil, 0, 0},
		{"one of three is ahead: not this one", []time.Duration{10 * time.Second, 0}, 0, 0},
		{"this one is behind", []time.Duration{10 * time.Second, 10 * time.Second}, 0, -10 * time.Second},
		{"this one is ahead", []time.Duration{-3 * time.Second, -2 * time.Second, -2 * time.Second, -2 * time.Second}, 0, 2 * time.Second},
		{"two nodes: nobody knows whose", []time.Duration{10 * time.Second}, 0, -5 * time.Second},
		{"within what the round trip leaves in doubt", []time.Duration{time.Second, time.Second}, 3 * time.Second, 0},
		{"beyond it", []time.Duration{4 * time.Second, 4 * time.Second}, 2 * time.Second, -3 * time.Second},
	} {
		now := base
		c := newClocks(func() time.Time { return now })
		for i, offset := range tt.offsets {
			// The peer read its clock in the middle of the round trip.
			c.observe(string(rune('a'+i)), now.Round(0).Add(-tt.rtt/2).Add(offset), tt.rtt)
		}
		if got, peers := c.skew(); got != tt.want || peers != len(tt.offsets) {
			t.Errorf("%s: %s by %d peers, want %s", tt.name, got, peers, tt.want)
		}
	}
}
