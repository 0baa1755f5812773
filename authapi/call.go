package authapi

import (
	"context"
	"time"

	"github.com/valyala/fasthttp"
)

// Method is how a request authenticated. Its text is what X-Auth-Method and /auth/me show.
type Method string

// The three ways.
const (
	MethodAnonymous Method = "anonymous"
	MethodAPIKey    Method = "api_key"
	MethodJWT       Method = "jwt"
)

// Principal is who a request comes from. It is immutable and shared between requests of the same credential.
type Principal struct {
	Method         Method
	UserID         string   // JWT: the user; key: ""
	SessionID      string   // JWT
	KeyID          string   // key
	OrganizationID string   // key: its organization; JWT: the user's personal organization
	Scopes         []string // key: granted; JWT: nil (the role decides)
	ExpiresAt      int64    // Unix milliseconds; 0: never
	TokenID        string   // JWT: jti
}

// call is one request on its way through a handler. It lives as long as the handler: nothing in it, and no bytes of
// ctx, may be kept afterwards.
type call struct {
	srv       *Server
	ctx       *fasthttp.RequestCtx
	now       time.Time // read once per request
	requestID string
	clientIP  string // canonical text of the client's address
	principal *Principal
	route     *route
	params    [4]string // values of the pattern's {…}, in order
}

// handler answers a call. An error becomes problem+json through the table in problem.go: return a *Problem for what the
// client did, anything else for what went wrong here.
type handler func(c *call) error

// context bounds everything that a handler waits for.
func (c *call) context() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), c.srv.handlerTimeout)
}
