package bench_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"sluice/bench"
)

// fake is a cluster of a few nodes with one exact counter behind them, and with faults where a test wants them.
type fake struct {
	fixed      bool
	tokens     bool  // token buckets with bursts of their limits
	separate   bool  // each node counts for itself: the fault of divided or gossiped counters without shares
	stingy     int64 // units of each limit that nobody gets
	ahead      int64 // windows by which answers name a later one than they count in
	noDebug    bool
	closedDoor bool // registration answers 403

	mu      sync.Mutex
	nodes   int
	limits  map[string]int64
	used    map[string]int64
	drawn   map[string]time.Time // of token buckets: when they were, or would have been, empty
	made    int
	revoked int
	gone    bool // the account was deleted
	window  int64
}

func (f *fake) start(t *testing.T, nodes int) (targets []string) {
	t.Helper()
	f.nodes, f.limits, f.used, f.window = nodes, map[string]int64{}, map[string]int64{}, 1
	f.drawn = map[string]time.Time{}
	for i := range nodes {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { f.serve(i, w, r) }))
		t.Cleanup(s.Close)
		targets = append(targets, s.URL)
	}
	return targets
}

func (f *fake) serve(node int, w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch at := r.Method + " " + r.URL.Path; {
	case at == "GET /livez":
	case at == "POST /api/v1/auth/register" && f.closedDoor:
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, `{"code":"registration_closed","detail":"ask an administrator"}`)
	case at == "POST /api/v1/auth/register":
		w.WriteHeader(http.StatusCreated)
		fmt.Fprint(w, `{"token":"t","organization":{"id":"org_1"}}`)
	case r.URL.Path != "/api/v1/auth/verify" && r.Header.Get("Authorization") != "Bearer t":
		w.WriteHeader(http.StatusUnauthorized)
	case at == "GET /api/v1/auth/me":
		fmt.Fprint(w, `{"auth":{"organization_id":"org_1"}}`)
	case at == "POST /api/v1/api-keys":
		var body struct {
			OrganizationID string `json:"organization_id"`
			RateLimit      struct {
				Limit         int64
				WindowSeconds int64 `json:"window_seconds"`
			} `json:"rate_limit"`
		}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil || body.OrganizationID != "org_1" || body.RateLimit.WindowSeconds != f.window {
			w.WriteHeader(http.StatusUnprocessableEntity)
			return
		}
		f.made++
		key := fmt.Sprintf("sk_test_%d", f.made)
		f.limits[key] = body.RateLimit.Limit
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, `{"id":"key_%d","key":%q}`, f.made, key)
	case strings.HasPrefix(at, "DELETE /api/v1/api-keys/"):
		f.revoked++
		w.WriteHeader(http.StatusNoContent)
	case at == "DELETE /api/v1/auth/me":
		f.gone = true
		w.WriteHeader(http.StatusNoContent)
	case r.URL.Path == "/api/v1/auth/verify":
		f.verify(node, w, r.Header.Get("X-API-Key"))
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func (f *fake) verify(node int, w http.ResponseWriter, key string) {
	limit, known := f.limits[key]
	if !known {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if !f.separate {
		node = 0
	}
	if f.tokens {
		f.draw(node, w, key, limit)
		return
	}
	now, length := time.Now().UnixMicro(), f.window*1e6
	n := now / length
	counter := func(n int64) string { return fmt.Sprint(key, node, n) }
	before := f.used[counter(n-1)]
	if f.fixed {
		before = 0
	}
	h := w.Header()
	h.Set("X-RateLimit-Limit", fmt.Sprint(limit))
	h.Set("X-RateLimit-Window", fmt.Sprint(f.window))
	h.Set("X-RateLimit-Reset", fmt.Sprint((n+1+f.ahead)*f.window))
	if !f.noDebug {
		h.Set("X-RateLimit-Debug", fmt.Sprintf("waited=%d", f.used[counter(n)]%2))
	}
	if (f.used[counter(n)]+1+f.stingy)*length+((n+1)*length-now)*before > limit*length {
		w.WriteHeader(http.StatusTooManyRequests)
		return
	}
	f.used[counter(n)]++
}

// draw takes a token: its bucket holds what came in since it was empty.
func (f *fake) draw(node int, w http.ResponseWriter, key string, limit int64) {
	each := time.Duration(f.window) * time.Second / time.Duration(limit)
	name, now := fmt.Sprint(key, node), time.Now()
	empty, drawn := f.drawn[name]
	if full := now.Add(-each * time.Duration(limit-f.stingy)); !drawn || empty.Before(full) {
		empty = full
	}
	h := w.Header()
	h.Set("X-RateLimit-Limit", fmt.Sprint(limit))
	h.Set("X-RateLimit-Window", fmt.Sprint(f.window))
	h.Set("X-RateLimit-Reset", fmt.Sprint(now.Unix()+f.window))
	h.Set("RateLimit-Policy", fmt.Sprintf(`"api_key";q=%d;w=%d;burst=%d, "other";q=1;w=1`, limit, f.window, limit))
	if next := empty.Add(each); !next.After(now) {
		f.drawn[name] = next
		return
	}
	w.WriteHeader(http.StatusTooManyRequests)
}

// quick are options for windows of a second.
func quick(targets []string, patterns ...string) bench.Accuracy {
	return bench.Accuracy{
		Targets: targets, Limits: []int64{10}, Window: 1, Patterns: patterns, Requests: 60, Concurrency: 8, Duration: time.Second,
		After: 150 * time.Millisecond, ClockSkew: -1,
	}
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestAccuracy_EveryPattern(t *testing.T) {
	t.Parallel()
	f := new(fake)
	a := quick(f.start(t, 3))
	var seen []string
	a.Progress = func(p bench.Progress) {
		if p.Result != nil {
			seen = append(seen, p.Result.Pattern)
		}
	}
	report, err := a.Run(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if report.OverAdmitted || len(report.Results) != len(bench.Patterns()) || len(seen) != len(report.Results) {
		t.Errorf("over-admitted %v, %d results, %d told, want none, %d and as many", report.OverAdmitted, len(report.Results), len(seen), len(bench.Patterns()))
	}
	for _, r := range report.Results {
		if r.Admitted == 0 || r.Failed != 0 || r.Problem != "" || r.Asked != r.Admitted+r.Refused+r.Undecided || r.WaitedPercent == nil {
			t.Errorf("%s: %+v", r.Pattern, r)
		}
		if r.Pattern == "steady" && r.Refused != 0 {
			t.Errorf("steady: %d refused, want none", r.Refused)
		}
	}
	if f.made != len(report.Results) || f.revoked != f.made || !f.gone || len(report.Notes) != 0 {
		t.Errorf("%d keys made, %d revoked, account deleted %v, notes %q", f.made, f.revoked, f.gone, report.Notes)
	}
	var text, object bytes.Buffer
	if err := errors.Join(report.WriteText(&text), report.WriteJSON(&object)); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(text.String(), "no limit was exceeded") || !strings.Contains(text.String(), "hopping: to the next node") {
		t.Errorf("text:\n%s", &text)
	}
	var back bench.Report
	if err := json.Unmarshal(object.Bytes(), &back); err != nil || len(back.Results) != len(report.Results) {
		t.Errorf("JSON: %d results, %v", len(back.Results), err)
	}
}

func TestAccuracy_FindsFaults(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name         string
		fake         *fake
		pattern      string
		over, wasted bool
	}{
		{name: "none", fake: new(fake), pattern: "round_robin"},
		{name: "each node counts for itself", fake: &fake{separate: true}, pattern: "round_robin", over: true},
		{name: "each node counts for itself, against an attacker who hops", fake: &fake{separate: true}, pattern: "hopping", over: true},
		{name: "each node counts for itself, at the edge", fake: &fake{separate: true}, pattern: "edge", over: true},
		{name: "fixed windows that should slide", fake: &fake{fixed: true}, pattern: "edge", over: true},
		{name: "windows to come", fake: &fake{ahead: 2}, pattern: "sticky", over: true},
		{name: "two units that nobody gets", fake: &fake{stingy: 2}, pattern: "sticky", wasted: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := test.fake
			report, err := quick(f.start(t, 3), test.pattern).Run(within(t))
			if err != nil {
				t.Fatal(err)
			}
			r := report.Results[0]
			wasted := r.WastedPercent != nil && *r.WastedPercent > 0
			if report.OverAdmitted != test.over || wasted != test.wasted {
				t.Errorf("over-admitted %v, wasted %v, want %v and %v: %+v", report.OverAdmitted, wasted, test.over, test.wasted, r)
			}
			var text bytes.Buffer
			if err := report.WriteText(&text); err != nil || strings.Contains(text.String(), "OVER-ADMITTED") != test.over {
				t.Errorf("%v, text:\n%s", err, &text)
			}
		})
	}
}

func TestAccuracy_WithoutDebugHeader(t *testing.T) {
	t.Parallel()
	f := &fake{noDebug: true}
	report, err := quick(f.start(t, 2), "sticky").Run(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if r := report.Results[0]; r.WaitedPercent != nil || r.RefusedLocallyPercent != nil {
		t.Errorf("waited %v, refused without a message %v, want n/a", r.WaitedPercent, r.RefusedLocallyPercent)
	}
	var text bytes.Buffer
	if err := report.WriteText(&text); err != nil || strings.Count(text.String(), "n/a") < 2 {
		t.Errorf("%v, text:\n%s", err, &text)
	}
}

func TestAccuracy_WithAKeyOrAToken(t *testing.T) {
	t.Parallel()
	f := &fake{closedDoor: true}
	targets := f.start(t, 2)
	f.limits["sk_test_given"] = 7

	if _, err := quick(targets, "sticky").Run(within(t)); err == nil || !strings.Contains(err.Error(), "registration_closed") {
		t.Errorf("without either: %v, want that registration is closed", err)
	}
	a := quick(targets, "sticky", "round_robin")
	a.Key, a.Limits = "sk_test_given", nil
	report, err := a.Run(within(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range report.Results {
		if r.Limit != 7 || r.Window != 1 || report.OverAdmitted {
			t.Errorf("with a key: %+v", r)
		}
	}
	a = quick(targets, "sticky")
	a.Token = "t"
	if report, err = a.Run(within(t)); err != nil || len(report.Results) != 1 || f.made != 1 || f.revoked != 1 || f.gone {
		t.Errorf("with a token: %v, %d keys made, %d revoked, account deleted %v", err, f.made, f.revoked, f.gone)
	}
	a.Token = "other"
	if _, err = a.Run(within(t)); err == nil || strings.Contains(err.Error(), "other") {
		t.Errorf("with a bad token: %v, want an error that does not show it", err)
	}
}

func TestAccuracy_Options(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change func(*bench.Accuracy)
		want   string
	}{
		"no target":     {func(a *bench.Accuracy) { a.Targets = nil }, "targets: want 1 to 64, not 0"},
		"no url":        {func(a *bench.Accuracy) { a.Targets = []string{"localhost:8080"} }, "targets: want http://HOST:PORT"},
		"a path":        {func(a *bench.Accuracy) { a.Targets = []string{"http://a/b"} }, "targets: want"},
		"no limit":      {func(a *bench.Accuracy) { a.Limits = nil }, "limits: want 1 to 32 of them, not 0"},
		"limit 0":       {func(a *bench.Accuracy) { a.Limits = []int64{0} }, "limits: want 1 to 1000000, not 0"},
		"window":        {func(a *bench.Accuracy) { a.Window = 3601 }, "window: want 1 to 3600, not 3601"},
		"pattern":       {func(a *bench.Accuracy) { a.Patterns = []string{"zigzag"} }, `there is no "zigzag"; there are sticky, round_robin`},
		"requests":      {func(a *bench.Accuracy) { a.Requests = 200_001 }, "requests: want 0 to 200000"},
		"concurrency":   {func(a *bench.Accuracy) { a.Concurrency = -1 }, "concurrency: want 1 to 4096, not -1"},
		"duration":      {func(a *bench.Accuracy) { a.Duration = time.Hour }, "duration: want 1s to 10m0s"},
		"after":         {func(a *bench.Accuracy) { a.After = time.Millisecond }, "after: want 100ms to 1m0s"},
		"skew":          {func(a *bench.Accuracy) { a.ClockSkew = time.Hour }, "clock skew: want at most 1m"},
		"key and token": {func(a *bench.Accuracy) { a.Key, a.Token = "k", "t" }, "key: with it no token"},
		"organization":  {func(a *bench.Accuracy) { a.Organization = "org_1" }, "organization: needs a token"},
	} {
		a := quick([]string{"http://127.0.0.1:1"})
		test.change(&a)
		_, err := a.Run(t.Context())
		var option *bench.OptionError
		if !errors.As(err, &option) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want an *OptionError with %q", name, err, test.want)
		}
	}
	if _, err := quick([]string{"http://127.0.0.1:1"}).Run(within(t)); err == nil || errors.As(err, new(*bench.OptionError)) {
		t.Errorf("nobody there: %v, want an error that is no *OptionError", err)
	}
}

func TestAccuracy_EndsWithItsContext(t *testing.T) {
	t.Parallel()
	f := new(fake)
	a := quick(f.start(t, 2), "sticky", "sustained")
	a.Duration = bench.MaxDuration
	ctx, cancel := context.WithCancel(within(t))
	a.Progress = func(p bench.Progress) {
		if strings.HasPrefix(p.Doing, "sustained") {
			cancel()
		}
	}
	report, err := a.Run(ctx)
	if !errors.Is(err, context.Canceled) || report == nil || len(report.Results) != 1 || !f.gone {
		t.Errorf("%v, %+v, account deleted %v; want the first result, and nothing left behind", err, report, f.gone)
	}
}
