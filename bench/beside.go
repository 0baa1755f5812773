package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// Beside is another load that runs, in a closed loop, beside every second measurement of a step: each rate is measured alone and
// then with it, in turn. What it does to the step's latencies is the result.
type Beside struct {
	Scenario    string // a name of Scenarios
	Concurrency int    // 0: DefaultConnections
	// P99, above 0, is what the p99 beside the other load may be, in so far as twice the p99 alone is not more.
	P99Micros float64
}

// BesideReport compares a step beside another load with the same step alone. Medians of the rounds, in microseconds.
type BesideReport struct {
	Scenario    string  `json:"scenario"`
	Concurrency int     `json:"concurrency"`
	AloneP99    float64 `json:"alone_p99_us"`
	BesideP99   float64 `json:"beside_p99_us"`
	Ratio       Spread  `json:"ratio"` // of the p99s, by round
	// Allowed is the bound that was asked for, 0 for none; Exceeded that BesideP99 is above it.
	Allowed  float64 `json:"allowed_us,omitempty"`
	Exceeded bool    `json:"exceeded,omitempty"`
}

// besideGrowth is how much of its p99 alone a load may have beside another one where the bound is lower.
const besideGrowth = 2

// companion is the load that goes beside another one.
type companion struct{ *generator }

// newCompanion makes the generator of l.Beside; nil where there is none.
func newCompanion(l *Load) (*companion, error) {
	if l.Beside == nil {
		return nil, nil
	}
	other := *l
	other.Scenario, other.Mix, other.Concurrency = l.Beside.Scenario, []Share{{Scenario: l.Beside.Scenario, Weight: 1}}, l.Beside.Concurrency
	other.Seed++
	if scenario, _ := findScenario(other.Scenario); scenario.needs.addresses && other.Addresses == 0 {
		// Not one address in common with each other: guards of sign-ins go by address too.
		other.Addresses = MaxAddresses
	}
	other.Progress = func(LoadProgress) {}
	g, err := newGenerator(&other)
	if err != nil {
		return nil, err
	}
	return &companion{g}, nil
}

// start sends until the function that it returns is called, which gives what was sent.
func (c *companion) start(ctx context.Context) (stop func() Figures) {
	ctx, cancel := context.WithCancelCause(ctx)
	sent := &collector{sum: newCountSet(len(c.endpoints), 1), fresh: newCountSet(len(c.endpoints), 1)}
	took := make(chan passed, 1)
	go func() {
		run, _ := c.run(ctx, 0, MaxStep+MaxWarmup, sent) // it ends with its context
		took <- run
	}()
	return func() Figures {
		cancel(errors.New("the load that it went beside has ended"))
		run := <-took
		return figuresOf(sent.sum.total(), run.seconds)
	}
}

// besideReport compares the steps.
func (r *LoadReport) besideReport(l *Load) {
	if l.Beside == nil {
		return
	}
	b := &BesideReport{Scenario: l.Beside.Scenario, Concurrency: l.Beside.Concurrency}
	var alone, beside, ratios []float64
	for i := 0; i+1 < len(r.Steps); i += 2 {
		a, w := r.Steps[i].Latency.P99Micros, r.Steps[i+1].Latency.P99Micros
		if a > 0 && w > 0 {
			alone, beside, ratios = append(alone, a), append(beside, w), append(ratios, w/a)
		}
	}
	if len(ratios) == 0 {
		return
	}
	b.AloneP99, b.BesideP99, b.Ratio = spreadOf(alone).Median, spreadOf(beside).Median, spreadOf(ratios)
	if l.Beside.P99Micros > 0 {
		b.Allowed = max(l.Beside.P99Micros, besideGrowth*b.AloneP99)
		b.Exceeded = b.BesideP99 > b.Allowed
	}
	r.Beside = b
}

func (b *BesideReport) text() string {
	line := fmt.Sprintf("p99 %s beside %d connections of %s, %s alone: %s times as much by round",
		millisText(b.BesideP99), b.Concurrency, b.Scenario, millisText(b.AloneP99), b.Ratio.text())
	switch {
	case b.Exceeded:
		return "EXCEEDED: " + line + "; allowed were " + millisText(b.Allowed)
	case b.Allowed > 0:
		return line + "; allowed were " + millisText(b.Allowed)
	}
	return line
}

// check says what is wrong with it.
func (b *Beside) check(l *Load, wrong func(string, ...any)) {
	if _, found := findScenario(b.Scenario); !found {
		wrong("beside: there is no %q; there are %v", b.Scenario, scenarioNames())
	}
	within(wrong, "beside: concurrency", b.Concurrency, 1, MaxConcurrency)
	if l.MaxP99 > 0 || len(l.Rates) > 1 {
		wrong("beside: goes with one rate, or a closed loop")
	}
	if slices.Contains([]string{"register", "create-key"}, b.Scenario) {
		wrong("beside: %s leaves more behind than can be taken away", b.Scenario)
	}
}
