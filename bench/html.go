package bench

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"slices"
	"strings"
	"time"
)

//go:embed report.html.tmpl
var pageText string

var pageTemplate = template.Must(template.New("report").Parse(pageText))

// page is a report as HTML: one file that asks for nothing else.
type page struct {
	Title    string
	Facts    []fact
	Remarks  []string
	Tables   []table
	Drawings []drawing
}

type fact struct{ Name, Value string }

type table struct {
	Title, Caption string
	Head           []string
	Rows           [][]string
}

func (p *page) fact(name, format string, args ...any) {
	p.Facts = append(p.Facts, fact{name, fmt.Sprintf(format, args...)})
}

// plot adds a chart, unless it is empty.
func (p *page) plot(c chart) {
	if d, ok := c.draw(); ok {
		p.Drawings = append(p.Drawings, d)
	}
}

func (p *page) write(w io.Writer) error {
	if err := pageTemplate.Execute(w, p); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

// facts are where figures come from.
func (p *Provenance) facts(to *page) {
	to.fact("started", "%s", p.Started.Format(time.RFC3339))
	if len(p.Command) > 0 {
		to.fact("command", "%s", strings.Join(p.Command, " "))
	}
	to.fact("program", "%s, commit %s", cmpOr(p.Version, "unknown version"), cmpOr(p.Commit, "unknown"))
	to.fact("machine", "%d × %s, GOMAXPROCS %d, %s, %s", p.CPUs, cmpOr(p.CPU, "CPU"), p.GOMAXPROCS, p.Go, p.Platform)
	to.fact("cluster", "nodes: %d, %s, fsync: %s", p.Cluster.Nodes, cmpOr(strings.Join(p.Cluster.Versions, ", "), "unknown version"), p.Cluster.Fsync)
}

// maxCurves is how many steps a plot of curves shows.
const maxCurves = colours

// WriteHTML writes the report as one page with plots.
func (r *LoadReport) WriteHTML(w io.Writer) error {
	p := &page{Title: "Sluice bench run: " + r.Scenario, Remarks: r.Remarks()}
	r.Provenance.facts(p)
	p.fact("targets", "%s", strings.Join(r.Targets, " "))
	if len(r.Mix) > 1 {
		var parts []string
		for _, s := range r.Mix {
			parts = append(parts, fmt.Sprintf("%s × %d", s.Scenario, s.Weight))
		}
		p.fact("mix", "%s", strings.Join(parts, ", "))
	}
	p.fact("load", "%s loop, %d connections to each target, %d keys, %d users, %d addresses, %s %v, seed %d", r.Loop, r.Concurrency, r.Keys, r.Users,
		r.Addresses, r.Distribution, r.ZipfExponent, r.Seed)
	if r.Max != nil {
		var b strings.Builder
		r.Max.writeText(&b)
		p.fact("highest rate", "%s", strings.TrimSpace(b.String()))
	}
	p.Tables = append(p.Tables, r.stepTable())
	if t := r.errorTable(); len(t.Rows) > 0 {
		p.Tables = append(p.Tables, t)
	}
	r.plots(p)
	return p.write(w)
}

func (s *Step) name() string {
	name := "closed loop"
	if s.Rate > 0 {
		name = fmt.Sprintf("%g/s", s.Rate)
	}
	if s.Round > 1 {
		name += fmt.Sprintf(", round %d", s.Round)
	}
	return name
}

func (r *LoadReport) stepTable() table {
	t := table{
		Title: "Steps", Caption: "Latencies in milliseconds, from the intended time of sending; service from sending.",
		Head: []string{"step", "of", "answers/s", "admitted", "refused", "failed", "unsent", "p50", "p90", "p99", "p99.9", "max", "service p99"},
	}
	for i := range r.Steps {
		s := &r.Steps[i]
		t.Rows = append(t.Rows, s.Figures.cells(s.name(), "all", fmt.Sprint(s.Unsent)))
		for _, part := range [][]Split{s.Nodes, s.Scenarios} {
			for j := range part {
				if len(part) > 1 {
					t.Rows = append(t.Rows, part[j].cells("", part[j].Name, ""))
				}
			}
		}
	}
	return t
}

func (f *Figures) cells(step, of, unsent string) []string {
	ms := func(micros float64) string { return fmt.Sprintf("%.3f", micros/1e3) }
	return []string{
		step, of, fmt.Sprintf("%.0f", f.Throughput), fmt.Sprint(f.Admitted), fmt.Sprint(f.Refused), fmt.Sprint(f.Failed), unsent,
		ms(f.Latency.P50Micros), ms(f.Latency.P90Micros), ms(f.Latency.P99Micros), ms(f.Latency.P999Micros), ms(f.Latency.MaxMicros), ms(f.Service.P99Micros),
	}
}

func (r *LoadReport) errorTable() table {
	t := table{Title: "Failures by kind", Head: []string{"step", "target", "kind", "requests", "the first"}}
	for i := range r.Steps {
		for _, n := range r.Steps[i].Nodes {
			for _, e := range n.Errors {
				t.Rows = append(t.Rows, []string{r.Steps[i].name(), n.Name, e.Kind, fmt.Sprint(e.Count), e.Example})
			}
		}
	}
	return t
}

func (r *LoadReport) plots(p *page) {
	curves := chart{Title: "Latency by percentile", XLabel: "percentile", YLabel: "milliseconds", x: percentile, y: logarithmic}
	every := (len(r.Steps) + maxCurves - 1) / maxCurves
	for i := range r.Steps {
		if i%every != 0 {
			continue
		}
		l := line{Name: r.Steps[i].name()}
		for _, q := range r.Steps[i].Percentiles {
			l.points = append(l.points, [2]float64{q.Percentile, q.LatencyMicros / 1e3})
		}
		curves.lines = append(curves.lines, l)
	}
	if every > 1 {
		curves.Title += fmt.Sprintf(" (one of %d steps)", every)
	}
	p.plot(curves)

	const seconds = "seconds, steps one after the other"
	answers := line{Name: "answers/s"}
	admitted, refused, failed := line{Name: "admitted/s"}, line{Name: "refused/s"}, line{Name: "failed/s"}
	asked, limit := line{Name: "rate of sending", dashed: true}, line{Name: "limit", dashed: true}
	p50, p99 := line{Name: "p50"}, line{Name: "p99"}
	offset := 0.0
	for i := range r.Steps {
		s := &r.Steps[i]
		for _, at := range s.Series {
			if at.Length <= 0 {
				continue
			}
			x := offset + at.Seconds
			point := func(l *line, v float64) { l.points = append(l.points, [2]float64{x, v}) }
			point(&answers, at.Throughput())
			point(&admitted, float64(at.Admitted)/at.Length)
			point(&refused, float64(at.Refused)/at.Length)
			point(&failed, float64(at.Failed)/at.Length)
			point(&p50, at.P50Micros/1e3)
			point(&p99, at.P99Micros/1e3)
			if s.Rate > 0 {
				point(&asked, s.Rate)
			}
			if s.AdmissibleRate != nil {
				point(&limit, *s.AdmissibleRate)
			}
		}
		offset += s.Seconds
	}
	throughput := chart{Title: "Throughput and failures", XLabel: seconds, YLabel: "a second", lines: []line{answers, refused, failed}}
	if len(asked.points) > 0 {
		throughput.lines = append(throughput.lines, asked)
	}
	p.plot(throughput)
	p.plot(chart{Title: "Latency over time", XLabel: seconds, YLabel: "milliseconds", y: logarithmic, lines: []line{p50, p99}})
	if len(limit.points) > 0 {
		against := chart{Title: "Admitted against the limit", XLabel: seconds, YLabel: "a second", lines: []line{admitted, limit}}
		// A limit far above what is sent would flatten the other line.
		if top(limit) > 20*top(admitted) || top(admitted) > 20*top(limit) {
			against.y = logarithmic
		}
		p.plot(against)
	}
}

func top(l line) float64 {
	if len(l.points) == 0 {
		return 0
	}
	return slices.MaxFunc(l.points, func(a, b [2]float64) int {
		switch {
		case a[1] < b[1]:
			return -1
		case a[1] > b[1]:
			return 1
		}
		return 0
	})[1]
}
