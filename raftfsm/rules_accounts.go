package raftfsm

import (
	"bytes"
	"cmp"
	"slices"
	"strconv"

	"sluice/raftfsm/state"
)

func registerUser(b *batch, c state.RegisterUser) state.Result {
	if result, ok := replayed(b, c.Idempotency); ok {
		return result
	}
	user, org := c.User, c.Organization
	if !validID(user.ID) || !validName(user.Username) || !validName(user.Email) || !validID(org.ID) {
		return refuse(state.CodeInvalid)
	}
	if c.Session.ID != "" && (!validSession(c.Session) || c.Session.UserID != user.ID) {
		return refuse(state.CodeInvalid)
	}
	switch {
	case b.has(key1(prefixUserName, user.Username)):
		return refuse(state.CodeUsernameTaken)
	case b.has(key1(prefixUserEmail, user.Email)):
		return refuse(state.CodeEmailTaken)
	case b.has(key1(prefixUser, user.ID)), b.has(key1(prefixOrg, org.ID)),
		c.Session.ID != "" && b.has(key1(prefixSession, c.Session.ID)):
		return refuse(state.CodeConflict)
	}
	b.store(key1(prefixUser, user.ID), user)
	b.put(key1(prefixUserName, user.Username), []byte(user.ID))
	b.put(key1(prefixUserEmail, user.Email), []byte(user.ID))
	addOrg(b, org, user.ID)
	if c.Session.ID != "" {
		addSession(b, c.Session)
	}
	audit(b, c.Audit)
	rememberAnswer(b, c.Idempotency)
	return state.Result{ExpiresAt: c.Session.ExpiresAt}
}

// addOrg stores an organization with its owner.
func addOrg(b *batch, org state.Organization, owner string) {
	b.store(key1(prefixOrg, org.ID), org)
	b.store(key2(prefixMember, org.ID, owner), state.Membership{
		OrganizationID: org.ID,
		UserID:         owner,
		Role:           state.RoleOwner,
		CreatedAt:      org.CreatedAt,
	})
	b.put(key2(prefixUserMember, owner, org.ID), nil)
}

func createOrg(b *batch, c state.CreateOrg) state.Result {
	if result, ok := replayed(b, c.Idempotency); ok {
		return result
	}
	switch {
	case !validID(c.Organization.ID) || !validName(c.Organization.Name):
		return refuse(state.CodeInvalid)
	case activeUser(b, c.OwnerID) == nil:
		return refuse(state.CodeNotFound)
	case b.has(key1(prefixOrg, c.Organization.ID)):
		return refuse(state.CodeConflict)
	}
	addOrg(b, c.Organization, c.OwnerID)
	audit(b, c.Audit)
	rememberAnswer(b, c.Idempotency)
	return state.Result{}
}

func validSession(s state.Session) bool {
	return validID(s.ID) && validID(s.UserID) && s.EndedAt == 0 && len(s.RefreshHash) <= hashSize && len(s.PreviousHash) <= hashSize
}

// addSession stores a new session.
func addSession(b *batch, s state.Session) {
	s.UserAgent, s.Address = clip(s.UserAgent, maxAgent), clip(s.Address, maxAddress)
	saveSession(b, nil, &s)
}

// saveSession stores a session and its index entries; old is what it was before, nil for a new one.
func saveSession(b *batch, old, s *state.Session) {
	b.store(key1(prefixSession, s.ID), s)
	if old == nil {
		b.put(key2(prefixUserSession, s.UserID, s.ID), nil)
	}
	if s.EndedAt != 0 {
		b.delete(key2(prefixUserSession, s.UserID, s.ID))
	}
	if old != nil && sessionEnd(old) != sessionEnd(s) {
		b.delete(keyTime(prefixSessionEnd, sessionEnd(old), s.ID))
	}
	if old == nil || sessionEnd(old) != sessionEnd(s) {
		b.put(keyTime(prefixSessionEnd, sessionEnd(s), s.ID), nil)
	}
}

// sessionEnd is the time after which a session is of no use.
func sessionEnd(s *state.Session) int64 {
	if s.EndedAt != 0 {
		return s.EndedAt
	}
	return s.ExpiresAt
}

// endOne ends a live session.
func endOne(b *batch, s *state.Session, at int64, reason string) {
	old := *s
	s.EndedAt, s.EndReason = max(at, 1), clip(reason, maxReason)
	saveSession(b, &old, s)
	b.raise = true
}

// openIDs lists the ids of a user's sessions that have not ended, expired ones too, ascending.
func openIDs(b *batch, user string) []string {
	prefix := key2(prefixUserSession, user, "")
	records := b.scan(prefix, prefix, maxSessions+1)
	ids := make([]string, 0, len(records))
	for _, r := range records {
		ids = append(ids, string(r.key[len(prefix):]))
	}
	return ids
}

// openSessions loads the sessions of openIDs.
func openSessions(b *batch, ids []string) []state.Session {
	sessions := make([]state.Session, 0, len(ids))
	for _, id := range ids {
		if s := load[state.Session](b, key1(prefixSession, id)); s != nil && s.EndedAt == 0 {
			sessions = append(sessions, *s)
		}
	}
	return sessions
}

func createSession(b *batch, c state.CreateSession) state.Result {
	if !validSession(c.Session) {
		return refuse(state.CodeInvalid)
	}
	user := activeUser(b, c.Session.UserID)
	if user == nil || c.PasswordHash != "" && user.PasswordHash != c.PasswordHash {
		return refuse(state.CodeNotFound)
	}
	if b.has(key1(prefixSession, c.Session.ID)) {
		return refuse(state.CodeConflict)
	}
	limit := c.MaxSessions
	if limit <= 0 || limit > maxSessions {
		limit = maxSessions
	}
	count := 0
	if ids := openIDs(b, user.ID); len(ids) >= limit {
		count = makeRoom(b, openSessions(b, ids), limit, c.Session.CreatedAt)
	}
	addSession(b, c.Session)
	audit(b, c.Audit)
	return state.Result{Count: count, ExpiresAt: c.Session.ExpiresAt}
}

func startSession(b *batch, c state.StartSession) state.Result {
	var result state.Result
	switch {
	case c.ByPassword != nil && c.ByIdentity == nil:
		result = createSession(b, *c.ByPassword)
	case c.ByIdentity != nil && c.ByPassword == nil:
		result = signInByIdentity(b, *c.ByIdentity)
	default:
		return refuse(state.CodeInvalid)
	}
	if result.Refused == "" && result.Count > 0 {
		events := slices.Clone(c.Replaced)
		for i := range events {
			events[i].Detail = append(slices.Clip(events[i].Detail), state.Pair{Name: "sessions", Value: strconv.Itoa(result.Count)})
		}
		audit(b, events)
	}
	return result
}

// makeRoom ends the oldest live sessions so that one more makes limit, and returns how many. Expired ones are not
// counted; they end only where the list of open ones is full.
func makeRoom(b *batch, open []state.Session, limit int, at int64) int {
	expired := func(s state.Session) bool { return s.ExpiresAt <= b.at.time }
	if len(open) >= maxSessions {
		for i := range open {
			if expired(open[i]) {
				endOne(b, &open[i], open[i].ExpiresAt, "expired")
			}
		}
	}
	live := slices.DeleteFunc(open, expired)
	slices.SortFunc(live, func(x, y state.Session) int {
		return cmp.Or(cmp.Compare(x.CreatedAt, y.CreatedAt), cmp.Compare(x.ID, y.ID))
	})
	count := 0
	for ; len(live)-count >= limit; count++ {
		endOne(b, &live[count], at, "too_many_sessions")
	}
	return count
}

func refreshSession(b *batch, c state.RefreshSession) state.Result {
	if len(c.PresentedHash) != hashSize || len(c.SuccessorHash) != hashSize {
		return refuse(state.CodeInvalid)
	}
	s := load[state.Session](b, key1(prefixSession, c.SessionID))
	if s == nil || s.EndedAt != 0 || s.ExpiresAt <= c.At || activeUser(b, s.UserID) == nil {
		return refuse(state.CodeSessionEnded)
	}
	switch {
	case bytes.Equal(c.PresentedHash, s.RefreshHash):
		old := *s
		s.PreviousHash, s.RefreshHash = s.RefreshHash, c.SuccessorHash
		s.RefreshedAt, s.ExpiresAt = c.At, c.ExpiresAt
		s.Generation++
		saveSession(b, &old, s)
		return state.Result{Outcome: state.OutcomeRotated, ExpiresAt: s.ExpiresAt}
	case c.GraceMillis > 0 && len(s.PreviousHash) > 0 && bytes.Equal(c.PresentedHash, s.PreviousHash) &&
		bytes.Equal(c.SuccessorHash, s.RefreshHash) && c.At-s.RefreshedAt <= c.GraceMillis:
		return state.Result{Outcome: state.OutcomeReplayed, ExpiresAt: s.ExpiresAt}
	}
	endOne(b, s, c.At, "token_reused")
	audit(b, c.ReuseAudit)
	return state.Result{Outcome: state.OutcomeReused}
}

func endSession(b *batch, c state.EndSession) state.Result {
	s := load[state.Session](b, key1(prefixSession, c.SessionID))
	if s == nil || s.UserID != c.UserID {
		return refuse(state.CodeNotFound)
	}
	if s.EndedAt != 0 {
		return state.Result{}
	}
	endOne(b, s, c.At, c.Reason)
	audit(b, c.Audit)
	return state.Result{Count: 1}
}

// endAll ends a user's open sessions but one; the number counts those that had not expired.
func endAll(b *batch, user, except string, at int64, reason string) int {
	count := 0
	for _, s := range openSessions(b, openIDs(b, user)) {
		if s.ID == except {
			continue
		}
		if s.ExpiresAt > b.at.time {
			count++
		}
		endOne(b, &s, at, reason)
	}
	return count
}

func endSessions(b *batch, c state.EndSessions) state.Result {
	if !validID(c.UserID) {
		return refuse(state.CodeInvalid)
	}
	count := endAll(b, c.UserID, c.ExceptID, c.At, c.Reason)
	audit(b, c.Audit)
	return state.Result{Count: count}
}

func setPassword(b *batch, c state.SetPassword) state.Result {
	user := activeUser(b, c.UserID)
	switch {
	case user == nil:
		return refuse(state.CodeNotFound)
	case user.PasswordHash != c.OldHash:
		return refuse(state.CodeConflict)
	case len(c.NewHash) > maxName:
		return refuse(state.CodeInvalid)
	}
	user.PasswordHash = c.NewHash
	b.store(key1(prefixUser, user.ID), user)
	count := endAll(b, user.ID, c.KeepSessionID, c.At, "password_changed")
	b.raise = true
	audit(b, c.Audit)
	return state.Result{Count: count}
}
