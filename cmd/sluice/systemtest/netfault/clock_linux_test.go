package netfault

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A node's clock is moved without touching the machine's: the program is built with a time.Now that adds an offset from a
// mapped file to the wall clock. Monotonic time stays honest, as when a real clock is stepped. Everything in the process
// sees it, the libraries too.

// variableClock names the file that holds the offset: nanoseconds, eight bytes in the machine's order.
const variableClock = "TEST_CLOCK_OFFSET"

const clockSource = `package time

import (
	"sync/atomic"
	"syscall"
	"unsafe"
)

var testClockOffset = openTestClock()

func openTestClock() *int64 {
	path, ok := syscall.Getenv("` + variableClock + `")
	if !ok {
		return new(int64)
	}
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		panic("time: open " + path + ": " + err.Error())
	}
	data, err := syscall.Mmap(fd, 0, 8, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		panic("time: map " + path + ": " + err.Error())
	}
	syscall.Close(fd)
	return (*int64)(unsafe.Pointer(&data[0]))
}

func testClockShift(sec int64, nsec int32) (int64, int32) {
	n := int64(nsec) + atomic.LoadInt64(testClockOffset)
	sec, n = sec+n/1e9, n%1e9
	if n < 0 {
		sec, n = sec-1, n+1e9
	}
	return sec, int32(n)
}
`

// buildShifted builds the program with that clock. The overlay is made from the toolchain's own time.go.
func buildShifted(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatalf("ask go for GOROOT: %v", err)
	}
	library := filepath.Join(strings.TrimSpace(string(out)), "src", "time")
	original, err := os.ReadFile(filepath.Join(library, "time.go"))
	if err != nil {
		t.Fatal(err)
	}
	const reading = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	before, after, ok := strings.Cut(string(original), reading)
	if !ok {
		t.Fatalf("%s does not read the clock as this test expects: look at time.Now and change clock_linux_test.go", library)
	}
	overlay := map[string]map[string]string{"Replace": {
		filepath.Join(library, "time.go"):       filepath.Join(dir, "time.go"),
		filepath.Join(library, "test_clock.go"): filepath.Join(dir, "clock.go"),
	}}
	list, err := json.Marshal(overlay)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "time.go"), []byte(before+reading+"\tsec, nsec = testClockShift(sec, nsec)\n"+after))
	write(t, filepath.Join(dir, "clock.go"), []byte(clockSource))
	write(t, filepath.Join(dir, "overlay.json"), list)
	program := filepath.Join(dir, "sluice")
	begun := time.Now()
	build := exec.Command("go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-o", program, "sluice/cmd/sluice")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build with a movable clock: %v\n%s", err, out)
	}
	t.Logf("built with a movable clock in %v", time.Since(begun).Round(time.Millisecond))
	return program
}

// clocks remembers how far ahead any node's clock has been.
type clocks struct{ highest time.Duration }

// move steps a node's clock. The file is mapped by the node, so it is written in place.
func (k *clocks) move(t *testing.T, c *cluster, node int, offset time.Duration) {
	t.Helper()
	k.highest = max(k.highest, offset)
	file, err := os.OpenFile(c.path(node, "clock"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteAt(binary.NativeEndian.AppendUint64(nil, uint64(offset)), 0); err != nil {
		t.Fatal(err)
	}
}

// TestMovedClock steps clocks under load: within what is allowed and far beyond, forwards and backwards, of the leader (which
// then hands over) and of a follower, and over a kill. Another node's clock is behind all the while.
func TestMovedClock(t *testing.T) {
	needCluster(t)
	c := startCluster(t, buildShifted(t), "strict", true)
	a := register(t, 1)
	const (
		allowed = 800 * time.Millisecond  // max_clock_skew is 1 s
		lasts   = 2500 * time.Millisecond // more than a window of the shortest kind
	)
	node := c.leader(t)
	buckets := ordinaryBuckets(t, a)
	s := startSpray(t, buckets...)
	var k clocks
	k.move(t, c, follower(node), -allowed/2)
	for _, step := range []struct {
		offset time.Duration
		kill   bool // and start again with the new clock
	}{
		{offset: allowed}, {offset: -allowed}, {offset: 4 * time.Second}, {offset: -4 * time.Second},
		{offset: allowed, kill: true}, {offset: -allowed, kill: true}, {offset: -time.Hour},
	} {
		k.move(t, c, node, step.offset)
		if step.kill {
			c.kill(t, node)
			c.start(t, node)
		}
		<-time.After(lasts)
		if step.offset.Abs() <= allowed {
			continue
		}
		took := eventually(t, 10*time.Second, "the node with the wrong clock is unready and does not lead", func() error {
			res, err := send(node, request{path: "/readyz?verbose"})
			if err != nil || res.status != http.StatusServiceUnavailable || !strings.Contains(string(res.body), "clock") {
				return fmt.Errorf("got %v, %v", res, err)
			}
			if c.leader(t) == node {
				return errors.New("it leads")
			}
			return nil
		})
		t.Logf("%v off: unready and no leader after %v", step.offset, (lasts + took).Round(time.Millisecond))
	}
	k.move(t, c, node, 0)
	k.move(t, c, follower(node), 0)
	healed := time.Now()
	writeEverywhere(t, a, healed)
	completesAgain(t, healed)
	s.stop()
	report(t, s, bound{ahead: func(time.Time) time.Duration { return k.highest }})
	c.audited(t, false)
}
