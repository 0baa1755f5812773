package bench_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"sluice/bench"
)

func sample(name string, higher bool, values ...float64) bench.Figure {
	return bench.Figure{Name: name, Higher: higher, Values: values}
}

func TestCompare_KnownInterval(t *testing.T) {
	t.Parallel()
	// Logarithms 0, 1, 2 and 1, 2, 3: the difference is 1, the standard error sqrt(1/3 + 1/3), with 4 degrees of freedom.
	e := math.E
	c, err := bench.Compare([]bench.Figure{sample("p99", false, 1, e, e*e)}, []bench.Figure{sample("p99", false, e, e*e, e*e*e)}, bench.Tolerance{Throughput: 1, Latency: 1})
	if err != nil {
		t.Fatal(err)
	}
	spread := 2.776 * math.Sqrt(2.0/3)
	r := c.Ratios[0]
	for what, pair := range map[string][2]float64{"ratio": {r.Ratio, e}, "low": {r.Low, math.Exp(1 - spread)}, "high": {r.High, math.Exp(1 + spread)}, "first": {r.First, e}} {
		if math.Abs(pair[0]-pair[1]) > 1e-9*pair[1] {
			t.Errorf("%s: got %v, want %v", what, pair[0], pair[1])
		}
	}
	if r.Worse || c.Worse {
		t.Error("worse, although the interval holds 1")
	}
}

func TestCompare_Verdicts(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		higher bool
		second []float64
		worse  bool
	}{
		{"slower past the bound", true, []float64{89, 90, 91}, true},
		{"slower within the bound", true, []float64{97, 98, 97.5}, false},
		{"faster", true, []float64{150, 151, 152}, false},
		{"slower by chance", true, []float64{40, 140, 90}, false},
		{"later past the bound", false, []float64{130, 131, 129}, true},
		{"later within the bound", false, []float64{110, 111, 109}, false},
		{"sooner", false, []float64{50, 51, 49}, false},
	} {
		c, err := bench.Compare([]bench.Figure{sample("f", test.higher, 100, 101, 99)}, []bench.Figure{sample("f", test.higher, test.second...)},
			bench.Tolerance{Throughput: bench.DefaultThroughputBound, Latency: bench.DefaultLatencyBound})
		if err != nil || c.Worse != test.worse || c.Ratios[0].Worse != test.worse {
			t.Errorf("%s: %+v, %v", test.name, c, err)
		}
	}
}

func TestCompare_WhatCannotBe(t *testing.T) {
	t.Parallel()
	good := bench.Tolerance{Throughput: 0.9, Latency: 1.1}
	many, once := []bench.Figure{sample("a", true, 1, 2)}, []bench.Figure{sample("a", true, 1)}
	if _, err := bench.Compare(many, []bench.Figure{sample("b", true, 1, 2)}, good); err == nil || !strings.Contains(err.Error(), "only the first report has a") {
		t.Errorf("got %v", err)
	}
	if _, err := bench.Compare(many, once, good); err == nil || !strings.Contains(err.Error(), "measured once") {
		t.Errorf("got %v", err)
	}
	for _, bad := range []bench.Tolerance{{Throughput: 0, Latency: 1}, {Throughput: 1.1, Latency: 1}, {Throughput: 1, Latency: 0.9}, {Throughput: math.NaN(), Latency: 1},
		{Throughput: 1, Latency: math.NaN()}, {Throughput: 1, Latency: math.Inf(1)}} {
		var options *bench.OptionError
		if _, err := bench.Compare(many, many, bad); !errors.As(err, &options) {
			t.Errorf("%+v: got %v", bad, err)
		}
	}
}

func TestFiguresIn_Reports(t *testing.T) {
	t.Parallel()
	step := func(rate float64, round int, throughput float64) bench.Step {
		return bench.Step{Rate: rate, Round: round, Figures: bench.Figures{Throughput: throughput, Latency: bench.Quantiles{P50Micros: 1, P99Micros: 2}},
			Series: []bench.Second{{Length: 1, Admitted: 5, P50Micros: 3, P99Micros: 4}, {Length: 0.5, Admitted: 1, Refused: 2, P50Micros: 3, P99Micros: 4}}}
	}
	report := bench.LoadReport{Kind: bench.KindLoad, Schema: bench.SchemaReport, Scenario: "login"}
	for round := range 3 {
		report.Steps = append(report.Steps, step(10, round+1, float64(10+round)), step(20, round+1, float64(20+round)))
	}
	read := func(v any) ([]bench.Figure, bool, error) {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return bench.FiguresIn(data)
	}
	got, seconds, err := read(report)
	if err != nil || seconds || len(got) != 6 || got[0].Name != "login at 10/s, answers/s" || !got[0].Higher || !slices.Equal(got[0].Values, []float64{10, 11, 12}) ||
		got[5].Name != "login at 20/s, p99" || got[5].Higher || !slices.Equal(got[5].Values, []float64{2, 2, 2}) {
		t.Errorf("got %+v, %v, %v", got, seconds, err)
	}
	report.Steps = report.Steps[:1]
	got, seconds, err = read(report)
	if err != nil || !seconds || !slices.Equal(got[0].Values, []float64{5, 6}) {
		t.Errorf("of one round: got %+v, %v, %v, want its seconds", got, seconds, err)
	}
	peers := bench.PeersReport{Kind: bench.KindPeers, Schema: bench.SchemaReport, Scenario: "verify-key", Reference: "floor", Subject: "sluice", Peers: []bench.Peer{
		{Name: "floor", Rounds: []bench.PeerRound{{Throughput: 100, P99Micros: 1}, {Throughput: 200, P99Micros: 2}, {Throughput: 100, P99Micros: 1}}},
		{Name: "sluice", Rounds: []bench.PeerRound{{Throughput: 80, P99Micros: 2}, {Throughput: 140, P99Micros: 3}, {Throughput: 75, P99Micros: 2}}},
	}}
	got, _, err = read(peers)
	if err != nil || len(got) != 2 || !slices.Equal(got[0].Values, []float64{0.8, 0.7, 0.75}) || !slices.Equal(got[1].Values, []float64{2, 1.5, 2}) {
		t.Errorf("peers: got %+v, %v", got, err)
	}
	var text, html bytes.Buffer
	if err := errors.Join(peers.WriteText(&text), peers.WriteHTML(&html)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"0.75 (0.70–0.80)", "2.00 (1.50–2.00)", "sluice ÷ this"} {
		if !strings.Contains(text.String(), want) || !strings.Contains(html.String(), want) {
			t.Errorf("no %q in\n%s", want, text.String())
		}
	}
	for _, bad := range []string{"", "{", `{"kind":"load","schema":2}`, `{"kind":"accuracy","schema":1}`, `{"kind":"load","schema":1}`, `[]`} {
		if _, _, err := bench.FiguresIn([]byte(bad)); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}
