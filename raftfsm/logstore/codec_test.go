package logstore_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"

	"github.com/hashicorp/raft"

	"sluice/raftfsm/logstore"
)

// sealed is data with the checksum that an entry has, so that the decoder looks at what is inside.
func sealed(data []byte) []byte {
	return binary.BigEndian.AppendUint32(bytes.Clone(data), crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)))
}

// Whatever is on the disk, an entry decodes to what encodes to the same bytes, or is corrupt.
func FuzzDecodeEntry(f *testing.F) {
	for index := range uint64(4) {
		encoded := logstore.EncodeEntry(entry(index + 1))
		f.Add(index+1, encoded[:len(encoded)-4])
	}
	f.Fuzz(func(t *testing.T, index uint64, data []byte) {
		for _, data := range [][]byte{data, sealed(data)} {
			var log raft.Log
			err := logstore.DecodeEntry(index, data, &log)
			if err == nil && !bytes.Equal(logstore.EncodeEntry(&log), data) {
				t.Errorf("%x decodes to %+v, which encodes to %x", data, log, logstore.EncodeEntry(&log))
			}
			if err != nil && !errors.Is(err, logstore.ErrCorrupt) {
				t.Errorf("got %v, want ErrCorrupt", err)
			}
		}
	})
}

func TestStable_BelongsToItsKey(t *testing.T) {
	t.Parallel()
	stored := logstore.EncodeStable([]byte("CurrentTerm"), []byte{7})
	if value, err := logstore.DecodeStable([]byte("CurrentTerm"), stored); err != nil || !bytes.Equal(value, []byte{7}) {
		t.Errorf("got %x, %v", value, err)
	}
	if _, err := logstore.DecodeStable([]byte("LastVoteTerm"), stored); !errors.Is(err, logstore.ErrCorrupt) {
		t.Errorf("under another key: %v, want ErrCorrupt", err)
	}
	for i := range stored {
		changed := bytes.Clone(stored)
		changed[i] ^= 1
		if _, err := logstore.DecodeStable([]byte("CurrentTerm"), changed); !errors.Is(err, logstore.ErrCorrupt) {
			t.Errorf("byte %d changed: %v, want ErrCorrupt", i, err)
		}
	}
}
