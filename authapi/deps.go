package authapi

import (
	"context"
	"time"

	"sluice/limiter"
	"sluice/raftfsm/state"
)

// State is what the handlers read: this node's own copy of the replicated state. Every method reads committed and
// applied entries only, and is safe for concurrent use. A missing entity is (nil, nil); an error means that the store
// itself failed. What is returned belongs to the caller. Ended, revoked and deleted entities are returned as they are:
// look at EndedAt, RevokedAt, DeletedAt, DisabledAt.
type State interface {
	// Epoch rises, before the entry's proposer gets its answer, whenever an applied entry may end or narrow what a
	// credential can do (a revocation, rotation, ended session, changed scopes, own limit or plan, role, disabled user,
	// signing key). A cache entry made while reading at epoch e holds exactly as long as Epoch() == e, e read first.
	Epoch() uint64

	User(id string) (*state.User, error)
	UserByName(username string) (*state.User, error)
	UserByEmail(email string) (*state.User, error)
	Organization(id string) (*state.Organization, error)
	Membership(organizationID, userID string) (*state.Membership, error)
	// MembershipsOf lists a user's memberships, by organization id.
	MembershipsOf(userID string) ([]state.Membership, error)
	// MembersOf lists an organization's memberships, by user id, after the user id `after` ("" for the first page).
	MembersOf(organizationID, after string, limit int) ([]state.Membership, error)
	// KeyAuth finds what deciding about a key takes by the SHA-256 of its present or previous secret, all of one moment;
	// revoked and expired keys too.
	KeyAuth(hash [32]byte) (*state.KeyAuth, error)
	// TokenAuth finds what deciding about an access token takes, all of one moment; nil where there is no such session. With
	// no organization it is the user's own.
	TokenAuth(sessionID, userID, organizationID string) (*state.TokenAuth, error)
	// KeyByHash finds a key by the SHA-256 of its present or previous secret, revoked and expired ones too, without its
	// last use.
	KeyByHash(hash [32]byte) (*state.APIKey, error)
	Key(id string) (*state.APIKey, error)
	// Keys lists an organization's keys that are not revoked, oldest first, after the id `after` ("" for the first page).
	Keys(organizationID, after string, limit int) ([]state.APIKey, error)
	// KeyUsage is what is known of the uses of keys, in the order of the ids; zero for a key that was never used.
	KeyUsage(ids ...string) ([]state.KeyUsage, error)
	Session(id string) (*state.Session, error)
	// Identity finds who signs in by a subject of a provider.
	Identity(provider, subject string) (*state.Identity, error)
	// IdentitiesOf lists a user's identities, by provider.
	IdentitiesOf(userID string) ([]state.Identity, error)
	// SessionsOf lists a user's live sessions, oldest first.
	SessionsOf(userID string) ([]state.Session, error)
	// SigningKeys lists all that may still verify, oldest first.
	SigningKeys() ([]state.SigningKey, error)
	// ClusterSecrets is nil until the first leader has made them.
	ClusterSecrets() (*state.ClusterSecrets, error)
	// Answers lists the records of requests with an Idempotency-Key, by scope, after a scope (nil for the first).
	Answers(after []byte, limit int) ([]state.Idempotency, error)
	// GossipKeyring is nil until a key of gossip was installed.
	GossipKeyring() (*state.GossipKeyring, error)
	// Audit lists at most limit events, newest first, older than the event id `before` ("" for the newest). next is the
	// `before` to go on with, "" where the list ends. A page may be shorter than limit, or empty, and yet have a next.
	Audit(filter AuditFilter, before string, limit int) (events []state.AuditEvent, next string, err error)
}

// AuditFilter selects audit events; zero fields select all.
type AuditFilter = state.AuditFilter

// Cluster is how the handlers change the replicated state and learn how fresh it is.
type Cluster interface {
	// Propose applies cmd exactly once, through the leader wherever that is, and returns after this node has applied it
	// too, so that a read here sees it. The three outcomes: a Result (look at Refused); ErrUnavailable (it did not
	// happen; retry is safe); ErrUnknown (it may have happened: only a retry with the same requestID is safe).
	Propose(ctx context.Context, requestID [16]byte, cmd state.Command) (state.Result, error)
	// CatchUp returns once this node has applied everything that was acknowledged anywhere before the call. Concurrent
	// calls share one probe. Errors: ErrUnavailable, or the context's.
	CatchUp(ctx context.Context) error
	// Fresh says whether this node's state is young enough to honour credentials (auth.max_staleness). Wait-free.
	Fresh() bool
	// Health lists the checks behind /readyz, always in the same order.
	Health() []HealthCheck
	// Leader reports whether this node leads now.
	Leader() bool
}

// HealthCheck is one line of /readyz?verbose. A node is ready when every check's Err is nil.
type HealthCheck struct {
	Name   string
	Err    error
	Detail string
	// Degraded says what is not as it should be though the node is fit for traffic; "" for nothing.
	Degraded string
}

// Limits is the limiter as the handlers use it. All methods are safe for concurrent use and allocate nothing.
type Limits interface {
	// Bucket names the bucket of a subject under a policy.
	Bucket(policy string, rule limiter.Rule, subject []byte) limiter.BucketID
	// Take charges every charge or none and fills verdicts (same length and order). It may wait some milliseconds for a
	// transfer. The returned outcome is the worst of all: Undecided over Refused over Admitted.
	Take(charges []limiter.Charge, verdicts []limiter.Verdict) limiter.Outcome
	// TryTake is Take without waiting. wouldWait says that Take would wait: nothing was charged, and the rest says nothing.
	TryTake(charges []limiter.Charge, verdicts []limiter.Verdict) (outcome limiter.Outcome, wouldWait bool)
	// Peek is Take's answer without the charge and without waiting.
	Peek(charge limiter.Charge) limiter.Verdict
	// Refund gives back what Take charged for a request that this node then answered with 503.
	Refund(charges []limiter.Charge)
}

// Sealer encrypts what must be kept but not read from a disk: signing keys, stored answers with one-time secrets.
type Sealer interface {
	// Seal encrypts plaintext bound to purpose; Open needs the same purpose. Open's error never tells which was wrong.
	Seal(purpose string, plaintext []byte) ([]byte, error)
	Open(purpose string, sealed []byte) ([]byte, error)
	// Reseal is what a sealed value is under the key that seals now; nil where that key sealed it. Errors are as Open's.
	Reseal(purpose string, sealed []byte) ([]byte, error)
	// Use makes the key that sealed a value the one that seals from now on. Errors are as Open's: that key is not held.
	Use(purpose string, sealed []byte) error
	// Keys is how many keys are held.
	Keys() int
}

// Clock is time.Now but for tests.
type Clock func() time.Time
