package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"sluice/bench"
)

// Exit codes are those of sluice.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(code(run(ctx, os.Args[1:], os.Stdout, os.Stderr), os.Stderr))
}

// usageError is a mistake of the command line.
type usageError struct{ message string }

func (e *usageError) Error() string { return e.message }

func code(err error, stderr io.Writer) int {
	if err == nil {
		return exitDone
	}
	if errors.Is(err, flag.ErrHelp) {
		return exitDone
	}
	fmt.Fprintf(stderr, "peers: %v\n", err)
	var usage *usageError
	var options *bench.OptionError
	if errors.As(err, &usage) || errors.As(err, &options) {
		return exitUsage
	}
	return exitFailed
}

// plan is what the command line asks for.
type plan struct {
	scenario, distribution           string
	peers                            []string // none: all that can be started
	rounds, concurrency, keys, nodes int
	limit, window                    int64
	duration, warmup                 time.Duration
	sluice, gubernator               string
	asJSON                           bool
	output, html                     string
	stderr                           io.Writer

	// Of the table of all promises: which rows ("" for all), what a flood is spread over, the addresses of the load at hand (0: one), and
	// the command line.
	whole     bool
	only      string
	addresses int
	flood     int
	command   []string
}

func parse(args []string, stderr io.Writer) (*plan, error) {
	p := &plan{stderr: stderr}
	flags := flag.NewFlagSet("peers", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&p.scenario, "scenario", "verify-key", "verify-key, limits-check, or create-key, which is compared with bare Raft")
	flags.StringVar(&p.distribution, "distribution", bench.Uniform, "of keys over requests: uniform or zipf")
	names := flags.String("peers", "", "which, joined by commas, of "+strings.Join(peerNames(), ", ")+" (default: all that can be started)")
	flags.IntVar(&p.rounds, "rounds", 5, "rounds, each of all peers")
	flags.IntVar(&p.concurrency, "concurrency", 32, "requests in flight; 128 for create-key, unless given")
	flags.IntVar(&p.keys, "keys", 100, "keys that requests are spread over")
	flags.IntVar(&p.nodes, "nodes", 1, "nodes of the Sluice cluster (1 to 9); 3 for create-key, unless given")
	flags.Int64Var(&p.limit, "limit", bench.MaxLimit, "limit of each key")
	flags.Int64Var(&p.window, "window", 1, "window of the limits in seconds; 1 or 60, which all peers have")
	flags.DurationVar(&p.duration, "duration", 3*time.Second, "of a round of one peer")
	flags.DurationVar(&p.warmup, "warmup", time.Second, "before each, not counted")
	flags.StringVar(&p.sluice, "sluice", "", "the program sluice (default: built from these sources)")
	flags.StringVar(&p.gubernator, "gubernator", "", "URL of a gubernator's HTTP API, for limits-check")
	flags.BoolVar(&p.asJSON, "json", false, "print the report as JSON")
	flags.StringVar(&p.output, "output", "", "file to write the report into as JSON as well")
	flags.StringVar(&p.html, "html", "", "file to write the report into as a page as well")
	flags.BoolVar(&p.whole, "table", false, "measure every row of the table of promises and print its ratios")
	flags.StringVar(&p.only, "only", "", "rows of -table whose names contain this")
	flags.IntVar(&p.addresses, "addresses", 1_000_000, "addresses of the flood of -table")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil, err
		}
		return nil, &usageError{err.Error()}
	}
	wrong := func(format string, args ...any) (*plan, error) { return nil, &usageError{fmt.Sprintf(format, args...)} }
	if flags.NArg() > 0 {
		return wrong("unexpected argument %q", flags.Arg(0))
	}
	set := map[string]bool{}
	flags.Visit(func(f *flag.Flag) { set[f.Name] = true })
	for _, name := range []string{"scenario", "peers", "nodes", "limit", "window", "gubernator", "json", "html"} {
		if p.whole && set[name] {
			return wrong("-table: its rows say what -%s would", name)
		}
	}
	if !p.whole && (set["only"] || set["addresses"]) {
		return wrong("-only and -addresses are for -table")
	}
	if p.addresses < 1 || p.addresses > bench.MaxAddresses {
		return wrong("-addresses: want 1 to %d, not %d", bench.MaxAddresses, p.addresses)
	}
	if p.scenario == createKey {
		if !set["nodes"] {
			p.nodes = 3
		}
		if !set["concurrency"] {
			p.concurrency = 128
		}
	}
	if *names != "" {
		p.peers = strings.Split(*names, ",")
	}
	for _, name := range p.peers {
		if !slices.Contains(peerNames(), name) {
			return wrong("-peers: there is no %q; there are %s", name, strings.Join(peerNames(), ", "))
		}
	}
	for _, peer := range allPeers() {
		if slices.Contains(p.peers, peer.name) && peer.name != gubernatorName && !peer.does(p.scenario) {
			return wrong("-peers: %s has no %s", peer.name, p.scenario)
		}
	}
	switch {
	case p.scenario != "verify-key" && p.scenario != "limits-check" && p.scenario != createKey:
		return wrong("-scenario: want verify-key, limits-check or create-key, not %q", p.scenario)
	case p.rounds < 1 || p.rounds > 100:
		return wrong("-rounds: want 1 to 100, not %d", p.rounds)
	case p.nodes < 1 || p.nodes > 9:
		return wrong("-nodes: want 1 to 9, not %d", p.nodes)
	case p.window != 1 && p.window != 60:
		return wrong("-window: want 1 or 60, not %d", p.window)
	case p.keys < 1 || p.concurrency < 1 || p.limit < 1 || p.warmup < 0:
		return wrong("-keys, -concurrency, -limit and -warmup: want at least 1, 1, 1 and 0s")
	case slices.Contains(p.peers, gubernatorName) && p.gubernator == "":
		return wrong("-gubernator: its URL is needed")
	case p.gubernator != "" && p.scenario != "limits-check":
		return wrong("-gubernator: it answers limits-check alone")
	}
	return p, nil
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) > 0 {
		switch args[0] {
		case redisFrontCommand:
			return redisFront(ctx, args[1:], stdout)
		case raftNodeCommand:
			return raftNode(ctx, args[1:], stdout)
		}
	}
	p, err := parse(args, stderr)
	if err != nil {
		return err
	}
	p.command = bench.WithoutSecrets(append([]string{"peers"}, args...))
	if p.whole {
		return p.table(ctx, stdout)
	}
	report, err := p.run(ctx, bench.WithoutSecrets(append([]string{"peers"}, args...)))
	if report == nil {
		return err
	}
	printed := report.WriteText
	if p.asJSON {
		printed = report.WriteJSON
	}
	errs := []error{err, printed(stdout)}
	for _, f := range []struct {
		path  string
		write func(io.Writer) error
	}{{p.output, report.WriteJSON}, {p.html, report.WriteHTML}} {
		if f.path == "" {
			continue
		}
		file, err := os.Create(f.path)
		if err != nil {
			errs = append(errs, fmt.Errorf("write the report: %w", err))
			continue
		}
		errs = append(errs, f.write(file), file.Close())
	}
	return errors.Join(errs...)
}

// run starts the peers, measures them in turn, and ends them.
func (p *plan) run(ctx context.Context, command []string) (report *bench.PeersReport, err error) {
	dir, err := os.MkdirTemp("", "sluice-peers-")
	if err != nil {
		return nil, fmt.Errorf("make a directory: %w", err)
	}
	defer os.RemoveAll(dir)
	report = &bench.PeersReport{
		Kind: bench.KindPeers, Schema: bench.SchemaReport, Provenance: bench.NewProvenance(command, "", commitOf(ctx)), Scenario: p.scenario,
		Concurrency: p.concurrency, Seconds: p.duration.Seconds(), Keys: p.keys, Reference: floorName, Subject: sluiceName,
	}
	report.Provenance.Cluster.Nodes = p.nodes
	if p.scenario == createKey {
		report.Reference = raftName
	}
	var servers []*server
	defer func() {
		for _, s := range slices.Backward(servers) {
			s.stop()
		}
	}()
	for _, peer := range allPeers() {
		if len(p.peers) > 0 && !slices.Contains(p.peers, peer.name) || !peer.does(p.scenario) {
			continue
		}
		fmt.Fprintf(p.stderr, "peers: starting %s\n", peer.name)
		s, err := peer.start(ctx, p, dir)
		var missing *missingError
		if errors.As(err, &missing) && len(p.peers) == 0 {
			fmt.Fprintf(p.stderr, "peers: left out: %s: %v\n", peer.name, err)
			report.Notes = append(report.Notes, fmt.Sprintf("left out: %s: %v", peer.name, err))
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("start %s: %w", peer.name, err)
		}
		servers = append(servers, s)
		report.Peers = append(report.Peers, bench.Peer{Name: peer.name, Describe: peer.describe, Version: s.version})
	}
	for round := range p.rounds {
		for i := range servers {
			// Whoever comes first in a round is another one each time.
			at := (i + round) % len(servers)
			fmt.Fprintf(p.stderr, "peers: round %d of %d: %s\n", round+1, p.rounds, report.Peers[at].Name)
			measured, cluster, err := p.measure(ctx, servers[at])
			if err != nil {
				return nil, fmt.Errorf("measure %s: %w", report.Peers[at].Name, err)
			}
			if report.Peers[at].Name == sluiceName {
				report.Provenance.Cluster = cluster
			}
			report.Peers[at].Rounds = append(report.Peers[at].Rounds, measured)
		}
	}
	return report, nil
}

// commitOf is that of the sources, "" where they are in no repository.
func commitOf(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "git", "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=.dirty").Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

// measure sends one round.
func (p *plan) measure(ctx context.Context, s *server) (bench.PeerRound, bench.Cluster, error) {
	if s.load != nil {
		round, err := s.load(ctx)
		return round, bench.Cluster{}, err
	}
	var first, last usage
	var ownFirst, ownLast time.Duration
	report, err := bench.Load{
		Targets: s.targets, Scenario: p.scenario, Duration: p.duration, Warmup: cmpOr(p.warmup, -1), Concurrency: p.concurrency, Keys: p.keys,
		Distribution: p.distribution, Limit: p.limit, Window: p.window, APIKeys: s.keys, Token: s.token, Check: s.check, Nodes: len(s.targets), Addresses: p.flood,
		Progress: func(done bench.LoadProgress) {
			switch {
			case done.Begun:
				first, ownFirst = s.usage(), ownCPU()
			case done.Step != nil:
				last, ownLast = s.usage(), ownCPU()
			}
		},
	}.Run(ctx)
	if err != nil {
		return bench.PeerRound{}, bench.Cluster{}, err
	}
	f := &report.Steps[0].Figures
	each := func(d time.Duration) float64 {
		return float64(d.Microseconds()) / float64(max(f.Admitted+f.Refused+f.Failed, 1))
	}
	return bench.PeerRound{
		Throughput: f.Throughput, P50Micros: f.Latency.P50Micros, P99Micros: f.Latency.P99Micros, Admitted: f.Admitted, Refused: f.Refused, Failed: f.Failed,
		ServerMicros: each(last.cpu - first.cpu), ClientMicros: each(ownLast - ownFirst),
	}, report.Provenance.Cluster, nil
}

func cmpOr(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}
