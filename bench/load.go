package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Load is a measurement of how much the targets take and how long their answers take. The zero value of each field but
// Targets and Scenario is its default.
type Load struct {
	// Targets are the nodes' base URLs, or a load balancer's; 1 to MaxTargets. Requests go to one after the other.
	Targets  []string
	Scenario string // a name of Scenarios, or Mixed
	Mix      []Share
	// Rates of requests a second, one step after the other; none: a closed loop, in which each connection sends its next
	// request when it has the answer to the last one.
	Rates       []float64
	Duration    time.Duration // of a step; 0: DefaultStep
	Warmup      time.Duration // before each step, not counted; 0: DefaultWarmup, below 0: none
	Rounds      int           // how often all steps are measured; 0: once
	Concurrency int           // requests in flight at once, at most; 0: DefaultConnections
	// Users, Keys and Addresses are how many there are of each; 0: DefaultUsers, DefaultKeys, and DefaultAddresses where
	// the scenario is about addresses, else that of this machine. Addresses are told in X-Forwarded-For, which the
	// cluster believes from trusted proxies only.
	Users, Keys, Addresses int
	Distribution           string  // Uniform or Zipf; "": Uniform
	ZipfExponent           float64 // above 1; 0: DefaultZipfExponent
	// Limit in Window seconds is that of keys that are made, and that checks of the check API ask for; 0: MaxLimit, 1.
	Limit, Window int64
	// Check is what limits-check sends to a server with a check API of another shape; nil: Sluice's own.
	Check *CheckRequest
	Path  string // of the gateway scenario; "": DefaultPath
	// MaxP99, above 0, looks for the highest rate whose 99th percentile stays under it, from Rates[0] on if it is given.
	MaxP99  time.Duration
	Beside  *Beside       // another load beside each step; nil: none
	Timeout time.Duration // of one request; 0: DefaultTimeout
	// APIKeys are keys to use instead of new ones; Token is an access token to use, and to make keys with in Organization.
	APIKeys             []string
	Token, Organization string
	Seed                uint64 // of what is random; 0: chosen
	// Command, Version, Commit, Nodes and Fsync are for the report: the command without secrets, this program's version
	// and commit, the cluster's size and whether it syncs its disks, where these are known.
	Command                []string
	Version, Commit, Fsync string
	Nodes                  int
	// Progress is told what is being done, each second of a step, and each step that has ended; nil: nobody. It is called
	// by one goroutine at a time.
	Progress func(LoadProgress)
}

// CheckRequest is a request about one key of the caller's own: a POST of Head, the key's number and Tail. An answer that
// contains Refused, which is not empty, is a refusal.
type CheckRequest struct{ Path, Head, Tail, Refused string }

// Share is a part of a mixed load.
type Share struct {
	Scenario string `json:"scenario"`
	Weight   int    `json:"weight"` // 1 to MaxWeight
}

// LoadProgress is one step of a measurement; one field is set.
type LoadProgress struct {
	Doing  string
	Begun  bool // what is counted of a step begins, after its warm-up
	Second *Second
	Step   *Step
}

// Defaults and bounds of a Load.
const (
	DefaultStep         = 10 * time.Second
	DefaultWarmup       = 2 * time.Second
	DefaultConnections  = 64
	DefaultUsers        = 4
	DefaultKeys         = 100
	DefaultAddresses    = 1000
	DefaultZipfExponent = 1.1
	DefaultPath         = "/api/v1/triggers"

	MaxRates     = 100
	MaxRate      = 1_000_000.0
	MaxStep      = time.Hour
	MaxWarmup    = 10 * time.Minute
	MaxRounds    = 100
	MaxUsers     = 1000
	MaxKeys      = 10_000_000
	MaxAddresses = 100_000_000
	MaxWeight    = 1_000_000
)

// withDefaults fills what is zero and tells every mistake.
func (l Load) withDefaults() (*Load, error) {
	var problems []error
	wrong := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	l.Targets = slices.Clone(l.Targets)
	checkTargets(l.Targets, wrong)
	shares := l.Mix
	switch _, found := findScenario(l.Scenario); {
	case l.Scenario == Mixed && len(l.Mix) == 0:
		wrong("mix: %s needs the weights of at least one scenario", Mixed)
	case l.Scenario != Mixed && len(l.Mix) > 0:
		wrong("mix: is for the scenario %s", Mixed)
	case l.Scenario != Mixed && !found:
		wrong("scenario: there is no %q; there are %s, %s", l.Scenario, strings.Join(scenarioNames(), ", "), Mixed)
	case l.Scenario != Mixed:
		shares = []Share{{Scenario: l.Scenario, Weight: 1}}
	}
	want := needs{}
	for _, s := range shares {
		scenario, found := findScenario(s.Scenario)
		if !found {
			wrong("mix: there is no %q; there are %s", s.Scenario, strings.Join(scenarioNames(), ", "))
		}
		if s.Weight < 1 || s.Weight > MaxWeight {
			wrong("mix: %s: want a weight of 1 to %d, not %d", s.Scenario, MaxWeight, s.Weight)
		}
		want.addresses = want.addresses || scenario.needs.addresses
	}
	l.Mix = shares
	if want.addresses && l.Addresses == 0 {
		l.Addresses = DefaultAddresses
	}
	l.Duration, l.Warmup, l.Timeout = cmpOr(l.Duration, DefaultStep), max(cmpOr(l.Warmup, DefaultWarmup), 0), cmpOr(l.Timeout, DefaultTimeout)
	l.Rounds, l.Concurrency = cmpOr(l.Rounds, 1), cmpOr(l.Concurrency, DefaultConnections)
	l.Users, l.Keys = cmpOr(l.Users, DefaultUsers), cmpOr(l.Keys, DefaultKeys)
	l.Distribution, l.ZipfExponent = cmpOr(l.Distribution, Uniform), cmpOr(l.ZipfExponent, DefaultZipfExponent)
	l.Limit, l.Window, l.Path = cmpOr(l.Limit, MaxLimit), cmpOr(l.Window, 1), cmpOr(l.Path, DefaultPath)
	within(wrong, "rounds", l.Rounds, 1, MaxRounds)
	within(wrong, "concurrency", l.Concurrency, 1, MaxConcurrency)
	within(wrong, "users", l.Users, 1, MaxUsers)
	within(wrong, "keys", l.Keys, 1, MaxKeys)
	within(wrong, "addresses", l.Addresses, 0, MaxAddresses)
	within(wrong, "limit", l.Limit, 1, MaxLimit)
	within(wrong, "window", l.Window, 1, MaxWindow)
	within(wrong, "cluster size", l.Nodes, 0, 10_000)
	within(wrong, "duration", l.Duration, time.Second, MaxStep)
	within(wrong, "warm-up", l.Warmup, 0, MaxWarmup)
	within(wrong, "timeout", l.Timeout, 10*time.Millisecond, time.Minute)
	within(wrong, "p99", l.MaxP99, 0, time.Minute)
	if l.Beside != nil {
		beside := *l.Beside
		beside.Concurrency = cmpOr(beside.Concurrency, DefaultConnections)
		beside.check(&l, wrong)
		l.Beside = &beside
	}
	if len(l.Rates) > MaxRates {
		wrong("rates: want at most %d of them, not %d", MaxRates, len(l.Rates))
	}
	for _, r := range l.Rates {
		if !(r >= 0.1 && r <= MaxRate) {
			wrong("rates: want 0.1 to %.0f, not %v", MaxRate, r)
		}
	}
	if l.MaxP99 > 0 && (len(l.Rates) > 1 || l.Rounds > 1) {
		wrong("p99: looking for the highest rate begins with one rate at most, in one round")
	}
	if l.Distribution != Uniform && l.Distribution != Zipf {
		wrong("distribution: want %s or %s, not %q", Uniform, Zipf, l.Distribution)
	}
	if !(l.ZipfExponent > 1 && l.ZipfExponent <= 10) {
		wrong("zipf exponent: want more than 1, up to 10, not %v", l.ZipfExponent)
	}
	if !strings.HasPrefix(l.Path, "/") || strings.ContainsAny(l.Path, " \r\n\t") {
		wrong("path: want one that begins with / and has no spaces, not %q", l.Path)
	}
	for _, secret := range append(slices.Clone(l.APIKeys), l.Token) {
		if strings.ContainsAny(secret, " \r\n\t") {
			wrong("credentials: one has spaces or line ends in it")
		}
	}
	if l.Organization != "" && l.Token == "" {
		wrong("organization: needs a token")
	}
	if len(problems) > 0 {
		return nil, &OptionError{errors.Join(problems...)}
	}
	if l.Seed == 0 {
		l.Seed = rand.Uint64()
	}
	if l.Progress == nil {
		l.Progress = func(LoadProgress) {}
	}
	return &l, nil
}

func within[T int | int64 | time.Duration](wrong func(string, ...any), name string, v, low, up T) {
	if v < low || v > up {
		wrong("%s: want %v to %v, not %v", name, low, up, v)
	}
}

// checkTargets brings base URLs into one form.
func checkTargets(targets []string, wrong func(string, ...any)) {
	if len(targets) == 0 || len(targets) > MaxTargets {
		wrong("targets: want 1 to %d, not %d", MaxTargets, len(targets))
	}
	for i, target := range targets {
		u, err := url.Parse(target)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.User != nil || strings.Trim(u.Path, "/") != "" {
			wrong("targets: want http://HOST:PORT or https://HOST:PORT, not %q", target)
			continue
		}
		targets[i] = u.Scheme + "://" + u.Host
	}
}

// Run measures. An error is an *OptionError, or says why nothing, or not all, could be measured: a target that answered
// nothing at all is such an error. The report holds what was measured before the error or the end of ctx.
func (l Load) Run(ctx context.Context) (report *LoadReport, err error) {
	o, err := l.withDefaults()
	if err != nil {
		return nil, err
	}
	report = newLoadReport(o)
	g, err := newGenerator(o)
	if err != nil {
		return report, err
	}
	defer g.close()
	if err := g.reach(); err != nil {
		return report, err
	}
	beside, err := newCompanion(o)
	if err != nil {
		return report, err
	}
	if beside != nil {
		defer beside.close()
	}
	report.Provenance.Cluster = lookAround(ctx, o.Targets, o.Timeout, Cluster{Nodes: o.Nodes, Fsync: o.Fsync})

	p := newPreparer(o)
	defer p.api.close()
	defer func() {
		// Even when ctx has ended: what was made is taken away again.
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
		defer cancel()
		report.Notes = append(report.Notes, p.close(clean)...)
	}()
	var want needs
	scenarios := slices.Clone(o.Mix)
	if beside != nil {
		scenarios = append(scenarios, beside.load.Mix...)
	}
	for _, s := range scenarios {
		scenario, _ := findScenario(s.Scenario)
		n := scenario.needs
		want.tokens, want.accounts, want.keys = want.tokens || n.tokens, want.accounts || n.accounts, want.keys || n.keys
		want.organization, want.manyKeys = want.organization || n.organization, want.manyKeys || n.manyKeys
		if n.scope != "" && !slices.Contains(p.scopes, n.scope) {
			p.scopes = append(p.scopes, n.scope)
		}
	}
	if err := p.prepare(ctx, want); err != nil {
		return report, err
	}
	g.equip(p.material)
	if beside != nil {
		beside.equip(p.material)
	}
	report.Subjects = o.subjects(p.material)
	// What preparing has left behind shall not be collected while measuring.
	runtime.GC()
	if o.MaxP99 > 0 {
		err = o.findMax(ctx, g, report)
	} else {
		err = o.measureSteps(ctx, g, beside, report)
	}
	report.besideReport(o)
	if err == nil {
		err = report.silent()
	}
	return report, err
}

// measureSteps measures every step in every round.
func (l *Load) measureSteps(ctx context.Context, g *generator, beside *companion, report *LoadReport) error {
	rates := l.Rates
	if len(rates) == 0 {
		rates = []float64{0}
	}
	for round := range l.Rounds {
		for _, rate := range rates {
			step, err := g.step(ctx, rate, round+1)
			if step != nil {
				report.Steps = append(report.Steps, *step)
			}
			if err != nil {
				return err
			}
			if beside == nil {
				continue
			}
			l.Progress(LoadProgress{Doing: "beside " + l.Beside.Scenario})
			stop := beside.start(ctx)
			step, err = g.step(ctx, rate, round+1)
			figures := stop()
			if step != nil {
				step.Beside = &Split{Name: l.Beside.Scenario, Figures: figures}
				report.Steps = append(report.Steps, *step)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// subjects is how many limits the load is spread over, 0 where that cannot be told.
func (l *Load) subjects(m *material) int {
	switch {
	case len(l.Mix) > 1:
		return 0
	case l.Mix[0].Scenario == "verify-jwt":
		return len(m.tokens)
	case l.Mix[0].Scenario == "create-key":
		return len(m.managers)
	case l.Mix[0].Scenario == "verify-key", l.Mix[0].Scenario == "gateway":
		return len(m.keys)
	case l.Mix[0].Scenario == "limits-check":
		return l.Keys
	}
	return max(l.Addresses, 1)
}
