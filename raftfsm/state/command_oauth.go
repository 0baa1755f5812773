package state

// Once is something that may happen a single time in the whole cluster: the use of a sign-in's state, or of a code.
type Once struct {
	Kind string `cbor:"1,keyasint"` // what it is, for people
	Hash []byte `cbor:"2,keyasint"` // 32 bytes that nobody can guess; unique over all kinds
	// ExpiresAt is when it may not happen any more in any case, Unix milliseconds. The same thing has the same ExpiresAt
	// always: what was used is forgotten some time after it.
	ExpiresAt int64 `cbor:"3,keyasint"`
}

// UseOnce takes note that something has happened. Refused with CodeAlreadyUsed where it had happened before, or is over
// for so long that nobody knows.
type UseOnce struct {
	Once  Once         `cbor:"1,keyasint"`
	Audit []AuditEvent `cbor:"2,keyasint"`
}

// RegisterIdentity makes a user without a password, who signs in with the identity, the personal organization, its owner's
// membership and, unless Session.ID is "", a first session, or nothing. Refused with CodeIdentityTaken, CodeUsernameTaken
// or CodeEmailTaken, looked at in this order.
type RegisterIdentity struct {
	User         User         `cbor:"1,keyasint"`
	Organization Organization `cbor:"2,keyasint"`
	Identity     Identity     `cbor:"3,keyasint"`
	Session      Session      `cbor:"4,keyasint"`
	Audit        []AuditEvent `cbor:"5,keyasint"`
}

// SignInByIdentity adds a session of the user who has the identity; Session.UserID is that user as the proposer knows it.
// Beyond MaxSessions live ones of that user the oldest ends, as with CreateSession; Result.Count says how many did.
// Where Once.Hash is set, it happens once. Refused with CodeAlreadyUsed, CodeNotFound (nobody has the identity),
// CodeConflict (it is another user's) or CodeForbidden (the user is disabled or deleted), looked at in this order.
type SignInByIdentity struct {
	Provider    string       `cbor:"1,keyasint"`
	Subject     string       `cbor:"2,keyasint"`
	Session     Session      `cbor:"3,keyasint"`
	MaxSessions int          `cbor:"4,keyasint"`
	Once        Once         `cbor:"5,keyasint"`
	Audit       []AuditEvent `cbor:"6,keyasint"`
}

// LinkIdentity gives a user one more way to sign in, on behalf of a session that has to be live. Result.Count is 0 where
// the user had the identity already. Refused with CodeSessionEnded (session or user gone), CodeIdentityTaken (another
// user's) or CodeConflict (the user has another identity of that provider).
type LinkIdentity struct {
	Identity  Identity     `cbor:"1,keyasint"`
	SessionID string       `cbor:"2,keyasint"`
	At        int64        `cbor:"3,keyasint"`
	Audit     []AuditEvent `cbor:"4,keyasint"`
}

// UnlinkIdentity takes a user's identity of a provider away. Refused with CodeNotFound, or CodeLastSignIn where the user has
// no password and no other identity.
type UnlinkIdentity struct {
	UserID   string       `cbor:"1,keyasint"`
	Provider string       `cbor:"2,keyasint"`
	At       int64        `cbor:"3,keyasint"`
	Audit    []AuditEvent `cbor:"4,keyasint"`
}

func (UseOnce) CommandType() uint16          { return TypeUseOnce }
func (RegisterIdentity) CommandType() uint16 { return TypeRegisterIdentity }
func (SignInByIdentity) CommandType() uint16 { return TypeSignInByIdentity }
func (LinkIdentity) CommandType() uint16     { return TypeLinkIdentity }
func (UnlinkIdentity) CommandType() uint16   { return TypeUnlinkIdentity }
