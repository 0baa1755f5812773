package authapi

import (
	"context"
	"encoding/binary"
	"hash/maphash"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"sluice/raftfsm/state"
)

// The uses of a key are gathered in memory on each node and proposed in batches: a key about once a minute in the whole
// cluster, by whichever node is first. The others see that in the state and wait; useEvery, useSpread, useTick and a
// proposal together stay below the minute within which last_used_at is right.
const (
	useEvery   = 58 * time.Second // between two writes of a key
	useSpread  = time.Second      // nodes that find a key due at the same time are spread over this
	useOverdue = 59 * time.Second // what is not known elsewhere is written after this, whoever wrote last
	// useCounts is how long uses may wait of which only the number is not known yet: others write later uses of the key.
	useCounts = 10 * time.Minute
	useTick   = 500 * time.Millisecond
	useForget = 10 * time.Minute // an unused key's entry is dropped
	useSweep  = time.Minute
	useBatch  = 400 // keys in a proposal; some 110 bytes each
	// useRound bounds the proposals of a tick. What is more waits for the next one, at the cost of the minute.
	useRound  = 16
	useShards = 64
)

// keyUses are the uses of keys on this node. Noting the use of a key that was seen lately allocates nothing and takes a
// shard's read lock.
type keyUses struct {
	seed   maphash.Seed
	shards [useShards]useShard

	mu    sync.Mutex // one flush at a time; guards what follows
	held  []*keyUse  // with uses that are not written
	sweep int64      // when to look for entries to drop, Unix milliseconds
}

type useShard struct {
	mu      sync.RWMutex
	keys    map[string]*keyUse
	pending []*keyUse // with uses, and not in keyUses.held yet
}

type keyUse struct {
	id     string
	last   atomic.Int64 // Unix milliseconds
	first  atomic.Int64 // the same of the first use that is not written
	count  atomic.Int64 // uses that are not written
	listed atomic.Bool  // in pending or held
	// The address of the last use, or of one at the same moment. Both halves change under mu.
	high, low atomic.Uint64
	mu        sync.Mutex

	// Of the flush alone, Unix milliseconds.
	look    int64 // not before
	written int64
}

func newKeyUses() *keyUses {
	u := &keyUses{seed: maphash.MakeSeed()}
	for i := range u.shards {
		u.shards[i].keys = map[string]*keyUse{}
	}
	return u
}

// noteKeyUse notes that a key was used from an address.
func (s *Server) noteKeyUse(id string, from netip.Addr, now time.Time) {
	s.accounts.uses.note(id, from, now.UnixMilli())
}

func (u *keyUses) note(id string, from netip.Addr, now int64) {
	shard := &u.shards[maphash.String(u.seed, id)%useShards]
	shard.mu.RLock()
	k := shard.keys[id]
	shard.mu.RUnlock()
	if k == nil {
		shard.mu.Lock()
		if k = shard.keys[id]; k == nil {
			id = strings.Clone(id) // a part of the credential's text, which need not live as long
			k = &keyUse{id: id, look: now + u.spread(id, 0)}
			shard.keys[id] = k
		}
		shard.mu.Unlock()
	}
	k.last.Store(now)
	a := from.As16()
	high, low := binary.BigEndian.Uint64(a[:8]), binary.BigEndian.Uint64(a[8:])
	if (k.high.Load() != high || k.low.Load() != low) && k.mu.TryLock() {
		// Without the lock another use is being noted at this moment, and its address is as good.
		k.high.Store(high)
		k.low.Store(low)
		k.mu.Unlock()
	}
	if k.count.Add(1) == 1 {
		k.first.Store(now)
		if k.listed.CompareAndSwap(false, true) {
			shard.mu.Lock()
			shard.pending = append(shard.pending, k)
			shard.mu.Unlock()
		}
	}
}

// address is that of the last use.
func (k *keyUse) address() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var a [16]byte
	binary.BigEndian.PutUint64(a[:8], k.high.Load())
	binary.BigEndian.PutUint64(a[8:], k.low.Load())
	return netip.AddrFrom16(a).Unmap().String()
}

// spread is this node's part of useSpread for a key that was written at a time, in milliseconds.
func (u *keyUses) spread(id string, recorded int64) int64 {
	var h maphash.Hash
	h.SetSeed(u.seed)
	h.WriteString(id)
	maphash.WriteComparable(&h, recorded)
	return int64(h.Sum64() % uint64(useSpread.Milliseconds()))
}

// due is when a key's uses are to be written, given what the state says of it, in Unix milliseconds.
func (u *keyUses) due(k *keyUse, usage *state.KeyUsage, now int64) int64 {
	first := k.first.Load()
	recorded := max(k.written, usage.RecordedAt, usage.LastAt)
	if recorded > now+useEvery.Milliseconds() {
		recorded = k.written // by a clock that is far ahead: it must not silence the others
	}
	spread := u.spread(k.id, recorded)
	if k.last.Load() <= usage.LastAt {
		// Later uses are known already. Nodes that have news go first.
		return min(recorded+(useEvery+2*useSpread).Milliseconds()+spread, first+useCounts.Milliseconds())
	}
	return min(max(recorded+useEvery.Milliseconds(), first)+spread, max(first, usage.LastAt)+useOverdue.Milliseconds())
}

// flushKeyUses proposes the uses that are due, or all of them where all is set.
func (s *Server) flushKeyUses(ctx context.Context, all bool) {
	u := s.accounts.uses
	u.mu.Lock()
	defer u.mu.Unlock()
	now := s.clock().UnixMilli()
	u.collect(now)
	before := u.held
	defer func() { clear(before[min(len(u.held), len(before)):]) }()
	held := before
	u.held = held[:0]
	rounds := useRound
	var look []*keyUse
	for len(held) > 0 {
		k := held[0]
		held = held[1:]
		if k.look <= now || all {
			look = append(look, k)
		} else {
			u.held = append(u.held, k)
		}
		if len(look) < useBatch && len(held) > 0 {
			continue
		}
		if len(look) == 0 {
			return
		}
		// By id, as they lie on the disk.
		slices.SortFunc(look, func(a, b *keyUse) int { return strings.Compare(a.id, b.id) })
		if rounds == 0 && !all || !s.writeKeyUses(ctx, look, now, all) {
			u.held = append(append(u.held, look...), held...)
			return
		}
		rounds--
		look = look[:0]
	}
}

// collect takes over what was noted, and forgets keys that are not used any more.
func (u *keyUses) collect(now int64) {
	sweep := now >= u.sweep
	if sweep {
		u.sweep = now + useSweep.Milliseconds()
	}
	for i := range u.shards {
		shard := &u.shards[i]
		shard.mu.Lock()
		u.held = append(u.held, shard.pending...)
		clear(shard.pending)
		shard.pending = shard.pending[:0]
		if sweep {
			for id, k := range shard.keys {
				if !k.listed.Load() && now-k.last.Load() > useForget.Milliseconds() {
					delete(shard.keys, id)
				}
			}
		}
		shard.mu.Unlock()
	}
}

// writeKeyUses proposes those of keys that are due, and keeps the others held. ok is false where the state cannot be
// read or changed now; what was not written is then the caller's.
func (s *Server) writeKeyUses(ctx context.Context, keys []*keyUse, now int64, all bool) (ok bool) {
	u := s.accounts.uses
	ids := make([]string, len(keys))
	for i, k := range keys {
		ids[i] = k.id
	}
	usage, err := s.state.KeyUsage(ids...)
	if err != nil {
		s.log.Debug("uses of keys not recorded yet", "error", err, "keys", len(keys))
		return false
	}
	var due, wait []*keyUse
	uses := make([]state.KeyUses, 0, len(keys))
	for i, k := range keys {
		if at := u.due(k, &usage[i], now); at > now && !all {
			// Not much later, though: another node's write may make it urgent or needless.
			k.look = min(at, now+useEvery.Milliseconds())
			wait = append(wait, k)
			continue
		}
		due = append(due, k)
		n := k.count.Swap(0)
		uses = append(uses, state.KeyUses{KeyID: k.id, At: k.last.Load(), IP: k.address(), Count: n})
	}
	if len(due) > 0 {
		if _, err := s.propose(ctx, state.RecordKeyUse{Keys: uses}); err != nil {
			s.log.Debug("uses of keys not recorded yet", "error", err, "keys", len(due))
			for i, k := range due {
				k.count.Add(uses[i].Count)
			}
			return false
		}
	}
	for _, k := range due {
		k.written, k.look = now, now+useEvery.Milliseconds()
		k.listed.Store(false)
		if k.count.Load() > 0 && k.listed.CompareAndSwap(false, true) {
			wait = append(wait, k)
		}
	}
	u.held = append(u.held, wait...)
	return true
}
