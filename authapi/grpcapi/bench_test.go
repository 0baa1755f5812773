package grpcapi_test

import (
	"testing"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"

	"sluice/authapi"
)

// What one connection costs, the network and the client's half included: go test -bench . -benchmem ./authapi/grpcapi

func BenchmarkShouldRateLimit(b *testing.B) {
	s := newService(b, func(c *authapi.Config) {
		edgeDomain(c)
		for i := range c.Limit.Policies {
			c.Limit.Policies[i].Rule.Limit = 1e12
		}
	})
	client := ratelimitv3.NewRateLimitServiceClient(s.conn)
	req := &ratelimitv3.RateLimitRequest{Domain: "edge", Descriptors: []*commonv3.RateLimitDescriptor{
		descriptor("remote_address", "192.0.2.1"), descriptor("path", "/api/v2/x"),
	}}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := client.ShouldRateLimit(b.Context(), req); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

func BenchmarkCheck(b *testing.B) {
	s := newService(b, func(c *authapi.Config) {
		routed(c)
		c.Limit.APIKey = rule(1e12)
	})
	client := authv3.NewAuthorizationClient(s.conn)
	req := asked{method: "GET", host: "x.example", path: "/events", headers: map[string]string{"x-api-key": s.key("events:read")}}.request()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := client.Check(b.Context(), req); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
