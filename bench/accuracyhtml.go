package bench

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// WriteHTML writes the report as one page: the tables of WriteText, and for each pattern what was admitted in each window.
func (r *Report) WriteHTML(w io.Writer) error {
	p := &page{Title: "Sluice bench accuracy", Remarks: slices.Clone(r.Notes)}
	r.Provenance.facts(p)
	p.fact("targets", "%s", strings.Join(r.Targets, " "))
	p.fact("load", "%s, %d requests in flight, seed %d", r.Algorithm, r.Concurrency, r.Seed)
	result := "no limit was exceeded"
	if r.OverAdmitted {
		result = "OVER-ADMITTED"
	}
	if len(r.Results) == 0 {
		result = "nothing was measured"
	}
	p.fact("result", "%s", result)
	for i := 0; i < len(r.Results); {
		pattern := r.Results[i].Pattern
		t := table{Title: pattern, Caption: describe(pattern), Head: []string{
			"limit", "window", "asked", "admitted", "over %", "wasted %", "waited %", "refused w/o message %", "admitted p50", "p99", "refused p50", "p99", "503", "failed",
		}}
		bars := chart{Title: "Admitted in each window: " + pattern, XLabel: "windows in which somebody asked", YLabel: "% of the limit"}
		longest := 1
		for ; i < len(r.Results) && r.Results[i].Pattern == pattern; i++ {
			s := &r.Results[i]
			var row strings.Builder
			s.writeRow(&row)
			t.Rows = append(t.Rows, strings.Split(strings.TrimRight(row.String(), "\t\n"), "\t"))
			if s.Over() {
				p.Remarks = append(p.Remarks, fmt.Sprintf("OVER-ADMITTED: %s, limit %d: %.3f units more than admissible, %d admissions in a window that cannot have been the present one",
					s.Pattern, s.Limit, s.OverUnits, s.Misnamed))
			}
			if s.Problem != "" {
				p.Remarks = append(p.Remarks, fmt.Sprintf("failed: %s, limit %d: %d requests, the first: %s", s.Pattern, s.Limit, s.Failed, s.Problem))
			}
			if s.Burst > 0 {
				continue // a token bucket has no windows
			}
			l := line{Name: fmt.Sprintf("limit %d", s.Limit)}
			for j, window := range s.Windows {
				l.points = append(l.points, [2]float64{float64(j + 1), 100 * float64(window.Admitted) / float64(s.Limit)})
			}
			longest = max(longest, len(l.points))
			bars.lines = append(bars.lines, l)
		}
		p.Tables = append(p.Tables, t)
		if len(bars.lines) == 0 {
			continue
		}
		bars.lines = append(bars.lines, line{Name: "all of a limit", dashed: true, points: [][2]float64{{0, 100}, {float64(longest), 100}}})
		p.plot(bars)
	}
	return p.write(w)
}
