package authapi

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"sluice/authapi/histogram"
)

// RequestCount is how many requests of one route had one status.
type RequestCount struct {
	// Route is a route's pattern in the API, the name of a configured one, or "none" where a request belongs to no route or
	// could not be read.
	Route  string
	Method string // the route's, "ANY" where it takes all; not what the client wrote
	Status string // the number, or "other" for one that no standard knows
	Count  uint64
}

// RequestDurations is how long requests of a group of routes took, from the end of their header to the beginning of the answer.
type RequestDurations struct {
	Group   string
	Reading histogram.Reading
}

// group is which routes' durations are counted together: what one may expect of the others.
type group uint8

const (
	groupVerify    group = 0
	groupCheck     group = 1
	groupGateway   group = 2
	groupSignIn    group = 3
	groupAPI       group = 4
	groupDocuments group = 5
	groupHealth    group = 6
	groupNone      group = 7
)

var groupNames = [...]string{"verify", "check", "gateway", "sign_in", "api", "documents", "health", "none"}

// groupOf is the group of one of Sluice's own routes.
func groupOf(r *route) group {
	switch {
	case r.verify != 0:
		return groupVerify
	case r.layer == layerNone:
		return groupHealth
	case r.layer == layerDocuments:
		return groupDocuments
	case r.lean:
		return groupCheck
	}
	for _, word := range []string{"/register", "/login", "/refresh", "/exchange", "/password", "/callback"} {
		if strings.HasSuffix(r.pattern, word) {
			return groupSignIn
		}
	}
	return groupAPI
}

// knownStatuses have a counter of their own: those of the HTTP registry that a server or an upstream may answer with.
var knownStatuses = []int{
	101, 200, 201, 202, 203, 204, 205, 206, 207, 208, 226, 300, 301, 302, 303, 304, 305, 307, 308,
	400, 401, 402, 403, 404, 405, 406, 407, 408, 409, 410, 411, 412, 413, 414, 415, 416, 417, 418, 421, 422, 423, 424, 425, 426, 428, 429, 431, 451,
	500, 501, 502, 503, 504, 505, 506, 507, 508, 510, 511,
}

const maxStatuses = 64

// statusSlots are the counters' places by status; 0 is for all others.
var statusSlots = func() (slots [600]uint8) {
	for i, status := range knownStatuses {
		slots[status] = uint8(i + 1)
	}
	return slots
}()

func statusSlot(status int) uint8 {
	if status < 0 || status >= len(statusSlots) {
		return 0
	}
	return statusSlots[status]
}

type routeName struct{ route, method string }

// routeStats are the requests of one route, by status.
type routeStats struct {
	group  group
	counts [histogram.Stripes][maxStatuses]atomic.Uint64
}

// credentialLooks fills a cache line.
type credentialLooks struct {
	hits, misses atomic.Uint64
	_            [48]byte
}

// requestStats counts requests. What a request writes to is spread over stripes by the call that it uses, and calls come from a pool
// that each processor has its own part of.
type requestStats struct {
	mu     sync.Mutex // guards routes, which only the making of routes and reading look at
	routes map[routeName]*routeStats

	none      *routeStats // requests without a route
	durations [len(groupNames)]*histogram.Histogram
	looks     [histogram.Stripes]credentialLooks
}

func newRequestStats() *requestStats {
	r := &requestStats{routes: map[routeName]*routeStats{}}
	for i := range r.durations {
		r.durations[i] = histogram.New(histogram.Bounds)
	}
	r.none = r.of(routeName{"none", "ANY"}, groupNone)
	return r
}

// of is the counters of a route, the same for the same name.
func (r *requestStats) of(name routeName, g group) *routeStats {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.routes[name]
	if s == nil {
		s = &routeStats{group: g}
		r.routes[name] = s
	}
	return s
}

// table gives each of Sluice's own routes its counters.
func (r *requestStats) table(routes []route) []route {
	for i := range routes {
		routes[i].stats = r.of(routeName{routes[i].pattern, routes[i].method}, groupOf(&routes[i]))
	}
	return routes
}

// configured gives each gateway route its counters, which go on where there was one of the same name, and forgets those of routes that
// are no more.
func (r *requestStats) configured(m *matcher) {
	named := map[routeName]bool{}
	for _, c := range m.routes {
		if c.upstreams != nil {
			name := routeName{c.name, "ANY"}
			named[name] = true
			c.row.stats = r.of(name, groupGateway)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, s := range r.routes {
		if s.group == groupGateway && !named[name] {
			delete(r.routes, name)
		}
	}
}

// note counts a call that has its answer. A check that came over another protocol is counted there.
func (r *requestStats) note(c *call) {
	stats := r.none
	if c.route != nil {
		stats = c.route.stats
	}
	if stats == nil {
		return
	}
	stripe := c.stripe % histogram.Stripes
	stats.counts[stripe][statusSlot(c.ctx.Response.StatusCode())].Add(1)
	r.durations[stats.group].Observe(stripe, c.srv.clock().Sub(c.now))
}

// Requests counts by route and status, in the same order each time; what never happened is left out. Safe for concurrent use.
func (s *Server) Requests() []RequestCount {
	r := s.requests
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []RequestCount
	for name, stats := range r.routes {
		for slot := range maxStatuses {
			var n uint64
			for i := range stats.counts {
				n += stats.counts[i][slot].Load()
			}
			if n == 0 {
				continue
			}
			status := "other"
			if slot > 0 {
				status = strconv.Itoa(knownStatuses[slot-1])
			}
			out = append(out, RequestCount{name.route, name.method, status, n})
		}
	}
	slices.SortFunc(out, func(a, b RequestCount) int {
		return cmp.Or(cmp.Compare(a.Route, b.Route), cmp.Compare(a.Method, b.Method), cmp.Compare(a.Status, b.Status))
	})
	return out
}

// RequestDurations are those of all groups.
func (s *Server) RequestDurations() []RequestDurations {
	var out []RequestDurations
	for i, h := range s.requests.durations {
		out = append(out, RequestDurations{groupNames[i], h.Read()})
	}
	return out
}

// CacheCount is what became of look-ups in a cache, since the server was made.
type CacheCount struct {
	Hits, Misses  uint64
	Entries, Room int // now, and at most
}

// CredentialCache counts look-ups of well-formed credentials. A miss is looked up in the replicated state, or is one that fails.
func (s *Server) CredentialCache() CacheCount {
	n := CacheCount{Room: len(s.credentials.sets) * cacheWays}
	for i := range s.requests.looks {
		n.Hits += s.requests.looks[i].hits.Load()
		n.Misses += s.requests.looks[i].misses.Load()
	}
	for i := range s.credentials.sets {
		for j := range s.credentials.sets[i] {
			if s.credentials.sets[i][j].Load() != nil {
				n.Entries++
			}
		}
	}
	return n
}

// PasswordCount is how the queue for hashing passwords stands.
type PasswordCount struct {
	Workers, Running int // hashes at once, at most and now
	Room, Waiting    int // requests that wait for a turn, at most and now
	Rejected         uint64
	// Waits are of those that got a turn, Hashes without the wait.
	Waits, Hashes histogram.Reading
}

// Passwords counts sign-ins, registrations and changes of passwords alike.
func (s *Server) Passwords() PasswordCount {
	p := s.passwords
	return PasswordCount{
		Workers: cap(p.slots), Running: len(p.slots), Room: int(p.queue), Waiting: int(max(p.waiting.Load(), 0)), Rejected: p.rejected.Load(),
		Waits: p.waits.Read(), Hashes: p.hashes.Read(),
	}
}

// UpstreamDurations is how long an upstream took to begin its answers, over all that it gave.
type UpstreamDurations struct {
	Route, URL string
	Reading    histogram.Reading
}

// UpstreamDurations are those of all upstreams of gateway routes, as Upstreams names them.
func (s *Server) UpstreamDurations() []UpstreamDurations {
	var out []UpstreamDurations
	for _, r := range s.live.Load().matcher.routes {
		if r.upstreams == nil {
			continue
		}
		for _, u := range r.upstreams.all {
			reading := u.took.Read()
			i := slices.IndexFunc(out, func(d UpstreamDurations) bool { return d.Route == r.name && d.URL == u.url })
			if i < 0 {
				out = append(out, UpstreamDurations{r.name, u.url, reading})
				continue
			}
			for j, n := range reading.Counts {
				out[i].Reading.Counts[j] += n
			}
			out[i].Reading.Sum += reading.Sum
		}
	}
	return out
}

// timed counts what began at began and has just ended.
func (s *Server) timed(h *histogram.Histogram, began time.Time) { h.Observe(0, s.clock().Sub(began)) }
