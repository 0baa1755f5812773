package authapi

import (
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/valyala/fasthttp"
)

const (
	// upstreamConns bounds the connections to one route's upstream; a request beyond them is answered 503.
	upstreamConns = 1024
	// upstreamIdle is shorter than the idle time of common servers (5 s in Node.js), so that they rarely close first.
	upstreamIdle = 4 * time.Second
	// maxDial bounds the connecting, which a longer route timeout does not make longer.
	maxDial = 5 * time.Second
)

// newUpstream prepares the client of one route. timeout bounds each silence of the upstream, not the whole exchange,
// so that a long download may take its time.
func newUpstream(u *url.URL, timeout time.Duration) *upstream {
	address := u.Host
	if u.Port() == "" {
		port := "80"
		if u.Scheme == "https" {
			port = "443"
		}
		address = net.JoinHostPort(u.Hostname(), port)
	}
	dialer := &net.Dialer{Timeout: min(timeout, maxDial)}
	return &upstream{
		scheme: u.Scheme, host: u.Host, base: strings.TrimSuffix(u.EscapedPath(), "/"),
		client: &fasthttp.HostClient{
			Addr:  address,
			IsTLS: u.Scheme == "https",
			Dial: func(string) (net.Conn, error) {
				conn, err := dialer.Dial("tcp", address)
				if err != nil {
					return nil, err
				}
				return &silenceConn{Conn: conn, timeout: timeout}, nil
			},
			MaxConns:                 upstreamConns,
			MaxIdleConnDuration:      upstreamIdle,
			ReadBufferSize:           maxHeader,
			StreamResponseBody:       true,
			NoDefaultUserAgentHeader: true,
			DisablePathNormalizing:   true,
			SecureErrorLogMessage:    true,
			RetryIfErr:               retryStale,
		},
	}
}

// silenceConn ends a read or write that makes no progress within timeout.
type silenceConn struct {
	net.Conn
	timeout time.Duration
}

// Read implements net.Conn.
func (c *silenceConn) Read(p []byte) (int, error) {
	if err := c.Conn.SetReadDeadline(time.Now().Add(c.timeout)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

// Write implements net.Conn.
func (c *silenceConn) Write(p []byte) (int, error) {
	if err := c.Conn.SetWriteDeadline(time.Now().Add(c.timeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}
