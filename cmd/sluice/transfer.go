package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"sluice/authapi"
)

// transferPatience is how long an import or export may take unless --timeout says otherwise.
const transferPatience = time.Hour

const (
	// importChunk is how many bytes of lines go into one call at most, importLines how many lines.
	importChunk = 8 << 20
	importLines = 20_000
	// importShown is how many mistakes are printed.
	importShown = 1000
)

type exportCommand struct {
	File string `arg:"" optional:"" default:"-" help:"Where to; standard output (-), unless given. A file that exists is not replaced."`
	adminFlags
}

// Run writes users, organizations, members and keys, a line each. A file bears its name once all of it is there.
func (c *exportCommand) Run(ctx context.Context, env environment) (err error) {
	client, ctx, cancel, err := c.begin(ctx, env, transferPatience)
	if err != nil {
		return err
	}
	defer cancel()
	if c.File != "-" {
		if _, err := os.Lstat(c.File); err == nil {
			return usagef("%s exists", c.File)
		}
	}
	answer, err := client.send(ctx, http.MethodGet, "/v1/export", "", http.NoBody)
	if err != nil {
		return err
	}
	defer answer.Close()
	p := newProgress(env, "export", 0, byteCount)
	defer p.end()
	from := io.TeeReader(answer, p)
	if c.File == "-" {
		_, err = io.Copy(env.stdout, from)
		return err
	}
	file, err := os.CreateTemp(filepath.Dir(c.File), "."+filepath.Base(c.File)+".*.tmp") // 0600: names and addresses of people
	if err != nil {
		return err
	}
	_, err = io.Copy(file, from)
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err == nil {
		err = os.Rename(file.Name(), c.File)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("export: %w", err), os.Remove(file.Name()))
	}
	return syncDir(filepath.Dir(c.File))
}

type importCommand struct {
	File   string `arg:"" help:"Lines of JSON, users before the keys that they own; - for standard input."`
	DryRun bool   `help:"Change nothing: say what would be added, and which lines are not as they should be."`
	adminFlags
}

// Run sends the lines in pieces, one call after another, so that a key finds the owner of a line before it. What was sent
// stays where a later call fails: the same file again goes on from there.
func (c *importCommand) Run(ctx context.Context, env environment) error {
	client, ctx, cancel, err := c.begin(ctx, env, transferPatience)
	if err != nil {
		return err
	}
	defer cancel()
	from, size, err := openInput(env, c.File)
	if err != nil {
		return err
	}
	defer from.Close()
	p := newProgress(env, "import", size, byteCount)
	total, err := sendLines(ctx, client, from, c.DryRun, p)
	p.end()
	if err != nil {
		return fmt.Errorf("import: after %d lines: %w: the same file can be imported again, and goes on where this ended", total.Lines, err)
	}
	if err := c.print(env, total, func(w io.Writer) error { return writeImport(w, total, c.DryRun, time.Since(p.began)) }); err != nil {
		return err
	}
	if total.Failed > 0 {
		return fmt.Errorf("%d of %d lines were not taken", total.Failed, total.Lines)
	}
	return nil
}

func writeImport(w io.Writer, r authapi.ImportReport, dryRun bool, took time.Duration) error {
	for _, e := range r.Errors {
		fmt.Fprintf(w, "line %d: %s: %s\n", e.Line, e.Code, e.Detail)
	}
	if more := r.Failed - len(r.Errors); more > 0 {
		fmt.Fprintf(w, "and %d more\n", more)
	}
	added := "added"
	if dryRun {
		added = "would be added"
	}
	_, err := fmt.Fprintf(w, "%d lines: %d users and %d keys %s, %d exist, %d not taken; %.0f lines a second\n",
		r.Lines, r.Users, r.Keys, added, r.Exist, r.Failed, float64(r.Lines)/max(took.Seconds(), 1e-3))
	return err
}

// sendLines adds up what the calls say.
func sendLines(ctx context.Context, client *adminClient, from io.Reader, dryRun bool, p *progress) (total authapi.ImportReport, err error) {
	total.Errors = []authapi.ImportError{}
	lines := bufio.NewReaderSize(from, 1<<20)
	var chunk bytes.Buffer
	first, count := 1, 0
	flush := func() error {
		if count == 0 {
			return nil
		}
		query := url.Values{"first_line": {strconv.Itoa(first)}, "dry_run": {strconv.FormatBool(dryRun)}}
		var report authapi.ImportReport
		if err := client.upload(ctx, "/v1/import?"+query.Encode(), "application/x-ndjson", bytes.NewReader(chunk.Bytes()), &report); err != nil {
			return err
		}
		total.Lines += report.Lines
		total.Users += report.Users
		total.Keys += report.Keys
		total.Exist += report.Exist
		total.Failed += report.Failed
		total.Errors = append(total.Errors, report.Errors[:min(len(report.Errors), importShown-len(total.Errors))]...)
		p.add(int64(chunk.Len()))
		first, count = first+count, 0
		chunk.Reset()
		return nil
	}
	for {
		line, err := lines.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			return total, usagef("line %d is too long", first+count)
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return total, err
		}
		if chunk.Len()+len(line) > importChunk || count == importLines {
			if err := flush(); err != nil {
				return total, err
			}
		}
		if len(line) > 0 {
			chunk.Write(line)
			count++
		}
		if err != nil {
			return total, flush()
		}
	}
}
