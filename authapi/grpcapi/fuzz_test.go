package grpcapi_test

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"sluice/authapi"
)

// Whatever a rate-limit request says, it gets a status for each descriptor, or an error that says what is wrong.
func FuzzShouldRateLimit(f *testing.F) {
	own := descriptor("remote_address", "192.0.2.1")
	own.HitsAddend = wrapperspb.UInt64(1 << 63)
	own.Limit = &commonv3.RateLimitDescriptor_RateLimitOverride{RequestsPerUnit: 3, Unit: 2, UnitMultiplier: wrapperspb.UInt32(1 << 31)}
	for _, d := range []*commonv3.RateLimitDescriptor{descriptor("path", "/api/v2/*", "user", ""), own, {}} {
		b, err := proto.Marshal(&ratelimitv3.RateLimitRequest{Domain: "edge", Descriptors: []*commonv3.RateLimitDescriptor{d, descriptor("trial", "")}, HitsAddend: 2})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	s := newService(f, edgeDomain)
	f.Fuzz(func(t *testing.T, b []byte) {
		var req ratelimitv3.RateLimitRequest
		if proto.Unmarshal(b, &req) != nil {
			return
		}
		resp, err := ratelimitv3.NewRateLimitServiceClient(s.conn).ShouldRateLimit(within(t), &req)
		switch {
		case status.Code(err) == codes.InvalidArgument, status.Code(err) == codes.ResourceExhausted:
		case err != nil:
			t.Fatalf("%v: %v", &req, err)
		case len(resp.GetStatuses()) != len(req.GetDescriptors()):
			t.Fatalf("%v: %v", &req, resp)
		}
		refused := slices.ContainsFunc(resp.GetStatuses(), func(st *ratelimitv3.RateLimitResponse_DescriptorStatus) bool { return st.GetCode() == over })
		if refused != (resp.GetOverallCode() == over) {
			t.Fatalf("%v: %v", &req, resp)
		}
	})
}

// Whatever Envoy describes, nobody passes without a credential but readers of the one route that lets them.
func FuzzCheck(f *testing.F) {
	for _, a := range []asked{
		{method: "GET", host: "x.example", path: "/events?x=1"},
		{method: "POST", host: "admin.example.com", path: "/events/../private", headers: map[string]string{"authorization": "Bearer x", "x-forwarded-for": "1.2.3.4, ::1"}, raw: true},
		{method: "HEAD", host: "[::1]:80", path: "/events/%2e%2e/private", source: "10.0.0.1", extensions: map[string]string{"cost": "9", "scope": "a:b"}},
	} {
		b, err := proto.Marshal(a.request())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	s := newService(f, func(c *authapi.Config) {
		routed(c)
		c.Limit.Anonymous = rule(1e12)
	})
	f.Fuzz(func(t *testing.T, b []byte) {
		var req authv3.CheckRequest
		if proto.Unmarshal(b, &req) != nil {
			return
		}
		resp, err := authv3.NewAuthorizationClient(s.conn).Check(within(t), &req)
		if code := status.Code(err); err != nil && code != codes.InvalidArgument && code != codes.ResourceExhausted {
			t.Fatalf("%v: %v", &req, err)
		}
		if resp.GetOkResponse() == nil {
			return
		}
		r := req.GetAttributes().GetRequest().GetHttp()
		path, _, _ := strings.Cut(r.GetPath(), "?")
		reads := r.GetMethod() == "GET" || r.GetMethod() == "HEAD"
		if !reads || path != "/events" && !strings.HasPrefix(path, "/events/") || strings.Contains(path, "..") {
			t.Fatalf("%v passes", &req)
		}
	})
}

// The rule that counts a descriptor is the one that docs/envoy.md says, by a plain search.
func TestShouldRateLimit_RulesAsDocumented(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 1))
	pick := func(list ...string) string { return list[random.IntN(len(list))] }
	for round := range 30 {
		var rules []authapi.DescriptorRule
		var policies []authapi.Policy
		for i := range 2 + random.IntN(12) {
			r := authapi.DescriptorRule{Domain: "edge", Policy: "p" + string(rune('a'+i))}
			for range 1 + random.IntN(3) {
				r.Entries = append(r.Entries, authapi.DescriptorEntry{Key: pick("k", "l"), Value: pick("", "*", "a*", "ab*", "a", "ab", "abc")})
			}
			if slices.ContainsFunc(rules, func(o authapi.DescriptorRule) bool { return slices.Equal(o.Entries, r.Entries) }) {
				continue
			}
			rules = append(rules, r)
			policies = append(policies, descriptorPolicy(r.Policy, 1e9, 60))
		}
		s := newService(t, func(c *authapi.Config) { c.Limit.Policies, c.Limit.Descriptors = policies, rules })
		for range 40 {
			var pairs []string
			for range 1 + random.IntN(3) {
				pairs = append(pairs, pick("k", "l"), pick("", "a", "ab", "abc", "abcd", "b", "a*"))
			}
			got := s.ask(0, descriptor(pairs...)).GetStatuses()[0].GetCurrentLimit().GetName()
			if want := searched(rules, entries(pairs...)); got != want {
				t.Fatalf("seed %d, round %d: %q is counted by %q, want %q of %+v", seed, round, pairs, got, want, rules)
			}
		}
	}
}

// searched is the policy of a descriptor: at each entry the rules stay that have the value, or else the longest beginning of it, or
// else any value.
func searched(rules []authapi.DescriptorRule, entries []authapi.DescriptorEntry) string {
	for i, e := range entries {
		var best []authapi.DescriptorRule
		longest := -2
		for _, r := range rules {
			if len(r.Entries) <= i || r.Entries[i].Key != e.Key {
				continue
			}
			value, rank := r.Entries[i].Value, -1
			prefix, open := strings.CutSuffix(value, "*")
			switch {
			case value == "":
			case open && strings.HasPrefix(e.Value, prefix):
				rank = len(prefix)
			case !open && value == e.Value:
				rank = 1000
			default:
				continue
			}
			if rank > longest {
				best, longest = nil, rank
			}
			if rank == longest {
				best = append(best, r)
			}
		}
		rules = best
	}
	for _, r := range rules {
		if len(r.Entries) == len(entries) {
			return r.Policy
		}
	}
	return ""
}
