package limiter

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// What a record says is never less than what was spent, nor more than what came, and is exact where it fits.
func TestRecords_Scale(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(8, 1))
	check := func(v int64) {
		t.Helper()
		up, down := unscale(scaleUp(v)), unscale(scaleDown(v))
		if up < v || down > v || up-v > v>>(scaleBits-1) || v-down > v>>(scaleBits-1) {
			t.Fatalf("%d is rounded to %d and %d", v, up, down)
		}
		if v < 1<<scaleBits && up != down {
			t.Fatalf("%d is rounded to %d and %d, though it fits", v, up, down)
		}
		if scaleUp(v) > winCount || scaleDown(v) > winCount {
			t.Fatalf("%d takes more than its bits", v)
		}
		if unscale(scaleUp(up)) != up || unscale(scaleDown(down)) != down {
			t.Fatalf("%d is rounded anew when it is rounded already", v)
		}
	}
	for e := range 56 {
		for d := int64(-2); d <= 2; d++ {
			check(max(int64(1)<<e+d, 0))
		}
	}
	check(maxWireUnit)
	for range 100_000 {
		check(rng.Int64N(maxWireUnit) >> rng.IntN(56))
	}
}

// recordTruth is what a window's record has to cover: what was answered for, and what came at most.
type recordTruth struct{ spent, received int64 }

// Whatever store was the last before the process died, the records cover all that was answered for, and count on
// nothing that did not come.
func TestRecords_EveryMomentIsSafe(t *testing.T) {
	t.Parallel()
	stores := 0
	for seed := range uint64(60) {
		stores += checkMoments(t, seed)
	}
	if stores < 10_000 {
		t.Fatalf("only %d stores", stores)
	}
}

func checkMoments(t *testing.T, seed uint64) (stores int) {
	rng := rand.New(rand.NewPCG(seed, 9))
	slots := 2 + rng.IntN(6)
	r := newRecords(make([]uint64, headerWords+slots*slotWords), slots, "boot", 0)
	type key struct {
		id BucketID
		n  int64
	}
	truth := map[key]recordTruth{}
	var buckets []*bucket
	for i := range 4 {
		buckets = append(buckets, &bucket{id: BucketID{1, byte(i), 15: byte(i)}, span: 60_000, alg: SlidingWindow})
	}
	var doing string
	r.stored = func() {
		stores++
		_, restored, lostThrough, ok := openRecords(slices.Clone(r.words), "boot")
		if !ok {
			t.Fatalf("seed %d, store %d (%s): the records prove nothing", seed, stores, doing)
		}
		proven := map[key]restoredWindow{}
		for _, w := range restored {
			k := key{w.id, w.n}
			if first, twice := proven[k]; twice && (w.ceiling != first.ceiling || w.received != first.received || w.lost != first.lost) {
				t.Fatalf("seed %d, store %d (%s): window %d has two records that differ", seed, stores, doing, w.n)
			}
			proven[k] = w
			if w.received > truth[k].received {
				t.Fatalf("seed %d, store %d (%s): window %d counts on %d received of %d", seed, stores, doing, w.n, w.received, truth[k].received)
			}
		}
		for k, want := range truth {
			w, found := proven[k]
			if !found && span(60_000).begin(k.n) <= lostThrough {
				continue // lost: there is no base share in it
			}
			if w.ceiling < want.spent {
				t.Fatalf("seed %d, store %d (%s): window %d proves %d of %d spent", seed, stores, doing, k.n, w.ceiling, want.spent)
			}
		}
	}
	newest := int64(28_333_334)
	for range 600 {
		b := buckets[rng.IntN(len(buckets))]
		switch k := rng.IntN(10); {
		case k == 0:
			newest++
			continue
		case k == 1 && len(b.wins) > 0: // what is gone is forgotten: it counts as lost, and the file need not say so
			i := rng.IntN(len(b.wins))
			w := b.wins[i]
			doing = fmt.Sprintf("release of window %d, or what follows", w.n)
			delete(truth, key{b.id, w.n})
			b.wins = slices.Delete(b.wins, i, i+1)
			if w.slot != noSlot {
				r.release(w.slot, w.n)
			}
			r.gather(b)
			continue
		}
		n := newest - rng.Int64N(3)
		win := b.find(n)
		if win == nil {
			b.wins = append(b.wins, window{n: n, slot: noSlot})
			win = &b.wins[len(b.wins)-1]
		}
		switch rng.IntN(3) {
		case 0:
			win.used += rng.Int64N(1 << rng.IntN(50))
		case 1:
			win.given += rng.Int64N(1 << rng.IntN(50))
		default:
			win.received += rng.Int64N(1 << rng.IntN(50))
		}
		// What came may be counted on from now on; what was spent is answered for once it is written.
		at := key{b.id, n}
		was := truth[at]
		was.received = win.received
		truth[at] = was
		doing = fmt.Sprintf("window %d", n)
		if win.slot == noSlot {
			win.slot = r.claim(b, win)
		} else {
			r.raise(win)
		}
		if win.slot == noSlot { // the file says so, for good
			delete(truth, at)
			continue
		}
		was.spent = win.used + win.given
		truth[at] = was
	}
	for _, b := range buckets {
		for _, w := range b.wins {
			if w.slot != noSlot {
				delete(truth, key{b.id, w.n})
				r.release(w.slot, w.n)
			}
		}
		b.wins = nil
	}
	if used, _ := r.usage(); used != 0 {
		t.Fatalf("seed %d: %d slots are in use after all was released", seed, used)
	}
	return stores
}

// A bucket's two windows share a slot; only while a third is not gone yet it takes another.
func TestRecords_NeighboursShareASlot(t *testing.T) {
	t.Parallel()
	l := newTestLedger("a", 1)
	l.records = newRecords(make([]uint64, headerWords+64*slotWords), 64, "boot", 0)
	rule := Rule{Limit: 30, Window: 60, Algorithm: SlidingWindow}
	id := bucketID(&[16]byte{1}, "p", rule, []byte("s"))
	slots := func(ms int64) int64 {
		t.Helper()
		var v [1]Verdict
		var out outbox
		if o, _ := l.take(instant{ms: ms}, []Charge{{Bucket: id, Rule: rule, Cost: 1}}, v[:], nil, &out); o != Admitted {
			t.Fatalf("at %d: %+v", ms, v)
		}
		for i := range l.shards {
			l.sweepShard(&l.shards[i], 64)
		}
		used, _ := l.records.usage()
		return int64(used)
	}
	begin := int64(28_333_334 * 60_000)
	for i, c := range []struct{ after, slots int64 }{{59_000, 1}, {60_000, 1}, {119_000, 1}, {120_500, 2}, {123_500, 1}, {185_000, 1}} {
		if got := slots(begin + c.after); got != c.slots {
			t.Errorf("step %d, %d ms after the first window began: %d slots, want %d", i, c.after, got, c.slots)
		}
	}
}
