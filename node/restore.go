package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"sluice/node/backup"
	"sluice/raftfsm"
	"sluice/raftfsm/state"
)

// A backup comes into a running cluster in this order, on the leader:
//
//  1. All of it is on this node's disk and was checked, and its secrets can be opened: until here nothing has changed.
//  2. The horizon is raised, so that limits go on deciding while nothing can be committed.
//  3. The fence goes up: no proposal is handed to Raft any more, of anybody's. What was, is applied once a barrier is.
//  4. The backup is merged with what stays the cluster's own as of that moment (raftfsm.Moment.WriteReplaced).
//  5. Raft takes the result as a snapshot, installs it here and on the followers, and a first entry after it is committed.
//
// Step 5 looks at the term: had another leader been in office since the fence went up, its entries would be lost. Up to
// there a crash or an error leaves everything as it was; from there on every node has the snapshot on disk before it
// goes by it, and a leader that dies in the middle leaves a cluster that either has it or does not.
const (
	// restoreLeast and restoreMost bound how far ahead the horizon is put, and with it how long a restore may take from there
	// on: a second more for each restoreRate bytes of the backup. The call itself has adminChangeTimeout.
	restoreLeast = 2 * time.Minute
	restoreMost  = 8 * time.Minute
	restoreRate  = 4 << 20
	// restoreDir is in the data directory; what is in it is of a restore under way or of a crash in one.
	restoreDir = "restore"
	// maxRestored bounds an uploaded backup.
	maxRestored = 256 << 30
)

// RestoreOptions say what a restore may replace.
type RestoreOptions struct {
	// Replace is the id of the cluster whose accounts are to be replaced; "" where there are none yet.
	Replace string
	// RevokeSessions ends all sessions of the backup.
	RevokeSessions bool
}

// Restored is the answer of POST /v1/restore.
type Restored struct {
	Cluster string         `json:"cluster_id"`
	From    backup.Header  `json:"from"`
	Holds   backup.Summary `json:"contents"` // of the backup
}

// enqueue hands a proposal to Raft, unless nothing may be proposed now.
func (k *consensus) enqueue(envelope []byte) (raft.ApplyFuture, error) {
	k.fence.RLock()
	defer k.fence.RUnlock()
	if k.fenced {
		return nil, fmt.Errorf("%w: a backup is being restored", errUnavailable)
	}
	return k.raft.Apply(envelope, enqueueTimeout), nil
}

// setFence lets nothing be proposed, or lets it again; false where it was so already.
func (k *consensus) setFence(up bool) bool {
	k.fence.Lock()
	defer k.fence.Unlock()
	if k.fenced == up {
		return false
	}
	k.fenced = up
	return true
}

// receiveBackup keeps an uploaded backup's snapshot on the disk, checked whole.
func (n *Node) receiveBackup(r io.Reader) (file *os.File, header backup.Header, contents raftfsm.Contents, err error) {
	dir, err := n.data.sub(restoreDir)
	if err != nil {
		return nil, header, contents, err
	}
	if file, err = os.CreateTemp(dir, "backup-*.tmp"); err != nil {
		return nil, header, contents, err
	}
	defer func() {
		if err != nil {
			dropFile(file)
			file = nil
		}
	}()
	if _, err = io.Copy(file, r); err != nil {
		return
	}
	if _, err = file.Seek(0, io.SeekStart); err != nil {
		return
	}
	header, contents, err = backup.Inspect(file, nil)
	return
}

// dropFile closes and removes a temporary file.
func dropFile(file *os.File) {
	file.Close()
	os.Remove(file.Name())
}

// restoreWithin is how long the restore of a backup of so many bytes may take.
func restoreWithin(size int64) time.Duration {
	return restoreLeast + time.Duration(min(size/restoreRate, int64((restoreMost-restoreLeast)/time.Second)))*time.Second
}

// restore brings a checked backup, whose state is of a level, into the cluster, from this node as its leader.
func (n *Node) restore(ctx context.Context, file *os.File, level uint64, how raftfsm.Replacement) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	within := restoreWithin(info.Size())
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	k := n.consensus.Load()
	if k == nil || !k.leads() {
		return errNotLeader
	}
	if _, err := k.proposeHere(ctx, n.opts.clock(), state.Horizon{Until: n.opts.clock().Add(within).UnixMilli(), Leader: n.data.NodeID}); err != nil {
		return fmt.Errorf("raise horizon: %w", err)
	}
	if level > n.fsm.Level() {
		// The backup may hold what members of an older version cannot read.
		if err := n.raiseLevel(ctx, k, level); err != nil {
			return err
		}
	}
	term := k.raft.CurrentTerm()
	if !k.setFence(true) {
		return &refusedError{reason: "another backup is being restored"}
	}
	defer k.setFence(false)
	if err := k.await(ctx, k.raft.Barrier(enqueueTimeout)); err != nil {
		return classify(err) // in either case nothing of the backup is in the log
	}
	merged, err := n.mergeBackup(file, how)
	if err != nil {
		return err
	}
	if info, err = merged.Stat(); err == nil {
		err = ctx.Err()
	}
	if err != nil {
		dropFile(merged)
		return fmt.Errorf("%w: %w", errUnavailable, err)
	}
	meta := &raft.SnapshotMeta{Version: raft.SnapshotVersionMax, Index: n.fsm.AppliedIndex(), Term: term, Size: info.Size()}
	guarded := &guardedReader{r: merged, k: k, term: term}
	// Up to its first read Raft has changed nothing. Later the fence may go down whatever comes of it: proposals queue up
	// behind the restore.
	defer guarded.givenUp.Store(true)
	done := make(chan error, 1)
	go func() {
		err := k.raft.Restore(meta, guarded, 0)
		dropFile(merged)
		done <- err
	}()
	select {
	case err = <-done:
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", errUnknown, context.Cause(ctx))
	case <-k.stop:
		return fmt.Errorf("%w: stopping", errUnknown)
	}
	switch {
	case err == nil:
		return nil
	case guarded.refused.Load(), errors.Is(err, raft.ErrNotLeader):
		return errNotLeader
	}
	return fmt.Errorf("%w: %w", errUnknown, err)
}

// mergeBackup writes what the nodes are to restore, with the fence up.
func (n *Node) mergeBackup(file *os.File, how raftfsm.Replacement) (_ *os.File, err error) {
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	from, err := backup.Open(file, nil)
	if err != nil {
		return nil, err
	}
	m, err := n.fsm.Moment()
	if err != nil {
		return nil, err
	}
	defer m.Close()
	merged, err := os.CreateTemp(filepath.Dir(file.Name()), "merged-*.tmp")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			dropFile(merged)
		}
	}()
	if err := m.WriteReplaced(merged, from, how); err != nil {
		return nil, err
	}
	// Raft ends the process where a snapshot that it took cannot be restored: better to know before.
	if _, err := merged.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	if err := raftfsm.CheckSnapshot(bufio.NewReaderSize(merged, 1<<20)); err != nil {
		return nil, err
	}
	_, err = merged.Seek(0, io.SeekStart)
	return merged, err
}

// guardedReader refuses to be read in another term than the one in which the fence went up, and after the restore was given
// up. Raft reads from the goroutine that leads, so that no other leader, and no proposal, can come between the look and
// the end of the reading.
type guardedReader struct {
	r                io.Reader
	k                *consensus
	term             uint64
	begun            bool // of Raft's goroutine alone
	givenUp, refused atomic.Bool
}

func (g *guardedReader) Read(p []byte) (int, error) {
	if g.k.raft.CurrentTerm() != g.term || !g.begun && g.givenUp.Load() {
		g.refused.Store(true)
		return 0, errNotLeader
	}
	g.begun = true
	return g.r.Read(p)
}

// mayReplace refuses what an operator would not want to happen by mistake.
func (n *Node) mayReplace(o RestoreOptions) error {
	m, err := n.fsm.Moment()
	if err != nil {
		return err
	}
	defer m.Close()
	id := m.Header().ClusterID
	switch {
	case id == "":
		return adminProblem(http.StatusServiceUnavailable, "cluster_unavailable", "the cluster has not formed yet")
	case o.Replace != "" && o.Replace != id:
		return adminProblem(http.StatusConflict, "conflict", fmt.Sprintf("this is cluster %s, not %s", id, clipText(o.Replace, 64)))
	case o.Replace == "" && !m.Empty():
		return adminProblem(http.StatusConflict, "conflict",
			fmt.Sprintf("cluster %s has users: they, and all that came after the backup, would be gone; --force --yes-replace %s says that this is meant", id, id))
	}
	return nil
}
