package node

import (
	"context"
	"time"

	"github.com/hashicorp/raft"
)

// cleaner removes members that have been dead for long, as the leader: until then they count for the quorum, and each makes the
// next failure worse. It acts on what this node saw itself, gossip and Raft together, and does nothing where that would be of
// no use: with too few voters left, or without a majority that answers.
type cleaner struct {
	after     time.Duration // 0: never
	minVoters int
	dead      func(id string) time.Duration // for how long neither gossip nor Raft has heard of a node
}

// next is the member to remove now; ok is false for none.
func (c *cleaner) next(self string, servers []member) (target member, silent time.Duration, ok bool) {
	if c.after <= 0 {
		return member{}, 0, false
	}
	voters, answering := 0, 0
	for _, m := range servers {
		if !m.Voter {
			continue
		}
		voters++
		if m.ID == self || c.dead(m.ID) == 0 {
			answering++
		}
	}
	for _, m := range servers {
		silent := c.dead(m.ID)
		switch {
		case m.ID == self || silent < c.after:
		case !m.Voter:
			return m, silent, true
		case voters-1 >= c.minVoters && answering >= (voters-1)/2+1:
			return m, silent, true
		}
	}
	return member{}, 0, false
}

// cleanUp removes one dead member, if there is one: a round is soon over, and the next looks anew, also where this fails.
func (o *office) cleanUp(ctx context.Context, servers []member) {
	target, silent, ok := o.cleaner.next(o.self, servers)
	if !ok {
		return
	}
	if err := o.k.await(ctx, o.k.raft.RemoveServer(raft.ServerID(target.ID), 0, enqueueTimeout)); err != nil {
		if ctx.Err() == nil && o.once.allow("clean up", 10*time.Second) {
			o.log.Warn("dead node not removed", "dead", target.ID, "error", err)
		}
		return
	}
	o.k.cleaned.Add(1)
	o.log.Warn("dead node removed", "removed", target.ID, "voter", target.Voter, "silent", silent.Round(time.Second).String(), "after", o.cleaner.after.String())
	o.record(ctx, operatorEvent("cluster.node_removed", target.ID, o.now(), "how", "dead", "silent", silent.Round(time.Second).String()))
}

// deadFor is how long neither gossip nor Raft has heard of a member, 0 where one of them does. Gossip's own count goes on where
// the leadership changes; Raft's begins with it.
func (n *Node) deadFor(k *consensus, id string) time.Duration {
	if _, silent := k.silentSince(id); !silent {
		return 0
	}
	return n.gossip.lostFor(id)
}

var membershipMetrics = []metric{
	{"sluice_cluster_dead_nodes_removed_total", kindCounter, "Members that this node removed as the leader since they were dead for longer than membership.dead_server_cleanup.", ofRaft(func(k *consensus) float64 {
		return float64(k.cleaned.Load())
	})},
}
