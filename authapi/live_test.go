package authapi_test

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"sluice/authapi"
	"sluice/authapi/authtest/idp"
	"sluice/limiter"
)

// live is what edgeConfig's server runs with, changed.
func live(change func(*authapi.LiveConfig)) authapi.LiveConfig {
	c := authapi.LiveConfig{Limit: authapi.DefaultLimits()}
	change(&c)
	return c
}

func (e *edge) setLive(change func(*authapi.LiveConfig)) {
	e.t.Helper()
	if err := e.srv.SetLive(live(change)); err != nil {
		e.t.Fatalf("SetLive: %v", err)
	}
}

// A credential that is remembered goes by the new limits at once, and what it has spent stays spent.
func TestSetLive_Limits(t *testing.T) {
	t.Parallel()
	e := newEdge(t, nil)
	key := e.key(nil)
	bearer := "Bearer " + signedIn(t, e.srv, e.cluster)
	for range 3 {
		e.want(e.verify("X-API-Key", key), 200, "")
	}
	e.wantLeft(e.verify("Authorization", bearer), 200, "user=99")
	e.wantLeft(e.verify(), 200, "anonymous=9")
	e.setLive(func(c *authapi.LiveConfig) {
		c.Limit.APIKey, c.Limit.User, c.Limit.Anonymous = rule(5), rule(2), rule(50)
		c.Limit.Policies = []authapi.Policy{{Name: "day", By: []authapi.Dimension{authapi.ByKey}, Rule: window(1, 86_400)}}
	})
	e.wantLeft(e.verify("X-API-Key", key), 200, "api_key=1 day=0")
	e.wantLeft(e.verify("X-API-Key", key), 429, "api_key=1 day=0")
	e.wantLeft(e.verify("Authorization", bearer), 200, "user=0")
	e.wantLeft(e.verify("Authorization", bearer), 429, "user=0")
	e.wantLeft(e.verify(), 200, "anonymous=48")
	e.setLive(func(c *authapi.LiveConfig) {
		c.Limit.Plans = map[string]limiter.Rule{"gold": rule(1000)}
	})
	e.wantLeft(e.verify("X-API-Key", key), 200, "api_key=95")
	if _, err := e.srv.SetPlan(t.Context(), authapi.Operator{}, "org_1", "gold"); err != nil {
		t.Errorf("a plan that came up: %v", err)
	}
	e.wantLeft(e.verify("X-API-Key", key), 200, "api_key=994")
	e.setLive(func(*authapi.LiveConfig) {})
	e.wantLeft(e.verify("X-API-Key", key), 200, "api_key=93") // a plan that is gone is none
	if _, err := e.srv.SetPlan(t.Context(), authapi.Operator{}, "org_1", "gold"); err == nil {
		t.Error("a plan that is gone could be given")
	}
}

func TestSetLive_RefusedChangesNothing(t *testing.T) {
	t.Parallel()
	e := newEdge(t, nil)
	by := []authapi.Dimension{authapi.ByKey}
	for want, change := range map[string]func(*authapi.LiveConfig){
		"limit user": func(c *authapi.LiveConfig) { c.Limit.User = rule(-1) },
		"plan gold":  func(c *authapi.LiveConfig) { c.Limit.Plans = map[string]limiter.Rule{"gold": rule(-1)} },
		"policy anonymous": func(c *authapi.LiveConfig) {
			c.Limit.Policies = []authapi.Policy{{Name: "anonymous", By: by, Rule: rule(1)}}
		},
		"route a": func(c *authapi.LiveConfig) {
			c.Routes = []authapi.Route{{Name: "a", PathPrefix: "/a", Upstream: "ftp://x"}}
		},
		"redirect URI": func(c *authapi.LiveConfig) { c.RedirectURIs = []string{"javascript:alert(1)"} },
	} {
		err := e.srv.SetLive(live(func(c *authapi.LiveConfig) {
			c.Limit.Anonymous = rule(1)
			change(c)
		}))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want something about %q", err, want)
		}
	}
	e.wantLeft(e.verify(), 200, "anonymous=9")
}

// Counters go on under a policy's name, come with a new one and go with one that is gone; a shadow policy that is enforced
// from now on counts as such.
func TestSetLive_Counters(t *testing.T) {
	t.Parallel()
	policy := func(name string, shadow bool) authapi.Policy {
		return authapi.Policy{Name: name, By: []authapi.Dimension{authapi.ByKey}, Rule: window(2, 60), Shadow: shadow}
	}
	e := newEdge(t, func(c *authapi.Config) { c.Limit.Policies = []authapi.Policy{policy("first", false)} })
	key := e.key(nil)
	e.want(e.verify("X-API-Key", key), 200, "")
	if got := counts(t, e.srv, "first").Admitted; got != 1 {
		t.Fatalf("first admitted %d", got)
	}
	e.setLive(func(c *authapi.LiveConfig) {
		c.Limit.Policies = []authapi.Policy{policy("trial", true), policy("second", false), policy("first", false)}
	})
	e.want(e.verify("X-API-Key", key), 200, "")
	if first, second := counts(t, e.srv, "first").Admitted, counts(t, e.srv, "second").Admitted; first != 2 || second != 1 {
		t.Errorf("first admitted %d, second %d", first, second)
	}
	if got := fmt.Sprint(e.srv.ShadowCounts()); got != "[{trial 1 0 0}]" {
		t.Errorf("shadow counts %s", got)
	}
	e.setLive(func(c *authapi.LiveConfig) {
		c.Limit.Policies = []authapi.Policy{policy("second", true), policy("trial", true)}
	})
	e.want(e.verify("X-API-Key", key), 200, "")
	if got := fmt.Sprint(e.srv.ShadowCounts()); got != "[{second 1 0 0} {trial 2 0 0}]" {
		t.Errorf("shadow counts %s", got)
	}
	for _, d := range e.srv.Decisions() {
		if d.Policy == "first" || d.Policy == "second" {
			t.Errorf("still counted: %+v", d)
		}
	}
	if got := counts(t, e.srv, "api_key").Admitted; got != 3 {
		t.Errorf("the layer's own admitted %d", got)
	}
}

func TestSetLive_Routes(t *testing.T) {
	t.Parallel()
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "here: "+r.URL.Path) }))
	defer upstream.Close()
	rules := []authapi.RouteRule{{Methods: []string{"*"}, Anonymous: true, Cost: 1}}
	e := newEdge(t, nil)
	e.want(e.do("GET", "/files/1", ""), 404, "not_found")
	e.setLive(func(c *authapi.LiveConfig) {
		c.Routes = []authapi.Route{{Name: "files", PathPrefix: "/files", Upstream: upstream.URL, Rules: rules}}
		c.Limit.Policies = []authapi.Policy{{Name: "each", By: []authapi.Dimension{authapi.ByRoute}, Rule: window(20, 60)}}
	})
	a := e.do("GET", "/files/1", "")
	e.wantLeft(a, 200, "anonymous=8 each=19")
	if a.body != "here: /files/1" {
		t.Errorf("body %q", a.body)
	}
	e.setLive(func(c *authapi.LiveConfig) {
		c.Routes = []authapi.Route{
			{Name: "more", PathPrefix: "/files/more", Rules: rules},
			{Name: "files", PathPrefix: "/files", Upstream: upstream.URL, Rules: []authapi.RouteRule{{Methods: []string{"GET"}, Scopes: []string{"files:read"}, Cost: 2}}},
		}
		c.Limit.Policies = []authapi.Policy{{Name: "each", By: []authapi.Dimension{authapi.ByRoute}, Rule: window(20, 60)}}
	})
	e.want(e.do("GET", "/files/1", ""), 401, "authentication_required")
	e.wantLeft(e.do("GET", "/files/1", "", "X-API-Key", e.key(nil, "files:*")), 200, "api_key=98 each=17")
	e.setLive(func(*authapi.LiveConfig) {})
	e.want(e.do("GET", "/files/1", ""), 404, "not_found")
}

func TestSetLive_ScopesAndRedirects(t *testing.T) {
	t.Parallel()
	x := newOAuth(t, nil).ready("google")
	b := x.browser()
	begun := x.idp.Authorize(t, b.begin("google", query(returnTo, "")))
	x.idp.Set(idp.User{Subject: "1001", Name: "ada", Email: "ada@example.com"})
	other := "https://other.example.com/in"
	x.want(x.do("GET", "/api/v1/auth/google"+query(other, ""), ""), 400, "invalid_redirect_uri")
	x.setLive(func(c *authapi.LiveConfig) { c.RedirectURIs = []string{other} })
	x.want(x.do("GET", "/api/v1/auth/google"+query(other, ""), ""), 302, "")
	x.want(x.do("GET", "/api/v1/auth/google"+query(returnTo, ""), ""), 400, "invalid_redirect_uri")
	// What was begun does not end where no sign-in may return to any more.
	x.want(b.get(path(t, begun)), 400, "invalid_redirect_uri")

	ann := x.register()
	key := func(scope string) answer {
		return x.send("POST", "/api/v1/api-keys", ann.token, object{"name": "k", "organization_id": ann.org, "scopes": []string{scope}})
	}
	x.want(key("invoices:read"), 422, "invalid_input")
	x.setLive(func(c *authapi.LiveConfig) { c.ScopeResources = []string{"invoices"} })
	x.want(key("invoices:read"), 201, "")
	x.want(key("events:read"), 422, "invalid_input")
}

// Connections to an upstream that a route still leads to are kept, and those to others closed.
func TestSetLive_Upstreams(t *testing.T) {
	t.Parallel()
	var opened, closed atomic.Int64
	upstream := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	upstream.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		switch s {
		case http.StateNew:
			opened.Add(1)
		case http.StateClosed:
			closed.Add(1)
		}
	}
	upstream.Start()
	defer upstream.Close()
	e := newEdge(t, nil)
	set := func(url string, cost int64) {
		t.Helper()
		e.setLive(func(c *authapi.LiveConfig) {
			rules := []authapi.RouteRule{{Methods: []string{"*"}, Anonymous: true, Cost: cost}}
			c.Routes = []authapi.Route{{Name: "files", PathPrefix: "/files", Upstream: url, Rules: rules}}
		})
	}
	for cost := range int64(3) {
		set(upstream.URL, cost+1)
		e.want(e.do("GET", "/files/1", ""), 200, "")
	}
	if opened.Load() != 1 || closed.Load() != 0 {
		t.Errorf("%d connections were opened and %d closed, want one that is kept", opened.Load(), closed.Load())
	}
	set(upstream.URL+"/elsewhere", 1)
	waitFor(t, func() error {
		if closed.Load() != 1 {
			return fmt.Errorf("%d connections are closed, want 1", closed.Load())
		}
		return nil
	})
}

// swapLimits calls swap after a Take, once each time it is set.
type swapLimits struct {
	authapi.Limits
	swap atomic.Pointer[func()]
}

func (l *swapLimits) Take(charges []limiter.Charge, verdicts []limiter.Verdict) limiter.Outcome {
	outcome := l.Limits.Take(charges, verdicts)
	if swap := l.swap.Swap(nil); swap != nil {
		(*swap)()
	}
	return outcome
}

func (l *swapLimits) TryTake(charges []limiter.Charge, verdicts []limiter.Verdict) (limiter.Outcome, bool) {
	outcome, wait := l.Limits.TryTake(charges, verdicts)
	if swap := l.swap.Swap(nil); swap != nil {
		(*swap)()
	}
	return outcome, wait
}

// A request that was admitted by limits which changed at the same moment is decided anew, whole: it has spent nothing by the old ones,
// and reached no upstream by an old route.
func TestSetLive_WhileARequestIsAdmitted(t *testing.T) {
	t.Parallel()
	var reached atomic.Int64
	upstream := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Add(1) }))
	defer upstream.Close()
	limits := &swapLimits{}
	e := newEdge(t, func(c *authapi.Config) {
		limits.Limits = c.Limits
		c.Limits = limits
	})
	set := func(anonymous, check int64, scopes ...string) func() {
		return func() {
			e.setLive(func(c *authapi.LiveConfig) {
				c.Limit.Anonymous = rule(anonymous)
				c.Limit.Policies = []authapi.Policy{{Name: "sms", By: []authapi.Dimension{authapi.ByCheck}, Rule: rule(check)}}
				rules := []authapi.RouteRule{{Methods: []string{"*"}, Anonymous: scopes == nil, Scopes: scopes, Cost: 1}}
				c.Routes = []authapi.Route{{Name: "files", PathPrefix: "/files", Upstream: upstream.URL, Rules: rules}}
			})
		}
	}
	during := func(swap func()) { limits.swap.Store(&swap) }
	set(10, 10)()
	during(set(5, 10))
	e.wantLeft(e.verify(), 200, "anonymous=4")
	during(set(6, 10, "files:read"))
	e.want(e.do("GET", "/files/1", ""), 401, "authentication_required")
	during(set(7, 10))
	e.want(e.do("GET", "/files/1", ""), 200, "")
	if got := reached.Load(); got != 1 {
		t.Errorf("the upstream was reached %d times", got)
	}
	during(set(8, 10))
	e.want(e.do("GET", "/nowhere", ""), 404, "not_found")
	during(set(0, 10))
	e.wantLeft(e.verify(), 429, "anonymous=0")
	during(set(1000, 10))
	e.wantLeft(e.do("GET", "/openapi.json", ""), 200, "documents=599")

	key := e.key(nil, "limits:check")
	check := func(body string) answer {
		return e.do("POST", "/api/v1/limits/check", body, "X-API-Key", key, "Content-Type", "application/json")
	}
	for _, batch := range []string{"false", "true"} {
		name := "c" + batch
		body := fmt.Sprintf(`{"checks":[{"key":%q,"policy":"sms"},{"key":%q,"policy":"sms"}],"atomic":%s}`, name, name+"2", batch)
		set(1000, 10)()
		e.want(check(body), 200, "") // spends one of each
		// The key's own limit is taken first.
		second := set(1000, 3)
		during(func() { during(second) })
		a := check(body)
		e.want(a, 200, "")
		if strings.Count(a.body, `"remaining":1`) != 2 || strings.Count(a.body, `"limit":3`) != 2 {
			t.Errorf("atomic %s: %s", batch, a.body)
		}
	}
}

// Requests beside changes go by one or the other: with other policies and routes in other places each time, nothing is mixed up.
func TestSetLive_BesideRequests(t *testing.T) {
	t.Parallel()
	by := []authapi.Dimension{authapi.ByKey, authapi.ByRoute}
	rules := []authapi.RouteRule{{Methods: []string{"*"}, Anonymous: true, Cost: 1}}
	set := func(n int) func(*authapi.LiveConfig) {
		return func(c *authapi.LiveConfig) {
			for i := range n {
				name := fmt.Sprintf("r%d", i)
				c.Routes = append(c.Routes, authapi.Route{Name: name, PathPrefix: "/" + name, Rules: rules})
				c.Limit.Policies = append(c.Limit.Policies,
					authapi.Policy{Name: fmt.Sprintf("p%d", i), By: by, Rule: rule(1_000_000), Routes: []string{name}, Shadow: i%2 == 1})
			}
			c.Limit.APIKey = rule(1_000_000)
		}
	}
	e := newEdge(t, trustLoopback)
	e.setLive(set(6))
	key := e.key(nil)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 200 {
				a := e.described("GET", fmt.Sprintf("/r%d", (i+w)%6), "X-API-Key", key)
				if a.status != 200 && a.status != 403 {
					t.Errorf("status %d: %s", a.status, a.body)
					return
				}
			}
		})
	}
	for i := range 100 {
		e.setLive(set(i % 7))
	}
	wg.Wait()
}
