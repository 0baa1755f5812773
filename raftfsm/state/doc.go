// Package state is the vocabulary of Sluice's replicated state: the entities that every node holds, the commands that
// change them, and the results of those commands. It is pure data over the standard library and a deterministic CBOR
// codec: no clock, no randomness, no I/O.
//
// Start with [Command] (what may be proposed) and [Encode]/[Decode] (its bytes in the Raft log). The rules that a
// command is applied by live in package raftfsm; what this package guarantees is that the same value gives the same
// bytes on every node and that bytes written by an older version stay readable.
//
// Conventions. Times are Unix milliseconds in UTC (0: unset), decided by the proposer. Ids are "<type>_<ULID in lower
// case>". Hashes are SHA-256 (32 bytes). A field named Sealed… holds ciphertext under the cluster's key for secrets at
// rest; nothing in this package ever holds a secret in the clear. CBOR map keys are the integers in the tags: they are
// on disk, so a number is never reused and never changes its meaning.
package state
