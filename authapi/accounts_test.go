package authapi_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sluice/authapi"
	"sluice/limiter"
	"sluice/raftfsm/state"
)

func TestAccounts_ReferenceFlow(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	a := e.send("POST", "/api/v1/auth/register", "", object{"username": "TestUser", "email": "Test@Example.com", "password": goodPassword})
	e.want(a, 201, "")
	wantHeaders(t, a)
	o := a.object(t)
	user, org := o["user"].(object), o["organization"].(object)
	if user["username"] != "testuser" || user["email"] != "test@example.com" || org["personal"] != true || org["role"] != "owner" || o["token_type"] != "Bearer" {
		t.Errorf("register answered %s", a.body)
	}
	for _, name := range []string{"expires_at", "refresh_expires_at"} {
		if at, err := time.Parse("2006-01-02T15:04:05Z", o[name].(string)); err != nil || !at.After(start) {
			t.Errorf("%s = %v", name, o[name])
		}
	}
	e.want(e.send("POST", "/api/v1/auth/logout", o["token"].(string), nil), 204, "")

	login := e.send("POST", "/api/v1/auth/login", "", object{"username": "TESTUSER", "password": goodPassword})
	e.want(login, 200, "")
	token := login.object(t)["token"].(string)
	e.want(e.send("POST", "/api/v1/auth/login", "", object{"username": "test@EXAMPLE.com", "password": goodPassword}), 200, "")

	me := e.send("GET", "/api/v1/auth/me", token, nil)
	e.want(me, 200, "")
	if m := me.object(t); m["user"].(object)["id"] != user["id"] || m["auth"].(object)["method"] != "jwt" || m["auth"].(object)["organization_id"] != org["id"] ||
		m["auth"].(object)["key_id"] != nil || m["auth"].(object)["expires_at"] == nil {
		t.Errorf("me answered %s", me.body)
	}
	e.want(e.do("GET", "/api/v1/auth/me", ""), 401, "authentication_required")

	list := e.send("GET", "/api/v1/organizations", token, nil)
	e.want(list, 200, "")
	if d := list.object(t)["data"].([]any); len(d) != 1 || d[0].(object)["id"] != org["id"] || list.object(t)["next_cursor"] != nil {
		t.Errorf("organizations: %s", list.body)
	}

	orgID := org["id"].(string)
	a = e.send("POST", "/api/v1/api-keys", token, object{"name": "Production", "organization_id": orgID, "scopes": []string{"triggers:read", "triggers:write"}})
	e.want(a, 201, "")
	key := a.object(t)
	secret := key["key"].(string)
	if !strings.HasPrefix(secret, "sk_live_") || !strings.HasPrefix(secret, key["prefix"].(string)) || key["environment"] != "live" ||
		key["expires_at"] != nil || key["last_used_at"] != nil || key["organization_id"] != orgID {
		t.Errorf("created %s", a.body)
	}
	byKey := e.do("GET", "/api/v1/auth/me", "", "X-API-Key", secret)
	e.want(byKey, 200, "")
	if m := byKey.object(t); m["user"] != nil || m["auth"].(object)["key_id"] != key["id"] || m["auth"].(object)["method"] != "api_key" {
		t.Errorf("me with a key answered %s", byKey.body)
	}
	keyPath := "/api/v1/api-keys/" + key["id"].(string)
	a = e.send("GET", keyPath, token, nil)
	e.want(a, 200, "")
	if strings.Contains(a.body, secret) || a.object(t)["key"] != nil {
		t.Errorf("reading a key shows its secret: %s", a.body)
	}

	a = e.send("POST", keyPath+"/rotate", token, nil)
	e.want(a, 200, "")
	rotated := a.object(t)
	if rotated["id"] != key["id"] || rotated["key"] == secret || rotated["name"] != "Production" || rotated["rotated_at"] == nil || rotated["previous_key_valid_until"] != nil {
		t.Errorf("rotated %s", a.body)
	}
	e.want(e.do("GET", "/api/v1/auth/me", "", "X-API-Key", secret), 401, "invalid_credential")
	e.want(e.do("GET", "/api/v1/auth/me", "", "X-API-Key", rotated["key"].(string)), 200, "")

	a = e.send("POST", keyPath+"/rotate", token, object{"grace_period_seconds": 60})
	e.want(a, 200, "")
	if a.object(t)["previous_key_valid_until"] != "2026-03-04T05:07:07Z" {
		t.Errorf("rotated with grace: %s", a.body)
	}
	e.want(e.do("GET", "/api/v1/auth/me", "", "X-API-Key", rotated["key"].(string)), 200, "")
	e.clock.Advance(61 * time.Second)
	e.want(e.do("GET", "/api/v1/auth/me", "", "X-API-Key", rotated["key"].(string)), 401, "invalid_credential")
	last := a.object(t)["key"].(string)

	e.want(e.send("DELETE", keyPath, token, nil), 204, "")
	e.want(e.do("GET", "/api/v1/auth/me", "", "X-API-Key", last), 401, "invalid_credential")
	e.want(e.send("DELETE", keyPath, token, nil), 404, "not_found")

	got := names(e.events(token, "?organization_id="+orgID))
	want := []string{"api_key.revoked", "api_key.rotated", "api_key.rotated", "api_key.created", "session.created", "session.created",
		"session.ended", "session.created", "organization.created", "user.registered"}
	if !slices.Equal(got, want) {
		t.Errorf("audit log = %q, want %q", got, want)
	}
}

func TestRegister_Invalid(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	for _, c := range []struct {
		username, email, password string
		want                      string
	}{
		{"ab", "a@example.com", goodPassword, "username"},
		{strings.Repeat("a", 33), "a@example.com", goodPassword, "username"},
		{"a b c", "a@example.com", goodPassword, "username"},
		{"me@home", "a@example.com", goodPassword, "username"},
		{"jürgen", "a@example.com", goodPassword, "username"},
		{"fine", "", goodPassword, "email"},
		{"fine", "a", goodPassword, "email"},
		{"fine", "a@", goodPassword, "email"},
		{"fine", "a@b@c", goodPassword, "email"},
		{"fine", "Bob <b@example.com>", goodPassword, "email"},
		{"fine", "<b@example.com>", goodPassword, "email"},
		{"fine", `"b c"@example.com`, goodPassword, "email"},
		{"fine", "a@example..com", goodPassword, "email"},
		{"fine", "a@[127.0.0.1]", goodPassword, "email"},
		{"fine", "a@exämple.com", goodPassword, "email"},
		{"fine", "a@example.com\r\nBcc: x", goodPassword, "email"},
		{"fine", strings.Repeat("a", 250) + "@example.com", goodPassword, "email"},
		{"fine", "a@example.com", "", "password"},
		{"fine", "a@example.com", "123456789", "password"},
		{"fine", "a@example.com", strings.Repeat("ä", 129), "password"},
		{"fine", "a@example.com", "Password123", "password"},
		{"fine", "a@example.com", "qwertyuiop", "password"},
		{"fine", "a@example.com", "aaaaaaaaaaaa", "password"},
		{"somebodyelse", "a@example.com", "SomebodyElse12", "password"},
		{"fine", "longaddress@example.com", "longaddress@example.com", "password"},
		{"x", "x", "x", "email,password,username"},
	} {
		a := e.send("POST", "/api/v1/auth/register", "", object{"username": c.username, "email": c.email, "password": c.password})
		var got []string
		for f := range e.fields(a) {
			got = append(got, f)
		}
		slices.Sort(got)
		if strings.Join(got, ",") != c.want {
			t.Errorf("%q %q %q: errors in %q, want %q", c.username, c.email, c.password, got, c.want)
		}
	}
	ok := e.send("POST", "/api/v1/auth/register", "", object{"username": "a.b_c-1", "email": "a+b@mail.example.com", "password": strings.Repeat("ä", 128)})
	e.want(ok, 201, "")
}

func TestRegister_Taken(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	post := func(name, email string) answer {
		return e.send("POST", "/api/v1/auth/register", "", object{"username": name, "email": email, "password": goodPassword})
	}
	e.want(post(strings.ToUpper(p.name), "other@example.com"), 409, "username_taken")
	e.want(post("other-name", strings.ToUpper(p.email)), 409, "email_taken")

	// Many at once: one wins, the others are told.
	var wg sync.WaitGroup
	statuses := make([]int, 8)
	for i := range statuses {
		wg.Add(1)
		go func() {
			defer wg.Done()
			statuses[i] = post("at-once", fmt.Sprintf("at-once-%d@example.com", i)).status
		}()
	}
	wg.Wait()
	slices.Sort(statuses)
	if statuses[0] != 201 || statuses[1] != 409 || statuses[7] != 409 {
		t.Errorf("registering one name at once: %v", statuses)
	}
}

func TestLogin_OneAnswerForEveryFailure(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	put := func(name string, change func(*state.User)) person {
		p := e.register()
		u, _ := e.cluster.User(p.id)
		u.Username = name
		change(u)
		e.cluster.PutUser(*u)
		p.name = name
		return p
	}
	p := e.register()
	disabled := put("disabled-one", func(u *state.User) { u.DisabledAt = 1 })
	deleted := put("deleted-one", func(u *state.User) { u.DeletedAt = 1 })
	passwordless := put("passwordless", func(u *state.User) { u.PasswordHash = "" })
	type key struct{ status, body, challenge string }
	seen := map[key][]string{}
	for _, c := range []struct{ name, password string }{
		{p.name, "wrong-password-1"}, {p.name, ""}, {"nobody-here", goodPassword}, {"nobody@example.com", goodPassword},
		{"not a name", goodPassword}, {"@", goodPassword}, {disabled.name, goodPassword}, {deleted.name, goodPassword},
		{passwordless.name, goodPassword}, {p.name, strings.Repeat("x", 60000)},
	} {
		if c.password == "" {
			e.want(e.send("POST", "/api/v1/auth/login", "", object{"username": c.name, "password": c.password}), 422, "invalid_input")
			continue
		}
		a := e.send("POST", "/api/v1/auth/login", "", object{"username": c.name, "password": c.password}, "X-Request-Id", "same")
		e.want(a, 401, "invalid_credentials")
		k := key{fmt.Sprint(a.status), a.body, a.header.Get("Www-Authenticate")}
		seen[k] = append(seen[k], c.name)
	}
	if len(seen) != 1 {
		t.Errorf("failures can be told apart: %v", seen)
	}
}

// Every failed sign-in does the work of one hash, whether there is an account or not: with no worker free, all wait.
func TestLogin_UnknownUserWaitsForAWorkerToo(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	release := e.srv.HoldHashSlots()
	var wg sync.WaitGroup
	for _, name := range []string{p.name, "nobody-here", "no such name"} {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if a := e.send("POST", "/api/v1/auth/login", "", object{"username": name, "password": "wrong-password-1"}); a.status != 401 {
				t.Errorf("%q: status %d", name, a.status)
			}
		}()
	}
	eventually(t, "three sign-ins in the queue", func() bool { return e.srv.HashWaiting() == 3 })
	release()
	wg.Wait()
}

func TestPasswords_FullQueueIsOverloaded(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, func(cfg *authapi.Config) { cfg.Auth.Argon2.Workers, cfg.Auth.Argon2.Queue = 1, 2 })
	p := e.register()
	release := e.srv.HoldHashSlots()
	var wg sync.WaitGroup
	for range 2 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			e.login(p)
		}()
	}
	eventually(t, "two sign-ins in the queue", func() bool { return e.srv.HashWaiting() == 2 })
	before := e.limits.Refunded()
	a := e.send("POST", "/api/v1/auth/login", "", object{"username": p.name, "password": goodPassword})
	e.want(a, 503, "overloaded")
	if a.header.Get("Retry-After") == "" {
		t.Error("no Retry-After on a full queue")
	}
	if got := e.limits.Refunded() - before; got != 4 { // the address and the three rules of the guard
		t.Errorf("refunded %d units, want 4", got)
	}
	a = e.send("POST", "/api/v1/auth/register", "", object{"username": "late-comer", "email": "late@example.com", "password": goodPassword})
	e.want(a, 503, "overloaded")
	release()
	wg.Wait()
}

func TestPasswords_WaiterLeavesWithItsContext(t *testing.T) {
	t.Parallel()
	h := authapi.NewPasswordHasher(authapi.Argon2Config{Workers: 1, Queue: 1})
	release := h.Hold()
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error)
	go func() {
		_, err := h.Hash(ctx, goodPassword)
		left <- err
	}()
	eventually(t, "one waits", func() bool { return h.Waiting() == 1 })
	if _, err := h.Hash(t.Context(), goodPassword); !errors.Is(err, authapi.ErrOverloaded) {
		t.Errorf("beyond the queue: %v, want ErrOverloaded", err)
	}
	cancel()
	if err := <-left; !errors.Is(err, authapi.ErrOverloaded) {
		t.Errorf("a waiter whose context ended: %v, want ErrOverloaded", err)
	}
	if got := h.Rejected(); got != 2 {
		t.Errorf("%d turned away, want 2", got)
	}
	release()
	if _, err := h.Hash(t.Context(), goodPassword); err != nil {
		t.Errorf("after that: %v", err)
	}
}

func TestPasswordsAtRealCost(t *testing.T) {
	t.Parallel()
	h := authapi.NewPasswordHasher(authapi.Argon2Config{MemoryKiB: 19456, Iterations: 2, Parallelism: 1})
	encoded, err := h.Hash(t.Context(), goodPassword)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(encoded, "$argon2id$v=19$m=19456,t=2,p=1$") {
		t.Errorf("encoded = %q", encoded)
	}
	for password, want := range map[string]bool{goodPassword: true, goodPassword + " ": false, "": false} {
		if ok, err := h.Check(t.Context(), encoded, password); ok != want || err != nil {
			t.Errorf("Check(%q) = %v, %v; want %v", password, ok, err, want)
		}
	}
	if ok, err := h.Check(t.Context(), "", goodPassword); ok || err != nil {
		t.Errorf("Check without a hash = %v, %v", ok, err)
	}
}

func TestPHC(t *testing.T) {
	t.Parallel()
	const good = "$argon2id$v=19$m=64,t=1,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	if got, err := authapi.ParsePHC(good); err != nil || got != good {
		t.Errorf("ParsePHC(%q) = %q, %v", good, got, err)
	}
	for _, bad := range []string{
		"", "$", "$argon2i$v=19$m=64,t=1,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA", strings.Replace(good, "v=19", "v=16", 1),
		strings.Replace(good, "m=64", "m=4", 1), strings.Replace(good, "m=64", "m=99999999", 1), strings.Replace(good, "m=64", "m=064", 1),
		strings.Replace(good, "t=1", "t=0", 1), strings.Replace(good, "t=1", "t=99", 1), strings.Replace(good, "p=1", "p=0", 1),
		strings.Replace(good, "p=1", "p=1x", 1), strings.Replace(good, "p=1", "p=1,x=2", 1), good + "=", good + "$", good[:60], "x" + good,
		strings.Replace(good, "$AAAAAAAAAAAAAAAAAAAAAA$", "$AAA$", 1),
	} {
		if got, err := authapi.ParsePHC(bad); err == nil {
			t.Errorf("ParsePHC(%q) = %q, want an error", bad, got)
		}
	}
}

func TestCheckPassword(t *testing.T) {
	t.Parallel()
	if n := authapi.CommonPasswords(10); n < 10000 {
		t.Errorf("the list makes %d passwords, want 10,000 at least", n)
	}
	for _, p := range []string{goodPassword, "correct horse battery staple", "tr0ub4dor&3 x", "ünïcödé-ïs-fïne", "😀😀😀😀😀😀😀😀😀x", "alice-has-a-cat-at-home"} {
		if wrong := authapi.CheckPassword(p, "alice", "alice@example.com"); wrong != "" {
			t.Errorf("%q: %s", p, wrong)
		}
	}
	for _, p := range []string{"short", "password12", "PASSWORD1234", "welcome2024!", "iloveyou123", "qwerty12345", "monkeymonkey1", "1234567890",
		"correcthorsebatterystaple", "alice1234567"[:10], "alicealicealice", "alice@example.com", "\xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8\xf7\xf6"} {
		if authapi.CheckPassword(p, "alice", "alice@example.com") == "" {
			t.Errorf("%q is accepted", p)
		}
	}
}

func TestSignInGuard(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p, other := e.register(), e.register()
	try := func(name, password, from string) answer {
		return e.send("POST", "/api/v1/auth/login", "", object{"username": name, "password": password}, "X-Forwarded-For", from)
	}
	// Successes do not count.
	for range 15 {
		e.want(try(p.name, goodPassword, "192.0.2.1"), 200, "")
	}
	for range 10 {
		e.want(try(p.name, "wrong-password-1", "192.0.2.1"), 401, "invalid_credentials")
	}
	a := try(p.name, goodPassword, "192.0.2.1")
	e.want(a, 429, "rate_limit_exceeded")
	if a.header.Get("Retry-After") == "" || a.problem(t).RetryAfter < 1 {
		t.Errorf("no Retry-After: %v", a.header)
	}
	if a.header.Get("X-RateLimit-Limit") != "1000000" || a.header.Get("X-RateLimit-Remaining") == "0" {
		t.Errorf("the guard shows in the headers: %v", a.header)
	}
	// Nor do sign-ins that the cluster could not take: an outage keeps nobody out after its end.
	e.cluster.SetOnPropose(func(state.Command) (bool, error) { return false, authapi.ErrUnavailable })
	for range 15 {
		e.want(try(p.name, goodPassword, "192.0.2.2"), 503, "cluster_unavailable")
	}
	e.cluster.SetOnPropose(nil)
	e.want(try(p.name, goodPassword, "192.0.2.2"), 200, "")
	// An account that does not exist is guarded just so.
	for range 10 {
		e.want(try("nobody-here", "wrong-password-1", "192.0.2.7"), 401, "invalid_credentials")
	}
	e.want(try("nobody-here", "wrong-password-1", "192.0.2.7"), 429, "rate_limit_exceeded")
	// From elsewhere the owner gets in, and from here others do.
	e.want(try(p.name, goodPassword, "192.0.2.2"), 200, "")
	e.want(try(other.name, goodPassword, "192.0.2.1"), 200, "")
	e.clock.Advance(time.Minute)
	e.want(try(p.name, goodPassword, "192.0.2.1"), 200, "")
	e.limits.Undecided.Store(true)
	defer e.limits.Undecided.Store(false)
	e.want(try(p.name, goodPassword, "192.0.2.1"), 503, "cluster_unavailable")
}

func TestFailedSignIns_AreAuditedWithoutAFlood(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, func(cfg *authapi.Config) {
		cfg.Limit.Anonymous = limiter.Rule{Limit: 1e9, Window: 60, Algorithm: limiter.SlidingWindow}
	})
	p := e.register()
	before := e.cluster.Index()
	for i := range 200 {
		e.send("POST", "/api/v1/auth/login", "", object{"username": p.name, "password": "wrong-password-1"}, "X-Forwarded-For", fmt.Sprintf("192.0.2.%d", i%20))
	}
	failed := func() (events []object) { return e.events(p.token, "?event=session.failed&limit=200") }
	eventually(t, "failed sign-ins audited", func() bool { return len(failed()) >= 20 })
	if got := e.cluster.Index() - before; got > 40 {
		t.Errorf("200 failed sign-ins made %d log entries", got)
	}
	for _, ev := range failed() {
		if ev["result"] != "failure" || ev["detail"].(object)["attempts"] == "" || ev["subject"].(object)["id"] != p.id {
			t.Errorf("event %v", ev)
		}
	}
	// After the quiet time, the rest comes with its number.
	total := func() (n int) {
		for _, ev := range failed() {
			var k int
			fmt.Sscan(ev["detail"].(object)["attempts"].(string), &k)
			n += k
		}
		return n
	}
	e.clock.Advance(61 * time.Second)
	eventually(t, "all attempts counted", func() bool { return total() == 200 })
}

func TestWrites_UnknownOutcomeHappensOnce(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	var tries int
	e.cluster.SetOnPropose(func(cmd state.Command) (bool, error) {
		if _, ok := cmd.(state.CreateOrg); !ok {
			return false, nil
		}
		tries++
		return tries == 2, map[int]error{1: authapi.ErrUnknown, 2: authapi.ErrUnknown}[tries]
	})
	a := e.send("POST", "/api/v1/organizations", p.token, object{"name": "Once"})
	e.want(a, 201, "")
	list := e.send("GET", "/api/v1/organizations", p.token, nil).object(t)["data"].([]any)
	if len(list) != 2 {
		t.Errorf("%d organizations, want the personal one and one more", len(list))
	}
	// What is known not to have happened is a 503 at once.
	e.cluster.SetUnavailable(authapi.ErrUnavailable)
	a = e.send("POST", "/api/v1/organizations", p.token, object{"name": "Never"})
	e.want(a, 503, "cluster_unavailable")
	// Reads go on from what the node knows.
	e.want(e.send("GET", "/api/v1/organizations", p.token, nil), 200, "")
}

func TestIdempotencyKey(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p, q := e.register(), e.register()
	body := object{"name": "k & l", "organization_id": p.org, "scopes": []string{"events:read"}}
	first := e.send("POST", "/api/v1/api-keys", p.token, body, "Idempotency-Key", "abc-1")
	e.want(first, 201, "")
	for _, form := range []string{"abc-1", `"abc-1"`} {
		again := e.send("POST", "/api/v1/api-keys", p.token, body, "Idempotency-Key", form)
		e.want(again, 201, "")
		if again.body != first.body || again.header.Get("Idempotency-Replayed") != "true" {
			t.Errorf("repeated as %s: %s, first %s", form, again.body, first.body)
		}
	}
	other := object{"name": "k2", "organization_id": p.org, "scopes": []string{"events:read"}}
	e.want(e.send("POST", "/api/v1/api-keys", p.token, other, "Idempotency-Key", "abc-1"), 422, "idempotency_key_reused")
	// Another credential's key is another key.
	e.want(e.send("POST", "/api/v1/organizations", q.token, object{"name": "Q"}, "Idempotency-Key", "abc-1"), 201, "")
	for _, bad := range []string{"", strings.Repeat("x", 256), `"open`, `"a"b"`, `"\x"`, "tab\there"} {
		e.want(e.send("POST", "/api/v1/api-keys", p.token, body, "Idempotency-Key", bad), 400, "invalid_idempotency_key")
	}

	key := "/api/v1/api-keys/" + first.object(t)["id"].(string) + "/rotate"
	rotated := e.send("POST", key, p.token, nil, "Idempotency-Key", "r")
	e.want(rotated, 200, "")
	again := e.send("POST", key, p.token, nil, "Idempotency-Key", "r")
	if again.status != 200 || again.body != rotated.body {
		t.Errorf("rotated again: %d %s, first %s", again.status, again.body, rotated.body)
	}

	reg := object{"username": "idem-user", "email": "idem@example.com", "password": goodPassword}
	one := e.send("POST", "/api/v1/auth/register", "", reg, "Idempotency-Key", "reg")
	e.want(one, 201, "")
	two := e.send("POST", "/api/v1/auth/register", "", reg, "Idempotency-Key", "reg")
	if two.status != 201 || two.body != one.body {
		t.Errorf("registered again: %d %s", two.status, two.body)
	}
	e.want(e.send("POST", "/api/v1/auth/register", "", reg, "Idempotency-Key", "reg", "X-Forwarded-For", "192.0.2.9"), 409, "username_taken")
}

func TestIdempotencyKey_InFlight(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	entered, leave := make(chan struct{}), make(chan struct{})
	var once sync.Once
	e.cluster.SetOnPropose(func(cmd state.Command) (bool, error) {
		if _, ok := cmd.(state.RegisterUser); ok {
			once.Do(func() { close(entered); <-leave })
		}
		return false, nil
	})
	reg := object{"username": "in-flight", "email": "in-flight@example.com", "password": goodPassword}
	done := make(chan answer)
	go func() { done <- e.send("POST", "/api/v1/auth/register", "", reg, "Idempotency-Key", "k") }()
	<-entered
	a := e.send("POST", "/api/v1/auth/register", "", reg, "Idempotency-Key", "k")
	close(leave)
	e.want(a, 409, "idempotency_key_in_use")
	e.want(<-done, 201, "")
}

func TestParseIdempotencyKey(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"a": "a", `"a"`: "a", `"a\"b\\c"`: `a"b\c`, " x y ": "x y", `"` + strings.Repeat("k", 255) + `"`: strings.Repeat("k", 255)} {
		if got, ok := authapi.ParseIdempotencyKey(in); !ok || got != want {
			t.Errorf("ParseIdempotencyKey(%q) = %q, %v; want %q", in, got, ok, want)
		}
	}
	for _, in := range []string{"", `""`, `"`, "ä", "a\x00", `"a\"`, strings.Repeat("k", 256)} {
		if got, ok := authapi.ParseIdempotencyKey(in); ok {
			t.Errorf("ParseIdempotencyKey(%q) = %q, want none", in, got)
		}
	}
}
