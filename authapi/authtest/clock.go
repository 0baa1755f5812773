package authtest

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"sync/atomic"
	"time"
)

// Clock is a clock that tests set. It stands still otherwise. Safe for concurrent use.
type Clock struct{ nanos atomic.Int64 }

// NewClock makes a clock that shows t.
func NewClock(t time.Time) *Clock {
	c := &Clock{}
	c.nanos.Store(t.UnixNano())
	return c
}

// Now is the time shown.
func (c *Clock) Now() time.Time { return time.Unix(0, c.nanos.Load()).UTC() }

// Advance moves the clock on.
func (c *Clock) Advance(d time.Duration) { c.nanos.Add(int64(d)) }

// Sealer encrypts under a random key of its own.
type Sealer struct{ aead cipher.AEAD }

// NewSealer makes a Sealer.
func NewSealer() *Sealer {
	key := make([]byte, 32)
	rand.Read(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err)
	}
	return &Sealer{aead: aead}
}

// Seal implements authapi.Sealer.
func (s *Sealer) Seal(purpose string, plaintext []byte) ([]byte, error) {
	return s.aead.Seal(nil, nil, plaintext, []byte(purpose)), nil
}

// Open implements authapi.Sealer.
func (s *Sealer) Open(purpose string, sealed []byte) ([]byte, error) {
	b, err := s.aead.Open(nil, nil, sealed, []byte(purpose))
	if err != nil {
		return nil, errors.New("open sealed bytes")
	}
	return b, nil
}
