package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"sluice/raftfsm/state"
)

const (
	// maxLag is how many entries a node may be behind when it becomes a voter.
	maxLag = 250
	// maxVoters and maxServers bound the Raft configuration, which rides in every one of its entries and snapshots.
	maxVoters  = 7
	maxServers = 27
)

// foundCluster is how this node begins.
type foundCluster struct {
	clusterID string
	formation *formation // the first configuration, or the one heard of when joining; nil where only the log knows
	bootstrap *formation // to bootstrap with where the log is empty
	member    bool       // this node was a member before
	joining   bool       // this node has been taken in but does not vote yet
	joinIndex uint64     // caught up once applied
}

// newFormer prepares what forms or joins, so that hello can tell about it from the first connection on.
func (n *Node) newFormer(logger *slog.Logger) {
	n.former = &former{
		self: n.data.NodeID, address: n.peerAddress, cluster: n.cfg.Cluster, initial: n.cfg.InitialMembers,
		count: n.cfg.InitialCount, others: n.cfg.Join, expand: n.discovery.expand,
		data: n.data, hello: n.rpc.hello, learn: n.learn, log: logger,
	}
	n.joiner = &joiner{
		self: n.peerAddress, targets: n.cfg.Join, expand: n.discovery.expand, log: logger,
		join: func(ctx context.Context, target string, req joinRequest) (joinReply, error) {
			reply, err := n.rpc.join(ctx, target, req)
			if errors.Is(err, errNotLeader) {
				// The asked node knows where the leader is.
				if hello, err := n.rpc.hello(ctx, target); err == nil {
					n.learn(hello)
				}
			}
			return reply, err
		},
		learn: func(reply joinReply) {
			n.book.setServers(reply.Servers)
			for _, a := range reply.Infos {
				n.book.hear(a)
			}
		},
	}
}

// learn notes what a peer said of itself and of its configuration.
func (n *Node) learn(reply helloReply) {
	n.book.hear(nodeAddr{ID: reply.NodeID, Peer: reply.Peer, Gossip: reply.Gossip})
	if len(reply.Servers) > 0 && n.consensus.Load() == nil {
		n.book.setServers(reply.Servers)
	}
}

// waiting says what the node waits for before Raft can run.
func (n *Node) waiting() string {
	if w := n.joiner.waiting(); w != "" {
		return w
	}
	return n.former.waiting()
}

// findCluster decides how this node begins: as the member that it was, by forming the cluster with the other initial
// members, or by joining one.
func (n *Node) findCluster(ctx context.Context) (foundCluster, error) {
	agreed, err := n.data.formation()
	if err != nil {
		return foundCluster{}, err
	}
	mark, err := n.data.membership()
	if err != nil {
		return foundCluster{}, err
	}
	if mark != nil {
		return foundCluster{clusterID: mark.ClusterID, formation: agreed, member: true}, nil
	}
	if len(n.cfg.InitialMembers) > 0 && !n.forms() {
		n.log.Info("not among initial_members as written there: joining", "address", n.peerAddress)
	}
	if n.forms() && (agreed == nil || !agreed.Joining) {
		if agreed != nil {
			n.former.agreed.Store(agreed)
		}
		formed, err := n.former.form(ctx)
		if err == nil {
			return foundCluster{clusterID: formed.ClusterID, formation: formed, bootstrap: formed}, nil
		}
		if !errors.Is(err, errExists) {
			return foundCluster{}, err
		}
		n.log.Info("the cluster exists already: joining it")
	}
	if len(n.cfg.Join) == 0 {
		return foundCluster{}, errors.New("the data directory is empty: set initial_members to form a cluster or join to enter one")
	}
	reply, err := n.joiner.ask(ctx, func() joinRequest {
		return n.joinRequest(joinRequest{})
	})
	if err != nil {
		return foundCluster{}, err
	}
	// Written down as the addresses to begin with; the marker follows once the log holds something, since an empty log
	// beside the marker means a lost one.
	heard := &formation{Version: 1, ClusterID: reply.ClusterID, Members: reply.Servers, Joining: true}
	if err := n.data.setFormation(heard); err != nil {
		return foundCluster{}, err
	}
	return foundCluster{clusterID: reply.ClusterID, formation: heard, joining: true, joinIndex: reply.Index}, nil
}

// forms says whether this node is one of those that form the cluster, as far as that can be told before they are asked: who
// has both lists and is not in the first joins.
func (n *Node) forms() bool {
	initial := n.cfg.InitialMembers
	return len(initial) > 0 && (n.cfg.InitialCount > 0 || len(n.cfg.Join) == 0 || slices.Contains(initial, n.peerAddress))
}

// finishJoin makes a node that was taken in a voter, once it has caught up, unless it is to listen only. A node that was stopped in
// between goes on where it was.
func (n *Node) finishJoin(ctx context.Context, k *consensus, found foundCluster) error {
	if found.joining {
		n.joinStatus("the log up to entry %d", found.joinIndex)
		if err := n.fsm.WaitApplied(ctx, found.joinIndex); err != nil {
			return err
		}
		if err := n.data.setMembership(found.clusterID, n.opts.clock(), false); err != nil {
			return err
		}
	}
	mark, err := n.data.membership()
	if err != nil {
		return err
	}
	servers, err := k.servers()
	if err != nil {
		return err
	}
	votes := slices.ContainsFunc(servers, func(s member) bool { return s.ID == n.data.NodeID && s.Voter })
	if votes && !n.cfg.Membership.Voter {
		n.log.Warn("this node votes, though membership.voter is false: that is asked for when a node joins; sluice cluster demote changes it")
	}
	if mark != nil && !mark.Settled && !votes && n.cfg.Membership.Voter && len(n.cfg.Join) > 0 {
		_, err = n.joiner.ask(ctx, func() joinRequest {
			return n.joinRequest(joinRequest{Voter: true, Applied: n.fsm.AppliedIndex()})
		})
		if err != nil {
			return err
		}
	}
	if found.joining {
		n.log.Info("joined the cluster", "cluster_id", found.clusterID)
	}
	return n.data.settle()
}

func (n *Node) joinStatus(format string, args ...any) { n.joiner.setStatus(format, args...) }

// members is the Raft configuration, or the formation before Raft runs.
func (n *Node) members() []member {
	if k := n.consensus.Load(); k != nil {
		if servers, err := k.servers(); err == nil {
			return servers
		}
	}
	if f := n.former.agreed.Load(); f != nil {
		return f.Members
	}
	return nil
}

// gossipMembers lists who gossip should see.
func (n *Node) gossipMembers() []nodeAddr {
	var out []nodeAddr
	for _, m := range n.members() {
		out = append(out, nodeAddr{ID: m.ID, Gossip: n.book.gossip(m.ID)})
	}
	return out
}

// refreshBook copies the addresses of the replicated state and the configuration.
func (n *Node) refreshBook() {
	infos, err := n.fsm.Nodes()
	if err != nil {
		return
	}
	nodes := make([]nodeAddr, 0, len(infos))
	for _, i := range infos {
		if i.RemovedAt == 0 {
			nodes = append(nodes, nodeAddr{ID: i.ID, Peer: i.PeerAddress, Gossip: i.GossipAddress})
		}
	}
	n.book.setState(nodes)
	if k := n.consensus.Load(); k != nil {
		if servers, err := k.servers(); err == nil && len(servers) > 0 {
			n.book.setServers(servers)
		}
	}
}

// confirm asks the leader, wherever it is, for an entry that proves freshness.
func (n *Node) confirm(ctx context.Context, patience time.Duration) (uint64, error) {
	k := n.consensus.Load()
	if k == nil {
		return 0, errNotLeader
	}
	if k.leads() {
		return n.barriers.ask(ctx, patience)
	}
	leader := k.leader()
	if leader == "" || leader == n.data.NodeID {
		return 0, errNotLeader
	}
	ctx, release := k.under(ctx, leader)
	defer release()
	return n.rpc.barrier(ctx, leader, patience)
}

// peerCalls is the node as its peers see it.
type peerCalls Node

var _ peerService = (*peerCalls)(nil)

func (p *peerCalls) hello() helloReply {
	n := (*Node)(p)
	reply := helloReply{
		NodeID: n.data.NodeID, Name: n.cfg.Name, Version: n.opts.version,
		Peer: n.peerAddress, Gossip: n.gossip.address, Members: membersHash(n.cfg.InitialMembers, n.cfg.InitialCount),
		Agreed: n.former.agreedID(), Formed: n.clusterID(), LeaderID: n.LeaderID(), Applied: n.fsm.AppliedIndex(), Now: n.opts.clock().UnixNano(),
		Problems: n.problems(), Settings: n.SettingsVersion(), Level: state.Level, Sealing: n.sealing(),
		Storage: n.storage.fitness(),
	}
	if k := n.consensus.Load(); k != nil {
		if servers, err := k.servers(); err == nil {
			reply.Servers = servers
		}
	}
	return reply
}

func (p *peerCalls) clusterID() string { return (*Node)(p).clusterID() }
func (p *peerCalls) leaderID() string  { return (*Node)(p).LeaderID() }

func (p *peerCalls) otherCluster(caller, id string) { (*Node)(p).otherCluster(caller, id) }

func (p *peerCalls) heard(a nodeAddr) { p.book.hear(a) }

// isMember refuses those whom the configuration does not have. Only the leader's is surely the newest, and only the
// leader is asked for anything that matters.
func (p *peerCalls) isMember(k *consensus, caller string) error {
	servers, err := k.servers()
	if err != nil {
		return err
	}
	for _, s := range servers {
		if s.ID == caller {
			return nil
		}
	}
	return &refusedError{reason: "not a member of the cluster"}
}

func (p *peerCalls) serveForward(ctx context.Context, caller string, envelope []byte) (state.Result, error) {
	k := p.consensus.Load()
	if k == nil || !k.leads() {
		return state.Result{}, errNotLeader
	}
	if err := p.isMember(k, caller); err != nil {
		return state.Result{}, err
	}
	return p.proposer.serve(ctx, envelope)
}

func (p *peerCalls) serveApplied(ctx context.Context, index uint64) error {
	if err := p.fsm.WaitApplied(ctx, index); err != nil {
		return err
	}
	(*Node)(p).takeUpSettings() // whoever waits for a change wants it to be in force
	return nil
}

func (p *peerCalls) serveBarrier(ctx context.Context, caller string, patience time.Duration) (uint64, error) {
	k := p.consensus.Load()
	if k == nil || !k.leads() {
		return 0, errNotLeader
	}
	if err := p.isMember(k, caller); err != nil {
		return 0, err
	}
	return p.barriers.ask(ctx, min(patience, 2*probePatience))
}

// serveJoin takes a node in as the leader: one change of the configuration at a time, which Raft sees to.
func (p *peerCalls) serveJoin(ctx context.Context, caller string, req joinRequest) (joinReply, error) {
	n := (*Node)(p)
	k := n.consensus.Load()
	if k == nil || !k.leads() {
		return joinReply{}, errNotLeader
	}
	if req.Address == "" || len(req.Address) > 255 {
		return joinReply{}, &refusedError{reason: "malformed address"}
	}
	// A node with another key could read none of the cluster's secrets. It must not come into the configuration, where it
	// would count for the quorum and yet never serve.
	fresh, all := n.opens(append(req.Keys, req.Key))
	switch {
	case !fresh:
		return joinReply{}, &refusedError{reason: ErrOtherKey.Error()}
	case !all: // while the key is replaced, and until a new leader has seen that it is
		return joinReply{}, errSealing
	}
	n.levels.Lock()
	defer n.levels.Unlock()
	if level := n.fsm.Level(); levelOf(req.Level) < level {
		return joinReply{}, &refusedError{reason: fmt.Sprintf("the cluster is of level %d, and this version knows levels up to %d: start a newer one", level, levelOf(req.Level))}
	}
	servers, err := k.servers()
	if err != nil {
		return joinReply{}, err
	}
	voters, known, votes := 0, false, false
	for _, s := range servers {
		if s.Voter {
			voters++
		}
		if s.ID == caller {
			known, votes = true, s.Voter
		} else if where, err := n.book.peer(s.ID); err == nil && where == req.Address || err != nil && s.Address == req.Address {
			return joinReply{}, &refusedError{reason: fmt.Sprintf("%s is the address of the member %s; if that one is gone for good, remove it first", req.Address, s.ID)}
		}
	}
	index := k.raft.CommitIndex()
	switch {
	case votes:
	case !req.Voter && known:
	case !req.Voter:
		if len(servers) >= maxServers {
			return joinReply{}, &refusedError{reason: fmt.Sprintf("the cluster has %d members already", len(servers))}
		}
		future := k.raft.AddNonvoter(raft.ServerID(caller), raft.ServerAddress(req.Address), 0, enqueueTimeout)
		if err := k.await(ctx, future); err != nil {
			return joinReply{}, classify(err)
		}
		index = future.Index()
		n.log.Info("node taken in", "joined", caller, "address", req.Address)
	case !known:
		return joinReply{}, &refusedError{reason: "ask to be taken in first"}
	case voters >= maxVoters:
		// It goes on listening: a larger quorum would only make writes slower.
	case req.Applied+maxLag < k.raft.LastIndex():
		return joinReply{}, &notYetError{reason: fmt.Sprintf("it is %d entries behind", k.raft.LastIndex()-req.Applied)}
	default:
		if err := n.stable(caller); err != nil {
			return joinReply{}, err
		}
		future := k.raft.AddVoter(raft.ServerID(caller), raft.ServerAddress(req.Address), 0, enqueueTimeout)
		if err := k.await(ctx, future); err != nil {
			return joinReply{}, classify(err)
		}
		index = future.Index()
		n.log.Info("node votes", "joined", caller)
	}
	if servers, err = k.servers(); err != nil {
		return joinReply{}, err
	}
	reply := joinReply{ClusterID: n.clusterID(), Servers: servers, Index: index}
	for _, s := range servers {
		a := nodeAddr{ID: s.ID, Gossip: n.book.gossip(s.ID)}
		if a.Peer, err = n.book.peer(s.ID); err != nil {
			a.Peer = s.Address
		}
		reply.Infos = append(reply.Infos, a)
	}
	return reply, nil
}
