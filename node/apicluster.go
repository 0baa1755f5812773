package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"sluice/authapi"
	"sluice/raftfsm/state"
)

// apiCluster is the node as authapi sees it.
type apiCluster Node

// Propose implements authapi.Cluster.
func (a *apiCluster) Propose(ctx context.Context, requestID [16]byte, cmd state.Command) (state.Result, error) {
	n := (*Node)(a)
	if c, ok := cmd.(state.InitCluster); ok {
		// The cluster's id follows from its first configuration, which only this package knows.
		c.Secrets.ClusterID = n.clusterID()
		cmd = c
	}
	result, err := n.proposer.propose(ctx, requestID, cmd)
	if err == nil && narrows(cmd, result) {
		n.spread(ctx, result.Index)
	}
	return result, err
}

// CatchUp implements authapi.Cluster.
func (a *apiCluster) CatchUp(ctx context.Context) error { return a.freshness.catchUp(ctx) }

// Fresh implements authapi.Cluster.
func (a *apiCluster) Fresh() bool { return a.freshness.fresh() }

// Leader implements authapi.Cluster.
func (a *apiCluster) Leader() bool {
	k := a.consensus.Load()
	return k != nil && k.leads()
}

// Health implements authapi.Cluster.
func (a *apiCluster) Health() []authapi.HealthCheck { return (*Node)(a).Health() }

// Health lists the checks behind /readyz, always in the same order. A node is ready when every Err is nil.
func (n *Node) Health() []authapi.HealthCheck {
	check := func(name string, detail string, err error) authapi.HealthCheck {
		return authapi.HealthCheck{Name: name, Detail: detail, Err: err}
	}
	k := n.consensus.Load()
	formed := k != nil
	list := make([]authapi.HealthCheck, 0, 8)

	var err error
	if !formed {
		err = errors.New("not formed yet")
		if w := n.waiting(); w != "" {
			err = fmt.Errorf("waiting for %s", w)
		}
	}
	list = append(list, check("cluster", n.clusterID(), err))

	leader := ""
	if formed {
		leader = k.leader()
	}
	err = nil
	if leader == "" {
		err = errors.New("no leader known")
	}
	list = append(list, check("leader", leader, err))

	now := n.opts.clock()
	age, known := n.freshness.age(time.Now())
	detail := ""
	if known {
		detail = age.Round(time.Millisecond).String() + " old"
	}
	err = nil
	switch {
	case !known:
		err = errors.New("state never confirmed by a leader")
	case age > n.freshness.max && n.cfg.Auth.OnStale != "serve":
		err = fmt.Errorf("state may be older than %s", n.freshness.max)
	}
	if trouble := n.freshness.trouble(); err != nil && trouble != nil {
		err = fmt.Errorf("%w: %w", err, rootCause(trouble))
	}
	list = append(list, check("fresh", detail, err))

	limiterState := n.fsm.Limiter()
	err = nil
	switch {
	case limiterState.Horizon == 0:
		err = errors.New("no horizon yet")
	case limiterState.Horizon <= now.UnixMilli() && n.strict():
		err = errors.New("the horizon has passed")
	}
	list = append(list, check("horizon", "", err))

	err = errors.New("no roster yet")
	if l := len(limiterState.Rosters); l > 0 {
		err = nil
		if !slices.Contains(limiterState.Rosters[l-1].Nodes, n.data.NodeID) {
			err = errors.New("this node is not in the roster")
		}
	}
	list = append(list, check("roster", "", err))

	err = nil
	switch {
	case n.limits.limiter.Load() == nil:
		err = errors.New("not open yet")
	case n.limits.limiter.Load().Stats().MarkFailing:
		err = errors.New("its mark cannot be written")
	}
	list = append(list, check("limiter", "", err))

	skew, peers := n.clocks.skew()
	err, detail = nil, ""
	if peers > 0 && skew.Abs() > time.Duration(n.cfg.Limits.MaxClockSkew) {
		off := fmt.Sprintf("clock is %s off the cluster's", skew.Round(time.Millisecond))
		if n.strict() {
			err = errors.New(off)
		} else {
			detail = off
		}
	}
	return append(list, check("clock", detail, err))
}

// healthError joins what keeps the node from being ready, nil if nothing does.
func (n *Node) healthError() error {
	var problems []string
	for _, c := range n.Health() {
		if c.Err != nil {
			problems = append(problems, c.Name+": "+c.Err.Error())
		}
	}
	if n.draining.Load() {
		problems = append(problems, "draining")
	}
	if len(problems) == 0 {
		return nil
	}
	return errors.New(strings.Join(problems, "; "))
}
