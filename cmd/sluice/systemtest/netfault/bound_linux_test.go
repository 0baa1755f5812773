package netfault

import (
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"
)

// bound is what may have been admitted at most.
type bound struct {
	// ahead is how far the clock furthest ahead was before the test's own, by the instant; nil: all clocks were right.
	ahead func(time.Time) time.Duration
	// excess is what may be admitted beyond the limit of a bucket.
	excess func(*bucket) int64
}

// verify finds the worst case of all buckets. An admission counts in the window that its answer names. A sliding window
// admits while used(n) + w * used(n-1) <= limit, w being the part of n-1 still in view. What was answered by an instant was
// decided before it, with no less in view than there is at that instant; so the formula holds at the instant of each answer,
// counting in n what was answered by then. Windows from a minute up to what the spray lasts are checked alike.
func verify(answers []answer, b bound) (buckets, admitted int, problems []string) {
	byBucket := map[*bucket]map[int64][]time.Time{}
	for _, a := range answers {
		if a.status != http.StatusOK {
			continue
		}
		admitted++
		if byBucket[a.bucket] == nil {
			byBucket[a.bucket] = map[int64][]time.Time{}
		}
		byBucket[a.bucket][a.end] = append(byBucket[a.bucket][a.end], a.got)
	}
	for bucket, windows := range byBucket {
		limit := bucket.limit
		if b.excess != nil {
			limit += b.excess(bucket)
		}
		width := bucket.window
		for end, gots := range windows {
			if end%int64(width/time.Second) != 0 {
				problems = append(problems, fmt.Sprintf("%s: no window of %v ends at %d", bucket.name, width, end))
			}
			slices.SortFunc(gots, time.Time.Compare)
			before := int64(len(windows[end-int64(width/time.Second)]))
			for i, got := range gots {
				if b.ahead != nil {
					got = got.Add(b.ahead(got))
				}
				// Nanoseconds of the window before that are still in view.
				inView := min(max(time.Unix(end, 0).Sub(got), 0), width)
				used := int64(i + 1)
				if used*int64(width)+before*int64(inView) > limit*int64(width) {
					problems = append(problems, fmt.Sprintf("%s (%d in %v): %d admitted in the window that ends at %d, %d in the one before, of which %v are in view",
						bucket.name, bucket.limit, width, used, end, before, inView))
					break
				}
			}
		}
	}
	return len(byBucket), admitted, problems
}

// TestVerify shows that the check finds one request too many.
func TestVerify(t *testing.T) {
	b := &bucket{name: "b", limit: 10, window: 10 * time.Second}
	at := func(seconds float64, end int64, n int) (out []answer) {
		for range n {
			out = append(out, answer{bucket: b, status: http.StatusOK, got: time.Unix(0, int64(seconds*1e9)), end: end})
		}
		return out
	}
	for _, c := range []struct {
		name    string
		answers []answer
		bound   bound
		wrong   bool
	}{
		{name: "all in one window", answers: at(101, 110, 10)},
		{name: "one too many", answers: at(101, 110, 11), wrong: true},
		{name: "half has slid out", answers: append(at(101, 110, 10), at(115, 120, 5)...)},
		{name: "and one more", answers: append(at(101, 110, 10), at(115, 120, 6)...), wrong: true},
		{name: "too early", answers: append(at(101, 110, 10), at(114.9, 120, 5)...), wrong: true},
		{name: "answered late", answers: append(at(121, 110, 10), at(115, 120, 5)...)},
		{name: "a clock ahead", answers: append(at(101, 110, 10), at(114, 120, 5)...),
			bound: bound{ahead: func(time.Time) time.Duration { return time.Second }}},
		{name: "an excess allowed", answers: at(101, 110, 14), bound: bound{excess: func(*bucket) int64 { return 4 }}},
		{name: "an excess too large", answers: at(101, 110, 15), bound: bound{excess: func(*bucket) int64 { return 4 }}, wrong: true},
		{name: "no such window", answers: at(101, 111, 1), wrong: true},
	} {
		if _, _, problems := verify(c.answers, c.bound); (len(problems) > 0) != c.wrong {
			t.Errorf("%s: got %q, want problems: %v", c.name, problems, c.wrong)
		}
	}
}
