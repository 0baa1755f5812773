package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"sluice/authapi"
	"sluice/raftfsm/state"
)

// A node watches the disks that it writes to. DESIGN.md says what it does when one fills up or does not answer.

const (
	// spaceLook is how often free space is looked at besides at each append and each batch of entries applied.
	spaceLook = 250 * time.Millisecond
	// roomLook is how often one who waits for room looks again.
	roomLook = 100 * time.Millisecond
	// handoverInterval is the time from one try to find a node with space to the next.
	handoverInterval = time.Second
	handoverTimeout  = 3 * time.Second
	// collectInterval is how often Badger's value log is looked through.
	collectInterval = time.Hour
	// spaceReturn is by which part, 1/spaceReturn, there must be more than a mark until it counts as passed again.
	spaceReturn = 8
	// fewInodes and noInodes are marks for what a volume has of these, where it counts them.
	fewInodes, noInodes = 256, 32
	// leastCritical is what Badger may be writing while nothing new is applied: a memtable, and the tables of a compaction. Below it a
	// note says so.
	leastCritical = 64 << 20
)

// spaceLevel is how full a volume is.
type spaceLevel int32

// Levels, as peers tell them each other.
const (
	spaceEnough   spaceLevel = 0
	spaceLow      spaceLevel = 1 // the node gives up leading
	spaceCritical spaceLevel = 2 // it takes no entry any more
)

// DiskSpace is what a file system says of itself. Inodes are of those left; -1 where it does not count them.
type DiskSpace struct {
	Free, Size int64 // bytes; Free is what an unprivileged process may use
	Inodes     int64
}

// volume is a directory whose file system is watched. Safe for concurrent use.
type volume struct {
	name, path string
	// told means that nothing but a message follows from its level: all space in it that is ever used is allocated.
	told bool

	mu    sync.Mutex
	space DiskSpace
	level spaceLevel
	err   error // of the last look
}

// storage watches what the node writes to. Safe for concurrent use.
type storage struct {
	config  StorageConfig
	look    func(path string) (DiskSpace, error)
	log     *slog.Logger
	volumes []*volume
	raft    *volume
	state   *volume

	appends, applies operations
	// stall says, while not nil, which of the node's disks does not answer.
	stall  atomic.Pointer[string]
	failed atomic.Pointer[error] // a store has, for good
	alone  atomic.Bool           // as a leader short of space: there is nobody to hand over to

	stalls, handovers, refusedAppends, refusedWrites, collections, rewritten atomic.Uint64

	stop     chan struct{}
	stopOnce sync.Once
}

func newStorage(config StorageConfig, look func(string) (DiskSpace, error), raftPath, statePath, limiterPath string, log *slog.Logger) *storage {
	s := &storage{
		config: config, look: look, log: log, stop: make(chan struct{}),
		raft: &volume{name: "raft", path: raftPath}, state: &volume{name: "state", path: statePath},
	}
	s.volumes = []*volume{s.raft, s.state, {name: "limiter", path: limiterPath, told: true}}
	return s
}

// close ends the waiting for room.
func (s *storage) close() { s.stopOnce.Do(func() { close(s.stop) }) }

// marks are the free bytes below which a volume of a size is low and critical.
func (c *StorageConfig) marks(size int64) (low, critical int64) {
	return spaceMark(c.LowFreeBytes, c.LowFreePercent, size), spaceMark(c.CriticalFreeBytes, c.CriticalFreePercent, size)
}

// spaceMark is the smaller one of a number of bytes and a part of the volume: neither would a hundred gigabytes of a large volume be kept
// free, nor a gigabyte of one that has hardly more. A percentage of 0 does not count.
func spaceMark(bytes int64, percent int, size int64) int64 {
	if percent == 0 {
		return bytes
	}
	return min(bytes, size/100*int64(percent))
}

// levelOf is the level of a volume that was at before.
func (c *StorageConfig) levelOf(before spaceLevel, space DiskSpace) spaceLevel {
	low, critical := c.marks(space.Size)
	few, none := int64(fewInodes), int64(noInodes)
	below := func(level spaceLevel, mark, inodes int64) bool {
		if before >= level { // until it is clearly over the mark again
			mark += mark / spaceReturn
			inodes += inodes / spaceReturn
		}
		return space.Free < mark || space.Inodes >= 0 && space.Inodes < inodes
	}
	switch {
	case critical > 0 && below(spaceCritical, critical, none):
		return spaceCritical
	case low > 0 && below(spaceLow, low, few):
		return spaceLow
	}
	return spaceEnough
}

// check looks at a volume and tells when its level has changed.
func (s *storage) check(v *volume) spaceLevel {
	space, err := s.look(v.path)
	v.mu.Lock()
	defer v.mu.Unlock()
	if err != nil {
		if v.err == nil {
			s.log.Error("free space unknown", "volume", v.name, "error", err)
		}
		v.err = err
		return v.level
	}
	before := v.level
	v.space, v.err, v.level = space, nil, s.config.levelOf(before, space)
	if v.level == before {
		return v.level
	}
	low, critical := s.config.marks(space.Size)
	args := []any{"volume", v.name, "free_bytes", space.Free, "size_bytes", space.Size, "low_mark_bytes", low, "critical_mark_bytes", critical}
	switch {
	case v.level == spaceEnough:
		s.log.Info("enough space on the disk again", args...)
	case v.told:
		s.log.Warn("little space on the disk of the limiter's records, which need no more than they have", args...)
	case v.level == spaceLow:
		s.log.Warn("little space on the disk: this node gives up leading", args...)
	default:
		s.log.Error("no space on the disk: this node takes no entries until there is some", args...)
	}
	return v.level
}

// checkAll looks at all volumes.
func (s *storage) checkAll() {
	for _, v := range s.volumes {
		s.check(v)
	}
}

// now is the volume's level and space as of the last look.
func (v *volume) now() (spaceLevel, DiskSpace) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.level, v.space
}

// worst is the volume with the highest level that anything follows from.
func (s *storage) worst() (*volume, spaceLevel) {
	r, _ := s.raft.now()
	if l, _ := s.state.now(); l > r {
		return s.state, l
	}
	return s.raft, r
}

// appendRoom says whether the Raft log may take an entry: that is looked at before each, since a disk can fill up between two looks.
func (s *storage) appendRoom() error {
	s.check(s.raft)
	v, level := s.worst()
	if level < spaceCritical {
		return nil
	}
	s.refusedAppends.Add(1)
	_, space := v.now()
	return fmt.Errorf("%s free on the volume of %s", byteText(space.Free), v.name)
}

// applyRoom waits until the state may be written; false where the node stops before that.
func (s *storage) applyRoom() bool {
	for s.check(s.state) == spaceCritical {
		select {
		case <-time.After(roomLook):
		case <-s.stop:
			return false
		}
	}
	return true
}

// snapshotRoom says whether so many bytes of a snapshot can be written.
func (s *storage) snapshotRoom(size int64) error {
	s.check(s.raft)
	level, space := s.raft.now()
	_, critical := s.config.marks(space.Size)
	if level == spaceCritical || critical > 0 && space.Free-size < critical {
		return fmt.Errorf("no room for a snapshot: %s free on the volume of raft, %s to write", byteText(space.Free), byteText(size))
	}
	return nil
}

// retired says why this node may not lead, "" if it may: others are to be elected, whatever Raft takes this node for.
func (s *storage) retired() string {
	if err := s.failed.Load(); err != nil {
		return "not ready for writes: " + (*err).Error()
	}
	if v, level := s.worst(); level == spaceCritical {
		_, space := v.now()
		_, critical := s.config.marks(space.Size)
		return fmt.Sprintf("not ready for writes: %s free on the volume of %s, less than storage.critical_free_bytes and _percent (%s): this node takes no entries", spaceText(space), v.name, byteText(critical))
	}
	if stall := s.stall.Load(); stall != nil {
		return "not ready for writes: " + *stall
	}
	return ""
}

// low says why this node should not lead, "" if it may.
func (s *storage) low() string {
	v, level := s.worst()
	if level != spaceLow {
		return ""
	}
	_, space := v.now()
	low, _ := s.config.marks(space.Size)
	return fmt.Sprintf("not ready for writes: %s free on the volume of %s, less than storage.low_free_bytes and _percent (%s): this node does not lead where another can", spaceText(space), v.name, byteText(low))
}

// told says which volumes are short of space though nothing follows from it.
func (s *storage) told() string {
	var list []string
	for _, v := range s.volumes {
		if level, space := v.now(); v.told && level != spaceEnough {
			list = append(list, fmt.Sprintf("%s free on the volume of %s", spaceText(space), v.name))
		}
	}
	return strings.Join(list, ", ")
}

// fitness is what peers are told of it.
func (s *storage) fitness() spaceLevel {
	if s.retired() != "" {
		return spaceCritical
	}
	if s.low() != "" {
		return spaceLow
	}
	return spaceEnough
}

// admit says whether the leader proposes a client's command: one that is short of space and has nobody to hand over to keeps what is
// left for what must not wait.
func (s *storage) admit(cmd state.Command) error {
	reason := s.low()
	if reason == "" || essential(cmd) {
		return nil
	}
	s.refusedWrites.Add(1)
	if !s.alone.Load() {
		return fmt.Errorf("%w: leadership is being handed over, for lack of disk space", errUnavailable)
	}
	return &refusedError{reason: "no node that could lead has disk space left"}
}

// essential reports whether a command is taken while the leader's disk is nearly full: what ends or narrows a credential, what the cluster
// itself lives on, and what makes space. Each is small.
func essential(cmd state.Command) bool {
	switch cmd.(type) {
	case state.EndSession, state.EndSessions, state.SetPassword, state.UpdateKey, state.RotateKey, state.RevokeKey, state.RevokeKeyBySecret,
		state.SetUserDisabled, state.DeleteUser, state.DeleteOrg, state.RemoveMember, state.UpdateMember,
		state.InitCluster, state.PutSigningKey, state.Prune, state.Barrier, state.Horizon, state.SetRoster, state.PutNode, state.Leave,
		state.RaiseLevel, state.PutGossipKeyring:
		return true
	}
	return false
}

// watchSpace looks at the volumes until ctx ends.
func (s *storage) watchSpace(ctx context.Context) {
	tick := time.NewTicker(spaceLook)
	defer tick.Stop()
	for {
		s.checkAll()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// watchOffice keeps a leader whose disk does not answer, or has no room, from staying one, until ctx ends.
func (n *Node) watchOffice(ctx context.Context) {
	s := n.storage
	bound := time.Duration(s.config.AppendTimeout)
	tick := time.NewTicker(min(max(bound/8, 5*time.Millisecond), spaceLook))
	defer tick.Stop()
	var handing atomic.Bool
	var next time.Time
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		s.noteStalls(time.Now())
		k := n.consensus.Load()
		if k == nil {
			continue
		}
		reason := s.retired()
		if k.retire(reason != "") {
			if reason != "" {
				n.log.Error("this node stands back from leading: nothing goes to its followers", "reason", reason)
			} else {
				n.log.Info("this node may lead again")
			}
		}
		if s.low() == "" || !k.leads() {
			s.alone.Store(false)
			continue
		}
		if now := time.Now(); !now.Before(next) && handing.CompareAndSwap(false, true) {
			next = now.Add(handoverInterval)
			n.wg.Go(func() {
				defer handing.Store(false)
				n.handOverForSpace(ctx, k)
			})
		}
	}
}

// handOverForSpace makes a voter leader that has space and is not behind.
func (n *Node) handOverForSpace(ctx context.Context, k *consensus) {
	ctx, cancel := context.WithTimeout(ctx, handoverTimeout)
	defer cancel()
	members := n.members()
	var best *helloReply
	for i, h := range n.askMembers(ctx, members) {
		m := members[i]
		if h.err != nil || !m.Voter || m.ID == n.data.NodeID || h.reply.Storage != spaceEnough || h.reply.Applied+maxLag < n.fsm.AppliedIndex() {
			continue
		}
		if best == nil || cmp.Compare(h.reply.Applied, best.Applied) > 0 {
			best = &h.reply
		}
	}
	if best == nil {
		if !n.storage.alone.Swap(true) || k.once.allow("nobody to hand over to", time.Minute) {
			n.log.Warn("little space on the disk, and no other node that could lead has more: new accounts, keys and sessions are refused")
		}
		return
	}
	n.storage.alone.Store(false)
	if err := k.transferTo(ctx, best.NodeID); err != nil {
		if k.once.allow("hand over for space", 10*time.Second) {
			n.log.Warn("leadership not handed over", "to", best.NodeID, "error", err)
		}
		return
	}
	n.storage.handovers.Add(1)
	n.log.Warn("leadership handed over, for lack of disk space", "to", best.NodeID)
}

// collectValueLog has Badger look through its value log once an hour, until ctx ends.
func (n *Node) collectValueLog(ctx context.Context) {
	tick := time.NewTicker(collectInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			n.collectOnce()
		case <-ctx.Done():
			return
		}
	}
}

func (n *Node) collectOnce() {
	if _, level := n.storage.worst(); level == spaceCritical {
		return // it writes before it removes
	}
	rewritten, err := n.fsm.CollectValueLog()
	n.storage.collections.Add(1)
	if rewritten {
		n.storage.rewritten.Add(1)
	}
	if err != nil {
		n.log.Warn("value log not collected", "error", err)
	}
}

// enough says at the start whether there is room to open anything.
func (s *storage) enough() error {
	s.checkAll()
	for _, v := range s.volumes {
		level, space := v.now()
		low, critical := s.config.marks(space.Size)
		if level == spaceCritical && !v.told {
			return fmt.Errorf("%w: %s free in %s, and the mark of storage.critical_free_bytes and _percent is %s", ErrNoSpace, spaceText(space), v.path, byteText(critical))
		}
		if critical > 0 && critical < leastCritical && !v.told {
			s.log.Warn("storage.critical_free_bytes or _percent is less than the database may write at a time: a disk that fills up at once may end the process",
				"volume", v.name, "critical_mark_bytes", critical, "low_mark_bytes", low, "advised_bytes", leastCritical)
		}
	}
	return nil
}

// checkStorage tells of the disks.
func (n *Node) checkStorage() authapi.HealthCheck {
	c := authapi.HealthCheck{Name: "storage"}
	if reason := n.storage.retired(); reason != "" {
		c.Err = errors.New(reason)
		return c
	}
	c.Degraded = cmp.Or(n.storage.low(), n.storage.told())
	return c
}

// spaceText is what is free, for people.
func spaceText(s DiskSpace) string {
	if s.Inodes >= 0 && s.Inodes < fewInodes+fewInodes/spaceReturn {
		return fmt.Sprintf("%s and %d inodes", byteText(s.Free), s.Inodes)
	}
	return byteText(s.Free)
}

// byteText is a number of bytes in its largest whole unit.
func byteText(n int64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 10<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	default:
		return fmt.Sprintf("%d KiB", n>>10)
	}
}
