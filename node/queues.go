package node

import (
	"fmt"
	"sync/atomic"

	"sluice/authapi"
)

// maxAdminConns bounds the connections to the admin listener: operators, and whoever scrapes.
const maxAdminConns = 256

// slots bounds how many do something at the same time, and counts who was turned away.
type slots struct {
	taken    chan struct{}
	rejected atomic.Uint64
}

func newSlots(n int) *slots { return &slots{taken: make(chan struct{}, n)} }

// take takes one, for which the caller gives one back; false where none is free.
func (s *slots) take() bool {
	select {
	case s.taken <- struct{}{}:
		return true
	default:
		s.rejected.Add(1)
		return false
	}
}

func (s *slots) release() { <-s.taken }

func (s *slots) count(name string) authapi.QueueCount {
	return authapi.QueueCount{Name: name, Length: int64(len(s.taken)), Max: int64(cap(s.taken)), Rejected: s.rejected.Load()}
}

// queues lists all that waits for something on this node, and the bounds of it. docs/resources.md has what happens beyond each.
func (n *Node) queues() []authapi.QueueCount {
	list := []authapi.QueueCount{
		n.proposer.own.count("proposals"), n.proposer.foreign.count("forwarded"), n.calls.count("peer_calls"), n.backingUp.count("backups"), n.importing.count("imports"),
		n.barriers.count(),
		{Name: "gossip", Length: int64(len(n.gossip.inbox)), Max: int64(cap(n.gossip.inbox)), Rejected: uint64(n.gossip.dropped.Load())},
	}
	return append(list, n.api.Queues()...)
}

func (b *barriers) count() authapi.QueueCount {
	b.mu.Lock()
	defer b.mu.Unlock()
	return authapi.QueueCount{Name: "barriers", Length: int64(len(b.waiting)), Max: maxBarrierWaiters, Rejected: b.rejected}
}

func ofQueues(read func(authapi.QueueCount) float64) func(*scrape, *samples) {
	return func(s *scrape, out *samples) {
		for _, q := range s.n.queues() {
			out.add("", fmt.Sprintf("queue=%q", q.Name), read(q))
		}
	}
}

var queueMetrics = []metric{
	{"sluice_queue_length", kindGauge, "What waits in a queue, or is being worked on where it has no queue before it.", ofQueues(func(q authapi.QueueCount) float64 { return float64(q.Length) })},
	{"sluice_queue_max", kindGauge, "How much may.", ofQueues(func(q authapi.QueueCount) float64 { return float64(q.Max) })},
	{"sluice_queue_rejected_total", kindCounter, "What was turned away since it was full.", ofQueues(func(q authapi.QueueCount) float64 { return float64(q.Rejected) })},
}
