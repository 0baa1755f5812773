package authapi

import (
	"context"
	"log/slog"
	"maps"
	"net/http"

	"github.com/valyala/fasthttp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"sluice/limiter"
)

// Traces leave the cluster for a system of its own, with rights of its own. So a span says what was asked and decided, by names of the
// configuration, and never who asked: no address, no user, organization, session or key, no path, query or header of the client's. The
// audit log has who; the request id leads from one to the other.

// traceContext reads and writes W3C's headers, traceparent and tracestate.
var traceContext propagation.TraceContext

// requestCarrier reads them from a request. A traceparent that is there twice is nobody's.
type requestCarrier struct{ h *fasthttp.RequestHeader }

func (r requestCarrier) Get(key string) string {
	if lines := r.h.PeekAll(key); len(lines) == 1 {
		return string(lines[0])
	}
	return ""
}
func (r requestCarrier) Set(string, string) {}
func (r requestCarrier) Keys() []string     { return nil }

// beginSpan begins the request's span where requests are traced. A trusted proxy's trace goes on. Anybody else's would let the client
// decide what is recorded: a new trace begins, which names the other.
func (c *call) beginSpan() {
	if c.srv.cfg.Tracer == nil {
		return
	}
	ctx := context.Background()
	options := []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindServer)}
	theirs := trace.SpanContextFromContext(traceContext.Extract(ctx, requestCarrier{&c.ctx.Request.Header}))
	switch {
	case !theirs.IsValid():
	case c.client.trusted:
		ctx = trace.ContextWithRemoteSpanContext(ctx, theirs)
	default:
		options = append(options, trace.WithLinks(trace.Link{SpanContext: theirs}))
	}
	c.traced, _ = c.srv.cfg.Tracer.Start(ctx, "request", options...)
}

// endSpan names the span, by the route and not by what the client wrote, and ends it with the answer's header: a body that follows
// belongs to the upstream.
func (c *call) endSpan() {
	if c.traced == nil {
		return
	}
	span := trace.SpanFromContext(c.traced)
	if !span.IsRecording() {
		return
	}
	route, method := "none", methodName(c.ctx.Method())
	if c.route != nil {
		route = c.route.pattern
	}
	if c.target != nil && c.route != nil && c.route.verify == 0 {
		route = c.target.name
	}
	status := c.ctx.Response.StatusCode()
	span.SetName(method + " " + route)
	span.SetAttributes(
		attribute.String("http.request.method", method), attribute.String("http.route", route), attribute.Int("http.response.status_code", status),
		attribute.String("sluice.auth.method", string(c.principal.Method)), attribute.String("sluice.request_id", string(c.idBuf[:c.idLen])),
	)
	if c.target != nil {
		span.SetAttributes(attribute.String("sluice.route", c.target.name))
	}
	if d := c.decision; d.charged {
		outcome, all, refused := "admitted", []string{}, []string{}
		for i := range d.n {
			all = append(all, d.policies[i].name)
			switch d.verdicts[i].Outcome {
			case limiter.Refused:
				outcome, refused = "refused", append(refused, d.policies[i].name)
			case limiter.Undecided:
				if outcome == "admitted" {
					outcome = "undecided"
				}
			}
		}
		span.SetAttributes(attribute.String("sluice.limit.outcome", outcome), attribute.StringSlice("sluice.limit.policies", all))
		if len(refused) > 0 {
			span.SetAttributes(attribute.StringSlice("sluice.limit.refused_by", refused))
		}
	}
	if status >= http.StatusInternalServerError {
		span.SetStatus(codes.Error, "")
	}
	span.End()
}

// traceProblem says in the span what the answer's problem is.
func (c *call) traceProblem(p *Problem) {
	if c.traced != nil {
		trace.SpanFromContext(c.traced).SetAttributes(attribute.String("error.type", p.Code))
	}
}

// logIDs are what a line of the log about the request has to find it by.
func (c *call) logIDs() slog.Attr {
	ids := []any{slog.String("request_id", string(c.idBuf[:c.idLen]))}
	if c.traced != nil {
		ids = append(ids, slog.String("trace_id", trace.SpanContextFromContext(c.traced).TraceID().String()))
	}
	return slog.Group("", ids...) // without a name: they stand beside the others
}

// traceAttempt begins the span of an attempt at an upstream and has the request carry it. The function that it returns ends it.
func (x *exchange) traceAttempt(out *outgoing, u *upstream) func(*http.Response, error) {
	if x.traced == nil {
		return func(*http.Response, error) {}
	}
	ctx, span := x.srv.cfg.Tracer.Start(x.traced, "upstream "+x.route.name, trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(
		attribute.String("http.request.method", methodName([]byte(out.method))), attribute.String("sluice.route", x.route.name),
		attribute.String("server.address", u.host),
	))
	// A copy: net/http may still be writing the attempt before this one.
	out.header = maps.Clone(out.header)
	out.header.Del("Tracestate") // of a trace that may be another one
	traceContext.Inject(ctx, propagation.HeaderCarrier(out.header))
	return func(resp *http.Response, err error) {
		if err != nil {
			span.SetStatus(codes.Error, "no answer") // the error may hold addresses
		} else {
			span.SetAttributes(attribute.Int("http.response.status_code", resp.StatusCode))
			if resp.StatusCode >= http.StatusInternalServerError {
				span.SetStatus(codes.Error, "")
			}
		}
		span.End()
	}
}

// methodName is a method of the standards, "_OTHER" for what a client made up.
func methodName(method []byte) string {
	switch name := string(method); name {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions,
		http.MethodConnect, http.MethodTrace:
		return name
	}
	return "_OTHER"
}
