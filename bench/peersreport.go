package bench

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// PeersReport is what several servers did with the same load on one machine, round after round in turn. Only ratios mean
// something: the servers share their cores with the program that measures.
type PeersReport struct {
	Kind       string     `json:"kind"`
	Schema     int        `json:"schema"`
	Provenance Provenance `json:"provenance"`
	Scenario   string     `json:"scenario"`
	// Concurrency is requests in flight, Seconds the length of a round, Keys what requests are spread over.
	Concurrency int     `json:"concurrency"`
	Seconds     float64 `json:"seconds"`
	Keys        int     `json:"keys"`
	// Reference and Subject are the peers that all are compared with.
	Reference string   `json:"reference"`
	Subject   string   `json:"subject"`
	Peers     []Peer   `json:"peers"`
	Notes     []string `json:"notes,omitempty"`
}

// Peer is one server.
type Peer struct {
	Name     string      `json:"name"`
	Describe string      `json:"describe"`
	Version  string      `json:"version,omitempty"`
	Rounds   []PeerRound `json:"rounds"`
}

// PeerRound is one round of one server.
type PeerRound struct {
	Throughput float64 `json:"throughput"`
	P50Micros  float64 `json:"p50_us"`
	P99Micros  float64 `json:"p99_us"`
	Admitted   int64   `json:"admitted"`
	Refused    int64   `json:"refused"`
	Failed     int64   `json:"failed"`
	// CPU time for each answer, of the server's processes and of this program; 0 where it is not known.
	ServerMicros float64 `json:"server_cpu_us,omitempty"`
	ClientMicros float64 `json:"client_cpu_us,omitempty"`
}

// Spread is the median of some values with the least and the greatest.
type Spread struct {
	Median   float64 `json:"median"`
	Least    float64 `json:"least"`
	Greatest float64 `json:"greatest"`
}

func spreadOf(values []float64) Spread {
	if len(values) == 0 {
		return Spread{}
	}
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return Spread{Median: (sorted[(n-1)/2] + sorted[n/2]) / 2, Least: sorted[0], Greatest: sorted[n-1]}
}

func (s Spread) text() string {
	if s == (Spread{}) {
		return "–"
	}
	return fmt.Sprintf("%.2f (%.2f–%.2f)", s.Median, s.Least, s.Greatest)
}

func (r *PeersReport) find(name string) *Peer {
	for i := range r.Peers {
		if r.Peers[i].Name == name {
			return &r.Peers[i]
		}
	}
	return nil
}

// Ratios are one figure of a over the same of b, by round: what disturbs one round disturbs both.
func Ratios(a, b *Peer, figure func(*PeerRound) float64) []float64 {
	var ratios []float64
	if a == nil || b == nil {
		return nil
	}
	for i := range min(len(a.Rounds), len(b.Rounds)) {
		over, under := figure(&a.Rounds[i]), figure(&b.Rounds[i])
		if over > 0 && under > 0 {
			ratios = append(ratios, over/under)
		}
	}
	return ratios
}

func throughputOf(r *PeerRound) float64 { return r.Throughput }
func p99Of(r *PeerRound) float64        { return r.P99Micros }

// samples are the peers' ratios to the reference.
func (r *PeersReport) samples() []Figure {
	var samples []Figure
	reference := r.find(r.Reference)
	for i := range r.Peers {
		p := &r.Peers[i]
		if p.Name == r.Reference {
			continue
		}
		name := fmt.Sprintf("%s, %s against %s", r.Scenario, p.Name, r.Reference)
		samples = append(samples, Figure{Name: name + ", answers/s", Higher: true, Values: Ratios(p, reference, throughputOf)},
			Figure{Name: name + ", p99", Values: Ratios(p, reference, p99Of)})
	}
	return samples
}

// table has a row for each peer.
func (r *PeersReport) table() table {
	t := table{
		Title: "Peers", Caption: "Medians of the rounds with the least and the greatest; ratios by round. Latencies in milliseconds.",
		Head: []string{"", "answers/s", "÷ " + r.Reference, "p50", "p99", "p99 ÷ " + r.Reference, r.Subject + " ÷ this", "its p99 ÷ this", "refused", "failed"},
	}
	reference, subject := r.find(r.Reference), r.find(r.Subject)
	for i := range r.Peers {
		p := &r.Peers[i]
		var throughput, p50, p99 []float64
		var refused, failed int64
		for j := range p.Rounds {
			round := &p.Rounds[j]
			throughput, p50, p99 = append(throughput, round.Throughput), append(p50, round.P50Micros/1e3), append(p99, round.P99Micros/1e3)
			refused, failed = refused+round.Refused, failed+round.Failed
		}
		against := func(a, b *Peer, figure func(*PeerRound) float64) string {
			if a == b {
				return "1"
			}
			return spreadOf(Ratios(a, b, figure)).text()
		}
		t.Rows = append(t.Rows, []string{
			p.Name, fmt.Sprintf("%.0f", spreadOf(throughput).Median), against(p, reference, throughputOf),
			fmt.Sprintf("%.3f", spreadOf(p50).Median), fmt.Sprintf("%.3f", spreadOf(p99).Median), against(p, reference, p99Of),
			against(subject, p, throughputOf), against(subject, p, p99Of), fmt.Sprint(refused), fmt.Sprint(failed),
		})
	}
	return t
}

// WriteJSON writes the report for programs.
func (r *PeersReport) WriteJSON(w io.Writer) error { return writeJSON(w, r) }

// WriteText writes the report for people.
func (r *PeersReport) WriteText(w io.Writer) error {
	var b strings.Builder
	r.Provenance.writeText(&b)
	fmt.Fprintf(&b, "%s, closed loop of %d, %d keys, rounds of %.0fs\n\n", r.Scenario, r.Concurrency, r.Keys, r.Seconds)
	t := r.table()
	lines := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(lines, strings.Join(t.Head, "\t")+"\t")
	for _, row := range t.Rows {
		fmt.Fprintln(lines, strings.Join(row, "\t")+"\t")
	}
	if err := lines.Flush(); err != nil {
		return fmt.Errorf("lay out the report: %w", err)
	}
	fmt.Fprintf(&b, "\n%s\n", t.Caption)
	for i := range r.Peers {
		fmt.Fprintf(&b, "%s: %s\n", r.Peers[i].Name, strings.TrimSpace(r.Peers[i].Describe+" "+r.Peers[i].Version))
	}
	for _, note := range r.Notes {
		fmt.Fprintln(&b, note)
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

// WriteHTML writes the report as one page.
func (r *PeersReport) WriteHTML(w io.Writer) error {
	p := &page{Title: "Sluice among its peers: " + r.Scenario, Remarks: r.Notes, Tables: []table{r.table()}}
	r.Provenance.facts(p)
	p.fact("load", "closed loop of %d, %d keys, rounds of %.0f s in turn", r.Concurrency, r.Keys, r.Seconds)
	throughput := chart{Title: "Throughput by round", XLabel: "round", YLabel: "answers a second"}
	tail := chart{Title: "p99 by round", XLabel: "round", YLabel: "milliseconds", y: logarithmic}
	for i := range r.Peers {
		peer := &r.Peers[i]
		p.fact(peer.Name, "%s", strings.TrimSpace(peer.Describe+" "+peer.Version))
		a, b := line{Name: peer.Name}, line{Name: peer.Name}
		for j := range peer.Rounds {
			a.points = append(a.points, [2]float64{float64(j + 1), peer.Rounds[j].Throughput})
			b.points = append(b.points, [2]float64{float64(j + 1), peer.Rounds[j].P99Micros / 1e3})
		}
		throughput.lines, tail.lines = append(throughput.lines, a), append(tail.lines, b)
	}
	p.plot(throughput)
	p.plot(tail)
	return p.write(w)
}
