package authapi_test

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sluice/authapi"
	"sluice/raftfsm/state"
)

func (e *edge) doRefresh(token string) answer {
	e.t.Helper()
	return e.send("POST", "/api/v1/auth/refresh", "", object{"refresh_token": token})
}

func TestRefresh_Rotates(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	a := e.doRefresh(p.refresh)
	e.want(a, 200, "")
	first := a.object(t)
	if first["refresh_token"] == p.refresh || first["token"] == p.token || first["token_type"] != "Bearer" {
		t.Errorf("refreshed %s", a.body)
	}
	e.want(e.send("GET", "/api/v1/auth/me", first["token"].(string), nil), 200, "")

	// An honest replay within the grace gets the same successor.
	e.clock.Advance(9 * time.Second)
	a = e.doRefresh(p.refresh)
	e.want(a, 200, "")
	if a.object(t)["refresh_token"] != first["refresh_token"] || a.object(t)["refresh_expires_at"] != first["refresh_expires_at"] {
		t.Errorf("a replay got %s, the first %s", a.body, encode(first))
	}
	// Later it is theft: the whole session ends, and every token of it says why.
	e.clock.Advance(2 * time.Second)
	e.want(e.doRefresh(p.refresh), 401, "refresh_token_reused")
	e.want(e.send("GET", "/api/v1/auth/me", first["token"].(string), nil), 401, "invalid_credential")
	e.want(e.doRefresh(first["refresh_token"].(string)), 401, "refresh_token_reused")
	e.want(e.doRefresh(p.refresh), 401, "refresh_token_reused")

	again := e.login(p)
	events := names(e.events(again["token"].(string), "?event=token.*"))
	if !slices.Equal(events, []string{"token.reused"}) {
		t.Errorf("events = %q, want one token.reused", events)
	}
}

func TestRefresh_OlderGenerationEndsTheSession(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	second := e.doRefresh(p.refresh).object(t)["refresh_token"].(string)
	third := e.doRefresh(second).object(t)["refresh_token"].(string)
	// Within the grace, but not the one spent last.
	e.want(e.doRefresh(p.refresh), 401, "refresh_token_reused")
	e.want(e.doRefresh(third), 401, "refresh_token_reused")
}

func TestRefresh_GraceOff(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, func(cfg *authapi.Config) { cfg.Auth.RefreshReuseGrace = 0 })
	p := e.register()
	e.want(e.doRefresh(p.refresh), 200, "")
	e.want(e.doRefresh(p.refresh), 401, "refresh_token_reused")
}

func TestRefresh_ManyAtOnceGetOneSuccessor(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	var mu sync.Mutex
	var wg sync.WaitGroup
	got := map[string]int{}
	for range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			a := e.doRefresh(p.refresh)
			if a.status != 200 {
				t.Errorf("status %d: %s", a.status, a.body)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			got[a.object(t)["refresh_token"].(string)]++
		}()
	}
	wg.Wait()
	if len(got) != 1 {
		t.Errorf("%d successors of one token", len(got))
	}
}

func TestRefresh_ForgedChangesNothing(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	// What was refused is audited together, a while later: the only thing that may be written.
	var written atomic.Pointer[string]
	e.cluster.SetOnPropose(func(cmd state.Command) (bool, error) {
		if _, ok := cmd.(state.AppendAudit); !ok {
			written.Store(new(fmt.Sprintf("%T", cmd)))
		}
		return false, nil
	})
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(p.refresh, "rt_"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range raw {
		forged := slices.Clone(raw)
		forged[i] ^= 1
		e.want(e.doRefresh("rt_"+base64.RawURLEncoding.EncodeToString(forged)), 401, "invalid_refresh_token")
	}
	for _, bad := range []string{"x", "rt_", p.refresh + "A", p.refresh[:len(p.refresh)-1], strings.ToLower(p.refresh), p.refresh[:40] + "\n" + p.refresh[40:],
		p.token, " " + p.refresh, strings.Replace(p.refresh, "rt_", "xx_", 1)} {
		e.want(e.doRefresh(bad), 401, "invalid_refresh_token")
	}
	if kind := written.Load(); kind != nil {
		t.Errorf("a forged token made a log entry: %s", *kind)
	}
	e.cluster.SetOnPropose(nil)
	e.want(e.doRefresh(""), 422, "invalid_input")
	e.want(e.doRefresh(p.refresh), 200, "")
}

func TestRefresh_EndsWithSessionAndUser(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	e.want(e.send("POST", "/api/v1/auth/logout", p.token, nil), 204, "")
	e.want(e.doRefresh(p.refresh), 401, "session_ended")

	q := e.register()
	u, _ := e.cluster.User(q.id)
	u.DisabledAt = 1
	e.cluster.PutUser(*u)
	e.want(e.doRefresh(q.refresh), 401, "session_ended")

	late := e.register()
	e.clock.Advance(authapi.DefaultRefreshTTL + time.Second)
	e.want(e.doRefresh(late.refresh), 401, "session_ended")
}

// A node that does not know the session yet catches up before it answers.
func TestRefresh_UnknownSessionCatchesUp(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	var arrives atomic.Pointer[state.Session]
	e.cluster.OnCatchUp = func() {
		if s := arrives.Load(); s != nil {
			e.cluster.PutSession(*s)
		}
	}
	p := e.register()
	s, _ := e.cluster.Session(p.session)
	arrives.Store(s)
	e.cluster.RemoveSession(p.session)
	e.want(e.doRefresh(p.refresh), 200, "")
	arrives.Store(nil)
	e.cluster.RemoveSession(p.session)
	e.want(e.doRefresh(p.refresh), 401, "invalid_refresh_token")
}

func TestRefresh_SessionHasAnEndHoweverOftenRefreshed(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	token := p.refresh
	for range 13 {
		e.clock.Advance(29 * 24 * time.Hour)
		a := e.doRefresh(token)
		if a.status == 401 {
			t.Fatalf("session ended after %s", e.clock.Now().Sub(start))
		}
		token = a.object(t)["refresh_token"].(string)
		if until, _ := time.Parse(time.RFC3339, a.object(t)["refresh_expires_at"].(string)); until.After(start.Add(365 * 24 * time.Hour)) {
			if e.clock.Now().Sub(start) < 365*24*time.Hour {
				t.Fatalf("refresh_expires_at = %s", until)
			}
		}
		if e.clock.Now().Add(29 * 24 * time.Hour).After(start.Add(365 * 24 * time.Hour)) {
			break
		}
	}
	e.clock.Advance(29 * 24 * time.Hour)
	e.want(e.doRefresh(token), 401, "session_ended")
}

func TestSessions(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p, q := e.register(), e.register()
	second, third := e.login(p), e.login(p)
	list := func(token, query string) []any {
		a := e.send("GET", "/api/v1/auth/sessions"+query, token, nil)
		e.want(a, 200, "")
		return a.object(t)["data"].([]any)
	}
	all := list(p.token, "")
	if len(all) != 3 || all[0].(object)["current"] != true || all[1].(object)["current"] != false || all[0].(object)["id"] != p.session {
		t.Fatalf("sessions: %v", all)
	}
	// Pages.
	a := e.send("GET", "/api/v1/auth/sessions?limit=2", p.token, nil)
	cursor, _ := a.object(t)["next_cursor"].(string)
	if rest := list(p.token, "?limit=2&cursor="+cursor); cursor == "" || len(rest) != 1 || rest[0].(object)["id"] != all[2].(object)["id"] {
		t.Errorf("second page after %q: %v", cursor, rest)
	}
	e.want(e.send("GET", "/api/v1/auth/sessions?limit=0", p.token, nil), 422, "invalid_input")
	e.want(e.send("GET", "/api/v1/auth/sessions?limit=201", p.token, nil), 422, "invalid_input")
	// Nobody else's, and nothing that is none.
	id := all[1].(object)["id"].(string)
	e.want(e.send("DELETE", "/api/v1/auth/sessions/"+id, q.token, nil), 404, "not_found")
	e.want(e.send("DELETE", "/api/v1/auth/sessions/ses_nothing", p.token, nil), 404, "not_found")
	e.want(e.send("DELETE", "/api/v1/auth/sessions/"+id, p.token, nil), 204, "")
	e.want(e.send("DELETE", "/api/v1/auth/sessions/"+id, p.token, nil), 204, "")
	e.want(e.send("GET", "/api/v1/auth/me", second["token"].(string), nil), 401, "invalid_credential")
	e.want(e.send("GET", "/api/v1/auth/me", third["token"].(string), nil), 200, "")
	if n := len(list(p.token, "")); n != 2 {
		t.Errorf("%d sessions after one ended", n)
	}
	e.want(e.send("POST", "/api/v1/auth/logout-all", p.token, nil), 204, "")
	for _, token := range []string{p.token, third["token"].(string)} {
		e.want(e.send("GET", "/api/v1/auth/me", token, nil), 401, "invalid_credential")
	}
	e.want(e.send("GET", "/api/v1/auth/me", q.token, nil), 200, "")
}

func TestSessions_OldestEndsBeyondTheMost(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, func(cfg *authapi.Config) { cfg.Auth.MaxSessions = 2 })
	p := e.register()
	e.login(p)
	e.want(e.send("GET", "/api/v1/auth/me", p.token, nil), 200, "")
	last := e.login(p)["token"].(string)
	e.want(e.send("GET", "/api/v1/auth/me", p.token, nil), 401, "invalid_credential")
	ended := e.events(last, "?event=session.ended")
	if len(ended) != 1 || ended[0]["actor"].(object)["type"] != "system" || ended[0]["subject"].(object)["id"] != p.id {
		t.Fatalf("events %v", ended)
	}
	if d := ended[0]["detail"].(object); d["reason"] != "too_many_sessions" || d["sessions"] != "1" {
		t.Errorf("detail %v", d)
	}
}

func TestSessions_KeysHaveNone(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	key := e.createKey(p.token, p.org, "*")["key"].(string)
	for _, r := range [][2]string{{"POST", "/api/v1/auth/logout"}, {"POST", "/api/v1/auth/logout-all"}, {"GET", "/api/v1/auth/sessions"},
		{"POST", "/api/v1/auth/password"}, {"DELETE", "/api/v1/auth/sessions/ses_x"}, {"POST", "/api/v1/organizations"}} {
		e.want(e.send(r[0], r[1], key, nil), 403, "forbidden")
		e.want(e.send(r[0], r[1], "", nil), 401, "authentication_required")
	}
}

func TestPasswordChange(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	other := e.login(p)["token"].(string)
	const newPassword = "another-good-one-456"
	change := func(current, next string) answer {
		return e.send("POST", "/api/v1/auth/password", p.token, object{"current_password": current, "new_password": next})
	}
	e.want(change("wrong-password-1", newPassword), 401, "invalid_credentials")
	for _, c := range []struct{ current, next, field string }{
		{goodPassword, "short", "new_password"}, {goodPassword, goodPassword, "new_password"}, {"", newPassword, "current_password"},
	} {
		if f := e.fields(change(c.current, c.next)); !f[c.field] || len(f) != 1 {
			t.Errorf("%q -> %q: errors in %v", c.current, c.next, f)
		}
	}
	e.want(change(goodPassword, newPassword), 204, "")
	e.want(e.send("GET", "/api/v1/auth/me", other, nil), 401, "invalid_credential")
	e.want(e.send("GET", "/api/v1/auth/me", p.token, nil), 200, "")
	login := func(password string) answer {
		return e.send("POST", "/api/v1/auth/login", "", object{"username": p.name, "password": password})
	}
	e.want(login(goodPassword), 401, "invalid_credentials")
	e.want(login(newPassword), 200, "")
	// The guard holds here too, for whoever has stolen a token.
	for range 9 {
		e.want(change("wrong-password-1", newPassword), 401, "invalid_credentials")
	}
	e.want(change(newPassword, goodPassword), 429, "rate_limit_exceeded")
}

// The password is changed while a sign-in with the old one is being checked.
func TestLogin_PasswordChangedMeanwhile(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	e.cluster.SetOnPropose(func(cmd state.Command) (bool, error) {
		if c, ok := cmd.(state.StartSession); ok {
			e.cluster.ChangePasswordLocked(c.ByPassword.Session.UserID, "changed")
		}
		return false, nil
	})
	e.want(e.send("POST", "/api/v1/auth/login", "", object{"username": p.name, "password": goodPassword}), 401, "invalid_credentials")
}

func FuzzRefreshToken(f *testing.F) {
	keys := authapi.NewRefreshKeys(make([]byte, 32))
	const first = "rt_AZy3PTIYnVAcylIEswxcRAAAAAB3NnBNJAyxsYW7FAUU0qTaylrEkE59Emxyl_fM95tiaZWfWyuO_Dl8urJI1f1F_aQ"
	second, _ := keys.Next(first)
	f.Add(first)
	f.Add(second)
	f.Add("rt_")
	f.Fuzz(func(t *testing.T, text string) {
		next, session := keys.Next(text)
		if next == "" {
			return
		}
		if again, _ := keys.Next(text); again != next {
			t.Fatalf("two successors of %q", text)
		}
		if _, s := keys.Next(next); s != session {
			t.Fatalf("the successor of %q is of session %q, not %q", text, s, session)
		}
		if text != first && text != second {
			t.Fatalf("%q passes for genuine", text)
		}
	})
}

func TestRefreshKeys_AreTheClusters(t *testing.T) {
	t.Parallel()
	session := authapi.NewID("ses", start)
	a, b := authapi.NewRefreshKeys(make([]byte, 32)), authapi.NewRefreshKeys([]byte(strings.Repeat("k", 32)))
	token := a.First(session)
	if next, s := a.Next(token); next == "" || s != session {
		t.Errorf("Next(%q) = %q of %q", token, next, s)
	}
	if next, _ := b.Next(token); next != "" {
		t.Error("another cluster's token passes for genuine")
	}
	if token == a.First(session) {
		t.Error("two first tokens of a session are the same")
	}
}
