package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"sluice/node"
)

type policyCommand struct {
	Show     policyShowCommand     `cmd:"" help:"Print the settings that were applied to the running cluster."`
	Diff     policyDiffCommand     `cmd:"" help:"Check a file and say what applying it would change."`
	Apply    policyApplyCommand    `cmd:"" help:"Make a file the settings of the running cluster: limits, plans, policies, routes, scopes, redirect targets."`
	History  policyHistoryCommand  `cmd:"" help:"List the versions that are kept."`
	Rollback policyRollbackCommand `cmd:"" help:"Bring the settings of an earlier version back, as a new version."`
}

type policyShowCommand struct {
	Version *uint64 `placeholder:"NUMBER" help:"This version in place of the newest."`
	adminFlags
}

// Run prints the document alone to standard output, so that it can be changed and applied; what is to be said of it goes beside.
func (c *policyShowCommand) Run(ctx context.Context, env environment) error {
	client, ctx, cancel, err := c.begin(ctx, env, operatorPatience)
	if err != nil {
		return err
	}
	defer cancel()
	path := "/v1/settings"
	if c.Version != nil {
		path = "/v1/settings/versions/" + strconv.FormatUint(*c.Version, 10)
	}
	var s node.Settings
	if err := client.get(ctx, path, nil, &s); err != nil {
		return err
	}
	return c.print(env, s, func(w io.Writer) error {
		fmt.Fprintln(env.stderr, versionText(s.SettingsVersion))
		if s.Problem != "" {
			fmt.Fprintf(env.stderr, "! the node goes by version %d: %s\n", s.Running, s.Problem)
		}
		_, err := io.WriteString(w, s.Text)
		return err
	})
}

// versionText is a version in a line.
func versionText(v node.SettingsVersion) string {
	if v.AppliedAt == nil {
		return "version 0: nothing was applied, and each node goes by its own configuration"
	}
	text := fmt.Sprintf("version %d, applied %s", v.Version, v.AppliedAt.Format(time.RFC3339))
	if v.Address != "" {
		text += " from " + v.Address
	}
	if v.Restores != nil {
		text += fmt.Sprintf(", brought version %d back", *v.Restores)
	}
	return text
}

// policyFile is a document of settings.
type policyFile struct {
	File string `arg:"" help:"TOML with the sections that are to be set, as in a node's configuration; '-' is standard input."`
}

// read gives the text and what to call it. What is longer than any settings is left to the node to refuse.
func (f *policyFile) read(env environment) (text, source string, err error) {
	const most = 64 << 10
	in, source := env.stdin, "standard input"
	if f.File != "-" {
		file, err := os.Open(f.File)
		if err != nil {
			return "", "", usagef("%v", err)
		}
		defer file.Close()
		in, source = file, f.File
	} else if in == nil {
		return "", "", usagef("there is no standard input to read the settings from")
	}
	data, err := io.ReadAll(io.LimitReader(in, most))
	if err != nil {
		return "", "", fmt.Errorf("read %s: %w", source, err)
	}
	if len(source) > 200 {
		source = "…" + strings.ToValidUTF8(source[len(source)-197:], "")
	}
	return string(data), source, nil
}

type policyDiffCommand struct {
	policyFile
	adminFlags
}

// Run says what would change.
func (c *policyDiffCommand) Run(ctx context.Context, env environment) error {
	text, source, err := c.read(env)
	if err != nil {
		return err
	}
	client, ctx, cancel, err := c.begin(ctx, env, operatorPatience)
	if err != nil {
		return err
	}
	defer cancel()
	var plan node.SettingsPlan
	if err := client.post(ctx, "/v1/settings/check", node.SettingsCheck{Text: &text, Source: source}, &plan); err != nil {
		return err
	}
	return c.print(env, plan, func(w io.Writer) error {
		writePlan(w, &plan)
		return nil
	})
}

// writePlan shows a plan, but for what is the same.
func writePlan(w io.Writer, p *node.SettingsPlan) {
	switch {
	case p.Same:
		fmt.Fprintf(w, "version %d is the same\n", p.Version)
	case len(p.Changes) == 0:
		fmt.Fprintf(w, "nothing changes in effect against version %d\n", p.Version)
	default:
		fmt.Fprintf(w, "against version %d:\n", p.Version)
	}
	for _, change := range p.Changes {
		fmt.Fprintln(w, change.Text())
	}
	for _, note := range p.Notes {
		fmt.Fprintf(w, "! %s\n", note)
	}
}

// confirmation is how a command that changes something finds out whether it may.
type confirmation struct {
	Yes bool `short:"y" help:"Do not ask."`
}

// errNotConfirmed: the operator said no.
var errNotConfirmed = errors.New("nothing was changed")

// check refuses early where nobody could be asked.
func (c *confirmation) check(env environment, stdinTaken bool) error {
	if !c.Yes && (!env.terminal || stdinTaken) {
		return usagef("--yes is needed where nobody can be asked: standard input is no terminal")
	}
	return nil
}

// ask asks on standard error, so that standard output has the result alone.
func (c *confirmation) ask(env environment, question string) error {
	if c.Yes {
		return nil
	}
	fmt.Fprintf(env.stderr, "%s [y/N] ", question)
	line, err := bufio.NewReader(io.LimitReader(env.stdin, 4<<10)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the answer: %w", err)
	}
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return nil
	}
	return errNotConfirmed
}

type policyApplyCommand struct {
	policyFile
	confirmation
	adminFlags
}

// Run shows what will change, asks, and applies what was shown: if somebody else was first meanwhile, nothing happens.
func (c *policyApplyCommand) Run(ctx context.Context, env environment) error {
	if err := c.check(env, c.File == "-"); err != nil {
		return err
	}
	text, source, err := c.read(env)
	if err != nil {
		return err
	}
	return c.change(ctx, env, &c.adminFlags, node.SettingsCheck{Text: &text, Source: source}, "Apply this", func(ctx context.Context, client *adminClient, plan *node.SettingsPlan, out *node.SettingsApplied) error {
		return client.put(ctx, "/v1/settings", node.SettingsPut{Text: &text, Source: source, ExpectedVersion: &plan.Version}, out)
	})
}

type policyRollbackCommand struct {
	Version uint64 `arg:"" help:"Whose settings come back; 0: none, each node goes by its own configuration."`
	confirmation
	adminFlags
}

// Run is that of apply, with the text of a version.
func (c *policyRollbackCommand) Run(ctx context.Context, env environment) error {
	if err := c.check(env, false); err != nil {
		return err
	}
	question := fmt.Sprintf("Bring version %d back", c.Version)
	return c.change(ctx, env, &c.adminFlags, node.SettingsCheck{Version: &c.Version}, question, func(ctx context.Context, client *adminClient, plan *node.SettingsPlan, out *node.SettingsApplied) error {
		return client.post(ctx, "/v1/settings/rollback", node.SettingsRollback{Version: &c.Version, ExpectedVersion: &plan.Version}, out)
	})
}

// change checks, shows, asks and does. The time that the operator takes for the answer does not count.
func (c *confirmation) change(ctx context.Context, env environment, flags *adminFlags, check node.SettingsCheck, question string, do func(context.Context, *adminClient, *node.SettingsPlan, *node.SettingsApplied) error) error {
	client, looking, cancel, err := flags.begin(ctx, env, operatorPatience)
	if err != nil {
		return err
	}
	defer cancel()
	var plan node.SettingsPlan
	if err := client.post(looking, "/v1/settings/check", check, &plan); err != nil {
		return err
	}
	shown := env.stdout
	if flags.Output == "json" {
		shown = env.stderr
	}
	writePlan(shown, &plan)
	out := node.SettingsApplied{SettingsPlan: plan}
	if !plan.Same {
		if err := c.ask(env, fmt.Sprintf("%s as version %d?", question, plan.Version+1)); err != nil {
			return err
		}
		doing, cancel, err := flags.context(ctx, operatorPatience)
		if err != nil {
			return err
		}
		defer cancel()
		if err := do(doing, client, &plan, &out); err != nil {
			return err
		}
	}
	return flags.print(env, out, func(w io.Writer) error {
		for _, note := range out.Notes[min(len(plan.Notes), len(out.Notes)):] { // the others were shown
			fmt.Fprintf(w, "! %s\n", note)
		}
		if out.Applied {
			fmt.Fprintf(w, "version %d is in force\n", out.Version)
		}
		return nil
	})
}

type policyHistoryCommand struct {
	adminFlags
}

// Run lists the versions, the newest first.
func (c *policyHistoryCommand) Run(ctx context.Context, env environment) error {
	client, ctx, cancel, err := c.begin(ctx, env, operatorPatience)
	if err != nil {
		return err
	}
	defer cancel()
	var list node.SettingsVersions
	if err := client.get(ctx, "/v1/settings/versions", nil, &list); err != nil {
		return err
	}
	return c.print(env, list, func(w io.Writer) error {
		table := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		fmt.Fprintln(table, "VERSION\tAPPLIED\tFROM\tBYTES\tRESTORES\tSHA256")
		for _, v := range list.Data {
			applied, restores := "-", "-"
			if v.AppliedAt != nil {
				applied = v.AppliedAt.Format(time.RFC3339)
			}
			if v.Restores != nil {
				restores = strconv.FormatUint(*v.Restores, 10)
			}
			fmt.Fprintf(table, "%d\t%s\t%s\t%d\t%s\t%.12s\n", v.Version, applied, orDash(v.Address), v.Bytes, restores, v.SHA256)
		}
		return table.Flush()
	})
}
