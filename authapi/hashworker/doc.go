// Package hashworker checks and makes password hashes in a process of its own, at a low priority.
//
// A hash takes a core for some 50 ms and 20 MiB. In the node's own process it would run beside requests that are answered in
// microseconds, on threads of the same priority: on a machine without a core to spare these would wait for milliseconds,
// and the collector would run for the hashes' memory. Go cannot give some of a process's threads another priority:
// golang.org/x/crypto/argon2 computes in goroutines of its own, which run on any of them.
//
// Start with [New] in the node and [Serve] in the other process. Where that cannot run, or has ended, [Process] says so and the
// caller hashes by itself.
package hashworker
