package state

// Command is one change of the replicated state. Everything that needs a clock or randomness is in its fields already.
type Command interface {
	// CommandType is the number on disk.
	CommandType() uint16
}

// Envelope goes around every command in the log.
type Envelope struct {
	// RequestID makes a retry of an unknown outcome happen once: a command whose id was applied within the retention
	// time gives the first result again. 16 random bytes, made by the node that took the client's request.
	RequestID [16]byte
	// ProposedAt is the proposer's clock, Unix milliseconds. The FSM's own time is the greatest seen.
	ProposedAt int64
	Command    Command
}

// Numbers of the commands. They are in the log and in snapshots: never change or reuse one.
const (
	TypeInitCluster    uint16 = 1
	TypeRegisterUser   uint16 = 2
	TypeCreateSession  uint16 = 3
	TypeRefreshSession uint16 = 4
	TypeEndSession     uint16 = 5
	TypeEndSessions    uint16 = 6
	TypeCreateOrg      uint16 = 7
	TypeCreateKey      uint16 = 8
	TypeUpdateKey      uint16 = 9
	TypeRotateKey      uint16 = 10
	TypeRevokeKey      uint16 = 11
	TypeTouchKeys      uint16 = 12
	TypeAppendAudit    uint16 = 13
	TypePutSigningKey  uint16 = 14
	TypePrune          uint16 = 15
	TypeHorizon        uint16 = 16
	TypeSetRoster      uint16 = 17
	TypePutNode        uint16 = 18
	TypeBarrier        uint16 = 19
	TypeSetPassword    uint16 = 20
	TypeLeave          uint16 = 21
	TypeResetBucket    uint16 = 24

	TypeUpdateOrg       uint16 = 25
	TypeDeleteOrg       uint16 = 26
	TypeAddMember       uint16 = 27
	TypeUpdateMember    uint16 = 28
	TypeRemoveMember    uint16 = 29
	TypeTransferOrg     uint16 = 30
	TypeSetPlan         uint16 = 31
	TypeDeleteUser      uint16 = 32
	TypeSetUserDisabled uint16 = 33

	TypeRecordKeyUse      uint16 = 39
	TypeRevokeKeyBySecret uint16 = 40

	TypeUseOnce          uint16 = 34
	TypeRegisterIdentity uint16 = 35
	TypeSignInByIdentity uint16 = 36
	TypeLinkIdentity     uint16 = 37
	TypeUnlinkIdentity   uint16 = 38

	TypePutSettings      uint16 = 41
	TypeStartSession     uint16 = 44
	TypeImportAccounts   uint16 = 45
	TypeReplacePassword  uint16 = 46
	TypeRaiseLevel       uint16 = 53
	TypePutGossipKeyring uint16 = 42

	TypeRotateSecretsKey uint16 = 47
	TypeReseal           uint16 = 48
	TypeRecoverCluster   uint16 = 49
)

// InitCluster sets the replicated secrets. The first one wins; a later one is refused with CodeConflict.
type InitCluster struct {
	Secrets    ClusterSecrets `cbor:"1,keyasint"`
	SigningKey SigningKey     `cbor:"2,keyasint"`
}

// RegisterUser makes a user, the personal organization, its owner's membership and a first session, or nothing.
// Refused with CodeUsernameTaken or CodeEmailTaken.
type RegisterUser struct {
	User         User         `cbor:"1,keyasint"`
	Organization Organization `cbor:"2,keyasint"`
	Session      Session      `cbor:"3,keyasint"`
	Audit        []AuditEvent `cbor:"4,keyasint"`
	Idempotency  *Idempotency `cbor:"5,keyasint"`
}

// StartSession is a CreateSession or a SignInByIdentity, whichever is set, that is audited as a whole: where the oldest
// sessions ended, Replaced is recorded with it, with their number as "sessions" behind its details. Refused as that one is,
// and with CodeInvalid where not exactly one is set.
type StartSession struct {
	ByPassword *CreateSession    `cbor:"1,keyasint"`
	ByIdentity *SignInByIdentity `cbor:"2,keyasint"`
	Replaced   []AuditEvent      `cbor:"3,keyasint"`
}

// CreateSession adds a session. Beyond MaxSessions live ones of that user, the oldest ends ("too_many_sessions").
// Refused with CodeNotFound where the user is missing, deleted or disabled, or the password hash is no longer
// PasswordHash (the password was changed while this one was being checked).
type CreateSession struct {
	Session      Session      `cbor:"1,keyasint"`
	MaxSessions  int          `cbor:"2,keyasint"`
	Audit        []AuditEvent `cbor:"3,keyasint"`
	PasswordHash string       `cbor:"4,keyasint"` // the one that was checked; "" to skip the comparison
}

// RefreshSession spends a refresh token by compare-and-set. The proposer has checked that the token is genuine (made
// by this cluster for this session). Result.Outcome is
//   - OutcomeRotated: PresentedHash was current; SuccessorHash is now, ExpiresAt with it;
//   - OutcomeReplayed: PresentedHash is the one spent last, no longer than GraceMillis ago, and SuccessorHash is current;
//   - OutcomeReused: anything else; the session has been ended ("token_reused") and ReuseAudit recorded.
//
// Refused with CodeSessionEnded where the session or its user is gone or expired.
type RefreshSession struct {
	SessionID     string       `cbor:"1,keyasint"`
	PresentedHash []byte       `cbor:"2,keyasint"`
	SuccessorHash []byte       `cbor:"3,keyasint"`
	At            int64        `cbor:"4,keyasint"`
	GraceMillis   int64        `cbor:"5,keyasint"`
	ExpiresAt     int64        `cbor:"6,keyasint"`
	ReuseAudit    []AuditEvent `cbor:"7,keyasint"`
}

// EndSession ends one session of a user. Refused with CodeNotFound if it is not that user's; ending an ended one succeeds.
type EndSession struct {
	SessionID string       `cbor:"1,keyasint"`
	UserID    string       `cbor:"2,keyasint"`
	At        int64        `cbor:"3,keyasint"`
	Reason    string       `cbor:"4,keyasint"`
	Audit     []AuditEvent `cbor:"5,keyasint"`
}

// EndSessions ends all live sessions of a user but ExceptID ("" for none). Result.Count says how many.
type EndSessions struct {
	UserID   string       `cbor:"1,keyasint"`
	ExceptID string       `cbor:"2,keyasint"`
	At       int64        `cbor:"3,keyasint"`
	Reason   string       `cbor:"4,keyasint"`
	Audit    []AuditEvent `cbor:"5,keyasint"`
}

// SetPassword changes a password by compare-and-set and ends the user's other sessions ("password_changed").
// Refused with CodeConflict where OldHash is no longer the user's.
type SetPassword struct {
	UserID        string       `cbor:"1,keyasint"`
	OldHash       string       `cbor:"2,keyasint"`
	NewHash       string       `cbor:"3,keyasint"`
	KeepSessionID string       `cbor:"4,keyasint"`
	At            int64        `cbor:"5,keyasint"`
	Audit         []AuditEvent `cbor:"6,keyasint"`
}

// CreateOrg makes an organization with its owner. Refused with CodeNotFound where the user is gone.
type CreateOrg struct {
	Organization Organization `cbor:"1,keyasint"`
	OwnerID      string       `cbor:"2,keyasint"`
	Audit        []AuditEvent `cbor:"3,keyasint"`
	Idempotency  *Idempotency `cbor:"4,keyasint"`
}

// Actor is who asks for a change of an organization's things. The FSM checks again, at the entry's place in the log,
// that the actor still may: a user by membership and role, a key by being live, of that organization, and by scope.
type Actor struct {
	UserID string   `cbor:"1,keyasint"` // or
	KeyID  string   `cbor:"2,keyasint"`
	Roles  []string `cbor:"3,keyasint"` // a user needs one of them
	Scopes []string `cbor:"4,keyasint"` // a key needs all of them
}

// CreateKey adds an API key. Refused with CodeForbidden (the actor may not, or the key would grant more than the actor has),
// CodeNotFound (organization gone), CodeConflict (hash or id exists).
type CreateKey struct {
	Key         APIKey       `cbor:"1,keyasint"`
	Actor       Actor        `cbor:"2,keyasint"`
	Audit       []AuditEvent `cbor:"3,keyasint"`
	Idempotency *Idempotency `cbor:"4,keyasint"`
}

// UpdateKey changes the fields that are set. Refused with CodeNotFound (gone or revoked) or CodeForbidden.
type UpdateKey struct {
	KeyID        string       `cbor:"1,keyasint"`
	Actor        Actor        `cbor:"2,keyasint"`
	Name         *string      `cbor:"3,keyasint"`
	Scopes       *[]string    `cbor:"4,keyasint"`
	ExpiresAt    *int64       `cbor:"5,keyasint"` // 0: never
	SetRateLimit bool         `cbor:"6,keyasint"`
	RateLimit    int64        `cbor:"7,keyasint"`
	RateWindow   int64        `cbor:"8,keyasint"`
	Audit        []AuditEvent `cbor:"9,keyasint"`
}

// RotateKey replaces the secret of a key by compare-and-set on OldHash; the old secret works until PreviousUntil
// (0: dead at once), and any older one dies. Refused with CodeNotFound, CodeForbidden, or CodeConflict (another rotation was first).
type RotateKey struct {
	KeyID         string       `cbor:"1,keyasint"`
	Actor         Actor        `cbor:"2,keyasint"`
	OldHash       []byte       `cbor:"3,keyasint"`
	NewHash       []byte       `cbor:"4,keyasint"`
	NewPrefix     string       `cbor:"5,keyasint"`
	At            int64        `cbor:"6,keyasint"`
	PreviousUntil int64        `cbor:"7,keyasint"`
	Audit         []AuditEvent `cbor:"8,keyasint"`
	Idempotency   *Idempotency `cbor:"9,keyasint"`
}

// RevokeKey ends a key for good, its previous secret too. Refused with CodeNotFound or CodeForbidden.
type RevokeKey struct {
	KeyID string       `cbor:"1,keyasint"`
	Actor Actor        `cbor:"2,keyasint"`
	At    int64        `cbor:"3,keyasint"`
	Audit []AuditEvent `cbor:"4,keyasint"`
}

// TouchKeys raises the keys' last use; it never lowers it and ignores unknown ids. Nodes propose RecordKeyUse now; logs
// have this one.
type TouchKeys struct {
	Keys []KeyUse `cbor:"1,keyasint"`
}

// KeyUse is when a key was last used.
type KeyUse struct {
	KeyID string `cbor:"1,keyasint"`
	At    int64  `cbor:"2,keyasint"`
}

// AppendAudit records events that change nothing else (a failed sign-in).
type AppendAudit struct {
	Events []AuditEvent `cbor:"1,keyasint"`
}

// PutSigningKey adds a key; the one before gets VerifiesTo = PreviousVerifiesTo. Refused with CodeConflict unless PreviousID is the newest.
type PutSigningKey struct {
	Key                SigningKey   `cbor:"1,keyasint"`
	PreviousID         string       `cbor:"2,keyasint"`
	PreviousVerifiesTo int64        `cbor:"3,keyasint"`
	Audit              []AuditEvent `cbor:"4,keyasint"`
}

// Prune removes what ended before the given times: idempotency records, request ids, sessions, audit events (0: keep all), at most Max of each.
type Prune struct {
	IdempotencyBefore int64 `cbor:"1,keyasint"`
	SessionsBefore    int64 `cbor:"2,keyasint"`
	AuditBefore       int64 `cbor:"3,keyasint"`
	RequestsBefore    int64 `cbor:"4,keyasint"`
	Max               int   `cbor:"5,keyasint"`
}

// Horizon raises the time up to which windows may be opened. A lower one changes nothing.
type Horizon struct {
	Until  int64  `cbor:"1,keyasint"`
	Leader string `cbor:"2,keyasint"`
}

// SetRoster commits a new list of nodes that hold shares. Refused with CodeConflict unless PreviousIndex is the newest roster's,
// and where a node has left for good.
type SetRoster struct {
	Nodes         []string     `cbor:"1,keyasint"`
	PreviousIndex uint64       `cbor:"2,keyasint"`
	KeepFrom      int64        `cbor:"3,keyasint"` // rosters superseded before this time may be dropped
	Audit         []AuditEvent `cbor:"4,keyasint"`
}

// ResetBucket begins a new generation of each of the buckets: from the entry on they count from nothing. Old resets that
// were handed back (Reset.Until) are dropped, and where there are many, others are handed back, the oldest first.
// Refused with CodeTooManyResets where no more can be kept.
type ResetBucket struct {
	Buckets []ResetTarget `cbor:"1,keyasint"` // 1 to 64, none twice
	At      int64         `cbor:"2,keyasint"`
	Audit   []AuditEvent  `cbor:"3,keyasint"`
}

// ResetTarget names a bucket of the limiter.
type ResetTarget struct {
	Bucket    []byte `cbor:"1,keyasint"` // 16 bytes: the name that the limiter gives it before any reset
	Policy    string `cbor:"2,keyasint"` // for people; "" where it is not known
	Algorithm uint8  `cbor:"3,keyasint"` // as the limiter numbers them; 0 where it is not known
	Window    int64  `cbor:"4,keyasint"` // seconds; 0 where it is not known
}

// Leave commits that a node has left for good and that Heir, which stored the leaver's List, has its shares from now on.
// Refused with CodeConflict where the leaver has left already, where the heir has left or was removed, and where an entry
// after Applied made the leaver somebody's heir: its list does not know of that, and has to be made anew.
type Leave struct {
	Leaver  string       `cbor:"1,keyasint"`
	Heir    string       `cbor:"2,keyasint"`
	List    []byte       `cbor:"3,keyasint"` // SHA-256 of the list that the heir stored
	Mark    int64        `cbor:"4,keyasint"` // Unix milliseconds: the leaver acted in no window that begins later
	Applied uint64       `cbor:"5,keyasint"` // index of the newest Leave that the list reckons with, 0 for none
	Audit   []AuditEvent `cbor:"6,keyasint"`
}

// PutNode records a node's addresses and version.
type PutNode struct {
	Node NodeInfo `cbor:"1,keyasint"`
}

// Barrier changes nothing; a node that has applied it has applied all before it.
type Barrier struct{}

func (InitCluster) CommandType() uint16    { return TypeInitCluster }
func (RegisterUser) CommandType() uint16   { return TypeRegisterUser }
func (CreateSession) CommandType() uint16  { return TypeCreateSession }
func (StartSession) CommandType() uint16   { return TypeStartSession }
func (RefreshSession) CommandType() uint16 { return TypeRefreshSession }
func (EndSession) CommandType() uint16     { return TypeEndSession }
func (EndSessions) CommandType() uint16    { return TypeEndSessions }
func (SetPassword) CommandType() uint16    { return TypeSetPassword }
func (CreateOrg) CommandType() uint16      { return TypeCreateOrg }
func (CreateKey) CommandType() uint16      { return TypeCreateKey }
func (UpdateKey) CommandType() uint16      { return TypeUpdateKey }
func (RotateKey) CommandType() uint16      { return TypeRotateKey }
func (RevokeKey) CommandType() uint16      { return TypeRevokeKey }
func (TouchKeys) CommandType() uint16      { return TypeTouchKeys }
func (AppendAudit) CommandType() uint16    { return TypeAppendAudit }
func (PutSigningKey) CommandType() uint16  { return TypePutSigningKey }
func (Prune) CommandType() uint16          { return TypePrune }
func (Horizon) CommandType() uint16        { return TypeHorizon }
func (SetRoster) CommandType() uint16      { return TypeSetRoster }
func (Leave) CommandType() uint16          { return TypeLeave }
func (PutNode) CommandType() uint16        { return TypePutNode }
func (ResetBucket) CommandType() uint16    { return TypeResetBucket }
func (Barrier) CommandType() uint16        { return TypeBarrier }
