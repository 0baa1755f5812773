// Package tracing records spans of OpenTelemetry and sends them to a collector, as OTLP over HTTP. Open starts it, Tracer is what
// spans begin at.
//
// Nothing that is traced waits for the collector: spans go through a bounded queue, and what finds it full is dropped and counted. The
// SDK's own batch processor does the same, but does not tell how many it dropped.
package tracing

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

const (
	// batchMost is how many spans are sent at once, batchWait how long the first of them waits for others.
	batchMost = 512
	batchWait = time.Second
	// complainEvery is how often the log tells of a collector that does not answer.
	complainEvery = time.Minute
)

// Config is what Open needs.
type Config struct {
	// Endpoint is the collector's URL, http or https. A path that is missing is /v1/traces.
	Endpoint string
	Headers  map[string]string // sent with every batch; secrets
	RootCAs  *x509.CertPool    // nil: the system's
	// SampleOneIn has one in so many traces recorded that no parent decides on; 1: all, 0: none.
	SampleOneIn int64
	Timeout     time.Duration // of one batch
	Queue       int           // spans that wait to be sent, at most
	// What the spans are said to come from.
	Cluster, Node, Version string
	Logger                 *slog.Logger
}

// Tracing is what sends spans. All methods are safe for concurrent use.
type Tracing struct {
	provider *sdktrace.TracerProvider
	queue    *queue
}

// Open starts it. A collector that is not there is no error.
func Open(cfg Config) (*Tracing, error) {
	options := []otlptracehttp.Option{
		otlptracehttp.WithEndpointURL(cfg.Endpoint),
		otlptracehttp.WithHeaders(cfg.Headers), // also where there are none: else the process's environment would name some
		otlptracehttp.WithTimeout(cfg.Timeout),
		otlptracehttp.WithCompression(otlptracehttp.GzipCompression),
		// A batch that fails is dropped: trying again would hold up those behind it.
		otlptracehttp.WithRetry(otlptracehttp.RetryConfig{}),
	}
	if cfg.RootCAs != nil {
		options = append(options, otlptracehttp.WithTLSClientConfig(&tls.Config{RootCAs: cfg.RootCAs, MinVersion: tls.VersionTLS12}))
	}
	exporter, err := otlptracehttp.New(context.Background(), options...)
	if err != nil {
		return nil, fmt.Errorf("open tracing: %w", err)
	}
	sampler := sdktrace.NeverSample()
	if cfg.SampleOneIn > 0 {
		sampler = sdktrace.TraceIDRatioBased(1 / float64(cfg.SampleOneIn))
	}
	q := newQueue(exporter, cfg)
	return &Tracing{
		queue: q,
		provider: sdktrace.NewTracerProvider(
			sdktrace.WithSampler(sdktrace.ParentBased(sampler)),
			sdktrace.WithSpanProcessor(q),
			sdktrace.WithResource(resource.NewSchemaless(
				attribute.String("service.name", "sluice"), attribute.String("service.namespace", cfg.Cluster),
				attribute.String("service.instance.id", cfg.Node), attribute.String("service.version", cfg.Version),
			)),
		),
	}, nil
}

// Tracer is what spans begin at.
func (t *Tracing) Tracer() trace.Tracer { return t.provider.Tracer("sluice") }

// Stats are what became of spans since Open.
type Stats struct {
	Sent     uint64 // spans that the collector took
	Full     uint64 // spans dropped since the queue was full
	Failed   uint64 // spans dropped since their batch could not be sent
	Failures uint64 // batches that could not be sent
	Waiting  int    // spans in the queue now
}

// Stats counts.
func (t *Tracing) Stats() Stats {
	q := t.queue
	return Stats{Sent: q.sent.Load(), Full: q.full.Load(), Failed: q.failed.Load(), Failures: q.failures.Load(), Waiting: len(q.spans)}
}

// Close sends what waits until ctx ends. It may be called more than once.
func (t *Tracing) Close(ctx context.Context) error {
	if err := t.provider.Shutdown(ctx); err != nil {
		return fmt.Errorf("close tracing: %w", err)
	}
	return nil
}

// queue is the SDK's processor of spans that have ended.
type queue struct {
	exporter sdktrace.SpanExporter
	timeout  time.Duration
	log      *slog.Logger
	spans    chan sdktrace.ReadOnlySpan

	sent, full, failed, failures atomic.Uint64
	complained                   time.Time // run's own

	stop    context.Context // ends when nothing more comes
	end     context.CancelFunc
	abort   context.Context // ends when nothing more may be sent
	give    context.CancelFunc
	stopped chan struct{}
	once    sync.Once
	err     error
}

func newQueue(exporter sdktrace.SpanExporter, cfg Config) *queue {
	q := &queue{exporter: exporter, timeout: cfg.Timeout, log: cfg.Logger, spans: make(chan sdktrace.ReadOnlySpan, cfg.Queue), stopped: make(chan struct{})}
	q.stop, q.end = context.WithCancel(context.Background())
	q.abort, q.give = context.WithCancel(context.Background())
	go q.run()
	return q
}

// OnStart implements sdktrace.SpanProcessor.
func (q *queue) OnStart(context.Context, sdktrace.ReadWriteSpan) {}

// OnEnd implements sdktrace.SpanProcessor. It never waits.
func (q *queue) OnEnd(s sdktrace.ReadOnlySpan) {
	if !s.SpanContext().IsSampled() {
		return
	}
	select {
	case q.spans <- s:
	default:
		q.full.Add(1)
	}
}

// ForceFlush implements sdktrace.SpanProcessor; the queue empties by itself.
func (q *queue) ForceFlush(context.Context) error { return nil }

// Shutdown implements sdktrace.SpanProcessor.
func (q *queue) Shutdown(ctx context.Context) error {
	q.once.Do(func() {
		q.end()
		select {
		case <-q.stopped:
		case <-ctx.Done():
		}
		q.give()
		<-q.stopped
		q.err = q.exporter.Shutdown(context.WithoutCancel(ctx))
	})
	return q.err
}

// run sends batches until Shutdown, and then what is left.
func (q *queue) run() {
	defer close(q.stopped)
	batch := make([]sdktrace.ReadOnlySpan, 0, batchMost)
	for {
		batch = batch[:0]
		select {
		case s := <-q.spans:
			batch = append(batch, s)
		case <-q.stop.Done():
			select {
			case s := <-q.spans:
				batch = append(batch, s)
			default:
				return
			}
		}
		q.send(q.fill(batch))
	}
}

// fill adds to a batch what comes while it waits.
func (q *queue) fill(batch []sdktrace.ReadOnlySpan) []sdktrace.ReadOnlySpan {
	timer := time.NewTimer(batchWait)
	defer timer.Stop()
	for len(batch) < batchMost {
		select {
		case s := <-q.spans:
			batch = append(batch, s)
			continue
		default:
		}
		select {
		case s := <-q.spans:
			batch = append(batch, s)
		case <-timer.C:
			return batch
		case <-q.stop.Done():
			return batch
		}
	}
	return batch
}

func (q *queue) send(batch []sdktrace.ReadOnlySpan) {
	ctx, cancel := context.WithTimeout(q.abort, q.timeout)
	defer cancel()
	err := q.exporter.ExportSpans(ctx, batch)
	if err == nil {
		q.sent.Add(uint64(len(batch)))
		return
	}
	q.failures.Add(1)
	q.failed.Add(uint64(len(batch)))
	if now := time.Now(); now.Sub(q.complained) >= complainEvery && !errors.Is(err, context.Canceled) {
		q.complained = now
		q.log.Warn("spans could not be sent to the collector", "error", err)
	}
}
