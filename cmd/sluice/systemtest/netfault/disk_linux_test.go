package netfault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	// diskSize is what each node has; lowMark and criticalMark are small enough for it. The database may write more at a time than that, but
	// hardly does on a cluster this young.
	diskSize     = 128 << 20
	storageTable = `
[storage]
low_free_bytes = 25165824
low_free_percent = 0
critical_free_bytes = 12582912
critical_free_percent = 0
`
	// diskFullWithin is how long writes may stand still when the leader's disk is full.
	diskFullWithin = 10 * time.Second
)

// written is what was acknowledged: ids of organizations.
type written struct {
	mu   sync.Mutex
	ids  []string
	last time.Time // of the newest one
}

// write makes an organization and notes it once that is acknowledged.
func (w *written) write(ctx context.Context, a account, node int) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	id := unique("disk")
	res, err := sendWithin(ctx, node, request{
		method: http.MethodPost, path: "/api/v1/organizations", token: a.token, address: newAddress(),
		body: map[string]any{"name": id}, header: map[string]string{"Idempotency-Key": id},
	})
	if err := expect(http.StatusCreated)(res, err); err != nil {
		return err
	}
	var made struct{ ID string }
	if err := json.Unmarshal(res.body, &made); err != nil || made.ID == "" {
		return fmt.Errorf("an organization without an id: %v, %w", res, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ids, w.last = append(w.ids, made.ID), time.Now()
	return nil
}

func (w *written) acknowledged() (ids []string, last time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.ids...), w.last
}

// fillDisk leaves nothing of a node's disk and returns what undoes that.
func fillDisk(t *testing.T, dir string) (undo func()) {
	t.Helper()
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 1<<20)
	for err == nil {
		_, err = f.Write(block)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("fill the disk: %v", err)
	}
	f.Close()
	return func() {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
}

// readiness is what a node's admin listener says at length.
func readiness(node int) (response, error) {
	res, err := client.Get("http://" + net.JoinHostPort(nodeAddress(node), "7102") + "/readyz?verbose")
	if err != nil {
		return response{}, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return response{res.StatusCode, res.Header, body}, err
}

// TestDiskFull fills the leader's disk to the last byte while clients write: writes go on through another leader, nothing that was acknowledged is
// lost, the node lives on and says what is wrong, and it is as before once there is space.
func TestDiskFull(t *testing.T) {
	needCluster(t)
	c := prepareCluster(t, sluice, "strict", false)
	for node := 1; node <= nodes; node++ {
		dir := filepath.Join(c.dir, fmt.Sprintf("node%d", node))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", diskSize)); err != nil {
			t.Fatalf("mount a disk: %v", err)
		}
		t.Cleanup(func() {
			// The processes have mounts of their own of it, which go with them.
			if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
				t.Errorf("unmount: %v", err)
			}
		})
		config, err := os.ReadFile(c.path(node, "toml"))
		if err != nil {
			t.Fatal(err)
		}
		write(t, c.path(node, "toml"), append(config, storageTable...))
	}
	c.startAll(t)
	a := register(t, 1)
	full := c.leader(t)
	ctx, cancel := context.WithCancel(context.Background())
	var w written
	var writers sync.WaitGroup
	for _, node := range others(full) {
		writers.Go(func() {
			tick := time.NewTicker(25 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
					// What fails is tried again as another one; how long that goes on is looked at below.
					_ = w.write(ctx, a, node)
				case <-ctx.Done():
					return
				}
			}
		})
	}
	stop := sync.OnceFunc(func() { cancel(); writers.Wait() })
	t.Cleanup(stop)
	eventually(t, 10*time.Second, "clients write", func() error {
		if ids, _ := w.acknowledged(); len(ids) < 20 {
			return fmt.Errorf("%d acknowledged", len(ids))
		}
		return nil
	})

	undo := fillDisk(t, filepath.Join(c.dir, fmt.Sprintf("node%d", full)))
	filled := time.Now()
	var leader int
	took := eventually(t, diskFullWithin, "another node leads", func() error {
		for _, node := range others(full) {
			res, err := send(node, request{path: "/api/v1/health", address: newAddress()})
			if err == nil && strings.Contains(strings.ReplaceAll(string(res.body), " ", ""), `"leader":true`) {
				leader = node
				return nil
			}
		}
		return errors.New("nobody says so")
	})
	// A write that began after that.
	if err := w.write(ctx, a, leader); err != nil {
		t.Errorf("a write through the new leader: %v", err)
	}
	eventually(t, time.Until(filled.Add(diskFullWithin)), "writes go on", func() error {
		if _, last := w.acknowledged(); last.Before(filled.Add(took)) {
			return fmt.Errorf("the last one %v after the disk was full", last.Sub(filled))
		}
		return nil
	})
	t.Logf("node%d leads %v after node%d's disk was full", leader, took.Round(time.Millisecond), full)
	eventually(t, 5*time.Second, "the full node says so", func() error {
		res, err := readiness(full)
		if err := expect(http.StatusServiceUnavailable)(res, err); err != nil {
			return err
		}
		if !strings.Contains(string(res.body), "this node takes no entries") {
			return fmt.Errorf("readiness: %v", res)
		}
		return nil
	})
	// Under load for some more, while nothing is to be had.
	eventually(t, 10*time.Second, "clients write more", func() error {
		if _, last := w.acknowledged(); last.Before(filled.Add(took + 2*time.Second)) {
			return errors.New("not yet")
		}
		return nil
	})
	select {
	case <-c.running[full].done:
		t.Fatalf("node%d died of its full disk", full)
	default:
	}

	undo()
	c.waitReady(t, 15*time.Second)
	stop()
	ids, _ := w.acknowledged()
	for node := 1; node <= nodes; node++ {
		missing := 0
		eventually(t, 10*time.Second, "a node has all that was acknowledged", func() error {
			for ; missing < len(ids); missing++ {
				res, err := send(node, request{path: "/api/v1/organizations/" + ids[missing], token: a.token, address: newAddress()})
				if err := expect(http.StatusOK)(res, err); err != nil {
					return fmt.Errorf("node%d, organization %d of %d: %w", node, missing+1, len(ids), err)
				}
			}
			return nil
		})
	}
	t.Logf("%d writes acknowledged, all on every node", len(ids))
	writeEverywhere(t, a, time.Now())
	c.audited(t, false)
}
