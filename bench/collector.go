package bench

import (
	"encoding/json"
	"fmt"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// collector adds up what the lanes hold, second by second.
type collector struct {
	sum    *countSet
	fresh  *countSet               // between two seconds
	late   *hdrhistogram.Histogram // waits of requests that were never sent
	series []Second
}

// collect takes what has been noted since the last time, up to at seconds after the start.
func (c *collector) collect(g *generator, at float64) *Second {
	for _, l := range g.lanes {
		l.take(c.fresh)
	}
	t := c.fresh.total()
	c.sum.merge(c.fresh)
	c.fresh.reset()
	s := Second{Seconds: at, Admitted: t.admitted, Refused: t.refused, Failed: t.failed}
	if n := len(c.series); n > 0 {
		s.Length = at - c.series[n-1].Seconds
	} else {
		s.Length = at
	}
	if t.latency.TotalCount() > 0 {
		s.P50Micros = micros(float64(t.latency.ValueAtQuantile(50)))
		s.P99Micros = micros(float64(t.latency.ValueAtQuantile(99)))
	}
	if s.Length < 0.2 && len(c.series) > 0 {
		// The rest of a last second is too short for a rate: what it holds belongs to the second before.
		last := &c.series[len(c.series)-1]
		last.Seconds, last.Length = at, last.Length+s.Length
		last.Admitted, last.Refused, last.Failed = last.Admitted+s.Admitted, last.Refused+s.Refused, last.Failed+s.Failed
		last.P99Micros = max(last.P99Micros, s.P99Micros)
		return last
	}
	c.series = append(c.series, s)
	return &c.series[len(c.series)-1]
}

// maxOverdue is how many waits are noted one by one.
const maxOverdue = 100_000

// overdue notes the waits, until now, of requests from first up to end that were never sent.
func (c *collector) overdue(plan schedule, first, end, now int64) {
	c.late = newHistogram()
	stride := max((end-first)/maxOverdue, 1)
	for i := first; i < end; i += stride {
		// Within the bounds it cannot fail.
		_ = c.late.RecordValues(min(max(now-plan.at(i), 0), histogramHigh), min(stride, end-i))
	}
}

// step sums up.
func (c *collector) step(g *generator, rate float64, round int, run passed) *Step {
	total := c.sum.total()
	latency := total.latency
	if c.late != nil {
		latency.Merge(c.late)
	}
	s := &Step{
		Rate: rate, Round: round, Seconds: run.seconds, Unsent: run.unsent, Figures: figuresOf(total, run.seconds),
		Late: quantilesOf(c.sum.late), Percentiles: curve(latency, total.service), Series: c.series,
		Limit: g.toldLimit.Load(), Window: g.toldWait.Load(),
	}
	for i, t := range c.sum.nodes {
		s.Nodes = append(s.Nodes, Split{Name: g.endpoints[i].base, Figures: figuresOf(t, run.seconds)})
	}
	for i, t := range c.sum.operations {
		s.Scenarios = append(s.Scenarios, Split{Name: g.scenarios[i].Name, Figures: figuresOf(t, run.seconds)})
	}
	if s.Limit > 0 && s.Window > 0 && g.load.subjects(g.material) > 0 {
		perSecond := float64(g.load.subjects(g.material)) * float64(s.Limit) / float64(s.Window)
		s.AdmissibleRate = &perSecond
	}
	return s
}

func figuresOf(t *counts, seconds float64) Figures {
	f := Figures{
		Requests: t.requests(), Admitted: t.admitted, Refused: t.refused, Failed: t.failed,
		Latency: quantilesOf(t.latency), Service: quantilesOf(t.service), Errors: t.list(),
	}
	if seconds > 0 {
		f.Throughput = float64(t.admitted+t.refused) / seconds
	}
	return f
}

// statusProblem is what an answer of an unwanted status says of itself, nothing secret.
func statusProblem(a answer) error {
	var p struct{ Code, Detail string }
	if json.Unmarshal(a.body, &p) != nil || p.Code == "" {
		return fmt.Errorf("status %d", a.status)
	}
	return fmt.Errorf("status %d %s: %s", a.status, p.Code, p.Detail)
}
