package node

// What is told of the traffic between nodes, and of strangers who reach for it.
var transportMetrics = []metric{
	{"sluice_peer_connections_refused_total", kindCounter, "Connections to the peer listener that were not let in, by reason.", func(s *scrape, out *samples) {
		s.n.peers.refused.read(out)
	}},
	{"sluice_peer_dials_refused_total", kindCounter, "Connections to peers that came to nothing in their handshake, by reason.", func(s *scrape, out *samples) {
		s.n.dialer.refused.read(out)
	}},
	{"sluice_peer_certificate_expiry_timestamp_seconds", kindGauge, "When this node's certificate for its peers ends, in Unix time; 0 where nodes derive theirs.", one(func(s *scrape) float64 {
		cert, _ := s.n.peerFiles.expiry()
		return cert
	})},
	{"sluice_peer_authority_expiry_timestamp_seconds", kindGauge, "When the authority of this certificate ends, in Unix time; 0 where nodes derive theirs.", one(func(s *scrape) float64 {
		_, authority := s.n.peerFiles.expiry()
		return authority
	})},
	{"sluice_peer_certificate_failing", kindGauge, "Whether its files hold nothing that could be used, so that older ones are.", one(func(s *scrape) float64 {
		return flag(s.n.peerFiles != nil && s.n.peerFiles.failing.Load())
	})},
	{"sluice_gossip_packets_replayed_total", kindCounter, "Packets that came before: byte for byte within the last 65,536, which are dropped, or by the number that the limiter gave them.", one(func(s *scrape) float64 {
		return float64(s.n.gossip.transport.replayed.Load() + s.n.gossip.old.Load())
	})},
	{"sluice_gossip_packets_oversized_total", kindCounter, "Packets dropped that are empty or longer than any of a node.", one(func(s *scrape) float64 {
		return float64(s.n.gossip.transport.oversized.Load())
	})},
	{"sluice_gossip_streams_strange_total", kindCounter, "Streams that were made without the cluster's keys, or for another cluster, or broke off.", one(func(s *scrape) float64 {
		return float64(s.n.gossip.strangeStreams())
	})},
	{"sluice_gossip_streams_cut_total", kindCounter, "Streams ended since they were longer than any of a node.", one(func(s *scrape) float64 {
		return float64(s.n.gossip.transport.cut.Load())
	})},
	{"sluice_gossip_keyring_version", kindGauge, "Version of the keyring that this node goes by; 0 for the key that is derived from the cluster secret.", one(func(s *scrape) float64 {
		if r := s.n.keyring.now.Load(); r != nil {
			return float64(r.version)
		}
		return 0
	})},
	{"sluice_gossip_keyring_newest_version", kindGauge, "The newest version applied here; another than the one before, and the node may not read the others for long.", one(func(s *scrape) float64 {
		return float64(s.n.fsm.GossipKeyring().Version)
	})},
}
