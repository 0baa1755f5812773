package bench

import (
	"math/rand/v2"
	"testing"
	"time"
)

func TestSchedule_IsEven(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		rate   float64
		length time.Duration
		count  int64
	}{
		{1, time.Second, 1}, {0.1, 10 * time.Second, 1}, {3, 2 * time.Second, 6}, {1000, time.Second, 1000}, {999_983, time.Hour, 999_983 * 3600},
		{0.5, time.Second, 0},
	} {
		s := schedule{test.rate, test.length}
		if got := s.count(); got != test.count {
			t.Errorf("%v for %v: %d requests, want %d", test.rate, test.length, got, test.count)
		}
		if got := s.due(-1); got != 0 {
			t.Errorf("%v: %d due before the start", s, got)
		}
		for _, i := range []int64{0, 1, 2, test.count / 3, test.count - 2, test.count - 1} {
			if i < 0 || i >= test.count {
				continue
			}
			at := s.at(i)
			want := float64(i) / test.rate * 1e9
			if diff := float64(at) - want; diff > 2 || diff < -2 {
				t.Errorf("%v: request %d is meant for %d ns, want %.0f", s, i, at, want)
			}
			if got := s.due(at); got != i+1 {
				t.Errorf("%v: %d due at the time of request %d", s, got, i)
			}
			if at > 0 && s.due(at-1) != i {
				t.Errorf("%v: %d due a moment before request %d", s, s.due(at-1), i)
			}
		}
		if got := s.due(test.length.Nanoseconds() * 2); got != test.count {
			t.Errorf("%v: %d due after the end, want %d", s, got, test.count)
		}
	}
}

func TestChooser_Distributions(t *testing.T) {
	t.Parallel()
	const n, draws, seed = 50, 200_000, 7
	random := rand.New(rand.NewPCG(seed, 0))
	counts := func(c chooser) []int {
		got := make([]int, n)
		for range draws {
			got[c()]++
		}
		return got
	}
	for i, c := range counts(newChooser(n, Uniform, 0, random)) {
		if c < draws/n*8/10 || c > draws/n*12/10 {
			t.Errorf("seed %d: uniform chose %d %d times of %d", seed, i, c, draws)
		}
	}
	zipf := counts(newChooser(n, Zipf, 1.5, random))
	// Weights are (k+1)^-1.5: the first has 2^1.5 = 2.83 times the share of the second.
	if ratio := float64(zipf[0]) / float64(zipf[1]); ratio < 2.6 || ratio > 3.1 {
		t.Errorf("seed %d: zipf chose the first %.2f times as often as the second, want 2.83", seed, ratio)
	}
	weights := counts(weighted([]int{70, 0, 30}, random))
	if share := float64(weights[0]) / draws; share < 0.68 || share > 0.72 || weights[1] != 0 || weights[0]+weights[2] != draws {
		t.Errorf("seed %d: weights 70, 0, 30 gave %v", seed, weights[:3])
	}
}

func TestAddresses_AreDistinctAndValid(t *testing.T) {
	t.Parallel()
	l := &Load{Seed: addressSpace - 3}
	seen := make(map[uint32]bool)
	for i := range 10 {
		a := l.address(i)
		if a>>28 != 15 || a == 0xffffffff || seen[a] {
			t.Errorf("address %d is %s", i, appendAddress(nil, a))
		}
		seen[a] = true
	}
	if got := string(appendAddress(nil, 240<<24+1<<16+2<<8+3)); got != "240.1.2.3" {
		t.Errorf("got %s", got)
	}
}
