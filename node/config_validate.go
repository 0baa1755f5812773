package node

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"sluice/authapi"
)

// Validate tells everything that is wrong with the configuration: a *ConfigError, or nil. It reads the secrets' files,
// and nothing else outside c.
func (c Config) Validate() error {
	if m := c.mistakes(); len(m) > 0 {
		return &ConfigError{Mistakes: m}
	}
	return nil
}

func (c *Config) mistakes() []Mistake {
	v := validator{c: c}
	v.identity()
	v.members()
	v.listeners()
	v.admin()
	v.grpc()
	v.secrets()
	v.raft()
	v.tracing()
	v.storage()
	v.backup()
	v.membership()
	v.limits()
	v.auth()
	v.oauth()
	v.scopes()
	v.identityHeaders()
	for i := range c.Routes {
		v.route(i)
	}
	return v.mistakes
}

type validator struct {
	c        *Config
	mistakes []Mistake
}

func (v *validator) fail(key, format string, args ...any) {
	v.mistakes = append(v.mistakes, v.c.origins.mistake(key, format, args...))
}

// also names the other half of a conflict, with its place where it has one.
func (v *validator) also(key string) string {
	if p, ok := v.c.origins.at(key); ok {
		return key + " (" + p.String() + ")"
	}
	return key
}

func (v *validator) oneOf(key, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		quoted := make([]string, len(allowed))
		for i, a := range allowed {
			quoted[i] = strconv.Quote(a)
		}
		v.fail(key, "want %s, not %s%s", strings.Join(quoted, " or "), quote(value), suggest(value, allowed))
	}
}

func (v *validator) between(key string, value, least, most Duration) {
	if value < least || value > most {
		v.fail(key, "want %s to %s, not %s", least, most, value)
	}
}

func (v *validator) count(key string, value, least, most int64) {
	if value < least || value > most {
		v.fail(key, "want %d to %d, not %d", least, most, value)
	}
}

const day = Duration(24 * time.Hour)

var (
	nodeName     = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)
	keyPrefix    = regexp.MustCompile(`^[A-Za-z0-9._-]{3,32}$`)
	planName     = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)
	resourceName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,62}$`)
	actionName   = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,62}$`)
	methodName   = regexp.MustCompile(`^[A-Z][A-Z-]{0,31}$`)
	srvRecord    = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?\.?$`)
	hostName     = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$`)
)

func (v *validator) identity() {
	if v.c.Name != "" && !nodeName.MatchString(v.c.Name) {
		v.fail("name", "want up to 63 letters, digits, dots, dashes and underscores, not %s", quote(v.c.Name))
	}
	if !nodeName.MatchString(v.c.Cluster) {
		v.fail("cluster", "want 1 to 63 letters, digits, dots, dashes and underscores, not %s", quote(v.c.Cluster))
	}
	if v.c.DataDir == "" {
		v.fail("data_dir", "is missing")
	}
	if v.c.PublicURL != "" {
		if problem := urlProblem(v.c.PublicURL, false); problem != "" {
			v.fail("public_url", "%s", problem)
		}
	}
	for i, text := range v.c.TrustedProxies {
		key := fmt.Sprintf("trusted_proxies[%d]", i)
		prefix, err := parsePrefix(text)
		switch {
		case err != nil:
			v.fail(key, "want an address or a prefix, as in 10.0.0.0/8, not %s", quote(text))
		case prefix.Bits() == 0:
			v.fail(key, "%s trusts everybody, so that each client could choose its own address: name the load balancers", text)
		}
	}
	for i, origin := range v.c.CORS.Origins {
		key := fmt.Sprintf("cors.origins[%d]", i)
		if problem := originProblem(origin); problem != "" {
			v.fail(key, "%s", problem)
		}
	}
	v.between("cors.max_age", v.c.CORS.MaxAge, 0, day)
	v.oneOf("routes_default", v.c.RoutesDefault, "deny", "allow")
	v.oneOf("forwarded_header", v.c.ForwardedHeader, "x-forwarded-for", "forwarded")
	if v.c.HTTP.ProxyProtocol && len(v.c.TrustedProxies) == 0 {
		v.fail("http.proxy_protocol", "is of trusted proxies alone, and %s is empty", v.also("trusted_proxies"))
	}
	v.oneOf("log.level", v.c.Log.Level, "debug", "info", "warn", "error")
	v.oneOf("log.format", v.c.Log.Format, "json", "text")
}

// originProblem says what is wrong with a web page's origin, "" where nothing is. Browsers spell one in one way only, and
// it is compared whole.
func originProblem(origin string) string {
	if origin == "*" || origin == "null" {
		return fmt.Sprintf("%s would let every web page act for its visitors: name the origins", quote(origin))
	}
	u, err := url.Parse(origin)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return fmt.Sprintf("want a scheme, a host and perhaps a port, as in https://app.example.com, not %s", quote(origin))
	}
	port := u.Port()
	if u.Scheme == "https" && port == "443" || u.Scheme == "http" && port == "80" {
		return fmt.Sprintf("want no port where it is the scheme's own, as browsers leave it out, in %s", quote(origin))
	}
	if want := u.Scheme + "://" + strings.ToLower(u.Host); origin != want {
		return fmt.Sprintf("want %s, as browsers spell it, not %s", quote(want), quote(origin))
	}
	return ""
}

// parsePrefix reads an address or a prefix; an address is the prefix that holds only it.
func parsePrefix(text string) (netip.Prefix, error) {
	if address, err := netip.ParseAddr(text); err == nil {
		address = address.Unmap().WithZone("")
		return netip.PrefixFrom(address, address.BitLen()), nil
	}
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("parse prefix: %w", err)
	}
	return prefix.Masked(), nil
}

// maxInitialMembers is as many voters as consensus carries well.
const maxInitialMembers = 15

func (v *validator) members() {
	initial, join := v.c.InitialMembers, v.c.Join
	count := v.c.InitialCount
	switch {
	case len(initial) == 0 && len(join) == 0:
		v.fail("initial_members", "is missing, and so is join: a node either forms the cluster or joins one")
	}
	if len(initial) > maxInitialMembers {
		v.fail("initial_members", "has %d entries and may have %d: let the others join", len(initial), maxInitialMembers)
	}
	if count != 0 {
		v.count("initial_count", int64(count), 1, maxInitialMembers)
		if len(initial) == 0 {
			v.fail("initial_count", "says how many nodes initial_members name, and those are missing")
		}
	}
	for _, list := range []struct {
		key     string
		members []string
	}{{"initial_members", initial}, {"join", join}} {
		for i, member := range list.members {
			key := fmt.Sprintf("%s[%d]", list.key, i)
			if problem := entryProblem(member); problem != "" {
				v.fail(key, "%s", problem)
			} else if _, srv := srvName(member); srv && list.key == "initial_members" && count == 0 {
				v.fail("initial_count", "is missing: how many nodes %s names is not known before they all run", quote(member))
			} else if first := slices.Index(list.members, member); first < i {
				v.fail(key, "%s is in the list twice", member)
			}
		}
	}
	advertise := v.c.Peer.Advertise
	if _, port, err := net.SplitHostPort(advertise); err == nil && port != "0" && len(initial) > 0 && len(join) == 0 && count == 0 && !slices.Contains(initial, advertise) {
		v.fail("initial_members", "does not hold this node: peer.advertise is %s, and the list is the same on every initial member", advertise)
	}
}

// entryProblem says what is wrong with an entry of initial_members or join, "" where nothing is.
func entryProblem(entry string) string {
	name, srv := srvName(entry)
	switch {
	case !srv:
		return addressProblem(entry, false)
	case !srvRecord.MatchString(name):
		return fmt.Sprintf("want the name of an SRV record, as in srv:_peer._tcp.sluice.example.com, not %s", quote(entry))
	}
	return ""
}

func (v *validator) listeners() {
	c := v.c
	type listener struct{ key, address string }
	listeners := []listener{{"http.listen", c.HTTP.Listen}, {"peer.listen", c.Peer.Listen}, {"gossip.listen", c.Gossip.Listen}, {"admin.listen", c.Admin.Listen},
		{"grpc.listen", c.GRPC.Listen}, {"gubernator.listen", c.Gubernator.Listen}}
	optional := []string{"admin.listen", "grpc.listen", "gubernator.listen"}
	for i, l := range listeners {
		if l.address == "" && slices.Contains(optional, l.key) {
			continue
		}
		if _, isSocket := socketPath(l.address); isSocket && l.key == "admin.listen" {
			continue // see admin
		}
		if problem := addressProblem(l.address, true); problem != "" {
			v.fail(l.key, "%s", problem)
			continue
		}
		for _, other := range listeners[:i] {
			if collide(l.address, other.address) {
				v.fail(l.key, "%s collides with %s, which is %s", l.address, v.also(other.key), other.address)
			}
		}
	}
	for _, a := range []struct{ key, advertise, listen string }{{"peer", c.Peer.Advertise, c.Peer.Listen}, {"gossip", c.Gossip.Advertise, c.Gossip.Listen}} {
		switch {
		case a.advertise == "" && wildcard(a.listen):
			v.fail(a.key+".advertise", "is missing: %s is %s, and the other nodes need an address to reach this one at", v.also(a.key+".listen"), a.listen)
		case a.advertise != "" && a.advertise != a.listen:
			if problem := addressProblem(a.advertise, false); problem != "" {
				v.fail(a.key+".advertise", "%s", problem)
			}
		}
	}
	v.between("http.read_timeout", c.HTTP.ReadTimeout, Duration(100*time.Millisecond), Duration(time.Hour))
	v.between("http.write_timeout", c.HTTP.WriteTimeout, Duration(100*time.Millisecond), Duration(time.Hour))
	v.between("http.idle_timeout", c.HTTP.IdleTimeout, Duration(100*time.Millisecond), Duration(time.Hour))
	v.between("http.drain_delay", c.HTTP.DrainDelay, 0, Duration(5*time.Minute))
	v.between("http.drain_timeout", c.HTTP.DrainTimeout, 0, Duration(5*time.Minute))
	v.count("http.max_connections", int64(c.HTTP.MaxConns), 1, 1<<20)
	v.certificate("http", c.HTTP.TLSCert, c.HTTP.TLSKey)
	v.peerFiles()
	v.count("http.max_connections_per_address", int64(c.HTTP.MaxConnsPerIP), 1, 1<<20)
}

// certificate checks a listener's pair of tls_cert and tls_key.
func (v *validator) certificate(listener, cert, key string) {
	certKey, keyKey := listener+".tls_cert", listener+".tls_key"
	switch {
	case cert != "" && key == "":
		v.fail(keyKey, "is missing: %s is set", v.also(certKey))
	case cert == "" && key != "":
		v.fail(certKey, "is missing: %s is set", v.also(keyKey))
	case cert != "":
		if _, _, err := loadCertificate(cert, key); err != nil {
			v.fail(certKey, "%v", err)
		}
	}
}

// addressProblem says what is wrong with a host:port, "" where nothing is. Only what is listened on may lack a host,
// name the wildcard address or port 0, which lets the system choose.
func addressProblem(address string, listen bool) string {
	host, portText, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Sprintf("want host:port, not %s", quote(address))
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || port == 0 && !listen {
		return fmt.Sprintf("want a port of 1 to 65535 in %s", quote(address))
	}
	ip, err := netip.ParseAddr(host)
	switch {
	case listen && (host == "" || host == "localhost" || err == nil):
		return ""
	case listen:
		return fmt.Sprintf("want an IP address of this machine, or none for all of them, in %s", quote(address))
	case err == nil && ip.IsUnspecified() || host == "":
		return fmt.Sprintf("want an address that other nodes can reach, not %s", quote(address))
	case err != nil && !hostName.MatchString(strings.ToLower(host)):
		return fmt.Sprintf("want an IP address or a host name in %s", quote(address))
	}
	return ""
}

// wildcard reports whether address stands for every address of the machine.
func wildcard(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "" || err == nil && ip.IsUnspecified()
}

// sameHost is the host of one address with the port of another, "" where either is no address.
func sameHost(host, port string) string {
	h, _, err := net.SplitHostPort(host)
	if err != nil {
		return ""
	}
	_, p, err := net.SplitHostPort(port)
	if err != nil {
		return ""
	}
	return net.JoinHostPort(h, p)
}

// collide reports whether two listeners would want the same port of the same address.
func collide(a, b string) bool {
	hostA, portA, errA := net.SplitHostPort(a)
	hostB, portB, errB := net.SplitHostPort(b)
	if errA != nil || errB != nil || portA != portB || portA == "0" {
		return false
	}
	return hostA == hostB || wildcard(a) || wildcard(b)
}

func (v *validator) secrets() {
	s := v.c.Secrets
	read := func(key string, value Secret, file string) []byte {
		name := strings.TrimPrefix(key, "secrets.")
		at := key
		if file != "" {
			at = key + "_file"
		}
		secret, err := readSecret(name, value, file)
		switch {
		case err == nil:
		case value == "" && file == "":
			v.fail(key+"_file", "is missing: name a file with a secret (`sluice secret new` makes one), or set %s", EnvironmentName(key))
		case value != "" && file != "":
			v.fail(at, "is set together with %s", v.also(key))
		default:
			v.fail(at, "%v", err)
		}
		return secret
	}
	cluster := read("secrets.cluster", s.Cluster, s.ClusterFile)
	key := read("secrets.key", s.Key, s.KeyFile)
	if g := v.c.GRPC; g.Token != "" || g.TokenFile != "" {
		if token := read("grpc.token", g.Token, g.TokenFile); token != nil && (string(token) == string(cluster) || string(token) == string(key)) {
			v.fail("grpc.token_file", "is the same secret as one of [secrets]: it is sent over the network, and those never are")
		}
	}
	v.adminTokens(cluster, key)
	v.previousKeys(cluster, key)
	if cluster != nil && string(cluster) == string(key) {
		v.fail("secrets.key_file", "is the same secret as the cluster's: a stolen disk image would then be enough to join the cluster")
	}
}

func (v *validator) raft() {
	r := v.c.Raft
	v.between("raft.heartbeat_timeout", r.HeartbeatTimeout, Duration(50*time.Millisecond), Duration(30*time.Second))
	v.between("raft.election_timeout", r.ElectionTimeout, Duration(50*time.Millisecond), Duration(30*time.Second))
	if r.ElectionTimeout < r.HeartbeatTimeout {
		v.fail("raft.election_timeout", "%s is shorter than %s, which is %s", r.ElectionTimeout, v.also("raft.heartbeat_timeout"), r.HeartbeatTimeout)
	}
	v.between("raft.snapshot_interval", r.SnapshotInterval, Duration(time.Second), day)
	if r.SnapshotThreshold < 16 || r.SnapshotThreshold > 1<<30 {
		v.fail("raft.snapshot_threshold", "want 16 to %d entries, not %d", 1<<30, r.SnapshotThreshold)
	}
	if r.TrailingLogs/2 < r.SnapshotThreshold {
		v.fail("raft.trailing_logs", "%d is less than twice %s, which is %d: an unreadable snapshot could then not be made up for by the one before",
			r.TrailingLogs, v.also("raft.snapshot_threshold"), r.SnapshotThreshold)
	}
}

func (v *validator) storage() {
	s := v.c.Storage
	v.count("storage.low_free_bytes", s.LowFreeBytes, 0, 1<<50)
	v.count("storage.critical_free_bytes", s.CriticalFreeBytes, 0, 1<<50)
	v.count("storage.low_free_percent", int64(s.LowFreePercent), 0, 90)
	v.count("storage.critical_free_percent", int64(s.CriticalFreePercent), 0, 90)
	// A mark of zero bytes is none.
	if s.CriticalFreeBytes > 0 && s.LowFreeBytes > 0 && s.CriticalFreeBytes > s.LowFreeBytes {
		v.fail("storage.critical_free_bytes", "%d is more than %s, which is %d: the node would stop before it hands over",
			s.CriticalFreeBytes, v.also("storage.low_free_bytes"), s.LowFreeBytes)
	}
	if s.CriticalFreePercent > 0 && s.LowFreePercent > 0 && s.CriticalFreePercent > s.LowFreePercent {
		v.fail("storage.critical_free_percent", "%d is more than %s, which is %d: the node would stop before it hands over",
			s.CriticalFreePercent, v.also("storage.low_free_percent"), s.LowFreePercent)
	}
	v.between("storage.append_timeout", s.AppendTimeout, Duration(100*time.Millisecond), Duration(time.Minute))
}

func (v *validator) membership() {
	m := v.c.Membership
	if !m.Voter && len(v.c.Join) == 0 {
		v.fail("membership.voter", "is of nodes that join, and join is empty: initial members vote")
	}
	v.count("membership.min_voters", int64(m.MinVoters), 1, maxVoters)
	v.between("membership.stabilization_time", m.StabilizationTime, 0, Duration(time.Hour))
	v.between("membership.dead_server_cleanup", m.DeadServerCleanup, 0, 366*day)
	if m.DeadServerCleanup != 0 && m.DeadServerCleanup < v.c.Limits.DeadAfter {
		v.fail("membership.dead_server_cleanup", "%s is shorter than %s, which is %s; \"0s\" turns it off", m.DeadServerCleanup, v.also("limits.dead_after"), v.c.Limits.DeadAfter)
	}
}

func (v *validator) backup() {
	b := v.c.Backup
	v.between("backup.interval", b.Interval, Duration(time.Minute), 366*day)
	v.count("backup.keep", int64(b.Keep), 1, 10_000)
	if b.Dir != "" && within(b.Dir, v.c.DataDir) {
		v.fail("backup.dir", "is inside %s: a backup that goes with the data is none", v.also("data_dir"))
	}
	if _, err := b.recipients(); err != nil {
		v.fail("backup.key_file", "%v", err)
	}
}

// within reports whether path is dir or below it.
func within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator))
}

const (
	maxLimit  = 1_000_000_000_000
	maxWindow = 31 * day
)

func (v *validator) rule(key string, r RuleConfig) {
	v.count(key+".limit", r.Limit, 0, maxLimit)
	switch {
	case r.Window < Duration(time.Second) || r.Window > maxWindow:
		v.fail(key+".window", "want 1s to %s, not %s", maxWindow, r.Window)
	case r.Window%Duration(time.Second) != 0:
		v.fail(key+".window", "want whole seconds, not %s", r.Window)
	}
	v.oneOf(key+".algorithm", r.Algorithm, "sliding_window", "fixed_window", "token_bucket")
	switch {
	case r.Algorithm == "token_bucket":
		v.count(key+".burst", r.Burst, 1, maxLimit)
	case r.Burst != 0:
		v.fail(key+".burst", "is for token buckets, and %s is %s", v.also(key+".algorithm"), quote(r.Algorithm))
	}
}

func (v *validator) limits() {
	l := v.c.Limits
	for _, p := range v.c.policies() {
		v.rule(p.key, p.rule)
	}
	for name := range v.c.Plans {
		if !planName.MatchString(name) {
			v.fail("plans."+name, "want a name of up to 63 lower-case letters, digits, dashes and underscores")
		}
		if name == authapi.PlanNone {
			v.fail("plans."+name, "%s stands for organizations without a plan in limits.policies", quote(name))
		}
	}
	v.policies()
	v.oneOf("limits.on_isolation", l.OnIsolation, "strict", "available")
	v.between("limits.max_clock_skew", l.MaxClockSkew, Duration(10*time.Millisecond), Duration(time.Minute))
	v.between("limits.lease", l.Lease, Duration(2*time.Second), Duration(time.Minute))
	if l.Lease < 2*l.MaxClockSkew {
		v.fail("limits.lease", "%s is less than twice %s, which is %s: clocks that are allowed to differ would make nodes refuse",
			l.Lease, v.also("limits.max_clock_skew"), l.MaxClockSkew)
	}
	failover := v.c.Raft.HeartbeatTimeout + v.c.Raft.ElectionTimeout
	if l.Lease < failover {
		v.fail("limits.lease", "%s is shorter than a failover, for which %s and %s allow %s: every failover would make nodes refuse",
			l.Lease, v.also("raft.heartbeat_timeout"), v.also("raft.election_timeout"), failover)
	}
	v.between("limits.dead_after", l.DeadAfter, Duration(2*time.Second), Duration(time.Hour))
	v.count("limits.max_buckets", int64(l.MaxBuckets), 1024, 1<<26)
}

func (v *validator) auth() {
	a := v.c.Auth
	v.between("auth.token_ttl", a.TokenTTL, Duration(time.Second), Duration(authapi.MaxTokenTTL))
	v.between("auth.refresh_ttl", a.RefreshTTL, Duration(time.Second), 3650*day)
	if a.RefreshTTL <= a.TokenTTL {
		v.fail("auth.refresh_ttl", "%s is not longer than %s, which is %s: a refresh token would end before the token that it renews",
			a.RefreshTTL, v.also("auth.token_ttl"), a.TokenTTL)
	}
	if a.RefreshReuseGrace < 0 || a.RefreshReuseGrace >= a.RefreshTTL {
		v.fail("auth.refresh_reuse_grace", "%s is negative or not shorter than %s, which is %s", a.RefreshReuseGrace, v.also("auth.refresh_ttl"), a.RefreshTTL)
	}
	v.between("auth.max_staleness", a.MaxStaleness, Duration(500*time.Millisecond), Duration(time.Hour))
	for i, prefix := range a.ImportedKeyPrefixes {
		key := fmt.Sprintf("auth.imported_key_prefixes[%d]", i)
		switch {
		case !keyPrefix.MatchString(prefix):
			v.fail(key, "want 3 to 32 letters, digits, dots, dashes and underscores, not %s", quote(prefix))
		case strings.HasPrefix(prefix, "sk_") || strings.HasPrefix(prefix, "eyJ") || strings.HasPrefix(prefix, "rt_"):
			v.fail(key, "%s is how keys and tokens of Sluice begin, which are told by their form", quote(prefix))
		}
	}
	v.oneOf("auth.on_stale", a.OnStale, "refuse", "serve")
	v.oneOf("auth.signing_algorithm", a.SigningAlgorithm, "HS256", "EdDSA", "ES256")
	if a.SigningRotation != 0 && a.SigningRotation < a.TokenTTL {
		v.fail("auth.signing_rotation", "%s is shorter than %s, which is %s; \"0s\" turns the rotation off", a.SigningRotation, v.also("auth.token_ttl"), a.TokenTTL)
	}
	v.count("auth.max_sessions", int64(a.MaxSessions), 1, 1000)
	v.between("auth.audit_retention", a.AuditRetention, Duration(time.Hour), 36500*day)
	v.count("auth.argon2.memory_kib", int64(a.Argon2.MemoryKiB), 19456, 4<<20)
	v.count("auth.argon2.iterations", int64(a.Argon2.Iterations), 2, 100)
	v.count("auth.argon2.parallelism", int64(a.Argon2.Parallelism), 1, 64)
	v.count("auth.argon2.workers", int64(a.Argon2.Workers), 0, 1024)
	v.count("auth.argon2.queue", int64(a.Argon2.Queue), 0, 1<<20)
}

// urlProblem says what is wrong with an http or https URL, "" where nothing is. With secure, http is for this machine
// alone: what goes to a provider must not be read on its way.
func urlProblem(text string, secure bool) string {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Opaque != "":
		return fmt.Sprintf("want an http or https URL, not %s", quote(text))
	case u.User != nil:
		return "must not hold a user name or password"
	case u.Fragment != "" || u.RawQuery != "" && !secure:
		return fmt.Sprintf("must have no query and no fragment: %s", quote(text))
	case secure && u.Scheme == "http" && !loopback(u.Hostname()):
		return fmt.Sprintf("want https, not %s", quote(text))
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return fmt.Sprintf("want a port of 1 to 65535 in %s", quote(text))
		}
	}
	return ""
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

func (v *validator) scopes() {
	resources := v.c.Scopes.Resources
	if len(resources) == 0 {
		v.fail("scopes.resources", "is empty: no key could be made")
	}
	for i, resource := range resources {
		key := fmt.Sprintf("scopes.resources[%d]", i)
		if !resourceName.MatchString(resource) {
			v.fail(key, "want lower-case letters, digits and dashes, not %s", quote(resource))
		} else if slices.Index(resources, resource) < i {
			v.fail(key, "%s is in the list twice", resource)
		}
	}
}
