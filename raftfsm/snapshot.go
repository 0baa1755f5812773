package raftfsm

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/dgraph-io/badger/v4"
	"github.com/hashicorp/raft"

	"sluice/raftfsm/state"
)

// The snapshot format, version 1, integers big endian:
//
//	magic (8) · version (2) · applied index (8) · applied term (8) · length of cluster id (1) · cluster id
//	for each record, keys ascending: 1 · length of key (2) · key · length of value (4) · value
//	0 · number of records (8) · SHA-256 of everything before (32)
//
// Records are the database's own, so equal states give equal bytes.
const (
	snapshotMagic   = "SLUICEFS"
	snapshotVersion = 1
	maxSnapshotKey  = 4 << 10
	maxSnapshotData = 1 << 20
)

// SnapshotHeader is the beginning of a snapshot.
type SnapshotHeader struct {
	// Index and Term of the newest entry in it that changed the state. Index can be lower than that of Raft's own
	// record of the snapshot, which counts entries that the state never sees.
	Index, Term uint64
	// ClusterID is "" where the snapshot is older than InitCluster.
	ClusterID string
}

// ReadSnapshotHeader reads a snapshot's header. At start the newest snapshot in Raft's store must be restored where its
// Index is above AppliedIndex; else the state already holds all of it. Errors: ErrSnapshot, or the reader's.
func ReadSnapshotHeader(r io.Reader) (SnapshotHeader, error) {
	fixed := make([]byte, len(snapshotMagic)+2+8+8+1)
	if _, err := io.ReadFull(r, fixed); err != nil {
		return SnapshotHeader{}, fmt.Errorf("%w: header: %w", ErrSnapshot, err)
	}
	if string(fixed[:8]) != snapshotMagic {
		return SnapshotHeader{}, fmt.Errorf("%w: not a snapshot of this program", ErrSnapshot)
	}
	if version := binary.BigEndian.Uint16(fixed[8:]); version != snapshotVersion {
		return SnapshotHeader{}, fmt.Errorf("%w: version %d, this one reads %d", ErrSnapshot, version, snapshotVersion)
	}
	cluster := make([]byte, fixed[26])
	if _, err := io.ReadFull(r, cluster); err != nil {
		return SnapshotHeader{}, fmt.Errorf("%w: header: %w", ErrSnapshot, err)
	}
	return SnapshotHeader{
		Index:     binary.BigEndian.Uint64(fixed[10:]),
		Term:      binary.BigEndian.Uint64(fixed[18:]),
		ClusterID: string(cluster),
	}, nil
}

// snapshot is one moment of the state: a read transaction on a retained database.
type snapshot struct {
	fsm    *FSM
	handle *handle
	txn    *badger.Txn
}

// Snapshot captures the state as of the last applied entry; its cost does not depend on the state's size.
func (f *FSM) Snapshot() (raft.FSMSnapshot, error) {
	if f.failed.Load() {
		return nil, ErrFailed
	}
	h, err := f.acquire()
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	return &snapshot{fsm: f, handle: h, txn: h.db.NewTransaction(false)}, nil
}

// Persist writes the snapshot. Before it reports success, the database itself is on disk as well: Raft then drops the
// part of the log that the database could have been built from again.
func (s *snapshot) Persist(sink raft.SnapshotSink) error {
	err := writeSnapshot(s.txn, sink)
	if err == nil {
		if err = syncDatabase(s.handle.db, s.handle.dir); err != nil {
			// A sync that failed once may succeed the next time without having written anything.
			s.fsm.fail(err)
		}
	}
	if err != nil {
		return errors.Join(fmt.Errorf("persist snapshot: %w", err), sink.Cancel())
	}
	return sink.Close()
}

func (s *snapshot) Release() {
	s.txn.Discard()
	s.handle.release()
}

// snapshotWriter writes the format; the caller gives records in key order.
type snapshotWriter struct {
	sink   io.Writer
	digest hash.Hash
	both   *bufio.Writer // of what the digest is over; records are too small to be hashed and written one by one
	data   []byte
	count  uint64
}

func newSnapshotWriter(sink io.Writer, header SnapshotHeader) (*snapshotWriter, error) {
	w := &snapshotWriter{sink: sink, digest: sha256.New()}
	w.both = bufio.NewWriterSize(io.MultiWriter(sink, w.digest), 64<<10)
	w.data = append([]byte(snapshotMagic), 0, snapshotVersion)
	w.data = binary.BigEndian.AppendUint64(w.data, header.Index)
	w.data = binary.BigEndian.AppendUint64(w.data, header.Term)
	w.data = append(w.data, byte(len(header.ClusterID)))
	w.data = append(w.data, header.ClusterID...)
	_, err := w.both.Write(w.data)
	return w, err
}

// record writes one record.
func (w *snapshotWriter) record(key, value []byte) error {
	w.count++
	w.data = append(w.data[:0], 1)
	w.data = binary.BigEndian.AppendUint16(w.data, uint16(len(key)))
	w.data = append(w.data, key...)
	w.data = binary.BigEndian.AppendUint32(w.data, uint32(len(value)))
	w.data = append(w.data, value...)
	_, err := w.both.Write(w.data)
	return err
}

// end writes number and checksum.
func (w *snapshotWriter) end() error {
	if _, err := w.both.Write(binary.BigEndian.AppendUint64([]byte{0}, w.count)); err != nil {
		return err
	}
	if err := w.both.Flush(); err != nil {
		return err
	}
	_, err := w.sink.Write(w.digest.Sum(nil))
	return err
}

func writeSnapshot(txn *badger.Txn, sink io.Writer) error {
	header, err := headerOf(txn)
	if err != nil {
		return err
	}
	w, err := newSnapshotWriter(sink, header)
	if err != nil {
		return err
	}
	if err := eachRecord(txn, w.record); err != nil {
		return err
	}
	return w.end()
}

func headerOf(txn *badger.Txn) (SnapshotHeader, error) {
	var header SnapshotHeader
	value, err := read(txn, keyApplied)
	if err != nil {
		return header, err
	}
	if value != nil {
		at, ok := decodeApplied(value)
		if !ok {
			return header, errors.New("applied index is garbled")
		}
		header.Index, header.Term = at.index, at.term
	}
	if value, err = read(txn, keySecrets); err != nil || value == nil {
		return header, err
	}
	var secrets state.ClusterSecrets
	if err := state.Unmarshal(value, &secrets); err != nil {
		return header, fmt.Errorf("decode cluster secrets: %w", err)
	}
	header.ClusterID = secrets.ClusterID
	return header, nil
}

// eachRecord calls fn for every record, keys ascending. Key and value are valid during the call.
func eachRecord(txn *badger.Txn, fn func(key, value []byte) error) error {
	options := badger.DefaultIteratorOptions
	options.PrefetchValues = false // they are beside their keys, and Badger fetches each in a goroutine of its own
	iterator := txn.NewIterator(options)
	defer iterator.Close()
	for iterator.Rewind(); iterator.Valid(); iterator.Next() {
		item := iterator.Item()
		if err := item.Value(func(value []byte) error { return fn(item.Key(), value) }); err != nil {
			return err
		}
	}
	return nil
}

// Digest is the SHA-256 over all records: equal on replicas that have applied the same entries. It reads everything.
func (f *FSM) Digest() ([32]byte, error) {
	var sum [32]byte
	h, err := f.acquire()
	if err != nil {
		return sum, err
	}
	defer h.release()
	txn := h.db.NewTransaction(false)
	defer txn.Discard()
	digest := sha256.New()
	if err := writeSnapshot(txn, digest); err != nil {
		return sum, fmt.Errorf("digest: %w", err)
	}
	copy(sum[:], digest.Sum(nil))
	return sum, nil
}

// errEnd is how a snapshotReader says that the last record was read and all of it is right.
var errEnd = errors.New("end of snapshot")

// snapshotReader reads and checks a snapshot record by record.
type snapshotReader struct {
	header SnapshotHeader
	source *bufio.Reader
	digest hash.Hash
	last   []byte
	count  uint64
}

func newSnapshotReader(source io.Reader) (*snapshotReader, error) {
	r := &snapshotReader{source: bufio.NewReaderSize(source, 64<<10), digest: sha256.New()}
	header, err := ReadSnapshotHeader(io.TeeReader(r.source, r.digest))
	if err != nil {
		return nil, err
	}
	r.header = header
	return r, nil
}

func (r *snapshotReader) read(n int) ([]byte, error) {
	data := make([]byte, n)
	if _, err := io.ReadFull(r.source, data); err != nil {
		return nil, fmt.Errorf("%w: after %d records: %w", ErrSnapshot, r.count, err)
	}
	r.digest.Write(data)
	return data, nil
}

// next returns the next record, or errEnd after the last one, when count and checksum have been found right.
func (r *snapshotReader) next() (key, value []byte, err error) {
	kind, err := r.read(1)
	if err != nil {
		return nil, nil, err
	}
	switch kind[0] {
	case 0:
		return nil, nil, r.end()
	case 1:
	default:
		return nil, nil, fmt.Errorf("%w: after %d records: kind %d", ErrSnapshot, r.count, kind[0])
	}
	length, err := r.read(2)
	if err != nil {
		return nil, nil, err
	}
	keyLength := int(binary.BigEndian.Uint16(length))
	if keyLength == 0 || keyLength > maxSnapshotKey {
		return nil, nil, fmt.Errorf("%w: after %d records: key of %d bytes", ErrSnapshot, r.count, keyLength)
	}
	if key, err = r.read(keyLength); err != nil {
		return nil, nil, err
	}
	if length, err = r.read(4); err != nil {
		return nil, nil, err
	}
	valueLength := int(binary.BigEndian.Uint32(length))
	if valueLength > maxSnapshotData {
		return nil, nil, fmt.Errorf("%w: after %d records: value of %d bytes", ErrSnapshot, r.count, valueLength)
	}
	if value, err = r.read(valueLength); err != nil {
		return nil, nil, err
	}
	if bytes.Compare(key, r.last) <= 0 {
		return nil, nil, fmt.Errorf("%w: after %d records: keys out of order", ErrSnapshot, r.count)
	}
	r.last = key
	r.count++
	return key, value, nil
}

func (r *snapshotReader) end() error {
	count, err := r.read(8)
	if err != nil {
		return err
	}
	if n := binary.BigEndian.Uint64(count); n != r.count {
		return fmt.Errorf("%w: %d records, %d announced", ErrSnapshot, r.count, n)
	}
	want := r.digest.Sum(nil)
	got := make([]byte, sha256.Size)
	if _, err := io.ReadFull(r.source, got); err != nil {
		return fmt.Errorf("%w: checksum: %w", ErrSnapshot, err)
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%w: checksum does not match", ErrSnapshot)
	}
	if _, err := r.source.ReadByte(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: bytes after the end", ErrSnapshot)
	}
	return errEnd
}
