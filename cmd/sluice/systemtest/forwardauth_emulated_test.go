package systemtest

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pb33f/go-yaml"
)

// Traefik and Envoy cannot be had on every machine. What stands here sends Sluice what they send, and does with the answer what they
// do, by the settings that their examples in deploy/forward-auth have. Of what they do besides, it does what makes it harder for Sluice.

// readYAML reads an example of deploy/ with an application's and a cluster's addresses in the place of its own.
func (p *protected) readYAML(t *testing.T, strict bool, out any, name string, replace ...string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "deploy", "forward-auth", name))
	if err != nil {
		t.Fatal(err)
	}
	replace = append(replace, "127.0.0.1:9000", p.app.address)
	for i, url := range p.cluster.urls {
		replace = append(replace, fmt.Sprintf("127.0.0.1:%d", 8080+i), strings.TrimPrefix(url, "http://"))
	}
	decoder := yaml.NewDecoder(strings.NewReader(strings.NewReplacer(replace...).Replace(string(text))))
	decoder.KnownFields(strict)
	if err := decoder.Decode(out); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// balancer sends requests to the nodes that are fit for traffic, in turn.
type balancer struct {
	nodes []string
	fit   []atomic.Bool
	next  atomic.Int64
	http  *http.Transport
}

func startBalancer(t *testing.T, nodes []string, path string, interval, timeout time.Duration) *balancer {
	t.Helper()
	b := &balancer{nodes: nodes, fit: make([]atomic.Bool, len(nodes)), http: &http.Transport{
		MaxIdleConnsPerHost: 64, DialContext: (&net.Dialer{Timeout: 500 * time.Millisecond}).DialContext, ResponseHeaderTimeout: 2 * time.Second,
	}}
	checker := &http.Client{Timeout: timeout}
	check := func() {
		for i, node := range nodes {
			res, err := checker.Get(node + path)
			if err == nil {
				res.Body.Close()
			}
			b.fit[i].Store(err == nil && res.StatusCode == http.StatusOK)
		}
	}
	check()
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for tick := time.NewTicker(interval); ; {
			select {
			case <-stop:
				tick.Stop()
				return
			case <-tick.C:
				check()
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-done
		b.http.CloseIdleConnections()
		checker.CloseIdleConnections()
	})
	return b
}

// send asks up to that many nodes until one answers, with another status than those.
func (b *balancer) send(req *http.Request, attempts int, again ...int) (*http.Response, error) {
	var last error
	for range attempts {
		node := -1
		for range b.nodes {
			if i := int(b.next.Add(1)) % len(b.nodes); b.fit[i].Load() {
				node = i
				break
			}
		}
		if node < 0 {
			return nil, fmt.Errorf("no node is fit: %w", last)
		}
		out := req.Clone(req.Context())
		out.URL.Scheme, out.URL.Host = "http", strings.TrimPrefix(b.nodes[node], "http://")
		res, err := b.http.RoundTrip(out)
		if err == nil && !slices.Contains(again, res.StatusCode) {
			return res, nil
		}
		if err == nil {
			res.Body.Close()
			err = fmt.Errorf("status %d", res.StatusCode)
		}
		last = err
	}
	return nil, last
}

// toApp passes requests on as they were sent.
func toApp(address string, change func(header http.Header)) http.Handler {
	return &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.Out.URL = &url.URL{Scheme: "http", Host: address, Opaque: rawTarget(r.In)}
		r.Out.Host = r.In.Host
		r.Out.Header["X-Forwarded-For"] = r.In.Header["X-Forwarded-For"]
		change(r.Out.Header)
	}}
}

// rawTarget is a request's path and query as they were sent.
func rawTarget(r *http.Request) string {
	target := r.RequestURI
	if !strings.HasPrefix(target, "/") {
		if _, rest, ok := strings.Cut(target, "://"); ok {
			if i := strings.IndexByte(rest, '/'); i >= 0 {
				return rest[i:]
			}
			return "/"
		}
	}
	return target
}

func serve(t *testing.T, handler http.Handler) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return server
}

// traefikStatic and traefikDynamic are what the examples of Traefik have, and the stand-in knows.
type traefikStatic struct {
	EntryPoints map[string]struct {
		Address string
		HTTP    struct {
			AliasHeadersStrategy string `yaml:"aliasHeadersStrategy"`
		}
		ForwardedHeaders struct {
			TrustedIPs []string `yaml:"trustedIPs"`
		} `yaml:"forwardedHeaders"`
	} `yaml:"entryPoints"`
	Providers struct {
		File struct{ Filename string }
	}
}

type traefikDynamic struct {
	HTTP struct {
		Routers map[string]struct {
			EntryPoints []string `yaml:"entryPoints"`
			Rule        string
			Middlewares []string
			Service     string
		}
		Middlewares map[string]struct {
			ForwardAuth *struct {
				Address             string
				TrustForwardHeader  bool     `yaml:"trustForwardHeader"`
				AuthRequestHeaders  []string `yaml:"authRequestHeaders"`
				AuthResponseHeaders []string `yaml:"authResponseHeaders"`
				MaxResponseBodySize int64    `yaml:"maxResponseBodySize"`
			} `yaml:"forwardAuth"`
			Headers *struct {
				CustomRequestHeaders map[string]string `yaml:"customRequestHeaders"`
			}
			Retry *struct{ Attempts int }
		}
		Services map[string]struct {
			LoadBalancer struct {
				Servers     []struct{ URL string }
				HealthCheck *struct {
					Path              string
					Interval, Timeout time.Duration
				} `yaml:"healthCheck"`
			} `yaml:"loadBalancer"`
		}
	}
}

// traefikHeaders are those that an entry point takes away from whom it does not trust.
var traefikHeaders = []string{"X-Forwarded-Proto", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Server", "X-Forwarded-Uri",
	"X-Forwarded-Method", "X-Forwarded-Prefix", "X-Forwarded-Tls-Client-Cert", "X-Forwarded-Tls-Client-Cert-Info", "X-Real-Ip"}

// traefikEntry is what an entry point does before anything else.
func traefikEntry(trusted []string, alias string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		if !slices.Contains(trusted, host) && !slices.Contains(trusted, host+"/32") {
			for _, name := range traefikHeaders {
				r.Header.Del(name)
				r.Header.Del(strings.ReplaceAll(name, "-", "_"))
			}
		}
		for name := range r.Header {
			if alias == "delete" && strings.Trim(strings.ToLower(name), "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
				delete(r.Header, name)
			}
		}
		for _, line := range r.Header["Connection"] {
			for name := range strings.SplitSeq(line, ",") {
				if name = http.CanonicalHeaderKey(strings.TrimSpace(name)); !slices.Contains(traefikHeaders, name) {
					r.Header.Del(name)
				}
			}
		}
		r.Header.Del("Connection")
		for name, value := range map[string]string{"X-Real-Ip": host, "X-Forwarded-Proto": "http", "X-Forwarded-Port": "80", "X-Forwarded-Host": r.Host, "X-Forwarded-Server": "traefik"} {
			if r.Header.Get(name) == "" {
				r.Header.Set(name, value)
			}
		}
		next.ServeHTTP(w, r)
	})
}

func startAuthTraefik(t *testing.T, p *protected, hop bool) string {
	t.Helper()
	var static traefikStatic
	behind := []string{}
	if hop {
		behind = []string{"    # forwardedHeaders:\n    #   trustedIPs: [\"10.0.0.5\"]", "    forwardedHeaders:\n      trustedIPs: [\"" + proxyAddress + "\"]", "trustForwardHeader: false", "trustForwardHeader: true"}
	}
	p.readYAML(t, true, &static, "traefik/traefik.yml", behind...)
	var dynamic traefikDynamic
	p.readYAML(t, true, &dynamic, filepath.Join("traefik", static.Providers.File.Filename), behind...)
	d := dynamic.HTTP
	auth := d.Middlewares[d.Routers["app"].Middlewares[0]].ForwardAuth
	strip := d.Middlewares[d.Routers["app"].Middlewares[1]].Headers
	retry := d.Middlewares[d.Routers["sluice"].Middlewares[0]].Retry
	lb := d.Services[d.Routers["sluice"].Service].LoadBalancer
	if auth == nil || strip == nil || retry == nil || lb.HealthCheck == nil || len(lb.Servers) != len(p.cluster.urls) {
		t.Fatalf("the example has other middlewares than expected: %+v", d)
	}
	if hop != auth.TrustForwardHeader || hop != (len(static.EntryPoints["web"].ForwardedHeaders.TrustedIPs) > 0) {
		t.Fatal("the comments of the example do not fit")
	}
	var nodes []string
	for _, s := range lb.Servers {
		nodes = append(nodes, s.URL)
	}
	b := startBalancer(t, nodes, lb.HealthCheck.Path, lb.HealthCheck.Interval, lb.HealthCheck.Timeout)

	// The entry point that forwardAuth asks.
	checks := serve(t, traefikEntry(static.EntryPoints["sluice"].ForwardedHeaders.TrustedIPs, "", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := r.Clone(r.Context())
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		out.Header.Set("X-Forwarded-For", strings.Join(append(r.Header["X-Forwarded-For"], host), ", "))
		out.RequestURI, out.Body = "", nil
		res, err := b.send(out, retry.Attempts)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		copyAnswer(w, res)
	})))
	u, err := url.Parse(auth.Address)
	if err != nil || u.Host != static.EntryPoints["sluice"].Address {
		t.Fatalf("forwardAuth asks %s, and the entry point is %s", auth.Address, static.EntryPoints["sluice"].Address)
	}
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	t.Cleanup(client.CloseIdleConnections)
	application := toApp(p.app.address, func(h http.Header) {
		for name, value := range strip.CustomRequestHeaders {
			if value == "" {
				h.Del(name)
			}
		}
	})
	return serve(t, traefikEntry(static.EntryPoints["web"].ForwardedHeaders.TrustedIPs, static.EntryPoints["web"].HTTP.AliasHeadersStrategy, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		check, err := http.NewRequest("GET", checks.URL+u.Path, nil)
		if err != nil {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		for _, name := range auth.AuthRequestHeaders {
			if lines := r.Header.Values(name); len(lines) > 0 {
				check.Header[http.CanonicalHeaderKey(name)] = lines
			}
		}
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		if auth.TrustForwardHeader {
			for _, name := range traefikHeaders {
				if lines := r.Header.Values(name); len(lines) > 0 {
					check.Header[name] = lines
				}
			}
			if prior := r.Header["X-Forwarded-For"]; len(prior) > 0 {
				host = strings.Join(prior, ", ") + ", " + host
			}
		}
		check.Header.Set("X-Forwarded-For", host)
		for name, value := range map[string]string{"X-Forwarded-Method": r.Method, "X-Forwarded-Proto": "http", "X-Forwarded-Port": "80", "X-Forwarded-Host": r.Host, "X-Forwarded-Uri": rawTarget(r)} {
			if check.Header.Get(name) == "" {
				check.Header.Set(name, value)
			}
		}
		res, err := client.Do(check)
		if err != nil {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		if res.StatusCode < 200 || res.StatusCode > 299 {
			copyAnswer(w, res)
			return
		}
		res.Body.Close()
		for _, name := range auth.AuthResponseHeaders {
			r.Header.Del(name)
			if lines := res.Header.Values(name); len(lines) > 0 {
				r.Header[http.CanonicalHeaderKey(name)] = lines
			}
		}
		application.ServeHTTP(w, r)
	}))).URL
}

// copyAnswer passes an answer on whole.
func copyAnswer(w http.ResponseWriter, res *http.Response) {
	defer res.Body.Close()
	for name, lines := range res.Header {
		if name != "Connection" && name != "Content-Length" {
			w.Header()[name] = lines
		}
	}
	w.WriteHeader(res.StatusCode)
	io.Copy(w, res.Body) // a client that went away is its own concern
}

// envoyMatchers is a ListStringMatcher.
type envoyMatchers struct {
	Patterns []struct {
		Exact, Prefix string
		IgnoreCase    bool `yaml:"ignore_case"`
	}
}

func (m envoyMatchers) match(name string) bool {
	for _, p := range m.Patterns {
		if strings.EqualFold(name, p.Exact) || p.Prefix != "" && strings.HasPrefix(strings.ToLower(name), p.Prefix) {
			return true
		}
	}
	return false
}

// envoyBootstrap is what the stand-in knows of Envoy's example. All of it is checked against Envoy's own definitions in deploy/check.
type envoyBootstrap struct {
	StaticResources struct {
		Listeners []struct {
			FilterChains []struct {
				Filters []struct {
					TypedConfig struct {
						UseRemoteAddress bool `yaml:"use_remote_address"`
						Common           struct {
							Underscores string `yaml:"headers_with_underscores_action"`
						} `yaml:"common_http_protocol_options"`
						RouteConfig struct {
							Remove []string `yaml:"request_headers_to_remove"`
						} `yaml:"route_config"`
						HTTPFilters []struct {
							TypedConfig struct {
								FailureModeAllow bool `yaml:"failure_mode_allow"`
								StatusOnError    struct{ Code string }
								AllowedHeaders   envoyMatchers `yaml:"allowed_headers"`
								HTTPService      struct {
									PathPrefix string `yaml:"path_prefix"`
									Retry      struct {
										Retries int `yaml:"num_retries"`
									} `yaml:"retry_policy"`
									Response struct {
										Upstream envoyMatchers `yaml:"allowed_upstream_headers"`
										Success  envoyMatchers `yaml:"allowed_client_headers_on_success"`
									} `yaml:"authorization_response"`
								} `yaml:"http_service"`
							} `yaml:"typed_config"`
						} `yaml:"http_filters"`
					} `yaml:"typed_config"`
				}
			} `yaml:"filter_chains"`
		}
		Clusters []struct {
			Name         string
			HealthChecks []struct {
				Timeout, Interval time.Duration
				HTTP              struct{ Path string } `yaml:"http_health_check"`
			} `yaml:"health_checks"`
		}
	} `yaml:"static_resources"`
}

func startAuthEnvoy(t *testing.T, p *protected, _ bool) string {
	t.Helper()
	var bootstrap envoyBootstrap
	p.readYAML(t, false, &bootstrap, "envoy.yaml")
	manager := bootstrap.StaticResources.Listeners[0].FilterChains[0].Filters[0].TypedConfig
	filter := manager.HTTPFilters[0].TypedConfig
	nodes := bootstrap.StaticResources.Clusters[1]
	if nodes.Name != "sluice" || filter.FailureModeAllow || !manager.UseRemoteAddress || filter.HTTPService.PathPrefix == "" {
		t.Fatalf("the example is another than expected: %+v", bootstrap)
	}
	health := nodes.HealthChecks[0]
	b := startBalancer(t, p.cluster.urls, health.HTTP.Path, health.Interval, health.Timeout)
	application := toApp(p.app.address, func(h http.Header) {
		for _, name := range manager.RouteConfig.Remove {
			h.Del(name)
		}
	})
	return serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name := range r.Header {
			if manager.Common.Underscores == "DROP_HEADER" && strings.Contains(name, "_") {
				delete(r.Header, name)
			}
		}
		r.Header.Del("Connection")
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		r.Header.Set("X-Forwarded-For", strings.Join(append(r.Header["X-Forwarded-For"], host), ","))
		r.Header.Set("X-Forwarded-Proto", "http")
		r.Header.Set("X-Request-Id", fmt.Sprintf("envoy-%d", names.Add(1)))

		check := &http.Request{Method: r.Method, URL: &url.URL{Opaque: filter.HTTPService.PathPrefix + rawTarget(r)}, Host: r.Host, Header: http.Header{}, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}
		check = check.WithContext(r.Context())
		for name, lines := range r.Header {
			if name == "Authorization" || filter.AllowedHeaders.match(name) {
				check.Header[name] = lines
			}
		}
		check.Header.Set("User-Agent", "")
		// Its HTTP client adds the address that Envoy itself has.
		check.Header.Set("X-Forwarded-For", r.Header.Get("X-Forwarded-For")+","+proxyAddress)
		res, err := b.send(check, 1+filter.HTTPService.Retry.Retries, 502, 503, 504)
		if err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		if res.StatusCode != http.StatusOK {
			copyAnswer(w, res)
			return
		}
		res.Body.Close()
		for name, lines := range res.Header {
			if filter.HTTPService.Response.Upstream.match(name) {
				r.Header[name] = lines
			}
			if filter.HTTPService.Response.Success.match(name) {
				w.Header()[name] = lines
			}
		}
		application.ServeHTTP(w, r)
	})).URL
}
