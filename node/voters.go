package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// pathVote is the call by which a node asks the leader to let a member vote, or not.
const pathVote = "/v1/vote"

// voteRequest asks the leader to let a member vote, or to let it only listen.
type voteRequest struct {
	NodeID string `cbor:"1,keyasint"`
	Voter  bool   `cbor:"2,keyasint"`
	Force  bool   `cbor:"3,keyasint"` // below membership.min_voters or without a majority, or before it is stable
	By     string `cbor:"4,keyasint"`
}

// registerVote adds the call.
func (s *rpcServer) registerVote(mux *http.ServeMux) {
	mux.HandleFunc("POST "+pathVote, rpcCall(s, maxJoinBytes, func(ctx context.Context, caller string, req voteRequest) (struct{}, error) {
		return struct{}{}, s.service.serveVote(ctx, caller, req)
	}))
}

// notYetError is an errUnavailable with its reason.
type notYetError struct{ reason string }

func (e *notYetError) Error() string        { return e.reason }
func (e *notYetError) Is(target error) bool { return target == errUnavailable }

// probation is, on the leader, since when each node that only listens has answered without a break. A node that comes and
// goes must not vote: it would count for the quorum and not be there. Safe for concurrent use.
type probation struct {
	mu    sync.Mutex
	since map[string]time.Time
	last  time.Time // of look
}

// probationGap is how long nobody may have looked: in between, another node led.
const probationGap = 5 * time.Second

// look notes who answers now.
func (p *probation) look(now time.Time, servers []member, answers func(id string) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.since == nil || now.Sub(p.last) > probationGap {
		p.since = make(map[string]time.Time)
	}
	p.last = now
	next := make(map[string]time.Time)
	for _, m := range servers {
		if m.Voter || !answers(m.ID) {
			continue
		}
		next[m.ID] = now
		if since, ok := p.since[m.ID]; ok {
			next[m.ID] = since
		}
	}
	p.since = next
}

// missing is how much of a time a node still has to answer, 0 where it has done so long enough.
func (p *probation) missing(now time.Time, id string, whole time.Duration) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	since, ok := p.since[id]
	if !ok || now.Sub(p.last) > probationGap {
		return whole
	}
	return max(0, whole-now.Sub(since))
}

// stable refuses, as not yet, a node that has not answered for membership.stabilization_time.
func (n *Node) stable(id string) error {
	whole := time.Duration(n.cfg.Membership.StabilizationTime)
	if missing := n.probation.missing(time.Now(), id, whole); missing > 0 {
		return &notYetError{reason: fmt.Sprintf("a node has to answer for %s before it votes (membership.stabilization_time)", whole)}
	}
	return nil
}

func votersOf(servers []member) (count int) {
	for _, m := range servers {
		if m.Voter {
			count++
		}
	}
	return count
}

// serveVote changes whether a member votes, as the leader.
func (p *peerCalls) serveVote(ctx context.Context, caller string, req voteRequest) error {
	n := (*Node)(p)
	k := n.consensus.Load()
	if k == nil || !k.leads() {
		return errNotLeader
	}
	if err := p.isMember(k, caller); err != nil {
		return err
	}
	servers, err := k.servers()
	if err != nil {
		return err
	}
	at := slices.IndexFunc(servers, func(m member) bool { return m.ID == req.NodeID })
	if at < 0 {
		return &refusedError{reason: "it is no member"}
	}
	target := servers[at]
	if target.Voter == req.Voter {
		return nil // perhaps by an earlier try
	}
	event := operatorEvent("cluster.node_promoted", target.ID, n.opts.clock(), "asked_by", req.By)
	var future raft.IndexFuture
	if req.Voter {
		if err := n.mayPromote(ctx, k, servers, target, req.Force); err != nil {
			return err
		}
		future = k.raft.AddVoter(raft.ServerID(target.ID), raft.ServerAddress(target.Address), 0, enqueueTimeout)
	} else {
		event = operatorEvent("cluster.node_demoted", target.ID, n.opts.clock(), "asked_by", req.By)
		if err := n.mayDemote(ctx, servers, target, req.Force); err != nil {
			return err
		}
		if target.ID == n.data.NodeID {
			try, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			if err := k.transferLeadership(try); err != nil {
				return fmt.Errorf("%w: %w", errUnavailable, err)
			}
			return errNotLeader
		}
		future = k.raft.DemoteVoter(raft.ServerID(target.ID), 0, enqueueTimeout)
	}
	if err := k.await(ctx, future); err != nil {
		return classify(err)
	}
	n.log.Info("vote changed", "member", target.ID, "votes", req.Voter, "asked_by", req.By)
	n.record(ctx, event)
	return nil
}

// mayPromote refuses a voter that would be no help.
func (n *Node) mayPromote(ctx context.Context, k *consensus, servers []member, target member, force bool) error {
	if votersOf(servers) >= maxVoters {
		return &refusedError{reason: fmt.Sprintf("%d nodes vote already, and more would only make writes slower: demote one first", maxVoters)}
	}
	hello := n.askMembers(ctx, []member{target})[0]
	switch last := k.raft.LastIndex(); {
	case hello.err != nil:
		return &refusedError{reason: fmt.Sprintf("it does not answer (%v), and would count for the majority", rootCause(hello.err))}
	case hello.reply.Applied+maxLag < last:
		return &refusedError{reason: fmt.Sprintf("it is %d entries behind, and may be %d", last-hello.reply.Applied, maxLag)}
	case force:
		return nil
	}
	var early *notYetError
	if err := n.stable(target.ID); errors.As(err, &early) {
		return &refusedError{reason: early.reason + "; --force lets it vote at once"}
	}
	return nil
}

// mayDemote refuses what would leave too few voters, or those that are left without a majority.
func (n *Node) mayDemote(ctx context.Context, servers []member, target member, force bool) error {
	if least := n.cfg.Membership.MinVoters; !force && votersOf(servers)-1 < least {
		return &refusedError{reason: fmt.Sprintf("%d voters would be left, and membership.min_voters is %d: promote another node first", votersOf(servers)-1, least)}
	}
	return n.mayRemove(ctx, servers, target, force)
}

// ChangeVote is the body of POST /v1/cluster/promote and /v1/cluster/demote.
type ChangeVote struct {
	Node  string `json:"node"`  // id, or a name that one member alone has
	Force bool   `json:"force"` // promote: before it is stable; demote: though too few voters are left, or without a majority
}

// ChangedVote is its answer.
type ChangedVote struct {
	Node  string `json:"node"`
	Voter bool   `json:"voter"`
}

func (a *adminServer) promoteNode(ctx context.Context, in ChangeVote) (any, error) {
	return a.changeVote(ctx, in, true)
}

func (a *adminServer) demoteNode(ctx context.Context, in ChangeVote) (any, error) {
	return a.changeVote(ctx, in, false)
}

func (a *adminServer) changeVote(ctx context.Context, in ChangeVote, voter bool) (any, error) {
	n := a.node
	if in.Node == "" {
		return nil, adminProblem(http.StatusUnprocessableEntity, "invalid_input", "node is missing")
	}
	target, err := n.memberNamed(in.Node)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*proposeTimeout)
	defer cancel()
	req := voteRequest{NodeID: target.ID, Voter: voter, Force: in.Force, By: n.data.NodeID}
	err = n.atLeader(ctx, func(ctx context.Context, leader string) error {
		if leader == n.data.NodeID {
			return (*peerCalls)(n).serveVote(ctx, n.data.NodeID, req)
		}
		err := n.rpc.post(ctx, leader, pathVote, req, new(struct{}))
		if errors.Is(err, errNoSuchCall) {
			return &refusedError{reason: "the leader's version does not know the call: upgrade it first"}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return ChangedVote{Node: target.ID, Voter: voter}, nil
}
