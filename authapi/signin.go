package authapi

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"sluice/limiter"
	"sluice/raftfsm/state"
)

// The guard slows guessing down. Its rules are spent by attempts and given back by those that succeed, so they count
// failures, and also attempts that run at the same time. Each is by address: nobody can use an account's guard to keep
// its owner out from elsewhere. They show in no header.
var guardRules = []struct {
	policy  string
	rule    limiter.Rule
	account bool // by account and address; otherwise by address
}{
	{"sign_in_minute", limiter.Rule{Limit: 10, Window: 60, Algorithm: limiter.SlidingWindow}, true},
	{"sign_in_hour", limiter.Rule{Limit: 60, Window: 3600, Algorithm: limiter.SlidingWindow}, true},
	{"sign_in_address", limiter.Rule{Limit: 300, Window: 3600, Algorithm: limiter.SlidingWindow}, false},
}

const guardCharges = 3

// guardNames are the policies' names with those of the guard behind them, as decisions counts them.
func guardNames(policies []string) []string {
	names := slices.Clone(policies)
	for _, r := range guardRules {
		names = append(names, r.policy)
	}
	return names
}

type signInGuard struct{ limits Limits }

func newSignInGuard(limits Limits) signInGuard { return signInGuard{limits: limits} }

// attempt is one sign-in that the guard let through.
type attempt struct {
	limits  Limits
	charges [guardCharges]limiter.Charge
}

// refund gives an attempt back: it succeeded, or this node could not decide it.
func (a *attempt) refund() { a.limits.Refund(a.charges[:]) }

// guardSignIn lets an attempt through, or is the 429. subject is the name that was tried, or a signed-in user's id.
func (c *call) guardSignIn(subject string) (*attempt, error) {
	g := c.srv.accounts.guard
	var buf [16]byte
	address := c.client.subject(&buf)
	both := append(append([]byte{byte(len(address))}, address...), subject...)
	a := &attempt{limits: g.limits}
	for i, r := range guardRules {
		of := address
		if r.account {
			of = both
		}
		a.charges[i] = limiter.Charge{Bucket: g.limits.Bucket(r.policy, r.rule, of), Rule: r.rule, Cost: 1}
	}
	var verdicts [guardCharges]limiter.Verdict
	outcome := g.limits.Take(a.charges[:], verdicts[:])
	for i := range a.charges {
		c.srv.decisions.note(len(c.srv.policies.names)+i, &a.charges[i].Bucket, &verdicts[i], outcome)
	}
	switch outcome {
	case limiter.Admitted:
		return a, nil
	case limiter.Undecided:
		return nil, ErrUnavailable
	}
	p := problem(http.StatusTooManyRequests, "rate_limit_exceeded", "too many attempts to sign in; retry_after says when to come back")
	p.Type = "https://iana.org/assignments/http-problem-types#quota-exceeded"
	p.Violated = []string{"sign_in"}
	p.RetryAfter = 1
	for _, v := range verdicts {
		if v.Outcome == limiter.Refused {
			p.RetryAfter = max(p.RetryAfter, v.RetryAfter)
		}
	}
	return nil, p
}

// Failed sign-ins are audited in batches, so that a flood of them is no flood of log entries: at most failuresBatch
// events in a proposal and one proposal in flushEvery, and of one account and address one event in failuresQuiet, which
// says how many attempts it stands for.
const (
	failuresMax   = 1024 // accounts and addresses at once; attempts beyond them are only logged, as a number
	failuresBatch = 32
	failuresQuiet = 10 * time.Second
	flushEvery    = 250 * time.Millisecond
)

type failureID struct{ userID, address string }

type failure struct {
	event    state.AuditEvent // of the first attempt since the last flush
	attempts int
	quiet    time.Time // not before this time
}

// failures are the failed sign-ins that are not audited yet.
type failures struct {
	mu      sync.Mutex
	pending map[failureID]*failure
	lost    int
}

func newFailures() failures { return failures{pending: map[failureID]*failure{}} }

// signInFailed notes a failed sign-in. user is nil where no account was named; what was typed instead is not kept: it is
// too often a password.
func (c *call) signInFailed(user *state.User) {
	f := &c.srv.accounts.failures
	id := failureID{address: c.clientIP}
	var org string
	if user != nil {
		id.userID, org = user.ID, user.PersonalOrg
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.pending[id]
	if p == nil {
		if len(f.pending) >= failuresMax {
			f.lost++
			return
		}
		p = &failure{}
		f.pending[id] = p
	}
	if p.attempts++; p.attempts == 1 {
		p.event = c.event("session.failed", org, kindUser, id.userID)
		p.event.Result = resultFailure
	}
}

// due takes up to a batch of events, and forgets what has been quiet. lost is how many attempts no event stands for.
func (f *failures) due(now time.Time, all bool) (events []state.AuditEvent, lost int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	lost, f.lost = f.lost, 0
	for id, p := range f.pending {
		switch {
		case now.Before(p.quiet) && !all:
		case p.attempts == 0:
			delete(f.pending, id)
		case len(events) < failuresBatch:
			e := p.event
			e.Detail = append(e.Detail, state.Pair{Name: "attempts", Value: strconv.Itoa(p.attempts)})
			events = append(events, e)
			p.attempts, p.quiet = 0, now.Add(failuresQuiet)
		}
	}
	return events, lost
}

// restore puts events back that could not be proposed.
func (f *failures) restore(events []state.AuditEvent) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range events {
		n, err := strconv.Atoi(e.Detail[len(e.Detail)-1].Value)
		p := f.pending[failureID{userID: e.SubjectID, address: e.IP}]
		if err != nil || p == nil {
			continue
		}
		e.Detail = e.Detail[:len(e.Detail)-1]
		p.event, p.attempts, p.quiet = e, p.attempts+n, time.Time{}
	}
}

// flushFailures proposes one batch.
func (s *Server) flushFailures(ctx context.Context, all bool) {
	f := &s.accounts.failures
	events, lost := f.due(s.clock(), all)
	if lost > 0 {
		s.log.Warn("failed sign-ins left out of the audit log", "attempts", lost)
	}
	if len(events) == 0 {
		return
	}
	if _, err := s.propose(ctx, state.AppendAudit{Events: events}); err != nil {
		s.log.Debug("failed sign-ins not audited yet", "error", err, "events", len(events))
		f.restore(events)
	}
}
