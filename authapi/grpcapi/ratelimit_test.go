package grpcapi_test

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"sluice/authapi"
	"sluice/authapi/grpcapi"
	"sluice/limiter"
)

const (
	okCode = ratelimitv3.RateLimitResponse_OK
	over   = ratelimitv3.RateLimitResponse_OVER_LIMIT
)

// descriptor makes one of pairs of key and value.
func descriptor(pairs ...string) *commonv3.RateLimitDescriptor {
	d := &commonv3.RateLimitDescriptor{}
	for i := 0; i < len(pairs); i += 2 {
		d.Entries = append(d.Entries, &commonv3.RateLimitDescriptor_Entry{Key: pairs[i], Value: pairs[i+1]})
	}
	return d
}

func entries(pairs ...string) (out []authapi.DescriptorEntry) {
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, authapi.DescriptorEntry{Key: pairs[i], Value: pairs[i+1]})
	}
	return out
}

func descriptorPolicy(name string, limit, window int64) authapi.Policy {
	return authapi.Policy{
		Name: name, By: []authapi.Dimension{authapi.ByDescriptor}, Rule: limiter.Rule{Limit: limit, Window: window, Algorithm: limiter.FixedWindow},
	}
}

// edgeDomain limits descriptors of the domain "edge".
func edgeDomain(c *authapi.Config) {
	shadow := descriptorPolicy("trial", 1, 60)
	shadow.Shadow = true
	c.Limit.Policies = []authapi.Policy{
		descriptorPolicy("per-address", 3, 60), descriptorPolicy("search", 5, 3600), descriptorPolicy("ten", 10, 600), shadow,
	}
	c.Limit.Descriptors = []authapi.DescriptorRule{
		{Domain: "edge", Entries: entries("remote_address", ""), Policy: "per-address"},
		{Domain: "edge", Entries: entries("remote_address", "10.0.0.1"), Unlimited: true},
		{Domain: "edge", Entries: entries("path", "/search"), Policy: "search"},
		{Domain: "edge", Entries: entries("path", "/api/*"), Policy: "ten"},
		{Domain: "edge", Entries: entries("path", "/api/v2/*"), Policy: "search"},
		{Domain: "edge", Entries: entries("trial", ""), Policy: "trial"},
		{Domain: "edge", Entries: entries("path", "/search", "user", ""), Policy: "ten"},
	}
}

// ask is one call for the domain "edge".
func (s *service) ask(hits uint32, list ...*commonv3.RateLimitDescriptor) *ratelimitv3.RateLimitResponse {
	s.t.Helper()
	resp, err := ratelimitv3.NewRateLimitServiceClient(s.conn).ShouldRateLimit(within(s.t), &ratelimitv3.RateLimitRequest{
		Domain: "edge", Descriptors: list, HitsAddend: hits,
	})
	if err != nil {
		s.t.Fatalf("ShouldRateLimit: %v", err)
	}
	if len(resp.GetStatuses()) != len(list) {
		s.t.Fatalf("%d statuses for %d descriptors", len(resp.GetStatuses()), len(list))
	}
	return resp
}

func header(resp *ratelimitv3.RateLimitResponse, name string) string {
	for _, h := range resp.GetResponseHeadersToAdd() {
		if h.GetKey() == name {
			return h.GetValue()
		}
	}
	return ""
}

func TestShouldRateLimit_CountsDown(t *testing.T) {
	t.Parallel()
	s := newService(t, edgeDomain)
	for i := range uint32(3) {
		resp := s.ask(0, descriptor("remote_address", "192.0.2.1"))
		st := resp.GetStatuses()[0]
		if resp.GetOverallCode() != okCode || st.GetCode() != okCode || st.GetLimitRemaining() != 2-i {
			t.Fatalf("call %d: %v", i, resp)
		}
		limit := st.GetCurrentLimit()
		if limit.GetName() != "per-address" || limit.GetRequestsPerUnit() != 3 || limit.GetUnit() != ratelimitv3.RateLimitResponse_RateLimit_MINUTE || limit.GetUnitMultiplier() != nil {
			t.Errorf("current limit %v", limit)
		}
		if got := st.GetDurationUntilReset().AsDuration(); got != 53*time.Second {
			t.Errorf("reset in %s, want 53s", got)
		}
		for name, want := range map[string]string{
			"X-RateLimit-Limit": "3", "X-RateLimit-Remaining": fmt.Sprint(2 - i), "X-RateLimit-Window": "60",
			"X-RateLimit-Reset": fmt.Sprint(start.Truncate(time.Minute).Unix() + 60), "RateLimit-Policy": `"per-address";q=3;w=60`,
			"RateLimit": fmt.Sprintf(`"per-address";r=%d;t=53`, 2-i), "Retry-After": "",
		} {
			if got := header(resp, name); got != want {
				t.Errorf("%s = %q, want %q", name, got, want)
			}
		}
	}
	resp := s.ask(0, descriptor("remote_address", "192.0.2.1"))
	if resp.GetOverallCode() != over || resp.GetStatuses()[0].GetCode() != over || resp.GetStatuses()[0].GetLimitRemaining() != 0 || header(resp, "Retry-After") != "53" {
		t.Errorf("the fourth of three: %v", resp)
	}
	if resp := s.ask(0, descriptor("remote_address", "192.0.2.2")); resp.GetOverallCode() != okCode || resp.GetStatuses()[0].GetLimitRemaining() != 2 {
		t.Errorf("another value: %v, want a bucket of its own", resp)
	}
	if got := s.api.Decisions(); !strings.Contains(fmt.Sprint(got), "{per-address 4 1 0 0}") {
		t.Errorf("decisions %v, want 4 admitted and 1 refused by per-address", got)
	}
}

// Where one descriptor is over its limit none is spent from; each status says what its descriptor alone would get.
func TestShouldRateLimit_AllOrNone(t *testing.T) {
	t.Parallel()
	s := newService(t, edgeDomain)
	address, search := descriptor("remote_address", "192.0.2.1"), descriptor("path", "/search")
	s.ask(3, address)
	for range 4 {
		resp := s.ask(0, search, address)
		if resp.GetOverallCode() != over || resp.GetStatuses()[0].GetCode() != okCode || resp.GetStatuses()[1].GetCode() != over {
			t.Fatalf("answer %v", resp)
		}
		if got := resp.GetStatuses()[0].GetLimitRemaining(); got != 5 {
			t.Errorf("%d left of search, want all 5", got)
		}
		if got := header(resp, "X-RateLimit-Limit"); got != "3" {
			t.Errorf("X-RateLimit-Limit = %q, want that of what refuses", got)
		}
		if got := header(resp, "RateLimit-Policy"); got != `"search";q=5;w=3600, "per-address";q=3;w=60` {
			t.Errorf("RateLimit-Policy = %q", got)
		}
	}
	if resp := s.ask(0, search, search); resp.GetOverallCode() != okCode || resp.GetStatuses()[1].GetLimitRemaining() > 4 {
		t.Errorf("the same twice: %v", resp)
	}
	if resp := s.ask(0, search); resp.GetStatuses()[0].GetLimitRemaining() != 2 {
		t.Errorf("afterwards: %v, want 3 of 5 spent", resp)
	}
}

func TestShouldRateLimit_WhichRule(t *testing.T) {
	t.Parallel()
	s := newService(t, edgeDomain)
	for _, tt := range []struct {
		name  string
		pairs []string
		want  string
	}{
		{"a value of its own", []string{"path", "/search"}, "search"},
		{"a beginning", []string{"path", "/api/x"}, "ten"},
		{"the longer beginning", []string{"path", "/api/v2/x"}, "search"},
		{"the beginning alone", []string{"path", "/api/"}, "ten"},
		{"no rule", []string{"path", "/"}, ""},
		{"no such key", []string{"method", "GET"}, ""},
		{"unlimited", []string{"remote_address", "10.0.0.1"}, ""},
		{"any value", []string{"remote_address", "10.0.0.2"}, "per-address"},
		{"two entries", []string{"path", "/search", "user", "7"}, "ten"},
		{"more entries than the rule", []string{"remote_address", "10.0.0.2", "user", "7"}, ""},
		{"another order", []string{"user", "7", "path", "/search"}, ""},
		{"no value", []string{"remote_address", ""}, "per-address"},
	} {
		if got := s.ask(0, descriptor(tt.pairs...)).GetStatuses()[0].GetCurrentLimit().GetName(); got != tt.want {
			t.Errorf("%s: counted by %q, want %q", tt.name, got, tt.want)
		}
	}
	resp, err := ratelimitv3.NewRateLimitServiceClient(s.conn).ShouldRateLimit(within(t), &ratelimitv3.RateLimitRequest{
		Domain: "elsewhere", Descriptors: []*commonv3.RateLimitDescriptor{descriptor("remote_address", "192.0.2.1")},
	})
	if err != nil || resp.GetOverallCode() != okCode || resp.GetStatuses()[0].GetCurrentLimit() != nil || len(resp.GetResponseHeadersToAdd()) != 0 {
		t.Errorf("a domain without rules: %v, %v", resp, err)
	}
	if domain, entries := s.api.UnmatchedDescriptors(); domain != 1 || entries != 4 {
		t.Errorf("%d of no domain and %d of no entries, want 1 and 4", domain, entries)
	}
	if got := s.ask(0, descriptor("path", "/api/x")).GetStatuses()[0].GetCurrentLimit(); got.GetUnit() != ratelimitv3.RateLimitResponse_RateLimit_MINUTE || got.GetUnitMultiplier().GetValue() != 10 {
		t.Errorf("ten minutes are %v", got)
	}
}

func TestShouldRateLimit_HitsAddend(t *testing.T) {
	t.Parallel()
	s := newService(t, edgeDomain)
	search, address := descriptor("path", "/search"), descriptor("remote_address", "192.0.2.1")
	address.HitsAddend = wrapperspb.UInt64(1)
	resp := s.ask(4, search, address)
	if a, b := resp.GetStatuses()[0].GetLimitRemaining(), resp.GetStatuses()[1].GetLimitRemaining(); a != 1 || b != 2 {
		t.Errorf("%d and %d left, want 1 and 2: the request's 4 for one, its own 1 for the other", a, b)
	}
	look := descriptor("path", "/search")
	look.HitsAddend = wrapperspb.UInt64(0)
	for range 3 {
		if resp := s.ask(7, look); resp.GetOverallCode() != okCode || resp.GetStatuses()[0].GetLimitRemaining() != 1 {
			t.Errorf("0 hits: %v, want a look", resp)
		}
	}
	if resp := s.ask(2, search); resp.GetOverallCode() != over {
		t.Errorf("2 of 1: %v", resp)
	}
	if resp := s.ask(1, search); resp.GetOverallCode() != okCode {
		t.Errorf("1 of 1: %v, want what was refused not to be spent", resp)
	}
	if resp := s.ask(0, look); resp.GetOverallCode() != over {
		t.Errorf("0 hits of nothing left: %v", resp)
	}
	// A look that fails keeps the others from being spent.
	if resp := s.ask(1, look, descriptor("remote_address", "192.0.2.9")); resp.GetOverallCode() != over || resp.GetStatuses()[1].GetLimitRemaining() != 3 {
		t.Errorf("beside one that is over: %v", resp)
	}
}

func TestShouldRateLimit_Shadow(t *testing.T) {
	t.Parallel()
	s := newService(t, edgeDomain)
	trial := descriptor("trial", "x")
	for i := range 3 {
		resp := s.ask(0, trial, descriptor("remote_address", "192.0.2.1"))
		if resp.GetOverallCode() != okCode || resp.GetStatuses()[0].GetCode() != okCode {
			t.Fatalf("call %d: %v", i, resp)
		}
		if got := header(resp, "RateLimit-Policy"); strings.Contains(got, "trial") {
			t.Errorf("RateLimit-Policy = %q shows a shadow", got)
		}
	}
	if resp := s.ask(0, trial, descriptor("remote_address", "192.0.2.1")); resp.GetOverallCode() != over || resp.GetStatuses()[0].GetCode() != okCode {
		t.Errorf("beside one that is over: %v", resp)
	}
	if got := s.api.ShadowCounts(); len(got) != 1 || got[0] != (authapi.ShadowCount{Policy: "trial", Admitted: 1, Refused: 2}) {
		t.Errorf("shadow counts %v, want 1 admitted and 2 refused: what another refused is not the shadow's", got)
	}
}

func TestShouldRateLimit_OwnLimit(t *testing.T) {
	t.Parallel()
	s := newService(t, edgeDomain)
	own := descriptor("remote_address", "192.0.2.1")
	own.Limit = &commonv3.RateLimitDescriptor_RateLimitOverride{RequestsPerUnit: 2, Unit: typev3.RateLimitUnit_SECOND, UnitMultiplier: wrapperspb.UInt32(30)}
	for i := range uint32(2) {
		st := s.ask(0, own).GetStatuses()[0]
		if st.GetCode() != okCode || st.GetLimitRemaining() != 1-i || st.GetCurrentLimit().GetUnitMultiplier().GetValue() != 30 || st.GetCurrentLimit().GetRequestsPerUnit() != 2 {
			t.Fatalf("call %d: %v", i, st)
		}
	}
	if resp := s.ask(0, own); resp.GetOverallCode() != over || header(resp, "RateLimit-Policy") != `"descriptor";q=2;w=30` {
		t.Errorf("the third of two: %v", resp)
	}
	if got := s.ask(0, descriptor("remote_address", "192.0.2.1")).GetStatuses()[0].GetLimitRemaining(); got != 2 {
		t.Errorf("%d left by the policy, want a bucket apart", got)
	}
}

func TestShouldRateLimit_Malformed(t *testing.T) {
	t.Parallel()
	s := newService(t, edgeDomain)
	long := strings.Repeat("x", authapi.MaxEntryText+1)
	many := make([]*commonv3.RateLimitDescriptor, authapi.MaxDescriptors+1)
	for i := range many {
		many[i] = descriptor("path", "/search")
	}
	deep := make([]string, 2*(authapi.MaxEntries+1))
	for i := range deep {
		deep[i] = "k"
	}
	withLimit := func(unit typev3.RateLimitUnit, multiplier *wrapperspb.UInt32Value) *commonv3.RateLimitDescriptor {
		d := descriptor("path", "/search")
		d.Limit = &commonv3.RateLimitDescriptor_RateLimitOverride{RequestsPerUnit: 1, Unit: unit, UnitMultiplier: multiplier}
		return d
	}
	huge, negative := descriptor("path", "/search"), descriptor("path", "/search")
	huge.HitsAddend, negative.IsNegativeHits = wrapperspb.UInt64(math.MaxUint64), true
	for _, tt := range []struct {
		name   string
		domain string
		list   []*commonv3.RateLimitDescriptor
		want   string
	}{
		{"no domain", "", []*commonv3.RateLimitDescriptor{descriptor("a", "b")}, "domain"},
		{"long domain", long, []*commonv3.RateLimitDescriptor{descriptor("a", "b")}, "domain"},
		{"no descriptors", "edge", nil, "descriptors must have"},
		{"too many", "edge", many, "descriptors must have"},
		{"no entries", "edge", []*commonv3.RateLimitDescriptor{descriptor("a", "b"), {}}, "descriptors[1].entries"},
		{"too many entries", "edge", []*commonv3.RateLimitDescriptor{descriptor(deep...)}, "descriptors[0].entries"},
		{"no key", "edge", []*commonv3.RateLimitDescriptor{descriptor("a", "b", "", "x")}, "descriptors[0].entries[1].key"},
		{"long value", "edge", []*commonv3.RateLimitDescriptor{descriptor("a", long)}, "descriptors[0].entries[0].value"},
		{"too many hits", "edge", []*commonv3.RateLimitDescriptor{huge}, "descriptors[0].hits_addend"},
		{"hits given back", "edge", []*commonv3.RateLimitDescriptor{negative}, "descriptors[0].is_negative_hits"},
		{"no unit", "edge", []*commonv3.RateLimitDescriptor{withLimit(typev3.RateLimitUnit_UNKNOWN, nil)}, "descriptors[0].limit.unit"},
		{"a year", "edge", []*commonv3.RateLimitDescriptor{withLimit(typev3.RateLimitUnit_YEAR, nil)}, "descriptors[0].limit.unit"},
		{"no multiplier", "edge", []*commonv3.RateLimitDescriptor{withLimit(typev3.RateLimitUnit_DAY, wrapperspb.UInt32(0))}, "unit_multiplier"},
		{"too long", "edge", []*commonv3.RateLimitDescriptor{withLimit(typev3.RateLimitUnit_DAY, wrapperspb.UInt32(32))}, "descriptors[0].limit"},
	} {
		_, err := ratelimitv3.NewRateLimitServiceClient(s.conn).ShouldRateLimit(within(t), &ratelimitv3.RateLimitRequest{Domain: tt.domain, Descriptors: tt.list})
		if err == nil {
			t.Errorf("%s: no error", tt.name)
			continue
		}
		wantCode(t, err, codes.InvalidArgument, tt.want)
	}
	if got := s.ask(0, descriptor("path", "/search")).GetStatuses()[0].GetLimitRemaining(); got != 4 {
		t.Errorf("%d left, want nothing spent by mistakes", got)
	}
}

// A node that cannot decide says so, and its caller may ask another one or let go on, as it is configured.
func TestShouldRateLimit_Undecided(t *testing.T) {
	t.Parallel()
	s := newService(t, edgeDomain, func(c *grpcapi.Config) { c.NoHeaders = true })
	s.limits.Undecided.Store(true)
	_, err := ratelimitv3.NewRateLimitServiceClient(s.conn).ShouldRateLimit(within(t), &ratelimitv3.RateLimitRequest{
		Domain: "edge", Descriptors: []*commonv3.RateLimitDescriptor{descriptor("path", "/search")},
	})
	wantCode(t, err, codes.Unavailable, "cannot decide")
	s.limits.Undecided.Store(false)
	if resp := s.ask(0, descriptor("path", "/search")); len(resp.GetResponseHeadersToAdd()) != 0 || resp.GetStatuses()[0].GetLimitRemaining() != 4 {
		t.Errorf("afterwards, without headers: %v", resp)
	}
	calls := fmt.Sprint(s.server.Calls())
	for _, want := range []string{
		"{envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit OK 1}", "{envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit Unavailable 1}",
		"{pb.gubernator.V1/GetRateLimits OK 0}",
	} {
		if !strings.Contains(calls, want) {
			t.Errorf("calls %s do not have %s", calls, want)
		}
	}
}

func TestNew_DescriptorRules(t *testing.T) {
	t.Parallel()
	policy := descriptorPolicy("p", 1, 60)
	for _, tt := range []struct {
		name string
		rule authapi.DescriptorRule
		want string
	}{
		{"no domain", authapi.DescriptorRule{Entries: entries("a", ""), Policy: "p"}, "domain"},
		{"no entries", authapi.DescriptorRule{Domain: "d", Policy: "p"}, "entries"},
		{"no key", authapi.DescriptorRule{Domain: "d", Entries: entries("", "x"), Policy: "p"}, "key"},
		{"no policy", authapi.DescriptorRule{Domain: "d", Entries: entries("a", "")}, "policy"},
		{"both", authapi.DescriptorRule{Domain: "d", Entries: entries("a", ""), Policy: "p", Unlimited: true}, "policy"},
		{"of requests", authapi.DescriptorRule{Domain: "d", Entries: entries("a", ""), Policy: "requests"}, `"requests" is not the name of a policy for descriptors`},
		{"twice", authapi.DescriptorRule{Domain: "d", Entries: entries("twice", ""), Policy: "p"}, "another one"},
	} {
		err := authapi.CheckPolicies(authapi.LimitConfig{
			Policies:    []authapi.Policy{policy, {Name: "requests", By: []authapi.Dimension{authapi.ByAddress}, Rule: rule(1)}},
			Descriptors: []authapi.DescriptorRule{{Domain: "d", Entries: entries("twice", ""), Unlimited: true}, tt.rule},
		}, nil)
		if err == nil || !strings.Contains(err.Error(), "descriptor 2: ") || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

// Policies and rules for descriptors change while the server runs; what was spent stays spent.
func TestShouldRateLimit_ChangesLive(t *testing.T) {
	t.Parallel()
	s := newService(t, edgeDomain)
	search := descriptor("path", "/search")
	s.ask(4, search)
	live := authapi.LiveConfig{Limit: authapi.LimitConfig{
		Policies:    []authapi.Policy{descriptorPolicy("search", 9, 3600)},
		Descriptors: []authapi.DescriptorRule{{Domain: "edge", Entries: entries("path", ""), Policy: "search"}},
	}}
	if err := s.api.SetLive(live); err != nil {
		t.Fatal(err)
	}
	if st := s.ask(0, search).GetStatuses()[0]; st.GetCurrentLimit().GetRequestsPerUnit() != 9 || st.GetLimitRemaining() != 4 {
		t.Errorf("afterwards: %v, want 5 of 9 spent", st)
	}
	if st := s.ask(0, descriptor("remote_address", "192.0.2.1")).GetStatuses()[0]; st.GetCurrentLimit() != nil {
		t.Errorf("a rule that is gone: %v", st)
	}
	live.Limit.Descriptors[0].Policy = "other"
	if err := s.api.SetLive(live); err == nil || !strings.Contains(err.Error(), "descriptor 1") {
		t.Errorf("a policy that is not there: %v", err)
	}
}
