package limiter

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
)

// A list on its way to the heir, and in the heir's file. Integers are little endian.
//
//	magic (8) · number of lists (2) · for each: length of the leaver's id (1) · id · lost through (8) · ended (8) · slack (8) ·
//	blocks: number of entries (4) · entries of 56 bytes; a block of none ends the list
//	entry   bucket (16) · window number (8) · used (8) · net (8) · limit (8) · window length in seconds (4) · algorithm (1) ·
//	        flags (1) · zero (2)
//
// It is named by the SHA-256 of all its bytes, which the log entry of the leave repeats.
const (
	bequestMagic = "SLLEAVE1"
	entryLen     = 56
	maxLists     = 256
	// blockEntries bounds what is in memory at a time while a list is written or read.
	blockEntries = 4096

	entryCell = 1
	entryLost = 2
)

// Bequest is what a leaver's heir and the log have to know of a list.
type Bequest struct {
	List       [32]byte // its name
	MarkMillis int64    // for Leave.MarkMillis
	// Applied is the newest leave that the list reckons with. Where a later one made this node an heir, the list is not
	// whole: the leave must be refused and the list made anew.
	Applied uint64
	Bytes   int64
}

// writeBequest writes the list of a ledger that departed.
func writeBequest(w io.Writer, l *ledger) (q Bequest, err error) {
	out := listWriter{w: bufio.NewWriterSize(w, 64<<10), digest: sha256.New()}
	own, others, applied := l.parting()
	if len(others) >= maxLists {
		others = others[len(others)-maxLists+1:] // what is left out gives nothing
	}
	out.bytes([]byte(bequestMagic))
	out.bytes(binary.LittleEndian.AppendUint16(nil, uint16(1+len(others))))
	out.head(own)
	var block []inherited
	for shard := range l.shards {
		block = l.partingEntries(shard, own, block[:0])
		out.entries(block)
	}
	out.end()
	for _, other := range others {
		out.head(other)
		if list := other.entries.Load(); list != nil {
			out.entries(*list)
		}
		out.end()
	}
	if out.err == nil {
		out.err = out.w.Flush()
	}
	q = Bequest{MarkMillis: l.markMillis(), Applied: applied, Bytes: out.count}
	out.digest.Sum(q.List[:0])
	return q, out.err
}

type listWriter struct {
	w      *bufio.Writer
	digest hash.Hash
	count  int64
	err    error
	buf    []byte
}

func (o *listWriter) bytes(b []byte) {
	if o.err != nil {
		return
	}
	o.digest.Write(b)
	o.count += int64(len(b))
	_, o.err = o.w.Write(b)
}

func (o *listWriter) head(i *inheritance) {
	b := append([]byte{byte(len(i.leaver))}, i.leaver...)
	for _, v := range []int64{i.lostThrough, i.ended, i.slack} {
		b = binary.LittleEndian.AppendUint64(b, uint64(v))
	}
	o.bytes(b)
}

func (o *listWriter) entries(list []inherited) {
	for len(list) > 0 {
		n := min(len(list), blockEntries)
		b := binary.LittleEndian.AppendUint32(o.buf[:0], uint32(n))
		for i := range list[:n] {
			e := &list[i]
			b = append(b, e.id[:]...)
			for _, v := range []int64{e.n, e.used, e.net, e.limit} {
				b = binary.LittleEndian.AppendUint64(b, uint64(v))
			}
			b = binary.LittleEndian.AppendUint32(b, uint32(e.span/1000))
			var flags byte
			if e.cell {
				flags |= entryCell
			}
			if e.lost {
				flags |= entryLost
			}
			b = append(b, byte(e.alg), flags, 0, 0)
		}
		o.bytes(b)
		o.buf, list = b, list[n:]
	}
}

func (o *listWriter) end() { o.bytes([]byte{0, 0, 0, 0}) }

// readBequest reads what writeBequest wrote, with at most maxEntries entries, and returns its name. Every value is checked: the
// bytes come from another node, and from a disk.
func readBequest(r io.Reader, maxEntries int) (*bequest, [32]byte, error) {
	in := listReader{r: bufio.NewReaderSize(r, 64<<10), digest: sha256.New()}
	var name [32]byte
	if string(in.bytes(8)) != bequestMagic {
		return nil, name, in.fail("not a list")
	}
	q := &bequest{}
	count := int(binary.LittleEndian.Uint16(in.bytes(2)))
	if count < 1 || count > maxLists {
		return nil, name, in.fail("number of lists")
	}
	for range count {
		i, list := &inheritance{}, []inherited(nil)
		i.leaver = string(in.bytes(int(in.bytes(1)[0])))
		i.lostThrough, i.ended, i.slack = in.int64(), in.int64(), in.int64()
		if i.leaver == "" || q.of(i.leaver) != nil || i.slack < 0 || i.slack > maxWireUnit || !sane(i.lostThrough) || !sane(i.ended) {
			return nil, name, in.fail("head of a list")
		}
		for {
			n := int(binary.LittleEndian.Uint32(in.bytes(4)))
			if n == 0 {
				break
			}
			if maxEntries -= n; n > blockEntries || maxEntries < 0 {
				return nil, name, in.fail("number of entries")
			}
			for range n {
				e, ok := in.entry()
				if !ok {
					return nil, name, in.fail("entry")
				}
				list = append(list, e)
			}
		}
		i.setEntries(list)
		for k := 1; k < len(list); k++ {
			if list[k-1].compare(&list[k].id, list[k].n) == 0 {
				return nil, name, in.fail("two entries for one window")
			}
		}
		q.lists = append(q.lists, i)
	}
	if in.err != nil {
		return nil, name, in.fail("cut short")
	}
	if _, err := in.r.ReadByte(); err == nil {
		return nil, name, in.fail("trailing bytes")
	} else if !errors.Is(err, io.EOF) {
		return nil, name, err
	}
	in.digest.Sum(name[:0])
	return q, name, nil
}

// sane says whether a time or a window number is one that reckoning with it cannot overflow.
func sane(v int64) bool { return v > -maxWireUnit && v < maxWireUnit }

type listReader struct {
	r      *bufio.Reader
	digest hash.Hash
	err    error
	buf    [256]byte
}

// bytes are the next n, zeros once something went wrong.
func (in *listReader) bytes(n int) []byte {
	b := in.buf[:n]
	if in.err == nil {
		_, in.err = io.ReadFull(in.r, b)
		in.digest.Write(b)
	}
	if in.err != nil {
		clear(b)
	}
	return b
}

func (in *listReader) int64() int64 { return int64(binary.LittleEndian.Uint64(in.bytes(8))) }

func (in *listReader) fail(what string) error {
	if in.err != nil && !errors.Is(in.err, io.EOF) && !errors.Is(in.err, io.ErrUnexpectedEOF) {
		return in.err
	}
	return fmt.Errorf("%w: %s", ErrBequest, what)
}

func (in *listReader) entry() (e inherited, ok bool) {
	b := in.bytes(entryLen)
	word := func(at int) int64 { return int64(binary.LittleEndian.Uint64(b[at:])) }
	copy(e.id[:], b)
	e.n, e.used, e.net, e.limit = word(16), word(24), word(32), word(40)
	e.span = span(binary.LittleEndian.Uint32(b[48:])) * 1000
	e.alg = Algorithm(b[52])
	e.cell, e.lost = b[53]&entryCell != 0, b[53]&entryLost != 0
	rule := Rule{Limit: e.limit, Window: int64(e.span) / 1000, Algorithm: e.alg}
	return e, in.err == nil && validRule(&rule) && b[53]&^(entryCell|entryLost) == 0 && b[54] == 0 && b[55] == 0 &&
		e.used >= 0 && e.used <= maxWireUnit && e.net >= -maxWireUnit && e.net <= maxWireUnit && e.n > -(int64(1)<<60)/int64(e.span) && e.n < (int64(1)<<60)/int64(e.span)
}
