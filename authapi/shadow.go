package authapi

import (
	"log/slog"
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
	_                            [40]byte
}

// shadows evaluates shadow policies. Requests never wait for it: what this node can decide by itself is decided at once,
// the rest by workers.
type shadows struct {
	limits   Limits
	log      *slog.Logger
	policies []*policy       // the shadow ones
	counters []shadowCounter // by policy.index
	queue    chan shadowCharge
	stop     chan struct{}
	stopped  sync.Once
	done     sync.WaitGroup

	logged []uint64 // refusals told so far, by place in policies; the reporting goroutine's own
}

type shadowCharge struct {
	index  int // of the policy
	charge limiter.Charge
}

func newShadows(p *policies, limits Limits, log *slog.Logger) *shadows {
	s := &shadows{limits: limits, log: log, counters: make([]shadowCounter, len(p.names)), stop: make(chan struct{})}
	for _, c := range p.configured {
		if c.shadow {
			s.policies = append(s.policies, c)
		}
	}
	if len(s.policies) == 0 {
		return s
	}
	s.logged = make([]uint64, len(s.policies))
	s.queue = make(chan shadowCharge, shadowQueue)
	for range shadowWorkers {
		s.done.Go(s.work)
	}
	s.done.Go(s.reportAll)
	return s
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
	of := c.subject(cred)
	for i := range d.set.shadow {
		m := &d.set.shadow[i]
		at := d.n + d.shadows
		d.charges[at] = limiter.Charge{Bucket: m.bucketOf(c.srv.limits, cred, &of), Rule: m.rule, Cost: d.charges[0].Cost}
		outcome, wait := c.srv.limits.TryTake(d.charges[at:at+1], d.verdicts[at:at+1])
		if wait {
			select {
			case s.queue <- shadowCharge{m.index, d.charges[at]}:
			default:
				s.counters[m.index].undecided.Add(1)
			}
			continue
		}
		s.note(m.index, outcome)
		if outcome == limiter.Admitted {
			d.shadows++ // a refund gives it back with the rest
		}
	}
	d.subject = of.buf[:0]
}

func (s *shadows) note(index int, outcome limiter.Outcome) {
	switch n := &s.counters[index]; outcome {
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
			s.note(q.index, s.limits.Take(charges, verdicts))
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
	for i, p := range s.policies {
		n := &s.counters[p.index]
		if refused := n.refused.Load(); refused != s.logged[i] {
			s.log.Info("shadow policy would have refused", "policy", p.name, "requests", refused-s.logged[i], "admitted_in_all", n.admitted.Load(), "refused_in_all", refused)
			s.logged[i] = refused
		}
	}
}

// ShadowCounts tells what each shadow policy would have done, in the order of the configuration. Safe for concurrent
// use.
func (s *Server) ShadowCounts() []ShadowCount {
	out := make([]ShadowCount, 0, len(s.shadows.policies))
	for _, p := range s.shadows.policies {
		n := &s.shadows.counters[p.index]
		out = append(out, ShadowCount{p.name, n.admitted.Load(), n.refused.Load(), n.undecided.Load()})
	}
	return out
}
