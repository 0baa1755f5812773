package node_test

import (
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sluice/node"
	"sluice/node/nodetest"
)

var strangersBytes = flag.Int64("strangers.bytes", 32<<20, "how many random bytes TestStrangers_RandomBytes sends to each port between nodes")

// sumOf adds up the samples of a metric.
func sumOf(e exposition, name string) (sum float64) {
	for sample, value := range e.samples {
		if strings.HasPrefix(sample, name+"{") {
			sum += value
		}
	}
	return sum
}

// Random bytes on every port between nodes, plain and in frames that look like a beginning, cost no memory, stop no write, exceed no
// limit, and are counted.
func TestStrangers_RandomBytes(t *testing.T) {
	t.Parallel()
	const limit = 60
	c := nodetest.Start(t, 3, nodetest.WithConfig(func(i int, cfg *node.Config) {
		monthly(i, cfg)
		cfg.Limits.Anonymous.Limit = limit
	}))
	victim := c.Members[c.Followers()[0]].Node
	status, err := clusterStatus(c.Members[0])
	if err != nil {
		t.Fatal(err)
	}
	rosters := victim.Rosters().Rosters
	label := append([]byte{244, byte(len(status.ClusterID))}, status.ClusterID...)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)

	var base runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&base)
	began := time.Now()
	var peak atomic.Uint64
	stop := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		for {
			var now runtime.MemStats
			runtime.ReadMemStats(&now)
			if now.HeapInuse+now.StackInuse > peak.Load() {
				peak.Store(now.HeapInuse + now.StackInuse)
			}
			select {
			case <-time.After(20 * time.Millisecond):
			case <-stop:
				return
			}
		}
	})

	// beginnings are what random bytes follow: nothing, a TLS record, the cluster's own label, a sealed message of 20 MiB.
	beginnings := [][]byte{
		nil, {0x16, 3, 1, 0x3f, 0xff, 1, 0, 0x3f, 0xfb, 3, 3}, {0x17, 3, 3, 0x40, 0},
		label, binary.BigEndian.AppendUint32(append(slices.Clone(label), 10), 20<<20), binary.BigEndian.AppendUint32(append(slices.Clone(label), 10), 1<<20),
	}
	var sending sync.WaitGroup
	var connections, datagrams atomic.Int64
	for n, address := range []string{victim.PeerAddress(), victim.GossipAddress()} {
		var left atomic.Int64
		left.Store(*strangersBytes)
		for worker := range 4 {
			sending.Go(func() {
				random := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(n), byte(worker)})
				chunk := make([]byte, 64<<10)
				for i := worker; left.Load() > 0; i++ {
					conn, err := net.DialTimeout("tcp", address, 20*time.Second)
					if err != nil {
						t.Errorf("dial %s: %v", address, err)
						return
					}
					connections.Add(1)
					conn.SetDeadline(time.Now().Add(20 * time.Second))
					_, err = conn.Write(beginnings[i%len(beginnings)])
					for sent := 0; err == nil && sent < 1<<20 && left.Load() > 0; {
						random.Read(chunk)
						var size int
						size, err = conn.Write(chunk)
						left.Add(-int64(size))
						sent += size
					}
					conn.Close()
				}
			})
		}
	}
	sending.Go(func() {
		conn, err := net.Dial("udp", victim.GossipAddress())
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		random := rand.NewChaCha8([32]byte{byte(seed), 9})
		for left := *strangersBytes; left > 0; {
			packet := make([]byte, 1+(left*7919)%1500)
			random.Read(packet)
			if datagrams.Add(1)%2 == 0 {
				packet = append(slices.Clone(label), packet...)
				packet[len(label)] = 1 // as if sealed
			}
			if _, err := conn.Write(packet); err != nil {
				t.Errorf("send: %v", err)
				return
			}
			left -= int64(len(packet))
		}
	})
	// Meanwhile the cluster works, this node too.
	admitted := 0
	for i := range 2 * limit {
		if i%20 == 0 {
			if _, err := victim.Cluster().Propose(t.Context(), nodetest.RequestID(), nodetest.Register(fmt.Sprint("u", i))); err != nil {
				t.Errorf("a write in the middle of it: %v", err)
			}
		}
		resp, err := http.DefaultClient.Do(verify(t, c.Members[i%3], "203.0.113.4"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			admitted++
		}
	}
	sending.Wait()
	took := time.Since(began)
	close(stop)
	watching.Wait()
	// What was refused for shares that were on their way comes back to who asks again.
	nodetest.WaitFor(t, "the rest of the limit", func() error {
		admitted += spend(t, c, "203.0.113.4", 1, 0, 1, 2)
		if admitted < limit {
			return fmt.Errorf("%d of %d passed", admitted, limit)
		}
		return nil
	})
	if extra := spend(t, c, "203.0.113.4", 3, 0, 1, 2); admitted+extra > limit {
		t.Errorf("%d of %d passed", admitted+extra, limit)
	}

	var metrics exposition
	nodetest.WaitFor(t, "what was sent to be counted", func() error {
		metrics = readMetrics(t, adminText(t, victim, "/metrics"))
		for _, name := range []string{"sluice_peer_connections_refused_total", "sluice_gossip_streams_strange_total", "sluice_gossip_packets_strange_total"} {
			if sumOf(metrics, name) < 1 {
				return fmt.Errorf("%s is %v", name, sumOf(metrics, name))
			}
		}
		return nil
	})
	t.Logf("%d MiB to each of three ports in %s: %d connections, %d datagrams; refused %v, streams %v (cut %v), packets %v; %d MiB in use before, %d MiB at most",
		*strangersBytes>>20, took.Round(time.Millisecond), connections.Load(), datagrams.Load(), sumOf(metrics, "sluice_peer_connections_refused_total"),
		sumOf(metrics, "sluice_gossip_streams_strange_total"), sumOf(metrics, "sluice_gossip_streams_cut_total"), sumOf(metrics, "sluice_gossip_packets_strange_total"),
		(base.HeapInuse+base.StackInuse)>>20, peak.Load()>>20)
	// 64 handshakes and 64 streams at a time, whatever is announced, and three nodes in this process.
	if grown := int64(peak.Load()) - int64(base.HeapInuse+base.StackInuse); grown > 192<<20 {
		t.Errorf("%d MiB more were in use", grown>>20)
	}
	for _, name := range []string{"sluice_gossip_packets_malformed_total", "sluice_limit_refused_packets_total", "sluice_limit_foreign_packets_total", "sluice_limit_overadmitted_total"} {
		if n := sumOf(metrics, name); n != 0 {
			t.Errorf("%s is %v: something got through", name, n)
		}
	}
	after, err := clusterStatus(c.Members[0])
	if err != nil || len(after.Nodes) != 3 || len(after.Problems) > 0 || after.Term != status.Term || after.Leader != status.Leader {
		t.Errorf("before %+v\nafter %+v, %v", status, after, err)
	}
	if now := victim.Rosters().Rosters; len(now) != len(rosters) || now[len(now)-1].Index != rosters[len(rosters)-1].Index {
		t.Errorf("the roster changed: %+v, it was %+v", now, rosters)
	}
	nodetest.WaitFor(t, "gossip among all", func() error {
		for i, m := range c.Members {
			if n := metric(t, m.Node, "sluice_gossip_members{}"); n != 3 {
				return fmt.Errorf("node %d sees %v", i, n)
			}
		}
		return nil
	})
}

// A node with another secret, or of a cluster of another name, is told so, is no member, and changes nothing.
func TestStrangers_NodesOfOthers(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 1, nodetest.WithConfig(withAdmin))
	here := c.Members[0].Node
	before := here.AppliedIndex()
	for _, tt := range []struct {
		what   string
		change func(*node.Config)
		reason string
	}{
		{"another secret", func(cfg *node.Config) { cfg.Secrets.Cluster = node.Secret(node.NewSecret()) }, "secret"},
		{"another cluster", func(cfg *node.Config) { cfg.Cluster = "green" }, "cluster"},
	} {
		i := c.Add()
		tt.change(&c.Members[i].Config)
		stranger := c.Start(i)
		nodetest.WaitFor(t, "both to tell of "+tt.what, func() error {
			told, counted := false, metric(t, here, `sluice_peer_connections_refused_total{reason="refused"}`)
			for line := range strings.Lines(c.Log()) {
				told = told || strings.Contains(line, fmt.Sprintf("member=%d ", i)) && strings.Contains(line, "peer not reached") && strings.Contains(line, "reason="+tt.reason) && strings.Contains(line, "hint=")
			}
			if !told || counted < 1 || metric(t, stranger, fmt.Sprintf("sluice_peer_dials_refused_total{reason=%q}", tt.reason)) < 1 {
				return fmt.Errorf("told there: %t, counted here: %v", told, counted)
			}
			return nil
		})
		if stranger.State() == nil || stranger.LeaderID() != "" {
			t.Errorf("%s: it follows %q", tt.what, stranger.LeaderID())
		}
		c.Stop(i)
	}
	if !strings.Contains(c.Log(), `msg="peer connection refused" member=0`) {
		t.Error("the node's own log does not tell of the strangers")
	}
	if s, err := clusterStatus(c.Members[0]); err != nil || len(s.Nodes) != 1 || s.Nodes[0].ID != here.ID() {
		t.Errorf("%+v, %v", s, err)
	}
	if here.AppliedIndex() < before {
		t.Error("the log went back")
	}
}
