// Package floor is the server that others are measured against: it answers every request at once, with the headers of an
// admitted one, and does nothing else. Start with [Server]; what it cannot do in a second, nothing built on the same HTTP
// library can.
package floor

import (
	"time"

	"github.com/valyala/fasthttp"
)

// CheckPath is answered with a body, as the check API does; every other path without one.
const CheckPath = "/api/v1/limits/check"

// checkBody has the length of a check's answer.
const checkBody = `{"allowed":true,"limit":1000000,"remaining":999999,"reset_at":"2026-01-01T00:00:00Z","retry_after":0}` + "\n"

// headers are those of an admitted forward-auth check, with values of the usual length.
var headers = [][2]string{
	{"Cache-Control", "no-store"},
	{"X-Auth-Method", "api_key"},
	{"X-Auth-User", ""},
	{"X-Auth-Organization", "org_01m8a2mscxd7wxswqskrn2ct45"},
	{"X-Auth-Key", "key_01m8a2mscxd7wxswqskrn2ct45"},
	{"X-Auth-Scopes", "events:read"},
	{"X-Request-Id", "bkrnz98dwwxkryz7zxfaymrt"},
	{"X-RateLimit-Limit", "1000000"},
	{"X-RateLimit-Remaining", "999999"},
	{"X-RateLimit-Reset", "1795634700"},
	{"X-RateLimit-Window", "1"},
	{"RateLimit-Policy", `"api_key";q=1000000;w=1`},
	{"RateLimit", `"api_key";r=999999;t=1`},
	{"X-Content-Type-Options", "nosniff"},
	{"Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"},
	{"X-Frame-Options", "DENY"},
	{"Referrer-Policy", "no-referrer"},
}

// Handle answers one request.
func Handle(ctx *fasthttp.RequestCtx) {
	h := &ctx.Response.Header
	h.SetNoDefaultContentType(true)
	for i := range headers {
		h.SetCanonical(names[i], values[i])
	}
	if string(ctx.Path()) == CheckPath {
		h.SetContentType("application/json")
		ctx.Response.SetBodyRaw(body)
	}
}

var (
	names, values = prepared()
	body          = []byte(checkBody)
)

func prepared() (names, values [][]byte) {
	for _, h := range headers {
		names, values = append(names, []byte(h[0])), append(values, []byte(h[1]))
	}
	return names, values
}

// Server is ready to Serve and to Shutdown. It is set up as a node's public listener is.
func Server() *fasthttp.Server {
	return &fasthttp.Server{
		Handler: Handle, NoDefaultServerHeader: true, NoDefaultContentType: true, DisableHeaderNamesNormalizing: true, DisablePreParseMultipartForm: true,
		ReadBufferSize: 16 << 10, MaxRequestBodySize: 64 << 10, ReadTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute, CloseOnShutdown: true,
	}
}
