package state

// RecordKeyUse adds to the usage of keys what a node has gathered. It never lowers a time, adds up counts, and ignores
// unknown ids. Result.Count says how many keys it knew.
type RecordKeyUse struct {
	Keys []KeyUses `cbor:"1,keyasint"`
}

// KeyUses is what one node saw of a key since it last wrote so.
type KeyUses struct {
	KeyID string `cbor:"1,keyasint"`
	At    int64  `cbor:"2,keyasint"` // of the last use
	IP    string `cbor:"3,keyasint"` // of the client of the last use
	Count int64  `cbor:"4,keyasint"` // uses
}

// RevokeKeyBySecret ends what a secret opens, for whoever holds it: the key where it is the present secret, and with
// Previous only the secret itself, whose grace is over then. Result.Count is 1. Refused with CodeNotFound (unknown, or dead
// already) or CodeConflict (it is the other one of the two: a rotation came first).
type RevokeKeyBySecret struct {
	Hash     []byte       `cbor:"1,keyasint"` // SHA-256 of the secret
	At       int64        `cbor:"2,keyasint"`
	Previous bool         `cbor:"3,keyasint"`
	Audit    []AuditEvent `cbor:"4,keyasint"`
}

func (RecordKeyUse) CommandType() uint16      { return TypeRecordKeyUse }
func (RevokeKeyBySecret) CommandType() uint16 { return TypeRevokeKeyBySecret }
