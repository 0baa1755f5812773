package limiter

import (
	"encoding/binary"
	"math"
)

// The packets. All integers are unsigned varints unless said otherwise; fixed ones are little endian.
//
//	header    version (1 byte) · type (1) · nodeHash of the sender (8) · its incarnation (8) · sequence (8) ·
//	          its clock in Unix milliseconds (8)
//	bucket    name (16) · window length in seconds · algorithm (1) · window number (zigzag)
//	counters  limit · used · used in the window before · base · net (zigzag) · charge · flags (1)
//
//	ask       header · nodeHash of the receiver (8) · bucket · limit · wanted · receiver's incarnation as last heard, 0
//	          for none · the cell's value as known · counters
//	answer    header · nodeHash of the receiver (8) · bucket · the asker's incarnation · the ask's sequence ·
//	          flags (1) · the cell's value · counters
//	news      header · number of entries (1) · (bucket · counters) each
//	relay     header · 1 to be passed on, else 0 (1) · number of groups (1) · groups
//	group     nodeHash of the origin (8) · its incarnation · its sequence · its clock (zigzag) · number of entries (1) ·
//	          (bucket · counters) each
//
// Limits are in units; whatever else is counted is in grains. A packet that does not decode to its last byte is refused as a whole and counted.
const (
	wireVersion = 1

	typeAsk    = 1
	typeAnswer = 2
	typeNews   = 3
	typeRelay  = 4

	// Flags of an answer. flagDenied: nothing was given though more was wanted.
	flagDenied = 1

	// Flags of counters. flagVague: used, or what it allowed, may have been taken back (audit.go); flagPrevVague: the same of
	// the window before.
	flagVague     = 1
	flagPrevVague = 2

	headerLen   = 34
	relayLead   = headerLen + 2
	maxWireUnit = int64(1) << 56
	maxReading  = int64(1) << 61 // of a monotonic clock, in nanoseconds
	maxEntries  = 255
	// maxEntry bounds the bytes of one bucket and its counters.
	maxEntry = 16 + 5 + 1 + 10 + 6*10 + 1
)

type header struct {
	kind   uint8
	sender uint64
	inc    uint64
	seq    uint64
	clock  int64
}

type bucketName struct {
	id   BucketID
	rule Rule // Limit 0
	n    int64
}

type askMessage struct {
	receiver uint64
	bucketName
	limit    int64
	want     int64
	knownInc uint64
	known    int64
	counters counters
}

type answerMessage struct {
	receiver uint64
	bucketName
	receiverInc uint64
	askSeq      uint64
	flags       uint8
	cell        int64
	counters    counters
}

// appendGroup begins what one node said at once, as others pass it on: of its header all but the kind.

func appendGroup(b []byte, g header) []byte {
	b = binary.LittleEndian.AppendUint64(b, g.sender)
	b = binary.AppendUvarint(b, g.inc)
	b = binary.AppendUvarint(b, g.seq)
	return binary.AppendVarint(b, g.clock)
}

func appendHeader(b []byte, h header) []byte {
	b = append(b, wireVersion, h.kind)
	b = binary.LittleEndian.AppendUint64(b, h.sender)
	b = binary.LittleEndian.AppendUint64(b, h.inc)
	b = binary.LittleEndian.AppendUint64(b, h.seq)
	return binary.LittleEndian.AppendUint64(b, uint64(h.clock))
}

func appendBucket(b []byte, m *bucketName) []byte {
	b = append(b, m.id[:]...)
	b = binary.AppendUvarint(b, uint64(m.rule.Window))
	b = append(b, byte(m.rule.Algorithm))
	return binary.AppendVarint(b, m.n)
}

func appendCounters(b []byte, c *counters) []byte {
	b = binary.AppendUvarint(b, uint64(c.limit))
	b = binary.AppendUvarint(b, uint64(c.used))
	b = binary.AppendUvarint(b, uint64(c.prevUsed))
	b = binary.AppendUvarint(b, uint64(c.base))
	b = binary.AppendVarint(b, c.net)
	b = binary.AppendUvarint(b, uint64(max(c.charge, 0)))
	return append(b, c.flags)
}

func appendAsk(b []byte, h header, m *askMessage) []byte {
	b = appendHeader(b, h)
	b = binary.LittleEndian.AppendUint64(b, m.receiver)
	b = appendBucket(b, &m.bucketName)
	b = binary.AppendUvarint(b, uint64(m.limit))
	b = binary.AppendUvarint(b, uint64(m.want))
	b = binary.AppendUvarint(b, m.knownInc)
	b = binary.AppendUvarint(b, uint64(m.known))
	return appendCounters(b, &m.counters)
}

func appendAnswer(b []byte, h header, m *answerMessage) []byte {
	b = appendHeader(b, h)
	b = binary.LittleEndian.AppendUint64(b, m.receiver)
	b = appendBucket(b, &m.bucketName)
	b = binary.AppendUvarint(b, m.receiverInc)
	b = binary.AppendUvarint(b, m.askSeq)
	b = append(b, m.flags)
	b = binary.AppendUvarint(b, uint64(m.cell))
	return appendCounters(b, &m.counters)
}

// reader takes a packet apart. After any value that is short or out of range, bad stays set and values are 0.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) fail() { r.bad, r.b = true, nil }

func (r *reader) byte() uint8 {
	if len(r.b) < 1 {
		r.fail()
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

func (r *reader) fixed64() uint64 {
	if len(r.b) < 8 {
		r.fail()
		return 0
	}
	v := binary.LittleEndian.Uint64(r.b)
	r.b = r.b[8:]
	return v
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

// units is a count from 0 to limit.
func (r *reader) units(limit int64) int64 {
	v := r.uvarint()
	if v > uint64(limit) {
		r.fail()
		return 0
	}
	return int64(v)
}

func (r *reader) signed(limit int64) int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 || v > limit || v < -limit {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) header() header {
	if r.byte() != wireVersion {
		r.fail()
	}
	return header{kind: r.byte(), sender: r.fixed64(), inc: r.fixed64(), seq: r.fixed64(), clock: int64(r.fixed64())}
}

func (r *reader) name() (id BucketID) {
	if len(r.b) < len(id) {
		r.fail()
		return id
	}
	r.b = r.b[copy(id[:], r.b):]
	return id
}

func (r *reader) bucket() bucketName {
	m := bucketName{id: r.name()}
	m.rule.Window = r.units(maxWindow)
	m.rule.Algorithm = Algorithm(r.byte())
	if !validRule(&m.rule) {
		r.fail()
		return m
	}
	// Windows of times within what milliseconds can say, with room for the next ones.
	m.n = r.signed((int64(1) << 60) / (m.rule.Window * 1000))
	return m
}

func (r *reader) counters() counters {
	c := counters{
		limit: r.units(maxLimit), used: r.units(maxWireUnit), prevUsed: r.units(maxWireUnit),
		base: r.units(maxWireUnit), net: r.signed(maxWireUnit), charge: r.units(maxWireUnit), flags: r.byte(),
	}
	if c.flags > flagVague|flagPrevVague {
		r.fail()
	}
	return c
}

func (r *reader) ask() askMessage {
	m := askMessage{receiver: r.fixed64(), bucketName: r.bucket()}
	m.limit = r.units(maxLimit)
	m.want = r.units(maxWireUnit)
	m.knownInc = r.uvarint()
	m.known = r.units(maxWireUnit)
	m.counters = r.counters()
	return m
}

func (r *reader) answer() answerMessage {
	m := answerMessage{receiver: r.fixed64(), bucketName: r.bucket()}
	m.receiverInc = r.uvarint()
	m.askSeq = r.uvarint()
	m.flags = r.byte()
	if m.flags > flagDenied {
		r.fail()
	}
	m.cell = r.units(maxWireUnit)
	m.counters = r.counters()
	return m
}

// group reads a group and hands its entries to visit.
func (r *reader) group(visit func(g header, name *bucketName, c *counters)) header {
	g := header{kind: typeNews, sender: r.fixed64(), inc: r.uvarint(), seq: r.uvarint(), clock: r.signed(math.MaxInt64)}
	if g.inc == 0 {
		r.fail()
	}
	for range r.byte() {
		name := r.bucket()
		c := r.counters()
		if r.bad {
			break
		}
		visit(g, &name, &c)
	}
	return g
}

// done says whether the packet was read to its end without a fault.
func (r *reader) done() bool { return !r.bad && len(r.b) == 0 }
