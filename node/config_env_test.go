package node

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestLoadConfig_Environment(t *testing.T) {
	t.Parallel()
	path := write(t, minimal+`
[plans.pro]
limit = 500
[[routes]]
path = "/a"
rules = [{ methods = ["*"] }]
`)
	cfg, err := LoadConfig(path, append(secretVariables(),
		"SLUICE_LIMITS__ANONYMOUS__LIMIT=1_000",
		"SLUICE_LIMITS__API_KEY__WINDOW=1h",
		"SLUICE_LIMITS__USER__ALGORITHM=fixed_window",
		"SLUICE_LIMITS__ON_ISOLATION=available",
		"SLUICE_AUTH__REFRESH_REUSE_GRACE=0s",
		"SLUICE_AUTH__MAX_STALENESS=7s",
		"SLUICE_AUTH__ON_STALE=serve",
		"SLUICE_AUTH__TOKEN_TTL=2m",
		"SLUICE_OAUTH__GOOGLE__CLIENT_ID=id",
		"SLUICE_OAUTH__GOOGLE__CLIENT_SECRET=s3cret",
		"SLUICE_OAUTH__GITHUB__CLIENT_ID=id",
		"SLUICE_OAUTH__GITHUB__CLIENT_SECRET=s3cret",
		"SLUICE_PUBLIC_URL=https://api.example.com/",
		"SLUICE_TRUSTED_PROXIES=10.0.0.0/8, ::1",
		`SLUICE_OAUTH__REDIRECT_URIS=["https://a.example/x,y"]`,
		"SLUICE_PLANS__PRO__LIMIT=600",
		"SLUICE_PLANS__BIG__LIMIT=9000",
		"SLUICE_ROUTES__0__UPSTREAM=http://127.0.0.1:1",
		"SLUICE_ROUTES__1__PATH=/b",
		`SLUICE_ROUTES__1__RULES=[{ methods = ["GET"], cost = 3 }]`,
	))
	if err != nil {
		t.Fatal(err)
	}
	for _, check := range []struct {
		name      string
		got, want any
	}{
		{"anonymous", cfg.Limits.Anonymous.Limit, int64(1000)},
		{"api_key", cfg.Limits.APIKey.Window, Duration(time.Hour)},
		{"user", cfg.Limits.User.Algorithm, "fixed_window"},
		{"on_isolation", cfg.Limits.OnIsolation, "available"},
		{"grace", cfg.Auth.RefreshReuseGrace, Duration(0)},
		{"staleness", cfg.Auth.MaxStaleness, Duration(7 * time.Second)},
		{"public_url", cfg.PublicURL, "https://api.example.com"},
		{"proxies", cfg.TrustedProxies, []string{"10.0.0.0/8", "::1"}},
		{"redirects", cfg.OAuth.RedirectURIs, []string{"https://a.example/x,y"}},
		{"pro", cfg.Plans["pro"], RuleConfig{Limit: 600, Window: Duration(time.Hour), Algorithm: "sliding_window"}},
		{"big", cfg.Plans["big"].Limit, int64(9000)},
		{"upstream", cfg.Routes[0].Upstream, "http://127.0.0.1:1"},
		{"added route", cfg.Routes[1].Path + " " + cfg.Routes[1].Name, "/b b"},
		{"added rule", cfg.Routes[1].Rules[0].Cost, int64(3)},
		{"secret", string(cfg.OAuth.Google.ClientSecret), "s3cret"},
	} {
		if !reflect.DeepEqual(check.got, check.want) {
			t.Errorf("%s: got %v, want %v", check.name, check.got, check.want)
		}
	}
	if notes := cfg.Notes(); len(notes) != 6 || !strings.Contains(notes[0], "up to 1000 ") {
		t.Errorf("notes: %q", notes)
	}
}

func TestLoadConfig_EnvironmentReachesEverySetting(t *testing.T) {
	t.Parallel()
	for _, name := range variableNames() {
		cfg := DefaultConfig()
		cfg.origins = &origins{places: make(map[string]place)}
		for _, m := range cfg.override([]string{name + "=\x00"}) {
			if strings.Contains(m.Message, "unknown variable") {
				t.Errorf("%s: %v", name, m)
			}
		}
	}
	if len(variableNames()) < 70 {
		t.Errorf("only %d variables", len(variableNames()))
	}
}

func TestLoadConfig_EnvironmentMistakes(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ entry, want string }{
		{"SLUICE_LIMITS__ANONYMOUS__LIMT=1", "SLUICE_LIMITS__ANONYMOUS__LIMT: unknown variable: did you mean SLUICE_LIMITS__ANONYMOUS__LIMIT?"},
		{"SLUICE_LIMITS_ANONYMOUS_LIMIT=1", "did you mean SLUICE_LIMITS__ANONYMOUS__LIMIT?"},
		{"SLUICE_name=1", "SLUICE_name: unknown variable: did you mean SLUICE_NAME?"},
		{"SLUICE_=1", "SLUICE_: unknown variable"},
		{"SLUICE_ROUTES__9__PATH=/a", "SLUICE_ROUTES__9__PATH: unknown variable"},
		{"SLUICE_PLANS__PRO__LIMITS=1", "SLUICE_PLANS__PRO__LIMITS: unknown variable"},
		{"SLUICE_LIMITS__ANONYMOUS__LIMIT=ten", "SLUICE_LIMITS__ANONYMOUS__LIMIT: limits.anonymous.limit: want a whole number, not \"ten\""},
		{"SLUICE_AUTH__TOKEN_TTL=60", "SLUICE_AUTH__TOKEN_TTL: auth.token_ttl: want a duration"},
		{"SLUICE_AUTH__TOKEN_TTL=-1s", "SLUICE_AUTH__TOKEN_TTL: auth.token_ttl: want 1s to"},
		{"SLUICE_ROUTES=x", "SLUICE_ROUTES: routes: want a value as in TOML"},
		{"SLUICE_ROUTES=[]\nname = \"x\"", "SLUICE_ROUTES: routes: want a value as in TOML"},
		{"SLUICE_ROUTES=[{ path = \"x\" }]", "SLUICE_ROUTES: routes[0].path: want a plain path"},
		{"SLUICE_OAUTH__GOOGLE__CLIENT_ID=x", "oauth.google.client_secret: is missing"},
		{"SLUICE_SECRETS__CLUSTER=short", "SLUICE_SECRETS__CLUSTER: secrets.cluster: "},
	} {
		_, err := LoadConfig(write(t, minimal), append(secretVariables(), test.entry))
		var ce *ConfigError
		if !errors.As(err, &ce) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q", test.entry, err, test.want)
		}
	}
}
