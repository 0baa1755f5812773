package authapi_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"sluice/authapi"
	"sluice/limiter"
	"sluice/raftfsm/state"
)

// incidents are the events of a kind in the whole log, newest first.
func (e *edge) incidents(event string) []state.AuditEvent {
	e.t.Helper()
	list, _, err := e.cluster.Audit(state.AuditFilter{Event: event}, "", 100_000)
	if err != nil {
		e.t.Fatal(err)
	}
	return list
}

func detail(e state.AuditEvent, name string) string {
	for _, p := range e.Detail {
		if p.Name == name {
			return p.Value
		}
	}
	return ""
}

func attempts(events []state.AuditEvent) (n int) {
	for _, e := range events {
		k, _ := strconv.Atoi(detail(e, "attempts"))
		n += k
	}
	return n
}

func TestCredentialFailed_IsAudited(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	made := func() (object, string) {
		k := e.createKey(p.token, p.org, "events:read")
		return k, k["key"].(string)
	}
	_, good := made()
	revoked, revokedSecret := made()
	e.want(e.send("DELETE", "/api/v1/api-keys/"+revoked["id"].(string), p.token, nil), 204, "")
	replaced, replacedSecret := made()
	e.want(e.send("POST", "/api/v1/api-keys/"+replaced["id"].(string)+"/rotate", p.token, nil), 200, "")
	a := e.send("POST", "/api/v1/api-keys", p.token, object{"name": "k", "organization_id": p.org, "scopes": []string{"events:read"}, "expires_at": "2026-03-04T05:07:00Z"})
	expired := a.object(t)
	unknown, _, _ := authapi.NewAPIKey("live")
	ended := e.register()
	second := e.login(ended)["token"].(string)
	e.want(e.send("POST", "/api/v1/auth/logout", ended.token, nil), 204, "")
	e.clock.Advance(time.Minute)
	for i, c := range []struct {
		why, credential, org, subject string
	}{
		{"mistyped", good[:len(good)-1] + "_", "", ""},
		{"unknown", unknown, "", ""},
		{"revoked", revokedSecret, p.org, revoked["id"].(string)},
		{"replaced", replacedSecret, p.org, replaced["id"].(string)},
		{"expired", expired["key"].(string), p.org, expired["id"].(string)},
		{"invalid", p.token[:len(p.token)-5], "", ""},
		{"session_ended", ended.token, ended.org, ended.session},
	} {
		source := fmt.Sprintf("2001:db8:0:%x::5", i+1)
		e.want(e.send("GET", "/api/v1/auth/me", c.credential, nil, "X-Forwarded-For", source, "User-Agent", "probe", "X-Request-Id", "req-"+c.why), 401, "invalid_credential")
		var got state.AuditEvent
		eventually(t, c.why+" is audited", func() bool {
			for _, ev := range e.incidents("credential.failed") {
				if ev.RequestID == "req-"+c.why {
					got = ev
					return true
				}
			}
			return false
		})
		if got.OrganizationID != c.org || got.SubjectID != c.subject || got.IP != source || got.UserAgent != "probe" || got.Result != "failure" ||
			got.ActorType != "anonymous" || detail(got, "reason") != c.why || detail(got, "attempts") != "1" {
			t.Errorf("%s: %+v", c.why, got)
		}
	}
	// The owner sees those of the organization, and nobody else's.
	if got := names(e.events(p.token, "?event=credential.failed&result=failure")); len(got) != 3 {
		t.Errorf("the owner sees %q", got)
	}
	for i, c := range []struct{ header, value, why string }{{"X-API-Key", "nonsense", "malformed"}, {"Authorization", "Basic eDp5", "malformed"}} {
		e.want(e.do("GET", "/api/v1/auth/verify", "", c.header, c.value, "X-Forwarded-For", fmt.Sprintf("192.0.2.%d", 50+i)), 401, "invalid_credential")
	}
	raw := ended.refresh[:60] + strings.Map(func(r rune) rune { return map[bool]rune{true: 'B', false: 'A'}[r == 'A'] }, ended.refresh[60:61]) + ended.refresh[61:]
	e.want(e.send("POST", "/api/v1/auth/refresh", "", object{"refresh_token": raw}, "X-Forwarded-For", "192.0.2.60"), 401, "invalid_refresh_token")
	e.want(e.send("POST", "/api/v1/auth/refresh", "", object{"refresh_token": ended.refresh}, "X-Forwarded-For", "192.0.2.61"), 401, "session_ended")
	eventually(t, "the others are audited", func() bool { return len(e.incidents("credential.failed")) == 11 })
	var why []string
	for _, ev := range e.incidents("credential.failed")[:4] {
		why = append(why, detail(ev, "reason"))
	}
	slices.Sort(why)
	if !slices.Equal(why, []string{"malformed", "malformed", "refresh_invalid", "session_ended"}) {
		t.Errorf("reasons %q", why)
	}
	e.want(e.send("POST", "/api/v1/auth/refresh", "", object{"refresh_token": ended.refresh}, "X-Forwarded-For", "192.0.2.61"), 401, "session_ended")
	// The second of one source comes a minute later, as a number.
	e.srv.FlushIncidents(t.Context())
	if n := len(e.incidents("credential.failed")); n != 11 {
		t.Errorf("%d events before the minute is over", n)
	}
	e.clock.Advance(61 * time.Second)
	eventually(t, "the repetition is audited", func() bool { return len(e.incidents("credential.failed")) == 12 })
	if ev := e.incidents("credential.failed")[0]; ev.IP != "192.0.2.61" || ev.OrganizationID != ended.org {
		t.Errorf("the repetition: %+v", ev)
	}
	e.want(e.send("GET", "/api/v1/auth/me", second, nil), 200, "")
	// Nothing of a credential is in the log.
	all, _, _ := e.cluster.Audit(state.AuditFilter{}, "", 1000)
	for _, secret := range []string{revokedSecret, ended.refresh, raw, ended.token} {
		if strings.Contains(fmt.Sprint(all), secret) {
			t.Error("the audit log has a credential in it")
		}
	}
}

func TestAccessDenied_IsAudited(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, func(cfg *authapi.Config) { apiRoutes(cfg) })
	p, member, stranger := e.register(), e.register(), e.register()
	e.join(member, p.org, state.RoleMember)
	reading := e.createKey(p.token, p.org, "events:read")
	foreign := e.createKey(stranger.token, stranger.org, "*")
	foreignID := foreign["id"].(string)
	for i, c := range []struct {
		name, method, path, credential string
		status                         int
		org, actor, subject, reason    string
	}{
		{"a key's scope", "GET", "/api/v1/api-keys", reading["key"].(string), 403, p.org, reading["id"].(string), "GET /api/v1/api-keys", "insufficient_scope"},
		{"a role", "GET", "/api/v1/api-keys?organization_id=" + p.org, member.token, 403, member.org, member.id, "GET /api/v1/api-keys", "forbidden"},
		{"a foreign organization", "GET", "/api/v1/audit-logs?organization_id=" + stranger.org, p.token, 404, p.org, p.id, stranger.org, "foreign"},
		{"a foreign organization by a key", "GET", "/api/v1/api-keys?organization_id=" + p.org, foreign["key"].(string), 404, stranger.org, foreignID, p.org, "foreign"},
		{"a foreign key", "DELETE", "/api/v1/api-keys/" + foreignID, p.token, 404, p.org, p.id, foreignID, "foreign"},
		{"a foreign session", "DELETE", "/api/v1/auth/sessions/" + stranger.session, p.token, 404, p.org, p.id, stranger.session, "foreign"},
		{"a forward-auth check", "GET", "/api/v1/auth/verify?scope=triggers:write", reading["key"].(string), 403, p.org, reading["id"].(string), "ANY /api/v1/auth/verify", "insufficient_scope"},
	} {
		e.want(e.send(c.method, c.path, c.credential, nil, "X-Request-Id", fmt.Sprint("denied-", i)), c.status, "")
		var got state.AuditEvent
		eventually(t, c.name+" is audited", func() bool {
			for _, ev := range e.incidents("access.denied") {
				if ev.RequestID == fmt.Sprint("denied-", i) {
					got = ev
					return true
				}
			}
			return false
		})
		if got.OrganizationID != c.org || got.ActorID != c.actor || got.SubjectID != c.subject || got.Result != "denied" || detail(got, "reason") != c.reason {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
	if got := e.events(p.token, "?result=denied&subject="+url.QueryEscape("GET /api/v1/api-keys")); len(got) != 1 || got[0]["subject"].(object)["type"] != "endpoint" {
		t.Errorf("by subject: %v", got)
	}
	// A gateway's route is named as it is configured, whatever the method calls itself.
	e.want(e.do(strings.Repeat("X", 9000), "/api/v1/auth/verify", "", "X-API-Key", reading["key"].(string), "X-Forwarded-Method", "POST",
		"X-Forwarded-Uri", "/api/v1/events"), 403, "insufficient_scope")
	e.srv.FlushIncidents(t.Context())
	eventually(t, "the route is named", func() bool { return e.incidents("access.denied")[0].SubjectID == "route events" })
	// What does not exist is not another's, and nobody was not denied anything.
	before := len(e.incidents("access.denied"))
	e.want(e.send("GET", "/api/v1/api-keys/key_none", p.token, nil), 404, "")
	e.want(e.send("GET", "/api/v1/organizations/org_none", p.token, nil), 404, "")
	e.want(e.send("DELETE", "/api/v1/auth/sessions/ses_none", p.token, nil), 404, "")
	e.want(e.send("GET", "/api/v1/api-keys", "", nil), 401, "")
	e.srv.FlushIncidents(t.Context())
	if got := len(e.incidents("access.denied")); got != before {
		t.Errorf("%d events more", got-before)
	}
}

// An attack from very many addresses makes few events, of which none is lost in number, and does not hide what concerns
// an organization.
func TestIncidents_AFloodIsBounded(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, func(cfg *authapi.Config) {
		cfg.Limit.Anonymous = limiter.Rule{Limit: 1e9, Window: 60, Algorithm: limiter.SlidingWindow}
	})
	p := e.register()
	k := e.createKey(p.token, p.org, "events:read")
	e.want(e.send("DELETE", "/api/v1/api-keys/"+k["id"].(string), p.token, nil), 204, "")
	e.srv.FlushIncidents(t.Context())
	before := e.cluster.Index()
	const sources, each = 1500, 2
	send := func(i int) {
		e.do("GET", "/api/v1/auth/verify", "", "X-API-Key", "sk_live_x", "X-Forwarded-For", fmt.Sprintf("10.0.%d.%d", i/250, i%250))
	}
	for range each {
		for i := range sources {
			send(i)
		}
	}
	e.want(e.do("GET", "/api/v1/auth/verify", "", "X-API-Key", k["key"].(string), "X-Forwarded-For", "192.0.2.1"), 401, "")
	eventually(t, "the organization's event", func() bool { return len(e.events(p.token, "?event=credential.failed")) == 1 })
	e.srv.FlushIncidents(t.Context())
	if got := len(e.incidents("credential.failed")); got > 16+1 {
		t.Errorf("%d events in the first minute", got)
	}
	if got := e.cluster.Index() - before; got > 70 {
		t.Errorf("%d log entries in the first minute", got)
	}
	for range 2 {
		e.clock.Advance(61 * time.Second)
		e.srv.FlushIncidents(t.Context())
	}
	list := e.incidents("credential.failed")
	if got := attempts(list); got != sources*each+1 {
		t.Errorf("%d attempts counted, want %d", got, sources*each+1)
	}
	if got := len(list); got > 2*16+1+2 {
		t.Errorf("%d events in three minutes", got)
	}
	if !slices.ContainsFunc(list, func(ev state.AuditEvent) bool { return detail(ev, "reason") == "others" && ev.OrganizationID == "" }) {
		t.Error("no event sums up the others")
	}
	// And the next minute is like the first.
	for i := range 40 {
		send(i)
	}
	e.srv.FlushIncidents(t.Context())
	if got := len(e.incidents("credential.failed")) - len(list); got != 16 {
		t.Errorf("%d events in another minute, want 16", got)
	}
}

func TestIncidents_SurviveAnOutage(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	e.cluster.SetUnavailable(authapi.ErrUnavailable)
	fail := func() {
		t.Helper()
		e.want(e.do("GET", "/api/v1/auth/verify", "", "X-API-Key", "sk_live_x"), 401, "invalid_credential")
	}
	fail()
	e.srv.FlushIncidents(t.Context())
	for range 3 {
		fail()
		e.clock.Advance(2 * time.Minute)
		e.srv.FlushIncidents(t.Context())
	}
	e.cluster.SetUnavailable(nil)
	e.srv.FlushIncidents(t.Context())
	e.srv.FlushIncidents(t.Context())
	list := e.incidents("credential.failed")
	if attempts(list) != 4 || len(list) != 2 {
		t.Errorf("%d attempts in %d events after the outage: %+v", attempts(list), len(list), list)
	}
	if ev := list[0]; detail(ev, "first_at") == "" || detail(ev, "last_at") == "" || detail(ev, "first_at") == detail(ev, "last_at") {
		t.Errorf("the event for several: %+v", ev)
	}
	// An entry whose outcome is unknown does not make an event twice.
	tries := 0
	e.cluster.SetOnPropose(func(cmd state.Command) (bool, error) {
		if _, ok := cmd.(state.AppendAudit); ok && tries == 0 {
			tries++
			return true, authapi.ErrUnavailable // what a leader may say that did it all the same
		}
		return false, nil
	})
	e.want(e.do("GET", "/api/v1/auth/verify", "", "X-API-Key", "sk_live_x", "X-Forwarded-For", "192.0.2.8"), 401, "")
	e.srv.FlushIncidents(t.Context())
	e.srv.FlushIncidents(t.Context())
	ids := map[string]bool{}
	for _, ev := range e.incidents("credential.failed") {
		ids[ev.ID] = true
	}
	if len(ids) != 3 {
		t.Errorf("%d events, want 3", len(ids))
	}
}

// A guessed key fails by its checksum: nothing is looked up for it, here or at the leader.
func TestKeyGuessing_IsRefusedWithoutALookUp(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	good := e.createKey(p.token, p.org, "events:read")["key"].(string)
	before := e.cluster.CatchUps()
	e.cluster.Fail(errors.New("a look-up")) // which any read would turn into a 500
	const digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 2000 {
		guess := []byte(good)
		switch i % 3 {
		case 0: // anything
			for j := len("sk_live_"); j < len(guess); j++ {
				guess[j] = digits[random.IntN(62)]
			}
		case 1: // one character off a good one
			j := len("sk_live_") + random.IntN(len(guess)-len("sk_live_"))
			guess[j] = digits[(strings.IndexByte(digits, guess[j])+1+random.IntN(61))%62]
		case 2: // two exchanged, or the other environment
			if i, j := 8+random.IntN(38), 8+random.IntN(38); guess[i] != guess[j] {
				guess[i], guess[j] = guess[j], guess[i]
			} else {
				copy(guess, "sk_test_")
			}
		}
		a := e.do("GET", "/api/v1/auth/verify", "", "X-API-Key", string(guess))
		if a.status != 401 || a.problem(t).Code != "invalid_credential" {
			t.Fatalf("%s: %d %s", guess, a.status, a.body)
		}
	}
	if got := e.cluster.CatchUps(); got != before {
		t.Errorf("%d catch-ups", got-before)
	}
	e.want(e.do("GET", "/api/v1/auth/verify", "", "X-API-Key", good), 500, "internal_error") // the cache was never warm: it is looked up
	e.cluster.Fail(nil)
	e.srv.FlushIncidents(t.Context())
	if list := e.incidents("credential.failed"); len(list) == 0 || detail(list[0], "reason") != "mistyped" {
		t.Errorf("events %+v", list)
	}
}
