package authapi

import (
	"context"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"sluice/raftfsm/state"
)

// A key's last use is noted in memory and proposed in batches. touchEvery and touchFlush together stay below the minute
// within which last_used_at is right.
const (
	touchEvery  = 10 * time.Second // uses closer together than this are one
	touchFlush  = 20 * time.Second // between proposals
	touchForget = 10 * time.Minute // an unused key's entry is dropped
	touchBatch  = 500              // keys in a proposal
	touchShards = 64
)

// touches are the last uses of keys on this node. Noting the use of a key that was seen lately allocates nothing and
// takes a shard's read lock.
type touches struct {
	seed   maphash.Seed
	shards [touchShards]touchShard
	next   atomic.Int64 // Unix milliseconds of the next flush
}

type touchShard struct {
	mu   sync.RWMutex
	keys map[string]*touch
}

type touch struct {
	last  atomic.Int64 // Unix milliseconds
	dirty atomic.Bool  // last is not proposed yet
}

func newTouches() *touches {
	t := &touches{seed: maphash.MakeSeed()}
	for i := range t.shards {
		t.shards[i].keys = map[string]*touch{}
	}
	return t
}

// touchKey notes that a key was used.
func (s *Server) touchKey(id string, now time.Time) { s.accounts.touches.note(id, now.UnixMilli()) }

func (t *touches) note(id string, nowMillis int64) {
	shard := &t.shards[maphash.String(t.seed, id)%touchShards]
	shard.mu.RLock()
	k := shard.keys[id]
	shard.mu.RUnlock()
	if k == nil {
		shard.mu.Lock()
		if k = shard.keys[id]; k == nil {
			k = &touch{}
			shard.keys[id] = k
		}
		shard.mu.Unlock()
	}
	if last := k.last.Load(); nowMillis-last >= touchEvery.Milliseconds() && k.last.CompareAndSwap(last, nowMillis) {
		k.dirty.Store(true)
	}
}

// collect takes what is to be proposed and forgets keys that are not used any more.
func (t *touches) collect(nowMillis int64) []state.KeyUse {
	var uses []state.KeyUse
	for i := range t.shards {
		shard := &t.shards[i]
		shard.mu.Lock()
		for id, k := range shard.keys {
			switch {
			case k.dirty.Swap(false):
				uses = append(uses, state.KeyUse{KeyID: id, At: k.last.Load()})
			case nowMillis-k.last.Load() > touchForget.Milliseconds():
				delete(shard.keys, id)
			}
		}
		shard.mu.Unlock()
	}
	return uses
}

// restore marks uses that could not be proposed.
func (t *touches) restore(uses []state.KeyUse) {
	for _, u := range uses {
		shard := &t.shards[maphash.String(t.seed, u.KeyID)%touchShards]
		shard.mu.RLock()
		if k := shard.keys[u.KeyID]; k != nil {
			k.dirty.Store(true)
		}
		shard.mu.RUnlock()
	}
}

// flushTouches proposes the uses since the last time, where it is time or where all is set.
func (s *Server) flushTouches(ctx context.Context, all bool) {
	t := s.accounts.touches
	now := s.clock().UnixMilli()
	if now < t.next.Load() && !all {
		return
	}
	t.next.Store(now + touchFlush.Milliseconds())
	for uses := t.collect(now); len(uses) > 0; {
		n := min(len(uses), touchBatch)
		if _, err := s.propose(ctx, state.TouchKeys{Keys: uses[:n]}); err != nil {
			s.log.Debug("last uses of keys not recorded yet", "error", err, "keys", len(uses))
			t.restore(uses)
			return
		}
		uses = uses[n:]
	}
}

// flushLoop proposes what this node gathered, until ctx ends, and then once more.
func (s *Server) flushLoop(ctx context.Context) {
	const bound, last = 10 * time.Second, 2 * time.Second
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			final, cancel := context.WithTimeout(context.Background(), last)
			defer cancel()
			s.flushFailures(final, true)
			s.flushTouches(final, true)
			return
		case <-tick.C:
			round, cancel := context.WithTimeout(ctx, bound)
			s.flushFailures(round, false)
			s.flushTouches(round, false)
			cancel()
		}
	}
}
