package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"sluice/bench"
)

type benchRunCommand struct {
	Target       []string      `placeholder:"URL" default:"http://127.0.0.1:8080,http://127.0.0.1:8081,http://127.0.0.1:8082" help:"Base URL of a node, once for each, or of a load balancer."`
	Scenario     string        `default:"verify-key" help:"Of ${benchScenarios}, mixed."`
	Mix          []string      `placeholder:"SCENARIO=WEIGHT" help:"Parts of a mixed load."`
	Rate         []float64     `placeholder:"N" help:"Requests a second whatever the answers do, one step after the other; without it, as fast as answers come."`
	FindMax      bool          `help:"Look for the highest rate whose p99 stays under --p99, from --rate on if it is given."`
	P99          time.Duration `name:"p99" default:"10ms" help:"Bound of --find-max."`
	Beside       string        `placeholder:"SCENARIO=N" help:"Measure each step alone and then beside a closed loop of N connections of another scenario."`
	BesideP99    time.Duration `name:"beside-p99" placeholder:"DURATION" help:"Fail where the p99 beside it is above this and above twice the p99 alone."`
	Duration     time.Duration `default:"${benchStep}" help:"Of each step (1s to 1h)."`
	Warmup       time.Duration `default:"${benchWarmup}" help:"Load before each step that is not counted (0s to 10m)."`
	Rounds       int           `default:"1" help:"How often all steps are measured (1 to 100); compare needs three or more."`
	Concurrency  int           `default:"${benchConnections}" help:"Requests in flight at most, each with connections of its own (1 to 4096)."`
	Users        int           `default:"${benchUsers}" help:"Accounts whose tokens and passwords are used (1 to 1000)."`
	Keys         int           `default:"${benchKeys}" help:"API keys, and keys that are checked (1 to 10000000)."`
	Addresses    int           `placeholder:"N" help:"Client addresses, told in X-Forwarded-For, which only a trusted proxy may; unless given, ${benchAddresses} for requests without a credential and else this machine's own."`
	Distribution string        `enum:"uniform,zipf" default:"uniform" help:"Of keys, users and addresses over requests: uniform or zipf."`
	Zipf         float64       `default:"${benchZipf}" help:"Exponent of zipf (above 1, up to 10)."`
	Limit        int64         `placeholder:"N" help:"Limit of each key that is made, and of checks (1 to 1000000); 1000000, unless given."`
	Window       int64         `default:"1" help:"Window of these limits, in seconds (1 to 3600)."`
	Path         string        `default:"${benchPath}" help:"What the gateway scenario asks for."`
	Timeout      time.Duration `default:"${benchTimeout}" help:"Of one request (10ms to 1m)."`
	Deadline     time.Duration `default:"4h" help:"Of the whole measurement."`
	Key          []string      `placeholder:"KEY" env:"BENCH_API_KEY" help:"API keys to use instead of new ones."`
	Token        string        `placeholder:"JWT" env:"BENCH_TOKEN" help:"An access token to use, and to make keys with, instead of new accounts."`
	Organization string        `placeholder:"ID" help:"Where the token makes keys; its own, unless given."`
	Seed         uint64        `placeholder:"N" help:"Of what is random; chosen, unless given."`
	ClusterSize  int           `placeholder:"N" help:"Nodes of the cluster, for the report; as many as answer, unless given."`
	Fsync        string        `placeholder:"TEXT" help:"Whether the target syncs its disks, for the report, where it is not Sluice."`
	JSON         bool          `name:"json" help:"Print the report as JSON."`
	Output       string        `placeholder:"FILE" help:"Write the report as JSON into a file as well."`
	HTML         string        `name:"html" placeholder:"FILE" help:"Write the report as one HTML page, with plots, into a file as well."`
}

// Run measures and prints the report, also of what was measured before an interruption.
func (c *benchRunCommand) Run(ctx context.Context, env environment) error {
	mix, err := parseMix(c.Mix)
	if err != nil {
		return err
	}
	if c.Deadline < time.Second || c.Deadline > 24*time.Hour {
		return usagef("--deadline: want 1s to 24h, not %v", c.Deadline)
	}
	for _, n := range []struct {
		flag  string
		value int64
	}{{"rounds", int64(c.Rounds)}, {"concurrency", int64(c.Concurrency)}, {"users", int64(c.Users)}, {"keys", int64(c.Keys)}, {"window", c.Window}} {
		if n.value == 0 { // which means the default to the package
			return usagef("--%s: want at least 1, not 0", n.flag)
		}
	}
	load := bench.Load{
		Targets: c.Target, Scenario: c.Scenario, Mix: mix, Rates: c.Rate, Duration: c.Duration, Warmup: c.Warmup, Rounds: c.Rounds,
		Concurrency: c.Concurrency, Users: c.Users, Keys: c.Keys, Addresses: c.Addresses, Distribution: c.Distribution, ZipfExponent: c.Zipf,
		Limit: c.Limit, Window: c.Window, Path: c.Path, Timeout: c.Timeout, APIKeys: c.Key, Token: c.Token, Organization: c.Organization,
		Seed: c.Seed, Command: bench.WithoutSecrets(slices.Concat([]string{"sluice"}, env.args)), Version: version(), Commit: commit(),
		Fsync: c.Fsync, Nodes: c.ClusterSize, Progress: func(p bench.LoadProgress) { showProgress(env.stderr, p) },
	}
	if load.Beside, err = parseBeside(c.Beside, c.BesideP99); err != nil {
		return err
	}
	if c.Warmup == 0 {
		load.Warmup = -1
	}
	if c.FindMax {
		if c.P99 <= 0 {
			return usagef("--p99: want more than 0s, not %v", c.P99)
		}
		load.MaxP99 = c.P99
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeoutCause(ctx, c.Deadline, fmt.Errorf("not done within %v", c.Deadline))
	defer cancel()
	report, err := load.Run(ctx)
	var options *bench.OptionError
	if errors.As(err, &options) {
		return &usageError{err.Error()}
	}
	if report != nil && (len(report.Steps) > 0 || c.JSON) {
		err = errors.Join(err, writeBenchReport(env.stdout, report, c.JSON, c.Output, c.HTML))
	}
	if report != nil && report.Beside != nil && report.Beside.Exceeded {
		err = errors.Join(err, fmt.Errorf("%s takes more from %s than allowed", report.Beside.Scenario, report.Scenario))
	}
	return err
}

// benchReport is any report of the package bench.
type benchReport interface {
	WriteText(w io.Writer) error
	WriteJSON(w io.Writer) error
	WriteHTML(w io.Writer) error
}

// writeBenchReport prints the report and writes the files that are wanted.
func writeBenchReport(stdout io.Writer, report benchReport, asJSON bool, output, html string) error {
	printed := report.WriteText
	if asJSON {
		printed = report.WriteJSON
	}
	errs := []error{printed(stdout)}
	for _, f := range []struct {
		path  string
		write func(io.Writer) error
	}{{output, report.WriteJSON}, {html, report.WriteHTML}} {
		if f.path != "" {
			errs = append(errs, writeFile(f.path, f.write))
		}
	}
	return errors.Join(errs...)
}

func writeFile(path string, write func(io.Writer) error) error {
	file, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return errors.Join(write(file), file.Close())
}

// parseMix reads SCENARIO=WEIGHT.
func parseMix(parts []string) ([]bench.Share, error) {
	var mix []bench.Share
	for _, part := range parts {
		name, text, found := strings.Cut(part, "=")
		weight, err := strconv.Atoi(text)
		if !found || err != nil {
			return nil, usagef("--mix: want SCENARIO=WEIGHT, not %q", part)
		}
		mix = append(mix, bench.Share{Scenario: name, Weight: weight})
	}
	return mix, nil
}

// parseBeside reads SCENARIO=N and its bound; nil where there is none.
func parseBeside(text string, p99 time.Duration) (*bench.Beside, error) {
	if text == "" {
		if p99 != 0 {
			return nil, usagef("--beside-p99: needs --beside")
		}
		return nil, nil
	}
	name, count, found := strings.Cut(text, "=")
	n, err := strconv.Atoi(count)
	if !found || err != nil || n < 1 {
		return nil, usagef("--beside: want SCENARIO=N, not %q", text)
	}
	if p99 < 0 {
		return nil, usagef("--beside-p99: want more than 0s, not %v", p99)
	}
	return &bench.Beside{Scenario: name, Concurrency: n, P99Micros: float64(p99.Microseconds())}, nil
}

func showProgress(w io.Writer, p bench.LoadProgress) {
	switch {
	case p.Doing != "":
		fmt.Fprintf(w, "sluice bench: %s\n", p.Doing)
	case p.Second != nil:
		s := p.Second
		fmt.Fprintf(w, "sluice bench: %5.0fs  %8.0f answers/s  p50 %8.3fms  p99 %8.3fms  refused %d  failed %d\n",
			s.Seconds, s.Throughput(), s.P50Micros/1e3, s.P99Micros/1e3, s.Refused, s.Failed)
	}
}
