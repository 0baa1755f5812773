package state

// RecoverCluster makes another cluster of what one node of a cluster without a majority still has. It is written into the log of
// that node, while it is stopped, and never proposed.
//
// The lost nodes may have committed what this one never heard of: later horizons, and rosters without it. And what this one's log has
// beyond Committed they may have committed otherwise. So none of the windows that may have begun under those, from Since up to
// Until, is this node's to spend in: a roster of the lost ones governs them, and shares are dealt out anew from Until on. Rosters and
// leaves from beyond Committed go.
//
// Refused with CodeConflict where the cluster is not Previous, with CodeInvalid where ids are not usable.
type RecoverCluster struct {
	Previous  string       `cbor:"1,keyasint"` // id of the cluster as it was
	ClusterID string       `cbor:"2,keyasint"` // and from now on
	Node      string       `cbor:"3,keyasint"` // the one that is left
	Lost      []string     `cbor:"4,keyasint"` // all others, voters or not
	Until     int64        `cbor:"5,keyasint"` // Unix milliseconds: no horizon of the lost nodes lies behind
	Committed uint64       `cbor:"6,keyasint"` // up to which entry this node knows that all is committed
	Since     int64        `cbor:"7,keyasint"` // Unix milliseconds: the horizon as of that entry
	Audit     []AuditEvent `cbor:"8,keyasint"`
}

// CommandType implements Command.
func (RecoverCluster) CommandType() uint16 { return TypeRecoverCluster }
