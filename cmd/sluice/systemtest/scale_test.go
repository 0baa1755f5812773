package systemtest

import (
	"bufio"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

var (
	scaleAccounts = flag.Int("accounts", 4000, "how many users, and as many keys, TestScale_Accounts imports; from 1,000,000 on it holds the promises against what it measures")
	scaleNodes    = flag.Int("accounts-nodes", 1, "how many nodes TestScale_Accounts has")
	scaleDir      = flag.String("accounts-dir", "", "where TestScale_Accounts keeps its nodes and files, on a disk as a node has one; a temporary directory unless given")
)

// What is promised of a million users and a million keys (docs/capacity.md).
const (
	promisedAccounts = 1_000_000
	promisedRows     = 20_000 // a second
	promisedMemory   = 1536 << 20
	promisedSnapshot = time.Minute
	promisedStall    = 200 * time.Millisecond
	promisedStart    = 5 * time.Second
)

// TestScale_Accounts imports many users and keys, and goes through what an operator does with them: it takes snapshots and
// a backup while reads and writes go on, starts the nodes again, and brings the backup back elsewhere. It prints what
// that took. The command that shows the promises, on a machine with nothing else to do:
//
//	go test -count=1 -timeout 30m -run TestScale_Accounts ./cmd/sluice/systemtest -v -accounts 1000000
func TestScale_Accounts(t *testing.T) {
	t.Parallel()
	n, dir := *scaleAccounts, *scaleDir
	if dir == "" {
		dir = t.TempDir()
	}
	secret, _, err := offline(t, "secret", "new")
	if err != nil {
		t.Fatal(err)
	}
	settings := append([]string{
		"SLUICE_SECRETS__KEY=" + strings.TrimSpace(secret), "SLUICE_LIMITS__ANONYMOUS__LIMIT=1000000",
		`SLUICE_AUTH__IMPORTED_KEY_PREFIXES=["moved_"]`,
	}, wide...)
	s := &scaleRun{t: t, n: n, strict: n >= promisedAccounts}
	lines := filepath.Join(dir, "accounts.ndjson")
	if err := writeAccounts(lines, n); err != nil {
		t.Fatal(err)
	}
	o := options{nodes: *scaleNodes, dir: filepath.Join(dir, "nodes"), variables: settings}
	s.adopt(startCluster(t, o))

	s.phase("import", func() {
		begun := time.Now()
		if stdout, stderr, err := s.c.command(t, *scaleNodes, "import", lines); err != nil {
			t.Fatalf("import: %v\n%s%s", err, stdout, stderr)
		}
		rate := float64(2*n) / time.Since(begun).Seconds()
		t.Logf("imported %d users and %d keys, %.0f rows a second", n, n, rate)
		if s.strict && rate < promisedRows {
			t.Errorf("%.0f rows a second, want %d", rate, promisedRows)
		}
	})
	before := s.c.contents(t, 1)
	if before.Sections[0].Records != uint64(n) {
		t.Errorf("%d users, want %d", before.Sections[0].Records, n)
	}
	maker := register(t, s.c.urls[0])

	backup := filepath.Join(dir, "all.backup")
	s.phase("backup", func() {
		s.underLoad(maker, promisedSnapshot, func() {
			begun := time.Now()
			if stdout, stderr, err := s.c.command(t, *scaleNodes, "backup", backup); err != nil {
				t.Fatalf("backup: %v\n%s%s", err, stdout, stderr)
			}
			s.within("a backup", time.Since(begun), promisedSnapshot)
		})
	})

	s.phase("restart", func() { s.restart(o) })
	// Raft's own snapshot, soon, but not before there was a time without one.
	interval := "1s"
	if s.strict {
		interval = "8s"
	}
	o.variables = append(o.variables, "SLUICE_RAFT__SNAPSHOT_THRESHOLD=16", "SLUICE_RAFT__SNAPSHOT_INTERVAL="+interval)
	s.phase("snapshot", func() {
		s.restart(o)
		s.underLoad(maker, promisedSnapshot, func() { s.within("a snapshot of Raft's", s.raftSnapshot(), promisedSnapshot) })
	})
	s.phase("start after a kill", func() {
		for node := range *scaleNodes {
			s.c.kill(t, node+1)
		}
		begun := time.Now()
		for node := range *scaleNodes {
			s.pids[node] = s.c.startNode(t, node+1).Process.Pid
		}
		for node := range *scaleNodes {
			s.c.waitReadyz(t, node+1, time.Minute)
		}
		s.within("the start after a kill", time.Since(begun), promisedStart)
	})
	want := s.c.contents(t, 1)

	s.phase("restore", func() {
		after := filepath.Join(dir, "later.backup")
		if stdout, stderr, err := s.c.command(t, 1, "backup", after); err != nil {
			t.Fatalf("backup: %v\n%s%s", err, stdout, stderr)
		}
		into := startCluster(t, options{nodes: 1, dir: filepath.Join(dir, "into"), variables: settings})
		begun := time.Now()
		if stdout, stderr, err := into.command(t, 1, "restore", after); err != nil {
			t.Fatalf("restore: %v\n%s%s", err, stdout, stderr)
		}
		t.Logf("restored into a new cluster in %v", time.Since(begun).Round(time.Millisecond))
		if got := into.contents(t, 1); got.ContentHash != want.ContentHash {
			t.Errorf("content hash %s after the restore, want %s", got.ContentHash, want.ContentHash)
		}
		memory := memoryOf(t, into.pid(t, 1))
		t.Logf("restored into: %v", memory)
	})
}

// writeAccounts writes an import of n users, and a key of each.
func writeAccounts(path string, n int) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(file, 1<<20)
	for i := range n {
		salt := sha256.Sum256(fmt.Appendf(nil, "salt %d", i))
		sum := sha256.Sum256(fmt.Appendf(nil, "hash %d", i))
		text := base64.RawStdEncoding
		fmt.Fprintf(w, `{"type":"user","username":"person%d","email":"person%d@example.com","password_hash":"$argon2id$v=19$m=19456,t=2,p=1$%s$%s","created_at":"2024-05-06T07:08:09Z"}`+"\n",
			i, i, text.EncodeToString(salt[:16]), text.EncodeToString(sum[:]))
	}
	for i := range n {
		sum := sha256.Sum256([]byte(movedKey(i)))
		fmt.Fprintf(w, `{"type":"api_key","name":"service","owner":"person%d","sha256":%q,"prefix":"moved_","scopes":["triggers:read","events:read"]}`+"\n", i, hex.EncodeToString(sum[:]))
	}
	return errors.Join(w.Flush(), file.Close())
}

// movedKey is the text of an imported key.
func movedKey(i int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "key %d", i))
	return "moved_" + hex.EncodeToString(sum[:16])
}

// scaleRun is one run of TestScale_Accounts.
type scaleRun struct {
	t      *testing.T
	c      *cluster
	pids   []int // of the nodes
	n      int
	strict bool // the figures are held against the promises
}

func (s *scaleRun) adopt(c *cluster) {
	s.t.Helper()
	s.c, s.pids = c, make([]int, len(c.urls))
	for i := range s.pids {
		s.pids[i] = c.pid(s.t, i+1)
	}
}

func (s *scaleRun) within(what string, took, promised time.Duration) {
	s.t.Logf("%s took %v", what, took.Round(time.Millisecond))
	if s.strict && took > promised {
		s.t.Errorf("%s took %v, want %v at most", what, took, promised)
	}
}

// phase runs a step and prints what it cost: each node's processor time and memory, what share of the machine was to be had,
// and the disk.
func (s *scaleRun) phase(name string, step func()) {
	s.t.Helper()
	begun, others := time.Now(), machineTime(s.t)
	pids, spent := slices.Clone(s.pids), make([]time.Duration, len(s.pids))
	for i, pid := range pids {
		spent[i] = cpuOf(s.t, pid)
	}
	step()
	took := time.Since(begun)
	busy, total := machineTime(s.t).since(others)
	for i, pid := range s.pids {
		if pid != pids[i] {
			spent[i] = 0
		}
		memory := memoryOf(s.t, pid)
		s.t.Logf("%s: node%d used %v of processor time in %v; %v; disk %s", name, i+1, (cpuOf(s.t, pid) - spent[i]).Round(10*time.Millisecond), took.Round(time.Millisecond), memory,
			mebibytes(diskOf(s.t, filepath.Join(s.c.dir, fmt.Sprintf("node%d", i+1)))))
		if s.strict && memory.resident > promisedMemory {
			s.t.Errorf("%s: node%d holds %s of memory, want %s at most", name, i+1, mebibytes(memory.resident), mebibytes(promisedMemory))
		}
	}
	s.t.Logf("%s: the machine's processors were busy %.0f %% of the time, with all that ran on it", name, 100*busy.Seconds()/total.Seconds())
}

// restart ends the nodes as an operator would and starts them again.
func (s *scaleRun) restart(o options) {
	s.t.Helper()
	o.port = s.c.port
	s.c.stop()
	s.adopt(startCluster(s.t, o))
	s.within("the start", s.c.took, promisedStart)
}

// underLoad verifies keys and makes keys while work runs, and says how long the longest of each took, beside that of a
// time before the work.
func (s *scaleRun) underLoad(maker account, patience time.Duration, work func()) {
	s.t.Helper()
	var working, stop atomic.Bool
	var reads, writes stalls
	var clients sync.WaitGroup
	client := func(kind *stalls, next func(i int) (request, int)) {
		clients.Go(func() {
			for i := 0; !stop.Load(); i++ {
				r, want := next(i)
				begun, during := time.Now(), working.Load()
				res, err := send(s.c.urls[i%len(s.c.urls)], r)
				if err == nil && res.status != want {
					err = fmt.Errorf("got %v, want %d", res, want)
				}
				kind.add(during || working.Load(), time.Since(begun), err)
			}
		})
	}
	for w := range 2 {
		client(&reads, func(i int) (request, int) {
			return request{path: "/api/v1/auth/verify", key: movedKey((i*7919 + w*104729) % s.n)}, http.StatusOK
		})
		client(&writes, func(i int) (request, int) {
			return request{method: "POST", path: "/api/v1/api-keys", token: maker.token, address: maker.address,
				body: map[string]any{"name": fmt.Sprint("k", w, i), "organization_id": maker.organization, "scopes": []string{"triggers:read"}}}, http.StatusCreated
		})
	}
	defer func() { stop.Store(true); clients.Wait() }()
	<-time.After(min(5*time.Second, time.Duration(s.n)*50*time.Microsecond)) // the time before
	working.Store(true)
	work()
	working.Store(false)
	stop.Store(true)
	clients.Wait()
	for _, kind := range []struct {
		name string
		*stalls
	}{{"reads", &reads}, {"writes", &writes}} {
		s.t.Logf("%s: %d before, the longest %v; %d meanwhile, the longest %v", kind.name, kind.count[0], kind.longest[0], kind.count[1], kind.longest[1])
		if kind.err != nil {
			s.t.Errorf("%s: %v", kind.name, kind.err)
		}
		if s.strict && kind.longest[1] > promisedStall {
			s.t.Errorf("%s: one took %v, want %v at most", kind.name, kind.longest[1], promisedStall)
		}
	}
}

// stalls are the longest times of requests, before something and while it happens.
type stalls struct {
	mu      sync.Mutex
	count   [2]int
	longest [2]time.Duration
	err     error
}

func (s *stalls) add(during bool, took time.Duration, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := 0
	if during {
		i = 1
	}
	s.count[i]++
	s.longest[i] = max(s.longest[i], took)
	if s.err == nil {
		s.err = err
	}
}

// raftSnapshot waits until the first node has taken a snapshot and returns how long that took. The directory bears another
// name until it is whole.
func (s *scaleRun) raftSnapshot() time.Duration {
	s.t.Helper()
	dir := filepath.Join(s.c.dir, "node1", "raft", "snapshots")
	var begun time.Time
	var took time.Duration
	eventually(s.t, 2*promisedSnapshot, "Raft has taken a snapshot", func() error {
		open, err := filepath.Glob(filepath.Join(dir, "*.tmp"))
		if err != nil {
			return err
		}
		switch {
		case begun.IsZero() && len(open) == 0:
			return errors.New("none has begun")
		case begun.IsZero():
			begun = time.Now()
			return errors.New("it has begun")
		case len(open) > 0:
			return errors.New("it is not done")
		}
		took = time.Since(begun)
		return nil
	})
	return took
}

// memory is what a process holds of it, in bytes.
type memory struct{ resident, own, mapped, peak int64 }

func (m memory) String() string {
	return fmt.Sprintf("resident %s (own %s, pages of files %s), at most %s", mebibytes(m.resident), mebibytes(m.own), mebibytes(m.mapped), mebibytes(m.peak))
}

func mebibytes(n int64) string { return fmt.Sprintf("%d MiB", n>>20) }

func memoryOf(t *testing.T, pid int) (m memory) {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) != 3 || fields[2] != "kB" {
			continue
		}
		kib, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		switch fields[0] {
		case "VmRSS:":
			m.resident = kib << 10
		case "RssAnon:":
			m.own = kib << 10
		case "RssFile:":
			m.mapped = kib << 10
		case "VmHWM:":
			m.peak = kib << 10
		}
	}
	return m
}

// ticks is the unit of times in /proc: USER_HZ is 100 wherever Linux runs Go.
const ticks = 10 * time.Millisecond

// cpuOf is the processor time that a process has used.
func cpuOf(t *testing.T, pid int) time.Duration {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(data), ") ")
	var used time.Duration
	for _, field := range strings.Fields(after)[11:13] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		used += time.Duration(n) * ticks
	}
	return used
}

// cpuTimes are those of all processors since the machine's start.
type cpuTimes struct{ busy, total time.Duration }

func (c cpuTimes) since(before cpuTimes) (busy, total time.Duration) {
	return c.busy - before.busy, max(c.total-before.total, ticks)
}

func machineTime(t *testing.T) (c cpuTimes) {
	t.Helper()
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(data), "\n")
	for i, field := range strings.Fields(first)[1:9] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		c.total += time.Duration(n) * ticks
		if i != 3 && i != 4 { // idle, and waiting for a disk
			c.busy += time.Duration(n) * ticks
		}
	}
	return c
}

// diskOf is how much a directory takes on the disk, holes left out.
func diskOf(t *testing.T, dir string) (bytes int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // gone meanwhile
			}
			return err
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			bytes += stat.Blocks * 512
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return bytes
}
