package raftfsm

import (
	"encoding/binary"
	"fmt"

	"sluice/raftfsm/state"
)

// How long the result of a request id is kept: at least requestMillis of log time and requestEntries entries, so that
// one proposer with a clock in the future does not make the others' retries happen twice.
const (
	requestMillis  = 15 * 60 * 1000
	requestEntries = 4096
	// expireStep is how many may be dropped by one command: more than it adds, so that the number shrinks, and few, so
	// that no command is slow.
	expireStep = 4
)

// remembers reports whether the command's request id is kept. The ones left out change nothing when they happen twice,
// and come every second.
func remembers(e state.Envelope) bool {
	if e.RequestID == [16]byte{} {
		return false
	}
	switch e.Command.CommandType() {
	case state.TypeBarrier, state.TypeHorizon, state.TypeTouchKeys:
		return false
	}
	return true
}

// requestQueue knows where the oldest request id is, so that looking for expired ones costs nothing most of the time.
// It is a hint that is found again after a start; what it decides depends on the records alone.
type requestQueue struct {
	floor uint64 // no record has a lower index
	empty bool   // there is no record
	known bool   // index and at are the oldest record's
	index uint64
	at    int64
}

func requestKey(id [16]byte) []byte { return key1(prefixRequest, string(id[:])) }

func (q *requestQueue) first(b *batch, id [16]byte) (state.Result, bool) {
	value := b.get(requestKey(id))
	if value == nil {
		return state.Result{}, false
	}
	var result state.Result
	if len(value) < 8 {
		b.fail(fmt.Errorf("record of a request id is garbled"))
		return result, true
	}
	if err := state.Unmarshal(value[8:], &result); err != nil {
		b.fail(fmt.Errorf("decode record of a request id: %w", err))
	}
	return result, true
}

func (q *requestQueue) record(b *batch, id [16]byte, result state.Result) {
	encoded, err := state.Marshal(result)
	if err != nil {
		b.fail(fmt.Errorf("encode record of a request id: %w", err))
		return
	}
	q.empty = false
	b.put(requestKey(id), append(binary.BigEndian.AppendUint64(nil, b.at.index), encoded...))
	b.put(keyIndex(prefixRequestAge, b.at.index), append(appendTime(nil, b.at.time), id[:]...))
}

// expire drops up to expireStep records that are old enough.
func (q *requestQueue) expire(b *batch) {
	for range expireStep {
		if q.empty || !q.known && !q.find(b) {
			return
		}
		if q.at+requestMillis >= b.at.time || q.index+requestEntries >= b.at.index {
			return
		}
		if q.drop(b, q.index) {
			q.floor, q.known = q.index+1, false
		}
	}
}

// find looks for the oldest record; false where there is none.
func (q *requestQueue) find(b *batch) bool {
	records := b.scan([]byte{prefixRequestAge}, keyIndex(prefixRequestAge, q.floor), 1)
	if len(records) == 0 {
		q.empty = b.err == nil
		return false
	}
	q.index, q.at, q.known = binary.BigEndian.Uint64(records[0].key[1:]), timeOf(records[0].value), true
	return true
}

// drop removes one record and the index entry of its age.
func (q *requestQueue) drop(b *batch, index uint64) bool {
	age := keyIndex(prefixRequestAge, index)
	value := b.get(age)
	if len(value) != 24 {
		b.fail(fmt.Errorf("age of a request id is garbled"))
		return false
	}
	b.delete(age)
	b.delete(key1(prefixRequest, string(value[8:])))
	return true
}

// prune drops up to limit records of commands applied before a time.
func (q *requestQueue) prune(b *batch, before int64, limit int) int {
	records := b.scan([]byte{prefixRequestAge}, keyIndex(prefixRequestAge, q.floor), limit)
	count := 0
	for _, r := range records {
		if timeOf(r.value) >= before {
			break
		}
		index := binary.BigEndian.Uint64(r.key[1:])
		if !q.drop(b, index) {
			break
		}
		q.floor, q.known = index+1, false
		count++
	}
	return count
}
