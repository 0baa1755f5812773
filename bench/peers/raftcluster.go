package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"sluice/bench"
	"sluice/raftfsm/logstore"
)

// raftNodeCommand runs one process of the bare Raft cluster.
const raftNodeCommand = "raft-node"

const (
	// raftEntry is about what the creation of a key takes in the log.
	raftEntry = 300
	raftName  = "raft"
	raftHost  = "raft.peers" // that all processes' certificate is for
	// loadPath has the leader propose entries; ?concurrency=&millis=.
	loadPath = "/load"
)

// startRaft starts as many processes of hashicorp/raft as the cluster has nodes: over TLS, on Sluice's log store with its
// syncs, with Sluice's settings and a state machine that does nothing. Its callers are goroutines of the leader's process
// that propose entries, so that it has no HTTP, no forwarding, no credentials and no state to pay for.
func startRaft(ctx context.Context, p *plan, dir string) (*server, error) {
	home := filepath.Join(dir, raftName)
	if err := os.MkdirAll(home, 0o700); err != nil {
		return nil, fmt.Errorf("make its directory: %w", err)
	}
	if err := writeCertificate(filepath.Join(home, "tls.pem")); err != nil {
		return nil, err
	}
	port, err := freePort(p.nodes)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	s := &server{version: moduleVersion("github.com/hashicorp/raft")}
	// The last one forms the cluster: it stands for election at once, and the others answer by then.
	for i := range p.nodes {
		node, err := startProcess(self, []string{frontVariable + "=1"}, raftNodeCommand, "-dir", home, "-node", strconv.Itoa(i),
			"-nodes", strconv.Itoa(p.nodes), "-port", strconv.Itoa(port), "-form="+strconv.FormatBool(i == p.nodes-1))
		if err != nil {
			s.stop()
			return nil, err
		}
		s.processes = append(s.processes, node)
	}
	for _, node := range s.processes {
		at, err := node.awaitLine(ctx)
		if err != nil {
			s.stop()
			return nil, err
		}
		s.targets = append(s.targets, at...)
	}
	s.load = func(ctx context.Context) (bench.PeerRound, error) { return raftLoad(ctx, s.targets, p) }
	return s, nil
}

// raftLoad has whoever leads propose entries: first those of the warm-up.
func raftLoad(ctx context.Context, targets []string, p *plan) (round bench.PeerRound, err error) {
	client := &http.Client{Timeout: p.duration + p.warmup + time.Minute}
	for _, d := range []time.Duration{p.warmup, p.duration} {
		if d == 0 {
			continue
		}
		query := url.Values{"concurrency": {strconv.Itoa(p.concurrency)}, "millis": {strconv.FormatInt(d.Milliseconds(), 10)}}.Encode()
		led := false
		for _, target := range targets {
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, target+loadPath+"?"+query, nil)
			if err != nil {
				return round, err
			}
			resp, err := client.Do(req)
			if err != nil {
				return round, err
			}
			if resp.StatusCode == http.StatusMisdirectedRequest {
				resp.Body.Close()
				continue
			}
			led = resp.StatusCode == http.StatusOK
			err = json.NewDecoder(resp.Body).Decode(&round)
			resp.Body.Close()
			if err != nil || !led {
				return round, fmt.Errorf("it answered %s: %w", resp.Status, err)
			}
			break
		}
		if !led {
			return round, errors.New("no process leads")
		}
	}
	return round, nil
}

// raftNode is one process.
func raftNode(ctx context.Context, args []string, stdout io.Writer) (err error) {
	flags := flag.NewFlagSet(raftNodeCommand, flag.ContinueOnError)
	home := flags.String("dir", "", "")
	self := flags.Int("node", 0, "from 0")
	nodes := flags.Int("nodes", 1, "")
	port := flags.Int("port", 0, "of node 0; the others have the next ones")
	form := flags.Bool("form", false, "bootstrap the cluster")
	if err := flags.Parse(args); err != nil {
		return &usageError{err.Error()}
	}
	address := func(i int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(*port+i)) }
	dir := filepath.Join(*home, strconv.Itoa(*self))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	store, err := logstore.Open(logstore.Config{Path: filepath.Join(dir, "log.db"), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	stream, err := listenTLS(address(*self), filepath.Join(*home, "tls.pem"))
	if err != nil {
		return err
	}
	quiet := hclog.NewNullLogger()
	transport := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{Logger: quiet, Stream: stream, MaxPool: 3, Timeout: 5 * time.Second})
	defer transport.Close()
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(dir, 1, quiet)
	if err != nil {
		return fmt.Errorf("open snapshots: %w", err)
	}
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(address(*self))
	// As the nodes of Sluice have it.
	c.CommitTimeout = 10 * time.Millisecond
	c.MaxAppendEntries = 256
	c.SnapshotThreshold = 1 << 40 // none: there is nothing to take one of
	c.Logger = quiet
	c.NoLegacyTelemetry = true
	if *form {
		var servers []raft.Server
		for i := range *nodes {
			servers = append(servers, raft.Server{ID: raft.ServerID(address(i)), Address: raft.ServerAddress(address(i))})
		}
		if err := raft.BootstrapCluster(c, store, store, snapshots, transport, raft.Configuration{Servers: servers}); err != nil {
			return fmt.Errorf("bootstrap: %w", err)
		}
	}
	r, err := raft.NewRaft(c, noState{}, store, store, snapshots, transport)
	if err != nil {
		return fmt.Errorf("start raft: %w", err)
	}
	defer func() { err = errors.Join(err, r.Shutdown().Error()) }()
	for {
		if leader, _ := r.LeaderWithID(); leader != "" {
			break
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return nil
		}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+loadPath, func(w http.ResponseWriter, req *http.Request) {
		concurrency, err := strconv.Atoi(req.FormValue("concurrency"))
		millis, err2 := strconv.Atoi(req.FormValue("millis"))
		switch {
		case err != nil || err2 != nil || concurrency < 1 || millis < 1:
			http.Error(w, "want concurrency and millis", http.StatusBadRequest)
		case r.State() != raft.Leader:
			w.WriteHeader(http.StatusMisdirectedRequest)
		default:
			// The caller finds out by itself that an answer was cut short.
			_ = json.NewEncoder(w).Encode(proposeEntries(r, concurrency, time.Duration(millis)*time.Millisecond))
		}
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	fmt.Fprintf(stdout, "ready http://%s\n", listener.Addr())
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err = <-served:
	case <-ctx.Done():
		err = server.Close()
		if serveErr := <-served; !errors.Is(serveErr, http.ErrServerClosed) {
			err = errors.Join(err, serveErr)
		}
	}
	return err
}

// proposeEntries proposes one entry after the other, from so many callers at once.
func proposeEntries(r *raft.Raft, callers int, d time.Duration) bench.PeerRound {
	entry := make([]byte, raftEntry)
	took := make([][]time.Duration, callers)
	var failed atomic.Int64
	var callersDone sync.WaitGroup
	begin := time.Now()
	for i := range callers {
		callersDone.Go(func() {
			for time.Since(begin) < d {
				sent := time.Now()
				if r.Apply(entry, time.Second).Error() != nil {
					failed.Add(1)
					continue
				}
				took[i] = append(took[i], time.Since(sent))
			}
		})
	}
	callersDone.Wait()
	seconds := time.Since(begin).Seconds()
	all := slices.Concat(took...)
	slices.Sort(all)
	round := bench.PeerRound{Throughput: float64(len(all)) / seconds, Admitted: int64(len(all)), Failed: failed.Load()}
	if len(all) > 0 {
		at := func(q float64) float64 { return float64(all[int(q*float64(len(all)-1))].Nanoseconds()) / 1e3 }
		round.P50Micros, round.P99Micros = at(0.5), at(0.99)
	}
	return round
}

// noState is a state machine that does nothing, in batches.
type noState struct{}

func (noState) Apply(*raft.Log) any                  { return nil }
func (noState) ApplyBatch(entries []*raft.Log) []any { return make([]any, len(entries)) }
func (noState) Snapshot() (raft.FSMSnapshot, error)  { return nil, errors.New("there is no state") }
func (noState) Restore(from io.ReadCloser) error     { return from.Close() }

// tlsStream is the stream layer between the processes: TLS 1.3, both ends proving that they have the cluster's key.
type tlsStream struct {
	net.Listener
	config *tls.Config
}

func (s *tlsStream) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	return tls.DialWithDialer(&net.Dialer{Timeout: timeout}, "tcp", string(address), s.config)
}

func listenTLS(address, path string) (*tlsStream, error) {
	certificate, err := tls.LoadX509KeyPair(path, path)
	if err != nil {
		return nil, fmt.Errorf("load the certificate: %w", err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(certificate.Leaf)
	config := &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{certificate}, ServerName: raftHost,
		RootCAs: roots, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert,
	}
	listener, err := tls.Listen("tcp", address, config)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return &tlsStream{listener, config}, nil
}

// writeCertificate makes the certificate that the processes share, and its key, for a day.
func writeCertificate(path string) error {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: raftHost}, DNSNames: []string{raftHost},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		return fmt.Errorf("make a certificate: %w", err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	var text strings.Builder
	for _, block := range []pem.Block{{Type: "CERTIFICATE", Bytes: der}, {Type: "PRIVATE KEY", Bytes: key}} {
		if err := pem.Encode(&text, &block); err != nil {
			return fmt.Errorf("write the certificate: %w", err)
		}
	}
	if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
		return fmt.Errorf("write the certificate: %w", err)
	}
	return nil
}
