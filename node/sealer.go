package node

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
)

// errSealed is the only error of opening: it never tells whether the key, the purpose or the bytes were wrong.
var errSealed = errors.New("sealed value cannot be opened")

// sealVersion is the first byte of every sealed value, so that another cipher can follow.
const sealVersion = 1

// Sealer encrypts secrets at rest with AES-256-GCM under a key derived from secrets.key: version, 12 random bytes of
// nonce, ciphertext. The purpose is bound as associated data. Safe for concurrent use.
//
// Random nonces are good for 2^32 values under one key (NIST SP 800-38D, 8.3); a cluster seals some per session.
type Sealer struct {
	aead cipher.AEAD
	// fingerprint tells peers whether they hold the same key, and nothing else about it.
	fingerprint []byte
}

// newSealer derives the key from the secret's material.
func newSealer(secret []byte) (*Sealer, error) {
	key, err := hkdf.Key(sha256.New, secret, nil, "sluice/v1 secrets at rest", 32)
	if err != nil {
		return nil, fmt.Errorf("derive key for secrets at rest: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("derive key for secrets at rest: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("derive key for secrets at rest: %w", err)
	}
	fingerprint, err := hkdf.Key(sha256.New, secret, nil, "sluice/v1 fingerprint of the key for secrets at rest", 16)
	if err != nil {
		return nil, fmt.Errorf("derive fingerprint of the key for secrets at rest: %w", err)
	}
	return &Sealer{aead: aead, fingerprint: fingerprint}, nil
}

// Seal encrypts plaintext bound to purpose. The result is 29 bytes longer.
func (s *Sealer) Seal(purpose string, plaintext []byte) ([]byte, error) {
	out := make([]byte, 1, 1+len(plaintext)+s.aead.Overhead())
	out[0] = sealVersion
	return s.aead.Seal(out, nil, plaintext, []byte(purpose)), nil
}

// Open undoes Seal for the same purpose.
func (s *Sealer) Open(purpose string, sealed []byte) ([]byte, error) {
	if len(sealed) < 1+s.aead.Overhead() || sealed[0] != sealVersion {
		return nil, errSealed
	}
	plaintext, err := s.aead.Open(nil, nil, sealed[1:], []byte(purpose))
	if err != nil {
		return nil, errSealed
	}
	return plaintext, nil
}
