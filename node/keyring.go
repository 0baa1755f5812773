package node

import (
	"bytes"
	"context"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"sluice/authapi"
	"sluice/raftfsm/state"
)

// The keys of gossip. A cluster begins with one that every node derives from the cluster secret; from the first key that is installed
// on, the keyring is in the replicated state, each key sealed under secrets.key. It reaches nodes through the log, which does not
// depend on gossip: a node that slept through a rotation is behind for as long as its log is. The log cannot know what a process goes
// by, so before a key is used or removed every member is asked.

// labelGossipKey separates keys of gossip from whatever else is derived from the same secret. The cluster secret given as a key is
// the key that a cluster begins with.
const labelGossipKey = "sluice/v1 gossip"

const (
	// gossipCatchUp is how long a node whose cluster has, or may have, rotated its keys waits for the newest ones before it gossips.
	gossipCatchUp = 2 * time.Second
	// keyringPatience is how long a change waits until every node that runs goes by it.
	keyringPatience = 5 * time.Second
)

// gossipKey is a key of the keyring, opened.
type gossipKey struct {
	id  string
	key []byte
}

// runningKeyring is what this node's gossip goes by. It is immutable.
type runningKeyring struct {
	version uint64 // 0: the derived key alone
	keys    []gossipKey
	primary string
	// newest is what the log has, and problem why it is not what runs, nil where it is.
	newest  state.GossipKeyring
	problem error
}

// ids are the keys' names, the primary's first.
func (r *runningKeyring) ids() []string {
	ids := make([]string, 0, len(r.keys))
	for _, k := range r.keys {
		ids = append(ids, k.id)
	}
	return ids
}

// material is what memberlist takes, the primary first.
func (r *runningKeyring) material() [][]byte {
	keys := make([][]byte, 0, len(r.keys))
	for _, k := range r.keys {
		keys = append(keys, k.key)
	}
	return keys
}

// keyring keeps gossip by the newest keyring in the log.
type keyring struct {
	mu  sync.Mutex // of whoever changes what runs
	now atomic.Pointer[runningKeyring]
	// gossiping says that gossip runs and takes changes; guarded by mu.
	gossiping bool
}

// gossipKeyFrom derives a key from a secret's material.
func gossipKeyFrom(material []byte) ([]byte, error) {
	key, err := hkdf.Key(sha256.New, material, nil, labelGossipKey, 32)
	if err != nil {
		return nil, fmt.Errorf("derive key of gossip: %w", err)
	}
	return key, nil
}

// gossipKeyID is a key's fingerprint, 16 hexadecimal digits. It is made from 32 bytes of randomness, or what passes for it, one way.
func gossipKeyID(key []byte) string {
	digest := sha256.Sum256(append([]byte("sluice/v1 fingerprint of a key of gossip\x00"), key...))
	return hex.EncodeToString(digest[:8])
}

// openKeyring opens what the log has.
func (n *Node) openKeyring(stored state.GossipKeyring) (*runningKeyring, error) {
	if stored.Version == 0 {
		derived := gossipKey{id: gossipKeyID(n.keys.gossip[:]), key: n.keys.gossip[:]}
		return &runningKeyring{keys: []gossipKey{derived}, primary: derived.id}, nil
	}
	r := &runningKeyring{version: stored.Version, primary: stored.Primary, newest: stored}
	for _, k := range stored.Keys {
		key, err := n.sealer.Open(authapi.GossipKeyPurpose(k.ID), k.Sealed)
		if err != nil {
			return nil, fmt.Errorf("%w: the key of gossip %s: %w", ErrOtherKey, k.ID, err)
		}
		if len(key) != 32 || gossipKeyID(key) != k.ID {
			return nil, fmt.Errorf("the key of gossip %s is garbled", k.ID)
		}
		r.keys = append(r.keys, gossipKey{id: k.ID, key: key})
	}
	slices.SortStableFunc(r.keys, func(a, b gossipKey) int {
		switch stored.Primary {
		case a.id:
			return -1
		case b.id:
			return 1
		}
		return 0
	})
	return r, nil
}

// startGossip begins to gossip by the newest keyring that this node can have. Where keys were rotated before, or may have been since
// the node is new to the cluster, it waits a moment for the log: what it sealed with an old key nobody could read.
func (n *Node) startGossip(ctx context.Context, clusterID string, joining bool) error {
	if joining || n.fsm.GossipKeyring().Version > 0 {
		ctx, cancel := context.WithTimeout(ctx, gossipCatchUp)
		_ = n.freshness.catchUp(ctx) // without it the log brings the keyring later
		cancel()
	}
	n.keyring.mu.Lock()
	defer n.keyring.mu.Unlock()
	running, err := n.openKeyring(n.fsm.GossipKeyring())
	if err != nil {
		return err
	}
	if err := n.gossip.start(clusterID, running.material(), n.gossipMembers, n.book.isServer); err != nil {
		return err
	}
	n.keyring.now.Store(running)
	n.keyring.gossiping = true
	return nil
}

// takeUpKeyring lets gossip go by the newest keyring that was applied here. It is cheap where nothing is new.
func (n *Node) takeUpKeyring() {
	running := n.keyring.now.Load()
	if running == nil || sameKeyring(running.newest, n.fsm.GossipKeyring()) {
		return
	}
	n.keyring.mu.Lock()
	defer n.keyring.mu.Unlock()
	stored := n.fsm.GossipKeyring()
	running = n.keyring.now.Load()
	if sameKeyring(running.newest, stored) || !n.keyring.gossiping {
		return
	}
	log := n.log.With("component", "gossip")
	next, err := n.openKeyring(stored)
	if err == nil && running.problem == nil && sameKeys(running, next) {
		n.keyring.now.Store(next) // sealed anew: gossip goes on as it is
		return
	}
	if err == nil {
		err = n.gossip.setKeys(next.material())
	}
	if err != nil {
		// What runs goes on: the others have its key until it is removed, which is refused while this node needs it.
		n.keyring.now.Store(&runningKeyring{version: running.version, keys: running.keys, primary: running.primary, newest: stored, problem: err})
		log.Error("the newest keyring is not in use", "newest", stored.Version, "running", running.version, "error", err)
		return
	}
	n.keyring.now.Store(next)
	log.Info("keyring in use", "version", next.version, "keys", next.ids(), "primary", next.primary)
}

// sameKeys says that gossip goes by the same keys, however the log has them sealed. An id is a key's fingerprint.
func sameKeys(a, b *runningKeyring) bool {
	return a.version == b.version && a.primary == b.primary && slices.Equal(a.ids(), b.ids())
}

// sameKeyring compares what the log has; a restore can bring another history under the same number.
func sameKeyring(a, b state.GossipKeyring) bool {
	return a.Version == b.Version && a.Primary == b.Primary && slices.EqualFunc(a.Keys, b.Keys, func(x, y state.GossipKey) bool {
		return x.ID == y.ID && bytes.Equal(x.Sealed, y.Sealed)
	})
}

// newGossipKey makes a key: of text, which is a secret as `sluice secret new` prints it, or a random one where text is "".
func newGossipKey(text string) (gossipKey, error) {
	var key []byte
	if text == "" {
		key = make([]byte, 32)
		rand.Read(key) // never fails: crypto/rand ends the process instead
	} else {
		material, err := secretMaterial("key", text)
		if err != nil {
			return gossipKey{}, err
		}
		if key, err = gossipKeyFrom(material); err != nil {
			return gossipKey{}, err
		}
	}
	return gossipKey{id: gossipKeyID(key), key: key}, nil
}

// storedKeyring is the present keyring as the log has it, or would have it: before the first change that is the derived key, which
// is written down with that change, so that from then on the record alone says everything.
func (n *Node) storedKeyring() (state.GossipKeyring, error) {
	stored := n.fsm.GossipKeyring()
	if stored.Version > 0 {
		stored.Keys = slices.Clone(stored.Keys)
		return stored, nil
	}
	id := gossipKeyID(n.keys.gossip[:])
	sealed, err := n.sealer.Seal(authapi.GossipKeyPurpose(id), n.keys.gossip[:])
	if err != nil {
		return stored, fmt.Errorf("seal key of gossip: %w", err)
	}
	return state.GossipKeyring{Keys: []state.GossipKey{{ID: id, Sealed: sealed}}, Primary: id}, nil
}
