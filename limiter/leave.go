package limiter

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

const (
	listPrefix = "limits.list-"
	// maxStored bounds the lists that wait for the log to say what becomes of them.
	maxStored = 16
	// listKeepMillis is how long a list's file is kept by the leaver's clock: no window that it speaks of, nor the one
	// after it, is open any more.
	listKeepMillis = 2 * maxWindow * 1000
	// entriesPerBucket is how many entries a list may have for each bucket that this node has room for.
	entriesPerBucket = 4
)

// Leave makes this node one that leaves for good: when it returns nil, that is on the disk, and the node spends and gives
// nothing any more, in this process and in those after it. Every Take is Undecided from then on. What the node holds is
// for an heir: see WriteBequest. There is no way back. Errors: ErrConfig without a directory, and those of the mark's file;
// then it may be tried again.
func (l *Limiter) Leave() error {
	l.markMu.Lock()
	defer l.markMu.Unlock()
	if l.markFile == nil {
		return fmt.Errorf("%w: a node that keeps no files cannot leave: it would not know at its next start", ErrConfig)
	}
	l.markFile.leaving = true
	if err := l.markFile.write(l.ledger.inc, l.ledger.markMillis()); err != nil {
		return err
	}
	l.ledger.depart()
	l.left.Store(true)
	return nil
}

// Leaving says whether Leave was called, in this process or in one before it.
func (l *Limiter) Leaving() bool { return l.left.Load() }

// WriteBequest writes what an heir has to store, and says what the log has to know of it. It needs memory for a small
// part at a time. A call after a newer SetState may give another list. Errors: ErrNotLeaving, and w's.
func (l *Limiter) WriteBequest(w io.Writer) (Bequest, error) {
	if !l.left.Load() {
		return Bequest{}, ErrNotLeaving
	}
	return writeBequest(w, l.ledger)
}

// StoreBequest makes what leaver wrote lasting: when it returns nil, the list survives a power cut, and counts as soon as
// SetState brings a Leave that names it and this node. A list that is stored already is stored again. Errors: ErrLeaving where
// this node cannot be an heir, ErrBequest for bytes that are not the list named, and those of the files.
func (l *Limiter) StoreBequest(leaver string, list [32]byte, r io.Reader) error {
	l.listMu.Lock()
	defer l.listMu.Unlock()
	switch {
	case l.left.Load():
		return ErrLeaving
	case l.cfg.Dir == "":
		return fmt.Errorf("%w: a node that keeps no files cannot be an heir", ErrConfig)
	case l.ledger.list(list) == nil && l.ledger.listCount() >= maxStored+len(l.ledger.view.Load().legacies):
		return fmt.Errorf("%w: this node holds %d lists already", ErrLeaving, l.ledger.listCount())
	}
	path := l.listPath(list)
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("store list: %w", err)
	}
	q, name, err := readBequest(io.TeeReader(r, f), entriesPerBucket*l.cfg.MaxBuckets)
	if err == nil && (name != list || q.lists[0].leaver != leaver) {
		err = fmt.Errorf("%w: another list than was named, or of another node", ErrBequest)
	}
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err == nil {
		err = syncDir(l.cfg.Dir)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("store list: %w", err), removeFile(path+".new"))
	}
	l.ledger.addList(list, q)
	return nil
}

func (l *Limiter) listPath(list [32]byte) string {
	return filepath.Join(l.cfg.Dir, listPrefix+hex.EncodeToString(list[:]))
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}

// loadLists reads the lists that were stored before. One that cannot be read is lost: in windows that it covered its
// leaver's share stands idle.
func (l *Limiter) loadLists() error {
	if l.cfg.Dir == "" {
		return nil
	}
	files, err := filepath.Glob(filepath.Join(l.cfg.Dir, listPrefix+"*"))
	if err != nil {
		return fmt.Errorf("look for lists: %w", err)
	}
	for _, path := range files {
		if strings.HasSuffix(path, ".new") {
			if err := removeFile(path); err != nil {
				return fmt.Errorf("remove half a list: %w", err)
			}
			continue
		}
		var list [32]byte
		if n, err := hex.Decode(list[:], []byte(strings.TrimPrefix(filepath.Base(path), listPrefix))); n != len(list) || err != nil {
			continue // nothing that this package wrote
		}
		q, err := l.loadList(path, list)
		if err != nil {
			l.log.Error("a leaver's list cannot be read: its share stands idle in windows that are open", "file", path, "error", err)
			continue
		}
		for _, i := range q.lists {
			if i.until+l.ledger.slackMillis <= l.ledger.startMark {
				i.entries.Store(nil) // it is kept as a file for longer than it counts
			}
		}
		l.ledger.addList(list, q)
	}
	return nil
}

func (l *Limiter) loadList(path string, list [32]byte) (*bequest, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	q, name, err := readBequest(f, 1<<30)
	if err == nil && name != list {
		err = ErrBequest
	}
	return q, err
}

// keepLists removes the files of lists that will never count (their leaver has another heir, or handed over another
// list) or count no more.
func (l *Limiter) keepLists(leaves []Leave, now int64) {
	l.listMu.Lock()
	defer l.listMu.Unlock()
	for _, list := range l.ledger.listNames() {
		q := l.ledger.list(list)
		if q == nil {
			continue
		}
		over := q.lists[0].ended+listKeepMillis < now
		for _, f := range leaves {
			over = over || f.Leaver == q.lists[0].leaver && (f.List != list || f.Heir != l.cfg.NodeID)
		}
		if !over {
			continue
		}
		if err := removeFile(l.listPath(list)); err != nil {
			l.log.Warn("a list that counts no more cannot be removed", "error", err)
			continue
		}
		l.ledger.dropList(list)
	}
}
