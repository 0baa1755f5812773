//go:build unix

package limiter

import (
	"fmt"
	"os"
	"syscall"
	"unsafe"
)

// mapFile maps the file at path, shared. A size of -1 maps an existing file as it is; otherwise the file is made with
// every block of it reserved, since a full disk would otherwise kill the process at the first store to a hole.
func mapFile(path string, size int64) (words []uint64, unmap func() error, err error) {
	flags := os.O_RDWR
	if size >= 0 {
		flags |= os.O_CREATE | os.O_EXCL
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if cerr := f.Close(); err == nil && cerr != nil {
			err = cerr
		}
	}()
	if size >= 0 {
		if err := reserve(f, size); err != nil {
			return nil, nil, fmt.Errorf("reserve %d bytes: %w", size, err)
		}
	} else {
		st, err := f.Stat()
		if err != nil {
			return nil, nil, err
		}
		if size = st.Size(); size == 0 || size%8 != 0 || size > recordBytes(maxSlots) {
			// Nothing that this package wrote: give back what openRecords refuses.
			return nil, func() error { return nil }, nil
		}
		// A file cut short by hand may have holes too.
		if err := reserve(f, size); err != nil {
			return nil, nil, fmt.Errorf("reserve %d bytes: %w", size, err)
		}
	}
	data, err := syscall.Mmap(int(f.Fd()), 0, int(size), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return nil, nil, err
	}
	words = unsafe.Slice((*uint64)(unsafe.Pointer(&data[0])), size/8)
	return words, func() error { return syscall.Munmap(data) }, nil
}

// lockFile takes the advisory lock that keeps a second process away; it goes with the file's descriptor.
func lockFile(f *os.File) error {
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return ErrInUse
	}
	return nil
}
