package node

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"

	"sluice/authapi"
	"sluice/limiter"
)

const examplePath = "../cluster.example.toml"

// exampleText returns the example's text, its commented settings uncommented where all is set.
func exampleText(t *testing.T, all bool) string {
	t.Helper()
	data, err := os.ReadFile(examplePath)
	if err != nil {
		t.Fatal(err)
	}
	if !all {
		return string(data)
	}
	var out strings.Builder
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "# "); ok {
			first, _, _ := strings.Cut(rest, " ")
			if strings.HasPrefix(rest, "[[") || strings.HasPrefix(rest, "[plans.") || strings.HasPrefix(rest, "[routes.") || strings.HasPrefix(rest, "[oauth.providers.") || rest[0] >= 'a' && rest[0] <= 'z' && strings.Contains(rest, " = ") && !strings.Contains(first, ".") {
				line = rest
			}
		}
		out.WriteString(line)
	}
	return out.String()
}

func TestExample_IsTheDefault(t *testing.T) {
	t.Parallel()
	got, mistakes, err := readConfig(examplePath, nil)
	if err != nil || len(mistakes) > 0 {
		t.Fatalf("read the example: %v, %v", err, mistakes)
	}
	got.origins = nil
	want := DefaultConfig()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the example and DefaultConfig differ:\n%+v\n%+v", got, want)
	}
}

func TestExample_DecodesStrictlyWithEverySetting(t *testing.T) {
	t.Parallel()
	text := exampleText(t, true)
	var strict Config
	// The library's own strictness, beside ours: go-toml knows nothing of Duration but its UnmarshalText.
	if err := toml.NewDecoder(strings.NewReader(text)).DisallowUnknownFields().Decode(&strict); err != nil {
		var missing *toml.StrictMissingError
		if errors.As(err, &missing) {
			t.Fatal(missing.String())
		}
		t.Fatal(err)
	}
	path := write(t, text)
	cfg, mistakes, err := readConfig(path, nil)
	if err != nil || len(mistakes) > 0 {
		t.Fatalf("read: %v, %v", err, mistakes)
	}
	var missing []string
	var walk func(typ reflect.Type, key string)
	walk = func(typ reflect.Type, key string) {
		switch typ.Kind() {
		case reflect.Struct:
			for i := range typ.NumField() {
				if typ.Field(i).Anonymous {
					walk(typ.Field(i).Type, key)
				}
				if tag, ok := typ.Field(i).Tag.Lookup("toml"); ok {
					walk(typ.Field(i).Type, join(key, tag))
				}
			}
		case reflect.Map:
			walk(typ.Elem(), key+map[string]string{"plans": ".pro", "oauth.providers": ".acme"}[key])
		case reflect.Slice:
			if typ.Elem().Kind() == reflect.Struct {
				walk(typ.Elem(), key+"[0]")
				return
			}
			fallthrough
		default:
			if !cfg.origins.named(key) {
				missing = append(missing, key)
			}
		}
	}
	walk(reflect.TypeFor[Config](), "")
	if len(missing) > 0 {
		t.Errorf("settings without a line in cluster.example.toml: %s", strings.Join(missing, ", "))
	}
	cfg.Secrets = SecretsConfig{Cluster: Secret(NewSecret()), Key: Secret(NewSecret())}
	cfg.InitialMembers, cfg.Peer.Advertise = []string{"10.0.0.1:7100"}, "10.0.0.1:7100"
	acme := cfg.OAuth.Providers["acme"]
	acme.ClientSecretFile = write(t, "the secret of a client\n") // there is none where the example says
	cfg.OAuth.Providers["acme"] = acme
	if err := cfg.resolve(path); err != nil {
		t.Fatal(err)
	}
	if err := cfg.Validate(); err != nil {
		t.Errorf("the example with all its settings is not valid: %v", err)
	}
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "node.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// minimal is the least that is valid, the secrets aside.
const minimal = `initial_members = ["127.0.0.1:7100"]
peer.listen = "127.0.0.1:7100"
`

func secretVariables() []string {
	return []string{"SLUICE_SECRETS__CLUSTER=" + NewSecret(), "SLUICE_SECRETS__KEY=" + NewSecret(), "PATH=/bin"}
}

func TestLoadConfig_Minimal(t *testing.T) {
	t.Parallel()
	cfg, err := LoadConfig(write(t, minimal), secretVariables())
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Gossip.Advertise != "127.0.0.1:7101" || cfg.Peer.Advertise != "127.0.0.1:7100" || cfg.Name == "" {
		t.Errorf("derived values: %+v %+v %q", cfg.Gossip, cfg.Peer, cfg.Name)
	}
	if cfg.Limits.Anonymous.Limit != 10 || cfg.Auth.TokenTTL.D() != time.Hour {
		t.Errorf("defaults are gone: %+v", cfg.Limits)
	}
}

// An SRV record has as many targets as it has: how many form the cluster has to be said.
func TestLoadConfig_SRVNeedsACount(t *testing.T) {
	t.Parallel()
	text := "initial_members = [\"srv:_peer._tcp.sluice.example\"]\npeer.listen = \"127.0.0.1:7100\"\n"
	_, err := LoadConfig(write(t, text), secretVariables())
	if err == nil || !strings.Contains(err.Error(), "initial_count: is missing") {
		t.Errorf("without a count: %v", err)
	}
	cfg, err := LoadConfig(write(t, text+"initial_count = 3\n"), secretVariables())
	if err != nil || cfg.InitialCount != 3 {
		t.Errorf("with one: %v, %d", err, cfg.InitialCount)
	}
}

func TestLoadConfig_PathsAreRelativeToTheFile(t *testing.T) {
	t.Parallel()
	path := write(t, minimal+"data_dir = \"data\"\nsecrets.cluster_file = \"c\"\nsecrets.key_file = \"k\"\n")
	dir := filepath.Dir(path)
	for _, name := range []string{"c", "k"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(NewSecret()+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg, err := LoadConfig(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.DataDir != filepath.Join(dir, "data") || cfg.Secrets.ClusterFile != filepath.Join(dir, "c") {
		t.Errorf("paths: %q %q, want them in %q", cfg.DataDir, cfg.Secrets.ClusterFile, dir)
	}
	// A secret by environment takes the place of the file.
	cfg, err = LoadConfig(path, []string{"SLUICE_SECRETS__KEY=" + NewSecret()})
	if err != nil || cfg.Secrets.KeyFile != "" {
		t.Errorf("secret by environment: %v, key_file %q", err, cfg.Secrets.KeyFile)
	}
}

// TestLoadConfig_Mistakes pins what each mistake is called and where it is said to be. Lines count from the end of
// minimal.
func TestLoadConfig_Mistakes(t *testing.T) {
	t.Parallel()
	offset := strings.Count(minimal, "\n")
	route := "[[routes]]\npath = \"/a\"\n"
	policy := "[[limits.policies]]\nby = [\"key\"]\nlimit = 1\nwindow = \"1s\"\n" // the name follows
	for _, test := range []struct {
		name, text string
		line       int
		want       string
	}{
		{"syntax", "name = ", 1, ""},
		{"repeated key", "name = \"a\"\nname = \"b\"\n", 2, "name"},
		{"unknown key", "nam = \"x\"\n", 1, "nam: unknown key: did you mean name?"},
		{"unknown table", "\n[limit.anonymous]\nlimit = 1\n", 2, "limit: unknown key: did you mean limits?"},
		{"unknown nested key", "[limits.anonymous]\nlimits = 1\n", 2, "limits.anonymous.limits: unknown key: did you mean limit?"},
		{"unknown key of a route", route + "upstreem = \"http://a\"\n", 3, "routes[0].upstreem: unknown key: did you mean upstream?"},
		{"text for a number", "[limits.anonymous]\nlimit = \"10\"\n", 2, "limits.anonymous.limit: want a whole number, not \"10\""},
		{"fraction for a number", "[limits.anonymous]\nlimit = 1.5\n", 2, "want a whole number, not 1.5"},
		{"number for a text", "name = 7\n", 1, "name: want a text in quotes, not 7"},
		{"number for a duration", "[auth]\ntoken_ttl = 3600\n", 2, "auth.token_ttl: want a duration in quotes"},
		{"duration without a unit", "[auth]\ntoken_ttl = \"3600\"\n", 2, "auth.token_ttl: want a duration with its unit"},
		{"too long a life", "[auth]\ntoken_ttl = \"48h\"\n", 2, "auth.token_ttl: want 1s to 24h, not 48h"},
		{"text for a list", "trusted_proxies = \"::1\"\n", 1, "trusted_proxies: want a list in brackets, not \"::1\""},
		{"number in a list", "trusted_proxies = [\"::1\",\n 5]\n", 2, "trusted_proxies[1]: want a text in quotes, not 5"},
		{"text for a table", "raft = \"fast\"\n", 1, "raft: want a table, not \"fast\""},
		{"text for a truth value", route + "strip_prefix = \"yes\"\n", 3, "want true or false"},
		{"negative number", "[raft]\nsnapshot_threshold = -1\n", 2, "raft.snapshot_threshold: want a number of at least 0"},
		{"srv record of no name", "join = [\"srv:a:7100\"]\n", 1, "join[0]: want the name of an SRV record"},
		{"too many initial members", "initial_count = 16\n", 1, "initial_count: want 1 to 15, not 16"},
		{"an initial member without a vote", "[membership]\nvoter = false\n", 2, "membership.voter: is of nodes that join"},
		{"no voters", "[membership]\nmin_voters = 0\n", 2, "membership.min_voters: want 1 to 7, not 0"},
		{"removed before it is dead", "[membership]\ndead_server_cleanup = \"5s\"\n", 2, "membership.dead_server_cleanup: 5s is shorter than limits.dead_after"},
		{"no port", "[http]\nlisten = \"127.0.0.1\"\n", 2, "http.listen: want host:port"},
		{"port out of range", "[http]\nlisten = \"127.0.0.1:70000\"\n", 2, "http.listen: want a port of"},
		{"collision of wildcards", "[gossip]\nlisten = \":8080\"\nadvertise = \"10.0.0.1:8080\"\n", 2, "gossip.listen: :8080 collides with http.listen"},
		{"backups among the data", "data_dir = \"/d\"\n[backup]\ndir = \"/d/backups\"\n", 3, "backup.dir: is inside data_dir"},
		{"backups all the time", "[backup]\ninterval = \"1s\"\n", 2, "backup.interval: want 1m to 8784h, not 1s"},
		{"no backup kept", "[backup]\nkeep = 0\n", 2, "backup.keep: want 1 to 10000, not 0"},
		{"no key for backups", "[backup]\nkey_file = \"/nowhere\"\n", 2, "backup.key_file: read backup key"},
		{"keys that begin like Sluice's", "[auth]\nimported_key_prefixes = [\"acme_\", \"sk_live_\"]\n", 2, "auth.imported_key_prefixes[1]: \"sk_live_\" is how keys and tokens of Sluice begin"},
		{"keys that begin anyhow", "[auth]\nimported_key_prefixes = [\"a\"]\n", 2, "auth.imported_key_prefixes[0]: want 3 to 32 letters"},
		{"any page", "[cors]\norigins = [\"*\"]\n", 2, "cors.origins[0]: \"*\" would let every web page act"},
		{"an origin with a path", "[cors]\norigins = [\"https://a.example/\"]\n", 2, "cors.origins[0]: want \"https://a.example\""},
		{"an origin with its own port", "[cors]\norigins = [\"https://a.example:443\"]\n", 2, "cors.origins[0]: want no port"},
		{"trusts everybody", "trusted_proxies = [\"10.0.0.1\", \"0.0.0.0/0\"]\n", 1, "trusted_proxies[1]: 0.0.0.0/0 trusts everybody"},
		{"proxy by name", "trusted_proxies = [\"lb.local\"]\n", 1, "trusted_proxies[0]: want an address or a prefix"},
		{"routes_default", "routes_default = \"denied\"\n", 1, "routes_default: want \"deny\" or \"allow\", not \"denied\": did you mean deny?"},
		{"window in parts of a second", "[limits.user]\nwindow = \"1500ms\"\n", 2, "limits.user.window: want whole seconds"},
		{"window of nothing", "[limits.user]\nwindow = \"0s\"\n", 2, "limits.user.window: want 1s to 744h"},
		{"window too long", "[limits.user]\nwindow = \"745h\"\n", 2, "limits.user.window: want 1s to 744h"},
		{"negative limit", "[limits.user]\nlimit = -1\n", 2, "limits.user.limit: want 0 to"},
		{"algorithm", "[limits.user]\nalgorithm = \"sliding\"\n", 2, "limits.user.algorithm: want \"sliding_window\" or \"fixed_window\""},
		{"burst of a window", "[limits.user]\nburst = 20\n", 2, "limits.user.burst: is for token buckets, and limits.user.algorithm"},
		{"burst of less than nothing", "[limits.user]\nalgorithm = \"token_bucket\"\nburst = -1\n", 3, "limits.user.burst: want 1 to"},
		{"burst too large", "[plans.pro]\nlimit = 1\nalgorithm = \"token_bucket\"\nburst = 1000000000001\n", 4, "plans.pro.burst: want 1 to"},
		{"plan", "[plans.pro]\nlimit = -5\n", 2, "plans.pro.limit: want 0 to"},
		{"plan's name", "[plans.\"Big One\"]\nlimit = 5\n", 1, "plans.Big One: want a name"},
		{"plan of no plan", "[plans.none]\nlimit = 5\n", 1, "plans.none: \"none\" stands for organizations without a plan"},
		{"policy without a name", "[[limits.policies]]\nby = [\"key\"]\n", 1, "limits.policies[0].name: is missing"},
		{"policy without a limit", "[[limits.policies]]\nname = \"a\"\nby = [\"key\"]\n", 1, "limits.policies[0].limit: is missing"},
		{"policy without a window", "[[limits.policies]]\nname = \"a\"\nby = [\"key\"]\nlimit = 1\n", 1, "limits.policies[0].window: want 1s to 744h"},
		{"policy's name", policy + "name = \"Big One\"\n", 5, "limits.policies[0].name: want up to 63"},
		{"policy's name is taken", policy + "name = \"api_key\"\n", 5, "limits.policies[0].name: \"api_key\" is the name of a policy that is always there"},
		{"two policies of one name", policy + "name = \"a\"\n" + policy + "name = \"a\"\n", 10, "limits.policies[1].name: \"a\" is the name of limits.policies[0].name"},
		{"policy by nothing", "[[limits.policies]]\nname = \"a\"\nlimit = 1\nwindow = \"1s\"\nby = []\n", 5, "limits.policies[0].by: is missing: want one or more of address, key"},
		{"policy by a text", "[[limits.policies]]\nby = \"key\"\n", 2, "limits.policies[0].by: want a list in brackets"},
		{"policy by something else", policy + "name = \"a\"\nlayers = [\"apikey\"]\n", 6, "limits.policies[0].layers[0]: want one of anonymous, api_key, user, not \"apikey\": did you mean api_key?"},
		{"policy's layer twice", policy + "name = \"a\"\nlayers = [\"api_key\", \"api_key\"]\n", 6, "limits.policies[0].layers[1]: api_key is in the list twice"},
		{"policy's route", route + "rules = [{ methods = [\"*\"] }]\nname = \"triggers\"\n" + policy + "name = \"a\"\nroutes = [\"trigger\"]\n", 10, "limits.policies[0].routes[0]: want one of triggers, not \"trigger\": did you mean triggers?"},
		{"policy without routes", policy + "name = \"a\"\nroutes = [\"triggers\"]\n", 6, "limits.policies[0].routes[0]: \"triggers\" is not there"},
		{"policy by routes without any", "[[limits.policies]]\nname = \"a\"\nlimit = 1\nwindow = \"1s\"\nby = [\"route\"]\n", 5, "limits.policies[0].by: counts nothing: there are no [[routes]]"},
		{"policy's plan", "[plans.pro]\nlimit = 1\n" + policy + "name = \"a\"\nplans = [\"por\"]\n", 8, "limits.policies[0].plans[0]: want one of pro, none, not \"por\": did you mean pro?"},
		{"policy by key and user", "[[limits.policies]]\nname = \"a\"\nlimit = 1\nwindow = \"1s\"\nby = [\"key\", \"user\"]\n", 5, "limits.policies[0].by: counts nothing: no request has both"},
		{"policy by key of users", policy + "name = \"a\"\nlayers = [\"api_key\", \"user\"]\n", 6, "limits.policies[0].layers[1]: \"user\" counts nothing: its requests have no key"},
		{"policy of a plan without credentials", "[[limits.policies]]\nname = \"a\"\nlimit = 1\nwindow = \"1s\"\nby = [\"address\"]\nplans = [\"none\"]\nlayers = [\"anonymous\"]\n", 7, "limits.policies[0].layers[0]: \"anonymous\" counts nothing: its requests have no plan"},
		{"a certificate without its key", "[http]\ntls_cert = \"a.pem\"\n", 1, "http.tls_key: is missing"},
		{"a key without its certificate", "[http]\ntls_key = \"a.pem\"\n", 1, "http.tls_cert: is missing"},
		{"a certificate that is not there", "[http]\ntls_cert = \"not-there.pem\"\ntls_key = \"not-there.pem\"\n", 2, "http.tls_cert: open"},
		{"header of clients", "forwarded_header = \"x-real-ip\"\n", 1, "forwarded_header: want"},
		{"identity preset", "[identity_headers]\npreset = \"x-author\"\n", 2, "identity_headers.preset: want"},
		{"identity header of another meaning", "[identity_headers]\nuser = \"Authorization\"\n", 2, "identity_headers.user: want a header"},
		{"identity header that proxies set", "[identity_headers]\nkey = \"X-Forwarded-User\"\n", 2, "identity_headers.key: headers that begin with x-forwarded-"},
		{"identity headers alike", "[identity_headers]\npreset = \"remote\"\nscopes = \"remote-user\"\n", 3, "identity_headers.scopes: remote-user is the name of identity_headers.user ("},
		{"proxy protocol without proxies", "[http]\nproxy_protocol = true\n", 2, "http.proxy_protocol: is of trusted proxies alone"},
		{"policy for checks by more", "[[limits.policies]]\nname = \"a\"\nlimit = 1\nwindow = \"1s\"\nby = [\"check\", \"key\"]\n", 5, "limits.policies[0].by: check stands alone"},
		{"policy for checks of layers", "[[limits.policies]]\nname = \"a\"\nlimit = 1\nwindow = \"1s\"\nby = [\"check\"]\nlayers = [\"user\"]\n", 6, "limits.policies[0].layers: means nothing"},
		{"policy for checks on trial", "[[limits.policies]]\nname = \"a\"\nlimit = 1\nwindow = \"1s\"\nby = [\"check\"]\nshadow = true\n", 6, "limits.policies[0].shadow: means nothing"},
		{"policy's algorithm", policy + "name = \"a\"\nalgorithm = \"leaky\"\n", 6, "limits.policies[0].algorithm: want"},
		{"policy's window", "[[limits.policies]]\nname = \"a\"\nby = [\"key\"]\nlimit = 1\nwindow = \"1ms\"\n", 5, "limits.policies[0].window: want 1s to 744h"},
		{"unknown key of a policy", policy + "name = \"a\"\nlimits = 7\n", 6, "limits.policies[0].limits: unknown key: did you mean limit?"},
		{"too many policies for one request", manyPolicies(8), 5*7 + 1, "limits.policies[7]: 9 policies would count a request of layer api_key, its layer's own among them, and 8 may: p0, p1"},
		{"isolation", "[limits]\non_isolation = \"lax\"\n", 2, "limits.on_isolation: want"},
		{"lease and skew", "[limits]\nmax_clock_skew = \"20s\"\nlease = \"30s\"\n", 3, "limits.lease: 30s is less than twice limits.max_clock_skew"},
		{"lease and failover", "[raft]\nheartbeat_timeout = \"10s\"\nelection_timeout = \"10s\"\n", 0, "limits.lease: 10s is shorter than a failover"},
		{"dead_after", "[limits]\ndead_after = \"1s\"\n", 2, "limits.dead_after: want 2s to 1h"},
		{"token_ttl", "[auth]\ntoken_ttl = \"-1s\"\n", 2, "auth.token_ttl: want 1s to"},
		{"refresh before token", "[auth]\ntoken_ttl = \"2h\"\nrefresh_ttl = \"1h\"\n", 3, "auth.refresh_ttl: 1h is not longer than auth.token_ttl"},
		{"grace", "[auth]\ntoken_ttl = \"1s\"\nrefresh_ttl = \"5s\"\n", 1, "auth.refresh_reuse_grace: 10s is negative or not shorter than auth.refresh_ttl"},
		{"negative grace", "[auth]\nrefresh_reuse_grace = \"-1s\"\n", 2, "auth.refresh_reuse_grace: -1s is negative"},
		{"staleness", "[auth]\nmax_staleness = \"100ms\"\n", 2, "auth.max_staleness: want 500ms to 1h"},
		{"argon2", "[auth.argon2]\nmemory_kib = 8192\n", 2, "auth.argon2.memory_kib: want 19456 to"},
		{"rotation", "[auth]\nsigning_rotation = \"1m\"\n", 2, "auth.signing_rotation: 1m is shorter than auth.token_ttl"},
		{"election", "[raft]\nelection_timeout = \"500ms\"\n", 2, "raft.election_timeout: 500ms is shorter than raft.heartbeat_timeout"},
		{"trailing logs", "[raft]\ntrailing_logs = 100\n", 2, "raft.trailing_logs: 100 is less than twice"},
		{"client without secret", "[oauth.google]\nclient_id = \"me\"\n", 1, "oauth.google.client_secret: is missing, and oauth.google.client_id"},
		{"secret without client", "[oauth.github]\nclient_secret = \"me\"\n", 1, "oauth.github.client_id: is missing"},
		{"secret's file without client", "[oauth.github]\nclient_secret_file = \"me\"\n", 1, "oauth.github.client_id: is missing"},
		{"secret twice", "[oauth.github]\nclient_id = \"me\"\nclient_secret = \"x\"\nclient_secret_file = \"y\"\n", 4, "oauth.github.client_secret_file: is set together with oauth.github.client_secret"},
		{"secret's file is missing", "[oauth.github]\nclient_id = \"me\"\nclient_secret_file = \"nowhere\"\n", 3, "oauth.github.client_secret_file: read oauth.github.client_secret_file:"},
		{"secret's type", "[oauth.google]\nclient_secret = 12345\n", 2, "oauth.google.client_secret: want a text in quotes"},
		{"redirect", "[oauth]\nredirect_uris = [\"https://a.example\", \"https://a.example/#\"]\n", 2, "oauth.redirect_uris[1]: want a URI without a fragment"},
		{"redirect to a script", "[oauth]\nredirect_uris = [\"javascript:alert(1)\"]\n", 2, "oauth.redirect_uris[0]: want https, or the scheme of an application"},
		{"redirect in the clear", "public_url = \"https://api.example.com\"\n[oauth]\nredirect_uris = [\"http://a.example/\"]\n", 3, "oauth.redirect_uris[0]: want https: tokens would cross the network in the clear"},
		{"scope of a provider", "[oauth.google]\nscopes = [\"openid email\"]\n", 2, "oauth.google.scopes[0]: want a scope without spaces"},
		{"provider's name", "[oauth.providers.Acme]\nclient_id = \"x\"\n", 1, "oauth.providers.Acme: want a name of up to 32"},
		{"provider's name is an endpoint's", "[oauth.providers.sessions]\nclient_id = \"x\"\n", 1, "oauth.providers.sessions: /api/v1/auth/sessions is another endpoint"},
		{"provider's name is another one's", "[oauth.providers.google]\nclient_id = \"x\"\n", 1, "oauth.providers.google: is built in: its settings are in oauth.google"},
		{"provider's kind", "[oauth.providers.acme]\nkind = \"saml\"\n", 2, "oauth.providers.acme.kind: want \"oidc\" or \"github\", not \"saml\""},
		{"provider without client", "[oauth.providers.acme]\nissuer = \"https://a.example\"\n", 1, "oauth.providers.acme.client_id: is missing"},
		{"provider without issuer", "[oauth.providers.acme]\nclient_id = \"x\"\nclient_secret = \"y\"\n", 1, "oauth.providers.acme.issuer: is missing"},
		{"provider without endpoints", "[oauth.providers.acme]\nkind = \"github\"\nclient_id = \"x\"\nclient_secret = \"y\"\n", 1, "oauth.providers.acme.token_url: is missing"},
		{"unknown key of a provider", "[oauth.providers.acme]\nclientid = \"x\"\n", 2, "oauth.providers.acme.clientid: unknown key: did you mean client_id?"},
		{"provider without TLS", "[oauth.github]\ntoken_url = \"http://example.com/\"\n", 2, "oauth.github.token_url: want https"},
		{"public_url", "public_url = \"api.example.com\"\n", 1, "public_url: want an http or https URL"},
		{"resource", "[scopes]\nresources = [\"a:b\"]\n", 2, "scopes.resources[0]: want lower-case"},
		{"route without rules", route, 1, "routes[0].rules: is empty"},
		{"route twice", route + "rules = [{ methods = [\"*\"] }]\n" + route + "rules = [{ methods = [\"*\"] }]\n", 5, "routes[1].path: /a is the path of routes[0].path"},
		{"route's path", "[[routes]]\npath = \"a/\"\nrules = [{ methods = [\"*\"] }]\n", 2, "routes[0].path: want a plain path"},
		{"route over the API", "[[routes]]\npath = \"/api/v1/auth/verify\"\nupstream = \"http://a\"\nrules = [{ methods = [\"*\"] }]\n", 2, "belongs to the API itself"},
		{"upstream", route + "upstream = \"ftp://a\"\nrules = [{ methods = [\"*\"] }]\n", 3, "routes[0].upstream: want an http or https URL"},
		{"upstreams", route + "upstreams = [\"http://a\", \"a:80\"]\nrules = [{ methods = [\"*\"] }]\n", 3, "routes[0].upstreams[1]: want an http or https URL"},
		{"upstream and upstreams", route + "upstream = \"http://a\"\nupstreams = [\"http://b\"]\nrules = [{ methods = [\"*\"] }]\n", 4, "routes[0].upstreams: is set, and routes[0].upstream ("},
		{"an upstream twice", route + "upstreams = [\"http://a\", \"http://a\"]\nrules = [{ methods = [\"*\"] }]\n", 3, "routes[0].upstreams[1]: \"http://a\" is in the list twice"},
		{"an upstream's path", route + "upstream = \"http://a/b/../c\"\nrules = [{ methods = [\"*\"] }]\n", 3, "routes[0].upstream: want a plain path or none"},
		{"an upstream's password", route + "upstream = \"http://me:hunter2@a\"\nrules = [{ methods = [\"*\"] }]\n", 3, "routes[0].upstream: must not hold a user name or password"},
		{"authorities that are not there", route + "upstream = \"https://a\"\nupstream_ca_file = \"not-there.pem\"\nrules = [{ methods = [\"*\"] }]\n", 4, "routes[0].upstream_ca_file: open"},
		{"authorities of nobody", route + "upstream_ca_file = \"not-there.pem\"\nrules = [{ methods = [\"*\"] }]\n", 3, "routes[0].upstream_ca_file: means nothing without upstream"},
		{"retries", route + "upstream = \"http://a\"\nretries = 6\nrules = [{ methods = [\"*\"] }]\n", 4, "routes[0].retries: want 0 to 5, not 6"},
		{"fails", route + "upstream = \"http://a\"\nmax_fails = -1\nrules = [{ methods = [\"*\"] }]\n", 4, "routes[0].max_fails: want 1 to 1000"},
		{"ejection", route + "upstream = \"http://a\"\neject_time = \"2h\"\nrules = [{ methods = [\"*\"] }]\n", 4, "routes[0].eject_time: want 1ms to 1h"},
		{"connecting", route + "upstream = \"http://a\"\nconnect_timeout = \"0.1ms\"\nrules = [{ methods = [\"*\"] }]\n", 4, "routes[0].connect_timeout: want 1ms to 1h"},
		{"answers", route + "upstream = \"http://a\"\nmax_answer_bytes = -1\nrules = [{ methods = [\"*\"] }]\n", 4, "routes[0].max_answer_bytes: want 0 to"},
		{"requests at once", route + "upstream = \"http://a\"\nmax_requests = -1\nrules = [{ methods = [\"*\"] }]\n", 4, "routes[0].max_requests: want 1 to"},
		{"WebSockets of nobody", route + "websocket = true\nrules = [{ methods = [\"*\"] }]\n", 3, "routes[0].websocket: means nothing without upstream"},
		{"WebSockets' idle time", route + "upstream = \"http://a\"\nwebsocket = true\nwebsocket_idle_timeout = \"1ms\"\nrules = [{ methods = [\"*\"] }]\n", 5, "routes[0].websocket_idle_timeout: want 1s to"},
		{"a route's pages", route + "upstream = \"http://a\"\ncors = { origins = [\"*\"] }\nrules = [{ methods = [\"*\"] }]\n", 4, "routes[0].cors.origins[0]: \"*\" would let every web page"},
		{"a route's pages' headers", route + "upstream = \"http://a\"\ncors = { origins = [\"https://a\"], headers = [\"a b\"] }\nrules = [{ methods = [\"*\"] }]\n", 4, "routes[0].cors.headers[0]: want a header's name"},
		{"no page of a route", route + "upstream = \"http://a\"\ncors = { credentials = true }\nrules = [{ methods = [\"*\"] }]\n", 4, "routes[0].cors.origins: is empty"},
		{"overlap", route + "[[routes.rules]]\nmethods = [\"GET\"]\n[[routes.rules]]\nmethods = [\"POST\", \"GET\"]\n", 6, "routes[0].rules[1].methods[1]: GET is in routes[0].rules[0].methods"},
		{"after all", route + "[[routes.rules]]\nmethods = [\"*\"]\n[[routes.rules]]\nmethods = [\"POST\"]\n", 6, "routes[0].rules[1].methods: is never reached"},
		{"scope", route + "rules = [{ methods = [\"*\"], scopes = [\"trigger:read\"] }]\n", 3, "\"trigger\" is not in scopes.resources: did you mean triggers?"},
		{"scope's form", route + "rules = [{ methods = [\"*\"], scopes = [\"triggers\"] }]\n", 3, "want a scope as in"},
		{"cost", route + "rules = [{ methods = [\"*\"], cost = 0 }]\n", 3, "routes[0].rules[0].cost: want 1 to"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			path := write(t, minimal+test.text)
			_, err := LoadConfig(path, secretVariables())
			var ce *ConfigError
			if !errors.As(err, &ce) {
				t.Fatalf("got %v, want a ConfigError", err)
			}
			where := path + ": "
			if test.line > 0 {
				where = fmt.Sprintf("%s:%d:", path, offset+test.line)
			}
			for _, m := range ce.Mistakes {
				if strings.HasPrefix(m.String(), where) && strings.Contains(m.String(), test.want) {
					return
				}
			}
			t.Errorf("got\n%v\nwant a line that begins with %s and holds %q", err, where, test.want)
		})
	}
}

// manyPolicies are policies that all count the same requests, five lines each.
func manyPolicies(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "[[limits.policies]]\nname = \"p%d\"\nby = [\"key\"]\nlimit = 1\nwindow = \"1s\"\n", i)
	}
	return b.String()
}

func TestLoadConfig_Policies(t *testing.T) {
	t.Parallel()
	text := minimal + manyPolicies(7) + `
[[limits.policies]]
name = "pro-day"
by = ["organization", "route"]
plans = ["pro", "none"]
routes = ["a"]
layers = ["user"]
limit = 5000
window = "24h"
algorithm = "fixed_window"
shadow = true
[plans.pro]
limit = 1
[[routes]]
path = "/a"
rules = [{ methods = ["*"] }]
`
	cfg, err := LoadConfig(write(t, text), append(secretVariables(),
		"SLUICE_LIMITS__POLICIES__0__LIMIT=7", "SLUICE_LIMITS__POLICIES__1__BY=key,route", "SLUICE_LIMITS__POLICIES__1__SHADOW=true",
		"SLUICE_LIMITS__ON_ISOLATION=available", `SLUICE_INITIAL_MEMBERS=127.0.0.1:7100,a:1,b:1,c:1,d:1`))
	if err != nil {
		t.Fatal(err)
	}
	rule := RuleConfig{Limit: 7, Window: Duration(time.Second), Algorithm: "sliding_window"}
	want := PolicyConfig{Name: "p0", By: []string{"key"}, Layers: []string{}, Routes: []string{}, Plans: []string{}, RuleConfig: rule}
	if got := cfg.Limits.Policies[0]; !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := cfg.Limits.Policies[1]; len(got.By) != 2 || !got.Shadow {
		t.Errorf("changed by the environment: %+v", got)
	}
	limits, err := cfg.apiLimits()
	if err != nil {
		t.Fatal(err)
	}
	day := authapi.Policy{
		Name: "pro-day", By: []authapi.Dimension{authapi.ByOrganization, authapi.ByRoute}, Layers: []string{"user"}, Routes: []string{"a"},
		Plans: []string{"pro", authapi.PlanNone}, Rule: limiter.Rule{Limit: 5000, Window: 86_400, Algorithm: limiter.FixedWindow}, Shadow: true,
	}
	if got := limits.Policies[7]; !reflect.DeepEqual(got, day) {
		t.Errorf("got %+v, want %+v", got, day)
	}
	notes := strings.Join(cfg.Notes(), "\n")
	for _, line := range []string{
		"limits.anonymous may be exceeded by up to 2 a window for each node that is cut off (5 nodes share 10; by up to 5 with 2 cut off one after the other)",
		"limits.policies[0] (p0) may be exceeded by up to 2 a window for each node that is cut off (5 nodes share 7; by up to 4 with 2",
	} {
		if !strings.Contains(notes, line) {
			t.Errorf("no %q in\n%s", line, notes)
		}
	}
	if strings.Contains(notes, "p1") || strings.Contains(notes, "pro-day") {
		t.Errorf("shadow policies exceed nothing:\n%s", notes)
	}
	// The whole list by environment.
	cfg, err = LoadConfig(write(t, text), append(secretVariables(), `SLUICE_LIMITS__POLICIES=[{ name = "x", by = ["address"], limit = 3, window = "1h" }]`))
	if err != nil || len(cfg.Limits.Policies) != 1 || cfg.Limits.Policies[0].Limit != 3 || cfg.Limits.Policies[0].Window != Duration(time.Hour) {
		t.Errorf("the list by environment: %v %+v", err, cfg.Limits.Policies)
	}
	_, err = LoadConfig(write(t, text), append(secretVariables(), `SLUICE_LIMITS__POLICIES=[{ name = "x", by = ["keyy"], limit = 3, window = "1h" }]`))
	if err == nil || !strings.Contains(err.Error(), "SLUICE_LIMITS__POLICIES: limits.policies[0].by[0]: want one of address, key, user, organization, route, check, descriptor, not \"keyy\": did you mean key?") {
		t.Errorf("a mistake in the environment: %v", err)
	}
}

// A token bucket holds what burst says, or its limit; a plan takes the algorithm over, and not the burst.
func TestLoadConfig_TokenBuckets(t *testing.T) {
	t.Parallel()
	text := minimal + `[limits.anonymous]
algorithm = "token_bucket"
[limits.api_key]
window = "1s"
algorithm = "token_bucket"
burst = 500
[plans.pro]
limit = 1000
[[limits.policies]]
name = "second"
by = ["key"]
limit = 0
window = "1s"
algorithm = "token_bucket"
`
	cfg, err := LoadConfig(write(t, text), append(secretVariables(), "SLUICE_LIMITS__USER__ALGORITHM=token_bucket", "SLUICE_LIMITS__USER__BURST=7"))
	if err != nil {
		t.Fatal(err)
	}
	bucket := func(limit int64, window time.Duration, burst int64) RuleConfig {
		return RuleConfig{Limit: limit, Window: Duration(window), Algorithm: "token_bucket", Burst: burst}
	}
	for name, check := range map[string]struct{ got, want RuleConfig }{
		"anonymous": {cfg.Limits.Anonymous, bucket(10, time.Minute, 10)},
		"api_key":   {cfg.Limits.APIKey, bucket(100, time.Second, 500)},
		"user":      {cfg.Limits.User, bucket(100, time.Minute, 7)},
		"pro":       {cfg.Plans["pro"], bucket(1000, time.Second, 1000)},
		"second":    {cfg.Limits.Policies[0].RuleConfig, bucket(0, time.Second, 1)},
	} {
		if check.got != check.want {
			t.Errorf("%s: got %+v, want %+v", name, check.got, check.want)
		}
		if _, err := check.got.rule(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLoadConfig_TellsEveryMistake(t *testing.T) {
	t.Parallel()
	_, err := LoadConfig(write(t, `nam = "x"
trusted_proxies = ["x", "y"]
[auth]
token_ttl = 5
on_stale = "maybe"
[limits.user]
window = "1ms"
`), nil)
	var ce *ConfigError
	if !errors.As(err, &ce) {
		t.Fatal(err)
	}
	text := err.Error()
	for _, want := range []string{"nam", "trusted_proxies[0]", "trusted_proxies[1]", "auth.token_ttl", "auth.on_stale", "limits.user.window", "secrets.cluster_file", "secrets.key_file", "initial_members", "peer.advertise"} {
		if !strings.Contains(text, want) {
			t.Errorf("no word about %s in:\n%s", want, text)
		}
	}
}

// TestLoadConfig_NoTOML shows that a text that cannot be taken apart is told alone: what seems to be missing stands in it.
func TestLoadConfig_NoTOML(t *testing.T) {
	t.Parallel()
	_, err := LoadConfig(write(t, "name = \n"+minimal), nil)
	var ce *ConfigError
	if !errors.As(err, &ce) || len(ce.Mistakes) != 1 || ce.Mistakes[0].Line != 1 {
		t.Errorf("got %v", err)
	}
}

func TestSecret_IsNeverShown(t *testing.T) {
	t.Parallel()
	const secret = "hunter2-hunter2"
	cfg := DefaultConfig()
	cfg.Secrets.Key = secret
	cfg.OAuth.Google.ClientSecret = secret
	var out bytes.Buffer
	if err := cfg.Show(&out); err != nil {
		t.Fatal(err)
	}
	if strings.Count(out.String(), secretMask) != 2 {
		t.Errorf("no mask in:\n%s", out.String())
	}
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&out, format+"\n", cfg)
		fmt.Fprintf(&out, format+"\n", cfg.Secrets.Key)
	}
	slog.New(slog.NewTextHandler(&out, nil)).Info("m", "cfg", cfg, "key", cfg.Secrets.Key)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("m", "cfg", cfg, "key", cfg.Secrets.Key)
	if err := json.NewEncoder(&out).Encode(cfg); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), secret) || strings.Contains(out.String(), fmt.Sprintf("%x", secret)) {
		t.Errorf("the secret is in:\n%s", out.String())
	}
	cfg, mistakes, err := readConfig(write(t, "secrets.key = 12345678901\n"), nil)
	if err != nil || len(mistakes) != 1 || strings.Contains(mistakes[0].String(), "12345") {
		t.Errorf("a secret without quotes: %v %v %v", cfg.Secrets, mistakes, err)
	}
}

func TestConfig_ShowCanBeReadAgain(t *testing.T) {
	t.Parallel()
	cfg, err := LoadConfig(write(t, minimal+"[[routes]]\npath = \"/a\"\nrules = [{ methods = [\"*\"] }]\n[plans.pro]\nlimit = 7\n"+manyPolicies(2)), secretVariables())
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := cfg.Show(&out); err != nil {
		t.Fatal(err)
	}
	again, err := LoadConfig(write(t, out.String()), secretVariables())
	if err != nil {
		t.Fatalf("%v in\n%s", err, out.String())
	}
	for _, c := range []*Config{&cfg, &again} {
		c.origins, c.Secrets = nil, SecretsConfig{}
	}
	if !reflect.DeepEqual(cfg, again) {
		t.Errorf("got %+v, want %+v", again, cfg)
	}
}

func TestLoadConfig_Providers(t *testing.T) {
	t.Parallel()
	path := write(t, minimal+`
[oauth.google]
client_id = "g"
client_secret_file = "google.secret"
[oauth.providers.acme]
client_id = "a"
issuer = "https://login.acme.example"
client_secret_file = "acme.secret"
`)
	for name, text := range map[string]string{"google.secret": "from a file\n", "acme.secret": "another"} {
		if err := os.WriteFile(filepath.Join(filepath.Dir(path), name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg, err := LoadConfig(path, append(secretVariables(), "SLUICE_OAUTH__PROVIDERS__ACME__CLIENT_SECRET=from the environment",
		"SLUICE_OAUTH__PROVIDERS__HUB__KIND=github", "SLUICE_OAUTH__PROVIDERS__HUB__CLIENT_ID=h", "SLUICE_OAUTH__PROVIDERS__HUB__CLIENT_SECRET=s",
		"SLUICE_OAUTH__PROVIDERS__HUB__AUTH_URL=https://hub.example/a", "SLUICE_OAUTH__PROVIDERS__HUB__TOKEN_URL=https://hub.example/t",
		"SLUICE_OAUTH__PROVIDERS__HUB__USERINFO_URL=https://hub.example/u"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := cfg.apiOAuth()
	if err != nil {
		t.Fatal(err)
	}
	want := []authapi.OAuthProvider{
		{Name: "google", Kind: "oidc", ClientID: "g", ClientSecret: "from a file", Scopes: []string{}},
		{Name: "acme", Kind: "oidc", ClientID: "a", ClientSecret: "from the environment", Issuer: "https://login.acme.example", Scopes: []string{}},
		{Name: "hub", Kind: "github", ClientID: "h", ClientSecret: "s", AuthURL: "https://hub.example/a", TokenURL: "https://hub.example/t",
			UserInfoURL: "https://hub.example/u", Scopes: []string{}},
	}
	if !reflect.DeepEqual(got.Providers, want) {
		t.Errorf("got %+v, want %+v", got.Providers, want)
	}
	var out bytes.Buffer
	if err := cfg.Show(&out); err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"from the environment", "from a file", `client_secret = 's'`} {
		if strings.Contains(out.String(), secret) {
			t.Errorf("%q is shown in\n%s", secret, out.String())
		}
	}
	if !strings.Contains(out.String(), "[oauth.providers.acme]") || string(cfg.OAuth.Providers["acme"].ClientSecret) != "from the environment" {
		t.Errorf("showing a configuration changed it, or left a provider out:\n%s", out.String())
	}
	if notes := strings.Join(cfg.Notes(), "\n"); !strings.Contains(notes, "oauth.google is configured and public_url is not") {
		t.Errorf("notes: %s", notes)
	}
}

func TestDuration_Text(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{"90s": "1m30s", "60m": "1h", "1h0m0s": "1h", "0s": "0s", "1500ms": "1.5s", "10m": "10m", "720h": "720h", "1h10m": "1h10m"} {
		var d Duration
		if err := d.UnmarshalText([]byte(text)); err != nil || d.String() != want {
			t.Errorf("%s: got %s, %v, want %s", text, d, err, want)
		}
	}
}

func FuzzLoadConfig(f *testing.F) {
	f.Add([]byte(minimal), "10")
	f.Add([]byte("[[routes]]\npath = \"/a\"\n[[routes.rules]]\nmethods = [\"GET\"]\n[plans.\"x.y\"]\nlimit=1\n"), "[{}]")
	f.Add([]byte("a.b.c = [[1,2],[{x=1}]]\r\nraft = {heartbeat_timeout = \"1s\"}\n"), "{}")
	if example, err := os.ReadFile(examplePath); err == nil {
		f.Add(example, "x")
	}
	names := append(variableNames(), "SLUICE_ROUTES__0__RULES__0__COST", "SLUICE_PLANS__A__LIMIT")
	f.Fuzz(func(t *testing.T, data []byte, value string) {
		cfg := DefaultConfig()
		cfg.origins = &origins{file: "f", places: make(map[string]place)}
		mistakes, _ := cfg.decode("f", data)
		if len(data) > 0 {
			mistakes = append(mistakes, cfg.override([]string{names[len(data)%len(names)] + "=" + value})...)
		}
		cfg.fillEntries()
		cfg.Secrets = SecretsConfig{} // no files of the fuzzer's choice
		for _, p := range cfg.oauthProviders() {
			p.ClientSecretFile = ""
			p.put()
		}
		mistakes = append(mistakes, cfg.mistakes()...)
		lines := bytes.Count(data, []byte("\n")) + 1
		for _, m := range mistakes {
			if m.Line < 0 || m.Line > lines || m.Line > 0 && m.Column < 1 {
				t.Fatalf("mistake at no place of the text: %v", m)
			}
		}
		if err := cfg.Show(new(bytes.Buffer)); err != nil {
			t.Fatal(err)
		}
	})
}

// TestPrefixes_Mapped: addresses are compared as IPv4 where they are that, so prefixes of them must be too.
func TestPrefixes_Mapped(t *testing.T) {
	t.Parallel()
	got, err := prefixes([]string{"10.0.0.0/8", "::ffff:10.1.0.0/112", "::ffff:192.0.2.1", "2001:db8::/32", "::1"})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"10.0.0.0/8", "10.1.0.0/16", "192.0.2.1/32", "2001:db8::/32", "::1/128"} {
		if got[i].String() != want {
			t.Errorf("prefix %d is %v, want %s", i, got[i], want)
		}
	}
}
