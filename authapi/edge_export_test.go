package authapi

import (
	"crypto/tls"
	"crypto/x509"
	"net/netip"
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
)

// ClientAddress is where a request comes from that peer, a trusted proxy, sent with these lines of X-Forwarded-For.
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
	for _, r := range s.matcher.routes {
		r.upstream.client.TLSConfig = &tls.Config{RootCAs: pool}
	}
}

// ReportShadows is what happens every shadowLogEvery.
func (s *Server) ReportShadows() { s.shadows.report() }
