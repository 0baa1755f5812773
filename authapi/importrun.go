package authapi

import (
	"context"
	"fmt"
	"io"
	"sync"

	"sluice/raftfsm/state"
)

// importRun applies the lines of one call while they are read: the cluster works on some commands as the next is being
// filled. Commands under way depend on none of each other, so that their order does not matter: a key waits for the users
// of lines before it.
type importRun struct {
	s      *Server
	ctx    context.Context
	cancel context.CancelCauseFunc
	slots  chan struct{} // an element for each command under way
	wg     sync.WaitGroup

	// Of the reader alone.
	next  []importedRow // users, or keys that no user came before: of the command being filled
	size  int           // of next
	users bool          // there were users
	held  []importedRow // keys that wait for them

	mu     sync.Mutex
	report *ImportReport
	// early are keys whose owner was not there. It may be a user of a later line.
	early []importedRow
}

// applyImport is Import but for a dry run.
func (s *Server) applyImport(ctx context.Context, r io.Reader, firstLine int, report *ImportReport) error {
	run := &importRun{s: s, slots: make(chan struct{}, importsAtOnce), report: report}
	run.ctx, run.cancel = context.WithCancelCause(ctx)
	defer run.cancel(nil)
	err := s.readImport(r, firstLine, run.take)
	if err == nil {
		run.send()
	}
	run.wg.Wait()
	if err != nil {
		return err
	}
	run.held, run.early = append(run.early, run.held...), nil
	for i := range run.held {
		run.add(run.held[i])
	}
	run.send()
	run.wg.Wait()
	for i := range run.early { // for the second time, or there were no users
		report.count(&run.early[i], state.RowNoOwner)
	}
	return context.Cause(run.ctx)
}

// take takes a line. It waits where the cluster is behind, and fails once the run has.
func (r *importRun) take(line importedRow, wrong string) error {
	r.mu.Lock()
	r.report.Lines++
	if wrong != "" {
		r.report.fail(line.line, "invalid_line", wrong)
	}
	r.mu.Unlock()
	switch {
	case wrong != "":
	case line.row.Key == nil:
		if !r.users { // what is in next are keys
			r.held, r.next, r.size, r.users = r.next, nil, 0, true
		}
		r.add(line)
	case r.users:
		r.held = append(r.held, line)
	default:
		r.add(line)
	}
	return context.Cause(r.ctx)
}

// add puts a row into the next command, and sends that one where it is full.
func (r *importRun) add(line importedRow) {
	if len(r.next) == importRows || len(r.next) > 0 && r.size+line.size > importBatch {
		r.send()
	}
	r.next = append(r.next, line)
	r.size += line.size
}

// send proposes the next command and does not wait for the answer, but for a place.
func (r *importRun) send() {
	batch := r.next
	r.next, r.size = nil, 0
	if len(batch) == 0 || r.ctx.Err() != nil {
		return
	}
	r.slots <- struct{}{}
	r.wg.Go(func() {
		defer func() { <-r.slots }()
		cmd := state.ImportAccounts{Rows: make([]state.ImportRow, len(batch))}
		for i := range batch {
			cmd.Rows[i] = batch[i].row
		}
		result, err := r.s.propose(r.ctx, cmd)
		if err == nil && len(result.Rows) != len(batch) {
			err = fmt.Errorf("import: %d answers to %d rows", len(result.Rows), len(batch))
		}
		if err != nil {
			r.cancel(err)
			return
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		for i := range batch {
			if result.Rows[i] == state.RowNoOwner {
				r.early = append(r.early, batch[i])
				continue
			}
			r.report.count(&batch[i], result.Rows[i])
		}
	})
}
