// Package limiter decides whether a request may go on, against limits that hold over the whole cluster and are decided
// on the node that took the request.
//
// Start with [Open] and [Limiter.Take]. Every node holds a share of each limit and spends only that; shares move
// between nodes by messages, and never add up to more than the limit. So no message is lost, repeated or late enough
// to admit one request too many; what a failing network costs is at most a share that stands idle until its window
// ends. The rules, and why each is needed, are in DESIGN.md beside this file.
//
// The ledger inside (ledger.go and what it uses) is deterministic: it reads no clock and no randomness, starts no
// goroutine and opens no socket; time and packets come in as arguments and packets go out as values. Limiter puts the
// clock, the waiting and the files around it.
//
// The package knows nothing of consensus or HTTP: the caller brings the replicated roster with [Limiter.SetState], and
// packets with [Limiter.Receive] and [Transport].
package limiter
