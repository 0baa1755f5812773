package limiter

import (
	"maps"
	"math/big"
	"math/rand/v2"
	"slices"
	"testing"
)

// model is a limiter of one node with unlimited memory and exact arithmetic: what the ledger must do where nothing is
// shared. It keeps every count it ever made.
type model struct {
	used map[modelKey]int64
}

type modelKey struct {
	bucket int
	n      int64
}

// passes says whether cost more units may be used in window n of a bucket at ms:
//
//	used(n) + w · used(n−1) ≤ limit
//
// and, sliding, whether the same holds in window n+1, in which something may have been used by a clock that stepped back.
func (m *model) passes(b int, rule Rule, n, ms, cost int64) bool {
	w := rule.Window * 1000
	used := m.used[modelKey{b, n}] + cost
	if rule.Algorithm == FixedWindow {
		return used <= rule.Limit
	}
	return fits(used, m.used[modelKey{b, n - 1}], (n+1)*w-ms, w, rule.Limit) &&
		fits(m.used[modelKey{b, n + 1}], used, w, w, rule.Limit)
}

func fits(used, before, view, w, limit int64) bool {
	sum := new(big.Int).Mul(big.NewInt(used), big.NewInt(w))
	sum.Add(sum, new(big.Int).Mul(big.NewInt(before), big.NewInt(view)))
	return sum.Cmp(new(big.Int).Mul(big.NewInt(limit), big.NewInt(w))) <= 0
}

// remaining is ⌊limit − used(n) − w · used(n−1)⌋, at least 0.
func (m *model) remaining(b int, rule Rule, n, ms int64) int64 {
	w := rule.Window * 1000
	left := new(big.Int).Mul(big.NewInt(rule.Limit-m.used[modelKey{b, n}]), big.NewInt(w))
	if rule.Algorithm == SlidingWindow {
		left.Sub(left, new(big.Int).Mul(big.NewInt(m.used[modelKey{b, n - 1}]), big.NewInt((n+1)*w-ms)))
	}
	if left.Sign() <= 0 {
		return 0
	}
	return left.Div(left, big.NewInt(w)).Int64()
}

// script reads choices from fuzzed bytes; when they end it reads zeros.
type script struct{ data []byte }

func (s *script) byte() int64 {
	if len(s.data) == 0 {
		return 0
	}
	b := s.data[0]
	s.data = s.data[1:]
	return int64(b)
}

func (s *script) below(n int64) int64 {
	v := s.byte()
	for m := n; m > 256; m >>= 8 {
		v = v<<8 | s.byte()
	}
	return v % n
}

var modelWindows = [...]int64{1, 2, 10, 60, 3600, 2_592_000}

// checkModel drives a ledger and the model with the same steps and compares every answer.
func checkModel(t *testing.T, data []byte) {
	s := &script{data}
	rules := make([]Rule, 1+s.below(3))
	for i := range rules {
		rules[i] = Rule{Limit: s.limit(), Window: modelWindows[s.below(int64(len(modelWindows)))], Algorithm: Algorithm(1 + s.below(2))}
	}
	ids := make([]BucketID, len(rules))
	for i := range ids {
		ids[i] = bucketID(&[16]byte{1}, "p", rules[i], []byte{byte(i)})
	}
	l := newTestLedger("a", 1)
	l.fullPerShard = int(s.below(2)) // none: everything is packed after every step
	m := &model{used: map[modelKey]int64{}}
	now, latest := int64(testStart), int64(testStart)
	st := State{HorizonMillis: 1 << 50, Rosters: []Roster{{Index: 1, Nodes: []string{"a"}}}}
	type taken struct {
		charges []Charge
		on      []int
		ms      int64
		resets  []uint64 // of each bucket, before it was taken
	}
	l.setState(st)
	resets, generation := make([]uint64, len(rules)), uint64(0)
	var done []taken
	for len(s.data) > 0 {
		switch s.below(12) {
		case 0: // a clock that steps back, though never out of reach of what is kept
			now = max(now-s.below(2000), latest-2000)
		case 1:
			now += s.below(3 * rules[s.below(int64(len(rules)))].Window * 1000)
		case 2: // to an edge
			w := rules[s.below(int64(len(rules)))].Window * 1000
			now += w - now%w - s.below(3)
		case 3:
			rules[s.below(int64(len(rules)))].Limit = s.limit()
		case 4:
			if len(done) > 0 {
				i := s.below(int64(len(done)))
				r := done[i]
				done = append(done[:i:i], done[i+1:]...)
				w := func(i int) int64 { return rules[r.on[i]].Window * 1000 }
				kept := true // a window that is gone by now is nobody's business any more
				for i := range r.on {
					kept = kept && r.ms+2*w(i) > latest
				}
				if kept {
					l.refund(r.charges)
					for i, b := range r.on {
						if r.resets[b] == resets[b] { // else a reset has forgotten it
							m.used[modelKey{b, r.ms / w(i)}] -= r.charges[i].Cost
						}
					}
				}
			}
		case 6: // a reset
			b := int(s.below(int64(len(rules))))
			maps.DeleteFunc(m.used, func(k modelKey, _ int64) bool { return k.bucket == b })
			generation++
			resets[b] = generation
			st.Resets = slices.DeleteFunc(slices.Clone(st.Resets), func(r Reset) bool { return r.Bucket == ids[b] })
			st.Resets = append(st.Resets, Reset{Bucket: ids[b], Generation: resets[b]})
			l.setState(st)
		case 5:
			for i := range l.shards {
				l.sweepShard(&l.shards[i], 64)
			}
		default:
			now += s.below(50)
		}
		latest = max(latest, now)
		l.mark.Store(latest + 5000)
		charges, on := s.charges(rules, ids)
		verdicts := make([]Verdict, len(charges))
		// What the model says: a bucket may be named twice.
		want := Admitted
		wants := make([]Outcome, len(on))
		for i, b := range on {
			n := now / (rules[b].Window * 1000)
			wants[i] = Refused
			if m.passes(b, rules[b], n, now, charges[i].Cost) {
				wants[i] = Admitted
				m.used[modelKey{b, n}] += charges[i].Cost
			}
			want = max(want, wants[i])
		}
		if want != Admitted {
			for i, b := range on {
				if wants[i] == Admitted {
					m.used[modelKey{b, now / (rules[b].Window * 1000)}] -= charges[i].Cost
				}
			}
		}
		var out outbox
		got, pending := l.take(instant{ms: now, mono: now * 1e6}, charges, verdicts, &waiter{}, &out)
		if got != want || pending || len(out.to) > 0 {
			t.Fatalf("at %d: %+v: outcome %d (pending %v, %d packets), want %d", now, charges, got, pending, len(out.to), want)
		}
		for i, b := range on {
			m.checkVerdict(t, b, rules[b], now, charges[i].Cost, wants[i], verdicts[i], len(on) == 1 && now == latest)
		}
		if got == Admitted {
			done = append(done, taken{charges, on, now, slices.Clone(resets)})
		}
	}
}

func (m *model) checkVerdict(t *testing.T, b int, rule Rule, now, cost int64, want Outcome, v Verdict, alone bool) {
	t.Helper()
	w := rule.Window * 1000
	n := now / w
	remaining := m.remaining(b, rule, n, now)
	if want == Refused {
		remaining = min(remaining, cost-1)
	}
	if v.Outcome != want || v.Remaining != remaining || v.Limit != rule.Limit || v.ResetAt != (n+1)*w/1000 || v.Waited {
		t.Fatalf("at %d: %+v of %+v, want outcome %d and %d remaining", now, v, rule, want, remaining)
	}
	if !alone || want == Admitted || cost > rule.Limit {
		return
	}
	// RetryAfter is the least number of whole seconds after which it passes, if nobody else takes any.
	at := func(seconds int64) bool {
		ms := now + seconds*1000
		return m.passes(b, rule, ms/w, ms, cost)
	}
	if v.RetryAfter < 1 || !at(v.RetryAfter) || v.RetryAfter > 1 && at(v.RetryAfter-1) {
		t.Fatalf("at %d: %d of %+v passes again after %d seconds, says the ledger; the model: %v then, %v a second before",
			now, cost, rule, v.RetryAfter, at(v.RetryAfter), at(v.RetryAfter-1))
	}
}

func (s *script) limit() int64 {
	switch s.below(8) {
	case 0:
		return 0
	case 1:
		return maxLimit - s.below(5)
	case 2:
		return s.below(1 << 30)
	}
	return 1 + s.below(30)
}

func (s *script) charges(rules []Rule, ids []BucketID) (charges []Charge, on []int) {
	for range 1 + max(s.below(8)-5, 0) {
		b := int(s.below(int64(len(rules))))
		cost := int64(1)
		switch s.below(6) {
		case 0:
			cost += s.below(5)
		case 1:
			cost += s.below(rules[b].Limit + 2)
		case 2:
			cost += rules[b].Limit / 3
		}
		charges = append(charges, Charge{Bucket: ids[b], Rule: rules[b], Cost: min(cost, maxCost)})
		on = append(on, b)
	}
	return charges, on
}

func TestLedger_MatchesModel(t *testing.T) {
	t.Parallel()
	randomScripts(t, 11, checkModel)
}

// randomScripts checks a ledger against its model with scripts of a seed.
func randomScripts(t *testing.T, seed uint64, check func(*testing.T, []byte)) {
	rng := rand.New(rand.NewPCG(seed, seed+1))
	data := make([]byte, 600)
	for range 3000 / (1 + 9*btoi(raceEnabled)) {
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
		check(t, data[:rng.IntN(len(data))])
	}
}

// fuzzScripts lets the fuzzer write them.
func fuzzScripts(f *testing.F, seed uint64, check func(*testing.T, []byte)) {
	rng := rand.New(rand.NewPCG(seed, seed+1))
	for range 8 {
		data := make([]byte, 400)
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) < 4096 {
			check(t, data)
		}
	})
}

// A single node must do what the model does, whatever is asked of it.
func FuzzLedgerModel(f *testing.F) {
	f.Add([]byte("sliding windows, one after another, and then some more of it"))
	f.Add([]byte{2, 7, 9, 3, 1, 5, 2, 2, 8, 4, 1, 9, 200, 30, 11, 2, 4, 0, 0, 99, 17, 3, 3, 3, 250, 6, 4, 4})
	fuzzScripts(f, 13, checkModel)
}
