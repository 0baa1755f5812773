package state

// MaxSettingsText is the longest document of settings, in bytes: it has to fit a command, with its audit event.
const MaxSettingsText = 48 << 10

// Settings is one version of the settings that change live.
type Settings struct {
	Version uint64 `cbor:"1,keyasint"` // from 1, each one more than the last
	// Text is a document in TOML. What it means is the nodes' to say, each with its own configuration; to the state it is a text.
	Text      string `cbor:"2,keyasint"`
	AppliedAt int64  `cbor:"3,keyasint"` // Unix milliseconds, of the proposer's clock
	Rollback  bool   `cbor:"4,keyasint"` // made by a rollback
	// Restores is the version whose text a rollback brought back; 0: that of before the first, which is none.
	Restores uint64 `cbor:"5,keyasint"`
	Address  string `cbor:"6,keyasint"` // whence the operator came, "" where it is not known
}

// PutSettings makes a new version of the settings, by compare-and-set: Settings.Version is one more than the newest, or the
// command is refused with CodeConflict. The 20 newest versions are kept.
type PutSettings struct {
	Settings Settings     `cbor:"1,keyasint"`
	Audit    []AuditEvent `cbor:"2,keyasint"`
}

// CommandType implements Command.
func (PutSettings) CommandType() uint16 { return TypePutSettings }
