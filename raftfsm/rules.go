package raftfsm

import (
	"bytes"
	"strings"

	"sluice/raftfsm/state"
)

// Bounds that keep every record and every command's work small whatever a proposer sends. They are part of the rules:
// changing one makes replicas differ, unless it comes with a new command type.
const (
	maxID        = 64   // bytes of an id
	maxName      = 512  // bytes of a user name, an e-mail, an organization's or a key's name
	maxAgent     = 1024 // bytes kept of a session's user agent
	maxAddress   = 64   // bytes kept of a session's address
	maxReason    = 64   // bytes kept of why a session ended
	maxSessions  = 1000 // live sessions of one user, whatever MaxSessions says
	maxPrune     = 1000 // removals of one kind by one Prune
	hashSize     = 32
	maxScopes    = 256
	maxNodes     = 128
	maxScopeName = 128
	maxLeaves    = 1024 // leaves that are kept: each is part of one record
	// Members of one organization and memberships of one user: what ends either does so in one entry.
	maxMembers     = 1000
	maxMemberships = 1000
	// maxLooks is how many memberships ending one account looks at, over all its organizations.
	maxLooks      = 20_000
	maxEnded      = 300 // organizations that go with one account
	maxIdentities = 100
)

func refuse(code string) state.Result { return state.Result{Refused: code} }

// validID reports whether an id can be part of a key.
func validID(id string) bool {
	return id != "" && len(id) <= maxID && strings.IndexByte(id, 0) < 0
}

func validName(name string) bool { return name != "" && len(name) <= maxName }

func validScopes(scopes []string) bool {
	if len(scopes) > maxScopes {
		return false
	}
	for _, scope := range scopes {
		if scope == "" || len(scope) > maxScopeName {
			return false
		}
	}
	return true
}

func clip(text string, size int) string {
	if len(text) <= size {
		return text
	}
	// Not inside a character: the record's text must stay valid UTF-8.
	for size > 0 && text[size]&0xC0 == 0x80 {
		size--
	}
	return text[:size]
}

// replayed looks for the record of the command's Idempotency-Key; ok means that the result is the answer.
func replayed(b *batch, wanted *state.Idempotency) (result state.Result, ok bool) {
	if wanted == nil {
		return state.Result{}, false
	}
	if len(wanted.Scope) != hashSize {
		return refuse(state.CodeInvalid), true
	}
	record := load[state.Idempotency](b, key1(prefixIdempotency, string(wanted.Scope)))
	switch {
	case record == nil:
		return state.Result{}, false
	case !bytes.Equal(record.Fingerprint, wanted.Fingerprint):
		return refuse(state.CodeIdempotencyMismatch), true
	}
	return state.Result{Replay: record}, true
}

// rememberAnswer keeps the record of the command's Idempotency-Key.
func rememberAnswer(b *batch, record *state.Idempotency) {
	if record == nil {
		return
	}
	b.store(key1(prefixIdempotency, string(record.Scope)), record)
	b.put(keyTime(prefixIdempotencyAge, record.CreatedAt, string(record.Scope)), nil)
}

// audit records events. One whose id exists is left as it is; one without a usable id is dropped, since an audit record
// must not be what refuses a revocation.
func audit(b *batch, events []state.AuditEvent) {
	for i := range events {
		event := &events[i]
		if !validID(event.ID) || event.OrganizationID != "" && !validID(event.OrganizationID) {
			continue
		}
		seen := key1(prefixAuditTime, event.ID)
		if b.has(seen) {
			continue
		}
		b.put(seen, appendTime(nil, event.At))
		b.store(keyTime(prefixAudit, event.At, event.ID), event)
		if event.OrganizationID != "" {
			b.put(keyOrgAudit(event.OrganizationID, event.At, event.ID), nil)
		}
	}
}

// activeUser loads a user that is neither deleted nor disabled.
func activeUser(b *batch, id string) *state.User {
	user := load[state.User](b, key1(prefixUser, id))
	if user == nil || user.DeletedAt != 0 || user.DisabledAt != 0 {
		return nil
	}
	return user
}

// liveOrg loads an organization that is not deleted.
func liveOrg(b *batch, id string) *state.Organization {
	org := load[state.Organization](b, key1(prefixOrg, id))
	if org == nil || org.DeletedAt != 0 {
		return nil
	}
	return org
}

// may reports whether the actor may change things of the organization, and for a key what it may pass on: grants is nil
// for a user, whose role has decided. An actor that asks for no role and no scope at all may nothing: a forgotten
// check must not be a passed one.
func may(b *batch, actor state.Actor, org string) (grants *[]string, ok bool) {
	switch {
	case liveOrg(b, org) == nil:
	case actor.UserID != "" && actor.KeyID == "":
		if activeUser(b, actor.UserID) == nil {
			return nil, false
		}
		member := load[state.Membership](b, key2(prefixMember, org, actor.UserID))
		if member == nil {
			return nil, false
		}
		for _, role := range actor.Roles {
			if role == member.Role {
				return nil, true
			}
		}
	case actor.KeyID != "" && actor.UserID == "":
		key := load[state.APIKey](b, key1(prefixKey, actor.KeyID))
		if key == nil || key.RevokedAt != 0 || key.OrganizationID != org || key.ExpiresAt != 0 && key.ExpiresAt <= b.at.time {
			return nil, false
		}
		if len(actor.Scopes) == 0 || !state.ScopeCovers(key.Scopes, actor.Scopes) || makerDisabled(b, key) {
			return nil, false
		}
		return &key.Scopes, true
	}
	return nil, false
}

// makerDisabled reports whether a key is dead for now since the user behind it is disabled. Of a chain that is too long
// it says no: such keys open nothing in any case (View.KeyAuth), and entries of before there was that bound must
// apply as they did.
func makerDisabled(b *batch, key *state.APIKey) bool {
	disabled, _ := disabledBehind(key.CreatedBy,
		func(id string) *state.User { return load[state.User](b, key1(prefixUser, id)) },
		func(id string) *state.APIKey { return load[state.APIKey](b, key1(prefixKey, id)) })
	return disabled
}

// disabledBehind follows who made a key to the user at the chain's beginning, and reports whether that one is disabled;
// known is false where the chain is longer than state.MaxKeyChain.
func disabledBehind(maker string, user func(id string) *state.User, key func(id string) *state.APIKey) (disabled, known bool) {
	for range state.MaxKeyChain {
		if maker == "" {
			return false, true
		}
		if u := user(maker); u != nil {
			return u.DisabledAt != 0 && u.DeletedAt == 0, true
		}
		k := key(maker)
		if k == nil {
			return false, true
		}
		maker = k.CreatedBy
	}
	return false, false
}

// covers reports whether an actor with these grants (see may) can give scopes away.
func covers(grants *[]string, scopes []string) bool {
	return grants == nil || state.ScopeCovers(*grants, scopes)
}
