package authapi_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sluice/authapi"
	"sluice/authapi/gubernatorpb"
	"sluice/limiter"
	"sluice/raftfsm/state"
)

const gubernatorPath = "/v1/GetRateLimits"

// rateLimits is what a call's answer says, numbers as the strings that they come as.
type rateLimits struct {
	Responses []struct {
		Status    string            `json:"status"`
		Limit     string            `json:"limit"`
		Remaining string            `json:"remaining"`
		ResetTime string            `json:"reset_time"`
		Error     string            `json:"error"`
		Metadata  map[string]string `json:"metadata"`
	} `json:"responses"`
}

func (a answer) rateLimits(t *testing.T) (out rateLimits) {
	t.Helper()
	if err := json.Unmarshal([]byte(a.body), &out); err != nil {
		t.Fatalf("decode %q: %v", a.body, err)
	}
	return out
}

func (e *edge) rateLimits(key, body string) rateLimits {
	e.t.Helper()
	a := e.do("POST", gubernatorPath, body, "X-API-Key", key, "Content-Type", "application/json")
	e.want(a, 200, "")
	wantHeaders(e.t, a)
	return a.rateLimits(e.t)
}

func TestGetRateLimits_CountsDown(t *testing.T) {
	t.Parallel()
	e, key := newChecks(t, nil)
	reset := fmt.Sprint(start.Truncate(time.Minute).Add(time.Minute).UnixMilli())
	// Both spellings of names, and of numbers.
	for i, body := range []string{
		`{"requests":[{"name":"logins","unique_key":"ada","hits":"1","limit":"3","duration":"60000"}]}`,
		`{"requests":[{"name":"logins","uniqueKey":"ada","hits":1,"limit":3,"duration":60000,"algorithm":"TOKEN_BUCKET","behavior":"NO_BATCHING","createdAt":"1"}]}`,
		`{"requests":[{"name":"logins","unique_key":"ada","hits":1,"limit":3,"duration":60000,"algorithm":0,"behavior":19,"created_at":5,"metadata":{"a":"b"}}]}`,
	} {
		r := e.rateLimits(key, body).Responses
		if len(r) != 1 || r[0].Status != "UNDER_LIMIT" || r[0].Limit != "3" || r[0].Remaining != fmt.Sprint(2-i) || r[0].ResetTime != reset || r[0].Error != "" || r[0].Metadata == nil {
			t.Fatalf("call %d: %+v", i, r)
		}
	}
	r := e.rateLimits(key, `{"requests":[
		{"name":"logins","unique_key":"ada","hits":1,"limit":3,"duration":60000},
		{"name":"logins","unique_key":"ada","hits":0,"limit":3,"duration":60000},
		{"name":"logins","unique_key":"bob","hits":0,"limit":3,"duration":60000},
		{"name":"mails","unique_key":"ada","hits":2,"limit":3,"duration":60000},
		{"name":"loginsa","unique_key":"da","hits":2,"limit":3,"duration":60000},
		{"name":"logins","unique_key":"ada","hits":1,"limit":3,"duration":60000,"behavior":"DURATION_IS_GREGORIAN"},
		{"name":"logins","unique_key":"ada","hits":4,"limit":3,"duration":120000}
	]}`).Responses
	for i, want := range []string{"OVER_LIMIT 0", "OVER_LIMIT 0", "UNDER_LIMIT 3", "UNDER_LIMIT 1", "UNDER_LIMIT 1", "", "OVER_LIMIT 3"} {
		got := r[i].Status + " " + r[i].Remaining
		if i == 5 {
			got = r[i].Status // 60000 is no kind of interval
			want = "UNDER_LIMIT"
			if !strings.Contains(r[i].Error, "DURATION_IS_GREGORIAN") {
				t.Errorf("response %d: error %q", i, r[i].Error)
			}
		}
		if got != want {
			t.Errorf("response %d: %s, want %s", i, got, want)
		}
	}
	if got := counts(t, e.srv, "gubernator"); got.Admitted != 5 || got.Refused != 2 {
		t.Errorf("counts %+v, want 5 admitted and 2 refused: looks do not count", got)
	}
	// Another organization's are others.
	e.organization("org_2", "")
	other := e.key(func(k *state.APIKey) { k.OrganizationID = "org_2" }, "limits:check")
	if r := e.rateLimits(other, `{"requests":[{"name":"logins","unique_key":"ada","hits":1,"limit":3,"duration":60000}]}`).Responses; r[0].Remaining != "2" {
		t.Errorf("another organization: %+v", r)
	}
}

// What a request means as a limit of ours.
func TestGetRateLimits_Rules(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		req  *gubernatorpb.RateLimitReq
		want limiter.Rule
		err  string
	}{
		{"a window", &gubernatorpb.RateLimitReq{Limit: 10, Duration: 60_000}, limiter.Rule{Limit: 10, Window: 60, Algorithm: limiter.FixedWindow}, ""},
		{"burst means nothing to it", &gubernatorpb.RateLimitReq{Limit: 10, Duration: 1000, Burst: 50}, limiter.Rule{Limit: 10, Window: 1, Algorithm: limiter.FixedWindow}, ""},
		{"less than a second", &gubernatorpb.RateLimitReq{Limit: 10, Duration: 100}, limiter.Rule{Limit: 100, Window: 1, Algorithm: limiter.TokenBucket, Burst: 10}, ""},
		{"no whole seconds", &gubernatorpb.RateLimitReq{Limit: 3, Duration: 1500}, limiter.Rule{Limit: 6, Window: 3, Algorithm: limiter.TokenBucket, Burst: 3}, ""},
		{"one millisecond", &gubernatorpb.RateLimitReq{Limit: 1, Duration: 1}, limiter.Rule{Limit: 1000, Window: 1, Algorithm: limiter.TokenBucket, Burst: 1}, ""},
		{"a leaky bucket", &gubernatorpb.RateLimitReq{Limit: 10, Duration: 60_000, Algorithm: 1}, limiter.Rule{Limit: 10, Window: 60, Algorithm: limiter.TokenBucket, Burst: 10}, ""},
		{"with a burst", &gubernatorpb.RateLimitReq{Limit: 10, Duration: 60_000, Algorithm: 1, Burst: 3}, limiter.Rule{Limit: 10, Window: 60, Algorithm: limiter.TokenBucket, Burst: 3}, ""},
		{"too long to be exact", &gubernatorpb.RateLimitReq{Limit: 10, Duration: 2_678_399_001, Algorithm: 1}, limiter.Rule{Limit: 10, Window: 2_678_400, Algorithm: limiter.TokenBucket, Burst: 10}, ""},
		{"nothing passes", &gubernatorpb.RateLimitReq{Limit: 0, Duration: 1, Algorithm: 1}, limiter.Rule{Window: 1, Algorithm: limiter.FixedWindow}, ""},
		{"minutes", &gubernatorpb.RateLimitReq{Limit: 10, Duration: 0, Behavior: 4}, limiter.Rule{Limit: 10, Window: 60, Algorithm: limiter.FixedWindow}, ""},
		{"hours", &gubernatorpb.RateLimitReq{Limit: 10, Duration: 1, Behavior: 4 | 2}, limiter.Rule{Limit: 10, Window: 3600, Algorithm: limiter.FixedWindow}, ""},
		{"days, leaky", &gubernatorpb.RateLimitReq{Limit: 10, Duration: 2, Behavior: 4, Algorithm: 1}, limiter.Rule{Limit: 10, Window: 86400, Algorithm: limiter.TokenBucket, Burst: 10}, ""},
		{"weeks", &gubernatorpb.RateLimitReq{Limit: 10, Duration: 3, Behavior: 4}, limiter.Rule{}, "DURATION_IS_GREGORIAN"},
		{"months", &gubernatorpb.RateLimitReq{Limit: 10, Duration: 4, Behavior: 4}, limiter.Rule{}, "DURATION_IS_GREGORIAN"},
		{"no duration", &gubernatorpb.RateLimitReq{Limit: 10}, limiter.Rule{}, "'duration'"},
		{"a negative one", &gubernatorpb.RateLimitReq{Limit: 10, Duration: -1000}, limiter.Rule{}, "'duration'"},
		{"too long", &gubernatorpb.RateLimitReq{Limit: 10, Duration: 2_678_400_001}, limiter.Rule{}, "'duration'"},
		{"a negative limit", &gubernatorpb.RateLimitReq{Limit: -1, Duration: 1000}, limiter.Rule{}, "'limit'"},
		{"too high", &gubernatorpb.RateLimitReq{Limit: 1e12 + 1, Duration: 1000}, limiter.Rule{}, "'limit'"},
		{"too high for milliseconds", &gubernatorpb.RateLimitReq{Limit: 1e12, Duration: 1001}, limiter.Rule{}, "'limit'"},
		{"a negative burst", &gubernatorpb.RateLimitReq{Limit: 1, Duration: 1000, Algorithm: 1, Burst: -1}, limiter.Rule{}, "'burst'"},
		{"hits given back", &gubernatorpb.RateLimitReq{Limit: 1, Duration: 1000, Hits: -1}, limiter.Rule{}, "'hits'"},
		{"another algorithm", &gubernatorpb.RateLimitReq{Limit: 1, Duration: 1000, Algorithm: 2}, limiter.Rule{}, "'algorithm'"},
	} {
		tt.req.Name, tt.req.UniqueKey = "n", "k"
		rule, detail := authapi.GubernatorRule(tt.req)
		if tt.err != "" {
			if !strings.Contains(detail, tt.err) {
				t.Errorf("%s: %+v, error %q, want one of %s", tt.name, rule, detail, tt.err)
			}
			continue
		}
		if detail != "" || rule != tt.want {
			t.Errorf("%s: %+v, error %q, want %+v", tt.name, rule, detail, tt.want)
		}
	}
}

func TestGetRateLimits_Malformed(t *testing.T) {
	t.Parallel()
	e, key := newChecks(t, nil)
	good := `{"name":"n","unique_key":"k","hits":1,"limit":9,"duration":60000}`
	for _, tt := range []struct {
		name, body string
		status     int
		code, want string
	}{
		{"nothing", ``, 400, "invalid_json", ""},
		{"no object", `[]`, 400, "invalid_json", ""},
		{"a name that nobody knows", `{"requests":[` + good[:len(good)-1] + `,"limt":3}]}`, 400, "invalid_json", "limt"},
		{"a name twice", `{"requests":[` + good[:len(good)-1] + `,"hits":3}]}`, 400, "invalid_json", "hits"},
		{"a number that is none", `{"requests":[{"hits":"many"}]}`, 400, "invalid_json", "many"},
		{"no number of 64 bits", `{"requests":[{"hits":"9223372036854775808"}]}`, 400, "invalid_json", ""},
		{"an algorithm that is none", `{"requests":[{"algorithm":"SPONGE"}]}`, 400, "invalid_json", "SPONGE"},
		{"two bodies", `{"requests":[` + good + `]}{}`, 400, "invalid_json", ""},
		{"no UTF-8", "{\"requests\":[{\"name\":\"\xff\"}]}", 400, "invalid_json", ""},
		{"too deep", strings.Repeat(`{"requests":[`, 40), 400, "invalid_json", "nested"},
		{"no requests", `{}`, 422, "invalid_input", ""},
		{"too many", `{"requests":[` + strings.Repeat("{},", authapi.MaxGubernatorRequests) + `{}]}`, 422, "invalid_input", ""},
		{"a body too long", `{"requests":[{"name":"` + strings.Repeat("x", 65<<10) + `"}]}`, 413, "body_too_large", ""},
	} {
		a := e.do("POST", gubernatorPath, tt.body, "X-API-Key", key, "Content-Type", "application/json")
		if a.status != tt.status || a.problem(t).Code != tt.code || !strings.Contains(a.body, tt.want) || len(a.body) > 1000 {
			t.Errorf("%s: %d %s", tt.name, a.status, a.body)
		}
	}
	r := e.rateLimits(key, `{"requests":[`+good+`,{"unique_key":"k"},{"name":"n"},{"name":"n","unique_key":"`+strings.Repeat("x", 1025)+`"},`+good+`]}`).Responses
	for i, want := range []string{"", "'name' cannot be empty", "'unique_key' cannot be empty", "at most 1024", ""} {
		if want == "" && r[i].Error != "" || !strings.Contains(r[i].Error, want) {
			t.Errorf("response %d: error %q, want %q", i, r[i].Error, want)
		}
	}
	if r[4].Remaining != "7" {
		t.Errorf("%s left, want the good ones spent", r[4].Remaining)
	}
	for name, credential := range map[string]string{"nobody": "", "a key without the scope": e.key(nil, "limits:read")} {
		headers := []string{"Content-Type", "application/json"}
		if credential != "" {
			headers = append(headers, "X-API-Key", credential)
		}
		if a := e.do("POST", gubernatorPath, `{"requests":[`+good+`]}`, headers...); a.status != 401 && a.status != 403 {
			t.Errorf("%s: %d", name, a.status)
		}
	}
}

func TestGetRateLimits_DrainsAndResets(t *testing.T) {
	t.Parallel()
	var may atomic.Bool
	may.Store(true)
	e, key := newChecks(t, func(c *authapi.Config) { c.MayReset = func(limiter.BucketID) bool { return may.Load() } })
	var resets []state.ResetBucket
	e.cluster.SetOnPropose(func(cmd state.Command) (bool, error) {
		if c, ok := cmd.(state.ResetBucket); ok {
			resets = append(resets, c)
		}
		return true, nil
	})
	ask := func(hits, behavior int) (status, remaining, problem string) {
		r := e.rateLimits(key, fmt.Sprintf(`{"requests":[{"name":"n","unique_key":"k","hits":%d,"limit":10,"duration":60000,"behavior":%d}]}`, hits, behavior)).Responses[0]
		return r.Status, r.Remaining, r.Error
	}
	want := func(what string, status, remaining string, hits, behavior int) {
		t.Helper()
		if s, r, problem := ask(hits, behavior); s != status || r != remaining || problem != "" {
			t.Errorf("%s: %s %s %q, want %s %s", what, s, r, problem, status, remaining)
		}
	}
	want("7 of 10", "UNDER_LIMIT", "3", 7, 0)
	want("5 of 3", "OVER_LIMIT", "3", 5, 0)
	want("5 of 3, drained", "OVER_LIMIT", "0", 5, 32)
	want("1 of 0", "OVER_LIMIT", "0", 1, 0)
	want("a reset", "UNDER_LIMIT", "10", 4, 8)
	if len(resets) != 1 || len(resets[0].Buckets) != 1 || resets[0].Buckets[0].Window != 60 {
		t.Errorf("commands %+v, want one reset of one bucket", resets)
	}
	may.Store(false)
	if _, _, problem := ask(1, 8); !strings.Contains(problem, "as many as clients may reset") {
		t.Errorf("with no room for resets: error %q", problem)
	}
	may.Store(true)
	refused := 0
	for range 20 { // within a second of the test's clock
		if _, _, problem := ask(1, 8); problem != "" {
			refused++
		}
	}
	if refused != 11 {
		t.Errorf("%d of 20 resets in a second refused, want 11 after the one before", refused)
	}
	e.cluster.SetUnavailable(authapi.ErrUnavailable)
	e.clock.Advance(2 * time.Second)
	if _, _, problem := ask(1, 8); !strings.Contains(problem, "cannot decide now") {
		t.Errorf("without a leader: error %q", problem)
	}
}

// A node that cannot decide about one request answers for none, and nothing is spent.
func TestGetRateLimits_UndecidedGivesAllBack(t *testing.T) {
	t.Parallel()
	var only atomic.Pointer[limiter.BucketID]
	e, key := newChecks(t, func(c *authapi.Config) { c.Limits = undecidedFor{c.Limits, &only} })
	bucket := e.limits.Bucket("gubernator", limiter.Rule{Window: 60, Algorithm: limiter.FixedWindow}, []byte("org_1\x00\x00\x01nk"))
	only.Store(&bucket)
	bright := `{"name":"n","unique_key":"other","hits":3,"limit":9,"duration":60000}`
	body := `{"requests":[` + bright + `,{"name":"n","unique_key":"k","hits":1,"limit":9,"duration":60000},` + bright + `]}`
	before := e.limits.Refunded()
	a := e.do("POST", gubernatorPath, body, "X-API-Key", key, "Content-Type", "application/json")
	e.want(a, 503, "cluster_unavailable")
	if got := e.limits.Refunded() - before; got != 6+2 {
		t.Errorf("%d units were given back, want the 6 and the caller's own unit, which two policies count", got)
	}
	only.Store(nil)
	e.limits.WouldWait.Store(true)
	if r := e.rateLimits(key, body).Responses; r[0].Status+r[2].Status != "UNDER_LIMITUNDER_LIMIT" || r[1].Remaining != "8" {
		t.Errorf("where every decision waits: %+v", r)
	}
}

// The listener for clients without a key.
func TestServeGubernator(t *testing.T) {
	t.Parallel()
	e, key := newChecks(t, func(c *authapi.Config) { c.Members = func() int { return 3 } })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- e.srv.ServeGubernator(ln) }()
	t.Cleanup(func() {
		if err := e.srv.Shutdown(context.Background()); err != nil { // which may be called again
			t.Errorf("Shutdown: %v", err)
		}
		if err := <-done; err != nil {
			t.Errorf("ServeGubernator: %v", err)
		}
	})
	do := func(method, path, body string) answer {
		t.Helper()
		req, err := http.NewRequest(method, "http://"+ln.Addr().String()+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := e.http.Do(req)
		if err != nil {
			t.Fatalf("%s %s: %v", method, path, err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return answer{resp.StatusCode, resp.Header, string(b)}
	}
	one := `{"requests":[{"name":"n","unique_key":"k","hits":1,"limit":2,"duration":60000}]}`
	for i, want := range []string{"UNDER_LIMIT", "UNDER_LIMIT", "OVER_LIMIT"} {
		a := do("POST", gubernatorPath, one)
		if a.status != 200 || a.header.Get("X-RateLimit-Limit") != "" || a.header.Get("X-Request-Id") == "" {
			t.Fatalf("call %d: %d %v", i, a.status, a.header)
		}
		if r := a.rateLimits(t).Responses; r[0].Status != want {
			t.Errorf("call %d: %+v, want %s", i, r, want)
		}
	}
	// An organization's limits are its own.
	if r := e.rateLimits(key, one).Responses; r[0].Remaining != "1" {
		t.Errorf("with a key: %+v", r)
	}
	if a := do("POST", gubernatorPath, `{"requests":[{"name":"n","unique_key":"k","metadata":{"x":"`+strings.Repeat("y", 200<<10)+`"}}]}`); a.status != 200 {
		t.Errorf("200 KiB: %d %s", a.status, a.body)
	}
	for _, tt := range []struct {
		method, path, body string
		status             int
		code               string
	}{
		{"POST", gubernatorPath, `{"requests":`, 400, "invalid_json"},
		{"POST", gubernatorPath, `{"requests":[]}`, 422, "invalid_input"},
		{"POST", gubernatorPath, strings.Repeat(" ", 2<<20), 413, "body_too_large"},
		{"GET", gubernatorPath, "", 405, "method_not_allowed"},
		{"POST", "/v1/HealthCheck", "", 405, "method_not_allowed"},
		{"GET", "/", "", 404, "not_found"},
		{"POST", "/api/v1/limits/check", "{}", 404, "not_found"},
		{"GET", "/api/v1/auth/verify", "", 404, "not_found"},
	} {
		if a := do(tt.method, tt.path, tt.body); a.status != tt.status || a.problem(t).Code != tt.code {
			t.Errorf("%s %s: %d %s", tt.method, tt.path, a.status, a.body)
		}
	}
	if a := do("GET", "/v1/HealthCheck", ""); a.status != 200 || a.object(t)["status"] != "healthy" || a.object(t)["peer_count"] != float64(3) {
		t.Errorf("health: %d %s", a.status, a.body)
	}
	page, err := http.NewRequest("POST", "http://"+ln.Addr().String()+gubernatorPath, strings.NewReader(one))
	if err != nil {
		t.Fatal(err)
	}
	page.Header.Set("Origin", "https://evil.example")
	resp, err := e.http.Do(page)
	if err != nil {
		t.Fatal(err)
	}
	if resp.Body.Close(); resp.StatusCode != 403 {
		t.Errorf("a web page: %s", resp.Status)
	}
	e.srv.SetDraining()
	if a := do("GET", "/v1/HealthCheck", ""); a.status != 200 || a.object(t)["status"] != "unhealthy" || !strings.Contains(a.body, "draining") {
		t.Errorf("health while draining: %d %s", a.status, a.body)
	}
}

// Whatever a body is, the answer is one that clients know, with numbers that make sense.
func FuzzGetRateLimits(f *testing.F) {
	f.Add(`{"requests":[{"name":"n","unique_key":"k","hits":"1","limit":"3","duration":"60000"}]}`)
	f.Add(`{"requests":[{"name":"n","uniqueKey":"k","hits":1,"limit":3,"duration":100,"algorithm":"LEAKY_BUCKET","behavior":32,"burst":7}]}`)
	f.Add(`{"requests":[{"name":"n","unique_key":"k","duration":2,"behavior":4},null]}`)
	f.Add(`{"requests":[{"hits":-1,"limit":1e3,"duration":9223372036854775807,"algorithm":1}]}`)
	cfg, _, _, _ := edgeConfig(nil)
	srv, err := authapi.New(cfg)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		if err := srv.Shutdown(context.Background()); err != nil {
			f.Errorf("Shutdown: %v", err)
		}
	})
	f.Fuzz(func(t *testing.T, body string) {
		status, answer := srv.AnswerGubernator([]byte(body))
		switch status {
		case 400, 422:
			return
		case 200:
		default:
			t.Fatalf("%q: %d %s", body, status, answer)
		}
		var out rateLimits
		if err := json.Unmarshal(answer, &out); err != nil {
			t.Fatalf("%q: %q: %v", body, answer, err)
		}
		for _, r := range out.Responses {
			if r.Error == "" && (r.Limit[0] == '-' || r.Remaining[0] == '-' || r.ResetTime == "0") {
				t.Fatalf("%q: %s", body, answer)
			}
		}
	})
}
