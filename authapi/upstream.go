package authapi

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"sluice/authapi/histogram"
)

// Defaults of a Route's upstreams.
const (
	DefaultRouteConnectTimeout = 5 * time.Second
	DefaultRouteMaxFails       = 3
	DefaultRouteEjectTime      = 10 * time.Second
	DefaultRouteRetries        = 2
	// DefaultRouteMaxRequests bounds the connections to one upstream, each of which takes some 16 KiB here.
	DefaultRouteMaxRequests = 1024
)

const (
	// maxUpstreams is what a set of them in 64 bits can hold.
	maxUpstreams = 64
	// maxRetries bounds what one request may cost when all is broken.
	maxRetries = 5
	// upstreamIdle is shorter than the idle time of common servers (5 s in Node.js), so that they rarely close first.
	upstreamIdle = 4 * time.Second
	// longestEjection is how often a repeated ejection doubles.
	longestEjection = 3
)

// outcome is what became of one attempt at an upstream.
type outcome int

const (
	// outcomeAnswered: there was an answer, whatever its status.
	outcomeAnswered outcome = 0
	// outcomeFailed: it could not be reached, broke off or said what is no HTTP.
	outcomeFailed outcome = 1
	// outcomeTimeout: it did not answer in time.
	outcomeTimeout outcome = 2
	// outcomeAbandoned: the client went away or broke off.
	outcomeAbandoned outcome = 3
	// outcomeBroken: it had answered, and the body broke off, stood still or was too long.
	outcomeBroken outcome = 4

	outcomes = 5
)

// upstreams are where the requests of one route go, in turn. Those that fail are left out for a while.
//
// Only what became of requests tells how an upstream is: nothing is sent that no client asked for. After maxFails failures in
// a row it is ejected, for eject at first and twice as long with each time that it fails again right away, up to eight times.
// Then a single request tries it. The last one that is in use stays so however it fails, since an error of its own says more
// than one of ours; ejected ones are asked after all where a request has no other left.
type upstreams struct {
	all         []*upstream
	transport   *http.Transport
	maxFails    int
	eject       time.Duration
	retries     int
	maxRequests int
	connect     time.Duration
	timeout     time.Duration
	authorities *x509.CertPool // nil: the system's

	retried atomic.Uint64

	mu   sync.Mutex // guards next, and health in all
	next int
}

// upstream is one of them.
type upstream struct {
	url    string // as configured, for logs and metrics
	scheme string
	host   string // with a port where the URL has one
	base   string // path before the request's own, without a trailing slash

	counts  [outcomes]atomic.Uint64
	ejected atomic.Uint64 // ejections so far
	took    *histogram.Histogram

	health health
}

// health is what an upstream's requests say about it.
type health struct {
	inFlight  int
	fails     int       // in a row
	ejections int       // in a row, without an answer since
	until     time.Time // of the ejection, which its end does not clear but an answer does; zero: in use
	trying    bool      // one request has it tried after that
}

func (h *health) inUse() bool { return h.until.IsZero() }

// newUpstreams prepares the clients of one route.
func newUpstreams(r *Route) (*upstreams, error) {
	p := &upstreams{maxFails: r.MaxFails, eject: r.EjectTime, retries: r.Retries, maxRequests: r.MaxRequests}
	setDefault(&p.maxFails, DefaultRouteMaxFails)
	setDefault(&p.eject, DefaultRouteEjectTime)
	setDefault(&p.maxRequests, DefaultRouteMaxRequests)
	switch {
	case p.retries == 0:
		p.retries = DefaultRouteRetries
	case p.retries < 0:
		p.retries = 0
	case p.retries > maxRetries:
		return nil, fmt.Errorf("%d retries are more than %d", p.retries, maxRetries)
	}
	urls := r.Upstreams
	if r.Upstream != "" {
		urls = append([]string{r.Upstream}, urls...)
	}
	if len(urls) > maxUpstreams {
		return nil, fmt.Errorf("%d upstreams are more than %d", len(urls), maxUpstreams)
	}
	for _, text := range urls {
		u, err := newUpstream(text)
		if err != nil {
			return nil, err
		}
		p.all = append(p.all, u)
	}
	timeout, connect := r.Timeout, r.ConnectTimeout
	setDefault(&timeout, DefaultRouteTimeout)
	setDefault(&connect, DefaultRouteConnectTimeout)
	p.connect, p.timeout, p.authorities = connect, timeout, r.UpstreamCA
	p.transport = newUpstreamTransport(connect, timeout, p.maxRequests, r.UpstreamCA)
	return p, nil
}

func newUpstream(text string) (*upstream, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return nil, errors.New("an upstream is no URL") // the parser's error would quote it, with what may be a password
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return nil, fmt.Errorf("upstream %q is not an http or https URL", u.Redacted())
	case u.RawQuery != "" || u.Fragment != "" || u.User != nil:
		return nil, fmt.Errorf("upstream %q may have a host and a path only", u.Redacted())
	}
	base := strings.TrimSuffix(u.EscapedPath(), "/")
	if base != "" && !canonicalPath([]byte(base)) {
		return nil, fmt.Errorf("upstream %q has a path that is not in canonical form", text)
	}
	return &upstream{url: text, scheme: u.Scheme, host: u.Host, base: base, took: histogram.New(histogram.Bounds)}, nil
}

// newUpstreamTransport is net/http's client of HTTP/1.1, which keeps connections, streams both ways at once, hands connections over
// after a 101 and is strict about what an upstream answers. It adds nothing of its own to requests, follows no proxy of the
// environment, and looks at certificates as anybody would.
func newUpstreamTransport(connect, timeout time.Duration, idle int, ca *x509.CertPool) *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Transport{
		DialContext:            (&net.Dialer{Timeout: connect, KeepAlive: keepAlive}).DialContext,
		TLSHandshakeTimeout:    connect,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: ca},
		Protocols:              protocols,
		DisableCompression:     true,
		MaxIdleConns:           0, // bounded by those of each host
		MaxIdleConnsPerHost:    idle,
		IdleConnTimeout:        upstreamIdle,
		ResponseHeaderTimeout:  timeout,
		MaxResponseHeaderBytes: maxHeader,
	}
}

// pick chooses the upstream of the next attempt, in turn, and counts it in until leave. tried is the set of those that the
// request has failed at. nil: there is none left, and busy says that one would have been, with fewer requests on it.
func (p *upstreams) pick(now time.Time, tried uint64) (u *upstream, index int, busy bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	best := -1
	for k := range p.all {
		i := (p.next + k) % len(p.all)
		h := &p.all[i].health
		switch {
		case tried&(1<<i) != 0:
			continue
		case h.inFlight >= p.maxRequests:
			busy = true
			continue
		case h.inUse():
		case h.trying || now.Before(h.until):
			if best < 0 || h.until.Before(p.all[best].health.until) {
				best = i
			}
			continue
		default:
			h.trying = true
		}
		return p.take(i), i, false
	}
	if best < 0 || busy {
		return nil, 0, busy
	}
	return p.take(best), best, false
}

func (p *upstreams) take(i int) *upstream {
	p.next = (i + 1) % len(p.all)
	p.all[i].health.inFlight++
	return p.all[i]
}

// leave ends what pick began.
func (p *upstreams) leave(u *upstream) {
	p.mu.Lock()
	defer p.mu.Unlock()
	u.health.inFlight--
}

// note counts what became of an attempt and draws the conclusion for the upstream. stale says that it failed on a connection that
// was kept from before, which may have been closed meanwhile: that tells nothing of the upstream as it is now.
func (p *upstreams) note(u *upstream, o outcome, stale bool, now time.Time) (ejected bool) {
	u.counts[o].Add(1)
	p.mu.Lock()
	defer p.mu.Unlock()
	h := &u.health
	h.trying = false
	switch {
	case o == outcomeAnswered:
		h.fails, h.ejections, h.until = 0, 0, time.Time{}
		return false
	case o == outcomeAbandoned, o == outcomeBroken, stale:
		return false
	case !h.inUse() && now.Before(h.until):
		return false // a request from before its ejection, or without a choice
	}
	if h.fails++; h.inUse() && (h.fails < p.maxFails || !p.othersInUse(u)) {
		return false
	}
	h.until = now.Add(p.eject << min(h.ejections, longestEjection))
	h.ejections++
	u.ejected.Add(1)
	return true
}

func (p *upstreams) othersInUse(u *upstream) bool {
	for _, other := range p.all {
		if other != u && other.health.inUse() {
			return true
		}
	}
	return false
}

// same says whether two lead to the same places in the same way.
func (p *upstreams) same(q *upstreams) bool {
	return p.maxFails == q.maxFails && p.eject == q.eject && p.retries == q.retries && p.maxRequests == q.maxRequests &&
		p.connect == q.connect && p.timeout == q.timeout &&
		(p.authorities == nil) == (q.authorities == nil) && (p.authorities == nil || p.authorities.Equal(q.authorities)) &&
		slices.EqualFunc(p.all, q.all, func(u, v *upstream) bool { return u.url == v.url })
}

// close lets go of the connections that nobody uses.
func (p *upstreams) close() { p.transport.CloseIdleConnections() }
