package authtest

import (
	"crypto/sha256"
	"slices"

	"sluice/raftfsm/state"
)

func (c *Cluster) resealLocked(cmd state.Reseal) state.Result {
	count := 0
	for _, r := range cmd.Records {
		replace := func(sealed *[]byte) bool {
			if sha256.Sum256(*sealed) != [sha256.Size]byte(r.OldHash) {
				return false
			}
			*sealed = r.Sealed
			count++
			return true
		}
		switch r.Kind {
		case state.SealedRefreshKey:
			replace(&c.secrets.SealedRefreshKey)
		case state.SealedSigningKey:
			for i := range c.signing {
				if c.signing[i].ID == string(r.ID) {
					replace(&c.signing[i].SealedSecret)
				}
			}
		case state.SealedAnswer:
			if answer, ok := c.idempotency[string(r.ID)]; ok && replace(&answer.SealedBody) {
				c.idempotency[string(r.ID)] = answer
			}
		case state.SealedGossipKey:
			if c.keyring == nil {
				continue
			}
			keyring := *c.keyring // who reads has the one before
			keyring.Keys = slices.Clone(keyring.Keys)
			for i := range keyring.Keys {
				if keyring.Keys[i].ID == string(r.ID) {
					replace(&keyring.Keys[i].Sealed)
				}
			}
			c.keyring = &keyring
		}
	}
	return state.Result{Count: count}
}
