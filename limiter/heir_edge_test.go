package limiter

import "testing"

// A node that came in the midst of a window has no share of it. What it borrowed there and did not spend, its heir has when it leaves.
func TestHeir_OfAGuest(t *testing.T) {
	t.Parallel()
	for _, alg := range []Algorithm{FixedWindow, SlidingWindow} {
		s := leaveSim(1, Rule{Limit: 20, Window: 3600, Algorithm: alg})
		if got := s.spend(1); got != 1 {
			t.Fatal("the first is refused")
		}
		guest := s.addNode()
		s.start(guest, startKeep)
		s.members = append(s.members, guest.index)
		s.commitRoster()
		s.tick(2)
		s.gossip()
		s.tick(2)
		s.attempt(guest, s.one(0))
		s.tick(25)
		if s.admitted != 2 {
			t.Fatalf("%d admitted, want one on each node", s.admitted)
		}
		if v := guest.led.peek(s.instant(guest), s.one(0).charges[0]); v.Remaining != 18 {
			t.Errorf("the guest names %d as what remains, want 18", v.Remaining)
		}
		s.depart(guest)
		s.bequeath(guest, s.nodes[0], false)
		s.commitLeave(guest, 0)
		s.tick(2)
		guest.up = false
		s.do(step{op: opRemove, node: guest.index})
		s.tick(2)
		s.gossip()
		s.tick(4)
		if got := s.spend(40); got != 18 || s.failure != "" {
			t.Errorf("algorithm %d: %d more admitted, want 18; %s", alg, got, s.failure)
		}
	}
}
