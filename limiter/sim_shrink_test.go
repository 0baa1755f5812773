package limiter

import (
	"fmt"
	"slices"
	"strings"
)

// kind is what a failure is of: shrinking must not turn one into another.
func kind(failure string) string {
	k, _, _ := strings.Cut(failure, ":")
	return k
}

// shrink leaves out what the failure does not need: first runs of steps, ever shorter ones (delta debugging, Zeller and
// Hildebrandt 2002), then single steps, nodes' faults and the length of what is left. At most tries schedules are run.
func shrink(p *schedule, failure string, tries int) (*schedule, string) {
	want := kind(failure)
	best := *p
	try := func(q schedule) bool {
		if tries--; tries < 0 {
			return false
		}
		s := q.run(false)
		if s.failure == "" || kind(s.failure) != want {
			return false
		}
		best, failure = q, s.failure
		return true
	}
	for again := true; again && tries > 0; {
		again = false
		for size := len(best.steps) / 2; size >= 1; size /= 2 {
			for at := 0; at < len(best.steps) && tries > 0; {
				q := best
				q.steps = slices.Delete(slices.Clone(best.steps), at, min(at+size, len(best.steps)))
				if try(q) {
					again = true
				} else {
					at += size
				}
			}
		}
		for i := 0; i < len(best.steps); i++ {
			for _, less := range fewer(best.steps[i]) {
				q := best
				q.steps = slices.Clone(best.steps)
				q.steps[i] = less
				if try(q) {
					again = true
				}
			}
		}
		for _, simpler := range simplerOptions(best.opt) {
			q := best
			if q.opt = simpler; try(q) {
				again = true
			}
		}
	}
	return &best, failure
}

// fewer are smaller forms of a step.
func fewer(st step) (out []step) {
	if st.op == opTake && st.a > 1 {
		for _, a := range []int64{1, st.a / 2, st.a - 1} {
			less := st
			less.a = a
			out = append(out, less)
		}
	}
	if st.b != 0 && st.op != opLimit {
		less := st
		less.b = 0
		out = append(out, less)
	}
	if (st.op == opAdvance || st.op == opClock) && (st.a > 1 || st.a < -1) {
		less := st
		less.a = st.a / 2
		out = append(out, less)
	}
	return out
}

func simplerOptions(o simOptions) (out []simOptions) {
	add := func(change func(*simOptions)) {
		c := o
		c.buckets = slices.Clone(o.buckets)
		change(&c)
		out = append(out, c)
	}
	if o.loss > 0 {
		add(func(c *simOptions) { c.loss = 0 })
	}
	if o.repeat > 0 {
		add(func(c *simOptions) { c.repeat = 0 })
	}
	if o.delay > 1 {
		add(func(c *simOptions) { c.delay = 1 })
	}
	if o.skew > 0 {
		add(func(c *simOptions) { c.skew = 0 })
	}
	if o.nodes > 1 {
		add(func(c *simOptions) { c.nodes-- })
	}
	return out
}

// report tells a failure so that it can be run again.
func (p *schedule) report(failure string) string {
	var out strings.Builder
	fmt.Fprintf(&out, "%s\nschedule of %d steps with %+v:\n", failure, len(p.steps), p.opt)
	for _, line := range p.run(true).trace {
		fmt.Fprintln(&out, line)
	}
	return out.String()
}
