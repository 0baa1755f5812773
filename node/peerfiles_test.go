package node

import (
	"bytes"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// peerAuthority makes certificates in files for tests.
type peerAuthority struct {
	t    *testing.T
	pair PeerPair
}

func newPeerAuthority(t *testing.T) *peerAuthority {
	t.Helper()
	pair, err := NewPeerAuthority("blue", 48*time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &peerAuthority{t, pair}
}

// issue writes a node's certificate and the bundle of authorities into dir.
func (a *peerAuthority) issue(dir string, id PeerIdentity, now time.Time, bundle ...*peerAuthority) PeerConfig {
	a.t.Helper()
	pair, err := NewPeerCertificate(a.pair, id, 24*time.Hour, now)
	if err != nil {
		a.t.Fatal(err)
	}
	c := PeerConfig{TLSCert: filepath.Join(dir, "peer.crt"), TLSKey: filepath.Join(dir, "peer.key"), TLSCA: filepath.Join(dir, "ca.crt")}
	writePEM(a.t, c.TLSCert, pair.Certificate)
	writePEM(a.t, c.TLSKey, pair.Key)
	bundleInto(a.t, c.TLSCA, append(bundle, a)...)
	return c
}

func bundleInto(t *testing.T, path string, authorities ...*peerAuthority) {
	t.Helper()
	var text []byte
	for _, a := range authorities {
		text = append(text, a.pair.Certificate...)
	}
	writePEM(t, path, text)
}

func writePEM(t *testing.T, path string, text []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// withFiles are credentials of a node from files.
func withFiles(t *testing.T, secret, cluster string, config PeerConfig, id string) *fileCredentials {
	t.Helper()
	f, err := tryFiles(secret, cluster, config, id)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func tryFiles(secret, cluster string, config PeerConfig, id string) (*fileCredentials, error) {
	keys, err := deriveClusterKeys([]byte(secret))
	if err != nil {
		return nil, err
	}
	derived, err := newDerivedCredentials(keys, PeerIdentity{NodeID: id, Cluster: cluster}, time.Now)
	if err != nil {
		return nil, err
	}
	return newFileCredentials(config, derived, keys.proof, discard())
}

// lines is a log that can be read while it is written.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *lines) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// wait is for a line of the other side, which may come a moment later.
func (l *lines) wait(t *testing.T, parts ...string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		missing := ""
		for _, part := range parts {
			if !strings.Contains(l.String(), part) {
				missing = part
			}
		}
		if missing == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %q in the log:\n%s", missing, l)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// Whatever keeps two nodes apart, both logs say who was refused, from where, why, and what to do, and no secret.
func TestPeerRefusals_BothLogsTell(t *testing.T) {
	t.Parallel()
	const secret, foreign = "the secret of the cluster blue", "the secret of another cluster"
	ours, theirs := newPeerAuthority(t), newPeerAuthority(t)
	files := func(a *peerAuthority, secret, cluster string, ends time.Duration) func(t *testing.T) PeerCredentials {
		return func(t *testing.T) PeerCredentials {
			id := newNodeID()
			config := a.issue(t.TempDir(), PeerIdentity{NodeID: id, Cluster: cluster}, time.Now().Add(ends-24*time.Hour))
			return withFiles(t, secret, cluster, config, id)
		}
	}
	derived := func(secret, cluster string) func(t *testing.T) PeerCredentials {
		return func(t *testing.T) PeerCredentials { return credentials(t, secret, cluster, time.Now) }
	}
	good := files(ours, secret, "blue", time.Hour)
	for _, tt := range []struct {
		name           string
		server, client func(t *testing.T) PeerCredentials
		other          bool // another node is dialled than the one that answers
		accepted       string
		dialled        string
	}{
		{"derived, another secret", derived(secret, "blue"), derived(foreign, "blue"), false, "reason=refused", "reason=secret"},
		{"derived, another cluster", derived(secret, "blue"), derived(secret, "green"), false, "reason=refused", "reason=cluster"},
		{"derived, another node", derived(secret, "blue"), derived(secret, "blue"), true, "reason=refused", "reason=node"},
		{"another secret", good, files(ours, foreign, "blue", time.Hour), false, "reason=secret", "reason=secret"},
		{"another cluster", good, files(ours, secret, "green", time.Hour), false, "reason=refused", "reason=cluster"},
		{"another node", good, files(ours, secret, "blue", time.Hour), true, "reason=refused", "reason=node"},
		{"an authority that neither knows of the other", good, files(theirs, secret, "blue", time.Hour), false, "reason=refused", "reason=authority"},
		{"the dialling node's certificate has ended", good, files(ours, secret, "blue", -time.Hour), false, "reason=expired", "reason=refused"},
		{"the answering node's certificate has ended", files(ours, secret, "blue", -time.Hour), good, false, "reason=refused", "reason=expired"},
		{"a certificate and none", good, derived(secret, "blue"), false, "reason=refused", "reason=secret"},
		{"none and a certificate", derived(secret, "blue"), good, false, "reason=refused", "reason=authority"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var acceptedLog, dialledLog lines
			server, client := tt.server(t), tt.client(t)
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			address := ln.Addr().String()
			p := newPeerListener(ln, server, "", acceptedLog.logger())
			t.Cleanup(func() {
				if err := p.close(); err != nil {
					t.Error(err)
				}
			})
			d := newDialer(client, func(string) (string, error) { return address, nil }, nil, dialledLog.logger())
			t.Cleanup(d.close)
			target := address
			if tt.other {
				target = newNodeID()
			}
			if conn, err := d.dial(t.Context(), target, protoRaft); err == nil {
				conn.Close()
				t.Fatal("let in")
			}
			dialledLog.wait(t, `msg="peer not reached"`, "address="+address, tt.dialled, "hint=", "error=")
			acceptedLog.wait(t, `msg="peer connection refused"`, "address=127.0.0.1:", tt.accepted, "hint=", "error=")
			for _, log := range []string{acceptedLog.String(), dialledLog.String()} {
				if strings.Contains(log, secret) || strings.Contains(log, foreign) {
					t.Errorf("a secret is in the log: %s", log)
				}
			}
			// Who tells why also tells whom it refused.
			who := acceptedLog.String()
			if tt.accepted == "reason=refused" {
				who = dialledLog.String()
			}
			if !strings.Contains(who, "claims_node=nod_") || !strings.Contains(who, "claims_cluster=") {
				t.Errorf("not told who it was: %s", who)
			}
		})
	}
}

// Nodes change over from the secret's certificates to an authority's one at a time, without a moment in which two do not speak.
func TestPeerFiles_ChangeOver(t *testing.T) {
	t.Parallel()
	a := newPeerAuthority(t)
	stages := []func(t *testing.T) PeerCredentials{
		func(t *testing.T) PeerCredentials { return credentials(t, "secret", "blue", time.Now) },
	}
	for _, change := range []func(*PeerConfig){
		func(c *PeerConfig) { c.TLSCert, c.TLSKey = "", "" },
		func(c *PeerConfig) { c.TLSAcceptSecret = true },
		func(*PeerConfig) {},
	} {
		stages = append(stages, func(t *testing.T) PeerCredentials {
			id := newNodeID()
			config := a.issue(t.TempDir(), PeerIdentity{NodeID: id, Cluster: "blue"}, time.Now())
			change(&config)
			return withFiles(t, "secret", "blue", config, id)
		})
	}
	speak := func(client, server PeerCredentials) error {
		_, address := listenPeers(t, server)
		conn, err := dialerOf(t, client, address).dial(t.Context(), address, protoRPC)
		if err == nil {
			conn.Close()
		}
		return err
	}
	for i := range stages {
		for j := range stages {
			err := speak(stages[i](t), stages[j](t))
			if near := i-j <= 1 && j-i <= 1; near && err != nil {
				t.Errorf("stage %d with %d: %v", i, j, err)
			}
			if i+j == 3 && i*j == 0 && err == nil {
				t.Errorf("stage %d speaks with %d", i, j)
			}
		}
	}
}

// The authority is replaced while nodes run: both in the bundle, new certificates, the old one out. What does not fit stays out.
func TestPeerFiles_Reload(t *testing.T) {
	t.Parallel()
	old, next := newPeerAuthority(t), newPeerAuthority(t)
	type member struct {
		creds  *fileCredentials
		config PeerConfig
		dir    string
		id     PeerIdentity
	}
	make1 := func() *member {
		m := &member{dir: t.TempDir(), id: PeerIdentity{NodeID: newNodeID(), Cluster: "blue"}}
		m.config = old.issue(m.dir, m.id, time.Now())
		m.creds = withFiles(t, "secret", "blue", m.config, m.id.NodeID)
		return m
	}
	server, client := make1(), make1()
	p, address := listenPeers(t, server.creds)
	server.creds.changed = p.recheck
	d := dialerOf(t, client.creds, address)
	dial := func() (*tls.Conn, error) { return d.dial(t.Context(), server.id.NodeID, protoRPC) }
	mustReload := func(m *member) {
		t.Helper()
		if err := m.creds.reload(false); err != nil {
			t.Fatal(err)
		}
	}
	first, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	for _, m := range []*member{server, client} {
		bundleInto(t, m.config.TLSCA, old, next)
		mustReload(m)
		if _, err := dial(); err != nil {
			t.Fatalf("both authorities: %v", err)
		}
	}
	next.issue(server.dir, server.id, time.Now(), old) // the server first: its peer trusts both
	mustReload(server)
	if _, err := dial(); err != nil {
		t.Fatalf("a new certificate: %v", err)
	}
	before := client.creds.current.Load()
	for name, spoil := range map[string]func(){
		"another node's": func() { old.issue(client.dir, PeerIdentity{NodeID: newNodeID(), Cluster: "blue"}, time.Now(), next) },
		"another cluster's": func() {
			old.issue(client.dir, PeerIdentity{NodeID: client.id.NodeID, Cluster: "green"}, time.Now(), next)
		},
		"of no authority in the bundle": func() {
			newPeerAuthority(t).issue(client.dir, client.id, time.Now())
			bundleInto(t, client.config.TLSCA, old, next)
		},
		"a key in the bundle":   func() { writePEM(t, client.config.TLSCA, append(bytes.Clone(old.pair.Certificate), old.pair.Key...)) },
		"no bundle":             func() { writePEM(t, client.config.TLSCA, []byte("nothing")) },
		"a node in the bundle":  func() { writePEM(t, client.config.TLSCA, read(t, client.config.TLSCert)) },
		"a key of another pair": func() { writePEM(t, client.config.TLSKey, old.pair.Key) },
	} {
		spoil()
		if err := client.creds.reload(false); err == nil || !client.creds.failing.Load() || client.creds.current.Load() != before {
			t.Errorf("%s: taken, %v", name, err)
		}
		old.issue(client.dir, client.id, time.Now(), next)
		mustReload(client)
		if client.creds.failing.Load() {
			t.Errorf("after %s: failing still", name)
		}
		before = client.creds.current.Load()
	}
	// The old authority goes where its certificates are still shown: they are refused, and the connection that one made is cut.
	bundleInto(t, server.config.TLSCA, next)
	mustReload(server)
	first.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := first.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("a connection of the old authority goes on: %v", err)
	}
	if _, err := dial(); err == nil {
		t.Error("the old authority is believed still")
	}
	next.issue(client.dir, client.id, time.Now())
	mustReload(client)
	if _, err := dial(); err != nil {
		t.Errorf("the new authority alone: %v", err)
	}
	if cert, authority := client.creds.expiry(); cert <= float64(time.Now().Unix()) || authority <= cert {
		t.Errorf("ends at %v, its authority at %v", cert, authority)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// A node does not start with what the others would refuse.
func TestPeerFiles_Refused(t *testing.T) {
	t.Parallel()
	a, other := newPeerAuthority(t), newPeerAuthority(t)
	id := newNodeID()
	for name, tt := range map[string]struct {
		config func(dir string) PeerConfig
		want   string
	}{
		"another node's": {func(dir string) PeerConfig {
			return a.issue(dir, PeerIdentity{NodeID: newNodeID(), Cluster: "blue"}, time.Now())
		}, "this node is " + id},
		"another cluster's": {func(dir string) PeerConfig {
			return a.issue(dir, PeerIdentity{NodeID: id, Cluster: "green"}, time.Now())
		}, `of cluster "green"`},
		"an authority's": {func(dir string) PeerConfig {
			c := a.issue(dir, PeerIdentity{NodeID: id, Cluster: "blue"}, time.Now())
			writePEM(t, c.TLSCert, a.pair.Certificate)
			writePEM(t, c.TLSKey, a.pair.Key)
			return c
		}, "names no node"},
		"of another authority": {func(dir string) PeerConfig {
			c := a.issue(dir, PeerIdentity{NodeID: id, Cluster: "blue"}, time.Now())
			bundleInto(t, c.TLSCA, other)
			return c
		}, "is of no authority in"},
	} {
		_, err := tryFiles("secret", "blue", tt.config(t.TempDir()), id)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
	if _, err := NewPeerCertificate(PeerPair{Certificate: other.pair.Certificate, Key: a.pair.Key}, PeerIdentity{NodeID: id, Cluster: "blue"}, time.Hour, time.Now()); !errors.Is(err, ErrPeerAuthority) {
		t.Errorf("a key of another authority signs: %v", err)
	}
}
