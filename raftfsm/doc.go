// Package raftfsm is Sluice's replicated state: the state machine that Raft's committed entries drive, kept in Badger,
// with snapshots and read views. The commands themselves, their bytes and their documented rules are in package state.
//
// Start with [Open], which gives a [FSM] for raft.NewRaft, and [FSM.View] for reads.
//
// Guarantees. Applying is deterministic: no clock, randomness, environment or map order reaches the state, so replicas
// that applied the same entries hold the same bytes ([FSM.Digest]). The applied index is written in the transaction of
// the changes, so a restart applies nothing twice. A refusal is a Result; an error of the storage, an entry that this
// version does not know, or a failed restore ends the process through Config.Fatal, because going on would make
// replicas differ. A restore builds a complete new database and swaps it in; readers see the old state or the new one.
//
// The package knows nothing of HTTP, gossip or transports, and reads no clock. DESIGN.md has the key layout and the
// reasons.
package raftfsm
