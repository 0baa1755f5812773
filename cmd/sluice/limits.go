package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"sluice/node"
)

type limitsCommand struct {
	Explain limitsExplainCommand `cmd:"" help:"Show who holds which share of a limit, what each node spent, why the last request was refused, and when the next one passes."`
	Reset   limitsResetCommand   `cmd:"" help:"Let a limit count from nothing, on every node."`
}

// limitsTarget is whom a command is about.
type limitsTarget struct {
	Subject string `arg:"" help:"Id of a key, user or organization (key_…, usr_…, org_…), an address, or a bucket's name. An API key itself is hashed here and never sent; '-' reads the subject from standard input."`
	Policy  string `placeholder:"NAME" help:"This policy alone."`
	Route   string `placeholder:"NAME" help:"Of policies that count by route, this route's part alone."`
}

// query says it to a node. A key's secret stays here.
func (t *limitsTarget) query(env environment) (node.LimitsQuery, error) {
	subject := t.Subject
	if subject == "-" {
		if env.stdin == nil {
			return node.LimitsQuery{}, usagef("there is no standard input to read the subject from")
		}
		line, err := bufio.NewReader(io.LimitReader(env.stdin, 4<<10)).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return node.LimitsQuery{}, fmt.Errorf("read the subject: %w", err)
		}
		subject = strings.TrimSpace(line)
	}
	if subject == "" {
		return node.LimitsQuery{}, usagef("the subject is empty")
	}
	if strings.HasPrefix(subject, "sk_") {
		hash := sha256.Sum256([]byte(subject))
		return node.LimitsQuery{KeySHA256: hex.EncodeToString(hash[:]), Policy: t.Policy, Route: t.Route}, nil
	}
	return node.LimitsQuery{Subject: subject, Policy: t.Policy, Route: t.Route}, nil
}

// ask sends the query to path.
func (t *limitsTarget) ask(ctx context.Context, f *adminFlags, env environment, path string, out any) error {
	query, err := t.query(env)
	if err != nil {
		return err
	}
	client, ctx, cancel, err := f.begin(ctx, env, operatorPatience)
	if err != nil {
		return err
	}
	defer cancel()
	return client.post(ctx, path, query, out)
}

type limitsExplainCommand struct {
	limitsTarget
	adminFlags
}

// Run prints the explanation.
func (c *limitsExplainCommand) Run(ctx context.Context, env environment) error {
	var out node.LimitsExplained
	if err := c.ask(ctx, &c.adminFlags, env, "/v1/limits/explain", &out); err != nil {
		return err
	}
	return c.print(env, out, func(w io.Writer) error { return writeExplained(w, &out) })
}

type limitsResetCommand struct {
	limitsTarget
	adminFlags
}

// Run resets and says what.
func (c *limitsResetCommand) Run(ctx context.Context, env environment) error {
	var out node.LimitsReset
	if err := c.ask(ctx, &c.adminFlags, env, "/v1/limits/reset", &out); err != nil {
		return err
	}
	return c.print(env, out, func(w io.Writer) error {
		writeSubject(w, out.Subject)
		for _, b := range out.Reset {
			fmt.Fprintf(w, "reset: %s, %s; bucket %s\n", policyName(b.Policy, b.Route), ruleText(b.Limit, b.WindowSeconds, b.Algorithm, b.Burst), b.Bucket)
		}
		return nil
	})
}

func writeSubject(w io.Writer, s node.LimitsSubject) {
	fmt.Fprintf(w, "%s %s", s.Kind, s.ID)
	if s.OrganizationID != "" && s.OrganizationID != s.ID {
		fmt.Fprintf(w, " of %s", s.OrganizationID)
	}
	fmt.Fprintln(w)
	if s.Note != "" {
		fmt.Fprintf(w, "! %s\n", s.Note)
	}
}

func policyName(policy, route string) string {
	if policy == "" {
		policy = "(unknown policy)"
	}
	if route != "" {
		return policy + " on route " + route
	}
	return policy
}

func ruleText(limit, seconds int64, algorithm string, burst int64) string {
	text := fmt.Sprintf("%d in %v, %s", limit, time.Duration(seconds)*time.Second, algorithm)
	if burst > 0 {
		text += fmt.Sprintf(" of %d", burst)
	}
	return text
}

func writeExplained(w io.Writer, e *node.LimitsExplained) error {
	writeSubject(w, e.Subject)
	if len(e.Policies) == 0 {
		fmt.Fprintln(w, "no policy counts it")
	}
	for i := range e.Policies {
		fmt.Fprintln(w)
		if err := writePolicy(w, &e.Policies[i], e.At); err != nil {
			return err
		}
	}
	if len(e.Subject.Others) > 0 {
		fmt.Fprintf(w, "\nalso counted together with something else: %s\n", strings.Join(e.Subject.Others, ", "))
	}
	return nil
}

func writePolicy(w io.Writer, p *node.PolicyExplained, now time.Time) error {
	fmt.Fprintf(w, "policy %s: %s", policyName(p.Policy, p.Route), ruleText(p.Limit, p.WindowSeconds, p.Algorithm, p.Burst))
	if p.Source != "" {
		fmt.Fprintf(w, " (%s)", p.Source)
	}
	if p.Shadow {
		fmt.Fprint(w, "; shadow, never enforced")
	}
	if p.Shared {
		fmt.Fprint(w, "; counts others, too")
	}
	fmt.Fprintf(w, "\nbucket %s", p.Bucket)
	if p.Generation != 0 {
		fmt.Fprintf(w, ", reset at log entry %d", p.Generation)
	}
	fmt.Fprintln(w)
	if p.WindowEnd.IsZero() {
		fmt.Fprintln(w, "no node could tell anything")
	} else {
		fmt.Fprintf(w, "window %s to %s: %v used, %d left", clockText(p.WindowBegin, p.WindowSeconds), clockText(p.WindowEnd, p.WindowSeconds), p.Used, p.Remaining)
		if p.UsedBefore != 0 {
			fmt.Fprintf(w, " (%v used in the window before)", p.UsedBefore)
		}
		if !p.Complete {
			fmt.Fprint(w, ", as far as those know that answered")
		}
		fmt.Fprintln(w)
		fmt.Fprintln(w, nextText(p.NextPass, now))
	}
	label := nodeLabels(p.Nodes)
	if r := p.LastRefusal; r != nil {
		fmt.Fprintf(w, "last refused %s ago by %s: %s (%s)\n", agoText(now.Sub(r.At)), label(r.Node), r.Detail, r.Reason)
	}
	table := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(table, "NODE\tNAME\tSHARE\tSPENT\tGIVEN\tRECEIVED\tCHARGE\tROOM")
	for _, n := range p.Nodes {
		if !n.Answered {
			fmt.Fprintf(table, "%s\t%s\t?\t?\t?\t?\t?\t?\n", n.Node, orDash(n.Name))
			continue
		}
		fmt.Fprintf(table, "%s\t%s\t%v\t%v\t%v\t%v\t%v\t%v\n", n.Node, orDash(n.Name), n.Share, n.Used, n.Given, n.Received, n.Charge, n.Room)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, n := range p.Nodes {
		writeNodeNotes(w, &n, label)
	}
	return nil
}

// nodeLabels calls nodes by their names where these are told apart by them, or else by their ids.
func nodeLabels(nodes []node.NodeExplained) func(id string) string {
	count := map[string]int{}
	names := map[string]string{}
	for _, n := range nodes {
		count[n.Name]++
		names[n.Node] = n.Name
	}
	return func(id string) string {
		if name := names[id]; name != "" && count[name] == 1 {
			return name
		}
		return id
	}
}

// writeNodeNotes says what a row of the table cannot.
func writeNodeNotes(w io.Writer, n *node.NodeExplained, label func(id string) string) {
	name := label(n.Node)
	if !n.Answered {
		fmt.Fprintf(w, "! %s does not answer: %s\n", name, n.Error)
		return
	}
	if n.Undecided != "" {
		fmt.Fprintf(w, "! %s can decide nothing now: %s\n", name, n.Undecided)
	}
	if n.Lost {
		fmt.Fprintf(w, "! %s holds no share in this window: what it did before its last start is not known\n", name)
	}
	if n.Overflow {
		fmt.Fprintf(w, "! %s counts other buckets together with this one: its room for counters is used up\n", name)
	}
	for _, t := range n.Transfers {
		if t.Direction == "to" {
			fmt.Fprintf(w, "%s lent %v to %s\n", name, t.Units, label(t.Peer))
		}
	}
	if a := n.Ask; a != nil {
		fmt.Fprintf(w, "%s asked %s %d ms ago; %d requests wait for %v\n", name, label(a.Peer), a.AgeMillis, a.Waiting, a.Units)
	}
	for _, b := range n.Beliefs {
		if b.Silent {
			fmt.Fprintf(w, "! %s gets no answers from %s\n", name, label(b.Peer))
		}
	}
}

func nextText(next *time.Time, now time.Time) string {
	switch {
	case next == nil:
		return "no request passes: the limit is below one, or nobody can decide"
	case !next.After(now):
		return "the next request passes now"
	}
	return fmt.Sprintf("the next request passes at %s, in %s", next.Format("15:04:05.000"), agoText(next.Sub(now)))
}

// clockText leaves the day out where windows are short.
func clockText(t time.Time, seconds int64) string {
	if seconds < 12*60*60 {
		return t.Format("15:04:05")
	}
	return t.Format("2006-01-02 15:04:05")
}

func agoText(d time.Duration) string {
	if d = max(d, 0); d < time.Second {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(100 * time.Millisecond).String()
}
