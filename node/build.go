package node

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"sluice/authapi"
	"sluice/limiter"
	"sluice/raftfsm"
	"sluice/raftfsm/state"
)

// What this package hands to authapi.
var (
	_ authapi.State   = (*raftfsm.View)(nil)
	_ authapi.Cluster = (*apiCluster)(nil)
	_ authapi.Limits  = (*limits)(nil)
	_ authapi.Sealer  = (*Sealer)(nil)

	_ limiter.Transport = (*gossip)(nil)
)

// apiConfig maps the configuration to authapi's. The configuration is a valid one.
func (n *Node) apiConfig() (authapi.Config, error) {
	c := n.cfg
	in := n.settings.now.Load().live.Config
	proxies, err := prefixes(c.TrustedProxies)
	if err != nil {
		return authapi.Config{}, err
	}
	live, err := in.apiLive()
	if err != nil {
		return authapi.Config{}, err
	}
	oauth, err := c.apiOAuth()
	if err != nil {
		return authapi.Config{}, err
	}
	oauth.RedirectURIs = live.RedirectURIs
	return authapi.Config{
		State:   n.fsm.View(),
		Cluster: (*apiCluster)(n),
		Limits:  &n.limits,
		Sealer:  n.sealer,
		Clock:   n.opts.given,
		Logger:  n.log.With("component", "api"),
		Version: n.opts.version,
		Tracer:  n.tracer(),
		NodeID:  n.data.NodeID,

		Members:  func() int { return len(n.members()) },
		MayReset: n.mayReset,

		PublicURL:      strings.TrimRight(c.PublicURL, "/"),
		TrustedProxies: proxies,
		Forwarded:      c.ForwardedHeader == "forwarded",
		ProxyProtocol:  c.HTTP.ProxyProtocol,
		Identity:       c.IdentityHeaders.names(),
		CORS:           authapi.CORSConfig{Origins: slices.Clone(c.CORS.Origins), MaxAge: time.Duration(c.CORS.MaxAge)},
		Auth: authapi.AuthConfig{
			TokenTTL:            time.Duration(c.Auth.TokenTTL),
			RefreshTTL:          time.Duration(c.Auth.RefreshTTL),
			RefreshReuseGrace:   time.Duration(c.Auth.RefreshReuseGrace),
			ServeStale:          c.Auth.OnStale == "serve",
			SigningAlgorithm:    c.Auth.SigningAlgorithm,
			SigningRotation:     time.Duration(c.Auth.SigningRotation),
			MaxSessions:         c.Auth.MaxSessions,
			CookieSessions:      c.Auth.CookieSessions,
			AuditRetention:      time.Duration(c.Auth.AuditRetention),
			ImportedKeyPrefixes: slices.Clone(c.Auth.ImportedKeyPrefixes),
			NoCredentialCache:   !c.Auth.CredentialCache,
			Argon2: authapi.Argon2Config{
				MemoryKiB:   uint32(c.Auth.Argon2.MemoryKiB),
				Iterations:  uint32(c.Auth.Argon2.Iterations),
				Parallelism: uint8(c.Auth.Argon2.Parallelism),
				Workers:     c.Auth.Argon2.Workers,
				Queue:       c.Auth.Argon2.Queue,
			},
		},
		OAuth:              oauth,
		Limit:              live.Limit,
		Routes:             live.Routes,
		RoutesDefaultAllow: c.RoutesDefault == "allow",
		ScopeResources:     live.ScopeResources,

		ReadTimeout: time.Duration(c.HTTP.ReadTimeout), WriteTimeout: time.Duration(c.HTTP.WriteTimeout),
		IdleTimeout: time.Duration(c.HTTP.IdleTimeout),
		MaxConns:    c.HTTP.MaxConns, MaxConnsPerIP: c.HTTP.MaxConnsPerIP,
	}, nil
}

// apiLimits maps the policies.
func (c *Config) apiLimits() (authapi.LimitConfig, error) {
	limit := authapi.LimitConfig{Plans: make(map[string]limiter.Rule, len(c.Plans)), DebugHeader: c.Limits.DebugHeader}
	var err error
	for _, r := range []struct {
		key  string
		from RuleConfig
		to   *limiter.Rule
	}{
		{"limits.anonymous", c.Limits.Anonymous, &limit.Anonymous},
		{"limits.api_key", c.Limits.APIKey, &limit.APIKey},
		{"limits.user", c.Limits.User, &limit.User},
		{"limits.documents", c.Limits.Documents, &limit.Documents},
	} {
		if *r.to, err = r.from.rule(); err != nil {
			return limit, fmt.Errorf("%s: %w", r.key, err)
		}
	}
	for name, plan := range c.Plans {
		if limit.Plans[name], err = plan.rule(); err != nil {
			return limit, fmt.Errorf("plans.%s: %w", name, err)
		}
	}
	for i, p := range c.Limits.Policies {
		policy := authapi.Policy{
			Name: p.Name, Layers: slices.Clone(p.Layers), Routes: slices.Clone(p.Routes), Plans: slices.Clone(p.Plans), Shadow: p.Shadow,
		}
		for _, by := range p.By {
			policy.By = append(policy.By, authapi.Dimension(by))
		}
		if policy.Rule, err = p.rule(); err != nil {
			return limit, fmt.Errorf("limits.policies[%d]: %w", i, err)
		}
		limit.Policies = append(limit.Policies, policy)
	}
	for _, d := range c.Limits.Descriptors {
		rule := authapi.DescriptorRule{Domain: d.Domain, Policy: d.Policy, Unlimited: d.Unlimited}
		for _, e := range d.Entries {
			rule.Entries = append(rule.Entries, authapi.DescriptorEntry(e))
		}
		limit.Descriptors = append(limit.Descriptors, rule)
	}
	return limit, nil
}

// rule maps a limit.
func (r RuleConfig) rule() (limiter.Rule, error) {
	rule := limiter.Rule{Limit: r.Limit, Window: int64(time.Duration(r.Window) / time.Second), Burst: r.Burst}
	switch r.Algorithm {
	case "fixed_window":
		rule.Algorithm = limiter.FixedWindow
	case "sliding_window":
		rule.Algorithm = limiter.SlidingWindow
	case "token_bucket":
		rule.Algorithm = limiter.TokenBucket
	default:
		return rule, fmt.Errorf("algorithm %q is none of fixed_window, sliding_window, token_bucket", r.Algorithm)
	}
	return rule, nil
}

// prefixes reads addresses and CIDR prefixes.
func prefixes(texts []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, text := range texts {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			addr, err := netip.ParseAddr(text)
			if err != nil {
				return nil, fmt.Errorf("trusted_proxies: %q is neither an address nor a prefix", text)
			}
			addr = addr.Unmap()
			prefix = netip.PrefixFrom(addr, addr.BitLen())
		}
		if prefix.Addr().Is4In6() && prefix.Bits() >= 96 { // as addresses are compared
			prefix = netip.PrefixFrom(prefix.Addr().Unmap(), prefix.Bits()-96)
		}
		out = append(out, prefix)
	}
	return out, nil
}

// longestWindow is the longest window of any policy; a key's own window may be as long as the limiter allows.
const longestWindow = 31 * 24 * time.Hour

// openLimiter opens the limiter under the cluster's key of the bucket hash.
func (n *Node) openLimiter(secrets *state.ClusterSecrets) (*limiter.Limiter, error) {
	if len(secrets.BucketKey) != 16 {
		return nil, fmt.Errorf("the cluster's bucket key has %d bytes instead of 16", len(secrets.BucketKey))
	}
	dir, err := n.data.sub(limiterDir)
	if err != nil {
		return nil, err
	}
	incarnation, err := n.data.nextIncarnation()
	if err != nil {
		return nil, err
	}
	c := limiter.Config{
		NodeID:       n.data.NodeID,
		Incarnation:  incarnation,
		BucketKey:    [16]byte(secrets.BucketKey),
		Dir:          dir,
		Clock:        n.opts.given,
		Transport:    n.gossip,
		Isolation:    limiter.Strict,
		MaxClockSkew: time.Duration(n.cfg.Limits.MaxClockSkew),
		MaxBuckets:   n.cfg.Limits.MaxBuckets,
		Logger:       n.log.With("component", "limiter"),
	}
	if !n.strict() {
		c.Isolation = limiter.Available
	}
	l, err := limiter.Open(c)
	if err != nil {
		return nil, fmt.Errorf("open limiter: %w", err)
	}
	return l, nil
}

// limiterState maps the replicated state of shares. resets must have been read after l.
func limiterState(l state.LimiterState, resets []state.Reset) limiter.State {
	out := limiter.State{HorizonMillis: l.Horizon, Rosters: make([]limiter.Roster, len(l.Rosters))}
	for i, r := range l.Rosters {
		out.Rosters[i] = limiter.Roster{Index: r.Index, FromMillis: r.From, Nodes: r.Nodes}
	}
	for _, f := range l.Leaves {
		out.Leaves = append(out.Leaves, limiter.Leave{Index: f.Index, Leaver: f.Leaver, Heir: f.Heir, MarkMillis: f.Mark, List: [32]byte(f.List)})
	}
	if len(resets) > 0 {
		out.Resets = make([]limiter.Reset, len(resets))
		for i, r := range resets {
			out.Resets[i] = limiter.Reset{Bucket: limiter.BucketID(r.Bucket), Generation: r.Generation, UntilMillis: r.Until, EarlierMillis: r.Earlier}
		}
	}
	return out
}

// limits is authapi's Limits. Before the cluster's secrets are known there is no limiter, and nothing can be decided.
type limits struct {
	limiter atomic.Pointer[limiter.Limiter]
	now     func() time.Time
}

// Bucket implements authapi.Limits. Without a limiter it is the zero id, which Take and Peek do not decide about later
// either.
func (l *limits) Bucket(policy string, rule limiter.Rule, subject []byte) limiter.BucketID {
	if lim := l.limiter.Load(); lim != nil {
		return lim.Bucket(policy, rule, subject)
	}
	return limiter.BucketID{}
}

// Take implements authapi.Limits.
func (l *limits) Take(charges []limiter.Charge, verdicts []limiter.Verdict) limiter.Outcome {
	lim, ok := l.decidable(charges)
	if ok {
		return lim.Take(charges, verdicts)
	}
	return l.undecidedAll(charges, verdicts)
}

// decidable is the limiter, ok where it is there and was when the charges' buckets were named.
func (l *limits) decidable(charges []limiter.Charge) (lim *limiter.Limiter, ok bool) {
	lim = l.limiter.Load()
	ok = lim != nil
	for i := range charges {
		ok = ok && charges[i].Bucket != limiter.BucketID{}
	}
	return lim, ok
}

func (l *limits) undecidedAll(charges []limiter.Charge, verdicts []limiter.Verdict) limiter.Outcome {
	for i := range charges {
		verdicts[i] = l.undecided(charges[i])
	}
	return limiter.Undecided
}

// TryTake implements authapi.Limits.
func (l *limits) TryTake(charges []limiter.Charge, verdicts []limiter.Verdict) (limiter.Outcome, bool) {
	lim, ok := l.decidable(charges)
	if ok {
		return lim.TryTake(charges, verdicts)
	}
	return l.undecidedAll(charges, verdicts), false
}

// Peek implements authapi.Limits.
func (l *limits) Peek(charge limiter.Charge) limiter.Verdict {
	lim := l.limiter.Load()
	if lim == nil || charge.Bucket == (limiter.BucketID{}) {
		return l.undecided(charge)
	}
	return lim.Peek(charge)
}

// Refund implements authapi.Limits.
func (l *limits) Refund(charges []limiter.Charge) {
	if lim := l.limiter.Load(); lim != nil {
		lim.Refund(charges)
	}
}

// undecided is the verdict of a node that does not know the cluster's state yet: headers have to be there all the same.
func (l *limits) undecided(c limiter.Charge) limiter.Verdict {
	v := limiter.Verdict{Outcome: limiter.Undecided, Limit: c.Rule.Limit, RetryAfter: 1}
	if c.Rule.Window > 0 {
		now := l.now().Unix()
		v.ResetAt = now - now%c.Rule.Window + c.Rule.Window
	}
	return v
}

// nodeLogger names the node in every line.
func nodeLogger(logger *slog.Logger, nodeID, name string) *slog.Logger {
	logger = logger.With("node", nodeID)
	if name != "" {
		logger = logger.With("name", name)
	}
	return logger
}
