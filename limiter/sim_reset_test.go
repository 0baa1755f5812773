package limiter

import "slices"

// simName is a bucket in one of its generations; 0 is the first, to which it may be handed back.
type simName struct {
	bucket     int
	generation uint64
}

// simKey is a window of it.
type simKey struct {
	simName
	n int64
}

// simHandBack is the end of a generation: the windows from until on have the first name.
type simHandBack struct {
	simName
	until int64
}

// commitReset gives bucket b a new generation.
func (s *sim) commitReset(b int) {
	r := Reset{Bucket: s.buckets[b].id, Generation: uint64(len(s.log) + 1)}
	s.names[generationID(r.Bucket, r.Generation)] = simName{b, r.Generation}
	s.changeResets(b, func(old Reset) (Reset, bool) {
		r.EarlierMillis = max(old.UntilMillis, old.EarlierMillis)
		return r, true
	}, r)
	s.logf("bucket %d reset, generation %d", b, r.Generation)
}

// commitHandBack ends bucket b's generation at the present horizon, if it is in force.
func (s *sim) commitHandBack(b int) {
	s.changeResets(b, func(r Reset) (Reset, bool) {
		if r.UntilMillis == 0 && s.horizon > 0 {
			r.UntilMillis = s.horizon
			s.handed = append(s.handed, simHandBack{simName{b, r.Generation}, r.UntilMillis})
			s.logf("bucket %d handed back at %d", b, r.UntilMillis)
		}
		return r, true
	})
}

// commitForget drops what was handed back so long ago that nothing from before counts, by any clock of the schedule.
func (s *sim) commitForget(b int) {
	w := s.buckets[b].rule.Window * 1000
	s.changeResets(b, func(r Reset) (Reset, bool) {
		newest := s.log[len(s.log)-1].Resets
		last := slices.MaxFunc(newest, func(x, y Reset) int { return int(x.Generation) - int(y.Generation) })
		gone := r.UntilMillis != 0 && r.UntilMillis+2*w+200_000 < s.horizon && r.Generation != last.Generation
		if gone {
			s.logf("generation %d of bucket %d is forgotten", r.Generation, b)
		}
		return r, !gone
	})
}

// changeResets commits the list with change made to bucket b's reset, or with more added where there is none.
func (s *sim) changeResets(b int, change func(Reset) (Reset, bool), more ...Reset) {
	st := s.log[len(s.log)-1]
	var list []Reset
	for _, r := range st.Resets {
		keep := true
		if r.Bucket == s.buckets[b].id {
			more = nil
			r, keep = change(r)
		}
		if keep {
			list = append(list, r)
		}
	}
	if list = append(list, more...); !slices.Equal(list, st.Resets) {
		st.Resets = list
		s.log = append(s.log, st)
	}
}

// before is the window before k: where a bucket was handed back at k's beginning, that of its last generation.
func (s *sim) before(k simKey) simKey {
	prev := simKey{k.simName, k.n - 1}
	if k.generation != 0 {
		return prev
	}
	w := span(s.buckets[k.bucket].rule.Window * 1000)
	for _, h := range s.handed {
		if h.bucket == k.bucket && w.begin(prev.n) < h.until && h.until <= w.begin(k.n) {
			prev.simName = h.simName
		}
	}
	return prev
}
