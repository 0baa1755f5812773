package logstore

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/hashicorp/raft"
)

const (
	// reserveBytes stay allocated beyond what an append can need, for what must not fail: term and vote, whose failed
	// write makes Raft panic, and dropping what a snapshot supersedes.
	reserveBytes = 1 << 20
	// reserveStep is how much is allocated at a time.
	reserveStep = 4 << 20
	// entryOverhead is more than an entry takes beyond its data.
	entryOverhead = 64
)

// reservation is how much of the file has its blocks on the disk.
type reservation struct {
	file   *os.File // bbolt's own; nil before it is open
	to     int64    // everything below this offset
	blocks int64    // that the file had then: fewer, and bbolt has cut what lay behind its end
	off    bool     // the file system cannot
}

// makeRoom makes sure that an append of logs, and what must not fail after it, finds its blocks allocated; it is called
// before anything is written. used is where the part of the file ends that is or was in use. Errors: ErrNoSpace.
func (s *Store) makeRoom(used int64, logs []*raft.Log) error {
	if s.config.Room != nil {
		if err := s.config.Room(); err != nil {
			return fmt.Errorf("%w: %w", ErrNoSpace, err)
		}
	}
	r := &s.reserved
	if r.off || r.file == nil {
		return nil
	}
	need := used + reserveBytes
	for _, log := range logs {
		need += 2 * int64(len(log.Data)+len(log.Extensions)+entryOverhead)
	}
	blocks, err := allocated(r.file)
	if err != nil {
		return fmt.Errorf("look at the log's file: %w", err)
	}
	if need <= r.to && blocks >= r.blocks {
		return nil
	}
	to := need + reserveStep
	if err = s.config.reserve(r.file, to); errors.Is(err, syscall.ENOSPC) && to != need {
		to = need
		err = s.config.reserve(r.file, to)
	}
	switch {
	case errors.Is(err, syscall.EOPNOTSUPP), errors.Is(err, syscall.ENOSYS):
		r.off = true
		s.config.Logger.Info("the file system reserves no space for the raft log: a disk that is full without warning ends the process")
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	case err != nil:
		return fmt.Errorf("reserve space for the log: %w", err)
	}
	r.to = to
	if r.blocks, err = allocated(r.file); err != nil {
		return fmt.Errorf("look at the log's file: %w", err)
	}
	return nil
}
