package raftfsm

import (
	"fmt"

	"github.com/dgraph-io/badger/v4"

	"sluice/raftfsm/state"
)

// maxSealedKey bounds one sealed key in the keyring of gossip, in bytes.
const maxSealedKey = 256

// putGossipKeyring replaces the keyring by the next version.
func putGossipKeyring(b *batch, c state.PutGossipKeyring) state.Result {
	k := c.Keyring
	if k.Version == 0 || len(k.Keys) == 0 || len(k.Keys) > state.MaxGossipKeys {
		return refuse(state.CodeInvalid)
	}
	seen := make(map[string]bool, len(k.Keys))
	for _, key := range k.Keys {
		if !validID(key.ID) || seen[key.ID] || len(key.Sealed) == 0 || len(key.Sealed) > maxSealedKey {
			return refuse(state.CodeInvalid)
		}
		seen[key.ID] = true
	}
	if !seen[k.Primary] {
		return refuse(state.CodeInvalid)
	}
	var present uint64
	if old := load[state.GossipKeyring](b, keyGossipKeyring); old != nil {
		present = old.Version
	}
	if b.err != nil {
		return state.Result{} // it says why
	}
	if k.Version != present+1 {
		return refuse(state.CodeConflict)
	}
	b.store(keyGossipKeyring, k)
	b.announce, b.rekey = true, true
	audit(b, c.Audit)
	return state.Result{}
}

// resealGossipKey leaves the version as it is: what gossip goes by does not change, so nodes have nothing to take up, and a keyring that
// is on its way is not refused for it. Where that one brings values from before, the next look at everything finds them.
func resealGossipKey(b *batch, r *state.ResealedRecord) bool {
	keyring := load[state.GossipKeyring](b, keyGossipKeyring)
	if keyring == nil {
		return false
	}
	for i := range keyring.Keys {
		if key := &keyring.Keys[i]; key.ID == string(r.ID) && replaceSealed(&key.Sealed, r) {
			b.store(keyGossipKeyring, keyring)
			b.announce, b.rekey = true, true
			return true
		}
	}
	return false
}

func readGossipKeyring(txn *badger.Txn) (*state.GossipKeyring, error) {
	keyring := new(state.GossipKeyring)
	value, err := read(txn, keyGossipKeyring)
	if err != nil || value == nil {
		return keyring, err
	}
	if err := state.Unmarshal(value, keyring); err != nil {
		return nil, fmt.Errorf("decode keyring of gossip: %w", err)
	}
	return keyring, nil
}

// GossipKeyring is the keyring of gossip as of the last applied entry; its version is 0 where there is none yet. Wait-free; what is
// returned is shared and must not be changed.
func (f *FSM) GossipKeyring() state.GossipKeyring { return *f.keyring.Load() }

// GossipKeyring is nil until a key of gossip was installed.
func (v *View) GossipKeyring() (*state.GossipKeyring, error) {
	return one[state.GossipKeyring](v, keyGossipKeyring)
}
