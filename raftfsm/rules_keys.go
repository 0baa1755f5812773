package raftfsm

import (
	"bytes"
	"math"

	"sluice/raftfsm/state"
)

func createKey(b *batch, c state.CreateKey) state.Result {
	if result, ok := replayed(b, c.Idempotency); ok {
		return result
	}
	key := c.Key
	if !validID(key.ID) || !validID(key.OrganizationID) || len(key.Hash) != hashSize || len(key.PreviousHash) != 0 ||
		len(key.Name) > maxName || !validScopes(key.Scopes) || key.RevokedAt != 0 {
		return refuse(state.CodeInvalid)
	}
	if liveOrg(b, key.OrganizationID) == nil {
		return refuse(state.CodeNotFound)
	}
	grants, ok := may(b, c.Actor, key.OrganizationID)
	if !ok || !covers(grants, key.Scopes) {
		return refuse(state.CodeForbidden)
	}
	if b.has(key1(prefixKey, key.ID)) || b.has(key1(prefixKeyHash, string(key.Hash))) {
		return refuse(state.CodeConflict)
	}
	if key.LastUsedAt != 0 {
		b.put(key1(prefixKeyUse, key.ID), appendTime(nil, key.LastUsedAt))
	}
	saveKey(b, &key)
	b.put(key1(prefixKeyHash, string(key.Hash)), []byte(key.ID))
	b.put(key2(prefixOrgKey, key.OrganizationID, key.ID), nil)
	audit(b, c.Audit)
	rememberAnswer(b, c.Idempotency)
	return state.Result{}
}

// saveKey stores a key's record. The last use has a record of its own: it changes every minute, the key hardly ever.
func saveKey(b *batch, key *state.APIKey) {
	record := *key
	record.LastUsedAt = 0
	b.store(key1(prefixKey, key.ID), record)
}

// liveKey loads a key that is not revoked. An expired one is found: it can be given a new time or be revoked.
func liveKey(b *batch, id string) *state.APIKey {
	key := load[state.APIKey](b, key1(prefixKey, id))
	if key == nil || key.RevokedAt != 0 {
		return nil
	}
	return key
}

func updateKey(b *batch, c state.UpdateKey) state.Result {
	key := liveKey(b, c.KeyID)
	if key == nil {
		return refuse(state.CodeNotFound)
	}
	// A key changes none that is stronger: neither what that one has now, whatever it had when the change was proposed, nor
	// what it would have.
	grants, ok := may(b, c.Actor, key.OrganizationID)
	if !ok || !covers(grants, key.Scopes) || c.Scopes != nil && !covers(grants, *c.Scopes) {
		return refuse(state.CodeForbidden)
	}
	if c.Name != nil && len(*c.Name) > maxName || c.Scopes != nil && !validScopes(*c.Scopes) {
		return refuse(state.CodeInvalid)
	}
	if c.Name != nil {
		key.Name = *c.Name
	}
	if c.Scopes != nil {
		key.Scopes = *c.Scopes
	}
	if c.ExpiresAt != nil {
		key.ExpiresAt = *c.ExpiresAt
	}
	if c.SetRateLimit {
		key.RateLimit, key.RateWindow = c.RateLimit, c.RateWindow
	}
	b.raise = c.Scopes != nil || c.ExpiresAt != nil || c.SetRateLimit
	saveKey(b, key)
	audit(b, c.Audit)
	return state.Result{}
}

func rotateKey(b *batch, c state.RotateKey) state.Result {
	if result, ok := replayed(b, c.Idempotency); ok {
		return result
	}
	if len(c.NewHash) != hashSize {
		return refuse(state.CodeInvalid)
	}
	key := liveKey(b, c.KeyID)
	if key == nil {
		return refuse(state.CodeNotFound)
	}
	// Who rotates a key gets its secret: a key that rotated a stronger one would have more than it was given.
	grants, ok := may(b, c.Actor, key.OrganizationID)
	if !ok || !covers(grants, key.Scopes) {
		return refuse(state.CodeForbidden)
	}
	if !bytes.Equal(key.Hash, c.OldHash) || b.has(key1(prefixKeyHash, string(c.NewHash))) {
		return refuse(state.CodeConflict)
	}
	if len(key.PreviousHash) > 0 {
		b.delete(key1(prefixKeyHash, string(key.PreviousHash)))
	}
	key.PreviousHash, key.PreviousUntil = key.Hash, c.PreviousUntil
	key.Hash, key.Prefix, key.RotatedAt = c.NewHash, c.NewPrefix, c.At
	saveKey(b, key)
	b.put(key1(prefixKeyHash, string(key.Hash)), []byte(key.ID))
	b.raise = true
	audit(b, c.Audit)
	rememberAnswer(b, c.Idempotency)
	return state.Result{}
}

func revokeKey(b *batch, c state.RevokeKey) state.Result {
	key := liveKey(b, c.KeyID)
	if key == nil {
		return refuse(state.CodeNotFound)
	}
	if _, ok := may(b, c.Actor, key.OrganizationID); !ok {
		return refuse(state.CodeForbidden)
	}
	// The record and both hashes stay: that the key is dead is something to be found, not something missing.
	key.RevokedAt = max(c.At, 1)
	saveKey(b, key)
	b.delete(key2(prefixOrgKey, key.OrganizationID, key.ID))
	b.raise = true
	audit(b, c.Audit)
	return state.Result{}
}

// revokeKeyBySecret asks for no actor: whoever holds the secret may use the key, so may end it. A secret that opens
// nothing ends nothing: one that was replaced and is found in an old backup must not end the key that lives.
func revokeKeyBySecret(b *batch, c state.RevokeKeyBySecret) state.Result {
	if len(c.Hash) != hashSize {
		return refuse(state.CodeInvalid)
	}
	id := b.get(key1(prefixKeyHash, string(c.Hash)))
	if id == nil {
		return refuse(state.CodeNotFound)
	}
	key := liveKey(b, string(id))
	if key == nil || key.ExpiresAt != 0 && key.ExpiresAt <= c.At {
		return refuse(state.CodeNotFound)
	}
	present, previous := bytes.Equal(key.Hash, c.Hash), bytes.Equal(key.PreviousHash, c.Hash)
	switch {
	case !present && (!previous || key.PreviousUntil <= c.At):
		return refuse(state.CodeNotFound)
	case present == c.Previous:
		return refuse(state.CodeConflict)
	}
	if c.Previous {
		key.PreviousUntil = 0
	} else {
		key.RevokedAt = max(c.At, 1)
		b.delete(key2(prefixOrgKey, key.OrganizationID, key.ID))
	}
	saveKey(b, key)
	b.raise = true
	audit(b, c.Audit)
	return state.Result{Count: 1}
}

// recordKeyUse is touchKeys with the address and the number of the uses.
func recordKeyUse(b *batch, c state.RecordKeyUse) state.Result {
	count := 0
	for _, use := range c.Keys {
		if !validID(use.KeyID) || !b.has(key1(prefixKey, use.KeyID)) {
			continue
		}
		at := key1(prefixKeyUsage, use.KeyID)
		usage := load[state.KeyUsage](b, at)
		if usage == nil {
			usage = &state.KeyUsage{LastAt: timeOf(b.get(key1(prefixKeyUse, use.KeyID)))}
		}
		if use.At > usage.LastAt {
			usage.LastAt, usage.LastIP = use.At, clip(use.IP, maxAddress)
		}
		usage.Count += min(max(use.Count, 0), math.MaxInt64-usage.Count)
		usage.RecordedAt = max(usage.RecordedAt, b.at.time)
		b.store(at, usage)
		count++
	}
	return state.Result{Count: count}
}

func touchKeys(b *batch, c state.TouchKeys) state.Result {
	count := 0
	for _, use := range c.Keys {
		if !validID(use.KeyID) || !b.has(key1(prefixKey, use.KeyID)) {
			continue
		}
		if at := key1(prefixKeyUse, use.KeyID); timeOf(b.get(at)) < use.At {
			b.put(at, appendTime(nil, use.At))
			count++
		}
	}
	return state.Result{Count: count}
}
