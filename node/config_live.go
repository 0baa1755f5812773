package node

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"sluice/raftfsm/state"
)

// liveSection is a part of the configuration that may be changed while the cluster runs. A document of settings sets it as a whole
// or leaves it to each node's own configuration.
type liveSection struct {
	key   string
	reset func(c, defaults *Config) // makes it what an empty file says
}

// liveSections in the order in which they are shown.
var liveSections = []liveSection{
	{"limits.anonymous", func(c, d *Config) { c.Limits.Anonymous = d.Limits.Anonymous }},
	{"limits.api_key", func(c, d *Config) { c.Limits.APIKey = d.Limits.APIKey }},
	{"limits.user", func(c, d *Config) { c.Limits.User = d.Limits.User }},
	{"limits.documents", func(c, d *Config) { c.Limits.Documents = d.Limits.Documents }},
	{"plans", func(c, d *Config) { c.Plans = d.Plans }},
	{"limits.policies", func(c, d *Config) { c.Limits.Policies = d.Limits.Policies }},
	{"limits.descriptors", func(c, d *Config) { c.Limits.Descriptors = d.Limits.Descriptors }},
	{"routes", func(c, d *Config) { c.Routes = d.Routes }},
	{"scopes.resources", func(c, d *Config) { c.Scopes.Resources = d.Scopes.Resources }},
	{"oauth.redirect_uris", func(c, d *Config) { c.OAuth.RedirectURIs = d.OAuth.RedirectURIs }},
}

func liveKeys() []string {
	keys := make([]string, len(liveSections))
	for i, s := range liveSections {
		keys[i] = s.key
	}
	return keys
}

// liveSettings is a configuration with a document of settings over it.
type liveSettings struct {
	Config   Config
	Sections []string // that the document sets, in the order in which they are shown
}

// withSettings reads a document of settings, TOML, and gives the configuration with what it sets in the place of c's own. source is
// what mistakes call the document. c is not changed. Mistakes are a *ConfigError: of the document, in its order, or of c, where a
// part that the document leaves to it does not go with what the document sets.
func (c Config) withSettings(source, text string) (liveSettings, error) {
	next, sections, mistakes := c.readSettings(source, text)
	if len(mistakes) > 0 {
		slices.SortStableFunc(mistakes, func(a, b Mistake) int {
			// Those of the document first.
			return cmp.Or(compareBool(a.Source != source, b.Source != source), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
		})
		return liveSettings{}, &ConfigError{Mistakes: mistakes}
	}
	return liveSettings{Config: next, Sections: sections}, nil
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

func (c Config) readSettings(source, text string) (next Config, sections []string, mistakes []Mistake) {
	if len(text) > state.MaxSettingsText {
		return c, nil, []Mistake{{Source: source, Message: fmt.Sprintf("the settings are longer than %d KiB", state.MaxSettingsText>>10)}}
	}
	var document map[string]any
	if err := toml.Unmarshal([]byte(text), &document); err != nil {
		m := Mistake{Source: source, Message: strings.TrimPrefix(err.Error(), "toml: ")}
		var de *toml.DecodeError
		if errors.As(err, &de) {
			m.Line, m.Column = de.Position()
			m.Key = strings.Join(de.Key(), ".")
		}
		return c, nil, []Mistake{m}
	}
	next = c.forSettings()
	places := locate([]byte(text))
	defaults := DefaultConfig()
	for _, s := range liveSections {
		if !has(document, s.key) {
			continue
		}
		sections = append(sections, s.key)
		s.reset(&next, &defaults)
		next.origins.forget(s.key)
	}
	for key, p := range places {
		p.source = source
		next.origins.places[key] = p
	}
	set := setter{origins: next.origins}
	next.onlyLive(&set, document)
	set.setTable(rootOf(&next), "", document)
	next.fillEntries()

	// A value that could not be read has left its default behind, which says nothing about the document.
	unreadable := make(map[string]bool, len(set.mistakes))
	for _, m := range set.mistakes {
		unreadable[m.Key] = true
	}
	v := validator{c: &next}
	v.limits()
	v.redirects()
	v.scopes()
	for i := range next.Routes {
		v.route(i)
	}
	mistakes = set.mistakes
	for _, m := range v.mistakes {
		if !unreadable[m.Key] {
			mistakes = append(mistakes, m)
		}
	}
	return next, sections, mistakes
}

// forSettings is a copy that shares nothing with c that reading settings changes.
func (c Config) forSettings() Config {
	own := &origins{places: make(map[string]place)}
	if c.origins != nil {
		own.file, own.places = c.origins.file, maps.Clone(c.origins.places)
	}
	c.origins = own
	c.Plans, c.OAuth.Providers = maps.Clone(c.Plans), maps.Clone(c.OAuth.Providers)
	c.Limits.Policies, c.Routes = slices.Clone(c.Limits.Policies), slices.Clone(c.Routes)
	for i := range c.Routes {
		c.Routes[i].Rules = slices.Clone(c.Routes[i].Rules)
	}
	return c
}

// has says whether a document has a value for a section, which may be one that is no table.
func has(document map[string]any, key string) bool {
	table, name, nested := strings.Cut(key, ".")
	value, ok := document[table]
	if !ok || !nested {
		return ok
	}
	inner, ok := value.(map[string]any)
	if !ok {
		return false
	}
	_, ok = inner[name]
	return ok
}

// onlyLive takes out of a document, and notes, all that is no part of a section that changes live. What is left, the setter reads.
func (c *Config) onlyLive(s *setter, document map[string]any) {
	known := fieldNames(reflect.TypeFor[Config]())
	for _, name := range slices.Sorted(maps.Keys(document)) {
		var parts []string // of the table that change live; nil: all of it, or nothing
		whole := false
		for _, key := range liveKeys() {
			table, part, nested := strings.Cut(key, ".")
			if table == name && nested {
				parts = append(parts, part)
			}
			whole = whole || key == name
		}
		switch {
		case whole:
		case parts == nil:
			if slices.Contains(known, name) {
				s.fail(name, "does not change live: it is in each node's configuration")
			} else {
				s.fail(name, "unknown key%s", suggest(name, liveKeys()))
			}
			delete(document, name)
		default:
			table, ok := document[name].(map[string]any)
			if !ok {
				continue // for the setter to refuse
			}
			field, _ := fieldNamed(rootOf(c), name)
			for _, part := range slices.Sorted(maps.Keys(table)) {
				switch {
				case slices.Contains(parts, part):
					continue
				case slices.Contains(fieldNames(field.Type()), part):
					s.fail(join(name, part), "does not change live: it is in each node's configuration")
				default:
					s.fail(join(name, part), "unknown key%s", suggest(part, parts))
				}
				delete(table, part)
			}
		}
	}
}

// liveValue is one setting of those that change live, as a configuration would say it.
type liveValue struct {
	key   string // entries of lists and tables by their names: "plans.gold.limit"
	value string // as in TOML
}

// liveValues lists what is in force, in the order of liveSections.
func (c *Config) liveValues() []liveValue {
	var list []liveValue
	add := func(key, format string, args ...any) {
		list = append(list, liveValue{key, fmt.Sprintf(format, args...)})
	}
	rule := func(key string, r RuleConfig) {
		add(key+".limit", "%d", r.Limit)
		add(key+".window", "%q", r.Window.String())
		add(key+".algorithm", "%q", r.Algorithm)
		if r.Algorithm == "token_bucket" {
			add(key+".burst", "%d", r.Burst)
		}
	}
	words := func(key string, list []string) {
		if len(list) > 0 {
			add(key, "%s", wordsText(list))
		}
	}
	l := c.Limits
	rule("limits.anonymous", l.Anonymous)
	rule("limits.api_key", l.APIKey)
	rule("limits.user", l.User)
	rule("limits.documents", l.Documents)
	for _, name := range slices.Sorted(maps.Keys(c.Plans)) {
		rule("plans."+name, c.Plans[name])
	}
	for _, p := range l.Policies {
		key := "limits.policies." + p.Name
		add(key+".by", "%s", wordsText(p.By))
		words(key+".layers", p.Layers)
		words(key+".routes", p.Routes)
		words(key+".plans", p.Plans)
		rule(key, p.RuleConfig)
		if p.Shadow {
			add(key+".shadow", "true")
		}
	}
	named := map[string]int{}
	for _, r := range c.Routes {
		name := cmp.Or(r.Name, r.Path)
		if named[name]++; named[name] > 1 {
			name += fmt.Sprintf("#%d", named[name])
		}
		key := "routes." + name
		add(key+".path", "%q", r.Path)
		for _, part := range []struct{ name, value string }{{"host", r.Host}, {"upstream", r.Upstream}} {
			if part.value != "" {
				add(key+"."+part.name, "%q", part.value)
			}
		}
		if r.Upstream != "" {
			add(key+".strip_prefix", "%v", r.StripPrefix)
			add(key+".timeout", "%q", r.Timeout.String())
			add(key+".max_body_bytes", "%d", r.MaxBodyBytes)
		}
		for i, rr := range r.Rules {
			at := fmt.Sprintf("%s.rules[%d]", key, i)
			add(at+".methods", "%s", wordsText(rr.Methods))
			words(at+".scopes", rr.Scopes)
			add(at+".anonymous", "%v", rr.Anonymous)
			add(at+".cost", "%d", rr.Cost)
		}
	}
	add("scopes.resources", "%s", wordsText(c.Scopes.Resources))
	add("oauth.redirect_uris", "%s", wordsText(c.OAuth.RedirectURIs))
	return list
}

func wordsText(list []string) string {
	quoted := make([]string, len(list))
	for i, word := range list {
		quoted[i] = fmt.Sprintf("%q", word)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// SettingChange is one setting that differs between two configurations.
type SettingChange struct {
	Key  string  `json:"key"`  // entries of lists and tables by their names: "plans.gold.limit"
	From *string `json:"from"` // as in TOML; null: it was not there
	To   *string `json:"to"`   // null: it is not there any more
}

// liveChanges tells what differs in next: what c has in c's order, then what is new.
func (c *Config) liveChanges(next *Config) []SettingChange {
	changes := []SettingChange{}
	after := map[string]string{}
	for _, v := range next.liveValues() {
		after[v.key] = v.value
	}
	before := map[string]bool{}
	for _, v := range c.liveValues() {
		before[v.key] = true
		to, ok := after[v.key]
		switch {
		case !ok:
			changes = append(changes, SettingChange{Key: v.key, From: &v.value})
		case to != v.value:
			changes = append(changes, SettingChange{Key: v.key, From: &v.value, To: &to})
		}
	}
	for _, v := range next.liveValues() {
		if !before[v.key] {
			changes = append(changes, SettingChange{Key: v.key, To: &v.value})
		}
	}
	return changes
}

// liveNotes says which sections, that a document sets and the one before did not, c sets, too.
func (c *Config) liveNotes(sections []string) []string {
	notes := []string{}
	for _, key := range sections {
		// Not the nearest table around it: [limits] alone sets nothing of it.
		if p, ok := c.origins.exactly(key); ok {
			notes = append(notes, fmt.Sprintf("%s is set at %s, too: the settings go before it, on every node", key, p))
		}
	}
	return notes
}

// bucketNotes says which policies count from nothing after the change from c to next: buckets go by a policy's name, window,
// algorithm and dimensions.
func (c *Config) bucketNotes(next *Config) []string {
	type identity struct{ window, algorithm, by string }
	buckets := func(c *Config) map[string]identity {
		out := map[string]identity{}
		for _, p := range c.policies() {
			out[p.key] = identity{p.rule.Window.String(), p.rule.Algorithm, ""}
		}
		for i, p := range c.Limits.Policies {
			delete(out, fmt.Sprintf("limits.policies[%d]", i))
			by := slices.Clone(p.By)
			slices.Sort(by)
			out["limits.policies."+p.Name] = identity{p.Window.String(), p.Algorithm, strings.Join(by, " ")}
		}
		return out
	}
	before, after := buckets(c), buckets(next)
	var notes []string
	for _, key := range slices.Sorted(maps.Keys(after)) {
		if old, ok := before[key]; ok && old != after[key] {
			notes = append(notes, key+" counts from nothing: in the windows of the change the old limit and the new one may pass")
		}
	}
	return notes
}

// exactly is the place where key itself was set, or the first element of its list.
func (o *origins) exactly(key string) (place, bool) {
	if o == nil {
		return place{}, false
	}
	if p, ok := o.places[key]; ok {
		return p, true
	}
	p, ok := o.places[key+"[0]"]
	if ok {
		return p, true
	}
	// A variable of the environment sets one key of a table and not the table.
	for _, known := range slices.Sorted(maps.Keys(o.places)) {
		if strings.HasPrefix(known, key+".") {
			return o.places[known], true
		}
	}
	return place{}, false
}
