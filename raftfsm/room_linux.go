package raftfsm

import (
	"errors"
	"os"
	"syscall"
)

// reserveFile allocates every block of the file at path below size, without a change to its length.
func reserveFile(path string, size int64) error {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	const keepSize = 1 // FALLOC_FL_KEEP_SIZE
	for {
		if err = syscall.Fallocate(int(file.Fd()), keepSize, 0, size); !errors.Is(err, syscall.EINTR) {
			return errors.Join(err, file.Close())
		}
	}
}
