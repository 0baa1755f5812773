package limiter

import (
	"cmp"
	"math/bits"
	"slices"
)

// simTokens is what was admitted of a token bucket in one of its generations.
type simTokens struct {
	list   []*simSpend // in the order of admission, which the readings of clocks need not follow
	order  []*simSpend // the same by time, without what was given back
	sorted bool
	rules  []simExact
}

// simExact is a bucket that knows everything, of one limit and burst: a grain less than nothing is too much admitted.
type simExact struct{ limit, burst, content, frac, at int64 }

// simSpend is an admission: when its node's clock was read, in nanoseconds of true time, and the highest limit and burst
// in force then.
type simSpend struct{ at, cost, limit, burst int64 }

// simForce is which rules a token bucket ever had; none: its own all the time.
type simForce struct {
	rules []simRule
	// The lowest limit and the largest burst of them.
	lowest, largest int64
}

type simRule struct{ since, limit, burst int64 }

// inForce notes that from now on bucket b goes by its present rule, and on some nodes by the one before.
func (s *sim) inForce(b int) {
	r, e := s.buckets[b].rule, s.earlier[b]
	k := &s.force[b]
	if len(k.rules) == 0 && r == e {
		return
	}
	if len(k.rules) == 0 {
		k.rules = append(k.rules, simRule{-1 << 62, e.Limit, e.Burst})
		k.lowest = e.Limit
	}
	k.lowest, k.largest = min(k.lowest, r.Limit, e.Limit), max(k.largest, r.Burst, e.Burst)
	k.rules = append(k.rules, simRule{s.now * 1e6, max(r.Limit, e.Limit), max(r.Burst, e.Burst)})
}

// highest is what was in force at a time, or a lease before: what was lent stays lent.
func (k *simForce) highest(at int64) (limit, burst int64) {
	for i := len(k.rules) - 1; i >= 0; i-- {
		r := &k.rules[i]
		if r.since > at {
			continue
		}
		limit, burst = max(limit, r.limit), max(burst, r.burst)
		if r.since <= at-leaseNanos-graceNanos {
			break
		}
	}
	return limit, burst
}

// drawn notes an admission and checks I1: in any time from one admission to another at most burst + rate · t pass.
func (s *sim) drawn(n *simNode, r *simRequest, i int) {
	c, name := &r.charges[i], r.windows[i].simName
	_, b := n.led.at(c)
	k := s.tokens[name]
	if k == nil {
		k = &simTokens{}
		s.tokens[name] = k
	}
	sp := &simSpend{at: b.tok.at + n.dozed*1e6, cost: c.Cost, limit: c.Rule.Limit, burst: c.Rule.Burst}
	if f := &s.force[name.bucket]; len(f.rules) > 0 {
		sp.limit, sp.burst = f.highest(sp.at)
	}
	r.spends[i] = sp
	k.list = append(k.list, sp)
	s.logf("%s admits %d of %+v, %+v, at %d; %d grains left", n.id, c.Cost, name, c.Rule, sp.at, b.tok.content)
	if b.tok.content < 0 {
		s.fail("tokens: %s holds %d grains of %+v", n.id, b.tok.content, name)
	}
	if c.charged != b.tok.birth || s.names[c.id] != name {
		s.fail("charge: an admitted charge names bucket %d of %+v, not %d of %+v", c.charged, s.names[c.id], b.tok.birth, name)
	}
	s.checkTokens(name, k, sp)
}

func (s *sim) checkTokens(name simName, k *simTokens, sp *simSpend) {
	if k.known(sp) && k.sorted && sp.at >= k.order[len(k.order)-1].at {
		k.order = append(k.order, sp)
		s.draw(name, k, sp)
		return
	}
	k.order = k.order[:0]
	for _, sp := range k.list {
		if sp.cost > 0 {
			k.order = append(k.order, sp)
		}
	}
	slices.SortStableFunc(k.order, func(a, b *simSpend) int { return cmp.Compare(a.at, b.at) })
	k.sorted = true
	for i := range k.rules {
		k.rules[i].at = 0
	}
	for _, sp := range k.order {
		s.draw(name, k, sp)
	}
}

// known says whether there are exact buckets for an admission's limit and burst, and makes them: one for each pair of what was
// ever in force, since the highest limit in a stretch of time may be of one admission and the highest burst of another.
func (k *simTokens) known(sp *simSpend) bool {
	limits, bursts := []int64{sp.limit}, []int64{sp.burst}
	var limit, burst bool
	for i := range k.rules {
		x := &k.rules[i]
		limit, burst = limit || x.limit == sp.limit, burst || x.burst == sp.burst
		limits, bursts = append(limits, x.limit), append(bursts, x.burst)
	}
	if limit && burst {
		return true
	}
	slices.Sort(limits)
	slices.Sort(bursts)
	limits, bursts, k.rules = slices.Compact(limits), slices.Compact(bursts), k.rules[:0]
	for _, l := range limits {
		for _, b := range bursts {
			k.rules = append(k.rules, simExact{limit: l, burst: b})
		}
	}
	return false
}

// draw takes an admission out of the exact buckets. Each stands for the stretches of time in which nothing higher was in force, and
// begins anew, full, after an admission that was by something higher.
func (s *sim) draw(name simName, k *simTokens, sp *simSpend) {
	nanos := s.buckets[name.bucket].rule.Window * 1e9
	for i := range k.rules {
		x := &k.rules[i]
		if sp.limit > x.limit || sp.burst > x.burst {
			x.at = 0
			continue
		}
		full := x.burst * grains
		if x.at == 0 {
			x.content, x.frac, x.at = full, 0, sp.at
		}
		hi, lo := bits.Mul64(uint64(sp.at-x.at), uint64(x.limit*grains))
		lo, carry := bits.Add64(lo, uint64(x.frac), 0)
		if hi += carry; hi >= uint64(nanos) {
			x.content = full
		} else {
			q, rest := bits.Div64(hi, lo, uint64(nanos))
			x.content += int64(min(q, uint64(full-x.content)))
			x.frac = int64(rest)
		}
		if x.content >= full {
			x.content, x.frac = full, 0
		}
		x.at = sp.at
		if x.content -= sp.cost * grains; x.content < 0 {
			s.fail("I1: %+v (%+v): %d grains more than burst + rate · t admitted at %d, where %d and a burst of %d were the highest in force",
				name, s.buckets[name.bucket].rule, -x.content, sp.at, x.limit, x.burst)
			x.content = 0
		}
	}
}

// pourTokens asks a full bucket of a cluster at rest for more than it has: what it holds and what it gains must pass.
func (s *sim) pourTokens(b int, rule Rule) {
	stay := s.staying()
	members := func(i int) *simNode { return s.nodes[stay[i%len(stay)]] }
	quiet := func() {
		for _, i := range stay {
			s.news(s.nodes[i])
		}
		s.tick(4)
	}
	quiet()
	// Whoever left an ask unanswered is asked again after a while, and what has its first name back fills up.
	for _, i := range stay {
		s.nodes[i].led.peek(s.instant(s.nodes[i]), s.one(b).charges[0])
	}
	s.advance(1000 + s.longest())
	begin := s.now
	name := s.key(members(0), b, s.now).simName
	used := func() (sum int64) {
		if k := s.tokens[name]; k != nil {
			for _, sp := range k.list {
				if sp.at >= begin*1e6 {
					sum += sp.cost
				}
			}
		}
		return sum
	}
	// due is what burst + rate · t makes up to now.
	due := func() int64 { return rule.Burst + mulFloor(rule.Limit, s.now-begin, rule.Window*1000) }
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
	looked := false
	for i := 0; s.now-begin < 400 && s.failure == ""; {
		for range 1 + rule.Burst/50 + rule.Limit/(rule.Window*200) {
			had := s.admitted
			s.attempt(members(pick(i)), s.one(b))
			i++
			if s.admitted == had {
				s.victim++
			}
		}
		s.advance(1)
		if s.now%50 == 0 {
			quiet()
		}
		if !looked && used() >= rule.Burst/2 {
			looked = true
			s.tick(25)
			quiet()
			quiet() // of what came back meanwhile
			// What all hold together is what each should name.
			var left int64
			said := make([]Verdict, len(stay))
			for i, m := range stay {
				c := s.one(b).charges[0]
				said[i] = s.nodes[m].led.peek(s.instant(s.nodes[m]), c)
				c.id = s.nodes[m].led.view.Load().name(c.Bucket, rule.Window, s.clock(s.nodes[m]))
				if _, held := s.nodes[m].led.at(&c); held != nil && held.tok != nil && !s.nodes[m].leaving {
					left += held.tok.content
				}
			}
			for i, v := range said {
				if off := v.Remaining - left/grains; v.Outcome == Admitted && (off > 1 || off < -1-rule.Limit/(rule.Window*100)) {
					s.fail("I4: Remaining of bucket %d (%+v) at %s is %d after the news, all hold %d grains",
						b, rule, members(i).id, v.Remaining, left)
				}
			}
		}
	}
	// A node that is full gains nothing until it is asked: first for the others' sake, and after the pause above.
	want := due() - mulFloor(rule.Limit, 60, rule.Window*1000)
	if rule.Burst*rule.Window < rule.Limit || rule.Burst < 2*int64(len(stay)) {
		want = rule.Burst // the parts of the nodes are full again before they have been put together
	}
	least := (want - 2) * 99 / 100
	if rule.Limit*2 < rule.Window { // it gains nothing meanwhile, so no piece is late
		least = rule.Burst * 99 / 100
		if rule.Burst <= 10 {
			least = rule.Burst
		}
		if rule.Burst < int64(len(stay)) { // every one of the last pieces has to be brought together
			least = (rule.Burst + 1) / 2
		}
	}
	if got := used(); got < least {
		s.fail("I2: bucket %d (%+v) on %d nodes, pattern %d: only %d of %d used after %d ms", b, rule, len(stay), pattern, got, want, s.now-begin)
		return
	}
	if rule.Window < 100*rule.Limit {
		return // there is something to wait for
	}
	waits := make([]int, len(stay))
	for range 2 * len(stay) {
		for i := range stay {
			m := members(i)
			s.attempt(m, s.one(b))
			if waits[i] += btoi(len(m.waiting) > 0); waits[i] >= max(len(stay), 3) {
				s.fail("I3: refusals of bucket %d (%+v) at %s go on waiting though all know that everything is used", b, rule, m.id)
			}
			s.tick(2)
		}
		s.tick(25)
	}
}

// counting is how many nodes are known to have admitted some of what the auditor of a token bucket sums up.
func counting(b *bucket) (nodes int) {
	if b.tok == nil {
		return 0
	}
	nodes = btoi(b.tok.counted > 0)
	if b.tok.trade != nil {
		for i := range b.tok.trade.levels {
			nodes += btoi(b.tok.trade.levels[i].counted > 0)
		}
	}
	return nodes
}
