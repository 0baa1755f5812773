package raftfsm_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"sluice/raftfsm/state"
)

func TestRegisterUser(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	f.register("ada")

	user := get[*state.User](t)(f.view.UserByName("ada"))
	if user == nil || user.ID != "usr_ada" || user.Email != "ada@example.org" {
		t.Fatalf("by name: %+v", user)
	}
	if user := get[*state.User](t)(f.view.UserByEmail("ada@example.org")); user == nil || user.ID != "usr_ada" {
		t.Errorf("by email: %+v", user)
	}
	if user := get[*state.User](t)(f.view.User("usr_nobody")); user != nil {
		t.Errorf("unknown user: %+v", user)
	}
	if org := get[*state.Organization](t)(f.view.Organization("org_ada")); org == nil || !org.Personal {
		t.Errorf("organization: %+v", org)
	}
	if m := get[*state.Membership](t)(f.view.Membership("org_ada", "usr_ada")); m == nil || m.Role != state.RoleOwner {
		t.Errorf("membership: %+v", m)
	}
	if s := get[*state.Session](t)(f.view.Session("ses_ada")); s == nil || s.UserID != "usr_ada" {
		t.Errorf("session: %+v", s)
	}
	if events, _ := f.audit(state.AuditFilter{OrganizationID: "org_ada"}, "", 10); len(events) != 1 {
		t.Errorf("audit: %+v", events)
	}

	again := registration("bob", f.now)
	again.User.Username = "ada"
	f.refused(state.CodeUsernameTaken, again)
	again = registration("bob", f.now)
	again.User.Email = "ada@example.org"
	f.refused(state.CodeEmailTaken, again)
	again = registration("bob", f.now)
	again.User.ID, again.Session.UserID = "usr_ada", "usr_ada"
	f.refused(state.CodeConflict, again)
	again = registration("bob", f.now)
	again.Session.ID = "ses_ada"
	f.refused(state.CodeConflict, again)
	again = registration("bob", f.now)
	again.User.ID = "usr\x00bob"
	f.refused(state.CodeInvalid, again)
	again = registration("bob", f.now)
	again.User.Email = strings.Repeat("x", 5000)
	f.refused(state.CodeInvalid, again)
	again = registration("bob", f.now)
	again.Session.UserID = "usr_ada"
	f.refused(state.CodeInvalid, again)

	// Nothing of the refused ones is there.
	for name, missing := range map[string]bool{
		"user": get[*state.User](t)(f.view.User("usr_bob")) == nil,
		"org":  get[*state.Organization](t)(f.view.Organization("org_bob")) == nil,
		"name": get[*state.User](t)(f.view.UserByName("bob")) == nil,
	} {
		if !missing {
			t.Errorf("%s of a refused registration exists", name)
		}
	}
	f.register("bob")
}

func TestIdempotency(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	f.register("ada")
	create := state.CreateKey{Key: newKey("key_1", "org_ada", f.now, "events:*"), Actor: owner("ada"), Idempotency: idempotency("one", "body", f.now)}
	f.must(create)

	repeat := create
	repeat.Key = newKey("key_2", "org_ada", f.now, "events:*")
	repeat.Idempotency = idempotency("one", "body", f.now+5)
	repeat.Idempotency.SealedBody = []byte("another answer")
	result := f.must(repeat)
	if result.Replay == nil || string(result.Replay.SealedBody) != "answer to body" || result.Replay.CreatedAt != create.Idempotency.CreatedAt {
		t.Errorf("replay: %+v", result.Replay)
	}
	if key := get[*state.APIKey](t)(f.view.Key("key_2")); key != nil {
		t.Errorf("a repetition made %+v", key)
	}
	repeat.Idempotency = idempotency("one", "other body", f.now)
	f.refused(state.CodeIdempotencyMismatch, repeat)

	// The record is looked at before anything else: what was done stays the answer after the actor lost its right.
	repeat.Actor, repeat.Idempotency = owner("nobody"), idempotency("one", "body", f.now)
	if result := f.must(repeat); result.Replay == nil {
		t.Error("no replay for an actor that may no longer")
	}
	// A refused command leaves no record.
	create.Key, create.Actor, create.Idempotency = newKey("key_3", "org_ada", f.now), owner("nobody"), idempotency("two", "body", f.now)
	f.refused(state.CodeForbidden, create)
	create.Actor = owner("ada")
	if result := f.must(create); result.Replay != nil {
		t.Error("a refusal was kept as an answer")
	}
	create.Idempotency = &state.Idempotency{Scope: []byte("short")}
	f.refused(state.CodeInvalid, create)

	org := state.CreateOrg{Organization: state.Organization{ID: "org_x", Name: "X"}, OwnerID: "usr_ada", Idempotency: idempotency("org", "x", f.now)}
	f.must(org)
	if result := f.must(org); result.Replay == nil {
		t.Error("organization: no replay")
	}
	registered := registration("eve", f.now)
	registered.Idempotency = idempotency("eve", "eve", f.now)
	f.must(registered)
	if result := f.must(registered); result.Replay == nil {
		t.Error("registration: no replay")
	}
	if result := f.must(state.Prune{IdempotencyBefore: f.now + 1000}); result.Count != 4 {
		t.Errorf("pruned %d records, want 4", result.Count)
	}
	f.refused(state.CodeConflict, org)
}

func TestRequestID_FirstResultAgain(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	id := f.requestID()
	e := state.Envelope{RequestID: id, ProposedAt: f.now, Command: registration("ada", f.now)}
	first := f.send(e)
	if second := f.send(e); second != first || first.Index != 1 {
		t.Errorf("got %+v, then %+v", first, second)
	}
	// A refusal too.
	e = state.Envelope{RequestID: f.requestID(), ProposedAt: f.now, Command: registration("ada", f.now)}
	refused := f.send(e)
	f.register("bob")
	if again := f.send(e); again != refused || again.Refused != state.CodeUsernameTaken {
		t.Errorf("got %+v, then %+v", refused, again)
	}
	// Log time passes: 15 minutes alone are not enough, since one clock in the future can make them.
	f.now += 16 * 60 * 1000
	f.must(state.AppendAudit{})
	e.RequestID = id
	e.Command = registration("ada", f.now)
	if again := f.send(e); again != first {
		t.Errorf("forgotten by time alone: %+v", again)
	}
	for range 4200 {
		f.now += 1000
		f.must(state.AppendAudit{})
	}
	if again := f.send(e); again.Refused != state.CodeUsernameTaken {
		t.Errorf("still remembered: %+v", again)
	}
	if result := f.must(state.Prune{RequestsBefore: f.now + 1000, Max: 10}); result.Count != 10 {
		t.Errorf("pruned %d request ids, want 10", result.Count)
	}
}

// A sign-in that ends the oldest session says so in its own entry, with the number; one that ends none says nothing.
func TestSessions_TheEndOfTheOldestIsAudited(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	f.register("ada")
	identity := state.Identity{Provider: "google", Subject: "1", UserID: "usr_ada", CreatedAt: f.now}
	f.must(state.LinkIdentity{Identity: identity, SessionID: "ses_ada", At: f.now})
	start := func(n int) state.StartSession {
		s := session(fmt.Sprintf("ses_%02d", n), "usr_ada", f.now)
		ended := event(fmt.Sprint("ended_", n), "org_ada", "session.ended", f.now)
		ended.Detail = []state.Pair{{Name: "reason", Value: "too_many_sessions"}}
		c := state.StartSession{Replaced: []state.AuditEvent{ended}}
		if created := []state.AuditEvent{event(fmt.Sprint("created_", n), "org_ada", "session.created", f.now)}; n%2 == 0 {
			c.ByPassword = &state.CreateSession{Session: s, MaxSessions: 3, PasswordHash: "hash of ada", Audit: created}
		} else {
			c.ByIdentity = &state.SignInByIdentity{Provider: "google", Subject: "1", Session: s, MaxSessions: 3, Audit: created}
		}
		return c
	}
	for n := range 4 {
		f.raises(n >= 2, func() {
			if result := f.must(start(n)); result.Count != max(0, min(n-1, 1)) {
				t.Errorf("session %d ended %d", n, result.Count)
			}
		})
	}
	last := start(4)
	last.ByPassword.MaxSessions = 1
	f.must(last)
	events, _ := f.audit(state.AuditFilter{Event: "session.ended"}, "", 10)
	var got []string
	for _, e := range events {
		got = append(got, fmt.Sprint(e.ID, e.Detail))
	}
	want := []string{"evt_ended_4[{reason too_many_sessions} {sessions 3}]", "evt_ended_3[{reason too_many_sessions} {sessions 1}]", "evt_ended_2[{reason too_many_sessions} {sessions 1}]"}
	if !slices.Equal(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
	refused := start(6)
	refused.ByPassword.MaxSessions, refused.ByPassword.PasswordHash = 1, "another"
	f.refused(state.CodeNotFound, refused)
	f.refused(state.CodeInvalid, state.StartSession{Replaced: refused.Replaced})
	both := start(8)
	both.ByIdentity = start(9).ByIdentity
	f.refused(state.CodeInvalid, both)
	if events, _ := f.audit(state.AuditFilter{Event: "session.ended"}, "", 10); len(events) != len(want) {
		t.Errorf("a refused sign-in is audited: %+v", events)
	}
}

func TestSessions_CapEndsTheOldest(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	f.register("ada")
	create := func(n int, password string) state.CreateSession {
		return state.CreateSession{Session: session(fmt.Sprintf("ses_%02d", n), "usr_ada", f.now), MaxSessions: 3, PasswordHash: password}
	}
	f.raises(false, func() { f.must(create(1, "hash of ada")) })
	f.raises(false, func() { f.must(create(2, "")) })
	f.raises(true, func() {
		if result := f.must(create(3, "")); result.Count != 1 {
			t.Errorf("ended %d, want 1", result.Count)
		}
	})
	first := get[*state.Session](t)(f.view.Session("ses_ada"))
	if first.EndedAt == 0 || first.EndReason != "too_many_sessions" {
		t.Errorf("oldest session: %+v", first)
	}
	var ids []string
	for _, s := range get[[]state.Session](t)(f.view.SessionsOf("usr_ada")) {
		ids = append(ids, s.ID)
	}
	if want := []string{"ses_01", "ses_02", "ses_03"}; !slices.Equal(ids, want) {
		t.Errorf("live sessions %v, want %v", ids, want)
	}
	f.refused(state.CodeConflict, create(3, ""))
	f.refused(state.CodeNotFound, create(4, "old hash"))
	f.refused(state.CodeNotFound, state.CreateSession{Session: session("ses_x", "usr_nobody", f.now)})
	f.refused(state.CodeInvalid, state.CreateSession{Session: session("", "usr_ada", f.now)})

	// Expired ones do not count.
	f.now += 2_000_000
	f.raises(false, func() { f.must(create(5, "")) })
	if live := get[[]state.Session](t)(f.view.SessionsOf("usr_ada")); len(live) != 1 {
		t.Errorf("live sessions after expiry: %+v", live)
	}
	long := create(6, "")
	long.Session.UserAgent = strings.Repeat("é", 2000)
	f.must(long)
	if s := get[*state.Session](t)(f.view.Session("ses_06")); len(s.UserAgent) != 1024 {
		t.Errorf("kept %d bytes of a user agent", len(s.UserAgent))
	}
}

func TestSessions_PruneFreesThem(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	f.register("ada")
	f.must(state.CreateSession{Session: session("ses_1", "usr_ada", f.now)})
	f.must(state.EndSession{SessionID: "ses_1", UserID: "usr_ada", At: f.now, Reason: "logout"})
	if result := f.must(state.Prune{SessionsBefore: f.now + 100}); result.Count != 1 {
		t.Errorf("pruned %d, want the ended one", result.Count)
	}
	if s := get[*state.Session](t)(f.view.Session("ses_ada")); s == nil {
		t.Error("a live session was pruned")
	}
	if result := f.must(state.Prune{SessionsBefore: f.now + 2_000_000}); result.Count != 1 {
		t.Errorf("pruned %d, want the expired one", result.Count)
	}
	if s := get[*state.Session](t)(f.view.Session("ses_ada")); s != nil {
		t.Error("an expired session is still there")
	}
}

func TestRefreshSession(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	f.register("ada")
	expires := f.now + 500_000
	refresh := func(presented, successor string, at int64) state.RefreshSession {
		return state.RefreshSession{SessionID: "ses_ada", PresentedHash: hash(presented), SuccessorHash: hash(successor),
			At: at, GraceMillis: 10_000, ExpiresAt: expires, ReuseAudit: []state.AuditEvent{event("reuse", "", "token.reused", at)}}
	}
	start := f.now
	f.raises(false, func() {
		result := f.must(refresh("refresh ses_ada", "two", start))
		if result.Outcome != state.OutcomeRotated || result.ExpiresAt != expires {
			t.Errorf("first: %+v", result)
		}
	})
	if s := get[*state.Session](t)(f.view.Session("ses_ada")); s.Generation != 1 || s.ExpiresAt != expires || string(s.RefreshHash) != string(hash("two")) {
		t.Errorf("after the first: %+v", s)
	}
	// An honest replay within the grace, by the clock of another proposer too.
	for _, at := range []int64{start + 10_000, start - 3_000} {
		if result := f.must(refresh("refresh ses_ada", "two", at)); result.Outcome != state.OutcomeReplayed || result.ExpiresAt != expires {
			t.Errorf("replay at %+d: %+v", at-start, result)
		}
	}
	if result := f.must(refresh("two", "three", start+20)); result.Outcome != state.OutcomeRotated {
		t.Errorf("second: %+v", result)
	}
	f.refused(state.CodeSessionEnded, refresh("three", "four", expires))
	// The one before the last is never honest.
	f.raises(true, func() {
		if result := f.must(refresh("refresh ses_ada", "two", start+30)); result.Outcome != state.OutcomeReused {
			t.Errorf("older one: %+v", result)
		}
	})
	if s := get[*state.Session](t)(f.view.Session("ses_ada")); s.EndedAt != start+30 || s.EndReason != "token_reused" {
		t.Errorf("after reuse: %+v", s)
	}
	if events, _ := f.audit(state.AuditFilter{Event: "token.reused"}, "", 5); len(events) != 1 {
		t.Errorf("audit after reuse: %+v", events)
	}
	f.refused(state.CodeSessionEnded, refresh("three", "four", start+40))

	for name, change := range map[string]func(*state.RefreshSession){
		"late":            func(c *state.RefreshSession) { c.At += 10_001 },
		"grace off":       func(c *state.RefreshSession) { c.GraceMillis = 0 },
		"other successor": func(c *state.RefreshSession) { c.SuccessorHash = hash("x") },
		"unknown token":   func(c *state.RefreshSession) { c.PresentedHash = hash("x") },
	} {
		f.must(state.CreateSession{Session: session("ses_"+name, "usr_ada", f.now)})
		c := refresh("refresh ses_"+name, "next", f.now)
		c.SessionID = "ses_" + name
		f.must(c)
		change(&c)
		if result := f.must(c); result.Outcome != state.OutcomeReused {
			t.Errorf("%s: %+v", name, result)
		}
	}
	c := refresh("x", "y", f.now)
	c.PresentedHash = nil
	f.refused(state.CodeInvalid, c)
}

func TestEndSessions(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	f.register("ada")
	f.register("bob")
	for i := range 3 {
		f.must(state.CreateSession{Session: session(fmt.Sprint("ses_", i), "usr_ada", f.now)})
	}
	f.refused(state.CodeNotFound, state.EndSession{SessionID: "ses_bob", UserID: "usr_ada", At: f.now})
	f.refused(state.CodeNotFound, state.EndSession{SessionID: "ses_none", UserID: "usr_ada", At: f.now})
	f.raises(true, func() {
		f.must(state.EndSession{SessionID: "ses_0", UserID: "usr_ada", At: f.now, Reason: "logout"})
	})
	f.raises(false, func() {
		f.must(state.EndSession{SessionID: "ses_0", UserID: "usr_ada", At: f.now + 99, Reason: "again"})
	})
	if s := get[*state.Session](t)(f.view.Session("ses_0")); s.EndReason != "logout" {
		t.Errorf("ended twice: %+v", s)
	}
	f.raises(true, func() {
		if result := f.must(state.EndSessions{UserID: "usr_ada", ExceptID: "ses_2", At: f.now, Reason: "logout_all"}); result.Count != 2 {
			t.Errorf("ended %d, want 2", result.Count)
		}
	})
	if live := get[[]state.Session](t)(f.view.SessionsOf("usr_ada")); len(live) != 1 || live[0].ID != "ses_2" {
		t.Errorf("live: %+v", live)
	}
	if s := get[*state.Session](t)(f.view.Session("ses_bob")); s.EndedAt != 0 {
		t.Error("another user's session ended")
	}
}

func TestSetPassword(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	f.register("ada")
	f.must(state.CreateSession{Session: session("ses_2", "usr_ada", f.now)})
	change := state.SetPassword{UserID: "usr_ada", OldHash: "wrong", NewHash: "new", KeepSessionID: "ses_2", At: f.now}
	f.refused(state.CodeConflict, change)
	change.OldHash = "hash of ada"
	f.raises(true, func() {
		if result := f.must(change); result.Count != 1 {
			t.Errorf("ended %d, want 1", result.Count)
		}
	})
	f.refused(state.CodeConflict, change)
	if user := get[*state.User](t)(f.view.User("usr_ada")); user.PasswordHash != "new" {
		t.Errorf("user: %+v", user)
	}
	if s := get[*state.Session](t)(f.view.Session("ses_ada")); s.EndReason != "password_changed" {
		t.Errorf("session: %+v", s)
	}
	f.refused(state.CodeNotFound, state.CreateSession{Session: session("ses_3", "usr_ada", f.now), PasswordHash: "hash of ada"})
	change.UserID = "usr_nobody"
	f.refused(state.CodeNotFound, change)
}

func TestCreateOrg(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	f.register("ada")
	create := state.CreateOrg{Organization: state.Organization{ID: "org_b", Name: "B"}, OwnerID: "usr_ada"}
	f.must(create)
	f.refused(state.CodeConflict, create)
	create.Organization.ID, create.OwnerID = "org_c", "usr_nobody"
	f.refused(state.CodeNotFound, create)
	create.Organization.Name = ""
	f.refused(state.CodeInvalid, create)
	members := get[[]state.Membership](t)(f.view.MembershipsOf("usr_ada"))
	if len(members) != 2 || members[0].OrganizationID != "org_ada" || members[1].OrganizationID != "org_b" || members[1].Role != state.RoleOwner {
		t.Errorf("memberships: %+v", members)
	}
}
