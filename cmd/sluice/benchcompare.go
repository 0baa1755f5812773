package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"sluice/bench"
)

type benchCompareCommand struct {
	Results         []string `arg:"" placeholder:"FILE" help:"Two reports of bench run or of the peers, in JSON, the older one first; one with --baseline."`
	Baseline        string   `placeholder:"FILE" help:"A stored report to compare with, in place of the first."`
	ThroughputBound float64  `default:"${benchThroughputBound}" help:"The lowest ratio of rates that passes (above 0, up to 1)."`
	LatencyBound    float64  `default:"${benchLatencyBound}" help:"The highest ratio of latencies that passes (1 or above)."`
	JSON            bool     `name:"json" help:"Print the comparison as JSON."`
}

// maxReport bounds what is read as a report.
const maxReport = 256 << 20

func readSamples(path string) (samples []bench.Figure, seconds bool, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, false, fmt.Errorf("read a report: %w", err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxReport))
	if err != nil {
		return nil, false, fmt.Errorf("read a report: %w", err)
	}
	if samples, seconds, err = bench.FiguresIn(data); err != nil {
		return nil, false, fmt.Errorf("%s: %w", path, err)
	}
	return samples, seconds, nil
}

// Run compares, and fails where something is worse.
func (c *benchCompareCommand) Run(env environment) error {
	paths := c.Results
	if c.Baseline != "" {
		paths = append([]string{c.Baseline}, paths...)
	}
	if len(paths) != 2 {
		return usagef("want two reports, or one with --baseline, not %d", len(paths))
	}
	first, fewFirst, err := readSamples(paths[0])
	if err != nil {
		return err
	}
	second, fewSecond, err := readSamples(paths[1])
	if err != nil {
		return err
	}
	comparison, err := bench.Compare(first, second, bench.Tolerance{Throughput: c.ThroughputBound, Latency: c.LatencyBound})
	var options *bench.OptionError
	if errors.As(err, &options) {
		return &usageError{err.Error()}
	}
	if err != nil {
		return err
	}
	if fewFirst || fewSecond {
		comparison.Notes = append(comparison.Notes,
			"measured in fewer than three rounds: seconds stand for rounds, and are more alike than these; --rounds 5 is better")
	}
	write := comparison.WriteText
	if c.JSON {
		write = comparison.WriteJSON
	}
	err = write(env.stdout)
	if comparison.Worse {
		err = errors.Join(err, errors.New("some figures are worse than the bounds allow"))
	}
	return err
}
