package node

import (
	"sluice/authapi"
	"sluice/authapi/hashworker"
)

// startHashing has passwords hashed by a process beside this one where the program offers one (WithHashWorker).
func (n *Node) startHashing(config *authapi.Config) {
	if n.opts.hashWorker == "" {
		return
	}
	n.hashing = hashworker.New(n.opts.hashWorker, n.opts.hashWorkerArgs, authapi.HashesAtOnce(config.Auth.Argon2), n.log.With("component", "passwords"))
	config.HashWorker = n.hashing
}
