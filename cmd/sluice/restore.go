package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"

	"filippo.io/age"

	"sluice/node"
	"sluice/node/backup"
)

type restoreCommand struct {
	File           string   `arg:"" optional:"" help:"The backup."`
	From           string   `placeholder:"FILE" help:"The same, by name."`
	KeyFile        []string `placeholder:"FILE" help:"Its key, where it is encrypted."`
	Force          bool     `help:"Replace the accounts of a cluster that has some; needs --yes-replace."`
	YesReplace     string   `placeholder:"CLUSTERID" help:"The id of the cluster whose accounts are to be replaced, as sluice cluster status shows it."`
	RevokeSessions bool     `help:"End all sessions of the backup: everybody signs in again."`
	adminFlags
}

// Run checks the backup whole, and only then sends it, decrypted, to a node.
func (c *restoreCommand) Run(ctx context.Context, env environment) error {
	path, err := target(c.File, c.From, "from")
	if err != nil {
		return err
	}
	if c.Force != (c.YesReplace != "") {
		return usagef("--force and --yes-replace CLUSTERID go together")
	}
	if path == "-" {
		return usagef("a backup is read twice, first to check it: name a file")
	}
	identities, err := identitiesOf(c.KeyFile)
	if err != nil {
		return err
	}
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	client, ctx, cancel, err := c.begin(ctx, env, backupPatience)
	if err != nil {
		return err
	}
	defer cancel()
	var size int64
	if info, err := file.Stat(); err == nil {
		size = info.Size()
	}
	p := newProgress(env, "check", size, byteCount)
	header, contents, err := backup.Inspect(io.TeeReader(file, p), identities)
	p.end()
	if err == nil && contents.Sections == nil {
		err = backup.ErrKeyNeeded
	}
	if err != nil {
		return fmt.Errorf("%s: %w: nothing was changed", path, err)
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	query := url.Values{}
	if c.YesReplace != "" {
		query.Set("replace", c.YesReplace)
	}
	if c.RevokeSessions {
		query.Set("revoke_sessions", "true")
	}
	p = newProgress(env, "restore", size, byteCount)
	restored, err := sendBackup(ctx, client, "/v1/restore?"+query.Encode(), io.TeeReader(file, p), identities)
	p.end()
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	return c.print(env, restored, func(w io.Writer) error {
		fmt.Fprintf(w, "%s now has what this backup holds: %s\n", restored.Cluster, describe(header))
		return writeSummary(w, restored.Holds)
	})
}

// sendBackup decrypts on the way: a backup's secret key stays on this machine.
func sendBackup(ctx context.Context, client *adminClient, path string, from io.Reader, identities []age.Identity) (restored node.Restored, err error) {
	b, err := backup.Open(from, identities)
	if err != nil {
		return restored, err
	}
	reader, writer := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := backup.Write(writer, b.Header, nil, func(w io.Writer) error {
			_, err := io.Copy(w, b)
			return errors.Join(err, b.Finish())
		})
		writer.CloseWithError(err)
		written <- err
	}()
	err = client.upload(ctx, path, "application/octet-stream", reader, &restored)
	reader.CloseWithError(err)
	if source := <-written; err == nil && source != nil {
		err = source
	}
	return restored, err
}

// upload posts a body of some kind and reads the answer into out.
func (c *adminClient) upload(ctx context.Context, path, kind string, body io.Reader, out any) error {
	answer, err := c.send(ctx, http.MethodPost, path, kind, body)
	if err != nil {
		return err
	}
	defer answer.Close()
	return c.decode(answer, out)
}
