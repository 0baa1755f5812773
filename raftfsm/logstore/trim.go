package logstore

import (
	"encoding/binary"
	"math"

	"go.etcd.io/bbolt"
)

// trimStep is how many bytes of entries one transaction drops at most from the log's beginning, but for the one that goes beyond
// it. Appends wait for the transaction at work, and each entry dropped is a page to be read, from the disk where it lay long.
const trimStep = 4 << 20

// DeleteRange removes the entries from min to max, both included; only from the beginning or the end of the log. The end,
// which another leader's entries are about to replace, goes at once; the beginning in steps, each of which leaves a log
// without gaps, so that appends get their turn in between.
func (s *Store) DeleteRange(min, max uint64) error {
	for {
		more := false
		err := s.write("delete from raft log", func(tx *bbolt.Tx) (err error) {
			step := trimStep
			if first, _ := tx.Bucket(bucketLog).Cursor().First(); first == nil || binary.BigEndian.Uint64(first) < min {
				step = math.MaxInt
			}
			more, err = deleteRange(tx, min, max, step)
			return err
		})
		if err != nil {
			return err
		}
		if !more {
			s.letGo()
			return nil
		}
	}
}

// deleteRange removes entries, lowest first, until that were step bytes; more tells that some are left.
func deleteRange(tx *bbolt.Tx, min, max uint64, step int) (more bool, err error) {
	cursor := tx.Bucket(bucketLog).Cursor()
	for key, value := cursor.Seek(logKey(min)); key != nil && binary.BigEndian.Uint64(key) <= max; key, value = cursor.Seek(logKey(min)) {
		if step <= 0 {
			return true, nil
		}
		step -= len(key) + len(value)
		if err := cursor.Delete(); err != nil {
			return false, err
		}
	}
	return false, nil
}
