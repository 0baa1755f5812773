package logstore

import (
	"os"
	"syscall"
)

// keepSize is FALLOC_FL_KEEP_SIZE: bbolt goes by the file's length.
const keepSize = 1

// reserveBlocks allocates every block of f below to without a change to its length or contents.
func reserveBlocks(f *os.File, to int64) error {
	for {
		if err := syscall.Fallocate(int(f.Fd()), keepSize, 0, to); err != syscall.EINTR {
			return err
		}
	}
}

// allocated is how many blocks of 512 bytes f has on the disk.
func allocated(f *os.File) (int64, error) {
	var st syscall.Stat_t
	err := syscall.Fstat(int(f.Fd()), &st)
	return st.Blocks, err
}
