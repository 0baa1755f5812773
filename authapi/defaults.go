package authapi

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"sluice/limiter"
)

// Defaults of Config's fields.
const (
	DefaultReadTimeout  = 5 * time.Second
	DefaultWriteTimeout = 10 * time.Second
	DefaultIdleTimeout  = 60 * time.Second
	// DefaultMaxConns bounds the memory of connections: each takes some 20 KiB while it is open.
	DefaultMaxConns      = 16384
	DefaultMaxConnsPerIP = 1024

	DefaultTokenTTL          = time.Hour
	DefaultRefreshTTL        = 30 * 24 * time.Hour
	DefaultRefreshReuseGrace = 10 * time.Second
	DefaultMaxSessions       = 20

	// handlerTimeout is longer than a failover, so that a write outlives the loss of the leader.
	handlerTimeout = 8 * time.Second
)

// DefaultScopeResources are the resources that scopes name unless the configuration says otherwise.
func DefaultScopeResources() []string {
	return []string{"triggers", "events", "organizations", "api-keys", "audit-logs", "limits", "tokens"}
}

// DefaultLimits are the policies of the contract.
func DefaultLimits() LimitConfig {
	return LimitConfig{
		Anonymous: limiter.Rule{Limit: 10, Window: 60, Algorithm: limiter.SlidingWindow},
		APIKey:    limiter.Rule{Limit: 100, Window: 60, Algorithm: limiter.SlidingWindow},
		User:      limiter.Rule{Limit: 100, Window: 60, Algorithm: limiter.SlidingWindow},
		Documents: limiter.Rule{Limit: 600, Window: 60, Algorithm: limiter.SlidingWindow},
	}
}

// withDefaults fills what is zero and checks the rest. RefreshReuseGrace and SigningRotation stay as they are: zero
// turns them off.
func (c Config) withDefaults() (Config, error) {
	var problems []error
	for _, dep := range []struct {
		name string
		set  bool
	}{
		{"State", c.State != nil}, {"Cluster", c.Cluster != nil}, {"Limits", c.Limits != nil}, {"Sealer", c.Sealer != nil},
	} {
		if !dep.set {
			problems = append(problems, fmt.Errorf("%s is missing", dep.name))
		}
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	setDefault(&c.ReadTimeout, DefaultReadTimeout)
	setDefault(&c.WriteTimeout, DefaultWriteTimeout)
	setDefault(&c.IdleTimeout, DefaultIdleTimeout)
	setDefault(&c.MaxConns, DefaultMaxConns)
	setDefault(&c.MaxConnsPerIP, DefaultMaxConnsPerIP)
	setDefault(&c.CORS.MaxAge, DefaultCORSMaxAge)
	setDefault(&c.Auth.TokenTTL, DefaultTokenTTL)
	setDefault(&c.Auth.RefreshTTL, DefaultRefreshTTL)
	setDefault(&c.Auth.MaxSessions, DefaultMaxSessions)
	setDefault(&c.Auth.SigningAlgorithm, "HS256")
	setDefault(&c.Auth.Argon2.MemoryKiB, 19456)
	setDefault(&c.Auth.Argon2.Iterations, 2)
	setDefault(&c.Auth.Argon2.Parallelism, 1)
	lv := c.Live()
	if err := lv.fill(); err != nil {
		problems = append(problems, err)
	}
	c.Limit, c.ScopeResources = lv.Limit, lv.ScopeResources
	return c, errors.Join(problems...)
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Bounds of limiter.Rule.
const (
	maxLimit  = int64(1e12)
	maxWindow = int64(31 * 24 * 3600)
)

func checkRule(r limiter.Rule) error {
	switch {
	case r.Limit < 0 || r.Limit > maxLimit:
		return fmt.Errorf("limit %d is not between 0 and %d", r.Limit, maxLimit)
	case r.Window < 1 || r.Window > maxWindow:
		return fmt.Errorf("window %d s is not between 1 and %d", r.Window, maxWindow)
	}
	switch r.Algorithm {
	case limiter.FixedWindow, limiter.SlidingWindow:
		if r.Burst != 0 {
			return fmt.Errorf("burst %d of a limit that is no token bucket", r.Burst)
		}
	case limiter.TokenBucket:
		if r.Burst < 1 || r.Burst > maxLimit {
			return fmt.Errorf("burst %d is not between 1 and %d", r.Burst, maxLimit)
		}
	default:
		return fmt.Errorf("algorithm %d is not known", r.Algorithm)
	}
	return nil
}
