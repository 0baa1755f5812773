//go:build !linux

package limiter

// sinceBoot is not known here: the monotonic clock is taken as it is.
func sinceBoot() int64 { return 0 }
