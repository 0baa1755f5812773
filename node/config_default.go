package node

import (
	"time"

	"sluice/authapi"
	"sluice/authapi/grpcapi"
)

// DefaultConfig is the configuration of an empty file. It is not complete: a node also needs its two secrets and either
// InitialMembers or Join.
func DefaultConfig() Config {
	perMinute := func(limit int64) RuleConfig {
		return RuleConfig{Limit: limit, Window: Duration(time.Minute), Algorithm: "sliding_window"}
	}
	return Config{
		Cluster:        "sluice",
		DataDir:        "/var/lib/sluice",
		TrustedProxies: []string{},
		RoutesDefault:  "deny",

		ForwardedHeader: "x-forwarded-for",
		IdentityHeaders: IdentityHeadersConfig{Preset: "x-auth"},
		InitialMembers:  []string{},
		Join:            []string{},
		HTTP: HTTPConfig{
			Listen:       ":8080",
			ReadTimeout:  Duration(5 * time.Second),
			WriteTimeout: Duration(10 * time.Second),
			IdleTimeout:  Duration(time.Minute),
			MaxConns:     16384,
			// Most of a node's clients come through a few load balancers, which trusted_proxies exempts; what is left are
			// people and services that connect by themselves.
			MaxConnsPerIP: 1024,
			DrainDelay:    Duration(2 * time.Second),
			DrainTimeout:  Duration(15 * time.Second),
		},
		CORS:   CORSConfig{Origins: []string{}, MaxAge: Duration(authapi.DefaultCORSMaxAge)},
		Peer:   PeerConfig{Listen: ":7100"},
		Gossip: GossipConfig{Listen: ":7101"},
		Admin:  AdminConfig{Listen: "127.0.0.1:7102", SocketMode: "0600", LocalRole: "operate"},
		GRPC:   GRPCConfig{MaxConns: grpcapi.DefaultMaxConns, MaxStreams: grpcapi.DefaultMaxStreams, ResponseHeaders: true},
		Log:    LogConfig{Level: "info", Format: "json"},
		Raft: RaftConfig{
			HeartbeatTimeout:  Duration(time.Second),
			ElectionTimeout:   Duration(time.Second),
			SnapshotThreshold: 8192,
			SnapshotInterval:  Duration(2 * time.Minute),
			TrailingLogs:      16384,
		},
		Tracing: defaultTracing,
		Storage: StorageConfig{
			LowFreeBytes: 1 << 30, LowFreePercent: 10,
			CriticalFreeBytes: 256 << 20, CriticalFreePercent: 4,
			AppendTimeout: Duration(2 * time.Second),
		},
		Membership: MembershipConfig{
			Voter: true, MinVoters: 3, StabilizationTime: Duration(10 * time.Second),
			// Longer than a weekend: a machine that comes back after all finds its place.
			DeadServerCleanup: Duration(72 * time.Hour),
		},
		Backup: BackupConfig{Interval: Duration(24 * time.Hour), Keep: 7},
		Limits: LimitsConfig{
			Anonymous:    perMinute(10),
			APIKey:       perMinute(100),
			User:         perMinute(100),
			Documents:    perMinute(600),
			Policies:     []PolicyConfig{},
			Descriptors:  []DescriptorConfig{},
			OnIsolation:  "strict",
			MaxClockSkew: Duration(time.Second),
			Lease:        Duration(10 * time.Second),
			DeadAfter:    Duration(15 * time.Second),
			MaxBuckets:   1 << 18,
		},
		Auth: AuthConfig{
			TokenTTL:            Duration(time.Hour),
			RefreshTTL:          Duration(720 * time.Hour),
			RefreshReuseGrace:   Duration(10 * time.Second),
			MaxStaleness:        Duration(5 * time.Second),
			OnStale:             "refuse",
			SigningAlgorithm:    "HS256",
			SigningRotation:     Duration(720 * time.Hour),
			MaxSessions:         20,
			AuditRetention:      Duration(2160 * time.Hour),
			ImportedKeyPrefixes: []string{},
			CredentialCache:     true,
			Argon2:              Argon2Config{MemoryKiB: 19456, Iterations: 2, Parallelism: 1},
		},
		OAuth: OAuthConfig{
			RedirectURIs: []string{},
			Google:       ProviderConfig{Scopes: []string{}},
			GitHub:       ProviderConfig{Scopes: []string{}},
			Providers:    map[string]NamedProviderConfig{},
		},
		Plans: map[string]RuleConfig{},
		Scopes: ScopesConfig{
			Resources: []string{"triggers", "events", "organizations", "api-keys", "audit-logs", "limits", "tokens"},
		},
		Routes: []RouteConfig{},
	}
}

// Defaults of the entries of lists, which DefaultConfig cannot show.
const (
	defaultRouteConnectTimeout = Duration(authapi.DefaultRouteConnectTimeout)
	defaultRouteTimeout        = Duration(authapi.DefaultRouteTimeout)
	defaultRouteMaxBodyBytes   = authapi.DefaultRouteMaxBody
	defaultRouteMaxRequests    = authapi.DefaultRouteMaxRequests
	defaultRouteRetries        = authapi.DefaultRouteRetries
	defaultRouteMaxFails       = authapi.DefaultRouteMaxFails
	defaultRouteEjectTime      = Duration(authapi.DefaultRouteEjectTime)
	defaultRouteWebSocketIdle  = Duration(authapi.DefaultRouteWebSocketIdle)
	defaultRouteMaxWebSockets  = authapi.DefaultRouteMaxWebSockets
	defaultRuleCost            = 1
)
