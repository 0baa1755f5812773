package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
)

// Figure is one figure of a report, measured several times.
type Figure struct {
	Name   string
	Higher bool // is better; else lower is
	// Values are those of rounds, all above 0.
	Values []float64
}

// FiguresIn reads the figures of a report in JSON that can be compared: throughput and latencies of each rate of a load,
// ratios of peers. seconds says that there were too few rounds, and each second of a load stands for one. Errors say what
// is wrong with the report.
func FiguresIn(data []byte) (samples []Figure, seconds bool, err error) {
	var head struct {
		Kind   string `json:"kind"`
		Schema int    `json:"schema"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return nil, false, fmt.Errorf("read the report: %w", err)
	}
	if head.Schema != SchemaReport {
		return nil, false, fmt.Errorf("the report has schema %d, want %d", head.Schema, SchemaReport)
	}
	switch head.Kind {
	case KindLoad:
		var report LoadReport
		if err := json.Unmarshal(data, &report); err != nil {
			return nil, false, fmt.Errorf("read the report: %w", err)
		}
		samples, seconds = report.samples()
	case KindPeers:
		var report PeersReport
		if err := json.Unmarshal(data, &report); err != nil {
			return nil, false, fmt.Errorf("read the report: %w", err)
		}
		samples = report.samples()
	default:
		return nil, false, fmt.Errorf("a report of the kind %q has nothing to compare by ratio", head.Kind)
	}
	samples = slices.DeleteFunc(samples, func(s Figure) bool { return len(s.Values) == 0 })
	if len(samples) == 0 {
		return nil, false, errors.New("the report holds no figures: nothing was answered")
	}
	return samples, seconds, nil
}

// enoughRounds is how many values a figure needs for an interval that means something.
const enoughRounds = 3

// samples groups steps by their rate, in the order in which they appear.
func (r *LoadReport) samples() (samples []Figure, seconds bool) {
	type kind struct {
		rate   float64
		beside string
	}
	var kinds []kind
	rounds := make(map[kind][]*Step)
	for i := range r.Steps {
		s := &r.Steps[i]
		k := kind{rate: s.Rate}
		if s.Beside != nil {
			k.beside = s.Beside.Name
		}
		if rounds[k] == nil {
			kinds = append(kinds, k)
		}
		rounds[k] = append(rounds[k], s)
	}
	for _, k := range kinds {
		name := r.Scenario + " closed loop"
		if k.rate > 0 {
			name = fmt.Sprintf("%s at %g/s", r.Scenario, k.rate)
		}
		if k.beside != "" {
			name += " beside " + k.beside
		}
		throughput, p50, p99 := Figure{Name: name + ", answers/s", Higher: true}, Figure{Name: name + ", p50"}, Figure{Name: name + ", p99"}
		put := func(t, median, tail float64) {
			if t > 0 && median > 0 && tail > 0 {
				throughput.Values, p50.Values, p99.Values = append(throughput.Values, t), append(p50.Values, median), append(p99.Values, tail)
			}
		}
		few := len(rounds[k]) < enoughRounds
		seconds = seconds || few
		for _, s := range rounds[k] {
			if !few {
				put(s.Throughput, s.Latency.P50Micros, s.Latency.P99Micros)
				continue
			}
			for _, at := range s.Series {
				put(at.Throughput(), at.P50Micros, at.P99Micros)
			}
		}
		samples = append(samples, throughput, p50, p99)
	}
	return samples, seconds
}

// Tolerance is how much worse a figure may be before a comparison fails.
type Tolerance struct {
	Throughput float64 // the lowest ratio of what is better when higher, above 0, up to 1
	Latency    float64 // the highest ratio of what is better when lower, 1 or above
}

// Ratio is one figure of the second report over the same of the first, with the 95 % confidence interval.
type Ratio struct {
	Name          string  `json:"name"`
	Ratio         float64 `json:"ratio"`
	Low           float64 `json:"low"`
	High          float64 `json:"high"`
	First         float64 `json:"first"` // geometric means
	Second        float64 `json:"second"`
	FirstSamples  int     `json:"first_samples"`
	SecondSamples int     `json:"second_samples"`
	// Worse says that the ratio is past its bound, and that its interval does not hold 1.
	Worse bool `json:"worse"`
}

// Comparison is what Compare finds.
type Comparison struct {
	Ratios []Ratio  `json:"ratios"`
	Worse  bool     `json:"worse"` // some ratio is
	Notes  []string `json:"notes,omitempty"`
}

// Defaults of a Tolerance. Latencies scatter more than rates do.
const (
	DefaultThroughputBound = 0.95
	DefaultLatencyBound    = 1.2
)

// Compare compares figures of the same name. An error says that the bounds make no sense, or that nothing can be compared.
func Compare(first, second []Figure, t Tolerance) (*Comparison, error) {
	if !(t.Throughput > 0 && t.Throughput <= 1) {
		return nil, &OptionError{fmt.Errorf("throughput bound: want a ratio above 0, up to 1, not %v", t.Throughput)}
	}
	if !(t.Latency >= 1) || math.IsInf(t.Latency, 1) {
		return nil, &OptionError{fmt.Errorf("latency bound: want a ratio of 1 or above, not %v", t.Latency)}
	}
	c := &Comparison{Ratios: []Ratio{}}
	for _, a := range first {
		i := slices.IndexFunc(second, func(b Figure) bool { return b.Name == a.Name })
		if i < 0 {
			c.Notes = append(c.Notes, "only the first report has "+a.Name)
			continue
		}
		b := second[i]
		if len(a.Values) < 2 || len(b.Values) < 2 {
			c.Notes = append(c.Notes, a.Name+" was measured once: there is no telling a change from chance")
			continue
		}
		r := ratioOf(a, b)
		certain := r.Low > 1 || r.High < 1
		if a.Higher {
			r.Worse = certain && r.Ratio < t.Throughput
		} else {
			r.Worse = certain && r.Ratio > t.Latency
		}
		c.Ratios, c.Worse = append(c.Ratios, r), c.Worse || r.Worse
	}
	for _, b := range second {
		if !slices.ContainsFunc(first, func(a Figure) bool { return a.Name == b.Name }) {
			c.Notes = append(c.Notes, "only the second report has "+b.Name)
		}
	}
	if len(c.Ratios) == 0 {
		return c, errors.New("the reports have no figure in common that was measured twice: " + strings.Join(c.Notes, "; "))
	}
	return c, nil
}

// ratioOf is the ratio of geometric means, with Welch's interval on the logarithms: these are what varies evenly where
// figures are times and rates.
func ratioOf(a, b Figure) Ratio {
	meanA, varianceA := logMoments(a.Values)
	meanB, varianceB := logMoments(b.Values)
	shareA, shareB := varianceA/float64(len(a.Values)), varianceB/float64(len(b.Values))
	spread := 0.0
	if both := shareA + shareB; both > 0 {
		freedom := both * both / (shareA*shareA/float64(len(a.Values)-1) + shareB*shareB/float64(len(b.Values)-1))
		spread = studentT95(freedom) * math.Sqrt(both)
	}
	difference := meanB - meanA
	return Ratio{
		Name: a.Name, Ratio: math.Exp(difference), Low: math.Exp(difference - spread), High: math.Exp(difference + spread),
		First: math.Exp(meanA), Second: math.Exp(meanB), FirstSamples: len(a.Values), SecondSamples: len(b.Values),
	}
}

// logMoments are mean and variance of the logarithms of at least two values.
func logMoments(values []float64) (mean, variance float64) {
	for _, v := range values {
		mean += math.Log(v) / float64(len(values))
	}
	for _, v := range values {
		d := math.Log(v) - mean
		variance += d * d / float64(len(values)-1)
	}
	return mean, variance
}

// studentT95 is the two-sided 95 % quantile of Student's t, for the degrees of freedom rounded down.
func studentT95(freedom float64) float64 {
	table := []float64{
		12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
		2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
	}
	n := int(max(math.Floor(min(freedom+1e-9, 1e6)), 1))
	switch {
	case n <= len(table):
		return table[n-1]
	case n < 40:
		return table[len(table)-1]
	case n < 60:
		return 2.021
	case n < 120:
		return 2.000
	}
	return 1.980
}

// WriteJSON writes the comparison for programs.
func (c *Comparison) WriteJSON(w io.Writer) error { return writeJSON(w, c) }

// WriteText writes the comparison for people.
func (c *Comparison) WriteText(w io.Writer) error {
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "figure\tfirst\tsecond\tratio\t95 % interval\tof\t\t")
	for _, r := range c.Ratios {
		verdict := "same"
		switch {
		case r.Worse:
			verdict = "WORSE"
		case r.Low > 1 || r.High < 1:
			verdict = "differs"
		}
		fmt.Fprintf(t, "%s\t%.4g\t%.4g\t%.3f\t%.3f to %.3f\t%d, %d\t%s\t\n", r.Name, r.First, r.Second, r.Ratio, r.Low, r.High, r.FirstSamples, r.SecondSamples, verdict)
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("lay out the comparison: %w", err)
	}
	for _, note := range c.Notes {
		fmt.Fprintln(&b, note)
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write the comparison: %w", err)
	}
	return nil
}
