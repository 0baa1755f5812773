package state

// ImportAccounts adds users and keys that come from elsewhere, each row for itself: Result.Rows has what became of each,
// in their order. A row changes everything that belongs to it or nothing. The same row again is RowExists, so an import
// can be repeated.
type ImportAccounts struct {
	Rows []ImportRow `cbor:"1,keyasint"` // 1 to 512
}

// ImportRow is a user or a key.
type ImportRow struct {
	// User comes with Organization, the personal one, whose owner it is.
	User         *User         `cbor:"1,keyasint,omitempty"`
	Organization *Organization `cbor:"2,keyasint,omitempty"`
	// Key belongs to Key.OrganizationID, or where that is "" to the personal organization of the user named Owner.
	// Key.CreatedBy is left "" and becomes that organization's maker.
	Key   *APIKey `cbor:"3,keyasint,omitempty"`
	Owner string  `cbor:"4,keyasint,omitempty"`
}

// What became of a row. They are in Result.Rows and so between nodes: never change or reuse one.
const (
	RowDone          byte = 1
	RowExists        byte = 2 // it, or what it would make, was there as it is
	RowUsernameTaken byte = 3 // by a user with another e-mail address
	RowEmailTaken    byte = 4 // by a user of another name
	RowNoOwner       byte = 5 // there is no such user or organization, or it was deleted
	RowKeyTaken      byte = 6 // a key with this hash belongs to another organization, or was revoked or replaced
	RowConflict      byte = 7 // the id exists
	RowInvalid       byte = 8 // a field has an impossible value
)

// ReplacePassword puts another hash of the same password in the place of one, by compare-and-set, as when one that was
// imported is made anew by this cluster's own method. Sessions go on. Refused with CodeConflict where OldHash is no longer the
// user's, or the user is gone.
type ReplacePassword struct {
	UserID  string `cbor:"1,keyasint"`
	OldHash string `cbor:"2,keyasint"`
	NewHash string `cbor:"3,keyasint"`
}

// CommandType implements Command.
func (ImportAccounts) CommandType() uint16 { return TypeImportAccounts }

// CommandType implements Command.
func (ReplacePassword) CommandType() uint16 { return TypeReplacePassword }
