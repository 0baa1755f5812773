package node

import (
	"context"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"sluice/node/tracing"
)

// tracingStop bounds the sending of the last spans when the node ends.
const tracingStop = 2 * time.Second

// openTracing starts to trace, where that is on.
func (n *Node) openTracing() error {
	c := n.cfg.Tracing
	if c.Endpoint == "" {
		return nil
	}
	headers, err := c.headers()
	if err != nil {
		return err
	}
	roots, err := c.roots()
	if err != nil {
		return err
	}
	n.tracing, err = tracing.Open(tracing.Config{
		Endpoint: c.Endpoint, Headers: headers, RootCAs: roots, SampleOneIn: c.SampleOneIn, Timeout: time.Duration(c.Timeout), Queue: c.Queue,
		Cluster: n.cfg.Cluster, Node: n.data.NodeID, Version: n.opts.version, Logger: n.log.With("component", "tracing"),
	})
	return err
}

// tracer is what spans begin at, nil where nothing is traced.
func (n *Node) tracer() trace.Tracer {
	if n.tracing == nil {
		return nil
	}
	return n.tracing.Tracer()
}

// traceStats are all zero where nothing is traced.
func (n *Node) traceStats() tracing.Stats {
	if n.tracing == nil {
		return tracing.Stats{}
	}
	return n.tracing.Stats()
}

// closeTracing sends the last spans.
func (n *Node) closeTracing() {
	if n.tracing == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), tracingStop)
	defer cancel()
	if err := n.tracing.Close(ctx); err != nil {
		n.log.Warn("the last spans were not sent", "component", "tracing", "error", err)
	}
}

var traceContext propagation.TraceContext

// spanWithin begins a span below that of ctx, if that one is recorded here. The function that it returns ends it. What is done for nobody's
// request has no span.
func spanWithin(ctx context.Context, name string, options ...trace.SpanStartOption) (context.Context, func(error)) {
	parent := trace.SpanFromContext(ctx)
	if !parent.IsRecording() {
		return ctx, func(error) {}
	}
	ctx, span := parent.TracerProvider().Tracer("sluice").Start(ctx, name, options...)
	return ctx, func(err error) {
		if err != nil {
			span.SetStatus(codes.Error, "") // the error may hold what a client sent
		}
		span.End()
	}
}

// traceCall begins the span of a call to a peer and has the request carry the trace, recorded or not.
func traceCall(req *http.Request) (*http.Request, func(error)) {
	if !trace.SpanContextFromContext(req.Context()).IsValid() {
		return req, func(error) {}
	}
	ctx, ended := spanWithin(req.Context(), "call "+req.URL.Path, trace.WithSpanKind(trace.SpanKindClient),
		trace.WithAttributes(attribute.String("sluice.peer", req.URL.Host)))
	traceContext.Inject(ctx, propagation.HeaderCarrier(req.Header))
	return req.WithContext(ctx), ended
}

// traceServed begins the span of a peer's call that belongs to a trace. Peers are believed.
func (s *rpcServer) traceServed(ctx context.Context, r *http.Request) (context.Context, func()) {
	if s.tracer == nil || r.Header.Get("Traceparent") == "" {
		return ctx, func() {}
	}
	ctx = traceContext.Extract(ctx, propagation.HeaderCarrier(r.Header))
	if !trace.SpanContextFromContext(ctx).IsValid() {
		return ctx, func() {}
	}
	ctx, span := s.tracer.Start(ctx, "serve "+r.URL.Path, trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(attribute.String("sluice.peer", s.caller(r.WithContext(ctx)))))
	return ctx, func() { span.End() }
}

var traceMetrics = []metric{
	{"sluice_trace_spans_sent_total", kindCounter, "Spans that the collector took.", one(func(s *scrape) float64 { return float64(s.n.traceStats().Sent) })},
	{"sluice_trace_spans_dropped_total", kindCounter, "Spans dropped: the queue was full, or their batch could not be sent.", func(s *scrape, out *samples) {
		stats := s.n.traceStats()
		out.add("", `reason="full"`, float64(stats.Full))
		out.add("", `reason="failed"`, float64(stats.Failed))
	}},
	{"sluice_trace_send_failures_total", kindCounter, "Batches of spans that could not be sent.", one(func(s *scrape) float64 { return float64(s.n.traceStats().Failures) })},
	{"sluice_trace_queue_length", kindGauge, "Spans that wait to be sent.", one(func(s *scrape) float64 { return float64(s.n.traceStats().Waiting) })},
}
