package authapi

import (
	"slices"
	"sync/atomic"

	"sluice/limiter"
)

// DecisionCount is what one policy decided since the server was made, or since there is a policy of its name. A layer's policy,
// plans' and keys' own limits that stand in its place count under one name.
type DecisionCount struct {
	Policy    string
	Admitted  uint64
	Refused   uint64
	Undecided uint64
	Waited    uint64 // of all these, decisions that waited for a message of another node
}

// decisionStripes is how many cells a policy's counts are spread over, by the bucket: requests of different clients rarely
// meet in one, and those of one bucket have met at the limiter's lock already.
const decisionStripes = 16

// decisionCell fills a cache line.
type decisionCell struct {
	admitted, refused, undecided, waited atomic.Uint64
	_                                    [32]byte
}

// decisions counts what policies decide, by policy.index.
type decisions struct {
	names []string
	cells []*[decisionStripes]decisionCell
}

// newDecisions counts on where last, which may be nil, has counted under the same name.
func newDecisions(names []string, last *decisions) *decisions {
	d := &decisions{names: names, cells: make([]*[decisionStripes]decisionCell, len(names))}
	for i, name := range names {
		if last != nil {
			if j := slices.Index(last.names, name); j >= 0 {
				d.cells[i] = last.cells[j]
				continue
			}
		}
		d.cells[i] = new([decisionStripes]decisionCell)
	}
	return d
}

// note counts one policy's part of a decision whose outcome for all policies together is whole. A policy that would have let a
// request pass which another one refused has decided nothing.
func (d *decisions) note(index int, bucket *limiter.BucketID, v *limiter.Verdict, whole limiter.Outcome) {
	cell := &d.cells[index][bucket[len(bucket)-1]%decisionStripes]
	switch {
	case whole == limiter.Admitted:
		cell.admitted.Add(1)
	case v.Outcome == limiter.Refused:
		cell.refused.Add(1)
	case v.Outcome == limiter.Undecided:
		cell.undecided.Add(1)
	default:
		return
	}
	if v.Waited {
		cell.waited.Add(1)
	}
}

// Decisions are what all policies that are enforced now decided, in an order that is the same for the same configuration.
// Guards on sign-in are among them, as sign_in_*. Safe for concurrent use.
func (s *Server) Decisions() []DecisionCount {
	lv := s.live.Load()
	d := lv.decisions
	out := make([]DecisionCount, 0, len(d.names))
	for i, name := range d.names {
		if slices.ContainsFunc(lv.shadows.policies, func(p *policy) bool { return p.index == i }) {
			continue
		}
		n := DecisionCount{Policy: name}
		for j := range d.cells[i] {
			cell := &d.cells[i][j]
			n.Admitted += cell.admitted.Load()
			n.Refused += cell.refused.Load()
			n.Undecided += cell.undecided.Load()
			n.Waited += cell.waited.Load()
		}
		out = append(out, n)
	}
	return out
}
