package node

import (
	"hash/maphash"

	"sluice/limiter"
)

// replayFilter remembers the last packets, so that one which comes again is noticed: every packet is sealed with a nonce of its
// own, so no two are equal. It need not be complete, since nothing rests on it: who is alive and what was counted are told in a way
// that an old packet cannot turn back. Of one goroutine.
type replayFilter struct {
	seed  maphash.Seed // of the process, so that nobody can choose packets that are taken for each other
	slots []uint64     // by the hash's low bits; made with the first packet
}

// seen remembers a packet, and says whether it is among those remembered.
func (f *replayFilter) seen(packet []byte) bool {
	if f.slots == nil {
		f.slots = make([]uint64, replayWindow)
	}
	h := maphash.Bytes(f.seed, packet)
	slot := &f.slots[h&(replayWindow-1)]
	if *slot == h {
		return true
	}
	*slot = h
	return false
}

// numberWindow is how far behind its sender's newest packet one may come without being taken for an old one.
const numberWindow = 4096

// numbers notices packets of the limiter that came before, however long ago: its packets are numbered. By sender, which is a member. Of
// one goroutine.
type numbers map[string]*senderNumbers

type senderNumbers struct {
	incarnation, newest uint64
	seen                [numberWindow / 64]uint64 // a bit for each of the last, at its number's place
}

// again notes a packet, and says whether it came before or is too old to tell. What has no number is never told to.
func (n numbers) again(from string, packet []byte) bool {
	incarnation, sequence, ok := limiter.PacketNumber(packet)
	if !ok {
		return false
	}
	s := n[from]
	switch {
	case s == nil:
		s = &senderNumbers{incarnation: incarnation, newest: sequence}
		n[from] = s
	case incarnation < s.incarnation:
		return true
	case incarnation > s.incarnation:
		*s = senderNumbers{incarnation: incarnation, newest: sequence}
	case sequence > s.newest:
		if sequence-s.newest >= numberWindow {
			clear(s.seen[:])
		} else {
			for at := s.newest + 1; at <= sequence; at++ {
				s.seen[at/64%uint64(len(s.seen))] &^= 1 << (at % 64)
			}
		}
		s.newest = sequence
	case s.newest-sequence >= numberWindow:
		return true
	}
	word, bit := &s.seen[sequence/64%uint64(len(s.seen))], uint64(1)<<(sequence%64)
	if *word&bit != 0 {
		return true
	}
	*word |= bit
	return false
}
