package authapi

import (
	"net/http"
	"time"
)

// SetDraining makes /readyz answer 503 from now on, so that load balancers stop sending requests here. Requests are
// answered as before.
func (s *Server) SetDraining() { s.draining.Store(true) }

// checks are the node's own and whether this server is draining. ready says that none has failed.
func (s *Server) checks() (list []HealthCheck, ready bool) {
	list = s.cluster.Health()
	if s.draining.Load() {
		list = append(list[:len(list):len(list)], HealthCheck{Name: "draining", Err: errDraining})
	}
	ready = true
	for i := range list {
		ready = ready && list[i].Err == nil
	}
	return list, ready
}

func handleLivez(c *call) error {
	c.writeText(http.StatusOK, "ok\n")
	return nil
}

func handleReadyz(c *call) error {
	list, ready := c.srv.checks()
	status, text := http.StatusOK, ""
	if !ready {
		status = http.StatusServiceUnavailable
	}
	if c.ctx.QueryArgs().Has("verbose") {
		for _, check := range list {
			switch {
			case check.Err != nil:
				text += "[-] " + check.Name + ": " + check.Err.Error()
			case check.Degraded != "":
				text += "[!] " + check.Name + ": " + check.Degraded
			default:
				text += "[+] " + check.Name + ": ok"
			}
			if check.Detail != "" {
				text += " (" + check.Detail + ")"
			}
			text += "\n"
		}
	}
	if ready {
		text += "ready\n"
	} else {
		text += "not ready\n"
	}
	c.writeText(status, text)
	return nil
}

// writeText answers in plain text, never to be cached.
func (c *call) writeText(status int, text string) {
	c.ctx.SetStatusCode(status)
	c.ctx.Response.Header.SetContentType("text/plain; charset=utf-8")
	c.ctx.Response.Header.SetCanonical(headerCacheControl, valueNoStore)
	c.ctx.Response.SetBodyString(text)
}

type healthCheck struct {
	Name     string `json:"name"`
	OK       bool   `json:"ok"`
	Detail   string `json:"detail,omitempty"`
	Degraded string `json:"degraded,omitempty"`
}

type healthAnswer struct {
	Status  string        `json:"status"` // "ready" or "not_ready"
	NodeID  string        `json:"node_id"`
	Version string        `json:"version"`
	Leader  bool          `json:"leader"`
	Time    string        `json:"time"`
	Checks  []healthCheck `json:"checks"`
}

func handleHealth(c *call) error {
	list, ready := c.srv.checks()
	answer := healthAnswer{
		Status: "ready", NodeID: c.srv.cfg.NodeID, Version: c.srv.cfg.Version, Leader: c.srv.cluster.Leader(),
		Time: c.now.UTC().Format(time.RFC3339), Checks: make([]healthCheck, 0, len(list)),
	}
	status := http.StatusOK
	if !ready {
		answer.Status, status = "not_ready", http.StatusServiceUnavailable
	}
	for _, check := range list {
		line := healthCheck{Name: check.Name, OK: check.Err == nil, Detail: check.Detail, Degraded: check.Degraded}
		if check.Err != nil && line.Detail == "" {
			line.Detail = check.Err.Error()
		}
		answer.Checks = append(answer.Checks, line)
	}
	return c.writeJSON(status, answer)
}

// Ready says whether the node is fit for traffic, as /readyz does. Safe for concurrent use.
func (s *Server) Ready() bool {
	_, ready := s.checks()
	return ready
}
