package systemtest

import (
	"net"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// authConfig is an example of deploy/forward-auth for a cluster and an application.
func (p *protected) authConfig(name string) proxyConfig {
	return proxyConfig{example: filepath.Join("forward-auth", name), nodes: p.cluster.urls, replace: []string{"127.0.0.1:9000", p.app.address}}
}

// started waits until a proxy lets requests through.
func (p *protected) started(t *testing.T, name, url string) string {
	t.Helper()
	eventually(t, readyWithin, name+" passes requests", func() error {
		res, err := send(url, request{path: "/open"})
		if err == nil && res.status != 200 {
			err = &missingError{"200", []string{res.String()}}
		}
		return err
	})
	return url
}

func startAuthNginx(t *testing.T, p *protected, _ bool) string {
	t.Helper()
	return p.started(t, "nginx", runProxy(t, p.authConfig("nginx.conf"), nginxCommand(needProgram(t, "nginx"))))
}

// nginxCommand runs nginx, its workers as the user who runs the tests: only that one may write to their directories.
func nginxCommand(program string) func(dir, config string) *exec.Cmd {
	directives := "daemon off;"
	if os.Getuid() == 0 {
		directives += " user root;"
	}
	return func(dir, config string) *exec.Cmd {
		return exec.Command(program, "-p", dir, "-c", config, "-e", filepath.Join(dir, "error.log"), "-g", directives)
	}
}

func startAuthHAProxy(t *testing.T, p *protected, _ bool) string {
	t.Helper()
	program := needProgram(t, "haproxy")
	c := p.authConfig("haproxy.cfg")
	c.beside = []string{filepath.Join("forward-auth", "haproxy.lua")}
	c.ports = []string{"127.0.0.1:8001"}
	return p.started(t, "HAProxy", runProxy(t, c, func(dir, config string) *exec.Cmd {
		cmd := exec.Command(program, "-db", "-f", config)
		cmd.Dir = dir
		return cmd
	}))
}

func startAuthCaddy(t *testing.T, p *protected, hop bool) string {
	t.Helper()
	program := needProgram(t, "caddy")
	c := p.authConfig("Caddyfile")
	if hop {
		c.replace = append(c.replace, "# trusted_proxies 10.0.0.5", "trusted_proxies "+proxyAddress)
	}
	return p.started(t, "Caddy", runProxy(t, c, func(dir, config string) *exec.Cmd {
		cmd := exec.Command(program, "run", "--adapter", "caddyfile", "--config", config)
		cmd.Env = append(cleanEnvironment(), "HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
		return cmd
	}))
}

// startEdge is a load balancer in front of another proxy, at proxyAddress: it adds who connected to it to X-Forwarded-For, and takes away
// what clients claim of their requests.
func startEdge(t *testing.T, behind string) string {
	t.Helper()
	target, err := url.Parse(behind)
	if err != nil {
		t.Fatal(err)
	}
	edge := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.Out.Host = r.In.Host
		r.Out.Header["X-Forwarded-For"] = r.In.Header["X-Forwarded-For"]
		r.SetXForwarded()
		for _, name := range []string{"X-Forwarded-Uri", "X-Forwarded-Method", "X-Real-Ip"} {
			r.Out.Header.Del(name)
		}
	}})
	t.Cleanup(edge.Close)
	host, _, err := net.SplitHostPort(strings.TrimPrefix(edge.URL, "http://"))
	if err != nil || host != proxyAddress {
		t.Fatalf("the load balancer is at %s", edge.URL)
	}
	return edge.URL
}
