package limiter

import (
	"os"
	"syscall"
)

// reserve makes f size bytes long with every block allocated.
func reserve(f *os.File, size int64) error {
	for {
		err := syscall.Fallocate(int(f.Fd()), 0, 0, size)
		switch err {
		case syscall.EINTR:
			continue
		case syscall.EOPNOTSUPP, syscall.ENOSYS:
			return fill(f, size)
		}
		return err
	}
}
