package authapi_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"sluice/authapi"
)

// BenchmarkGateway is a GET through the gateway over loopback, both ends of it in this process, beside the same without it.
func BenchmarkGateway(b *testing.B) {
	body := strings.Repeat("x", 1024)
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, body) }))
	defer up.Close()
	cfg, _, _, _ := edgeConfig(func(c *authapi.Config) {
		c.Limit.Anonymous = rule(1e12)
		c.Routes = []authapi.Route{{PathPrefix: "/x", Upstream: up.URL, Rules: []authapi.RouteRule{{Methods: []string{"*"}, Anonymous: true}}}}
	})
	srv, err := authapi.New(cfg)
	if err != nil {
		b.Fatal(err)
	}
	front := httptest.NewUnstartedServer(nil) // for its listener
	go srv.Serve(front.Listener)
	defer func() {
		if err := srv.Shutdown(b.Context()); err != nil {
			b.Error(err)
		}
	}()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	for name, base := range map[string]string{"through": "http://" + front.Listener.Addr().String(), "direct": up.URL} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					resp, err := client.Get(base + "/x")
					if err != nil {
						b.Error(err)
						return
					}
					if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != int64(len(body)) || resp.StatusCode != 200 {
						b.Errorf("%d, %d bytes, %v", resp.StatusCode, n, err)
					}
					resp.Body.Close()
				}
			})
		})
	}
}
