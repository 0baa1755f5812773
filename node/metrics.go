package node

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/hashicorp/raft"

	"sluice/authapi"
	"sluice/limiter"
	"sluice/raftfsm"
	"sluice/raftfsm/state"
)

// The metrics that a node serves, in the text format of Prometheus 0.0.4. docs/metrics.md lists them, and a test holds the two
// together. Names carry their unit and stay; labels have few values: policies, outcomes, checks and nodes, never a client.
//
// All are read when they are asked for, each source once, so that the numbers of one answer belong together. (Prometheus' own client
// keeps the numbers itself, or has each declared and copied for each scrape; it is used for the process's own, see metricsprocess.go.)

// scrape is what one answer is made from.
type scrape struct {
	n      *Node
	now    time.Time
	checks []authapi.HealthCheck
	raft   *consensus // nil before the cluster is formed
	shares state.LimiterState
	limit  *limiter.Limiter // nil before it is open; then stats and peers are zero
	stats  limiter.Stats
	peers  []limiter.PeerStats

	cache     authapi.CacheCount
	passwords authapi.PasswordCount
	storage   raftfsm.Storage
}

func (n *Node) scrape() *scrape {
	s := &scrape{
		n: n, now: n.opts.clock(), checks: n.Health(), raft: n.consensus.Load(), shares: n.fsm.Limiter(), limit: n.limits.limiter.Load(),
		cache: n.api.CredentialCache(), passwords: n.api.Passwords(), storage: n.fsm.Storage(),
	}
	if s.limit != nil {
		s.stats, s.peers = s.limit.Stats(), s.limit.Peers()
	}
	return s
}

// Kinds of metrics.
const (
	kindCounter   = "counter"
	kindGauge     = "gauge"
	kindHistogram = "histogram"
)

// metric is one name with all its labels.
type metric struct {
	name, kind, help string
	read             func(s *scrape, out *samples)
}

// samples takes what a metric reads.
type samples struct {
	w    bytes.Buffer
	name string
}

// add writes one sample. labels are written as they are, and suffix follows the name.
func (o *samples) add(suffix, labels string, value float64) {
	o.w.WriteString(o.name)
	o.w.WriteString(suffix)
	if labels != "" {
		o.w.WriteByte('{')
		o.w.WriteString(labels)
		o.w.WriteByte('}')
	}
	o.w.WriteByte(' ')
	o.w.Write(strconv.AppendFloat(o.w.AvailableBuffer(), value, 'g', -1, 64))
	o.w.WriteByte('\n')
}

func (o *samples) outcomes(policy string, admitted, refused, undecided uint64) {
	o.add("", fmt.Sprintf("policy=%q,outcome=\"admitted\"", policy), float64(admitted))
	o.add("", fmt.Sprintf("policy=%q,outcome=\"refused\"", policy), float64(refused))
	o.add("", fmt.Sprintf("policy=%q,outcome=\"undecided\"", policy), float64(undecided))
}

// writeMetrics writes all of them.
func (n *Node) writeMetrics(w io.Writer) error {
	s := n.scrape()
	var out samples
	for _, m := range slices.Concat(metrics, membershipMetrics, storageMetrics, requestMetrics, traceMetrics, backupMetrics, transportMetrics, adminMetrics, secretsMetrics, diskMetrics, queueMetrics) {
		fmt.Fprintf(&out.w, "# HELP %s %s\n# TYPE %s %s\n", m.name, m.help, m.name, m.kind)
		out.name = m.name
		m.read(s, &out)
	}
	_, err := out.w.WriteTo(w)
	return err
}

// one reads a metric without labels.
func one(read func(*scrape) float64) func(*scrape, *samples) {
	return func(s *scrape, out *samples) { out.add("", "", read(s)) }
}

// ofRaft reads one that is 0 before the cluster is formed.
func ofRaft(read func(*consensus) float64) func(*scrape, *samples) {
	return func(s *scrape, out *samples) {
		if s.raft == nil {
			out.add("", "", 0)
			return
		}
		out.add("", "", read(s.raft))
	}
}

// ofLimiter reads one that is not there before the limiter is open.
func ofLimiter[T int | int64 | uint64](read func(*limiter.Stats) T) func(*scrape, *samples) {
	return func(s *scrape, out *samples) {
		if s.limit != nil {
			out.add("", "", float64(read(&s.stats)))
		}
	}
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

var metrics = []metric{
	{"sluice_build_info", kindGauge, "Always 1; the labels say what runs.", func(s *scrape, out *samples) {
		out.add("", fmt.Sprintf("version=%q,node=%q", s.n.opts.version, s.n.data.NodeID), 1)
	}},
	{"sluice_ready", kindGauge, "Whether the node is fit for traffic, as /readyz says.", one(func(s *scrape) float64 {
		return flag(s.ready())
	})},
	{"sluice_check_failing", kindGauge, "Whether a check of /readyz fails: the node is then not ready.", func(s *scrape, out *samples) {
		for _, c := range s.checks {
			out.add("", fmt.Sprintf("check=%q", c.Name), flag(c.Err != nil))
		}
	}},
	{"sluice_degraded", kindGauge, "Whether a check of /readyz says that the node does less than it should, or is about to.", func(s *scrape, out *samples) {
		for _, c := range s.checks {
			out.add("", fmt.Sprintf("check=%q", c.Name), flag(c.Degraded != ""))
		}
	}},

	{"sluice_raft_is_leader", kindGauge, "Whether this node leads.", ofRaft(func(k *consensus) float64 { return flag(k.leads()) })},
	{"sluice_raft_has_leader", kindGauge, "Whether this node knows a leader.", ofRaft(func(k *consensus) float64 { return flag(k.leader() != "") })},
	{"sluice_raft_leader_changes_total", kindCounter, "Changes of the leader that this node saw.", ofRaft(func(k *consensus) float64 { return float64(k.leaderMoves.Load()) })},
	{"sluice_raft_term", kindGauge, "The present term.", ofRaft(func(k *consensus) float64 { return float64(k.raft.CurrentTerm()) })},
	{"sluice_raft_commit_index", kindGauge, "Index of the last entry known to be committed.", ofRaft(func(k *consensus) float64 { return float64(k.raft.CommitIndex()) })},
	{"sluice_raft_last_index", kindGauge, "Index of the last entry in this node's log.", ofRaft(func(k *consensus) float64 { return float64(k.raft.LastIndex()) })},
	{"sluice_raft_applied_index", kindGauge, "Index of the last entry applied here.", one(func(s *scrape) float64 { return float64(s.n.fsm.AppliedIndex()) })},
	{"sluice_raft_last_contact_seconds", kindGauge, "Since when the leader was last heard; 0 on the leader.", ofRaft(func(k *consensus) float64 {
		if k.raft.State() == raft.Leader || k.raft.LastContact().IsZero() {
			return 0
		}
		return time.Since(k.raft.LastContact()).Seconds()
	})},
	{"sluice_raft_servers", kindGauge, "Members of the cluster.", ofRaft(func(k *consensus) float64 {
		servers, err := k.servers()
		if err != nil {
			return 0
		}
		return float64(len(servers))
	})},
	{"sluice_state_age_seconds", kindGauge, "How old this node's state may be; -1 if that was never confirmed.", one(func(s *scrape) float64 {
		age, ok := s.n.freshness.age(time.Now())
		if !ok {
			return -1
		}
		return age.Seconds()
	})},

	{"sluice_settings_version", kindGauge, "Version of the settings that this node goes by; 0 for its own configuration alone.", one(func(s *scrape) float64 { return float64(s.n.SettingsVersion()) })},
	{"sluice_settings_newest_version", kindGauge, "The newest version applied here; another than the one before, and the node goes by older settings.", one(func(s *scrape) float64 { return float64(s.n.newestSettings().Version) })},

	{"sluice_horizon_ahead_seconds", kindGauge, "How far the horizon is ahead of this node's clock; negative once it has passed.", func(s *scrape, out *samples) {
		if s.shares.Horizon != 0 {
			out.add("", "", float64(s.shares.Horizon-s.now.UnixMilli())/1000)
		}
	}},
	{"sluice_roster_index", kindGauge, "Log index of the newest roster; 0 for none.", one(func(s *scrape) float64 { return float64(s.roster().Index) })},
	{"sluice_roster_nodes", kindGauge, "Nodes that hold shares by the newest roster.", one(func(s *scrape) float64 { return float64(len(s.roster().Nodes)) })},
	{"sluice_roster_member", kindGauge, "Whether this node is one of them.", one(func(s *scrape) float64 { return flag(s.inRoster()) })},
	{"sluice_clock_skew_seconds", kindGauge, "How far this node's clock is ahead of the median of the cluster's, as far as that is proven.", one(func(s *scrape) float64 {
		skew, _ := s.n.clocks.skew()
		return skew.Seconds()
	})},
	{"sluice_clock_peer_offset_seconds", kindGauge, "How far another node's clock is ahead of this node's.", func(s *scrape, out *samples) {
		for _, o := range s.n.clocks.offsets() {
			out.add("", fmt.Sprintf("peer=%q", o.peer), o.offset.Seconds())
		}
	}},

	{"sluice_gossip_members", kindGauge, "Nodes that gossip sees, this one included.", one(func(s *scrape) float64 { return float64(s.n.gossip.seen()) })},
	{"sluice_gossip_packets_sent_total", kindCounter, "The limiter's packets handed to the network.", one(func(s *scrape) float64 { return float64(s.n.gossip.sent.Load()) })},
	{"sluice_gossip_packets_received_total", kindCounter, "The limiter's packets received from members.", one(func(s *scrape) float64 { return float64(s.n.gossip.received.Load()) })},
	{"sluice_gossip_packets_dropped_total", kindCounter, "Packets received and dropped since the limiter was behind.", one(func(s *scrape) float64 { return float64(s.n.gossip.dropped.Load()) })},
	{"sluice_gossip_packets_malformed_total", kindCounter, "Packets received with the cluster's secret but not of a member or of no known form.", one(func(s *scrape) float64 { return float64(s.n.gossip.badPackets.Load()) })},
	{"sluice_gossip_packets_strange_total", kindCounter, "Packets dropped that were made without the cluster's keys, altered, or for another cluster.", one(func(s *scrape) float64 { return float64(s.n.gossip.strangePackets()) })},
	{"sluice_gossip_peer_unheard_seconds", kindGauge, "Since when a node that shares limits was last heard; each says something at least every 0.2 s, with more than 17 nodes every second.", func(s *scrape, out *samples) {
		for _, p := range s.peers {
			out.add("", fmt.Sprintf("peer=%q", p.Node), p.Unheard.Seconds())
		}
	}},

	{"sluice_http_connections", kindGauge, "Connections to the public listener.", one(func(s *scrape) float64 {
		return float64(s.n.api.Connections().Open)
	})},
	{"sluice_http_connections_refused_total", kindCounter, "Connections closed since their address had too many.", one(func(s *scrape) float64 {
		return float64(s.n.api.Connections().Refused)
	})},
	{"sluice_http_certificate_expiry_timestamp_seconds", kindGauge, "When the public listener's certificate ends, in Unix time; 0 without TLS.", one(func(s *scrape) float64 {
		return s.n.certificates.expiry()
	})},
	{"sluice_http_certificate_failing", kindGauge, "Whether its files hold no pair that could be loaded, so that an older one is in use.", one(func(s *scrape) float64 {
		return flag(s.n.certificates != nil && s.n.certificates.failing.Load())
	})},
	{"sluice_http_client_address_malformed_total", kindCounter, "Times a trusted proxy named a client in a way that could not be used.", func(s *scrape, out *samples) {
		for _, m := range s.n.api.MalformedAddresses() {
			out.add("", fmt.Sprintf("source=%q", m.Source), float64(m.Count))
		}
	}},

	{"sluice_gateway_attempts_total", kindCounter, "Attempts at a route's upstream, by what came of them; a request that is sent again has several.", ofUpstreams(func(u *authapi.UpstreamCount, add func(labels string, value float64)) {
		add(`,outcome="answered"`, float64(u.Answered))
		add(`,outcome="failed"`, float64(u.Failed))
		add(`,outcome="timeout"`, float64(u.TimedOut))
		add(`,outcome="abandoned"`, float64(u.Abandoned))
	})},
	{"sluice_gateway_answers_broken_total", kindCounter, "Answers of an upstream that were cut off, stood still or were too long.", ofUpstreams(func(u *authapi.UpstreamCount, add func(labels string, value float64)) {
		add("", float64(u.Broken))
	})},
	{"sluice_gateway_upstream_up", kindGauge, "Whether an upstream is in use; 0 while it is left out after failures.", ofUpstreams(func(u *authapi.UpstreamCount, add func(labels string, value float64)) {
		add("", flag(u.Up))
	})},
	{"sluice_gateway_ejections_total", kindCounter, "Times an upstream was left out.", ofUpstreams(func(u *authapi.UpstreamCount, add func(labels string, value float64)) {
		add("", float64(u.Ejections))
	})},
	{"sluice_gateway_requests", kindGauge, "Requests at an upstream now, WebSockets among them.", ofUpstreams(func(u *authapi.UpstreamCount, add func(labels string, value float64)) {
		add("", float64(u.InFlight))
	})},
	{"sluice_gateway_retries_total", kindCounter, "Attempts beyond the first of a request.", func(s *scrape, out *samples) {
		for _, r := range s.n.api.GatewayRoutes() {
			out.add("", fmt.Sprintf("route=%q", r.Route), float64(r.Retries))
		}
	}},
	{"sluice_gateway_websockets", kindGauge, "WebSockets open now.", func(s *scrape, out *samples) {
		for _, r := range s.n.api.GatewayRoutes() {
			out.add("", fmt.Sprintf("route=%q", r.Route), float64(r.WebSockets))
		}
	}},

	{"sluice_grpc_calls_total", kindCounter, "Calls over gRPC by method and code, where that is on.", func(s *scrape, out *samples) {
		if s.n.grpc == nil {
			return
		}
		for _, c := range s.n.grpc.Calls() {
			out.add("", fmt.Sprintf("method=%q,code=%q", c.Method, c.Code), float64(c.Count))
		}
	}},
	{"sluice_grpc_certificate_expiry_timestamp_seconds", kindGauge, "When the certificate of the listener for gRPC ends, in Unix time; 0 without TLS.", one(func(s *scrape) float64 {
		return s.n.grpcCertificates.expiry()
	})},
	{"sluice_grpc_certificate_failing", kindGauge, "Whether its files hold no pair that could be loaded, so that an older one is in use.", one(func(s *scrape) float64 {
		return flag(s.n.grpcCertificates != nil && s.n.grpcCertificates.failing.Load())
	})},

	{"sluice_limit_decisions_total", kindCounter, "Decisions by policy; a request that several policies refuse counts for each.", func(s *scrape, out *samples) {
		for _, d := range s.n.api.Decisions() {
			out.outcomes(d.Policy, d.Admitted, d.Refused, d.Undecided)
		}
	}},
	{"sluice_limit_descriptors_unmatched_total", kindCounter, "Descriptors of Envoy's rate-limit service that passed since no rule counts them.", func(s *scrape, out *samples) {
		domain, entries := s.n.api.UnmatchedDescriptors()
		out.add("", `reason="domain"`, float64(domain))
		out.add("", `reason="entries"`, float64(entries))
	}},
	{"sluice_limit_shadow_decisions_total", kindCounter, "What shadow policies would have decided.", func(s *scrape, out *samples) {
		for _, d := range s.n.api.ShadowCounts() {
			out.outcomes(d.Policy, d.Admitted, d.Refused, d.Undecided)
		}
	}},
	{"sluice_limit_decisions_waited_total", kindCounter, "Of these, decisions that waited for a message of another node.", func(s *scrape, out *samples) {
		for _, d := range s.n.api.Decisions() {
			out.add("", fmt.Sprintf("policy=%q", d.Policy), float64(d.Waited))
		}
	}},
	{"sluice_limit_wait_seconds", kindHistogram, "How long requests waited that did.", func(s *scrape, out *samples) {
		if s.limit == nil {
			return
		}
		var sum uint64
		for i, bound := range limiter.WaitBounds {
			sum += s.stats.WaitTimes[i]
			out.add("_bucket", fmt.Sprintf("le=\"%g\"", bound.Seconds()), float64(sum))
		}
		sum += s.stats.WaitTimes[len(limiter.WaitBounds)]
		out.add("_bucket", `le="+Inf"`, float64(sum))
		out.add("_sum", "", s.stats.WaitTime.Seconds())
		out.add("_count", "", float64(sum))
	}},
	{"sluice_limit_waits_skipped_total", kindCounter, "Requests decided at once instead of waiting, as the processor is too busy to wake them in time.", ofLimiter(func(s *limiter.Stats) uint64 { return s.WaitsSkipped })},
	{"sluice_limit_wait_timeouts_total", kindCounter, "Requests that waited as long as they may, in vain.", ofLimiter(func(s *limiter.Stats) uint64 { return s.WaitTimeouts })},

	{"sluice_limit_asks_sent_total", kindCounter, "Asks for shares sent to other nodes.", ofLimiter(func(s *limiter.Stats) uint64 { return s.Asks })},
	{"sluice_limit_asks_unanswered_total", kindCounter, "Of these, asks without an answer after 5 ms.", ofLimiter(func(s *limiter.Stats) uint64 { return s.AsksUnanswered })},
	{"sluice_limit_asks_answered_total", kindCounter, "Asks of other nodes that this one answered, with or without a gift.", ofLimiter(func(s *limiter.Stats) uint64 { return s.AsksAnswered })},
	{"sluice_limit_answers_received_total", kindCounter, "Answers received, late ones too.", ofLimiter(func(s *limiter.Stats) uint64 { return s.Answers })},
	{"sluice_limit_given_units_total", kindCounter, "Units given to other nodes.", ofLimiter(func(s *limiter.Stats) uint64 { return s.UnitsGiven })},
	{"sluice_limit_received_units_total", kindCounter, "Units received from other nodes.", ofLimiter(func(s *limiter.Stats) uint64 { return s.UnitsReceived })},
	{"sluice_limit_sent_packets_total", kindCounter, "Packets for other nodes: counters (news), asks and answers (transfer).", byKind(func(s *limiter.Stats) (news, transfers uint64) {
		return s.GossipPackets, s.TransferPackets
	})},
	{"sluice_limit_sent_bytes_total", kindCounter, "Bytes of these, before they are sealed.", byKind(func(s *limiter.Stats) (news, transfers uint64) {
		return s.GossipBytes, s.TransferBytes
	})},
	{"sluice_limit_received_packets_total", kindCounter, "Packets of other nodes that reached the limiter.", ofLimiter(func(s *limiter.Stats) uint64 { return s.PacketsReceived })},
	{"sluice_limit_received_bytes_total", kindCounter, "Bytes of these.", ofLimiter(func(s *limiter.Stats) uint64 { return s.BytesReceived })},
	{"sluice_limit_refused_packets_total", kindCounter, "Of these, packets of an unknown version or a form that is not allowed.", ofLimiter(func(s *limiter.Stats) uint64 { return s.PacketsRefused })},
	{"sluice_limit_foreign_packets_total", kindCounter, "Of these, packets for another node, or not of the node that they came from.", ofLimiter(func(s *limiter.Stats) uint64 { return s.PacketsForeign })},

	{"sluice_limit_buckets", kindGauge, "Live buckets in memory.", ofLimiter(func(s *limiter.Stats) int { return s.Buckets })},
	{"sluice_limit_buckets_max", kindGauge, "Room for buckets (limits.max_buckets); one policy's may fill a quarter.", one(func(s *scrape) float64 { return float64(s.n.cfg.Limits.MaxBuckets) })},
	{"sluice_limit_overflow_cells", kindGauge, "Cells that several buckets share, since there was no room for each.", ofLimiter(func(s *limiter.Stats) int { return s.OverflowCells })},
	{"sluice_limit_overflow_decisions_total", kindCounter, "Decisions made in such a cell: stricter, never more generous.", ofLimiter(func(s *limiter.Stats) uint64 { return s.OverflowDecisions })},
	{"sluice_limit_overflow_full_total", kindCounter, "Decisions that could not be made since even these were used up.", ofLimiter(func(s *limiter.Stats) uint64 { return s.OverflowFull })},
	{"sluice_limit_records_used", kindGauge, "Slots in use of the file that outlives the process.", ofLimiter(func(s *limiter.Stats) int { return s.RecordsUsed })},
	{"sluice_limit_records_max", kindGauge, "All its slots.", ofLimiter(func(s *limiter.Stats) int { return s.Records })},
	{"sluice_limit_mark_ahead_seconds", kindGauge, "How far the persisted mark is ahead of the clock; at 0 decisions stop.", func(s *scrape, out *samples) {
		if s.limit != nil {
			out.add("", "", float64(s.stats.MarkMillis-s.now.UnixMilli())/1000)
		}
	}},
	{"sluice_limit_mark_failing", kindGauge, "Whether the mark cannot be written.", ofLimiter(func(s *limiter.Stats) int { return int(flag(s.MarkFailing)) })},
	{"sluice_limit_incarnation", kindGauge, "Starts of this node's limiter so far.", ofLimiter(func(s *limiter.Stats) uint64 { return s.Incarnation })},

	{"sluice_limit_overadmitted_total", kindCounter, "Units that the auditor found spent beyond a limit. Stays 0.", ofLimiter(func(s *limiter.Stats) uint64 { return s.Audit.Overadmitted })},
	{"sluice_limit_unused_ratio", kindGauge, "Part of the limit left unused in windows in which this node refused somebody, on average over the last five to ten minutes; 0 without any.", func(s *scrape, out *samples) {
		if s.limit == nil {
			return
		}
		a := s.stats.Audit
		out.add("", "", float64(a.RecentUnused)/1e6/float64(max(a.RecentContested, 1)))
	}},
	{"sluice_limit_contested_windows_total", kindCounter, "Such windows, audited after their end.", ofLimiter(func(s *limiter.Stats) uint64 { return s.Audit.Contested })},
	{"sluice_limit_unused_windows_total", kindCounter, "Their unused parts, summed up: one window wholly unused counts 1.", func(s *scrape, out *samples) {
		if s.limit != nil {
			out.add("", "", float64(s.stats.Audit.Unused)/1e6)
		}
	}},
	{"sluice_limit_audited_windows_total", kindCounter, "Windows of buckets that the auditor summed up after their end.", ofLimiter(func(s *limiter.Stats) uint64 { return s.Audit.Windows })},
	{"sluice_limit_unaudited_windows_total", kindCounter, "Windows that it left out: a restart, a refund or a changed limit in them, or seen too late.", ofLimiter(func(s *limiter.Stats) uint64 { return s.Audit.Skipped })},
}

// ofUpstreams reads what is counted by upstream.
func ofUpstreams(read func(u *authapi.UpstreamCount, add func(labels string, value float64))) func(*scrape, *samples) {
	return func(s *scrape, out *samples) {
		upstreams := s.n.api.Upstreams()
		for i := range upstreams {
			u := &upstreams[i]
			read(u, func(labels string, value float64) {
				out.add("", fmt.Sprintf("route=%q,upstream=%q", u.Route, u.URL)+labels, value)
			})
		}
	}
}

func byKind(read func(*limiter.Stats) (news, transfers uint64)) func(*scrape, *samples) {
	return func(s *scrape, out *samples) {
		if s.limit == nil {
			return
		}
		news, transfers := read(&s.stats)
		out.add("", `kind="news"`, float64(news))
		out.add("", `kind="transfer"`, float64(transfers))
	}
}

func (s *scrape) ready() bool {
	for _, c := range s.checks {
		if c.Err != nil {
			return false
		}
	}
	return !s.n.draining.Load()
}

// roster is the newest one, the zero value for none.
func (s *scrape) roster() state.Roster {
	if n := len(s.shares.Rosters); n > 0 {
		return s.shares.Rosters[n-1]
	}
	return state.Roster{}
}

func (s *scrape) inRoster() bool {
	for _, id := range s.roster().Nodes {
		if id == s.n.data.NodeID {
			return true
		}
	}
	return false
}
