package state

// RecoverCluster makes another cluster of what one node of a cluster without a majority still has. It is written into the log of
// that node, while it is stopped, and never proposed.
//
// The lost nodes may have committed what this one never heard of: later horizons, and rosters without it. So none of the windows
// that may have begun under those, from the horizon known here up to Until, is this node's to spend in: a roster of the lost ones
// governs them, and shares are dealt out anew from Until on.
//
// Refused with CodeConflict where the cluster is not Previous, with CodeInvalid where ids are not usable.
type RecoverCluster struct {
	Previous  string       `cbor:"1,keyasint"` // id of the cluster as it was
	ClusterID string       `cbor:"2,keyasint"` // and from now on
	Node      string       `cbor:"3,keyasint"` // the one that is left
	Lost      []string     `cbor:"4,keyasint"` // all others, voters or not
	Until     int64        `cbor:"5,keyasint"` // Unix milliseconds: no horizon of the lost nodes lies behind
	Audit     []AuditEvent `cbor:"6,keyasint"`
}

// CommandType implements Command.
func (RecoverCluster) CommandType() uint16 { return TypeRecoverCluster }
