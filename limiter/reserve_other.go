//go:build unix && !linux

package limiter

import "os"

// reserve makes f size bytes long with every block allocated.
func reserve(f *os.File, size int64) error { return fill(f, size) }
