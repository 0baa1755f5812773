package bench

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Histograms hold nanoseconds with three digits, from 100 ns to two minutes; what is longer counts as two minutes.
const (
	histogramLow    = int64(100)
	histogramHigh   = int64(2 * time.Minute)
	histogramDigits = 3
)

func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(histogramLow, histogramHigh, histogramDigits)
}

func record(h *hdrhistogram.Histogram, nanos int64) {
	// What is within the bounds cannot fail.
	_ = h.RecordValue(min(max(nanos, 0), histogramHigh))
}

// counts sums up answers of one kind of requests.
type counts struct {
	latency  *hdrhistogram.Histogram // from the intended time of sending
	service  *hdrhistogram.Histogram // from sending
	admitted int64
	refused  int64
	failed   int64
	errors   map[string]*ErrorCount
}

func newCounts() *counts {
	return &counts{latency: newHistogram(), service: newHistogram(), errors: make(map[string]*ErrorCount)}
}

// note counts one answer or failure.
func (t *counts) note(latency, service int64, o outcome) {
	record(t.latency, latency)
	record(t.service, service)
	switch {
	case o.kind == "" && !o.refused:
		t.admitted++
	case o.kind == "":
		t.refused++
	default:
		t.failed++
		e := t.errors[o.kind]
		if e == nil {
			e = &ErrorCount{Kind: o.kind, Example: o.example()}
			t.errors[o.kind] = e
		}
		e.Count++
	}
}

func (t *counts) merge(from *counts) {
	t.latency.Merge(from.latency)
	t.service.Merge(from.service)
	t.admitted += from.admitted
	t.refused += from.refused
	t.failed += from.failed
	for kind, e := range from.errors {
		if mine := t.errors[kind]; mine != nil {
			mine.Count += e.Count
		} else {
			t.errors[kind] = &ErrorCount{Kind: kind, Count: e.Count, Example: e.Example}
		}
	}
}

func (t *counts) reset() {
	t.latency.Reset()
	t.service.Reset()
	t.admitted, t.refused, t.failed = 0, 0, 0
	clear(t.errors)
}

func (t *counts) requests() int64 { return t.admitted + t.refused + t.failed }

// list is the errors, the most frequent first.
func (t *counts) list() []ErrorCount {
	list := []ErrorCount{}
	for _, kind := range slices.Sorted(maps.Keys(t.errors)) {
		list = append(list, *t.errors[kind])
	}
	slices.SortStableFunc(list, func(a, b ErrorCount) int { return cmp.Compare(b.Count, a.Count) })
	return list
}

// countSet holds the counts of all nodes and of all operations. Those of operations are nil where there is only one.
type countSet struct {
	nodes, operations []*counts
	late              *hdrhistogram.Histogram // sending after the intended time
}

func newCountSet(nodes, operations int) *countSet {
	s := &countSet{late: newHistogram()}
	for range nodes {
		s.nodes = append(s.nodes, newCounts())
	}
	for range operations {
		if operations > 1 {
			s.operations = append(s.operations, newCounts())
		}
	}
	return s
}

func (s *countSet) merge(from *countSet) {
	for i := range s.nodes {
		s.nodes[i].merge(from.nodes[i])
	}
	for i := range s.operations {
		s.operations[i].merge(from.operations[i])
	}
	s.late.Merge(from.late)
}

func (s *countSet) reset() {
	for _, t := range s.nodes {
		t.reset()
	}
	for _, t := range s.operations {
		t.reset()
	}
	s.late.Reset()
}

// total is the sum over all nodes.
func (s *countSet) total() *counts {
	sum := newCounts()
	for _, t := range s.nodes {
		sum.merge(t)
	}
	return sum
}

// lane is where a few workers note what happened. There are some more lanes than cores: one for each worker would fill the
// caches, and one for all would be waited for.
type lane struct {
	mu      sync.Mutex
	filling *countSet // guarded by mu
	spare   *countSet // the collector's
}

func (l *lane) note(node, operation int, intended, sent, done int64, o outcome) {
	l.mu.Lock()
	l.filling.nodes[node].note(done-intended, done-sent, o)
	if l.filling.operations != nil {
		l.filling.operations[operation].note(done-intended, done-sent, o)
	}
	record(l.filling.late, sent-intended)
	l.mu.Unlock()
}

// take moves what has been noted into sum.
func (l *lane) take(sum *countSet) {
	l.mu.Lock()
	l.filling, l.spare = l.spare, l.filling
	l.mu.Unlock()
	sum.merge(l.spare)
	l.spare.reset()
}

// micros of nanoseconds, for reports.
func micros(nanos float64) float64 { return nanos / 1e3 }

func quantilesOf(h *hdrhistogram.Histogram) Quantiles {
	if h.TotalCount() == 0 {
		return Quantiles{}
	}
	at := func(q float64) float64 { return micros(float64(h.ValueAtQuantile(q))) }
	return Quantiles{
		Count: h.TotalCount(), MeanMicros: micros(h.Mean()), P50Micros: at(50), P90Micros: at(90), P99Micros: at(99), P999Micros: at(99.9),
		MaxMicros: micros(float64(h.Max())),
	}
}

// curve is the latency by percentile, denser towards 100.
func curve(latency, service *hdrhistogram.Histogram) []PercentilePoint {
	if latency.TotalCount() == 0 {
		return nil
	}
	var points []PercentilePoint
	for rest := 1.0; ; rest /= 1.3 {
		q := 100 * (1 - rest)
		points = append(points, PercentilePoint{
			Percentile: q, LatencyMicros: micros(float64(latency.ValueAtQuantile(q))), ServiceMicros: micros(float64(service.ValueAtQuantile(q))),
		})
		if rest*float64(latency.TotalCount()) <= 1 {
			return points
		}
	}
}
