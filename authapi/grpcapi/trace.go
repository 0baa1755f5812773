package grpcapi

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// metadataCarrier reads a call's metadata. What is there twice is nobody's.
type metadataCarrier metadata.MD

func (m metadataCarrier) Get(key string) string {
	if values := metadata.MD(m).Get(key); len(values) == 1 {
		return values[0]
	}
	return ""
}
func (m metadataCarrier) Set(string, string) {}
func (m metadataCarrier) Keys() []string     { return nil }

// traced begins the span of a call, under the caller's: who may call is believed. The function that it returns ends it.
func (s *Server) traced(ctx context.Context, method string) (context.Context, func(error)) {
	if s.cfg.Tracer == nil || s.counts.cells[method] == nil {
		return ctx, func(error) {}
	}
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		ctx = propagation.TraceContext{}.Extract(ctx, metadataCarrier(md))
	}
	ctx, span := s.cfg.Tracer.Start(ctx, method[1:], trace.WithSpanKind(trace.SpanKindServer))
	return ctx, func(err error) {
		code := status.Code(err)
		span.SetAttributes(attribute.String("rpc.system", "grpc"), attribute.Int("rpc.grpc.status_code", int(code)))
		switch code {
		case codes.Unknown, codes.DeadlineExceeded, codes.Unimplemented, codes.Internal, codes.Unavailable, codes.DataLoss:
			span.SetStatus(otelcodes.Error, code.String())
		}
		span.End()
	}
}
