package node

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// adminRole is what a caller of the admin listener may do. Each role may do what those below it may.
type adminRole int

const (
	adminOpen    adminRole = iota // anyone who reaches the listener: probes and metrics
	adminRead                     // look at what is no secret
	adminOperate                  // change anything, or see what opens something
)

func (r adminRole) String() string {
	switch r {
	case adminOpen:
		return "none"
	case adminRead:
		return "read"
	}
	return "operate"
}

// maxAdminTokens bounds the tokens of one role: two while one replaces another, and some for several operators.
const maxAdminTokens = 32

// adminToken is the digest of one token.
type adminToken struct {
	role   adminRole
	digest [sha256.Size]byte
}

// BearerToken is the token that commands present, "" where none is configured: the first one of the role operate, or else
// of the role read. It reads the files that the configuration names.
func (c AdminConfig) BearerToken() (string, error) {
	for _, t := range c.tokenSettings() {
		tokens, err := t.read()
		if err != nil || len(tokens) > 0 {
			return firstOf(tokens), err
		}
	}
	return "", nil
}

func firstOf(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

// tokenSetting is where the tokens of a role are configured.
type tokenSetting struct {
	key   string
	value Secret
	file  string
	role  adminRole
}

func (c AdminConfig) tokenSettings() []tokenSetting {
	return []tokenSetting{
		{"admin.token", c.Token, c.TokenFile, adminOperate},
		{"admin.read_token", c.ReadToken, c.ReadTokenFile, adminRead},
	}
}

// hasTokens reports whether any is configured.
func (c AdminConfig) hasTokens() bool {
	return c.Token != "" || c.TokenFile != "" || c.ReadToken != "" || c.ReadTokenFile != ""
}

// read gives the tokens, one a line; none where none is configured. The error never quotes one.
func (t tokenSetting) read() ([]string, error) {
	if t.value == "" && t.file == "" {
		return nil, nil
	}
	return readSecretLines(t.key, t.value, t.file, maxAdminTokens)
}

// adminAccess decides who may call the admin listener. Safe for concurrent use; the tokens can be replaced.
type adminAccess struct {
	local  adminRole // of callers on this machine without a token
	tokens atomic.Pointer[[]adminToken]
	log    *slog.Logger

	refused [3]atomic.Uint64 // by refusal

	mu      sync.Mutex // guards what follows
	said    time.Time  // when the last refusal was logged
	untold  int        // refusals since
	nowFunc func() time.Time
}

// refusal is why a call is not let in. The numbers are indices of adminAccess.refused.
type refusal int

const (
	refusedWithout refusal = 0 // no token, and not from this machine
	refusedToken   refusal = 1 // a wrong one
	refusedRole    refusal = 2 // a role that may not make this call
)

// refusalNames are the values of the metric's label, by refusal.
var refusalNames = [...]string{"no_token", "wrong_token", "role"}

// refusedLogEvery bounds the lines about refused calls: whoever reaches the listener could else fill the disk with them.
const refusedLogEvery = time.Second

func newAdminAccess(c AdminConfig, log *slog.Logger) (*adminAccess, error) {
	access := &adminAccess{local: adminOpen, log: log, nowFunc: time.Now}
	switch c.LocalRole {
	case "operate":
		access.local = adminOperate
	case "read":
		access.local = adminRead
	}
	return access, access.load(c)
}

// load takes the tokens of a configuration in the place of those before.
func (a *adminAccess) load(c AdminConfig) error {
	var tokens []adminToken
	for _, t := range c.tokenSettings() {
		list, err := t.read()
		if err != nil {
			return err
		}
		for _, token := range list {
			tokens = append(tokens, adminToken{t.role, sha256.Sum256([]byte(token))})
		}
	}
	a.tokens.Store(&tokens)
	return nil
}

// roleOf is the role of whoever presents a token. It compares with each token, in a time that does not depend on which one
// it is or where they differ.
func (a *adminAccess) roleOf(presented string) adminRole {
	digest := sha256.Sum256([]byte(presented))
	role := adminOpen
	for _, t := range *a.tokens.Load() {
		if subtle.ConstantTimeCompare(digest[:], t.digest[:]) == 1 {
			role = max(role, t.role)
		}
	}
	return role
}

// check decides whether a call that needs a role may be made. Whoever presents a token has the token's role, and a wrong one
// has none, from anywhere. Without a token a caller on this machine has the configured role: one on loopback that is neither a
// proxy for somebody else nor a browser under a foreign name (DNS rebinding), or one on the Unix socket, whose file's
// mode has let it in.
func (a *adminAccess) check(r *http.Request, need adminRole) *AdminProblem {
	if need == adminOpen {
		return nil
	}
	role, p, why := a.caller(r)
	if p == nil && role < need {
		why, p = refusedRole, adminProblem(http.StatusForbidden, "forbidden", fmt.Sprintf("this call needs the role %s, and this caller has %s", need, role))
	}
	if p != nil {
		a.refused[why].Add(1)
		a.tell(r, refusalNames[why])
	}
	return p
}

func (a *adminAccess) caller(r *http.Request) (adminRole, *AdminProblem, refusal) {
	if text := r.Header.Get("Authorization"); text != "" {
		scheme, token, _ := strings.Cut(text, " ")
		if strings.EqualFold(scheme, "Bearer") {
			if role := a.roleOf(strings.TrimSpace(token)); role != adminOpen {
				return role, nil, 0
			}
		}
		return adminOpen, adminProblem(http.StatusUnauthorized, "invalid_credential", "this is not a token of the admin listener"), refusedToken
	}
	local := a.isLocal(r)
	if local && a.local != adminOpen {
		return a.local, nil, 0
	}
	whence := "calls from elsewhere than this machine"
	if local {
		whence = "all calls"
	}
	if len(*a.tokens.Load()) == 0 {
		return adminOpen, adminProblem(http.StatusForbidden, "forbidden", whence+" need a token, and none is configured (admin.token_file, admin.read_token_file)"), refusedWithout
	}
	return adminOpen, adminProblem(http.StatusUnauthorized, "authentication_required", whence+" need a token"), refusedWithout
}

// isLocal reports whether the caller is on this machine and speaks for itself.
func (a *adminAccess) isLocal(r *http.Request) bool {
	if r.Header.Get("Forwarded") != "" || r.Header.Get("X-Forwarded-For") != "" || r.Header.Get("Origin") != "" {
		return false
	}
	if onSocket(r) {
		return true
	}
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && peer.Addr().Unmap().IsLoopback() && plainHost(r.Host)
}

// onSocket reports whether the call came over a Unix socket.
func onSocket(r *http.Request) bool {
	address, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	return ok && address.Network() == "unix"
}

// tell logs a refused call, some of them where there are many. What the caller presented is left out.
func (a *adminAccess) tell(r *http.Request, why string) {
	a.mu.Lock()
	now := a.nowFunc()
	if now.Sub(a.said) < refusedLogEvery {
		a.untold++
		a.mu.Unlock()
		return
	}
	untold := a.untold
	a.said, a.untold = now, 0
	a.mu.Unlock()
	a.log.Warn("admin call refused", "reason", why, "method", r.Method, "path", r.URL.Path, "caller", r.RemoteAddr, "refused_before", untold)
}

// plainHost reports whether a Host header names an address or this machine, which no web site can be called.
func plainHost(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	_, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil || host == "localhost"
}

// adminTokens checks the tokens. The secrets are those of [secrets], nil where they could not be read.
func (v *validator) adminTokens(secrets ...[]byte) {
	seen := map[string]string{}
	for _, t := range v.c.Admin.tokenSettings() {
		at := t.key
		if t.file != "" {
			at = t.key + "_file"
		}
		if t.value != "" && t.file != "" {
			v.fail(at, "is set together with %s", v.also(t.key))
			continue
		}
		tokens, err := t.read()
		if err != nil {
			v.fail(at, "%v", err)
			continue
		}
		for _, token := range tokens {
			material, err := secretMaterial(t.key, token)
			if err != nil {
				v.fail(at, "%v", err)
				continue
			}
			for _, secret := range secrets {
				if secret != nil && string(material) == string(secret) {
					v.fail(at, "is the same secret as one of [secrets]: it is sent over the network, and those never are")
				}
			}
			if other := seen[token]; other != "" && other != t.key {
				v.fail(at, "holds a token that %s holds too: one token has one role", v.also(other))
			}
			seen[token] = t.key
		}
	}
}

// ReloadTokens takes the tokens of the admin listener from a configuration, whose files are read again. On an error, which names
// no token, those before stay.
func (n *Node) ReloadTokens(next Config) error {
	if n.admin == nil {
		return nil
	}
	if err := n.admin.access.load(next.Admin); err != nil {
		return fmt.Errorf("reload tokens: %w", err)
	}
	return nil
}

// adminMetrics are about the operators' listener, which is there whenever they are read.
var adminMetrics = []metric{
	{"sluice_admin_refused_total", kindCounter, "Calls of the admin listener that were not let in, by reason.", func(s *scrape, out *samples) {
		for i, name := range refusalNames {
			out.add("", fmt.Sprintf("reason=%q", name), float64(s.n.admin.access.refused[i].Load()))
		}
	}},
	{"sluice_admin_certificate_expiry_timestamp_seconds", kindGauge, "When the certificate of the admin listener ends, in Unix time; 0 without TLS.", one(func(s *scrape) float64 {
		return s.n.adminCertificates.expiry()
	})},
	{"sluice_admin_certificate_failing", kindGauge, "Whether the admin listener's files hold no pair that could be loaded, so that an older one is in use.", one(func(s *scrape) float64 {
		return flag(s.n.adminCertificates != nil && s.n.adminCertificates.failing.Load())
	})},
}
