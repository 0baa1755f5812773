package bench

import (
	"math"
	"math/rand/v2"
	"time"
)

// schedule is when the requests of an open loop are meant to be sent: evenly, whatever became of those before.
type schedule struct {
	rate   float64 // requests a second, above 0
	length time.Duration
}

// count is how many requests are meant to be sent.
func (s schedule) count() int64 { return int64(math.Floor(s.rate*s.length.Seconds() + 1e-9)) }

// at is when the i-th of them, from 0, is meant to be sent, in nanoseconds after the start.
func (s schedule) at(i int64) int64 {
	// Whole seconds apart from the rest: a float64 has no nanosecond of an hour left at 10^6 requests a second.
	whole := math.Floor(float64(i) / s.rate)
	return int64(whole)*int64(time.Second) + int64((float64(i)-whole*s.rate)/s.rate*float64(time.Second))
}

// due is how many were meant to be sent after so many nanoseconds.
func (s schedule) due(elapsed int64) int64 {
	if elapsed < 0 {
		return 0
	}
	n := min(int64(float64(elapsed)/float64(time.Second)*s.rate)+1, s.count())
	for n > 0 && s.at(n-1) > elapsed {
		n--
	}
	for n < s.count() && s.at(n) <= elapsed {
		n++
	}
	return n
}

// Distributions of keys, users and addresses over requests.
const (
	Uniform = "uniform"
	Zipf    = "zipf"
)

// chooser gives one of n things for each request.
type chooser func() int

// newChooser makes a chooser for one worker. Under Zipf the k-th, from 0, is taken with a weight of (k+1)^-exponent.
func newChooser(n int, distribution string, exponent float64, random *rand.Rand) chooser {
	if n <= 1 {
		return func() int { return 0 }
	}
	if distribution == Zipf {
		z := rand.NewZipf(random, exponent, 1, uint64(n-1))
		return func() int { return int(z.Uint64()) }
	}
	return func() int { return random.IntN(n) }
}

// weighted gives the index of a weight for each request, in proportion.
func weighted(weights []int, random *rand.Rand) chooser {
	total := 0
	for _, w := range weights {
		total += w
	}
	if len(weights) <= 1 || total == 0 {
		return func() int { return 0 }
	}
	return func() int {
		n := random.IntN(total)
		for i, w := range weights {
			if n < w {
				return i
			}
			n -= w
		}
		return len(weights) - 1
	}
}
