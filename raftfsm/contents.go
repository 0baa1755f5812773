package raftfsm

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/dgraph-io/badger/v4"

	"sluice/raftfsm/state"
)

// Contents says what a state or a snapshot holds.
type Contents struct {
	Header SnapshotHeader
	// Hash is the SHA-256 over the sections that are people's doing: equal for a cluster and for another one that its backup
	// was restored into, as long as nobody changes either. Left out is what belongs to a cluster and its log alone.
	Hash     [32]byte
	Sections []Section // in a fixed order, the empty ones too
	// Secrets is nil where the cluster had none yet.
	Secrets *state.ClusterSecrets
	// Time is the state's own, Unix milliseconds.
	Time int64
	// Level is the state's (state.Level).
	Level uint64
}

// Section is one kind of what a state holds.
type Section struct {
	Name    string
	Records uint64 // of the entities; what only finds them is hashed and not counted
	Hash    [32]byte
	// Counted says whether Contents.Hash covers it.
	Counted bool
}

// sections is the order of Contents.Sections and of the hash. A change makes hashes of different versions differ.
var sections = []struct {
	name    string
	entity  byte   // the kind whose records are counted
	kinds   string // all kinds
	counted bool
}{
	{"users", prefixUser, "une", true},
	{"identities", prefixIdentity, "iI", true},
	{"organizations", prefixOrg, "o", true},
	{"members", prefixMember, "rR", true},
	{"api_keys", prefixKey, "khK", true},
	{"sessions", prefixSession, "sSx", true},
	{"signing_keys", prefixSigningKey, "g", true},
	{"secrets", prefixSecrets, "c", true},
	{"settings", prefixSettings, "p", true},
	// These change by themselves: a key is used, a record is forgotten, an attack is noted.
	{"key_usage", prefixKeyUsage, "tT", false},
	{"audit_events", prefixAudit, "aAb", false},
	{"idempotency", prefixIdempotency, "dD", false},
	{"used_once", prefixOnce, "wW", false},
}

// inspector adds up what it is shown, records in key order.
type inspector struct {
	contents Contents
	digests  []hash.Hash
	at       applied
}

func newInspector(header SnapshotHeader) *inspector {
	i := &inspector{contents: Contents{Header: header, Level: 1}}
	for _, s := range sections {
		i.digests = append(i.digests, sha256.New())
		i.contents.Sections = append(i.contents.Sections, Section{Name: s.name, Counted: s.counted})
	}
	return i
}

func (i *inspector) add(key, value []byte) error {
	switch key[0] {
	case prefixMeta:
		if string(key) == string(keyApplied) {
			i.at, _ = decodeApplied(value)
			i.contents.Time = i.at.time
		}
		return nil
	case prefixLevel:
		var l state.ClusterLevel
		if err := state.Unmarshal(value, &l); err != nil {
			return fmt.Errorf("decode level: %w", err)
		}
		i.contents.Level = l.Level
		return nil
	case prefixSecrets:
		secrets := new(state.ClusterSecrets)
		if err := state.Unmarshal(value, secrets); err != nil {
			return fmt.Errorf("decode cluster secrets: %w", err)
		}
		i.contents.Secrets = secrets
		// These two are of a cluster, and stay where its backup is restored elsewhere.
		common := *secrets
		common.ClusterID, common.BucketKey = "", nil
		var err error
		if value, err = state.Marshal(common); err != nil {
			return fmt.Errorf("encode cluster secrets: %w", err)
		}
	}
	for n, s := range sections {
		for k := range len(s.kinds) {
			if s.kinds[k] != key[0] {
				continue
			}
			if key[0] == s.entity {
				i.contents.Sections[n].Records++
			}
			var lengths [8]byte
			binary.BigEndian.PutUint32(lengths[:], uint32(len(key)))
			binary.BigEndian.PutUint32(lengths[4:], uint32(len(value)))
			i.digests[n].Write(lengths[:])
			i.digests[n].Write(key)
			i.digests[n].Write(value)
			return nil
		}
	}
	return nil
}

func (i *inspector) sum() Contents {
	all := sha256.New()
	io.WriteString(all, "sluice content 1\n")
	for n := range i.contents.Sections {
		s := &i.contents.Sections[n]
		i.digests[n].Sum(s.Hash[:0])
		if s.Counted {
			fmt.Fprintf(all, "%s %s\n", s.Name, hex.EncodeToString(s.Hash[:]))
		}
	}
	all.Sum(i.contents.Hash[:0])
	return i.contents
}

// InspectSnapshot reads a whole snapshot, checks that Restore would take it, cluster aside, and says what it holds.
// Errors: ErrSnapshot.
func InspectSnapshot(source io.Reader) (Contents, error) {
	r, err := newSnapshotReader(source)
	if err != nil {
		return Contents{}, err
	}
	inspector := newInspector(r.header)
	for {
		key, value, err := r.next()
		if errors.Is(err, errEnd) {
			break
		}
		if err == nil {
			err = checkRecord(key, value)
		}
		if err == nil {
			err = inspector.add(key, value)
		}
		if err != nil {
			return Contents{}, err
		}
	}
	header := SnapshotHeader{Index: inspector.at.index, Term: inspector.at.term}
	if secrets := inspector.contents.Secrets; secrets != nil {
		header.ClusterID = secrets.ClusterID
	}
	if header != r.header {
		return Contents{}, fmt.Errorf("%w: header and records disagree", ErrSnapshot)
	}
	return inspector.sum(), nil
}

// Moment is the state as of one applied entry, whatever is applied meanwhile. It holds the database open: Close it soon.
type Moment struct {
	handle *handle
	txn    *badger.Txn
	header SnapshotHeader
}

// Moment captures the state as of the last applied entry; its cost does not depend on the state's size. Errors: ErrClosed,
// ErrFailed, the store's.
func (f *FSM) Moment() (*Moment, error) {
	if f.failed.Load() {
		return nil, ErrFailed
	}
	h, err := f.acquire()
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	m := &Moment{handle: h, txn: h.db.NewTransaction(false)}
	if m.header, err = headerOf(m.txn); err != nil {
		m.Close()
		return nil, fmt.Errorf("read state: %w", err)
	}
	return m, nil
}

// Close lets go of the database. Call it once.
func (m *Moment) Close() {
	m.txn.Discard()
	m.handle.release()
}

// Header is what the snapshot begins with.
func (m *Moment) Header() SnapshotHeader { return m.header }

// WriteSnapshot writes all records in the snapshot format. It syncs nothing.
func (m *Moment) WriteSnapshot(w io.Writer) error { return writeSnapshot(m.txn, w) }

// Contents reads everything and says what it is.
func (m *Moment) Contents() (Contents, error) {
	inspector := newInspector(m.header)
	if err := eachRecord(m.txn, inspector.add); err != nil {
		return Contents{}, fmt.Errorf("read state: %w", err)
	}
	return inspector.sum(), nil
}

// Empty reports whether the state holds no account: nothing would be lost by replacing it.
func (m *Moment) Empty() bool {
	options := badger.DefaultIteratorOptions
	options.PrefetchValues = false
	options.Prefix = []byte{prefixUser}
	iterator := m.txn.NewIterator(options)
	defer iterator.Close()
	iterator.Rewind()
	return !iterator.Valid()
}

// Users calls fn for every user, by id, deleted ones too, until it returns an error.
func (m *Moment) Users(fn func(*state.User) error) error { return eachOf(m.txn, prefixUser, fn) }

// Organizations calls fn for every organization, by id, deleted ones too, until it returns an error.
func (m *Moment) Organizations(fn func(*state.Organization) error) error {
	return eachOf(m.txn, prefixOrg, fn)
}

// Members calls fn for every membership, by organization, until it returns an error.
func (m *Moment) Members(fn func(*state.Membership) error) error {
	return eachOf(m.txn, prefixMember, fn)
}

// Keys calls fn for every key, by id, revoked ones too, until it returns an error. LastUsedAt is not filled in.
func (m *Moment) Keys(fn func(*state.APIKey) error) error { return eachOf(m.txn, prefixKey, fn) }

// eachOf decodes all records of a kind.
func eachOf[T any](txn *badger.Txn, kind byte, fn func(*T) error) error {
	options := badger.DefaultIteratorOptions
	options.PrefetchValues = false // as in eachRecord
	options.Prefix = []byte{kind}
	iterator := txn.NewIterator(options)
	defer iterator.Close()
	for iterator.Rewind(); iterator.Valid(); iterator.Next() {
		entity := new(T)
		err := iterator.Item().Value(func(value []byte) error { return state.Unmarshal(value, entity) })
		if err != nil {
			return fmt.Errorf("decode state: kind %q: %w", kind, err)
		}
		if err := fn(entity); err != nil {
			return err
		}
	}
	return nil
}
