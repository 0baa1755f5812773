package node

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Discovery: what initial_members and join name is looked up anew for each try, and again whenever a member is lost, since
// addresses behind names change and names are all that stays.
const (
	// srvPrefix begins an entry that names an SRV record. No URL: it has no path, no user and no port, which is the record's.
	srvPrefix = "srv:"
	// maxDiscovered bounds the addresses of one entry; more are no list of members.
	maxDiscovered = 64
	lookupTimeout = 2 * time.Second
	// rediscoverLook is how often it is looked whether somebody is lost, rediscoverInterval how often names are then looked up.
	rediscoverLook     = 500 * time.Millisecond
	rediscoverInterval = 5 * time.Second
)

// discovery looks entries up.
type discovery struct {
	resolver *net.Resolver
}

// endpoint is one address of an entry.
type endpoint struct {
	entry   string // as configured
	address string // host:port to dial
}

// String names the entry and, where they differ, the address.
func (f endpoint) String() string {
	if f.entry == f.address {
		return f.address
	}
	return f.entry + " at " + f.address
}

// srvName is the record that an entry names, ok where it names one.
func srvName(entry string) (name string, ok bool) { return strings.CutPrefix(entry, srvPrefix) }

// expand lists what an entry stands for now: each target of an SRV record under its own name, which is dialled as it is, and each
// address of a host name. A list is sorted.
func (d discovery) expand(ctx context.Context, entry string) ([]endpoint, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	var out []endpoint
	if name, ok := srvName(entry); ok {
		_, records, err := d.resolver.LookupSRV(ctx, "", "", name)
		if err != nil {
			return nil, fmt.Errorf("look up %s: %w", entry, err)
		}
		for _, r := range records {
			out = append(out, endpoint{entry: entry, address: net.JoinHostPort(strings.TrimSuffix(r.Target, "."), fmt.Sprint(r.Port))})
		}
	} else {
		host, port, err := net.SplitHostPort(entry)
		if err != nil {
			return nil, fmt.Errorf("look up %s: %w", entry, err)
		}
		if _, err := netip.ParseAddr(host); err == nil {
			return []endpoint{{entry: entry, address: entry}}, nil
		}
		ips, err := d.resolver.LookupNetIP(ctx, "ip", host)
		if err != nil {
			return nil, fmt.Errorf("look up %s: %w", entry, err)
		}
		for _, ip := range ips {
			out = append(out, endpoint{entry: entry, address: net.JoinHostPort(ip.Unmap().String(), port)})
		}
	}
	slices.SortFunc(out, func(a, b endpoint) int { return strings.Compare(a.address, b.address) })
	out = slices.Compact(out)
	if len(out) > maxDiscovered {
		return nil, fmt.Errorf("look up %s: %d addresses, at most %d", entry, len(out), maxDiscovered)
	}
	return out, nil
}

// expandAll is expand of several entries; what cannot be looked up is left out.
func (d discovery) expandAll(ctx context.Context, entries []string) []endpoint {
	var out []endpoint
	for _, entry := range entries {
		list, err := d.expand(ctx, entry)
		if err != nil {
			continue
		}
		out = append(out, list...)
	}
	return out
}

// numeric is address with its host looked up, for those who know no names.
func (d discovery) numeric(ctx context.Context, address string) (string, error) {
	list, err := d.expand(ctx, address)
	if err != nil {
		return "", err
	}
	if len(list) == 0 {
		return "", fmt.Errorf("look up %s: no address", address)
	}
	return list[0].address, nil
}

// rediscover looks up the configured entries again while a member is lost, and asks who is there: all nodes may have come back
// at once at other addresses, and then none can tell another one where it is.
func (n *Node) rediscover(ctx context.Context) {
	entries := slices.Concat(n.cfg.InitialMembers, n.cfg.Join)
	var last, told time.Time
	for pause(ctx, rediscoverLook) {
		if time.Since(told) >= rejoinInterval {
			n.tellLost()
			told = time.Now()
		}
		if time.Since(last) < rediscoverInterval || !n.missesSomebody() {
			continue
		}
		for _, f := range n.discovery.expandAll(ctx, entries) {
			if f.address == n.peerAddress || f.entry == n.peerAddress {
				continue
			}
			n.greet(f.address)
		}
		last = time.Now()
	}
}

// greet says hello to whoever is at an address, and learns who that is.
func (n *Node) greet(address string) {
	n.wg.Go(func() {
		ctx, cancel := context.WithTimeout(n.ctx, formationTimeout)
		defer cancel()
		if reply, err := n.rpc.hello(ctx, address); err == nil {
			n.learn(reply)
		}
	})
}

// missesSomebody says whether no leader is known, or a member is not heard of.
func (n *Node) missesSomebody() bool {
	k := n.consensus.Load()
	if k == nil || k.leader() == "" {
		return true
	}
	return slices.ContainsFunc(n.members(), func(m member) bool {
		if m.ID == n.data.NodeID {
			return false
		}
		_, silent := k.silentSince(m.ID)
		return silent || !n.gossip.isAlive(m.ID)
	})
}
