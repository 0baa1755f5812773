package limiter

// The load that a schedule brings: which requests there are, of whom, and at which nodes.

func (s *sim) takes(st step) {
	for range st.a {
		var n *simNode
		switch st.node {
		case toAttacker:
			n = s.nodes[s.victim%len(s.nodes)]
		case toTurns:
			s.turn++
			n = s.nodes[s.turn%len(s.nodes)]
		case toAny:
			n = s.nodes[s.rng.IntN(len(s.nodes))]
		case toZipf:
			n = s.nodes[s.zipf(len(s.nodes))]
		default:
			n = s.nodes[st.node%len(s.nodes)]
		}
		var on []int
		switch st.other {
		case someBucket:
			on = []int{s.rng.IntN(len(s.buckets))}
		case zipfBucket:
			on = []int{s.zipf(len(s.buckets))}
		case manyBuckets:
			on = s.rng.Perm(len(s.buckets))[:1+s.rng.IntN(len(s.buckets))]
		default:
			on = []int{st.other}
		}
		r := s.newRequest(on, s.cost, s.rng.IntN(4) == 0)
		r.stale = st.b
		if !n.up || n.paused {
			s.victim++
			continue
		}
		if s.attempt(n, r) != Admitted {
			s.victim++
		}
	}
}

func (s *sim) cost(limit int64) int64 {
	switch s.rng.IntN(10) {
	case 0:
		return 1 + s.rng.Int64N(3)
	case 1:
		return 1 + s.rng.Int64N(limit+1) // more than the limit, now and then
	case 2, 3, 4, 5:
		return 1 + s.rng.Int64N(limit/16+1)
	}
	return 1 + limit/64
}

// zipf picks below n, i with a weight of about 1/(i+1).
func (s *sim) zipf(n int) int {
	i := 0
	for i < n-1 && s.rng.IntN(i+2) > 0 && s.rng.IntN(3) > 0 {
		i++
	}
	return i
}

func (g *planner) load(pattern, sticky int) {
	st := step{op: opTake, node: sticky, other: g.pick(someBucket, someBucket, zipfBucket, manyBuckets), a: 1 + g.rng.Int64N(4)}
	if g.rng.IntN(100) < g.rates.stale {
		st.b = g.rng.Int64N(int64(g.pick(100, 3000, 100_000)))
	}
	switch pattern {
	case 0, 1:
		if g.rng.IntN(3) == 0 {
			st.node = g.rng.IntN(g.total)
		}
	case 2:
		st.node = toTurns
	case 3:
		st.node = toAny
	case 4:
		st.node = toZipf
	case 5:
		st.node = toAttacker
	case 6: // a flash crowd now and then
		if st.node = toAny; g.rng.IntN(10) == 0 {
			st.a = 10 + g.rng.Int64N(40)
		}
	case 7: // all on one node before the edge, on the others after it
		if g.rng.IntN(10) > 0 {
			break
		}
		b := g.anyBucket()
		g.add(step{op: opEdge, other: b, a: 1 + g.rng.Int64N(30)})
		g.add(step{op: opTake, node: sticky, other: b, a: 20})
		g.add(step{op: opAdvance, a: 1 + g.rng.Int64N(60)})
		st.node, st.other, st.a, st.b = toTurns, b, 20, 0
	}
	g.add(st)
}
