package state

// MaxGossipKeys is how many keys the keyring of gossip can hold: every packet that none of them opens is tried with each.
const MaxGossipKeys = 8

// GossipKey is one key that nodes open packets of gossip with.
type GossipKey struct {
	ID     string `cbor:"1,keyasint"` // its fingerprint, which says nothing of the key
	Sealed []byte `cbor:"2,keyasint"` // the key, encrypted by the nodes' sealer
	// InstalledAt is in Unix milliseconds, of the proposer's clock; 0 for the key that a cluster begins with.
	InstalledAt int64 `cbor:"3,keyasint"`
}

// GossipKeyring is what the packets of gossip are sealed and opened with. Before there is one, that is a key which the nodes
// derive from what they share.
type GossipKeyring struct {
	Version uint64      `cbor:"1,keyasint"` // from 1, each one more than the last
	Keys    []GossipKey `cbor:"2,keyasint"` // 1 to MaxGossipKeys, each id once
	Primary string      `cbor:"3,keyasint"` // id of the one that seals
}

// PutGossipKeyring replaces the keyring, by compare-and-set: Keyring.Version is one more than the present one's, or the command is
// refused with CodeConflict. Which nodes have which keys in use is for the proposer to find out; the log cannot know.
type PutGossipKeyring struct {
	Keyring GossipKeyring `cbor:"1,keyasint"`
	Audit   []AuditEvent  `cbor:"2,keyasint"`
}

// CommandType implements Command.
func (PutGossipKeyring) CommandType() uint16 { return TypePutGossipKeyring }
