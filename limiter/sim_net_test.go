package limiter

import (
	"slices"
	"strconv"
)

// The simulator's network: what is lost, repeated, late and out of order, and what a node does with what it gets.

type simPacket struct {
	at       int64
	order    uint32
	from, to int
	data     []byte
}

func (s *sim) transmit(from *simNode, out *outbox) {
	for _, p := range out.to {
		to := from.led.peers.at(p.peer).id
		s.put(from, to, slices.Clone(out.data[p.start:p.end]))
	}
}

// put sends data, which it keeps.
func (s *sim) put(from *simNode, to string, data []byte) {
	i, err := strconv.Atoi(to[1:])
	if err != nil {
		panic(err)
	}
	p := simPacket{from: from.index, to: i, data: data}
	s.bytes += int64(len(data))
	if len(s.old) < 1024 {
		s.old = append(s.old, p)
	} else {
		s.old[s.rng.IntN(len(s.old))] = p
	}
	if s.cut[[2]int{p.from, p.to}] {
		return
	}
	for range 1 + btoi(s.rng.IntN(100) < s.repeat) {
		if s.rng.IntN(100) >= s.loss {
			s.post(p, s.rng.Int64N(s.delay+1))
		}
	}
}

func (s *sim) post(p simPacket, delay int64) {
	p.at, p.order = s.now+delay, s.rng.Uint32() // in any order within a millisecond
	s.net.push(p)
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// deliver hands over what is due.
func (s *sim) deliver() {
	for left := 300_000; len(s.net) > 0 && s.net[0].at <= s.now; left-- {
		if left == 0 {
			s.fail("livelock: packets beget packets without end")
			s.net = nil
			return
		}
		s.hand(s.net.pop())
	}
}

func (s *sim) hand(p simPacket) {
	if p.to >= len(s.nodes) || !s.nodes[p.to].up {
		return
	}
	n := s.nodes[p.to]
	if n.paused {
		n.buffer = append(n.buffer, p)
		return
	}
	var given *uint64
	var before uint64
	var m askMessage
	r := reader{b: p.data}
	if r.header().kind == typeAsk {
		m = r.ask()
		given = &n.led.shards[shardOf(&m.id)].stats.given
		before = *given
	}
	var out outbox
	n.led.receive(s.instant(n), s.nodes[p.from].id, p.data, &out)
	if s.died(n) {
		return
	}
	if given != nil && *given != before {
		k := simKey{s.names[m.id], m.n}
		s.saw(k, s.clock(n))
		s.logf("%s gives %d grains of %+v to n%d", n.id, *given-before, k, p.from)
	}
	s.transmit(n, &out)
	s.retry(n)
}
