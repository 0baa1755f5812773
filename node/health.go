package node

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"sluice/authapi"
	"sluice/limiter"
)

const (
	// peerUnheard is how long a node that shares limits may be silent: it says something every 200 ms, in large clusters every
	// second, unless that is lost on the way.
	peerUnheard = 2 * time.Second
	// nearlyFull is from which part on, in per cent, a table is called full: it takes what comes in the next seconds.
	nearlyFull = 90
)

// Health lists the checks behind /readyz, always the same ones in the same order. A node is ready when every Err is nil.
// What is Degraded works, but not as it should.
func (n *Node) Health() []authapi.HealthCheck {
	list := []authapi.HealthCheck{
		n.checkCluster(), n.checkStorage(), n.checkLeader(), n.checkFresh(), n.checkHorizon(), n.checkRoster(), n.checkLimiter(), n.checkClock(), n.checkGossip(), n.checkSettings(),
	}
	return list
}

func (n *Node) checkCluster() authapi.HealthCheck {
	c := authapi.HealthCheck{Name: "cluster", Detail: n.clusterID()}
	if n.consensus.Load() == nil {
		c.Err = errors.New("not formed yet")
		if w := n.waiting(); w != "" {
			c.Err = fmt.Errorf("waiting for %s", w)
		}
	}
	return c
}

func (n *Node) checkLeader() authapi.HealthCheck {
	c := authapi.HealthCheck{Name: "leader", Detail: n.LeaderID()}
	if c.Detail == "" {
		c.Err = errors.New("no leader known")
	}
	return c
}

func (n *Node) checkFresh() authapi.HealthCheck {
	c := authapi.HealthCheck{Name: "fresh"}
	age, known := n.freshness.age(time.Now())
	if known {
		c.Detail = age.Round(time.Millisecond).String() + " old"
	}
	var err error
	switch {
	case !known:
		err = errors.New("state never confirmed by a leader")
	case age > n.freshness.max:
		err = fmt.Errorf("state may be older than %s", n.freshness.max)
	}
	if trouble := n.freshness.trouble(); err != nil && trouble != nil {
		err = fmt.Errorf("%w: %w", err, rootCause(trouble))
	}
	if err != nil && known && n.cfg.Auth.OnStale == "serve" {
		c.Degraded = err.Error()
	} else {
		c.Err = err
	}
	return c
}

func (n *Node) checkHorizon() authapi.HealthCheck {
	c := authapi.HealthCheck{Name: "horizon"}
	horizon, now := n.fsm.Limiter().Horizon, n.opts.clock().UnixMilli()
	switch {
	case horizon == 0:
		c.Err = errors.New("no horizon yet")
	case horizon <= now && n.strict():
		c.Err = errors.New("the horizon has passed")
	case horizon <= now:
		past := time.Duration(now-horizon) * time.Millisecond
		c.Degraded = fmt.Sprintf("passed %s ago: this node goes on with its base shares, and limits may be exceeded by them", past)
	}
	return c
}

func (n *Node) checkRoster() authapi.HealthCheck {
	c := authapi.HealthCheck{Name: "roster"}
	rosters := n.fsm.Limiter().Rosters
	switch {
	case len(rosters) == 0:
		c.Err = errors.New("no roster yet")
	case !slices.Contains(rosters[len(rosters)-1].Nodes, n.data.NodeID):
		c.Err = errors.New("this node is not in the roster")
	}
	return c
}

func (n *Node) checkLimiter() authapi.HealthCheck {
	c := authapi.HealthCheck{Name: "limiter"}
	lim := n.limits.limiter.Load()
	if lim == nil {
		c.Err = errors.New("not open yet")
		return c
	}
	stats := lim.Stats()
	if stats.MarkFailing {
		c.Err = errors.New("its mark cannot be written")
		return c
	}
	if stats.Leaving {
		c.Err = errors.New("this node leaves the cluster")
		return c
	}
	c.Degraded = limiterTrouble(&stats, n.cfg.Limits.MaxBuckets)
	return c
}

// limiterTrouble says what an operator should look at though all decisions are made.
func limiterTrouble(s *limiter.Stats, maxBuckets int) string {
	var trouble []string
	if s.Audit.Overadmitted > 0 {
		trouble = append(trouble, fmt.Sprintf("%d units were admitted beyond limits", s.Audit.Overadmitted))
	}
	if s.OverflowCells > 0 {
		trouble = append(trouble, fmt.Sprintf("no room for some buckets (%d live, limits.max_buckets is %d): they share %d cells", s.Buckets, maxBuckets, s.OverflowCells))
	}
	if s.Records > 0 && int64(s.RecordsUsed)*100 >= int64(s.Records)*nearlyFull {
		trouble = append(trouble, fmt.Sprintf("%d of %d records are in use: what finds none is lost at a restart", s.RecordsUsed, s.Records))
	}
	return strings.Join(trouble, "; ")
}

func (n *Node) checkClock() authapi.HealthCheck {
	c := authapi.HealthCheck{Name: "clock"}
	skew, peers := n.clocks.skew()
	if peers == 0 || skew.Abs() <= time.Duration(n.cfg.Limits.MaxClockSkew) {
		return c
	}
	off := fmt.Sprintf("clock is %s off the cluster's", skew.Round(time.Millisecond))
	if n.strict() {
		c.Err = errors.New(off)
	} else {
		c.Degraded = off
	}
	return c
}

// checkGossip says which nodes do not share what they know. Shares stay right without it, and move less.
func (n *Node) checkGossip() authapi.HealthCheck {
	c := authapi.HealthCheck{Name: "gossip"}
	lim := n.limits.limiter.Load()
	if lim == nil {
		return c
	}
	var silent []string
	members := n.members()
	for _, p := range lim.Peers() {
		// A node that was removed stays in rosters that govern windows still open.
		member := slices.ContainsFunc(members, func(m member) bool { return m.ID == p.Node })
		if member && p.Unheard > peerUnheard {
			silent = append(silent, fmt.Sprintf("%s for %s", p.Node, p.Unheard.Round(time.Second)))
		}
	}
	if len(silent) > 0 {
		c.Degraded = "nothing heard of " + strings.Join(silent, ", ")
	}
	return c
}
