package limiter

import "encoding/binary"

// PacketNumber reads which of its sender's packets one is: no two of a sender have the same incarnation and sequence, and both only
// rise. ok is false for what is no packet of this version. It is for those who carry packets, to notice one that comes twice; to the
// limiter itself that is nothing new.
func PacketNumber(packet []byte) (incarnation, sequence uint64, ok bool) {
	if len(packet) < headerLen || packet[0] != wireVersion {
		return 0, 0, false
	}
	return binary.LittleEndian.Uint64(packet[10:]), binary.LittleEndian.Uint64(packet[18:]), true
}
