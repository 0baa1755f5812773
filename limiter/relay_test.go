package limiter

import (
	"fmt"
	"testing"
)

// bigCluster is a cluster at rest in the middle of a window.
func bigCluster(nodes, buckets int, limit int64) *sim {
	return bigClusterOf(nodes, buckets, Rule{Limit: limit, Window: 3600, Algorithm: SlidingWindow})
}

func bigClusterOf(nodes, buckets int, rule Rule) *sim {
	opt := simOptions{nodes: nodes, slots: 64, delay: 1}
	for i := range buckets {
		opt.buckets = append(opt.buckets, simBucket{bucketID(&[16]byte{}, "p", rule, []byte{byte(i)}), rule})
	}
	s := newSim(uint64(nodes), opt)
	s.now = rule.Window * 1000 * 480_000
	s.horizonAt(s.now + 36_000_000)
	s.advance(100)
	return s
}

// spendSome lets random nodes spend a unit each.
func (s *sim) spendSome(units int) {
	for range units {
		n := s.nodes[s.rng.IntN(len(s.nodes))]
		n.done = nil
		if n.up {
			s.attempt(n, s.one(s.rng.IntN(len(s.buckets))))
		}
	}
}

// unaware counts the pairs of a node that runs and a bucket of which it does not know what is left.
func (s *sim) unaware() (count int) {
	for _, n := range s.nodes {
		for b := range s.buckets {
			c := s.one(b).charges[0]
			if c.Rule.Algorithm == TokenBucket {
				count += btoi(n.up && s.unawareOfTokens(n, b))
				continue
			}
			left := c.Rule.Limit - s.at(simKey{simName{bucket: b}, span(c.Rule.Window * 1000).at(s.clock(n))}).used
			if n.up && n.led.peek(s.instant(n), c).Remaining != left {
				count++
			}
		}
	}
	return count
}

// unawareOfTokens says whether what n believes that all hold of a token bucket is off by more than half a token: for levels are
// heard some milliseconds after they were true.
func (s *sim) unawareOfTokens(n *simNode, b int) bool {
	c := s.one(b).charges[0]
	held := int64(0)
	for _, o := range s.nodes {
		o.led.peek(s.instant(o), c)
		held += s.bucketOf(o, b).tok.content
	}
	ps := n.led.phases.Load()
	own := s.bucketOf(n, b)
	believed := own.tok.content + n.led.heldElsewhere(own, ps, &c.Rule, own.tok.at)
	return believed-held > grains/2 || held-believed > grains/2
}

func (s *sim) bucketOf(n *simNode, b int) *bucket {
	return n.led.shards[shardOf(&s.buckets[b].id)].get(&s.buckets[b].id)
}

// rounds lets every node send its news, count times; packets arrive in between.
func (s *sim) rounds(count int) {
	for range count {
		s.gossip()
		s.tick(2)
	}
}

// Whatever the size of the cluster, after two intervals every node has heard of every change, and none of them twice.
func TestRelay_ReachesEveryone(t *testing.T) {
	t.Parallel()
	for _, nodes := range []int{directMost + 1, directMost + 2, 50, 101, 200} {
		if raceEnabled && nodes > 50 {
			break // one goroutine, so nothing for the race detector
		}
		s := bigCluster(nodes, 3, 1_000_000)
		for round := range 2 {
			s.spendSome(nodes)
			heard := s.heard()
			s.rounds(2)
			if n := s.unaware(); n > 0 || s.failure != "" {
				t.Errorf("%d nodes, round %d: %d times a node does not know what is left; %s", nodes, round, n, s.failure)
			}
			// At most one entry of each node for each bucket comes to each other node.
			if got, most := s.heard()-heard, nodes*(nodes-1)*len(s.buckets); got > most {
				t.Errorf("%d nodes, round %d: %d entries were heard, want at most %d", nodes, round, got, most)
			}
		}
	}
}

// The same of token buckets, of which most nodes cannot know by themselves what is left.
func TestRelay_LevelsReachEveryone(t *testing.T) {
	t.Parallel()
	for _, nodes := range []int{directMost + 1, 50, 101} {
		if raceEnabled && nodes > 50 {
			break // one goroutine, so nothing for the race detector
		}
		s := bigClusterOf(nodes, 2, Rule{Limit: 3600, Window: 3600, Algorithm: TokenBucket, Burst: 100_000})
		for round := range 2 {
			s.spendSome(10 * nodes)
			s.rounds(2)
			if n := s.unaware(); n > 0 || s.failure != "" {
				t.Errorf("%d nodes, round %d: %d times a node does not know what is left; %s", nodes, round, n, s.failure)
			}
		}
	}
}

// heard is how many entries of news all nodes took in so far.
func (s *sim) heard() (entries int) {
	for _, n := range s.nodes {
		for i := range n.led.shards {
			entries += int(n.led.shards[i].stats.heard)
		}
	}
	return entries
}

// A node that is down is not trusted to pass anything on once it has been silent for some seconds; before, what it
// would have passed on comes with the next change.
func TestRelay_DeadNodes(t *testing.T) {
	t.Parallel()
	s := bigCluster(50, 2, 1_000_000)
	s.spendSome(200)
	s.rounds(4)
	for _, i := range []int{3, 17, 18, 44} {
		s.kill(s.nodes[i])
	}
	for range 80 { // four seconds in which all others are heard
		s.spendSome(50)
		s.rounds(1)
		s.tick(48)
	}
	for round := range 20 {
		s.spendSome(50)
		s.rounds(2)
		if n := s.unaware(); n > 0 {
			t.Errorf("round %d: %d times a node does not know what is left", round, n)
		}
	}
}

// However much there is to pass on, the bytes stay within the budget, and so does what waits.
func TestRelay_Budget(t *testing.T) {
	t.Parallel()
	s := bigCluster(25, 100, 1_000_000)
	const budget, intervals = 10_000, 20
	sent := make([]int, len(s.nodes))
	for range intervals {
		s.spendSome(1000)
		for i, n := range s.nodes {
			n.led.gossip(s.instant(n), budget, func(peer uint16, packet []byte) {
				sent[i] += len(packet)
				if len(packet) > MaxPacket {
					t.Fatalf("packet of %d bytes", len(packet))
				}
				s.put(n, n.led.peers.at(peer).id, append([]byte(nil), packet...))
			})
			if got := len(n.led.relay.news.sending); got > 2*maxPassing {
				t.Fatalf("%d bytes wait to be passed on", got)
			}
		}
		s.tick(2)
	}
	for i, bytes := range sent {
		// A packet may go to all that get one before the budget is seen to be used up.
		if most := budget*intervals + 2*segmentSize(len(s.nodes))*MaxPacket; bytes > most || bytes < most/2 {
			t.Errorf("node %d sent %d bytes in %d intervals, want at most %d", i, bytes, intervals, most)
		}
	}
}

// News that was passed on counts as its origin's: the newest wins, whichever way it came, and nobody's word on this
// node or on strangers counts.
func TestRelay_MergesByOrigin(t *testing.T) {
	t.Parallel()
	l := newTestLedger("a", 1)
	now := instant{ms: 28_333_334 * 60_000}
	name := sampleName()
	var out outbox
	say := func(origin string, inc, seq uint64, used int64, pass byte) {
		t.Helper()
		c := counters{limit: 100, used: used * grains, base: 33 * grains}
		p := append(appendHeader(nil, header{typeRelay, nodeHash("b"), 1, 1, now.ms}), pass, 1)
		p = append(appendGroup(p, header{typeNews, nodeHash(origin), inc, seq, now.ms}), 1)
		before := l.refused.Load() + l.foreign.Load()
		l.receive(now, "b", appendCounters(appendBucket(p, &name), &c), &out)
		if l.refused.Load()+l.foreign.Load() != before {
			t.Fatal("refused")
		}
	}
	check := func(what string, want int64) {
		t.Helper()
		c := Charge{Bucket: name.id, Rule: Rule{Limit: 100, Window: 60, Algorithm: SlidingWindow}, Cost: 1}
		if got := l.peek(now, c).Remaining; got != want {
			t.Errorf("%s: %d remain, want %d", what, got, want)
		}
	}
	waiting := func() int { return len(l.relay.news.ends) }
	say("c", 2, 10, 20, 0)
	check("passed on", 80)
	say("c", 2, 9, 10, 0)
	check("older, later", 80)
	say("c", 1, 99, 50, 0)
	check("of an earlier incarnation", 80)
	say("a", 9, 99, 70, 1)
	check("of this node itself", 80)
	say("stranger", 9, 99, 70, 1)
	check("of a stranger", 80)
	if waiting() != 0 {
		t.Fatalf("%d groups wait to be passed on, want none", waiting())
	}
	say("c", 2, 11, 30, 1)
	check("to be passed on", 70)
	if waiting() != 1 {
		t.Fatalf("%d groups wait to be passed on, want 1", waiting())
	}
	if l.take(now, []Charge{{Bucket: name.id, Rule: Rule{Limit: 100, Window: 60, Algorithm: SlidingWindow}, Cost: 35}}, make([]Verdict, 1), nil, &out); l.peek(now, Charge{Bucket: name.id, Rule: Rule{Limit: 100, Window: 60, Algorithm: SlidingWindow}, Cost: 1}).Remaining != 70 {
		t.Error("news made a right")
	}
}

func TestRelay_Routes(t *testing.T) {
	t.Parallel()
	for _, nodes := range []int{17, 30, 99, 100, 200} {
		st := State{HorizonMillis: 1 << 50, Rosters: []Roster{{Index: 1}}}
		for i := range nodes {
			st.Rosters[0].Nodes = append(st.Rosters[0].Nodes, fmt.Sprint("n", i))
		}
		size := segmentSize(nodes)
		for self := range nodes {
			l := newLedger(ledgerConfig{self: fmt.Sprint("n", self), inc: 1, skewMillis: 1000, maxBuckets: 64})
			l.setState(st)
			r := &l.view.Load().rosters[0]
			picked := map[uint16]bool{}
			for range size {
				l.relay.turn++
				mates, relays := l.routes(r, l.audience(), 1)
				if len(mates) > size || len(relays) > size || len(mates)+1 < min(size, nodes-self/size*size) {
					t.Fatalf("%d nodes: node %d has %d mates and %d relays", nodes, self, len(mates), len(relays))
				}
				for _, p := range relays {
					picked[p] = true
					if r.position(p)/size == self/size {
						t.Fatalf("%d nodes: node %d relays to its own segment", nodes, self)
					}
				}
			}
			if want := nodes - min(size, nodes-self/size*size); len(picked) != want {
				t.Fatalf("%d nodes: in turn node %d picks %d others, want %d", nodes, self, len(picked), want)
			}
		}
	}
}

// With the same load on each node, what it sends grows no faster than the number of nodes, and takes fewer bytes than
// telling each node directly.
func TestRelay_BytesGrowLinearly(t *testing.T) {
	t.Parallel()
	if raceEnabled {
		t.Skip("one goroutine, so nothing for the race detector")
	}
	for name, rule := range map[string]Rule{
		"windows": {Limit: 1_000_000, Window: 3600, Algorithm: SlidingWindow},
		"tokens":  {Limit: 1_000_000, Window: 3600, Algorithm: TokenBucket, Burst: 1_000_000},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bytesGrowLinearly(t, rule)
		})
	}
}

func bytesGrowLinearly(t *testing.T, rule Rule) {
	const intervals = 10
	perNode := map[int]float64{}
	sizes := []int{10, 20, 50, 200}
	for _, nodes := range sizes {
		s := bigClusterOf(nodes, 20, rule)
		s.rounds(2)
		before := s.bytes
		for range intervals {
			s.spendSome(nodes)
			s.rounds(1)
		}
		perNode[nodes] = float64(s.bytes-before) / float64(nodes)
		direct := perNode[sizes[0]] * float64(nodes-1) / float64(sizes[0]-1)
		t.Logf("%d nodes: %.0f bytes from each in ten intervals, %.0f if each told all", nodes, perNode[nodes], direct)
		if nodes > directMost && perNode[nodes] > direct {
			t.Errorf("%d nodes: %.0f bytes from each in ten intervals, more than the %.0f of telling all", nodes, perNode[nodes], direct)
		}
		if s.failure != "" {
			t.Error(s.failure)
		}
	}
	for i, nodes := range sizes[1:] {
		if grown, most := perNode[nodes]/perNode[sizes[i]], float64(nodes)/float64(sizes[i]); grown > most {
			t.Errorf("from %d to %d nodes each sends %.1f times the bytes, want at most %.1f", sizes[i], nodes, grown, most)
		}
	}
}

// Each other node is told at least so often that this one lives, whoever passes its news on.
func TestRelay_SignsOfLife(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		nodes int
		quiet int64
	}{{3, int64(signOfLife)}, {40, int64(signOfLifeLarge)}} {
		s := bigCluster(c.nodes, 1, 1000)
		l := s.nodes[0].led
		now := instant{ms: s.now, mono: c.quiet * 5}
		for p := range uint16(c.nodes) {
			l.peers.at(p).toldAt = now.mono - c.quiet + int64(p%2) // half of them are due
		}
		told := 0
		l.signsOfLife(now, func(peer uint16, packet []byte) {
			if told++; peer%2 != 0 {
				t.Errorf("%d nodes: node %d is not due", c.nodes, peer)
			}
			s.put(s.nodes[0], l.peers.at(peer).id, append([]byte(nil), packet...))
		})
		if told < c.nodes/2-1 {
			t.Errorf("%d nodes: only %d are told", c.nodes, told)
		}
		s.tick(2)
		for _, n := range s.nodes[1:] {
			if n.led.refused.Load()+n.led.foreign.Load() > 0 {
				t.Errorf("%s did not understand", n.id)
			}
		}
	}
}
