package logstore

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/hashicorp/raft"
)

// entryVersion is the first byte of every value, of entries and of stable values.
const entryVersion = 1

// Entry: version (1) · type (1) · index (8) · term (8) · appended at, Unix nanoseconds, 0 for none (8) · length of data
// (4) · data · extensions · CRC-32C of all before (4). Integers big endian.
const (
	entryHeader = 1 + 1 + 8 + 8 + 8 + 4
	crcSize     = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func logKey(index uint64) []byte { return binary.BigEndian.AppendUint64(nil, index) }

func encodeEntry(log *raft.Log) []byte {
	value := make([]byte, 0, entryHeader+len(log.Data)+len(log.Extensions)+crcSize)
	value = append(value, entryVersion, byte(log.Type))
	value = binary.BigEndian.AppendUint64(value, log.Index)
	value = binary.BigEndian.AppendUint64(value, log.Term)
	var appended int64
	if !log.AppendedAt.IsZero() {
		appended = log.AppendedAt.UnixNano()
	}
	value = binary.BigEndian.AppendUint64(value, uint64(appended))
	value = binary.BigEndian.AppendUint32(value, uint32(len(log.Data)))
	value = append(value, log.Data...)
	value = append(value, log.Extensions...)
	return binary.BigEndian.AppendUint32(value, crc32.Checksum(value, castagnoli))
}

// decodeEntry fills log with copies; value may be the file's mapping. With a nil log it only checks the value.
func decodeEntry(index uint64, value []byte, log *raft.Log) error {
	if len(value) < entryHeader+crcSize {
		return fmt.Errorf("%w: entry %d is cut off", ErrCorrupt, index)
	}
	body, sum := value[:len(value)-crcSize], binary.BigEndian.Uint32(value[len(value)-crcSize:])
	if crc32.Checksum(body, castagnoli) != sum {
		return fmt.Errorf("%w: entry %d does not match its checksum", ErrCorrupt, index)
	}
	if body[0] != entryVersion {
		return fmt.Errorf("%w: entry %d has version %d, this one reads %d", ErrCorrupt, index, body[0], entryVersion)
	}
	if stored := binary.BigEndian.Uint64(body[2:]); stored != index {
		return fmt.Errorf("%w: entry %d found at %d", ErrCorrupt, stored, index)
	}
	size := uint64(binary.BigEndian.Uint32(body[26:]))
	rest := body[entryHeader:]
	if size > uint64(len(rest)) {
		return fmt.Errorf("%w: entry %d is cut off", ErrCorrupt, index)
	}
	if log == nil {
		return nil
	}
	*log = raft.Log{
		Index: index,
		Term:  binary.BigEndian.Uint64(body[10:]),
		Type:  raft.LogType(body[1]),
		Data:  append([]byte(nil), rest[:size]...),
	}
	if uint64(len(rest)) > size {
		log.Extensions = append([]byte(nil), rest[size:]...)
	}
	if appended := int64(binary.BigEndian.Uint64(body[18:])); appended != 0 {
		log.AppendedAt = time.Unix(0, appended)
	}
	return nil
}

// encodeStable is version, value, CRC-32C over key and value: a value that ended up under another key does not pass.
func encodeStable(key, value []byte) []byte {
	stored := append([]byte{entryVersion}, value...)
	return binary.BigEndian.AppendUint32(stored, stableSum(key, stored))
}

func stableSum(key, stored []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, stored)
}

func decodeStable(key, stored []byte) ([]byte, error) {
	if len(stored) < 1+crcSize {
		return nil, fmt.Errorf("%w: %q is cut off", ErrCorrupt, key)
	}
	body := stored[:len(stored)-crcSize]
	if stableSum(key, body) != binary.BigEndian.Uint32(stored[len(stored)-crcSize:]) {
		return nil, fmt.Errorf("%w: %q does not match its checksum", ErrCorrupt, key)
	}
	if body[0] != entryVersion {
		return nil, fmt.Errorf("%w: %q has version %d, this one reads %d", ErrCorrupt, key, body[0], entryVersion)
	}
	return append([]byte(nil), body[1:]...), nil
}
