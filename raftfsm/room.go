package raftfsm

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/dgraph-io/badger/v4"
)

const (
	memtableSize = 16 << 20
	// memtableReserve is what a memtable's log may grow to: its size and the largest transaction on top.
	memtableReserve = memtableSize + memtableSize/4
	// memtableLook is how many bytes are written before memtables are looked for that are not reserved yet. Less than one fills.
	memtableLook = 1 << 20
)

// room waits until there is room, and says false where it is no longer waited for.
func (f *FSM) room() bool {
	if f.config.Room == nil || f.config.Room() {
		return true
	}
	f.failed.Store(true) // no snapshot either: Raft believes that the entries were applied
	return false
}

// reserveMemtables allocates the blocks of the memtables' logs. They are sparse mapped files, and the first store to a page without a
// block on a full disk ends the process by SIGBUS. Where it does not succeed the node's watch over the disk is what is left.
func (f *FSM) reserveMemtables(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		f.logger.Warn("memtables not reserved", "error", err)
		return
	}
	for _, entry := range entries {
		if !strings.HasSuffix(entry.Name(), ".mem") {
			continue
		}
		if err := reserveFile(filepath.Join(dir, entry.Name()), memtableReserve); err != nil && !os.IsNotExist(err) {
			f.logger.Debug("memtable not reserved", "file", entry.Name(), "error", err)
		}
	}
}

// CollectValueLog has Badger look for a value log file that is mostly dead and rewrite it; rewritten says that one was. There is
// nothing in the value log but values above 1 MiB, which this state has none of, and what older ones left.
func (f *FSM) CollectValueLog() (rewritten bool, err error) {
	h, err := f.acquire()
	if err != nil {
		return false, err
	}
	defer h.release()
	err = h.db.RunValueLogGC(0.5)
	if errors.Is(err, badger.ErrNoRewrite) || errors.Is(err, badger.ErrRejected) {
		return false, nil
	}
	return err == nil, err
}

// Size is what the database in use has on the disk, in bytes, as of Badger's last look, a minute ago at most: tables and value log.
func (f *FSM) Size() (tables, values int64) {
	h, err := f.acquire()
	if err != nil {
		return 0, 0
	}
	defer h.release()
	return h.db.Size()
}
