package authapi

import (
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"sluice/limiter"
)

const (
	// shadowQueue bounds the shadow decisions that have to wait for a message of another node; shadowWorkers wait for them.
	shadowQueue   = 1024
	shadowWorkers = 4
	// shadowLogEvery is how often the log tells of a shadow policy that would have refused.
	shadowLogEvery = 10 * time.Second
)

// ShadowCount is what a shadow policy would have done since the server was made.
type ShadowCount struct {
	Policy    string
	Admitted  uint64
	Refused   uint64 // would have been
	Undecided uint64 // the node could not decide, or too many decisions were waiting
}

// shadowCounter is a ShadowCount in the making. It fills a cache line, so that policies do not slow each other down.
type shadowCounter struct {
	admitted, refused, undecided atomic.Uint64
	logged                       uint64 // refusals told so far; the reporting goroutine's own
	_                            [32]byte
}

// shadows evaluates shadow policies. Requests never wait for it: what this node can decide by itself is decided at once,
// the rest by workers.
type shadows struct {
	limits  Limits
	log     *slog.Logger
	now     atomic.Pointer[shadowSet] // what is reported
	queue   chan shadowCharge
	dropped atomic.Uint64 // decisions that found it full: counted as undecided
	stop    chan struct{}
	started sync.Once
	stopped sync.Once
	done    sync.WaitGroup
}

// shadowSet are the shadow policies of one live, with their counters.
type shadowSet struct {
	policies []*policy
	counters []*shadowCounter // by policy.index; nil for those that are enforced
}

type shadowCharge struct {
	counter *shadowCounter
	charge  limiter.Charge
}

func newShadows(limits Limits, log *slog.Logger) *shadows {
	return &shadows{limits: limits, log: log, queue: make(chan shadowCharge, shadowQueue), stop: make(chan struct{})}
}

// newShadowSet counts on where last, which may be nil, has counted for a shadow policy of the same name.
func newShadowSet(p *policies, last *shadowSet) *shadowSet {
	set := &shadowSet{counters: make([]*shadowCounter, len(p.names))}
	for _, c := range p.configured {
		if !c.shadow {
			continue
		}
		set.policies = append(set.policies, c)
		set.counters[c.index] = new(shadowCounter)
		if last == nil {
			continue
		}
		if i := slices.IndexFunc(last.policies, func(old *policy) bool { return old.name == c.name }); i >= 0 {
			set.counters[c.index] = last.counters[last.policies[i].index]
		}
	}
	return set
}

// start sees to it that there are workers before a request needs one. Calls must not overlap.
func (s *shadows) start(set *shadowSet) {
	s.now.Store(set)
	if len(set.policies) == 0 {
		return
	}
	s.started.Do(func() {
		for range shadowWorkers {
			s.done.Go(s.work)
		}
		s.done.Go(s.reportAll)
	})
}

// close ends the workers; decisions that still wait are not made.
func (s *shadows) close() {
	s.stopped.Do(func() { close(s.stop) })
	s.done.Wait()
}

// takeShadow spends from the shadow policies of a request that was admitted, each by itself. What they say changes
// nothing about the request.
func (c *call) takeShadow(cred *credential) {
	d, s := c.decision, c.srv.shadows
	counters := c.live.shadows.counters
	of := c.subject(cred)
	for i := range d.set.shadow {
		m := &d.set.shadow[i]
		at := d.n + d.shadows
		d.charges[at] = limiter.Charge{Bucket: m.bucketOf(c.srv.limits, cred, &of), Rule: m.rule, Cost: d.charges[0].Cost}
		outcome, wait := c.srv.limits.TryTake(d.charges[at:at+1], d.verdicts[at:at+1])
		if wait {
			s.later(counters[m.index], d.charges[at])
			continue
		}
		counters[m.index].note(outcome)
		if outcome == limiter.Admitted {
			d.shadows++ // a refund gives it back with the rest
		}
	}
	d.subject = of.buf[:0]
}

// later leaves a decision that would have to wait to the workers.
func (s *shadows) later(counter *shadowCounter, charge limiter.Charge) {
	select {
	case s.queue <- shadowCharge{counter, charge}:
	default:
		s.dropped.Add(1)
		counter.undecided.Add(1)
	}
}

func (n *shadowCounter) note(outcome limiter.Outcome) {
	switch outcome {
	case limiter.Admitted:
		n.admitted.Add(1)
	case limiter.Refused:
		n.refused.Add(1)
	default:
		n.undecided.Add(1)
	}
}

// work makes the decisions that have to wait.
func (s *shadows) work() {
	charges, verdicts := make([]limiter.Charge, 1), make([]limiter.Verdict, 1)
	for {
		select {
		case <-s.stop:
			return
		case q := <-s.queue:
			charges[0] = q.charge
			q.counter.note(s.limits.Take(charges, verdicts))
		}
	}
}

func (s *shadows) reportAll() {
	ticker := time.NewTicker(shadowLogEvery)
	defer ticker.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-ticker.C:
			s.report()
		}
	}
}

// report logs, for each policy that would have refused since the last time, how often: no more than a line for each
// policy, whatever the traffic, and nothing of who was concerned.
func (s *shadows) report() {
	set := s.now.Load()
	for _, p := range set.policies {
		n := set.counters[p.index]
		if refused := n.refused.Load(); refused != n.logged {
			s.log.Info("shadow policy would have refused", "policy", p.name, "requests", refused-n.logged, "admitted_in_all", n.admitted.Load(), "refused_in_all", refused)
			n.logged = refused
		}
	}
}

// ShadowCounts tells what each shadow policy would have done, in the order of the configuration. Safe for concurrent
// use.
func (s *Server) ShadowCounts() []ShadowCount {
	set := s.live.Load().shadows
	out := make([]ShadowCount, 0, len(set.policies))
	for _, p := range set.policies {
		n := set.counters[p.index]
		out = append(out, ShadowCount{p.name, n.admitted.Load(), n.refused.Load(), n.undecided.Load()})
	}
	return out
}
