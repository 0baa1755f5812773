package raftfsm

import "sluice/raftfsm/state"

// Bounds of what may happen once. They are part of the rules, as those in rules.go.
const (
	maxSubject   = 255             // bytes of a provider's name for a user (OpenID Connect Core 1.0, section 2)
	onceMargin   = 60 * 60 * 1000  // how long after its end something is still known to have happened, log time
	maxOnceAhead = 24 * onceMargin // how far ahead its end may be
	onceStep     = 4               // how many are forgotten by one command: more than it adds
)

// takeOnce notes that something has happened; the code of the refusal, "" for none.
func takeOnce(b *batch, once state.Once) string {
	switch {
	case len(once.Hash) != hashSize || len(once.Kind) > maxReason || once.ExpiresAt-b.at.time > maxOnceAhead:
		return state.CodeInvalid
	case once.ExpiresAt+onceMargin <= b.at.time:
		return state.CodeAlreadyUsed // what was used by then may be forgotten
	}
	key := key1(prefixOnce, string(once.Hash))
	if b.has(key) {
		return state.CodeAlreadyUsed
	}
	forgetOnce(b)
	b.store(key, state.OnceRecord{Kind: once.Kind, ExpiresAt: once.ExpiresAt})
	b.put(keyTime(prefixOnceEnd, once.ExpiresAt, string(once.Hash)), nil)
	return ""
}

// forgetOnce drops what is over for long.
func forgetOnce(b *batch) {
	prefix := []byte{prefixOnceEnd}
	for _, r := range b.scan(prefix, prefix, onceStep) {
		if timeOf(r.key[1:])+onceMargin > b.at.time {
			return
		}
		b.delete(r.key)
		b.delete(key1(prefixOnce, string(r.key[9:])))
	}
}

func useOnce(b *batch, c state.UseOnce) state.Result {
	if code := takeOnce(b, c.Once); code != "" {
		return refuse(code)
	}
	audit(b, c.Audit)
	return state.Result{}
}

func validIdentity(i state.Identity) bool {
	return validID(i.Provider) && i.Subject != "" && len(i.Subject) <= maxSubject && validID(i.UserID) && len(i.Email) <= maxName
}

func identityKey(provider, subject string) []byte { return key2(prefixIdentity, provider, subject) }

// saveIdentity stores an identity that nobody has.
func saveIdentity(b *batch, i state.Identity) {
	b.store(identityKey(i.Provider, i.Subject), i)
	b.put(userIdentityKey(i.UserID, i.Provider, i.Subject), nil)
}

func userIdentityKey(user, provider, subject string) []byte {
	return key2(prefixUserIdentity, user, string(identityKey(provider, subject)[1:]))
}

// subjectOf is the subject of a user's identity at a provider, "" where there is none.
func subjectOf(b *batch, user, provider string) string {
	prefix := userIdentityKey(user, provider, "")
	records := b.scan(prefix, prefix, 1)
	if len(records) == 0 {
		return ""
	}
	return string(records[0].key[len(prefix):])
}

func registerIdentity(b *batch, c state.RegisterIdentity) state.Result {
	if !validIdentity(c.Identity) || c.Identity.UserID != c.User.ID || c.User.PasswordHash != "" {
		return refuse(state.CodeInvalid)
	}
	if b.has(identityKey(c.Identity.Provider, c.Identity.Subject)) {
		return refuse(state.CodeIdentityTaken)
	}
	result := registerUser(b, state.RegisterUser{User: c.User, Organization: c.Organization, Session: c.Session, Audit: c.Audit})
	if result.Refused == "" {
		saveIdentity(b, c.Identity)
	}
	return result
}

func signInByIdentity(b *batch, c state.SignInByIdentity) state.Result {
	if !validID(c.Provider) || !validSession(c.Session) {
		return refuse(state.CodeInvalid)
	}
	if len(c.Once.Hash) > 0 {
		if code := takeOnce(b, c.Once); code != "" {
			return refuse(code)
		}
	}
	identity := load[state.Identity](b, identityKey(c.Provider, c.Subject))
	switch {
	case identity == nil:
		return refuse(state.CodeNotFound)
	case identity.UserID != c.Session.UserID:
		return refuse(state.CodeConflict)
	case activeUser(b, identity.UserID) == nil:
		return refuse(state.CodeForbidden)
	}
	return createSession(b, state.CreateSession{Session: c.Session, MaxSessions: c.MaxSessions, Audit: c.Audit})
}

func linkIdentity(b *batch, c state.LinkIdentity) state.Result {
	i := c.Identity
	if !validIdentity(i) {
		return refuse(state.CodeInvalid)
	}
	s := load[state.Session](b, key1(prefixSession, c.SessionID))
	if s == nil || s.UserID != i.UserID || s.EndedAt != 0 || s.ExpiresAt <= c.At || activeUser(b, i.UserID) == nil {
		return refuse(state.CodeSessionEnded)
	}
	if taken := load[state.Identity](b, identityKey(i.Provider, i.Subject)); taken != nil {
		if taken.UserID != i.UserID {
			return refuse(state.CodeIdentityTaken)
		}
		return state.Result{}
	}
	prefix := key2(prefixUserIdentity, i.UserID, "")
	if subjectOf(b, i.UserID, i.Provider) != "" || len(b.scan(prefix, prefix, maxIdentities)) >= maxIdentities {
		return refuse(state.CodeConflict)
	}
	saveIdentity(b, i)
	audit(b, c.Audit)
	return state.Result{Count: 1}
}

func unlinkIdentity(b *batch, c state.UnlinkIdentity) state.Result {
	if !validID(c.UserID) || !validID(c.Provider) {
		return refuse(state.CodeInvalid)
	}
	user, subject := activeUser(b, c.UserID), subjectOf(b, c.UserID, c.Provider)
	if user == nil || subject == "" {
		return refuse(state.CodeNotFound)
	}
	if user.PasswordHash == "" {
		prefix := key2(prefixUserIdentity, user.ID, "")
		if len(b.scan(prefix, prefix, 2)) < 2 {
			return refuse(state.CodeLastSignIn)
		}
	}
	b.delete(identityKey(c.Provider, subject))
	b.delete(userIdentityKey(user.ID, c.Provider, subject))
	audit(b, c.Audit)
	return state.Result{Count: 1}
}
