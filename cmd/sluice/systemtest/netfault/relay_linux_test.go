package netfault

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The kernel here has no netem, so delay, reordering and duplication come from a relay: each node's namespace gets a TUN
// interface with routes to the other nodes, and this process, which holds the other ends, carries the packets between them.
// Clients go over the bridge as ever.

const (
	relayInterface = "relay"
	relayMTU       = 1500
	// relayQueue bounds the packets that are under way to one node; further ones are lost, as in a router.
	relayQueue = 4096
)

// weather is what the relay does to packets.
type weather struct {
	least, most time.Duration // delay, spread evenly: packets overtake each other
	late        float64       // part of the packets that are held up for lateBy on top
	lateBy      time.Duration
	twice       float64 // part that arrives twice, the second time with a delay of its own
	lost        float64
}

// relay carries packets between the nodes.
type relay struct {
	tuns    [nodes + 1]*os.File
	weather atomic.Pointer[weather]
	reading sync.WaitGroup
	closed  chan struct{}
	flying  [nodes + 1]atomic.Int64

	mu   sync.Mutex
	rng  *rand.Rand
	sent map[string]int // what became of packets, by its name
	last [nodes + 1][nodes + 1]time.Time
}

// needRelay makes the relay, or skips the test where there are no TUN devices. It is taken away at the end of the test.
func needRelay(t *testing.T) *relay {
	t.Helper()
	needCluster(t)
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("the relay's seed is %d", seed)
	r := &relay{rng: rand.New(rand.NewPCG(seed, 1)), sent: map[string]int{}, closed: make(chan struct{})}
	r.weather.Store(&weather{})
	t.Cleanup(func() { r.close(t) })
	for node := 1; node <= nodes; node++ {
		tun, err := openTUN(namespace(node))
		if err != nil {
			t.Fatalf("TUN interface of node%d: %v", node, err)
		}
		r.tuns[node] = tun
		in := []string{"ip", "-n", namespace(node)}
		if err := command(append(in, "link", "set", relayInterface, "mtu", fmt.Sprint(relayMTU), "up")...); err != nil {
			t.Fatal(err)
		}
		for _, other := range others(node) {
			route := []string{"route", "add", nodeAddress(other) + "/32", "dev", relayInterface, "src", nodeAddress(node)}
			if err := command(append(in, route...)...); err != nil {
				t.Fatal(err)
			}
		}
	}
	for node := 1; node <= nodes; node++ {
		r.reading.Go(func() { r.carry(node) })
	}
	return r
}

// openTUN makes the interface in a namespace and returns its other end, which works from anywhere. It goes with the file.
func openTUN(namespace string) (*os.File, error) {
	type result struct {
		file *os.File
		err  error
	}
	made := make(chan result, 1)
	go func() {
		// This thread changes its namespace and so must not serve another goroutine ever: locked, it ends with this one.
		runtime.LockOSThread()
		file, err := func() (*os.File, error) {
			ns, err := os.Open(filepath.Join("/run/netns", namespace))
			if err != nil {
				return nil, err
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return nil, fmt.Errorf("enter the namespace: %w", err)
			}
			fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
			if err != nil {
				return nil, err
			}
			request, err := unix.NewIfreq(relayInterface)
			if err == nil {
				request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
				err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
			}
			if err != nil {
				return nil, errors.Join(fmt.Errorf("make the interface: %w", err), unix.Close(fd))
			}
			return os.NewFile(uintptr(fd), "tun of "+namespace), nil
		}()
		made <- result{file, err}
	}()
	m := <-made
	return m.file, m.err
}

// close takes the interfaces away; packets that are under way are lost.
func (r *relay) close(t *testing.T) {
	close(r.closed)
	for _, tun := range r.tuns {
		if tun != nil {
			if err := tun.Close(); err != nil {
				t.Errorf("close the relay: %v", err)
			}
		}
	}
	r.reading.Wait()
	for _, flying := range []func() int64{r.flying[1].Load, r.flying[2].Load, r.flying[3].Load} {
		eventually(t, 10*time.Second, "no packet is under way", func() error {
			if n := flying(); n > 0 {
				return fmt.Errorf("%d are", n)
			}
			return nil
		})
	}
}

// carry reads what one node sends.
func (r *relay) carry(from int) {
	buf := make([]byte, relayMTU)
	for {
		n, err := r.tuns[from].Read(buf)
		if err != nil {
			return // closed
		}
		if to := destination(buf[:n]); to != 0 {
			r.pass(from, to, append([]byte(nil), buf[:n]...))
		}
	}
}

// destination is the node that an IPv4 packet is for, 0 for none.
func destination(packet []byte) int {
	if len(packet) < 20 || packet[0]>>4 != 4 {
		return 0
	}
	to := netip.AddrFrom4([4]byte(packet[16:20])).String()
	for node := 1; node <= nodes; node++ {
		if to == nodeAddress(node) {
			return node
		}
	}
	return 0
}

// pass does to a packet what the weather wants.
func (r *relay) pass(from, to int, packet []byte) {
	w := r.weather.Load()
	for _, delay := range r.fate(w, from, to) {
		if r.flying[to].Add(1) > relayQueue {
			r.flying[to].Add(-1)
			r.note("too many")
			continue
		}
		arrive := func() {
			defer r.flying[to].Add(-1)
			select {
			case <-r.closed:
				return
			default:
			}
			if _, err := r.tuns[to].Write(packet); err != nil {
				r.note("not taken")
			}
		}
		if delay == 0 {
			arrive()
		} else {
			time.AfterFunc(delay, arrive)
		}
	}
}

// fate is after what delays a packet arrives: none where it is lost, two where it comes twice.
func (r *relay) fate(w *weather, from, to int) (delays []time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.rng.Float64() < w.lost {
		r.sent["lost"]++
		return nil
	}
	count := 1
	if r.rng.Float64() < w.twice {
		r.sent["twice"]++
		count = 2
	}
	now := time.Now()
	for range count {
		delay := w.least
		if w.most > w.least {
			delay += time.Duration(r.rng.Int64N(int64(w.most - w.least)))
		}
		if r.rng.Float64() < w.late {
			delay += w.lateBy
		}
		if delay > 0 {
			r.sent["delayed"]++
		}
		if arrival := now.Add(delay); arrival.Before(r.last[from][to]) {
			r.sent["overtaking"]++
		} else {
			r.last[from][to] = arrival
		}
		delays = append(delays, delay)
	}
	r.sent["carried"]++
	return delays
}

func (r *relay) note(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sent[what]++
}

// change sets the weather and returns what became of packets since the last change.
func (r *relay) change(w weather) map[string]int {
	r.weather.Store(&w)
	r.mu.Lock()
	defer r.mu.Unlock()
	before := maps.Clone(r.sent)
	clear(r.sent)
	return before
}

// TestRelay delays packets between all nodes, lets them overtake each other and arrive twice, while clients ask on all of
// them. Limits hold; the cluster takes writes meanwhile, and afterwards limits can be used to the full.
func TestRelay(t *testing.T) {
	r := needRelay(t)
	c := startCluster(t, sluice, "strict", false)
	if r.change(weather{})["carried"] == 0 {
		t.Fatal("the relay carries nothing: nodes reach each other by another way")
	}
	a := register(t, 1)
	buckets := ordinaryBuckets(t, a)
	for _, step := range []struct {
		name string
		weather
		must []string // has to happen to packets for this to prove anything
	}{
		{"delay of 2 to 4 ms", weather{least: 2 * time.Millisecond, most: 4 * time.Millisecond}, []string{"delayed"}},
		{"delay of 20 to 60 ms, some a quarter second, out of order",
			weather{least: 20 * time.Millisecond, most: 60 * time.Millisecond, late: 0.05, lateBy: 250 * time.Millisecond}, []string{"delayed", "overtaking"}},
		{"half of the packets twice, in any order", weather{most: 15 * time.Millisecond, twice: 0.5}, []string{"twice", "overtaking"}},
		{"all of it, and loss", weather{least: 5 * time.Millisecond, most: 30 * time.Millisecond, late: 0.03, lateBy: 100 * time.Millisecond, twice: 0.2, lost: 0.05},
			[]string{"delayed", "overtaking", "twice", "lost"}},
	} {
		t.Run(step.name, func(t *testing.T) {
			c.waitReady(t, 20*time.Second)
			s := startSpray(t, buckets...)
			r.change(step.weather)
			over := time.After(5 * time.Second)
			eventually(t, 15*time.Second, "a node takes a write", func() error {
				ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
				defer cancel()
				return a.write(ctx, 1, unique("meanwhile"))
			})
			<-over
			became := r.change(weather{})
			healed := time.Now()
			t.Logf("packets: %v", became)
			writeEverywhere(t, a, healed)
			completesAgain(t, healed)
			s.stop()
			report(t, s, bound{})
			for _, what := range step.must {
				if became[what] < 20 {
					t.Errorf("%d packets were %s: this proves nothing", became[what], what)
				}
			}
			c.audited(t, false)
		})
	}
}
