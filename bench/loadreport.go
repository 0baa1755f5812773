package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// Kinds of reports, and the version of their JSON.
const (
	KindLoad     = "load"
	KindAccuracy = "accuracy"
	KindPeers    = "peers"
	SchemaReport = 1
)

// LoadReport is what a Load found, with what is needed to repeat it. Latencies are in microseconds.
type LoadReport struct {
	Kind         string     `json:"kind"`
	Schema       int        `json:"schema"`
	Provenance   Provenance `json:"provenance"`
	Targets      []string   `json:"targets"`
	Scenario     string     `json:"scenario"`
	Mix          []Share    `json:"mix"`
	Loop         string     `json:"loop"` // open or closed
	Concurrency  int        `json:"concurrency"`
	Users        int        `json:"users"`
	Keys         int        `json:"keys"`
	Addresses    int        `json:"addresses"` // 0: this machine's own
	Distribution string     `json:"distribution"`
	ZipfExponent float64    `json:"zipf_exponent,omitempty"`
	Limit        int64      `json:"limit"` // that keys were made with and checks ask for
	Window       int64      `json:"window_seconds"`
	Subjects     int        `json:"subjects"` // limits that the load is spread over; 0: not known
	Seed         uint64     `json:"seed"`
	WarmupMillis int64      `json:"warmup_ms"`
	Steps        []Step     `json:"steps"`
	Max          *MaxRateOf `json:"find_max,omitempty"`
	// Beside compares every second step, which had another load beside it, with the one before.
	Beside *BesideReport `json:"beside,omitempty"`
	Notes  []string      `json:"notes,omitempty"`
}

// MaxRateOf is the highest rate that was found.
type MaxRateOf struct {
	BoundMicros float64 `json:"p99_bound_us"`
	Rate        float64 `json:"rate"`          // the highest that held; 0: none did
	FailedRate  float64 `json:"failed_rate"`   // the lowest that did not; 0: none was tried
	Trials      int     `json:"trials"`        // they are the report's steps
	Why         string  `json:"why,omitempty"` // the lowest that did not hold failed
}

// Step is one rate, measured once.
type Step struct {
	Rate    float64 `json:"rate"` // of sending, a second; 0: a closed loop
	Round   int     `json:"round"`
	Seconds float64 `json:"seconds"`
	Figures
	// Unsent requests were due and never sent: target and program did not keep up. Percentiles count them, with the time
	// that they had waited at the end.
	Unsent int64 `json:"unsent"`
	// Late is how long after its intended time a request was sent.
	Late        Quantiles         `json:"late"`
	Percentiles []PercentilePoint `json:"percentiles"`
	Series      []Second          `json:"series"`
	Nodes       []Split           `json:"nodes"`
	Scenarios   []Split           `json:"scenarios,omitempty"` // of a mixed load
	// Beside is what the other load did meanwhile; nil: there was none.
	Beside *Split `json:"beside,omitempty"`
	// Limit and Window are what answers said last; AdmissibleRate is what all limits together let through a second, where
	// it is known.
	Limit          int64    `json:"told_limit"`
	Window         int64    `json:"told_window_seconds"`
	AdmissibleRate *float64 `json:"admissible_rate"`
}

// Figures sum up requests.
type Figures struct {
	Requests int64 `json:"requests"`
	Admitted int64 `json:"admitted"`
	Refused  int64 `json:"refused"` // by a limit
	Failed   int64 `json:"failed"`
	// Throughput is answers of the first two kinds a second.
	Throughput float64      `json:"throughput"`
	Latency    Quantiles    `json:"latency"` // from the intended time of sending
	Service    Quantiles    `json:"service"` // from sending
	Errors     []ErrorCount `json:"errors"`
}

// Quantiles of times.
type Quantiles struct {
	Count      int64   `json:"count"`
	MeanMicros float64 `json:"mean_us"`
	P50Micros  float64 `json:"p50_us"`
	P90Micros  float64 `json:"p90_us"`
	P99Micros  float64 `json:"p99_us"`
	P999Micros float64 `json:"p999_us"`
	MaxMicros  float64 `json:"max_us"`
}

// ErrorCount is how often something failed. Kinds are connect, timeout, closed, protocol, and "status 503" and the like.
type ErrorCount struct {
	Kind    string `json:"kind"`
	Count   int64  `json:"count"`
	Example string `json:"example"` // the first
}

// Split is one node's or one scenario's part.
type Split struct {
	Name string `json:"name"`
	Figures
}

// PercentilePoint is a place on the curve of latencies.
type PercentilePoint struct {
	Percentile    float64 `json:"percentile"`
	LatencyMicros float64 `json:"latency_us"`
	ServiceMicros float64 `json:"service_us"`
}

// Second is what happened in one second, or in what was left of the last one. Requests count when their answer came.
type Second struct {
	Seconds   float64 `json:"t"` // its end, after the step's start
	Length    float64 `json:"length"`
	Admitted  int64   `json:"admitted"`
	Refused   int64   `json:"refused"`
	Failed    int64   `json:"failed"`
	P50Micros float64 `json:"p50_us"`
	P99Micros float64 `json:"p99_us"`
}

// Throughput is answers a second.
func (s *Second) Throughput() float64 {
	if s.Length <= 0 {
		return 0
	}
	return float64(s.Admitted+s.Refused) / s.Length
}

func newLoadReport(l *Load) *LoadReport {
	r := &LoadReport{
		Kind: KindLoad, Schema: SchemaReport, Provenance: NewProvenance(l.Command, l.Version, l.Commit), Targets: l.Targets, Scenario: l.Scenario, Mix: l.Mix,
		Loop: "closed", Concurrency: l.Concurrency, Users: l.Users, Keys: l.Keys, Addresses: l.Addresses, Distribution: l.Distribution,
		Limit: l.Limit, Window: l.Window, Seed: l.Seed, WarmupMillis: l.Warmup.Milliseconds(), Steps: []Step{},
	}
	if len(l.Rates) > 0 || l.MaxP99 > 0 {
		r.Loop = "open"
	}
	if l.Distribution == Zipf {
		r.ZipfExponent = l.ZipfExponent
	}
	return r
}

// silent says which targets admitted nothing in any step, and failed at that: all refusals are what may have been asked
// for.
func (r *LoadReport) silent() error {
	var errs []error
	for i, target := range r.Targets {
		var sent, admitted, failed int64
		example := ""
		for j := range r.Steps {
			n := &r.Steps[j].Nodes[i]
			sent, admitted, failed = sent+n.Requests, admitted+n.Admitted, failed+n.Failed
			if len(n.Errors) > 0 && example == "" {
				example = n.Errors[0].Kind + ": " + n.Errors[0].Example
			}
		}
		if admitted == 0 && (failed > 0 || sent == 0) {
			errs = append(errs, fmt.Errorf("target %s admitted none of %d requests, and %d failed: %s", target, sent, failed, cmpOr(example, "none was sent")))
		}
	}
	return errors.Join(errs...)
}

// WriteJSON writes the report for programs.
func (r *LoadReport) WriteJSON(w io.Writer) error { return writeJSON(w, r) }

func writeJSON(w io.Writer, report any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	if err := e.Encode(report); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

// WriteText writes the report for people.
func (r *LoadReport) WriteText(w io.Writer) error {
	var b strings.Builder
	r.Provenance.writeText(&b)
	fmt.Fprintf(&b, "%s, %s loop, %d connections to each of %d targets, %d keys, %d users, %d addresses, %s, seed %d\n\n",
		r.Scenario, r.Loop, r.Concurrency, len(r.Targets), r.Keys, r.Users, r.Addresses, r.Distribution, r.Seed)
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "rate\tround\tof\tanswers/s\tadmitted\trefused\tfailed\tunsent\tp50\tp90\tp99\tp99.9\tmax\t")
	for i := range r.Steps {
		s := &r.Steps[i]
		rate := "closed"
		if s.Rate > 0 {
			rate = fmt.Sprintf("%g", s.Rate)
		}
		s.Figures.writeRow(t, rate, fmt.Sprint(s.Round), "all", fmt.Sprint(s.Unsent))
		if s.Beside != nil {
			s.Beside.writeRow(t, "", "", "beside: "+s.Beside.Name, "")
		}
		for _, part := range [][]Split{s.Nodes, s.Scenarios} {
			for j := range part {
				if len(part) > 1 {
					part[j].writeRow(t, "", "", part[j].Name, "")
				}
			}
		}
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("lay out the report: %w", err)
	}
	b.WriteByte('\n')
	if m := r.Max; m != nil {
		m.writeText(&b)
	}
	for _, line := range r.Remarks() {
		fmt.Fprintln(&b, line)
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

func (f *Figures) writeRow(w io.Writer, rate, round, of, unsent string) {
	q := &f.Latency
	fmt.Fprintf(w, "%s\t%s\t%s\t%.0f\t%d\t%d\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t\n", rate, round, of, f.Throughput, f.Admitted, f.Refused, f.Failed, unsent,
		millisText(q.P50Micros), millisText(q.P90Micros), millisText(q.P99Micros), millisText(q.P999Micros), millisText(q.MaxMicros))
}

func millisText(micros float64) string { return fmt.Sprintf("%.3fms", micros/1e3) }

func (m *MaxRateOf) writeText(w io.Writer) {
	switch {
	case m.Rate == 0:
		fmt.Fprintf(w, "no rate kept its p99 under %s; at %.0f/s: %s\n", millisText(m.BoundMicros), m.FailedRate, m.Why)
	case m.FailedRate == 0:
		fmt.Fprintf(w, "highest rate tried with a p99 under %s: %.0f/s; none failed\n", millisText(m.BoundMicros), m.Rate)
	default:
		fmt.Fprintf(w, "highest rate with a p99 under %s: %.0f/s; at %.0f/s: %s\n", millisText(m.BoundMicros), m.Rate, m.FailedRate, m.Why)
	}
}

// Remarks are what a reader must not miss: errors, and what makes the figures mean something else than they seem to.
func (r *LoadReport) Remarks() []string {
	var lines []string
	if r.Beside != nil {
		lines = append(lines, r.Beside.text())
	}
	for i := range r.Steps {
		s := &r.Steps[i]
		name := fmt.Sprintf("step %d", i+1)
		for _, n := range s.Nodes {
			for _, e := range n.Errors {
				lines = append(lines, fmt.Sprintf("FAILED: %s, %s: %d of %d requests, %s; the first: %s", name, n.Name, e.Count, n.Requests, e.Kind, e.Example))
			}
		}
		if s.Unsent > 0 {
			lines = append(lines, fmt.Sprintf("OVERLOADED: %s: %d requests that were due were never sent", name, s.Unsent))
		}
		if s.Refused > s.Admitted && s.Refused*10 >= s.Requests*9 {
			lines = append(lines, fmt.Sprintf("%s measured refusals: %d of %d answers are of an exhausted limit", name, s.Refused, s.Requests))
		}
	}
	return append(lines, r.Notes...)
}
