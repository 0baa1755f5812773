package bench_test

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"sluice/bench"
)

// spans makes samples of one outcome from pairs of the milliseconds at which they were sent and answered.
func spans(outcome bench.Outcome, millis ...int64) []bench.Sample {
	var out []bench.Sample
	for i := 0; i < len(millis); i += 2 {
		out = append(out, bench.Sample{Outcome: outcome, Sent: origin*1e6 + millis[i]*1e3, Received: origin*1e6 + millis[i+1]*1e3})
	}
	return out
}

func TestCheck_TokenBucket(t *testing.T) {
	t.Parallel()
	rule := bench.Rule{Limit: 10, Window: 10, Burst: 3} // one a second
	for _, test := range []struct {
		name    string
		samples []bench.Sample
		over    float64
	}{
		{name: "nothing"},
		{name: "the burst", samples: spans(bench.Admitted, 0, 0, 0, 0, 0, 0)},
		{name: "one more", samples: spans(bench.Admitted, 0, 0, 0, 0, 0, 0, 0, 0), over: 1},
		{name: "one more, half a second late", samples: spans(bench.Admitted, 0, 0, 0, 0, 0, 0, 500, 500), over: 0.5},
		{name: "one more, a second late", samples: spans(bench.Admitted, 0, 0, 0, 0, 0, 0, 1000, 1000)},
		{name: "one more, that may have been decided a second late", samples: spans(bench.Admitted, 0, 0, 0, 0, 0, 0, 0, 1000)},
		{name: "one of the first may have been decided before", samples: spans(bench.Admitted, -1000, 0, 0, 0, 0, 0, 0, 0)},
		{name: "the burst again after a pause", samples: append(spans(bench.Admitted, 0, 0, 0, 0, 0, 0), spans(bench.Admitted, 3000, 3000, 3000, 3000, 3000, 3000)...)},
		{name: "too soon", samples: append(spans(bench.Admitted, 0, 0, 0, 0, 0, 0), spans(bench.Admitted, 2000, 2000, 2000, 2000, 2000, 2000)...), over: 1},
		{name: "the worst time is in the middle", samples: spans(bench.Admitted, -60_000, -60_000, 0, 0, 0, 0, 0, 0, 100, 100, 60_000, 60_000), over: 0.9},
		{name: "refusals count nothing", samples: append(spans(bench.Admitted, 0, 0, 0, 0, 0, 0), spans(bench.Refused, 0, 0, 0, 0)...)},
	} {
		for range 3 { // in any order
			j := bench.Check(rule, bench.Bounds{After: time.Second}, test.samples)
			if j.Over() != test.over || j.Misnamed != 0 {
				t.Errorf("%s: over %v, misnamed %d, want %v and 0", test.name, j.Over(), j.Misnamed, test.over)
			}
			rand.Shuffle(len(test.samples), func(a, b int) { test.samples[a], test.samples[b] = test.samples[b], test.samples[a] })
		}
	}
}

func TestCheck_TokensMissing(t *testing.T) {
	t.Parallel()
	rule := bench.Rule{Limit: 10, Window: 10, Burst: 3}
	// pressing asks every 50 ms for 5 s and gets some at once and one at each whole second up to last.
	pressing := func(some, last int64) (samples []bench.Sample) {
		for ms := int64(0); ms <= 5000; ms += 50 {
			outcome := bench.Refused
			if ms/50 < some || ms%1000 == 0 && ms > 0 && ms <= last*1000 {
				outcome = bench.Admitted
			}
			samples = append(samples, spans(outcome, ms, ms+1)...)
		}
		return samples
	}
	for _, test := range []struct {
		name    string
		samples []bench.Sample
		judged  bool
		missing int64
	}{
		{name: "nothing"},
		// The bucket gains one a second from the first request on; the last second does not count.
		{name: "all of it", samples: pressing(3, 5), judged: true},
		{name: "all up to a second before the end", samples: pressing(3, 3), judged: true, missing: 1},
		{name: "one of the burst less", samples: pressing(2, 3), judged: true, missing: 2},
		{name: "no wish was left open", samples: spans(bench.Admitted, 0, 0, 1000, 1000, 2000, 2000, 3000, 3000)},
	} {
		j := bench.Check(rule, bench.Bounds{After: 500 * time.Millisecond}, test.samples)
		if missing, judged := j.Missing(); missing != test.missing || judged != test.judged {
			t.Errorf("%s: %d missing, judged %v, want %d and %v", test.name, missing, judged, test.missing, test.judged)
		}
	}
}

// What an exact bucket admits is never too much, however late its answers come; and what the check finds is what counting in every
// time finds.
func TestCheck_TokensAgainstAnExactBucket(t *testing.T) {
	t.Parallel()
	for seed := range uint64(300) {
		random := rand.New(rand.NewPCG(seed, 2))
		rule := bench.Rule{Limit: 1 + random.Int64N(40), Window: 1 + random.Int64N(10), Burst: 1 + random.Int64N(20)}
		length := rule.Window * 1e6
		content, at := rule.Burst*length, origin*1e6
		leaky := seed%2 == 1
		var samples []bench.Sample
		for range 150 {
			gained := random.Int64N(length / rule.Limit)
			at += gained
			content = min(content+gained*rule.Limit, rule.Burst*length)
			s := bench.Sample{Outcome: bench.Refused, Sent: at - random.Int64N(300_000), Received: at + random.Int64N(300_000)}
			if content >= length || leaky && random.IntN(20) == 0 {
				s.Outcome = bench.Admitted
				content = max(content-length, 0)
			}
			samples = append(samples, s)
		}
		want := 0.0
		for _, a := range samples {
			for _, b := range samples {
				count := int64(0)
				for _, s := range samples {
					if s.Outcome == bench.Admitted && s.Sent >= a.Sent && s.Received <= b.Received {
						count++
					}
				}
				if a.Outcome == bench.Admitted && b.Outcome == bench.Admitted && count > 0 {
					want = max(want, float64((count-rule.Burst)*length-(b.Received-a.Sent)*rule.Limit)/float64(length))
				}
			}
		}
		got := bench.Check(rule, bench.Bounds{}, samples).Over()
		if got != want || !leaky && got != 0 {
			t.Errorf("seed %d: %v over, want %v (leaky %v)", seed, got, want, leaky)
		}
	}
}

func TestAccuracy_TokenBucket(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name         string
		fake         *fake
		pattern      string
		over, wasted bool
	}{
		{name: "none", fake: &fake{tokens: true}, pattern: "hopping"},
		{name: "sustained", fake: &fake{tokens: true}, pattern: "sustained"},
		{name: "each node has a bucket of its own", fake: &fake{tokens: true, separate: true}, pattern: "round_robin", over: true},
		{name: "three units that nobody gets", fake: &fake{tokens: true, stingy: 3}, pattern: "sticky", wasted: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			a := quick(test.fake.start(t, 3), test.pattern)
			a.Tokens = true
			report, err := a.Run(within(t))
			if err != nil {
				t.Fatal(err)
			}
			r := report.Results[0]
			wasted := r.WastedPercent != nil && *r.WastedPercent > 0
			if report.OverAdmitted != test.over || wasted != test.wasted || r.Burst != 10 || report.Algorithm != "token_bucket" {
				t.Errorf("over-admitted %v, wasted %v, want %v and %v: %+v", report.OverAdmitted, wasted, test.over, test.wasted, r)
			}
		})
	}
	a := quick(new(fake).start(t, 2), "sticky") // windows
	a.Tokens = true
	if _, err := a.Run(within(t)); err == nil || !strings.Contains(err.Error(), "burst") {
		t.Errorf("a cluster without token buckets: %v", err)
	}
}
