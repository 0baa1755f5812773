package node

import (
	"context"
	"errors"
	"strings"

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
	if _, ok := cmd.(state.ResetBucket); ok && err == nil {
		n.tellLimiter() // the next request here is the new generation's already
	}
	if _, ok := cmd.(state.InitCluster); ok && err == nil {
		n.wg.Go(n.raiseLevelAtFormation)
	}
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
