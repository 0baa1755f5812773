package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Accuracy is a measurement of whether limits hold and are used up. The zero value of each field but Targets and Limits is
// its default.
type Accuracy struct {
	// Targets are the nodes' base URLs, or a load balancer's; 1 to MaxTargets. What differs between patterns is lost
	// behind a load balancer.
	Targets []string
	// Limits are tried one after the other, each with keys of its own. With Key they are not used: the key has its own.
	Limits []int64
	Window int64 // seconds; 0: DefaultWindow. With Key it is not used.
	// Fixed says that the cluster's limits.api_key.algorithm is fixed_window, Tokens that it is token_bucket, else it is
	// sliding_window. A key's own limit goes by it; a token bucket then has a burst of as much.
	Fixed, Tokens bool

	Patterns []string // names; none: all
	// Requests at once in a burst; 0: 1,500, and at least half as many again as the limit.
	Requests    int
	Concurrency int           // requests in flight at once; 0: DefaultConcurrency
	Duration    time.Duration // of what lasts; 0: DefaultDuration
	After       time.Duration // how long a refused client goes on; 0: DefaultAfter
	Timeout     time.Duration // of one request; 0: DefaultTimeout
	// ClockSkew between nodes and this program; below 0: none where all targets are of this machine, else one second.
	ClockSkew time.Duration
	// Key is an API key to measure instead of new ones. Nobody else may use it meanwhile, and it may have been used
	// before: each pattern waits until its limit is whole again.
	Key string
	// Token is an access token to make keys with, in Organization ("": the token's own). Without one an account is made,
	// and deleted at the end.
	Token, Organization string
	Seed                uint64 // of what is random; 0: chosen
	Version             string // of this program, for the report
	// Command without secrets, and Commit, for the report.
	Command []string
	Commit  string
	// Progress is told each result as it comes, and what is being done; nil: nobody.
	Progress func(Progress)
}

// Progress is one step of a measurement.
type Progress struct {
	Doing  string  // what begins, in words
	Result *Result // what has ended, else nil
}

// Defaults and bounds of an Accuracy.
const (
	DefaultWindow      = int64(10)
	DefaultRequests    = 1500
	DefaultConcurrency = 128
	DefaultDuration    = 15 * time.Second // a window and a half
	DefaultAfter       = time.Second
	DefaultTimeout     = 5 * time.Second

	MaxTargets     = 64
	MaxLimits      = 32
	MaxLimit       = int64(1_000_000)
	MaxWindow      = int64(3600)
	MaxRequests    = 200_000
	MaxConcurrency = 4096
	MaxDuration    = 10 * time.Minute
)

// withDefaults fills what is zero and tells every mistake.
func (a Accuracy) withDefaults() (Accuracy, error) {
	a.Targets, a.Limits = slices.Clone(a.Targets), slices.Clone(a.Limits)
	var problems []error
	wrong := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	checkTargets(a.Targets, wrong)
	if a.Key == "" && (len(a.Limits) == 0 || len(a.Limits) > MaxLimits) {
		wrong("limits: want 1 to %d of them, not %d", MaxLimits, len(a.Limits))
	}
	for _, limit := range a.Limits {
		if limit < 1 || limit > MaxLimit {
			wrong("limits: want 1 to %d, not %d", MaxLimit, limit)
		}
	}
	if a.Fixed && a.Tokens {
		wrong("algorithm: want one, not fixed windows and token buckets")
	}
	if a.Key != "" && (a.Token != "" || a.Organization != "") {
		wrong("key: with it no token and no organization are needed")
	}
	if a.Organization != "" && a.Token == "" {
		wrong("organization: needs a token")
	}
	for _, name := range a.Patterns {
		if !slices.ContainsFunc(Patterns(), func(p Pattern) bool { return p.Name == name }) {
			wrong("patterns: there is no %q; there are %s", name, strings.Join(patternNames(), ", "))
		}
	}
	a.Window = cmpOr(a.Window, DefaultWindow)
	a.Concurrency = cmpOr(a.Concurrency, DefaultConcurrency)
	a.Duration, a.After, a.Timeout = cmpOr(a.Duration, DefaultDuration), cmpOr(a.After, DefaultAfter), cmpOr(a.Timeout, DefaultTimeout)
	for _, b := range []struct {
		name           string
		value, low, up int64
	}{
		{"window", a.Window, 1, MaxWindow}, {"requests", int64(a.Requests), 0, MaxRequests}, {"concurrency", int64(a.Concurrency), 1, MaxConcurrency},
	} {
		if b.value < b.low || b.value > b.up {
			wrong("%s: want %d to %d, not %d", b.name, b.low, b.up, b.value)
		}
	}
	for _, b := range []struct {
		name    string
		value   time.Duration
		low, up time.Duration
	}{
		{"duration", a.Duration, time.Second, MaxDuration}, {"after", a.After, 100 * time.Millisecond, time.Minute},
		{"timeout", a.Timeout, 10 * time.Millisecond, time.Minute},
	} {
		if b.value < b.low || b.value > b.up {
			wrong("%s: want %v to %v, not %v", b.name, b.low, b.up, b.value)
		}
	}
	if a.ClockSkew > time.Minute {
		wrong("clock skew: want at most 1m, not %v", a.ClockSkew)
	}
	if len(problems) > 0 {
		return a, &OptionError{errors.Join(problems...)}
	}
	if a.ClockSkew < 0 {
		a.ClockSkew = presumedSkew(a.Targets)
	}
	if a.Seed == 0 {
		a.Seed = rand.Uint64()
	}
	if a.Progress == nil {
		a.Progress = func(Progress) {}
	}
	return a, nil
}

// OptionError says what is wrong with the options of a measurement; all mistakes at once.
type OptionError struct{ err error }

func (e *OptionError) Error() string { return e.err.Error() }

// Unwrap gives the mistakes.
func (e *OptionError) Unwrap() error { return e.err }

func cmpOr[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

func patternNames() []string {
	var names []string
	for _, p := range Patterns() {
		names = append(names, p.Name)
	}
	return names
}

// presumedSkew is none on one machine, else what a cluster allows by default.
func presumedSkew(targets []string) time.Duration {
	for _, target := range targets {
		u, err := url.Parse(target)
		if err != nil || !local(u.Hostname()) {
			return time.Second
		}
	}
	return 0
}

// Run measures. An error is an *OptionError, or says why nothing could be measured; over-admission is no error but stands
// in the report. The report holds what was measured before the error or the end of ctx.
func (a Accuracy) Run(ctx context.Context) (report *Report, err error) {
	a, err = a.withDefaults()
	if err != nil {
		return nil, err
	}
	report = newReport(a)
	api := newAPI(a.Targets[0], a.Timeout)
	defer api.close()
	report.Provenance.Cluster = lookAround(ctx, a.Targets, a.Timeout, Cluster{})
	crew, err := newCrew(a)
	if err != nil {
		return report, err
	}
	defer crew.close()

	subject, err := a.subject(ctx, api, crew)
	if err != nil {
		return report, err
	}
	defer func() {
		// Even when ctx has ended: what was made is taken away again.
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		if cleanErr := subject.close(clean); cleanErr != nil {
			report.Notes = append(report.Notes, "left behind: "+cleanErr.Error())
		}
	}()
	if a.Key != "" {
		report.Algorithm = a.algorithm()
	}
	for _, pattern := range Patterns() {
		if len(a.Patterns) > 0 && !slices.Contains(a.Patterns, pattern.Name) {
			continue
		}
		for _, limit := range subject.limits(a.Limits) {
			a.Progress(Progress{Doing: fmt.Sprintf("%s, limit %d", pattern.Name, limit)})
			result, err := a.measure(ctx, crew, subject, pattern, limit)
			if err != nil {
				return report, fmt.Errorf("measure %s with a limit of %d: %w", pattern.Name, limit, err)
			}
			report.add(*result)
			a.Progress(Progress{Result: result})
		}
	}
	return report, nil
}

func (a *Accuracy) algorithm() string {
	switch {
	case a.Fixed:
		return "fixed_window"
	case a.Tokens:
		return "token_bucket"
	}
	return "sliding_window"
}

// measure runs one pattern against one limit.
func (a *Accuracy) measure(ctx context.Context, crew *crew, subject subject, pattern Pattern, limit int64) (*Result, error) {
	key, rule, err := subject.key(ctx, limit)
	if err != nil {
		return nil, err
	}
	p := &planner{nodes: len(a.Targets), rule: rule, crowd: a.Requests, after: a.After, duration: a.Duration}
	if p.crowd == 0 {
		p.crowd = int(max(DefaultRequests, max(rule.Limit, rule.Burst)*3/2))
	}
	length := time.Duration(rule.Window) * time.Second
	// A burst of as many as the limit takes a part of a second for each thousand.
	p.lead = min(500*time.Millisecond+time.Duration(rule.Limit)*250*time.Microsecond, length/2)
	if err := crew.warm(ctx); err != nil {
		return nil, err
	}
	end, err := awaitStart(ctx, pattern, p, length)
	if err != nil {
		return nil, err
	}
	crew.begin(key)
	began := time.Now()
	for _, s := range pattern.plan(p) {
		if s.untilEnd {
			s.duration = max(time.Until(end), 0)
		}
		if err := crew.run(ctx, s); err != nil {
			return nil, err
		}
	}
	samples, problem := merge(crew.recorders)
	result := newResult(pattern.Name, rule, a.algorithm(), samples, Check(rule, Bounds{Skew: a.ClockSkew, After: a.After}, samples))
	result.Seconds, result.Problem = time.Since(began).Seconds(), problem
	if err := crew.applies(rule); err != nil {
		return nil, err
	}
	if result.Admitted+result.Refused == 0 {
		return nil, fmt.Errorf("nothing was decided: %s", cmpOr(problem, "no answer"))
	}
	return result, subject.done(ctx)
}

// awaitStart waits for the moment in a window at which the pattern should begin, and returns the window's end. Windows
// are those of this program's clock.
func awaitStart(ctx context.Context, pattern Pattern, p *planner, length time.Duration) (end time.Time, err error) {
	now, seconds := time.Now(), int64(length/time.Second)
	end = time.Unix((now.Unix()/seconds+1)*seconds, 0)
	begin := now
	if pattern.atEdge {
		if begin = end.Add(-p.lead); begin.Before(now) {
			begin, end = begin.Add(length), end.Add(length)
		}
	} else if need := min(p.after+3*time.Second, length*3/4); end.Sub(now) < need {
		begin, end = end.Add(20*time.Millisecond), end.Add(length)
	}
	return end, pause(ctx, time.Until(begin))
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// crew are the workers, with the connections to all nodes and what they note. Its methods are called by one goroutine.
type crew struct {
	targets   []*target
	workers   int
	seed      uint64
	runs      uint64
	key       string
	recorders []*recorder
	sent      atomic.Int64
}

func newCrew(a Accuracy) (*crew, error) {
	c := &crew{workers: a.Concurrency, seed: a.Seed}
	for i, base := range a.Targets {
		t, err := newTarget(i, base, a.Concurrency, a.Timeout)
		if err != nil {
			return nil, err
		}
		c.targets = append(c.targets, t)
	}
	return c, nil
}

func (c *crew) close() {
	for _, t := range c.targets {
		t.close()
	}
}

// begin forgets the last pattern's samples.
func (c *crew) begin(key string) {
	c.key = key
	c.recorders = make([]*recorder, c.workers)
	for i := range c.recorders {
		c.recorders[i] = new(recorder)
	}
	c.sent.Store(0)
}

// applies says whether the nodes apply the limit that was asked for.
func (c *crew) applies(rule Rule) error {
	for _, r := range c.recorders {
		got := r.told
		if got == (told{}) {
			continue
		}
		if got.limit != rule.Limit || got.window != rule.Window {
			return fmt.Errorf("the cluster applies %d in %d s, not %d in %d s", got.limit, got.window, rule.Limit, rule.Window)
		}
		if got.burst != rule.Burst {
			return fmt.Errorf("the cluster names a burst of %d, not %d: is limits.api_key.algorithm another one?", got.burst, rule.Burst)
		}
	}
	return nil
}

// warm opens connections and says which node does not answer. /livez counts against no limit.
func (c *crew) warm(ctx context.Context) error {
	var wg sync.WaitGroup
	errs := make([]error, c.workers)
	for w := range c.workers {
		wg.Go(func() {
			for i := range c.targets {
				t := c.targets[(w+i)%len(c.targets)]
				if err := t.alive(); err != nil {
					errs[w] = err
					return
				}
			}
		})
	}
	wg.Wait()
	for _, err := range errs { // they are much the same
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

// run sends one stage. It ends with the answers to all that was sent.
func (c *crew) run(ctx context.Context, s stage) error {
	start := time.Now()
	var deadline time.Time
	if s.duration > 0 || s.untilEnd {
		deadline = start.Add(s.duration)
	}
	most := int64(cmpOr(s.requests, maxSamples))
	var taken atomic.Int64
	var wg sync.WaitGroup
	c.runs++
	for w := range c.workers {
		next := s.pick(w, rand.New(rand.NewPCG(c.seed, c.runs<<32|uint64(w))))
		wg.Go(func() {
			call := newCall(c.key)
			defer call.release()
			refused := false
			for {
				i := taken.Add(1) - 1
				if i >= most || c.sent.Add(1) > maxSamples || ctx.Err() != nil {
					return
				}
				if s.rate > 0 {
					at := start.Add(time.Duration(float64(i) / s.rate * float64(time.Second)))
					if !deadline.IsZero() && at.After(deadline) || pause(ctx, time.Until(at)) != nil {
						return
					}
				}
				if !deadline.IsZero() && !time.Now().Before(deadline) {
					return
				}
				sample, said, problem := call.ask(c.targets[next(refused)])
				refused = sample.Outcome == Refused
				c.recorders[w].add(sample, said, problem)
			}
		})
	}
	wg.Wait()
	return ctx.Err()
}
