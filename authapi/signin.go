package authapi

import (
	"net/http"
	"slices"

	"sluice/limiter"
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
		c.live.decisions.note(len(c.live.policies.names)+i, &a.charges[i].Bucket, &verdicts[i], outcome)
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
