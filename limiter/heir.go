package limiter

import (
	"bytes"
	"cmp"
	"maps"
	"slices"
	"sync/atomic"
)

// A node that leaves for good hands what it holds to an heir: a list of the net of each bucket in each window whose
// counters it has, and its mark. Once a log entry names the two and the list, the heir's base grows by the leaver's in
// the windows that the list covers, and its net by what the list says; in windows that begin above the leaver's mark,
// in which the leaver never acted, it grows by the whole base. In a window at or below the mark that the list does not
// cover nobody knows what the leaver did: it gives nothing.
//
// Lists are not merged: an heir that leaves in turn hands on the lists that it holds beside its own, since each covers other
// windows. What came by way of several nodes counts where each of their lists covers the window.

// inheritance is one list of what a leaver spent, as its heir keeps it. It does not change but for entries, which go when
// all their windows are gone.
type inheritance struct {
	leaver string
	// lostThrough: windows that begin at or below it the leaver had no counters of. ended is the greatest clock reading
	// that it acted on, and slack what its windows were kept for: what was gone by then is not covered.
	lostThrough, ended, slack int64
	until                     int64                       // when the window after the last of the entries ends
	entries                   atomic.Pointer[[]inherited] // sorted by bucket and window
}

// inherited is what a leaver's counters say of one bucket in one window, in grains.
type inherited struct {
	id        BucketID
	n         int64
	used, net int64
	limit     int64 // units, as last asked for there
	span      span
	alg       Algorithm
	cell      bool // of an overflow cell: it stands for the buckets that have no entry of their own
	lost      bool // the leaver could not prove what it did
}

func (e *inherited) compare(id *BucketID, n int64) int {
	return cmp.Or(bytes.Compare(e.id[:], id[:]), cmp.Compare(e.n, n))
}

// bequest is what one node hands over: its own list first, then those that it inherited.
type bequest struct {
	lists []*inheritance
}

func (q *bequest) of(leaver string) *inheritance {
	for _, i := range q.lists {
		if i.leaver == leaver {
			return i
		}
	}
	return nil
}

// covers says whether the leaver knew what it had done in a window.
func (i *inheritance) covers(w span, n int64) bool {
	return int64(w) >= recordedMillis && w.begin(n) > i.lostThrough && w.end(n)+int64(w)+i.slack > i.ended
}

// find looks for b's entry, or that of the overflow cell that stood for it.
func (i *inheritance) find(b *bucket, n int64) *inherited {
	list := i.entries.Load()
	if list == nil || len(*list) == 0 {
		return nil
	}
	at := func(id *BucketID) *inherited {
		k, ok := slices.BinarySearchFunc(*list, n, func(e inherited, n int64) int { return e.compare(id, n) })
		if !ok {
			return nil
		}
		return &(*list)[k]
	}
	if e := at(&b.id); e != nil {
		return e
	}
	cell := overflowID(&b.id, b.span, b.alg)
	return at(&cell)
}

// legacy is a leave whose leaver's shares have come to this node, by way of others or not.
type legacy struct {
	leaver uint16
	mark   int64
	list   *inheritance // nil where this node does not have it (any more)
	// next is the leave of the node that inherited here, where that one left as well; -1 where it is this node.
	next int
}

// estate is what a legacy brings in one window, in grains.
type estate struct{ base, net, used int64 }

// inherit says whether legacy k counts for b in window n, and what it spent there. Each node on the way must have known
// what it had done in that window: one that lost its counters may have spent what it inherited.
func (v *view) inherit(k int, b *bucket, n int64) (used, net int64, ok bool) {
	for at := k; at >= 0; at = v.legacies[at].next {
		g := &v.legacies[at]
		if b.span.begin(n) > g.mark {
			continue
		}
		if g.list == nil || !g.list.covers(b.span, n) {
			return 0, 0, false
		}
		e := g.list.find(b, n)
		if e != nil && e.lost {
			return 0, 0, false
		}
		if e != nil && at == k {
			used, net = e.used, e.net
		}
	}
	return used, net, true
}

// bring is inherit, or what a safeguard that is switched off makes of it.
func (l *ledger) bring(v *view, k int, b *bucket, n int64) (used, net int64, ok bool) {
	used, net, ok = v.inherit(k, b, n)
	if l.unsafeUncovered {
		ok = true
	}
	return used, net, ok
}

// estate sums up what this node inherited in window n, which r governs.
func (l *ledger) estate(v *view, r *rosterView, b *bucket, n, limit int64) (e estate) {
	// A cell stands for many buckets, each with entries of its own: it inherits nothing.
	if r == nil || len(r.heritage) == 0 || b.cell {
		return e
	}
	for _, h := range r.heritage {
		if used, net, ok := l.bring(v, h.legacy, b, n); ok {
			e.base += r.share(b.id.low(), h.slot, limit) * grains
			e.net += net
			e.used += used
		}
	}
	return e
}

// passage is what inherited shares change in the charge of window n, which r governs, for n−1, which before governs.
type passage struct {
	net int64 // spent in n−1
	// base here and in n−1 of the legacies that are known in n−1: what they grew by is reckoned together with this node's
	// own share.
	base, baseBefore int64
	// unknown is the greater of both bases of those that count in n and are not known in n−1; all that of all that count.
	unknown, all int64
}

func (l *ledger) passage(v *view, before, r *rosterView, b *bucket, n, limit int64) (p passage) {
	if b.cell || (before == nil || len(before.heritage) == 0) && (r == nil || len(r.heritage) == 0) {
		return p
	}
	low := b.id.low()
	for k := range v.legacies {
		was, is := before.inherits(k), r.inherits(k)
		if !was && !is {
			continue
		}
		baseBefore, base := before.share(low, before.slot(k), limit)*grains, r.share(low, r.slot(k), limit)*grains
		_, net, known := l.bring(v, k, b, n-1)
		_, _, counts := l.bring(v, k, b, n)
		if known && was {
			p.net += net
		}
		if counts {
			p.all += max(base, baseBefore)
		}
		switch {
		case known && (counts || base == 0):
			p.baseBefore += baseBefore
			p.base += base
		case counts:
			p.unknown += max(base, baseBefore)
		}
	}
	return p
}

// legacyActed says whether a leaver whose share counts in a window that r governs may have spent or given in window n.
func (l *ledger) legacyActed(v *view, r *rosterView, b *bucket, n int64) bool {
	if r == nil || b.cell {
		return false
	}
	for _, h := range r.heritage {
		for at := h.legacy; at >= 0; at = v.legacies[at].next {
			g := &v.legacies[at]
			if b.span.begin(n) > g.mark {
				continue
			}
			if g.list == nil || !g.list.covers(b.span, n) {
				return true
			}
			if e := g.list.find(b, n); e != nil {
				return true
			}
		}
	}
	return false
}

// heritage is a legacy that matters in the windows of a roster, and its leaver's place there, -1 for one that only
// others' shares came by way of.
type heritage struct{ legacy, slot int }

func (r *rosterView) inherits(legacy int) bool {
	return r != nil && slices.ContainsFunc(r.heritage, func(h heritage) bool { return h.legacy == legacy })
}

// slot is the place of a legacy's leaver, -1 where it has none.
func (r *rosterView) slot(legacy int) int {
	if r == nil {
		return -1
	}
	for _, h := range r.heritage {
		if h.legacy == legacy {
			return h.slot
		}
	}
	return -1
}

// bequeathed is the node that has a node's shares now, itself where it did not leave.
func bequeathed(leaves []Leave, node string) string {
	for range leaves { // heirs that left have heirs in turn; the bound is for a state that no log makes
		i := slices.IndexFunc(leaves, func(f Leave) bool { return f.Leaver == node })
		if i < 0 {
			break
		}
		node = leaves[i].Heir
	}
	return node
}

// takeOver fills in what the leaves say: which legacies this node has, and who holds whose share under each roster.
func (v *view) takeOver(leaves []Leave, peers *peerTable, self string, lists func(list [32]byte) *bequest) {
	if len(leaves) == 0 {
		return
	}
	v.leave = leaves[len(leaves)-1].Index
	index := map[string]int{} // leaver -> legacy
	for _, f := range leaves {
		if _, twice := index[f.Leaver]; twice || bequeathed(leaves, f.Leaver) != self {
			continue
		}
		p, ok := peers.add(f.Leaver)
		if !ok {
			continue
		}
		index[f.Leaver] = len(v.legacies)
		v.legacies = append(v.legacies, legacy{leaver: p, mark: f.MarkMillis, next: -1})
	}
	for _, f := range leaves {
		k, mine := index[f.Leaver]
		if !mine {
			continue
		}
		// The list is with the one that came to this node itself.
		last := f
		if next, ok := index[f.Heir]; ok {
			v.legacies[k].next = next
			for last.Heir != self {
				last = leaves[slices.IndexFunc(leaves, func(g Leave) bool { return g.Leaver == last.Heir })]
			}
		}
		if q := lists(last.List); q != nil {
			v.legacies[k].list = q.of(f.Leaver)
		}
	}
	for i := range v.rosters {
		v.rosters[i].takeOver(v, leaves, peers, self)
	}
}

// takeOver reckons who holds which shares of the roster, now that some of its nodes have left.
func (r *rosterView) takeOver(v *view, leaves []Leave, peers *peerTable, self string) {
	var holds [][]int
	for slot := range r.size {
		id := peers.at(r.peers[slot]).id
		heir := bequeathed(leaves, id)
		if heir == id {
			continue
		}
		p, ok := peers.add(heir)
		if !ok {
			continue // nobody believes in a share that nobody can be asked for
		}
		if holds == nil {
			holds = make([][]int, len(r.peers), len(r.peers)+len(leaves))
			for i := range holds {
				holds[i] = []int{i}
			}
		}
		holds[slot] = nil
		pos := slices.Index(r.peers, p)
		if pos < 0 {
			pos = len(r.peers)
			r.peers, r.hashes = append(r.peers, p), append(r.hashes, peers.at(p).hash)
			holds = append(holds, nil)
			if heir == self {
				r.self = pos
			}
		}
		holds[pos] = append(holds[pos], slot)
	}
	r.holds = holds
	for k := range v.legacies {
		// A leaver without a place may hold what it borrowed, or a share that came by way of it.
		slot := -1
		if pos := slices.Index(r.peers, v.legacies[k].leaver); pos >= 0 && pos < r.size {
			slot = pos
		}
		r.heritage = append(r.heritage, heritage{legacy: k, slot: slot})
		r.heritageMark = max(r.heritageMark, v.legacies[k].mark)
	}
}

// left says whether the node at pos handed its share to another.
func (r *rosterView) left(pos int) bool { return r.holds != nil && len(r.holds[pos]) == 0 }

// holding is what the node at pos holds of limit, in units: its own share and those of the nodes that left it theirs.
func (r *rosterView) holding(low uint64, pos int, limit int64) (sum int64) {
	if r == nil || pos < 0 {
		return 0
	}
	if r.holds == nil {
		return r.share(low, pos, limit)
	}
	for _, slot := range r.holds[pos] {
		sum += r.share(low, slot, limit)
	}
	return sum
}

// depart ends this node's spending and giving for good. When it returns no counter of a share changes any more.
func (l *ledger) depart() {
	for i := range l.shards {
		sh := &l.shards[i]
		sh.mu.Lock()
		sh.left = !l.unsafeStays
		sh.mu.Unlock()
	}
}

// parting is what depart leaves, but for the entries. applied is the newest leave that it reckons with: of a later one
// that makes this node an heir the lists know nothing.
func (l *ledger) parting() (own *inheritance, others []*inheritance, applied uint64) {
	own = &inheritance{leaver: l.self, lostThrough: min(l.lostThrough, l.startMark), slack: l.slackMillis}
	for i := range l.shards {
		sh := &l.shards[i]
		sh.mu.Lock()
		own.ended = max(own.ended, sh.maxMillis)
		sh.mu.Unlock()
	}
	v := l.view.Load()
	for k := range v.legacies {
		if list := v.legacies[k].list; list != nil {
			others = append(others, list)
		}
	}
	return own, others, v.leave
}

// partingEntries appends what one shard has to tell.
func (l *ledger) partingEntries(shard int, own *inheritance, out []inherited) []inherited {
	sh := &l.shards[shard]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.closed {
		return out // nothing is written any more: whoever asked has gone
	}
	add := func(b *bucket) {
		if b.alg != FixedWindow && b.alg != SlidingWindow {
			return
		}
		for i := range b.wins {
			w := &b.wins[i]
			if !own.covers(b.span, w.n) || !w.lost && w.used == 0 && w.net() == 0 {
				continue
			}
			out = append(out, inherited{id: b.id, n: w.n, used: w.used, net: w.net(), limit: b.limit, span: b.span, alg: b.alg, cell: b.cell, lost: w.lost})
		}
	}
	for _, b := range sh.slab {
		if b != nil && b.live {
			add(b)
		}
	}
	for at := sh.arena.next(0); at != 0; at = sh.arena.next(at + 1) {
		add(sh.open(at))
	}
	for _, b := range sh.cells { // the order decides nothing: entries are sorted by who takes them in
		add(b)
	}
	return out
}

// setEntries sorts and sets the entries.
func (i *inheritance) setEntries(list []inherited) {
	slices.SortFunc(list, func(a, b inherited) int { return a.compare(&b.id, b.n) })
	for k := range list {
		i.until = max(i.until, list[k].span.end(list[k].n)+int64(list[k].span))
	}
	i.entries.Store(&list)
}

// addList makes a list known to the next setState.
func (l *ledger) addList(list [32]byte, q *bequest) {
	l.listMu.Lock()
	defer l.listMu.Unlock()
	if l.lists == nil {
		l.lists = make(map[[32]byte]*bequest)
	}
	l.lists[list] = q
}

func (l *ledger) dropList(list [32]byte) {
	l.listMu.Lock()
	defer l.listMu.Unlock()
	delete(l.lists, list)
}

func (l *ledger) listCount() int {
	l.listMu.Lock()
	defer l.listMu.Unlock()
	return len(l.lists)
}

func (l *ledger) listNames() [][32]byte {
	l.listMu.Lock()
	defer l.listMu.Unlock()
	return slices.Collect(maps.Keys(l.lists)) // the order decides nothing
}

func (l *ledger) list(list [32]byte) *bequest {
	l.listMu.Lock()
	defer l.listMu.Unlock()
	return l.lists[list]
}

// forgetLists drops the entries of lists whose windows are all gone here.
func (l *ledger) forgetLists() {
	v := l.view.Load()
	now := int64(-1)
	for k := range v.legacies {
		list := v.legacies[k].list
		if list == nil || list.entries.Load() == nil {
			continue
		}
		for i := range l.shards {
			sh := &l.shards[i]
			sh.mu.Lock()
			if ms := sh.maxMillis; now < 0 || ms < now {
				now = ms
			}
			sh.mu.Unlock()
		}
		if list.until+l.slackMillis <= now {
			list.entries.Store(nil)
		}
	}
}

// announce lets the others hear what this node inherited: they know the leavers' counters, and not those that are asked
// from now on. Nodes that are new to the roster have heard nothing yet of what was spent before: they hear all of it.
func (l *ledger) announce(old, v *view) {
	for k := range v.legacies {
		list := v.legacies[k].list
		if list == nil || list.entries.Load() == nil || slices.ContainsFunc(old.legacies, func(g legacy) bool { return g.list == list }) {
			continue
		}
		for _, e := range *list.entries.Load() {
			if e.cell {
				continue
			}
			sh := &l.shards[shardOf(&e.id)]
			sh.mu.Lock()
			rule := Rule{Limit: e.limit, Window: int64(e.span) / 1000, Algorithm: e.alg}
			if b := l.obtain(sh, &e.id, rule, true); b != nil && !sh.closed && b.span == e.span && b.alg == e.alg {
				if b.limit == 0 {
					b.goBy(e.limit)
				}
				sh.touchCold(b)
			}
			sh.mu.Unlock()
		}
	}
	if !v.welcomes(old) {
		return
	}
	for i := range l.shards {
		sh := &l.shards[i]
		sh.mu.Lock()
		for _, b := range sh.slab {
			if b != nil && b.live && !sh.closed {
				sh.touchCold(b)
			}
		}
		sh.arena.markAll()
		sh.mu.Unlock()
	}
}

// welcomes says whether the newest roster has a node that the one before the change did not have.
func (v *view) welcomes(old *view) bool {
	if len(v.rosters) == 0 || len(old.rosters) == 0 {
		return false
	}
	r, before := &v.rosters[len(v.rosters)-1], &old.rosters[len(old.rosters)-1]
	if r.index == before.index {
		return false
	}
	for pos, p := range r.peers[:r.size] {
		if pos != r.self && !slices.Contains(before.peers[:before.size], p) {
			return true
		}
	}
	return false
}

// touchCold is touch where nothing changed that is near its limit.
func (sh *shard) touchCold(b *bucket) {
	if !b.dirty && !b.cell {
		sh.list(b, coldMark(b.alg))
	}
}

// coldMark is the kind of news of a bucket of which nothing is urgent.
func coldMark(alg Algorithm) int {
	if alg == TokenBucket {
		return markLevel
	}
	return markCold
}
