package raftfsm

import (
	"slices"

	"sluice/raftfsm/state"
)

func recoverCluster(b *batch, c state.RecoverCluster) state.Result {
	if c.ClusterID == "" || len(c.ClusterID) > maxID || c.ClusterID == c.Previous || !validID(c.Node) || len(c.Lost) > maxNodes {
		return refuse(state.CodeInvalid)
	}
	for i, node := range c.Lost {
		if !validID(node) || node == c.Node || slices.Contains(c.Lost[:i], node) {
			return refuse(state.CodeInvalid)
		}
	}
	secrets := load[state.ClusterSecrets](b, keySecrets)
	if secrets == nil || secrets.ClusterID != c.Previous {
		return refuse(state.CodeConflict)
	}
	secrets.ClusterID = c.ClusterID
	b.store(keySecrets, *secrets)
	// Versions of before speak no Raft with a recovered cluster: better they are told that when they ask to join.
	if level := raiseLevel(b, state.RaiseLevel{Level: state.LevelOf(state.TypeRecoverCluster)}); level.Refused != "" {
		return level
	}

	limiter := loadLimiter(b)
	// A cluster that nobody was in but this node has no windows that others may have opened. (It has no use for this either.)
	if len(limiter.Rosters) > 0 && len(c.Lost) > 0 {
		since := min(c.Since, limiter.Horizon)
		limiter.Rosters = slices.DeleteFunc(limiter.Rosters, func(r state.Roster) bool { return r.Index > c.Committed || r.From > since })
		limiter.Leaves = slices.DeleteFunc(limiter.Leaves, func(l state.LeaveInfo) bool { return l.Index > c.Committed })
		lost := slices.Sorted(slices.Values(c.Lost))
		limiter.Rosters = append(limiter.Rosters, state.Roster{Index: b.at.index, From: since, Nodes: lost})
	}
	limiter.Horizon = max(limiter.Horizon, c.Until)
	b.store(keyLimiter, limiter)

	for _, id := range c.Lost {
		node := load[state.NodeInfo](b, key1(prefixNode, id))
		if node == nil || node.RemovedAt != 0 {
			continue
		}
		node.RemovedAt = b.at.time
		b.store(key1(prefixNode, id), *node)
	}
	b.raise = true
	b.announce = true
	audit(b, c.Audit)
	return state.Result{}
}
