package limiter

import "math/rand/v2"

// drain takes all that each node holds, in ever smaller costs.
func (s *sim) drain(b int) {
	for _, n := range s.nodes {
		if !n.up || n.paused {
			continue
		}
		for cost := s.buckets[b].rule.most(); cost > 0; cost /= 2 {
			r := s.newRequest([]int{b}, func(int64) int64 { return cost }, false)
			r.w = nil
			for s.failure == "" && s.attempt(n, r) == Admitted {
				r = s.newRequest([]int{b}, func(int64) int64 { return cost }, false)
				r.w = nil
			}
		}
	}
}

// sceneSchedule makes the scenes of a seed.
func sceneSchedule(seed uint64) *schedule {
	return (&planner{rng: rand.New(rand.NewPCG(seed, 6)), p: schedule{seed: seed}}).scenes()
}

// scenes makes a schedule of nothing but scenes, for a token bucket that is soon full again.
func (g *planner) scenes() *schedule {
	o, r := &g.p.opt, &g.rates
	o.nodes = 2 + g.rng.IntN(4)
	g.total = o.nodes
	o.delay, o.slots = int64(g.pick(1, 5)), 8
	r.crash, r.pauses, r.rosters, r.refunds, r.skew = 1, 1, 1, 1, int64(g.pick(0, 900))
	o.skew = r.skew
	limit := int64(g.pick(30, 100, 1000))
	rule := Rule{Limit: limit, Window: int64(g.pick(1, 1, 2)), Algorithm: TokenBucket, Burst: g.burst(limit)}
	o.buckets = []simBucket{{bucketID(&[16]byte{1}, "policy", rule, []byte{0}), rule}}
	for range 4 + g.rng.IntN(6) {
		g.add(step{op: opHorizon, a: 20_000})
		g.bout(0)
	}
	return &g.p
}

// bout is a scene for a token bucket: a node borrows more than it has room for, something happens to it or to those that lent,
// and everybody is asked for all there is.
func (g *planner) bout(b int) {
	x, y := g.rng.IntN(g.total), g.rng.IntN(g.total)
	rule := g.p.opt.buckets[b].rule
	if full := mulCeil(rule.Burst, rule.Window*1000, rule.Limit); full < 20_000 {
		g.add(step{op: opAdvance, a: full + 1300}) // with all that was lent before
	}
	advance := func(from, to int64) { g.add(step{op: opAdvance, a: from + g.rng.Int64N(to-from+1)}) }
	hoard := func(node int, percent ...int) {
		g.add(step{op: opHoard, node: node, other: b, a: int64(g.pick(percent...))})
	}
	// asleep lets nodes pause while what was lent to them is on the way.
	asleep := func(from, to int64, nodes ...int) {
		for _, node := range nodes {
			g.add(step{op: opPause, node: node})
		}
		for range 3 {
			advance(1, 2) // what the others send each other arrives meanwhile
		}
		advance(from, to)
		for _, node := range nodes {
			g.add(step{op: opResume, node: node})
		}
	}
	switch k := g.rng.IntN(7); {
	case k == 0 && g.rates.pauses > 0:
		// x lends to w, borrows and waits with it since one that it asks does not hear it, and is asked by y.
		w := g.rng.IntN(g.total)
		hoard(w, 30, 40, 50)
		g.add(step{op: opPause, node: w})
		advance(1, 2)
		g.add(step{op: opCut, node: x, other: g.rng.IntN(g.total)})
		hoard(x, 60, 80, 100)
		advance(2, 3)
		g.add(step{op: opHeal})
		hoard(y, 30, 40, 50)
		asleep(100, 800, y)
		g.add(step{op: opResume, node: w})
	case k == 1 && g.rates.crash > 0:
		hoard(x, 60, 80, 95)
		g.add(step{op: opPause, node: x})
		advance(1, 3)
		g.add(step{op: opCrash, node: y})
		g.add(step{op: opStart, node: y})
		g.add(step{op: opNews, node: y})
		advance(100, 950)
		g.add(step{op: opResume, node: x})
	case k == 4 && g.rates.refunds > 0:
		hoard(x, 5, 10, 20)
		g.add(step{op: opAdvance, a: min(mulCeil(rule.Burst, rule.Window*1000, rule.Limit), 20_000)})
		hoard(x, 5, 10, 20)
		g.add(step{op: opRefund, node: x})
	case k == 2 && g.rates.pauses > 0:
		hoard(x, 60, 80, 95)
		advance(0, 2)
		asleep(900, 5000, x)
	case k == 3 && g.rates.crash > 0:
		g.add(step{op: opDrain, other: b})
		g.add(step{op: opCrash, node: x})
		g.add(step{op: opStart, node: x})
		advance(0, 1500)
	case g.rates.rosters > 0:
		switch g.rng.IntN(3) {
		case 0:
			g.add(step{op: opReplace, node: x})
			g.total++
		case 1:
			g.add(step{op: opRemove, node: x})
		default:
			g.add(step{op: opJoin, node: x})
		}
		g.add(step{op: opHorizon, a: 4000})
		g.add(step{op: opGovern, a: -900})
		for range 3 {
			advance(100, 700)
			g.add(step{op: opNews, node: x})
			g.add(step{op: opHorizon, a: 4000})
		}
		if g.rng.IntN(2) == 0 {
			hoard(y, 60, 80, 95)
		}
	}
	g.add(step{op: opDrain, other: b})
}

// burst is that of a token bucket with a limit.
func (g *planner) burst(limit int64) int64 {
	switch g.rng.IntN(4) {
	case 0:
		return min(2*limit, maxLimit)
	case 1:
		return 1 + limit/2
	case 2:
		return 1 + g.rng.Int64N(limit)
	}
	return limit
}
