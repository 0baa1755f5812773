package node

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"sluice/authapi"
)

// maxConfigBytes bounds a configuration file; the largest sensible one is a hundred times smaller.
const maxConfigBytes = 4 << 20

// Mistake is one thing that is wrong with a configuration.
type Mistake struct {
	Source  string // the file, or the environment variable; "" where neither sets the key
	Line    int    // from 1, within the file; 0 where there is none
	Column  int    // from 1, in bytes; 0 where there is none
	Key     string // as in "limits.anonymous.window" or "routes[0].upstream"; "" for a mistake of the text as a whole
	Message string // never quotes a secret
}

// String is "FILE:LINE:COLUMN: key: message", without the parts that are not known.
func (m Mistake) String() string {
	var b strings.Builder
	if m.Source != "" {
		b.WriteString(m.Source)
		if m.Line > 0 {
			fmt.Fprintf(&b, ":%d:%d", m.Line, m.Column)
		}
		b.WriteString(": ")
	}
	if m.Key != "" {
		b.WriteString(m.Key + ": ")
	}
	b.WriteString(m.Message)
	return b.String()
}

// ConfigError tells everything that is wrong with a configuration, in the order of the file.
type ConfigError struct {
	Mistakes []Mistake
}

// Error is one line per mistake.
func (e *ConfigError) Error() string {
	lines := make([]string, len(e.Mistakes))
	for i, m := range e.Mistakes {
		lines[i] = m.String()
	}
	return strings.Join(lines, "\n")
}

// place is where a setting was made.
type place struct {
	source       string
	line, column int
	environment  bool
}

func (p place) String() string {
	if p.line > 0 {
		return fmt.Sprintf("%s:%d", p.source, p.line)
	}
	return p.source
}

// origins remembers where each setting was made, by key. It is filled while loading and only read afterwards.
type origins struct {
	file   string
	places map[string]place
}

// at is the place of key, or of the nearest table or list around it that was named.
func (o *origins) at(key string) (place, bool) {
	if o == nil {
		return place{}, false
	}
	for key != "" {
		if p, ok := o.places[key]; ok {
			return p, true
		}
		key = key[:max(strings.LastIndexAny(key, ".["), 0)]
	}
	return place{}, false
}

// mistake makes the Mistake for key, at the place where key was set.
func (o *origins) mistake(key, format string, args ...any) Mistake {
	m := Mistake{Key: key, Message: fmt.Sprintf(format, args...)}
	if p, ok := o.at(key); ok {
		m.Source, m.Line, m.Column = p.source, p.line, p.column
	} else if o != nil {
		m.Source = o.file
	}
	return m
}

// LoadConfig reads the file, applies the overrides of environ (as os.Environ gives them) and checks the result. path ""
// reads no file. Relative paths in the file are taken from the file's directory, those from the environment from the
// working directory; the Config has them absolute.
//
// A mistake in the configuration is a *ConfigError with every mistake that can be told; any other error means that the
// file could not be read.
func LoadConfig(path string, environ []string) (Config, error) {
	cfg, mistakes, err := readConfig(path, environ)
	if err != nil {
		return Config{}, err
	}
	if err := cfg.resolve(path); err != nil {
		return Config{}, err
	}
	// A value that could not be read has left its default behind, which says nothing about the file.
	unreadable := make(map[string]bool, len(mistakes))
	for _, m := range mistakes {
		unreadable[m.Key] = true
	}
	for _, m := range cfg.mistakes() {
		if !unreadable[m.Key] {
			mistakes = append(mistakes, m)
		}
	}
	if len(mistakes) > 0 {
		slices.SortStableFunc(mistakes, func(a, b Mistake) int {
			return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column), cmp.Compare(a.Source, b.Source))
		})
		return Config{}, &ConfigError{Mistakes: mistakes}
	}
	return cfg, nil
}

// LoadUnchecked is LoadConfig for who only has to find the node: it checks that every setting is one and of its kind, and nothing of
// what the values mean, such as secrets, which may be handed to the node by other ways and be nobody else's to read.
func LoadUnchecked(path string, environ []string) (Config, error) {
	cfg, mistakes, err := readConfig(path, environ)
	if err != nil {
		return Config{}, err
	}
	if len(mistakes) > 0 {
		return Config{}, &ConfigError{Mistakes: mistakes}
	}
	return cfg, cfg.resolve(path)
}

// LoadIdentity reads from a configuration what a node's certificate names: the cluster, and the data directory that the node's id is in.
// Nothing else is checked, since other settings may name the very files that are going to be made.
func LoadIdentity(path string, environ []string) (cluster, dataDirectory string, err error) {
	cfg, err := LoadUnchecked(path, environ)
	if err != nil {
		return "", "", err
	}
	if cfg.DataDir == "" {
		return "", "", &ConfigError{Mistakes: []Mistake{cfg.origins.mistake("data_dir", "is missing")}}
	}
	return cfg.Cluster, cfg.DataDir, nil
}

// readConfig is LoadConfig without the check of what the values mean.
func readConfig(path string, environ []string) (Config, []Mistake, error) {
	cfg := DefaultConfig()
	cfg.origins = &origins{file: path, places: make(map[string]place)}
	var mistakes []Mistake
	if path != "" {
		data, err := os.ReadFile(path)
		if err != nil {
			return Config{}, nil, fmt.Errorf("read configuration: %w", err)
		}
		var readable bool
		if mistakes, readable = cfg.decode(path, data); !readable {
			// Nothing of the file is known, so whatever seemed to be missing or in conflict would be no mistake of it.
			return Config{}, nil, &ConfigError{Mistakes: mistakes}
		}
	}
	mistakes = append(mistakes, cfg.override(environ)...)
	cfg.fillEntries()
	return cfg, mistakes, nil
}

// decode sets what data, a TOML document, sets. readable is false where it is none.
func (c *Config) decode(path string, data []byte) (mistakes []Mistake, readable bool) {
	if len(data) > maxConfigBytes {
		return []Mistake{{Source: path, Message: fmt.Sprintf("the file is larger than %d MiB", maxConfigBytes>>20)}}, false
	}
	// The first pass takes the text apart, with TOML's rules about repeated keys and tables; the second finds the place
	// of every key; then reflection sets the values and can tell every mistake instead of the first.
	var document map[string]any
	if err := toml.Unmarshal(data, &document); err != nil {
		m := Mistake{Source: path, Message: strings.TrimPrefix(err.Error(), "toml: ")}
		var de *toml.DecodeError
		if errors.As(err, &de) {
			m.Line, m.Column = de.Position()
			m.Key = strings.Join(de.Key(), ".")
		}
		return []Mistake{m}, false
	}
	for key, p := range locate(data) {
		p.source = path
		c.origins.places[key] = p
	}
	s := setter{origins: c.origins}
	s.setTable(rootOf(c), "", document)
	return s.mistakes, true
}

// locate finds line and column of every key and list element of a TOML document that is known to parse.
func locate(data []byte) map[string]place {
	l := locator{data: data, places: make(map[string]place), tables: make(map[string]int)}
	l.parser.Reset(data)
	prefix := ""
	for l.parser.NextExpression() {
		node := l.parser.Expression()
		switch node.Kind {
		case unstable.Table:
			prefix = l.enter("", node.Key(), false)
		case unstable.ArrayTable:
			prefix = l.enter("", node.Key(), true)
		case unstable.KeyValue:
			l.keyValue(prefix, node)
		}
	}
	return l.places
}

type locator struct {
	parser unstable.Parser
	data   []byte
	places map[string]place
	tables map[string]int // how many tables a list of tables has so far
	offset int            // of line
	line   int
}

// enter records the parts of a dotted key and returns the whole; more opens a new element of a list of tables.
func (l *locator) enter(prefix string, key unstable.Iterator, more bool) string {
	path := prefix
	for key.Next() {
		path = join(path, string(key.Node().Data))
		if _, known := l.places[path]; !known {
			l.places[path] = l.place(key.Node().Raw)
		}
		switch n := l.tables[path]; {
		case more && key.IsLast():
			l.tables[path]++
			path = fmt.Sprintf("%s[%d]", path, n)
			l.places[path] = l.place(key.Node().Raw)
		case n > 0:
			path = fmt.Sprintf("%s[%d]", path, n-1)
		}
	}
	return path
}

func (l *locator) keyValue(prefix string, node *unstable.Node) {
	l.value(l.enter(prefix, node.Key(), false), node.Value())
}

func (l *locator) value(path string, node *unstable.Node) {
	switch node.Kind {
	case unstable.InlineTable:
		for children := node.Children(); children.Next(); {
			if child := children.Node(); child.Kind == unstable.KeyValue {
				l.keyValue(path, child)
			}
		}
	case unstable.Array:
		i := 0
		for children := node.Children(); children.Next(); i++ {
			child := children.Node()
			element := fmt.Sprintf("%s[%d]", path, i)
			if child.Raw.Length > 0 {
				l.places[element] = l.place(child.Raw)
			}
			l.value(element, child)
		}
	}
}

// place turns an offset into line and column. Keys come in the order of the text, so that it counts on from the last.
func (l *locator) place(r unstable.Range) place {
	at := int(r.Offset)
	if at < l.offset {
		l.offset, l.line = 0, 0
	}
	for {
		next := bytes.IndexByte(l.data[l.offset:at], '\n')
		if next < 0 {
			return place{line: l.line + 1, column: at - l.offset + 1}
		}
		l.offset += next + 1
		l.line++
	}
}

// resolve makes the paths absolute and derives the addresses that follow from others.
func (c *Config) resolve(path string) error {
	base, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("find the configuration's directory: %w", err)
	}
	paths := map[string]*string{
		"data_dir": &c.DataDir, "secrets.cluster_file": &c.Secrets.ClusterFile, "secrets.key_file": &c.Secrets.KeyFile, "secrets.previous_key_file": &c.Secrets.PreviousKeyFile,
		"admin.token_file": &c.Admin.TokenFile, "admin.read_token_file": &c.Admin.ReadTokenFile,
		"admin.tls_cert": &c.Admin.TLSCert, "admin.tls_key": &c.Admin.TLSKey, "admin.client_ca": &c.Admin.ClientCA,
		"http.tls_cert": &c.HTTP.TLSCert, "http.tls_key": &c.HTTP.TLSKey,
		"grpc.tls_cert": &c.GRPC.TLSCert, "grpc.tls_key": &c.GRPC.TLSKey, "grpc.client_ca": &c.GRPC.ClientCA, "grpc.token_file": &c.GRPC.TokenFile,
		"peer.tls_cert": &c.Peer.TLSCert, "peer.tls_key": &c.Peer.TLSKey, "peer.tls_ca": &c.Peer.TLSCA,
		"tracing.headers_file": &c.Tracing.HeadersFile, "tracing.ca": &c.Tracing.CA,
		"backup.dir": &c.Backup.Dir, "backup.key_file": &c.Backup.KeyFile,
	}
	for i := range c.Routes {
		paths[fmt.Sprintf("routes[%d].upstream_ca_file", i)] = &c.Routes[i].UpstreamCAFile
	}
	for _, p := range c.oauthProviders() {
		paths[p.key+".client_secret_file"] = &p.ClientSecretFile
		defer p.put() // what a map holds has no address
	}
	socket, isSocket := socketPath(c.Admin.Listen)
	if isSocket && !strings.HasPrefix(socket, "@") {
		paths["admin.listen"] = &socket
		defer func() { c.Admin.Listen = socketPrefix + socket }()
	}
	for key, field := range paths {
		if *field == "" || filepath.IsAbs(*field) {
			continue
		}
		if p, ok := c.origins.at(key); ok && !p.environment {
			*field = filepath.Join(base, *field)
		} else if *field, err = filepath.Abs(*field); err != nil {
			return fmt.Errorf("resolve %s: %w", key, err)
		}
	}
	if c.Name == "" {
		if c.Name, err = os.Hostname(); err != nil {
			return fmt.Errorf("find a name for the node: %w", err)
		}
	}
	c.PublicURL = strings.TrimRight(c.PublicURL, "/")
	if c.Peer.Advertise == "" && !wildcard(c.Peer.Listen) {
		c.Peer.Advertise = c.Peer.Listen
	}
	if c.Gossip.Advertise == "" {
		c.Gossip.Advertise = c.Gossip.Listen
		if wildcard(c.Gossip.Listen) {
			c.Gossip.Advertise = sameHost(c.Peer.Advertise, c.Gossip.Listen)
		}
	}
	return nil
}

// fill gives a field that is zero its default.
func fill[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// fillEntries gives the entries of lists their defaults.
func (c *Config) fillEntries() {
	for i := range c.Routes {
		r := &c.Routes[i]
		fill(&r.ConnectTimeout, defaultRouteConnectTimeout)
		fill(&r.Timeout, defaultRouteTimeout)
		fill(&r.IdleTimeout, r.Timeout)
		fill(&r.MaxBodyBytes, defaultRouteMaxBodyBytes)
		fill(&r.MaxRequests, defaultRouteMaxRequests)
		fill(&r.MaxFails, defaultRouteMaxFails)
		fill(&r.EjectTime, defaultRouteEjectTime)
		fill(&r.WebSocketIdle, defaultRouteWebSocketIdle)
		fill(&r.MaxWebSockets, defaultRouteMaxWebSockets)
		fill(&r.CORS.MaxAge, Duration(authapi.DefaultCORSMaxAge))
		fill(&r.Name, strings.Trim(r.Path, "/"))
		if r.Retries == 0 && !c.origins.named(fmt.Sprintf("routes[%d].retries", i)) {
			r.Retries = defaultRouteRetries
		}
		for _, list := range []*[]string{&r.Upstreams, &r.CORS.Origins, &r.CORS.Headers, &r.CORS.Expose} {
			if *list == nil {
				*list = []string{}
			}
		}
		if r.Rules == nil {
			r.Rules = []RouteRuleConfig{}
		}
		for j := range r.Rules {
			rule := &r.Rules[j]
			if rule.Cost == 0 && !c.origins.named(fmt.Sprintf("routes[%d].rules[%d].cost", i, j)) {
				rule.Cost = defaultRuleCost
			}
			if rule.Scopes == nil {
				rule.Scopes = []string{}
			}
			if rule.Methods == nil {
				rule.Methods = []string{}
			}
		}
	}
	for i := range c.Limits.Policies {
		p := &c.Limits.Policies[i]
		for _, list := range []*[]string{&p.By, &p.Layers, &p.Routes, &p.Plans} {
			if *list == nil {
				*list = []string{}
			}
		}
		if p.Algorithm == "" {
			p.Algorithm = "sliding_window"
		}
		p.fillBurst()
	}
	for i := range c.Limits.Descriptors {
		if d := &c.Limits.Descriptors[i]; d.Entries == nil {
			d.Entries = []DescriptorEntryConfig{}
		}
	}
	for _, r := range []*RuleConfig{&c.Limits.Anonymous, &c.Limits.APIKey, &c.Limits.User, &c.Limits.Documents} {
		r.fillBurst()
	}
	for name, p := range c.OAuth.Providers {
		if p.Kind == "" {
			p.Kind = authapi.KindOIDC
		}
		if p.Scopes == nil {
			p.Scopes = []string{}
		}
		c.OAuth.Providers[name] = p
	}
	for name, plan := range c.Plans {
		if plan.Window == 0 && !c.origins.named("plans."+name+".window") {
			plan.Window = c.Limits.APIKey.Window
		}
		if plan.Algorithm == "" {
			plan.Algorithm = c.Limits.APIKey.Algorithm
		}
		plan.fillBurst()
		c.Plans[name] = plan
	}
}

// fillBurst gives a token bucket without a burst one of its limit.
func (r *RuleConfig) fillBurst() {
	if r.Algorithm == "token_bucket" && r.Burst == 0 {
		r.Burst = max(r.Limit, 1)
	}
}

// named reports whether key itself was set.
func (o *origins) named(key string) bool {
	_, ok := o.places[key]
	return ok
}

func join(prefix, key string) string {
	if prefix == "" {
		return key
	}
	return prefix + "." + key
}

// splitKey takes "routes[0].rules[1].cost" apart: routes, 0, rules, 1, cost.
func splitKey(key string) []string {
	return strings.FieldsFunc(key, func(r rune) bool { return r == '.' || r == '[' || r == ']' })
}

// EnvironmentName is the variable that overrides a setting: "limits.anonymous.limit" is SLUICE_LIMITS__ANONYMOUS__LIMIT.
func EnvironmentName(key string) string {
	return environmentPrefix + strings.ToUpper(strings.Join(splitKey(key), "__"))
}

const environmentPrefix = "SLUICE_"

// override applies the environment's settings, outer ones first so that an inner one can correct a part of an outer.
func (c *Config) override(environ []string) []Mistake {
	type variable struct {
		name, value string
		path        []string
	}
	var variables []variable
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		if rest, ok := strings.CutPrefix(name, environmentPrefix); ok {
			variables = append(variables, variable{name, value, strings.Split(strings.ToLower(rest), "__")})
		}
	}
	slices.SortStableFunc(variables, func(a, b variable) int {
		return slices.CompareFunc(a.path, b.path, func(a, b string) int {
			if m, err := strconv.Atoi(a); err == nil {
				if n, err := strconv.Atoi(b); err == nil {
					return cmp.Compare(m, n)
				}
			}
			return cmp.Compare(a, b)
		})
	})
	s := setter{origins: c.origins}
	for _, v := range variables {
		s.setVariable(rootOf(c), v.name, v.path, v.value)
	}
	// A secret of one kind replaces one of the other: that the file names a file is no reason to refuse the variable.
	type pair struct {
		value, file string
		clearValue  *Secret
		clearFile   *string
	}
	pairs := []pair{
		{"secrets.cluster", "secrets.cluster_file", &c.Secrets.Cluster, &c.Secrets.ClusterFile},
		{"secrets.key", "secrets.key_file", &c.Secrets.Key, &c.Secrets.KeyFile},
		{"secrets.previous_key", "secrets.previous_key_file", &c.Secrets.PreviousKey, &c.Secrets.PreviousKeyFile},
		{"admin.token", "admin.token_file", &c.Admin.Token, &c.Admin.TokenFile},
		{"admin.read_token", "admin.read_token_file", &c.Admin.ReadToken, &c.Admin.ReadTokenFile},
	}
	for _, p := range c.oauthProviders() {
		pairs = append(pairs, pair{p.key + ".client_secret", p.key + ".client_secret_file", &p.ClientSecret, &p.ClientSecretFile})
		defer p.put()
	}
	for _, pair := range pairs {
		value, file := c.origins.places[pair.value], c.origins.places[pair.file]
		if value.environment && !file.environment {
			*pair.clearFile = ""
		}
		if file.environment && !value.environment {
			*pair.clearValue = ""
		}
	}
	return s.mistakes
}

// DefaultsWith is the default configuration with the environment's overrides. It is not checked, since it is not
// complete.
func DefaultsWith(environ []string) (Config, error) {
	cfg, mistakes, err := readConfig("", environ)
	if err != nil {
		return Config{}, err
	}
	if len(mistakes) > 0 {
		return Config{}, &ConfigError{Mistakes: mistakes}
	}
	return cfg, nil
}

// SetListen changes http.listen in a configuration file and leaves every other line as it is. The file must set it.
func SetListen(path, address string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	if err := toml.Unmarshal(data, new(map[string]any)); err != nil {
		return &ConfigError{Mistakes: []Mistake{{Source: path, Message: strings.TrimPrefix(err.Error(), "toml: ")}}}
	}
	p, ok := locate(data)["http.listen"]
	if !ok {
		return &ConfigError{Mistakes: []Mistake{{Source: path, Key: "http.listen", Message: "is missing"}}}
	}
	lines := bytes.SplitAfter(data, []byte("\n"))
	old := lines[p.line-1]
	key, _, _ := bytes.Cut(old, []byte("="))
	if name := strings.TrimSpace(string(key)); name != "listen" && name != "http.listen" {
		return &ConfigError{Mistakes: []Mistake{{Source: path, Line: p.line, Column: p.column, Key: "http.listen", Message: "is not on a line of its own: change it by hand to " + address}}}
	}
	changed := fmt.Sprintf("%s= %q\n", key, address)
	if changed == string(old) {
		return nil
	}
	lines[p.line-1] = []byte(changed)
	partial := path + ".partial"
	if err := os.WriteFile(partial, bytes.Join(lines, nil), 0o600); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	if err := os.Rename(partial, path); err != nil {
		return errors.Join(fmt.Errorf("write configuration: %w", err), os.Remove(partial))
	}
	return nil
}
