package logstore

import (
	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// letGo tells the system that the file's pages need not stay in this process: after a walk through all of it, or a long
// import, they would count as its memory, hundreds of megabytes that are hardly read again. What is read is found in the page
// cache. Where the system does not listen, nothing but that is lost.
func (s *Store) letGo() {
	_ = s.db.View(func(tx *bbolt.Tx) error { // which keeps the mapping where it is
		data, size := s.db.Info().Data, uintptr(tx.Size()) // not the file's: that may be longer than what is mapped
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, data, size, unix.MADV_DONTNEED)
		return nil
	})
}
