package bench

import (
	"slices"
	"time"
)

// recorder keeps the samples of one worker. It is the worker's own until all have ended.
type recorder struct {
	samples []Sample
	problem string // the first answer or error that has nothing to do with the limit
	told    told   // what the last answer said of the limit
}

func (r *recorder) add(s Sample, said told, problem string) {
	r.samples = append(r.samples, s)
	if s.Outcome == Admitted || s.Outcome == Refused {
		r.told = said
	}
	if r.problem == "" {
		r.problem = problem
	}
}

// merge puts the workers' samples together.
func merge(recorders []*recorder) (samples []Sample, problem string) {
	n := 0
	for _, r := range recorders {
		n += len(r.samples)
	}
	samples = make([]Sample, 0, n)
	for _, r := range recorders {
		samples = append(samples, r.samples...)
		if problem == "" {
			problem = r.problem
		}
	}
	return samples, problem
}

// Latency sums up how long answers of one kind took. The percentiles are exact: every answer is kept.
type Latency struct {
	Count     int   `json:"count"`
	P50Micros int64 `json:"p50_us"`
	P99Micros int64 `json:"p99_us"`
	MaxMicros int64 `json:"max_us"`
}

// latencyOf sums up the samples with an outcome, by the nearest rank.
func latencyOf(samples []Sample, outcome Outcome) Latency {
	var took []int64
	for i := range samples {
		if samples[i].Outcome == outcome {
			took = append(took, samples[i].Received-samples[i].Sent)
		}
	}
	if len(took) == 0 {
		return Latency{}
	}
	slices.Sort(took)
	rank := func(percent int) int64 { return took[(len(took)*percent+99)/100-1] }
	return Latency{Count: len(took), P50Micros: rank(50), P99Micros: rank(99), MaxMicros: took[len(took)-1]}
}

func millis(micros int64) float64 {
	return float64(micros) / float64(time.Millisecond/time.Microsecond)
}
