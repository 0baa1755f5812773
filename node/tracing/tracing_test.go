package tracing_test

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"

	"sluice/node/tracing"
	"sluice/node/tracing/tracingtest"
)

func open(t *testing.T, change func(*tracing.Config)) *tracing.Tracing {
	t.Helper()
	cfg := tracing.Config{SampleOneIn: 1, Timeout: 5 * time.Second, Queue: 100, Cluster: "c", Node: "n1", Version: "v", Logger: slog.New(slog.DiscardHandler)}
	change(&cfg)
	tr, err := tracing.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func TestTracing_SendsAtTheEnd(t *testing.T) {
	t.Parallel()
	c := tracingtest.Start(t)
	tr := open(t, func(cfg *tracing.Config) {
		cfg.Endpoint, cfg.Headers = c.URL, map[string]string{"X-Team": "secret-of-the-collector"}
	})
	ctx, parent := tr.Tracer().Start(t.Context(), "outer")
	_, child := tr.Tracer().Start(ctx, "inner")
	child.End()
	parent.End()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := tr.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if err := tr.Close(ctx); err != nil {
		t.Errorf("closed twice: %v", err)
	}
	spans := c.Spans(parent.SpanContext().TraceID().String())
	if len(spans) != 2 || spans[0].Parent != spans[1].ID || spans[0].Node != "n1" {
		t.Errorf("spans %+v", spans)
	}
	if _, headers := c.Raw(); headers[0].Get("X-Team") != "secret-of-the-collector" {
		t.Errorf("headers %v", headers)
	}
	if s := tr.Stats(); s != (tracing.Stats{Sent: 2}) {
		t.Errorf("stats %+v", s)
	}
}

// A collector that hangs holds up nobody: what the queue has no room for is dropped and counted, and the end comes in time.
func TestTracing_CollectorHangs(t *testing.T) {
	t.Parallel()
	hung := make(chan struct{}, 100)
	over := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		hung <- struct{}{}
		<-over
	}))
	t.Cleanup(server.Close)
	t.Cleanup(func() { close(over) })
	const room = 4
	tr := open(t, func(cfg *tracing.Config) { cfg.Endpoint, cfg.Queue, cfg.Timeout = server.URL, room, time.Minute })
	end := func(n int) {
		for range n {
			_, s := tr.Tracer().Start(context.Background(), "s")
			s.End()
		}
	}
	end(1)
	select {
	case <-hung:
	case <-time.After(10 * time.Second):
		t.Fatal("nothing was sent")
	}
	end(room + 7)
	if s := tr.Stats(); s.Full != 7 || s.Waiting != room {
		t.Errorf("stats %+v, want %d waiting and 7 dropped", s, room)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	if err := tr.Close(ctx); err != nil {
		t.Logf("close: %v", err) // of the exporter, which may say so
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("closed in %v", took)
	}
	if s := tr.Stats(); s.Failed != room+1 || s.Sent != 0 {
		t.Errorf("stats %+v, want %d failed", s, room+1)
	}
}

func TestTracing_Samples(t *testing.T) {
	t.Parallel()
	c := tracingtest.Start(t)
	none := open(t, func(cfg *tracing.Config) { cfg.Endpoint, cfg.SampleOneIn = c.URL, 0 })
	_, root := none.Tracer().Start(t.Context(), "root")
	if root.IsRecording() {
		t.Error("a root is recorded though none is to be")
	}
	parent := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled, Remote: true})
	_, child := none.Tracer().Start(trace.ContextWithRemoteSpanContext(t.Context(), parent), "child")
	if !child.IsRecording() {
		t.Error("a sampled parent's child is not recorded")
	}
	_, other := none.Tracer().Start(trace.ContextWithRemoteSpanContext(t.Context(), parent.WithTraceFlags(0)), "child")
	if other.IsRecording() {
		t.Error("an unsampled parent's child is recorded")
	}
	if err := none.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}
