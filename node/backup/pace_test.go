package backup_test

import (
	"bytes"
	"errors"
	"testing"

	"sluice/node/backup"
)

// syncedBuffer counts what was written since the last sync.
type syncedBuffer struct {
	bytes.Buffer
	unsynced, most int
	failure        error
}

func (b *syncedBuffer) Write(p []byte) (int, error) {
	b.unsynced += len(p)
	b.most = max(b.most, b.unsynced)
	return b.Buffer.Write(p)
}

func (b *syncedBuffer) Sync() error {
	b.unsynced = 0
	return b.failure
}

func TestPaced(t *testing.T) {
	t.Parallel()
	file := new(syncedBuffer)
	paced := &backup.Paced{File: file}
	piece := bytes.Repeat([]byte("abc"), 10_000)
	for range 1000 {
		if n, err := paced.Write(piece); n != len(piece) || err != nil {
			t.Fatal(n, err)
		}
	}
	if file.most > 4<<20+len(piece) || !bytes.Equal(file.Bytes(), bytes.Repeat(piece, 1000)) {
		t.Errorf("%d bytes waited for the disk, of %d", file.most, file.Len())
	}
	file.failure = errors.New("input/output error")
	var err error
	for i := 0; i < 1000 && err == nil; i++ {
		_, err = paced.Write(piece)
	}
	if !errors.Is(err, file.failure) {
		t.Errorf("a failed sync: %v", err)
	}
}
