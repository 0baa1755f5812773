package node

import (
	"fmt"
	"strconv"
	"time"

	"github.com/hashicorp/raft"

	"sluice/authapi/histogram"
)

// ofTimes reads a histogram of Raft's, empty before the cluster is formed.
func ofTimes(read func(*raftTimes) *histogram.Histogram) func(*scrape, *samples) {
	empty := newRaftTimes()
	return func(s *scrape, out *samples) {
		times := empty
		if s.raft != nil {
			times = s.raft.times
		}
		out.histogram("", read(times).Read())
	}
}

var storageMetrics = []metric{
	{"sluice_raft_voters", kindGauge, "Members of the cluster that have a vote.", ofRaft(func(k *consensus) float64 {
		servers, err := k.servers()
		if err != nil {
			return 0
		}
		n := 0
		for _, s := range servers {
			if s.Voter {
				n++
			}
		}
		return float64(n)
	})},
	{"sluice_raft_peer_silent_seconds", kindGauge, "On the leader: since when another member does not answer its heartbeats; 0 where it does.", func(s *scrape, out *samples) {
		if s.raft == nil || !s.raft.leads() {
			return
		}
		servers, err := s.raft.servers()
		if err != nil {
			return
		}
		for _, m := range servers {
			if m.ID == s.raft.self {
				continue
			}
			silent := 0.0
			if at, ok := s.raft.silentSince(m.ID); ok {
				silent = time.Since(at).Seconds()
			}
			out.add("", fmt.Sprintf("peer=%q", m.ID), silent)
		}
	}},
	{"sluice_raft_log_append_duration_seconds", kindHistogram, "How long writes of entries to this node's log took, each with its fsync.", ofTimes(func(t *raftTimes) *histogram.Histogram { return t.appends })},
	{"sluice_raft_apply_duration_seconds", kindHistogram, "How long the state took to apply entries, by batch.", ofTimes(func(t *raftTimes) *histogram.Histogram { return t.applies })},
	{"sluice_raft_snapshot_duration_seconds", kindHistogram, "How long snapshots took to be written.", ofTimes(func(t *raftTimes) *histogram.Histogram { return t.snapshots })},
	{"sluice_raft_restore_duration_seconds", kindHistogram, "How long the state took to be replaced by a snapshot.", ofTimes(func(t *raftTimes) *histogram.Histogram { return t.restores })},
	{"sluice_raft_snapshot_index", kindGauge, "Index of the last entry that the newest snapshot holds; 0 for none.", ofRaft(func(k *consensus) float64 {
		index, err := strconv.ParseUint(k.raft.Stats()["last_snapshot_index"], 10, 64)
		if err != nil {
			return 0
		}
		return float64(index)
	})},
	{"sluice_raft_log_bytes", kindGauge, "Size of the file of this node's log.", ofRaft(func(k *consensus) float64 {
		size, _ := k.store.Size()
		return float64(size)
	})},
	{"sluice_raft_log_free_bytes", kindGauge, "Of these, what is free for new entries.", ofRaft(func(k *consensus) float64 {
		_, free := k.store.Size()
		return float64(free)
	})},
	{"sluice_storage_lsm_bytes", kindGauge, "Size of the state's tables on disk, as Badger sees it once a minute.", one(func(s *scrape) float64 { return float64(s.storage.LSMBytes) })},
	{"sluice_storage_value_log_bytes", kindGauge, "Size of the state's value log on disk, likewise.", one(func(s *scrape) float64 { return float64(s.storage.ValueLogBytes) })},
	{"sluice_storage_tables", kindGauge, "Tables of the state.", one(func(s *scrape) float64 { return float64(s.storage.Tables) })},

	{"sluice_proposals_total", kindCounter, "Writes of this node's clients by what came of them: done, refused with nothing changed, or of unknown outcome.", func(s *scrape, out *samples) {
		p := s.n.proposer
		out.add("", `outcome="done"`, float64(p.done.Load()))
		out.add("", `outcome="unavailable"`, float64(p.unavailable.Load()))
		out.add("", `outcome="unknown"`, float64(p.unknown.Load()))
	}},
	{"sluice_proposal_duration_seconds", kindHistogram, "How long these took, until they were applied here or given up.", func(s *scrape, out *samples) {
		out.histogram("", s.n.proposer.took.Read())
	}},
	{"sluice_proposals_waiting", kindGauge, "Writes of this node's clients under way.", one(func(s *scrape) float64 { return float64(len(s.n.proposer.own.taken)) })},
	{"sluice_proposals_max", kindGauge, "How many may be; more are refused.", one(func(*scrape) float64 { return maxProposals })},
	{"sluice_raft_state", kindGauge, "What this node is to Raft: 1 for the one that it is.", func(s *scrape, out *samples) {
		for _, state := range []raft.RaftState{raft.Follower, raft.Candidate, raft.Leader, raft.Shutdown} {
			is := s.raft != nil && s.raft.raft.State() == state
			out.add("", fmt.Sprintf("state=%q", stateNames[state]), flag(is))
		}
	}},
	{"sluice_gossip_health_score", kindGauge, "How slow gossip takes this node itself to be: 0 is sound, and each step doubles its patience with others.", one(func(s *scrape) float64 { return float64(s.n.gossip.healthScore()) })},
}

var stateNames = map[raft.RaftState]string{raft.Follower: "follower", raft.Candidate: "candidate", raft.Leader: "leader", raft.Shutdown: "shutdown"}
