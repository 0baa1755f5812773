package limiter

import "errors"

var (
	// ErrConfig is returned by Open for a Config that cannot work. A retry gives the same.
	ErrConfig = errors.New("limiter: invalid configuration")
	// ErrDamaged is returned by Open where the file with the mark exists but none of its copies can be read: without
	// the mark the node cannot know in which windows it has acted. It holds no share that is worth more than waiting:
	// remove the limiter's files only if no window that this node acted in is still open.
	ErrDamaged = errors.New("limiter: mark file is damaged")
	// ErrInUse is returned by Open where another process holds the directory.
	ErrInUse = errors.New("limiter: directory is in use by another process")
)
