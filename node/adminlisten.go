package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/net/netutil"
)

// socketPrefix begins an admin.listen that is a path.
const socketPrefix = "unix:"

// maxSocketPath is how long the path of a Unix socket may be, in bytes (sockaddr_un).
const maxSocketPath = 107

// socketPath is the path of a Unix socket in an admin.listen.
func socketPath(address string) (path string, ok bool) {
	return strings.CutPrefix(address, socketPrefix)
}

// admin checks the operators' listener.
func (v *validator) admin() {
	a := v.c.Admin
	v.oneOf("admin.local_role", a.LocalRole, "operate", "read", "none")
	v.oneOf("admin.socket_mode", a.SocketMode, "0600", "0660")
	v.certificate("admin", a.TLSCert, a.TLSKey)
	switch {
	case a.ClientCA == "":
	case a.TLSCert == "":
		v.fail("admin.client_ca", "is set and %s is not: callers show certificates in TLS only", v.also("admin.tls_cert"))
	default:
		if _, err := loadPool(a.ClientCA); err != nil {
			v.fail("admin.client_ca", "%v", err)
		}
	}
	if path, ok := socketPath(a.Listen); ok {
		switch {
		case path == "" || path == "/" || path[0] == '@' || strings.HasSuffix(path, "/"):
			v.fail("admin.listen", `want "unix:" and the path of a file, not %s`, quote(a.Listen))
		case len(path) > maxSocketPath:
			v.fail("admin.listen", "the path has %d bytes, and that of a socket at most %d", len(path), maxSocketPath)
		}
		return
	}
	if host, _, err := net.SplitHostPort(a.Listen); err == nil && !loopback(host) && a.hasTokens() && a.TLSCert == "" {
		v.fail("admin.tls_cert", "is missing: %s is reached from elsewhere, and the tokens would cross the network for anyone to read", v.also("admin.listen"))
	}
}

// listenAdmin opens the operators' listener, without TLS.
func listenAdmin(c AdminConfig) (net.Listener, error) {
	path, ok := socketPath(c.Listen)
	if !ok {
		ln, err := net.Listen("tcp", c.Listen)
		if err != nil {
			return nil, fmt.Errorf("listen for operators: %w", err)
		}
		return ln, nil
	}
	mode, err := strconv.ParseUint(c.SocketMode, 8, 9)
	if err != nil {
		return nil, fmt.Errorf("listen for operators: socket mode %q", c.SocketMode)
	}
	ln, err := listenSocket(path, os.FileMode(mode))
	if err != nil {
		return nil, fmt.Errorf("listen for operators: %w", err)
	}
	return ln, nil
}

// errSocketInUse is when somebody serves on the socket's path already.
var errSocketInUse = errors.New("another process serves on this socket")

// listenSocket opens a Unix socket. One that a process left behind when it died is taken away; one that is served, and any other
// file, stays.
func listenSocket(path string, mode os.FileMode) (net.Listener, error) {
	if err := removeStaleSocket(path); err != nil {
		return nil, err
	}
	// The mode is set before the file is there, which Linux does by the socket's own mode: no moment is left in which anyone could
	// connect. Elsewhere the call may fail, and the one below does it.
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { _ = syscall.Fchmod(int(fd), uint32(mode)) })
	}}
	ln, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	// The process's umask may have taken the group's bits away.
	if err := os.Chmod(path, mode); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	return ln, nil
}

func removeStaleSocket(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is there and no socket: it is left as it is", path)
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case err == nil:
		return errors.Join(fmt.Errorf("%s: %w", path, errSocketInUse), conn.Close())
	case errors.Is(err, syscall.ECONNREFUSED): // nobody listens: its process is gone
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return nil
	}
	return fmt.Errorf("look whether somebody serves on %s: %w", path, err)
}

// adminTLS is TLS as the operators' listener speaks it: 1.3, since commands of this program are its callers.
func (c *certificates) adminTLS() *tls.Config {
	config := c.config()
	config.MinVersion = tls.VersionTLS13
	c.askClients(config)
	return config
}

// openAdmin opens the operators' listener and serves on it, where there is one.
func (n *Node) openAdmin() error {
	c := n.cfg.Admin
	if c.Listen == "" && n.opts.admin == nil {
		return nil
	}
	log := n.log.With("component", "admin")
	access, err := newAdminAccess(c, log)
	if err != nil {
		return err
	}
	var config *tls.Config
	if c.TLSCert != "" {
		if n.adminCertificates, err = openCertificates("admin", c.TLSCert, c.TLSKey, c.ClientCA, n.log.With("component", "tls", "listener", "admin")); err != nil {
			return err
		}
		config = n.adminCertificates.adminTLS()
		n.wg.Go(func() { n.adminCertificates.watch(n.ctx) })
	}
	if n.opts.admin == nil {
		if n.opts.admin, err = listenAdmin(c); err != nil {
			return err
		}
	}
	n.admin = newAdminServer(n, access)
	served := netutil.LimitListener(n.opts.admin, maxAdminConns)
	if config != nil {
		served = tls.NewListener(served, config)
	}
	n.wg.Go(func() { n.admin.http.Serve(served) })
	log.Info("admin listener open", "address", served.Addr().String(), "tls", config != nil, "client_certificates", c.ClientCA != "", "local_role", access.local.String())
	return nil
}
