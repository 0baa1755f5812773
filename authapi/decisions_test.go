package authapi_test

import (
	"sync"
	"testing"

	"sluice/authapi"
)

func counts(t *testing.T, srv *authapi.Server, policy string) authapi.DecisionCount {
	t.Helper()
	for _, d := range srv.Decisions() {
		if d.Policy == policy {
			return d
		}
	}
	t.Fatalf("no policy %q in %+v", policy, srv.Decisions())
	return authapi.DecisionCount{}
}

// Every decision counts once under its policy, whatever limit stands in the policy's place, and however many are made at once.
func TestDecisions_ByPolicy(t *testing.T) {
	t.Parallel()
	e := newEdge(t, func(c *authapi.Config) {
		c.Limit.Anonymous, c.Limit.APIKey = rule(5), rule(1000)
	})
	key := e.key(nil, "events:read")
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 10 {
				e.do("GET", "/api/v1/auth/verify", "", "X-API-Key", key)
			}
		})
	}
	for range 7 {
		e.do("GET", "/api/v1/auth/verify", "")
	}
	all.Wait()
	if got := counts(t, e.srv, "api_key"); got.Admitted != 40 || got.Refused != 0 {
		t.Errorf("api_key: got %+v, want 40 admitted", got)
	}
	if got := counts(t, e.srv, "anonymous"); got.Admitted != 5 || got.Refused != 2 {
		t.Errorf("anonymous: got %+v, want 5 admitted and 2 refused", got)
	}
	e.limits.Undecided.Store(true)
	e.do("GET", "/api/v1/auth/verify", "")
	if got := counts(t, e.srv, "anonymous"); got.Undecided != 1 {
		t.Errorf("anonymous: got %+v, want 1 undecided", got)
	}
}
