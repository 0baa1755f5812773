package authapi

import (
	"net"

	"golang.org/x/sys/unix"
)

const hangupNoticed = true

// hungUp says whether the other end has closed the connection, whatever of what it sent has not been read yet. A connection that
// is closed here counts too.
func hungUp(tcp *net.TCPConn) bool {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return true
	}
	var gone bool
	err = raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(fds, 0)
		gone = err == nil && n > 0 && fds[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
	})
	return gone || err != nil
}
