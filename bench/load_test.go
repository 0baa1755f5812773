package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// freezing answers at once, but for a time in which it answers nothing.
type freezing struct {
	begun  atomic.Int64
	from   time.Duration
	length time.Duration
}

func (f *freezing) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	now := time.Now()
	f.begun.CompareAndSwap(0, now.UnixNano())
	since := now.Sub(time.Unix(0, f.begun.Load()))
	if since > f.from && since < f.from+f.length {
		timer := time.NewTimer(f.from + f.length - since)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-r.Context().Done():
		}
	}
	w.Header().Set("Content-Length", "0")
}

// TestLoad_CountsWaitingBeforeSending has a server that stands still for half a second. A client that waits for it and
// then goes on would see one slow answer for each connection; the requests that were meant for that time have waited too.
func TestLoad_CountsWaitingBeforeSending(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(&freezing{from: 400 * time.Millisecond, length: 500 * time.Millisecond})
	defer server.Close()
	report, err := Load{
		Targets: []string{server.URL}, Scenario: "verify-key", APIKeys: []string{"sk_test_x"}, Rates: []float64{400}, Duration: 2 * time.Second,
		Warmup: -1, Concurrency: 2, Seed: 1,
	}.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s := report.Steps[0]
	if s.Requests+s.Unsent != 800 || s.Failed != 0 {
		t.Errorf("%d requests and %d unsent, %d failed, want 800 in all", s.Requests, s.Unsent, s.Failed)
	}
	// A quarter of all requests were meant for the half second, and waited a quarter of a second on average.
	if s.Latency.P90Micros < 150_000 {
		t.Errorf("p90 %v µs, want what requests waited for the server: %+v", s.Latency.P90Micros, s.Latency)
	}
	if s.Service.P90Micros > 100_000 {
		t.Errorf("service p90 %v µs: only two answers were slow", s.Service.P90Micros)
	}
	if s.Late.MaxMicros < 300_000 {
		t.Errorf("late by at most %v µs", s.Late.MaxMicros)
	}
}

// TestLoad_CountsWhatWasNeverSent has a server far slower than the rate.
func TestLoad_CountsWhatWasNeverSent(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(&freezing{length: time.Hour})
	defer server.Close()
	report, err := Load{
		Targets: []string{server.URL}, Scenario: "verify-anonymous", Rates: []float64{100}, Duration: time.Second, Warmup: -1,
		Concurrency: 1, Timeout: 200 * time.Millisecond, Seed: 1,
	}.Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "admitted none of") || !strings.Contains(err.Error(), kindTimeout) {
		t.Errorf("got %v, want a target that answered nothing", err)
	}
	s := report.Steps[0]
	if s.Unsent < 50 || s.Requests+s.Unsent != 100 {
		t.Errorf("%d sent, %d unsent, want 100 in all", s.Requests, s.Unsent)
	}
	if s.Latency.Count != 100 || s.Latency.MaxMicros < 700_000 {
		t.Errorf("latencies do not count what was not sent: %+v", s.Latency)
	}
}

// TestLoad_SplitsNodesAndKinds has one node that refuses, one that fails, and none that hides the other.
func TestLoad_SplitsNodesAndKinds(t *testing.T) {
	t.Parallel()
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-RateLimit-Limit", "10")
		w.Header().Set("X-RateLimit-Window", "5")
		w.WriteHeader(http.StatusTooManyRequests)
	}))
	defer refusing.Close()
	broken := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, `{"code":"invalid_credential","detail":"no such key"}`)
	}))
	defer broken.Close()
	seconds := 0
	report, err := Load{
		Targets: []string{refusing.URL, broken.URL + "/"}, Scenario: "gateway", APIKeys: []string{"sk_test_x", "sk_test_y"}, Duration: time.Second,
		Warmup: -1, Concurrency: 3, Path: "/x?y=1", Seed: 1, Command: []string{"sluice"},
		Progress: func(p LoadProgress) {
			if p.Second != nil {
				seconds++
			}
		},
	}.Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), broken.URL+" admitted none of") || !strings.Contains(err.Error(), "no such key") || strings.Contains(err.Error(), refusing.URL) {
		t.Errorf("got %v, want to be told of one target", err)
	}
	s := report.Steps[0]
	if len(s.Nodes) != 2 || s.Nodes[0].Refused == 0 || s.Nodes[0].Failed != 0 || s.Nodes[1].Refused != 0 || s.Nodes[1].Failed == 0 {
		t.Fatalf("nodes: %+v", s.Nodes)
	}
	if s.Refused != s.Nodes[0].Refused || s.Failed != s.Nodes[1].Failed || s.Requests != s.Refused+s.Failed || s.Admitted != 0 {
		t.Errorf("the sum is not that of the nodes: %+v", s.Figures)
	}
	if e := s.Nodes[1].Errors; len(e) != 1 || e[0].Kind != "status 401" || e[0].Count != s.Failed || !strings.Contains(e[0].Example, "no such key") {
		t.Errorf("errors: %+v", e)
	}
	if s.AdmissibleRate == nil || *s.AdmissibleRate != 4 { // two keys, ten in five seconds
		t.Errorf("admissible rate: %v", s.AdmissibleRate)
	}
	var sum int64
	for _, at := range s.Series {
		sum += at.Refused + at.Failed
	}
	if sum != s.Requests {
		t.Errorf("the series has %d requests of %d", sum, s.Requests)
	}
	var html, text bytes.Buffer
	if err := errors.Join(report.WriteHTML(&html), report.WriteText(&text)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Latency by percentile", "Throughput and failures", "Admitted against the limit", "<polyline", "no such key", "status 401"} {
		if !strings.Contains(html.String(), want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	for _, not := range []string{"http-equiv=\"refresh\"", "<script", "src=", "@import", "url(", "ZgotmplZ", "NaN"} {
		if strings.Contains(html.String(), not) {
			t.Errorf("the page has %q", not)
		}
	}
	if !strings.Contains(text.String(), "FAILED: step 1, "+broken.URL) {
		t.Errorf("the text does not tell what failed:\n%s", text.String())
	}
}

func TestLoad_UnreachableTarget(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := "http://" + l.Addr().String()
	l.Close()
	_, err = Load{Targets: []string{gone}, Scenario: "verify-key"}.Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "target "+gone+" cannot be reached") {
		t.Errorf("got %v", err)
	}
}

// TestLoad_EndsWithItsContext is interrupted in the middle of a step.
func TestLoad_EndsWithItsContext(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(&freezing{})
	defer server.Close()
	ctx, cancel := context.WithCancel(t.Context())
	report, err := Load{
		Targets: []string{server.URL}, Scenario: "verify-key", APIKeys: []string{"sk_test_x"}, Rates: []float64{50}, Duration: time.Hour, Warmup: -1,
		Progress: func(p LoadProgress) {
			if p.Second != nil {
				cancel()
			}
		},
	}.Run(ctx)
	if !errors.Is(err, context.Canceled) || len(report.Steps) != 1 || report.Steps[0].Admitted == 0 {
		t.Errorf("got %v and %d steps, want what was measured before the end", err, len(report.Steps))
	}
	if report != nil && len(report.Steps) == 1 && report.Steps[0].Unsent > 10 {
		t.Errorf("%d requests count as unsent whose time had not come", report.Steps[0].Unsent)
	}
}

func TestLoad_TellsEveryMistake(t *testing.T) {
	t.Parallel()
	_, err := Load{
		Targets: []string{"nowhere"}, Scenario: "verify-everything", Rates: []float64{0, math.NaN()}, Duration: time.Millisecond, Users: -1,
		Distribution: "normal", ZipfExponent: 1, Path: "x y", APIKeys: []string{"a\r\nb"}, Organization: "org_x",
	}.Run(t.Context())
	var options *OptionError
	if !errors.As(err, &options) {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{"targets: ", "scenario: there is no", "rates: want 0.1 to 1000000, not 0", "not NaN", "duration: ", "users: ", "distribution: ",
		"zipf exponent: ", "path: ", "credentials: ", "organization: needs a token"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not told in:\n%v", want, err)
		}
	}
	if strings.Contains(err.Error(), "a\r\nb") {
		t.Error("the credential is told")
	}
	_, err = Load{Targets: []string{"http://x"}, Scenario: Mixed, Mix: []Share{{"login", 0}, {"sleep", 1}}}.Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "mix: login: want a weight") || !strings.Contains(err.Error(), `mix: there is no "sleep"`) {
		t.Errorf("got %v", err)
	}
}

func TestSearch_FindsTheHighestRate(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ begin, truth float64 }{{1000, 8700}, {50_000, 8700}, {10, 3.3}, {1, MaxRate * 2}, {1000, 0.2}} {
		s := search{next: test.begin}
		for more := true; more; {
			more = s.note(s.next <= test.truth)
			if s.trials > searchTrials {
				t.Fatalf("%+v: %d trials", test, s.trials)
			}
		}
		want := min(test.truth, MaxRate)
		if test.truth < searchLowest {
			if s.low != 0 {
				t.Errorf("%+v: found %v", test, s.low)
			}
			continue
		}
		if s.trials < searchTrials && (s.low > want || s.low*1.06 < want) {
			t.Errorf("%+v: found %v after %d trials", test, s.low, s.trials)
		}
	}
}

func TestFails_SaysWhy(t *testing.T) {
	t.Parallel()
	held := Step{Figures: Figures{Requests: 10_000, Failed: 10, Latency: Quantiles{P99Micros: 5000}}, Unsent: 100}
	if why := fails(&held, 5000); why != "" {
		t.Errorf("held, but: %s", why)
	}
	for want, change := range map[string]func(*Step){
		"requests failed": func(s *Step) { s.Failed = 11 }, "never sent": func(s *Step) { s.Unsent = 102 },
		"p99 5.001ms": func(s *Step) { s.Latency.P99Micros = 5001 }, "nothing": func(s *Step) { s.Requests = 0 },
	} {
		s := held
		change(&s)
		if why := fails(&s, 5000); !strings.Contains(why, want) {
			t.Errorf("got %q, want %q", why, want)
		}
	}
}

func TestWithoutSecrets(t *testing.T) {
	t.Parallel()
	got := WithoutSecrets([]string{"sluice", "--key", "sk_live_a", "--token=eyJ", "--keys", "5", "--key"})
	if want := []string{"sluice", "--key", "***", "--token=***", "--keys", "5", "--key"}; !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

// TestCounts_Histogram records what is known, and finds it again within three digits.
func TestCounts_Histogram(t *testing.T) {
	t.Parallel()
	l := &lane{filling: newCountSet(2, 1), spare: newCountSet(2, 1)}
	for i := range int64(1000) {
		l.note(int(i%2), 0, 0, 500, (i+1)*int64(time.Millisecond), outcome{refused: i%4 == 0})
	}
	l.note(0, 0, 0, 0, int64(time.Hour), outcome{kind: kindTimeout, err: errors.New("slow")})
	sum := newCountSet(2, 1)
	l.take(sum)
	l.take(sum) // nothing is counted twice
	total := sum.total()
	q := quantilesOf(total.latency)
	if total.requests() != 1001 || total.refused != 250 || total.admitted != 750 || total.failed != 1 {
		t.Errorf("%d requests, %d admitted, %d refused, %d failed", total.requests(), total.admitted, total.refused, total.failed)
	}
	for want, got := range map[float64]float64{501_000: q.P50Micros, 901_000: q.P90Micros, 991_000: q.P99Micros, 120_000_000: q.MaxMicros} {
		if math.Abs(got-want) > want*0.002 {
			t.Errorf("got %v µs, want %v", got, want)
		}
	}
	points := curve(total.latency, total.service)
	if !slices.IsSortedFunc(points, func(a, b PercentilePoint) int { return int(math.Copysign(1, a.LatencyMicros-b.LatencyMicros)) }) || points[0].Percentile != 0 {
		t.Errorf("the curve falls: %v", points)
	}
	if list := total.list(); len(list) != 1 || list[0] != (ErrorCount{kindTimeout, 1, "slow"}) {
		t.Errorf("errors: %v", list)
	}
}
