package state

import (
	"encoding/binary"
	"math"
	"unicode/utf8"
)

// A flat record is one that is decoded while a request waits: without reflection, with an allocation for all its text, one for its
// hashes and one for a list. Its strings share the text, so who keeps one for long keeps all.
type flat interface {
	// clear makes it the zero record. Its method read reads the value of a field, and fails the reader for one that there is not.
	clear()
}

// unmarshalFlat decodes what Marshal makes of a flat record, and says false of all other bytes, some of which are well-formed CBOR
// of the same record. It keeps nothing of data.
func unmarshalFlat(data []byte, record flat) bool {
	record.clear()
	r := flatReader{text: string(data)}
	last := uint64(0)
	for range r.head(flatMap) {
		field := r.head(flatUint)
		if field <= last {
			return false // twice, or not in order; and a reader that has failed gives 0
		}
		last = field
		switch record := record.(type) { // called by its type, the reader stays on the stack
		case *APIKey:
			record.read(&r, field)
		case *Session:
			record.read(&r, field)
		case *User:
			record.read(&r, field)
		case *Membership:
			record.read(&r, field)
		case *Organization:
			record.read(&r, field)
		default:
			return false
		}
	}
	return !r.failed && r.at == len(r.text)
}

func (k *APIKey) clear()       { *k = APIKey{} }
func (u *User) clear()         { *u = User{} }
func (s *Session) clear()      { *s = Session{} }
func (o *Organization) clear() { *o = Organization{} }
func (m *Membership) clear()   { *m = Membership{} }

func (k *APIKey) read(r *flatReader, field uint64) {
	switch field {
	case 1:
		k.ID = r.string()
	case 2:
		k.OrganizationID = r.string()
	case 3:
		k.CreatedBy = r.string()
	case 4:
		k.Name = r.string()
	case 5:
		k.Hash = r.bytes()
	case 6:
		k.Prefix = r.string()
	case 7:
		k.Scopes = r.strings()
	case 8:
		k.Environment = r.string()
	case 9:
		k.RateLimit = r.int()
	case 10:
		k.RateWindow = r.int()
	case 11:
		k.CreatedAt = r.int()
	case 12:
		k.ExpiresAt = r.int()
	case 13:
		k.LastUsedAt = r.int()
	case 14:
		k.RevokedAt = r.int()
	case 15:
		k.RotatedAt = r.int()
	case 16:
		k.PreviousHash = r.bytes()
	case 17:
		k.PreviousUntil = r.int()
	default:
		r.failed = true
	}
}

func (u *User) read(r *flatReader, field uint64) {
	switch field {
	case 1:
		u.ID = r.string()
	case 2:
		u.Username = r.string()
	case 3:
		u.Email = r.string()
	case 4:
		u.PasswordHash = r.string()
	case 5:
		u.CreatedAt = r.int()
	case 6:
		u.DisabledAt = r.int()
	case 7:
		u.DeletedAt = r.int()
	case 8:
		u.PersonalOrg = r.string()
	default:
		r.failed = true
	}
}

func (s *Session) read(r *flatReader, field uint64) {
	switch field {
	case 1:
		s.ID = r.string()
	case 2:
		s.UserID = r.string()
	case 3:
		s.CreatedAt = r.int()
	case 4:
		s.RefreshedAt = r.int()
	case 5:
		s.ExpiresAt = r.int()
	case 6:
		s.EndedAt = r.int()
	case 7:
		s.EndReason = r.string()
	case 8:
		s.UserAgent = r.string()
	case 9:
		s.Address = r.string()
	case 10:
		s.RefreshHash = r.bytes()
	case 11:
		s.PreviousHash = r.bytes()
	case 12:
		s.Generation = r.head(flatUint)
	default:
		r.failed = true
	}
}

func (o *Organization) read(r *flatReader, field uint64) {
	switch field {
	case 1:
		o.ID = r.string()
	case 2:
		o.Name = r.string()
	case 3:
		o.Personal = r.bool()
	case 4:
		o.Plan = r.string()
	case 5:
		o.CreatedAt = r.int()
	case 6:
		o.DeletedAt = r.int()
	case 7:
		o.CreatedBy = r.string()
	default:
		r.failed = true
	}
}

func (m *Membership) read(r *flatReader, field uint64) {
	switch field {
	case 1:
		m.OrganizationID = r.string()
	case 2:
		m.UserID = r.string()
	case 3:
		m.Role = r.string()
	case 4:
		m.CreatedAt = r.int()
	default:
		r.failed = true
	}
}

// Major types of CBOR (RFC 8949, section 3.1).
const (
	flatUint  = 0
	flatBytes = 2
	flatText  = 3
	flatArray = 4
	flatMap   = 5
)

// flatReader reads the part of CBOR that Marshal makes of flat records. After the first thing that is not of it failed is
// set, and everything read is zero.
type flatReader struct {
	text   string
	at     int
	hashes []byte // backing of what bytes returns
	failed bool
}

// head reads the beginning of an item of a major type: its value, or how long it is. Only the shortest form is taken.
func (r *flatReader) head(major byte) uint64 {
	if r.failed || r.at >= len(r.text) || r.text[r.at]>>5 != major {
		r.failed = true
		return 0
	}
	info := r.text[r.at] & 31
	r.at++
	if info < 24 {
		return uint64(info)
	}
	size := 1 << (info - 24)
	if info > 27 || len(r.text)-r.at < size {
		r.failed = true
		return 0
	}
	var wide [8]byte
	copy(wide[8-size:], r.text[r.at:r.at+size])
	r.at += size
	value := binary.BigEndian.Uint64(wide[:])
	if shortest := [4]uint64{24, 1 << 8, 1 << 16, 1 << 32}[info-24]; value < shortest {
		r.failed = true
		return 0
	}
	return value
}

// span reads what a head says the length of.
func (r *flatReader) span(major byte) string {
	n := r.head(major)
	if r.failed || n > uint64(len(r.text)-r.at) {
		r.failed = true
		return ""
	}
	s := r.text[r.at : r.at+int(n)]
	r.at += int(n)
	return s
}

func (r *flatReader) string() string {
	s := r.span(flatText)
	if !utf8.ValidString(s) {
		r.failed = true
		return ""
	}
	return s
}

// bytes is not nil, as Unmarshal's is not.
func (r *flatReader) bytes() []byte {
	s := r.span(flatBytes)
	if r.hashes == nil {
		r.hashes = make([]byte, 0, 64) // a present and a previous one
	}
	from := len(r.hashes)
	r.hashes = append(r.hashes, s...)
	return r.hashes[from:len(r.hashes):len(r.hashes)]
}

func (r *flatReader) int() int64 {
	n := r.head(flatUint) // Unmarshal reads the negative ones, which no time is
	if n > math.MaxInt64 {
		r.failed = true
		return 0
	}
	return int64(n)
}

func (r *flatReader) bool() bool {
	const no, yes = 7<<5 | 20, 7<<5 | 21
	if r.failed || r.at >= len(r.text) || r.text[r.at] != no && r.text[r.at] != yes {
		r.failed = true
		return false
	}
	r.at++
	return r.text[r.at-1] == yes
}

func (r *flatReader) strings() []string {
	n := r.head(flatArray)
	if r.failed || n > maxElements || n > uint64(len(r.text)-r.at) { // each is a byte at least
		r.failed = true
		return nil
	}
	list := make([]string, n)
	for i := range list {
		list[i] = r.string()
	}
	return list
}
