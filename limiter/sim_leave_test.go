package limiter

import (
	"bytes"
	"slices"
)

// simOffer is a list that a leaver handed to an heir, who acknowledged it.
type simOffer struct {
	heir    int
	bequest Bequest
}

// depart persists that n leaves, then stops it for good.
func (s *sim) depart(n *simNode) {
	if !n.leaving {
		n.leaving = true
		s.logf("%s leaves", n.id)
	}
	n.led.depart()
}

// restoreLeaves brings back what n's files say at a start.
func (s *sim) restoreLeaves(n *simNode) {
	if n.leaving {
		n.led.depart()
	}
	for list, data := range n.lists { // the order decides nothing
		q, name, err := readBequest(bytes.NewReader(data), 1<<20)
		if err != nil || name != list {
			s.fail("list: %s reads %v", n.id, err)
			return
		}
		n.led.addList(list, q)
	}
}

// bequeath hands n's list to the heir, which stores it and acknowledges; lost says that it gets there and the
// acknowledgement does not.
func (s *sim) bequeath(n, heir *simNode, lost bool) {
	if !n.leaving || !n.up || n.paused || n == heir || !heir.up || heir.paused || heir.leaving || heir.left {
		return
	}
	var data bytes.Buffer
	q, err := writeBequest(&data, n.led)
	if err == nil {
		var stored *bequest
		stored, _, err = readBequest(bytes.NewReader(data.Bytes()), 1<<20)
		if err == nil {
			heir.led.addList(q.List, stored)
			if heir.lists == nil {
				heir.lists = map[[32]byte][]byte{}
			}
			heir.lists[q.List] = data.Bytes()
		}
	}
	if err != nil {
		s.fail("list: %s hands over to %s: %v", n.id, heir.id, err)
		return
	}
	s.logf("%s hands a list of %d bytes to %s, mark %d, lost %t", n.id, q.Bytes, heir.id, q.MarkMillis, lost)
	if !lost {
		n.offers = append(n.offers, simOffer{heir.index, q})
	}
}

// commitLeave commits the leave with one of the lists that were handed over, as the replicated state's rules allow.
func (s *sim) commitLeave(n *simNode, back int) {
	i := len(n.offers) - 1 - back
	if i < 0 {
		return
	}
	o := n.offers[i]
	heir := s.nodes[o.heir]
	st := s.log[len(s.log)-1]
	if n.left || heir.left || slices.Equal(s.members, []int{n.index}) {
		return
	}
	if !s.opt.anyLeave && slices.ContainsFunc(st.Leaves, func(f Leave) bool { return f.Heir == n.id && f.Index > o.bequest.Applied }) {
		s.logf("leave of %s is refused: it became an heir", n.id)
		return
	}
	n.left = true
	st.Leaves = append(slices.Clip(st.Leaves), Leave{
		Index: uint64(len(s.log) + 1), Leaver: n.id, Heir: heir.id, MarkMillis: o.bequest.MarkMillis, List: o.bequest.List,
	})
	s.log = append(s.log, st)
	s.logf("%s left its shares to %s", n.id, heir.id)
}

// finishLeaves takes those out of the roster that leave or have left; of the latter some are left in whose heirs run, so that
// these hold their shares for good. Where nobody would be left there are no members any more.
func (s *sim) finishLeaves() {
	st := s.log[len(s.log)-1]
	keep := s.rng.IntN(2) == 0
	stay := 0
	members := slices.DeleteFunc(slices.Clone(s.members), func(i int) bool {
		n := s.nodes[i]
		if !n.leaving {
			stay++
			return false
		}
		heir := bequeathed(st.Leaves, n.id)
		return !keep || !n.left || !slices.ContainsFunc(s.members, func(j int) bool { return s.nodes[j].id == heir && !s.nodes[j].leaving })
	})
	if stay == 0 {
		s.members = nil
		return
	}
	if len(members) < len(s.members) {
		s.members = members
		s.commitRoster()
	}
}

// leave lets node leave, with all that can go wrong on the way; now and then a new one takes its place, or the heir
// follows.
func (g *planner) leave(node int) {
	heir := g.rng.IntN(g.total)
	pause := func() {
		switch g.rng.IntN(6) {
		case 0:
			g.time()
		case 1:
			g.load(g.rng.IntN(7), g.rng.IntN(g.total))
		case 2:
			if g.rates.crash > 0 {
				g.crash(g.pick(node, heir))
			}
		}
	}
	if g.rng.IntN(2) == 0 && g.total < 200 {
		g.add(step{op: opJoin, node: g.total, a: g.offset()})
		if g.rng.IntN(2) == 0 {
			heir = g.total
		}
		g.total++
	}
	bucket, ahead := 0, false
	for i, b := range g.p.opt.buckets {
		if b.rule.Algorithm == SlidingWindow && b.rule.Window >= 60 {
			bucket, ahead = i, true
		}
	}
	if ahead = ahead && g.rates.skew > 0 && g.rng.IntN(2) == 0; ahead { // the leaver acts in a window that has not begun for its heir
		by, edge := 1+g.rng.Int64N(g.rates.skew), int64(0)
		if by > 6000 && g.rng.IntN(2) == 0 {
			edge = 5000 // and lies above its heir's mark
		}
		g.add(step{op: opClock, node: node, a: by})
		g.add(step{op: opTake, node: heir, other: bucket, a: 1 + g.rng.Int64N(4)})
		g.add(step{op: opEdge, other: bucket, a: 1 + edge + g.rng.Int64N(by-edge)})
		g.add(step{op: opHorizon, a: 10_000})
		g.add(step{op: opAdvance, a: 1})
		g.add(step{op: opTake, node: node, other: bucket, a: 1 + g.rng.Int64N(20)})
	}
	pause()
	g.add(step{op: opDepart, node: node})
	for again := true; again; again = g.rng.IntN(3) == 0 {
		pause()
		g.add(step{op: opBequeath, node: node, other: heir, a: int64(g.pick(0, 0, 0, 1))})
		pause()
		if g.rng.IntN(4) == 0 {
			heir = g.rng.IntN(g.total)
		}
	}
	if g.rng.IntN(4) == 0 {
		return // it is left hanging, or committed by a step of another leave
	}
	g.add(step{op: opLeave, node: node, a: int64(g.pick(0, 0, 0, 1, 2))})
	if ahead {
		g.add(step{op: opAdvance, a: 1 + g.rng.Int64N(20)})
		g.add(step{op: opTake, node: heir, other: bucket, a: 20})
	}
	if g.rng.IntN(6) == 0 && g.rates.crash > 0 {
		g.add(step{op: opLoseLists, node: heir})
		g.crash(heir)
	}
	if g.rng.IntN(6) == 0 && g.rates.crash > 0 { // it spends what it inherited, and forgets that it did
		g.add(step{op: opAdvance, a: 1 + g.rng.Int64N(20)})
		g.add(step{op: opTake, node: heir, other: bucket, a: 20})
		g.add(step{op: opCrash, node: heir})
		g.add(step{op: opStart, node: heir, a: startReboot})
		g.add(step{op: opTake, node: heir, other: bucket, a: 20})
	}
	pause()
	if g.rng.IntN(2) == 0 {
		g.add(step{op: opRemove, node: node})
	}
	if g.rng.IntN(3) == 0 {
		g.leave(heir)
	}
}
