package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"
	"time"

	"sluice/node"
)

type clusterCommand struct {
	Status           clusterStatusCommand `cmd:"" help:"Show the nodes, who leads, and what is wrong."`
	RotateSigningKey clusterRotateCommand `cmd:"" help:"Make a new key, which signs tokens from a minute and a half on; those of the old one verify until they end."`
}

type clusterStatusCommand struct {
	adminFlags
}

// Run prints the status. It fails where something is wrong, so that a script need not read the text.
func (c *clusterStatusCommand) Run(ctx context.Context, env environment) error {
	client, err := c.client(env)
	if err != nil {
		return err
	}
	ctx, cancel, err := c.context(ctx, 10*time.Second)
	if err != nil {
		return err
	}
	defer cancel()
	var status node.ClusterStatus
	if err := client.get(ctx, "/v1/cluster", nil, &status); err != nil {
		return err
	}
	if err := c.print(env, status, func(w io.Writer) error { return writeClusterStatus(w, status) }); err != nil {
		return err
	}
	wrong := len(status.Problems)
	for _, n := range status.Nodes {
		wrong += len(n.Problems)
	}
	if wrong > 0 {
		return fmt.Errorf("%d things are wrong", wrong)
	}
	return nil
}

func writeClusterStatus(w io.Writer, s node.ClusterStatus) error {
	fmt.Fprintf(w, "cluster %s (%s), term %d, committed up to %d, as seen by %s\n", s.Cluster, orDash(s.ClusterID), s.Term, s.CommitIndex, s.AnsweredBy)
	table := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(table, "NODE\tNAME\tROLE\tALIVE\tLAG\tSHARES\tPEER\tVERSION")
	for _, n := range s.Nodes {
		lag := "-"
		if n.Lag != nil {
			lag = strconv.FormatUint(*n.Lag, 10)
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", n.ID, orDash(n.Name), n.Role, yesNo(n.Alive), lag, yesNo(n.InRoster), orDash(n.PeerAddress), orDash(n.Version))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, p := range s.Problems {
		fmt.Fprintf(w, "! %s\n", p)
	}
	for _, n := range s.Nodes {
		for _, p := range n.Problems {
			fmt.Fprintf(w, "! %s (%s): %s\n", n.ID, orDash(n.Name), p)
		}
	}
	return nil
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
