package raftfsm_test

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"sluice/raftfsm/state"
)

func bucketName(i int) []byte {
	name := make([]byte, 16)
	binary.BigEndian.PutUint64(name, uint64(i))
	return name
}

func resetOf(at int64, algorithm uint8, window int64, buckets ...int) state.ResetBucket {
	c := state.ResetBucket{At: at}
	for _, i := range buckets {
		c.Buckets = append(c.Buckets, state.ResetTarget{Bucket: bucketName(i), Policy: "api_key", Algorithm: algorithm, Window: window})
	}
	return c
}

func numbers(from, to int) (out []int) {
	for i := from; i < to; i++ {
		out = append(out, i)
	}
	return out
}

// resets maps the buckets' numbers to their resets.
func (f *fixture) resets() map[int]state.Reset {
	out := map[int]state.Reset{}
	for _, r := range f.fsm.Resets() {
		out[int(binary.BigEndian.Uint64(r.Bucket))] = r
	}
	return out
}

func TestResetBucket(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	calls := 0
	f.fsm.Subscribe(func() { calls++ })
	f.must(state.Horizon{Until: f.now + 5000})
	if got := f.fsm.Resets(); len(got) != 0 {
		t.Fatalf("before any: %+v", got)
	}
	c := resetOf(f.now, 2, 60, 2, 1)
	c.Audit = []state.AuditEvent{event("reset", "org_a", "limit.reset", f.now)}
	f.raises(false, func() { f.must(c) })
	first := f.index
	want := []state.Reset{
		{Bucket: bucketName(1), Generation: first, At: c.At, Policy: "api_key", Algorithm: 2, Window: 60},
		{Bucket: bucketName(2), Generation: first, At: c.At, Policy: "api_key", Algorithm: 2, Window: 60},
	}
	if got := f.fsm.Resets(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if events, _ := f.audit(state.AuditFilter{Event: "limit.reset"}, "", 10); len(events) != 1 {
		t.Errorf("audit: %+v", events)
	}
	result := f.must(resetOf(f.now, 1, 60, 2))
	if got := f.resets()[2]; got.Generation != result.Index || result.Count != 1 || got.Algorithm != 1 {
		t.Errorf("reset again: %+v, result %+v", got, result)
	}
	if got := f.resets()[1]; got.Generation != first || calls != 3 {
		t.Errorf("another bucket: %+v; %d calls, want 3", got, calls)
	}
	f.must(resetOf(f.now+1<<60, 1, 60, 2))
	if got := f.resets()[2]; got.At > f.now+5000 {
		t.Errorf("a clock in the future: %+v", got)
	}
	f.refused(state.CodeInvalid, state.ResetBucket{At: f.now})
	f.refused(state.CodeInvalid, resetOf(f.now, 1, 60, 3, 3))
	f.refused(state.CodeInvalid, resetOf(f.now, 1, -1, 3))
	f.refused(state.CodeInvalid, resetOf(f.now, 1, 2_678_401, 3))
	f.refused(state.CodeInvalid, resetOf(f.now, 1, 60, numbers(10, 75)...))
	f.refused(state.CodeInvalid, state.ResetBucket{At: f.now, Buckets: []state.ResetTarget{{Bucket: []byte("short")}}})
	if len(f.resets()) != 2 {
		t.Errorf("a refusal changed something: %+v", f.resets())
	}
}

// Many resets: the oldest whose time has passed are handed back at the horizon, then dropped; what is too young stays, and
// beyond the bound nothing is taken any more.
func TestResetBucket_HandsBackAndForgets(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	const day = int64(24 * 60 * 60 * 1000)
	at := f.now
	f.must(state.Horizon{Until: at})
	fill := func(from, to int, algorithm uint8, window int64) {
		for i := from; i < to; i += 64 {
			f.must(resetOf(at, algorithm, window, numbers(i, min(i+64, to))...))
		}
	}
	fill(0, 100, 2, 60)             // a minute
	fill(100, 200, 2, 30*24*3600)   // a month
	fill(200, 300, 3, 60)           // has no windows to hand back at
	fill(300, 400, 0, 0)            // not known what it is
	fill(400, 2048, 1, 24*60*60)    // a day
	fill(2048, 4096, 1, 31*24*3600) // beyond half, but all are young
	for i, r := range f.resets() {
		if r.Until != 0 {
			t.Fatalf("bucket %d was handed back at once: %+v", i, r)
		}
	}
	f.refused(state.CodeTooManyResets, resetOf(at, 1, 60, 5000))
	f.must(resetOf(at, 2, 60, 0)) // one that is kept anyway

	at += day + 200_000
	f.must(state.Horizon{Until: at})
	// The time of minutes has passed: 99 of them can be handed back, and not the first, which was reset again.
	f.must(resetOf(at, 2, 60, 0))
	for i, r := range f.resets() {
		if want := i > 0 && i < 100; (r.Until == at) != want || r.Until != 0 && !want {
			t.Fatalf("bucket %d: %+v, handed back %v", i, r, want)
		}
	}
	f.refused(state.CodeTooManyResets, resetOf(at, 1, 60, 5000))
	// A proposer with a clock in the future moves nothing.
	f.refused(state.CodeTooManyResets, resetOf(at+1000*day, 1, 60, 5000))

	// Reset again, a bucket keeps the time at which its earlier generation ended.
	f.must(resetOf(at, 2, 60, 1))
	if r := f.resets()[1]; r.Until != 0 || r.Earlier != at {
		t.Errorf("reset after it was handed back: %+v", r)
	}
	handed := at
	at += day + 120_000
	f.must(state.Horizon{Until: at})
	f.refused(state.CodeTooManyResets, resetOf(at, 1, 60, 5000)) // one millisecond is lacking
	at++
	f.must(state.Horizon{Until: at})
	f.must(resetOf(at, 1, 60, 5000))
	all := f.resets()
	if _, ok := all[2]; ok || len(all) != 4096-98+1 {
		t.Errorf("what was handed back at %d is kept at %d; %d resets", handed, at, len(all))
	}
	at += 2 * day
	f.must(state.Horizon{Until: at})
	f.must(resetOf(at, 1, 60, 5001))
	var back []int
	for i, r := range f.resets() {
		if r.Until == at {
			back = append(back, i)
		}
	}
	slices.Sort(back)
	// Those of a day, and 5000.
	if len(back) != 1649 || back[0] != 400 || back[1647] != 2047 || back[1648] != 5000 {
		t.Errorf("%d handed back, %v", len(back), back[:min(3, len(back))])
	}
}

// What is kept of resets survives a snapshot and a start, and the bytes stay readable.
func TestSnapshot_Resets(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := open(t, dir)
	f.must(initCluster("cluster_golden"))
	f.must(state.Horizon{Until: f.now + 5000})
	f.must(resetOf(f.now, 2, 60, 7, 8))
	f.must(resetOf(f.now, 1, 3600, 8))
	want := fmt.Sprint(f.fsm.Resets())
	file := golden(t, f, "v1-resets.snap")
	other := fresh(t)
	if err := other.fsm.Restore(reader(file)); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(other.fsm.Resets()); got != want {
		t.Errorf("after a restore: %s, want %s", got, want)
	}
	if err := f.fsm.Close(); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(open(t, dir).fsm.Resets()); got != want {
		t.Errorf("after a start: %s, want %s", got, want)
	}
}
