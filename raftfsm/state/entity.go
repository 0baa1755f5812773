package state

// User is an account. Deleting or disabling one is a positive record (DeletedAt, DisabledAt), never an absent key.
type User struct {
	ID           string `cbor:"1,keyasint"`
	Username     string `cbor:"2,keyasint"` // lower case, unique
	Email        string `cbor:"3,keyasint"` // normalised, unique
	PasswordHash string `cbor:"4,keyasint"` // PHC string of argon2id; "" if the account has no password
	CreatedAt    int64  `cbor:"5,keyasint"`
	DisabledAt   int64  `cbor:"6,keyasint"`
	DeletedAt    int64  `cbor:"7,keyasint"`
	PersonalOrg  string `cbor:"8,keyasint"` // the organization made at registration
}

// Identity ties an account to a subject of an OAuth provider. Unique by (Provider, Subject).
type Identity struct {
	Provider  string `cbor:"1,keyasint"`
	Subject   string `cbor:"2,keyasint"`
	UserID    string `cbor:"3,keyasint"`
	Email     string `cbor:"4,keyasint"`
	CreatedAt int64  `cbor:"5,keyasint"`
}

// OnceRecord says that something that may happen once has happened.
type OnceRecord struct {
	Kind      string `cbor:"1,keyasint"`
	ExpiresAt int64  `cbor:"2,keyasint"`
}

// Organization owns API keys and has members.
type Organization struct {
	ID        string `cbor:"1,keyasint"`
	Name      string `cbor:"2,keyasint"`
	Personal  bool   `cbor:"3,keyasint"`
	Plan      string `cbor:"4,keyasint"` // name of a plan in the configuration; "" for the layer's default
	CreatedAt int64  `cbor:"5,keyasint"`
	DeletedAt int64  `cbor:"6,keyasint"`
	CreatedBy string `cbor:"7,keyasint"`
}

// Roles of a member, strongest first.
const (
	RoleOwner  = "owner"
	RoleAdmin  = "admin"
	RoleMember = "member"
	RoleViewer = "viewer"
)

// Membership is a user's role in an organization. Unique by (OrganizationID, UserID).
type Membership struct {
	OrganizationID string `cbor:"1,keyasint"`
	UserID         string `cbor:"2,keyasint"`
	Role           string `cbor:"3,keyasint"`
	CreatedAt      int64  `cbor:"4,keyasint"`
}

// APIKey is a key's record. The secret is never stored: Hash is the SHA-256 of the whole key string, and keys are
// looked up by it. A revoked key keeps its record (RevokedAt), so that a revocation can never be undone by a lost write.
type APIKey struct {
	ID             string   `cbor:"1,keyasint"`
	OrganizationID string   `cbor:"2,keyasint"`
	CreatedBy      string   `cbor:"3,keyasint"` // user id, or key id if a key made it
	Name           string   `cbor:"4,keyasint"`
	Hash           []byte   `cbor:"5,keyasint"`
	Prefix         string   `cbor:"6,keyasint"` // the key's first characters, for display
	Scopes         []string `cbor:"7,keyasint"`
	Environment    string   `cbor:"8,keyasint"`  // "live" or "test"
	RateLimit      int64    `cbor:"9,keyasint"`  // own limit; 0: the plan's or the layer's
	RateWindow     int64    `cbor:"10,keyasint"` // seconds; 0 with RateLimit 0
	CreatedAt      int64    `cbor:"11,keyasint"`
	ExpiresAt      int64    `cbor:"12,keyasint"` // 0: never
	LastUsedAt     int64    `cbor:"13,keyasint"` // 0: never
	RevokedAt      int64    `cbor:"14,keyasint"`
	RotatedAt      int64    `cbor:"15,keyasint"`
	PreviousHash   []byte   `cbor:"16,keyasint"` // the key before the last rotation
	PreviousUntil  int64    `cbor:"17,keyasint"` // that one works until then; 0: it does not work
}

// KeyAuth is what deciding about a presented key takes, all of one moment of the state.
type KeyAuth struct {
	Key          APIKey        // LastUsedAt is not filled in
	Organization *Organization // nil where there is no record of it; Name is not filled in
	// Disabled is set while the user who made the key, or the key that made it, and so on, is disabled; also where that
	// chain is longer than MaxKeyChain. A maker whose account was deleted disables nothing: the key is the organization's.
	Disabled bool
}

// TokenAuth is what deciding about an access token takes, all of one moment of the state.
type TokenAuth struct {
	Session    Session
	UserActive bool // there is the user, neither disabled nor deleted
	// OrganizationID is the one that was asked for, or the user's own.
	OrganizationID string
	Role           string // the user's there; "" for no member
}

// MaxKeyChain is how many keys may have made each other, the last one included.
const MaxKeyChain = 16

// KeyUsage is what is known of a key's uses. It changes every minute, the key hardly ever.
type KeyUsage struct {
	LastAt     int64  `cbor:"1,keyasint"` // 0: never
	LastIP     string `cbor:"2,keyasint"`
	Count      int64  `cbor:"3,keyasint"` // never falls
	RecordedAt int64  `cbor:"4,keyasint"` // the log's time when this was written; 0: never
}

// Session is one sign-in. Its access tokens carry its id; ending it (EndedAt) ends them all.
//
// RefreshHash is the SHA-256 of the refresh token that may be spent next, PreviousHash of the one spent last.
type Session struct {
	ID           string `cbor:"1,keyasint"`
	UserID       string `cbor:"2,keyasint"`
	CreatedAt    int64  `cbor:"3,keyasint"`
	RefreshedAt  int64  `cbor:"4,keyasint"` // when RefreshHash became current
	ExpiresAt    int64  `cbor:"5,keyasint"` // of the refresh token
	EndedAt      int64  `cbor:"6,keyasint"`
	EndReason    string `cbor:"7,keyasint"` // "logout", "logout_all", "token_reused", "password_changed", "too_many_sessions", ...
	UserAgent    string `cbor:"8,keyasint"`
	Address      string `cbor:"9,keyasint"`
	RefreshHash  []byte `cbor:"10,keyasint"`
	PreviousHash []byte `cbor:"11,keyasint"`
	Generation   uint64 `cbor:"12,keyasint"` // number of rotations so far
}

// SigningKey signs access tokens. Exactly one algorithm belongs to a key.
type SigningKey struct {
	ID           string `cbor:"1,keyasint"` // the JWT header's kid
	Algorithm    string `cbor:"2,keyasint"` // "HS256", "EdDSA" or "ES256"
	SealedSecret []byte `cbor:"3,keyasint"`
	Public       []byte `cbor:"4,keyasint"` // PKIX, DER; nil for HS256
	CreatedAt    int64  `cbor:"5,keyasint"`
	SignsFrom    int64  `cbor:"6,keyasint"` // the newest key whose SignsFrom has passed signs
	VerifiesTo   int64  `cbor:"7,keyasint"` // 0 while it is the newest
}

// ClusterSecrets are made once, by the first leader, and replicated.
type ClusterSecrets struct {
	ClusterID        string `cbor:"1,keyasint"`
	BucketKey        []byte `cbor:"2,keyasint"` // 16 bytes; keys the limiter's bucket hash; not a secret of anybody's account
	SealedRefreshKey []byte `cbor:"3,keyasint"` // derives refresh tokens' successors
	SealedCheck      []byte `cbor:"4,keyasint"` // a known plaintext: a node with another key for secrets at rest finds out at once
}

// AuditEvent says who did what, from where, with what result. It never holds a secret.
type AuditEvent struct {
	ID             string `cbor:"1,keyasint"`
	OrganizationID string `cbor:"2,keyasint"` // "" where no organization is concerned
	Event          string `cbor:"3,keyasint"` // "user.registered", "api_key.revoked", ...
	ActorType      string `cbor:"4,keyasint"` // "user", "api_key", "anonymous", "system", "operator"
	ActorID        string `cbor:"5,keyasint"`
	SubjectType    string `cbor:"6,keyasint"` // "user", "organization", "api_key", "session", ...
	SubjectID      string `cbor:"7,keyasint"`
	IP             string `cbor:"8,keyasint"`
	UserAgent      string `cbor:"9,keyasint"`
	RequestID      string `cbor:"10,keyasint"`
	Result         string `cbor:"11,keyasint"` // "success", "failure", "denied"
	At             int64  `cbor:"12,keyasint"`
	Detail         []Pair `cbor:"13,keyasint"` // in the order given
}

// Pair is a name and a value; a list of pairs stands where a map would make the bytes depend on an order.
type Pair struct {
	Name  string `cbor:"1,keyasint"`
	Value string `cbor:"2,keyasint"`
}

// Idempotency is the record of a request that carried an Idempotency-Key: the answer that a repetition gets again.
type Idempotency struct {
	Scope       []byte `cbor:"1,keyasint"` // SHA-256 of (credential's id, Idempotency-Key)
	Fingerprint []byte `cbor:"2,keyasint"` // SHA-256 of (method, path, body)
	Status      int    `cbor:"3,keyasint"`
	SealedBody  []byte `cbor:"4,keyasint"`
	CreatedAt   int64  `cbor:"5,keyasint"`
}

// NodeInfo is what the cluster knows of a node beside its Raft address. Members find each other through it.
type NodeInfo struct {
	ID            string `cbor:"1,keyasint"`
	Name          string `cbor:"2,keyasint"`
	PeerAddress   string `cbor:"3,keyasint"` // Raft and forwarding, host:port
	GossipAddress string `cbor:"4,keyasint"`
	Version       string `cbor:"5,keyasint"`
	JoinedAt      int64  `cbor:"6,keyasint"`
	RemovedAt     int64  `cbor:"7,keyasint"`
}

// Roster is one version of the ordered list of nodes that hold shares. It governs the windows that begin at or after
// From, up to the next roster's From.
type Roster struct {
	Index uint64   `cbor:"1,keyasint"` // of the log entry that committed it
	From  int64    `cbor:"2,keyasint"` // Unix milliseconds: the greatest horizon before it in the log; 0 for the first
	Nodes []string `cbor:"3,keyasint"` // node ids
}

// LeaveInfo is a leave that the log holds: Heir has the leaver's shares, and where it left as well, its own heir.
type LeaveInfo struct {
	Index  uint64 `cbor:"1,keyasint"` // of the log entry that committed it
	Leaver string `cbor:"2,keyasint"` // node ids
	Heir   string `cbor:"3,keyasint"`
	List   []byte `cbor:"4,keyasint"`
	Mark   int64  `cbor:"5,keyasint"` // Unix milliseconds
}

// LimiterState is what the log says about shares.
type LimiterState struct {
	Horizon int64    `cbor:"1,keyasint"` // Unix milliseconds; never falls
	Rosters []Roster `cbor:"2,keyasint"` // oldest first; kept as long as a window that they govern, or the one after it, can be open
	// Leaves, oldest first; kept as long as a roster names the leaver, or it is the heir of one that is kept.
	Leaves []LeaveInfo `cbor:"3,keyasint,omitempty"`
}

// Reset is the present generation of one bucket of the limiter.
type Reset struct {
	Bucket     []byte `cbor:"1,keyasint"` // 16 bytes: its name before any reset
	Generation uint64 `cbor:"2,keyasint"` // index of the log entry that reset it last
	// Until is 0 while the generation is in force. Otherwise the bucket was handed back to its first name: the generation
	// counts in the windows that begin before Until (Unix milliseconds: the greatest horizon before that entry), the first
	// name in all others.
	Until int64 `cbor:"3,keyasint"`
	// Earlier is the last Until of the generations before, 0 for none: who goes by the first name still must know it.
	Earlier   int64  `cbor:"8,keyasint"`
	At        int64  `cbor:"4,keyasint"`
	Policy    string `cbor:"5,keyasint"`
	Algorithm uint8  `cbor:"6,keyasint"`
	Window    int64  `cbor:"7,keyasint"`
}

// AuditFilter selects audit events; a zero field selects all.
type AuditFilter struct {
	OrganizationID string
	Event          string // an exact event, or a prefix that ends in ".*"
	ActorID        string
	SubjectID      string
	Result         string // "success", "failure", "denied"
	Since          int64  // Unix milliseconds, inclusive
	Until          int64  // Unix milliseconds, exclusive
}
