package limiter

import "slices"

// counters is what a node says of itself for one bucket: knowledge, never a right. It tells whom to ask, what
// Remaining is, and when asking is in vain. All but the limit is in grains.
type counters struct {
	n        int64 // window
	used     int64 // in n
	prevUsed int64 // in n−1
	base     int64
	net      int64
	charge   int64
	// limit is what base was reckoned from.
	limit int64

	inc uint64
	seq uint64 // of the packet it came in; a lower one is old news
	// quietTo is the monotonic time before which the peer is not asked again for this bucket.
	quietTo int64
	// owing: an ask went out and no answer came, so units may have been debited there that never arrived.
	owing  bool
	denied uint8 // answers in a row that gave nothing
	flags  uint8 // flagVague, flagPrevVague
	peer   uint16
}

const (
	denyNanos    = int64(25e6)
	denyMaxNanos = int64(800e6)
	maxAhead     = int64(60_000)
)

// knowledge is what peer said; nil for nothing. know is in the order of peers, since in large clusters one decision looks
// at all of them.
func (b *bucket) knowledge(peer uint16) *counters {
	if i := b.knowAt(peer); i < len(b.know) && b.know[i].peer == peer {
		return &b.know[i]
	}
	return nil
}

func (b *bucket) knowAt(peer uint16) int {
	lo, hi := 0, len(b.know)
	for lo < hi {
		if mid := (lo + hi) / 2; b.know[mid].peer < peer {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

// learn makes room for what is known of peer.
func (b *bucket) learn(peer uint16) *counters {
	if k := b.knowledge(peer); k != nil {
		return k
	}
	i := b.knowAt(peer)
	b.know = slices.Insert(b.know, i, counters{peer: peer, n: -1 << 40})
	return &b.know[i]
}

// merge takes over what a peer said, if it is news.
func (k *counters) merge(m counters) {
	if m.inc < k.inc || m.inc == k.inc && m.seq <= k.seq || m.n < k.n {
		return
	}
	if m.inc == k.inc && m.n == k.n {
		if m.base-m.net > k.base-k.net || m.charge < k.charge {
			k.denied, k.quietTo = 0, 0 // it got something to spare
		}
	} else {
		k.denied, k.quietTo = 0, 0
	}
	if m.n == k.n {
		m.flags |= k.flags
	} else if m.n == k.n+1 && k.flags&flagVague != 0 {
		m.flags |= flagPrevVague
	}
	if m.inc != k.inc && k.n >= m.n-1 {
		m.flags |= flagVague | flagPrevVague // it does not go on from what the last one said
	}
	if m.n == k.n {
		// A restart may have forgotten what the cluster knows; what was admitted stays admitted.
		m.used = max(m.used, k.used)
		m.prevUsed = max(m.prevUsed, k.prevUsed)
	} else if m.n == k.n+1 {
		m.prevUsed = max(m.prevUsed, k.used)
	}
	m.quietTo, m.owing, m.denied, m.peer = k.quietTo, k.owing, k.denied, k.peer
	if m.limit == 0 {
		m.limit = k.limit
	}
	*k = m
}

// outlook is one node's part of a window as far as this node knows.
type outlook struct {
	used, prevUsed int64
	base, net      int64
	charge         int64
}

func (o *outlook) spare(s span, alg Algorithm, n, ms int64) int64 {
	if alg != SlidingWindow {
		return max(o.base-o.net, 0)
	}
	return max(o.base-o.net-s.weigh(max(o.charge, 0), n, ms), 0)
}

// outlookOf is what is believed of the peer at pos of r in window n. A peer that never spoke of the bucket has
// spent nothing as far as anyone knows.
func (l *ledger) outlookOf(v *view, b *bucket, r *rosterView, pos int, n, limit int64) outlook {
	peer := r.peers[pos]
	k := b.knowledge(peer)
	low := b.id.low()
	var o outlook
	switch {
	case k == nil || k.n < n-1:
		o.base = r.holding(low, pos, limit) * grains
		o.charge = max(0, l.growth(v, b, r, pos, n, limit))
	case k.n == n:
		base := k.base
		if k.limit != limit && k.base == r.holding(low, pos, k.limit)*grains {
			base = r.holding(low, pos, limit) * grains // the limit changed since; a base lost to a restart stays lost
		}
		o = outlook{used: k.used, prevUsed: k.prevUsed, base: base, net: k.net, charge: k.charge}
	case k.n == n-1:
		o.prevUsed = k.used
		o.base = r.holding(low, pos, limit) * grains
		o.charge = max(0, k.net+l.growth(v, b, r, pos, n, limit))
	default: // its clock is in n+1 already: what it still holds of n it must tell when asked
		o.used = k.prevUsed
	}
	if b.alg != SlidingWindow {
		o.charge, o.prevUsed = 0, 0
	}
	return o
}

// growth is what the share of the peer at pos of r, which governs n, grew by since n−1 through the roster; negative where it shrank.
func (l *ledger) growth(v *view, b *bucket, r *rosterView, pos int, n, limit int64) int64 {
	if b.alg != SlidingWindow {
		return 0
	}
	before := v.governing(b.span.begin(n - 1))
	if before == r {
		return 0
	}
	low := b.id.low()
	return (r.holding(low, pos, limit) - before.holding(low, before.position(r.peers[pos]), limit)) * grains
}

// believed is how much the peer at pos can spare for this node now, 0 where asking it is in vain.
func (l *ledger) believed(v *view, b *bucket, r *rosterView, pos int, n, limit int64, t instant) int64 {
	peer := r.peers[pos]
	p := l.peers.at(peer)
	if r.left(pos) || p.suspect(t.mono) {
		return 0
	}
	k := b.knowledge(peer)
	if k != nil && t.mono < k.quietTo {
		return 0
	}
	o := l.outlookOf(v, b, r, pos, n, limit)
	// It will weigh by its own clock.
	spare := o.spare(b.span, b.alg, n, t.ms+min(max(p.ahead.Load(), -maxAhead), maxAhead))
	if spare == 0 && k != nil && k.owing && k.n >= n-1 {
		return grains
	}
	if coarse(limit, r.size) {
		return whole(spare)
	}
	return spare
}

// elsewhere is how much all peers together are believed to spare, counted up to enough.
func (l *ledger) elsewhere(v *view, b *bucket, r *rosterView, n, limit int64, t instant, enough int64) int64 {
	var sum int64
	for pos := range r.peers {
		if pos == r.self {
			continue
		}
		if sum += l.believed(v, b, r, pos, n, limit, t); sum >= enough {
			break
		}
	}
	return sum
}

// choose picks the peer with the most to spare; between equals, by the bucket's order, turned by the asker, so that
// not everybody asks the same one. The peer avoid, which just failed to answer, is taken only where no other
// has anything. -1 where none has.
func (l *ledger) choose(v *view, b *bucket, r *rosterView, n, limit int64, t instant, avoid int) int {
	best, bestSpare, bestTie := -1, int64(0), uint64(0)
	for pos := range r.peers {
		if pos == r.self || pos == avoid {
			continue
		}
		spare := l.believed(v, b, r, pos, n, limit, t)
		tie := mix64(b.id.low() ^ r.hashes[pos] ^ l.selfHash)
		if spare > bestSpare || spare > 0 && spare == bestSpare && tie < bestTie {
			best, bestSpare, bestTie = pos, spare, tie
		}
	}
	if best < 0 && avoid >= 0 && l.believed(v, b, r, avoid, n, limit, t) > 0 {
		return avoid
	}
	return best
}

// maxOutlooks is how many nodes' shares are weighed one by one for RetryAfter; further ones are taken together.
const maxOutlooks = 32

// survey sums up what the cluster is known to have used, and keeps the parts for retryMillis.
type survey struct {
	used, prevUsed int64
	parts          [maxOutlooks]outlook
	count          int
	coarse         bool
}

func (s *survey) add(o outlook) {
	s.used += o.used
	s.prevUsed += o.prevUsed
	if s.count < maxOutlooks {
		s.parts[s.count] = o
		s.count++
		return
	}
	last := &s.parts[maxOutlooks-1]
	last.base += o.base
	last.net += o.net
	last.charge += o.charge
}

// surveyBucket fills s for window n. Own counters are exact.
func (l *ledger) surveyBucket(v *view, b *bucket, own *standing, n, limit int64, s *survey) {
	s.used, s.prevUsed, s.count, s.coarse = 0, 0, 0, false
	o := outlook{base: own.base, net: own.net, charge: own.charge}
	o.used, o.prevUsed = l.ownUsed(v, b, n)
	s.add(o)
	r := v.governing(b.span.begin(n))
	if r == nil {
		return
	}
	s.coarse = coarse(limit, r.size)
	for pos := range r.peers {
		// What a node that left had used its heir names with its own.
		if pos != r.self && !r.left(pos) {
			s.add(l.outlookOf(v, b, r, pos, n, limit))
		}
	}
	if b.alg == SlidingWindow {
		// A node that left the roster may have used some of the window before.
		before := v.governing(b.span.begin(n - 1))
		for i := range b.know {
			k := &b.know[i]
			if pos := before.position(k.peer); pos >= 0 && before.left(pos) {
				continue
			}
			if r.position(k.peer) < 0 && k.n == n-1 {
				s.prevUsed += k.used
			}
		}
	}
	for i := range b.know {
		k := &b.know[i]
		if r.position(k.peer) < 0 && k.n == n {
			s.used += k.used
			s.prevUsed += k.prevUsed
		}
	}
}

// remaining is how many units the cluster has left as far as this node knows.
func (s *survey) remaining(b *bucket, n, limit, ms int64) int64 {
	left := limit*grains - s.used
	if b.alg == SlidingWindow {
		left -= b.span.weigh(s.prevUsed, n, ms)
	}
	return max(left, 0) / grains
}

// retryMillis is the time at which cost grains would pass, if nobody else took any: by the weights of the shares
// as they stand, in this window and then in the next.
func (s *survey) retryMillis(b *bucket, n, cost, ms int64) int64 {
	end := b.span.end(n)
	if b.alg != SlidingWindow {
		return end
	}
	spare := func(at int64) int64 {
		var sum int64
		for i := range s.count {
			sum += s.free(&s.parts[i], b.span, n, at)
		}
		return sum
	}
	// A closed form would need each share's own rounding; bisection takes some 30 steps and only refusals pay it.
	if spare(end-1) >= cost {
		lo, hi := ms, end-1
		for lo < hi {
			mid := lo + (hi-lo)/2
			if spare(mid) >= cost {
				hi = mid
			} else {
				lo = mid + 1
			}
		}
		return hi
	}
	next := func(at int64) int64 {
		var sum int64
		for i := range s.count {
			p := &s.parts[i]
			// What was lent comes back with the new window; what was spent weighs in it.
			o := outlook{base: p.base, charge: max(p.net, 0)}
			sum += s.free(&o, b.span, n+1, at)
		}
		return sum
	}
	last := b.span.end(n+1) - 1
	if next(last) < cost {
		return last + 1
	}
	lo, hi := end, last
	for lo < hi {
		mid := lo + (hi-lo)/2
		if next(mid) >= cost {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return hi
}

// free is what a part could spend or give away at the time at.
func (s *survey) free(o *outlook, w span, n, at int64) int64 {
	g := o.spare(w, SlidingWindow, n, at)
	if s.coarse {
		return whole(g)
	}
	return g
}
