// Package node runs one Sluice node: it reads the configuration, opens the data directory, forms or finds the cluster,
// replicates the state through Raft, gossips the limiter's packets and serves the public API.
//
// Start with [Open], which returns a running [Node], and [Node.Run], which waits for the end. [LoadConfig] reads what
// Open takes. The order of start and stop, with the reasons, stands at the top of node.go; DESIGN.md says why the parts
// are as they are.
//
// Guarantees. Two processes never share a data directory. A cluster is formed once, by all initial members together,
// never by a count or a time-out. A node that lost its log but not its identity refuses to start. Every connection
// between nodes is mutually authenticated under the cluster secret before a byte of it is believed.
//
// The package knows no HTTP payload of the public API: package authapi does, over the small interfaces that this
// package implements.
package node
