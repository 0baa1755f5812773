package node

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// statusTimeout bounds the question to each member; one that is down costs this much.
const statusTimeout = time.Second

// maxHelloProblems bounds what a hello tells of what is wrong.
const maxHelloProblems = 16

// ClusterStatus is the answer of GET /v1/cluster: the cluster as one node sees it. Fields may be added.
type ClusterStatus struct {
	Cluster     string       `json:"cluster"`
	ClusterID   string       `json:"cluster_id"`  // "" before it is formed
	AnsweredBy  string       `json:"answered_by"` // node id
	Leader      string       `json:"leader"`      // node id, "" where none is known
	Term        uint64       `json:"term"`
	CommitIndex uint64       `json:"commit_index"`
	Horizon     *time.Time   `json:"horizon"` // windows that begin before it may be opened
	Roster      RosterStatus `json:"roster"`
	Nodes       []NodeStatus `json:"nodes"`  // by id
	Leaves      []LeaveEntry `json:"leaves"` // of nodes whose shares count in windows that may be open
	Level       uint64       `json:"level"`  // what all members' versions can read (state.Level)
	// Voters and how many of them answered just now; MayFail more may stop doing so before there is no majority.
	Voters          int      `json:"voters"`
	VotersAnswering int      `json:"voters_answering"`
	MayFail         int      `json:"may_fail"`
	Problems        []string `json:"problems"` // of the cluster as a whole; those of nodes stand there
	Advice          []string `json:"advice"`   // what to do, the most urgent first; some of it about what is no problem yet
	// Secrets is how secrets at rest are sealed; its problems are among Problems.
	Secrets *SecretsStatus `json:"secrets,omitempty"`
}

// RosterStatus is the newest list of nodes that hold shares.
type RosterStatus struct {
	Index uint64     `json:"index"` // of its log entry, 0 for none
	From  *time.Time `json:"from"`  // it governs the windows that begin then or later; null: all
	Nodes []string   `json:"nodes"`
}

// LeaveEntry says who has the share of a node that left.
type LeaveEntry struct {
	Node string `json:"node"`
	Heir string `json:"heir"`
}

// NodeStatus is one member.
type NodeStatus struct {
	ID            string `json:"id"`
	Name          string `json:"name"`
	PeerAddress   string `json:"peer_address"`
	GossipAddress string `json:"gossip_address"`
	Version       string `json:"version"`
	Role          string `json:"role"`  // "leader", "voter" or "nonvoter"
	Alive         bool   `json:"alive"` // it answered just now
	// AppliedIndex and Lag, in log entries, are null where it did not answer.
	AppliedIndex *uint64 `json:"applied_index"`
	Lag          *uint64 `json:"lag"`
	InRoster     bool    `json:"in_roster"`
	// SettingsVersion is what it goes by, 0 for its own configuration alone, null where it did not answer.
	SettingsVersion *uint64 `json:"settings_version"`
	// Level is the highest that its version knows, null where it did not answer.
	Level    *uint64  `json:"level"`
	Problems []string `json:"problems"`
}

func (a *adminServer) cluster(r *http.Request) (any, error) { return a.node.clusterStatus(r.Context()) }

// clusterStatus asks every member and says what it found.
func (n *Node) clusterStatus(ctx context.Context) (ClusterStatus, error) {
	s := ClusterStatus{
		Cluster: n.cfg.Cluster, ClusterID: n.clusterID(), AnsweredBy: n.data.NodeID, Leader: n.LeaderID(),
		Nodes: []NodeStatus{}, Leaves: []LeaveEntry{}, Problems: []string{}, Advice: []string{}, Roster: RosterStatus{Nodes: []string{}},
		Level: n.fsm.Level(),
	}
	limits := n.fsm.Limiter()
	if limits.Horizon != 0 {
		s.Horizon = unixMillis(limits.Horizon)
	}
	if l := len(limits.Rosters); l > 0 {
		newest := limits.Rosters[l-1]
		s.Roster.Index, s.Roster.Nodes = newest.Index, newest.Nodes
		if newest.From != 0 {
			s.Roster.From = unixMillis(newest.From)
		}
	}
	for _, l := range limits.Leaves {
		s.Leaves = append(s.Leaves, LeaveEntry{Node: l.Leaver, Heir: l.Heir})
	}
	members := n.members()
	k := n.consensus.Load()
	if k == nil {
		s.Problems = append(s.Problems, "not formed yet: waiting for "+n.waiting())
	} else {
		s.Term, s.CommitIndex = k.raft.CurrentTerm(), k.raft.CommitIndex()
		if s.Leader == "" {
			s.Problems = append(s.Problems, "no leader is known: writes wait, and windows end without new ones being opened")
		}
	}
	infos, err := n.fsm.Nodes()
	if err != nil {
		return s, fmt.Errorf("read nodes: %w", err)
	}
	hellos := n.askMembers(ctx, members)
	newest := s.CommitIndex
	for _, h := range hellos {
		if h.err == nil {
			newest = max(newest, h.reply.Applied)
		}
	}
	voters, alive := 0, 0
	for i, m := range members {
		node := NodeStatus{ID: m.ID, PeerAddress: m.Address, Role: "nonvoter", InRoster: slices.Contains(s.Roster.Nodes, m.ID), Problems: []string{}}
		if m.Voter {
			node.Role = "voter"
			voters++
		}
		if m.ID == s.Leader {
			node.Role = "leader"
		}
		for _, info := range infos {
			if info.ID == m.ID {
				node.Name, node.Version, node.PeerAddress, node.GossipAddress = info.Name, info.Version, info.PeerAddress, info.GossipAddress
			}
		}
		problem := func(format string, args ...any) { node.Problems = append(node.Problems, fmt.Sprintf(format, args...)) }
		if h := hellos[i]; h.err != nil {
			problem("does not answer: %v", rootCause(h.err))
		} else {
			if m.Voter {
				alive++
			}
			node.Alive = true
			node.Name, node.Version, node.PeerAddress, node.GossipAddress = h.reply.Name, h.reply.Version, h.reply.Peer, h.reply.Gossip
			applied, lag := h.reply.Applied, newest-min(newest, h.reply.Applied)
			node.AppliedIndex, node.Lag = &applied, &lag
			level := levelOf(h.reply.Level)
			node.SettingsVersion, node.Level = &h.reply.Settings, &level
			if lag > maxLag {
				problem("is %d entries behind", lag)
			}
			for _, text := range h.reply.Problems[:min(len(h.reply.Problems), maxHelloProblems)] {
				problem("%s", text)
			}
			if s.Leader != "" && h.reply.LeaderID != "" && h.reply.LeaderID != s.Leader {
				problem("takes %s for the leader", h.reply.LeaderID)
			}
		}
		if m.ID != n.data.NodeID && n.gossip.started.Load() && !n.gossip.isAlive(m.ID) {
			problem("is not seen by gossip: shares cannot be moved to it or from it")
		}
		if s.Roster.Index != 0 && !node.InRoster {
			problem("is not in the roster: it holds no share of its own in new windows")
		}
		s.Nodes = append(s.Nodes, node)
	}
	slices.SortFunc(s.Nodes, func(a, b NodeStatus) int { return strings.Compare(a.ID, b.ID) })
	for _, id := range s.Roster.Nodes {
		if !slices.ContainsFunc(members, func(m member) bool { return m.ID == id }) {
			s.Problems = append(s.Problems, fmt.Sprintf("%s is in the roster and no member: its share stands idle until the next roster governs", id))
		}
	}
	secrets := n.secretsOf(members, hellos)
	s.Secrets = &secrets
	s.Problems = append(s.Problems, secrets.Problems...)
	s.Voters, s.VotersAnswering = voters, alive
	s.advise()
	if voters > 0 && alive < voters/2+1 {
		s.Problems = append(s.Problems, fmt.Sprintf("%d of %d voters answer: no majority", alive, voters))
	}
	return s, nil
}

type memberHello struct {
	reply helloReply
	err   error
}

// askMembers says hello to all members at once, in their order; this node speaks for itself.
func (n *Node) askMembers(ctx context.Context, members []member) []memberHello {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	out := make([]memberHello, len(members))
	var wg sync.WaitGroup
	for i, m := range members {
		if m.ID == n.data.NodeID {
			out[i].reply = (*peerCalls)(n).hello()
			continue
		}
		wg.Go(func() { out[i].reply, out[i].err = n.rpc.hello(ctx, m.ID) })
	}
	wg.Wait()
	return out
}

// problems says what keeps the node from being ready, and what is degraded, a line each.
func (n *Node) problems() []string {
	var list []string
	for _, c := range n.Health() {
		text := c.Degraded
		if c.Err != nil {
			text = c.Err.Error()
		}
		if text != "" && len(list) < maxHelloProblems {
			list = append(list, c.Name+": "+clipText(text, 200))
		}
	}
	if n.draining.Load() {
		list = append(list, "draining: going down")
	}
	return list
}

func unixMillis(ms int64) *time.Time {
	t := time.UnixMilli(ms).UTC()
	return &t
}

// clipText cuts text to at most size bytes, between characters.
func clipText(text string, size int) string {
	if len(text) <= size {
		return text
	}
	for size > 0 && text[size]&0xC0 == 0x80 {
		size--
	}
	return text[:size] + "…"
}
