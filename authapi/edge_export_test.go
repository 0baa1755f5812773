package authapi

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/netip"

	"github.com/valyala/fasthttp"
)

// What the tests of package authapi_test need of the inside of the edge.
var (
	NewAPIKey      = newAPIKey
	ValidAPIKey    = validAPIKey
	DecodeJSON     = decodeJSON
	CanonicalPath  = canonicalPath
	ParseForwarded = parseForwarded
	ProblemOf      = problemOf
	OpenAPI        = openAPI
	GubernatorRule = gubernatorRule
)

// ClientAddress is where a request comes from that peer, a trusted proxy, sent with these lines of the list.
func (s *Server) ClientAddress(peer netip.Addr, lines ...[]byte) netip.Addr {
	cl := client{peer: peer, addr: peer, trusted: true}
	s.follow(&cl, lines)
	return cl.addr
}

// RouteRow is what the OpenAPI document must say of a route.
type RouteRow struct {
	Method, Pattern string
	Credential      bool // nobody gets in without one
}

// RouteRows lists the route table.
func (s *Server) RouteRows() []RouteRow {
	var rows []RouteRow
	for _, r := range s.routeTable() {
		rows = append(rows, RouteRow{r.method, r.pattern, r.auth != authNone})
	}
	return rows
}

// IssueToken signs an access token for a session that the caller has put into the state.
func (s *Server) IssueToken(userID, sessionID, organizationID string) (string, error) {
	token, _, err := s.tokens.issue(userID, sessionID, organizationID, s.clock())
	return token, err
}

// TrustUpstreams lets all routes' clients believe certificates of that pool.
func (s *Server) TrustUpstreams(pool *x509.CertPool) {
	for _, r := range s.live.Load().matcher.routes {
		r.upstreams.transport.TLSClientConfig = &tls.Config{RootCAs: pool}
	}
}

// AnswerGubernator is what a call without a key gets.
func (s *Server) AnswerGubernator(body []byte) (status int, answer []byte) {
	var req fasthttp.Request
	req.Header.SetMethod(http.MethodPost)
	req.Header.SetHost("localhost")
	req.SetRequestURI(gubernatorPath)
	req.SetBody(body)
	var ctx fasthttp.RequestCtx
	ctx.Init(&req, nil, nil)
	s.serveGubernator(&ctx)
	return ctx.Response.StatusCode(), ctx.Response.Body()
}

// ReportShadows is what happens every shadowLogEvery.
func (s *Server) ReportShadows() { s.shadows.report() }

// CheckRequest is what a check's body says, by its fields.
type CheckRequest struct {
	CheckFields
	Checks []*CheckFields `json:"checks"`
	Atomic *bool          `json:"atomic"`
}

// CheckFields are those of one check.
type CheckFields struct {
	Key       *string `json:"key"`
	Limit     *int64  `json:"limit"`
	Window    *int64  `json:"window_seconds"`
	Algorithm *string `json:"algorithm"`
	Burst     *int64  `json:"burst"`
	Cost      *int64  `json:"cost"`
	Policy    *string `json:"policy"`
}

// ReadChecks reads the body of a check. many says that it was refused for its number of entries.
func ReadChecks(body []byte) (req CheckRequest, many bool, err error) {
	r := checkReader{list: make([]check, maxChecks)}
	var outer check
	if bad := r.read(body, &outer); bad != nil {
		return req, bad.Status == http.StatusUnprocessableEntity, bad
	}
	req.CheckFields = outer.fields()
	if outer.given&fieldChecks != 0 {
		req.Checks = []*CheckFields{}
	}
	for i := range r.list[:r.n] {
		f := r.list[i].fields()
		req.Checks = append(req.Checks, &f)
	}
	if outer.given&fieldAtomic != 0 {
		req.Atomic = &r.atomic
	}
	return req, false, nil
}

func (ch *check) fields() (f CheckFields) {
	text := func(field checkField, b []byte) *string {
		if ch.given&field == 0 {
			return nil
		}
		s := string(b)
		return &s
	}
	number := func(field checkField, n int64) *int64 {
		if ch.given&field == 0 {
			return nil
		}
		return &n
	}
	return CheckFields{
		Key: text(fieldKey, ch.key), Limit: number(fieldLimit, ch.limit), Window: number(fieldWindow, ch.window),
		Algorithm: text(fieldAlgorithm, ch.algorithm), Burst: number(fieldBurst, ch.burst), Cost: number(fieldCost, ch.cost),
		Policy: text(fieldPolicy, ch.policy),
	}
}
