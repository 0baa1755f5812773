package floor_test

import (
	"fmt"
	"net"
	"net/http"
	"testing"

	"github.com/valyala/fasthttp"
	"github.com/valyala/fasthttp/fasthttputil"

	"sluice/bench/floor"
)

func TestServer_AnswersLikeAnAdmittedCheck(t *testing.T) {
	t.Parallel()
	listener := fasthttputil.NewInmemoryListener()
	server := floor.Server()
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	t.Cleanup(func() {
		if err := server.Shutdown(); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	client := &fasthttp.HostClient{Addr: "floor", Dial: func(string) (net.Conn, error) { return listener.Dial() }}
	for path, length := range map[string]int{"/api/v1/auth/verify": 0, "/": 0, floor.CheckPath: 102} {
		var req fasthttp.Request
		var resp fasthttp.Response
		req.SetRequestURI("http://floor" + path)
		if err := client.Do(&req, &resp); err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode() != http.StatusOK || len(resp.Body()) != length || string(resp.Header.Peek("Content-Length")) != fmt.Sprint(length) {
			t.Errorf("%s: %d with %d bytes, want %d", path, resp.StatusCode(), len(resp.Body()), length)
		}
		for _, name := range []string{"X-Auth-Method", "X-RateLimit-Limit", "RateLimit", "X-Request-Id", "Date"} {
			if len(resp.Header.Peek(name)) == 0 {
				t.Errorf("%s: no %s", path, name)
			}
		}
	}
}

func TestHandle_AllocatesNothing(t *testing.T) {
	var ctx fasthttp.RequestCtx
	ctx.Request.SetRequestURI("/api/v1/auth/verify")
	floor.Handle(&ctx)
	if n := testing.AllocsPerRun(100, func() {
		ctx.Response.Reset()
		floor.Handle(&ctx)
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
