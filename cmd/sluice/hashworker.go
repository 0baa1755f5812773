package main

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"sluice/authapi/hashworker"
)

// hashWorkerCommand is the process in which a node hashes passwords. It ends with its standard input.
type hashWorkerCommand struct{}

// hashWorkerName is the command's name, by which a node starts it.
const hashWorkerName = "hash-worker"

// Run serves until the node has gone.
func (hashWorkerCommand) Run(env environment) error {
	// What ends the node is sent to its whole group or terminal; the node still finishes what was begun.
	signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	if err := hashworker.Yield(); err != nil {
		fmt.Fprintf(env.stderr, "sluice: %v\n", err) // it works all the same
	}
	return hashworker.Serve(env.stdin, env.stdout)
}

// hashWorkerOf is how this program starts it; "" where it cannot tell where it is. On Linux it is the program that runs, also
// where another has taken its place on the disk.
func hashWorkerOf() (path string, args []string) {
	args = []string{"sluice", hashWorkerName}
	if runtime.GOOS == "linux" {
		return "/proc/self/exe", args
	}
	path, err := os.Executable()
	if err != nil {
		return "", nil
	}
	return path, args
}
