package node

import (
	"cmp"
	"time"

	"sluice/authapi"
)

// Config is one node's configuration file (TOML), the environment's overrides applied. Every field has a line in
// cluster.example.toml.
type Config struct {
	Name           string   `toml:"name"`
	Cluster        string   `toml:"cluster"`
	DataDir        string   `toml:"data_dir"`
	PublicURL      string   `toml:"public_url"`
	TrustedProxies []string `toml:"trusted_proxies"` // addresses or CIDR prefixes
	// ForwardedHeader is where trusted proxies name the client: "x-forwarded-for" (default) or "forwarded" (RFC 7239).
	ForwardedHeader string `toml:"forwarded_header"`
	RoutesDefault   string `toml:"routes_default"` // "deny" (default) or "allow"
	// InitialMembers are the peer addresses of the nodes that form the cluster, the same list on each of them. Used on an
	// empty data directory only.
	InitialMembers []string `toml:"initial_members"`
	// InitialCount is how many nodes InitialMembers name; 0: as many as it has entries.
	InitialCount int `toml:"initial_count"`
	// Join are peer addresses of running nodes; a node with an empty data directory and without InitialMembers asks them
	// to take it in. With both, it joins where a cluster exists already, or it is none of InitialMembers.
	Join []string `toml:"join"`

	HTTP   HTTPConfig   `toml:"http"`
	CORS   CORSConfig   `toml:"cors"`
	Peer   PeerConfig   `toml:"peer"`
	Gossip GossipConfig `toml:"gossip"`
	Admin  AdminConfig  `toml:"admin"`
	GRPC   GRPCConfig   `toml:"grpc"`

	Gubernator GubernatorConfig `toml:"gubernator"`

	Secrets    SecretsConfig         `toml:"secrets"`
	Log        LogConfig             `toml:"log"`
	Raft       RaftConfig            `toml:"raft"`
	Tracing    TracingConfig         `toml:"tracing"`
	Storage    StorageConfig         `toml:"storage"`
	Backup     BackupConfig          `toml:"backup"`
	Limits     LimitsConfig          `toml:"limits"`
	Auth       AuthConfig            `toml:"auth"`
	OAuth      OAuthConfig           `toml:"oauth"`
	Plans      map[string]RuleConfig `toml:"plans"`
	Scopes     ScopesConfig          `toml:"scopes"`
	Routes     []RouteConfig         `toml:"routes"`
	Membership MembershipConfig      `toml:"membership"`
	// IdentityHeaders name what tells applications who asks.
	IdentityHeaders IdentityHeadersConfig `toml:"identity_headers"`

	origins *origins // nil where the Config was not loaded
}

// IdentityHeadersConfig names the identity headers of the forward-auth check and of gateway routes: a preset's, but for those that are set.
type IdentityHeadersConfig struct {
	Preset       string `toml:"preset"` // "x-auth" (default), "x-auth-request" or "remote"
	Method       string `toml:"method"`
	User         string `toml:"user"`
	Organization string `toml:"organization"`
	Key          string `toml:"key"`
	Scopes       string `toml:"scopes"`
}

// names are those in effect. The preset is a valid one.
func (c IdentityHeadersConfig) names() authapi.IdentityHeaders {
	h, _ := authapi.IdentityPreset(c.Preset)
	h.Method, h.User = cmp.Or(c.Method, h.Method), cmp.Or(c.User, h.User)
	h.Organization, h.Key, h.Scopes = cmp.Or(c.Organization, h.Organization), cmp.Or(c.Key, h.Key), cmp.Or(c.Scopes, h.Scopes)
	return h
}

// Duration is a time.Duration written as "1s" or "15m".
type Duration time.Duration

// Secret is a text that prints as "(set)" or "".
type Secret string

// HTTPConfig is the public listener.
type HTTPConfig struct {
	Listen        string   `toml:"listen"`
	ReadTimeout   Duration `toml:"read_timeout"`
	WriteTimeout  Duration `toml:"write_timeout"`
	IdleTimeout   Duration `toml:"idle_timeout"`
	MaxConns      int      `toml:"max_connections"`
	MaxConnsPerIP int      `toml:"max_connections_per_address"`
	ProxyProtocol bool     `toml:"proxy_protocol"` // connections of trusted proxies begin with a PROXY header
	TLSCert       string   `toml:"tls_cert"`       // PEM, with the chain; "" with TLSKey: plain HTTP
	TLSKey        string   `toml:"tls_key"`        // PEM
	DrainDelay    Duration `toml:"drain_delay"`    // between "not ready" and refusing new connections
	DrainTimeout  Duration `toml:"drain_timeout"`  // for requests in flight
}

// CORSConfig says which web pages may call the API from a browser.
type CORSConfig struct {
	Origins []string `toml:"origins"` // "https://app.example.com", compared whole
	MaxAge  Duration `toml:"max_age"`
}

// PeerConfig is the listener for Raft and forwarded writes, mutual TLS.
type PeerConfig struct {
	Listen    string `toml:"listen"`
	Advertise string `toml:"advertise"` // "": Listen; must be reachable from the other nodes
	TLSCert   string `toml:"tls_cert"`  // PEM, with the chain; "" with TLSKey: a certificate derived from the cluster secret
	TLSKey    string `toml:"tls_key"`   // PEM
	TLSCA     string `toml:"tls_ca"`    // PEM; the authorities whose certificates are accepted
	// TLSAcceptSecret also accepts certificates that are derived from the cluster secret, while nodes change over.
	TLSAcceptSecret bool `toml:"tls_accept_secret"`
}

// GossipConfig is memberlist's listener, UDP and TCP, encrypted.
type GossipConfig struct {
	Listen    string `toml:"listen"`
	Advertise string `toml:"advertise"`
}

// AdminConfig is the operators' listener: /metrics, /livez, /readyz, and the admin API.
type AdminConfig struct {
	Listen     string `toml:"listen"`      // host:port, or "unix:" and a path; "": off
	SocketMode string `toml:"socket_mode"` // of a Unix socket's file: "0600" or "0660"
	TLSCert    string `toml:"tls_cert"`    // PEM, with the chain; "" with TLSKey: plain HTTP
	TLSKey     string `toml:"tls_key"`     // PEM
	ClientCA   string `toml:"client_ca"`   // PEM; callers need a certificate of one of these. "": none
	// LocalRole is what callers on this machine without a token may do: "operate", "read" or "none".
	LocalRole string `toml:"local_role"`
	// Tokens of the roles operate and read, one a line, the first of which is the one that commands present. From a file or the
	// value itself, never both. Calls from elsewhere than this machine need one.
	TokenFile     string `toml:"token_file"`
	Token         Secret `toml:"token"`
	ReadTokenFile string `toml:"read_token_file"`
	ReadToken     Secret `toml:"read_token"`
}

// GRPCConfig is the listener for proxies and services that ask over gRPC: Envoy's rate limits and authorization, and
// Gubernator's API. Who may call is believed.
type GRPCConfig struct {
	Listen   string `toml:"listen"`    // "": off
	TLSCert  string `toml:"tls_cert"`  // PEM, with the chain; "" with TLSKey: plain HTTP/2
	TLSKey   string `toml:"tls_key"`   // PEM
	ClientCA string `toml:"client_ca"` // PEM; callers need a certificate of one of these. "": none
	// From a file or the value itself, never both; neither: callers need no token.
	TokenFile       string `toml:"token_file"`
	Token           Secret `toml:"token"`
	MaxConns        int    `toml:"max_connections"`
	MaxStreams      int    `toml:"max_streams"`      // calls at once of one connection
	ResponseHeaders bool   `toml:"response_headers"` // the rate-limit service tells Envoy the limit headers
}

// BearerToken is the token as callers present it, "" where none is configured. It reads the file that the configuration
// names.
func (c GRPCConfig) BearerToken() (string, error) {
	if c.Token == "" && c.TokenFile == "" {
		return "", nil
	}
	return readSecretText("grpc.token", c.Token, c.TokenFile)
}

// GubernatorConfig is the listener for Gubernator's clients that speak HTTP and have no key.
type GubernatorConfig struct {
	Listen string `toml:"listen"` // "": off
}

// DescriptorConfig is one [[limits.descriptors]] entry: which policy counts descriptors of Envoy's rate-limit service.
type DescriptorConfig struct {
	Domain    string                  `toml:"domain"`
	Entries   []DescriptorEntryConfig `toml:"entries"`
	Policy    string                  `toml:"policy"`
	Unlimited bool                    `toml:"unlimited"` // in place of a policy
}

// DescriptorEntryConfig is a part of a descriptor. Value "" stands for any, and one with a star at its end for a beginning.
type DescriptorEntryConfig struct {
	Key   string `toml:"key"`
	Value string `toml:"value"`
}

// SecretsConfig says where the two secrets come from; a file or the value itself (by environment), never both.
type SecretsConfig struct {
	ClusterFile string `toml:"cluster_file"` // the cluster secret: who holds it is a peer
	Cluster     Secret `toml:"cluster"`
	KeyFile     string `toml:"key_file"` // the key for secrets at rest; the same on every node
	Key         Secret `toml:"key"`
	// Further keys for secrets at rest, one a line, which open what was sealed before a rotation, or before this one is used.
	PreviousKeyFile string `toml:"previous_key_file"`
	PreviousKey     Secret `toml:"previous_key"`
}

// LogConfig steers the log on standard error.
type LogConfig struct {
	Level  string `toml:"level"`  // debug, info, warn, error
	Format string `toml:"format"` // json, text
}

// RaftConfig tunes consensus.
type RaftConfig struct {
	HeartbeatTimeout  Duration `toml:"heartbeat_timeout"`
	ElectionTimeout   Duration `toml:"election_timeout"`
	SnapshotThreshold uint64   `toml:"snapshot_threshold"`
	SnapshotInterval  Duration `toml:"snapshot_interval"`
	TrailingLogs      uint64   `toml:"trailing_logs"`
}

// StorageConfig says when a disk is too full, and when it takes too long.
type StorageConfig struct {
	// A volume is low, or critical, below so many bytes or so many per cent of it, whichever is less; a per cent of 0 does not count, and
	// with 0 bytes there is no mark.
	LowFreeBytes        int64 `toml:"low_free_bytes"`
	LowFreePercent      int   `toml:"low_free_percent"`
	CriticalFreeBytes   int64 `toml:"critical_free_bytes"`
	CriticalFreePercent int   `toml:"critical_free_percent"`
	// AppendTimeout is how long one write of the Raft log may take until this node gives up leading.
	AppendTimeout Duration `toml:"append_timeout"`
}

// MembershipConfig says who votes, and when the leader removes a member by itself.
type MembershipConfig struct {
	Voter             bool     `toml:"voter"`               // false: a node that joins listens and limits, without a vote
	MinVoters         int      `toml:"min_voters"`          // what nobody goes below without --force, and the leader never
	StabilizationTime Duration `toml:"stabilization_time"`  // for how long a node that joined answers before it votes
	DeadServerCleanup Duration `toml:"dead_server_cleanup"` // after how long a dead member is removed; 0: never
}

// BackupConfig is the schedule of this node's backups, and whom all its backups are encrypted for.
type BackupConfig struct {
	Dir      string   `toml:"dir"` // "": none by itself
	Interval Duration `toml:"interval"`
	Keep     int      `toml:"keep"`     // of this node's in Dir
	KeyFile  string   `toml:"key_file"` // age keys; "": not encrypted
}

// RuleConfig is one limit.
type RuleConfig struct {
	Limit     int64    `toml:"limit"`
	Window    Duration `toml:"window"`
	Algorithm string   `toml:"algorithm"` // "sliding_window", "fixed_window" or "token_bucket"
	Burst     int64    `toml:"burst"`     // what a token bucket holds when full; 0: its limit, and of the others nothing else
}

// PolicyConfig is one [[limits.policies]] entry: a limit on top of the layers' own.
type PolicyConfig struct {
	Name   string   `toml:"name"`
	By     []string `toml:"by"`     // "address", "key", "user", "organization", "route"; "check" or "descriptor" alone
	Layers []string `toml:"layers"` // "anonymous", "api_key", "user"; empty: all
	Routes []string `toml:"routes"` // names of [[routes]]; empty: all requests
	Plans  []string `toml:"plans"`  // names of [plans], or "none"; empty: all
	RuleConfig
	Shadow bool `toml:"shadow"` // evaluated, counted and logged, never enforced
}

// LimitsConfig holds the policies by layer and the ledger's settings.
type LimitsConfig struct {
	Anonymous    RuleConfig         `toml:"anonymous"`
	APIKey       RuleConfig         `toml:"api_key"`
	User         RuleConfig         `toml:"user"`
	Documents    RuleConfig         `toml:"documents"`
	Policies     []PolicyConfig     `toml:"policies"`
	Descriptors  []DescriptorConfig `toml:"descriptors"`
	OnIsolation  string             `toml:"on_isolation"` // "strict" (default) or "available"
	MaxClockSkew Duration           `toml:"max_clock_skew"`
	Lease        Duration           `toml:"lease"`      // how far ahead of the leader's clock the horizon is set
	DeadAfter    Duration           `toml:"dead_after"` // a node silent for so long loses its share
	MaxBuckets   int                `toml:"max_buckets"`
	DebugHeader  bool               `toml:"debug_header"` // responses say whether their decision waited for a message
}

// AuthConfig steers tokens, sessions and passwords.
type AuthConfig struct {
	TokenTTL          Duration `toml:"token_ttl"`
	RefreshTTL        Duration `toml:"refresh_ttl"`
	RefreshReuseGrace Duration `toml:"refresh_reuse_grace"`
	MaxStaleness      Duration `toml:"max_staleness"`
	OnStale           string   `toml:"on_stale"` // "refuse" (default) or "serve"
	SigningAlgorithm  string   `toml:"signing_algorithm"`
	SigningRotation   Duration `toml:"signing_rotation"`
	MaxSessions       int      `toml:"max_sessions"`
	CookieSessions    bool     `toml:"cookie_sessions"`
	AuditRetention    Duration `toml:"audit_retention"`
	// ImportedKeyPrefixes is how keys of other programs begin that were imported by their hash.
	ImportedKeyPrefixes []string     `toml:"imported_key_prefixes"`
	CredentialCache     bool         `toml:"credential_cache"` // false for measurements
	Argon2              Argon2Config `toml:"argon2"`
}

// Argon2Config are the parameters of new password hashes and of the queue before them.
type Argon2Config struct {
	MemoryKiB   int `toml:"memory_kib"`
	Iterations  int `toml:"iterations"`
	Parallelism int `toml:"parallelism"`
	Workers     int `toml:"workers"`
	Queue       int `toml:"queue"`
}

// OAuthConfig lists the providers.
type OAuthConfig struct {
	RedirectURIs []string                       `toml:"redirect_uris"`
	Google       ProviderConfig                 `toml:"google"`
	GitHub       ProviderConfig                 `toml:"github"`
	Providers    map[string]NamedProviderConfig `toml:"providers"`
}

// ProviderConfig is one OAuth provider; off while ClientID is "". Empty URLs mean the built-in ones.
type ProviderConfig struct {
	ClientID         string   `toml:"client_id"`
	ClientSecret     Secret   `toml:"client_secret"`
	ClientSecretFile string   `toml:"client_secret_file"` // in its place
	Issuer           string   `toml:"issuer"`
	AuthURL          string   `toml:"auth_url"`
	TokenURL         string   `toml:"token_url"`
	UserInfoURL      string   `toml:"userinfo_url"`
	JWKSURL          string   `toml:"jwks_url"`
	Scopes           []string `toml:"scopes"`
}

// NamedProviderConfig is one [oauth.providers.<name>]: nothing about it is built in.
type NamedProviderConfig struct {
	Kind string `toml:"kind"` // "oidc" (default) or "github"
	ProviderConfig
}

// ScopesConfig is the catalogue of resources that scopes may name.
type ScopesConfig struct {
	Resources []string `toml:"resources"`
}

// RouteConfig is one [[routes]] entry. What is below Upstreams is of routes with upstreams alone.
type RouteConfig struct {
	Name      string            `toml:"name"`
	Host      string            `toml:"host"`
	Path      string            `toml:"path"` // prefix, by whole segments
	Rules     []RouteRuleConfig `toml:"rules"`
	Upstream  string            `toml:"upstream"`
	Upstreams []string          `toml:"upstreams"` // several in place of one, in turn

	UpstreamCAFile string          `toml:"upstream_ca_file"` // PEM; "": the system's
	StripPrefix    bool            `toml:"strip_prefix"`
	ConnectTimeout Duration        `toml:"connect_timeout"`
	Timeout        Duration        `toml:"timeout"`      // until the answer's header
	IdleTimeout    Duration        `toml:"idle_timeout"` // 0: timeout
	MaxBodyBytes   int64           `toml:"max_body_bytes"`
	MaxAnswerBytes int64           `toml:"max_answer_bytes"` // 0: any
	MaxRequests    int             `toml:"max_requests"`     // at once, to each upstream
	Retries        int             `toml:"retries"`
	MaxFails       int             `toml:"max_fails"` // in a row, until an upstream is left out
	EjectTime      Duration        `toml:"eject_time"`
	WebSocket      bool            `toml:"websocket"`
	WebSocketIdle  Duration        `toml:"websocket_idle_timeout"`
	MaxWebSockets  int             `toml:"max_websockets"`
	CORS           RouteCORSConfig `toml:"cors"`
}

// RouteCORSConfig says which web pages may call a gateway route, in place of its upstreams. Without origins those answer for themselves.
type RouteCORSConfig struct {
	Origins     []string `toml:"origins"`
	Headers     []string `toml:"headers"` // of requests, besides those that the API takes
	Expose      []string `toml:"expose"`  // of answers, besides those that Sluice sets
	Credentials bool     `toml:"credentials"`
	MaxAge      Duration `toml:"max_age"`
}

// gateway says whether requests go on to upstreams.
func (r *RouteConfig) gateway() bool { return r.Upstream != "" || len(r.Upstreams) > 0 }

// RouteRuleConfig says what requests of some methods need.
type RouteRuleConfig struct {
	Methods   []string `toml:"methods"`
	Scopes    []string `toml:"scopes"`
	Anonymous bool     `toml:"anonymous"`
	Cost      int64    `toml:"cost"`
}
