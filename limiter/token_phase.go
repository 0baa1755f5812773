package limiter

// A token bucket has no windows that would say which roster governs. Rosters follow each other on it by the wall
// clock, and so that clocks within the skew bound cannot make two rosters hold at once: for a while after the one that
// is to govern has begun, a node holds the smallest part that any roster of that while gives it. Growth starts empty.
//
// A phase is a time in which this node holds its part under the same rosters. Phases are noted on the monotonic clock, when
// they are noticed; so no step of the wall clock brings a token.
type phase struct {
	mono int64
	full bool // buckets are full at its beginning: of the first phase alone
	// rosters are those whose least part is held; none: nothing is held.
	rosters []rosterView
	heir    bool // what others left to this node counts
}

// phases is the node's history, immutable.
type phases struct {
	list []phase // oldest first, never empty
	// Where the view is this one, readings of the wall clock in [from, until), and of the other before untilMono, tell
	// nothing new.
	view        *view
	newest      *rosterView
	from, until int64
	untilMono   int64
	first, last uint64 // index + 1 of the newest phase's rosters; 0 for none
	// leave is the newest one known. What it brought counts from heirMono on: by then all is over that the leaver lent.
	leave    uint64
	heirMono int64
}

const (
	// maxPhases is how many phases are remembered; before the oldest all buckets count as empty.
	maxPhases = 8
	// stepBack is how far a wall clock may step back without a new phase: readings that are acted on late do.
	stepBack = int64(500)
	forever  = int64(1) << 62
)

// index is the place of the phase that holds at mono.
func (ps *phases) index(mono int64) int {
	i := len(ps.list) - 1
	for i > 0 && ps.list[i].mono > mono {
		i--
	}
	return i
}

func (ps *phases) at(mono int64) *phase { return &ps.list[ps.index(mono)] }

// roster is the newest one whose parts are held, by all that is known of it; nil for none.
func (ps *phases) roster() *rosterView { return ps.newest }

// startPhases is the history of a node that starts. One that ran before holds nothing until all that it may have lent is
// over, and nothing tells what it had spent: it starts empty.
func (l *ledger) startPhases(mono int64) {
	if l.startMark != 0 {
		l.heldUntil = mono + leaseNanos + graceNanos
	}
	l.phases.Store(&phases{list: []phase{{mono: mono}}, heirMono: forever, untilMono: forever})
}

// pauseMillis is how long a node goes by both the old and the new roster: as clocks may differ, and as long as loans run.
func (l *ledger) pauseMillis() int64 {
	if l.unsafeNoPause {
		return 0
	}
	return l.slackMillis + (leaseNanos+graceNanos)/1e6
}

// entitled gives the history up to t where the node may spend or lend from token buckets at t, else nil: it knows a roster
// that governs, and its horizon has not passed.
func (l *ledger) entitled(v *view, t instant) *phases {
	if v.governing(t.ms) == nil || t.ms >= v.horizon && !l.available {
		return nil
	}
	return l.observe(v, t)
}

// observe notes a phase that has begun. From any number of goroutines.
func (l *ledger) observe(v *view, t instant) *phases {
	for {
		p := l.phases.Load()
		if t.mono < l.heldUntil || p.view == v && t.ms >= p.from && t.ms < p.until && t.mono < p.untilMono {
			return p
		}
		q := l.nextPhase(p, v, t)
		if q == p || l.phases.CompareAndSwap(p, q) {
			return q
		}
	}
}

func (l *ledger) nextPhase(p *phases, v *view, t instant) *phases {
	newest := v.place(t.ms)
	for newest+1 < len(v.rosters) && v.rosters[newest+1].index < p.last {
		newest++ // a clock that stepped back does not bring an old roster back
	}
	oldest := v.place(t.ms - l.pauseMillis())
	q := &phases{list: p.list, view: v, from: t.ms - stepBack, until: forever}
	if newest+1 < len(v.rosters) {
		q.until = v.rosters[newest+1].from
	}
	if oldest+1 < len(v.rosters) && oldest < newest {
		q.until = min(q.until, v.rosters[oldest+1].from+l.pauseMillis())
	}
	var rosters []rosterView
	if oldest >= 0 {
		rosters = v.rosters[oldest : newest+1]
		q.newest = &rosters[len(rosters)-1]
		q.first, q.last = rosters[0].index+1, rosters[len(rosters)-1].index+1
	}
	was := p.list[len(p.list)-1].heir
	q.leave, q.heirMono, q.untilMono = p.leave, p.heirMono, forever
	if v.leave != p.leave {
		q.leave, q.heirMono, was = v.leave, t.mono+leaseNanos+graceNanos, false
	}
	heir := inherits(rosters) && t.mono >= q.heirMono
	if inherits(rosters) && !heir {
		q.untilMono = q.heirMono
	}
	if q.first == p.first && q.last == p.last && heir == p.list[len(p.list)-1].heir {
		return q
	}
	list := append(make([]phase, 0, len(p.list)+2), p.list...)
	mono := max(t.mono, list[len(list)-1].mono)
	switch {
	case p.last == 0 && len(list) == 1 && (l.startMark == 0 || l.unsafeStartFull) && newest >= 0 && v.rosters[0].from == 0:
		// It never acted, and every roster there ever was is known.
		list[0] = phase{mono: list[0].mono, full: true, rosters: v.rosters[:newest+1]}
	case p.last != 0:
		// In between, every roster from the last phase's to the present one may have governed.
		before := v.placeOf(p.first - 1)
		if before < 0 {
			list = append(list, phase{mono: mono})
		} else if before < oldest {
			list = append(list, phase{mono: mono, rosters: v.rosters[before : newest+1], heir: heir && was})
		}
	}
	list = append(list, phase{mono: mono, rosters: rosters, heir: heir})
	q.list = list[max(len(list)-maxPhases, 0):]
	return q
}

// inherits says whether one of the rosters gives this node what another left.
func inherits(rosters []rosterView) bool {
	for i := range rosters {
		if r := &rosters[i]; r.holds != nil && r.self >= 0 && len(r.holds[r.self]) > 0 && (r.self >= r.size || len(r.holds[r.self]) > 1) {
			return true
		}
	}
	return false
}

// placeOf is where the roster of a log index stands, -1 where it is not known any more.
func (v *view) placeOf(index uint64) int {
	for i := range v.rosters {
		if v.rosters[i].index == index {
			return i
		}
	}
	return -1
}
