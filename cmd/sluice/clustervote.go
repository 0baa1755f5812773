package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"sluice/node"
)

type clusterPromoteCommand struct {
	Node  string `arg:"" help:"Its id, or its name where no other has it."`
	Force bool   `help:"Let it vote before it has answered for membership.stabilization_time."`
	adminFlags
}

// Run waits until the change is committed.
func (c *clusterPromoteCommand) Run(ctx context.Context, env environment) error {
	return changeVote(ctx, env, &c.adminFlags, "/v1/cluster/promote", node.ChangeVote{Node: c.Node, Force: c.Force})
}

type clusterDemoteCommand struct {
	Node  string `arg:"" help:"Its id, or its name where no other has it."`
	Force bool   `help:"Though fewer than membership.min_voters are left, or the rest has no majority that answers."`
	adminFlags
}

// Run waits until the change is committed.
func (c *clusterDemoteCommand) Run(ctx context.Context, env environment) error {
	return changeVote(ctx, env, &c.adminFlags, "/v1/cluster/demote", node.ChangeVote{Node: c.Node, Force: c.Force})
}

func changeVote(ctx context.Context, env environment, flags *adminFlags, path string, in node.ChangeVote) error {
	client, ctx, cancel, err := flags.begin(ctx, env, 30*time.Second)
	if err != nil {
		return err
	}
	defer cancel()
	var changed node.ChangedVote
	if err := client.post(ctx, path, in, &changed); err != nil {
		return err
	}
	return flags.print(env, changed, func(w io.Writer) error {
		text := "%s votes\n"
		if !changed.Voter {
			text = "%s listens, validates and limits, and does not vote\n"
		}
		_, err := fmt.Fprintf(w, text, changed.Node)
		return err
	})
}
