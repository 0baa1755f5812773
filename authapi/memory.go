package authapi

import (
	"bytes"
	"math"
	"os"
	"runtime/debug"
	"strconv"
)

// availableMemory is how many bytes this process may use: the least of GOMEMLIMIT, the control group's limit and the
// machine's memory, as far as each is known.
func availableMemory() int64 {
	least := debug.SetMemoryLimit(-1)
	if text, err := os.ReadFile("/sys/fs/cgroup/memory.max"); err == nil { // "max" where there is none
		if n, err := strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 64); err == nil && n > 0 {
			least = min(least, n)
		}
	}
	if text, err := os.ReadFile("/proc/meminfo"); err == nil {
		if fields := bytes.Fields(text); len(fields) > 1 && string(fields[0]) == "MemTotal:" {
			if n, err := strconv.ParseInt(string(fields[1]), 10, 64); err == nil && n > 0 && n < math.MaxInt64>>10 {
				least = min(least, n<<10)
			}
		}
	}
	return least
}
