package authapi_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sluice/raftfsm/state"
)

func TestCreateKey_Invalid(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	good := object{"name": "k", "organization_id": p.org, "scopes": []string{"events:read"}}
	for _, c := range []struct {
		change object
		want   string
	}{
		{object{"name": ""}, "name"},
		{object{"name": "   "}, "name"},
		{object{"name": nil}, "name"},
		{object{"name": strings.Repeat("x", 101)}, "name"},
		{object{"name": "a\u0000b"}, "name"},
		{object{"organization_id": nil}, "organization_id"},
		{object{"scopes": nil}, "scopes"},
		{object{"scopes": []string{}}, "scopes"},
		{object{"scopes": []string{"events:read", ""}}, "scopes"},
		{object{"scopes": []string{"nothing:read"}}, "scopes"},
		{object{"scopes": []string{"events"}}, "scopes"},
		{object{"scopes": []string{"events:"}}, "scopes"},
		{object{"scopes": []string{"events:Read"}}, "scopes"},
		{object{"scopes": []string{"events:re ad"}}, "scopes"},
		{object{"scopes": []string{"*:read"}}, "scopes"},
		{object{"scopes": []string{"**"}}, "scopes"},
		{object{"scopes": []string{"events:" + strings.Repeat("a", 100)}}, "scopes"},
		{object{"scopes": slices.Repeat([]string{"events:read"}, 101)}, "scopes"},
		{object{"environment": "prod"}, "environment"},
		{object{"environment": ""}, "environment"},
		{object{"expires_at": "tomorrow"}, "expires_at"},
		{object{"expires_at": ""}, "expires_at"},
		{object{"expires_at": start.Format(time.RFC3339)}, "expires_at"},
		{object{"expires_at": start.Add(-time.Hour).Format(time.RFC3339)}, "expires_at"},
		{object{"expires_at": "9999-01-01T00:00:00Z"}, "expires_at"},
		{object{"rate_limit": object{"limit": 0, "window_seconds": 60}}, "rate_limit.limit"},
		{object{"rate_limit": object{"limit": -1, "window_seconds": 60}}, "rate_limit.limit"},
		{object{"rate_limit": object{"limit": 10}}, "rate_limit.window_seconds"},
		{object{"rate_limit": object{"limit": 10, "window_seconds": 2678401}}, "rate_limit.window_seconds"},
		{object{"rate_limit": object{"limit": 1000000000001, "window_seconds": 60}}, "rate_limit.limit"},
		{object{"name": "", "scopes": []string{"x"}, "environment": "x", "expires_at": "x"}, "environment,expires_at,name,scopes"},
	} {
		body := object{}
		for _, from := range []object{good, c.change} {
			for k, v := range from {
				body[k] = v
			}
		}
		var got []string
		for f := range e.fields(e.send("POST", "/api/v1/api-keys", p.token, body)) {
			got = append(got, f)
		}
		slices.Sort(got)
		if strings.Join(got, ",") != c.want {
			t.Errorf("%v: errors in %q, want %q", c.change, got, c.want)
		}
	}
}

func TestCreateKey_Full(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	a := e.send("POST", "/api/v1/api-keys", p.token, object{
		"name": " Büro ", "organization_id": p.org, "scopes": []string{"events:*", "triggers:read", "events:*"}, "environment": "test",
		"expires_at": "2026-03-04T07:06:07.5+01:00", "rate_limit": object{"limit": 5, "window_seconds": 10},
	})
	e.want(a, 201, "")
	k := a.object(t)
	if k["name"] != "Büro" || encode(k["scopes"]) != `["events:*","triggers:read"]` || k["environment"] != "test" || k["expires_at"] != "2026-03-04T06:06:07Z" ||
		encode(k["rate_limit"]) != `{"limit":5,"window_seconds":10}` || !strings.HasPrefix(k["key"].(string), "sk_test_") || k["created_by"] != p.id {
		t.Errorf("created %s", a.body)
	}
	me := e.send("GET", "/api/v1/auth/me", k["key"].(string), nil)
	e.want(me, 200, "")
	if me.header.Get("X-RateLimit-Limit") != "5" || me.header.Get("X-RateLimit-Window") != "10" {
		t.Errorf("a key with a limit of its own: %v", me.header)
	}
	e.clock.Advance(time.Hour)
	e.want(e.send("GET", "/api/v1/auth/me", k["key"].(string), nil), 401, "invalid_credential")
}

// Every endpoint of keys and audit log, for every kind of caller.
func TestKeys_WhoMay(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	owner, admin, member, viewer, stranger := e.register(), e.register(), e.register(), e.register(), e.register()
	e.join(admin, owner.org, state.RoleAdmin)
	e.join(member, owner.org, state.RoleMember)
	e.join(viewer, owner.org, state.RoleViewer)
	managing := e.createKey(owner.token, owner.org, "api-keys:manage", "events:read", "audit-logs:read")["key"].(string)
	reading := e.createKey(owner.token, owner.org, "events:read")["key"].(string)
	foreign := e.createKey(stranger.token, stranger.org, "*")["key"].(string)
	callers := []struct {
		name, credential string
		status           int
	}{
		{"owner", owner.token, 200}, {"admin", admin.token, 200}, {"key that manages", managing, 200},
		{"member", member.token, 403}, {"viewer", viewer.token, 403}, {"key without the scope", reading, 403},
		{"stranger", stranger.token, 404}, {"key of strangers", foreign, 404}, {"anonymous", "", 401},
	}
	for _, c := range callers {
		target := e.createKey(owner.token, owner.org, "events:read")["id"].(string)
		path := "/api/v1/api-keys/" + target
		for _, r := range []struct {
			method, path string
			body         any
			good         int
		}{
			{"POST", "/api/v1/api-keys", object{"name": "k", "organization_id": owner.org, "scopes": []string{"events:read"}}, 201},
			{"GET", "/api/v1/api-keys?organization_id=" + owner.org, nil, 200},
			{"GET", path, nil, 200},
			{"PATCH", path, object{"name": "n"}, 200},
			{"POST", path + "/rotate", nil, 200},
			{"GET", "/api/v1/audit-logs?organization_id=" + owner.org, nil, 200},
			{"DELETE", path, nil, 204},
		} {
			want := c.status
			if want == 200 {
				want = r.good
			}
			if a := e.send(r.method, r.path, c.credential, r.body); a.status != want {
				t.Errorf("%s: %s %s: status %d, want %d: %s", c.name, r.method, r.path, a.status, want, a.body)
			}
		}
	}
	// Organizations are read by every member, and by a key with the scope.
	path := "/api/v1/organizations/" + owner.org
	for credential, want := range map[string]int{
		owner.token: 200, viewer.token: 200, stranger.token: 404, foreign: 404, reading: 403,
		e.createKey(owner.token, owner.org, "organizations:*")["key"].(string): 200,
	} {
		if a := e.send("GET", path, credential, nil); a.status != want {
			t.Errorf("GET organization: status %d, want %d: %s", a.status, want, a.body)
		}
	}
	for _, id := range []string{"org_none", "org_01kjvktcgrkn81sjjj0m346f8a", "x", "%22"} {
		e.want(e.send("GET", "/api/v1/organizations/"+id, owner.token, nil), 404, "not_found")
		e.want(e.send("GET", "/api/v1/api-keys?organization_id="+id, owner.token, nil), 404, "not_found")
		e.want(e.send("GET", "/api/v1/audit-logs?organization_id="+id, owner.token, nil), 404, "not_found")
		e.want(e.send("GET", "/api/v1/api-keys/"+id, owner.token, nil), 404, "not_found")
	}
	e.want(e.send("POST", "/api/v1/api-keys", owner.token, object{"name": "k", "organization_id": "org_none", "scopes": []string{"*"}}), 404, "not_found")
}

func TestKeys_NeverGrantMoreThanTheirMaker(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	maker := e.createKey(p.token, p.org, "api-keys:manage", "events:*")
	secret := maker["key"].(string)
	create := func(scopes ...string) answer {
		return e.send("POST", "/api/v1/api-keys", secret, object{"name": "k", "organization_id": p.org, "scopes": scopes})
	}
	for _, ok := range [][]string{{"events:read"}, {"events:*"}, {"api-keys:manage", "events:write"}} {
		a := create(ok...)
		e.want(a, 201, "")
		if a.object(t)["created_by"] != maker["id"] {
			t.Errorf("created_by = %v", a.object(t)["created_by"])
		}
	}
	for _, no := range [][]string{{"*"}, {"triggers:read"}, {"api-keys:*"}, {"events:read", "tokens:introspect"}} {
		e.want(create(no...), 403, "forbidden")
	}
	// Nor take over a stronger one: not its secret, not its scopes, not its life.
	strong := "/api/v1/api-keys/" + e.createKey(p.token, p.org, "*")["id"].(string)
	e.want(e.send("POST", strong+"/rotate", secret, nil), 403, "forbidden")
	e.want(e.send("PATCH", strong, secret, object{"name": "mine"}), 403, "forbidden")
	e.want(e.send("PATCH", strong, secret, object{"scopes": []string{"events:read"}}), 403, "forbidden")
	own := "/api/v1/api-keys/" + maker["id"].(string)
	e.want(e.send("PATCH", own, secret, object{"scopes": []string{"*"}}), 403, "forbidden")
	e.want(e.send("PATCH", own, secret, object{"name": "renamed"}), 200, "")

	// A key's key does not outlive it.
	a := e.send("POST", "/api/v1/api-keys", p.token, object{"name": "short", "organization_id": p.org, "scopes": []string{"api-keys:manage", "events:read"},
		"expires_at": "2026-03-05T00:00:00Z"})
	e.want(a, 201, "")
	short := a.object(t)["key"].(string)
	a = e.send("POST", "/api/v1/api-keys", short, object{"name": "k", "organization_id": p.org, "scopes": []string{"events:read"}})
	e.want(a, 201, "")
	if a.object(t)["expires_at"] != "2026-03-05T00:00:00Z" {
		t.Errorf("expires_at = %v", a.object(t)["expires_at"])
	}
	child := "/api/v1/api-keys/" + a.object(t)["id"].(string)
	for _, expires := range []any{nil, "2027-01-01T00:00:00Z"} {
		e.want(e.send("PATCH", child, short, object{"expires_at": expires}), 403, "forbidden")
	}
	e.want(e.send("POST", "/api/v1/api-keys", short, object{"name": "k", "organization_id": p.org, "scopes": []string{"events:read"},
		"expires_at": "2027-01-01T00:00:00Z"}), 403, "forbidden")
	e.want(e.send("PATCH", child, short, object{"expires_at": "2026-03-04T23:00:00Z"}), 200, "")
}

func TestUpdateKey(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	k := e.createKey(p.token, p.org, "events:read")
	path, secret := "/api/v1/api-keys/"+k["id"].(string), k["key"].(string)
	patch := func(body any) object {
		t.Helper()
		a := e.send("PATCH", path, p.token, body)
		e.want(a, 200, "")
		return a.object(t)
	}
	got := patch(object{"name": "new", "scopes": []string{"triggers:*"}, "expires_at": "2026-04-01T00:00:00Z", "rate_limit": object{"limit": 7, "window_seconds": 30}})
	if got["name"] != "new" || encode(got["scopes"]) != `["triggers:*"]` || got["expires_at"] != "2026-04-01T00:00:00Z" ||
		encode(got["rate_limit"]) != `{"limit":7,"window_seconds":30}` || got["key"] != nil {
		t.Errorf("patched: %v", got)
	}
	me := e.send("GET", "/api/v1/auth/me", secret, nil)
	if me.header.Get("X-RateLimit-Limit") != "7" || encode(me.object(t)["auth"].(object)["scopes"]) != `["triggers:*"]` {
		t.Errorf("after the change: %s %v", me.body, me.header)
	}
	got = patch(object{"expires_at": nil, "rate_limit": nil})
	if got["expires_at"] != nil || got["rate_limit"] != nil || got["name"] != "new" {
		t.Errorf("patched with null: %v", got)
	}
	before := e.cluster.Index()
	patch(object{})
	if e.cluster.Index() != before {
		t.Error("an empty change made a log entry")
	}
	for _, c := range []struct {
		body  any
		field string
	}{
		{object{"name": nil}, "name"}, {object{"name": ""}, "name"}, {object{"name": 5}, "name"}, {object{"scopes": nil}, "scopes"},
		{object{"scopes": []string{}}, "scopes"}, {object{"scopes": "events:read"}, "scopes"}, {object{"scopes": []any{1}}, "scopes"},
		{object{"expires_at": "2020-01-01T00:00:00Z"}, "expires_at"}, {object{"expires_at": 5}, "expires_at"},
		{object{"rate_limit": object{"limit": 0, "window_seconds": 1}}, "rate_limit.limit"}, {object{"rate_limit": object{"limits": 1}}, "rate_limit"},
		{object{"rate_limit": 5}, "rate_limit"},
	} {
		if f := e.fields(e.send("PATCH", path, p.token, c.body)); !f[c.field] {
			t.Errorf("%v: errors in %v, want %s", c.body, f, c.field)
		}
	}
	e.want(e.send("PATCH", path, p.token, object{"environment": "test"}), 400, "invalid_json")
	e.want(e.send("PATCH", path, p.token, object{"key": "x"}), 400, "invalid_json")
}

func TestRotateKey_Invalid(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	path := "/api/v1/api-keys/" + e.createKey(p.token, p.org, "events:read")["id"].(string) + "/rotate"
	for _, grace := range []int{-1, 604801} {
		if f := e.fields(e.send("POST", path, p.token, object{"grace_period_seconds": grace})); !f["grace_period_seconds"] {
			t.Errorf("grace of %d: errors in %v", grace, f)
		}
	}
	e.want(e.send("POST", path, p.token, object{"grace_period_seconds": 1.5}), 400, "invalid_json")
	e.want(e.send("POST", path, p.token, object{"grace_period_seconds": 604800}), 200, "")
	e.want(e.send("POST", path, p.token, object{}), 200, "")
}

// Of rotations at the same time, each that succeeds replaced the one before, and the last secret is the key's.
func TestRotateKey_ManyAtOnce(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	k := e.createKey(p.token, p.org, "events:read")
	path := "/api/v1/api-keys/" + k["id"].(string) + "/rotate"
	var wg sync.WaitGroup
	answers := make([]answer, 8)
	for i := range answers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			answers[i] = e.send("POST", path, p.token, nil)
		}()
	}
	wg.Wait()
	alive := 0
	for _, a := range answers {
		switch a.status {
		case 200:
			if e.send("GET", "/api/v1/auth/me", a.object(t)["key"].(string), nil).status == 200 {
				alive++
			}
		case 409:
		default:
			t.Errorf("status %d: %s", a.status, a.body)
		}
	}
	if alive != 1 {
		t.Errorf("%d secrets are alive, want 1", alive)
	}
}

func TestListKeys_Pages(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	var want, got []string
	for range 5 {
		want = append(want, e.createKey(p.token, p.org, "events:read")["id"].(string))
	}
	e.want(e.send("DELETE", "/api/v1/api-keys/"+want[2], p.token, nil), 204, "")
	want = slices.Delete(want, 2, 3)
	cursor := ""
	for range 5 {
		a := e.send("GET", "/api/v1/api-keys?limit=2&organization_id="+p.org+cursor, p.token, nil)
		e.want(a, 200, "")
		for _, k := range a.object(t)["data"].([]any) {
			got = append(got, k.(object)["id"].(string))
			if k.(object)["key"] != nil {
				t.Errorf("a list shows a secret: %v", k)
			}
		}
		next, ok := a.object(t)["next_cursor"].(string)
		if !ok {
			break
		}
		cursor = "&cursor=" + next
	}
	if !slices.Equal(got, want) {
		t.Errorf("listed %q, want %q", got, want)
	}
	e.want(e.send("GET", "/api/v1/api-keys?cursor=***", p.token, nil), 422, "invalid_input")
}

func TestOrganizations(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	for _, bad := range []any{object{"name": ""}, object{"name": strings.Repeat("x", 101)}, object{"name": "a\nb"}, object{}} {
		if f := e.fields(e.send("POST", "/api/v1/organizations", p.token, bad)); !f["name"] {
			t.Errorf("%v: errors in %v", bad, f)
		}
	}
	want := []string{p.org}
	for i := range 4 {
		a := e.send("POST", "/api/v1/organizations", p.token, object{"name": fmt.Sprintf(" Org %d ", i)})
		e.want(a, 201, "")
		o := a.object(t)
		if o["name"] != fmt.Sprintf("Org %d", i) || o["personal"] != false || o["role"] != "owner" {
			t.Errorf("created %s", a.body)
		}
		want = append(want, o["id"].(string))
		got := e.send("GET", "/api/v1/organizations/"+o["id"].(string), p.token, nil)
		if got.body != a.body {
			t.Errorf("read %s, created %s", got.body, a.body)
		}
	}
	var got []string
	cursor := ""
	for range 5 {
		a := e.send("GET", "/api/v1/organizations?limit=2"+cursor, p.token, nil)
		for _, o := range a.object(t)["data"].([]any) {
			got = append(got, o.(object)["id"].(string))
		}
		next, ok := a.object(t)["next_cursor"].(string)
		if !ok {
			break
		}
		cursor = "&cursor=" + next
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("listed %q, want %q", got, want)
	}
	key := e.createKey(p.token, p.org, "organizations:read")["key"].(string)
	a := e.send("GET", "/api/v1/organizations", key, nil)
	if d := a.object(t)["data"].([]any); len(d) != 1 || d[0].(object)["id"] != p.org || d[0].(object)["role"] != nil {
		t.Errorf("a key lists %s", a.body)
	}
}

func TestAuditLog_Filters(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	e.clock.Advance(time.Minute)
	key := e.createKey(p.token, p.org, "api-keys:manage", "audit-logs:read")
	e.clock.Advance(time.Minute)
	made := e.createKey(key["key"].(string), p.org, "audit-logs:read")
	e.clock.Advance(time.Minute)
	e.want(e.send("DELETE", "/api/v1/api-keys/"+made["id"].(string), key["key"].(string), nil), 204, "")
	for query, want := range map[string]string{
		"":                 "api_key.revoked api_key.created api_key.created session.created organization.created user.registered",
		"?event=api_key.*": "api_key.revoked api_key.created api_key.created",
		"?event=api_key.created&actor=" + key["id"].(string): "api_key.created",
		"?actor=" + p.id:                                                   "api_key.created session.created organization.created user.registered",
		"?since=2026-03-04T05:08:07Z":                                      "api_key.revoked api_key.created",
		"?until=2026-03-04T05:08:07Z":                                      "api_key.created session.created organization.created user.registered",
		"?since=2026-03-04T05:07:07Z&until=2026-03-04T05:08:07Z":           "api_key.created",
		"?since=2026-03-04T06:07:07%2B01:00&until=2026-03-04T05:08:07.00Z": "api_key.created",
		"?event=nothing.happened":                                          "",
		"?actor=usr_none":                                                  "",
	} {
		if got := strings.Join(names(e.events(key["key"].(string), query)), " "); got != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
	for _, bad := range []string{"?since=yesterday", "?until=1", "?event=x", "?event=*", "?event=a.b.c", "?event=A.b", "?limit=x"} {
		e.want(e.send("GET", "/api/v1/audit-logs"+bad, p.token, nil), 422, "invalid_input")
	}
	ev := e.events(p.token, "?event=api_key.revoked")[0]
	if ev["actor"].(object)["type"] != "api_key" || ev["actor"].(object)["id"] != key["id"] || ev["subject"].(object)["id"] != made["id"] ||
		ev["ip"] != "127.0.0.1" || ev["result"] != "success" || ev["request_id"] == nil || ev["at"] != "2026-03-04T05:09:07Z" || ev["organization_id"] != p.org {
		t.Errorf("event = %v", ev)
	}
	// Pages.
	var got []string
	cursor := ""
	for range 5 {
		a := e.send("GET", "/api/v1/audit-logs?limit=4"+cursor, p.token, nil)
		for _, o := range a.object(t)["data"].([]any) {
			got = append(got, o.(object)["event"].(string))
		}
		next, ok := a.object(t)["next_cursor"].(string)
		if !ok {
			break
		}
		cursor = "&cursor=" + next
	}
	if len(got) != 6 {
		t.Errorf("pages gave %q", got)
	}
}
