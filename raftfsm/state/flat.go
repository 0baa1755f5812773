package state

import (
	"encoding/binary"
	"math"
	"unicode/utf8"
)

// UnmarshalAPIKey is Unmarshal into an APIKey, for the record that is decoded while a request waits: without reflection,
// and with an allocation for all the text, one for the hashes and one for the list of scopes. Bytes that are not what
// Marshal makes of an APIKey are left to Unmarshal, so that both read and refuse the same. key keeps nothing of data.
func UnmarshalAPIKey(data []byte, key *APIKey) error {
	*key = APIKey{}
	if decodeAPIKey(data, key) {
		return nil
	}
	*key = APIKey{}
	return Unmarshal(data, key)
}

func decodeAPIKey(data []byte, key *APIKey) bool {
	r := flatReader{text: string(data)}
	pairs := r.head(flatMap)
	last := uint64(0)
	for range pairs {
		field := r.head(flatUint)
		if field <= last {
			return false // twice, or not in order; and a reader that has failed gives 0
		}
		last = field
		switch field {
		case 1:
			key.ID = r.string()
		case 2:
			key.OrganizationID = r.string()
		case 3:
			key.CreatedBy = r.string()
		case 4:
			key.Name = r.string()
		case 5:
			key.Hash = r.bytes()
		case 6:
			key.Prefix = r.string()
		case 7:
			key.Scopes = r.strings()
		case 8:
			key.Environment = r.string()
		case 9:
			key.RateLimit = r.int()
		case 10:
			key.RateWindow = r.int()
		case 11:
			key.CreatedAt = r.int()
		case 12:
			key.ExpiresAt = r.int()
		case 13:
			key.LastUsedAt = r.int()
		case 14:
			key.RevokedAt = r.int()
		case 15:
			key.RotatedAt = r.int()
		case 16:
			key.PreviousHash = r.bytes()
		case 17:
			key.PreviousUntil = r.int()
		default:
			return false
		}
	}
	return !r.failed && r.at == len(r.text)
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
