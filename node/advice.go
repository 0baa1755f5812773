package node

import "fmt"

// advise says what to do about what a status shows, a line each, the most urgent first.
func (s *ClusterStatus) advise() {
	s.Advice = []string{}
	advice := func(format string, args ...any) { s.Advice = append(s.Advice, fmt.Sprintf(format, args...)) }
	majority := s.Voters/2 + 1
	s.MayFail = max(0, s.VotersAnswering-majority)
	switch {
	case s.Voters == 0:
		return // not formed: the problem says whom it waits for
	case s.VotersAnswering < majority:
		advice("start voters that do not answer until %d of %d do; where they are lost for good, `sluice cluster recover` makes a cluster of one that is left (docs/membership.md)", majority, s.Voters)
	case s.Leader == "":
		advice("a majority answers and nobody leads: an election takes a second or two; where it does not end, the voters do not reach each other's peer addresses")
	}
	for _, n := range s.Nodes {
		who := n.ID
		if n.Name != "" {
			who = n.Name + " (" + n.ID + ")"
		}
		switch {
		case !n.Alive && s.VotersAnswering >= majority:
			advice("%s: start it again; where it is gone for good, let a new node join and `sluice cluster remove %s`", who, n.ID)
		case n.Lag != nil && *n.Lag > maxLag:
			advice("%s: it should catch up; where its lag does not fall, look at its disk, its load and its way to the leader", who)
		}
	}
	switch {
	case s.VotersAnswering < majority:
	case s.Voters == 2:
		advice("two voters survive the loss of neither: let a third node join")
	case s.Voters > 2 && s.Voters%2 == 0:
		advice("%d voters survive the loss of no more than %d would: let one more join or be promoted, or demote one", s.Voters, s.Voters-1)
	}
}
