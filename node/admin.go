package node

import (
	"fmt"
	"io"
	"net/http"
	"time"
)

// adminServer is the operators' listener: liveness, readiness with every check, metrics, and the admin API under /v1/.
// The former have no authentication and tell no secret; for the rest see adminAccess and the table in adminroutes.go. It
// listens on loopback unless configured otherwise.
type adminServer struct {
	node   *Node
	http   *http.Server
	access *adminAccess
}

func newAdminServer(n *Node, access *adminAccess) *adminServer {
	a := &adminServer{node: n, access: access}
	mux := http.NewServeMux()
	a.serveRoutes(mux, a.routes())
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
