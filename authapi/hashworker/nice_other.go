//go:build !linux

package hashworker

// Yield does nothing here: the process is an ordinary one.
func Yield() error { return nil }
