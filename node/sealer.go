package node

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

// errSealed is the only error of opening: it never tells whether the key, the purpose or the bytes were wrong.
var errSealed = errors.New("sealed value cannot be opened")

// sealVersion is the first byte of every sealed value, so that another cipher can follow.
const sealVersion = 1

// fingerprintSize is the length of a fingerprint of a key for secrets at rest, in bytes.
const fingerprintSize = 16

// Sealer encrypts secrets at rest with AES-256-GCM under a key derived from secrets.key: version, 12 random bytes of
// nonce, ciphertext. The purpose is bound as associated data. Further keys open what was sealed before; which one seals is
// the cluster's to say (Use). Safe for concurrent use.
//
// A value does not name its key: opening tries them, the one in use first, and the tag says whether it was right. Random nonces are
// good for 2^32 values under one key (NIST SP 800-38D, 8.3); a cluster seals some per session.
type Sealer struct {
	mu   sync.Mutex // held while ring is changed
	ring atomic.Pointer[sealRing]
}

// sealRing is the keys of a moment. It is immutable.
type sealRing struct {
	keys   []sealKey // the first is that of secrets.key
	sealer int       // index of the one that seals
}

type sealKey struct {
	aead cipher.AEAD
	// fingerprint tells peers whether they hold the same key, and nothing else about it.
	fingerprint []byte
}

// name is a key as people see it.
func (k sealKey) name() string { return keyName(k.fingerprint) }

func keyName(fingerprint []byte) string {
	return hex.EncodeToString(fingerprint[:min(8, len(fingerprint))])
}

// newSealer derives the keys from the secrets' material. The first one seals until Use says otherwise.
func newSealer(secrets ...[]byte) (*Sealer, error) {
	ring, err := newSealRing(secrets)
	if err != nil {
		return nil, err
	}
	s := new(Sealer)
	s.ring.Store(ring)
	return s, nil
}

func newSealRing(secrets [][]byte) (*sealRing, error) {
	ring := new(sealRing)
	for _, secret := range secrets {
		key, err := newSealKey(secret)
		if err != nil {
			return nil, err
		}
		if ring.find(key.fingerprint) < 0 {
			ring.keys = append(ring.keys, key)
		}
	}
	return ring, nil
}

func newSealKey(secret []byte) (sealKey, error) {
	key, err := hkdf.Key(sha256.New, secret, nil, "sluice/v1 secrets at rest", 32)
	if err != nil {
		return sealKey{}, fmt.Errorf("derive key for secrets at rest: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return sealKey{}, fmt.Errorf("derive key for secrets at rest: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return sealKey{}, fmt.Errorf("derive key for secrets at rest: %w", err)
	}
	fingerprint, err := hkdf.Key(sha256.New, secret, nil, "sluice/v1 fingerprint of the key for secrets at rest", fingerprintSize)
	if err != nil {
		return sealKey{}, fmt.Errorf("derive fingerprint of the key for secrets at rest: %w", err)
	}
	return sealKey{aead, fingerprint}, nil
}

// find is the index of a key, -1 where it is not held.
func (r *sealRing) find(fingerprint []byte) int {
	for i, key := range r.keys {
		if bytes.Equal(key.fingerprint, fingerprint) {
			return i
		}
	}
	return -1
}

// configured is the key of secrets.key.
func (r *sealRing) configured() sealKey { return r.keys[0] }

// inUse is the key that seals.
func (r *sealRing) inUse() sealKey { return r.keys[r.sealer] }

// fingerprints are those of all keys, the configured one first.
func (r *sealRing) fingerprints() [][]byte {
	list := make([][]byte, len(r.keys))
	for i, key := range r.keys {
		list[i] = key.fingerprint
	}
	return list
}

func (k sealKey) seal(purpose string, plaintext []byte) ([]byte, error) {
	out := make([]byte, 1, 1+len(plaintext)+k.aead.Overhead())
	out[0] = sealVersion
	return k.aead.Seal(out, nil, plaintext, []byte(purpose)), nil
}

// open gives the index of the key that opens too.
func (r *sealRing) open(purpose string, sealed []byte) (int, []byte, error) {
	at := func(i int) ([]byte, bool) {
		aead := r.keys[i].aead
		if len(sealed) < 1+aead.Overhead() || sealed[0] != sealVersion {
			return nil, false
		}
		plaintext, err := aead.Open(nil, nil, sealed[1:], []byte(purpose))
		return plaintext, err == nil
	}
	if plaintext, ok := at(r.sealer); ok {
		return r.sealer, plaintext, nil
	}
	for i := range r.keys {
		if i == r.sealer {
			continue
		}
		if plaintext, ok := at(i); ok {
			return i, plaintext, nil
		}
	}
	return 0, nil, errSealed
}

// Seal encrypts plaintext bound to purpose. The result is 29 bytes longer.
func (s *Sealer) Seal(purpose string, plaintext []byte) ([]byte, error) {
	return s.ring.Load().inUse().seal(purpose, plaintext)
}

// Open undoes Seal for the same purpose, under whichever of the keys.
func (s *Sealer) Open(purpose string, sealed []byte) ([]byte, error) {
	_, plaintext, err := s.ring.Load().open(purpose, sealed)
	return plaintext, err
}

// Reseal implements authapi.Sealer: it is nil where the key in use sealed the value.
func (s *Sealer) Reseal(purpose string, sealed []byte) ([]byte, error) {
	ring := s.ring.Load()
	key, plaintext, err := ring.open(purpose, sealed)
	if err != nil || key == ring.sealer {
		return nil, err
	}
	return ring.inUse().seal(purpose, plaintext)
}

// Use implements authapi.Sealer: the key that sealed a value seals from now on.
func (s *Sealer) Use(purpose string, sealed []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	ring := s.ring.Load()
	key, _, err := ring.open(purpose, sealed)
	if err == nil && key != ring.sealer {
		s.ring.Store(&sealRing{keys: ring.keys, sealer: key})
	}
	return err
}

// Keys implements authapi.Sealer.
func (s *Sealer) Keys() int { return len(s.ring.Load().keys) }

// replace takes other keys, among which the one in use has to be, and gives those of before.
func (s *Sealer) replace(secrets [][]byte) (before *sealRing, err error) {
	ring, err := newSealRing(secrets)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	before = s.ring.Load()
	if ring.sealer = ring.find(before.inUse().fingerprint); ring.sealer < 0 {
		return nil, fmt.Errorf("the key for secrets at rest that is in use, %s, is not among them", before.inUse().name())
	}
	s.ring.Store(ring)
	return before, nil
}
