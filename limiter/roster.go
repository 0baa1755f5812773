package limiter

import (
	"cmp"
	"slices"
)

// rosterView is a Roster with its nodes replaced by what the ledger reckons with. The roster's nodes are the first size
// of peers, each with a share of its own; behind them come heirs that the roster does not name.
type rosterView struct {
	index  uint64
	from   int64
	size   int
	peers  []uint16 // indexes in the peer table, in the roster's order
	hashes []uint64 // nodeHash of each
	self   int      // this node's place, -1 where it holds no share
	// holds are the places whose shares each of peers has now, its own first; nil where each has its own.
	holds        [][]int
	heritage     []heritage // this node's
	heritageMark int64      // the greatest mark of their leavers
}

// view is the replicated state as the ledger sees it, immutable.
type view struct {
	horizon int64
	rosters []rosterView // oldest first
	gens    *generations // nil for none
	leave   uint64       // index of the newest leave
	// legacies are the leaves whose shares this node has now, oldest first.
	legacies []legacy
}

// governing is the roster that governs a window beginning at begin, nil where none does.
func (v *view) governing(begin int64) *rosterView {
	if i := v.place(begin); i >= 0 {
		return &v.rosters[i]
	}
	return nil
}

// place is where the roster that governs ms stands, -1 for none.
func (v *view) place(ms int64) int {
	for i := len(v.rosters) - 1; i >= 0; i-- {
		if v.rosters[i].from <= ms {
			return i
		}
	}
	return -1
}

// rank is the place of the node at pos in the bucket's rendezvous order: how many nodes come before it. All nodes reckon
// the same order from the roster and the bucket's name alone.
func (r *rosterView) rank(low uint64, pos int) int {
	mine := mix64(low ^ r.hashes[pos])
	rank := 0
	for i, h := range r.hashes[:r.size] {
		if i == pos {
			continue
		}
		if m := mix64(low ^ h); m < mine || m == mine && i < pos {
			rank++
		}
	}
	return rank
}

// share is the part of limit that the node at pos holds: ⌊L/N⌋, and one more for the first L mod N nodes by
// the rendezvous order. It never falls as limit rises, so nodes that know different limits together hold at most the
// highest. A pos of -1 holds nothing.
func (r *rosterView) share(low uint64, pos int, limit int64) int64 {
	if r == nil || pos < 0 || pos >= r.size {
		return 0
	}
	n := int64(r.size)
	q, rest := limit/n, limit%n
	if rest > 0 && int64(r.rank(low, pos)) < rest {
		q++
	}
	return q
}

// position is where the peer stands in the roster, -1 where it does not.
func (r *rosterView) position(peer uint16) int {
	if r == nil {
		return -1
	}
	return slices.Index(r.peers, peer)
}

// newView checks and translates a State. Nodes named twice count once. lists finds what this node stored for leavers.
func newView(s State, peers *peerTable, self string, lists func(list [32]byte) *bequest) *view {
	v := &view{horizon: s.HorizonMillis}
	for _, r := range s.Rosters {
		rv := rosterView{index: r.Index, from: r.FromMillis, self: -1}
		for _, id := range r.Nodes {
			p, ok := peers.add(id)
			if !ok {
				// Reckoning with fewer nodes than the others would make shares too great: hold none.
				rv = rosterView{index: r.Index, from: r.FromMillis, self: -1}
				break
			}
			if slices.Contains(rv.peers, p) {
				continue
			}
			if id == self {
				rv.self = len(rv.peers)
			}
			rv.peers = append(rv.peers, p)
			rv.hashes = append(rv.hashes, peers.at(p).hash)
		}
		rv.size = len(rv.peers)
		v.rosters = append(v.rosters, rv)
	}
	slices.SortStableFunc(v.rosters, func(a, b rosterView) int {
		switch {
		case a.index < b.index:
			return -1
		case a.index > b.index:
			return 1
		}
		return 0
	})
	v.takeOver(s.Leaves, peers, self, lists)
	return v
}

// older says whether v was read at an earlier log index than w. Horizon, newest roster and newest reset only ever grow: the
// latter are never dropped.
func (v *view) older(w *view) bool {
	if w.gens != nil && (v.gens == nil || v.gens.newest < w.gens.newest) {
		return true
	}
	// In this order: leaves are dropped by an entry that sets a roster, so that the newest of a later state may be older.
	return cmp.Or(cmp.Compare(v.horizon, w.horizon), cmp.Compare(v.newest(), w.newest()), cmp.Compare(v.leave, w.leave)) < 0
}

// newest is the index of the newest roster, 0 for none.
func (v *view) newest() uint64 {
	if len(v.rosters) == 0 {
		return 0
	}
	return v.rosters[len(v.rosters)-1].index
}
