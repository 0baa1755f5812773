package raftfsm

import "errors"

var (
	// ErrClosed: the FSM was closed. Not retryable on this FSM.
	ErrClosed = errors.New("state is closed")
	// ErrFailed: an earlier fatal error; nothing is applied any more. The process should have ended.
	ErrFailed = errors.New("state has failed")
	// ErrSnapshot: the bytes are not a snapshot that this version reads (truncated, garbled, another format or another
	// cluster's). The state is untouched.
	ErrSnapshot = errors.New("unusable snapshot")
	// ErrSchema: the database was written by a version with another layout.
	ErrSchema = errors.New("unknown schema version")
)
