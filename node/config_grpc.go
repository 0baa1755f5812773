package node

import (
	"fmt"
	"net"
	"slices"

	"sluice/authapi"
)

// maxDescriptorRules bounds limits.descriptors; a tree of them is looked up, so that many cost no more than few.
const maxDescriptorRules = 10_000

// openNotes tells of listeners that take anybody's word.
func (c Config) openNotes() []string {
	var notes []string
	open := func(address string) bool {
		host, _, err := net.SplitHostPort(address)
		return err == nil && !loopback(host)
	}
	if g := c.GRPC; open(g.Listen) && g.Token == "" && g.TokenFile == "" && g.ClientCA == "" {
		notes = append(notes, fmt.Sprintf("grpc.listen is %s, and whoever reaches it is believed: set grpc.token_file or grpc.client_ca, or keep it in a private network", g.Listen))
	}
	if address := c.Gubernator.Listen; open(address) {
		notes = append(notes, fmt.Sprintf("gubernator.listen is %s, and whoever reaches it may spend from any of its limits: keep it in a private network", address))
	}
	return notes
}

// grpc checks the listeners for gRPC and for Gubernator's clients, but for their addresses.
func (v *validator) grpc() {
	g := v.c.GRPC
	v.certificate("grpc", g.TLSCert, g.TLSKey)
	if g.ClientCA != "" {
		if g.TLSCert == "" {
			v.fail("grpc.client_ca", "is of TLS, and %s is missing", v.also("grpc.tls_cert"))
		}
		if _, err := loadPool(g.ClientCA); err != nil {
			v.fail("grpc.client_ca", "%v", err)
		}
	}
	v.count("grpc.max_connections", int64(g.MaxConns), 1, 1<<20)
	v.count("grpc.max_streams", int64(g.MaxStreams), 1, 1<<20)
}

// descriptors checks limits.descriptors.
func (v *validator) descriptors() {
	all := v.c.Limits.Descriptors
	if len(all) > maxDescriptorRules {
		v.fail("limits.descriptors", "has %d entries and may have %d", len(all), maxDescriptorRules)
		return
	}
	policies := map[string]PolicyConfig{}
	for _, p := range v.c.Limits.Policies {
		policies[p.Name] = p
	}
	seen := map[string]int{}
	for i, d := range all {
		key := fmt.Sprintf("limits.descriptors[%d]", i)
		if n := len(d.Domain); n < 1 || n > authapi.MaxEntryText {
			v.fail(key+".domain", "want 1 to %d bytes", authapi.MaxEntryText)
		}
		if n := len(d.Entries); n < 1 || n > authapi.MaxEntries {
			v.fail(key+".entries", "want 1 to %d of them, not %d", authapi.MaxEntries, n)
		}
		for j, e := range d.Entries {
			if n := len(e.Key); n < 1 || n > authapi.MaxEntryText {
				v.fail(fmt.Sprintf("%s.entries[%d].key", key, j), "want 1 to %d bytes", authapi.MaxEntryText)
			}
			if len(e.Value) > authapi.MaxEntryText {
				v.fail(fmt.Sprintf("%s.entries[%d].value", key, j), "want up to %d bytes", authapi.MaxEntryText)
			}
		}
		p, known := policies[d.Policy]
		switch {
		case d.Unlimited && d.Policy != "":
			v.fail(key+".unlimited", "is set together with %s", v.also(key+".policy"))
		case d.Unlimited:
		case d.Policy == "":
			v.fail(key+".policy", "is missing, and unlimited is not set")
		case !known:
			v.fail(key+".policy", "there is no policy %s in limits.policies", quote(d.Policy))
		case !slices.Contains(p.By, "descriptor"):
			v.fail(key+".policy", "%s is no policy for descriptors: it would need by = [\"descriptor\"]", quote(d.Policy))
		}
		id := fmt.Sprintf("%q %q", d.Domain, d.Entries)
		if first, again := seen[id]; again {
			v.fail(key+".entries", "has the domain and entries of %s as well", v.also(fmt.Sprintf("limits.descriptors[%d]", first)))
		} else {
			seen[id] = i
		}
	}
}
