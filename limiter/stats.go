package limiter

// Stats is what the limiter counted since it was opened, for metrics.
type Stats struct {
	Admitted, Refused, Undecided uint64 // charges decided
	Waits, WaitTimeouts          uint64 // requests that waited for shares; of these, to the end of the time allowed
	Asks, AsksAnswered           uint64
	UnitsGiven, UnitsReceived    uint64
	PacketsReceived              uint64
	PacketsRefused               uint64 // not understood: unknown version, wrong length, values out of range
	PacketsForeign               uint64 // understood, but for another node, or not from the node it came from
	GossipPackets, GossipBytes   uint64
	OverflowDecisions            uint64 // made in an overflow cell, since the room for buckets was used up
	Buckets                      int
	OverflowCells                int
	RecordsUsed, Records         int   // slots of the records file
	MarkMillis                   int64 // Unix milliseconds that no decision may pass
	MarkFailing                  bool  // the mark cannot be written: decisions stop when the clock reaches it
	HorizonMillis                int64 // as last given by SetState
	RosterIndex                  uint64
	RosterNodes                  int
	Incarnation                  uint64
}

// Stats sums up the counters. It locks every shard in turn.
func (l *Limiter) Stats() Stats {
	led := l.ledger
	s := Stats{
		Waits: l.waits.Load(), WaitTimeouts: l.timeouts.Load(), PacketsReceived: l.packetsIn.Load(),
		PacketsRefused: led.refused.Load(), PacketsForeign: led.foreign.Load(),
		GossipPackets: l.gossipPackets.Load(), GossipBytes: l.gossipBytes.Load(),
		MarkMillis: led.markMillis(), MarkFailing: l.markLag.Load(), Incarnation: led.inc,
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
		given += sh.stats.given
		received += sh.stats.received
		s.OverflowDecisions += sh.stats.overflow
		s.Buckets += sh.live
		s.OverflowCells += len(sh.cells)
		sh.mu.Unlock()
	}
	s.UnitsGiven, s.UnitsReceived = given/grains, received/grains
	if led.records != nil {
		s.RecordsUsed, s.Records = led.records.inUse()
	}
	v := led.view.Load()
	s.HorizonMillis = v.horizon
	if n := len(v.rosters); n > 0 {
		s.RosterIndex, s.RosterNodes = v.rosters[n-1].index, len(v.rosters[n-1].peers)
	}
	return s
}

// PeerStats is what is known of another node from its packets.
type PeerStats struct {
	Node             string
	Incarnation      uint64 // 0: never heard
	ClockAheadMillis int64  // how far its clock was ahead of this node's when last heard, less the way of the packet
	Silent           bool   // it left asks unanswered and is not asked for now
}

// Peers lists the nodes that share by the newest rosters, but for this one.
func (l *Limiter) Peers() []PeerStats {
	to := l.ledger.audience()
	out := make([]PeerStats, len(to))
	mono := l.instant().mono
	for i, p := range to {
		peer := l.ledger.peers.at(p)
		out[i] = PeerStats{Node: peer.id, Incarnation: peer.inc.Load(), ClockAheadMillis: peer.ahead.Load(), Silent: peer.suspect(mono)}
	}
	return out
}
