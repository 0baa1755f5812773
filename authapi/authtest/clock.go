package authtest

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"sync"
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

// Sealer encrypts under random keys of its own. Safe for concurrent use.
type Sealer struct {
	mu      sync.Mutex
	keys    []cipher.AEAD
	current int
}

// NewSealer makes a Sealer with one key.
func NewSealer() *Sealer {
	s := new(Sealer)
	s.AddKey()
	return s
}

// AddKey adds a key, which opens but does not seal yet, and gives what seals under it.
func (s *Sealer) AddKey() (seal func(purpose string, plaintext []byte) ([]byte, error)) {
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
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = append(s.keys, aead)
	return func(purpose string, plaintext []byte) ([]byte, error) {
		return aead.Seal(nil, nil, plaintext, []byte(purpose)), nil
	}
}

// DropKeys drops all keys but the one that seals now.
func (s *Sealer) DropKeys() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys, s.current = []cipher.AEAD{s.keys[s.current]}, 0
}

// Keys implements authapi.Sealer.
func (s *Sealer) Keys() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.keys)
}

// Seal implements authapi.Sealer.
func (s *Sealer) Seal(purpose string, plaintext []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keys[s.current].Seal(nil, nil, plaintext, []byte(purpose)), nil
}

// Open implements authapi.Sealer.
func (s *Sealer) Open(purpose string, sealed []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, plaintext, err := s.openLocked(purpose, sealed)
	return plaintext, err
}

func (s *Sealer) openLocked(purpose string, sealed []byte) (int, []byte, error) {
	for i, aead := range s.keys {
		if plaintext, err := aead.Open(nil, nil, sealed, []byte(purpose)); err == nil {
			return i, plaintext, nil
		}
	}
	return 0, nil, errors.New("open sealed bytes")
}

// Reseal implements authapi.Sealer.
func (s *Sealer) Reseal(purpose string, sealed []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key, plaintext, err := s.openLocked(purpose, sealed)
	if err != nil || key == s.current {
		return nil, err
	}
	return s.keys[s.current].Seal(nil, nil, plaintext, []byte(purpose)), nil
}

// Use implements authapi.Sealer.
func (s *Sealer) Use(purpose string, sealed []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	key, _, err := s.openLocked(purpose, sealed)
	if err == nil {
		s.current = key
	}
	return err
}
