package limiter

import "testing"

func TestPacketNumber(t *testing.T) {
	t.Parallel()
	packet := append(appendHeader(nil, header{typeNews, 7, 1<<40 + 3, 1<<50 + 9, 1_700_000_000_000}), 0)
	if inc, seq, ok := PacketNumber(packet); inc != 1<<40+3 || seq != 1<<50+9 || !ok {
		t.Errorf("%d, %d, %t", inc, seq, ok)
	}
	packet[0]++
	for _, none := range [][]byte{nil, packet, packet[:headerLen-1]} {
		if _, _, ok := PacketNumber(none); ok {
			t.Errorf("%x is a packet", none)
		}
	}
}
