package raftfsm

// Storage is how much room the state takes.
type Storage struct {
	// LSMBytes are of the tables on disk, ValueLogBytes of the value log; Badger looks once a minute.
	LSMBytes, ValueLogBytes int64
	Tables                  int
}

// Storage tells of the present database; nothing once the FSM is closed.
func (f *FSM) Storage() Storage {
	h, err := f.acquire()
	if err != nil {
		return Storage{}
	}
	defer h.release()
	var s Storage
	s.LSMBytes, s.ValueLogBytes = h.db.Size()
	for _, level := range h.db.Levels() {
		s.Tables += level.NumTables
	}
	return s
}
