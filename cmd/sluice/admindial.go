package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"

	"sluice/node"
)

// adminTarget is a listener to call.
type adminTarget struct {
	name    string // for people
	base    string // of URLs, without a slash at its end
	network string // "tcp" or "unix"
	address string // as net.Dial takes it
	tls     *tls.Config
}

// target reads host:port, https://host:port or unix:/path, from --admin or a node's configuration.
func (f *adminFlags) target(cfg node.Config) (*adminTarget, error) {
	address, secure := cfg.Admin.Listen, false
	if f.Admin != "" {
		address = f.Admin
	}
	if rest, ok := strings.CutPrefix(address, "https://"); ok {
		address, secure = strings.TrimSuffix(rest, "/"), true
	}
	t := &adminTarget{name: address, network: "tcp", address: address}
	server := "localhost"
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		if path == "" || secure {
			return nil, usagef("--admin: want unix: and a path, not %q", f.Admin)
		}
		t.network, t.address, t.base = "unix", path, "localhost"
	} else {
		host, port, err := net.SplitHostPort(address)
		if err != nil || port == "" || port == "0" {
			return nil, usagef("--admin: want host:port, https://host:port or unix:/path, not %q", address)
		}
		if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
			host = "127.0.0.1" // it listens on every address of this machine
		}
		server, t.address = host, net.JoinHostPort(host, port)
		t.base = t.address
	}
	pin := ""
	if f.Config != "" {
		pin = cfg.Admin.TLSCert
	}
	var err error
	if secure || pin != "" || f.AdminCA != "" || f.AdminCert != "" || f.AdminKey != "" {
		if t.tls, err = f.tls(server, pin); err != nil {
			return nil, err
		}
		t.base = "https://" + t.base
	} else {
		t.base = "http://" + t.base
	}
	if t.network == "tcp" {
		t.name = t.base
	}
	return t, nil
}

// tls verifies the listener by --admin-ca, or by the certificate that its node's own configuration names, or as any web server.
func (f *adminFlags) tls(server, pin string) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: server}
	if (f.AdminCert == "") != (f.AdminKey == "") {
		return nil, usagef("--admin-cert and --admin-key go together")
	}
	if f.AdminCert != "" {
		pair, err := tls.LoadX509KeyPair(f.AdminCert, f.AdminKey)
		if err != nil {
			return nil, usagef("--admin-cert: %v", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	switch {
	case f.AdminCA != "":
		text, err := os.ReadFile(f.AdminCA)
		if err != nil {
			return nil, usagef("--admin-ca: %v", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(text) {
			return nil, usagef("--admin-ca: %s holds no certificate", f.AdminCA)
		}
	case pin != "":
		want, err := firstCertificate(pin)
		if err != nil {
			return nil, usagef("admin.tls_cert: %v", err)
		}
		// The file says which certificate it must be, whatever names that has and whoever signed it.
		config.InsecureSkipVerify = true
		config.VerifyConnection = func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 || !bytes.Equal(state.PeerCertificates[0].Raw, want) {
				return fmt.Errorf("the listener's certificate is not the one in %s", pin)
			}
			return nil
		}
	}
	return config, nil
}

func firstCertificate(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return nil, errors.New(path + " holds no certificate")
		}
		if block.Type == "CERTIFICATE" {
			return block.Bytes, nil
		}
	}
}

// transport connects to the target whatever a URL says. A proxy of the environment's must not see the token, and would make
// the caller a stranger.
func (t *adminTarget) transport() *http.Transport {
	return &http.Transport{
		Proxy:           nil,
		TLSClientConfig: t.tls,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, t.network, t.address)
		},
	}
}
