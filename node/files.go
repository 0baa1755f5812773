package node

import (
	"fmt"
	"log/slog"
)

const (
	// ownFiles is what a node has open beside its clients' connections: the database's tables, logs, listeners, pipes of the runtime, files
	// being written. A million accounts are some hundred tables.
	ownFiles = 1024
	// leastFiles is what a node does not start without: it could not keep its own files open, and an open that fails in the middle of
	// a compaction ends the process.
	leastFiles = 512
	// leastConns is how many clients' connections are left at least where there are too few descriptors for all.
	leastConns = 64
)

// openFiles is how many file descriptors the process may have, and how many it can come to need.
type openFiles struct {
	limit  uint64 // 0: not known
	needed uint64
}

// filesNeeded adds up what the configuration allows for.
func (c *Config) filesNeeded() uint64 {
	n := ownFiles + c.HTTP.MaxConns + maxPendingHandshakes + maxServers*maxConnsPerPeer
	if c.Admin.Listen != "" {
		n += maxAdminConns
	}
	if c.GRPC.Listen != "" {
		n += c.GRPC.MaxConns
	}
	for _, r := range c.Routes {
		upstreams := len(r.Upstreams)
		if r.Upstream != "" {
			upstreams++
		}
		n += upstreams * r.MaxRequests
	}
	return uint64(n)
}

// checkFiles raises the limit as far as the process may, and compares it with what the configuration needs. Where that is more, clients' connections
// to the public listener are bounded by what is left: refused one by one they are a busy node, while a node that runs out of
// descriptors cannot open its own files.
func checkFiles(c *Config, raise func() (uint64, error), log *slog.Logger) (files openFiles, maxConns int, err error) {
	files.needed, maxConns = c.filesNeeded(), c.HTTP.MaxConns
	if files.limit, err = raise(); err != nil {
		log.Warn("limit of open files not known", "error", err)
		return openFiles{needed: files.needed}, maxConns, nil
	}
	if files.limit < leastFiles {
		return files, 0, fmt.Errorf("the process may have %d files open, and needs %d at least: raise the limit (ulimit -n, LimitNOFILE= of systemd)", files.limit, leastFiles)
	}
	if files.limit >= files.needed {
		return files, maxConns, nil
	}
	// The rest of what the configuration allows for is hardly ever reached all at once; the public listener is what strangers fill.
	own := min(files.limit/2, ownFiles)
	maxConns = min(maxConns, int(max((files.limit-own)/2, leastConns)))
	log.Warn("the limit of open files is less than the configured connections need: the public listener takes fewer of them",
		"limit", files.limit, "needed", files.needed, "http_max_connections", c.HTTP.MaxConns, "taken", maxConns)
	return files, maxConns, nil
}
