package systemtest

import (
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"strings"
)

// The parts of TestContract, each about some rows of the API.

func (w *walk) accounts(who people) {
	const register, login, me = "POST /api/v1/auth/register", "POST /api/v1/auth/login", "GET /api/v1/auth/me"
	const refresh, password = "POST /api/v1/auth/refresh", "POST /api/v1/auth/password"
	pair := []string{"token", "token_type", "expires_at", "refresh_token", "refresh_expires_at"}
	name, secret := unique("walker"), "seven lamps by the tide"
	body := func(name, email string) object { return object{"username": name, "email": email, "password": secret} }
	res := w.once(call{op: register, body: body(name, name+"@example.com")}, 201, body(name+"x", name+"@example.com"))
	w.has(res, append(pair, "user", "organization")...)
	first := res.field(w.t, "token")
	w.do(call{op: register, body: body(strings.ToUpper(name), "x"+name+"@example.com"), code: "username_taken"}, 409)
	w.do(call{op: register, body: body(name+"y", strings.ToUpper(name)+"@example.com"), code: "email_taken"}, 409)
	w.do(call{op: register, body: object{"username": "a@b", "email": "x", "password": "short"}, code: "invalid_input"}, 422)

	signIn := func(password string) response {
		return w.do(call{op: login, body: object{"username": name + "@example.com", "password": password}}, 200)
	}
	res = signIn(secret)
	w.has(res, pair...)
	unknown := w.do(call{op: login, body: object{"username": "nobody-at-all", "password": secret}, code: "invalid_credentials"}, 401)
	wrong := w.do(call{op: login, body: object{"username": name, "password": secret + "x"}, code: "invalid_credentials"}, 401)
	if unknown.field(w.t, "detail") != wrong.field(w.t, "detail") {
		w.t.Error("a wrong password and an unknown user are told apart")
	}
	w.do(call{op: login, body: object{}, code: "invalid_input"}, 422)

	spend := func(token string, status int, code string) response {
		return w.do(call{op: refresh, body: object{"refresh_token": token}, code: code}, status)
	}
	zero := res.field(w.t, "refresh_token")
	one := spend(zero, 200, "")
	w.has(one, pair...)
	again := spend(zero, 200, "")
	if one.field(w.t, "refresh_token") != again.field(w.t, "refresh_token") {
		w.t.Error("two successors of one refresh token")
	}
	two := spend(one.field(w.t, "refresh_token"), 200, "")
	spend(zero, 401, "refresh_token_reused")
	w.do(call{op: me, token: two.field(w.t, "token"), code: "invalid_credential"}, 401)
	spend("rt_nothing", 401, "invalid_refresh_token")
	spend("", 422, "invalid_input")

	w.has(w.do(call{op: me, token: first}, 200), "user", "auth")
	if res := w.do(call{op: me, key: who.foreign}, 200); !strings.Contains(string(res.body), `"user":null`) {
		w.t.Errorf("me of a key: %v", res)
	}
	w.do(call{op: me, token: first, header: map[string]string{"X-API-Key": who.foreign}, code: "invalid_request"}, 400)

	const sessions, endSession = "GET /api/v1/auth/sessions", "DELETE /api/v1/auth/sessions/{id}"
	second := signIn(secret).field(w.t, "token")
	w.has(w.do(call{op: sessions, token: first}, 200), "data", "next_cursor")
	w.do(call{op: sessions, token: first, query: "?limit=201", code: "invalid_input"}, 422)
	page := w.do(call{op: sessions, token: first, query: "?limit=1"}, 200)
	next := w.do(call{op: sessions, token: first, query: "?limit=1&cursor=" + page.field(w.t, "next_cursor")}, 200)
	var list struct{ Data []struct{ ID string } }
	if err := json.Unmarshal(next.body, &list); err != nil || len(list.Data) != 1 {
		w.t.Fatalf("second page: %v", next)
	}
	w.do(call{op: endSession, args: []string{list.Data[0].ID}, token: who.stranger.token, code: "not_found"}, 404)
	w.do(call{op: endSession, args: []string{list.Data[0].ID}, token: first}, 204)
	w.do(call{op: me, token: second, code: "invalid_credential"}, 401)

	changed := secret + " and more"
	change := func(from, to string, status int, code string) {
		w.t.Helper()
		w.do(call{op: password, token: first, body: object{"current_password": from, "new_password": to}, code: code}, status)
	}
	other := signIn(secret).field(w.t, "token")
	change(secret+"x", changed, 401, "invalid_credentials")
	change(secret, "short", 422, "invalid_input")
	change(secret, changed, 204, "")
	w.do(call{op: me, token: first}, 200)
	w.do(call{op: me, token: other, code: "invalid_credential"}, 401)

	other = signIn(changed).field(w.t, "token")
	w.changedAtOnce()
	w.do(call{op: "POST /api/v1/auth/logout", token: other}, 204)
	w.do(call{op: me, token: other, code: "invalid_credential"}, 401)
	w.do(call{op: "POST /api/v1/auth/logout-all", token: first}, 204)
	w.do(call{op: me, token: first, code: "invalid_credential"}, 401)

	const end = "DELETE /api/v1/auth/me"
	last := signIn(changed).field(w.t, "token")
	w.do(call{op: end, token: last, body: object{}, code: "invalid_input"}, 422)
	w.do(call{op: end, token: last, body: object{"password": "not it at all"}, code: "invalid_credentials"}, 401)
	owner := who.byRole["owner"]
	w.do(call{op: end, token: owner.token, body: object{"password": owner.password}, code: "last_owner"}, 409)
	w.do(call{op: end, token: last, body: object{"password": changed}}, 204)
	w.do(call{op: me, token: last, code: "invalid_credential"}, 401)
	w.do(call{op: login, body: object{"username": name, "password": changed}, code: "invalid_credentials"}, 401)

	// A one-time password opens nothing but the way to another.
	once, _, _ := strings.Cut(w.c.operate(w.t, 2, "user", "set-password", who.free.username), "\n")
	w.do(call{op: login, body: object{"username": who.free.username, "password": once}, code: "password_change_required"}, 403)
}

func (w *walk) organizations(who people, at *place) {
	const all, one, members = "POST /api/v1/organizations", "/api/v1/organizations/{id}", "/api/v1/organizations/{id}/members"
	const member = members + "/{user_id}"
	owner, admin := who.byRole["owner"], who.byRole["admin"]
	w.has(w.once(call{op: all, token: owner.token, body: object{"name": "Once"}}, 201, object{"name": "Twice"}),
		"id", "name", "personal", "plan", "role", "created_at")
	w.atOnce(owner)
	w.do(call{op: all, token: owner.token, body: object{"name": " "}, code: "invalid_input"}, 422)
	w.do(call{op: "GET /api/v1/organizations", key: at.keys["organizations:read"]}, 200)
	w.do(call{op: "GET /api/v1/organizations", key: at.keys["events:read"], code: "insufficient_scope"}, 403)
	page := w.do(call{op: "GET /api/v1/organizations", token: owner.token, query: "?limit=1"}, 200)
	w.do(call{op: "GET /api/v1/organizations", token: owner.token, query: "?cursor=" + page.field(w.t, "next_cursor")}, 200)
	w.do(call{op: "GET /api/v1/organizations", token: owner.token, query: "?cursor=%2A", code: "invalid_input"}, 422)
	w.do(call{op: "PATCH " + one, args: []string{at.id}, token: owner.token, body: object{"name": ""}, code: "invalid_input"}, 422)
	w.do(call{op: "PATCH " + one, args: []string{at.id}, token: owner.token, body: object{"plan": "gold"}, code: "forbidden"}, 403)
	w.do(call{op: "DELETE " + one, args: []string{owner.organization}, token: owner.token, code: "personal_organization"}, 409)

	add := call{op: "POST " + members, args: []string{at.id}, token: owner.token, body: object{"user_id": who.stranger.userID, "role": "viewer"}}
	w.has(w.once(add, 201, object{"user_id": who.stranger.userID, "role": "admin"}), "user_id", "username", "role", "created_at")
	add.code = "already_member"
	w.do(add, 409)
	add.body, add.code = object{"username": "nobody-at-all", "role": "viewer"}, "not_found"
	w.do(add, 404)
	add.body, add.code = object{"username": who.free.username, "role": "king"}, "invalid_input"
	w.do(add, 422)
	page = w.do(call{op: "GET " + members, args: []string{at.id}, token: owner.token, query: "?limit=2"}, 200)
	w.do(call{op: "GET " + members, args: []string{at.id}, token: owner.token, query: "?cursor=" + page.field(w.t, "next_cursor")}, 200)
	w.do(call{op: "GET " + members, args: []string{at.id}, token: owner.token, query: "?limit=no", code: "invalid_input"}, 422)

	give := func(token, user, role string, status int, code string) {
		w.t.Helper()
		w.do(call{op: "PATCH " + member, args: []string{at.id, user}, token: token, body: object{"role": role}, code: code}, status)
	}
	give(owner.token, who.stranger.userID, "king", 422, "invalid_input")
	give(owner.token, owner.userID, "admin", 409, "last_owner")
	give(admin.token, who.stranger.userID, "owner", 403, "forbidden")
	give(admin.token, owner.userID, "viewer", 403, "forbidden")
	give(admin.token, "usr_none", "viewer", 404, "not_found")
	w.do(call{op: "PATCH " + member, args: []string{at.id, who.stranger.userID}, key: at.keys["organizations:manage"],
		body: object{"role": "admin"}, code: "insufficient_scope"}, 403)
	w.do(call{op: "DELETE " + member, args: []string{at.id, owner.userID}, token: owner.token, code: "last_owner"}, 409)
	w.do(call{op: "DELETE " + member, args: []string{at.id, owner.userID}, token: admin.token, code: "forbidden"}, 403)
	w.do(call{op: "DELETE " + member, args: []string{at.id, who.stranger.userID}, token: who.stranger.token}, 204) // leaves
	w.do(call{op: "GET " + one, args: []string{at.id}, token: who.stranger.token, code: "not_found"}, 404)

	const transfer = "POST " + one + "/transfer"
	p := w.place(who)
	w.do(call{op: transfer, args: []string{p.id}, token: owner.token, body: object{}, code: "invalid_input"}, 422)
	w.do(call{op: transfer, args: []string{p.id}, token: owner.token, body: object{"user_id": who.stranger.userID}, code: "not_found"}, 404)
	w.do(call{op: transfer, args: []string{owner.organization}, token: owner.token, body: object{"user_id": admin.userID}, code: "personal_organization"}, 409)
	w.once(call{op: transfer, args: []string{p.id}, token: owner.token, body: object{"user_id": admin.userID}}, 200, object{"username": admin.username})
}

func (w *walk) keys(who people, at *place) {
	const all, one = "/api/v1/api-keys", "/api/v1/api-keys/{id}"
	owner := who.byRole["owner"]
	body := object{"name": "walked", "organization_id": at.id, "scopes": []string{"triggers:read"}, "environment": "test",
		"expires_at": "2099-01-01T00:00:00Z", "rate_limit": object{"limit": 7, "window_seconds": 60}}
	other := maps.Clone(body)
	other["name"] = "another"
	res := w.once(call{op: "POST " + all, token: owner.token, body: body}, 201, other)
	w.has(res, "id", "key", "prefix", "name", "organization_id", "scopes", "environment", "created_at", "expires_at", "last_used_at")
	id, secret := res.field(w.t, "id"), res.field(w.t, "key")
	if !strings.HasPrefix(secret, "sk_test_") || len(secret) != len("sk_test_")+38 {
		w.t.Errorf("the key is %d long", len(secret))
	}
	w.do(call{op: "POST " + all, token: owner.token, body: object{"organization_id": at.id, "scopes": []string{"nothing:read"}}, code: "invalid_input"}, 422)
	w.do(call{op: "POST " + all, key: at.keys["api-keys:manage"], body: body, code: "forbidden"}, 403) // more than it has
	if res := w.do(call{op: "GET " + one, args: []string{id}, token: owner.token}, 200); strings.Contains(string(res.body), secret) {
		w.t.Error("the secret is shown again")
	}
	page := w.do(call{op: "GET " + all, token: owner.token, query: "?limit=2&organization_id=" + at.id}, 200)
	w.do(call{op: "GET " + all, token: owner.token, query: "?organization_id=" + at.id + "&cursor=" + page.field(w.t, "next_cursor")}, 200)
	w.do(call{op: "GET " + all, token: owner.token, query: "?organization_id=" + at.id + "&environment=moon", code: "invalid_input"}, 422)
	w.do(call{op: "GET " + all, token: who.stranger.token, query: "?limit=0&organization_id=" + at.id, code: "not_found"}, 404)

	edit := call{op: "PATCH " + one, args: []string{id}, token: owner.token, body: object{"name": "renamed", "rate_limit": nil}}
	if res := w.do(edit, 200); res.field(w.t, "name") != "renamed" {
		w.t.Errorf("renamed: %v", res)
	}
	edit.body, edit.code = object{"expires_at": "yesterday"}, "invalid_input"
	w.do(edit, 422)
	edit.body, edit.token, edit.code = object{"name": "stolen"}, who.stranger.token, "not_found"
	w.do(edit, 404)
	edit.token, edit.code = who.byRole["member"].token, "forbidden"
	w.do(edit, 403)

	rotate := call{op: "POST " + one + "/rotate", args: []string{id}, token: owner.token, body: object{"grace_period_seconds": 600}}
	rotated := w.once(rotate, 200, object{"grace_period_seconds": 601})
	w.has(rotated, "id", "key", "name", "rotated_at", "previous_key_valid_until")
	w.do(call{op: "GET /api/v1/auth/me", key: secret}, 200)
	w.do(call{op: "GET /api/v1/auth/me", key: rotated.field(w.t, "key")}, 200)
	rotate.body, rotate.code = object{"grace_period_seconds": 604801}, "invalid_input"
	w.do(rotate, 422)
	rotate.body, rotate.code, rotate.token = nil, "", who.byRole["viewer"].token
	w.do(rotate, 403)
	rotate.token = who.stranger.token
	w.do(rotate, 404)
	rotate.token = owner.token
	last := w.do(rotate, 200).field(w.t, "key")
	for _, old := range []string{secret, rotated.field(w.t, "key")} {
		w.do(call{op: "GET /api/v1/auth/me", key: old, code: "invalid_credential"}, 401)
	}
	w.do(call{op: "GET /api/v1/auth/me", key: last}, 200)
	// Two at once swap the same secret: one does.
	w.race(id, owner)

	remove := call{op: "DELETE " + one, args: []string{id}, token: owner.token}
	w.do(remove, 204)
	remove.code = "not_found"
	w.do(remove, 404)
	w.do(call{op: "GET " + one, args: []string{id}, token: owner.token, code: "not_found"}, 404)
	w.do(call{op: "GET /api/v1/audit-logs", token: owner.token, query: "?organization_id=" + at.id + "&since=never", code: "invalid_input"}, 422)
	log := w.do(call{op: "GET /api/v1/audit-logs", key: at.keys["audit-logs:read"], query: "?event=api_key.*&subject=" + id}, 200)
	for _, event := range []string{"created", "updated", "rotated", "revoked"} {
		if !strings.Contains(string(log.body), `"api_key.`+event+`"`) {
			w.t.Errorf("no api_key.%s in %v", event, log)
		}
	}
}

// atOnce sends one request with an Idempotency-Key several times at the same moment: whatever is answered, it happened once. It does
// so until a node has answered that the first is in flight.
func (w *walk) atOnce(owner account) {
	w.t.Helper()
	for turn := range w.c.urls {
		here, next := w.c.urls[turn], w.c.urls[(turn+1)%len(w.c.urls)]
		met := false
		for tries := 0; tries < 20 && !met; tries++ {
			r := request{method: "POST", path: "/api/v1/organizations", token: owner.token, address: newAddress(),
				body: object{"name": "At once"}, header: map[string]string{"Idempotency-Key": unique("once")}}
			made := ""
			for _, res := range answersOf(w.t, []string{here, here, next, next}, r, r, r, r) {
				switch {
				case res.status == http.StatusConflict && res.field(w.t, "code") == "idempotency_key_in_use":
					met = true
				case res.status == http.StatusCreated && (made == "" || made == string(res.body)):
					made = string(res.body)
				default:
					w.t.Errorf("at once: %v, and %s", res, made)
				}
			}
			if made == "" {
				w.t.Error("none of four happened")
			}
		}
		if !met {
			w.t.Errorf("none of many requests met its twin in flight at %s or %s", here, next)
		}
	}
}

// race rotates a key at all nodes at the same moment. Each of these either happens or is a 409.
func (w *walk) race(id string, owner account) {
	const op = "POST /api/v1/api-keys/{id}/rotate"
	for range 50 {
		r := request{method: "POST", path: "/api/v1/api-keys/" + id + "/rotate", token: owner.token, address: newAddress()}
		good := 0
		for _, res := range answersOf(w.t, w.c.urls, r, r, r) {
			w.seen[op][res.status] = true
			switch res.status {
			case http.StatusOK:
				good++
			case http.StatusConflict:
			default:
				w.t.Fatalf("rotated at once: %v", res)
			}
		}
		if good == 0 {
			w.t.Fatal("none of three rotations happened")
		}
		if w.seen[op][http.StatusConflict] {
			return
		}
	}
}

// changedAtOnce gives an account three new passwords at the same moment, at a node each: one of them holds, and no other.
func (w *walk) changedAtOnce() {
	w.t.Helper()
	a := register(w.t, w.c.urls[0])
	current := a.password
	for round := range 8 {
		var requests []request
		for range w.c.urls {
			requests = append(requests, request{method: "POST", path: "/api/v1/auth/password", token: a.token, address: newAddress(),
				body: object{"current_password": current, "new_password": unique("the tide by seven lamps ")}})
		}
		changed := ""
		for i, res := range answersOf(w.t, w.c.urls, requests...) {
			w.seen[opPassword][res.status] = true
			switch {
			case res.status == http.StatusNoContent && changed == "":
				changed = requests[i].body.(object)["new_password"].(string)
			case res.status != http.StatusConflict && res.status != http.StatusUnauthorized: // who came later has the old one no more
				w.t.Fatalf("round %d: changed at once: %v, after %q", round, res, changed)
			}
		}
		if changed == "" {
			w.t.Fatalf("round %d: none of three changes happened", round)
		}
		w.do(call{op: opLogin, body: object{"username": a.username, "password": changed}}, 200)
		w.do(call{op: opLogin, body: object{"username": a.username, "password": current}, code: "invalid_credentials"}, 401)
		if current = changed; w.seen[opPassword][http.StatusConflict] {
			return
		}
	}
}

// checks asks about keys of the callers' own, each time at another node: a token bucket of five has five units, wherever they
// are asked for.
func (w *walk) checks(who people, at *place) {
	const check = "POST /api/v1/limits/check"
	res := w.do(call{op: "POST /api/v1/api-keys", token: who.byRole["owner"].token,
		body: object{"name": "c", "organization_id": at.id, "scopes": []string{"limits:check"}}}, 201)
	key := res.field(w.t, "key")
	body := object{"key": unique("tenant"), "limit": 5, "window_seconds": 3600, "algorithm": "token_bucket", "burst": 5}
	for i := range 8 {
		res := w.do(call{op: check, key: key, body: body}, 200)
		if got := strings.Contains(string(res.body), `"allowed":true`); got != (i < 5) {
			w.t.Errorf("check %d of a burst of 5: %v", i+1, res)
		}
	}
	w.do(call{op: check, key: key, body: object{"key": "k", "limit": 5}, code: "invalid_input"}, 422)
	w.do(call{op: check, key: at.keys["events:read"], body: body, code: "insufficient_scope"}, 403)
	w.do(call{op: check, token: who.byRole["owner"].token, body: body, code: "forbidden"}, 403)
	w.do(call{op: check, body: body, code: "authentication_required"}, 401)

	const gubernator = "POST /v1/GetRateLimits"
	hit := func(hits, limit int) object {
		return object{"requests": []object{{"name": "walk", "uniqueKey": at.id, "hits": hits, "limit": limit, "duration": 3_600_000}}}
	}
	for i := range 8 {
		res := w.do(call{op: gubernator, key: key, body: hit(1, 5)}, 200)
		if got := strings.Contains(string(res.body), "OVER_LIMIT"); got != (i >= 5) {
			w.t.Errorf("hit %d of 5: %v", i+1, res)
		}
	}
	w.do(call{op: gubernator, key: key, body: object{"requests": []object{}}, code: "invalid_input"}, 422)
	w.do(call{op: gubernator, key: at.keys["events:read"], body: hit(1, 5), code: "insufficient_scope"}, 403)
	w.do(call{op: gubernator, token: who.byRole["owner"].token, body: hit(1, 5), code: "forbidden"}, 403)
}

func (w *walk) tokens(who people, at *place) {
	const introspect, revoke = "POST /oauth2/introspect", "POST /oauth2/revoke"
	form := map[string]string{"Content-Type": "application/x-www-form-urlencoded"}
	of := func(token string) string { return url.Values{"token": {token}}.Encode() }
	owner := who.byRole["owner"]
	res := w.do(call{op: "POST /api/v1/api-keys", token: owner.token, body: object{"name": "i", "organization_id": at.id, "scopes": []string{"tokens:introspect"}}}, 201)
	key := res.field(w.t, "key")
	for _, token := range []string{who.byRole["member"].token, at.keys["events:read"], key} {
		if res := w.do(call{op: introspect, key: key, raw: of(token), header: form}, 200); !strings.Contains(string(res.body), `"active":true`) {
			w.t.Errorf("introspected: %v", res)
		}
	}
	for _, token := range []string{who.stranger.token, who.foreign, "nothing"} {
		if res := w.do(call{op: introspect, key: key, raw: of(token), header: form}, 200); string(res.body) != `{"active":false}` {
			w.t.Errorf("introspected of others: %v", res)
		}
	}
	w.do(call{op: introspect, key: key, raw: "token=", header: form, code: "invalid_request"}, 400)
	w.do(call{op: introspect, key: at.keys["events:read"], raw: of("x"), header: form, code: "insufficient_scope"}, 403)
	w.do(call{op: introspect, token: owner.token, raw: of("x"), header: form, code: "forbidden"}, 403)

	a := register(w.t, w.c.urls[1])
	w.do(call{op: revoke, raw: of(a.token), token: owner.token, header: form, code: "forbidden"}, 403)
	w.do(call{op: revoke, raw: of(a.token), header: form}, 200)
	w.do(call{op: "GET /api/v1/auth/me", token: a.token, code: "invalid_credential"}, 401)
	w.do(call{op: revoke, raw: of(key), token: owner.token, header: form}, 200)
	w.do(call{op: introspect, key: key, raw: of("x"), header: form, code: "invalid_credential"}, 401)
	w.do(call{op: revoke, raw: of("nothing"), header: form}, 200)
	w.do(call{op: revoke, raw: "token=", header: form, code: "invalid_request"}, 400)
}

func (w *walk) providers(who people) {
	const begin, callback, exchange = "GET /api/v1/auth/{provider}", "GET /api/v1/auth/{provider}/callback", "POST /api/v1/auth/exchange"
	token := who.stranger.token
	res := w.do(call{op: begin, args: []string{"github"}}, 302)
	to, err := url.Parse(res.header.Get("Location"))
	if err != nil || to.Host != "github.com" || to.Query().Get("code_challenge_method") != "S256" || to.Query().Get("state") == "" {
		w.t.Errorf("sent to %v (%v)", to, err)
	}
	cookie := res.header.Get("Set-Cookie")
	if !strings.Contains(cookie, "HttpOnly") || !strings.Contains(cookie, "SameSite=Lax") || strings.Contains(cookie, to.Query().Get("state")) {
		w.t.Errorf("cookie %s", cookie)
	}
	w.do(call{op: begin, args: []string{"google"}, code: "provider_not_configured"}, 404)
	w.do(call{op: begin, args: []string{"github"}, query: "?redirect_uri=https://evil.example/", code: "invalid_redirect_uri"}, 400)
	w.do(call{op: begin, args: []string{"github"}, query: "?response_mode=post", code: "invalid_input"}, 422)
	w.do(call{op: callback, args: []string{"google"}, code: "provider_not_configured"}, 404)
	w.do(call{op: callback, args: []string{"github"}, query: "?code=x&state=" + to.Query().Get("state"), code: "invalid_state"}, 400)
	w.do(call{op: exchange, body: object{"code": "made up"}, code: "invalid_code"}, 401)
	w.do(call{op: exchange, body: object{}, code: "invalid_input"}, 422)
	w.has(w.do(call{op: "GET /api/v1/auth/identities", token: token}, 200), "data", "next_cursor")
	w.do(call{op: "GET /api/v1/auth/identities", token: token, query: "?limit=0", code: "invalid_input"}, 422)
	const link, unlink = "POST /api/v1/auth/identities/{provider}/link", "DELETE /api/v1/auth/identities/{provider}"
	w.has(w.do(call{op: link, args: []string{"github"}, token: token}, 200), "authorization_url", "expires_at")
	w.do(call{op: link, args: []string{"google"}, token: token, code: "provider_not_configured"}, 404)
	w.do(call{op: link, args: []string{"github"}, token: token, body: object{"response_mode": "post"}, code: "invalid_input"}, 422)
	w.do(call{op: unlink, args: []string{"github"}, token: token, code: "not_found"}, 404)
}

func (w *walk) documents() {
	for _, op := range []string{"GET /.well-known/jwks.json", "GET /.well-known/oauth-authorization-server", "GET /openapi.json"} {
		res := w.do(call{op: op}, 200)
		w.do(call{op: op, header: map[string]string{"If-None-Match": res.header.Get("ETag")}}, 304) // of another node's answer
		w.do(call{op: op}, 200)
	}
	for _, op := range []string{"GET /livez", "GET /readyz", "GET /api/v1/health"} {
		for range w.c.urls {
			w.do(call{op: op}, 200)
		}
	}
}
