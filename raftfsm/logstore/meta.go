package logstore

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"io"
	"os"
)

// A bbolt file begins with two meta pages, written in turn; the newer valid one says what is in the file. bbolt takes
// the older one where the newer is damaged, and the last commit, which may have been acknowledged, is gone without a
// word. So both must be valid here. A crash does not make one invalid: what counts of a meta page is one sector.
const (
	metaOffset   = 16 // of the meta after its page's header
	metaSize     = 64
	metaChecksum = 56 // FNV-1a of the bytes before it
	metaMagic    = 0xED0CDAED
	metaPageSize = 8 // offset of the page size
)

func checkMeta(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	size, err := checkMetaAt(file, 0)
	if err != nil {
		return err
	}
	_, err = checkMetaAt(file, int64(size))
	return err
}

// checkMetaAt checks the meta of the page at offset and returns the page size that it tells.
func checkMetaAt(file io.ReaderAt, offset int64) (pageSize uint32, err error) {
	meta := make([]byte, metaSize)
	if _, err := file.ReadAt(meta, offset+metaOffset); err != nil {
		return 0, fmt.Errorf("%w: meta page at %d: %w", ErrCorrupt, offset, err)
	}
	sum := fnv.New64a()
	sum.Write(meta[:metaChecksum])
	if binary.NativeEndian.Uint32(meta) != metaMagic || binary.NativeEndian.Uint64(meta[metaChecksum:]) != sum.Sum64() {
		return 0, fmt.Errorf("%w: meta page at %d is garbled", ErrCorrupt, offset)
	}
	return binary.NativeEndian.Uint32(meta[metaPageSize:]), nil
}
