package authapi

// UpstreamCount is what became of requests to one upstream of a gateway route, since the server was made.
type UpstreamCount struct {
	Route, URL string
	Up         bool  // not ejected
	InFlight   int64 // requests now, WebSockets among them
	// Attempts at it, by what came of them: an answer of any status; no connection, no answer or none in HTTP; none in time; given
	// up since the client went away or broke off.
	Answered, Failed, TimedOut, Abandoned uint64
	Broken                                uint64 // of the answers, those that were cut off, stood still or were too long
	Ejections                             uint64
}

// RouteCount is what became of the requests of one gateway route.
type RouteCount struct {
	Route      string
	Retries    uint64 // attempts beyond the first of a request
	WebSockets int64  // open now
}

// Upstreams counts by route and upstream. Entries of the configuration with one name are one route. Safe for concurrent use.
func (s *Server) Upstreams() []UpstreamCount {
	type name struct{ route, url string }
	at := map[name]int{}
	var out []UpstreamCount
	for _, r := range s.live.Load().matcher.routes {
		p := r.upstreams
		if p == nil {
			continue
		}
		for _, u := range p.all {
			i, ok := at[name{r.name, u.url}]
			if !ok {
				i = len(out)
				at[name{r.name, u.url}] = i
				out = append(out, UpstreamCount{Route: r.name, URL: u.url, Up: true})
			}
			n := &out[i]
			p.mu.Lock()
			n.InFlight += int64(u.health.inFlight)
			n.Up = n.Up && u.health.inUse()
			p.mu.Unlock()
			n.Answered += u.counts[outcomeAnswered].Load()
			n.Failed += u.counts[outcomeFailed].Load()
			n.TimedOut += u.counts[outcomeTimeout].Load()
			n.Abandoned += u.counts[outcomeAbandoned].Load()
			n.Broken += u.counts[outcomeBroken].Load()
			n.Ejections += u.ejected.Load()
		}
	}
	return out
}

// GatewayRoutes counts by route, as Upstreams does.
func (s *Server) GatewayRoutes() []RouteCount {
	at := map[string]int{}
	var out []RouteCount
	for _, r := range s.live.Load().matcher.routes {
		if r.upstreams == nil {
			continue
		}
		i, ok := at[r.name]
		if !ok {
			i = len(out)
			at[r.name] = i
			out = append(out, RouteCount{Route: r.name})
		}
		out[i].Retries += r.upstreams.retried.Load()
		out[i].WebSockets += r.webSockets.Load()
	}
	return out
}
