package node

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"sluice/raftfsm/state"
)

// liveBase is a node's own configuration, read from a file.
func liveBase(t *testing.T, more string) Config {
	t.Helper()
	path := write(t, minimal+more)
	c, err := LoadConfig(path, append(secretVariables(), "SLUICE_LIMITS__USER__LIMIT=70"))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const liveFile = `
[limits.anonymous]
limit = 7
algorithm = "fixed_window"

[plans.gold]
limit = 500

[[limits.policies]]
name = "day"
by = ["organization"]
plans = ["gold"]
limit = 900
window = "24h"

[[routes]]
path = "/api/v1/things"
rules = [{ methods = ["GET"], scopes = ["events:read"] }]
`

func TestWithSettings(t *testing.T) {
	t.Parallel()
	base := liveBase(t, liveFile)
	was := fmt.Sprintf("%+v", base.liveValues())
	live, err := base.withSettings("s.toml", `
[limits.anonymous]
limit = 3

[limits]
policies = []

[plans]
silver = { limit = 5 }

[[routes]]
path = "/x"
upstream = "http://127.0.0.1:9"
rules = [{ methods = ["*"], anonymous = true }]
`)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"limits.anonymous", "plans", "limits.policies", "routes"}; !reflect.DeepEqual(live.Sections, want) {
		t.Errorf("sections %v, want %v", live.Sections, want)
	}
	c := live.Config
	// A section that is set is whole: what it leaves out is the default, not the file's.
	if got, want := c.Limits.Anonymous, (RuleConfig{Limit: 3, Window: DefaultConfig().Limits.Anonymous.Window, Algorithm: "sliding_window"}); got != want {
		t.Errorf("anonymous %+v, want %+v", got, want)
	}
	if c.Limits.User.Limit != 70 || len(c.Limits.Policies) != 0 || len(c.Plans) != 1 || c.Plans["silver"].Window != c.Limits.APIKey.Window {
		t.Errorf("user %+v, policies %+v, plans %+v", c.Limits.User, c.Limits.Policies, c.Plans)
	}
	if len(c.Routes) != 1 || c.Routes[0].Name != "x" || c.Routes[0].Timeout != defaultRouteTimeout || c.Routes[0].Rules[0].Cost != 1 {
		t.Errorf("routes %+v", c.Routes)
	}
	if got := fmt.Sprintf("%+v", base.liveValues()); got != was {
		t.Errorf("the file's own changed:\n%s\n%s", got, was)
	}
	empty, err := base.withSettings("s.toml", "# nothing\n")
	if err != nil || len(empty.Sections) != 0 || !empty.Config.Equal(base) {
		t.Errorf("empty settings: %v, %+v", err, empty.Sections)
	}
	if notes := strings.Join(base.liveNotes([]string{"limits.anonymous", "limits.user", "limits.api_key", "routes"}), "\n"); strings.Count(notes, "\n") != 2 ||
		!strings.Contains(notes, "limits.user is set at SLUICE_LIMITS__USER__LIMIT") {
		t.Errorf("notes %q", notes)
	}
}

func TestWithSettings_Mistakes(t *testing.T) {
	t.Parallel()
	base := liveBase(t, liveFile)
	for _, test := range []struct{ text, want string }{
		{"[limits.anonymous]\nlimit = -1", "s.toml:2:1: limits.anonymous.limit: want 0 to"},
		{"[limits.anonymous]\nlimits = 1", "s.toml:2:1: limits.anonymous.limits: unknown key: did you mean limit?"},
		{"[limits.anonymous]\nlimit = \"x\"", `s.toml:2:1: limits.anonymous.limit: want a whole number, not "x"`},
		{"\n[limits]\nlease = \"5s\"", "s.toml:3:1: limits.lease: does not change live"},
		{"[limits]\nuserz = {}", "s.toml:2:1: limits.userz: unknown key: did you mean user?"},
		{"[http]\nlisten = \":1\"", "s.toml:1:2: http: does not change live"},
		{"data_dir = \"/\"", "s.toml:1:1: data_dir: does not change live"},
		{"[secrets]\nkey = \"very-secret\"", "s.toml:1:2: secrets: does not change live"},
		{"[oauth.google]\nclient_id = \"a\"", "s.toml:1:8: oauth.google: does not change live"},
		{"plan = 1", "s.toml:1:1: plan: unknown key: did you mean plans?"},
		{"limits = 1", "s.toml:1:1: limits: want a table, not 1"},
		{"routes = 1", "s.toml:1:1: routes: want a list in brackets, not 1"},
		{"[limits.user]\nlimit = 1\nlimit = 2", "s.toml:3:"},
		{"[plans.gold]\nlimit = 1\n[plans.none]\nlimit = 1", "s.toml:3:8: plans.none: "},
		{"[[limits.policies]]\nname = \"a\"\nby = [\"key\"]", "s.toml:1:10: limits.policies[0].limit: is missing"},
		{"[scopes]\nresources = [\"events\", \"Events\"]", "s.toml:2:24: scopes.resources[1]: want lower-case"},
		{"[oauth]\nredirect_uris = [\"javascript:x\"]", "s.toml:2:18: oauth.redirect_uris[0]: want"},
		{"[[routes]]\npath = \"/api/v1/auth/x\"\nupstream = \"http://127.0.0.1:1\"\nrules = [{ methods = [\"GET\"] }]", "s.toml:2:1: routes[0].path: /api/v1/auth/x belongs to the API itself"},
		{strings.Repeat("#", state.MaxSettingsText+1), "s.toml: the settings are longer than 48 KiB"},
	} {
		_, err := base.withSettings("s.toml", test.text)
		var wrong *ConfigError
		if !errors.As(err, &wrong) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%.60q:\ngot  %v\nwant %s", test.text, err, test.want)
		}
		if err != nil && strings.Contains(err.Error(), "very-secret") {
			t.Errorf("a secret is told: %v", err)
		}
	}
	// What the file has and the settings leave to it can be what does not go: that is told with the file's place.
	_, err := base.withSettings("s.toml", "[plans.silver]\nlimit = 1\n[scopes]\nresources = [\"things\"]")
	if err == nil || strings.Count(err.Error(), "\n") != 1 || strings.Contains(err.Error(), "s.toml") ||
		!strings.Contains(err.Error(), base.origins.file) || !strings.Contains(err.Error(), "limits.policies[0].plans[0]") || !strings.Contains(err.Error(), "routes[0].rules[0].scopes[0]") {
		t.Errorf("got %v", err)
	}
	// Several mistakes are all told, in their order.
	_, err = base.withSettings("s.toml", "http = 1\n[limits.user]\nlimit = -1\nwindow = \"1ms\"")
	if err == nil || strings.Count(err.Error(), "\n") != 2 || !strings.HasPrefix(err.Error(), "s.toml:1:1: http") {
		t.Errorf("got %v", err)
	}
}

func TestLiveChanges(t *testing.T) {
	t.Parallel()
	base := liveBase(t, liveFile)
	live, err := base.withSettings("s.toml", `
[limits.anonymous]
limit = 7

[plans.gold]
limit = 600
algorithm = "token_bucket"

[[limits.policies]]
name = "new"
by = ["key"]
limit = 1
window = "1s"
shadow = true
`)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range base.liveChanges(&live.Config) {
		got = append(got, c.Text())
	}
	want := []string{
		`~ limits.anonymous.algorithm = "fixed_window" → "sliding_window"`,
		`~ plans.gold.limit = 500 → 600`,
		`~ plans.gold.algorithm = "sliding_window" → "token_bucket"`,
		`- limits.policies.day.by = ["organization"]`,
		`- limits.policies.day.plans = ["gold"]`,
		`- limits.policies.day.limit = 900`,
		`- limits.policies.day.window = "24h"`,
		`- limits.policies.day.algorithm = "sliding_window"`,
		`+ plans.gold.burst = 600`,
		`+ limits.policies.new.by = ["key"]`,
		`+ limits.policies.new.limit = 1`,
		`+ limits.policies.new.window = "1s"`,
		`+ limits.policies.new.algorithm = "sliding_window"`,
		`+ limits.policies.new.shadow = true`,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	notes := strings.Join(base.bucketNotes(&live.Config), "\n")
	if strings.Count(notes, "\n") != 1 || !strings.Contains(notes, "limits.anonymous counts from nothing") || !strings.Contains(notes, "plans.gold counts from nothing") {
		t.Errorf("notes %q", notes)
	}
	if same := base.liveChanges(&base); len(same) != 0 {
		t.Errorf("nothing changed, and %+v is told", same)
	}
	long := make([]SettingChange, 100)
	for i := range long {
		text := strings.Repeat("x", 50)
		long[i] = SettingChange{Key: fmt.Sprint("key", i), To: &text}
	}
	if text := changesText(long); len(text) > maxChangesText+30 || !strings.HasSuffix(text, " more") {
		t.Errorf("%d bytes: %q", len(text), text)
	}
}

// The newest version that goes with the node's own configuration runs, and never one older than what runs.
func TestChooseSettings(t *testing.T) {
	t.Parallel()
	base := liveBase(t, liveFile)
	version := func(n uint64, text string) state.Settings { return state.Settings{Version: n, Text: text} }
	good := func(limit int) string { return fmt.Sprintf("[limits.user]\nlimit = %d\n", limit) }
	const bad = "[scopes]\nresources = [\"things\"]\n" // the file's route needs another
	for _, test := range []struct {
		name    string
		kept    []state.Settings
		running *runningSettings
		want    uint64 // version
		limit   int64
		problem bool
	}{
		{"none", nil, nil, 0, 70, false},
		{"the newest", []state.Settings{version(1, good(1)), version(2, good(2))}, nil, 2, 2, false},
		{"the newest that fits", []state.Settings{version(1, good(1)), version(2, bad)}, nil, 1, 1, true},
		{"none fits", []state.Settings{version(1, bad)}, nil, 0, 70, true},
		{"what runs stays", []state.Settings{version(1, good(1)), version(2, good(2)), version(3, bad)}, &runningSettings{version: 2, text: good(2)}, 2, 0, true},
		{"what runs is forgotten", []state.Settings{version(30, bad)}, &runningSettings{version: 2, text: good(2)}, 2, 0, true},
		{"another history", []state.Settings{version(1, good(1))}, &runningSettings{version: 2, text: good(2)}, 1, 1, false},
		{"another history of the same length", []state.Settings{version(2, good(1))}, &runningSettings{version: 2, text: good(2)}, 2, 1, false},
		{"a history without any", nil, &runningSettings{version: 2, text: good(2)}, 0, 70, false},
	} {
		got := chooseSettings(base, test.kept, test.running)
		if got.version != test.want || got.live.Config.Limits.User.Limit != test.limit || (got.problem != nil) != test.problem {
			t.Errorf("%s: version %d, limit %d, problem %v", test.name, got.version, got.live.Config.Limits.User.Limit, got.problem)
		}
	}
}

func FuzzWithSettings(f *testing.F) {
	f.Add(liveFile)
	f.Add("[limits]\npolicies = [{ name = \"a\", by = [\"key\"], limit = 1, window = \"1s\" }]")
	f.Add("limits.user.limit = 1\nplans = { a = { limit = 1 } }")
	f.Add("[[routes]]\n[[routes.rules]]\nmethods = []")
	base := DefaultConfig()
	f.Fuzz(func(t *testing.T, text string) {
		live, err := base.withSettings("s.toml", text)
		if err != nil {
			var wrong *ConfigError
			if !errors.As(err, &wrong) || len(wrong.Mistakes) == 0 {
				t.Fatalf("%v is no list of mistakes", err)
			}
			return
		}
		if _, err := live.Config.apiLive(); err != nil {
			t.Fatalf("what was checked cannot be used: %v", err)
		}
		if again := live.Config.liveChanges(&live.Config); len(again) != 0 {
			t.Fatalf("not its own: %+v", again)
		}
	})
}
