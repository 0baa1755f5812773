package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"sluice/authapi"
	"sluice/node"
)

// operatorPatience is how long a call about accounts may take unless --timeout says otherwise: a change outlives an election.
const operatorPatience = 15 * time.Second

type userCommand struct {
	Show        userShowCommand     `cmd:"" help:"Show a user with its organizations."`
	Disable     userDisableCommand  `cmd:"" help:"End a user's sessions, and refuse the user and the keys it made, until it is enabled."`
	Enable      userEnableCommand   `cmd:"" help:"Let a disabled user in again; keys work again, sessions do not."`
	SetPassword userPasswordCommand `cmd:"" help:"Give a user a one-time password, and print it."`
}

type orgCommand struct {
	SetPlan orgPlanCommand `cmd:"" help:"Give an organization a plan of the configuration, or take it away."`
}

// userArgument is who a command is about.
type userArgument struct {
	User string `arg:"" help:"Id, user name or e-mail address."`
}

// path is the user's place in the admin API.
func (u userArgument) path(call string) (string, error) {
	// A path of dots would lead elsewhere, and no user has one for a name.
	if strings.Trim(u.User, ".") == "" {
		return "", usagef("%q is no user", u.User)
	}
	return "/v1/users/" + url.PathEscape(u.User) + call, nil
}

type userShowCommand struct {
	userArgument
	adminFlags
}

// Run prints the user.
func (c *userShowCommand) Run(ctx context.Context, env environment) error {
	path, err := c.path("")
	if err != nil {
		return err
	}
	client, ctx, cancel, err := c.begin(ctx, env, operatorPatience)
	if err != nil {
		return err
	}
	defer cancel()
	var user authapi.OperatorUser
	if err := client.get(ctx, path, nil, &user); err != nil {
		return err
	}
	return c.print(env, user, func(w io.Writer) error { return writeUser(w, user) })
}

func writeUser(w io.Writer, u authapi.OperatorUser) error {
	since := func(at *string, word string) string {
		if at == nil {
			return ""
		}
		return ", " + word + " since " + *at
	}
	password := "with a password"
	if !u.HasPassword {
		password = "without a password"
	}
	fmt.Fprintf(w, "%s %s <%s>, made %s, %s%s%s\n", u.ID, orDash(u.Username), u.Email, u.CreatedAt, password,
		since(u.DisabledAt, "disabled"), since(u.DeletedAt, "deleted"))
	table := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(table, "ORGANIZATION\tROLE\tPERSONAL\tPLAN\tNAME")
	for _, o := range u.Organizations {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", o.ID, o.Role, yesNo(o.Personal), orDash(textOf(o.Plan)), o.Name)
	}
	return table.Flush()
}

// textOf is "" for null.
func textOf(text *string) string {
	if text == nil {
		return ""
	}
	return *text
}

type userDisableCommand struct {
	userArgument
	Note string `placeholder:"TEXT" help:"Why, for the audit log."`
	adminFlags
}

// Run disables the user.
func (c *userDisableCommand) Run(ctx context.Context, env environment) error {
	return c.setState(ctx, env, c.userArgument, "disable", c.Note)
}

type userEnableCommand struct {
	userArgument
	Note string `placeholder:"TEXT" help:"Why, for the audit log."`
	adminFlags
}

// Run enables the user.
func (c *userEnableCommand) Run(ctx context.Context, env environment) error {
	return c.setState(ctx, env, c.userArgument, "enable", c.Note)
}

func (f *adminFlags) setState(ctx context.Context, env environment, who userArgument, call, note string) error {
	path, err := who.path("/" + call)
	if err != nil {
		return err
	}
	client, ctx, cancel, err := f.begin(ctx, env, operatorPatience)
	if err != nil {
		return err
	}
	defer cancel()
	var user authapi.OperatorUser
	if err := client.post(ctx, path, node.UserStateRequest{Note: note}, &user); err != nil {
		return err
	}
	return f.print(env, user, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s %s: %sd\n", user.ID, user.Username, call)
		return err
	})
}

type userPasswordCommand struct {
	userArgument
	adminFlags
}

// Run prints a new one-time password.
func (c *userPasswordCommand) Run(ctx context.Context, env environment) error {
	path, err := c.path("/password")
	if err != nil {
		return err
	}
	client, ctx, cancel, err := c.begin(ctx, env, operatorPatience)
	if err != nil {
		return err
	}
	defer cancel()
	var made authapi.OneTimePassword
	if err := client.post(ctx, path, struct{}{}, &made); err != nil {
		return err
	}
	return c.print(env, made, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s\n%s signs in with it once, until %s, with new_password beside it; all sessions have ended\n",
			made.Password, made.Username, made.ExpiresAt)
		return err
	})
}

type orgPlanCommand struct {
	Organization string `arg:"" help:"Id of the organization."`
	Plan         string `arg:"" optional:"" help:"Name of a plan in the configuration."`
	None         bool   `help:"Take the plan away: the layers' own limits hold."`
	adminFlags
}

// Run sets the plan.
func (c *orgPlanCommand) Run(ctx context.Context, env environment) error {
	if (c.Plan == "") != c.None {
		return usagef("give a plan, or --none")
	}
	if strings.Trim(c.Organization, ".") == "" {
		return usagef("%q is no organization", c.Organization)
	}
	client, ctx, cancel, err := c.begin(ctx, env, operatorPatience)
	if err != nil {
		return err
	}
	defer cancel()
	var change authapi.PlanChange
	if err := client.post(ctx, "/v1/organizations/"+url.PathEscape(c.Organization)+"/plan", node.PlanRequest{Plan: &c.Plan}, &change); err != nil {
		return err
	}
	return c.print(env, change, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s: plan %s\n", change.OrganizationID, orDash(textOf(change.Plan)))
		return err
	})
}

type clusterRotateCommand struct {
	adminFlags
}

// Run replaces the signing key.
func (c *clusterRotateCommand) Run(ctx context.Context, env environment) error {
	client, ctx, cancel, err := c.begin(ctx, env, operatorPatience)
	if err != nil {
		return err
	}
	defer cancel()
	var key authapi.RotatedKey
	if err := client.post(ctx, "/v1/cluster/rotate-signing-key", struct{}{}, &key); err != nil {
		return err
	}
	return c.print(env, key, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s (%s) signs from %s; tokens of the key before it verify until they end\n", key.ID, key.Algorithm, key.SignsFrom)
		return err
	})
}

// auditMost bounds the events that one `sluice audit` prints.
const auditMost = 100_000

type auditCommand struct {
	Organization string `placeholder:"ID" help:"Of one organization; all, and what concerns none, unless given."`
	Event        string `placeholder:"NAME" help:"One event, or a group of them like 'user.*'."`
	Actor        string `placeholder:"ID" help:"Id of a user or a key."`
	Subject      string `placeholder:"ID" help:"Id of what was changed or asked for."`
	Result       string `placeholder:"RESULT" help:"success, failure or denied."`
	Since        string `placeholder:"TIME" help:"RFC 3339, inclusive."`
	Until        string `placeholder:"TIME" help:"RFC 3339, exclusive."`
	Limit        int    `default:"100" help:"How many events, the newest first (1 to 100000)."`
	adminFlags
}

// Run prints events. As JSON it is a line each, so that a long list can be read as it comes.
func (c *auditCommand) Run(ctx context.Context, env environment) error {
	if c.Limit < 1 || c.Limit > auditMost {
		return usagef("--limit: want 1 to %d, not %d", auditMost, c.Limit)
	}
	client, ctx, cancel, err := c.begin(ctx, env, operatorPatience)
	if err != nil {
		return err
	}
	defer cancel()
	query := url.Values{}
	for name, value := range map[string]string{
		"organization_id": c.Organization, "event": c.Event, "actor": c.Actor, "subject": c.Subject, "result": c.Result,
		"since": c.Since, "until": c.Until,
	} {
		if value != "" {
			query.Set(name, value)
		}
	}
	for left := c.Limit; left > 0; {
		query.Set("limit", fmt.Sprint(min(left, 200)))
		var page authapi.AuditPage
		if err := client.get(ctx, "/v1/audit", query, &page); err != nil {
			return err
		}
		for i := range page.Data {
			if err := c.write(env.stdout, &page.Data[i]); err != nil {
				return err
			}
		}
		left -= len(page.Data)
		if page.NextCursor == nil {
			return nil
		}
		query.Set("cursor", *page.NextCursor)
	}
	return nil
}

func (c *auditCommand) write(w io.Writer, e *authapi.AuditEntry) error {
	if c.Output == "json" {
		return json.NewEncoder(w).Encode(e)
	}
	_, err := fmt.Fprintf(w, "%s %s %s %s:%s -> %s:%s %s %s\n", e.At, e.Result, e.Event, e.Actor.Type, orDash(textOf(e.Actor.ID)),
		e.Subject.Type, orDash(textOf(e.Subject.ID)), orDash(textOf(e.OrganizationID)), orDash(textOf(e.IP)))
	return err
}
