package raftfsm_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"sluice/raftfsm/state"
)

// randomSignIn is one command of sign-in with a provider, most of them with chances to be refused.
func randomSignIn(random *rand.Rand, now int64, events []state.AuditEvent) state.Command {
	pick := func(prefix string, n int) string { return prefix + string(rune('a'+random.IntN(n))) }
	once := state.Once{Kind: "test", Hash: hash(pick("once ", 26) + pick("", 3)), ExpiresAt: now + int64(random.IntN(600_000)) - 300_000}
	who := identity(pick("provider-", 2), pick("subject ", 9), pick("", 6), now)
	switch random.IntN(5) {
	case 0:
		return state.UseOnce{Once: once, Audit: events}
	case 1:
		return registerBy(who, pick("", 12), now)
	case 2:
		return state.SignInByIdentity{Provider: who.Provider, Subject: who.Subject, Once: once, MaxSessions: 3,
			Session: session(pick("ses_o", 26)+pick("", 26), who.UserID, now), Audit: events}
	case 3:
		return state.LinkIdentity{Identity: who, SessionID: strings.Replace(who.UserID, "usr_", "ses_", 1), At: now, Audit: events}
	}
	return state.UnlinkIdentity{UserID: who.UserID, Provider: who.Provider, At: now, Audit: events}
}

func identity(provider, subject, name string, now int64) state.Identity {
	return state.Identity{Provider: provider, Subject: subject, UserID: "usr_" + name, Email: name + "@example.org", CreatedAt: now}
}

// registerBy makes user usr_<name>, who has the identity and no password.
func registerBy(who state.Identity, name string, now int64) state.RegisterIdentity {
	r := registration(name, now)
	r.User.PasswordHash = ""
	who.UserID = r.User.ID
	return state.RegisterIdentity{User: r.User, Organization: r.Organization, Identity: who, Session: r.Session, Audit: r.Audit}
}

func (f *fixture) identities(name string) (providers []string) {
	f.t.Helper()
	for _, i := range get[[]state.Identity](f.t)(f.view.IdentitiesOf("usr_" + name)) {
		providers = append(providers, i.Provider)
	}
	return providers
}

func TestUseOnce(t *testing.T) {
	t.Parallel()
	const hour = 3_600_000
	f := fresh(t)
	once := func(name string, at int64) state.UseOnce {
		return state.UseOnce{Once: state.Once{Kind: "test", Hash: hash(name), ExpiresAt: at}, Audit: []state.AuditEvent{event("once_"+name, "", "used", f.now)}}
	}
	first := once("a", f.now+1000)
	f.raises(false, func() { f.must(first) })
	f.refused(state.CodeAlreadyUsed, first)
	f.refused(state.CodeAlreadyUsed, once("a", f.now+2000))
	f.refused(state.CodeInvalid, state.UseOnce{Once: state.Once{Hash: []byte("short"), ExpiresAt: f.now}})
	f.refused(state.CodeInvalid, once("far", f.now+25*hour))
	// Over, but not for long: the proposer's clock decides, this one has to know whether it happened.
	f.must(once("b", f.now-hour/2))
	f.refused(state.CodeAlreadyUsed, once("b", f.now-hour/2))
	f.refused(state.CodeAlreadyUsed, once("late", f.now-2*hour))
	if events, _ := f.audit(state.AuditFilter{Event: "used"}, "", 10); len(events) != 2 {
		t.Errorf("%d events, want those of the two that were done", len(events))
	}

	// Forgotten an hour after their end, some with each, and refused all the same.
	for i := range 20 {
		f.must(once(fmt.Sprint("c", i), f.now+1000))
	}
	full := len(takeSnapshot(t, f.fsm))
	f.now += 2 * hour
	for i := range 6 {
		f.must(once(fmt.Sprint("d", i), f.now+1000))
	}
	if now := len(takeSnapshot(t, f.fsm)); now >= full {
		t.Errorf("the state has %d bytes, %d before most of it was over", now, full)
	}
	f.refused(state.CodeAlreadyUsed, first)
	f.refused(state.CodeAlreadyUsed, once("d5", f.now+1000))
}

func TestRegisterIdentity(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	f.register("ada")
	bob := registerBy(identity("google", "1", "bob", f.now), "bob", f.now)
	f.must(bob)
	if i := get[*state.Identity](t)(f.view.Identity("google", "1")); i == nil || i.UserID != "usr_bob" || i.Email != "bob@example.org" {
		t.Errorf("identity: %+v", i)
	}
	if s := get[*state.Session](t)(f.view.Session("ses_bob")); s == nil {
		t.Error("no session")
	}
	if m := get[*state.Membership](t)(f.view.Membership("org_bob", "usr_bob")); m == nil || m.Role != state.RoleOwner {
		t.Errorf("membership: %+v", m)
	}
	for code, change := range map[string]func(*state.RegisterIdentity){
		state.CodeIdentityTaken: func(c *state.RegisterIdentity) { c.Identity.Subject = "1" },
		state.CodeUsernameTaken: func(c *state.RegisterIdentity) { c.User.Username = "ada" },
		state.CodeEmailTaken:    func(c *state.RegisterIdentity) { c.User.Email = "ada@example.org" },
		state.CodeConflict:      func(c *state.RegisterIdentity) { c.Organization.ID = "org_ada" },
	} {
		eve := registerBy(identity("google", "2", "eve", f.now), "eve", f.now)
		change(&eve)
		f.refused(code, eve)
	}
	for name, change := range map[string]func(*state.RegisterIdentity){
		"another user":      func(c *state.RegisterIdentity) { c.Identity.UserID = "usr_ada" },
		"a password":        func(c *state.RegisterIdentity) { c.User.PasswordHash = "x" },
		"no subject":        func(c *state.RegisterIdentity) { c.Identity.Subject = "" },
		"a long subject":    func(c *state.RegisterIdentity) { c.Identity.Subject = strings.Repeat("x", 256) },
		"a provider of \\0": func(c *state.RegisterIdentity) { c.Identity.Provider = "a\x00b" },
	} {
		eve := registerBy(identity("google", "2", "eve", f.now), "eve", f.now)
		change(&eve)
		if result := f.do(eve); result.Refused != state.CodeInvalid {
			t.Errorf("%s: %+v", name, result)
		}
	}
	if i := get[*state.Identity](t)(f.view.Identity("google", "2")); i != nil {
		t.Errorf("a refused registration left %+v", i)
	}
	// Without a session, for a client that gets a code first.
	eve := registerBy(identity("google", "2", "eve", f.now), "eve", f.now)
	eve.Session = state.Session{}
	f.must(eve)
	if live := get[[]state.Session](t)(f.view.SessionsOf("usr_eve")); len(live) != 0 {
		t.Errorf("sessions: %+v", live)
	}
}

func TestSignInByIdentity(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	f.register("ada")
	f.must(registerBy(identity("google", "1", "bob", f.now), "bob", f.now))
	n := 0
	signIn := func(once string) state.SignInByIdentity {
		n++
		c := state.SignInByIdentity{Provider: "google", Subject: "1", MaxSessions: 3, Session: session(fmt.Sprintf("ses_%03d", n), "usr_bob", f.now),
			Audit: []state.AuditEvent{event(fmt.Sprint("in", n), "org_bob", "session.created", f.now)}}
		if once != "" {
			c.Once = state.Once{Kind: "code", Hash: hash(once), ExpiresAt: f.now + 60_000}
		}
		return c
	}
	f.raises(false, func() { f.must(signIn("")) })
	f.must(signIn("code"))
	f.refused(state.CodeAlreadyUsed, signIn("code"))
	f.raises(true, func() {
		if result := f.must(signIn("")); result.Count != 1 {
			t.Errorf("the fourth session ended %d others", result.Count)
		}
	})
	unknown := signIn("another")
	unknown.Subject = "2"
	f.refused(state.CodeNotFound, unknown)
	foreign := signIn("another")
	foreign.Session.UserID = "usr_ada"
	f.refused(state.CodeConflict, foreign)
	f.must(signIn("another")) // what was refused has not used it up
	unknown = signIn("")
	unknown.Session.ID = ""
	f.refused(state.CodeInvalid, unknown)
}

func TestLinkIdentity(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	f.register("ada")
	f.must(registerBy(identity("google", "1", "bob", f.now), "bob", f.now))
	link := func(provider, subject string) state.LinkIdentity {
		return state.LinkIdentity{Identity: identity(provider, subject, "ada", f.now), SessionID: "ses_ada", At: f.now,
			Audit: []state.AuditEvent{event("link_"+provider+subject, "org_ada", "identity.linked", f.now)}}
	}
	f.refused(state.CodeIdentityTaken, link("google", "1"))
	f.raises(false, func() {
		if result := f.must(link("google", "2")); result.Count != 1 {
			t.Errorf("linked: %+v", result)
		}
	})
	if result := f.must(link("google", "2")); result.Count != 0 {
		t.Errorf("linked again: %+v", result)
	}
	f.refused(state.CodeConflict, link("google", "3"))
	f.must(link("github", "1"))
	if got := f.identities("ada"); !slices.Equal(got, []string{"github", "google"}) {
		t.Errorf("identities: %v", got)
	}
	// A provider whose name begins like another's is another.
	f.must(link("git", "1"))
	if result := f.must(state.UnlinkIdentity{UserID: "usr_ada", Provider: "git", At: f.now}); result.Count != 1 {
		t.Errorf("unlink: %+v", result)
	}
	if got := f.identities("ada"); !slices.Equal(got, []string{"github", "google"}) {
		t.Errorf("identities: %v", got)
	}
	other := link("gitlab", "1")
	other.SessionID = "ses_bob"
	f.refused(state.CodeSessionEnded, other)
	late := link("gitlab", "1")
	late.At = f.now + 2_000_000
	f.refused(state.CodeSessionEnded, late)
	f.must(state.EndSession{SessionID: "ses_ada", UserID: "usr_ada", At: f.now, Reason: "logout"})
	f.refused(state.CodeSessionEnded, link("gitlab", "1"))
}

func TestUnlinkIdentity_NeverTheLastWayIn(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	f.register("ada")
	f.must(registerBy(identity("google", "1", "bob", f.now), "bob", f.now))
	unlink := func(name, provider string) state.UnlinkIdentity {
		return state.UnlinkIdentity{UserID: "usr_" + name, Provider: provider, At: f.now}
	}
	f.refused(state.CodeNotFound, unlink("ada", "google"))
	f.refused(state.CodeNotFound, unlink("nobody", "google"))
	f.refused(state.CodeInvalid, unlink("bob", ""))
	f.refused(state.CodeLastSignIn, unlink("bob", "google"))
	f.must(state.LinkIdentity{Identity: identity("github", "1", "bob", f.now), SessionID: "ses_bob", At: f.now})
	f.raises(false, func() { f.must(unlink("bob", "google")) })
	f.refused(state.CodeLastSignIn, unlink("bob", "github"))
	if i := get[*state.Identity](t)(f.view.Identity("google", "1")); i != nil {
		t.Errorf("still there: %+v", i)
	}
	// With a password there is no last one, and what was taken away can be anybody's.
	f.must(state.SetPassword{UserID: "usr_bob", NewHash: "hash", KeepSessionID: "ses_bob", At: f.now})
	f.must(unlink("bob", "github"))
	f.must(state.LinkIdentity{Identity: identity("github", "1", "ada", f.now), SessionID: "ses_ada", At: f.now})
	if got := f.identities("bob"); len(got) != 0 {
		t.Errorf("identities: %v", got)
	}
}

// TestSnapshot_Identities holds the bytes of records that v1.snap does not have.
func TestSnapshot_Identities(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	f.must(initCluster("cluster_golden"))
	f.must(registerBy(identity("google", "sub\x00ject", "bob", f.now), "bob", f.now))
	f.must(state.UseOnce{Once: state.Once{Kind: "test", Hash: hash("a"), ExpiresAt: f.now + 1000}})
	file := golden(t, f, "v1-identities.snap")
	other := fresh(t)
	if err := other.fsm.Restore(reader(file)); err != nil {
		t.Fatal(err)
	}
	other.index, other.now, other.seq = f.index, f.now, f.seq
	if i := get[*state.Identity](t)(other.view.Identity("google", "sub\x00ject")); i == nil || i.UserID != "usr_bob" {
		t.Errorf("identity: %+v", i)
	}
	if got := other.identities("bob"); !slices.Equal(got, []string{"google"}) {
		t.Errorf("identities: %v", got)
	}
	other.refused(state.CodeAlreadyUsed, state.UseOnce{Once: state.Once{Kind: "test", Hash: hash("a"), ExpiresAt: f.now + 1000}})
}
