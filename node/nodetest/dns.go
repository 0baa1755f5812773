package nodetest

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// DNS is a name server on loopback, whose records a test changes as it goes. Safe for concurrent use.
type DNS struct {
	mu   sync.Mutex
	ips  map[string][]netip.Addr
	srvs map[string][]SRV
	asks map[string]int
	conn net.PacketConn
}

// SRV is one target of an SRV record.
type SRV struct {
	Target string // a name
	Port   uint16
}

// NewDNS starts a name server without a record.
func NewDNS(t testing.TB) *DNS {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("listen for DNS: %v", err)
	}
	d := &DNS{ips: make(map[string][]netip.Addr), srvs: make(map[string][]SRV), asks: make(map[string]int), conn: conn}
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.serve()
	}()
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
	return d
}

// Resolver asks this server alone.
func (d *DNS) Resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, StrictErrors: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", d.conn.LocalAddr().String())
	}}
}

func canonical(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) + "." }

// SetIPs makes a name lead to addresses, none for a name that does not exist.
func (d *DNS) SetIPs(name string, hosts ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var ips []netip.Addr
	for _, host := range hosts {
		ips = append(ips, netip.MustParseAddr(host))
	}
	d.ips[canonical(name)] = ips
}

// SetSRV makes a service lead to targets.
func (d *DNS) SetSRV(name string, targets ...SRV) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.srvs[canonical(name)] = targets
}

// Asked is how often somebody has asked for a name.
func (d *DNS) Asked(name string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asks[canonical(name)]
}

func (d *DNS) serve() {
	buf := make([]byte, 1500)
	for {
		n, from, err := d.conn.ReadFrom(buf)
		if err != nil {
			return
		}
		if answer, ok := d.answer(buf[:n]); ok {
			// A lost answer is asked for again.
			_, _ = d.conn.WriteTo(answer, from)
		}
	}
}

// answer is that to one question; what is none gets none.
func (d *DNS) answer(query []byte) ([]byte, bool) {
	var p dnsmessage.Parser
	header, err := p.Start(query)
	if err != nil {
		return nil, false
	}
	q, err := p.Question()
	if err != nil {
		return nil, false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	name := canonical(q.Name.String())
	d.asks[name]++
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: header.ID, Response: true, Authoritative: true, RecursionAvailable: true},
		Questions: []dnsmessage.Question{q},
	}
	add := func(body dnsmessage.ResourceBody) {
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, Type: q.Type, TTL: 1}, Body: body})
	}
	for _, ip := range d.ips[name] {
		switch {
		case q.Type == dnsmessage.TypeA && ip.Is4():
			add(&dnsmessage.AResource{A: ip.As4()})
		case q.Type == dnsmessage.TypeAAAA && ip.Is6():
			add(&dnsmessage.AAAAResource{AAAA: ip.As16()})
		}
	}
	if q.Type == dnsmessage.TypeSRV {
		for _, s := range d.srvs[name] {
			add(&dnsmessage.SRVResource{Port: s.Port, Target: dnsmessage.MustNewName(canonical(s.Target))})
		}
	}
	if len(d.ips[name]) == 0 && len(d.srvs[name]) == 0 {
		m.RCode = dnsmessage.RCodeNameError
	}
	out, err := m.Pack()
	return out, err == nil
}
