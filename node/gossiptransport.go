package node

import (
	"bytes"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
)

// Bounds of the gossip port. What a stranger sends is read, looked at and forgotten: a datagram at a time, and at most
// maxGossipStreams streams of at most maxGossipStream bytes, each for as long as memberlist gives it (Config.TCPTimeout).
const (
	// maxGossipDatagram is more than memberlist ever sends: what is longer is no packet of a node.
	maxGossipDatagram = 2048
	// maxGossipStream is many times the list of all members, which is the longest message of a stream. memberlist itself would
	// make room for 20 MiB as soon as somebody announces that much, and for any number of streams.
	maxGossipStream  = 256 << 10
	maxGossipStreams = 64
	// gossipReadBuffer is what the kernel keeps of datagrams while nobody reads; it may give less.
	gossipReadBuffer = 2 << 20
	// replayWindow is how many of the last packets are remembered, a power of two.
	replayWindow = 1 << 16
	// gossipCipher is the version of memberlist's cipher that nodes use, in a byte that it does not authenticate: a sealed packet whose
	// byte was changed to the older version is opened all the same, and what is then taken for padding ends the process.
	gossipCipher = 1
)

// gossipTransport is memberlist's way to the network, in place of its own: that one makes room for 64 KiB for each datagram, and
// has neither a bound on streams nor an eye for packets that come twice. It owns the two sockets and a goroutine for each.
type gossipTransport struct {
	tcp     *net.TCPListener
	udp     *net.UDPConn
	packets chan *memberlist.Packet
	streams chan net.Conn
	places  chan struct{} // one element for each stream that is open
	replays replayFilter
	label   atomic.Pointer[[]byte] // what packets and streams of the cluster begin with; nil before it is known
	closing chan struct{}
	once    sync.Once
	wg      sync.WaitGroup

	// oversized counts datagrams that no node sends, replayed those that came before, byte for byte.
	oversized, replayed atomic.Int64
	// cut counts streams that were ended since they were longer than any of a node, unanswered those that said something and got no
	// answer: memberlist answers whatever it understands.
	cut, unanswered atomic.Int64
	// altered counts packets under the cluster's label with another cipher than the nodes'.
	altered atomic.Int64
}

var _ memberlist.Transport = (*gossipTransport)(nil)

// openGossipTransport binds both protocols on one port. With port 0 the one that TCP got may be taken on UDP: another try.
func openGossipTransport(ip net.IP, port int) (*gossipTransport, error) {
	var problem error
	for range 10 {
		tcp, err := net.ListenTCP("tcp", &net.TCPAddr{IP: ip, Port: port})
		if err != nil {
			return nil, err
		}
		udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: ip, Port: tcp.Addr().(*net.TCPAddr).Port})
		if err == nil {
			t := &gossipTransport{
				tcp: tcp, udp: udp,
				packets: make(chan *memberlist.Packet), streams: make(chan net.Conn),
				places: make(chan struct{}, maxGossipStreams), closing: make(chan struct{}),
				replays: replayFilter{seed: maphash.MakeSeed()},
			}
			// The kernel gives what it allows; less only means that bursts are lost sooner.
			for size := gossipReadBuffer; size >= 64<<10; size /= 2 {
				if udp.SetReadBuffer(size) == nil {
					break
				}
			}
			t.wg.Go(t.readPackets)
			t.wg.Go(t.accept)
			return t, nil
		}
		problem = errors.Join(err, tcp.Close())
		if port != 0 {
			break
		}
	}
	return nil, problem
}

func (t *gossipTransport) port() int { return t.tcp.Addr().(*net.TCPAddr).Port }

// setLabel says what packets and streams of the cluster are labelled with.
func (t *gossipTransport) setLabel(label string) {
	header := append([]byte{244, byte(len(label))}, label...)
	t.label.Store(&header)
}

// otherCipher says whether a packet of the cluster is sealed by another cipher than the nodes'. What is not labelled as the cluster's
// memberlist looks at no further.
func (t *gossipTransport) otherCipher(packet []byte) bool {
	label := t.label.Load()
	if label == nil {
		return false
	}
	sealed, ok := bytes.CutPrefix(packet, *label)
	return ok && (len(sealed) == 0 || sealed[0] != gossipCipher)
}

// readPackets hands on what may be a packet of a node.
func (t *gossipTransport) readPackets() {
	buf := make([]byte, maxGossipDatagram+1)
	for {
		size, from, err := t.udp.ReadFromUDPAddrPort(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			select { // out of memory, mostly: wait rather than spin
			case <-time.After(5 * time.Millisecond):
			case <-t.closing:
				return
			}
			continue
		}
		switch {
		case size == 0 || size > maxGossipDatagram:
			t.oversized.Add(1)
			continue
		case t.otherCipher(buf[:size]):
			t.altered.Add(1)
			continue
		case t.replays.seen(buf[:size]):
			t.replayed.Add(1)
			continue
		}
		packet := &memberlist.Packet{
			Buf: slices.Clone(buf[:size]), Timestamp: time.Now(),
			From: net.UDPAddrFromAddrPort(netip.AddrPortFrom(from.Addr().Unmap(), from.Port())),
		}
		select {
		case t.packets <- packet:
		case <-t.closing:
			return
		}
	}
}

// accept hands on streams. The place is taken before the connection is: beyond the bound, strangers wait in the kernel's queue.
func (t *gossipTransport) accept() {
	for {
		select {
		case t.places <- struct{}{}:
		case <-t.closing:
			return
		}
		conn, err := t.tcp.Accept()
		if err != nil {
			<-t.places
			if errors.Is(err, net.ErrClosed) {
				return
			}
			select {
			case <-time.After(50 * time.Millisecond):
			case <-t.closing:
				return
			}
			continue
		}
		stream := &gossipStream{Conn: conn, transport: t, left: maxGossipStream, cipher: streamCipherAt, gone: func() { <-t.places }}
		if label := t.label.Load(); label != nil {
			stream.cipher += len(*label)
		}
		select {
		case t.streams <- stream:
		case <-t.closing:
			stream.Close()
			return
		}
	}
}

// streamCipherAt is where in a stream, behind its label, the cipher's version stands: after the kind of message and its length.
const streamCipherAt = 1 + 4

// gossipStream is a stream that ends where it is longer than any of a node, or sealed by another cipher: see gossipCipher.
type gossipStream struct {
	net.Conn
	transport *gossipTransport
	left      int // as answered, of the goroutine that has the stream
	cipher    int // how many bytes come before the cipher's version
	answered  bool
	gone      func() // gives its place back; nil where it has none
	once      sync.Once
}

func (s *gossipStream) Read(p []byte) (int, error) {
	if s.left <= 0 {
		s.transport.cut.Add(1)
		return 0, fmt.Errorf("%w: longer than any of a node", io.ErrUnexpectedEOF)
	}
	n, err := s.Conn.Read(p[:min(len(p), s.left)])
	if at := s.cipher - (maxGossipStream - s.left); at >= 0 && at < n && p[at] != gossipCipher {
		n, err = at, errOtherCipher
	}
	s.left -= n
	return n, err
}

func (s *gossipStream) Write(p []byte) (int, error) {
	s.answered = true
	return s.Conn.Write(p)
}

// errOtherCipher: a stream is not sealed as nodes seal theirs. It may be no node's at all.
var errOtherCipher = fmt.Errorf("%w: not sealed by the nodes' cipher", io.ErrUnexpectedEOF)

func (s *gossipStream) Close() error {
	if s.gone != nil {
		s.once.Do(func() {
			if s.left < maxGossipStream && !s.answered {
				s.transport.unanswered.Add(1)
			}
			s.gone()
		})
	}
	return s.Conn.Close()
}

// FinalAdvertiseAddr implements memberlist.Transport; the address was chosen before.
func (t *gossipTransport) FinalAdvertiseAddr(ip string, port int) (net.IP, int, error) {
	address := net.ParseIP(ip)
	if address == nil {
		return nil, 0, fmt.Errorf("advertised address %q is none", ip)
	}
	if v4 := address.To4(); v4 != nil {
		address = v4
	}
	return address, port, nil
}

// WriteTo implements memberlist.Transport.
func (t *gossipTransport) WriteTo(b []byte, address string) (time.Time, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		resolved, err := net.ResolveUDPAddr("udp", address)
		if err != nil {
			return time.Time{}, err
		}
		to = resolved.AddrPort()
	}
	_, err = t.udp.WriteToUDPAddrPort(b, netip.AddrPortFrom(to.Addr().Unmap(), to.Port()))
	return time.Now(), err
}

// PacketCh implements memberlist.Transport.
func (t *gossipTransport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// DialTimeout implements memberlist.Transport.
func (t *gossipTransport) DialTimeout(address string, timeout time.Duration) (net.Conn, error) {
	conn, err := net.DialTimeout("tcp", address, timeout)
	if err != nil {
		return nil, err
	}
	return &gossipStream{Conn: conn, transport: t, left: maxGossipStream, cipher: streamCipherAt}, nil // answers have no label
}

// StreamCh implements memberlist.Transport.
func (t *gossipTransport) StreamCh() <-chan net.Conn { return t.streams }

// Shutdown implements memberlist.Transport. Nothing that was read waits for anybody to take it.
func (t *gossipTransport) Shutdown() error {
	var err error
	t.once.Do(func() {
		close(t.closing)
		err = errors.Join(t.tcp.Close(), t.udp.Close())
	})
	t.wg.Wait()
	return err
}

// strangeLines counts what memberlist drops since who made it does not hold the cluster's keys: it says so in its log only. Tests
// send such packets and streams, so that another wording is noticed.
type strangeLines struct {
	next             io.Writer
	packets, streams *atomic.Int64
	refused          func(what, line string) // tells operators, once in a while
}

// strangeMarks are beginnings of memberlist's lines. Streams that get no answer are counted as such.
var strangeMarks = []struct {
	begins, what string
	unanswered   bool
}{
	{"memberlist: Decrypt packet failed", "packet", false},
	{"memberlist: discarding packet with unacceptable label", "packet", false},
	{"memberlist: cannot decode label; packet", "packet", false},
	{"memberlist: label header cannot be empty when present ", "packet", false},
	{"memberlist: discarding stream with unacceptable label", "stream", true},
	{"memberlist: failed to receive and remove the stream label header", "stream", true},
	{"memberlist: failed to receive: ", "stream", false},
}

func (s *strangeLines) Write(p []byte) (int, error) {
	line := strings.TrimPrefix(string(p), "[ERR] ")
	for _, mark := range strangeMarks {
		if !strings.HasPrefix(line, mark.begins) {
			continue
		}
		switch {
		case mark.unanswered:
		case mark.what == "stream":
			s.streams.Add(1)
		default:
			s.packets.Add(1)
		}
		s.refused(mark.what, line)
		return len(p), nil
	}
	return s.next.Write(p)
}
