package grpcapi_test

import (
	"testing"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/grpc/metadata"

	"sluice/authapi/grpcapi"
)

// A call is a span of its caller's trace, and counted among the method's durations.
func TestTrace_Call(t *testing.T) {
	t.Parallel()
	ended := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(ended))
	s := newService(t, nil, func(c *grpcapi.Config) { c.Tracer = provider.Tracer("test") })
	const trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	ctx := metadata.AppendToOutgoingContext(within(t), "traceparent", "00-"+trace+"-"+parent+"-01")
	if _, err := ratelimitv3.NewRateLimitServiceClient(s.conn).ShouldRateLimit(ctx, &ratelimitv3.RateLimitRequest{
		Domain: "d", Descriptors: []*commonv3.RateLimitDescriptor{{Entries: []*commonv3.RateLimitDescriptor_Entry{{Key: "user", Value: "made-up-person"}}}},
	}); err != nil {
		t.Fatal(err)
	}
	const method = "envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
	spans := ended.Ended()
	if len(spans) != 1 || spans[0].Name() != method || spans[0].SpanContext().TraceID().String() != trace || spans[0].Parent().SpanID().String() != parent {
		t.Fatalf("spans %+v", spans)
	}
	for _, d := range s.server.Durations() {
		var n uint64
		for _, c := range d.Reading.Counts {
			n += c
		}
		if want := uint64(0); d.Method == method && n != 1 || d.Method != method && n != want {
			t.Errorf("%d calls of %s timed", n, d.Method)
		}
	}
}
