package node

import (
	"fmt"

	"sluice/authapi"
	"sluice/authapi/histogram"
)

// histogram writes one histogram's samples. labels come before le.
func (o *samples) histogram(labels string, r histogram.Reading) {
	prefix := labels
	if prefix != "" {
		prefix += ","
	}
	var sum uint64
	for i, bound := range r.Bounds {
		sum += r.Counts[i]
		o.add("_bucket", fmt.Sprintf("%sle=\"%g\"", prefix, bound.Seconds()), float64(sum))
	}
	sum += r.Counts[len(r.Bounds)]
	o.add("_bucket", prefix+`le="+Inf"`, float64(sum))
	o.add("_sum", labels, r.Sum.Seconds())
	o.add("_count", labels, float64(sum))
}

var requestMetrics = []metric{
	{"sluice_http_requests_total", kindCounter, "Requests to the public listener by route, its method and the answer's status.", func(s *scrape, out *samples) {
		for _, r := range s.n.api.Requests() {
			out.add("", fmt.Sprintf("route=%q,method=%q,status=%q", r.Route, r.Method, r.Status), float64(r.Count))
		}
	}},
	{"sluice_http_request_duration_seconds", kindHistogram, "How long requests took by group of routes, from the end of their header to the beginning of the answer.", func(s *scrape, out *samples) {
		for _, d := range s.n.api.RequestDurations() {
			out.histogram(fmt.Sprintf("group=%q", d.Group), d.Reading)
		}
	}},
	{"sluice_grpc_call_duration_seconds", kindHistogram, "How long calls over gRPC took, but for streams, where that is on.", func(s *scrape, out *samples) {
		if s.n.grpc == nil {
			return
		}
		for _, d := range s.n.grpc.Durations() {
			out.histogram(fmt.Sprintf("method=%q", d.Method), d.Reading)
		}
	}},
	{"sluice_gateway_upstream_duration_seconds", kindHistogram, "How long upstreams took to begin the answers that they gave.", func(s *scrape, out *samples) {
		for _, d := range s.n.api.UpstreamDurations() {
			out.histogram(fmt.Sprintf("route=%q,upstream=%q", d.Route, d.URL), d.Reading)
		}
	}},

	{"sluice_credential_cache_hits_total", kindCounter, "Well-formed credentials that the cache knew.", one(func(s *scrape) float64 { return float64(s.cache.Hits) })},
	{"sluice_credential_cache_misses_total", kindCounter, "Well-formed credentials that were looked up in the replicated state, those that are not good among them.", one(func(s *scrape) float64 { return float64(s.cache.Misses) })},
	{"sluice_credential_cache_entries", kindGauge, "Credentials in the cache.", one(func(s *scrape) float64 { return float64(s.cache.Entries) })},
	{"sluice_credential_cache_entries_max", kindGauge, "Room for credentials in the cache.", one(func(s *scrape) float64 { return float64(s.cache.Room) })},

	{"sluice_password_workers", kindGauge, "Passwords that are hashed at once, at most (auth.argon2.workers).", ofPasswords(func(p *authapi.PasswordCount) float64 { return float64(p.Workers) })},
	{"sluice_password_hashes_running", kindGauge, "Passwords that are hashed now.", ofPasswords(func(p *authapi.PasswordCount) float64 { return float64(p.Running) })},
	{"sluice_password_queue_length", kindGauge, "Requests that wait for their password to be hashed.", ofPasswords(func(p *authapi.PasswordCount) float64 { return float64(p.Waiting) })},
	{"sluice_password_queue_max", kindGauge, "How many may wait (auth.argon2.queue).", ofPasswords(func(p *authapi.PasswordCount) float64 { return float64(p.Room) })},
	{"sluice_password_rejections_total", kindCounter, "Requests refused since the queue was full, or since their turn did not come in time.", ofPasswords(func(p *authapi.PasswordCount) float64 { return float64(p.Rejected) })},
	{"sluice_password_wait_seconds", kindHistogram, "How long requests waited for their turn that got it.", func(s *scrape, out *samples) {
		out.histogram("", s.passwords.Waits)
	}},
	{"sluice_password_hash_duration_seconds", kindHistogram, "How long hashes took, without the wait.", func(s *scrape, out *samples) {
		out.histogram("", s.passwords.Hashes)
	}},
}

func ofPasswords(read func(*authapi.PasswordCount) float64) func(*scrape, *samples) {
	return one(func(s *scrape) float64 { return read(&s.passwords) })
}
