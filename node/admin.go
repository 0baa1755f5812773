package node

import (
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/hashicorp/raft"

	"sluice/limiter"
)

// adminServer is the operators' listener: liveness, readiness with every check, metrics, and the admin API under /v1/.
// The former have no authentication and tell no secret; the API is for this machine, or for who holds the token. It
// listens on loopback unless configured otherwise.
type adminServer struct {
	node  *Node
	set   *metrics.Set
	http  *http.Server
	token adminToken
}

func newAdminServer(n *Node, token adminToken) *adminServer {
	a := &adminServer{node: n, set: metrics.NewSet(), token: token}
	a.register()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", a.readyz)
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		a.set.WritePrometheus(w)
		metrics.WriteProcessMetrics(w)
	})
	a.api(mux)
	a.http = &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       5 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    8 << 10,
		ErrorLog:          newLineLogger(n.log.With("component", "admin")),
	}
	return a
}

// readyz lists every check, always: an operator asked.
func (a *adminServer) readyz(w http.ResponseWriter, _ *http.Request) {
	checks := a.node.Health()
	ready := !a.node.draining.Load()
	text := ""
	for _, c := range checks {
		mark, rest := "+", "ok"
		if c.Err != nil {
			ready, mark, rest = false, "-", c.Err.Error()
		}
		text += fmt.Sprintf("[%s] %s: %s", mark, c.Name, rest)
		if c.Detail != "" {
			text += " (" + c.Detail + ")"
		}
		text += "\n"
	}
	if a.node.draining.Load() {
		text += "[-] draining: going down\n"
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	if ready {
		io.WriteString(w, text+"ready\n")
		return
	}
	w.WriteHeader(http.StatusServiceUnavailable)
	io.WriteString(w, text+"not ready\n")
}

// register names the metrics. All are read when asked for: nothing is counted twice.
func (a *adminServer) register() {
	n := a.node
	gauge := func(name string, read func() float64) { a.set.NewGauge(name, read) }
	withRaft := func(read func(*consensus) float64) func() float64 {
		return func() float64 {
			if k := n.consensus.Load(); k != nil {
				return read(k)
			}
			return 0
		}
	}
	flag := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	gauge(fmt.Sprintf(`sluice_build_info{version=%q,node=%q}`, n.opts.version, n.data.NodeID), func() float64 { return 1 })
	gauge("sluice_ready", func() float64 { return flag(n.healthError() == nil) })
	gauge("sluice_raft_is_leader", withRaft(func(k *consensus) float64 { return flag(k.leads()) }))
	gauge("sluice_raft_has_leader", withRaft(func(k *consensus) float64 { return flag(k.leader() != "") }))
	gauge("sluice_raft_term", withRaft(func(k *consensus) float64 { return float64(k.raft.CurrentTerm()) }))
	gauge("sluice_raft_commit_index", withRaft(func(k *consensus) float64 { return float64(k.raft.CommitIndex()) }))
	gauge("sluice_raft_last_index", withRaft(func(k *consensus) float64 { return float64(k.raft.LastIndex()) }))
	gauge("sluice_raft_leader_changes_total", withRaft(func(k *consensus) float64 { return float64(k.leaderMoves.Load()) }))
	gauge("sluice_raft_last_contact_seconds", withRaft(func(k *consensus) float64 {
		if k.raft.State() == raft.Leader || k.raft.LastContact().IsZero() {
			return 0
		}
		return time.Since(k.raft.LastContact()).Seconds()
	}))
	gauge("sluice_raft_servers", withRaft(func(k *consensus) float64 {
		servers, err := k.servers()
		if err != nil {
			return 0
		}
		return float64(len(servers))
	}))
	gauge("sluice_raft_applied_index", func() float64 { return float64(n.fsm.AppliedIndex()) })
	gauge("sluice_state_age_seconds", func() float64 {
		age, ok := n.freshness.age(time.Now())
		if !ok {
			return -1
		}
		return age.Seconds()
	})
	gauge("sluice_horizon_timestamp_seconds", func() float64 { return float64(n.fsm.Limiter().Horizon) / 1000 })
	gauge("sluice_roster_nodes", func() float64 {
		rosters := n.fsm.Limiter().Rosters
		if len(rosters) == 0 {
			return 0
		}
		return float64(len(rosters[len(rosters)-1].Nodes))
	})
	gauge("sluice_clock_skew_seconds", func() float64 {
		skew, _ := n.clocks.skew()
		return skew.Seconds()
	})
	gauge("sluice_gossip_members", func() float64 { return float64(n.gossip.seen()) })
	gauge("sluice_gossip_packets_sent_total", func() float64 { return float64(n.gossip.sent.Load()) })
	gauge("sluice_gossip_packets_received_total", func() float64 { return float64(n.gossip.received.Load()) })
	gauge("sluice_gossip_packets_dropped_total", func() float64 { return float64(n.gossip.dropped.Load()) })
	gauge("sluice_gossip_packets_malformed_total", func() float64 { return float64(n.gossip.badPackets.Load()) })
	a.registerLimiter()
}

func (a *adminServer) registerLimiter() {
	n := a.node
	for name, read := range map[string]func() float64{
		`sluice_ratelimit_charges_total{outcome="admitted"}`:  func() float64 { return float64(a.stats().Admitted) },
		`sluice_ratelimit_charges_total{outcome="refused"}`:   func() float64 { return float64(a.stats().Refused) },
		`sluice_ratelimit_charges_total{outcome="undecided"}`: func() float64 { return float64(a.stats().Undecided) },
		"sluice_ratelimit_waits_total":                        func() float64 { return float64(a.stats().Waits) },
		"sluice_ratelimit_wait_timeouts_total":                func() float64 { return float64(a.stats().WaitTimeouts) },
		"sluice_ratelimit_asks_total":                         func() float64 { return float64(a.stats().Asks) },
		"sluice_ratelimit_units_given_total":                  func() float64 { return float64(a.stats().UnitsGiven) },
		"sluice_ratelimit_units_received_total":               func() float64 { return float64(a.stats().UnitsReceived) },
		"sluice_ratelimit_packets_refused_total":              func() float64 { return float64(a.stats().PacketsRefused) },
		"sluice_ratelimit_buckets":                            func() float64 { return float64(a.stats().Buckets) },
		"sluice_ratelimit_records_used":                       func() float64 { return float64(a.stats().RecordsUsed) },
		"sluice_ratelimit_mark_timestamp_seconds":             func() float64 { return float64(a.stats().MarkMillis) / 1000 },
	} {
		a.set.NewGauge(name, func() float64 {
			if n.limits.limiter.Load() == nil {
				return 0
			}
			return read()
		})
	}
}

// stats are the limiter's, which is open.
func (a *adminServer) stats() limiter.Stats { return a.node.limits.limiter.Load().Stats() }
