package limiter

// Reason is why a request was not admitted. The numbers cross the wire between nodes: never change or reuse one.
type Reason uint8

// The reasons. The first ones refuse; from ReasonMark on nothing could be decided.
const (
	// ReasonUsedUp: this node's share is used up, and the others are believed to have nothing to spare.
	ReasonUsedUp Reason = 1
	// ReasonWait: others are believed to have shares, and none came in time.
	ReasonWait Reason = 2
	// ReasonCost: the request costs more than the limit.
	ReasonCost Reason = 3
	// ReasonLost: what this node did in the window before its last start is not known, so it holds no share of its own there.
	ReasonLost Reason = 4
	// ReasonOverflow: the room for counters is used up; the bucket counts together with others, and too many spend there.
	ReasonOverflow Reason = 5
	// ReasonQueue: too many requests wait for shares of this bucket already.
	ReasonQueue Reason = 6
	// ReasonSilent: this node's share is used up, and of the nodes that may have something to spare some do not answer.
	ReasonSilent Reason = 7

	// ReasonMark: the clock is beyond the time mark that is safely on disk.
	ReasonMark Reason = 16
	// ReasonRoster: this node knows no list of the nodes that hold shares in the window.
	ReasonRoster Reason = 17
	// ReasonHorizon: the window begins beyond the horizon: the node does not hear the cluster's log.
	ReasonHorizon Reason = 18
	// ReasonGone: the window ended so long ago that its counters may be gone: the clock stepped back.
	ReasonGone Reason = 19
	// ReasonRoom: there is nowhere to count.
	ReasonRoom Reason = 20
	// ReasonOpenNext: the window after this one was acted in beyond the horizon.
	ReasonOpenNext Reason = 21
	// ReasonClosed: the limiter is closed.
	ReasonClosed Reason = 22
	// ReasonLeft: the node leaves the cluster for good.
	ReasonLeft Reason = 23
)

// Milli is a number of units in thousandths: sliding windows give back parts of units.
type Milli int64

// Explanation is what one node holds and believes of a bucket at one instant. All times are Unix milliseconds by the
// node's clock. The names of its fields, and of those of its parts, are on the wire between nodes: never change one.
type Explanation struct {
	Bucket     BucketID // its first name
	Generation uint64   // of the last reset, 0 for none
	Rule       Rule
	AtMillis   int64
	// Known says that the node has counters of the bucket; without any it has spent, given and received nothing.
	Known bool
	// Shared says that the counters are an overflow cell's, which stands for many buckets.
	Shared bool

	Window                 int64 // its number: Unix time div length
	BeginMillis, EndMillis int64
	RosterIndex            uint64 // of the roster that governs the window
	HorizonMillis          int64

	// The rule: Used + Given − Received + what of Charge is in view may come up to Base; Room is what is left of it. What
	// nodes that left handed over to this one is in all of them, but not in Cells.
	Base, Used, Given, Received, Charge, Room Milli
	UsedBefore                                Milli // in the window before
	// Lost says that Base is 0 since the node cannot prove what it did in the window.
	Lost bool
	// Undecided is why the node can decide nothing now, 0 where it can.
	Undecided Reason

	Cells []CellView
	Ask   *AskView // under way
	Peers []PeerView
	// Refusal is the last time that this node did not admit a request for the bucket, nil where none is remembered: memory
	// for that is small, and others of the policy may have taken its place.
	Refusal *Refusal
	// NextMillis is when a request of one unit would pass here as far as this node knows, if nobody else spends any.
	NextMillis int64
}

// CellView is what was handed from one node to another in the window.
type CellView struct {
	Peer        string
	Incarnation uint64 // the peer's; what was given to an earlier one is lost with it
	Given       bool   // to the peer, or else by it
	Units       Milli
}

// AskView is a request for shares on its way.
type AskView struct {
	Peer      string
	AgeMillis int64
	Waiting   int   // requests that wait for its answer
	Units     Milli // that these want
}

// PeerView is what a node last said of itself: knowledge, not a right.
type PeerView struct {
	Peer            string
	Window          int64 // negative where it has said nothing of the bucket
	Base, Used, Net Milli
	Owing           bool // an ask went unanswered: it may have debited itself for units that are on no way any more
	Silent          bool // it leaves asks unanswered and is not asked for now
	QuietMillis     int64
}

// Refusal is a decision not to admit.
type Refusal struct {
	AtMillis int64
	Cost     int64
	Reason   Reason
}

// refusalSlots is how many buckets' last refusals a shard remembers.
const refusalSlots = 32

// refusalNote is the last refusal of the bucket with the first name id. A bucket under attack keeps to its one slot.
type refusalNote struct {
	id   BucketID
	ms   int64
	cost int64
	why  Reason
}

func (sh *shard) refusalSlot(id *BucketID) *refusalNote { return &sh.refusals[id[9]%refusalSlots] }

// note remembers a refusal.
func (sh *shard) note(c *Charge, ms int64, why Reason) {
	*sh.refusalSlot(&c.Bucket) = refusalNote{c.Bucket, ms, c.Cost, why}
}

// whyRefused says what a refusal comes from. st is how the bucket stands; last says that the request has waited in vain.
func (l *ledger) whyRefused(v *view, b *bucket, c *Charge, st *standing, t instant, last bool) Reason {
	switch {
	case c.Cost > c.Rule.most():
		return ReasonCost
	case b.cell:
		return ReasonOverflow
	case last:
		return ReasonWait
	case st.lost:
		return ReasonLost
	case b.ask.queued >= maxWaiters:
		return ReasonQueue
	}
	if r := v.governing(b.span.begin(b.span.at(t.ms))); r != nil {
		for pos, p := range r.peers {
			if pos != r.self && l.peers.at(p).suspect(t.mono) {
				return ReasonSilent
			}
		}
	}
	return ReasonUsedUp
}

// whyUndecided says why try could not decide. It reckons anew: a node in that state has time.
func (l *ledger) whyUndecided(v *view, c *Charge, t instant) Reason {
	if sh, b := l.at(c); b != nil {
		if st := l.stand(sh, v, b, b.span.at(t.ms), c.Rule.Limit, t); st.undecided {
			return st.undecidedBy
		}
	}
	return ReasonRoom
}

// newBucket is one that is in no shard, to reckon with.
func newBucket(id BucketID, rule Rule) *bucket {
	b := &bucket{id: id, span: span(rule.Window * 1000), alg: rule.Algorithm, limit: rule.Limit}
	b.wins = b.first[:0]
	return b
}

// explain tells how the bucket with the first name id stands here. It changes nothing. A rule without a window stands for
// that of the bucket in memory; ok is false where there is none, or the rule cannot be.
func (l *ledger) explain(t instant, id BucketID, rule Rule) (e Explanation, ok bool) {
	v := l.view.Load()
	sh := &l.shards[shardOf(&id)]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	defer l.trim(sh, t.mono)
	if rule.Window == 0 {
		if rule, ok = sh.ruleInMemory(v, &id); !ok {
			return e, false
		}
	}
	if !validRule(&rule) {
		return e, false
	}
	c := Charge{Bucket: id, Rule: rule, Cost: 1, id: v.name(id, rule.Window, t.ms)}
	e = Explanation{Bucket: id, Rule: rule, AtMillis: t.ms, HorizonMillis: v.horizon}
	if c.id != id {
		e.Generation = v.gens.names[id].number
	}
	if n := sh.refusalSlot(&id); n.id == id && n.ms != 0 {
		e.Refusal = &Refusal{AtMillis: n.ms, Cost: n.cost, Reason: n.why}
	}
	b := sh.get(&c.id)
	if b == nil {
		b = sh.cells[overflowID(&c.id, span(rule.Window*1000), rule.Algorithm)]
	}
	e.Known, e.Shared = b != nil, b != nil && b.cell
	if b == nil {
		b = newBucket(c.id, rule)
	}
	if rule.Algorithm == TokenBucket {
		l.explainTokens(sh, v, b, t, &e)
		return e, true
	}
	l.explainWindow(sh, v, b, t, &e)
	l.explainPeers(b, t, &e)
	return e, true
}

// ruleInMemory is the rule by which the bucket counts here, in its present generation or the first.
func (sh *shard) ruleInMemory(v *view, id *BucketID) (Rule, bool) {
	names := []BucketID{*id}
	if v.gens != nil {
		if g, ok := v.gens.names[*id]; ok {
			names = []BucketID{g.id, *id}
		}
	}
	for i := range names {
		if b := sh.get(&names[i]); b != nil {
			rule := Rule{Limit: b.limit, Window: int64(b.span) / 1000, Algorithm: b.alg}
			if b.tok != nil {
				rule.Limit, rule.Burst = b.tok.limit, b.tok.burst
			}
			return rule, true
		}
	}
	return Rule{}, false
}

func (l *ledger) explainWindow(sh *shard, v *view, b *bucket, t instant, e *Explanation) {
	n := b.span.at(t.ms)
	e.Window, e.BeginMillis, e.EndMillis = n, b.span.begin(n), b.span.end(n)
	if r := v.governing(e.BeginMillis); r != nil {
		e.RosterIndex = r.index
	}
	if w := b.find(n); w != nil {
		e.Used, e.Given, e.Received = Milli(w.used), Milli(w.given), Milli(w.received)
		for _, c := range w.cells {
			e.Cells = append(e.Cells, CellView{l.peers.at(c.peer).id, c.inc, c.out, Milli(c.value)})
		}
	}
	limit := e.Rule.Limit
	used, before := l.ownUsed(v, b, n)
	e.UsedBefore = Milli(before)
	// What it inherited it answers for.
	inherited := l.estate(v, v.governing(e.BeginMillis), b, n, limit)
	e.Used = Milli(used)
	e.Given += Milli(max(inherited.net-inherited.used, 0))
	e.Received += Milli(max(inherited.used-inherited.net, 0))
	st := l.stand(sh, v, b, n, limit, t)
	e.Base, e.Charge, e.Room, e.Lost = Milli(st.base), Milli(st.charge), Milli(st.room), st.lost
	if sh.closed {
		st = standing{undecided: true, undecidedBy: ReasonClosed}
	}
	if st.undecided {
		e.Undecided = st.undecidedBy
		return
	}
	r := v.governing(e.BeginMillis)
	if st.room >= grains || l.elsewhere(v, b, r, n, limit, t, grains-st.room) >= grains-st.room {
		e.NextMillis = t.ms
		return
	}
	var sv survey
	l.surveyBucket(v, b, &st, n, limit, &sv)
	e.NextMillis = sv.retryMillis(b, n, grains, t.ms)
}

func (l *ledger) explainPeers(b *bucket, t instant, e *Explanation) {
	if b.ask.inFlight || b.ask.queued > 0 {
		e.Ask = &AskView{
			// It may have been sent while this call waited for the lock.
			Peer: l.peers.at(b.ask.peer).id, AgeMillis: max(t.mono-b.ask.sentMono, 0) / 1e6,
			Waiting: b.ask.queued, Units: Milli(b.ask.waiting),
		}
	}
	for i := range b.know {
		k := &b.know[i]
		p := l.peers.at(k.peer)
		e.Peers = append(e.Peers, PeerView{
			Peer: p.id, Window: k.n, Base: Milli(k.base), Used: Milli(k.used), Net: Milli(k.net),
			Owing: k.owing, Silent: p.suspect(t.mono), QuietMillis: max(k.quietTo-t.mono, 0) / 1e6,
		})
	}
}

// Explain tells how the bucket stands on this node, without changing anything. A rule without a window stands for the
// bucket's own, as this node last counted by it. ok is false where that is not known, or no rule can be so.
func (l *Limiter) Explain(bucket BucketID, rule Rule) (e Explanation, ok bool) {
	return l.ledger.explain(l.instant(), bucket, rule)
}

// Total is a bucket in the whole cluster.
type Total struct {
	Used, UsedBefore Milli // in the window, and in the one before
	Remaining        int64 // whole units
	// NextMillis is when a request would pass at the earliest, in Unix milliseconds, if nobody else spends any; 0 where none
	// ever does, or no node can decide.
	NextMillis int64
}

// Sum puts together what each node says of itself at about one time, and so is exact where all did; what a node holds that
// said nothing is left out, and so are windows other than the first part's. cost is that of the request to come.
func Sum(parts []Explanation, cost int64) (total Total) {
	if len(parts) == 0 || !validRule(&parts[0].Rule) {
		return total
	}
	first := &parts[0]
	b := newBucket(first.Bucket, first.Rule)
	now, limit := first.AtMillis, first.Rule.Limit
	var sv survey
	var room, spare int64
	sv.coarse = coarse(limit, len(parts))
	for i := range parts {
		e := &parts[i]
		if e.Window != first.Window {
			continue
		}
		total.Used, total.UsedBefore = total.Used+e.Used, total.UsedBefore+e.UsedBefore
		if e.Undecided != 0 {
			continue
		}
		o := outlook{used: int64(e.Used), prevUsed: int64(e.UsedBefore), base: int64(e.Base), net: int64(e.Used + e.Given - e.Received), charge: int64(e.Charge)}
		sv.add(o)
		room += max(int64(e.Room), 0)
		if first.Rule.Algorithm == SlidingWindow {
			spare += sv.free(&o, b.span, first.Window, now)
		} else {
			spare += max(o.base-o.net, 0)
		}
	}
	windows := first.Rule.Algorithm == FixedWindow || first.Rule.Algorithm == SlidingWindow
	if total.Remaining = room / grains; windows {
		sv.used, sv.prevUsed = int64(total.Used), int64(total.UsedBefore)
		total.Remaining = sv.remaining(b, first.Window, limit, now)
	}
	switch {
	case sv.count == 0 || cost > first.Rule.most():
	case windows && spare >= cost*grains, !windows && room >= cost*grains:
		total.NextMillis = now
	case windows:
		total.NextMillis = sv.retryMillis(b, first.Window, cost*grains, now)
	default:
		for i := range parts {
			if at := parts[i].NextMillis; at != 0 && (total.NextMillis == 0 || at < total.NextMillis) {
				total.NextMillis = at
			}
		}
	}
	return total
}

var reasonTexts = map[Reason]string{
	ReasonUsedUp:   "used_up",
	ReasonWait:     "waited_in_vain",
	ReasonCost:     "cost_above_limit",
	ReasonLost:     "window_lost",
	ReasonOverflow: "overflow_cell",
	ReasonQueue:    "too_many_waiting",
	ReasonSilent:   "nodes_silent",
	ReasonMark:     "clock_beyond_mark",
	ReasonRoster:   "no_roster",
	ReasonHorizon:  "beyond_horizon",
	ReasonGone:     "window_gone",
	ReasonRoom:     "no_room",
	ReasonOpenNext: "next_window_open",
	ReasonClosed:   "closed",
}

// String is the reason in snake case, "unknown" for one of a later version.
func (r Reason) String() string {
	if text, ok := reasonTexts[r]; ok {
		return text
	}
	return "unknown"
}
