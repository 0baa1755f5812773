package raftfsm

import (
	"encoding/binary"
	"slices"

	"sluice/raftfsm/state"
)

func initCluster(b *batch, c state.InitCluster) state.Result {
	if b.has(keySecrets) {
		return refuse(state.CodeConflict)
	}
	if c.Secrets.ClusterID == "" || len(c.Secrets.ClusterID) > maxID || !validID(c.SigningKey.ID) {
		return refuse(state.CodeInvalid)
	}
	b.store(keySecrets, c.Secrets)
	b.store(keyIndex(prefixSigningKey, 1), c.SigningKey)
	b.raise = true
	return state.Result{}
}

func appendAudit(b *batch, c state.AppendAudit) state.Result {
	audit(b, c.Events)
	return state.Result{}
}

// maxSigningKeys is more than there can be: keys that verify nothing any more go when a new one comes.
const maxSigningKeys = 1000

func putSigningKey(b *batch, c state.PutSigningKey) state.Result {
	if !validID(c.Key.ID) {
		return refuse(state.CodeInvalid)
	}
	var sequence uint64
	var newest state.SigningKey
	for _, r := range b.scan([]byte{prefixSigningKey}, nil, maxSigningKeys) {
		key := load[state.SigningKey](b, r.key)
		if key == nil {
			continue
		}
		if key.ID == c.Key.ID {
			return refuse(state.CodeConflict)
		}
		newest, sequence = *key, binary.BigEndian.Uint64(r.key[1:])
		if key.VerifiesTo != 0 && key.VerifiesTo < c.Key.CreatedAt {
			b.delete(r.key)
		}
	}
	if newest.ID != c.PreviousID {
		return refuse(state.CodeConflict)
	}
	if sequence != 0 {
		newest.VerifiesTo = c.PreviousVerifiesTo
		b.store(keyIndex(prefixSigningKey, sequence), newest)
	}
	b.store(keyIndex(prefixSigningKey, sequence+1), c.Key)
	b.raise = true
	audit(b, c.Audit)
	return state.Result{}
}

func loadLimiter(b *batch) state.LimiterState {
	if l := load[state.LimiterState](b, keyLimiter); l != nil {
		return *l
	}
	return state.LimiterState{}
}

func horizon(b *batch, c state.Horizon) state.Result {
	limiter := loadLimiter(b)
	if c.Until <= limiter.Horizon {
		return state.Result{}
	}
	limiter.Horizon = c.Until
	b.store(keyLimiter, limiter)
	b.announce = true
	return state.Result{}
}

func setRoster(b *batch, c state.SetRoster) state.Result {
	if len(c.Nodes) == 0 || len(c.Nodes) > maxNodes {
		return refuse(state.CodeInvalid)
	}
	seen := make(map[string]bool, len(c.Nodes))
	for _, node := range c.Nodes {
		if !validID(node) || seen[node] {
			return refuse(state.CodeInvalid)
		}
		seen[node] = true
	}
	limiter := loadLimiter(b)
	for _, node := range c.Nodes {
		if hasLeft(limiter, node) {
			return refuse(state.CodeConflict)
		}
	}
	var newest uint64
	if n := len(limiter.Rosters); n > 0 {
		newest = limiter.Rosters[n-1].Index
	}
	if newest != c.PreviousIndex {
		return refuse(state.CodeConflict)
	}
	roster := state.Roster{Index: b.at.index, From: limiter.Horizon, Nodes: c.Nodes}
	if newest == 0 {
		roster.From = 0
	}
	limiter.Rosters = append(limiter.Rosters, roster)
	// A roster is superseded at the From of the next one; the newest never is.
	for len(limiter.Rosters) > 1 && limiter.Rosters[1].From < c.KeepFrom {
		limiter.Rosters = limiter.Rosters[1:]
	}
	limiter.Leaves = neededLeaves(b, limiter)
	b.store(keyLimiter, limiter)
	b.announce = true
	audit(b, c.Audit)
	return state.Result{}
}

func hasLeft(limiter state.LimiterState, node string) bool {
	return slices.ContainsFunc(limiter.Leaves, func(l state.LeaveInfo) bool { return l.Leaver == node })
}

// neededLeaves are those whose leaver a roster names, and those of their heirs: who has a share now is found by going
// from one to the next. A leaver that is still a member might come into a roster yet.
func neededLeaves(b *batch, limiter state.LimiterState) []state.LeaveInfo {
	needed := make(map[string]bool)
	for _, roster := range limiter.Rosters {
		for _, node := range roster.Nodes {
			needed[node] = true
		}
	}
	// An heir has not left before it inherits, so its own leave comes later in the list.
	var kept []state.LeaveInfo
	for _, l := range limiter.Leaves {
		node := load[state.NodeInfo](b, key1(prefixNode, l.Leaver))
		if needed[l.Leaver] || node != nil && node.RemovedAt == 0 {
			needed[l.Heir] = true
			kept = append(kept, l)
		}
	}
	return kept
}

func leave(b *batch, c state.Leave) state.Result {
	if !validID(c.Leaver) || !validID(c.Heir) || c.Leaver == c.Heir || len(c.List) != hashSize || c.Mark < 0 {
		return refuse(state.CodeInvalid)
	}
	limiter := loadLimiter(b)
	if hasLeft(limiter, c.Leaver) || hasLeft(limiter, c.Heir) || len(limiter.Leaves) >= maxLeaves {
		return refuse(state.CodeConflict)
	}
	if node := load[state.NodeInfo](b, key1(prefixNode, c.Heir)); node != nil && node.RemovedAt != 0 {
		return refuse(state.CodeConflict)
	}
	for _, l := range limiter.Leaves {
		if l.Heir == c.Leaver && l.Index > c.Applied {
			return refuse(state.CodeConflict)
		}
	}
	limiter.Leaves = append(limiter.Leaves, state.LeaveInfo{Index: b.at.index, Leaver: c.Leaver, Heir: c.Heir, List: c.List, Mark: c.Mark})
	b.store(keyLimiter, limiter)
	b.announce = true
	audit(b, c.Audit)
	return state.Result{}
}

func putNode(b *batch, c state.PutNode) state.Result {
	node := c.Node
	if !validID(node.ID) || len(node.Name) > maxName || len(node.PeerAddress) > maxName || len(node.GossipAddress) > maxName || len(node.Version) > maxName {
		return refuse(state.CodeInvalid)
	}
	key := key1(prefixNode, node.ID)
	if old := load[state.NodeInfo](b, key); old != nil {
		if node.JoinedAt == 0 {
			node.JoinedAt = old.JoinedAt
		}
		// An id is never used again: what was removed stays removed, whatever it still says of itself.
		if node.RemovedAt == 0 {
			node.RemovedAt = old.RemovedAt
		}
	}
	b.store(key, node)
	b.announce = true
	return state.Result{}
}

func prune(b *batch, requests *requestQueue, c state.Prune) state.Result {
	limit := c.Max
	if limit <= 0 || limit > maxPrune {
		limit = maxPrune
	}
	count := 0
	if c.IdempotencyBefore > 0 {
		count += pruneByTime(b, prefixIdempotencyAge, c.IdempotencyBefore, limit, func(_ int64, scope string) {
			b.delete(key1(prefixIdempotency, scope))
		})
	}
	if c.SessionsBefore > 0 {
		count += pruneByTime(b, prefixSessionEnd, c.SessionsBefore, limit, func(_ int64, id string) {
			if s := load[state.Session](b, key1(prefixSession, id)); s != nil {
				b.delete(key2(prefixUserSession, s.UserID, id))
				b.delete(key1(prefixSession, id))
			}
		})
	}
	if c.AuditBefore > 0 {
		count += pruneByTime(b, prefixAudit, c.AuditBefore, limit, func(at int64, id string) {
			if event := load[state.AuditEvent](b, keyTime(prefixAudit, at, id)); event != nil && event.OrganizationID != "" {
				b.delete(keyOrgAudit(event.OrganizationID, at, id))
			}
			b.delete(key1(prefixAuditTime, id))
		})
	}
	if c.RequestsBefore > 0 {
		count += requests.prune(b, c.RequestsBefore, limit)
	}
	return state.Result{Count: count}
}

// pruneByTime removes up to limit records of an index by time, those before a time, and calls remove for each first.
func pruneByTime(b *batch, prefix byte, before int64, limit int, remove func(at int64, rest string)) int {
	count := 0
	for _, r := range b.scan([]byte{prefix}, nil, limit) {
		at := timeOf(r.key[1:])
		if at >= before {
			break
		}
		remove(at, string(r.key[9:]))
		b.delete(r.key)
		count++
	}
	return count
}
