package bench

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"
)

// Report is what a measurement found, with what is needed to repeat it.
type Report struct {
	Kind        string     `json:"kind"`
	Schema      int        `json:"schema"`
	Provenance  Provenance `json:"provenance"`
	Started     time.Time  `json:"started"`
	Version     string     `json:"version,omitempty"` // of the program that measured
	Targets     []string   `json:"targets"`
	Algorithm   string     `json:"algorithm"`
	Concurrency int        `json:"concurrency"`
	Seed        uint64     `json:"seed"`
	SkewMillis  int64      `json:"clock_skew_ms"`
	AfterMillis int64      `json:"after_ms"`
	Go          string     `json:"go"`
	Platform    string     `json:"platform"`
	CPU         string     `json:"cpu,omitempty"` // of the machine that this program ran on, where it says
	CPUs        int        `json:"cpus"`
	Results     []Result   `json:"results"`
	// OverAdmitted says that some limit was exceeded, or an admission counted in an impossible window.
	OverAdmitted bool     `json:"over_admitted"`
	Notes        []string `json:"notes,omitempty"`
}

// Result is one pattern against one limit. Shares are in per cent, null where there is nothing to tell.
type Result struct {
	Pattern   string  `json:"pattern"`
	Limit     int64   `json:"limit"`
	Window    int64   `json:"window_seconds"`
	Burst     int64   `json:"burst,omitempty"` // of a token bucket
	Algorithm string  `json:"algorithm"`
	Seconds   float64 `json:"seconds"`
	Asked     int     `json:"asked"`
	Admitted  int     `json:"admitted"`
	Refused   int     `json:"refused"`
	Undecided int     `json:"undecided"` // 503
	Failed    int     `json:"failed"`    // no answer, or one about something else
	// OverUnits is the worst excess over the admissible, in any window; OverPercent the same of the limit, or of the burst of a
	// token bucket.
	OverUnits   float64 `json:"over_units"`
	OverPercent float64 `json:"over_percent"`
	// Misnamed are admissions counted in a window that cannot have been the present one.
	Misnamed int `json:"misnamed"`
	// WastedPercent is the part of the limit that a client which went on asking did not get, in the worst window; of a token bucket
	// of all that it could have got.
	WastedPercent *float64 `json:"wasted_percent"`
	// WaitedPercent of the decisions waited for a message; null unless the cluster has limits.debug_header on.
	WaitedPercent *float64 `json:"waited_percent"`
	// RefusedLocallyPercent of the refusals waited for none.
	RefusedLocallyPercent *float64 `json:"refused_without_message_percent"`
	WaitedDecisions       int      `json:"waited_decisions"`
	WaitedRefusals        int      `json:"waited_refusals"`
	AdmittedLatency       Latency  `json:"admitted_latency"`
	RefusedLatency        Latency  `json:"refused_latency"`
	Windows               []Window `json:"windows"`
	Problem               string   `json:"problem,omitempty"` // the first that made a request fail
}

// Over says whether the result shows more than the limit allows.
func (r *Result) Over() bool { return r.OverUnits > 0 || r.Misnamed > 0 }

func newReport(a Accuracy) *Report {
	return &Report{
		Kind: KindAccuracy, Schema: SchemaReport, Provenance: NewProvenance(a.Command, a.Version, a.Commit),
		Started: time.Now().UTC().Truncate(time.Second), Targets: a.Targets, Algorithm: a.algorithm(), Concurrency: a.Concurrency,
		Seed: a.Seed, SkewMillis: a.ClockSkew.Milliseconds(), AfterMillis: a.After.Milliseconds(),
		Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH, CPU: processor(), CPUs: runtime.NumCPU(), Version: a.Version, Results: []Result{},
	}
}

// processor is the CPU's model as Linux tells it, "" elsewhere.
func processor() string {
	data, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		if name, model, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(model)
		}
	}
	return ""
}

func (r *Report) add(result Result) {
	r.Results = append(r.Results, result)
	r.OverAdmitted = r.OverAdmitted || result.Over()
}

func newResult(pattern string, rule Rule, algorithm string, samples []Sample, j Judgement) *Result {
	r := &Result{
		Pattern: pattern, Limit: rule.Limit, Window: rule.Window, Burst: rule.Burst, Algorithm: algorithm, Asked: len(samples),
		OverUnits: j.Over(), Misnamed: j.Misnamed, Windows: j.Windows,
		AdmittedLatency: latencyOf(samples, Admitted), RefusedLatency: latencyOf(samples, Refused),
	}
	r.OverPercent = 100 * r.OverUnits / float64(cmpOr(rule.Burst, rule.Limit))
	decisions, refusals := 0, 0 // that say whether they waited
	for i := range samples {
		s := &samples[i]
		switch s.Outcome {
		case Admitted:
			r.Admitted++
		case Refused:
			r.Refused++
		case Undecided:
			r.Undecided++
			continue
		default:
			r.Failed++
			continue
		}
		if !s.Debug {
			continue
		}
		decisions++
		if s.Waited {
			r.WaitedDecisions++
		}
		if s.Outcome == Refused {
			refusals++
			if s.Waited {
				r.WaitedRefusals++
			}
		}
	}
	r.WaitedPercent = share(r.WaitedDecisions, decisions)
	r.RefusedLocallyPercent = share(refusals-r.WaitedRefusals, refusals)
	if missing, ok := j.Missing(); ok {
		r.WastedPercent = share(int(missing), int(cmpOr(j.Possible, rule.Limit)))
	}
	return r
}

// share is part of whole in per cent, nil of nothing.
func share(part, whole int) *float64 {
	if whole == 0 {
		return nil
	}
	percent := 100 * float64(part) / float64(whole)
	return &percent
}

// WriteJSON writes the report for programs.
func (r *Report) WriteJSON(w io.Writer) error { return writeJSON(w, r) }

// WriteText writes the report for people: a table for each pattern.
func (r *Report) WriteText(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %d targets, %s, %d requests in flight, seed %d\n%s %s %s, %d × %s\n", r.Started.Format(time.RFC3339), len(r.Targets),
		r.Algorithm, r.Concurrency, r.Seed, cmpOr(r.Version, "unknown version"), r.Go, r.Platform, r.CPUs, cmpOr(r.CPU, "CPU"))
	for i := 0; i < len(r.Results); {
		pattern := r.Results[i].Pattern
		fmt.Fprintf(&b, "\n%s: %s\n", pattern, describe(pattern))
		t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(t, "limit\twindow\tasked\tadmitted\tover %\twasted %\twaited %\trefused w/o message %\tadmitted p50\tp99\trefused p50\tp99\t503\tfailed\t")
		for ; i < len(r.Results) && r.Results[i].Pattern == pattern; i++ {
			r.Results[i].writeRow(t)
		}
		if err := t.Flush(); err != nil {
			return fmt.Errorf("lay out the report: %w", err)
		}
	}
	b.WriteByte('\n')
	for i := range r.Results {
		s := &r.Results[i]
		if s.OverUnits > 0 {
			fmt.Fprintf(&b, "OVER-ADMITTED: %s, limit %d: %.3f units more than admissible\n", s.Pattern, s.Limit, s.OverUnits)
		}
		if s.Misnamed > 0 {
			fmt.Fprintf(&b, "OVER-ADMITTED: %s, limit %d: %d admissions counted in a window that cannot have been the present one\n", s.Pattern, s.Limit, s.Misnamed)
		}
		if s.Problem != "" {
			fmt.Fprintf(&b, "failed: %s, limit %d: %d requests, the first: %s\n", s.Pattern, s.Limit, s.Failed, s.Problem)
		}
	}
	for _, note := range r.Notes {
		fmt.Fprintf(&b, "%s\n", note)
	}
	if !r.OverAdmitted && len(r.Results) > 0 {
		b.WriteString("no limit was exceeded\n")
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

func (r *Result) writeRow(w io.Writer) {
	fmt.Fprintf(w, "%d\t%ds\t%d\t%d\t%.2f\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t\n",
		r.Limit, r.Window, r.Asked, r.Admitted, r.OverPercent, percent(r.WastedPercent), percent(r.WaitedPercent), percent(r.RefusedLocallyPercent),
		r.AdmittedLatency.text(r.AdmittedLatency.P50Micros), r.AdmittedLatency.text(r.AdmittedLatency.P99Micros),
		r.RefusedLatency.text(r.RefusedLatency.P50Micros), r.RefusedLatency.text(r.RefusedLatency.P99Micros), r.Undecided, r.Failed)
}

func (l Latency) text(micros int64) string {
	if l.Count == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2fms", millis(micros))
}

func percent(v *float64) string {
	if v == nil {
		return "n/a"
	}
	return fmt.Sprintf("%.2f", *v)
}

func describe(name string) string {
	for _, p := range Patterns() {
		if p.Name == name {
			return p.Describe
		}
	}
	return ""
}
