package raftfsm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"

	"sluice/raftfsm/state"
)

// Steps of a restore, between which it may be cut off.
const (
	stepLoaded   = "loaded"   // the new database is complete and closed
	stepSynced   = "synced"   // ... and on disk
	stepSwitched = "switched" // CURRENT names it
)

// Restore replaces the state by a snapshot. The snapshot is checked and written into a database of its own; replacing
// CURRENT makes it the state, so a crash at any moment leaves the old state or the new one. Reads go on meanwhile: on
// the old state until the switch, a read begun before it to its end. Any error goes to Config.Fatal as well, because
// Raft would go on as if the snapshot were in.
func (f *FSM) Restore(source io.ReadCloser) error {
	if f.failed.Load() || !f.room() {
		return ErrFailed
	}
	if err := f.restore(source); err != nil {
		err = fmt.Errorf("restore snapshot: %w", err)
		f.fail(err)
		return err
	}
	f.announce()
	return nil
}

func (f *FSM) restore(source io.Reader) error {
	old, err := f.acquire()
	if err != nil {
		return err
	}
	defer old.release()
	cluster, err := f.clusterID(old.db)
	if err != nil {
		return err
	}
	r, err := newSnapshotReader(source)
	if err != nil {
		return err
	}
	if cluster != "" && r.header.ClusterID != "" && r.header.ClusterID != cluster {
		return fmt.Errorf("%w: of cluster %q, this is %q", ErrSnapshot, r.header.ClusterID, cluster)
	}
	name, err := nextDB(f.config.Dir)
	if err != nil {
		return err
	}
	path := filepath.Join(f.config.Dir, name)
	if err := f.build(path, r); err != nil {
		// What is left behind is removed at the next start in any case.
		return errors.Join(err, os.RemoveAll(path))
	}
	if err := f.config.step(stepLoaded); err != nil {
		return err
	}
	if err := syncFiles(path); err != nil {
		return err
	}
	if err := syncPath(f.config.Dir); err != nil {
		return err
	}
	if err := f.config.step(stepSynced); err != nil {
		return err
	}
	// Opened before the switch: a database that can't be opened must not become the current one.
	db, err := openDB(path, f.logger)
	if err != nil {
		return err
	}
	f.reserveMemtables(path)
	if err := writeFile(filepath.Join(f.config.Dir, currentFile), name); err != nil {
		return errors.Join(err, db.Close())
	}
	if err := f.config.step(stepSwitched); err != nil {
		return errors.Join(err, db.Close())
	}
	if err := f.adopt(newHandle(db, path)); err != nil {
		return errors.Join(err, db.Close())
	}
	return nil
}

// clusterID is the cluster that snapshots must be of; "" where that is not known yet.
func (f *FSM) clusterID(db *badger.DB) (string, error) {
	if f.config.ClusterID != "" {
		return f.config.ClusterID, nil
	}
	txn := db.NewTransaction(false)
	defer txn.Discard()
	header, err := headerOf(txn)
	return header.ClusterID, err
}

// build writes the snapshot's records into a new database and closes it.
func (f *FSM) build(path string, r *snapshotReader) error {
	db, err := openDB(path, f.logger)
	if err != nil {
		return err
	}
	err = fill(db, r)
	if err == nil {
		var header SnapshotHeader
		err = db.View(func(txn *badger.Txn) error {
			header, err = headerOf(txn)
			return err
		})
		if err == nil && header != r.header {
			err = fmt.Errorf("%w: header and records disagree", ErrSnapshot)
		}
	}
	return errors.Join(err, db.Close())
}

func fill(db *badger.DB, r *snapshotReader) error {
	writer := db.NewWriteBatch()
	defer writer.Cancel()
	for {
		key, value, err := r.next()
		if errors.Is(err, errEnd) {
			return writer.Flush()
		}
		if err != nil {
			return err
		}
		if err := checkRecord(key, value); err != nil {
			return err
		}
		if err := writer.Set(key, value); err != nil {
			return err
		}
	}
}

// CheckSnapshot reads a whole snapshot and reports whether Restore would take it, cluster aside. A tool that keeps or
// brings back a snapshot calls it first. Errors: ErrSnapshot.
func CheckSnapshot(source io.Reader) error {
	_, err := InspectSnapshot(source)
	return err
}

// checkRecord finds out whether this version can read a record. A snapshot of a newer version is refused here, and not
// at the first request that needs what it can't read.
func checkRecord(key, value []byte) error {
	var err error
	switch key[0] {
	case prefixMeta:
		err = checkMeta(key, value)
	case prefixUser:
		err = state.Unmarshal(value, new(state.User))
	case prefixIdentity:
		err = state.Unmarshal(value, new(state.Identity))
	case prefixOrg:
		err = state.Unmarshal(value, new(state.Organization))
	case prefixMember:
		err = state.Unmarshal(value, new(state.Membership))
	case prefixKey:
		err = state.Unmarshal(value, new(state.APIKey))
	case prefixKeyUsage:
		err = state.Unmarshal(value, new(state.KeyUsage))
	case prefixSession:
		err = state.Unmarshal(value, new(state.Session))
	case prefixSigningKey:
		err = state.Unmarshal(value, new(state.SigningKey))
	case prefixAudit:
		err = state.Unmarshal(value, new(state.AuditEvent))
	case prefixIdempotency:
		err = state.Unmarshal(value, new(state.Idempotency))
	case prefixSecrets:
		err = state.Unmarshal(value, new(state.ClusterSecrets))
	case prefixLimiter:
		err = state.Unmarshal(value, new(state.LimiterState))
	case prefixOnce:
		err = state.Unmarshal(value, new(state.OnceRecord))
	case prefixNode:
		err = state.Unmarshal(value, new(state.NodeInfo))
	case prefixReset:
		err = state.Unmarshal(value, new(state.Reset))
	case prefixSettings:
		err = state.Unmarshal(value, new(state.Settings))
	case prefixLevel:
		err = checkLevel(value)
	case prefixGossipKeyring:
		err = state.Unmarshal(value, new(state.GossipKeyring))
	case prefixRequest:
		if len(value) < 8 {
			err = errors.New("too short")
		} else {
			err = state.Unmarshal(value[8:], new(state.Result))
		}
	case prefixKeyUse, prefixAuditTime:
		if len(value) != 8 {
			err = errors.New("not a time")
		}
	case prefixRequestAge:
		if len(value) != 24 || len(key) != 9 {
			err = errors.New("not a request's age")
		}
	case prefixSessionEnd, prefixIdempotencyAge, prefixOnceEnd:
		if len(key) < 9 {
			err = errors.New("not an age")
		}
	case prefixUserName, prefixUserEmail, prefixUserIdentity, prefixUserMember, prefixKeyHash, prefixOrgKey,
		prefixUserSession, prefixOrgAudit:
	default:
		err = errors.New("unknown kind")
	}
	if err != nil {
		return fmt.Errorf("%w: record %q: %w", ErrSnapshot, key, err)
	}
	return nil
}

// checkLevel refuses a state that may hold what this version cannot read.
func checkLevel(value []byte) error {
	var l state.ClusterLevel
	if err := state.Unmarshal(value, &l); err != nil {
		return err
	}
	if l.Level > state.Level {
		return fmt.Errorf("it is of level %d, and this version knows levels up to %d", l.Level, state.Level)
	}
	return nil
}

func checkMeta(key, value []byte) error {
	switch string(key) {
	case string(keyApplied):
		if _, ok := decodeApplied(value); !ok {
			return errors.New("applied index is garbled")
		}
	case string(keySchema):
		if len(value) != 2 || binary.BigEndian.Uint16(value) != schemaVersion {
			return ErrSchema
		}
	default:
		return errors.New("unknown kind")
	}
	return nil
}
