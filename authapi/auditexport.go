package authapi

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/valyala/fasthttp"

	"sluice/raftfsm/state"
)

const (
	typeNDJSON = "application/x-ndjson"
	// maxExports bounds the audit logs that a node writes to clients at the same time, maxExportsOf those of one organization.
	maxExports   = 16
	maxExportsOf = 2
)

// exports counts the audit logs on their way to clients, by organization.
type exports struct {
	mu       sync.Mutex
	total    int
	rejected uint64
	of       map[string]int
}

func (e *exports) begin(org string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.total >= maxExports || e.of[org] >= maxExportsOf {
		e.rejected++
		return false
	}
	e.total++
	e.of[org]++
	return true
}

func (e *exports) end(org string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.total--
	if e.of[org]--; e.of[org] == 0 {
		delete(e.of, org)
	}
}

// wantsNDJSON says whether the audit log is to be one stream of lines instead of a page.
func (c *call) wantsNDJSON() (bool, error) {
	switch format := c.query("format"); format {
	case "ndjson":
		return true, nil
	case "", "json":
		return format == "" && acceptsNDJSON(string(c.ctx.Request.Header.Peek("Accept"))), nil
	}
	return false, invalid("format", `must be "json" or "ndjson"`)
}

// acceptsNDJSON says whether NDJSON is asked for by name, and not turned down.
func acceptsNDJSON(accept string) bool {
	for media := range strings.SplitSeq(accept, ",") {
		name, quality, _ := strings.Cut(media, ";")
		if strings.EqualFold(strings.TrimSpace(name), typeNDJSON) {
			return strings.ReplaceAll(quality, " ", "") != "q=0"
		}
	}
	return false
}

// exportAudit answers with all events from `before` on, a line each, as far as the filter goes.
func (c *call) exportAudit(filter state.AuditFilter, before string) error {
	s := c.srv
	h := &c.ctx.Response.Header
	h.SetContentType(typeNDJSON)
	h.SetCanonical(headerCacheControl, valueNoStore)
	c.ctx.SetStatusCode(http.StatusOK)
	if c.ctx.IsHead() {
		c.ctx.Response.SkipBody = true
		return nil
	}
	if !s.accounts.exports.begin(filter.OrganizationID) {
		return ErrOverloaded
	}
	c.ctx.SetBodyStream(&auditExport{
		srv: s, ctx: c.ctx, filter: filter, before: before, credential: c.entry, epoch: s.state.Epoch(),
	}, -1)
	return nil
}

// auditExport is an audit log on its way to a client: it reads a page when the one before has been sent. It outlives the
// call.
type auditExport struct {
	srv        *Server
	ctx        *fasthttp.RequestCtx // of the connection, whose deadline moves on with each page
	filter     state.AuditFilter
	before     string
	credential *credential
	epoch      uint64
	page       []byte
	done       bool
	closed     bool
}

// errExportEnded breaks the stream off, so that what the client has does not look whole.
var errExportEnded = errors.New("the credential of an export does not hold any more")

// Read implements io.Reader.
func (x *auditExport) Read(p []byte) (int, error) {
	for len(x.page) == 0 {
		if x.done {
			return 0, io.EOF
		}
		if err := x.next(); err != nil {
			x.srv.log.Warn("audit export broken off", "error", err)
			return 0, err
		}
	}
	if err := x.ctx.SetWriteDeadline(time.Now().Add(x.srv.cfg.WriteTimeout)); err != nil {
		return 0, err
	}
	n := copy(p, x.page)
	x.page = x.page[n:]
	return n, nil
}

// next reads a page.
func (x *auditExport) next() error {
	// A credential that was revoked reads no further.
	if epoch := x.srv.state.Epoch(); epoch != x.epoch {
		if err := x.srv.stillReads(x.credential, x.filter.OrganizationID); err != nil {
			return err
		}
		x.epoch = epoch
	}
	events, next, err := x.srv.state.Audit(x.filter, x.before, pageMax)
	if err != nil {
		return err
	}
	for i := range events {
		line, err := json.Marshal(newAuditBody(&events[i]))
		if err != nil {
			return err
		}
		x.page = append(append(x.page, line...), '\n')
	}
	x.before, x.done = next, next == ""
	return nil
}

// Close implements io.Closer: the whole log was sent, or the client has left.
func (x *auditExport) Close() error {
	if !x.closed {
		x.closed = true
		x.srv.accounts.exports.end(x.filter.OrganizationID)
	}
	return nil
}

// stillReads says whether a credential that was good for an organization's audit log still is: nil, or errExportEnded.
func (s *Server) stillReads(old *credential, org string) error {
	p := old.principal
	if p.Method == MethodAPIKey {
		now, err := s.lookupKey(s.live.Load(), old.hash, s.clock().UnixMilli())
		return orEnded(err == nil && state.ScopeAllows(now.principal.Scopes, matrix[opReadAudit].scope), err)
	}
	o, err := s.state.Organization(org)
	if err != nil {
		return err
	}
	session, err := s.state.Session(p.SessionID)
	if err != nil {
		return err
	}
	member, err := s.state.Membership(org, p.UserID)
	if err != nil {
		return err
	}
	user, err := s.state.User(p.UserID)
	holds := o != nil && o.DeletedAt == 0 && session != nil && session.EndedAt == 0 && session.ExpiresAt > s.clock().UnixMilli() &&
		user != nil && user.DeletedAt == 0 && user.DisabledAt == 0 && member != nil && slices.Contains(matrix[opReadAudit].roles, member.Role)
	return orEnded(holds, err)
}

// orEnded is errExportEnded where a credential does not hold, or the store's error.
func orEnded(holds bool, err error) error {
	var refused *Problem
	if errors.As(err, &refused) || errors.Is(err, errUnknownCredential) || err == nil && !holds {
		return errExportEnded
	}
	return err
}
