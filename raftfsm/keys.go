package raftfsm

import (
	"encoding/binary"
	"math"
)

// schemaVersion is the layout below. Another layout takes the next number, and a migration.
const schemaVersion = 1

// The first byte of every key in the database. They are on disk and in snapshots: never change or reuse one.
const (
	prefixMeta           = 'm' // m<name>: applied index, term and time; schema version
	prefixUser           = 'u' // u<user> -> User
	prefixUserName       = 'n' // n<username> -> user
	prefixUserEmail      = 'e' // e<email> -> user
	prefixIdentity       = 'i' // i<provider> 0 <subject> -> Identity
	prefixUserIdentity   = 'I' // I<user> 0 <provider> 0 <subject>
	prefixOrg            = 'o' // o<org> -> Organization
	prefixMember         = 'r' // r<org> 0 <user> -> Membership
	prefixUserMember     = 'R' // R<user> 0 <org>
	prefixKey            = 'k' // k<key> -> APIKey, LastUsedAt left 0
	prefixKeyHash        = 'h' // h<hash> -> key; present and previous secret
	prefixOrgKey         = 'K' // K<org> 0 <key>; keys that are not revoked
	prefixKeyUse         = 't' // t<key> -> time of last use, of before there was KeyUsage
	prefixKeyUsage       = 'T' // T<key> -> KeyUsage
	prefixSession        = 's' // s<session> -> Session
	prefixUserSession    = 'S' // S<user> 0 <session>; sessions that have not ended
	prefixSessionEnd     = 'x' // x<time><session>; time is EndedAt, or ExpiresAt while not ended
	prefixSigningKey     = 'g' // g<sequence> -> SigningKey
	prefixAudit          = 'a' // a<time><event> -> AuditEvent
	prefixOrgAudit       = 'A' // A<org> 0 <time><event>
	prefixAuditTime      = 'b' // b<event> -> time
	prefixIdempotency    = 'd' // d<scope> -> Idempotency
	prefixIdempotencyAge = 'D' // D<time><scope>
	prefixRequest        = 'q' // q<request> -> <log index><Result>
	prefixRequestAge     = 'Q' // Q<log index> -> <time><request>
	prefixSecrets        = 'c' // c -> ClusterSecrets
	prefixLimiter        = 'l' // l -> LimiterState
	prefixNode           = 'N' // N<node> -> NodeInfo
	prefixReset          = 'Z' // Z<bucket> -> Reset
	prefixOnce           = 'w' // w<hash> -> OnceRecord
	prefixOnceEnd        = 'W' // W<time><hash>; time is the record's ExpiresAt
	prefixSettings       = 'p' // p<version> -> Settings
	prefixLevel          = 'v' // v -> ClusterLevel
	prefixGossipKeyring  = 'y' // y -> GossipKeyring
)

var (
	keyApplied = []byte("mapplied")
	keySchema  = []byte("mschema")
	keySecrets = []byte{prefixSecrets}
	keyLimiter = []byte{prefixLimiter}
	keyLevel   = []byte{prefixLevel}

	keyGossipKeyring = []byte{prefixGossipKeyring}
)

// key1 is prefix and id; nothing follows the id, so it may hold any byte.
func key1(prefix byte, id string) []byte {
	return append(append(make([]byte, 0, 1+len(id)), prefix), id...)
}

// key2 is prefix, a, 0, b; a must not hold a 0 byte.
func key2(prefix byte, a, b string) []byte {
	key := make([]byte, 0, len(a)+len(b)+2)
	key = append(key, prefix)
	key = append(key, a...)
	key = append(key, 0)
	return append(key, b...)
}

func keyTime(prefix byte, at int64, rest string) []byte {
	key := appendTime([]byte{prefix}, at)
	return append(key, rest...)
}

func keyIndex(prefix byte, index uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{prefix}, index)
}

func keyOrgAudit(org string, at int64, event string) []byte {
	return append(appendTime(key2(prefixOrgAudit, org, ""), at), event...)
}

// appendTime appends a time so that bytes sort as times do; times before 1970 do not occur and count as 0.
func appendTime(key []byte, at int64) []byte {
	return binary.BigEndian.AppendUint64(key, uint64(max(at, 0)))
}

func timeOf(data []byte) int64 {
	if len(data) < 8 {
		return 0
	}
	return int64(min(binary.BigEndian.Uint64(data), math.MaxInt64))
}

// applied is the meta record: up to where the log is in the state, and the FSM's own time.
type applied struct {
	index, term uint64
	time        int64 // greatest ProposedAt seen, Unix milliseconds
}

func (a applied) encode() []byte {
	data := binary.BigEndian.AppendUint64(nil, a.index)
	data = binary.BigEndian.AppendUint64(data, a.term)
	return binary.BigEndian.AppendUint64(data, uint64(a.time))
}

func decodeApplied(data []byte) (applied, bool) {
	if len(data) != 24 {
		return applied{}, false
	}
	return applied{
		index: binary.BigEndian.Uint64(data),
		term:  binary.BigEndian.Uint64(data[8:]),
		time:  int64(binary.BigEndian.Uint64(data[16:])),
	}, true
}
