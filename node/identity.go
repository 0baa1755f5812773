package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"crypto/rand"

	"github.com/oklog/ulid/v2"
)

// Files of the data directory. The directory is 0700 and everything in it 0600.
const (
	lockFile      = "LOCK"
	identityFile  = "identity.json"
	formationFile = "formation.json"
	memberFile    = "member.json"
	leftFile      = "left.json"
	stateDir      = "state"
	raftDir       = "raft"
	limiterDir    = "limiter"
)

// nodeIDPrefix begins every node id.
const nodeIDPrefix = "nod_"

// identity is who this node is. It is made with the data directory and never changes; the incarnation rises whenever the
// limiter is opened.
type identity struct {
	Version     int    `json:"version"`
	NodeID      string `json:"node_id"`
	CreatedAt   int64  `json:"created_at"` // Unix milliseconds
	Incarnation uint64 `json:"incarnation"`
}

// formation is the configuration that this node has agreed to form a cluster with. Once written it is never replaced:
// another one might have been acted on by a peer already.
type formation struct {
	Version   int      `json:"version"`
	ClusterID string   `json:"cluster_id"`
	Members   []member `json:"members"` // sorted by id
	// Joining: these are the addresses to begin with of a cluster that this node joins, and nothing to form one by.
	Joining bool `json:"joining,omitempty"`
}

// member is one server of a configuration.
type member struct {
	ID      string `json:"id" cbor:"1,keyasint"`
	Address string `json:"address" cbor:"2,keyasint"`
	Voter   bool   `json:"voter" cbor:"3,keyasint"`
}

// membership marks a node that has become part of a cluster. It lives outside the log on purpose: an emptied log beside
// it means that the node must not start.
type membership struct {
	Version   int    `json:"version"`
	ClusterID string `json:"cluster_id"`
	JoinedAt  int64  `json:"joined_at"`
	// Settled: this node has asked for its vote, or wanted none. From then on operators decide whether it votes.
	Settled bool `json:"settled,omitempty"`
}

// dataDir is an opened, locked data directory. Not safe for concurrent use but for the paths.
type dataDir struct {
	path string
	lock *os.File
	identity
}

// openDataDir makes the directory if need be, locks it, and reads or makes the identity.
func openDataDir(path string, now time.Time) (_ *dataDir, err error) {
	if path == "" {
		return nil, errors.New("data_dir is not set")
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	// An existing directory may be more open than what it is going to hold allows.
	if err := os.Chmod(path, 0o700); err != nil {
		return nil, fmt.Errorf("close data directory to others: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(path, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock file: %w", err)
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	if err := lockWithin(lock, lockPatience); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s", ErrDataDirInUse, path)
		}
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	d := &dataDir{path: path, lock: lock}
	var left leftMark
	if gone, err := d.read(leftFile, &left); err != nil {
		return nil, err
	} else if gone {
		return nil, fmt.Errorf("%w at %s: empty %s, and let it join as a new node", ErrLeft, time.UnixMilli(left.LeftAt).UTC().Format(time.RFC3339), path)
	}
	found, err := d.read(identityFile, &d.identity)
	if err != nil {
		return nil, err
	}
	if !found {
		// A directory that holds state but no identity is not ours to name anew.
		for _, name := range []string{stateDir, raftDir, limiterDir, memberFile, formationFile} {
			if _, err := os.Lstat(filepath.Join(path, name)); err == nil {
				return nil, fmt.Errorf("data directory %s holds %s but no %s", path, name, identityFile)
			}
		}
		id, err := ulid.New(ulid.Timestamp(now), rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("make node id: %w", err)
		}
		d.identity = identity{Version: 1, NodeID: nodeIDPrefix + strings.ToLower(id.String()), CreatedAt: now.UnixMilli()}
	}
	if d.identity.Version != 1 || !validNodeID(d.NodeID) {
		return nil, fmt.Errorf("%s: unknown version or malformed node id", filepath.Join(path, identityFile))
	}
	if !found {
		if err := d.write(identityFile, &d.identity); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// nextIncarnation raises the limiter's incarnation durably, so that no two of its lives ever act under the same one. The
// first is 1: only that one may take an empty limiter directory for a first start.
func (d *dataDir) nextIncarnation() (uint64, error) {
	next := d.identity
	next.Incarnation++
	if err := d.write(identityFile, &next); err != nil {
		return 0, err
	}
	d.Incarnation = next.Incarnation
	return next.Incarnation, nil
}

// lockPatience is how long a lock held by another process is waited for: one that was killed holds it until the system
// has taken it down, which outlasts the signal.
const lockPatience = 2 * time.Second

func lockWithin(f *os.File, patience time.Duration) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EWOULDBLOCK) || time.Now().After(deadline) {
			return err
		}
	}
}

// validNodeID reports whether s has the form of a node id.
func validNodeID(s string) bool {
	text, ok := strings.CutPrefix(s, nodeIDPrefix)
	if !ok || text != strings.ToLower(text) {
		return false
	}
	_, err := ulid.ParseStrict(strings.ToUpper(text))
	return err == nil
}

// sub returns the path of a directory inside, made if need be.
func (d *dataDir) sub(name string) (string, error) {
	path := filepath.Join(d.path, name)
	if err := os.MkdirAll(path, 0o700); err != nil {
		return "", fmt.Errorf("make %s directory: %w", name, err)
	}
	return path, nil
}

// formation returns the agreed configuration, nil if there is none yet.
func (d *dataDir) formation() (*formation, error) {
	f := new(formation)
	if found, err := d.read(formationFile, f); err != nil || !found {
		return nil, err
	}
	return f, nil
}

// membership returns the marker, nil if this node is no member yet.
func (d *dataDir) membership() (*membership, error) {
	m := new(membership)
	if found, err := d.read(memberFile, m); err != nil || !found {
		return nil, err
	}
	return m, nil
}

// leftMark says that the node left its cluster for good.
type leftMark struct {
	Version int    `json:"version"`
	Heir    string `json:"heir"` // "" for none
	LeftAt  int64  `json:"left_at"`
}

// setLeft persists that nothing in the directory is to be used again.
func (d *dataDir) setLeft(heir string, now time.Time) error {
	return d.write(leftFile, &leftMark{Version: 1, Heir: heir, LeftAt: now.UnixMilli()})
}

// setFormation persists the agreed configuration.
func (d *dataDir) setFormation(f *formation) error { return d.write(formationFile, f) }

// setMembership persists the marker.
func (d *dataDir) setMembership(clusterID string, now time.Time, settled bool) error {
	return d.write(memberFile, &membership{Version: 1, ClusterID: clusterID, JoinedAt: now.UnixMilli(), Settled: settled})
}

// settle notes that the node is done with joining.
func (d *dataDir) settle() error {
	m, err := d.membership()
	if err != nil || m == nil || m.Settled {
		return err
	}
	m.Settled = true
	return d.write(memberFile, m)
}

// read decodes a file strictly; found is false where there is none.
func (d *dataDir) read(name string, v any) (found bool, err error) {
	path := filepath.Join(d.path, name)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read %s: %w", name, err)
	}
	if err := json.Unmarshal(text, v); err != nil {
		return false, fmt.Errorf("read %s: %w", path, err)
	}
	return true, nil
}

// write replaces a file durably: new file, synced, renamed, directory synced.
func (d *dataDir) write(name string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	path := filepath.Join(d.path, name)
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	_, err = f.Write(append(text, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err == nil {
		err = syncDir(d.path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// syncDir makes a rename in a directory durable.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// close gives the lock back. The lock file stays: removing it would let two processes lock two different files.
func (d *dataDir) close() error { return d.lock.Close() }
