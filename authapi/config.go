package authapi

import (
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net/netip"
	"time"

	"go.opentelemetry.io/otel/trace"

	"sluice/limiter"
)

// Config is everything a Server needs. It is taken by value and frozen.
type Config struct {
	State   State
	Cluster Cluster
	Limits  Limits
	Sealer  Sealer
	// HashWorker, where not nil, hashes passwords elsewhere.
	HashWorker HashWorker
	Clock      Clock        // nil: time.Now
	Logger     *slog.Logger // nil: discards
	Tracer     trace.Tracer // nil: requests are not traced, and traceparent passes gateway routes as it is
	Version    string       // shown by /api/v1/health
	NodeID     string
	Members    func() int // of the cluster, as Gubernator's clients are told; nil: this node alone
	// MayReset says whether a client may have a bucket reset: the cluster remembers resets, and not any number. nil: always.
	MayReset func(limiter.BucketID) bool

	// PublicURL is the base that clients see, without a trailing slash; issuer of tokens. "" : Issuer is "sluice".
	PublicURL string
	// TrustedProxies may describe the client in X-Forwarded-*. Empty: nobody.
	TrustedProxies []netip.Prefix
	// Forwarded takes the client's address from Forwarded (RFC 7239) in place of X-Forwarded-For, which then means nothing.
	Forwarded bool
	// ProxyProtocol expects every connection of a trusted proxy to begin with a PROXY header, version 1 or 2. Connections of
	// others never do.
	ProxyProtocol bool

	// Identity names the headers that tell applications who asks.
	Identity IdentityHeaders

	CORS   CORSConfig
	Auth   AuthConfig
	OAuth  OAuthConfig
	Limit  LimitConfig
	Routes []Route
	// RoutesDefaultAllow lets a described request that matches no route through (routes_default = "allow").
	RoutesDefaultAllow bool
	// ScopeResources are the resources that scopes may name.
	ScopeResources []string

	// TLS is what Serve speaks; nil: plain HTTP. Its NextProtos must be HTTP/1.1 alone, or none.
	TLS *tls.Config

	ReadTimeout, WriteTimeout, IdleTimeout time.Duration
	MaxConns, MaxConnsPerIP                int // 0: the defaults
}

// AuthConfig steers tokens, sessions and password hashing.
type AuthConfig struct {
	TokenTTL          time.Duration // of access tokens, at most MaxTokenTTL; default 1h
	RefreshTTL        time.Duration // of refresh tokens; default 30 days
	RefreshReuseGrace time.Duration // default 10s; 0 turns it off
	ServeStale        bool          // auth.on_stale = "serve"
	SigningAlgorithm  string        // "HS256" (default), "EdDSA", "ES256"
	SigningRotation   time.Duration // how often the signing key is replaced; 0: only by command
	CookieSessions    bool          // sign-in may answer with cookies, for pages
	MaxSessions       int           // live sessions of a user; default 20
	Argon2            Argon2Config
	AuditRetention    time.Duration
	// ImportedKeyPrefixes is how imported keys begin that have not this program's form.
	ImportedKeyPrefixes []string
	// NoCredentialCache has every request look its credential up, as if it had never been seen. For measurements.
	NoCredentialCache bool
}

// Argon2Config are the parameters of new password hashes and of the queue in front of them.
type Argon2Config struct {
	MemoryKiB   uint32 // at least 19456
	Iterations  uint32 // at least 2
	Parallelism uint8  // at least 1
	Workers     int    // hashes at once; 0: half the cores, at least 1
	Queue       int    // requests that may wait; beyond it 503; 0: 64 a worker
}

// LimitConfig holds the policies by layer. Names are what RateLimit-Policy shows and part of a bucket's identity.
type LimitConfig struct {
	Anonymous limiter.Rule // policy "anonymous": by address
	APIKey    limiter.Rule // policy "api_key": by key
	User      limiter.Rule // policy "user": by user
	Documents limiter.Rule // policy "documents": by address
	Plans     map[string]limiter.Rule
	Policies  []Policy // on top of those; a request spends from all that count it, or from none
	// Descriptors say which limits Envoy's rate-limit service keeps.
	Descriptors []DescriptorRule
	// DebugHeader adds X-RateLimit-Debug to every response with a decision: waited=1 where it waited for a message of
	// another node, waited=0 where not. For measurements: it tells clients how the cluster works.
	DebugHeader bool
}

// Route is one [[routes]] entry.
type Route struct {
	Name       string
	Host       string // "" for any
	PathPrefix string // matches the path itself and everything below it
	Rules      []RouteRule
	// Upstreams are the URLs that requests go to in turn, Upstream before them; none for a rule of verify only. What follows is of
	// routes with upstreams alone, and zero values are defaults.
	Upstream  string
	Upstreams []string
	// UpstreamCA vouches for the certificates of https upstreams; nil: the system's.
	UpstreamCA *x509.CertPool
	// StripPrefix removes PathPrefix before the upstream sees the path.
	StripPrefix bool
	// ConnectTimeout is for a connection with its TLS handshake, Timeout from the end of the request to the answer's header,
	// IdleTimeout for each silence of the upstream while bodies are on their way (0: Timeout). None bounds the whole.
	ConnectTimeout, Timeout, IdleTimeout time.Duration
	MaxBodyBytes                         int64 // of a request's body
	MaxAnswerBytes                       int64 // of an answer's body; 0: any
	// MaxRequests is how many requests, WebSockets among them, may be at one upstream at once.
	MaxRequests int
	// Retries is how often a request may be sent again, where that is safe; negative for never.
	Retries int
	// MaxFails in a row eject an upstream for EjectTime, and longer each time that it fails again right away.
	MaxFails  int
	EjectTime time.Duration
	// WebSocket lets handshakes through; MaxWebSockets may be open at once, each silent for WebSocketIdleTimeout at most.
	WebSocket            bool
	WebSocketIdleTimeout time.Duration
	MaxWebSockets        int
	// CORS are the web pages that may call the route, in place of what upstreams say of that. nil: they answer for themselves.
	CORS *RouteCORS
}

// RouteCORS is CORSConfig for one route. Preflights are answered by Sluice; methods are those of the route's rules.
type RouteCORS struct {
	CORSConfig
	Headers     []string // request headers that pages may set, besides those that the API itself takes
	Expose      []string // answer headers that pages may read, besides those that Sluice sets
	Credentials bool     // pages may send cookies
}

// RouteRule says what requests of some methods need. The first rule whose Methods include the request's applies; a
// request that none covers is 405.
type RouteRule struct {
	Methods   []string // "*" for all
	Scopes    []string // all needed of a key
	Anonymous bool     // may pass without a credential
	Cost      int64    // units; at least 1
}
