package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"sluice/node"
)

type clusterRecoverCommand struct {
	Config    string `required:"" placeholder:"FILE" help:"The configuration of the one node that goes on, which is stopped."`
	Yes       bool   `help:"Do it. Without it, it is only shown what would be done."`
	DeadSince string `placeholder:"TIME" help:"Since when no other node has run (RFC 3339); until just now, unless given."`
	Output    string `enum:"text,json" default:"text" help:"text or json."`
}

// Run works on the node's directory, not by way of a running node: there is no majority that could decide anything.
func (c *clusterRecoverCommand) Run(env environment) error {
	cfg, err := loadConfig(c.Config, env)
	if err != nil {
		return err
	}
	o := node.RecoverOptions{Apply: c.Yes, Logger: newLogger(cfg.Log, new(slog.LevelVar), env)}
	if c.DeadSince != "" {
		if o.DeadSince, err = time.Parse(time.RFC3339, c.DeadSince); err != nil {
			return usagef("--dead-since: want a time as in 2026-01-31T12:00:00Z, not %q", c.DeadSince)
		}
	}
	recovery, err := node.Recover(cfg, o)
	if err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	if c.Output == "json" {
		encoder := json.NewEncoder(env.stdout)
		encoder.SetIndent("", "  ")
		return encoder.Encode(recovery)
	}
	return writeRecovery(env.stdout, recovery)
}

func writeRecovery(w io.Writer, r node.Recovery) error {
	fmt.Fprintf(w, "node %s of the cluster %s\n", r.Node, r.Cluster)
	fmt.Fprintf(w, "its log ends with entry %d of term %d; of several nodes that are left, recover the one with the highest term, and of those the one with the last entry\n", r.LastIndex, r.LastTerm)
	fmt.Fprintf(w, "the cluster had %d members:\n", len(r.Members))
	for _, m := range r.Members {
		fate := "lost: it can never come back in, and its directory has to be emptied"
		if m.ID == r.Node {
			fate = "goes on, alone at first"
		}
		role := "voter"
		if !m.Voter {
			role = "nonvoter"
		}
		fmt.Fprintf(w, "  %s  %s  %s  %s\n", m.ID, role, m.Address, fate)
	}
	fmt.Fprintf(w, "windows that began before %s may have been spent in by the lost nodes: their shares stand idle until those end\n", r.SharesFrom.Format(time.RFC3339))
	lines := []string{
		"What the others acknowledged and this node never got is gone, revocations among it. Nothing was changed.",
		"Make sure that no other node of this cluster runs or will be started with its data, then repeat the command with --yes.",
	}
	if r.Done {
		lines = []string{
			fmt.Sprintf("It is the cluster %s now. What was there before is in %s.", r.Becomes, r.Backup),
			"Start the node, then let new nodes join it, with empty data directories: sluice cluster add.",
		}
	}
	_, err := fmt.Fprintln(w, strings.Join(lines, "\n"))
	return err
}
