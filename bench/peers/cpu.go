package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// usage is what processes have used so far.
type usage struct {
	cpu      time.Duration
	resident int64 // bytes
}

// tick is the unit of CPU times in /proc, which is the same on all of Linux's architectures that Go knows.
const tick = 10 * time.Millisecond

// usage is that of the server's processes with all their descendants; zero where the system has no /proc.
func (s *server) usage() usage {
	type entry struct {
		parent int
		used   usage
	}
	all := map[int]entry{}
	paths, _ := filepath.Glob("/proc/[0-9]*/stat") // its only error is about the pattern
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended meanwhile
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		// The name, in parentheses, may hold anything.
		fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
		if len(fields) < 22 {
			continue
		}
		number := func(i int) int64 {
			n, _ := strconv.ParseInt(string(fields[i-3]), 10, 64) // numbered as in proc_pid_stat(5)
			return n
		}
		all[pid] = entry{int(number(4)), usage{time.Duration(number(14)+number(15)) * tick, number(24) * int64(os.Getpagesize())}}
	}
	var sum usage
	for pid, e := range all {
		for at := pid; at > 1; at = all[at].parent {
			if s.started(at) {
				sum.cpu += e.used.cpu
				sum.resident += e.used.resident
				break
			}
		}
	}
	return sum
}

// started says whether a process is one of the server's own.
func (s *server) started(pid int) bool {
	for _, p := range s.processes {
		if p.cmd.Process.Pid == pid {
			return true
		}
	}
	return s.behind != nil && s.behind.started(pid)
}

// ownCPU is what this program has used.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
