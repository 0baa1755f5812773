package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Provenance is where figures come from.
type Provenance struct {
	Started    time.Time `json:"started"`
	Command    []string  `json:"command,omitempty"` // without secrets
	Version    string    `json:"version,omitempty"` // of the program that measured
	Commit     string    `json:"commit,omitempty"`
	Go         string    `json:"go"`
	Platform   string    `json:"platform"`
	CPU        string    `json:"cpu,omitempty"` // of the machine that this program ran on, where it says
	CPUs       int       `json:"cpus"`
	GOMAXPROCS int       `json:"gomaxprocs"`
	Cluster    Cluster   `json:"cluster"`
}

// Cluster is what is known of what was measured.
type Cluster struct {
	// Nodes is its size: as it was told, else how many different nodes the targets are.
	Nodes    int      `json:"nodes"`
	Versions []string `json:"versions,omitempty"` // of the nodes, as their health says
	// Fsync is "always" for Sluice, which acknowledges no write before a majority of disks has it; else as it was told, or
	// "unknown".
	Fsync string `json:"fsync"`
}

// NewProvenance looks at this machine. The command must hold no secrets: see WithoutSecrets.
func NewProvenance(command []string, version, commit string) Provenance {
	return Provenance{
		Started: time.Now().UTC().Truncate(time.Second), Command: command, Version: version, Commit: commit, Go: runtime.Version(),
		Platform: runtime.GOOS + "/" + runtime.GOARCH, CPU: processor(), CPUs: runtime.NumCPU(), GOMAXPROCS: runtime.GOMAXPROCS(0),
		Cluster: Cluster{Fsync: "unknown"},
	}
}

func (p *Provenance) writeText(w io.Writer) {
	fmt.Fprintf(w, "%s, %s, commit %s, %s %s, %d × %s, GOMAXPROCS %d\n", p.Started.Format(time.RFC3339), cmpOr(p.Version, "unknown version"),
		cmpOr(p.Commit, "unknown"), p.Go, p.Platform, p.CPUs, cmpOr(p.CPU, "CPU"), p.GOMAXPROCS)
	if p.Cluster.Nodes > 0 {
		fmt.Fprintf(w, "cluster of %d, %s, fsync %s\n", p.Cluster.Nodes, cmpOr(strings.Join(p.Cluster.Versions, ", "), "unknown version"), p.Cluster.Fsync)
	}
	if len(p.Command) > 0 {
		fmt.Fprintf(w, "%s\n", strings.Join(p.Command, " "))
	}
}

// lookAround asks each target once who it is. One that does not say, because it is something else or its limits are
// spent, is no mistake. c is what was told.
func lookAround(ctx context.Context, targets []string, timeout time.Duration, c Cluster) Cluster {
	seen := make(map[string]bool)
	client := &http.Client{Timeout: timeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	defer client.CloseIdleConnections()
	for _, target := range targets {
		id, version := whoIs(ctx, client, target)
		if id == "" {
			continue
		}
		seen[id] = true
		if version != "" && !slices.Contains(c.Versions, version) {
			c.Versions = append(c.Versions, version)
		}
	}
	slices.Sort(c.Versions)
	c.Nodes = cmpOr(c.Nodes, len(seen))
	if c.Fsync == "" && len(seen) > 0 {
		c.Fsync = "always"
	}
	c.Fsync = cmpOr(c.Fsync, "unknown")
	return c
}

// secretFlags have values that a report must not show.
var secretFlags = []string{"--key", "--token"}

// WithoutSecrets is a command line with the values of secret flags masked.
func WithoutSecrets(command []string) []string {
	shown := slices.Clone(command)
	for i := range shown {
		name, _, joined := strings.Cut(shown[i], "=")
		switch {
		case !slices.Contains(secretFlags, name):
		case joined:
			shown[i] = name + "=***"
		case i+1 < len(shown):
			shown[i+1] = "***"
		}
	}
	return shown
}

// whoIs reads a node's health, "" where it has none.
func whoIs(ctx context.Context, client *http.Client, target string) (id, version string) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target+"/api/v1/health", nil)
	if err != nil {
		return "", ""
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", ""
	}
	defer resp.Body.Close()
	var health struct {
		NodeID  string `json:"node_id"`
		Version string `json:"version"`
	}
	if json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&health) != nil {
		return "", ""
	}
	return health.NodeID, health.Version
}
