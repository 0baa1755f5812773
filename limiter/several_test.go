package limiter

import (
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestTake_SpendsFromAllOrNone holds several policies at once over three nodes: what the tightest refuses costs the
// others nothing, and each verdict tells its own.
func TestTake_SpendsFromAllOrNone(t *testing.T) {
	t.Parallel()
	c := openCluster(t, 3, nil)
	rules := []Rule{{Limit: 3, Window: 1, Algorithm: FixedWindow}, {Limit: 5, Window: 60, Algorithm: SlidingWindow}, {Limit: 100, Window: 86_400, Algorithm: SlidingWindow}}
	charges, verdicts := make([]Charge, len(rules)), make([]Verdict, len(rules))
	ask := func(l *Limiter, cost int64) Outcome {
		for i, r := range rules {
			charges[i] = Charge{Bucket: l.Bucket(fmt.Sprint("level ", i), r, []byte("s")), Rule: r, Cost: cost}
		}
		return l.Take(charges, verdicts)
	}
	// Shares of so little lie with the others, and an answer of theirs may come later than a request waits for it: it is
	// asked again until all is as it will be.
	patient := func(l *Limiter, want ...Outcome) bool {
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); runtime.Gosched() {
			all := ask(l, 1)
			if (all == Admitted) == (slices.Max(want) == Admitted) && slices.EqualFunc(verdicts, want, func(v Verdict, o Outcome) bool { return v.Outcome == o }) {
				return true
			}
			if all == Admitted {
				return false
			}
		}
		return false
	}
	for i := range 3 {
		if !patient(c.node(i), Admitted, Admitted, Admitted) {
			t.Fatalf("request %d: %+v", i, verdicts)
		}
	}
	if !patient(c.node(0), Refused, Admitted, Admitted) {
		t.Fatalf("the fourth of a second: %+v", verdicts)
	}
	c.move(t, testStart+1000)
	for i := range 2 {
		if !patient(c.node(i), Admitted, Admitted, Admitted) {
			t.Fatalf("request %d of the next second: %+v: the refusal has spent something", i, verdicts)
		}
	}
	if !patient(c.node(1), Admitted, Refused, Admitted) {
		t.Fatalf("the sixth of a minute: %+v", verdicts)
	}
	var spent [3]int64
	for i := range 3 {
		for j := range rules {
			l := c.node(i)
			b := c.node(i).Bucket(fmt.Sprint("level ", j), rules[j], []byte("s"))
			sh := &l.ledger.shards[shardOf(&b)]
			sh.mu.Lock()
			if b := sh.get(&b); b != nil {
				for _, w := range b.wins {
					spent[j] += w.used / grains
				}
			}
			sh.mu.Unlock()
		}
	}
	if spent != [3]int64{5, 5, 5} {
		t.Errorf("spent %v, want 5 on each level", spent)
	}
}

// TestTake_SeveralNeverOver lets a crowd spend from two levels on three nodes. Each node may lack shares of either, and
// neither is ever exceeded.
func TestTake_SeveralNeverOver(t *testing.T) {
	t.Parallel()
	c := openCluster(t, 3, nil)
	shared, own := Rule{Limit: 30, Window: 60, Algorithm: SlidingWindow}, Rule{Limit: 20, Window: 60, Algorithm: SlidingWindow}
	var admitted [2]atomic.Int64
	var wg sync.WaitGroup
	for i := range 300 {
		wg.Go(func() {
			who, l := i%2, c.node(i/2)
			charges := [2]Charge{
				{Bucket: l.Bucket("own", own, []byte{byte(who)}), Rule: own, Cost: 1},
				{Bucket: l.Bucket("shared", shared, []byte("all")), Rule: shared, Cost: 1},
			}
			var verdicts [2]Verdict
			for range 5 {
				if l.Take(charges[:], verdicts[:]) == Admitted {
					admitted[who].Add(1)
					break
				}
			}
		})
	}
	wg.Wait()
	a, b := admitted[0].Load(), admitted[1].Load()
	if a > own.Limit || b > own.Limit || a+b > shared.Limit {
		t.Errorf("%d and %d admitted, want at most %d each and %d together", a, b, own.Limit, shared.Limit)
	}
	if a+b < shared.Limit*9/10 {
		t.Errorf("%d admitted of %d: refusals have spent", a+b, shared.Limit)
	}
}

func TestTryTake_NeitherWaitsNorAsks(t *testing.T) {
	t.Parallel()
	c := openCluster(t, 3, func(_ int, cfg *Config) { cfg.GossipInterval = time.Hour })
	rule, l := Rule{Limit: 6, Window: 60, Algorithm: FixedWindow}, c.node(0)
	charges := []Charge{{Bucket: l.Bucket("p", rule, []byte("s")), Rule: rule, Cost: 1}}
	verdicts := make([]Verdict, 1)
	for range 2 {
		if o, wait := l.TryTake(charges, verdicts); o != Admitted || wait {
			t.Fatalf("within the share: %v %v %+v", o, wait, verdicts)
		}
	}
	before := c.sent.Load()
	for range 10 {
		if o, wait := l.TryTake(charges, verdicts); o != Refused || !wait {
			t.Fatalf("beyond the share: %v %v, want it to say that others have some", o, wait)
		}
	}
	if got := c.sent.Load() - before; got != 0 {
		t.Errorf("%d packets sent", got)
	}
	if v := l.Peek(charges[0]); v.Outcome != Admitted || v.Remaining != 4 {
		t.Errorf("Peek beyond the share: %+v, want it to count on the others", v)
	}
	if o, v := takePatient(l, rule, "s", 4); o != Admitted {
		t.Fatalf("Take beyond the share: %v %+v", o, v)
	}
	if o, wait := l.TryTake(charges, verdicts); o != Refused || wait || verdicts[0].RetryAfter < 1 {
		t.Errorf("with nothing left: %v %v %+v, want a refusal", o, wait, verdicts)
	}
	if v := l.Peek(charges[0]); v.Outcome != Refused || v.Remaining != 0 {
		t.Errorf("Peek with nothing left: %+v, want a refusal", v)
	}
	if o, wait := l.TryTake(nil, nil); o != Admitted || wait {
		t.Errorf("of nothing: %v %v", o, wait)
	}
}
