package state

// Level is what this version can read of the log and of snapshots: every command and kind of record of that level and below. It grows by
// one with each release that adds any. A cluster has a level too, part of its state: the leader lets no command above it into the log, and
// raises it only once every member has said that it is of that level. So an older version beside this one finds nothing in the
// log that it would have to stop at.
const Level uint64 = 2

// LevelOf is the level of a command's number: the lowest at which versions know it. What is not listed is of the newest.
func LevelOf(command uint16) uint64 {
	if command <= TypePutSettings || command >= TypeStartSession && command <= TypeReplacePassword {
		return 1
	}
	return 2
}

// RaiseLevel raises the cluster's level; a lower or equal one changes nothing. Refused with CodeInvalid where it is above Level: a
// version that does not know a level cannot say what belongs to it.
type RaiseLevel struct {
	Level uint64 `cbor:"1,keyasint"`
}

// CommandType implements Command.
func (RaiseLevel) CommandType() uint16 { return TypeRaiseLevel }

// ClusterLevel is the record of the cluster's level. A state without it is of level 1.
type ClusterLevel struct {
	Level uint64 `cbor:"1,keyasint"`
}
