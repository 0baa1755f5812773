package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"sluice/bench"
)

type benchCommand struct {
	Run      benchRunCommand      `cmd:"" help:"Find out how much a running cluster takes, and how long its answers take."`
	Accuracy benchAccuracyCommand `cmd:"" help:"Find out whether a running cluster ever exceeds a limit, or wastes it."`
	Floor    benchFloorCommand    `cmd:"" help:"Serve empty answers, for measurements to be compared with."`
	Compare  benchCompareCommand  `cmd:"" help:"Compare two reports, and fail where the second is worse."`
}

type benchAccuracyCommand struct {
	Target       []string      `placeholder:"URL" default:"http://127.0.0.1:8080,http://127.0.0.1:8081,http://127.0.0.1:8082" help:"Base URL of a node, once for each, or of a load balancer."`
	Limit        []int64       `placeholder:"N" default:"3,10,100,1000" help:"Limits to try (1 to 1000000), each with keys of its own."`
	Window       int64         `default:"${benchWindow}" help:"Window of the limits (1 to 3600)."`
	Algorithm    string        `enum:"sliding_window,fixed_window,token_bucket" default:"sliding_window" help:"What the cluster has as limits.api_key.algorithm: sliding_window, fixed_window or token_bucket."`
	Patterns     []string      `placeholder:"NAME" help:"Of ${benchPatterns}; all, unless given."`
	Requests     int           `placeholder:"N" help:"Requests at once in a burst (1 to 200000); 1500 or half as many again as the limit, unless given."`
	Concurrency  int           `default:"${benchConcurrency}" help:"Requests in flight (1 to 4096)."`
	Duration     time.Duration `default:"${benchDuration}" help:"Of a sustained attack (1s to 10m)."`
	After        time.Duration `default:"${benchAfter}" help:"How long a refused client goes on until unused limit counts as wasted (100ms to 1m)."`
	Timeout      time.Duration `default:"${benchTimeout}" help:"Of one request (10ms to 1m)."`
	ClockSkew    time.Duration `placeholder:"DURATION" default:"-1s" help:"How far the clocks of the nodes and of this program may differ; none on this machine and else 1s, unless given."`
	Deadline     time.Duration `default:"1h" help:"Of the whole measurement."`
	Key          string        `placeholder:"KEY" env:"BENCH_API_KEY" help:"An API key to measure, with the limit that it has, instead of new ones."`
	Token        string        `placeholder:"JWT" env:"BENCH_TOKEN" help:"An access token to make the keys with, instead of a new account."`
	Organization string        `placeholder:"ID" help:"Where the token makes keys; its own, unless given."`
	Seed         uint64        `placeholder:"N" help:"Of what is random; chosen, unless given."`
	JSON         bool          `name:"json" help:"Print the report as JSON."`
	Output       string        `placeholder:"FILE" help:"Write the report as JSON into a file as well."`
	HTML         string        `name:"html" placeholder:"FILE" help:"Write the report as one HTML page, with plots, into a file as well."`
}

// benchVariables are what the help takes from the package bench.
func benchVariables() kong.Vars {
	var names []string
	for _, p := range bench.Patterns() {
		names = append(names, p.Name)
	}
	var scenarios []string
	for _, s := range bench.Scenarios() {
		scenarios = append(scenarios, s.Name)
	}
	return kong.Vars{
		"benchPatterns": strings.Join(names, ", "), "benchWindow": strconv.FormatInt(bench.DefaultWindow, 10),
		"benchConcurrency": strconv.Itoa(bench.DefaultConcurrency), "benchDuration": bench.DefaultDuration.String(),
		"benchScenarios": strings.Join(scenarios, ", "), "benchStep": bench.DefaultStep.String(), "benchWarmup": bench.DefaultWarmup.String(),
		"benchConnections": strconv.Itoa(bench.DefaultConnections), "benchUsers": strconv.Itoa(bench.DefaultUsers),
		"benchKeys": strconv.Itoa(bench.DefaultKeys), "benchZipf": strconv.FormatFloat(bench.DefaultZipfExponent, 'f', -1, 64), "benchPath": bench.DefaultPath,
		"benchAddresses":       strconv.Itoa(bench.DefaultAddresses),
		"benchThroughputBound": strconv.FormatFloat(bench.DefaultThroughputBound, 'f', -1, 64),
		"benchLatencyBound":    strconv.FormatFloat(bench.DefaultLatencyBound, 'f', -1, 64),
		"benchAfter":           bench.DefaultAfter.String(), "benchTimeout": bench.DefaultTimeout.String(),
	}
}

// Run measures and prints the report, also of what was measured before an interruption.
func (c *benchAccuracyCommand) Run(ctx context.Context, env environment) error {
	if c.Deadline < time.Second || c.Deadline > 24*time.Hour {
		return usagef("--deadline: want 1s to 24h, not %v", c.Deadline)
	}
	if c.Requests < 0 {
		return usagef("--requests: want 1 to %d, not %d", bench.MaxRequests, c.Requests)
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeoutCause(ctx, c.Deadline, fmt.Errorf("not done within %v", c.Deadline))
	defer cancel()
	measurement := bench.Accuracy{
		Targets: c.Target, Limits: c.Limit, Window: c.Window, Fixed: c.Algorithm == "fixed_window", Tokens: c.Algorithm == "token_bucket", Patterns: c.Patterns,
		Requests: c.Requests, Concurrency: c.Concurrency, Duration: c.Duration, After: c.After, Timeout: c.Timeout,
		ClockSkew: c.ClockSkew, Key: c.Key, Token: c.Token, Organization: c.Organization, Seed: c.Seed, Version: version(),
		Command: bench.WithoutSecrets(slices.Concat([]string{"sluice"}, env.args)), Commit: commit(),
		Progress: func(p bench.Progress) {
			if p.Doing != "" {
				fmt.Fprintf(env.stderr, "sluice bench: %s\n", p.Doing)
			}
		},
	}
	report, err := measurement.Run(ctx)
	var options *bench.OptionError
	if errors.As(err, &options) {
		return &usageError{err.Error()}
	}
	if report != nil && (len(report.Results) > 0 || c.JSON) {
		err = errors.Join(err, writeBenchReport(env.stdout, report, c.JSON, c.Output, c.HTML))
	}
	if report != nil && report.OverAdmitted {
		err = errors.Join(err, errors.New("a limit was exceeded"))
	}
	return err
}
