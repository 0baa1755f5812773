package bench

import (
	"cmp"
	"slices"
	"time"
)

// Outcome of one request.
type Outcome uint8

const (
	// Admitted: a 2xx answer.
	Admitted Outcome = iota + 1
	// Refused: 429.
	Refused
	// Undecided: 503, the node could not decide; it counts nothing.
	Undecided
	// Failed: no answer, or one that has nothing to do with the limit.
	Failed
)

// Sample is one request and what became of it.
type Sample struct {
	Outcome  Outcome
	Waited   bool  // the decision waited for a message; only where Debug is set
	Debug    bool  // the node said whether it waited
	Node     int   // which target
	Reset    int64 // X-RateLimit-Reset: the end of the window that the node decided in, Unix seconds; 0: not said
	Sent     int64 // Unix microseconds, just before sending
	Received int64 // Unix microseconds, just after the answer; at least Sent
}

// Rule is a limit as the checker knows it.
type Rule struct {
	Limit   int64 // units, 1 to 1e6
	Window  int64 // seconds, 1 to 3600
	Sliding bool  // sliding_window, else fixed_window
	Burst   int64 // of a token_bucket: what it holds when it is full, 1 to 1e6; else 0
}

// Bounds is what Check has to allow for.
type Bounds struct {
	// Skew is how far the clocks of nodes and of this program may differ. It loosens the check; 0 where they are one.
	Skew time.Duration
	// After is how long a client has to go on asking until unused limit counts as wasted.
	After time.Duration
}

// Window is what was seen of one window.
type Window struct {
	End      int64 `json:"end"` // Unix seconds; it names the window
	Asked    int   `json:"asked"`
	Admitted int   `json:"admitted"`
	// Over is by how many units the bound was exceeded at the worst moment; not whole for sliding windows.
	Over float64 `json:"over"`
	// Judged says that a client wanted more than there was, long enough for Missing to count.
	Judged bool `json:"judged"`
	// Missing is how many units such a client did not get.
	Missing int64 `json:"missing"`
}

// Judgement is what Check finds.
type Judgement struct {
	Windows []Window // by End; of a token bucket one for all
	// Possible is how many units of a token bucket could be had, where that was judged.
	Possible int64
	// Misnamed are admissions counted in a window that cannot have been the present one, or in none.
	Misnamed int
}

// Over is the worst excess of any window, in units; 0 where the limit held.
func (j Judgement) Over() float64 {
	worst := 0.0
	for _, w := range j.Windows {
		worst = max(worst, w.Over)
	}
	return worst
}

// Missing is the worst of the judged windows; ok is false where none was.
func (j Judgement) Missing() (units int64, ok bool) {
	for _, w := range j.Windows {
		if w.Judged {
			units, ok = max(units, w.Missing), true
		}
	}
	return units, ok
}

const second = int64(time.Second / time.Microsecond)

// Check judges all answers about one bucket: every answer in the window that its node named.
//
// A fixed window admits at most the limit. A sliding one holds used(n) + w·used(n−1) ≤ limit at each decision, w being the
// part of window n−1 still in view. A decision fell between Sent and Received; w falls with time, so that Received gives
// the smallest w, and the bound that no cluster that keeps its promise can exceed: the k-th admission of a window, in the
// order of arrival, was decided no later than it arrived, together with at least k−1 others.
//
// Limit that is not used counts as missing where the client asked for more than the limit in that window, went on for
// bounds.After, and was refused to the end: it is what could be had bounds.After before the end, less what was admitted.
//
// A token bucket has no windows, see checkTokens.
//
// It is pure: samples are neither changed nor kept, in any order.
func Check(rule Rule, bounds Bounds, samples []Sample) Judgement {
	if rule.Burst > 0 {
		return checkTokens(rule, bounds, samples)
	}
	var j Judgement
	skew := bounds.Skew.Microseconds()
	byWindow := make(map[int64]*tally)
	for i := range samples {
		s := &samples[i]
		if s.Outcome != Admitted && s.Outcome != Refused {
			continue
		}
		if s.Reset <= 0 || s.Reset%rule.Window != 0 {
			if s.Outcome == Admitted {
				j.Misnamed++
			}
			continue
		}
		t := byWindow[s.Reset]
		if t == nil {
			t = &tally{first: s.Sent}
			byWindow[s.Reset] = t
		}
		t.asked++
		t.first = min(t.first, s.Sent)
		t.last = max(t.last, s.Received)
		if s.Outcome == Refused {
			t.refused = append(t.refused, s.Received)
			continue
		}
		t.admitted = append(t.admitted, s.Received)
		end := s.Reset * second
		if end-rule.Window*second > s.Received+skew || end < s.Sent-skew {
			j.Misnamed++
		}
	}
	for end, t := range byWindow {
		before := 0
		if prev := byWindow[end-rule.Window]; prev != nil && rule.Sliding {
			before = len(prev.admitted)
		}
		j.Windows = append(j.Windows, t.judge(rule, end, int64(before), skew, bounds.After.Microseconds()))
	}
	slices.SortFunc(j.Windows, func(a, b Window) int { return cmp.Compare(a.End, b.End) })
	return j
}

// tally is one window on the way. Times are Unix microseconds.
type tally struct {
	asked             int
	first, last       int64
	admitted, refused []int64 // when they arrived
}

func (t *tally) judge(rule Rule, end, before, skew, after int64) Window {
	w := Window{End: end, Asked: t.asked, Admitted: len(t.admitted)}
	length := rule.Window * second
	// inView is how many microseconds of the window before are still seen at a time.
	inView := func(at int64) int64 { return min(max(end*second-at, 0), length) }

	slices.Sort(t.admitted)
	worst := int64(0) // in units times length
	for i, at := range t.admitted {
		worst = max(worst, (int64(i+1)-rule.Limit)*length+inView(at+skew)*before)
	}
	w.Over = float64(worst) / float64(length)

	// Nobody can have anything once the window is over, whatever an answer took to come.
	then := min(t.last, end*second) - after
	pressed := slices.ContainsFunc(t.refused, func(at int64) bool { return at > then })
	w.Judged = t.first <= then && pressed && int64(t.asked) > rule.Limit
	if w.Judged {
		seen := inView(then-skew) * before
		could := rule.Limit - (seen+length-1)/length
		w.Missing = max(could-int64(len(t.admitted)), 0)
	}
	return w
}
