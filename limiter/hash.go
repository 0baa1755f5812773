package limiter

import (
	"encoding/binary"
	"math/bits"
)

// sip128 is SipHash-2-4 with 128 bits of output (Aumasson and Bernstein, 2012), a keyed hash made for short inputs that
// an attacker may choose. It allocates nothing.
func sip128(key *[16]byte, parts ...[]byte) (lo, hi uint64) {
	k0 := binary.LittleEndian.Uint64(key[:8])
	k1 := binary.LittleEndian.Uint64(key[8:])
	s := sipState{k0 ^ 0x736f6d6570736575, k1 ^ 0x646f72616e646f6d ^ 0xee, k0 ^ 0x6c7967656e657261, k1 ^ 0x7465646279746573}
	var block [8]byte
	fill, total := 0, 0
	for _, p := range parts {
		total += len(p)
		for len(p) > 0 {
			if fill == 0 && len(p) >= 8 {
				s.word(binary.LittleEndian.Uint64(p))
				p = p[8:]
				continue
			}
			n := copy(block[fill:], p)
			fill += n
			p = p[n:]
			if fill == 8 {
				s.word(binary.LittleEndian.Uint64(block[:]))
				fill = 0
			}
		}
	}
	for i := fill; i < 8; i++ {
		block[i] = 0
	}
	block[7] = byte(total)
	s.word(binary.LittleEndian.Uint64(block[:]))
	s.v2 ^= 0xee
	s.round()
	s.round()
	s.round()
	s.round()
	lo = s.v0 ^ s.v1 ^ s.v2 ^ s.v3
	s.v1 ^= 0xdd
	s.round()
	s.round()
	s.round()
	s.round()
	return lo, s.v0 ^ s.v1 ^ s.v2 ^ s.v3
}

type sipState struct{ v0, v1, v2, v3 uint64 }

func (s *sipState) word(m uint64) {
	s.v3 ^= m
	s.round()
	s.round()
	s.v0 ^= m
}

func (s *sipState) round() {
	s.v0 += s.v1
	s.v1 = bits.RotateLeft64(s.v1, 13) ^ s.v0
	s.v0 = bits.RotateLeft64(s.v0, 32)
	s.v2 += s.v3
	s.v3 = bits.RotateLeft64(s.v3, 16) ^ s.v2
	s.v0 += s.v3
	s.v3 = bits.RotateLeft64(s.v3, 21) ^ s.v0
	s.v2 += s.v1
	s.v1 = bits.RotateLeft64(s.v1, 17) ^ s.v2
	s.v2 = bits.RotateLeft64(s.v2, 32)
}

// mix64 is the finalizer of SplitMix64: every bit of x reaches every bit of the result.
func mix64(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// nodeHash stands for a node id in packets and in the rendezvous order. It needs no key: node ids are made by nodes.
func nodeHash(id string) uint64 {
	var zero [16]byte
	lo, _ := sip128(&zero, []byte(id))
	return lo
}

// low is the half of the bucket's hash that the rendezvous order and the shards go by.
func (id *BucketID) low() uint64 { return binary.LittleEndian.Uint64(id[8:]) }

// class is the byte of a bucket's name that only its policy decides, so that a cap can hold per policy.
func (id *BucketID) class() uint8 { return id[0] }

// bucketID names the bucket of a subject. The first byte is of the policy alone, the other 120 bits of everything.
func bucketID(key *[16]byte, policy string, rule Rule, subject []byte) BucketID {
	var fixed [17]byte
	binary.LittleEndian.PutUint64(fixed[0:], uint64(len(policy)))
	binary.LittleEndian.PutUint64(fixed[8:], uint64(rule.Window))
	fixed[16] = byte(rule.Algorithm)
	var room [96]byte // a conversion would allocate for a name longer than 32 bytes
	name := append(room[:0], policy...)
	lo, hi := sip128(key, fixed[:], name, subject)
	class, _ := sip128(key, name)
	var id BucketID
	binary.LittleEndian.PutUint64(id[0:], hi)
	binary.LittleEndian.PutUint64(id[8:], lo)
	id[0] = byte(class)
	return id
}
