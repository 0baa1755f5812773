package node

import (
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// clockSamples are kept of each peer; the one with the shortest round trip is believed. Few, so that a clock that is
	// stepped is found out after as many pings.
	clockSamples = 3
	// clockSampleLife is how long a sample counts: a peer is pinged every few seconds.
	clockSampleLife = time.Minute
)

// clocks measures how far this node's clock is from its peers', from the replies to hellos and to gossip's pings. Safe for
// concurrent use.
type clocks struct {
	now func() time.Time

	mu    sync.Mutex
	peers map[string][]clockSample
}

// clockSample is one measurement. The true offset lies within doubt of offset.
type clockSample struct {
	at     time.Time // own clock, with its monotonic part
	offset time.Duration
	doubt  time.Duration
}

func newClocks(now func() time.Time) *clocks {
	return &clocks{now: now, peers: make(map[string][]clockSample)}
}

// observe notes a reply that said theirs and took rtt.
func (c *clocks) observe(peer string, theirs time.Time, rtt time.Duration) {
	now := c.now()
	s := clockSample{at: now, offset: theirs.Sub(now.Round(0).Add(-rtt / 2)), doubt: rtt / 2}
	c.mu.Lock()
	defer c.mu.Unlock()
	samples := append(c.peers[peer], s)
	if len(samples) > clockSamples {
		samples = slices.Delete(samples, 0, len(samples)-clockSamples)
	}
	c.peers[peer] = samples
}

// forget drops a peer that is gone.
func (c *clocks) forget(peer string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.peers, peer)
}

// skew is how far this node's clock is ahead of (positive) or behind the median of the cluster's clocks, its own among
// them, by no more than the measurements prove: what the round trips leave in doubt is taken off. peers counts the
// others that it rests on.
func (c *clocks) skew() (skew time.Duration, peers int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	best := []clockSample{{}} // its own
	for _, samples := range c.peers {
		if b, ok := bestSample(samples, now); ok {
			best = append(best, b)
		}
	}
	slices.SortFunc(best, func(a, b clockSample) int { return int(max(-1, min(1, a.offset-b.offset))) })
	n := len(best)
	lower, upper := best[(n-1)/2], best[n/2]
	median := (lower.offset + upper.offset) / 2
	doubt := max(lower.doubt, upper.doubt)
	switch {
	case median > doubt:
		return -(median - doubt), n - 1
	case median < -doubt:
		return -(median + doubt), n - 1
	}
	return 0, n - 1
}

// bestSample is the sample with the least doubt, as of now; ok is false where all are too old.
func bestSample(samples []clockSample, now time.Time) (best clockSample, ok bool) {
	for _, s := range samples {
		if now.Sub(s.at) > clockSampleLife || ok && s.doubt > best.doubt {
			continue
		}
		best, ok = s, true
	}
	if ok {
		// Where this node's own clock was stepped since, the offset moved by as much.
		stepped := now.Round(0).Sub(best.at.Round(0)) - now.Sub(best.at)
		best.offset -= stepped
	}
	return best, ok
}

// peerOffset is how far a peer's clock is ahead of this node's.
type peerOffset struct {
	peer   string
	offset time.Duration
}

// offsets are the peers' whose clocks were measured lately, by peer.
func (c *clocks) offsets() []peerOffset {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	var out []peerOffset
	for peer, samples := range c.peers {
		if s, ok := bestSample(samples, now); ok {
			out = append(out, peerOffset{peer, s.offset})
		}
	}
	slices.SortFunc(out, func(a, b peerOffset) int { return strings.Compare(a.peer, b.peer) })
	return out
}
