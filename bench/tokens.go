package bench

import (
	"cmp"
	"slices"
)

// driftPart is the part of a time by which the clocks of two machines may differ after it.
const driftPart = 1000

// checkTokens judges all answers about one token bucket, as one window: in any time at most burst + rate · time may pass.
//
// What was sent at a or later and answered by b was decided between the two, by this program's own clock: nothing that a
// cluster does within its promise is more. Missing is what a bucket that knew everything would have admitted of the same requests, up to
// bounds.After before the end, beyond what was admitted in all; such a bucket decides at the moment of sending.
func checkTokens(rule Rule, bounds Bounds, samples []Sample) Judgement {
	t := tally{}
	var admitted, asked []Sample
	for i := range samples {
		s := &samples[i]
		if s.Outcome != Admitted && s.Outcome != Refused {
			continue
		}
		if asked = append(asked, *s); len(asked) == 1 {
			t.first = s.Sent
		}
		t.first, t.last = min(t.first, s.Sent), max(t.last, s.Received)
		if s.Outcome == Admitted {
			admitted = append(admitted, *s)
		}
	}
	if len(asked) == 0 {
		return Judgement{}
	}
	w := Window{End: (t.last + second - 1) / second, Asked: len(asked), Admitted: len(admitted)}
	w.Over = max(0, worstExcess(rule, bounds.Skew > 0, admitted))

	then := t.last - bounds.After.Microseconds()
	pressed := slices.ContainsFunc(asked, func(s Sample) bool { return s.Outcome == Refused && s.Received > then })
	var j Judgement
	if w.Judged = t.first <= then && pressed && int64(len(asked)) > rule.Burst; w.Judged {
		j.Possible = rule.possible(asked, then)
		w.Missing = max(j.Possible-int64(len(admitted)), 0)
	}
	j.Windows = []Window{w}
	return j
}

// possible is how many of the requests that were answered by then a bucket that knows everything admits, full when the first was
// sent.
func (r *Rule) possible(asked []Sample, then int64) (units int64) {
	slices.SortFunc(asked, func(a, b Sample) int { return cmp.Compare(a.Sent, b.Sent) })
	length := r.Window * second
	full := r.Burst * length
	content, at := full, asked[0].Sent // in units times length
	for i := range asked {
		s := &asked[i]
		if s.Received > then {
			continue
		}
		if gained := s.Sent - at; gained >= full/r.Limit {
			content = full
		} else {
			content = min(content+gained*r.Limit, full)
		}
		if at = s.Sent; content >= length {
			content -= length
			units++
		}
	}
	return units
}

// worstExcess is by how many units more were admitted than may, in the worst time from one sending to one arrival. drifting allows
// for the clocks of other machines.
func worstExcess(rule Rule, drifting bool, admitted []Sample) float64 {
	if len(admitted) == 0 {
		return 0
	}
	slices.SortFunc(admitted, func(a, b Sample) int { return cmp.Compare(a.Received, b.Received) })
	length := rule.Window * second
	origin := admitted[0].Sent
	for i := range admitted {
		origin = min(origin, admitted[i].Sent)
	}
	gains := func(at int64) int64 {
		t := at - origin
		if drifting {
			t += t / driftPart
		}
		return t * rule.Limit
	}
	// Going back in the time of sending, each admission counts in all times that end at its arrival or later. No time ends
	// at an arrival that does not count yet: it would end before it begins.
	const never = int64(1) << 60
	ends := newMaxTree(len(admitted))
	bySent := make([]int, len(admitted))
	for i := range admitted {
		bySent[i] = i
		ends.add(i, i+1, -gains(admitted[i].Received)-never)
	}
	slices.SortFunc(bySent, func(a, b int) int { return cmp.Compare(admitted[b].Sent, admitted[a].Sent) })
	worst := int64(0)
	for _, i := range bySent {
		ends.add(i, i+1, never)
		ends.add(i, len(admitted), length)
		worst = max(worst, ends.max()+gains(admitted[i].Sent)-rule.Burst*length)
	}
	return float64(worst) / float64(length)
}

// maxTree keeps numbers of which a run is raised at once, and the greatest is asked for.
type maxTree struct {
	size int
	most []int64 // of each node's numbers, less what nodes above were raised by
	more []int64 // by which all of a node's numbers were raised
}

func newMaxTree(n int) *maxTree {
	size := 1
	for size < n {
		size *= 2
	}
	t := &maxTree{size: size, most: make([]int64, 2*size), more: make([]int64, 2*size)}
	for i := size + n; i < 2*size; i++ {
		t.most[i] = -1 << 62 // places without a number
	}
	for i := size - 1; i > 0; i-- {
		t.most[i] = max(t.most[2*i], t.most[2*i+1])
	}
	return t
}

func (t *maxTree) max() int64 { return t.most[1] }

// add raises the numbers in [from, to) by x.
func (t *maxTree) add(from, to int, x int64) { t.raise(1, 0, t.size, from, to, x) }

func (t *maxTree) raise(node, first, end, from, to int, x int64) {
	if to <= first || end <= from {
		return
	}
	if from <= first && end <= to {
		t.most[node] += x
		t.more[node] += x
		return
	}
	middle := (first + end) / 2
	t.raise(2*node, first, middle, from, to, x)
	t.raise(2*node+1, middle, end, from, to, x)
	t.most[node] = max(t.most[2*node], t.most[2*node+1]) + t.more[node]
}
