package state

// UpdateOrg changes the fields that are set. Refused with CodeNotFound (organization gone) or CodeForbidden.
type UpdateOrg struct {
	OrganizationID string       `cbor:"1,keyasint"`
	Actor          Actor        `cbor:"2,keyasint"`
	Name           *string      `cbor:"3,keyasint"`
	At             int64        `cbor:"4,keyasint"`
	Audit          []AuditEvent `cbor:"5,keyasint"`
}

// DeleteOrg ends an organization: its keys are dead, its memberships are gone, its record stays. Refused with
// CodeNotFound, CodeForbidden (a key, or a user who is no owner) or CodePersonalOrganization.
type DeleteOrg struct {
	OrganizationID string       `cbor:"1,keyasint"`
	Actor          Actor        `cbor:"2,keyasint"`
	At             int64        `cbor:"3,keyasint"`
	Audit          []AuditEvent `cbor:"4,keyasint"`
}

// AddMember makes a user a member. An owner is made by an owner only, an admin not by a key that has less than
// everything. Refused with CodeNotFound (organization or user gone, or the user disabled), CodeForbidden,
// CodeAlreadyMember, CodePersonalOrganization (a second owner of one) or CodeMembershipLimit.
type AddMember struct {
	Membership  Membership   `cbor:"1,keyasint"`
	Actor       Actor        `cbor:"2,keyasint"`
	Audit       []AuditEvent `cbor:"3,keyasint"`
	Idempotency *Idempotency `cbor:"4,keyasint"`
}

// UpdateMember changes a member's role. Both the role before and the role after must be the actor's to give, as with
// AddMember. Refused with CodeNotFound (organization or membership gone), CodeForbidden, CodePersonalOrganization or
// CodeLastOwner.
type UpdateMember struct {
	OrganizationID string       `cbor:"1,keyasint"`
	UserID         string       `cbor:"2,keyasint"`
	Role           string       `cbor:"3,keyasint"`
	Actor          Actor        `cbor:"4,keyasint"`
	At             int64        `cbor:"5,keyasint"`
	Audit          []AuditEvent `cbor:"6,keyasint"`
}

// RemoveMember ends a membership. Who leaves is the actor of it, with whatever role that membership has. Refused as
// UpdateMember.
type RemoveMember struct {
	OrganizationID string       `cbor:"1,keyasint"`
	UserID         string       `cbor:"2,keyasint"`
	Actor          Actor        `cbor:"3,keyasint"`
	At             int64        `cbor:"4,keyasint"`
	Audit          []AuditEvent `cbor:"5,keyasint"`
}

// TransferOrg makes a member the owner in the actor's place, who stays as an admin. Refused with CodeNotFound
// (organization or membership gone, or the user disabled), CodeForbidden (the actor is no owner),
// CodePersonalOrganization, or CodeConflict (to the actor itself).
type TransferOrg struct {
	OrganizationID string       `cbor:"1,keyasint"`
	ToUserID       string       `cbor:"2,keyasint"`
	Actor          Actor        `cbor:"3,keyasint"`
	At             int64        `cbor:"4,keyasint"`
	Audit          []AuditEvent `cbor:"5,keyasint"`
	Idempotency    *Idempotency `cbor:"6,keyasint"`
}

// SetPlan gives an organization a plan, "" for the layer's default. It is the operators': it has no actor to check.
// Refused with CodeNotFound.
type SetPlan struct {
	OrganizationID string       `cbor:"1,keyasint"`
	Plan           string       `cbor:"2,keyasint"`
	At             int64        `cbor:"3,keyasint"`
	Audit          []AuditEvent `cbor:"4,keyasint"`
}

// DeleteUser ends an account by compare-and-set on its password hash: its sessions end, its identities, memberships
// and names go, and so do the organizations of which it was the only member. Its record stays, without anything personal.
// Result.Count says how many organizations went. Refused with CodeNotFound (gone or disabled), CodeConflict (the hash is
// no longer PasswordHash), CodeLastOwner (the only owner of an organization with other members) or CodeMembershipLimit
// (too much for one entry: leave some organizations first).
type DeleteUser struct {
	UserID       string       `cbor:"1,keyasint"`
	PasswordHash string       `cbor:"2,keyasint"` // the one that was checked; "" for an account without a password
	At           int64        `cbor:"3,keyasint"`
	Audit        []AuditEvent `cbor:"4,keyasint"`
}

// SetUserDisabled disables a user, which ends all sessions for Reason, or enables one again. It is the operators': it
// has no actor to check. Result.Count is 1 where it changed something; what is so already succeeds. Refused with
// CodeNotFound.
type SetUserDisabled struct {
	UserID   string       `cbor:"1,keyasint"`
	Disabled bool         `cbor:"2,keyasint"`
	At       int64        `cbor:"3,keyasint"`
	Reason   string       `cbor:"4,keyasint"` // of the sessions' end
	Audit    []AuditEvent `cbor:"5,keyasint"`
}

func (UpdateOrg) CommandType() uint16       { return TypeUpdateOrg }
func (DeleteOrg) CommandType() uint16       { return TypeDeleteOrg }
func (AddMember) CommandType() uint16       { return TypeAddMember }
func (UpdateMember) CommandType() uint16    { return TypeUpdateMember }
func (RemoveMember) CommandType() uint16    { return TypeRemoveMember }
func (TransferOrg) CommandType() uint16     { return TypeTransferOrg }
func (SetPlan) CommandType() uint16         { return TypeSetPlan }
func (DeleteUser) CommandType() uint16      { return TypeDeleteUser }
func (SetUserDisabled) CommandType() uint16 { return TypeSetUserDisabled }
