package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"
	"github.com/oklog/ulid/v2"

	"sluice/raftfsm/state"
)

const (
	// removePatience is how long an operator's call waits for a node to leave cleanly.
	removePatience = 2 * time.Minute
	removePoll     = 100 * time.Millisecond
)

// operatorEvent is what an operator did to a node. It concerns no organization. More are pairs of names and values.
func operatorEvent(event, nodeID string, now time.Time, more ...string) state.AuditEvent {
	e := state.AuditEvent{
		ID: "evt_" + strings.ToLower(ulid.MustNew(ulid.Timestamp(now), rand.Reader).String()), Event: event,
		ActorType: "operator", SubjectType: "node", SubjectID: nodeID, Result: "success", At: now.UnixMilli(),
	}
	for i := 0; i+1 < len(more); i += 2 {
		if more[i+1] != "" {
			e.Detail = append(e.Detail, state.Pair{Name: more[i], Value: more[i+1]})
		}
	}
	return e
}

// record writes audit events down; what they are about has happened already.
func (n *Node) record(ctx context.Context, events ...state.AuditEvent) {
	if _, err := n.proposer.propose(ctx, newRequestID(), state.AppendAudit{Events: events}); err != nil {
		n.log.Error("an operator's act is not in the audit log", "event", events[0].Event, "subject", events[0].SubjectID, "error", err)
	}
}

// atLeader calls fn with the node that leads, this one included, until it has answered for good or ctx ends. fn must do no
// harm when it is repeated.
func (n *Node) atLeader(ctx context.Context, fn func(ctx context.Context, target string) error) error {
	hint := ""
	for {
		leader := n.LeaderID()
		if hint != "" {
			leader, hint = hint, ""
		}
		targets := []string{leader}
		if leader == "" { // somebody may know
			targets = targets[:0]
			for _, m := range n.members() {
				targets = append(targets, m.ID)
			}
		}
		var last error
		for _, target := range targets {
			err := func() error {
				ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
				defer cancel()
				return fn(ctx, target)
			}()
			var refused *refusedError
			if err == nil || errors.As(err, &refused) {
				return err
			}
			var other *leaderHint
			if errors.As(err, &other) && other.leaderID != "" && other.leaderID != target {
				hint = other.leaderID
			}
			if last = err; ctx.Err() != nil || hint != "" {
				break
			}
		}
		if ctx.Err() == nil && (hint != "" || pause(ctx, removePoll)) {
			continue
		}
		if last == nil {
			last = errNotLeader
		}
		return last
	}
}

// askRemoval asks target, which may be this node.
func (n *Node) askRemoval(ctx context.Context, target string, req removeRequest) error {
	if target == n.data.NodeID {
		return (*peerCalls)(n).serveRemove(ctx, n.data.NodeID, req)
	}
	return n.rpc.post(ctx, target, pathRemove, req, new(struct{}))
}

// serveRemove takes a node out of the configuration, as the leader.
func (p *peerCalls) serveRemove(ctx context.Context, caller string, req removeRequest) error {
	n := (*Node)(p)
	k := n.consensus.Load()
	if k == nil || !k.leads() {
		return errNotLeader
	}
	servers, err := k.servers()
	if err != nil {
		return err
	}
	at := slices.IndexFunc(servers, func(m member) bool { return m.ID == req.NodeID })
	if at < 0 {
		return nil // it is gone, perhaps by an earlier try
	}
	if err := p.isMember(k, caller); err != nil {
		return err
	}
	if err := n.mayRemove(ctx, servers, servers[at], req.Force); err != nil || req.Check {
		return err
	}
	if req.NodeID == n.data.NodeID {
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		if err := k.transferLeadership(try); err != nil {
			return fmt.Errorf("%w: %w", errUnavailable, err)
		}
		return errNotLeader
	}
	if err := k.await(ctx, k.raft.RemoveServer(raft.ServerID(req.NodeID), 0, enqueueTimeout)); err != nil {
		return classify(err)
	}
	n.log.Info("node removed", "removed", req.NodeID, "asked_by", req.By)
	how := "without handing over"
	if req.Left {
		how = "left cleanly"
	}
	n.record(ctx, operatorEvent("cluster.node_removed", req.NodeID, n.opts.clock(), "how", how, "asked_by", req.By))
	return nil
}

// mayRemove refuses what would leave the cluster without a majority.
func (n *Node) mayRemove(ctx context.Context, servers []member, target member, force bool) error {
	if !target.Voter {
		return nil
	}
	var rest []member
	for _, m := range servers {
		if m.Voter && m.ID != target.ID {
			rest = append(rest, m)
		}
	}
	if len(rest) == 0 {
		return &refusedError{reason: "it is the last voter: stop it instead"}
	}
	if force {
		return nil
	}
	alive := 0
	var down []string
	for i, h := range n.askMembers(ctx, rest) {
		if h.err == nil {
			alive++
		} else {
			down = append(down, rest[i].ID)
		}
	}
	if need := len(rest)/2 + 1; alive < need {
		return &refusedError{reason: fmt.Sprintf("of the %d voters that would be left %d answer (not %s), and %d have to: the cluster would lose its majority",
			len(rest), alive, strings.Join(down, ", "), need)}
	}
	return nil
}

// serveTransfer hands the office over, as the leader.
func (p *peerCalls) serveTransfer(ctx context.Context, caller string, req transferRequest) error {
	n := (*Node)(p)
	k := n.consensus.Load()
	if k == nil || !k.leads() {
		return errNotLeader
	}
	if err := p.isMember(k, caller); err != nil {
		return err
	}
	if req.NodeID == n.data.NodeID {
		return nil
	}
	if err := k.transferTo(ctx, req.NodeID); err != nil {
		return err
	}
	n.log.Info("leadership handed over", "to", k.leader(), "asked_by", req.By)
	return nil
}

// serveLeave makes this node leave. It returns once that has begun.
func (p *peerCalls) serveLeave(ctx context.Context, _ string, req leaveRequest) error {
	return (*Node)(p).startLeaving(ctx, req)
}

// transferTo is transferLeadership to one node, "" for whom Raft chooses.
func (k *consensus) transferTo(ctx context.Context, id string) error {
	servers, err := k.servers()
	if err != nil {
		return err
	}
	var others []member
	for _, s := range servers {
		if s.Voter && s.ID != k.self {
			others = append(others, s)
		}
	}
	at := slices.IndexFunc(others, func(m member) bool { return m.ID == id })
	var future raft.Future
	switch {
	case id == "" && len(others) == 0:
		return &refusedError{reason: "there is no other voter"}
	case id == "":
		future = k.raft.LeadershipTransfer()
	case at < 0:
		return &refusedError{reason: "it is no voter"}
	default:
		future = k.raft.LeadershipTransferToServer(raft.ServerID(id), raft.ServerAddress(others[at].Address))
	}
	if err := k.await(ctx, future); err != nil {
		return fmt.Errorf("%w: hand over: %w", errUnavailable, err)
	}
	return nil
}

// RemoveNode is the body of POST /v1/cluster/remove.
type RemoveNode struct {
	Node  string `json:"node"`  // id, or a name that one member alone has
	Force bool   `json:"force"` // though the rest loses its majority, or the node does not hand over what it holds
}

// RemovedNode is its answer.
type RemovedNode struct {
	Node string `json:"node"`
	// Heir has its share now; "": the share comes back in windows that begin later.
	Heir string `json:"heir"`
}

// TransferLeader is the body of POST /v1/cluster/transfer-leader.
type TransferLeader struct {
	Node string `json:"node"` // id or name; "": whom Raft chooses
}

// TransferredLeader is its answer.
type TransferredLeader struct {
	Leader string `json:"leader"`
}

// memberNamed finds a member by id or name.
func (n *Node) memberNamed(text string) (member, error) {
	infos, err := n.fsm.Nodes()
	if err != nil {
		return member{}, fmt.Errorf("read nodes: %w", err)
	}
	var found []member
	for _, m := range n.members() {
		named := slices.ContainsFunc(infos, func(i state.NodeInfo) bool { return i.ID == m.ID && i.Name == text })
		if m.ID == text || named {
			found = append(found, m)
		}
	}
	switch {
	case len(found) == 0:
		return member{}, adminProblem(http.StatusNotFound, "not_found", fmt.Sprintf("%s is no member, by id or name", quote(text)))
	case len(found) > 1:
		return member{}, adminProblem(http.StatusConflict, "conflict", fmt.Sprintf("%d members have the name %s: say which one by its id", len(found), quote(text)))
	}
	return found[0], nil
}

// removeNode lets a node leave, or removes it where it cannot.
func (a *adminServer) removeNode(ctx context.Context, in RemoveNode) (any, error) {
	n := a.node
	if in.Node == "" {
		return nil, adminProblem(http.StatusUnprocessableEntity, "invalid_input", "node is missing")
	}
	target, err := n.memberNamed(in.Node)
	if err != nil {
		return nil, err
	}
	answer := RemovedNode{Node: target.ID}
	if n.answers(ctx, target.ID) {
		err := n.haveLeave(ctx, target.ID, in.Force)
		if err == nil {
			answer.Heir = n.heirOf(target.ID)
			return answer, nil
		}
		if !in.Force {
			return nil, err
		}
		n.log.Warn("node does not leave by itself and is removed", "removed", target.ID, "error", err)
	}
	err = n.atLeader(ctx, func(ctx context.Context, leader string) error {
		return n.askRemoval(ctx, leader, removeRequest{NodeID: target.ID, Force: in.Force, By: n.data.NodeID})
	})
	if err != nil {
		return nil, err
	}
	answer.Heir = n.heirOf(target.ID)
	return answer, nil
}

// answers says whether a node can be told to leave.
func (n *Node) answers(ctx context.Context, id string) bool {
	if id == n.data.NodeID {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	_, err := n.rpc.hello(ctx, id)
	return err == nil
}

// haveLeave tells a node to leave and waits until it has.
func (n *Node) haveLeave(ctx context.Context, id string, force bool) error {
	req := leaveRequest{By: n.data.NodeID, Force: force}
	ctx, cancel := context.WithTimeoutCause(ctx, removePatience, fmt.Errorf("it has not left after %s; it goes on trying", removePatience))
	defer cancel()
	if id == n.data.NodeID {
		if err := n.startLeaving(ctx, req); err != nil {
			return err
		}
		return n.leaving.wait(ctx)
	}
	if err := n.rpc.post(ctx, id, pathLeave, req, new(struct{})); err != nil {
		return err
	}
	for silent := 0; ; {
		if !slices.ContainsFunc(n.members(), func(m member) bool { return m.ID == id }) {
			return nil
		}
		if !n.answers(ctx, id) {
			silent++
		} else {
			silent = 0
		}
		if silent > 50 {
			return &refusedError{reason: "it stopped answering while it left; --force removes it as it is"}
		}
		if !pause(ctx, removePoll) {
			return fmt.Errorf("%w: %w", errUnknown, context.Cause(ctx))
		}
	}
}

// transferLeader moves the leadership.
func (a *adminServer) transferLeader(ctx context.Context, in TransferLeader) (any, error) {
	n := a.node
	id := ""
	if in.Node != "" {
		target, err := n.memberNamed(in.Node)
		if err != nil {
			return nil, err
		}
		id = target.ID
	}
	ctx, cancel := context.WithTimeout(ctx, 2*proposeTimeout)
	defer cancel()
	old := ""
	err := n.atLeader(ctx, func(ctx context.Context, leader string) error {
		if old == "" {
			old = leader
		}
		if leader == n.data.NodeID {
			return (*peerCalls)(n).serveTransfer(ctx, n.data.NodeID, transferRequest{NodeID: id, By: n.data.NodeID})
		}
		return n.rpc.post(ctx, leader, pathTransfer, transferRequest{NodeID: id, By: n.data.NodeID}, new(struct{}))
	})
	if err != nil {
		return nil, err
	}
	for {
		leader := n.LeaderID()
		if leader != "" && (id == "" && (leader != old || len(n.members()) == 1) || leader == id) {
			n.record(ctx, operatorEvent("cluster.leader_transferred", leader, n.opts.clock(), "from", old, "asked_by", n.data.NodeID))
			return TransferredLeader{Leader: leader}, nil
		}
		if !pause(ctx, removePoll) {
			return nil, fmt.Errorf("%w: no other leader seen yet", errUnknown)
		}
	}
}
