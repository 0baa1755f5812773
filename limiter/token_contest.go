package limiter

// Where a token lies in pieces, every node that is asked for it may gather them, and an attack asks all of them: each time a token
// has come together, one wins, and the requests at the others have waited for nothing. So a node that lost leaves the next
// ones to others, unless so much is there that nobody else can be gathering it. The winner has lost nothing and goes on; when it
// is asked no more, tokens pile up, and who is asked then gathers them before any flows over.

const (
	// yieldNanos is how long a node leaves tokens to others, doubled by each further loss in a row up to maxLost; up to yieldMost where
	// none pile up meanwhile, so that one that somebody asks for does not stand unused for long.
	yieldNanos, yieldMost = int64(25e6), int64(150e6)
	maxLost               = 9
	// staleNanos is how far what is known of others is behind: what they have spent since is not there.
	staleNanos = int64(20e6)
)

// yields says whether this node leaves to the others what they are believed to hold: sum grains, which would do for need, what it
// lacks of units.
func (tk *tokens) yields(rule *Rule, units, need, sum, nanos, mono int64) bool {
	tr := tk.trade
	if tr == nil || tr.lost == 0 {
		return false
	}
	room := (rule.Burst*grains - units) / 2
	if full := rule.Burst*grains - tk.content - tk.room; room > 0 && sum >= full-full/64 {
		return false // all that others can hold: nobody gathers it, and it becomes no more
	}
	if mono >= tr.yieldTo {
		return pilesUp(rule, units, nanos) && sum < need+min(room, units) // whoever gathers leaves less than that
	}
	rate := rule.Limit * grains
	more := min(mulFloor(yieldPause(tr.lost), rate, nanos), units+mulFloor(staleNanos, rate, nanos))
	return room <= 0 || sum < need+min(room, more)
}

// pilesUp says whether units come within a second, so that whoever yields finds more of them soon. Where they come more seldom, few
// requests meet, and one that is there would wait for its like.
func pilesUp(rule *Rule, units, nanos int64) bool {
	return mulFloor(int64(1e9), rule.Limit*grains, nanos) >= units
}

func yieldPause(lost uint8) int64 { return yieldNanos << (lost - 1) }

// lose notes that a request waited in vain for what others gathered. spread differs from node to node, or those that lost
// together would meet again.
func (tk *tokens) lose(rule *Rule, units, mono int64, spread uint8) {
	tr := tk.dealings()
	tr.lost = min(tr.lost+1, maxLost)
	pause := yieldPause(tr.lost)
	if rule.Burst*grains-units < 2 || !pilesUp(rule, units, rule.Window*1e9) {
		pause = min(pause, yieldMost)
	}
	tr.yieldTo = mono + pause + pause*int64(spread)/256
}

// contest notes of refused charges that had something to wait for that they waited in vain.
func (l *ledger) contest(charges []Charge, verdicts []Verdict, w *waiter, t instant) {
	for i := range charges {
		c := &charges[i]
		if verdicts[i].Outcome != Refused || c.Rule.Algorithm != TokenBucket || !validCharge(c) || asked(charges, i) > c.Rule.most() {
			continue
		}
		_, b := l.at(c)
		if b == nil || b.tok == nil || b.cell || w == nil && (b.tok.trade == nil || !b.tok.trade.gathers()) {
			continue
		}
		b.tok.lose(&c.Rule, asked(charges, i)*grains, t.mono, uint8(mix64(b.id.low()^l.selfHash)))
	}
}

// won notes that admitted charges waited for what they needed.
func (l *ledger) won(charges []Charge) {
	for i := range charges {
		if c := &charges[i]; c.Rule.Algorithm == TokenBucket {
			if _, b := l.at(c); b.tok.trade != nil {
				b.tok.trade.lost = 0
			}
		}
	}
}

// gathers says whether anything was asked for that was not answered, or came and is not returned yet.
func (tr *tokenTrade) gathers() bool {
	for i := range tr.levels {
		if tr.levels[i].askSeq != 0 {
			return true
		}
	}
	return len(tr.in) > 0
}
