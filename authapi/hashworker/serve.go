package hashworker

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
)

// Kinds of work. Both ends are the same program, so that nothing here has versions.
const (
	kindArgon2id = 1
	kindBcrypt   = 2
)

// maxFrame bounds a job: a password and a hash are in it.
const maxFrame = 128 << 10

// job is work: argon2id of password and salt, or whether password is what the bcrypt hash in salt was made of.
type job struct {
	kind                  uint8
	iterations, memoryKiB uint32
	parallelism, length   uint8
	salt, password        []byte
}

// A frame is its length in four bytes, then an id in eight and the job or its answer.
const (
	idSize   = 8
	jobFixed = 1 + 4 + 4 + 1 + 1 + 2
)

func (j *job) frame(id uint64) ([]byte, error) {
	size := idSize + jobFixed + len(j.salt) + len(j.password)
	if size > maxFrame || len(j.salt) > 1<<16-1 {
		return nil, errors.New("password or hash too long")
	}
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 4+size), uint32(size))
	b = binary.BigEndian.AppendUint64(b, id)
	b = append(b, j.kind)
	b = binary.BigEndian.AppendUint32(b, j.iterations)
	b = binary.BigEndian.AppendUint32(b, j.memoryKiB)
	b = append(b, j.parallelism, j.length)
	b = binary.BigEndian.AppendUint16(b, uint16(len(j.salt)))
	return append(append(b, j.salt...), j.password...), nil
}

func readFrame(r io.Reader) (id uint64, rest []byte, err error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n < idSize || n > maxFrame {
		return 0, nil, fmt.Errorf("frame of %d bytes", n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return 0, nil, err
	}
	return binary.BigEndian.Uint64(b), b[idSize:], nil
}

func parseJob(b []byte) (*job, error) {
	if len(b) < jobFixed {
		return nil, errors.New("job cut short")
	}
	j := &job{kind: b[0], iterations: binary.BigEndian.Uint32(b[1:]), memoryKiB: binary.BigEndian.Uint32(b[5:]), parallelism: b[9], length: b[10]}
	n := int(binary.BigEndian.Uint16(b[11:]))
	b = b[jobFixed:]
	if n > len(b) {
		return nil, errors.New("job cut short")
	}
	j.salt, j.password = b[:n], b[n:]
	known := j.kind == kindBcrypt || j.kind == kindArgon2id && j.iterations > 0 && j.parallelism > 0 && j.length > 0
	if !known {
		return nil, fmt.Errorf("job of kind %d that makes no sense", j.kind)
	}
	return j, nil
}

// do is the work itself. For bcrypt the answer is one byte, which is 1 where the password is right.
func (j *job) do() []byte {
	if j.kind == kindBcrypt {
		// The caller has read the hash, so that an error means another password.
		if bcrypt.CompareHashAndPassword(j.salt, j.password) == nil {
			return []byte{1}
		}
		return []byte{0}
	}
	return argon2.IDKey(j.password, j.salt, j.iterations, j.memoryKiB, j.parallelism, uint32(j.length))
}

// Serve does the jobs that come from r, each in a goroutine: who sends them bounds how many there are. It returns nil at
// the end of r, when whoever asked has gone.
func Serve(r io.Reader, w io.Writer) error {
	in := bufio.NewReader(r)
	var mu sync.Mutex
	var failed error // guarded by mu
	for {
		id, rest, err := readFrame(in)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read a job: %w", err)
		}
		j, err := parseJob(rest)
		if err != nil {
			return fmt.Errorf("read a job: %w", err)
		}
		mu.Lock()
		err = failed
		mu.Unlock()
		if err != nil {
			return fmt.Errorf("write an answer: %w", err)
		}
		go func() {
			answer := j.do()
			b := binary.BigEndian.AppendUint32(make([]byte, 0, 4+idSize+len(answer)), uint32(idSize+len(answer)))
			b = append(binary.BigEndian.AppendUint64(b, id), answer...)
			mu.Lock()
			defer mu.Unlock()
			if _, err := w.Write(b); err != nil && failed == nil {
				failed = err
			}
		}()
	}
}
