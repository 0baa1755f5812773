package authapi_test

import (
	"slices"
	"testing"
	"time"

	"sluice/authapi"
)

func requests(srv *authapi.Server, route, status string) uint64 {
	var n uint64
	for _, r := range srv.Requests() {
		if r.Route == route && r.Status == status {
			n += r.Count
		}
	}
	return n
}

func timed(t *testing.T, srv *authapi.Server, group string) (n uint64, sum time.Duration) {
	t.Helper()
	all := srv.RequestDurations()
	i := slices.IndexFunc(all, func(d authapi.RequestDurations) bool { return d.Group == group })
	if i < 0 {
		t.Fatalf("no group %q", group)
	}
	for _, c := range all[i].Reading.Counts {
		n += c
	}
	return n, all[i].Reading.Sum
}

// Each request counts once, under its route as the table has it and the status that the client saw; nothing that a client makes up
// becomes a name.
func TestRequests_ByRouteAndStatus(t *testing.T) {
	t.Parallel()
	e := newEdge(t, func(c *authapi.Config) {
		c.Limit.Anonymous, c.Limit.APIKey = rule(6), rule(1000)
	})
	key := e.key(nil, "events:read")
	for range 3 {
		e.do("GET", "/api/v1/auth/verify", "", "X-API-Key", key)
	}
	e.do("HEAD", "/api/v1/auth/verify", "", "X-API-Key", key)
	e.do("GET", "/api/v1/auth/verify/envoy/made/up", "", "X-API-Key", key)
	e.do("GET", "/made-up-by-a-client", "")
	e.do("DELETE", "/api/v1/health", "")
	e.do("GET", "/api/v1/auth/me", "")
	e.do("GET", "/livez", "")
	for range 10 {
		e.do("GET", "/api/v1/health", "")
	}
	for _, want := range []struct {
		route, status string
		n             uint64
	}{
		{"/api/v1/auth/verify", "200", 4}, {"/api/v1/auth/verify/envoy/*", "200", 1}, {"none", "404", 1}, {"none", "405", 1}, {"/api/v1/auth/me", "401", 1}, {"/livez", "200", 1},
		{"/api/v1/health", "200", 3}, {"/api/v1/health", "429", 7},
	} {
		if got := requests(e.srv, want.route, want.status); got != want.n {
			t.Errorf("%s %s: %d, want %d of %+v", want.route, want.status, got, want.n, e.srv.Requests())
		}
	}
	for group, want := range map[string]uint64{"verify": 5, "none": 2, "health": 1, "api": 11, "gateway": 0} {
		if got, _ := timed(t, e.srv, group); got != want {
			t.Errorf("%d timed as %s, want %d", got, group, want)
		}
	}
	cache := e.srv.CredentialCache()
	if cache.Hits != 4 || cache.Misses != 1 || cache.Entries != 1 || cache.Room < 1000 {
		t.Errorf("cache %+v, want 4 hits and 1 miss", cache)
	}
}

// A gateway route counts on under its name when settings change, and goes with the route.
func TestRequests_ConfiguredRoutes(t *testing.T) {
	t.Parallel()
	e := newEdge(t, apiRoutes)
	before := e.srv.Requests()
	live := authapi.LiveConfig{Limit: authapi.DefaultLimits(), Routes: []authapi.Route{{
		Name: "reports", PathPrefix: "/reports", Upstream: "http://127.0.0.1:9", Rules: []authapi.RouteRule{{Methods: []string{"*"}, Anonymous: true}},
	}}}
	if err := e.srv.SetLive(live); err != nil {
		t.Fatal(err)
	}
	e.do("GET", "/reports/1", "") // nobody is there
	if err := e.srv.SetLive(live); err != nil {
		t.Fatal(err)
	}
	e.do("PUT", "/reports/2", "")
	if got := requests(e.srv, "reports", "502"); got != 2 {
		t.Errorf("%d requests, want 2 of %+v (before: %+v)", got, e.srv.Requests(), before)
	}
	live.Routes = nil
	if err := e.srv.SetLive(live); err != nil {
		t.Fatal(err)
	}
	if got := requests(e.srv, "reports", "502"); got != 0 {
		t.Errorf("%d requests of a route that is no more", got)
	}
}
