package state

// Codes of refusals. They cross the wire between nodes and become HTTP codes in authapi's one table.
const (
	CodeNotFound      = "not_found"
	CodeForbidden     = "forbidden"
	CodeConflict      = "conflict"
	CodeUsernameTaken = "username_taken"
	CodeEmailTaken    = "email_taken"
	CodeSessionEnded  = "session_ended"
	// CodeLastOwner: an organization would be left without an owner who can act.
	CodeLastOwner = "last_owner"
	// CodePersonalOrganization: a user's own organization goes with the account, and has that one owner.
	CodePersonalOrganization = "personal_organization"
	CodeAlreadyMember        = "already_member"
	// CodeMembershipLimit: the organization has as many members, or the user as many memberships, as there can be.
	CodeMembershipLimit = "membership_limit"
	// CodeIdentityTaken: the identity at a provider belongs to another user.
	CodeIdentityTaken = "identity_taken"
	// CodeLastSignIn: the user would be left without a way to sign in.
	CodeLastSignIn = "last_sign_in"
	// CodeAlreadyUsed: what may happen once has happened. It never reaches a client under this name.
	CodeAlreadyUsed = "already_used"
	// CodeIdempotencyMismatch: the Idempotency-Key was used with another request.
	CodeIdempotencyMismatch = "idempotency_key_reused"
	// CodeTooManyResets: more buckets were reset lately than can be remembered. A retry helps after their windows have ended.
	CodeTooManyResets = "too_many_resets"
	// CodeInvalid: a field has an impossible value (an empty id, a hash that is not 32 bytes). Only a mistake in the
	// proposer makes such a command; it is refused, so that it can't stop the cluster.
	CodeInvalid = "invalid_command"
)

// Outcomes of RefreshSession.
const (
	OutcomeRotated  = "rotated"
	OutcomeReplayed = "replayed"
	OutcomeReused   = "reused"
)

// Result is what applying a command gave. A refusal changed nothing (but for what the command's comment says).
type Result struct {
	// Refused is one of the codes above, "" where the command was done.
	Refused string `cbor:"1,keyasint"`
	Outcome string `cbor:"2,keyasint"`
	Count   int    `cbor:"3,keyasint"`
	// Replay is set where the command's Idempotency-Key had been used for the same request: nothing was changed, and
	// this is the first answer.
	Replay *Idempotency `cbor:"4,keyasint"`
	// ExpiresAt of a refreshed session.
	ExpiresAt int64 `cbor:"5,keyasint"`
	// Index of the log entry that was applied.
	Index uint64 `cbor:"6,keyasint"`
	// Rows has one byte, RowDone or another, for each row of ImportAccounts. Left out where there are none, as in the bytes of before.
	Rows string `cbor:"7,keyasint,omitempty"`
}

// Refusal is a Result.Refused as an error.
type Refusal struct{ Code string }

func (r *Refusal) Error() string { return "refused: " + r.Code }
