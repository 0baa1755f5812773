package node

// Sealer opens the cluster's secrets, for tests that forge what only a node can make.
func (n *Node) Sealer() *Sealer { return n.sealer }

// RestoreWithin is how long the restore of a backup of so many bytes may take.
var RestoreWithin = restoreWithin

// Files are how many file descriptors the process may have, as the node found it, and how many it can come to need.
func (n *Node) Files() (limit, needed uint64) { return n.files.limit, n.files.needed }
