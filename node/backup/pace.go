package backup

import "io"

// paceStep is how many bytes may wait in memory for the disk.
const paceStep = 4 << 20

// Paced is a file in the making that is synced as it grows. One that is synced at its end alone makes hundreds of megabytes
// wait for the disk, and on many file systems the small syncs of others, such as of Raft's log, wait for all of them.
type Paced struct {
	File interface { // an *os.File
		io.Writer
		Sync() error
	}
	waiting int
}

// Write implements io.Writer. The last bytes are the caller's to sync.
func (p *Paced) Write(data []byte) (int, error) {
	n, err := p.File.Write(data)
	if p.waiting += n; err == nil && p.waiting >= paceStep {
		p.waiting, err = 0, p.File.Sync()
	}
	return n, err
}
