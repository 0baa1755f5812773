package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"sluice/node"
)

type secretStatusCommand struct {
	adminFlags
}

// Run prints how secrets at rest are sealed. It fails where something is wrong.
func (c *secretStatusCommand) Run(ctx context.Context, env environment) error {
	client, ctx, cancel, err := c.begin(ctx, env, 10*time.Second)
	if err != nil {
		return err
	}
	defer cancel()
	var status node.SecretsStatus
	if err := client.get(ctx, "/v1/secrets", nil, &status); err != nil {
		return err
	}
	if err := c.print(env, status, func(w io.Writer) error { return writeSecretsStatus(w, status) }); err != nil {
		return err
	}
	if wrong := len(status.Problems); wrong > 0 {
		return fmt.Errorf("%d things are wrong", wrong)
	}
	return nil
}

func writeSecretsStatus(w io.Writer, s node.SecretsStatus) error {
	fmt.Fprintf(w, "secrets are sealed under key %s\n", s.Key)
	table := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(table, "NODE\tNAME\tALIVE\tKEYS")
	for _, n := range s.Nodes {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", n.ID, orDash(n.Name), yesNo(n.Alive), orDash(strings.Join(n.Keys, " ")))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	switch p := s.Progress; {
	case p == nil:
		fmt.Fprintln(w, "no leader tells how far it is with sealing under it")
	case p.Done:
		fmt.Fprintf(w, "all %d records are sealed under it\n", p.Records)
	default:
		fmt.Fprintf(w, "%s\n", sealingText(p))
	}
	if len(s.Unused) > 0 {
		fmt.Fprintf(w, "not needed any more, and to be taken out of secrets.previous_key_file: %s\n", strings.Join(s.Unused, " "))
	}
	if s.Configured != s.Key {
		fmt.Fprintf(w, "`sluice secret rotate` would seal under %s\n", s.Configured)
	}
	for _, p := range s.Problems {
		fmt.Fprintf(w, "! %s\n", p)
	}
	return nil
}

func sealingText(p *node.SecretsProgress) string {
	return fmt.Sprintf("sealing under %s: looked at %d of %d records, %d sealed anew; the keys before it are still needed", p.Key, p.Checked, p.Records, p.Resealed)
}

// writeSealing is what cluster status tells of it: nothing where there is one key and all is under it.
func writeSealing(w io.Writer, s *node.SecretsStatus) {
	several := slices.ContainsFunc(s.Nodes, func(n node.SecretsNode) bool { return len(n.Keys) > 1 })
	if p := s.Progress; several && p != nil && !p.Done {
		fmt.Fprintln(w, sealingText(p))
	}
}

type secretRotateCommand struct {
	Force bool `help:"Go on though nodes do not answer; without the key they cannot start again."`
	adminFlags
}

// Run makes the key of the node that is asked the one in use.
func (c *secretRotateCommand) Run(ctx context.Context, env environment) error {
	client, ctx, cancel, err := c.begin(ctx, env, 30*time.Second)
	if err != nil {
		return err
	}
	defer cancel()
	var done node.RotatedSecrets
	if err := client.post(ctx, "/v1/secrets/rotate", node.RotateSecrets{Force: c.Force}, &done); err != nil {
		return err
	}
	return c.print(env, done, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "secrets are sealed under %s from now on; %s is needed until `sluice secret status` says that it is not\n", done.Key, done.Previous)
		return err
	})
}
