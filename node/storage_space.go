//go:build unix

package node

import (
	"fmt"
	"syscall"
)

// diskSpace asks the file system of a path.
func diskSpace(path string) (DiskSpace, error) {
	var st syscall.Statfs_t
	for {
		err := syscall.Statfs(path, &st)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return DiskSpace{}, fmt.Errorf("statfs: %w", err)
		}
		break
	}
	space := DiskSpace{Free: int64(st.Bavail) * st.Bsize, Size: int64(st.Blocks) * st.Bsize, Inodes: -1}
	if st.Files > 0 {
		space.Inodes = int64(st.Ffree)
	}
	return space, nil
}
