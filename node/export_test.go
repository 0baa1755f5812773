package node

// Sealer opens the cluster's secrets, for tests that forge what only a node can make.
func (n *Node) Sealer() *Sealer { return n.sealer }
