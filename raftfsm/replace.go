package raftfsm

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/dgraph-io/badger/v4"

	"sluice/raftfsm/state"
)

// Replacement says how a backup's accounts take the place of a running cluster's.
type Replacement struct {
	// EndSessionsAt, Unix milliseconds, ends every session of the backup; 0 leaves them as they were.
	EndSessionsAt int64
}

// reasonRestored is why a session ended that Replacement.EndSessionsAt ended.
const reasonRestored = "restored"

// kept are the kinds that stay the running cluster's: who its nodes are, what their versions know, who holds which share up to when,
// which buckets were reset, and what its packets are sealed with. A horizon, a roster or a generation that fell back would let limits
// be exceeded, and a keyring that did would take nodes out of each other's sight, or a key that was leaked back into use.
const kept = "NlZmvy"

// joined are the kinds that are taken from both: what was used up once, here or there, stays used up.
const joined = "wW"

// dropped are the backup's kinds that mean nothing in another log: results of requests, by their place in it. A request
// that is tried again did not happen in what the backup holds, and happens.
const dropped = "qQ"

// WriteReplaced writes the snapshot that, restored on the nodes of m's cluster, gives them what the backup holds. backup is
// a whole snapshot, of this cluster or another one. The caller sees to it that nothing is applied after m before that
// restore: what is kept of the cluster would fall back. Errors: ErrSnapshot, the store's, w's.
func (m *Moment) WriteReplaced(w io.Writer, backup io.Reader, how Replacement) error {
	r, err := newSnapshotReader(backup)
	if err != nil {
		return err
	}
	value, err := read(m.txn, keySecrets)
	if err != nil {
		return err
	}
	if value == nil {
		return errors.New("the cluster has no secrets yet")
	}
	own := new(state.ClusterSecrets)
	if err := state.Unmarshal(value, own); err != nil {
		return fmt.Errorf("decode cluster secrets: %w", err)
	}
	out, err := newSnapshotWriter(w, m.header)
	if err != nil {
		return err
	}
	ours := newOwnRecords(m.txn)
	defer ours.iterator.Close()
	replaced := false
	var time int64
	for {
		key, value, err := r.next()
		if errors.Is(err, errEnd) {
			break
		}
		if err == nil {
			err = checkRecord(key, value)
		}
		if err != nil {
			return err
		}
		if string(key) == string(keyApplied) {
			at, _ := decodeApplied(value)
			time = at.time
		}
		if bytes.IndexByte([]byte(kept+dropped), key[0]) >= 0 {
			continue
		}
		same, err := ours.writeUpTo(out, key, time)
		if err != nil {
			return err
		}
		if same {
			continue // in both
		}
		switch key[0] {
		case prefixSecrets:
			value, err = adopted(value, own)
			replaced = true
		case prefixSession:
			value, err = ended(value, how.EndSessionsAt)
		case prefixUserSession:
			if how.EndSessionsAt != 0 {
				continue // it lists those that live
			}
		}
		if err != nil {
			return err
		}
		if err := out.record(key, value); err != nil {
			return err
		}
	}
	if !replaced {
		return fmt.Errorf("%w: it holds no cluster's secrets: it is from before a cluster had formed", ErrSnapshot)
	}
	if _, err := ours.writeUpTo(out, nil, time); err != nil {
		return err
	}
	return out.end()
}

// adopted are the backup's secrets in the place of this cluster's: the cluster keeps its id, by which nodes know each other,
// and the key of its buckets' names, under which windows are being counted.
func adopted(value []byte, own *state.ClusterSecrets) ([]byte, error) {
	var secrets state.ClusterSecrets
	if err := state.Unmarshal(value, &secrets); err != nil {
		return nil, fmt.Errorf("decode cluster secrets: %w", err)
	}
	secrets.ClusterID, secrets.BucketKey = own.ClusterID, own.BucketKey
	return state.Marshal(secrets)
}

// ended is a session that has ended at the latest by at. Its index by time stays at the expiry, by which it is pruned.
func ended(value []byte, at int64) ([]byte, error) {
	if at == 0 {
		return value, nil
	}
	var s state.Session
	if err := state.Unmarshal(value, &s); err != nil {
		return nil, fmt.Errorf("decode session: %w", err)
	}
	if s.EndedAt != 0 {
		return value, nil
	}
	s.EndedAt, s.EndReason = at, reasonRestored
	return state.Marshal(s)
}

// ownRecords are those that stay, in key order.
type ownRecords struct {
	iterator *badger.Iterator
}

func newOwnRecords(txn *badger.Txn) *ownRecords {
	o := &ownRecords{iterator: txn.NewIterator(badger.DefaultIteratorOptions)}
	o.iterator.Rewind()
	o.skip()
	return o
}

// skip goes on to the next record that stays; whole kinds that do not are jumped over.
func (o *ownRecords) skip() {
	for o.iterator.Valid() {
		kind := o.iterator.Item().Key()[0]
		if bytes.IndexByte([]byte(kept+joined), kind) >= 0 {
			return
		}
		o.iterator.Seek([]byte{kind + 1})
	}
}

// writeUpTo writes those below key, nil for all that are left; same says that key itself was among them.
func (o *ownRecords) writeUpTo(out *snapshotWriter, key []byte, time int64) (same bool, err error) {
	for ; o.iterator.Valid(); o.skip() {
		item := o.iterator.Item()
		compared := -1
		if key != nil {
			compared = bytes.Compare(item.Key(), key)
		}
		if compared > 0 {
			return false, nil
		}
		err := item.Value(func(value []byte) error {
			if string(item.Key()) == string(keyApplied) {
				at, ok := decodeApplied(value)
				if !ok {
					return errors.New("applied index is garbled")
				}
				at.time = max(at.time, time)
				value = at.encode()
			}
			return out.record(item.Key(), value)
		})
		if err != nil {
			return false, err
		}
		o.iterator.Next()
		if compared == 0 {
			o.skip()
			return true, nil
		}
	}
	return false, nil
}
