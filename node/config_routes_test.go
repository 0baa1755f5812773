package node

import (
	"crypto/x509"
	"encoding/pem"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"sluice/authapi"
)

// TestRoutes_Gateway reads a route with every setting and one with none, as the API gets them.
func TestRoutes_Gateway(t *testing.T) {
	t.Parallel()
	up := httptest.NewTLSServer(nil)
	up.Close()
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: up.Certificate().Raw})
	path := write(t, minimal+`
[[routes]]
name = "all"
path = "/all"
upstreams = ["https://a:1/v1", "https://b"]
upstream_ca_file = "ca.pem"
strip_prefix = true
connect_timeout = "1s"
timeout = "2s"
idle_timeout = "3s"
max_body_bytes = 4
max_answer_bytes = 5
max_requests = 6
retries = 0
max_fails = 7
eject_time = "8s"
websocket = true
websocket_idle_timeout = "9s"
max_websockets = 10
cors = { origins = ["https://app.example"], headers = ["X-A"], expose = ["X-B"], credentials = true, max_age = "11s" }
rules = [{ methods = ["GET"] }]
[[routes]]
path = "/none"
upstream = "http://a"
timeout = "2s"
rules = [{ methods = ["*"], anonymous = true }]
`)
	if err := os.WriteFile(filepath.Join(filepath.Dir(path), "ca.pem"), certificate, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := LoadConfig(path, secretVariables())
	if err != nil {
		t.Fatal(err)
	}
	routes, err := cfg.trustedRoutes()
	if err != nil {
		t.Fatal(err)
	}
	pool := routes[0].UpstreamCA
	if pool == nil || routes[1].UpstreamCA != nil {
		t.Fatalf("authorities %v and %v", pool, routes[1].UpstreamCA)
	}
	if _, err := up.Certificate().Verify(x509.VerifyOptions{Roots: pool, DNSName: "example.com"}); err != nil {
		t.Errorf("the authority does not vouch: %v", err)
	}
	routes[0].UpstreamCA = nil
	want := []authapi.Route{{
		Name: "all", PathPrefix: "/all", Upstreams: []string{"https://a:1/v1", "https://b"}, StripPrefix: true,
		ConnectTimeout: time.Second, Timeout: 2 * time.Second, IdleTimeout: 3 * time.Second, MaxBodyBytes: 4, MaxAnswerBytes: 5, MaxRequests: 6,
		Retries: -1, MaxFails: 7, EjectTime: 8 * time.Second, WebSocket: true, WebSocketIdleTimeout: 9 * time.Second, MaxWebSockets: 10,
		CORS: &authapi.RouteCORS{
			CORSConfig: authapi.CORSConfig{Origins: []string{"https://app.example"}, MaxAge: 11 * time.Second},
			Headers:    []string{"X-A"}, Expose: []string{"X-B"}, Credentials: true,
		},
		Rules: []authapi.RouteRule{{Methods: []string{"GET"}, Scopes: []string{}, Cost: 1}},
	}, {
		Name: "none", PathPrefix: "/none", Upstream: "http://a", Upstreams: []string{},
		ConnectTimeout: 5 * time.Second, Timeout: 2 * time.Second, IdleTimeout: 2 * time.Second, MaxBodyBytes: 1 << 20, MaxRequests: 1024,
		Retries: 2, MaxFails: 3, EjectTime: 10 * time.Second, WebSocketIdleTimeout: 5 * time.Minute, MaxWebSockets: 1000,
		Rules: []authapi.RouteRule{{Methods: []string{"*"}, Scopes: []string{}, Anonymous: true, Cost: 1}},
	}}
	if !reflect.DeepEqual(routes, want) {
		t.Errorf("got\n%+v\nwant\n%+v", routes, want)
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(path), "ca.pem"), []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadConfig(path, secretVariables()); err == nil {
		t.Error("a file without a certificate was taken")
	}
}
