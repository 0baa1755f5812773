package authapi_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sluice/authapi"
	"sluice/limiter"
	"sluice/raftfsm/state"
)

const checkPath = "/api/v1/limits/check"

// verdict is what the answer says of one check.
type verdict struct {
	allowed           bool
	limit, left, wait int64
	reset             string
}

func verdictOf(t *testing.T, o object) verdict {
	t.Helper()
	number := func(name string) int64 {
		f, ok := o[name].(float64)
		if !ok {
			t.Fatalf("%s of %v is no number", name, o)
		}
		return int64(f)
	}
	return verdict{o["allowed"].(bool), number("limit"), number("remaining"), number("retry_after"), o["reset_at"].(string)}
}

// newChecks is an edge with a key for checks, and policies for them.
func newChecks(t *testing.T, change func(*authapi.Config)) (*edge, string) {
	t.Helper()
	e := newAccounts(t, func(c *authapi.Config) {
		c.Limit.Policies = []authapi.Policy{
			{Name: "logins", By: []authapi.Dimension{authapi.ByCheck}, Rule: window(2, 60)},
			{Name: "everybody", By: []authapi.Dimension{authapi.ByAddress}, Rule: rule(1e6)},
		}
		if change != nil {
			change(c)
		}
	})
	return e, e.key(nil, "limits:check")
}

func (e *edge) check(key string, body any) object {
	e.t.Helper()
	a := e.send("POST", checkPath, key, body)
	e.want(a, 200, "")
	wantHeaders(e.t, a)
	return a.object(e.t)
}

func (e *edge) checkOne(key string, body object) verdict {
	e.t.Helper()
	return verdictOf(e.t, e.check(key, body))
}

func TestCheck_SpendsFromTheKeysBucket(t *testing.T) {
	t.Parallel()
	e, key := newChecks(t, nil)
	ask := object{"key": "user:7", "limit": 3, "window_seconds": 60}
	reset := start.Truncate(time.Minute).Add(time.Minute).Format(time.RFC3339)
	for i := range int64(3) {
		if got, want := e.checkOne(key, ask), (verdict{true, 3, 2 - i, 0, reset}); got != want {
			t.Fatalf("check %d: %+v, want %+v", i, got, want)
		}
	}
	if got := e.checkOne(key, ask); got.allowed || got.left != 0 || got.wait < 1 || got.reset != reset {
		t.Errorf("the fourth of three: %+v", got)
	}
	// The bucket is of organization, key, window and algorithm; a limit may change under way.
	for name, other := range map[string]object{
		"another key":       {"key": "user:8", "limit": 3, "window_seconds": 60},
		"another window":    {"key": "user:7", "limit": 3, "window_seconds": 61},
		"another algorithm": {"key": "user:7", "limit": 3, "window_seconds": 60, "algorithm": "fixed_window"},
		"no other field":    {"key": "user:7", "limit": 3, "window_seconds": 3600, "algorithm": nil, "burst": nil, "cost": nil, "policy": nil},
	} {
		if got := e.checkOne(key, other); !got.allowed || got.left != 2 {
			t.Errorf("%s: %+v, want a bucket of its own", name, got)
		}
	}
	if got := e.checkOne(key, object{"key": "user:7", "limit": 5, "window_seconds": 60, "algorithm": "sliding_window"}); !got.allowed || got.left != 1 {
		t.Errorf("a higher limit: %+v, want one of two more spent", got)
	}
	e.organization("org_2", "")
	other := e.key(func(k *state.APIKey) { k.OrganizationID = "org_2" }, "limits:*")
	if got := e.checkOne(other, ask); !got.allowed || got.left != 2 {
		t.Errorf("another organization: %+v, want a bucket of its own", got)
	}
	same := e.key(nil, "*")
	if got := e.checkOne(same, ask); got.allowed {
		t.Errorf("another key of the organization: %+v, want the same bucket", got)
	}
}

func TestCheck_CostAndDryRun(t *testing.T) {
	t.Parallel()
	e, key := newChecks(t, nil)
	ask := func(cost int) verdict {
		return e.checkOne(key, object{"key": "k", "limit": 10, "window_seconds": 60, "cost": cost})
	}
	for _, step := range []struct {
		cost    int
		allowed bool
		left    int64
	}{{0, true, 10}, {4, true, 6}, {0, true, 6}, {7, false, 6}, {6, true, 0}, {0, false, 0}, {1, false, 0}} {
		got := ask(step.cost)
		if got.allowed != step.allowed || got.left != step.left || got.allowed != (got.wait == 0) {
			t.Errorf("cost %d: %+v, want allowed %v and %d left", step.cost, got, step.allowed, step.left)
		}
	}
	if got := e.checkOne(key, object{"key": "closed", "limit": 0, "window_seconds": 60}); got.allowed || got.wait < 1 {
		t.Errorf("limit 0: %+v", got)
	}
}

func TestCheck_NamedPolicy(t *testing.T) {
	t.Parallel()
	e, key := newChecks(t, nil)
	ask := object{"key": "ann", "policy": "logins"}
	if got := e.checkOne(key, ask); !got.allowed || got.limit != 2 || got.left != 1 {
		t.Errorf("first: %+v", got)
	}
	if got := e.checkOne(key, object{"key": "ann", "limit": 2, "window_seconds": 60, "algorithm": "fixed_window"}); got.left != 1 {
		t.Errorf("the same limit without the name: %+v, want a bucket of its own", got)
	}
	e.checkOne(key, ask)
	if got := e.checkOne(key, ask); got.allowed {
		t.Errorf("third of two: %+v", got)
	}
	if got := counts(t, e.srv, "logins"); got.Admitted != 2 || got.Refused != 1 {
		t.Errorf("logins: %+v, want 2 admitted and 1 refused", got)
	}
	if got := counts(t, e.srv, "check"); got.Admitted != 1 {
		t.Errorf("check: %+v, want 1 admitted", got)
	}
	for _, name := range []string{"everybody", "api_key", "check", ""} {
		if got := e.fields(e.send("POST", checkPath, key, object{"key": "ann", "policy": name})); !got["policy"] || len(got) != 1 {
			t.Errorf("policy %q: wrong fields %v", name, got)
		}
	}
}

func TestCheck_Batch(t *testing.T) {
	t.Parallel()
	e, key := newChecks(t, func(c *authapi.Config) { c.Limit.APIKey = rule(1000) })
	var list []object
	for i := range 100 {
		list = append(list, object{"key": fmt.Sprint("k", i%50), "limit": 1, "window_seconds": 60})
	}
	a := e.send("POST", checkPath, key, object{"checks": list})
	e.want(a, 200, "")
	if got := a.header.Get("X-RateLimit-Remaining"); got != "999" {
		t.Errorf("X-RateLimit-Remaining = %s: a batch spends one unit of the caller's own", got)
	}
	o := a.object(t)
	answers := o["checks"].([]any)
	if o["allowed"] != false || len(answers) != 100 {
		t.Fatalf("allowed %v, %d answers", o["allowed"], len(answers))
	}
	for i, v := range answers {
		if got := verdictOf(t, v.(object)); got.allowed != (i < 50) {
			t.Errorf("check %d: %+v", i, got)
		}
	}
	if o := e.check(key, object{"checks": []object{{"key": "x", "policy": "logins"}, {"key": "y", "policy": "logins", "cost": 0}}}); o["allowed"] != true {
		t.Errorf("a batch that passes: %v", o)
	}
}

func TestCheck_AtomicBatch(t *testing.T) {
	t.Parallel()
	e, key := newChecks(t, nil)
	ask := func(checks ...object) (bool, []verdict) {
		o := e.check(key, object{"atomic": true, "checks": checks})
		var list []verdict
		for _, v := range o["checks"].([]any) {
			list = append(list, verdictOf(t, v.(object)))
		}
		return o["allowed"].(bool), list
	}
	wide, narrow := object{"key": "wide", "limit": 10, "window_seconds": 60}, object{"key": "narrow", "limit": 1, "window_seconds": 60}
	if ok, list := ask(wide, narrow); !ok || list[0].left != 9 || list[1].left != 0 {
		t.Fatalf("first: %v %+v", ok, list)
	}
	if ok, list := ask(wide, narrow); ok || !list[0].allowed || list[1].allowed || list[0].left != 9 {
		t.Errorf("second: %v %+v, want nothing spent and the narrow one named", ok, list)
	}
	// A dry run in it is a condition.
	look := object{"key": "narrow", "limit": 1, "window_seconds": 60, "cost": 0}
	if ok, list := ask(wide, look); ok || list[0].left != 9 {
		t.Errorf("condition that fails: %v %+v", ok, list)
	}
	if ok, list := ask(wide, object{"key": "fresh", "limit": 1, "window_seconds": 60, "cost": 0}); !ok || list[0].left != 8 || list[1].left != 1 {
		t.Errorf("condition that holds: %v %+v", ok, list)
	}
	if ok, _ := ask(look); ok {
		t.Error("a dry run alone: allowed")
	}
	// Not atomic, it is each for itself.
	if o := e.check(key, object{"atomic": false, "checks": []object{wide, narrow}}); o["allowed"] != false || verdictOf(t, o["checks"].([]any)[0].(object)).left != 7 {
		t.Errorf("each for itself: %v", o)
	}
}

func TestCheck_Refuses(t *testing.T) {
	t.Parallel()
	e, key := newChecks(t, nil)
	ok := `{"key":"k","limit":1,"window_seconds":1}`
	many := strings.TrimSuffix(strings.Repeat(ok+",", 101), ",")
	for _, tt := range []struct {
		body   string
		status int
		fields string // sorted as they come
	}{
		{`{}`, 422, "key limit window_seconds"},
		{`{"key":null,"limit":null,"window_seconds":null}`, 422, "key limit window_seconds"},
		{`{"key":"","limit":1,"window_seconds":1}`, 422, "key"},
		{`{"key":"` + strings.Repeat("x", 257) + `","limit":1,"window_seconds":1}`, 422, "key"},
		{`{"key":"k","limit":-1,"window_seconds":0}`, 422, "limit window_seconds"},
		{`{"key":"k","limit":1000000000001,"window_seconds":2678401}`, 422, "limit window_seconds"},
		{`{"key":"k","limit":5,"window_seconds":1,"algorithm":"token_bucket","burst":0}`, 422, "burst"},
		{`{"key":"k","limit":0,"window_seconds":1,"algorithm":"token_bucket"}`, 422, "limit"},
		{`{"key":"k","limit":5,"window_seconds":1,"algorithm":"token_bucket","burst":9,"cost":10}`, 422, "cost"},
		{`{"key":"k","limit":5,"window_seconds":1,"algorithm":"leaky","cost":6}`, 422, "algorithm"},
		{`{"key":"k","limit":5,"window_seconds":1,"burst":7}`, 422, "burst"},
		{`{"key":"k","limit":5,"window_seconds":1,"cost":6}`, 422, "cost"},
		{`{"key":"k","limit":5,"window_seconds":1,"cost":-1}`, 422, "cost"},
		{`{"key":"k","policy":"logins","cost":3}`, 422, "cost"},
		{`{"key":"k","policy":"logins","limit":1,"window_seconds":1,"algorithm":"fixed_window","burst":1}`, 422, "limit window_seconds algorithm burst"},
		{`{"key":"k","policy":"nobody"}`, 422, "policy"},
		{`{"checks":[]}`, 422, "checks"},
		{`{"checks":[` + many + `]}`, 422, "checks"},
		{`{"checks":[` + ok + `],"key":"k"}`, 422, "checks"},
		{`{"key":"k","limit":1,"window_seconds":1,"atomic":true}`, 422, "atomic"},
		{`{"checks":[` + ok + `,` + ok + `,null,{"key":"k","limit":-1,"window_seconds":1}]}`, 422, "checks[2].key checks[2].limit checks[2].window_seconds checks[3].limit"},
		{`{"checks":[` + ok + `,{"key":"k","limit":1,"window_seconds":1,"key":"k"}]}`, 400, "checks[1].key"},
		{`{"checks":[{"key":"k","limits":1}]}`, 400, "checks[0].limits"},
		{`{"checks":[{"checks":[]}]}`, 400, "checks[0].checks"},
		{`{"checks":[{"key":"k","limit":1.5}]}`, 400, "checks[0].limit"},
		{`{"checks":[7]}`, 400, "checks[0]"},
		{`{"checks":{}}`, 400, "checks"},
		{`{"atomic":1}`, 400, "atomic"},
		{`{"Key":"k"}`, 400, "Key"},
		{`{"key":5}`, 400, "key"},
		{`{"key":"k","limit":"1"}`, 400, "limit"},
		{`{"key":"k","limit":1e2}`, 400, "limit"},
		{`{"key":"k","limit":9223372036854775808}`, 400, "limit"},
		{`{"key":"k","limit":01}`, 400, ""},
		{`{"key":"\ud800"}`, 400, ""},
		{"{\"key\":\"\xff\"}", 400, ""},
		{"{\"key\":\"\n\"}", 400, ""},
		{`[]`, 400, ""}, {``, 400, ""}, {`{`, 400, ""}, {ok + ok, 400, ""}, {`{"key":"k",}`, 400, ""},
	} {
		a := e.do("POST", checkPath, tt.body, "X-API-Key", key, "Content-Type", "application/json")
		code := "invalid_json"
		if tt.status == 422 {
			code = "invalid_input"
		}
		e.want(a, tt.status, code)
		var fields []string
		for _, f := range a.problem(t).Errors {
			fields = append(fields, f.Field)
		}
		if got := strings.Join(fields, " "); got != tt.fields {
			t.Errorf("%.100s: fields %q, want %q", tt.body, got, tt.fields)
		}
	}
	if a := e.do("POST", checkPath, ok, "X-API-Key", key, "Content-Type", "text/plain"); a.status != 415 {
		t.Errorf("another media type: %d", a.status)
	}
	if a := e.do("POST", checkPath, ok+strings.Repeat(" ", 64<<10), "X-API-Key", key, "Content-Type", "application/json"); a.status != 413 {
		t.Errorf("a long body: %d", a.status)
	}
	if got := e.checkOne(key, object{"key": "k", "limit": 1, "window_seconds": 1}); !got.allowed {
		t.Error("what was refused has spent something")
	}
}

func TestCheck_WhoMay(t *testing.T) {
	t.Parallel()
	e, _ := newChecks(t, nil)
	body := object{"key": "k", "limit": 1, "window_seconds": 1}
	p := e.register()
	for name, tt := range map[string]struct {
		credential string
		status     int
		code       string
	}{
		"nobody":           {"", 401, "authentication_required"},
		"a user":           {p.token, 403, "forbidden"},
		"a key without it": {e.key(nil, "limits:read"), 403, "insufficient_scope"},
		"a key with all":   {e.key(nil, "*"), 200, ""},
	} {
		t.Run(name, func(t *testing.T) { e.want(e.send("POST", checkPath, tt.credential, body), tt.status, tt.code) })
	}
	e.want(e.send("GET", checkPath, "", nil), 405, "method_not_allowed")
}

// What a check spent that this node cannot decide is given back, with the unit of the caller's own limit.
func TestCheck_UndecidedGivesAllBack(t *testing.T) {
	t.Parallel()
	var only atomic.Pointer[limiter.BucketID]
	e, key := newChecks(t, func(c *authapi.Config) { c.Limits = undecidedFor{c.Limits, &only} })
	bucket := e.limits.Bucket("check", limiter.Rule{Window: 60, Algorithm: limiter.FixedWindow}, []byte("org_1\x00dark"))
	only.Store(&bucket)
	bright := object{"key": "bright", "limit": 5, "window_seconds": 60}
	dark := object{"key": "dark", "limit": 5, "window_seconds": 60, "algorithm": "fixed_window"}
	for _, body := range []object{
		{"checks": []object{bright, dark, bright}},
		{"checks": []object{bright, dark, bright}, "atomic": true},
		dark,
	} {
		before := e.limits.Refunded()
		a := e.send("POST", checkPath, key, body)
		e.want(a, 503, "cluster_unavailable")
		want := int64(2) // the caller's own unit, which two policies count
		if _, batch := body["checks"]; batch && body["atomic"] == nil {
			want += 2
		}
		if got := e.limits.Refunded() - before; got != want {
			t.Errorf("%v: %d units were given back, want %d", body, got, want)
		}
	}
	if got := e.checkOne(key, bright); got.left != 4 {
		t.Errorf("afterwards: %+v, want nothing spent before", got)
	}
}

// undecidedFor cannot decide about one bucket.
type undecidedFor struct {
	authapi.Limits
	bucket *atomic.Pointer[limiter.BucketID]
}

func (l undecidedFor) dark(charges []limiter.Charge, verdicts []limiter.Verdict) bool {
	found := false
	for i := range charges {
		verdicts[i] = l.Peek(charges[i])
		found = found || verdicts[i].Outcome == limiter.Undecided
	}
	return found
}

func (l undecidedFor) Take(charges []limiter.Charge, verdicts []limiter.Verdict) limiter.Outcome {
	if l.dark(charges, verdicts) {
		return limiter.Undecided
	}
	return l.Limits.Take(charges, verdicts)
}

func (l undecidedFor) TryTake(charges []limiter.Charge, verdicts []limiter.Verdict) (limiter.Outcome, bool) {
	if l.dark(charges, verdicts) {
		return limiter.Undecided, false
	}
	return l.Limits.TryTake(charges, verdicts)
}

func (l undecidedFor) Peek(c limiter.Charge) limiter.Verdict {
	if b := l.bucket.Load(); b != nil && *b == c.Bucket {
		return limiter.Verdict{Outcome: limiter.Undecided, Limit: c.Rule.Limit}
	}
	return l.Limits.Peek(c)
}

// Checks that need other nodes are asked for at once, and count as any.
func TestCheck_WaitsForOthers(t *testing.T) {
	t.Parallel()
	e, key := newChecks(t, nil)
	e.limits.WouldWait.Store(true)
	var list []object
	for range 8 {
		list = append(list, object{"key": "k", "limit": 5, "window_seconds": 60})
	}
	passed := 0
	for _, v := range e.check(key, object{"checks": list})["checks"].([]any) {
		if verdictOf(t, v.(object)).allowed {
			passed++
		}
	}
	if passed != 5 {
		t.Errorf("%d of 8 passed, want 5", passed)
	}
	if got := e.checkOne(key, list[0]); got.allowed {
		t.Error("one more passed")
	}
}

// Over the real limiter, many at once: no more than the limit, and all of it.
func TestCheck_OverTheLimiter(t *testing.T) {
	t.Parallel()
	e, key := newChecks(t, func(c *authapi.Config) { c.Limits = realLimits(t, c.Clock) })
	var passed [3]atomic.Int64
	var all sync.WaitGroup
	for range 8 {
		random := rand.New(rand.NewPCG(1, 2))
		all.Go(func() {
			for range 20 {
				list := []object{}
				for range 1 + random.IntN(10) {
					n := random.IntN(3)
					list = append(list, object{"key": fmt.Sprint("key", n), "limit": 40, "window_seconds": 3600})
				}
				atomic := random.IntN(3) == 0
				a := e.do("POST", checkPath, encode(object{"checks": list, "atomic": atomic}), "X-API-Key", key, "Content-Type", "application/json")
				if a.status != 200 {
					t.Errorf("%d %s", a.status, a.body)
					return
				}
				o := a.object(t)
				for i, v := range o["checks"].([]any) {
					if v.(object)["allowed"] == true && (!atomic || o["allowed"] == true) {
						passed[list[i]["key"].(string)[3]-'0'].Add(1)
					}
				}
			}
		})
	}
	all.Wait()
	for i := range passed {
		if n := passed[i].Load(); n != 40 {
			t.Errorf("key%d: %d passed, want 40", i, n)
		}
	}
}
