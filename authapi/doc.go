// Package authapi is the HTTP surface of a node: accounts, sessions, API keys, the forward-auth check, the gateway to
// configured upstreams, and the documents that describe them.
//
// Start with [New], which takes everything a [Server] needs as a [Config], and [Server.Serve]. What the handlers read
// and change of the cluster is behind the interfaces in deps.go ([State], [Cluster], [Limits], [Sealer]); package
// authtest has fakes of all four.
//
// Guarantees: every answer is well-formed and carries a request id, and all but those of /livez and /readyz the limit
// headers, whatever went wrong; an error says nothing of the inside; a caller whose credential this node has seen lately
// is checked without a disk, a lock or an allocation; nothing of a request is kept after its handler has returned.
// DESIGN.md says why things are as they are.
//
// It does not replicate, count or listen by itself: it knows neither Raft nor gossip, and serves the listeners that it
// is given.
package authapi
