package authapi

import (
	"errors"
	"fmt"
	"slices"

	"sluice/limiter"
)

// LiveConfig is the part of a Config that may change while the Server runs: see Server.SetLive.
type LiveConfig struct {
	Limit          LimitConfig // but for DebugHeader, which stays as it is
	Routes         []Route
	ScopeResources []string
	RedirectURIs   []string // as in OAuthConfig
}

// Live is the part of c that may change.
func (c Config) Live() LiveConfig {
	return LiveConfig{Limit: c.Limit, Routes: c.Routes, ScopeResources: c.ScopeResources, RedirectURIs: c.OAuth.RedirectURIs}
}

// live is what one LiveConfig makes possible. It is immutable but for its counters. Policies, routes and buckets refer to each other
// by their places in it, so a request takes it once, at its beginning, and goes by that one to its end, or begins anew (errLiveMoved);
// a cached credential holds for the one that it was looked up with, which it knows by its number: it must not keep the whole of it.
type live struct {
	seq       uint64 // counts them
	policies  policies
	matcher   *matcher
	decisions *decisions
	shadows   *shadowSet
	scopes    []string
	// plans are their rules by name.
	plans map[string]limiter.Rule
}

// newLive makes a live of cfg, whose rules are checked. Counters and connections to upstreams of what is in last too go on; last is
// nil for the first one.
func newLive(cfg LiveConfig, last *live) (*live, error) {
	m, err := newMatcher(cfg.Routes)
	if err != nil {
		return nil, err
	}
	p, err := newPolicies(cfg.Limit, m)
	if err != nil {
		return nil, err
	}
	lv := &live{policies: p, matcher: m, scopes: slices.Clone(cfg.ScopeResources), plans: cfg.Limit.Plans}
	var counted *decisions
	var shadowed *shadowSet
	if last != nil {
		m.takeUpstreams(last.matcher)
		counted, shadowed = last.decisions, last.shadows
		lv.seq = last.seq + 1
	}
	lv.decisions = newDecisions(guardNames(p.names), counted)
	lv.shadows = newShadowSet(&lv.policies, shadowed)
	return lv, nil
}

// SetLive replaces limits, plans, policies, routes, the scopes' catalogue and the targets that sign-ins may return to, all that cfg
// has: nothing is added to it but the limits of layers, which have defaults, and an empty catalogue's. Requests that were
// admitted go on by what they began with, others begin anew. The error names what is impossible; nothing was changed then.
//
// A bucket is the same before and after where its policy's name, window, algorithm and, for a configured policy, dimensions are: it
// goes on with what was spent of it.
func (s *Server) SetLive(cfg LiveConfig) error {
	if err := cfg.fill(); err != nil {
		return fmt.Errorf("configure api: %w", err)
	}
	redirects, err := newRedirects(cfg.RedirectURIs)
	if err != nil {
		return fmt.Errorf("configure api: %w", err)
	}
	s.liveMu.Lock()
	defer s.liveMu.Unlock()
	last := s.live.Load()
	next, err := newLive(cfg, last)
	if err != nil {
		return fmt.Errorf("configure api: %w", err)
	}
	s.redirects.Store(&redirects)
	if !s.draining.Load() { // else Shutdown has been here, or comes
		s.shadows.start(next.shadows)
	}
	s.requests.configured(next.matcher)
	s.live.Store(next)
	last.matcher.closeBut(next.matcher)
	return nil
}

// errLiveMoved: the limits that a request was admitted by are no longer in force, and it has given back what it spent.
var errLiveMoved = errors.New("limits changed meanwhile")

// moved says, after a Take, whether it may have been by limits that are no longer in force. The node tells the limiter of a horizon only
// after SetLive with all settings from before it in the log. So where Take opened a window by such a horizon, in which the old limits are
// in force nowhere any more, it is seen here.
func (c *call) moved() bool { return c.srv.live.Load() != c.live }

// fill gives what is empty its default and checks the rules.
func (c *LiveConfig) fill() error {
	var problems []error
	limits := DefaultLimits()
	for _, r := range []struct {
		name      string
		rule, def *limiter.Rule
	}{
		{policyAnonymous, &c.Limit.Anonymous, &limits.Anonymous},
		{policyAPIKey, &c.Limit.APIKey, &limits.APIKey},
		{policyUser, &c.Limit.User, &limits.User},
		{policyDocuments, &c.Limit.Documents, &limits.Documents},
	} {
		setDefault(r.rule, *r.def)
		if err := checkRule(*r.rule); err != nil {
			problems = append(problems, fmt.Errorf("limit %s: %w", r.name, err))
		}
	}
	for name, rule := range c.Limit.Plans {
		if err := checkRule(rule); err != nil {
			problems = append(problems, fmt.Errorf("plan %s: %w", name, err))
		}
	}
	if len(c.ScopeResources) == 0 {
		c.ScopeResources = DefaultScopeResources()
	}
	return errors.Join(problems...)
}

// newRedirects checks the targets that sign-ins may return to.
func newRedirects(uris []string) (map[string]struct{}, error) {
	out := make(map[string]struct{}, len(uris))
	var problems []error
	for _, uri := range uris {
		if err := CheckRedirectURI(uri, false); err != nil {
			problems = append(problems, fmt.Errorf("redirect URI %q: %w", uri, err))
		}
		out[uri] = struct{}{}
	}
	return out, errors.Join(problems...)
}

// mayReturnTo says whether a sign-in may return to uri.
func (s *Server) mayReturnTo(uri string) bool {
	_, ok := (*s.redirects.Load())[uri]
	return ok
}
