// Package histogram counts how long things take in buckets of fixed bounds, as Prometheus' histograms do. Observe takes no lock and
// allocates nothing: counts are atomic and spread over stripes, so that requests on different processors rarely write to one cache
// line. Read sums them up.
package histogram

import (
	"sync/atomic"
	"time"
)

// Stripes is how many sets of counters a Histogram has. It is a power of two.
const Stripes = 8

// maxBounds is the most bounds that a Histogram may have.
const maxBounds = 18

// Bounds for what takes a part of a millisecond where all is well: requests.
var Bounds = []time.Duration{
	50 * time.Microsecond, 100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond,
	time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second,
}

// SlowBounds for what takes milliseconds to minutes: the disk, passwords, snapshots.
var SlowBounds = []time.Duration{
	500 * time.Microsecond, time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond,
	50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2500 * time.Millisecond,
	5 * time.Second, 10 * time.Second, 30 * time.Second, time.Minute,
}

// Histogram counts durations. All methods are safe for concurrent use.
type Histogram struct {
	bounds  []time.Duration
	stripes [Stripes]stripe
}

// stripe ends on a cache line's end, so that no two share one.
type stripe struct {
	counts [maxBounds + 1]atomic.Uint64
	nanos  atomic.Int64
	_      [32]byte
}

// New makes a Histogram. bounds are the buckets' upper ends, rising, 18 at most; it is kept.
func New(bounds []time.Duration) *Histogram {
	if len(bounds) > maxBounds {
		panic("histogram: too many bounds")
	}
	return &Histogram{bounds: bounds}
}

// Observe counts d in one of the stripes, any number. A negative d, as a clock that is set back gives, counts as 0.
func (h *Histogram) Observe(in uint8, d time.Duration) {
	d = max(d, 0)
	s := &h.stripes[in%Stripes]
	i := 0
	for i < len(h.bounds) && d > h.bounds[i] {
		i++
	}
	s.counts[i].Add(1)
	s.nanos.Add(int64(d))
}

// Reading is what a Histogram has counted.
type Reading struct {
	Bounds []time.Duration
	Counts []uint64 // by bucket, not summed up; the last is of what is above all bounds
	Sum    time.Duration
}

// Read sums the stripes up. What is observed meanwhile may be in the counts and not yet in the sum.
func (h *Histogram) Read() Reading {
	r := Reading{Bounds: h.bounds, Counts: make([]uint64, len(h.bounds)+1)}
	for i := range h.stripes {
		s := &h.stripes[i]
		for j := range r.Counts {
			r.Counts[j] += s.counts[j].Load()
		}
		r.Sum += time.Duration(s.nanos.Load())
	}
	return r
}
