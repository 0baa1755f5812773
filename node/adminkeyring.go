package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"sluice/authapi"
	"sluice/raftfsm/state"
)

// KeyringStatus is the answer of GET /v1/cluster/keyring: what the nodes seal and open gossip with. Keys are named by their
// fingerprints; none is ever shown. Fields may be added.
type KeyringStatus struct {
	Version uint64        `json:"version"` // 0: the key that nodes derive from the cluster secret, and no other was installed yet
	Primary string        `json:"primary"` // the one that seals
	Keys    []KeyringKey  `json:"keys"`
	Nodes   []KeyringNode `json:"nodes"` // by id
	// Notes say what an operator should know: nodes that do not answer, or do not go by this keyring.
	Notes []string `json:"notes"`
}

// KeyringKey is one key.
type KeyringKey struct {
	ID          string     `json:"id"`
	Primary     bool       `json:"primary"`
	InstalledAt *time.Time `json:"installed_at"` // null for the key that the cluster began with
	// InstalledOn and UsedBy count the nodes that open packets with it, and those that seal with it.
	InstalledOn int `json:"installed_on"`
	UsedBy      int `json:"used_by"`
}

// KeyringNode is what one member goes by.
type KeyringNode struct {
	ID      string   `json:"id"`
	Alive   bool     `json:"alive"` // it answered just now
	Version *uint64  `json:"version"`
	Primary string   `json:"primary"`
	Keys    []string `json:"keys"`
	Problem string   `json:"problem,omitempty"`
}

// KeyringInstall is the body of POST /v1/cluster/keyring/install. Without Key the node makes one.
type KeyringInstall struct {
	Key string `json:"key,omitempty"` // as `sluice secret new` prints it, or at least 32 bytes of the operator's own
}

// KeyringChange is the body of POST /v1/cluster/keyring/use and …/remove.
type KeyringChange struct {
	Key string `json:"key"` // its fingerprint
}

// KeyringChanged is the answer of all three: Key is what the call was about, and Changed is false where all was so before.
type KeyringChanged struct {
	Key     string `json:"key"`
	Changed bool   `json:"changed"`
	KeyringStatus
}

// keyringRoutes are the calls about the keys of gossip.
func (a *adminServer) keyringRoutes() []adminRoute {
	return []adminRoute{
		{"GET /v1/cluster/keyring", adminRead, a.read(func(r *http.Request) (any, error) {
			a.node.catchUpToKeyring(r.Context())
			return a.node.keyringStatus(a.node.askKeyrings(r.Context())), nil
		})},
		{"POST /v1/cluster/keyring/install", adminOperate, adminChangeOf(a, func(r *http.Request, in KeyringInstall) (any, error) {
			key, err := newGossipKey(in.Key)
			if err != nil {
				return nil, adminProblem(http.StatusUnprocessableEntity, "invalid_input", err.Error())
			}
			return a.node.changeKeyring(r, operatorEvent("gossip_key.installed", a.node.data.NodeID, a.node.opts.clock()), key.id, func(ring *state.GossipKeyring, nodes []memberKeyring) (bool, error) {
				return a.node.installGossipKey(ring, nodes, key)
			})
		})},
		{"POST /v1/cluster/keyring/use", adminOperate, adminChangeOf(a, func(r *http.Request, in KeyringChange) (any, error) {
			return a.node.changeKeyring(r, operatorEvent("gossip_key.used", a.node.data.NodeID, a.node.opts.clock()), in.Key, func(ring *state.GossipKeyring, nodes []memberKeyring) (bool, error) {
				return useGossipKey(ring, nodes, in.Key)
			})
		})},
		{"POST /v1/cluster/keyring/remove", adminOperate, adminChangeOf(a, func(r *http.Request, in KeyringChange) (any, error) {
			return a.node.changeKeyring(r, operatorEvent("gossip_key.removed", a.node.data.NodeID, a.node.opts.clock()), in.Key, func(ring *state.GossipKeyring, nodes []memberKeyring) (bool, error) {
				return removeGossipKey(ring, nodes, in.Key)
			})
		})},
	}
}

// catchUpToKeyring lets what is read next show what was acknowledged on any node before, where there is a leader.
func (n *Node) catchUpToKeyring(ctx context.Context) {
	n.catchUpToSettings(ctx)
	n.takeUpKeyring()
}

// keyringStatus says what the log has and which nodes go by it.
func (n *Node) keyringStatus(nodes []memberKeyring) KeyringStatus {
	stored := n.fsm.GossipKeyring()
	if stored.Version == 0 {
		id := gossipKeyID(n.keys.gossip[:])
		stored = state.GossipKeyring{Primary: id, Keys: []state.GossipKey{{ID: id}}}
	}
	s := KeyringStatus{Version: stored.Version, Primary: stored.Primary, Keys: []KeyringKey{}, Nodes: []KeyringNode{}, Notes: []string{}}
	for _, k := range stored.Keys {
		key := KeyringKey{ID: k.ID, Primary: k.ID == stored.Primary}
		if k.InstalledAt != 0 {
			key.InstalledAt = unixMillis(k.InstalledAt)
		}
		for _, m := range nodes {
			if m.err == nil && slices.Contains(m.reply.Keys, k.ID) {
				key.InstalledOn++
			}
			if m.err == nil && m.reply.Primary == k.ID {
				key.UsedBy++
			}
		}
		s.Keys = append(s.Keys, key)
	}
	for _, m := range nodes {
		node := KeyringNode{ID: m.id, Keys: []string{}}
		switch {
		case errors.Is(m.err, errNoSuchCall):
			node.Problem = "its version does not know keyrings"
		case m.err != nil:
			node.Problem = "does not answer: " + rootCause(m.err).Error()
		default:
			version := m.reply.Version
			node.Alive, node.Version, node.Primary, node.Problem = true, &version, m.reply.Primary, m.reply.Problem
			node.Keys = append(node.Keys, m.reply.Keys...)
			if node.Problem == "" && version != stored.Version {
				node.Problem = fmt.Sprintf("goes by version %d", version)
			}
		}
		if node.Problem != "" {
			s.Notes = append(s.Notes, m.id+": "+node.Problem)
		}
		s.Nodes = append(s.Nodes, node)
	}
	slices.SortFunc(s.Nodes, func(a, b KeyringNode) int { return strings.Compare(a.ID, b.ID) })
	return s
}

// changeKeyring lets decide change the present keyring, makes the result the cluster's, and returns once every node that runs goes by
// it, or after keyringPatience. decide hears what every member goes by now; changed is false where there is nothing to do.
func (n *Node) changeKeyring(r *http.Request, event state.AuditEvent, id string, decide func(*state.GossipKeyring, []memberKeyring) (changed bool, err error)) (KeyringChanged, error) {
	ctx := r.Context()
	out := KeyringChanged{Key: id}
	if id == "" {
		return out, adminProblem(http.StatusUnprocessableEntity, "invalid_input", "key is required: a fingerprint, as GET /v1/cluster/keyring has it")
	}
	proposing, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	if err := (*apiCluster)(n).CatchUp(proposing); err != nil {
		return out, err
	}
	ring, err := n.storedKeyring()
	if err != nil {
		return out, err
	}
	nodes := n.askKeyrings(proposing)
	changed, err := decide(&ring, nodes)
	if err != nil {
		return out, err
	}
	if !changed {
		out.KeyringStatus = n.keyringStatus(nodes)
		return out, nil
	}
	ring.Version++
	by := operatorOf(r)
	event.SubjectType, event.SubjectID, event.IP, event.UserAgent = "gossip_key", id, by.Address, clipText(strings.ToValidUTF8(by.UserAgent, "?"), 200)
	event.Detail = []state.Pair{{Name: "version", Value: strconv.FormatUint(ring.Version, 10)}, {Name: "asked", Value: n.data.NodeID}}
	result, err := n.proposer.propose(proposing, newRequestID(), state.PutGossipKeyring{Keyring: ring, Audit: []state.AuditEvent{event}})
	switch {
	case err != nil:
		return out, err
	case result.Refused == state.CodeConflict:
		return out, keyringConflict("the keyring was changed by somebody else meanwhile: look at it again")
	case result.Refused != "":
		return out, &state.Refusal{Code: result.Refused}
	}
	n.takeUpKeyring()
	out.Changed = true
	waiting, stop := context.WithTimeout(ctx, keyringPatience)
	defer stop()
	for {
		nodes = n.askKeyrings(ctx)
		behind := slices.ContainsFunc(nodes, func(m memberKeyring) bool { return !m.down() && (m.err != nil || m.reply.Version < ring.Version) })
		if !behind {
			break
		}
		select {
		case <-time.After(20 * time.Millisecond):
			continue
		case <-waiting.Done():
		}
		break
	}
	out.KeyringStatus = n.keyringStatus(nodes)
	return out, nil
}

func keyringConflict(format string, args ...any) *AdminProblem {
	return adminProblem(http.StatusConflict, "conflict", fmt.Sprintf(format, args...))
}

// installGossipKey adds a key that packets are opened with from then on.
func (n *Node) installGossipKey(ring *state.GossipKeyring, nodes []memberKeyring, key gossipKey) (bool, error) {
	for _, m := range nodes {
		if errors.Is(m.err, errNoSuchCall) {
			return false, keyringConflict("%s is of a version that does not know keyrings, and would stop at one: upgrade it first", m.id)
		}
	}
	if slices.ContainsFunc(ring.Keys, func(k state.GossipKey) bool { return k.ID == key.id }) {
		return false, nil
	}
	if len(ring.Keys) >= state.MaxGossipKeys {
		return false, keyringConflict("there are %d keys, which is the most: remove one that is not in use", len(ring.Keys))
	}
	sealed, err := n.sealer.Seal(authapi.GossipKeyPurpose(key.id), key.key)
	if err != nil {
		return false, fmt.Errorf("seal key of gossip: %w", err)
	}
	ring.Keys = append(ring.Keys, state.GossipKey{ID: key.id, Sealed: sealed, InstalledAt: n.opts.clock().UnixMilli()})
	return true, nil
}

// useGossipKey makes a key the one that seals, once every node that runs opens with it.
func useGossipKey(ring *state.GossipKeyring, nodes []memberKeyring, id string) (bool, error) {
	if !slices.ContainsFunc(ring.Keys, func(k state.GossipKey) bool { return k.ID == id }) {
		return false, noGossipKey(id)
	}
	if ring.Primary == id {
		return false, nil
	}
	for _, m := range nodes {
		switch {
		case m.down():
		case m.err != nil:
			return false, keyringConflict("%s runs, and does not say whether it has the key: %v", m.id, rootCause(m.err))
		case !slices.Contains(m.reply.Keys, id):
			return false, keyringConflict("%s does not have the key yet, and could not read what the others seal with it%s", m.id, because(m.reply.Problem))
		}
	}
	ring.Primary = id
	return true, nil
}

// removeGossipKey takes a key away that no node seals with.
func removeGossipKey(ring *state.GossipKeyring, nodes []memberKeyring, id string) (bool, error) {
	at := slices.IndexFunc(ring.Keys, func(k state.GossipKey) bool { return k.ID == id })
	if at < 0 {
		return false, noGossipKey(id)
	}
	if ring.Primary == id {
		return false, keyringConflict("the key is in use: use another one first")
	}
	for _, m := range nodes {
		switch {
		case m.down():
		case m.err != nil:
			return false, keyringConflict("%s runs, and does not say which key it seals with: %v", m.id, rootCause(m.err))
		case m.reply.Primary != ring.Primary:
			return false, keyringConflict("%s still seals with another key than the one in use, and the others could not read it%s", m.id, because(m.reply.Problem))
		}
	}
	ring.Keys = slices.Delete(ring.Keys, at, at+1)
	return true, nil
}

func because(problem string) string {
	if problem == "" {
		return ""
	}
	return ": " + problem
}

func noGossipKey(id string) *AdminProblem {
	return adminProblem(http.StatusNotFound, "not_found", fmt.Sprintf("there is no key %q: they are named by their fingerprints, as `sluice cluster keyring list` shows", clipText(id, 40)))
}
