package authapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"sync"
	"time"

	"github.com/valyala/fasthttp"
)

// Why an exchange was ended from outside.
var (
	errClientGone = errors.New("the client closed its connection")
	errStalled    = errors.New("the upstream stood still for longer than the route's idle_timeout")
	errStale      = errors.New("too many kept connections turned out to be closed")
	errEnded      = errors.New("the exchange is over")
)

// maxStale is how many connections that were kept and turned out to be closed one attempt may meet. net/http goes on to the next
// where nothing can have happened twice.
const maxStale = 3

// exchange is one request's way to an upstream and back. It may go on after the handler, as long as the answer's body or a tunnel
// does, so it holds nothing that dies with the call.
type exchange struct {
	srv    *Server
	route  *configured
	ctx    context.Context
	cancel context.CancelCauseFunc
	conn   net.Conn
	watch  *watched
	body   *uploadReader // nil for none
	up     *upstream     // of the present attempt; nil where none is counted in
	// conns are the connections that the present attempt got, reused whether the last of them was kept from before.
	conns  int
	reused bool

	traced context.Context // as call.traced

	once sync.Once
}

// newExchange begins one. end has to be called.
func (c *call) newExchange(r *configured) *exchange {
	x := &exchange{srv: c.srv, route: r, conn: c.ctx.Conn(), traced: c.traced}
	x.ctx, x.cancel = context.WithCancelCause(context.Background())
	x.watch = c.srv.hangups.watch(x.conn, func() { x.cancel(errClientGone) })
	return x
}

// end releases everything. It may be called more than once, from anywhere.
func (x *exchange) end() {
	x.once.Do(func() {
		x.watch.stop()
		x.cancel(errEnded)
		if x.body != nil {
			x.body.stop()
		}
		if x.up != nil {
			x.route.upstreams.leave(x.up)
		}
	})
}

// outgoing is a request as the upstream will get it, but for the upstream.
type outgoing struct {
	method string
	path   string // as sent, without the upstream's own
	query  string
	header http.Header
	length int64 // of the body: -1 where it comes in chunks
}

// request makes it a request to u.
func (x *exchange) request(ctx context.Context, out *outgoing, u *upstream) *http.Request {
	path := u.base + out.path
	if path == "" {
		path = "/"
	}
	req := &http.Request{
		Method: out.method,
		// Opaque goes on the wire as it is. A parsed path might be written in another way than the one that was checked.
		URL:           &url.URL{Scheme: u.scheme, Host: u.host, Opaque: path, RawQuery: out.query},
		Host:          u.host,
		Header:        out.header,
		ContentLength: out.length,
		Proto:         "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	switch {
	case x.body != nil:
		req.Body = x.body
	case out.length == 0:
		req.Body = http.NoBody
	}
	return req.WithContext(ctx)
}

// send has the request answered by one upstream or another. Errors: a *Problem or ErrOverloaded where none was asked, or the last
// attempt's.
func (x *exchange) send(out *outgoing) (*http.Response, error) {
	p := x.route.upstreams
	var tried uint64
	var last error
	for attempt := 0; ; attempt++ {
		u, index, busy := p.pick(x.srv.clock(), tried)
		if u == nil {
			switch {
			case last != nil:
				return nil, last
			case busy:
				x.srv.upstreamsBusy.Add(1)
				return nil, ErrOverloaded
			}
			return nil, errBadGateway()
		}
		if attempt > 0 {
			p.retried.Add(1)
		}
		x.up = u
		began := x.srv.clock()
		resp, err := x.try(out, u)
		what := x.outcomeOf(err)
		stale := err != nil && x.reused && what == outcomeFailed
		if p.note(u, what, stale, x.srv.clock()) {
			x.srv.log.Warn("upstream ejected", "route", x.route.name, "upstream", u.url, "error", err)
		}
		if err == nil {
			if x.body != nil {
				x.body.answered()
			}
			x.srv.timed(u.took, began)
			return resp, nil
		}
		x.up = nil
		p.leave(u)
		last = err
		if attempt >= p.retries || !x.repeatable(out, what) {
			return nil, err
		}
		if !stale {
			tried |= 1 << index
		}
	}
}

// try is one attempt.
func (x *exchange) try(out *outgoing, u *upstream) (*http.Response, error) {
	x.conns, x.reused = 0, false
	ctx, cancel := context.WithCancelCause(x.ctx)
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		x.conns++
		x.reused = info.Reused
		if x.conns > maxStale+1 {
			cancel(errStale)
		}
	}})
	answered := x.traceAttempt(out, u)
	resp, err := x.route.upstreams.transport.RoundTrip(x.request(ctx, out, u))
	answered(resp, err)
	if err != nil {
		// The cause says more than that something was cancelled.
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		cancel(err)
		return nil, err
	}
	return resp, nil // ctx ends with x.ctx, which the answer's body outlives no longer than the client's interest in it
}

// outcomeOf says what an attempt that ended with err was.
func (x *exchange) outcomeOf(err error) outcome {
	var netErr net.Error
	switch {
	case err == nil:
		return outcomeAnswered
	case errors.Is(err, errClientGone), x.body != nil && x.body.failure() != nil:
		return outcomeAbandoned
	case errors.Is(err, errStalled), errors.As(err, &netErr) && netErr.Timeout():
		return outcomeTimeout
	}
	return outcomeFailed
}

// repeatable says whether the request may be sent once more, after an attempt that ended like this: where nothing was sent, or where
// it may happen twice by its method and has no body that is gone. A time that was waited in vain is not waited for again: it would
// double the load on what is slow.
func (x *exchange) repeatable(out *outgoing, what outcome) bool {
	switch {
	case what == outcomeAbandoned, x.body != nil && x.body.begun():
		return false
	case x.conns == 0:
		return true
	case what == outcomeTimeout || x.body != nil || out.header.Get("Upgrade") != "":
		return false
	}
	switch out.method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodPut, http.MethodDelete:
		return true
	}
	return false
}

// errRouteBody: the client sent more than the route takes.
var errRouteBody = errors.New("body longer than the route takes")

// errAnswerTooLarge: the upstream answered with more than the route passes on.
var errAnswerTooLarge = errors.New("answer longer than the route's max_answer_bytes")

// minUploadRate is what a client has to send a second, on average, for its upload to go on.
const minUploadRate = 1 << 10

// uploadReader is the client's body on its way to the upstream. It ends with an error where the body is too long or comes too
// slowly, and remembers it, to tell it from the upstream's. The upstream may answer before it has all, so reading may go on beside
// the answer, in a goroutine of the transport's; after stop nothing is read any more.
type uploadReader struct {
	ctx   *fasthttp.RequestCtx
	src   io.Reader
	grace time.Duration // for the first bytes
	idle  time.Duration // for the upstream to take some
	last  time.Duration // for it to take the last of them and to answer, where nothing else bounds that it takes them
	stall *time.Timer

	mu      sync.Mutex // held while reading; guards what follows
	left    int64
	read    int64
	touched bool
	waited  time.Duration // for the client
	ended   bool
	err     error

	stopping sync.Mutex // guards what follows, and orders it with the deadline and the timer
	stopped  bool
	heard    bool // there is an answer, whose body has its own timer
}

func newUploadReader(c *call, r *configured, src io.Reader, x *exchange) *uploadReader {
	u := &uploadReader{
		ctx: c.ctx, src: src, left: r.maxBody, grace: c.srv.cfg.ReadTimeout, idle: r.idleTimeout,
		last: r.idleTimeout + r.upstreams.transport.ResponseHeaderTimeout,
	}
	u.stall = time.AfterFunc(u.idle, func() { x.cancel(errStalled) })
	u.stall.Stop()
	return u
}

// Read implements io.Reader. Only the time that the client takes counts against it, not that of a slow upstream.
func (u *uploadReader) Read(p []byte) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.stall.Stop()
	u.touched = true
	switch {
	case u.err != nil:
		return 0, u.err
	case u.ended:
		return 0, io.EOF
	}
	begun := time.Now()
	if err := u.arm(begun.Add(min(u.grace+time.Duration(u.read/minUploadRate)*time.Second-u.waited, max(u.idle, u.grace)))); err != nil {
		u.err = err
		return 0, err
	}
	n, err := u.src.Read(p)
	u.waited += time.Since(begun)
	u.read += int64(n)
	if u.left -= int64(n); u.left < 0 {
		err = errRouteBody
	}
	switch {
	case err == io.EOF:
		u.ended = true
		u.expect(u.last)
	case err != nil:
		u.err = err
		return 0, err
	default:
		u.expect(u.idle)
	}
	return n, err
}

// expect gives the upstream time to take what was read.
func (u *uploadReader) expect(d time.Duration) {
	u.stopping.Lock()
	defer u.stopping.Unlock()
	if !u.stopped && !u.heard {
		u.stall.Reset(d)
	}
}

// answered ends that: what an upstream that has answered still takes is its own business.
func (u *uploadReader) answered() {
	u.stopping.Lock()
	defer u.stopping.Unlock()
	u.heard = true
	u.stall.Stop()
}

// arm sets the deadline of the next read, unless there must be none.
func (u *uploadReader) arm(due time.Time) error {
	u.stopping.Lock()
	defer u.stopping.Unlock()
	if u.stopped {
		return errEnded
	}
	return u.ctx.SetReadDeadline(due)
}

// Close implements io.Closer. The transport calls it between attempts too, so it does nothing.
func (u *uploadReader) Close() error { return nil }

// stop ends reading, and waits for a read that is going on. The connection cannot be used for another request unless the body had
// ended.
func (u *uploadReader) stop() {
	u.stopping.Lock()
	first := !u.stopped
	u.stopped = true
	if first && !u.mu.TryLock() {
		_ = u.ctx.SetReadDeadline(time.Unix(1, 0)) // wakes the read; where it cannot be set the connection is closed already
	} else if first {
		u.mu.Unlock()
	}
	u.stall.Stop()
	u.stopping.Unlock()
	u.mu.Lock() // a read that was going on is over
	defer u.mu.Unlock()
}

// finished says whether all of the body has been read.
func (u *uploadReader) finished() bool {
	// A read that is going on has not seen the end.
	if !u.mu.TryLock() {
		return false
	}
	defer u.mu.Unlock()
	return u.ended
}

// begun says whether anything was asked of the client.
func (u *uploadReader) begun() bool {
	if !u.mu.TryLock() {
		return true // it is now
	}
	defer u.mu.Unlock()
	return u.touched
}

// failure is what was wrong with what the client sent, nil for nothing so far.
func (u *uploadReader) failure() error {
	if !u.mu.TryLock() {
		return nil
	}
	defer u.mu.Unlock()
	if errors.Is(u.err, errEnded) {
		return nil
	}
	return u.err
}

// downloadReader is the upstream's body on its way to the client. Whenever there is something to write, the client gets the whole
// write timeout anew to take it.
type downloadReader struct {
	x     *exchange
	src   io.ReadCloser
	left  int64 // of the answer's limit; negative for none
	stall *time.Timer
	// ctx gets its write deadline moved; nil where the answer is held back.
	ctx *fasthttp.RequestCtx
	err error
}

func (x *exchange) newDownload(ctx *fasthttp.RequestCtx, src io.ReadCloser) *downloadReader {
	d := &downloadReader{x: x, src: src, left: -1, ctx: ctx}
	if x.route.maxAnswer > 0 {
		d.left = x.route.maxAnswer
	}
	d.stall = time.AfterFunc(x.route.idleTimeout, func() { x.cancel(errStalled) })
	return d
}

// Read implements io.Reader.
func (d *downloadReader) Read(p []byte) (int, error) {
	if d.err != nil {
		return 0, d.err
	}
	d.stall.Reset(d.x.route.idleTimeout)
	n, err := d.src.Read(p)
	d.stall.Stop()
	if d.left >= 0 {
		if int64(n) > d.left {
			err = errAnswerTooLarge
			n = 0
		}
		d.left -= int64(n)
	}
	if d.ctx != nil && (err == nil || errors.Is(err, io.EOF)) { // the end has to be written as well
		if err := d.ctx.SetWriteDeadline(time.Now().Add(d.x.srv.cfg.WriteTimeout)); err != nil {
			d.err = err
			return 0, err
		}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		if cause := context.Cause(d.x.ctx); cause != nil {
			err = cause
		}
		d.x.broke(err)
	}
	d.err = err
	return n, err
}

// broke tells of an answer that will not be whole. A client that has its beginning finds out by the framing.
func (x *exchange) broke(err error) {
	if errors.Is(err, errClientGone) || errors.Is(err, errEnded) || x.body != nil && x.body.failure() != nil {
		return
	}
	x.route.upstreams.note(x.up, outcomeBroken, false, x.srv.clock())
	x.srv.log.Warn("answer broken off", "route", x.route.name, "upstream", x.up.url, "error", err)
}

// Close gives the upstream's connection back where its body was read to the end, and closes it otherwise.
func (d *downloadReader) Close() error {
	d.stall.Stop()
	d.x.end()
	if err := d.src.Close(); err != nil {
		return fmt.Errorf("close answer: %w", err)
	}
	return nil
}
