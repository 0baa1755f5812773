// Package backup is the format of Sluice's backups: one consistent snapshot of the replicated state, with a header that says
// what it is and a checksum over all of it, encrypted or not.
//
// [Write] makes one; [Open] reads it, and [Inspect] checks it whole and says what it holds. Nothing in a backup may be
// used before the last byte was read and [Reader.Finish] found everything right.
//
// The layout, version 1, integers big endian:
//
//	magic (8) · version (2) · length of header (4) · header, JSON
//	body: SHA-256 of everything before (32) · snapshot, as raftfsm defines it
//	SHA-256 of everything before (32)
//
// Where the header says "age", the body is an age file (age-encryption.org/v1) whose content is that. The header stays
// readable, so that a file can be told from another without the key; the hash in the body ties it to what follows. age
// encrypts in chunks, so neither side holds more than one, and a body that was cut or changed is noticed. The last
// checksum needs no key: whoever keeps backups can check them without being able to read them.
package backup

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"time"

	"filippo.io/age"

	"sluice/raftfsm"
)

const (
	magic     = "SLUICEBK"
	version   = 1
	maxHeader = 64 << 10
)

// Errors. None goes away by trying again.
var (
	// ErrDamaged: the file is cut, changed, or no backup.
	ErrDamaged = errors.New("damaged backup")
	// ErrVersion: it was written by a version with another format.
	ErrVersion = errors.New("backup of an unknown format version")
	// ErrKeyNeeded: it is encrypted and no key was given.
	ErrKeyNeeded = errors.New("the backup is encrypted: its key is needed")
	// ErrKey: it is encrypted for another key.
	ErrKey = errors.New("the backup is encrypted for another key")
)

// Encryption of a backup's body.
const encryptionAge = "age"

// Header says what a backup is. Fields may be added.
type Header struct {
	Cluster    string    `json:"cluster"`    // the configured name
	ClusterID  string    `json:"cluster_id"` // of the cluster that it was taken from
	NodeID     string    `json:"node_id"`    // of the node that wrote it
	Index      uint64    `json:"index"`      // of the newest log entry in it
	Term       uint64    `json:"term"`       // of that entry
	CreatedAt  time.Time `json:"created_at"` // by that node's clock
	Version    string    `json:"version"`    // of Sluice
	Encryption string    `json:"encryption"` // "age", or "" for none
}

// Encrypted reports whether a key is needed to read the body.
func (h Header) Encrypted() bool { return h.Encryption != "" }

// Write writes a backup whose snapshot write produces, encrypted for all of recipients where there are any; h.Encryption is
// set accordingly. w gets it in order and is not closed. The bytes are of no use where an error is returned.
func Write(w io.Writer, h Header, recipients []age.Recipient, snapshot func(io.Writer) error) error {
	h.Encryption = ""
	if len(recipients) > 0 {
		h.Encryption = encryptionAge
	}
	text, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("encode backup header: %w", err)
	}
	head := append([]byte(magic), 0, version)
	head = binary.BigEndian.AppendUint32(head, uint32(len(text)))
	head = append(head, text...)
	tie := sha256.Sum256(head)

	digest := sha256.New()
	buffered := bufio.NewWriterSize(w, 64<<10)
	out := io.MultiWriter(buffered, digest)
	if _, err := out.Write(head); err != nil {
		return err
	}
	body, finish := out, func() error { return nil }
	if len(recipients) > 0 {
		encrypted, err := age.Encrypt(out, recipients...)
		if err != nil {
			return fmt.Errorf("encrypt backup: %w", err)
		}
		body, finish = encrypted, encrypted.Close
	}
	if _, err := body.Write(tie[:]); err != nil {
		return err
	}
	if err := snapshot(body); err != nil {
		return err
	}
	if err := finish(); err != nil {
		return err
	}
	if _, err := buffered.Write(digest.Sum(nil)); err != nil {
		return err
	}
	return buffered.Flush()
}

// Reader reads a backup. Its bytes are the snapshot's, up to io.EOF.
type Reader struct {
	Header Header
	source *summed
	body   io.Reader
}

// Open reads up to the beginning of the snapshot. identities are tried on an encrypted backup, and not looked at for another
// one. Errors: ErrDamaged, ErrVersion, ErrKeyNeeded, ErrKey, the reader's.
func Open(r io.Reader, identities []age.Identity) (*Reader, error) {
	b, tie, err := openHead(r)
	if err != nil {
		return nil, err
	}
	if err := b.openBody(tie, identities); err != nil {
		return nil, err
	}
	return b, nil
}

// openBody reads what ties the body to the head.
func (b *Reader) openBody(tie [sha256.Size]byte, identities []age.Identity) error {
	switch b.Header.Encryption {
	case "":
		b.body = b.source
	case encryptionAge:
		if len(identities) == 0 {
			return ErrKeyNeeded
		}
		body, err := age.Decrypt(b.source, identities...)
		var other *age.NoIdentityMatchError
		switch {
		case errors.As(err, &other):
			return ErrKey
		case err != nil:
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		b.body = body
	default:
		return fmt.Errorf("%w: encryption %q", ErrVersion, b.Header.Encryption)
	}
	got := make([]byte, len(tie))
	if _, err := io.ReadFull(b.body, got); err != nil {
		return fmt.Errorf("%w: it ends early: %w", ErrDamaged, err)
	}
	if !bytes.Equal(got, tie[:]) {
		return fmt.Errorf("%w: its header was changed", ErrDamaged)
	}
	return nil
}

func openHead(r io.Reader) (*Reader, [sha256.Size]byte, error) {
	none := [sha256.Size]byte{}
	source := &summed{r: bufio.NewReaderSize(r, 64<<10), digest: sha256.New()}
	fixed := make([]byte, len(magic)+2+4)
	if _, err := io.ReadFull(source, fixed); err != nil {
		return nil, none, fmt.Errorf("%w: no header: %w", ErrDamaged, err)
	}
	if string(fixed[:len(magic)]) != magic {
		return nil, none, fmt.Errorf("%w: this is no backup of Sluice", ErrDamaged)
	}
	if v := binary.BigEndian.Uint16(fixed[len(magic):]); v != version {
		return nil, none, fmt.Errorf("%w: version %d, this one reads %d", ErrVersion, v, version)
	}
	length := binary.BigEndian.Uint32(fixed[len(magic)+2:])
	if length > maxHeader {
		return nil, none, fmt.Errorf("%w: header of %d bytes", ErrDamaged, length)
	}
	text := make([]byte, length)
	if _, err := io.ReadFull(source, text); err != nil {
		return nil, none, fmt.Errorf("%w: no header: %w", ErrDamaged, err)
	}
	b := &Reader{source: source}
	if err := json.Unmarshal(text, &b.Header); err != nil {
		return nil, none, fmt.Errorf("%w: header: %w", ErrDamaged, err)
	}
	return b, sha256.Sum256(slices.Concat(fixed, text)), nil
}

// Read reads the snapshot.
func (b *Reader) Read(p []byte) (int, error) {
	n, err := b.body.Read(p)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, ErrDamaged) {
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return n, err
}

// Finish reads what is left and checks the file as a whole. Errors: ErrDamaged, the reader's.
func (b *Reader) Finish() error {
	if _, err := io.Copy(io.Discard, b.source); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return b.source.check()
}

// summed reads everything but the last 32 bytes, which it holds back: they are the checksum of what it gave out.
type summed struct {
	r      *bufio.Reader
	digest hash.Hash
}

func (s *summed) Read(p []byte) (int, error) {
	ahead, err := s.r.Peek(s.r.Size())
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	n := min(len(ahead)-sha256.Size, len(p))
	if n <= 0 {
		if len(p) == 0 {
			return 0, nil
		}
		return 0, io.EOF
	}
	copy(p, ahead[:n])
	s.digest.Write(ahead[:n])
	_, err = s.r.Discard(n)
	return n, err
}

func (s *summed) check() error {
	rest, err := io.ReadAll(s.r)
	if err != nil {
		return err
	}
	if len(rest) != sha256.Size {
		return fmt.Errorf("%w: it ends early", ErrDamaged)
	}
	if !bytes.Equal(rest, s.digest.Sum(nil)) {
		return fmt.Errorf("%w: its checksum does not match", ErrDamaged)
	}
	return nil
}

// Check reads a whole backup and looks at what can be looked at without a key: the checksum over all of it. Errors:
// ErrDamaged, ErrVersion, the reader's.
func Check(r io.Reader) (Header, error) {
	b, _, err := openHead(r)
	if err != nil {
		return Header{}, err
	}
	return b.Header, b.Finish()
}

// Inspect reads a whole backup and says what it is and holds; a raftfsm.Contents with a nil Secrets and no sections where
// it is encrypted and no identities were given: then only the file's checksum was looked at. Errors: as Open and Finish.
func Inspect(r io.Reader, identities []age.Identity) (Header, raftfsm.Contents, error) {
	b, tie, err := openHead(r)
	if err != nil {
		return Header{}, raftfsm.Contents{}, err
	}
	if b.Header.Encrypted() && len(identities) == 0 {
		return b.Header, raftfsm.Contents{}, b.Finish()
	}
	if err := b.openBody(tie, identities); err != nil {
		return b.Header, raftfsm.Contents{}, err
	}
	contents, err := raftfsm.InspectSnapshot(b)
	if err != nil {
		return b.Header, raftfsm.Contents{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err := b.Finish(); err != nil {
		return b.Header, raftfsm.Contents{}, err
	}
	if h := contents.Header; h.Index != b.Header.Index || h.Term != b.Header.Term || h.ClusterID != b.Header.ClusterID {
		return b.Header, raftfsm.Contents{}, fmt.Errorf("%w: header and content disagree", ErrDamaged)
	}
	return b.Header, contents, nil
}
