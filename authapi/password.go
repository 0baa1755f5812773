package authapi

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/argon2"

	"sluice/authapi/histogram"
)

// hashParams are argon2id's costs (RFC 9106).
type hashParams struct {
	memoryKiB   uint32
	iterations  uint32
	parallelism uint8
}

// hashFloor is the weakest that new hashes may be made with, whatever the configuration says. It is a variable for the
// tests of this package alone, which would take minutes otherwise.
var hashFloor = hashParams{memoryKiB: 19456, iterations: 2, parallelism: 1}

const (
	hashSaltLen = 16
	hashLen     = 32
	// queuePerWorker is how many requests may wait for each worker where the configuration does not say.
	queuePerWorker = 64
)

// passwords hashes and checks passwords. At most as many hashes run at once as there are workers, and only so many
// requests wait for a turn: each hash takes some 20 MiB and 50 ms of a core. Safe for concurrent use.
type passwords struct {
	params  hashParams
	slots   chan struct{} // a value in it is a running hash
	waiting atomic.Int64
	queue   int64
	// rejected found the queue full, or had no turn in time. waits are of those that got one, hashes without the wait.
	rejected      atomic.Uint64
	waits, hashes *histogram.Histogram
	// elsewhere hashes in another process, where it can; nil: this one does.
	elsewhere HashWorker
	// dummy is the hash that stands in for accounts that have none.
	dummy phc
}

// HashWorker computes password hashes where they do not compete with requests. An error means that it cannot at this
// moment; the caller does it then. Safe for concurrent use; hashworker.Process is one.
type HashWorker interface {
	// Argon2id is argon2.IDKey.
	Argon2id(password, salt []byte, iterations, memoryKiB uint32, parallelism, length uint8) ([]byte, error)
	// Bcrypt says whether a well-formed bcrypt hash was made of password.
	Bcrypt(hash, password []byte) (bool, error)
}

// HashesAtOnce is how many password hashes a node computes at a time: half the cores unless the configuration says another
// number, and no more than an eighth of the memory that this process may use holds.
func HashesAtOnce(cfg Argon2Config) int {
	if cfg.Workers > 0 {
		return cfg.Workers
	}
	each := int64(max(cfg.MemoryKiB, hashFloor.memoryKiB)) << 10
	return int(max(min(int64(runtime.GOMAXPROCS(0)/2), availableMemory()/8/each), 1))
}

func newPasswords(s *Server) *passwords {
	cfg := s.cfg.Auth.Argon2
	workers := HashesAtOnce(cfg)
	queue := cfg.Queue
	if queue <= 0 {
		queue = queuePerWorker * workers
	}
	p := &passwords{
		params: hashParams{
			memoryKiB:   max(cfg.MemoryKiB, hashFloor.memoryKiB),
			iterations:  max(cfg.Iterations, hashFloor.iterations),
			parallelism: max(cfg.Parallelism, hashFloor.parallelism),
		},
		slots: make(chan struct{}, workers),
		queue: int64(queue),
		waits: histogram.New(histogram.SlowBounds), hashes: histogram.New(histogram.SlowBounds),
		elsewhere: s.cfg.HashWorker,
	}
	p.dummy = phc{params: p.params, salt: make([]byte, hashSaltLen), hash: make([]byte, hashLen)}
	rand.Read(p.dummy.salt)
	rand.Read(p.dummy.hash)
	return p
}

// acquire waits for a turn. ErrOverloaded where the queue is full or ctx ends first; nothing happened then.
func (p *passwords) acquire(ctx context.Context) error {
	select {
	case p.slots <- struct{}{}:
		p.waits.Observe(0, 0)
		return nil
	default:
	}
	if p.waiting.Add(1) > p.queue {
		p.waiting.Add(-1)
		p.rejected.Add(1)
		return ErrOverloaded
	}
	defer p.waiting.Add(-1)
	began := time.Now()
	select {
	case p.slots <- struct{}{}:
		p.waits.Observe(0, time.Since(began))
		return nil
	case <-ctx.Done():
		p.rejected.Add(1)
		return ErrOverloaded
	}
}

// release ends a turn that hashed since began.
func (p *passwords) release(began time.Time) {
	p.hashes.Observe(0, time.Since(began))
	<-p.slots
}

// hash makes the PHC string of a password. Errors: ErrOverloaded.
func (p *passwords) hash(ctx context.Context, password string) (string, error) {
	if err := p.acquire(ctx); err != nil {
		return "", err
	}
	defer p.release(time.Now())
	h := phc{params: p.params, salt: make([]byte, hashSaltLen)}
	rand.Read(h.salt)
	h.hash = p.derive(h.params, password, h.salt, hashLen)
	return h.String(), nil
}

// check says whether password is the one that encoded was made of. An encoded of "" stands for an account without a
// password, or for no account: the same work is done for it, through the same queue. Errors: ErrOverloaded, or that
// encoded is damaged.
func (p *passwords) check(ctx context.Context, encoded, password string) (bool, error) {
	h, real := p.dummy, encoded != ""
	if isBcrypt(encoded) {
		if err := p.acquire(ctx); err != nil {
			return false, err
		}
		defer p.release(time.Now())
		ok, err := p.checkBcrypt(encoded, password)
		if err != nil {
			err = fmt.Errorf("read password hash: %w", err)
		}
		return ok, err
	}
	if real {
		var err error
		if h, err = parsePHC(encoded); err != nil {
			return false, fmt.Errorf("read password hash: %w", err)
		}
	}
	if err := p.acquire(ctx); err != nil {
		return false, err
	}
	defer p.release(time.Now())
	got := p.derive(h.params, password, h.salt, len(h.hash))
	return subtle.ConstantTimeCompare(got, h.hash) == 1 && real, nil
}

// derive computes argon2id, in the other process if there is one. It runs in a slot of its caller's.
func (p *passwords) derive(h hashParams, password string, salt []byte, n int) []byte {
	if p.elsewhere != nil {
		if hash, err := p.elsewhere.Argon2id([]byte(password), salt, h.iterations, h.memoryKiB, h.parallelism, uint8(n)); err == nil {
			return hash
		}
	}
	return argon2.IDKey([]byte(password), salt, h.iterations, h.memoryKiB, h.parallelism, uint32(n))
}

// phc is a hash with all that is needed to check it.
type phc struct {
	params hashParams
	salt   []byte
	hash   []byte
}

var errPHC = errors.New("malformed PHC string")

// String renders the PHC string format (github.com/P-H-C/phc-string-format).
func (h phc) String() string {
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, h.params.memoryKiB, h.params.iterations, h.params.parallelism,
		base64.RawStdEncoding.EncodeToString(h.salt), base64.RawStdEncoding.EncodeToString(h.hash))
}

// parsePHC reads what String renders, and nothing else. Its bounds keep a damaged record from taking all memory.
func parsePHC(s string) (phc, error) {
	var h phc
	parts := strings.Split(s, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" {
		return h, errPHC
	}
	var version int
	if _, err := fmt.Sscanf(parts[2], "v=%d", &version); err != nil || version != argon2.Version {
		return h, errPHC
	}
	if _, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &h.params.memoryKiB, &h.params.iterations, &h.params.parallelism); err != nil {
		return h, errPHC
	}
	var err error
	if h.salt, err = base64.RawStdEncoding.Strict().DecodeString(parts[4]); err != nil {
		return h, errPHC
	}
	if h.hash, err = base64.RawStdEncoding.Strict().DecodeString(parts[5]); err != nil {
		return h, errPHC
	}
	switch p := h.params; {
	case p.memoryKiB < 8 || p.memoryKiB > 4<<20, p.iterations < 1 || p.iterations > 64, p.parallelism < 1,
		len(h.salt) < 8 || len(h.salt) > 64, len(h.hash) < 16 || len(h.hash) > 64,
		h.String() != s:
		return phc{}, errPHC
	}
	return h, nil
}
