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
	// ErrNotLeaving is returned by WriteBequest before Leave: what a node goes on spending it cannot hand over.
	ErrNotLeaving = errors.New("limiter: this node does not leave")
	// ErrLeaving is returned by StoreBequest on a node that cannot be an heir, mostly since it leaves itself. Another may be.
	ErrLeaving = errors.New("limiter: this node takes no list")
	// ErrBequest is returned by StoreBequest for bytes that are not the list named, or one too long for this node.
	ErrBequest = errors.New("limiter: malformed list")
)
