package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"sluice/raftfsm"
	"sluice/raftfsm/logstore"
)

const (
	// commitTimeout is how long a follower may wait to hear that an entry was committed, when no other entry tells it
	// sooner (Raft spreads it over one to two times this). A write through a follower waits for it; a connection to each
	// follower is used that often while all is idle.
	commitTimeout = 10 * time.Millisecond
	// raftTimeout bounds one exchange between Raft peers.
	raftTimeout = 5 * time.Second
	// raftStop bounds the wait for Raft's goroutines at the end.
	raftStop = 10 * time.Second
	// snapshotsKept is how many snapshots stay on disk: an unreadable one must not be the only one.
	snapshotsKept = 3
	// enqueueTimeout bounds the wait for Raft's main loop to take an entry.
	enqueueTimeout = time.Second
)

// consensusConfig is what openConsensus needs.
type consensusConfig struct {
	self      string
	dir       string
	raft      RaftConfig
	stream    raft.StreamLayer
	fsm       *raftfsm.FSM
	log       *slog.Logger
	fatal     func(error)
	bootstrap *formation                                                     // agreed configuration, used where the log is empty
	member    bool                                                           // this node has been a member before: an empty log is a lost one
	may       func(ctx context.Context, k *consensus, envelope []byte) error // asked before a command comes into the log; nil: all may
	storage   *storage
	wrap      func(LogStore) LogStore // nil but in tests
	cut       func()                  // ends the connections that Raft has dialled
	standBack *atomic.Bool            // nothing is dialled for Raft while it is set
}

// consensus is this node's Raft with what has to be known about it all the time. Safe for concurrent use.
type consensus struct {
	self  string
	raft  *raft.Raft
	fsm   *raftfsm.FSM
	store *logstore.Store
	log   *slog.Logger
	times *raftTimes

	may func(ctx context.Context, k *consensus, envelope []byte) error

	// retired: this node may not lead, whatever Raft takes it for.
	retired      *atomic.Bool
	cut          func()
	once         onceIn
	leadership   broadcast // leader or state changed; re-read, never count
	leaderMoves  atomic.Int64
	cleaned      atomic.Int64 // dead members that this node removed as the leader
	lastLeader   atomic.Pointer[string]
	notify       chan bool
	observed     chan raft.Observation
	observer     *raft.Observer
	stop         chan struct{}
	wg           sync.WaitGroup
	closeOnce    sync.Once
	closeErr     error
	contactMu    sync.Mutex
	contactLost  map[string]time.Time // as leader: since when a peer does not answer heartbeats
	becameLeader time.Time            // guarded by contactMu
	// fence is held for reading while a proposal is handed to Raft: who holds it for writing knows that none is under way.
	fence  sync.RWMutex
	fenced bool // a backup is being restored: nothing is proposed; guarded by fence
	// followed is whom this node followed last; predecessor the same when it became the leader, and when it last heard of
	// that one. Guarded by contactMu.
	followed, predecessor string
	predecessorHeard      time.Time
}

// storedState reports whether the log or a snapshot holds anything.
func storedState(logs raft.LogStore, snaps raft.SnapshotStore) (last, snapshot uint64, err error) {
	if last, err = logs.LastIndex(); err != nil {
		return 0, 0, fmt.Errorf("read log: %w", err)
	}
	list, err := snaps.List()
	if err != nil {
		return 0, 0, fmt.Errorf("list snapshots: %w", err)
	}
	if len(list) > 0 {
		snapshot = list[0].Index
	}
	return last, snapshot, nil
}

// openConsensus opens the log and starts Raft on it. On an error everything it opened is closed again.
func openConsensus(cfg consensusConfig) (_ *consensus, err error) {
	store, err := openLogStore(cfg.dir, cfg.log, cfg.fatal, cfg.storage.appendRoom)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, store.Close())
		}
	}()
	hlog := newHCLog(cfg.log, "raft")
	files, err := openSnapshots(cfg.dir, hlog)
	if err != nil {
		return nil, err
	}
	snaps := watchedSnapshots{files, cfg.storage}
	last, snapshot, err := storedState(store, snaps)
	if err != nil {
		return nil, err
	}
	if cfg.member && last == 0 && snapshot == 0 {
		return nil, fmt.Errorf("%w: remove this node from the cluster, empty its data directory and join as a new node", ErrLogLost)
	}
	applied := cfg.fsm.AppliedIndex()
	if applied > max(last, snapshot) {
		return nil, fmt.Errorf("%w: the state holds entries up to %d, the log only up to %d", ErrLogLost, applied, max(last, snapshot))
	}

	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(cfg.self)
	c.HeartbeatTimeout = time.Duration(cfg.raft.HeartbeatTimeout)
	c.ElectionTimeout = time.Duration(cfg.raft.ElectionTimeout)
	// Nothing is read on the strength of the lease (design: freshness), so that it need not be shorter than the
	// followers' patience; a shorter one only costs leaders on a busy machine.
	c.LeaderLeaseTimeout = c.HeartbeatTimeout
	c.CommitTimeout = commitTimeout
	c.MaxAppendEntries = 256
	// Raft batches the proposals that wait all the same. With a buffer (BatchApplyCh), one that lies in it when Raft
	// stops, or stops leading, would not be told, and the time-out of enqueueing would mean nothing.
	c.BatchApplyCh = false
	c.SnapshotThreshold = cfg.raft.SnapshotThreshold
	c.SnapshotInterval = time.Duration(cfg.raft.SnapshotInterval)
	// A snapshot that turns out to be unreadable must leave an older one and the log from there.
	c.TrailingLogs = max(cfg.raft.TrailingLogs, 2*cfg.raft.SnapshotThreshold)
	c.Logger = hlog
	c.NoLegacyTelemetry = true
	// The state is durable by itself. Only where it is behind the newest snapshot (a database thrown away after a crash
	// of the machine, a restore that did not finish) has the snapshot to be read again: the log before it is gone.
	c.NoSnapshotRestoreOnStart = applied >= snapshot
	if !c.NoSnapshotRestoreOnStart {
		cfg.log.Info("restoring the state from the newest snapshot", "applied", applied, "snapshot", snapshot)
	}

	k := &consensus{
		self: cfg.self, fsm: cfg.fsm, store: store, log: cfg.log, may: cfg.may, times: newRaftTimes(),
		notify: make(chan bool, 1), observed: make(chan raft.Observation, 256), stop: make(chan struct{}),
		contactLost: make(map[string]time.Time),
		retired:     cfg.standBack, cut: cfg.cut,
	}
	var logs LogStore = store
	if cfg.wrap != nil {
		logs = cfg.wrap(logs)
	}
	watched := watchedLog{LogStore: logs, storage: cfg.storage}
	c.NotifyCh = k.notify
	trans := raftTransport{patience: c.HeartbeatTimeout, NetworkTransport: raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		ServerAddressProvider: idAddresses{},
		Logger:                newHCLog(cfg.log, "raft-net"),
		Stream:                cfg.stream,
		MaxPool:               3,
		Timeout:               raftTimeout,
	})}
	defer func() {
		if err != nil {
			trans.Close()
		}
	}()
	if cfg.bootstrap != nil && last == 0 && snapshot == 0 {
		var configuration raft.Configuration
		for _, m := range cfg.bootstrap.Members {
			configuration.Servers = append(configuration.Servers, raft.Server{
				Suffrage: raft.Voter, ID: raft.ServerID(m.ID), Address: raft.ServerAddress(m.Address),
			})
		}
		if err := raft.BootstrapCluster(c, watched, watched, snaps, trans, configuration); err != nil && !errors.Is(err, raft.ErrCantBootstrap) {
			return nil, fmt.Errorf("bootstrap raft: %w", err)
		}
	}
	if k.raft, err = raft.NewRaft(c, measuredFSM{watchedState{FSM: cfg.fsm, storage: cfg.storage}, k.times}, measuredLog{watched, k.times}, watched, snaps, trans); err != nil {
		return nil, fmt.Errorf("start raft: %w", err)
	}
	k.observer = raft.NewObserver(k.observed, false, func(o *raft.Observation) bool {
		switch o.Data.(type) {
		case raft.LeaderObservation, raft.FailedHeartbeatObservation, raft.ResumedHeartbeatObservation, raft.RaftState:
			return true
		}
		return false
	})
	k.raft.RegisterObserver(k.observer)
	k.wg.Go(k.watch)
	return k, nil
}

// watch drains what Raft tells, so that it never blocks on it, and keeps who leads and who is silent.
func (k *consensus) watch() {
	for {
		select {
		case <-k.notify:
			k.noteLeader()
		case o := <-k.observed:
			switch data := o.Data.(type) {
			case raft.FailedHeartbeatObservation:
				k.contactMu.Lock()
				if _, known := k.contactLost[string(data.PeerID)]; !known {
					since := k.lastHeard(string(data.PeerID), data.LastContact)
					k.contactLost[string(data.PeerID)] = since
				}
				k.contactMu.Unlock()
			case raft.ResumedHeartbeatObservation:
				k.contactMu.Lock()
				delete(k.contactLost, string(data.PeerID))
				k.contactMu.Unlock()
			default:
				k.noteLeader()
			}
		case <-k.stop:
			return
		}
	}
}

// neverAnswered is how long after this node became the leader a peer's last contact, as Raft tells it, can still be the
// moment at which Raft began to ask it, which it takes for a contact.
const neverAnswered = 100 * time.Millisecond

// lastHeard is when a peer that does not answer was last heard of. Nobody listened for a peer here before this leadership,
// but for the leader of before: where that never answered since, its last heartbeat counts. contactMu is held.
func (k *consensus) lastHeard(peer string, contact time.Time) time.Time {
	if contact.After(k.becameLeader.Add(neverAnswered)) {
		return contact
	}
	if peer == k.predecessor && !k.predecessorHeard.IsZero() && k.predecessorHeard.Before(k.becameLeader) {
		return k.predecessorHeard
	}
	if contact.Before(k.becameLeader) {
		return k.becameLeader
	}
	return contact
}

// noteLeader re-reads who leads and tells who waits for a change.
func (k *consensus) noteLeader() {
	leader := k.leader()
	if old := k.lastLeader.Load(); old == nil || *old != leader {
		k.lastLeader.Store(&leader)
		if leader != "" {
			k.leaderMoves.Add(1)
			k.log.Info("leader", "leader", leader)
		} else {
			k.log.Info("no leader")
		}
	}
	if k.raft.State() != raft.Leader {
		k.contactMu.Lock()
		if leader != "" {
			k.followed = leader
		}
		clear(k.contactLost)
		k.becameLeader = time.Time{}
		k.contactMu.Unlock()
	} else {
		k.contactMu.Lock()
		if k.becameLeader.IsZero() {
			k.becameLeader, k.predecessor, k.predecessorHeard = time.Now(), k.followed, k.raft.LastContact()
		}
		k.contactMu.Unlock()
	}
	k.leadership.signal()
}

// leader is the id of the node that leads as far as this one knows, "" for none.
func (k *consensus) leader() string {
	_, id := k.raft.LeaderWithID()
	if string(id) == k.self && k.retired.Load() {
		return "" // the others elect one, or have, and Raft may not have heard of it
	}
	return string(id)
}

// leads reports whether this node takes itself for the leader. Only a committed entry proves it.
func (k *consensus) leads() bool { return !k.retired.Load() && k.raft.State() == raft.Leader }

// retire makes this node stand back from leading, or ends that; changed says whether it did not before. Raft keeps a leader in office whose
// disk does not answer: its heartbeats come from other goroutines than the one that waits, and a transfer of the leadership waits for that one
// as well. So nothing that Raft sends leaves this node: its followers miss the heartbeats and elect another. What comes in is let through,
// the new leader's heartbeats among it.
func (k *consensus) retire(on bool) (changed bool) {
	if k.retired.Swap(on) == on {
		return false
	}
	if on {
		k.cut()
	}
	k.noteLeader()
	return true
}

// under derives a context for a question to the leader, which ends when another node leads or none: a leader that was
// paused or cut off does not answer, and waiting for it would only take from the time that its successor needs.
func (k *consensus) under(ctx context.Context, leader string) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		for {
			changed := k.leadership.wait()
			if k.leader() != leader {
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return ctx, cancel
}

// silentSince is, on the leader, since when a peer has not answered; ok is false where it answers.
func (k *consensus) silentSince(id string) (since time.Time, ok bool) {
	k.contactMu.Lock()
	defer k.contactMu.Unlock()
	since, ok = k.contactLost[id]
	return since, ok
}

// servers is the newest configuration that this node has, committed or not.
func (k *consensus) servers() (servers []member, err error) {
	future := k.raft.GetConfiguration()
	if err := future.Error(); err != nil {
		return nil, fmt.Errorf("read raft configuration: %w", err)
	}
	for _, s := range future.Configuration().Servers {
		servers = append(servers, member{ID: string(s.ID), Address: string(s.Address), Voter: s.Suffrage == raft.Voter})
	}
	return servers, nil
}

// transferLeadership hands the office to the most advanced follower and waits until somebody else has it, or ctx ends.
// It does nothing on a follower or where there is nobody to hand it to.
func (k *consensus) transferLeadership(ctx context.Context) error {
	if !k.leads() {
		return nil
	}
	servers, err := k.servers()
	if err != nil {
		return err
	}
	voters := 0
	for _, s := range servers {
		if s.Voter && s.ID != k.self {
			voters++
		}
	}
	if voters == 0 {
		return nil
	}
	if err := k.await(ctx, k.raft.LeadershipTransfer()); err != nil {
		return fmt.Errorf("transfer leadership: %w", err)
	}
	return nil
}

// shutdown stops Raft and waits for its goroutines, but not for ever: a leader that was deposed may have left one behind that
// sends into a pipeline whose reader has gone, and waits there until the process ends. It holds nothing that is closed next.
func (k *consensus) shutdown() error {
	done := make(chan error, 1)
	go func() { done <- k.raft.Shutdown().Error() }()
	timer := time.NewTimer(raftStop)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		k.log.Warn("raft has not stopped in time; going on without it", "waited", raftStop.String())
		return nil
	}
}

// close stops Raft and closes the log. The FSM and the stream layer are the caller's.
func (k *consensus) close() error {
	k.closeOnce.Do(func() {
		err := k.shutdown()
		k.raft.DeregisterObserver(k.observer)
		close(k.stop)
		k.wg.Wait()
		k.leadership.signal()
		k.closeErr = errors.Join(err, k.store.Close())
	})
	return k.closeErr
}

// await waits for a future of Raft's, the context, or Raft's end, whichever is first. The wait for the future goes on in
// a goroutine of its own; Raft answers each but those that it had committed and not yet applied when it stopped.
func (k *consensus) await(ctx context.Context, future raft.Future) error {
	done := make(chan error, 1)
	go func() { done <- future.Error() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-k.stop:
		return raft.ErrRaftShutdown
	}
}

// openLogStore opens the durable log. The first write that fails ends the process through fatal.
func openLogStore(dir string, logger *slog.Logger, fatal func(error), room func() error) (*logstore.Store, error) {
	store, err := logstore.Open(logstore.Config{Path: filepath.Join(dir, "log.db"), Logger: logger.With("component", "log-store"), Fatal: fatal, Room: room})
	if err != nil {
		return nil, fmt.Errorf("open log store: %w", err)
	}
	return store, nil
}

// broadcast wakes everybody who waits. The zero value is ready. Take the channel first, then look at the state, then
// wait: a change in between is not missed.
type broadcast struct {
	mu sync.Mutex
	ch chan struct{}
}

func (b *broadcast) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

func (b *broadcast) signal() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}
