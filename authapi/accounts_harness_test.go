package authapi_test

import (
	"encoding/json"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"sluice/authapi"
	"sluice/raftfsm/state"
)

const goodPassword = "secure-password-123"

var cheapArgon2 = authapi.Argon2Config{MemoryKiB: 8, Iterations: 1, Parallelism: 1, Workers: 2}

// newAccounts is an edge with a cluster that has its secrets, cheap hashes and generous limits.
func newAccounts(t *testing.T, change func(*authapi.Config)) *edge {
	t.Helper()
	e := newEdge(t, func(cfg *authapi.Config) {
		cfg.Auth.Argon2 = cheapArgon2
		cfg.Auth.RefreshReuseGrace = 10 * time.Second
		cfg.Limit.Anonymous, cfg.Limit.User, cfg.Limit.APIKey = rule(1e6), rule(1e6), rule(1e6)
		trustLoopback(cfg)
		if change != nil {
			change(cfg)
		}
	})
	if err := e.srv.Maintain(t.Context()); err != nil {
		t.Fatalf("Maintain: %v", err)
	}
	return e
}

type object = map[string]any

func (a answer) object(t *testing.T) object {
	t.Helper()
	var o object
	if err := json.Unmarshal([]byte(a.body), &o); err != nil {
		t.Fatalf("decode %q: %v", a.body, err)
	}
	return o
}

func encode(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// send sends JSON with a bearer credential, "" for none, each time a millisecond later: what requests make one after the
// other sorts so.
func (e *edge) send(method, path, credential string, body any, headers ...string) answer {
	e.t.Helper()
	e.clock.Advance(time.Millisecond)
	text := ""
	if body != nil {
		text = encode(body)
		headers = append(headers, "Content-Type", "application/json")
	}
	if credential != "" {
		headers = append(headers, "Authorization", "Bearer "+credential)
	}
	return e.do(method, path, text, headers...)
}

// person is a registered user.
type person struct {
	id, name, email, org, token, refresh, session string
}

var people atomic.Int64

func (e *edge) register() person {
	e.t.Helper()
	name := fmt.Sprintf("person-%d", people.Add(1))
	a := e.send("POST", "/api/v1/auth/register", "", object{"username": name, "email": name + "@example.com", "password": goodPassword})
	e.want(a, 201, "")
	o := a.object(e.t)
	p := person{
		id: o["user"].(object)["id"].(string), name: name, email: name + "@example.com", org: o["organization"].(object)["id"].(string),
		token: o["token"].(string), refresh: o["refresh_token"].(string),
	}
	cl, err := e.srv.VerifyToken([]byte(p.token), e.clock.Now())
	if err != nil {
		e.t.Fatalf("verify the token of a registration: %v", err)
	}
	p.session = cl.SessionID
	return p
}

func (e *edge) login(p person) object {
	e.t.Helper()
	a := e.send("POST", "/api/v1/auth/login", "", object{"username": p.name, "password": goodPassword})
	e.want(a, 200, "")
	return a.object(e.t)
}

// join makes a user a member of an organization.
func (e *edge) join(p person, org, role string) {
	e.cluster.PutMembership(state.Membership{OrganizationID: org, UserID: p.id, Role: role, CreatedAt: 1})
}

func (e *edge) createKey(credential, org string, scopes ...string) object {
	e.t.Helper()
	a := e.send("POST", "/api/v1/api-keys", credential, object{"name": "k", "organization_id": org, "scopes": scopes})
	e.want(a, 201, "")
	return a.object(e.t)
}

// events lists an organization's audit log, newest first.
func (e *edge) events(token, query string) []object {
	e.t.Helper()
	a := e.send("GET", "/api/v1/audit-logs"+query, token, nil)
	e.want(a, 200, "")
	var list []object
	for _, v := range a.object(e.t)["data"].([]any) {
		list = append(list, v.(object))
	}
	return list
}

func names(events []object) []string {
	var list []string
	for _, e := range events {
		list = append(list, e["event"].(string))
	}
	return list
}

// fields are the names in a 422.
func (e *edge) fields(a answer) map[string]bool {
	e.t.Helper()
	e.want(a, 422, "invalid_input")
	m := map[string]bool{}
	for _, f := range a.problem(e.t).Errors {
		m[f.Field] = true
	}
	return m
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
