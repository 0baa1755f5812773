package bench

import (
	"context"
	"fmt"
	"math"
)

// search looks for the highest rate that holds: it goes up by half until one fails, or down by half until one holds, and
// then halves what is between.
type search struct {
	low, high float64 // the highest that held and the lowest that failed; 0: none
	next      float64
	trials    int
}

// Bounds of a search.
const (
	searchGrowth    = 1.5
	searchTolerance = 1.04 // high over low at which it ends
	searchTrials    = 24
	searchLowest    = 1.0
)

// note takes the result of trying s.next and says whether there is more to try.
func (s *search) note(held bool) (more bool) {
	s.trials++
	switch {
	case held:
		s.low = s.next
	default:
		s.high = s.next
	}
	switch {
	case s.high == 0:
		s.next = min(s.low*searchGrowth, MaxRate)
		more = s.low < MaxRate
	case s.low == 0:
		s.next = s.high / 2
		more = s.next >= searchLowest
	default:
		s.next = math.Sqrt(s.low * s.high)
		more = s.high/s.low > searchTolerance
	}
	// Three digits are easier to read and to ask for again.
	unit := math.Pow(10, math.Floor(math.Log10(s.next))-2)
	s.next = math.Round(s.next/unit) * unit
	if s.next > 1 {
		s.next = math.Round(s.next*100) / 100
	}
	return more && s.trials < searchTrials && s.next != s.low && s.next != s.high
}

// A rate holds when its p99 does and hardly anything fails.
const (
	maxFailedShare = 0.001
	minKeptShare   = 0.99 // of the requests that were due
)

// fails says why a step does not hold the bound, "" where it does.
func fails(s *Step, boundMicros float64) string {
	due := float64(s.Requests + s.Unsent)
	switch {
	case s.Requests == 0:
		return "nothing was answered"
	case float64(s.Failed) > maxFailedShare*float64(s.Requests):
		return fmt.Sprintf("%d of %d requests failed", s.Failed, s.Requests)
	case float64(s.Unsent) > (1-minKeptShare)*due:
		return fmt.Sprintf("%d of %.0f requests were never sent", s.Unsent, due)
	case s.Latency.P99Micros > boundMicros:
		return "p99 " + millisText(s.Latency.P99Micros)
	}
	return ""
}

// findMax searches, beginning with the rate that was given, or with half of what a closed loop reaches.
func (l *Load) findMax(ctx context.Context, g *generator, report *LoadReport) error {
	s := &search{}
	if len(l.Rates) > 0 {
		s.next = l.Rates[0]
	} else {
		closed, err := g.step(ctx, 0, 1)
		if err != nil {
			return err
		}
		if closed.Admitted+closed.Refused == 0 {
			report.Steps = append(report.Steps, *closed)
			return nil // silent tells it
		}
		s.next = min(math.Max(math.Round(closed.Throughput/2), searchLowest), MaxRate)
		report.Notes = append(report.Notes, fmt.Sprintf("a closed loop of %d reached %.0f/s", l.Concurrency, closed.Throughput))
	}
	m := &MaxRateOf{BoundMicros: float64(l.MaxP99.Microseconds())}
	report.Max = m
	for more := true; more; {
		rate := s.next
		step, err := g.step(ctx, rate, 1)
		if err != nil {
			return err
		}
		report.Steps = append(report.Steps, *step)
		why := fails(step, m.BoundMicros)
		more = s.note(why == "")
		if why != "" && rate == s.high {
			m.Why = why
		}
		m.Rate, m.FailedRate, m.Trials = s.low, s.high, s.trials
	}
	return nil
}
