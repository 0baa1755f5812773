package bench

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

// endpoint is where connections go.
type endpoint struct {
	base    string // as the report names it
	address string // host and port to connect to
	host    string // for the Host header
	tls     *tls.Config
}

func newEndpoint(base string) (*endpoint, error) {
	u, err := url.Parse(base)
	if err != nil {
		return nil, fmt.Errorf("parse target: %w", err)
	}
	e := &endpoint{base: base, address: u.Host, host: u.Host}
	port := "80"
	if u.Scheme == "https" {
		port, e.tls = "443", &tls.Config{ServerName: u.Hostname(), MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
	}
	if u.Port() == "" {
		e.address = net.JoinHostPort(u.Hostname(), port)
	}
	return e, nil
}

// wireError is a request without an answer, by kind.
type wireError struct {
	kind string
	err  error
}

func (e *wireError) Error() string { return e.kind + ": " + e.err.Error() }
func (e *wireError) Unwrap() error { return e.err }

// Kinds of failures. An answer with a status that the scenario does not want is "status 401" and so on.
const (
	kindConnect  = "connect"
	kindTimeout  = "timeout"
	kindClosed   = "closed"   // the connection ended before the answer did
	kindProtocol = "protocol" // what came is no answer of HTTP/1.1
)

// answer is what a scenario may look at. body is valid until the next request.
type answer struct {
	status        int
	limit, window int64 // of X-RateLimit-*; 0 where there are none
	body          []byte
}

// maxAnswer bounds a body.
const maxAnswer = 1 << 20

// link is one connection with one request on it at a time. Prepared bytes go out in one write, and of the answer only
// what is needed is looked at: what the program spends here is missing in the server next to it.
type link struct {
	endpoint *endpoint
	timeout  time.Duration
	conn     net.Conn
	reader   *bufio.Reader
	used     time.Time // the last answer
	deadline time.Time // as the connection has it
	body     []byte
}

// stale is how long a connection may lie idle before it is opened anew: servers close theirs at times of their own.
const stale = 4 * time.Second

func newLink(e *endpoint, timeout time.Duration) *link {
	return &link{endpoint: e, timeout: timeout, reader: bufio.NewReaderSize(nil, 8<<10)}
}

func (l *link) close() {
	if l.conn != nil {
		l.conn.Close()
		l.conn = nil
	}
}

// open connects, unless it is connected.
func (l *link) open(now time.Time) error {
	if l.conn != nil && now.Sub(l.used) < stale {
		return nil
	}
	l.close()
	ctx, cancel := context.WithTimeout(context.Background(), l.timeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", l.endpoint.address)
	if err != nil {
		return &wireError{kindConnect, err}
	}
	if l.endpoint.tls != nil {
		secure := tls.Client(conn, l.endpoint.tls)
		if err := secure.HandshakeContext(ctx); err != nil {
			conn.Close()
			return &wireError{kindConnect, err}
		}
		conn = secure
	}
	l.conn, l.deadline = conn, time.Time{}
	l.reader.Reset(conn)
	return nil
}

// exchange sends one request and reads its answer. After an error the connection is a new one.
func (l *link) exchange(request []byte) (answer, error) {
	now := time.Now()
	if err := l.open(now); err != nil {
		return answer{}, err
	}
	// A timer for each request would cost more than the rest, so a deadline is some quarter later than it need be.
	if l.deadline.Sub(now) < l.timeout {
		l.deadline = now.Add(l.timeout + l.timeout/4)
		l.conn.SetDeadline(l.deadline)
	}
	var a answer
	_, err := l.conn.Write(request)
	keep := false
	if err == nil {
		a, keep, err = l.read()
	}
	if err != nil || !keep {
		l.close()
	}
	if err != nil {
		return answer{}, kindOf(err)
	}
	l.used = now
	return a, nil
}

func kindOf(err error) error {
	var known *wireError
	switch {
	case errors.As(err, &known):
		return err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &wireError{kindTimeout, err}
	case errors.Is(err, bufio.ErrBufferFull):
		return &wireError{kindProtocol, errors.New("a header line is too long")}
	}
	return &wireError{kindClosed, err}
}

func malformed(format string, args ...any) error {
	return &wireError{kindProtocol, fmt.Errorf(format, args...)}
}

// read reads one answer; keep says that the connection may be used again.
func (l *link) read() (a answer, keep bool, err error) {
	line, err := l.reader.ReadSlice('\n')
	if err != nil {
		return a, false, err
	}
	if len(line) < 12 || !bytes.HasPrefix(line, []byte("HTTP/1.")) {
		return a, false, malformed("the answer begins with %.20q", line)
	}
	keep = line[7] == '1'
	if a.status = int(decimal(line[9:12])); a.status < 200 {
		return a, false, malformed("status %.3q", line[9:12])
	}
	length, chunked := int64(-1), false
	for {
		if line, err = l.reader.ReadSlice('\n'); err != nil {
			return a, false, err
		}
		if line = bytes.TrimRight(line, "\r\n"); len(line) == 0 {
			break
		}
		// Few lines matter, and these are told from the others by their first letter.
		switch line[0] | 0x20 {
		case 'c':
			if v, ok := value(line, "content-length"); ok {
				length = decimal(v)
			} else if v, ok := value(line, "connection"); ok {
				keep = !bytes.EqualFold(v, []byte("close"))
			}
		case 't':
			if v, ok := value(line, "transfer-encoding"); ok {
				chunked = bytes.EqualFold(v, []byte("chunked"))
			}
		case 'x':
			if v, ok := value(line, "x-ratelimit-limit"); ok {
				a.limit = decimal(v)
			} else if v, ok := value(line, "x-ratelimit-window"); ok {
				a.window = decimal(v)
			}
		}
	}
	l.body = l.body[:0]
	switch {
	case a.status == 204 || a.status == 304:
	case chunked:
		err = l.readChunks()
	case length > maxAnswer:
		err = malformed("a body of %d bytes", length)
	case length >= 0:
		err = l.readBody(int(length))
	default:
		keep = false
		_, err = io.Copy(io.Discard, io.LimitReader(l.reader, maxAnswer))
	}
	a.body = l.body
	return a, keep, err
}

func (l *link) readBody(n int) error {
	start := len(l.body)
	if start+n > maxAnswer {
		return malformed("a body of more than %d bytes", maxAnswer)
	}
	l.body = append(l.body, make([]byte, n)...)
	_, err := io.ReadFull(l.reader, l.body[start:])
	return err
}

func (l *link) readChunks() error {
	for {
		line, err := l.reader.ReadSlice('\n')
		if err != nil {
			return err
		}
		digits, _, _ := strings.Cut(string(bytes.TrimRight(line, "\r\n")), ";")
		size, err := strconv.ParseUint(strings.TrimSpace(digits), 16, 31)
		if err != nil {
			return malformed("a chunk of the length %.20q", digits)
		}
		if size == 0 {
			break
		}
		if err := l.readBody(int(size)); err != nil {
			return err
		}
		if _, err := l.reader.Discard(2); err != nil {
			return err
		}
	}
	for { // trailers
		line, err := l.reader.ReadSlice('\n')
		if err != nil || len(bytes.TrimRight(line, "\r\n")) == 0 {
			return err
		}
	}
}

// value gives the header's value if the line is of that name, which is in lower case.
func value(line []byte, name string) ([]byte, bool) {
	if len(line) <= len(name) || line[len(name)] != ':' || !bytes.EqualFold(line[:len(name)], []byte(name)) {
		return nil, false
	}
	return bytes.TrimSpace(line[len(name)+1:]), true
}

// decimal reads digits; -1 where there is anything else.
func decimal(b []byte) int64 {
	if len(b) == 0 || len(b) > 18 {
		return -1
	}
	n := int64(0)
	for _, c := range b {
		if c < '0' || c > '9' {
			return -1
		}
		n = n*10 + int64(c-'0')
	}
	return n
}
