package limiter

import (
	"io"
	"os"
)

// fill allocates f's blocks the slow way where the file system offers no other: by writing every page beyond its end.
func fill(f *os.File, size int64) error {
	at, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	zeros := make([]byte, 1<<16)
	for at < size {
		n, err := f.Write(zeros[:min(int64(len(zeros)), size-at)])
		if err != nil {
			return err
		}
		at += int64(n)
	}
	return nil
}
