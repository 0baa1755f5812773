package bench_test

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"sluice/bench"
)

// origin is the begin of a window of ten seconds, in Unix seconds.
const origin = int64(1_800_000_000)

// at makes samples of one outcome in the window of ten seconds that begins at from (seconds after origin), decided and
// received at millis after that.
func at(outcome bench.Outcome, from int64, millis ...int64) []bench.Sample {
	var out []bench.Sample
	for _, ms := range millis {
		t := (origin+from)*1e6 + ms*1e3
		out = append(out, bench.Sample{Outcome: outcome, Reset: origin + from + 10, Sent: t, Received: t})
	}
	return out
}

// times repeats a moment.
func times(n int, millis int64) []int64 { return slices.Repeat([]int64{millis}, n) }

func TestCheck_Over(t *testing.T) {
	t.Parallel()
	fixed, sliding := bench.Rule{Limit: 10, Window: 10}, bench.Rule{Limit: 10, Window: 10, Sliding: true}
	for _, test := range []struct {
		name     string
		rule     bench.Rule
		skew     time.Duration
		samples  [][]bench.Sample
		over     float64
		misnamed int
	}{
		{name: "nothing", rule: fixed},
		{name: "the limit", rule: fixed, samples: [][]bench.Sample{at(bench.Admitted, 0, times(10, 100)...)}},
		{name: "one more", rule: fixed, samples: [][]bench.Sample{at(bench.Admitted, 0, times(11, 100)...)}, over: 1},
		{name: "refusals count nothing", rule: fixed, samples: [][]bench.Sample{at(bench.Admitted, 0, times(10, 100)...), at(bench.Refused, 0, times(5, 100)...),
			at(bench.Undecided, 0, times(5, 100)...), at(bench.Failed, 0, times(5, 100)...)}},
		{name: "fixed windows meet", rule: fixed, samples: [][]bench.Sample{at(bench.Admitted, 0, times(10, 9999)...), at(bench.Admitted, 10, times(10, 0)...)}},
		{name: "sliding windows do not", rule: sliding, samples: [][]bench.Sample{at(bench.Admitted, 0, times(10, 9999)...), at(bench.Admitted, 10, times(10, 0)...)}, over: 10},
		{name: "half of the window before has gone", rule: sliding, samples: [][]bench.Sample{at(bench.Admitted, 0, times(10, 1)...), at(bench.Admitted, 10, times(5, 5000)...)}},
		{name: "half and one", rule: sliding, samples: [][]bench.Sample{at(bench.Admitted, 0, times(10, 1)...), at(bench.Admitted, 10, times(6, 5000)...)}, over: 1},
		{name: "half a second too early", rule: sliding, samples: [][]bench.Sample{at(bench.Admitted, 0, times(10, 1)...), at(bench.Admitted, 10, times(5, 4500)...)}, over: 0.5},
		{name: "half a second of skew", rule: sliding, skew: 500 * time.Millisecond, samples: [][]bench.Sample{at(bench.Admitted, 0, times(10, 1)...), at(bench.Admitted, 10, times(5, 4500)...)}},
		{name: "only the worst moment counts", rule: sliding, samples: [][]bench.Sample{at(bench.Admitted, 0, times(10, 1)...), at(bench.Admitted, 10, 9000, 1000, 500)}, over: 1},
		{name: "two windows before is out of view", rule: sliding, samples: [][]bench.Sample{at(bench.Admitted, 0, times(10, 1)...), at(bench.Admitted, 20, times(10, 0)...)}},
		{name: "gossiped counters: each of three nodes admits all", rule: fixed, samples: [][]bench.Sample{at(bench.Admitted, 0, times(30, 3)...)}, over: 20},
		{name: "no window named", rule: fixed, misnamed: 1, samples: [][]bench.Sample{{{Outcome: bench.Admitted, Sent: origin * 1e6, Received: origin * 1e6}}}},
		{name: "no window begins there", rule: fixed, misnamed: 1, samples: [][]bench.Sample{{{Outcome: bench.Admitted, Reset: origin + 3, Sent: origin * 1e6, Received: origin * 1e6}}}},
		{name: "a window to come", rule: fixed, misnamed: 1, samples: [][]bench.Sample{at(bench.Admitted, 0, -1)}},
		{name: "to come, but for the skew", rule: fixed, skew: time.Second, samples: [][]bench.Sample{at(bench.Admitted, 0, -1)}},
		{name: "a window gone by", rule: fixed, misnamed: 1, samples: [][]bench.Sample{at(bench.Admitted, 0, 10_001)}},
		{name: "gone by while the answer came", rule: fixed, samples: [][]bench.Sample{{{Outcome: bench.Admitted, Reset: origin + 10, Sent: (origin + 9) * 1e6, Received: (origin + 12) * 1e6}}}},
	} {
		samples := slices.Concat(test.samples...)
		for range 3 { // in any order
			j := bench.Check(test.rule, bench.Bounds{Skew: test.skew, After: time.Second}, samples)
			if j.Over() != test.over || j.Misnamed != test.misnamed {
				t.Errorf("%s: over %v, misnamed %d, want %v and %d", test.name, j.Over(), j.Misnamed, test.over, test.misnamed)
			}
			rand.Shuffle(len(samples), func(a, b int) { samples[a], samples[b] = samples[b], samples[a] })
		}
	}
}

func TestCheck_Missing(t *testing.T) {
	t.Parallel()
	fixed, sliding := bench.Rule{Limit: 10, Window: 10}, bench.Rule{Limit: 10, Window: 10, Sliding: true}
	// asked is a client that gets some at once and is refused until the end.
	asked := func(from int64, some int, until int64) []bench.Sample {
		out := at(bench.Admitted, from, times(some, 100)...)
		for ms := int64(100); ms <= until; ms += 50 {
			out = append(out, at(bench.Refused, from, ms)...)
		}
		return out
	}
	for _, test := range []struct {
		name    string
		rule    bench.Rule
		samples [][]bench.Sample
		judged  bool
		missing int64
	}{
		{name: "nothing", rule: fixed},
		{name: "all of it", rule: fixed, samples: [][]bench.Sample{asked(0, 10, 2000)}, judged: true},
		{name: "two less", rule: fixed, samples: [][]bench.Sample{asked(0, 8, 2000)}, judged: true, missing: 2},
		{name: "not for long enough", rule: fixed, samples: [][]bench.Sample{asked(0, 8, 1000)}},
		{name: "for less than the limit", rule: fixed, samples: [][]bench.Sample{at(bench.Admitted, 0, times(3, 100)...), at(bench.Refused, 0, 100, 2000)}},
		{name: "no wish was left open in the end", rule: fixed, samples: [][]bench.Sample{at(bench.Refused, 0, times(5, 100)...), at(bench.Admitted, 0, 2000, 2000, 2000, 2000, 2000, 2000)}},
		// At 2.0 s the client was refused for the last time. What came back until 1.0 s, a tenth, it could have had.
		{name: "sliding: what came back", rule: sliding, samples: [][]bench.Sample{at(bench.Admitted, 0, times(10, 1)...), asked(10, 1, 2000)}, judged: true},
		{name: "sliding: nothing of what came back", rule: sliding, samples: [][]bench.Sample{at(bench.Admitted, 0, times(10, 1)...), asked(10, 0, 2000)}, judged: true, missing: 1},
		{name: "sliding: not quite back", rule: sliding, samples: [][]bench.Sample{at(bench.Admitted, 0, times(10, 1)...), asked(10, 0, 1950)}, judged: true},
		{name: "fixed: what came back", rule: fixed, samples: [][]bench.Sample{at(bench.Admitted, 0, times(10, 1)...), asked(10, 1, 2000)}, judged: true, missing: 9},
	} {
		j := bench.Check(test.rule, bench.Bounds{After: time.Second}, slices.Concat(test.samples...))
		if missing, judged := j.Missing(); missing != test.missing || judged != test.judged {
			t.Errorf("%s: %d missing, judged %v, want %d and %v", test.name, missing, judged, test.missing, test.judged)
		}
	}
}

// exact is a limiter that admits just what a sliding window allows, in microseconds.
type exact struct {
	limit, length int64
	used          map[int64]int64
}

func (e *exact) take(now int64) (reset int64, admitted bool) {
	n := now / e.length
	if e.used[n]*e.length+((n+1)*e.length-now)*e.used[n-1]+e.length > e.limit*e.length {
		return (n + 1) * e.length / 1e6, false
	}
	e.used[n]++
	return (n + 1) * e.length / 1e6, true
}

// TestCheck_AgainstAnExactLimiter sends random requests with random delays both ways: what an exact limiter admits is never
// too much, and one more than that in any window at its fullest is found where the delays are none.
func TestCheck_AgainstAnExactLimiter(t *testing.T) {
	t.Parallel()
	for seed := range uint64(300) {
		random := rand.New(rand.NewPCG(seed, 1))
		window := []int64{1, 2, 10}[random.IntN(3)]
		rule := bench.Rule{Limit: 1 + random.Int64N(40), Window: window, Sliding: true}
		delay := []int64{1, 1_000, 300_000}[random.IntN(3)]
		model := &exact{limit: rule.Limit, length: window * 1e6, used: map[int64]int64{}}
		var samples []bench.Sample
		var last bench.Sample // admitted just before a refusal: the limit is full there
		full := false
		now := origin * 1e6
		for range 400 {
			now += random.Int64N(window * 1e6 / 2 / rule.Limit)
			reset, ok := model.take(now)
			s := bench.Sample{Outcome: bench.Refused, Reset: reset, Sent: now - random.Int64N(delay), Received: now + random.Int64N(delay)}
			if ok {
				s.Outcome = bench.Admitted
			} else {
				last, full = bench.Sample{Outcome: bench.Admitted, Reset: reset, Sent: now, Received: now}, true
			}
			samples = append(samples, s)
		}
		if j := bench.Check(rule, bench.Bounds{}, samples); j.Over() > 0 || j.Misnamed > 0 {
			t.Errorf("seed %d: an exact limiter is %v over, %d misnamed", seed, j.Over(), j.Misnamed)
		}
		if delay > 1 || !full {
			continue
		}
		if j := bench.Check(rule, bench.Bounds{}, append(samples, last)); j.Over() <= 0 {
			t.Errorf("seed %d: an admission where the exact limiter refuses was not found", seed)
		}
	}
}
