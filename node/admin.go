package node

import (
	"fmt"
	"io"
	"net/http"
	"time"

	process "github.com/VictoriaMetrics/metrics"
)

// adminServer is the operators' listener: liveness, readiness with every check, metrics, and the admin API under /v1/.
// The former have no authentication and tell no secret; the API is for this machine, or for who holds the token. It
// listens on loopback unless configured otherwise.
type adminServer struct {
	node  *Node
	http  *http.Server
	token adminToken
}

func newAdminServer(n *Node, token adminToken) *adminServer {
	a := &adminServer{node: n, token: token}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", a.readyz)
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		if err := n.writeMetrics(w); err == nil { // else the scraper has gone
			process.WriteProcessMetrics(w)
		}
	})
	a.api(mux)
	a.http = &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       5 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    8 << 10,
		ErrorLog:          newLineLogger(n.log.With("component", "admin")),
	}
	return a
}

// readyz lists every check, always: an operator asked.
func (a *adminServer) readyz(w http.ResponseWriter, _ *http.Request) {
	checks := a.node.Health()
	ready := !a.node.draining.Load()
	text := ""
	for _, c := range checks {
		mark, rest := "+", "ok"
		switch {
		case c.Err != nil:
			ready, mark, rest = false, "-", c.Err.Error()
		case c.Degraded != "":
			mark, rest = "!", c.Degraded
		}
		text += fmt.Sprintf("[%s] %s: %s", mark, c.Name, rest)
		if c.Detail != "" {
			text += " (" + c.Detail + ")"
		}
		text += "\n"
	}
	if a.node.draining.Load() {
		text += "[-] draining: going down\n"
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	if ready {
		io.WriteString(w, text+"ready\n")
		return
	}
	w.WriteHeader(http.StatusServiceUnavailable)
	io.WriteString(w, text+"not ready\n")
}
