package node

// Sealer opens the cluster's secrets, for tests that forge what only a node can make.
func (n *Node) Sealer() *Sealer { return n.sealer }

// RestoreWithin is how long the restore of a backup of so many bytes may take.
var RestoreWithin = restoreWithin
