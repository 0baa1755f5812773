package authapi

import (
	"crypto/rand"
	"crypto/sha256"
	"hash/crc32"
)

// An API key is "sk_" + environment + "_" + 32 base62 characters of randomness (190 bits) + 6 base62 characters of the
// CRC-32 (IEEE) of everything before them. The checksum is no secret: it lets a mistyped key fail without a look-up.
const (
	keyRandomLen   = 32
	keyChecksumLen = 6
	keyHeadLen     = len("sk_live_")
	keyLen         = keyHeadLen + keyRandomLen + keyChecksumLen
	// keyPrefixLen is how much of a key listings show: the head and four random characters.
	keyPrefixLen = keyHeadLen + 4
	base62       = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)

// Environments of a key.
const (
	envLive = "live"
	envTest = "test"
)

// newAPIKey makes a key for env ("live" or "test"): the secret to show once, the hash to store and the prefix to show in
// listings.
func newAPIKey(env string) (secret string, hash [32]byte, prefix string) {
	b := make([]byte, 0, keyLen)
	b = append(b, "sk_"...)
	b = append(b, env...)
	b = append(b, '_')
	b = appendRandomBase62(b, keyRandomLen)
	b = appendChecksum(b)
	return string(b), sha256.Sum256(b), string(b[:keyPrefixLen])
}

// appendRandomBase62 appends n uniform base62 characters. Bytes from 248 on are thrown away: 248 = 4·62, so that no
// character is likelier than another.
func appendRandomBase62(b []byte, n int) []byte {
	var buf [64]byte
	for n > 0 {
		rand.Read(buf[:]) // never fails: crypto/rand ends the process instead
		for _, c := range buf {
			if c < 248 && n > 0 {
				b = append(b, base62[c%62])
				n--
			}
		}
	}
	return b
}

func appendChecksum(b []byte) []byte {
	digits := checksum(b)
	return append(b, digits[:]...)
}

func checksum(b []byte) (digits [keyChecksumLen]byte) {
	sum := crc32.ChecksumIEEE(b)
	for i := keyChecksumLen - 1; i >= 0; i-- {
		digits[i] = base62[sum%62]
		sum /= 62
	}
	return digits
}

// looksLikeKey says whether a bearer token is meant as an API key rather than as a JWT, well-formed or not.
func looksLikeKey(b []byte) bool {
	return len(b) >= 3 && b[0] == 's' && b[1] == 'k' && b[2] == '_'
}

// validAPIKey checks form and checksum, without a look-up or an allocation.
func validAPIKey(b []byte) bool {
	if len(b) != keyLen {
		return false
	}
	if head := string(b[:keyHeadLen]); head != "sk_live_" && head != "sk_test_" {
		return false
	}
	for _, c := range b[keyHeadLen:] {
		if !isBase62(c) {
			return false
		}
	}
	return checksum(b[:keyLen-keyChecksumLen]) == [keyChecksumLen]byte(b[keyLen-keyChecksumLen:])
}

func isBase62(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
}
