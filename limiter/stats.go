package limiter

import (
	"sync"
	"sync/atomic"
	"time"
)

// Stats is what the limiter counted since it was opened, for metrics.
type Stats struct {
	Admitted, Refused, Undecided uint64                      // charges decided
	Waits, WaitTimeouts          uint64                      // requests that waited for shares; of these, to the end of the time allowed
	WaitsSkipped                 uint64                      // requests decided at once instead, as the processor is too busy to wake them in time
	WaitTimes                    [len(WaitBounds) + 1]uint64 // of these, how many waited up to each of WaitBounds, and longer
	WaitTime                     time.Duration               // of all together
	Asks                         uint64                      // sent
	AsksUnanswered               uint64                      // of these, not answered in time
	AsksAnswered                 uint64                      // of other nodes, answered by this one
	Answers                      uint64                      // received, late ones too
	UnitsGiven, UnitsReceived    uint64
	PacketsReceived              uint64
	BytesReceived                uint64
	PacketsRefused               uint64 // not understood: unknown version, wrong length, values out of range
	PacketsForeign               uint64 // understood, but for another node, or not from the node it came from
	GossipPackets, GossipBytes   uint64 // counters sent
	TransferPackets              uint64 // asks and answers sent
	TransferBytes                uint64
	OverflowDecisions            uint64 // made in an overflow cell, since the room for buckets was used up
	OverflowFull                 uint64 // decisions without even such a cell
	Buckets                      int
	OverflowCells                int
	RecordsUsed, Records         int   // slots of the records file
	MarkMillis                   int64 // Unix milliseconds that no decision may pass
	MarkFailing                  bool  // the mark cannot be written: decisions stop when the clock reaches it
	HorizonMillis                int64 // as last given by SetState
	RosterIndex                  uint64
	RosterNodes                  int
	Incarnation                  uint64
	Leaving                      bool // this node leaves for good: it decides nothing any more
	Inherited                    int  // nodes whose shares this one has now, in windows that may be open
	Audit                        AuditStats
}

// AuditStats is what this node's auditor found out about windows that this node knows of (audit.go). Several nodes may find
// the same.
type AuditStats struct {
	Overadmitted uint64 // units spent beyond limits
	Windows      uint64 // windows that ended and were summed up
	Skipped      uint64 // windows that ended and could not be
	Contested    uint64 // of Windows, those in which this node refused somebody
	Unused       uint64 // millionths of their limits that these left unused, summed up
	// RecentContested and RecentUnused are the same since five to ten minutes ago.
	RecentContested, RecentUnused uint64
}

// WaitBounds are the upper bounds of Stats.WaitTimes.
var WaitBounds = [...]time.Duration{
	250 * time.Microsecond, 500 * time.Microsecond, time.Millisecond, 2 * time.Millisecond, 4 * time.Millisecond,
	6 * time.Millisecond, 10 * time.Millisecond, 15 * time.Millisecond, 20 * time.Millisecond, 30 * time.Millisecond,
}

// waitTimes is a histogram of waits.
type waitTimes struct {
	counts [len(WaitBounds) + 1]atomic.Uint64
	nanos  atomic.Int64
}

func (w *waitTimes) observe(d time.Duration) {
	i := 0
	for i < len(WaitBounds) && d > WaitBounds[i] {
		i++
	}
	w.counts[i].Add(1)
	w.nanos.Add(int64(d))
}

// recent tells what was added of late: since it was last turned, or the time before.
type recent struct {
	mu             sync.Mutex
	turned         int64 // monotonic
	last, previous AuditStats
}

// recentNanos is how often recent is turned.
const recentNanos = int64(300e9)

func (r *recent) turn(mono int64, now func() AuditStats) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if mono-r.turned < recentNanos {
		return
	}
	r.turned, r.previous, r.last = mono, r.last, now()
}

func (r *recent) since(a *AuditStats) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a.RecentContested, a.RecentUnused = a.Contested-r.previous.Contested, a.Unused-r.previous.Unused
}

// Stats sums up the counters. It locks every shard in turn.
func (l *Limiter) Stats() Stats {
	led := l.ledger
	s := Stats{
		Waits: l.waits.Load(), WaitTimeouts: l.timeouts.Load(), WaitsSkipped: l.waitsSkipped.Load(), PacketsReceived: l.packetsIn.Load(),
		WaitTime:      time.Duration(l.waitTimes.nanos.Load()),
		BytesReceived: l.bytesIn.Load(), PacketsRefused: led.refused.Load(), PacketsForeign: led.foreign.Load(),
		GossipPackets: l.gossipPackets.Load(), GossipBytes: l.gossipBytes.Load(),
		TransferPackets: l.transferPackets.Load(), TransferBytes: l.transferBytes.Load(),
		MarkMillis: led.markMillis(), MarkFailing: l.markLag.Load(), Incarnation: led.inc,
	}
	for i := range s.WaitTimes {
		s.WaitTimes[i] = l.waitTimes.counts[i].Load()
	}
	var given, received uint64
	for i := range led.shards {
		sh := &led.shards[i]
		sh.mu.Lock()
		s.Admitted += sh.stats.admitted
		s.Refused += sh.stats.refused
		s.Undecided += sh.stats.undecided
		s.Asks += sh.stats.asks
		s.AsksAnswered += sh.stats.asksAnswered
		s.AsksUnanswered += sh.stats.asksUnanswered
		s.Answers += sh.stats.answers
		given += sh.stats.given
		received += sh.stats.received
		s.OverflowDecisions += sh.stats.overflow
		s.OverflowFull += sh.stats.cellsFull
		s.Audit.add(&sh.stats.audit)
		s.Buckets += sh.live
		s.OverflowCells += len(sh.cells)
		sh.mu.Unlock()
	}
	s.UnitsGiven, s.UnitsReceived = given/grains, received/grains
	l.recent.since(&s.Audit)
	if led.records != nil {
		s.RecordsUsed, s.Records = led.records.usage()
	}
	v := led.view.Load()
	s.HorizonMillis = v.horizon
	s.Leaving, s.Inherited = l.left.Load(), len(v.legacies)
	if n := len(v.rosters); n > 0 {
		s.RosterIndex, s.RosterNodes = v.rosters[n-1].index, len(v.rosters[n-1].peers)
	}
	return s
}

func (a *AuditStats) add(s *auditStats) {
	a.Overadmitted += (s.over + grains - 1) / grains
	a.Windows += s.windows
	a.Skipped += s.vague
	a.Contested += s.contested
	a.Unused += s.unused
}

// audited is what the auditor found so far.
func (l *Limiter) audited() (a AuditStats) {
	for i := range l.ledger.shards {
		sh := &l.ledger.shards[i]
		sh.mu.Lock()
		a.add(&sh.stats.audit)
		sh.mu.Unlock()
	}
	return a
}

// PeerStats is what is known of another node from its packets.
type PeerStats struct {
	Node             string
	Incarnation      uint64 // 0: never heard
	ClockAheadMillis int64  // how far its clock was ahead of this node's when last heard, less the way of the packet
	Silent           bool   // it left asks unanswered and is not asked for now
	// Unheard is how long ago it was last heard, or, if never, the limiter was opened. Every node says something at least
	// every 200 ms, and with more than 16 others every second.
	Unheard time.Duration
}

// Peers lists the nodes that share by the newest rosters, but for this one.
func (l *Limiter) Peers() []PeerStats {
	to := l.ledger.audience()
	out := make([]PeerStats, len(to))
	mono := l.instant().mono
	for i, p := range to {
		peer := l.ledger.peers.at(p)
		out[i] = PeerStats{
			Node: peer.id, Incarnation: peer.inc.Load(), ClockAheadMillis: peer.ahead.Load(), Silent: peer.suspect(mono),
			Unheard: time.Duration(max(mono-peer.heardAt.Load(), 0)),
		}
	}
	return out
}
