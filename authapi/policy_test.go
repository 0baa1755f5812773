package authapi_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"sluice/authapi"
	"sluice/limiter"
	"sluice/raftfsm/state"
)

func window(limit, seconds int64) limiter.Rule {
	return limiter.Rule{Limit: limit, Window: seconds, Algorithm: limiter.FixedWindow}
}

var rateLimitItem = regexp.MustCompile(`^"([a-z0-9_-]+)";r=(\d+);t=(\d+)$`)

// left reads RateLimit: the units left by policy, "name=units" in the order of the field. It also holds RateLimit-Policy
// to naming the same.
func left(t *testing.T, a answer) string {
	t.Helper()
	var out, names []string
	for _, item := range strings.Split(a.header.Get("RateLimit"), ", ") {
		m := rateLimitItem.FindStringSubmatch(item)
		if m == nil {
			t.Fatalf("RateLimit: %q is no item; the field is %q", item, a.header.Get("RateLimit"))
		}
		out, names = append(out, m[1]+"="+m[2]), append(names, m[1])
	}
	for i, item := range strings.Split(a.header.Get("RateLimit-Policy"), ", ") {
		if i >= len(names) || !strings.HasPrefix(item, strconv.Quote(names[i])+";q=") {
			t.Fatalf("RateLimit-Policy %q and RateLimit %q do not name the same policies", a.header.Get("RateLimit-Policy"), a.header.Get("RateLimit"))
		}
	}
	return strings.Join(out, " ")
}

func (e *edge) wantLeft(a answer, status int, want string) {
	e.t.Helper()
	e.want(a, status, "")
	wantHeaders(e.t, a)
	if got := left(e.t, a); got != want {
		e.t.Fatalf("RateLimit has %s, want %s", got, want)
	}
}

func (e *edge) verify(headers ...string) answer {
	e.t.Helper()
	return e.do("GET", "/api/v1/auth/verify", "", headers...)
}

// described asks about a request, as a proxy would.
func (e *edge) described(method, uri string, headers ...string) answer {
	e.t.Helper()
	return e.verify(append(headers, "X-Forwarded-Method", method, "X-Forwarded-Uri", uri)...)
}

func TestPolicies_SpendFromAllOrNone(t *testing.T) {
	t.Parallel()
	e := newEdge(t, func(c *authapi.Config) {
		c.Limit.APIKey = window(10, 60)
		c.Limit.Policies = []authapi.Policy{
			{Name: "second", By: []authapi.Dimension{authapi.ByKey}, Rule: window(2, 1)},
			{Name: "day", By: []authapi.Dimension{authapi.ByKey}, Rule: window(5, 86_400)},
		}
	})
	key := e.key(nil)
	e.wantLeft(e.verify("X-API-Key", key), 200, "api_key=9 second=1 day=4")
	a := e.verify("X-API-Key", key)
	e.wantLeft(a, 200, "api_key=8 second=0 day=3")
	for name, want := range map[string]string{
		"X-RateLimit-Limit": "2", "X-RateLimit-Remaining": "0", "X-RateLimit-Window": "1", "X-RateLimit-Reset": fmt.Sprint(start.Unix() + 1),
		"RateLimit-Policy": `"api_key";q=10;w=60, "second";q=2;w=1, "day";q=5;w=86400`,
	} {
		if got := a.header.Get(name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	for range 3 {
		a = e.verify("X-API-Key", key)
		e.wantLeft(a, 429, "api_key=8 second=0 day=3")
		if !strings.Contains(a.body, `"violated-policies":["second"]`) || a.header.Get("Retry-After") != "1" || a.header.Get("X-RateLimit-Limit") != "2" {
			t.Fatalf("a refusal by the second: headers %v, body %s", a.header, a.body)
		}
	}
	e.clock.Advance(time.Second)
	e.wantLeft(e.verify("X-API-Key", key), 200, "api_key=7 second=1 day=2")
	// The tightest is what is left of a limit in proportion, so the day at 1 of 5 comes before the second at 1 of 2.
	e.clock.Advance(time.Second)
	if a := e.verify("X-API-Key", key); left(t, a) != "api_key=6 second=1 day=1" || a.header.Get("X-RateLimit-Window") != "86400" || a.header.Get("X-RateLimit-Remaining") != "1" {
		t.Fatalf("headers %v, want the day's", a.header)
	}
	// Two policies refuse a request of two units; Retry-After is the longer wait, and both are named.
	a = e.do("GET", "/api/v1/auth/verify?cost=2", "", "X-API-Key", key)
	day := 86_400 - (start.Unix()+2)%86_400
	if p := a.problem(t); a.status != 429 || p.RetryAfter != day || a.header.Get("Retry-After") != fmt.Sprint(day) || !strings.Contains(a.body, `"violated-policies":["second","day"]`) {
		t.Fatalf("status %d, Retry-After %q, want 429 and %d; body %s", a.status, a.header.Get("Retry-After"), day, a.body)
	}
	e.wantLeft(e.verify("X-API-Key", key), 200, "api_key=5 second=0 day=0")
}

func TestPolicies_ByOrganizationKeyAndUser(t *testing.T) {
	t.Parallel()
	e := newEdge(t, func(c *authapi.Config) {
		c.Limit.Policies = []authapi.Policy{
			{Name: "org", By: []authapi.Dimension{authapi.ByOrganization}, Rule: window(3, 60)},
			{Name: "users", By: []authapi.Dimension{authapi.ByUser}, Rule: window(50, 60)},
			{Name: "keys", By: []authapi.Dimension{authapi.ByKey}, Rule: window(60, 60), Layers: []string{"api_key"}},
		}
	})
	one, two := e.key(nil), e.key(nil)
	e.organization("org_2", "")
	elsewhere := e.key(func(k *state.APIKey) { k.OrganizationID = "org_2" })
	e.wantLeft(e.verify("X-API-Key", one), 200, "api_key=99 org=2 keys=59")
	e.wantLeft(e.verify("X-API-Key", two), 200, "api_key=99 org=1 keys=59")
	e.wantLeft(e.verify("X-API-Key", two), 200, "api_key=98 org=0 keys=58")
	a := e.verify("X-API-Key", one)
	e.wantLeft(a, 429, "api_key=99 org=0 keys=59")
	if !strings.Contains(a.body, `"violated-policies":["org"]`) {
		t.Errorf("body %s", a.body)
	}
	e.wantLeft(e.verify("X-API-Key", elsewhere), 200, "api_key=99 org=2 keys=59")
	token := signedIn(t, e.srv, e.cluster)
	e.wantLeft(e.verify("Authorization", "Bearer "+token), 200, "user=99 org=2 users=49")
	e.wantLeft(e.verify(), 200, "anonymous=9")
}

func TestPolicies_ByPlan(t *testing.T) {
	t.Parallel()
	e := newEdge(t, func(c *authapi.Config) {
		c.Limit.Plans = map[string]limiter.Rule{"pro": window(1000, 60), "free": window(20, 60)}
		c.Limit.Policies = []authapi.Policy{
			{Name: "pro-day", By: []authapi.Dimension{authapi.ByOrganization}, Plans: []string{"pro"}, Rule: window(5000, 86_400)},
			{Name: "trial-day", By: []authapi.Dimension{authapi.ByOrganization}, Plans: []string{"free", authapi.PlanNone}, Rule: window(50, 86_400)},
		}
	})
	e.organization("org_pro", "pro")
	e.organization("org_free", "free")
	e.organization("org_odd", "a plan that the configuration has no more")
	for org, want := range map[string]string{
		"org_1": "api_key=99 trial-day=49", "org_pro": "api_key=999 pro-day=4999", "org_free": "api_key=19 trial-day=49", "org_odd": "api_key=99 trial-day=49",
	} {
		key := e.key(func(k *state.APIKey) { k.OrganizationID = org })
		e.wantLeft(e.verify("X-API-Key", key), 200, want)
	}
	// A key's own limit takes the place of the plan's, not of the policies on top.
	own := e.key(func(k *state.APIKey) { k.OrganizationID, k.RateLimit, k.RateWindow = "org_pro", 7, 3600 })
	e.wantLeft(e.verify("X-API-Key", own), 200, "api_key=6 pro-day=4998")
	// A user's requests count for the organization whose plan they go by.
	bearer := "Bearer " + signedIn(t, e.srv, e.cluster)
	e.wantLeft(e.verify("Authorization", bearer), 200, "user=99 trial-day=49")
	for _, join := range []struct{ org, want string }{{"org_free", "user=99 trial-day=49"}, {"org_pro", "user=999 pro-day=4997"}} {
		e.cluster.PutMembership(state.Membership{OrganizationID: join.org, UserID: "usr_1", Role: state.RoleViewer})
		if join.org == "org_free" {
			continue // looked at together with the second, which is the more generous
		}
		e.wantLeft(e.verify("Authorization", bearer), 200, join.want)
	}
}

func TestPolicies_ByRoute(t *testing.T) {
	t.Parallel()
	e := newEdge(t, func(c *authapi.Config) {
		trustLoopback(c)
		apiRoutes(c)
		c.Limit.Policies = []authapi.Policy{
			{Name: "each", By: []authapi.Dimension{authapi.ByRoute}, Rule: window(20, 60)},
			{Name: "both", By: []authapi.Dimension{authapi.ByKey, authapi.ByRoute}, Rule: window(8, 60)},
			{Name: "events", By: []authapi.Dimension{authapi.ByAddress}, Routes: []string{"events"}, Rule: window(30, 60)},
		}
	})
	key := e.key(nil, "events:*")
	e.wantLeft(e.verify("X-API-Key", key), 200, "api_key=999")
	e.wantLeft(e.described("GET", "/api/v1/events", "X-API-Key", key), 200, "api_key=998 each=19 both=7 events=29")
	e.wantLeft(e.described("POST", "/api/v1/events/1", "X-API-Key", key), 200, "api_key=993 each=14 both=2 events=24")
	a := e.described("POST", "/api/v1/events/1", "X-API-Key", key)
	e.wantLeft(a, 429, "api_key=993 each=14 both=0 events=24") // too little for a request of this cost is none
	if !strings.Contains(a.body, `"violated-policies":["both"]`) {
		t.Errorf("body %s", a.body)
	}
	e.wantLeft(e.described("GET", "/api/v1/events/private/x", "X-API-Key", key), 200, "api_key=992 each=19 both=7")
	e.wantLeft(e.described("GET", "/api/v1/events", "X-API-Key", e.key(nil, "events:*")), 200, "api_key=999 each=13 both=7 events=23")
	e.wantLeft(e.described("GET", "/nowhere", "X-API-Key", key), 403, "api_key=991")
	// Where anybody may pass, anybody counts. Where not, or with a bad credential, only the address does.
	e.wantLeft(e.described("GET", "/api/v1/events"), 200, "anonymous=999 each=12 events=22")
	e.wantLeft(e.described("DELETE", "/api/v1/events"), 401, "anonymous=994 events=17")
	e.wantLeft(e.described("GET", "/api/v1/events", "X-API-Key", "sk_live_x"), 401, "anonymous=993 events=16")
	e.wantLeft(e.do("GET", "/api/v1/auth/verify?anonymous=deny", "", "X-Forwarded-Method", "GET", "X-Forwarded-Uri", "/api/v1/events"), 401, "anonymous=992 events=15")
	e.wantLeft(e.do("GET", "/api/v1/auth/verify/nginx", "", "X-API-Key", key, "X-Original-Method", "GET", "X-Original-URL", "http://a/api/v1/events"), 200, "api_key=990 each=11 both=1 events=14")
	e.wantLeft(e.do("GET", "/api/v1/auth/verify/envoy/api/v1/events", "", "X-API-Key", key), 200, "api_key=989 each=10 both=0 events=13")
}

func TestPolicies_FailedCredential(t *testing.T) {
	t.Parallel()
	e := newEdge(t, func(c *authapi.Config) {
		c.Limit.Policies = []authapi.Policy{
			{Name: "hour", By: []authapi.Dimension{authapi.ByAddress}, Rule: window(3, 3600)},
			{Name: "known", By: []authapi.Dimension{authapi.ByAddress}, Layers: []string{"api_key"}, Rule: window(100, 3600)},
		}
	})
	unknown, _ := newKey()
	e.wantLeft(e.verify("X-API-Key", "nonsense"), 401, "anonymous=9 hour=2")
	e.wantLeft(e.verify("X-API-Key", unknown), 401, "anonymous=8 hour=1")
	e.wantLeft(e.verify(), 200, "anonymous=7 hour=0")
	// An address that any of its policies refuses drives no probes.
	before := e.cluster.CatchUps()
	a := e.verify("X-API-Key", unknown)
	e.wantLeft(a, 429, "anonymous=7 hour=0")
	if !strings.Contains(a.body, `"violated-policies":["hour"]`) || e.cluster.CatchUps() != before {
		t.Errorf("%d catch-ups more, body %s", e.cluster.CatchUps()-before, a.body)
	}
	// By address for every layer means for keys, too; the operator can leave them out.
	e.wantLeft(e.verify("X-API-Key", e.key(nil)), 429, "api_key=100 hour=0 known=100")
	e.wantLeft(e.do("GET", "/openapi.json", ""), 200, "documents=599")
}

func TestPolicies_UndecidedGivesAllBack(t *testing.T) {
	t.Parallel()
	e := newEdge(t, func(c *authapi.Config) {
		c.Limit.Policies = []authapi.Policy{
			{Name: "day", By: []authapi.Dimension{authapi.ByUser}, Rule: window(5, 86_400)},
			{Name: "trial", By: []authapi.Dimension{authapi.ByUser}, Rule: window(5, 60), Shadow: true},
		}
	})
	bearer := "Bearer " + signedIn(t, e.srv, e.cluster)
	e.cluster.SetUnavailable(authapi.ErrUnavailable)
	a := e.do("POST", "/api/v1/auth/logout", "", "Authorization", bearer)
	e.wantLeft(a, 503, "user=100 day=5")
	if got := e.limits.Refunded(); got != 3 {
		t.Errorf("%d units given back, want one of each policy", got)
	}
	e.cluster.SetUnavailable(nil)
	e.wantLeft(e.verify("Authorization", bearer), 200, "user=99 day=4")
	e.limits.Undecided.Store(true)
	a = e.verify("Authorization", bearer)
	e.wantLeft(a, 503, "user=0 day=0")
}

func TestShadow_IsCountedAndNeverEnforced(t *testing.T) {
	t.Parallel()
	for _, wait := range []bool{false, true} {
		t.Run(fmt.Sprintf("wait=%v", wait), func(t *testing.T) {
			t.Parallel()
			var log bytes.Buffer
			e := newEdge(t, func(c *authapi.Config) {
				c.Logger = slog.New(slog.NewTextHandler(&log, nil))
				c.Limit.APIKey = window(10, 60)
				c.Limit.Policies = []authapi.Policy{
					{Name: "trial", By: []authapi.Dimension{authapi.ByKey}, Rule: window(3, 60), Shadow: true},
					{Name: "day", By: []authapi.Dimension{authapi.ByKey}, Rule: window(8, 86_400)},
				}
			})
			e.limits.WouldWait.Store(wait)
			key := e.key(nil)
			for i := range 8 {
				a := e.verify("X-API-Key", key)
				e.wantLeft(a, 200, fmt.Sprintf("api_key=%d day=%d", 9-i, 7-i))
				if strings.Contains(fmt.Sprint(a.header), "trial") {
					t.Fatalf("the shadow policy shows: %v", a.header)
				}
			}
			want := authapi.ShadowCount{Policy: "trial", Admitted: 3, Refused: 5}
			waitFor(t, func() error {
				if got := e.srv.ShadowCounts(); !slices.Equal(got, []authapi.ShadowCount{want}) {
					return fmt.Errorf("counts %+v, want %+v", got, want)
				}
				return nil
			})
			// What the others refuse spends nothing of it, and a refusal of its own names it nowhere.
			e.clock.Advance(time.Minute)
			a := e.verify("X-API-Key", key)
			e.wantLeft(a, 429, "api_key=10 day=0")
			if strings.Contains(a.body, "trial") {
				t.Errorf("body %s", a.body)
			}
			if got := e.srv.ShadowCounts(); !slices.Equal(got, []authapi.ShadowCount{want}) {
				t.Errorf("counts after a refusal %+v, want %+v", got, want)
			}
			e.srv.ReportShadows()
			e.srv.ReportShadows()
			if got := log.String(); strings.Count(got, "shadow policy would have refused") != 1 || !strings.Contains(got, "policy=trial requests=5") || strings.Contains(got, "key_") || strings.Contains(got, key) {
				t.Errorf("log:\n%s\nwant one line of 5 requests that names no client", got)
			}
		})
	}
}

// waitFor waits until check finds nothing wrong.
func waitFor(t *testing.T, check func() error) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			t.Fatal(err)
		case <-tick.C:
		}
	}
}

func TestPolicies_Gateway(t *testing.T) {
	t.Parallel()
	e := newGateway(t, func(http.ResponseWriter, *http.Request) {}, func(c *authapi.Config, _ *authapi.Route) {
		c.Limit.Policies = []authapi.Policy{
			{Name: "each", By: []authapi.Dimension{authapi.ByRoute}, Rule: window(7, 60)},
			{Name: "day", By: []authapi.Dimension{authapi.ByOrganization}, Rule: window(100, 86_400)},
		}
	})
	key := e.key(nil, "events:*")
	e.wantLeft(e.do("GET", "/api/v1/events", ""), 200, "anonymous=999 each=6")
	e.wantLeft(e.do("GET", "/api/v1/events/9", "", "X-API-Key", key), 200, "api_key=999 each=5 day=99")
	e.wantLeft(e.do("POST", "/api/v1/events", "x", "X-API-Key", key), 200, "api_key=994 each=0 day=94")
	e.wantLeft(e.do("GET", "/api/v1/events", "", "X-API-Key", key), 429, "api_key=994 each=0 day=94")
	e.wantLeft(e.do("POST", "/api/v1/events", "x"), 401, "anonymous=994")
	e.wantLeft(e.do("GET", "/api/v1/auth/me", "", "X-API-Key", key), 200, "api_key=993 day=93")
}

func TestNew_RefusesPolicies(t *testing.T) {
	t.Parallel()
	by := []authapi.Dimension{authapi.ByKey}
	for want, policies := range map[string][]authapi.Policy{
		"the name is not of":    {{Name: "A", By: by, Rule: rule(1)}},
		"the name is taken":     {{Name: "user", By: by, Rule: rule(1)}},
		"sign_in_hour: the na":  {{Name: "sign_in_hour", By: by, Rule: rule(1)}},
		"policy a: the name":    {{Name: "a", By: by, Rule: rule(1)}, {Name: "a", By: by, Rule: rule(1)}},
		"counts by nothing":     {{Name: "a", Rule: rule(1)}},
		`counts by "colour"`:    {{Name: "a", By: []authapi.Dimension{"colour"}, Rule: rule(1)}},
		"limit -1":              {{Name: "a", By: by, Rule: rule(-1)}},
		"9 policies would":      manyPolicies(8),
		"policy a0: the name":   append(manyPolicies(2), authapi.Policy{Name: "a0", By: by, Rule: rule(1)}),
		"of layer api_key, its": manyPolicies(9),
	} {
		cfg, _, _, _ := edgeConfig(func(c *authapi.Config) { c.Limit.Policies = policies })
		if _, err := authapi.New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want an error with %q", policies, err, want)
		}
	}
	cfg, _, _, _ := edgeConfig(func(c *authapi.Config) { c.Limit.Policies = manyPolicies(7) })
	srv, err := authapi.New(cfg)
	if err != nil {
		t.Fatalf("seven policies by key: %v", err)
	}
	if err := srv.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

func manyPolicies(n int) []authapi.Policy {
	var out []authapi.Policy
	for i := range n {
		out = append(out, authapi.Policy{Name: fmt.Sprint("a", i), By: []authapi.Dimension{authapi.ByKey}, Rule: rule(1e12), Shadow: i%3 == 2})
	}
	return out
}

// realLimits is the limiter of a cluster of one node.
func realLimits(tb testing.TB, clock authapi.Clock) *limiter.Limiter {
	tb.Helper()
	l, err := limiter.Open(limiter.Config{NodeID: "a", Incarnation: 1, Clock: clock})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := l.Close(); err != nil {
			tb.Error(err)
		}
	})
	l.SetState(limiter.State{HorizonMillis: start.Add(time.Hour).UnixMilli(), Rosters: []limiter.Roster{{Index: 1, Nodes: []string{"a"}}}})
	return l
}

// TestPolicies_OverTheLimiter holds seconds, minutes and days at once over the limiter itself: neither is exceeded, and
// what one refuses leaves the others as they are.
func TestPolicies_OverTheLimiter(t *testing.T) {
	t.Parallel()
	e := newEdge(t, func(c *authapi.Config) {
		c.Limits = realLimits(t, c.Clock)
		c.Limit.APIKey = window(6, 60)
		c.Limit.Policies = []authapi.Policy{
			{Name: "second", By: []authapi.Dimension{authapi.ByKey}, Rule: window(3, 1)},
			{Name: "day", By: []authapi.Dimension{authapi.ByOrganization}, Rule: limiter.Rule{Limit: 9, Window: 86_400, Algorithm: limiter.SlidingWindow}},
			{Name: "trial", By: []authapi.Dimension{authapi.ByKey}, Rule: window(4, 60), Shadow: true},
		}
	})
	one, two := e.key(nil), e.key(nil)
	for i := range 3 {
		e.wantLeft(e.verify("X-API-Key", one), 200, fmt.Sprintf("api_key=%d second=%d day=%d", 5-i, 2-i, 8-i))
	}
	a := e.verify("X-API-Key", one)
	e.wantLeft(a, 429, "api_key=3 second=0 day=6")
	if !strings.Contains(a.body, `"violated-policies":["second"]`) {
		t.Errorf("body %s", a.body)
	}
	e.wantLeft(e.verify("X-API-Key", two), 200, "api_key=5 second=2 day=5")
	e.clock.Advance(time.Second)
	for i := range 3 {
		e.wantLeft(e.verify("X-API-Key", one), 200, fmt.Sprintf("api_key=%d second=%d day=%d", 2-i, 2-i, 4-i))
	}
	a = e.verify("X-API-Key", one)
	e.wantLeft(a, 429, "api_key=0 second=0 day=2")
	if !strings.Contains(a.body, `"violated-policies":["api_key","second"]`) || a.header.Get("Retry-After") != "52" {
		t.Errorf("Retry-After %s, body %s", a.header.Get("Retry-After"), a.body)
	}
	e.clock.Advance(time.Second)
	for i := range 2 {
		e.wantLeft(e.verify("X-API-Key", two), 200, fmt.Sprintf("api_key=%d second=%d day=%d", 4-i, 2-i, 1-i))
	}
	a = e.verify("X-API-Key", two)
	e.wantLeft(a, 429, "api_key=3 second=1 day=0")
	if !strings.Contains(a.body, `"violated-policies":["day"]`) {
		t.Errorf("body %s", a.body)
	}
	if got, want := e.srv.ShadowCounts(), []authapi.ShadowCount{{Policy: "trial", Admitted: 7, Refused: 2}}; !slices.Equal(got, want) {
		t.Errorf("shadow counts %+v, want %+v", got, want)
	}
}

// A token bucket shows what it holds, which may be more than its limit in a window, and when it will be full.
func TestLimits_TokenBucketHeaders(t *testing.T) {
	t.Parallel()
	e := newEdge(t, func(c *authapi.Config) {
		c.Limit.Anonymous = limiter.Rule{Limit: 2, Window: 7200, Algorithm: limiter.TokenBucket, Burst: 3}
		l, err := limiter.Open(limiter.Config{NodeID: "a", Incarnation: 1, Clock: c.Clock})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		})
		l.SetState(limiter.State{HorizonMillis: 1 << 50, Rosters: []limiter.Roster{{Index: 1, Nodes: []string{"a"}}}})
		c.Limits = l
	})
	for i, remaining := range []string{"2", "1", "0"} {
		a := e.verify()
		e.want(a, 200, "")
		for name, want := range map[string]string{
			"X-RateLimit-Limit": "2", "X-RateLimit-Remaining": remaining, "X-RateLimit-Window": "7200",
			"RateLimit-Policy": `"anonymous";q=2;w=7200;burst=3`,
		} {
			if got := a.header.Get(name); got != want {
				t.Errorf("request %d: %s = %q, want %q", i, name, got, want)
			}
		}
		// A token comes back in an hour.
		if got, want := a.header.Get("X-RateLimit-Reset"), start.Unix()+3600*int64(i+1); got != fmt.Sprint(want) {
			t.Errorf("request %d: X-RateLimit-Reset = %s, want %d", i, got, want)
		}
	}
	a := e.verify()
	e.want(a, 429, "rate_limit_exceeded")
	for name, want := range map[string]string{
		"Retry-After": "3600", "X-RateLimit-Remaining": "0", "RateLimit": `"anonymous";r=0;t=3600`,
	} {
		if got := a.header.Get(name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	if p := e.do("GET", "/api/v1/auth/verify?cost=4", ""); p.status != 429 {
		t.Errorf("a request that costs more than the burst: status %d", p.status)
	}
}
