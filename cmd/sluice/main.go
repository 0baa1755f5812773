// Command sluice runs and administers Sluice nodes. `sluice dev` runs a whole cluster on this machine, `sluice node` one
// node of a real one.
//
// Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/alecthomas/kong"
	"golang.org/x/term"

	"sluice/node"
)

// Exit codes, which scripts rely on.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], environment{
		variables: os.Environ(),
		stdin:     os.Stdin,
		terminal:  term.IsTerminal(int(os.Stdin.Fd())),
		stdout:    os.Stdout,
		stderr:    os.Stderr,
	}))
}

// environment is what a command gets from outside.
type environment struct {
	args           []string  // without the program's name; run sets them
	variables      []string  // as os.Environ gives them
	stdin          io.Reader // nil: there is none
	terminal       bool      // stdin is one, where somebody can be asked
	stdout, stderr io.Writer
}

type commandLine struct {
	Dev        devCommand        `cmd:"" help:"Run a cluster on this machine, one process a node."`
	Node       nodeCommand       `cmd:"" help:"Run one node in the foreground."`
	Config     configCommand     `cmd:"" help:"Check or show a configuration."`
	Cluster    clusterCommand    `cmd:"" help:"Look after a running cluster."`
	Limits     limitsCommand     `cmd:"" help:"Explain or reset what limits count."`
	Policy     policyCommand     `cmd:"" help:"Change limits, plans, policies, routes, scopes and redirect targets of a running cluster."`
	User       userCommand       `cmd:"" help:"Look after users."`
	Org        orgCommand        `cmd:"" help:"Look after organizations."`
	Audit      auditCommand      `cmd:"" help:"Print the audit log, of all organizations and of none."`
	Backup     backupCommand     `cmd:"" help:"Back up the cluster, or check a backup."`
	Restore    restoreCommand    `cmd:"" help:"Give a cluster what a backup holds."`
	Export     exportCommand     `cmd:"" help:"Write users, organizations, members and keys as lines of JSON, without a secret."`
	Import     importCommand     `cmd:"" help:"Take users and keys from lines of JSON, with their hashes."`
	Completion completionCommand `cmd:"" help:"Print a script for the shell that completes commands and flags."`
	Bench      benchCommand      `cmd:"" help:"Measure a running cluster."`
	Cert       certCommand       `cmd:"" help:"Make certificates for the traffic between nodes."`
	Secret     secretCommand     `cmd:"" help:"Make secrets, and rotate the key that secrets at rest are sealed under."`
	Version    versionCommand    `cmd:"" help:"Print the version."`
	HashWorker hashWorkerCommand `cmd:"" hidden:"" help:"Hash passwords for a node."`
}

type configCommand struct {
	Check configCheckCommand `cmd:"" help:"Tell every mistake with its line."`
	Show  configShowCommand  `cmd:"" help:"Print the effective values, secrets masked."`
}

type secretCommand struct {
	New    secretNewCommand    `cmd:"" help:"Print a new secret, for secrets.cluster_file or secrets.key_file."`
	Status secretStatusCommand `cmd:"" help:"Show which key secrets at rest are sealed under, who holds which, and which can be taken out."`
	Rotate secretRotateCommand `cmd:"" help:"Seal secrets at rest under the key that secrets.key_file names now."`
}

// usageError is a mistake of the command line that the parser cannot see.
type usageError struct{ message string }

func (e *usageError) Error() string { return e.message }

func usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// helpShown leaves the parser, which would end the process itself.
type helpShown struct{ code int }

// run is the program without the process around it.
func run(ctx context.Context, args []string, env environment) (code int) {
	defer func() {
		if r := recover(); r != nil {
			shown, ok := r.(helpShown)
			if !ok {
				panic(r)
			}
			code = shown.code
		}
	}()
	env.args = args
	var cli commandLine
	parser, err := kong.New(&cli,
		kong.Name("sluice"),
		kong.Description("Token and API-key validation and rate limits for a cluster of nodes."),
		kong.UsageOnError(),
		kong.Writers(env.stdout, env.stderr),
		kong.Exit(func(code int) { panic(helpShown{code}) }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.BindTo(ctx, (*context.Context)(nil)),
		kong.Bind(env),
		benchVariables(),
	)
	if err != nil {
		fmt.Fprintf(env.stderr, "sluice: %v\n", err)
		return exitFailed
	}
	command, err := parser.Parse(args)
	if err != nil {
		fmt.Fprintf(env.stderr, "sluice: %v\nTry `sluice --help`.\n", err)
		return exitUsage
	}
	return report(env.stderr, command.Run())
}

// report prints what went wrong and chooses the exit code.
func report(stderr io.Writer, err error) int {
	if err == nil {
		return exitDone
	}
	var mistakes *node.ConfigError
	if errors.As(err, &mistakes) {
		fmt.Fprintln(stderr, strings.TrimRight(mistakes.Error(), "\n"))
		return exitUsage
	}
	fmt.Fprintf(stderr, "sluice: %v\n", err)
	var usage *usageError
	if errors.As(err, &usage) {
		return exitUsage
	}
	return exitFailed
}
