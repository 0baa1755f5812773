package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"sluice/node"
)

type clusterCommand struct {
	Status           clusterStatusCommand   `cmd:"" help:"Show the nodes, who leads, and what is wrong."`
	Add              clusterAddCommand      `cmd:"" help:"Print what a new node's configuration needs to join."`
	Remove           clusterRemoveCommand   `cmd:"" help:"Let a node leave for good, handing over what it holds; remove a dead one."`
	Promote          clusterPromoteCommand  `cmd:"" help:"Let a node vote that only listens."`
	Demote           clusterDemoteCommand   `cmd:"" help:"Take a node's vote; it goes on validating and limiting."`
	Recover          clusterRecoverCommand  `cmd:"" help:"Make a cluster of one stopped node, where the majority is lost for good."`
	TransferLeader   clusterTransferCommand `cmd:"" name:"transfer-leader" help:"Hand the leadership to another node."`
	Contents         clusterContentsCommand `cmd:"" help:"Count what the cluster holds, with a hash to compare with a backup's."`
	RotateSigningKey clusterRotateCommand   `cmd:"" help:"Make a new key, which signs tokens from a minute and a half on; those of the old one verify until they end."`
	Keyring          keyringCommand         `cmd:"" help:"Look after the keys that packets between nodes are sealed with."`
}

type clusterStatusCommand struct {
	adminFlags
}

// Run prints the status. It fails where something is wrong, so that a script need not read the text.
func (c *clusterStatusCommand) Run(ctx context.Context, env environment) error {
	client, ctx, cancel, err := c.begin(ctx, env, 10*time.Second)
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
	leader := "nobody leads"
	for _, n := range s.Nodes {
		if n.ID == s.Leader {
			leader = cmp.Or(n.Name, n.ID) + " leads"
		}
	}
	fmt.Fprintf(w, "%s; %d of %d voters answer, %d more may fail\n", leader, s.VotersAnswering, s.Voters, s.MayFail)
	table := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(table, "NODE\tNAME\tROLE\tALIVE\tLAG\tSHARES\tSETTINGS\tPEER\tVERSION")
	for _, n := range s.Nodes {
		lag, settings := "-", "-"
		if n.Lag != nil {
			lag = strconv.FormatUint(*n.Lag, 10)
		}
		if n.SettingsVersion != nil {
			settings = strconv.FormatUint(*n.SettingsVersion, 10)
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", n.ID, orDash(n.Name), n.Role, yesNo(n.Alive), lag, yesNo(n.InRoster), settings, orDash(n.PeerAddress), orDash(n.Version))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, l := range s.Leaves {
		fmt.Fprintf(w, "%s has left; %s has its share in windows that were open\n", l.Node, l.Heir)
	}
	if s.Secrets != nil {
		writeSealing(w, s.Secrets)
	}
	for _, p := range s.Problems {
		fmt.Fprintf(w, "! %s\n", p)
	}
	for _, n := range s.Nodes {
		for _, p := range n.Problems {
			fmt.Fprintf(w, "! %s (%s): %s\n", n.ID, orDash(n.Name), p)
		}
	}
	for _, a := range s.Advice {
		fmt.Fprintf(w, "> %s\n", a)
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

type clusterAddCommand struct {
	NonVoter bool `help:"One that validates and limits and has no vote."`
	adminFlags
}

// joinAdvice is what a new node's configuration needs.
type joinAdvice struct {
	Cluster string   `json:"cluster"`
	Join    []string `json:"join"`
	Voter   bool     `json:"voter"`
}

// Run prints a piece of configuration: a node joins by itself, once it is started with it.
func (c *clusterAddCommand) Run(ctx context.Context, env environment) error {
	client, ctx, cancel, err := c.begin(ctx, env, 10*time.Second)
	if err != nil {
		return err
	}
	defer cancel()
	var status node.ClusterStatus
	if err := client.get(ctx, "/v1/cluster", nil, &status); err != nil {
		return err
	}
	advice := joinAdvice{Cluster: status.Cluster, Join: []string{}, Voter: !c.NonVoter}
	for _, n := range status.Nodes {
		if n.Alive && n.PeerAddress != "" {
			advice.Join = append(advice.Join, n.PeerAddress)
		}
	}
	if len(advice.Join) == 0 {
		return errors.New("no node answers that a new one could ask")
	}
	return c.print(env, advice, func(w io.Writer) error {
		then := "It votes once it has caught up."
		if c.NonVoter {
			then = "It serves once it has caught up, without a vote."
		}
		fmt.Fprintf(w, "# In the new node's configuration, in place of initial_members, with the same two secrets as everywhere and an\n")
		fmt.Fprintf(w, "# empty data_dir; then start it. %s\n", then)
		quoted := make([]string, len(advice.Join))
		for i, address := range advice.Join {
			quoted[i] = strconv.Quote(address)
		}
		fmt.Fprintf(w, "cluster = %q\njoin = [%s]\n", advice.Cluster, strings.Join(quoted, ", "))
		if c.NonVoter {
			fmt.Fprint(w, "membership.voter = false\n")
		}
		return nil
	})
}

type clusterRemoveCommand struct {
	Node  string `arg:"" help:"Its id, or its name where no other has it."`
	Force bool   `help:"Remove it though the rest loses its majority, or though it does not hand over what it holds."`
	adminFlags
}

// Run waits until the node is gone.
func (c *clusterRemoveCommand) Run(ctx context.Context, env environment) error {
	client, ctx, cancel, err := c.begin(ctx, env, 3*time.Minute)
	if err != nil {
		return err
	}
	defer cancel()
	var removed node.RemovedNode
	if err := client.post(ctx, "/v1/cluster/remove", node.RemoveNode{Node: c.Node, Force: c.Force}, &removed); err != nil {
		return err
	}
	return c.print(env, removed, func(w io.Writer) error {
		if removed.Heir == "" {
			_, err := fmt.Fprintf(w, "%s is removed; its share comes back in windows that begin from now on\n", removed.Node)
			return err
		}
		_, err := fmt.Fprintf(w, "%s has left; %s has its share\n", removed.Node, removed.Heir)
		return err
	})
}

type clusterTransferCommand struct {
	Node string `arg:"" optional:"" help:"Who is to lead, by id or name; the most advanced of the others, unless given."`
	adminFlags
}

// Run waits until the new leader is seen.
func (c *clusterTransferCommand) Run(ctx context.Context, env environment) error {
	client, ctx, cancel, err := c.begin(ctx, env, 30*time.Second)
	if err != nil {
		return err
	}
	defer cancel()
	var moved node.TransferredLeader
	if err := client.post(ctx, "/v1/cluster/transfer-leader", node.TransferLeader{Node: c.Node}, &moved); err != nil {
		return err
	}
	return c.print(env, moved, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s leads\n", moved.Leader)
		return err
	})
}
