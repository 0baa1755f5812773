package limiter

import (
	"sync"
	"sync/atomic"
)

// maxPeers bounds the nodes ever seen in one process's life, so that an index fits 16 bits.
const maxPeers = 1 << 14

// peer is another node (or this one) as far as messages go. Fields are atomic: shards share it.
type peer struct {
	id   string
	hash uint64
	// inc is the newest incarnation heard of.
	inc atomic.Uint64
	// unanswered counts asks that went without an answer since the peer was last heard; suspectUntil is the monotonic
	// time until which it is not asked, so that a dead node costs a few waits a second and not one for each request.
	unanswered   atomic.Int32
	suspectUntil atomic.Int64
	// ahead is by how many milliseconds its clock was ahead of ours when it was last heard, the way of the packet left
	// out. It decides nothing but whom to ask and when.
	ahead atomic.Int64
	// heardAt is the monotonic time of the last packet, 0 for none; toldAt that of the last news to it, the gossip
	// goroutine's own.
	heardAt atomic.Int64
	toldAt  int64
	// bound is what is known of its monotonic clock; wantClock says that it speaks of token buckets, clockAskedAt when it was
	// asked last, the gossip goroutine's own.
	bound        atomic.Pointer[clockBound]
	wantClock    atomic.Bool
	clockAskedAt int64
}

const (
	heardStep    = int64(10e6) // heardAt is no finer, so that a stream of packets does not write it each time
	suspectAfter = 3
	suspectNanos = int64(100e6) // doubled by each further silence, up to eight times
)

// heard notes a sign of life.
func (p *peer) heard(inc uint64, ahead, mono int64) {
	if mono-p.heardAt.Load() > heardStep {
		p.heardAt.Store(mono)
	}
	if ahead != p.ahead.Load() {
		p.ahead.Store(ahead)
	}
	for {
		old := p.inc.Load()
		if inc <= old || p.inc.CompareAndSwap(old, inc) {
			break
		}
	}
	if p.unanswered.Load() != 0 {
		p.unanswered.Store(0)
	}
	if p.suspectUntil.Load() != 0 {
		p.suspectUntil.Store(0)
	}
}

// silent notes an ask that went without an answer.
func (p *peer) silent(mono int64) {
	if n := p.unanswered.Add(1); n >= suspectAfter {
		p.suspectUntil.Store(mono + suspectNanos<<min(n-suspectAfter, 3))
	}
}

func (p *peer) suspect(mono int64) bool {
	u := p.suspectUntil.Load()
	return u != 0 && mono < u
}

// peerTable gives node ids small numbers. Reads take no lock.
type peerTable struct {
	list atomic.Pointer[[]*peer]

	mu    sync.Mutex
	index sync.Map // string -> uint16
}

func newPeerTable() *peerTable {
	t := &peerTable{}
	t.list.Store(&[]*peer{})
	return t
}

func (t *peerTable) at(i uint16) *peer { return (*t.list.Load())[i] }

func (t *peerTable) find(id string) (uint16, bool) {
	v, ok := t.index.Load(id)
	if !ok {
		return 0, false
	}
	return v.(uint16), true
}

func (t *peerTable) add(id string) (uint16, bool) {
	if i, ok := t.find(id); ok {
		return i, true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if i, ok := t.find(id); ok {
		return i, true
	}
	old := *t.list.Load()
	if len(old) >= maxPeers {
		return 0, false
	}
	list := make([]*peer, len(old)+1)
	copy(list, old)
	i := uint16(len(old))
	list[i] = &peer{id: id, hash: nodeHash(id)}
	t.list.Store(&list)
	t.index.Store(id, i)
	return i, true
}
