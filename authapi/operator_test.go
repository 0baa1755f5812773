package authapi_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"sluice/authapi"
	"sluice/limiter"
	"sluice/raftfsm/state"
)

var anOperator = authapi.Operator{Address: "10.0.0.9", UserAgent: "sluice/1"}

// problemCode is the code of a *Problem, "" for any other error and for none.
func problemCode(err error) string {
	var p *authapi.Problem
	if errors.As(err, &p) {
		return p.Code
	}
	return ""
}

// everyEvent is the operators' view of the audit log, newest first.
func (e *edge) everyEvent(query map[string]string) authapi.AuditPage {
	e.t.Helper()
	page, err := e.srv.AuditLog(func(name string) string { return query[name] })
	if err != nil {
		e.t.Fatalf("AuditLog: %v", err)
	}
	return page
}

func TestOperator_DisablesAndEnables(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	owner, p := e.register(), e.register()
	e.join(p, owner.org, state.RoleAdmin)
	made := e.createKey(p.token, owner.org, "api-keys:manage", "events:read")
	child := e.createKey(made["key"].(string), owner.org, "events:read")["key"].(string)
	others := e.createKey(owner.token, owner.org, "events:read")["key"].(string)
	status := func(credential string) int { return e.send("GET", "/api/v1/auth/me", credential, nil).status }
	for _, credential := range []string{p.token, made["key"].(string), child, others} {
		if got := status(credential); got != 200 {
			t.Fatalf("before: status %d", got)
		}
	}
	u, err := e.srv.SetUserDisabled(t.Context(), anOperator, p.name, true, "left the company")
	if err != nil || u.ID != p.id || u.DisabledAt == nil || len(u.Organizations) != 2 {
		t.Fatalf("disable: %+v, %v", u, err)
	}
	for name, credential := range map[string]string{"token": p.token, "key": made["key"].(string), "key's key": child} {
		e.want(e.send("GET", "/api/v1/auth/me", credential, nil), 401, "invalid_credential")
		if e.send("GET", "/api/v1/auth/verify", credential, nil).status != 401 {
			t.Errorf("%s passes the check", name)
		}
	}
	if status(others) != 200 || status(owner.token) != 200 {
		t.Error("somebody else is locked out")
	}
	e.want(e.doRefresh(p.refresh), 401, "session_ended")
	e.want(e.send("POST", "/api/v1/auth/login", "", object{"username": p.name, "password": goodPassword}), 401, "invalid_credentials")
	e.want(e.send("POST", "/api/v1/organizations/"+owner.org+"/members", owner.token, object{"username": p.name, "role": "viewer"}), 404, "not_found")

	// Again changes nothing, by whatever name.
	if _, err := e.srv.SetUserDisabled(t.Context(), anOperator, p.email, true, ""); err != nil {
		t.Error(err)
	}
	if _, err := e.srv.SetUserDisabled(t.Context(), anOperator, p.id, false, ""); err != nil {
		t.Fatal(err)
	}
	// Keys live again, sessions do not.
	if status(made["key"].(string)) != 200 || status(child) != 200 || status(p.token) != 401 {
		t.Errorf("after: key %d, its key %d, token %d", status(made["key"].(string)), status(child), status(p.token))
	}
	again := e.login(p)["token"].(string)
	events := e.events(again, "?event=user.*")
	if got := names(events); !slices.Equal(got, []string{"user.enabled", "user.disabled", "user.registered"}) {
		t.Errorf("events = %q", got)
	}
	if ev := events[1]; ev["actor"].(object)["type"] != "operator" || ev["ip"] != "10.0.0.9" || ev["detail"].(object)["note"] != "left the company" {
		t.Errorf("event = %v", ev)
	}
	for _, name := range []string{"nobody", "usr_none", "", "a@b", "no such name"} {
		if _, err := e.srv.SetUserDisabled(t.Context(), anOperator, name, true, ""); problemCode(err) != "not_found" {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := e.srv.SetUserDisabled(t.Context(), anOperator, p.name, true, strings.Repeat("x", 501)); problemCode(err) != "invalid_input" {
		t.Errorf("a long note: %v", err)
	}
}

// A user name that looks like an id does not shadow the user who has that id.
func TestOperator_IDsComeBeforeNames(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	e.want(e.send("POST", "/api/v1/auth/register", "", object{"username": p.id, "email": "impostor@example.com", "password": goodPassword}), 201, "")
	if u, err := e.srv.FindUser(p.id); err != nil || u.Username != p.name {
		t.Errorf("found %+v, %v", u, err)
	}
}

func TestOneTimePassword(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	login := func(body object) answer {
		body["username"] = p.name
		return e.send("POST", "/api/v1/auth/login", "", body)
	}
	set := func() string {
		t.Helper()
		made, err := e.srv.SetOneTimePassword(t.Context(), anOperator, p.name)
		if err != nil || made.UserID != p.id || len(made.Password) != 23 || made.ExpiresAt == "" {
			t.Fatalf("set: %+v, %v", made, err)
		}
		return made.Password
	}
	e.want(login(object{"password": goodPassword, "new_password": "another-good-one"}), 422, "invalid_input")
	first := set()
	e.want(e.send("GET", "/api/v1/auth/me", p.token, nil), 401, "invalid_credential")
	e.want(login(object{"password": goodPassword}), 401, "invalid_credentials")
	e.want(login(object{"password": first}), 403, "password_change_required")
	e.want(login(object{"password": "wrong-password-1", "new_password": "another-good-one"}), 401, "invalid_credentials")
	for _, bad := range []string{"short", first, "Password123"} {
		if f := e.fields(login(object{"password": first, "new_password": bad})); !f["new_password"] {
			t.Errorf("%q: errors in %v", bad, f)
		}
	}
	a := login(object{"password": first, "new_password": "another-good-one"})
	e.want(a, 200, "")
	token := a.object(t)["token"].(string)
	e.want(e.send("GET", "/api/v1/auth/me", token, nil), 200, "")
	// Once.
	e.want(login(object{"password": first, "new_password": "yet-another-one"}), 401, "invalid_credentials")
	e.want(login(object{"password": "another-good-one"}), 200, "")

	// A day, and no longer; a second one replaces the first.
	second := set()
	third := set()
	e.want(login(object{"password": second, "new_password": "yet-another-one"}), 401, "invalid_credentials")
	if u, err := e.srv.FindUser(p.name); err != nil || !u.HasPassword {
		t.Errorf("with a one-time password: %+v, %v", u, err)
	}
	e.clock.Advance(24 * time.Hour)
	e.want(login(object{"password": third, "new_password": "yet-another-one"}), 401, "invalid_credentials")
	if u, err := e.srv.FindUser(p.name); err != nil || u.HasPassword {
		t.Errorf("with one whose day is over: %+v, %v", u, err)
	}

	if _, err := e.srv.SetUserDisabled(t.Context(), anOperator, p.name, true, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := e.srv.SetOneTimePassword(t.Context(), anOperator, p.name); problemCode(err) != "conflict" {
		t.Errorf("of a disabled user: %v", err)
	}
	for _, ev := range e.everyEvent(nil).Data {
		if strings.Contains(encode(ev), first) || strings.Contains(encode(ev), third) {
			t.Errorf("a one-time password is in the audit log: %v", ev)
		}
	}
}

// Of two sign-ins with one one-time password, one replaces it.
func TestOneTimePassword_TwoAtOnce(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	made, err := e.srv.SetOneTimePassword(t.Context(), anOperator, p.name)
	if err != nil {
		t.Fatal(err)
	}
	raced := false
	e.cluster.SetOnPropose(func(cmd state.Command) (bool, error) {
		if _, ok := cmd.(state.SetPassword); ok && !raced {
			raced = true
			e.cluster.ChangePasswordLocked(p.id, "$argon2id$of-the-other")
		}
		return true, nil
	})
	e.want(e.send("POST", "/api/v1/auth/login", "", object{"username": p.name, "password": made.Password, "new_password": "another-good-one"}), 401, "invalid_credentials")
	if !raced {
		t.Error("nothing was raced")
	}
}

func TestOperator_SetsPlans(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, func(cfg *authapi.Config) { cfg.Limit.Plans = map[string]limiter.Rule{"gold": rule(5000)} })
	p := e.register()
	key := e.createKey(p.token, p.org, "organizations:read")["key"].(string)
	limit := func(credential string) string {
		t.Helper()
		a := e.send("GET", "/api/v1/organizations/"+p.org, credential, nil)
		e.want(a, 200, "")
		return a.header.Get("X-RateLimit-Limit")
	}
	if limit(key) != "1000000" {
		t.Fatalf("limit %s before", limit(key))
	}
	change, err := e.srv.SetPlan(t.Context(), anOperator, p.org, "gold")
	if err != nil || change.Plan == nil || *change.Plan != "gold" {
		t.Fatalf("set: %+v, %v", change, err)
	}
	if limit(key) != "5000" || limit(p.token) != "5000" {
		t.Errorf("limits %s and %s", limit(key), limit(p.token))
	}
	if got := e.send("GET", "/api/v1/organizations/"+p.org, p.token, nil).object(t)["plan"]; got != "gold" {
		t.Errorf("plan = %v", got)
	}
	e.want(e.send("PATCH", "/api/v1/organizations/"+p.org, p.token, object{"plan": "gold"}), 403, "forbidden")
	if change, err = e.srv.SetPlan(t.Context(), anOperator, p.org, ""); err != nil || change.Plan != nil || limit(key) != "1000000" {
		t.Errorf("unset: %+v, %v, limit %s", change, err, limit(key))
	}
	for _, c := range []struct{ org, plan, want string }{
		{p.org, "lead", "invalid_input"}, {"org_none", "gold", "not_found"}, {"", "gold", "not_found"}, {"x\x00y", "", "not_found"},
	} {
		if _, err := e.srv.SetPlan(t.Context(), anOperator, c.org, c.plan); problemCode(err) != c.want {
			t.Errorf("%q %q: %v, want %s", c.org, c.plan, err, c.want)
		}
	}
	events := e.events(p.token, "?event=organization.plan_changed")
	if len(events) != 2 || events[1]["detail"].(object)["plan"] != "gold" || events[1]["actor"].(object)["type"] != "operator" {
		t.Errorf("events = %v", events)
	}
}

func TestOperator_RotatesSigningKeys(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	made, err := e.srv.RotateSigningKey(t.Context(), anOperator)
	if err != nil || made.ID == "" || made.Algorithm != "HS256" || made.SignsFrom == "" {
		t.Fatalf("rotate: %+v, %v", made, err)
	}
	e.clock.Advance(authapi.KeyLead + time.Second)
	e.want(e.send("GET", "/api/v1/auth/me", p.token, nil), 200, "") // of the key before
	token := e.login(p)["token"].(string)
	if header, _, _ := strings.Cut(token, "."); header != authapi.TokenHeader("HS256", made.ID) {
		t.Errorf("signed by another key than %s", made.ID)
	}
	// An event of no organization: only operators see it.
	page := e.everyEvent(map[string]string{"event": "signing_key.rotated"})
	if len(page.Data) != 1 || page.Data[0].OrganizationID != nil || page.Data[0].Actor.Type != "operator" || *page.Data[0].Subject.ID != made.ID {
		t.Errorf("events = %+v", page.Data)
	}
	if got := e.events(token, "?event=signing_key.rotated"); len(got) != 0 {
		t.Errorf("a user reads %v", got)
	}
}

func TestOperator_ReadsEveryOrganizationsAuditLog(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p, q := e.register(), e.register()
	all := e.everyEvent(nil)
	if len(all.Data) != 6 || all.NextCursor != nil {
		t.Errorf("%d events", len(all.Data))
	}
	one := e.everyEvent(map[string]string{"organization_id": q.org})
	if len(one.Data) != 3 || *one.Data[0].OrganizationID != q.org {
		t.Errorf("of one organization: %+v", one.Data)
	}
	if by := e.everyEvent(map[string]string{"actor": p.id, "event": "session.*"}); len(by.Data) != 1 {
		t.Errorf("by actor: %+v", by.Data)
	}
	var got int
	query := map[string]string{"limit": "4"}
	for range 3 {
		page := e.everyEvent(query)
		got += len(page.Data)
		if page.NextCursor == nil {
			break
		}
		query["cursor"] = *page.NextCursor
	}
	if got != 6 {
		t.Errorf("pages gave %d events", got)
	}
	for _, bad := range []map[string]string{{"limit": "0"}, {"cursor": "%"}, {"since": "now"}, {"event": "*"}} {
		if _, err := e.srv.AuditLog(func(name string) string { return bad[name] }); problemCode(err) != "invalid_input" {
			t.Errorf("%v: %v", bad, err)
		}
	}
}
