package node

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"sluice/raftfsm"
	"sluice/raftfsm/logstore"
	"sluice/raftfsm/state"
)

// A cluster that has lost its majority for good goes on from one node, in this order, on that node's stopped directory:
//
//  1. The log, the snapshots and the marks are copied aside. Until here nothing has changed.
//  2. recovery.json says that a recovery is under way, and which: a node does not start beside it, and whoever repeats the
//     command goes on with the same.
//  3. One more entry goes into the log (state.RecoverCluster): the cluster's new id, and who was lost.
//  4. Raft replays all of the log into the state and takes a snapshot whose configuration is this node alone (raft.RecoverCluster).
//  5. The marks say the new id; recovery.json goes.
//
// Every step may be the last before a crash, and may be repeated.
//
// The new id is what keeps it one cluster. Calls, gossip and, from the first recovery on, Raft's connections are of one id, so
// nodes of before reach nothing; and it tells by itself that it comes after the old one, so that they end as soon as they hear it.
const recoveryFile = "recovery.json"

var (
	// ErrSuperseded: the cluster was recovered without this node, and this data directory is of before.
	ErrSuperseded = errors.New("the cluster was recovered without this node")
	// ErrRecovering: a recovery of the data directory was cut off.
	ErrRecovering = errors.New("a recovery of this data directory has begun and not ended: repeat `sluice cluster recover`")
)

// recoveryMark joins a cluster's first id and what recoveries add: their number, and some randomness, since two recoveries of one
// cluster make two clusters.
const recoveryMark = "_r"

// splitClusterID takes a cluster's id apart; of one that was never recovered, recoveries is 0.
func splitClusterID(id string) (root string, recoveries int) {
	root, rest, ok := strings.Cut(id, recoveryMark)
	if !ok {
		return id, 0
	}
	number, _, _ := strings.Cut(rest, "_")
	recoveries, err := strconv.Atoi(number)
	if err != nil || recoveries < 1 {
		return id, 0
	}
	return root, recoveries
}

// recoveredClusterID is the id of what comes after a cluster.
func recoveredClusterID(id string) string {
	root, recoveries := splitClusterID(id)
	var b [4]byte
	rand.Read(b[:])
	return fmt.Sprintf("%s%s%d_%s", root, recoveryMark, recoveries+1, hex.EncodeToString(b[:]))
}

// supersedes reports whether a cluster came out of a recovery of another one, or of one that did.
func supersedes(newer, older string) bool {
	rootNew, recoveriesNew := splitClusterID(newer)
	rootOld, recoveriesOld := splitClusterID(older)
	return rootNew == rootOld && recoveriesNew > recoveriesOld
}

// RecoverOptions say what Recover does.
type RecoverOptions struct {
	// Apply: do it. Otherwise it is only said what would be done.
	Apply bool
	// DeadSince is since when no lost node has run; zero: until just now. Windows that began earlier are not this node's to
	// spend in.
	DeadSince time.Time
	// Now replaces time.Now in tests.
	Now    func() time.Time
	Logger *slog.Logger // nil: slog.Default()
}

// RecoveredMember is one member of the cluster as it was.
type RecoveredMember struct {
	ID      string `json:"id"`
	Address string `json:"address"`
	Voter   bool   `json:"voter"`
}

// Recovery is what Recover found, and did or would do.
type Recovery struct {
	Node          string            `json:"node"`
	Cluster       string            `json:"cluster_id"` // as it was
	Becomes       string            `json:"becomes"`    // its id from then on; "" where that is not chosen yet
	LastIndex     uint64            `json:"last_index"` // of the log: of several nodes that are left, the one with the highest term, then index, has most
	LastTerm      uint64            `json:"last_term"`
	AppliedIndex  uint64            `json:"applied_index"`
	SnapshotIndex uint64            `json:"snapshot_index"`
	Members       []RecoveredMember `json:"members"` // as it was
	Lost          []string          `json:"lost"`    // node ids
	SharesFrom    time.Time         `json:"shares_from"`
	Backup        string            `json:"backup"` // path; "" where nothing was done
	Done          bool              `json:"done"`
}

// recoveryPlan is recovery.json.
type recoveryPlan struct {
	Version   int      `json:"version"`
	Previous  string   `json:"previous"`
	ClusterID string   `json:"cluster_id"`
	Lost      []string `json:"lost"`
	Until     int64    `json:"until"` // Unix milliseconds
	Committed uint64   `json:"committed"`
	Since     int64    `json:"since"` // Unix milliseconds
	Backup    string   `json:"backup"`
	At        int64    `json:"at"`
}

// recoveredStores are the opened parts of a stopped node's directory.
type recoveredStores struct {
	data  *dataDir
	log   *logstore.Store
	snaps raft.SnapshotStore
	fsm   *raftfsm.FSM
	conf  *raft.Config
	trans raft.Transport
	fatal error
}

// Recover makes a cluster of its own of a stopped node whose cluster has lost its majority for good. Errors: ErrDataDirInUse where the
// node runs, ErrLeft, ErrLogLost; what the disk says. Where it fails before recovery.json was written, nothing has changed.
func Recover(cfg Config, o RecoverOptions) (report Recovery, err error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	now := o.Now()
	if o.DeadSince.IsZero() {
		o.DeadSince = now
	}
	if o.DeadSince.After(now) {
		return report, errors.New("the lost nodes cannot have been dead since a time that is to come")
	}
	if _, err := os.Stat(filepath.Join(cfg.DataDir, identityFile)); err != nil {
		return report, fmt.Errorf("%s is no node's data directory: %w", cfg.DataDir, err)
	}
	s, err := openRecovered(cfg, now, o.Logger)
	if err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	mark, err := s.data.membership()
	if err != nil {
		return report, err
	}
	if mark == nil {
		return report, errors.New("this node is no member of a cluster yet: there is nothing to recover")
	}
	var plan recoveryPlan
	begun, err := s.data.read(recoveryFile, &plan)
	if err != nil {
		return report, err
	}
	report = Recovery{Node: s.data.NodeID, Cluster: mark.ClusterID, AppliedIndex: s.fsm.AppliedIndex()}
	if err := s.describe(&report); err != nil {
		return report, err
	}
	if !begun {
		plan = recoveryPlan{
			Version: 1, Previous: mark.ClusterID, ClusterID: recoveredClusterID(mark.ClusterID), Lost: report.Lost, At: now.UnixMilli(),
			Until: o.DeadSince.Add(unheardHorizon(cfg)).UnixMilli(),
		}
	}
	report.Lost, report.SharesFrom = plan.Lost, time.UnixMilli(max(plan.Until, s.fsm.Limiter().Horizon)).UTC()
	if begun {
		report.Cluster, report.Becomes, report.Backup = plan.Previous, plan.ClusterID, plan.Backup
	}
	if !o.Apply {
		return report, nil
	}
	if !begun {
		if plan.Committed, plan.Since, err = s.committed(); err != nil {
			return report, err
		}
		if plan.Backup, err = s.data.copyAside(now); err != nil {
			return report, fmt.Errorf("copy aside, nothing was changed: %w", err)
		}
		if err := s.data.write(recoveryFile, &plan); err != nil {
			return report, err
		}
	}
	report.Becomes, report.Backup = plan.ClusterID, plan.Backup
	if err := s.rewrite(plan, now, &report); err != nil {
		return report, fmt.Errorf("%w; what was there before is in %s", err, plan.Backup)
	}
	own := []member{{ID: s.data.NodeID, Address: ownAddress(report), Voter: true}}
	if err := s.data.setFormation(&formation{Version: 1, ClusterID: plan.ClusterID, Members: own}); err != nil {
		return report, err
	}
	if err := s.data.setMembership(plan.ClusterID, now, true); err != nil {
		return report, err
	}
	if err := s.data.remove(recoveryFile); err != nil {
		return report, err
	}
	report.Done = true
	return report, nil
}

// unheardHorizon is how far ahead of the time of its death the horizon of a leader may have been that this node did not hear
// any more: by its lease, or by a restore under way, and by its clock.
func unheardHorizon(cfg Config) time.Duration {
	return max(restoreMost, time.Duration(cfg.Limits.Lease)) + 2*time.Duration(cfg.Limits.MaxClockSkew)
}

func ownAddress(r Recovery) string {
	for _, m := range r.Members {
		if m.ID == r.Node {
			return m.Address
		}
	}
	return ""
}

// openRecovered opens everything of a stopped node; nothing of it is changed by that.
func openRecovered(cfg Config, now time.Time, log *slog.Logger) (_ *recoveredStores, err error) {
	s := new(recoveredStores)
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.data, err = openDataDir(cfg.DataDir, now); err != nil {
		return nil, err
	}
	fatal := func(err error) { s.fatal = err }
	dir := filepath.Join(cfg.DataDir, raftDir)
	if _, err := os.Stat(filepath.Join(dir, "log.db")); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLogLost, err)
	}
	if s.log, err = openLogStore(dir, log, fatal, nil); err != nil {
		return nil, err
	}
	hlog := newHCLog(log, "raft")
	if s.snaps, err = raft.NewFileSnapshotStoreWithLogger(dir, snapshotsKept, hlog); err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	if begun, err := s.data.read(recoveryFile, new(recoveryPlan)); err != nil {
		return nil, err
	} else if begun {
		// The state may be of the new id already, and the newest snapshot not: all of it is in the log and the snapshots.
		if err := os.RemoveAll(filepath.Join(cfg.DataDir, stateDir)); err != nil {
			return nil, fmt.Errorf("remove half a state: %w", err)
		}
	}
	path, err := s.data.sub(stateDir)
	if err != nil {
		return nil, err
	}
	// Without a cluster's id: which one the state is of changes on the way.
	if s.fsm, err = raftfsm.Open(raftfsm.Config{Dir: path, Logger: log.With("component", "state"), Fatal: fatal}); err != nil {
		return nil, err
	}
	s.conf = raft.DefaultConfig()
	s.conf.LocalID = raft.ServerID(s.data.NodeID)
	s.conf.Logger = hlog
	s.conf.NoLegacyTelemetry = true
	_, s.trans = raft.NewInmemTransport(raft.ServerAddress(s.data.NodeID)) // nobody is dialled
	return s, nil
}

func (s *recoveredStores) close() error {
	var errs []error
	if s.fsm != nil {
		errs = append(errs, s.fsm.Close())
	}
	if s.log != nil {
		errs = append(errs, s.log.Close())
	}
	if s.data != nil {
		errs = append(errs, s.data.close())
	}
	return errors.Join(errs...)
}

// describe reads who the members are and how far the log goes.
func (s *recoveredStores) describe(r *Recovery) error {
	last, snapshot, err := storedState(s.log, s.snaps)
	if err != nil {
		return err
	}
	if last == 0 && snapshot == 0 {
		return ErrLogLost
	}
	r.LastIndex, r.SnapshotIndex = max(last, snapshot), snapshot
	if r.AppliedIndex > r.LastIndex {
		return fmt.Errorf("%w: the state holds entries up to %d, the log only up to %d", ErrLogLost, r.AppliedIndex, r.LastIndex)
	}
	if r.LastTerm, err = s.lastTerm(last); err != nil {
		return err
	}
	conf := *s.conf
	conf.NoSnapshotRestoreOnStart = true // who is asked for stands beside the snapshot
	configuration, err := raft.GetConfiguration(&conf, s.fsm, s.log, s.log, s.snaps, s.trans)
	if err != nil {
		return fmt.Errorf("read raft configuration: %w", err)
	}
	for _, server := range configuration.Servers {
		r.Members = append(r.Members, RecoveredMember{ID: string(server.ID), Address: string(server.Address), Voter: server.Suffrage == raft.Voter})
		if string(server.ID) != r.Node {
			r.Lost = append(r.Lost, string(server.ID))
		}
	}
	return nil
}

// committed is up to which entry all is surely committed, and the horizon then. What was applied was; where the state was thrown away
// after a crash of the machine, the newest snapshot says as much.
func (s *recoveredStores) committed() (index uint64, horizon int64, err error) {
	if s.fsm.AppliedIndex() == 0 {
		list, err := s.snaps.List()
		if err != nil {
			return 0, 0, fmt.Errorf("list snapshots: %w", err)
		}
		if len(list) == 0 {
			return 0, 0, nil
		}
		_, source, err := s.snaps.Open(list[0].ID)
		if err != nil {
			return 0, 0, fmt.Errorf("open snapshot: %w", err)
		}
		if err := errors.Join(s.fsm.Restore(source), source.Close()); err != nil {
			return 0, 0, err
		}
	}
	return s.fsm.AppliedIndex(), s.fsm.Limiter().Horizon, nil
}

// releasing gives a snapshot back once it is written: raft.RecoverCluster does not, and the state waits for it when it is closed.
type releasing struct{ raft.FSM }

// Snapshot implements raft.FSM.
func (f releasing) Snapshot() (raft.FSMSnapshot, error) {
	snapshot, err := f.FSM.Snapshot()
	if err != nil {
		return nil, err
	}
	return released{snapshot}, nil
}

type released struct{ raft.FSMSnapshot }

// Persist implements raft.FSMSnapshot.
func (s released) Persist(sink raft.SnapshotSink) error {
	defer s.Release()
	return s.FSMSnapshot.Persist(sink)
}

// lastTerm is the term of the last entry, of the log or of the newest snapshot.
func (s *recoveredStores) lastTerm(last uint64) (uint64, error) {
	list, err := s.snaps.List()
	if err != nil {
		return 0, fmt.Errorf("list snapshots: %w", err)
	}
	if len(list) > 0 && list[0].Index >= last {
		return list[0].Term, nil
	}
	var entry raft.Log
	if err := s.log.GetLog(last, &entry); err != nil {
		return 0, fmt.Errorf("read log: %w", err)
	}
	return entry.Term, nil
}

// rewrite does steps 3 and 4.
func (s *recoveredStores) rewrite(plan recoveryPlan, now time.Time, r *Recovery) error {
	event := operatorEvent("cluster.recovered", s.data.NodeID, now, "from", plan.Previous, "to", plan.ClusterID,
		"lost", strings.Join(plan.Lost, " "), "index", strconv.FormatUint(r.LastIndex, 10))
	envelope, err := state.Encode(state.Envelope{RequestID: newRequestID(), ProposedAt: now.UnixMilli(), Command: state.RecoverCluster{
		Previous: plan.Previous, ClusterID: plan.ClusterID, Node: s.data.NodeID, Lost: plan.Lost, Until: plan.Until,
		Committed: plan.Committed, Since: plan.Since, Audit: []state.AuditEvent{event},
	}})
	if err != nil {
		return fmt.Errorf("make entry: %w", err)
	}
	entry := &raft.Log{Index: r.LastIndex + 1, Term: r.LastTerm, Type: raft.LogCommand, Data: envelope, AppendedAt: now}
	if err := s.log.StoreLog(entry); err != nil {
		return fmt.Errorf("write entry: %w", err)
	}
	alone := raft.Configuration{Servers: []raft.Server{{
		Suffrage: raft.Voter, ID: raft.ServerID(s.data.NodeID), Address: raft.ServerAddress(ownAddress(*r)),
	}}}
	if alone.Servers[0].Address == "" { // it was no member of its own configuration any more
		alone.Servers[0].Address = raft.ServerAddress(s.data.NodeID)
	}
	err = raft.RecoverCluster(s.conf, releasing{s.fsm}, s.log, s.log, s.snaps, s.trans, alone)
	if err = errors.Join(err, s.fatal); err != nil {
		return fmt.Errorf("rewrite raft: %w", err)
	}
	secrets, err := s.fsm.View().ClusterSecrets()
	if err != nil {
		return fmt.Errorf("read state: %w", err)
	}
	if secrets == nil || secrets.ClusterID != plan.ClusterID {
		return errors.New("the state is not of this cluster: it did not take the new id")
	}
	r.AppliedIndex = s.fsm.AppliedIndex()
	return nil
}

// copyAside copies the log, the snapshots and the marks into a directory of their own, whose path it returns.
func (d *dataDir) copyAside(now time.Time) (path string, err error) {
	path = filepath.Join(d.path, "before-recovery-"+now.UTC().Format("20060102T150405.000Z"))
	partial := path + ".partial"
	if err := os.RemoveAll(partial); err != nil {
		return "", err
	}
	if err := os.MkdirAll(partial, 0o700); err != nil {
		return "", err
	}
	for _, name := range []string{raftDir, memberFile, formationFile} {
		if err := copyTree(filepath.Join(d.path, name), filepath.Join(partial, name)); err != nil {
			return "", err
		}
	}
	if err := os.Rename(partial, path); err != nil {
		return "", err
	}
	return path, syncDir(d.path)
}

// copyTree copies a file or a directory, durably. What is not there is left out.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path == from {
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		if entry.IsDir() {
			return os.MkdirAll(target, 0o700)
		}
		return copyFile(path, target)
	})
}

func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close(), syncDir(filepath.Dir(to))) }()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Sync()
}

// remove takes a file away, durably.
func (d *dataDir) remove(name string) error {
	if err := os.Remove(filepath.Join(d.path, name)); err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return syncDir(d.path)
}

// unfinishedRecovery is ErrRecovering where one was cut off.
func (d *dataDir) unfinishedRecovery() error {
	var plan recoveryPlan
	begun, err := d.read(recoveryFile, &plan)
	if err == nil && begun {
		err = fmt.Errorf("%w (from %s to %s)", ErrRecovering, plan.Previous, plan.ClusterID)
	}
	return err
}

// raftProto is the application protocol of Raft's connections within a cluster. From the first recovery on it names the cluster: Raft
// itself would take entries from a leader of the cluster as it was.
func raftProto(clusterID string) string {
	if _, recoveries := splitClusterID(clusterID); recoveries > 0 {
		return protoRaft + "+" + clusterID
	}
	return protoRaft
}

// errOlderCluster: the other end is of the cluster as it was before a recovery.
var errOlderCluster = errors.New("it belongs to the cluster as it was before its recovery: its data directory has to be emptied, and it joins as a new node")

// otherCluster is told of a peer that belongs to another cluster of this one's name. Where that one came out of a recovery of this
// one, this node is of the past: it ends, so that there are never two.
func (n *Node) otherCluster(peer, id string) {
	ours := n.clusterID()
	if ours == "" || id == "" || id == ours {
		return
	}
	if supersedes(id, ours) {
		n.fail(fmt.Errorf("%w: it is %s now, and this node is of %s; empty %s, and let it join as a new node", ErrSuperseded, id, ours, n.data.path))
		return
	}
	if n.once.allow("other cluster "+peer, refusedLogInterval) {
		text := errOtherCluster
		if supersedes(ours, id) {
			text = errOlderCluster
		}
		n.log.Warn("peer refused", "peer", peer, "cluster_id", id, "own_cluster_id", ours, "error", text)
	}
}

// tellLost calls those who were lost in a recovery, where they were last: one that comes back without having heard ends then.
func (n *Node) tellLost() {
	if _, recoveries := splitClusterID(n.clusterID()); recoveries == 0 {
		return
	}
	infos, err := n.fsm.Nodes()
	if err != nil {
		return
	}
	members := n.members()
	for _, info := range infos {
		if info.RemovedAt == 0 || info.PeerAddress == "" || n.opts.clock().Sub(time.UnixMilli(info.RemovedAt)) > lostCalled {
			continue
		}
		taken := false
		for _, m := range members {
			taken = taken || m.Address == info.PeerAddress
		}
		if !taken {
			n.greet(info.PeerAddress)
		}
	}
}

// lostCalled is for how long after a recovery the lost are called.
const lostCalled = 30 * 24 * time.Hour
