package histogram_test

import (
	"slices"
	"sync"
	"testing"
	"time"

	"sluice/authapi/histogram"
)

func TestHistogram_Buckets(t *testing.T) {
	t.Parallel()
	h := histogram.New([]time.Duration{time.Millisecond, time.Second})
	for i, d := range []time.Duration{-time.Second, 0, time.Millisecond, time.Millisecond + 1, time.Second, time.Second + 1, time.Hour} {
		h.Observe(uint8(i*37), d) // any stripe will do
	}
	got := h.Read()
	if want := []uint64{3, 2, 2}; !slices.Equal(got.Counts, want) {
		t.Errorf("counts %v, want %v", got.Counts, want)
	}
	if want := 2*time.Millisecond + 2*time.Second + 2 + time.Hour; got.Sum != want {
		t.Errorf("sum %v, want %v", got.Sum, want)
	}
}

func TestHistogram_Concurrent(t *testing.T) {
	t.Parallel()
	h := histogram.New(histogram.Bounds)
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			for range 1000 {
				h.Observe(uint8(g), time.Millisecond)
			}
		})
	}
	wg.Wait()
	var n uint64
	for _, c := range h.Read().Counts {
		n += c
	}
	if sum := h.Read().Sum; n != 16_000 || sum != 16*time.Second {
		t.Errorf("%d counted, %v in all", n, sum)
	}
}

func TestHistogram_ObserveAllocatesNothing(t *testing.T) {
	h := histogram.New(histogram.Bounds)
	if n := testing.AllocsPerRun(100, func() { h.Observe(3, time.Second) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestBounds_Rise(t *testing.T) {
	t.Parallel()
	for _, bounds := range [][]time.Duration{histogram.Bounds, histogram.SlowBounds} {
		histogram.New(bounds)
		if !slices.IsSorted(bounds) {
			t.Errorf("%v", bounds)
		}
	}
}

func BenchmarkObserve(b *testing.B) {
	h := histogram.New(histogram.Bounds)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			h.Observe(1, 80*time.Microsecond)
		}
	})
}
