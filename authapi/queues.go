package authapi

// QueueCount is one of a node's queues: what is in it, how much may be, and how much was turned away since it was full.
type QueueCount struct {
	Name        string
	Length, Max int64
	Rejected    uint64
}

// Queues lists those of the API.
func (s *Server) Queues() []QueueCount {
	var inFlight, most, webSockets, mostWebSockets int64
	for _, r := range s.live.Load().matcher.routes {
		if p := r.upstreams; p != nil {
			p.mu.Lock()
			for _, u := range p.all {
				inFlight += int64(u.health.inFlight)
			}
			p.mu.Unlock()
			most += int64(len(p.all)) * int64(p.maxRequests)
			webSockets += r.webSockets.Load()
			mostWebSockets += int64(r.maxWebSockets)
		}
	}
	e := &s.accounts.exports
	e.mu.Lock()
	exports := QueueCount{"audit_exports", int64(e.total), maxExports, e.rejected}
	e.mu.Unlock()
	return []QueueCount{
		{"argon2", s.passwords.waiting.Load(), s.passwords.queue, s.passwords.rejected.Load()},
		{"catch_ups", s.catchUps.Load(), maxCatchUps, s.catchUpsRejected.Load()},
		exports,
		{"shadow_decisions", int64(len(s.shadows.queue)), shadowQueue, s.shadows.dropped.Load()},
		{"upstream_requests", inFlight, most, s.upstreamsBusy.Load()},
		{"websockets", webSockets, mostWebSockets, s.webSocketsBusy.Load()},
	}
}
