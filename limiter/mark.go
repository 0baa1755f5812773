package limiter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// markFile holds the mark and the incarnation: two copies, written in turn, so that a torn write leaves the other. Each
// is of 40 bytes, little endian: magic · generation · incarnation · mark (Unix milliseconds) · hash of these. A node that
// leaves for good has another magic.
type markFile struct {
	f          *os.File
	generation uint64
	inc        uint64
	mark       int64
	leaving    bool
}

const (
	markMagic  = 0x314b52414d4c5553
	leaveMagic = 0x31455641454c5553
	markLen    = 40
	markStride = 4096
)

// openMark opens or makes the file in dir. fresh says that there was none.
func openMark(dir string) (m *markFile, fresh bool, err error) {
	path := filepath.Join(dir, markName)
	f, err := os.OpenFile(path, os.O_RDWR, 0o600)
	if os.IsNotExist(err) {
		fresh = true
		f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	}
	if err != nil {
		return nil, false, fmt.Errorf("open mark: %w", err)
	}
	m = &markFile{f: f}
	if err := lockFile(f); err != nil {
		return nil, false, errors.Join(err, f.Close())
	}
	found, empty, err := m.read()
	switch {
	case err != nil:
		return nil, false, errors.Join(fmt.Errorf("read mark: %w", err), f.Close())
	case empty:
		// Made by a start that died before its first write, so before it acted in anything.
		fresh = true
	case !found:
		return nil, false, errors.Join(ErrDamaged, f.Close())
	}
	return m, fresh, nil
}

func (m *markFile) read() (found, empty bool, err error) {
	st, err := m.f.Stat()
	if err != nil {
		return false, false, err
	}
	if st.Size() == 0 {
		return false, true, nil
	}
	for i := range int64(2) {
		var b [markLen]byte
		if _, err := m.f.ReadAt(b[:], i*markStride); err != nil {
			if err == io.EOF {
				continue
			}
			return false, false, err
		}
		w := func(i int) uint64 { return binary.LittleEndian.Uint64(b[8*i:]) }
		if w(0) != markMagic && w(0) != leaveMagic || w(4) != hashWords(w(0), w(1), w(2), w(3)) || found && w(1) <= m.generation {
			continue
		}
		found = true
		m.generation, m.inc, m.mark = w(1), w(2), int64(w(3))
		m.leaving = m.leaving || w(0) == leaveMagic // of either copy: it never goes back
	}
	return found, false, nil
}

// write makes inc and mark lasting: when it returns nil they survive a power cut.
func (m *markFile) write(inc uint64, mark int64) error {
	var b [markLen]byte
	next := m.generation + 1
	words := [4]uint64{markMagic, next, inc, uint64(mark)}
	if m.leaving {
		words[0] = leaveMagic
	}
	for i, w := range words {
		binary.LittleEndian.PutUint64(b[8*i:], w)
	}
	binary.LittleEndian.PutUint64(b[32:], hashWords(words[:]...))
	if _, err := m.f.WriteAt(b[:], int64(next%2)*markStride); err != nil {
		return fmt.Errorf("write mark: %w", err)
	}
	if err := m.f.Sync(); err != nil {
		return fmt.Errorf("sync mark: %w", err)
	}
	m.generation, m.inc, m.mark = next, inc, mark
	return nil
}

func (m *markFile) close() error { return m.f.Close() }

// syncDir makes the names in dir lasting.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
