package node

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"sluice/authapi"
	"sluice/raftfsm/state"
)

// errSealing is what a node is told that joins without a key that may still be needed; it asks again.
var errSealing = fmt.Errorf("%w: secrets at rest may still be sealed under a key that the joining node does not hold", errUnavailable)

// maxPreviousKeys bounds the keys for secrets at rest besides the one that is to be used.
const maxPreviousKeys = 8

// SecretsStatus is the answer of GET /v1/secrets: how secrets at rest are sealed. Keys are told by names that say nothing of them.
type SecretsStatus struct {
	Key        string           `json:"key"`        // the one in use, on all nodes
	Configured string           `json:"configured"` // the first one of the answering node: a rotation makes it the one in use
	Nodes      []SecretsNode    `json:"nodes"`      // members, by id
	Progress   *SecretsProgress `json:"progress"`   // null where no leader tells
	Unused     []string         `json:"unused"`     // keys that some node holds and nothing is sealed under: they can be taken out
	Problems   []string         `json:"problems"`
}

// SecretsNode is what one member holds.
type SecretsNode struct {
	ID    string   `json:"id"`
	Name  string   `json:"name"`
	Alive bool     `json:"alive"`
	Keys  []string `json:"keys"` // the configured one first; empty where it did not answer
}

// SecretsProgress is how far the leader is with sealing everything under the key in use.
type SecretsProgress struct {
	Leader     string    `json:"leader"`     // node id
	Key        string    `json:"key"`        // under which it seals
	Records    int       `json:"records"`    // that hold something sealed
	Checked    int       `json:"checked"`    // of them, in the present look at all
	Resealed   int       `json:"resealed"`   // sealed anew by this leader
	Unopenable int       `json:"unopenable"` // that none of its keys opens
	Done       bool      `json:"done"`       // nothing needs another key any more
	CheckedAt  time.Time `json:"checked_at"`
}

// RotateSecrets is the body of POST /v1/secrets/rotate.
type RotateSecrets struct {
	// Force goes on though members do not answer. One that answers has to hold the key in any case.
	Force bool `json:"force"`
}

// RotatedSecrets is its answer.
type RotatedSecrets struct {
	Key      string `json:"key"`      // in use from now on
	Previous string `json:"previous"` // needed until everything is sealed anew
}

// sealing is the part of a hello that tells of secrets at rest.
type sealing struct {
	Keys  [][]byte `cbor:"1,keyasint"` // fingerprints, the configured one first
	InUse []byte   `cbor:"2,keyasint"`
	// What follows is the leader's.
	Known      bool  `cbor:"3,keyasint"`
	Records    int   `cbor:"4,keyasint"`
	Checked    int   `cbor:"5,keyasint"`
	Resealed   int   `cbor:"6,keyasint"`
	Unopenable int   `cbor:"7,keyasint"`
	Done       bool  `cbor:"8,keyasint"`
	CheckedAt  int64 `cbor:"9,keyasint"` // Unix milliseconds
}

// sealing is what this node says of itself.
func (n *Node) sealing() *sealing {
	ring := n.sealer.ring.Load()
	out := &sealing{Keys: ring.fingerprints(), InUse: ring.inUse().fingerprint}
	if k := n.consensus.Load(); k == nil || !k.leads() {
		return out
	}
	if r, ok := n.api.Resealing(); ok {
		out.Known, out.Records, out.Checked, out.Resealed, out.Unopenable, out.Done = true, r.Records, r.Checked, r.Resealed, r.Unopenable, r.Done
		out.CheckedAt = r.CheckedAt.UnixMilli()
	}
	return out
}

// joinRequest completes a request to be taken in with who asks.
func (n *Node) joinRequest(req joinRequest) joinRequest {
	ring := n.sealer.ring.Load()
	req.Address, req.Key, req.Keys, req.Level = n.peerAddress, ring.configured().fingerprint, ring.fingerprints(), state.Level
	return req
}

// opens reports whether who holds these keys opens what is sealed from now on, and all that this leader's cluster may have sealed:
// until nothing is under another key, that may be under any of the leader's.
func (n *Node) opens(keys [][]byte) (fresh, all bool) {
	holds := func(fingerprint []byte) bool {
		return slices.ContainsFunc(keys, func(key []byte) bool { return bytes.Equal(key, fingerprint) })
	}
	ring := n.sealer.ring.Load()
	fresh, all = holds(ring.inUse().fingerprint), true
	if r, ok := n.api.Resealing(); !ok || !r.Done {
		for _, key := range ring.keys {
			all = all && holds(key.fingerprint)
		}
	}
	return fresh, fresh && all
}

// keys are those for secrets at rest that a configuration names, the one that is to be used first.
func (c SecretsConfig) keys() ([][]byte, error) {
	key, err := readSecret("secrets.key", c.Key, c.KeyFile)
	if err != nil {
		return nil, err
	}
	keys := [][]byte{key}
	previous, err := c.previousKeys()
	return append(keys, previous...), err
}

// previousKeys are those that only open, one a line.
func (c SecretsConfig) previousKeys() ([][]byte, error) {
	if c.PreviousKey == "" && c.PreviousKeyFile == "" {
		return nil, nil
	}
	lines, err := readSecretLines("secrets.previous_key", c.PreviousKey, c.PreviousKeyFile, maxPreviousKeys)
	if err != nil {
		return nil, err
	}
	var keys [][]byte
	for _, line := range lines {
		key, err := secretMaterial("secrets.previous_key", line)
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	return keys, nil
}

func (v *validator) previousKeys(cluster, key []byte) {
	s, at := v.c.Secrets, "secrets.previous_key"
	if s.PreviousKeyFile != "" {
		at += "_file"
	}
	if s.PreviousKey != "" && s.PreviousKeyFile != "" {
		v.fail(at, "is set together with %s", v.also("secrets.previous_key"))
		return
	}
	previous, err := s.previousKeys()
	if err != nil {
		v.fail(at, "%v", err)
	}
	for _, p := range previous {
		if cluster != nil && bytes.Equal(p, cluster) {
			v.fail(at, "holds the cluster's secret: a stolen disk image would then be enough to join the cluster")
		}
		if key != nil && bytes.Equal(p, key) {
			v.fail(at, "holds the same key as %s", v.also("secrets.key_file"))
		}
	}
}

// ReloadSecretsKeys takes the keys for secrets at rest from a configuration, whose files are read again. The key in use has to be
// among them, and they have to open what this node needs; else those before stay, and the error says why.
func (n *Node) ReloadSecretsKeys(next Config) error {
	keys, err := next.Secrets.keys()
	if err != nil {
		return fmt.Errorf("reload keys for secrets at rest: %w", err)
	}
	n.secretsKeys.Lock()
	defer n.secretsKeys.Unlock()
	if err := n.mayDropKeys(keys); err != nil {
		return fmt.Errorf("reload keys for secrets at rest: %w", err)
	}
	before, err := n.sealer.replace(keys)
	if err != nil {
		return fmt.Errorf("reload keys for secrets at rest: %w", err)
	}
	if err := n.api.CheckSecrets(); err != nil {
		n.sealer.mu.Lock()
		n.sealer.ring.Store(before)
		n.sealer.mu.Unlock()
		return fmt.Errorf("reload keys for secrets at rest: %w: something is still sealed under a key that is not among them (`sluice secret status`)", err)
	}
	n.takeUpSecretsKey() // which may be the one that this node lacked
	return nil
}

// mayDropKeys says whether this node can do without those of its keys that are not among others.
func (n *Node) mayDropKeys(keys [][]byte) error {
	next, err := newSealRing(keys)
	if err != nil {
		return err
	}
	dropped := ""
	for _, key := range n.sealer.ring.Load().keys {
		if next.find(key.fingerprint) < 0 {
			dropped = key.name()
		}
	}
	if dropped == "" {
		return nil
	}
	s := n.secretsStatus(n.ctx)
	if p := s.Progress; p == nil || !p.Done || p.Key != s.Key {
		return fmt.Errorf("key %s may still be needed: the leader has not found yet that everything is sealed under %s (`sluice secret status`)", dropped, s.Key)
	}
	return nil
}

// takeUpSecretsKey seals under the key that the state says.
func (n *Node) takeUpSecretsKey() {
	before := n.sealer.ring.Load().inUse()
	err := n.api.UseSecretsKey()
	if n.secretsAmiss.Swap(err != nil) != (err != nil) && err != nil {
		n.log.Error("secrets are sealed under a key that this node does not hold", "component", "secrets", "error", err)
	}
	if now := n.sealer.ring.Load().inUse(); now.name() != before.name() {
		n.log.Info("secrets are sealed under another key from now on", "component", "secrets", "key", now.name(), "before", before.name())
	}
}

func (a *adminServer) secretsStatus(r *http.Request) (any, error) {
	return a.node.secretsStatus(r.Context()), nil
}

func (n *Node) secretsStatus(ctx context.Context) SecretsStatus {
	members := n.members()
	return n.secretsOf(members, n.askMembers(ctx, members))
}

// secretsOf puts together what members said.
func (n *Node) secretsOf(members []member, hellos []memberHello) SecretsStatus {
	ring := n.sealer.ring.Load()
	s := SecretsStatus{Key: ring.inUse().name(), Configured: ring.configured().name(), Nodes: []SecretsNode{}, Unused: []string{}, Problems: []string{}}
	leader := n.LeaderID()
	for i, m := range members {
		node := SecretsNode{ID: m.ID, Keys: []string{}}
		if h := hellos[i]; h.err == nil {
			node.Name, node.Alive = h.reply.Name, true
			said := h.reply.Sealing
			if said == nil {
				said = new(sealing)
			}
			for _, fingerprint := range said.Keys {
				node.Keys = append(node.Keys, keyName(fingerprint))
			}
			if len(said.Keys) > 0 && !slices.Contains(node.Keys, s.Key) {
				s.Problems = append(s.Problems, fmt.Sprintf("%s does not hold the key for secrets at rest that is in use, %s", m.ID, s.Key))
			}
			if m.ID == leader && said.Known {
				s.Progress = &SecretsProgress{
					Leader: leader, Key: keyName(said.InUse), Records: said.Records, Checked: said.Checked, Resealed: said.Resealed,
					Unopenable: said.Unopenable, Done: said.Done, CheckedAt: *unixMillis(said.CheckedAt),
				}
			}
		}
		s.Nodes = append(s.Nodes, node)
	}
	slices.SortFunc(s.Nodes, func(a, b SecretsNode) int { return strings.Compare(a.ID, b.ID) })
	p := s.Progress
	if p != nil && p.Unopenable > 0 {
		s.Problems = append(s.Problems, fmt.Sprintf("%d secrets at rest are sealed under a key that the leader does not hold: put it back into secrets.previous_key_file", p.Unopenable))
	}
	if p != nil && p.Done && p.Key == s.Key {
		for _, node := range s.Nodes {
			for _, key := range node.Keys[min(1, len(node.Keys)):] { // the first is what a rotation would use
				if key != s.Key && key != s.Configured && !slices.Contains(s.Unused, key) {
					s.Unused = append(s.Unused, key)
				}
			}
		}
	}
	return s
}

func (a *adminServer) rotateSecrets(r *http.Request, in RotateSecrets) (any, error) {
	return a.node.rotateSecrets(r.Context(), operatorOf(r), in.Force)
}

// rotateSecrets makes the configured key of this node the one in use, where every member holds it.
func (n *Node) rotateSecrets(ctx context.Context, by authapi.Operator, force bool) (RotatedSecrets, error) {
	n.secretsKeys.Lock()
	defer n.secretsKeys.Unlock()
	if err := n.upToDate(ctx); err != nil {
		return RotatedSecrets{}, err
	}
	n.takeUpSecretsKey()
	ring := n.sealer.ring.Load()
	configured, inUse := ring.configured(), ring.inUse()
	if configured.name() == inUse.name() {
		return RotatedSecrets{}, adminProblem(http.StatusConflict, "conflict",
			"secrets are sealed under this node's first key already; put a new one into secrets.key_file and the present one into secrets.previous_key_file on every node, and reload them")
	}
	members := n.members()
	for i, h := range n.askMembers(ctx, members) {
		id := members[i].ID
		switch {
		case h.err != nil && !force:
			return RotatedSecrets{}, adminProblem(http.StatusConflict, "conflict",
				fmt.Sprintf("%s does not answer, and may not hold the key %s: without it, it could not go on; force goes on all the same", id, configured.name()))
		case h.err != nil:
		case h.reply.Sealing == nil:
			return RotatedSecrets{}, adminProblem(http.StatusConflict, "conflict", fmt.Sprintf("%s runs a version that knows one key only: upgrade it first", id))
		case !slices.ContainsFunc(h.reply.Sealing.Keys, func(key []byte) bool { return bytes.Equal(key, configured.fingerprint) }):
			return RotatedSecrets{}, adminProblem(http.StatusConflict, "conflict", fmt.Sprintf("%s does not hold the key %s yet", id, configured.name()))
		}
	}
	if err := n.api.RotateSecretsKey(ctx, by, configured.name(), configured.seal); err != nil {
		return RotatedSecrets{}, err
	}
	n.log.Info("key for secrets at rest rotated", "component", "secrets", "key", configured.name(), "before", inUse.name())
	return RotatedSecrets{Key: configured.name(), Previous: inUse.name()}, nil
}

// secretsMetrics are about the key for secrets at rest. What the leader alone knows is 0 elsewhere.
var secretsMetrics = []metric{
	{"sluice_secrets_keys", kindGauge, "Keys for secrets at rest that this node holds.", one(func(s *scrape) float64 {
		return float64(s.n.sealer.Keys())
	})},
	{"sluice_secrets_key_rotated", kindGauge, "Whether the key in use is the first one of this node's configuration.", one(func(s *scrape) float64 {
		return flag(s.n.sealer.ring.Load().sealer == 0)
	})},
	{"sluice_secrets_key_missing", kindGauge, "Whether the cluster seals under a key that this node does not hold: it does not start again without it.", one(func(s *scrape) float64 {
		return flag(s.n.secretsAmiss.Load())
	})},
	{"sluice_secrets_records", kindGauge, "Records that hold something sealed, as the leader counted them last; 0 elsewhere.", ofResealing(func(r *sealing) int { return r.Records })},
	{"sluice_secrets_checked", kindGauge, "Of them, those that the leader has looked at in its present look at all; 0 elsewhere.", ofResealing(func(r *sealing) int { return r.Checked })},
	{"sluice_secrets_unopenable", kindGauge, "Of them, those that none of the leader's keys opens; 0 elsewhere.", ofResealing(func(r *sealing) int { return r.Unopenable })},
	{"sluice_secrets_resealed", kindGauge, "Records that the leader has sealed anew since the key in use was made so; 0 elsewhere.", ofResealing(func(r *sealing) int { return r.Resealed })},
	{"sluice_secrets_settled", kindGauge, "Whether the leader has found that nothing needs another key any more; 0 elsewhere.", ofResealing(func(r *sealing) int {
		if r.Done {
			return 1
		}
		return 0
	})},
}

func ofResealing(read func(*sealing) int) func(*scrape, *samples) {
	return one(func(s *scrape) float64 { return float64(read(s.n.sealing())) })
}
