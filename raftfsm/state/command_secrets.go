package state

// MaxResealed bounds the records of one Reseal; the size of a command does so earlier for all but the smallest.
const MaxResealed = 512

// RotateSecretsKey makes another key the one under which secrets are sealed: the key that opens ClusterSecrets.SealedCheck is it.
// By compare-and-set: refused with CodeConflict where OldCheck is not there any more, and with CodeNotFound before there are secrets.
type RotateSecretsKey struct {
	OldCheck []byte       `cbor:"1,keyasint"`
	NewCheck []byte       `cbor:"2,keyasint"` // the same plaintext under the new key
	Audit    []AuditEvent `cbor:"3,keyasint"`
}

// CommandType implements Command.
func (RotateSecretsKey) CommandType() uint16 { return TypeRotateSecretsKey }

// Kinds of records that hold something sealed. They are on disk: never change or reuse one.
const (
	SealedRefreshKey uint8 = 1 // ClusterSecrets.SealedRefreshKey; no id
	SealedSigningKey uint8 = 2 // SigningKey.SealedSecret; the key's id
	SealedAnswer     uint8 = 3 // Idempotency.SealedBody; the record's scope
	SealedGossipKey  uint8 = 4 // GossipKey.Sealed in the keyring; the key's id
)

// Reseal replaces sealed values by the same ones under another key. A record that is gone, or sealed otherwise than OldHash says,
// is left as it is. Result.Count says how many were replaced. Refused with CodeInvalid as a whole where one is no such record.
type Reseal struct {
	Records []ResealedRecord `cbor:"1,keyasint"` // 1 to MaxResealed
}

// CommandType implements Command.
func (Reseal) CommandType() uint16 { return TypeReseal }

// ResealedRecord is one value of a Reseal.
type ResealedRecord struct {
	Kind    uint8  `cbor:"1,keyasint"`
	ID      []byte `cbor:"2,keyasint"`
	OldHash []byte `cbor:"3,keyasint"` // SHA-256 of the sealed value that is replaced
	Sealed  []byte `cbor:"4,keyasint"`
}
