package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"filippo.io/age"

	"sluice/node/backup"
)

// backupPatience is how long a backup or a restore may take unless --timeout says otherwise.
const backupPatience = time.Hour

type backupCommand struct {
	Make   backupMakeCommand   `cmd:"" default:"withargs" help:"Write a backup of the cluster to FILE, or to standard output (-)."`
	Verify backupVerifyCommand `cmd:"" help:"Check a backup whole, and say what it is and holds."`
	Key    backupKeyCommand    `cmd:"" help:"Print a new key for backups, for a file of its own."`
}

type backupMakeCommand struct {
	File        string   `arg:"" optional:"" help:"Where to; - for standard output. A file that exists is not replaced."`
	Out         string   `placeholder:"FILE" help:"The same, by name."`
	KeyFile     []string `placeholder:"FILE" help:"Encrypt for the keys in it (age; public ones are enough), in place of the node's backup.key_file."`
	Unencrypted bool     `help:"Do not encrypt, though the node has a backup.key_file."`
	Stale       bool     `help:"Take what the node has, though no leader confirms that it is up to date."`
	adminFlags
}

// target is the file that is named, one way or the other.
func target(argument, flag, name string) (string, error) {
	switch {
	case argument != "" && flag != "":
		return "", usagef("a file and --%s both name one", name)
	case argument == "" && flag == "":
		return "", usagef("name a file")
	}
	return argument + flag, nil
}

// Run writes the file under another name first: one that bears its name is whole.
func (c *backupMakeCommand) Run(ctx context.Context, env environment) (err error) {
	path, err := target(c.File, c.Out, "out")
	if err != nil {
		return err
	}
	query := url.Values{}
	for _, file := range c.KeyFile {
		key, err := backup.ReadKeyFile(file)
		if err != nil {
			return usagef("--key-file: %v", err)
		}
		for _, r := range key.Recipients {
			public, ok := r.(fmt.Stringer)
			if !ok {
				return usagef("--key-file: %s: a key of an unknown kind", file)
			}
			query.Add("recipient", public.String())
		}
	}
	if c.Unencrypted {
		query.Set("unencrypted", "true")
	}
	if c.Stale {
		query.Set("stale", "true")
	}
	client, ctx, cancel, err := c.begin(ctx, env, backupPatience)
	if err != nil {
		return err
	}
	defer cancel()
	if path != "-" {
		// Better told now than after the transfer.
		if _, err := os.Lstat(path); err == nil {
			return usagef("%s exists", path)
		}
	}
	answer, err := client.send(ctx, http.MethodGet, "/v1/backup?"+query.Encode(), "", http.NoBody)
	if err != nil {
		return err
	}
	defer answer.Close()
	p := newProgress(env, "backup", 0, byteCount)
	header, err := saveBackup(env.stdout, path, io.TeeReader(answer, p))
	p.end()
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	// To standard error where the backup itself goes to standard output.
	if path == "-" {
		env.stdout = env.stderr
	}
	return c.print(env, header, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s: %s, %s\n", path, byteCount(p.done), describe(header))
		return err
	})
}

// saveBackup copies a backup and checks it on the way, as far as that goes without a key.
func saveBackup(stdout io.Writer, path string, from io.Reader) (backup.Header, error) {
	if path == "-" {
		return copyBackup(stdout, from)
	}
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.tmp") // 0600
	if err != nil {
		return backup.Header{}, err
	}
	header, err := copyBackup(&backup.Paced{File: file}, from) // it may be on a node's disk
	if err == nil {
		err = file.Sync()
	}
	err = errors.Join(err, file.Close())
	if err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		return header, errors.Join(err, os.Remove(file.Name()))
	}
	return header, syncDir(filepath.Dir(path))
}

// syncDir makes a new name in a directory durable.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func copyBackup(to io.Writer, from io.Reader) (backup.Header, error) {
	reader, writer := io.Pipe()
	type found struct {
		header backup.Header
		err    error
	}
	checked := make(chan found, 1)
	go func() {
		header, err := backup.Check(reader)
		reader.CloseWithError(err)
		checked <- found{header, err}
	}()
	_, err := io.Copy(io.MultiWriter(to, writer), from)
	writer.CloseWithError(err)
	result := <-checked
	if err == nil {
		err = result.err
	}
	return result.header, err
}

func describe(h backup.Header) string {
	encrypted := "not encrypted"
	if h.Encrypted() {
		encrypted = "encrypted"
	}
	return fmt.Sprintf("cluster %s (%s) at index %d, %s by %s, Sluice %s, %s",
		h.Cluster, h.ClusterID, h.Index, h.CreatedAt.Format(time.RFC3339), h.NodeID, h.Version, encrypted)
}

type backupVerifyCommand struct {
	File    string   `arg:"" help:"The backup; - for standard input."`
	KeyFile []string `placeholder:"FILE" help:"Its key, where it is encrypted. Without it the checksum alone is checked."`
	Output  string   `enum:"text,json" default:"text" help:"text or json."`
}

// verified is what verify prints.
type verified struct {
	Header backup.Header `json:"header"`
	// Contents is null where the backup is encrypted and no key was given.
	Contents *backup.Summary `json:"contents"`
}

// Run reads the backup to its end.
func (c *backupVerifyCommand) Run(env environment) error {
	identities, err := identitiesOf(c.KeyFile)
	if err != nil {
		return err
	}
	from, size, err := openInput(env, c.File)
	if err != nil {
		return err
	}
	defer from.Close()
	p := newProgress(env, "verify", size, byteCount)
	header, contents, err := backup.Inspect(io.TeeReader(from, p), identities)
	p.end()
	if err != nil {
		return fmt.Errorf("%s: %w", c.File, err)
	}
	out := verified{Header: header}
	if contents.Sections != nil {
		summary := backup.Summarize(contents)
		out.Contents = &summary
	}
	flags := adminFlags{Output: c.Output}
	return flags.print(env, out, func(w io.Writer) error {
		fmt.Fprintf(w, "%s\n", describe(header))
		if out.Contents == nil {
			_, err := fmt.Fprintln(w, "the checksum is right; what it holds cannot be looked at without --key-file")
			return err
		}
		return writeSummary(w, *out.Contents)
	})
}

// identitiesOf reads keys to decrypt with.
func identitiesOf(files []string) (identities []age.Identity, err error) {
	for _, file := range files {
		key, err := backup.ReadKeyFile(file)
		if err != nil {
			return nil, usagef("--key-file: %v", err)
		}
		if len(key.Identities) == 0 {
			return nil, usagef("--key-file: %s holds public keys alone, which cannot decrypt", file)
		}
		identities = append(identities, key.Identities...)
	}
	return identities, nil
}

// openInput opens a file, or standard input for -; size is 0 where it is not known.
func openInput(env environment, path string) (io.ReadCloser, int64, error) {
	if path == "-" {
		if env.stdin == nil {
			return nil, 0, usagef("there is no standard input")
		}
		return io.NopCloser(env.stdin), 0, nil
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	var size int64
	if info, err := file.Stat(); err == nil && info.Mode().IsRegular() {
		size = info.Size()
	}
	return file, size, nil
}

func writeSummary(w io.Writer, s backup.Summary) error {
	fmt.Fprintf(w, "cluster %s, index %d, %s\ncontent hash %s\n", s.ClusterID, s.Index, s.At.Format(time.RFC3339), s.ContentHash)
	table := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(table, "SECTION\tRECORDS\tIN HASH\tSHA-256")
	for _, section := range s.Sections {
		fmt.Fprintf(table, "%s\t%d\t%s\t%s\n", section.Name, section.Records, yesNo(section.InHash), section.SHA256)
	}
	return table.Flush()
}

type backupKeyCommand struct{}

// Run prints the text of a key file.
func (c *backupKeyCommand) Run(env environment) error {
	text, _, err := backup.NewKey()
	if err != nil {
		return err
	}
	_, err = io.WriteString(env.stdout, text)
	return err
}

type clusterContentsCommand struct {
	adminFlags
}

// Run has one node read all that it holds.
func (c *clusterContentsCommand) Run(ctx context.Context, env environment) error {
	client, ctx, cancel, err := c.begin(ctx, env, 5*time.Minute)
	if err != nil {
		return err
	}
	defer cancel()
	var summary backup.Summary
	if err := client.get(ctx, "/v1/contents", nil, &summary); err != nil {
		return err
	}
	return c.print(env, summary, func(w io.Writer) error { return writeSummary(w, summary) })
}
