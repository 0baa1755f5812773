package bench

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"time"

	"github.com/valyala/fasthttp"
)

// verifyPath is what is asked: the check that does nothing but decide.
const verifyPath = "/api/v1/auth/verify"

// target is one node. It is safe for concurrent use.
type target struct {
	index  int
	base   string
	client *fasthttp.HostClient
	await  time.Duration
}

func newTarget(index int, base string, conns int, timeout time.Duration) (*target, error) {
	u, err := url.Parse(base)
	if err != nil {
		return nil, fmt.Errorf("parse target: %w", err)
	}
	secure := u.Scheme == "https"
	address := u.Host
	if u.Port() == "" {
		port := "80"
		if secure {
			port = "443"
		}
		address = net.JoinHostPort(u.Hostname(), port)
	}
	t := &target{index: index, base: base, await: timeout}
	t.client = &fasthttp.HostClient{
		Addr: address, IsTLS: secure, TLSConfig: &tls.Config{ServerName: u.Hostname(), MinVersion: tls.VersionTLS12},
		MaxConns: conns + 1, MaxConnWaitTimeout: timeout, MaxIdleConnDuration: time.Minute,
		ReadTimeout: timeout, WriteTimeout: timeout, MaxResponseBodySize: 64 << 10,
		Dial: func(addr string) (net.Conn, error) { return fasthttp.DialDualStackTimeout(addr, timeout) },
		// A request that is sent twice may be counted twice, and shows once.
		MaxIdemponentCallAttempts: 1,
		RetryIfErr:                func(*fasthttp.Request, int, error) (bool, bool) { return false, false },
		NoDefaultUserAgentHeader:  true, DisablePathNormalizing: true,
	}
	return t, nil
}

func (t *target) close() { t.client.CloseIdleConnections() }

// alive asks whether the node answers at all, over a connection that is then kept.
func (t *target) alive() error {
	req, resp := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
	defer fasthttp.ReleaseRequest(req)
	defer fasthttp.ReleaseResponse(resp)
	req.SetRequestURI(t.base + "/livez")
	if err := t.client.DoTimeout(req, resp, t.await); err != nil {
		return fmt.Errorf("ask %s: %w", t.base, err)
	}
	return nil
}

// told is what an answer says of the limit that applies; burst is 0 where it is no token bucket.
type told struct{ limit, window, burst int64 }

// call is one worker's request, used again and again.
type call struct {
	req  *fasthttp.Request
	resp *fasthttp.Response
}

func newCall(key string) *call {
	c := &call{req: fasthttp.AcquireRequest(), resp: fasthttp.AcquireResponse()}
	c.req.Header.Set("X-API-Key", key)
	return c
}

func (c *call) release() {
	fasthttp.ReleaseRequest(c.req)
	fasthttp.ReleaseResponse(c.resp)
}

// ask sends the check to a node and waits for the answer. problem says what went wrong where nothing was decided, without
// anything secret.
func (c *call) ask(t *target) (s Sample, said told, problem string) {
	c.req.SetRequestURI(t.base + verifyPath)
	c.resp.Reset()
	sent := time.Now()
	err := t.client.DoTimeout(c.req, c.resp, t.await)
	took := time.Since(sent)
	s = Sample{Node: t.index, Sent: sent.UnixMicro(), Outcome: Failed}
	// By the monotonic clock, rounded up: Received must not be too early.
	s.Received = s.Sent + took.Microseconds() + 1
	if err != nil {
		return s, said, fmt.Sprintf("%s: %v", t.base, err)
	}
	h := &c.resp.Header
	s.Reset = number(h.Peek("X-RateLimit-Reset"))
	said = told{limit: number(h.Peek("X-RateLimit-Limit")), window: number(h.Peek("X-RateLimit-Window"))}
	said.burst = burstOf(h.Peek("RateLimit-Policy"), said)
	if debug := h.Peek("X-RateLimit-Debug"); len(debug) > 0 {
		s.Debug, s.Waited = true, bytes.Equal(debug, []byte("waited=1"))
	}
	switch status := c.resp.StatusCode(); {
	case status >= 200 && status < 300:
		s.Outcome = Admitted
	case status == fasthttp.StatusTooManyRequests:
		s.Outcome = Refused
	case status == fasthttp.StatusServiceUnavailable:
		s.Outcome = Undecided
	default:
		problem = fmt.Sprintf("%s answered %d", t.base, status)
	}
	return s, said, problem
}

// burstOf is the burst that a RateLimit-Policy header names for the limit that applies; 0 for none.
func burstOf(policies []byte, of told) int64 {
	var room [64]byte
	name := strconv.AppendInt(append(strconv.AppendInt(append(room[:0], ";q="...), of.limit, 10), ";w="...), of.window, 10)
	_, rest, found := bytes.Cut(policies, append(name, ";burst="...))
	if !found {
		return 0
	}
	end := bytes.IndexAny(rest, ";, ")
	if end < 0 {
		end = len(rest)
	}
	return number(rest[:end])
}

// number reads a header's whole number; 0 where there is none.
func number(b []byte) int64 {
	n, err := strconv.ParseInt(string(b), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// local says whether a host is this machine's own.
func local(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
