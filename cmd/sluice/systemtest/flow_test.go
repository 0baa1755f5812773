package systemtest

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// route chooses where the next request goes and checks afterwards where it went.
type route interface {
	// base is the URL for the next request.
	base() string
	// went is told the answer and fails the test where the request reached the same node as the one before.
	went(t *testing.T, res response)
}

// roundRobin asks the nodes directly, each request another one.
type roundRobin struct {
	urls []string
	next int
}

func (r *roundRobin) base() string {
	r.next++
	return r.urls[r.next%len(r.urls)]
}

func (r *roundRobin) went(*testing.T, response) {}

func TestReferenceFlow_Direct(t *testing.T) {
	c := sharedCluster(t)
	referenceFlow(t, &roundRobin{urls: c.urls})
}

// referenceFlow is what a user of the reference API does, each request at another node than the one before.
func referenceFlow(t *testing.T, route route) {
	call := func(r request, status int) response {
		t.Helper()
		res := must(t, route.base(), r, status)
		route.went(t, res)
		if err := checkLimitHeaders(res); err != nil {
			t.Errorf("%s %s: %v", r.method, r.path, err)
		}
		return res
	}
	// dead waits until a revoked key is refused twice in a row, for as long as that may take.
	dead := func(key string) {
		t.Helper()
		refused := 0
		eventually(t, holdsWithin, "the old key is dead", func() error {
			res, err := send(route.base(), request{path: "/api/v1/triggers", key: key, address: newAddress()})
			if err != nil {
				return err
			}
			route.went(t, res)
			if refused++; res.status != http.StatusUnauthorized {
				refused = 0
			}
			if refused < 2 {
				return &missingError{"401 twice in a row", []string{res.String()}}
			}
			return nil
		})
	}
	address, username, password := newAddress(), unique("flow"), "seven lamps by the tide"

	registered := call(request{method: "POST", path: "/api/v1/auth/register", address: address,
		body: map[string]any{"username": username, "email": username + "@example.com", "password": password}}, http.StatusCreated)
	userID, personal := registered.field(t, "user", "id"), registered.field(t, "organization", "id")
	if kind := registered.field(t, "token_type"); !strings.EqualFold(kind, "Bearer") {
		t.Errorf("token_type %q", kind)
	}
	call(request{method: "POST", path: "/api/v1/auth/login", address: address, body: map[string]any{"username": username, "password": "wrong" + password}}, http.StatusUnauthorized)
	token := call(request{method: "POST", path: "/api/v1/auth/login", address: address, body: map[string]any{"username": username, "password": password}}, http.StatusOK).field(t, "token")
	me := call(request{path: "/api/v1/auth/me", token: token, address: address}, http.StatusOK)
	if got := me.field(t, "user", "id"); got != userID {
		t.Errorf("me is %s, want %s", got, userID)
	}

	// The personal organization and one more.
	team := call(request{method: "POST", path: "/api/v1/organizations", token: token, address: address, body: map[string]any{"name": unique("team")}}, http.StatusCreated).field(t, "id")
	organizations := call(request{path: "/api/v1/organizations", token: token, address: address}, http.StatusOK)
	var list struct {
		Data []struct {
			ID string `json:"id"`
		} `json:"data"`
	}
	if err := json.Unmarshal(organizations.body, &list); err != nil || len(list.Data) != 2 {
		t.Errorf("organizations: %v, want two", organizations)
	}

	created := call(request{method: "POST", path: "/api/v1/api-keys", token: token, address: address,
		body: map[string]any{"name": "first", "organization_id": team, "scopes": []string{"triggers:read"}}}, http.StatusCreated)
	key, keyID := created.field(t, "key"), created.field(t, "id")
	if !strings.HasPrefix(key, "sk_live_") {
		t.Errorf("key %q", key[:min(len(key), 8)])
	}
	// The gateway: the upstream sees who it is, and no credential.
	echoed := call(request{path: "/api/v1/triggers/7?x=1", key: key, address: address, header: map[string]string{"X-Auth-User": "forged", "X-Auth-Key": "forged"}}, http.StatusOK)
	var seen struct {
		Method, Path, Query string
		Headers             map[string]string
	}
	if err := json.Unmarshal(echoed.body, &seen); err != nil {
		t.Fatalf("echo: %v in %v", err, echoed)
	}
	if seen.Method != "GET" || seen.Path != "/api/v1/triggers/7" || seen.Query != "x=1" {
		t.Errorf("the upstream saw %s %s?%s", seen.Method, seen.Path, seen.Query)
	}
	for name, want := range map[string]string{"X-Auth-Method": "api_key", "X-Auth-Key": keyID, "X-Auth-Organization": team, "X-Auth-Scopes": "triggers:read", "X-Auth-User": ""} {
		if got, there := seen.Headers[name]; !there || got != want {
			t.Errorf("the upstream saw %s %q, want %q", name, got, want)
		}
	}
	for _, name := range []string{"X-Api-Key", "Authorization"} {
		if _, there := seen.Headers[name]; there {
			t.Errorf("the upstream saw %s", name)
		}
	}
	call(request{method: "POST", path: "/api/v1/triggers", key: key, address: address, body: map[string]any{}}, http.StatusForbidden)
	call(request{path: "/api/v1/events", key: key, address: address}, http.StatusForbidden)

	rotated := call(request{method: "POST", path: "/api/v1/api-keys/" + keyID + "/rotate", token: token, address: address, body: map[string]any{}}, http.StatusOK)
	newKey := rotated.field(t, "key")
	call(request{path: "/api/v1/triggers", key: newKey, address: address}, http.StatusOK)
	dead(key)
	call(request{path: "/api/v1/triggers", key: key, address: address}, http.StatusUnauthorized)
	call(request{path: "/api/v1/triggers", key: newKey, address: address}, http.StatusOK)

	call(request{method: "DELETE", path: "/api/v1/api-keys/" + keyID, token: token, address: address}, http.StatusNoContent)
	dead(newKey)
	call(request{path: "/api/v1/triggers", key: newKey, address: address}, http.StatusUnauthorized)

	// The audit log of the organization has it all, and the personal one the sign-ins.
	events := func(organization string) (events []string) {
		t.Helper()
		res := call(request{path: "/api/v1/audit-logs?limit=100&organization_id=" + organization, token: token, address: address}, http.StatusOK)
		var page struct {
			Data []struct {
				Event string `json:"event"`
			} `json:"data"`
		}
		if err := json.Unmarshal(res.body, &page); err != nil {
			t.Fatalf("audit log: %v in %v", err, res)
		}
		for _, e := range page.Data {
			events = append(events, e.Event)
		}
		return events
	}
	// A failed sign-in is written down some seconds later, together with others like it.
	eventually(t, readyWithin/2, "the audit log has every step", func() error {
		if err := holds(events(personal), "user.registered", "organization.created", "session.created", "session.failed"); err != nil {
			return err
		}
		return holds(events(team), "organization.created", "api_key.created", "api_key.rotated", "api_key.revoked")
	})

	// Anonymous requests: ten in a minute, and no eleventh, on whichever node.
	roomInMinute(t, 5*readyWithin/10)
	stranger := newAddress()
	for range 10 {
		call(request{path: "/api/v1/triggers", address: stranger}, http.StatusOK)
	}
	refused := call(request{path: "/api/v1/triggers", address: stranger}, http.StatusTooManyRequests)
	if code := refused.field(t, "code"); code != "rate_limit_exceeded" {
		t.Errorf("code %q", code)
	}
	call(request{path: "/api/v1/triggers", address: newAddress()}, http.StatusOK)
}

func holds(got []string, want ...string) error {
	for _, w := range want {
		if !slices.Contains(got, w) {
			return &missingError{w, got}
		}
	}
	return nil
}

type missingError struct {
	want string
	got  []string
}

func (e *missingError) Error() string { return "no " + e.want + " in " + strings.Join(e.got, ", ") }

// TestRepeats sends the same write to every node: under one Idempotency-Key it happens once, and a refresh token that was
// just spent gives the same successor.
func TestRepeats(t *testing.T) {
	c := sharedCluster(t)
	a := register(t, c.urls[0])
	create := request{method: "POST", path: "/api/v1/organizations", token: a.token, address: a.address,
		body: map[string]any{"name": unique("once")}, header: map[string]string{"Idempotency-Key": unique("repeat-")}}
	first := must(t, c.urls[0], create, http.StatusCreated).field(t, "id")
	refresh := request{method: "POST", path: "/api/v1/auth/refresh", address: a.address, body: map[string]any{"refresh_token": a.refresh}}
	successor := must(t, c.urls[0], refresh, http.StatusOK).field(t, "refresh_token")
	for _, url := range c.urls[1:] {
		if again := must(t, url, create, http.StatusCreated).field(t, "id"); again != first {
			t.Errorf("the second time made %s, the first %s", again, first)
		}
		if again := must(t, url, refresh, http.StatusOK).field(t, "refresh_token"); again != successor {
			t.Errorf("another successor of one refresh token")
		}
	}
	create.body = map[string]any{"name": unique("other")}
	if code := must(t, c.urls[2], create, http.StatusUnprocessableEntity).field(t, "code"); code != "idempotency_key_reused" {
		t.Errorf("code %q", code)
	}
}
