package limiter

import "slices"

// end checks what holds of a cluster at rest: all members run and hear each other, their clocks agree, all have applied
// the whole log. In a window that begins after all that, one bucket is used in full (I2), Remaining is what
// the cluster has left (I4), and then refusals ask nobody (I3). Long afterwards everything is forgotten (I5).
func (s *sim) end() {
	s.finishLeaves()
	if len(s.members) == 0 {
		return
	}
	if s.longest() > maxRefill/1e6/4 {
		return // a token bucket that is not full again before the simulator's clock ends
	}
	s.calmDown()
	room := s.opt.perShard == 0
	b := s.rng.IntN(len(s.buckets))
	rule := s.buckets[b].rule
	switch {
	case !room || rule.most() > 1000:
	case rule.Algorithm == TokenBucket:
		s.pourTokens(b, rule)
	default:
		s.pour(b, rule)
	}
	if s.failure == "" {
		s.forget()
	}
}

func (s *sim) calmDown() {
	clear(s.cut)
	s.net, s.loss, s.repeat, s.delay = nil, 0, 0, 1
	longest := s.longest()
	for _, n := range s.nodes {
		n.offset, n.late, n.stalled, n.buffer, n.dying = 0, false, false, nil, 0
		s.resume(n)
		if !n.up && slices.Contains(s.members, n.index) {
			s.start(n, startKeep)
		}
	}
	s.tick(30) // what waits by an earlier rule gives up
	for i := range s.buckets {
		s.earlier[i] = s.buckets[i].rule
		s.inForce(i)
	}
	// Beyond every mark, horizon and clock reading there ever was: then no window that counts began before.
	for _, n := range s.nodes {
		s.now = max(s.now, n.mark, s.horizon)
	}
	s.horizonAt(s.now + 10*longest + 200_000)
	for range 3 { // what the nodes notice of rosters they notice by and by
		s.advance(5000)
		for _, i := range s.members {
			s.news(s.nodes[i])
		}
	}
	s.advance(2*longest + 10_000)
	s.tick(30) // what waits gives up
}

// longest is how many milliseconds the longest window takes, or the token bucket that takes longest to fill by the rules that
// it ever had.
func (s *sim) longest() (longest int64) {
	for i := range s.buckets {
		r, k := s.buckets[i].rule, &s.force[i]
		longest = max(longest, r.Window*1000)
		if r.Algorithm == TokenBucket {
			limit, burst := r.Limit, r.Burst
			if len(k.rules) > 0 {
				limit, burst = k.lowest, k.largest
			}
			longest = max(longest, nanosUntil(burst*grains, 0, limit*grains, r.Window*1e9)/1e6)
		}
	}
	return longest
}

// tick lets time pass in steps no longer than packets take.
func (s *sim) tick(ms int) {
	for range ms {
		s.advance(1)
	}
}

// staying are the members that hold shares: what one that has left holds its heir has.
func (s *sim) staying() (stay []int) {
	for _, i := range s.members {
		if !s.nodes[i].left {
			stay = append(stay, i)
		}
	}
	return stay
}

func (s *sim) pour(b int, rule Rule) {
	w := rule.Window * 1000
	begin := s.now - s.now%w + 3*w
	s.advance(begin - s.now)
	stay := s.staying()
	members := func(i int) *simNode { return s.nodes[stay[i%len(stay)]] }
	key := s.key(members(0), b, begin)
	used := func() int64 { return s.at(key).used }
	quiet := func() {
		for range 2 { // in large clusters others pass it on, those that have left and still run among them
			for _, i := range s.members {
				s.news(s.nodes[i])
			}
			s.tick(4)
		}
	}
	ask := func(i int) { s.attempt(members(i), s.one(b)) }
	pattern := s.rng.IntN(4)
	pick := func(i int) int {
		switch pattern {
		case 0:
			return 0
		case 1:
			return i
		case 2:
			return s.victim // moves on at a refusal
		}
		return s.rng.IntN(len(stay))
	}
	patience := min(w/3, 400)
	looked := false
	for i := 0; used() < rule.Limit && s.now-begin < patience && s.failure == ""; {
		for range 1 + rule.Limit/50 {
			before := s.admitted
			ask(pick(i))
			i++
			if s.admitted == before {
				s.victim++
			}
		}
		s.advance(1)
		if s.now%50 == 0 {
			quiet()
		}
		if !looked && used() >= rule.Limit/2 {
			looked = true
			s.tick(25)
			quiet()
			for _, i := range stay {
				m := s.nodes[i]
				c := s.one(b).charges[0]
				if v := m.led.peek(s.instant(m), c); v.Remaining != rule.Limit-used() && v.Outcome == Admitted {
					s.fail("I4: Remaining of bucket %d at %s is %d after the news, %d of %d are used", b, m.id, v.Remaining, used(), rule.Limit)
				}
			}
		}
	}
	if got := used(); got*100 < rule.Limit*99 || rule.Limit <= 10 && got != rule.Limit {
		s.fail("I2: bucket %d (%+v) on %d nodes, pattern %d: only %d used after %d ms", b, rule, len(stay), pattern, got, s.now-begin)
	}
	if used() < rule.Limit || s.now-begin > w/2 {
		return
	}
	// An ask that was never answered, in whatever window, is made good first: one for each pair of nodes at most.
	waits := make([]int, len(stay))
	for range 2 * len(stay) {
		if s.now-begin > w-int64(2*len(stay)+100) {
			return // what slides out in the next window is worth waiting for
		}
		for i := range stay {
			m := members(i)
			ask(i)
			if waits[i] += btoi(len(m.waiting) > 0); waits[i] >= max(len(stay), 2) {
				s.fail("I3: refusals of bucket %d (%+v) at %s go on waiting though all know that everything is used", b, rule, m.id)
			}
			s.tick(2)
		}
		s.tick(25)
	}
}

// forget lets all windows end long ago: then nothing is in memory and every record is free.
func (s *sim) forget() {
	s.tick(30)
	s.advance(3*s.longest() + 10_000)
	for _, n := range s.nodes {
		if !n.up {
			continue
		}
		s.news(n)
		for range 3 {
			s.sweep(n)
		}
		live, cells := 0, 0
		for i := range n.led.shards {
			live += n.led.shards[i].live
			cells += len(n.led.shards[i].cells)
		}
		used, _ := n.led.records.usage()
		if live+cells+used > 0 {
			s.fail("I5: long after all windows ended %s holds %d buckets, %d cells, %d records", n.id, live, cells, used)
		}
	}
}
