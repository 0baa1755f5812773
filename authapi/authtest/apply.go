package authtest

import (
	"fmt"

	"sluice/raftfsm/state"
)

// applyLocked is the model of the commands. It does what package state says of each, as plainly as can be.
func (c *Cluster) applyLocked(cmd state.Command) state.Result {
	switch cmd := cmd.(type) {
	case state.InitCluster:
		if c.secrets != nil {
			return state.Result{Refused: state.CodeConflict}
		}
		c.secrets = &cmd.Secrets
		c.signing = append(c.signing, cmd.SigningKey)
	case state.AppendAudit:
		c.audit = append(c.audit, cmd.Events...)
	case state.TouchKeys:
		for _, use := range cmd.Keys {
			if k, ok := c.keys[use.KeyID]; ok && use.At > k.LastUsedAt {
				k.LastUsedAt = use.At
				c.keys[use.KeyID] = k
			}
		}
	case state.Barrier:
	default:
		panic(fmt.Sprintf("authtest: %T is not modelled", cmd))
	}
	return state.Result{}
}
