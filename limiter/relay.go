package limiter

import "sync"

// News in large clusters. Up to directMost other nodes each is told directly. Beyond, the roster falls into segments of
// about √N nodes: a node tells those of its own segment, and one node of each other segment, another one each time,
// which passes it on to its own. So a node sends some 2·√N packets in an interval instead of N, each carries what many
// nodes had to say, and nothing reaches a node twice. What is lost on the way is made good by the next change.
const (
	directMost = 16
	// aliveNanos is how lately a node was heard that is trusted to pass something on.
	aliveNanos = int64(3e9)
	// maxPassing bounds what waits to be passed on, in bytes.
	maxPassing = 1 << 16
)

// relay holds what others gave to pass on: counters, and levels of token buckets.
type relay struct {
	news, levels relayQueue

	// What follows is the caller of gossip's own, one goroutine.
	turn   uint64
	credit int // bytes that may still be sent to all together, and
	own    int // of own news to each; both may be in debt by a packet
	packet []byte
}

// relayQueue holds groups of packets of a type, in the order in which they came.
type relayQueue struct {
	kind   uint8
	mu     sync.Mutex
	groups []byte
	ends   []int // of each group in groups

	// As above.
	sending []byte
	cuts    []int
}

// gossip sends news and passes on what others told, at most budget bytes in the long run if called once an interval. send
// must not keep packet; no lock is held.
func (l *ledger) gossip(t instant, budget int, send func(peer uint16, packet []byte)) {
	to := l.audience()
	if len(to) == 0 {
		return // what there is to tell waits for somebody to join
	}
	l.relay.turn++
	l.askClocks(t, to, send)
	v := l.view.Load()
	if len(to) <= directMost {
		each := max(budget/len(to), 1)
		l.relay.own = min(l.relay.own+each, each)
		tell := func(packet []byte) {
			for _, p := range to {
				send(p, packet)
			}
		}
		l.relay.own -= l.newsOfTokens(t, l.relay.own/2, 0, tell)
		l.relay.own -= l.news(t, l.relay.own, typeNews, tell)
		return
	}
	r := &v.rosters[len(v.rosters)-1]
	mates, relays := l.routes(r, to, t.mono)
	// Of each byte of own news mates and relays get a copy from here, and all others one from the relays: as much as this
	// node has to pass on for them.
	each := max(budget/(len(to)+len(relays)), 1)
	l.relay.own = min(l.relay.own+each, each)
	l.relay.credit = min(l.relay.credit+max(budget, 1), max(budget, 1))
	l.relay.news.take()
	l.relay.levels.take()
	tell := func(q *relayQueue) func(packet []byte) {
		return func(packet []byte) {
			for _, p := range relays {
				send(p, packet)
				l.relay.credit -= len(packet)
			}
			q.sending = append(q.sending, packet[relayLead:]...)
			q.cuts = append(q.cuts, len(q.sending))
		}
	}
	l.relay.own -= l.newsOfTokens(t, l.relay.own/2, 1, tell(&l.relay.levels))
	l.relay.own -= l.news(t, l.relay.own, typeRelay, tell(&l.relay.news))
	// Neither kind keeps the other from being passed on: levels get half, and what counters leave.
	rest := l.relay.credit / 2
	l.relay.credit -= rest
	l.passOn(t, &l.relay.levels, mates, send)
	l.relay.credit += rest
	l.passOn(t, &l.relay.news, mates, send)
	l.passOn(t, &l.relay.levels, mates, send)
	l.relay.news.shed()
	l.relay.levels.shed()
}

// signsOfLife tells those that were told nothing lately that this node lives. In large clusters each hears most nodes
// through others, so every one would be due all the time.
func (l *ledger) signsOfLife(t instant, send func(peer uint16, packet []byte)) {
	to := l.audience()
	quiet := int64(signOfLife)
	if len(to) > directMost {
		quiet = int64(signOfLifeLarge)
	}
	var packet []byte
	for _, p := range to {
		if t.mono-l.peers.at(p).toldAt < quiet {
			continue
		}
		if packet == nil {
			packet = l.noNews(t)
		}
		send(p, packet)
	}
}

// routes are the nodes of this node's own segment of r, and one of each other segment. Nodes of to that r does not list
// are told like mates.
func (l *ledger) routes(r *rosterView, to []uint16, mono int64) (mates, relays []uint16) {
	size := segmentSize(len(r.peers))
	for first := 0; first < len(r.peers); first += size {
		segment := r.peers[first:min(first+size, len(r.peers))]
		if r.self >= first && r.self < first+len(segment) {
			for _, p := range segment {
				if p != r.peers[r.self] {
					mates = append(mates, p)
				}
			}
			continue
		}
		// Nodes begin at different places, so that one is not everybody's.
		start := int((l.relay.turn + uint64(max(r.self, 0))) % uint64(len(segment)))
		pick := segment[start]
		for i := range segment {
			p := segment[(start+i)%len(segment)]
			if at := l.peers.at(p).heardAt.Load(); at != 0 && mono-at < aliveNanos {
				pick = p
				break
			}
		}
		relays = append(relays, pick)
	}
	for _, p := range to {
		if r.position(p) < 0 {
			mates = append(mates, p)
		}
	}
	return mates, relays
}

// segmentSize is ⌈√n⌉.
func segmentSize(n int) int {
	size := 1
	for size*size < n {
		size++
	}
	return size
}

// take moves what was given to pass on to where the caller of gossip finds it.
func (r *relayQueue) take() {
	r.mu.Lock()
	defer r.mu.Unlock()
	base := len(r.sending)
	r.sending = append(r.sending, r.groups...)
	for _, end := range r.ends {
		r.cuts = append(r.cuts, base+end)
	}
	r.groups, r.ends = r.groups[:0], r.ends[:0]
}

// give takes in one group to pass on; one too many is dropped, like a packet lost.
func (r *relayQueue) give(group []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.groups)+len(group) > maxPassing {
		return
	}
	r.groups = append(r.groups, group...)
	r.ends = append(r.ends, len(r.groups))
}

// passOn sends as many groups to the mates as the credit allows.
func (l *ledger) passOn(t instant, r *relayQueue, mates []uint16, send func(peer uint16, packet []byte)) {
	from, done := 0, 0
	for done < len(r.cuts) && l.relay.credit > 0 {
		p := append(appendHeader(l.relay.packet[:0], header{r.kind, l.selfHash, l.inc, l.seq.Add(1), t.ms}), 0, 0)
		for done < len(r.cuts) && p[relayLead-1] < maxEntries && len(p)+r.cuts[done]-from <= MaxPacket {
			p = append(p, r.sending[from:r.cuts[done]]...)
			p[relayLead-1]++
			from = r.cuts[done]
			done++
		}
		l.relay.packet = p
		for _, peer := range mates {
			send(peer, p)
			l.relay.credit -= len(p)
		}
	}
	r.drop(from, done)
}

// shed drops what waits beyond maxPassing bytes, the oldest first.
func (r *relayQueue) shed() {
	from, done := 0, 0
	for done < len(r.cuts) && len(r.sending)-from > maxPassing {
		from = r.cuts[done]
		done++
	}
	if done > 0 {
		r.drop(from, done)
	}
}

// drop takes off the first done groups, of from bytes.
func (r *relayQueue) drop(from, done int) {
	r.sending = append(r.sending[:0], r.sending[from:]...)
	left := r.cuts[:0]
	for _, cut := range r.cuts[done:] {
		left = append(left, cut-from)
	}
	r.cuts = left
}

// onRelay takes in what the sender says of buckets of other nodes, or of its own. It reports whether the packet was
// well-formed; nothing of one that is not is taken in.
func (l *ledger) onRelay(t instant, from string, h header, r reader) bool {
	pass := r.byte()
	count := int(r.byte())
	check := r
	for range count {
		check.group(func(header, *bucketName, *counters) {})
	}
	if !check.done() || pass > 1 {
		return false
	}
	if _, ok := l.sender(t, from, h, l.selfHash); !ok {
		return true
	}
	v := l.view.Load()
	for range count {
		rest := r.b
		var peer uint16
		known := false
		g := r.group(func(g header, name *bucketName, c *counters) {
			if peer, known = v.find(g.sender); known && g.sender != l.selfHash {
				c.n, c.inc, c.seq = name.n, g.inc, g.seq
				l.hear(t, peer, g, name, *c)
			}
		})
		if pass == 1 && known && g.sender != l.selfHash {
			l.relay.news.give(rest[:len(rest)-len(r.b)])
		}
	}
	return true
}

// find is the peer with a hash by the newest rosters.
func (v *view) find(hash uint64) (uint16, bool) {
	for i := len(v.rosters) - 1; i >= max(len(v.rosters)-2, 0); i-- {
		for pos, h := range v.rosters[i].hashes {
			if h == hash {
				return v.rosters[i].peers[pos], true
			}
		}
	}
	return 0, false
}
