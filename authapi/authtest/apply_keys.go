package authtest

import (
	"bytes"

	"sluice/raftfsm/state"
)

func (c *Cluster) recordUseLocked(cmd state.RecordKeyUse) state.Result {
	count := 0
	for _, use := range cmd.Keys {
		k, ok := c.keys[use.KeyID]
		if !ok {
			continue
		}
		u := c.usage[use.KeyID]
		if use.At > u.LastAt {
			u.LastAt, u.LastIP = use.At, use.IP
		}
		u.Count += use.Count
		u.RecordedAt = max(u.RecordedAt, use.At)
		if c.Clock != nil {
			u.RecordedAt = c.Clock.Now().UnixMilli()
		}
		c.usage[use.KeyID] = u
		k.LastUsedAt = max(k.LastUsedAt, u.LastAt)
		c.keys[k.ID] = k
		count++
	}
	return state.Result{Count: count}
}

func (c *Cluster) revokeBySecretLocked(cmd state.RevokeKeyBySecret) state.Result {
	for _, k := range c.keys {
		present, previous := bytes.Equal(k.Hash, cmd.Hash), bytes.Equal(k.PreviousHash, cmd.Hash)
		switch {
		case !present && !previous:
			continue
		case k.RevokedAt != 0, k.ExpiresAt != 0 && k.ExpiresAt <= cmd.At, !present && k.PreviousUntil <= cmd.At:
			return refuse(state.CodeNotFound)
		case present == cmd.Previous:
			return refuse(state.CodeConflict)
		case present:
			k.RevokedAt = cmd.At
		default:
			k.PreviousUntil = 0
		}
		c.keys[k.ID] = k
		c.audit = append(c.audit, cmd.Audit...)
		return state.Result{Count: 1}
	}
	return refuse(state.CodeNotFound)
}

// RotateLocked replaces a key's secret from within an OnPropose; the old one works until a time.
func (c *Cluster) RotateLocked(id string, hash []byte, previousUntil int64) {
	k := c.keys[id]
	k.PreviousHash, k.PreviousUntil, k.Hash = k.Hash, previousUntil, hash
	c.keys[id] = k
}
