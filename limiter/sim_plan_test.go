package limiter

import (
	"fmt"
	"math/rand/v2"
	"slices"
)

// op is what one step of a schedule does. A step that makes no sense where it stands (a start of a node that runs) does
// nothing, so that any part of a schedule is a schedule.
type op uint8

const (
	opAdvance   op = iota // a milliseconds pass
	opEdge                // time moves to a milliseconds before the next edge of bucket other's window
	opTake                // a requests at node, or where toX says, for bucket other or someX, by a clock read b milliseconds ago
	opHorizon             // the leader commits a horizon a milliseconds ahead of its clock
	opLeader              // node leads from now on
	opJoin                // node joins the roster, and starts if it never ran
	opRemove              // node is removed, whether it runs or not
	opReplace             // node is removed and a new one joins in its place, in one entry
	opReorder             // the roster is committed anew in another order
	opLearn               // node applies a more entries of the log
	opLate                // from now on node learns of entries only by opLearn (a = 1), or as they come (a = 0)
	opLimit               // bucket other's limit is a from now on, and its burst b
	opCrash               // kill -9
	opStart               // node starts as a says (startKeep and others), having lost the last b entries that it applied
	opClock               // node's clock is a milliseconds ahead of the true time from now on
	opPause               // node stops; its clock goes on, and what is sent to it waits
	opResume              // and goes on
	opCut                 // packets from node to other are lost; with a = 1 both ways
	opSplit               // the nodes are cut in two groups
	opHeal                // nothing is cut any more
	opNet                 // a per cent of packets are lost, b per cent repeated, other milliseconds delay at most
	opReplay              // a packets of any age are sent again
	opNews                // node sends its counters
	opSweep               // node forgets what has ended
	opRefund              // node gives back the units of an admitted request
	opReset               // bucket other is reset
	opHandBack            // bucket other gets its first name back
	opForget              // the reset of bucket other is forgotten, if it was handed back long ago
	opStall               // node's disk takes no mark (a = 1), or does again
	opDie                 // node is killed at the a-th store to its records from now on
	opDepart              // node leaves for good: from now on it spends and gives nothing
	opBequeath            // node, which is leaving, hands its list to other; with a = 1 it gets lost on the way
	opLeave               // one of the lists that node handed over (a from the last one back) is committed with its heir
	opLoseLists           // node's files with what it inherited are gone
	opHoard               // node is asked for a per cent of bucket other's limit or burst at once
	opDrain               // every node is asked for bucket other until it refuses
	opGovern              // time moves to a milliseconds after the newest roster begins to govern
)

var opNames = [...]string{"advance", "edge", "take", "horizon", "leader", "join", "remove", "replace", "reorder", "learn", "late",
	"limit", "crash", "start", "clock", "pause", "resume", "cut", "split", "heal", "net", "replay", "news", "sweep", "refund", "reset", "hand back",
	"forget", "stall", "die", "depart", "bequeath", "leave", "lose lists", "hoard", "drain", "govern"}

const (
	toAttacker = -1 // goes to another node at each refusal
	toTurns    = -2 // round robin
	toAny      = -3 // each request at random: a flash crowd
	toZipf     = -4 // most at the first nodes

	someBucket  = -1
	zipfBucket  = -2
	manyBuckets = -3 // all of several at once, or none
)

type step struct {
	op          op
	node, other int
	a, b        int64
	seed        uint64
}

func (st step) String() string {
	return fmt.Sprintf("%s node=%d other=%d a=%d b=%d seed=%d", opNames[st.op], st.node, st.other, st.a, st.b, st.seed)
}

type schedule struct {
	seed  uint64
	opt   simOptions
	steps []step
}

// run does the whole schedule, or up to the first violation.
func (p *schedule) run(tracing bool) *sim {
	s := newSim(p.seed, p.opt)
	s.tracing = tracing
	for _, st := range p.steps {
		if s.tracing {
			s.trace = append(s.trace, fmt.Sprintf("%d %s", s.now, st))
		}
		s.do(st)
		if s.failure != "" {
			return s
		}
	}
	if p.opt.ending {
		s.pcg.Seed(p.seed, 99)
		s.end()
	}
	return s
}

func (s *sim) do(st step) {
	s.pcg.Seed(st.seed, 77)
	var n *simNode
	if st.node >= 0 {
		n = s.nodes[st.node%len(s.nodes)]
	}
	runs := n != nil && n.up && !n.paused
	switch st.op {
	case opAdvance:
		s.advance(st.a)
	case opEdge:
		w := s.buckets[st.other].rule.Window * 1000
		to := s.now - s.now%w + w - st.a
		if to <= s.now {
			to += w
		}
		s.advance(to - s.now)
	case opTake:
		s.takes(st)
	case opHorizon:
		s.commitHorizon(st.a)
	case opLeader:
		s.leader = st.node
	case opJoin:
		if st.node >= len(s.nodes) {
			n = s.addNode()
			n.offset = st.a
			s.start(n, startKeep)
		}
		if !slices.Contains(s.members, n.index) && !n.left {
			s.members = append(slices.Clone(s.members), n.index)
			s.commitRoster()
		}
	case opRemove:
		if i := slices.Index(s.members, n.index); i >= 0 && len(s.members) > 1 {
			s.members = slices.Delete(slices.Clone(s.members), i, i+1)
			s.commitRoster()
		}
	case opReplace:
		if i := slices.Index(s.members, n.index); i >= 0 {
			m := s.addNode()
			m.offset = st.a
			s.start(m, startKeep)
			s.members = slices.Clone(s.members)
			s.members[i] = m.index
			s.commitRoster()
		}
	case opReorder:
		s.members = slices.Clone(s.members)
		s.rng.Shuffle(len(s.members), func(i, j int) { s.members[i], s.members[j] = s.members[j], s.members[i] })
		s.commitRoster()
	case opLearn:
		s.learn(n, int(st.a))
	case opLate:
		n.late = st.a == 1
	case opLimit:
		s.earlier[st.other] = s.buckets[st.other].rule
		s.buckets[st.other].rule.Limit = st.a
		if s.buckets[st.other].rule.Algorithm == TokenBucket {
			s.buckets[st.other].rule.Burst = st.b
		}
		s.inForce(st.other)
	case opCrash:
		s.kill(n)
	case opStart:
		if !n.up {
			n.applied = max(min(n.applied, 1), n.applied-int(st.b))
			s.start(n, int(st.a))
		}
	case opClock:
		n.offset = st.a
	case opPause:
		if n.up && !n.paused {
			n.paused, n.since = true, s.now
		}
	case opResume:
		s.resume(n)
	case opCut:
		s.cut[[2]int{n.index, st.other % len(s.nodes)}] = true
		if st.a == 1 {
			s.cut[[2]int{st.other % len(s.nodes), n.index}] = true
		}
	case opSplit:
		side := make([]bool, len(s.nodes))
		for i := range side {
			side[i] = s.rng.IntN(2) == 0
		}
		for i := range side {
			for j := range side {
				if side[i] != side[j] {
					s.cut[[2]int{i, j}] = true
				}
			}
		}
	case opHeal:
		clear(s.cut)
	case opNet:
		s.loss, s.repeat, s.delay = int(st.a), int(st.b), int64(st.other)
	case opReplay:
		for range st.a {
			if len(s.old) > 0 {
				s.post(s.old[s.rng.IntN(len(s.old))], s.rng.Int64N(10))
			}
		}
	case opNews:
		if runs {
			s.news(n)
		}
	case opSweep:
		if runs {
			s.sweep(n)
		}
	case opRefund:
		if runs {
			s.refund(n)
		}
	case opReset:
		s.commitReset(st.other)
	case opHandBack:
		s.commitHandBack(st.other)
	case opForget:
		s.commitForget(st.other)
	case opStall:
		n.stalled = st.a == 1
	case opDie:
		n.dying = int(st.a)
	case opDepart:
		if runs && len(s.members) > 1 {
			s.depart(n)
		}
	case opBequeath:
		s.bequeath(n, s.nodes[st.other%len(s.nodes)], st.a == 1)
	case opLeave:
		s.commitLeave(n, int(st.a))
	case opLoseLists:
		n.lists = nil
	case opHoard:
		if runs {
			s.attempt(n, s.newRequest([]int{st.other}, func(most int64) int64 { return max(most*st.a/100, 1) }, false))
		}
	case opDrain:
		s.drain(st.other)
	case opGovern:
		rosters := s.log[len(s.log)-1].Rosters
		s.advance(max(rosters[len(rosters)-1].FromMillis+st.a-s.now, 0))
	}
}

func (s *sim) resume(n *simNode) {
	if !n.paused {
		return
	}
	n.paused = false
	if s.opt.dozing {
		n.dozed += s.now - n.since
	}
	buffer := n.buffer
	n.buffer = nil
	for _, p := range buffer {
		s.hand(p)
	}
	s.retry(n)
}

// planner writes schedules.
type planner struct {
	rng   *rand.Rand
	p     schedule
	rates rates
	total int // nodes ever
}

// rates are the faults of one schedule: chances in a thousand for each round of steps, unless said otherwise.
type rates struct {
	crash, reboot int // reboot: per cent of the starts
	rosters       int
	limits        int
	resets        int
	clocks        int
	skew          int64
	late          int
	stalls        int
	cuts          int
	pauses        int
	replays       int
	horizons      int // per cent of rounds
	refunds       int
	stale         int // per cent of requests' steps
	leaves        int
}

func (g *planner) pick(v ...int) int { return v[g.rng.IntN(len(v))] }

func (g *planner) chance(perMille int) bool { return g.rng.IntN(1000) < perMille }

func (g *planner) add(st step) {
	st.seed = g.rng.Uint64() >> 40
	g.p.steps = append(g.p.steps, st)
}

// randomSchedule makes the schedule of a seed.
func randomSchedule(seed uint64) *schedule {
	g := &planner{rng: rand.New(rand.NewPCG(seed, 5)), p: schedule{seed: seed}}
	if g.rng.IntN(12) == 0 {
		return g.scenes()
	}
	rounds := 40 + g.rng.IntN(140)
	o := &g.p.opt
	switch k := g.rng.IntN(1000); {
	case k < 500:
		o.nodes = 2 + g.rng.IntN(2)
	case k < 900:
		o.nodes = 2 + g.rng.IntN(7)
	case k < 970:
		o.nodes = 9 + g.rng.IntN(12)
	case k < 995:
		o.nodes = 1
	case k < 999:
		o.nodes, rounds = 21+g.rng.IntN(40), 40
	default:
		o.nodes, rounds = 61+g.rng.IntN(140), 20
	}
	g.total = o.nodes
	r := &g.rates
	o.calm = g.rng.IntN(5) == 0
	o.ending = g.rng.IntN(8) == 0 && o.nodes <= 20
	o.loss, o.repeat, o.delay = g.pick(0, 0, 5, 30), g.pick(0, 10, 30), int64(g.pick(1, 5, 50, 3000))
	o.slots = g.pick(2, 8, 64, 64)
	o.full = g.pick(0, 0, 1, fullPerShard)
	crowd := g.rng.IntN(6) == 0 && !o.calm
	r.horizons = g.pick(10, 33, 33, 60)
	r.cuts, r.pauses, r.replays = g.pick(0, 0, 10, 30), g.pick(0, 0, 10), g.pick(0, 0, 20, 100)
	r.late = g.pick(0, 10, 50)
	r.skew = int64(g.pick(0, 50))
	if !o.calm {
		r.skew = int64(g.pick(0, 50, 900, 10_000, 70_000))
		r.crash, r.reboot = g.pick(0, 5, 20, 60), g.pick(0, 30, 100)
		r.rosters, r.limits, r.clocks = g.pick(0, 0, 5, 20), g.pick(0, 0, 10), g.pick(0, 5, 30)
		r.resets = g.pick(0, 0, 10, 40)
		r.stalls, r.refunds, r.stale = g.pick(0, 0, 20), g.pick(0, 30), g.pick(0, 0, 5)
		r.leaves = g.pick(0, 0, 0, 10, 40)
		o.anyLeave = g.rng.IntN(4) == 0 // the refusal saves what was inherited, not the limit
	}
	o.skew = r.skew
	var tokens []int
	for i := range 1 + g.rng.IntN(3) {
		b := simBucket{rule: Rule{
			Limit:     int64(g.pick(1, 2, 3, 4, 6, 10, 10, 20, 20, 100, 1000, 1e12)),
			Window:    int64(g.pick(1, 2, 10, 10, 60, 60, 60, 120, 120, 3600, 86_400, 2_592_000)),
			Algorithm: Algorithm(1 + g.rng.IntN(3)),
		}}
		if b.rule.Algorithm == TokenBucket {
			b.rule.Burst = g.burst(b.rule.Limit)
			b.rule.Window = int64(g.pick(1, 1, 1, 2, 10, 60, 3600, 2_592_000))
			tokens = append(tokens, i)
		}
		b.id = bucketID(&[16]byte{1}, "policy", b.rule, []byte{byte(i)})
		if crowd {
			o.perShard = 1
			b.id[15] = 7
		}
		o.buckets = append(o.buckets, b)
	}
	if len(tokens) > 0 && r.skew > 900 {
		r.rosters, r.leaves = 0, 0 // token buckets change their rosters only among clocks within the skew bound
	}
	if len(tokens) > 0 && r.limits > 0 {
		r.stale = 0 // which rule was in force when, goes by the true time
	}
	for round := 0; round < rounds; {
		// A phase of one load pattern.
		phase := 10 + g.rng.IntN(40)
		pattern := g.rng.IntN(8)
		sticky := g.rng.IntN(g.total)
		for ; phase > 0 && round < rounds; phase, round = phase-1, round+1 {
			g.time()
			g.faults()
			g.load(pattern, sticky)
			if len(tokens) > 0 && !o.calm && g.rng.IntN(12) == 0 {
				g.bout(tokens[g.rng.IntN(len(tokens))])
			}
		}
	}
	return &g.p
}

func (g *planner) anyBucket() int { return g.rng.IntN(len(g.p.opt.buckets)) }

func (g *planner) time() {
	w := g.p.opt.buckets[g.anyBucket()].rule.Window * 1000
	switch g.rng.IntN(24) {
	case 0:
		g.add(step{op: opAdvance, a: g.rng.Int64N(w/3 + 1)})
	case 1:
		g.add(step{op: opEdge, other: g.anyBucket(), a: g.rng.Int64N(40)})
	case 2:
		g.add(step{op: opAdvance, a: g.rng.Int64N(2000)})
	default:
		g.add(step{op: opAdvance, a: g.rng.Int64N(6)})
	}
}

func (g *planner) faults() {
	r := &g.rates
	node := g.rng.IntN(g.total)
	if g.rng.IntN(100) < r.horizons {
		g.add(step{op: opHorizon, a: 2000 + g.rng.Int64N(4000)})
	}
	if r.rosters > 0 && g.chance(r.rosters) {
		switch g.rng.IntN(4) {
		case 0:
			if g.rng.IntN(2) == 0 && g.total < 200 {
				node = g.total
				g.total++
			}
			g.add(step{op: opJoin, node: node, a: g.offset()})
		case 1:
			g.add(step{op: opRemove, node: node})
		case 2:
			g.add(step{op: opReplace, node: node, a: g.offset()})
			g.total++
		default:
			g.add(step{op: opReorder})
		}
		if g.rng.IntN(3) == 0 { // the next may follow at once
			g.add(step{op: opRemove, node: g.rng.IntN(g.total)})
		}
	}
	if g.chance(r.leaves) {
		g.leave(node)
	}
	if g.chance(r.late) {
		g.add(step{op: opLeader, node: g.rng.IntN(g.total)})
	}
	if g.chance(r.late) {
		g.add(step{op: opLate, node: node, a: int64(g.pick(0, 1, 1))})
	}
	if r.late > 0 && g.rng.IntN(6) == 0 {
		g.add(step{op: opLearn, node: g.rng.IntN(g.total), a: 1 + g.rng.Int64N(4)})
	}
	if g.chance(r.limits) {
		b := g.anyBucket()
		limit := 1 + g.rng.Int64N(24)
		if g.rng.IntN(3) == 0 {
			limit = 1 + g.rng.Int64N(2*g.p.opt.buckets[b].rule.Limit)
		}
		limit = min(limit, maxLimit)
		g.add(step{op: opLimit, other: b, a: limit, b: g.burst(limit)})
	}
	if g.chance(r.resets) {
		g.add(step{op: opReset, other: g.anyBucket()})
	}
	if g.chance(r.resets) {
		g.add(step{op: opHandBack, other: g.anyBucket()})
	}
	if g.chance(r.resets) {
		g.add(step{op: opForget, other: g.anyBucket()})
	}
	if r.skew > 0 && g.chance(r.clocks) {
		g.add(step{op: opClock, node: node, a: g.offset()})
		if r.replays > 0 && g.rng.IntN(2) == 0 { // what it was lent once, and may have forgotten, comes again
			g.add(step{op: opReplay, a: 16})
			g.add(step{op: opAdvance, a: 10})
			g.add(step{op: opTake, node: node, other: someBucket, a: 4})
		}
	}
	if g.chance(r.crash) {
		g.crash(node)
	}
	if g.chance(r.stalls) {
		g.add(step{op: opStall, node: node, a: int64(g.pick(0, 1))})
		if g.rng.IntN(2) == 0 { // until the clock comes near the mark
			g.add(step{op: opAdvance, a: 3500 + g.rng.Int64N(2000)})
		}
	}
	if g.chance(r.pauses) {
		g.add(step{op: opPause, node: node})
		if g.rng.IntN(2) == 0 {
			g.add(step{op: opAdvance, a: g.rng.Int64N(5000)})
		}
	}
	if r.pauses > 0 && g.rng.IntN(20) == 0 {
		g.add(step{op: opResume, node: g.rng.IntN(g.total)})
	}
	if g.chance(r.cuts) {
		switch g.rng.IntN(5) {
		case 0:
			g.add(step{op: opSplit})
		case 1:
			g.add(step{op: opHeal})
		default: // one way, or a pair both of whom a third still hears
			g.add(step{op: opCut, node: node, other: g.rng.IntN(g.total), a: int64(g.pick(0, 1))})
		}
	}
	if g.chance(2) {
		g.add(step{op: opNet, a: int64(g.pick(0, 10, 50)), b: int64(g.pick(0, 30)), other: g.pick(0, 20, 3000)})
	}
	if g.chance(r.replays) {
		g.add(step{op: opReplay, a: 1 + g.rng.Int64N(8)})
	}
	if g.rng.IntN(8) == 0 {
		g.add(step{op: opNews, node: g.rng.IntN(g.total)})
	}
	if g.rng.IntN(10) == 0 {
		g.add(step{op: opSweep, node: g.rng.IntN(g.total)})
	}
	if g.chance(r.refunds) {
		g.add(step{op: opRefund, node: g.rng.IntN(g.total)})
	}
}

func (g *planner) offset() int64 {
	if g.rates.skew == 0 {
		return 0
	}
	return g.rng.Int64N(2*g.rates.skew+1) - g.rates.skew
}

func (g *planner) crash(node int) {
	if g.rng.IntN(2) == 0 {
		g.add(step{op: opDie, node: node, a: 1 + g.rng.Int64N(int64(g.pick(2, 20)))})
		g.add(step{op: opTake, node: node, other: g.pick(someBucket, manyBuckets), a: 1 + g.rng.Int64N(4)})
		g.add(step{op: opAdvance, a: g.rng.Int64N(20)}) // or while it gives
	}
	g.add(step{op: opCrash, node: node})
	if g.rates.skew > 0 && g.rates.clocks > 0 && g.rng.IntN(3) == 0 {
		g.add(step{op: opClock, node: node, a: g.offset()})
	}
	switch g.rng.IntN(6) {
	case 0: // it stays down, unless a start meant for another crash comes
		return
	case 1:
		g.add(step{op: opAdvance, a: g.rng.Int64N(3000)})
	}
	how := startKeep
	if g.rng.IntN(100) < g.rates.reboot {
		how = g.pick(startReboot, startReboot, startGone)
	} else if g.rng.IntN(10) == 0 {
		how = startResized
	}
	g.add(step{op: opStart, node: node, a: int64(how), b: g.rng.Int64N(4)})
}
