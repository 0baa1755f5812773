package authapi

import (
	"crypto/tls"
	"crypto/x509"
)

// What the tests of package authapi_test need of the inside of the edge.
var (
	NewAPIKey      = newAPIKey
	ValidAPIKey    = validAPIKey
	DecodeJSON     = decodeJSON
	CanonicalPath  = canonicalPath
	ParseForwarded = parseForwarded
	ProblemOf      = problemOf
)

// RouteRow is what the OpenAPI document must say of a route.
type RouteRow struct{ Method, Pattern string }

// RouteRows lists the route table.
func (s *Server) RouteRows() []RouteRow {
	var rows []RouteRow
	for _, r := range s.routeTable() {
		rows = append(rows, RouteRow{r.method, r.pattern})
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
