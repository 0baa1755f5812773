package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"sluice/node"
)

type keyringCommand struct {
	List    keyringListCommand    `cmd:"" help:"Show the keys by their fingerprints, and how many nodes have each."`
	Install keyringInstallCommand `cmd:"" help:"Add a key, made by the node unless one is given, that packets are opened with from then on."`
	Use     keyringUseCommand     `cmd:"" help:"Seal packets with a key that every node has."`
	Remove  keyringRemoveCommand  `cmd:"" help:"Take a key away that no node seals with any more."`
}

// keyringPatience is for a change, which waits for all nodes.
const keyringPatience = 30 * time.Second

type keyringListCommand struct {
	adminFlags
}

// Run shows the keyring. It fails where a node does not go by it, so that a script need not read the text.
func (c *keyringListCommand) Run(ctx context.Context, env environment) error {
	client, ctx, cancel, err := c.begin(ctx, env, operatorPatience)
	if err != nil {
		return err
	}
	defer cancel()
	var s node.KeyringStatus
	if err := client.get(ctx, "/v1/cluster/keyring", nil, &s); err != nil {
		return err
	}
	if err := c.print(env, s, func(w io.Writer) error { return writeKeyring(w, &s) }); err != nil {
		return err
	}
	return keyringNotes(&s)
}

// keyringNotes is an error where something is to be said of the nodes; it is printed already.
func keyringNotes(s *node.KeyringStatus) error {
	if n := len(s.Notes); n > 0 {
		return fmt.Errorf("%d of %d nodes do not go by this keyring, or do not answer", n, len(s.Nodes))
	}
	return nil
}

func writeKeyring(w io.Writer, s *node.KeyringStatus) error {
	fmt.Fprintf(w, "version %d\n", s.Version)
	table := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(table, "KEY\tIN USE\tINSTALLED\tON NODES\tUSED BY")
	for _, k := range s.Keys {
		installed := "with the cluster"
		if k.InstalledAt != nil {
			installed = k.InstalledAt.Format(time.RFC3339)
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%d of %d\t%d of %d\n", k.ID, yesNo(k.Primary), installed, k.InstalledOn, len(s.Nodes), k.UsedBy, len(s.Nodes))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, note := range s.Notes {
		fmt.Fprintf(w, "! %s\n", note)
	}
	return nil
}

// changeKeyring makes one call and shows what came of it. A node that is down is told of and no failure: it gets the keys from the log.
func (f *adminFlags) changeKeyring(ctx context.Context, env environment, step string, in any, did, was string) error {
	client, ctx, cancel, err := f.begin(ctx, env, keyringPatience)
	if err != nil {
		return err
	}
	defer cancel()
	var out node.KeyringChanged
	if err := client.post(ctx, "/v1/cluster/keyring/"+step, in, &out); err != nil {
		return err
	}
	return f.print(env, out, func(w io.Writer) error {
		text := did
		if !out.Changed {
			text = was
		}
		fmt.Fprintf(w, "%s %s\n", out.Key, text)
		return writeKeyring(w, &out.KeyringStatus)
	})
}

type keyringInstallCommand struct {
	KeyFile string `placeholder:"FILE" help:"A key of your own, as 'sluice secret new' prints it; '-' is standard input."`
	adminFlags
}

// maxKeyFile bounds a file with one key.
const maxKeyFile = 4 << 10

// Run installs a key. One of the operator's own comes from a file: arguments are for all users of the machine to see.
func (c *keyringInstallCommand) Run(ctx context.Context, env environment) error {
	var in node.KeyringInstall
	if c.KeyFile != "" {
		var err error
		if in.Key, err = readKeyFile(c.KeyFile, env); err != nil {
			return err
		}
	}
	return c.changeKeyring(ctx, env, "install", in, "is installed: 'sluice cluster keyring use' it next", "was installed before")
}

// readKeyFile reads one secret.
func readKeyFile(path string, env environment) (string, error) {
	in := env.stdin
	if path != "-" {
		file, err := os.Open(path)
		if err != nil {
			return "", usagef("--key-file: %v", err)
		}
		defer file.Close()
		in = file
	} else if in == nil {
		return "", usagef("--key-file: there is no standard input to read the key from")
	}
	text, err := io.ReadAll(io.LimitReader(in, maxKeyFile+1))
	if err != nil {
		return "", fmt.Errorf("read the key: %w", err)
	}
	key := strings.TrimSpace(string(text))
	if len(text) > maxKeyFile || key == "" {
		return "", usagef("--key-file: want one key, as 'sluice secret new' prints it")
	}
	return key, nil
}

// keyArgument is a key's fingerprint.
type keyArgument struct {
	Key string `arg:"" help:"Its fingerprint, as 'list' shows it."`
}

func (k *keyArgument) check() error {
	if strings.HasPrefix(k.Key, "slsec_") {
		return usagef("this looks like a key itself, which everybody on the machine can read here: name it by its fingerprint, and use another key")
	}
	return nil
}

type keyringUseCommand struct {
	keyArgument
	adminFlags
}

// Run makes a key the one that seals.
func (c *keyringUseCommand) Run(ctx context.Context, env environment) error {
	if err := c.check(); err != nil {
		return err
	}
	return c.changeKeyring(ctx, env, "use", node.KeyringChange{Key: c.Key}, "is in use: 'sluice cluster keyring remove' the one before", "was in use before")
}

type keyringRemoveCommand struct {
	keyArgument
	adminFlags
}

// Run takes a key away.
func (c *keyringRemoveCommand) Run(ctx context.Context, env environment) error {
	if err := c.check(); err != nil {
		return err
	}
	return c.changeKeyring(ctx, env, "remove", node.KeyringChange{Key: c.Key}, "is removed", "is not there")
}
