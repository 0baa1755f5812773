package node

import (
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2"
)

// setter writes what TOML or the environment says into a Config and notes what does not fit.
type setter struct {
	origins  *origins
	mistakes []Mistake
}

var (
	durationType = reflect.TypeFor[Duration]()
	secretType   = reflect.TypeFor[Secret]()
)

func rootOf(c *Config) reflect.Value { return reflect.ValueOf(c).Elem() }

func (s *setter) fail(key, format string, args ...any) {
	s.mistakes = append(s.mistakes, s.origins.mistake(key, format, args...))
}

// setTable sets the fields of a struct.
func (s *setter) setTable(v reflect.Value, key string, table map[string]any) {
	for _, name := range slices.Sorted(maps.Keys(table)) {
		field, ok := fieldNamed(v, name)
		if !ok {
			s.fail(join(key, name), "unknown key%s", suggest(name, fieldNames(v.Type())))
			continue
		}
		s.set(field, join(key, name), table[name])
	}
}

// set writes a value as TOML has it.
func (s *setter) set(v reflect.Value, key string, value any) {
	switch v.Type() {
	case durationType:
		text, ok := value.(string)
		if !ok {
			s.fail(key, `want a duration in quotes with its unit, as in "15m", not %s`, describe(value))
			return
		}
		s.setDuration(v, key, text)
		return
	case secretType:
		text, ok := value.(string)
		if !ok {
			s.fail(key, "want a text in quotes") // what stands there may be the secret
			return
		}
		v.SetString(text)
		return
	}
	switch v.Kind() {
	case reflect.String:
		text, ok := value.(string)
		if !ok {
			s.fail(key, "want a text in quotes, not %s", describe(value))
			return
		}
		v.SetString(text)
	case reflect.Bool:
		b, ok := value.(bool)
		if !ok {
			s.fail(key, "want true or false, not %s", describe(value))
			return
		}
		v.SetBool(b)
	case reflect.Int, reflect.Int64, reflect.Uint64:
		n, ok := value.(int64)
		if !ok {
			s.fail(key, "want a whole number, not %s", describe(value))
			return
		}
		s.setInteger(v, key, n)
	case reflect.Struct:
		table, ok := value.(map[string]any)
		if !ok {
			s.fail(key, "want a table, not %s", describe(value))
			return
		}
		s.setTable(v, key, table)
	case reflect.Map:
		table, ok := value.(map[string]any)
		if !ok {
			s.fail(key, "want a table, not %s", describe(value))
			return
		}
		for _, name := range slices.Sorted(maps.Keys(table)) {
			element := reflect.New(v.Type().Elem()).Elem()
			s.set(element, join(key, name), table[name])
			setIndex(v, name, element)
		}
	case reflect.Slice:
		list, ok := value.([]any)
		if !ok {
			s.fail(key, "want a list in brackets, not %s", describe(value))
			return
		}
		out := reflect.MakeSlice(v.Type(), len(list), len(list))
		for i, element := range list {
			s.set(out.Index(i), fmt.Sprintf("%s[%d]", key, i), element)
		}
		v.Set(out)
	default:
		panic("config: no rule for " + v.Type().String()) // a new kind of field, which every test would meet
	}
}

func (s *setter) setDuration(v reflect.Value, key, text string) {
	var d Duration
	if err := d.UnmarshalText([]byte(text)); err != nil {
		s.fail(key, "%v, not %s", err, quote(text))
		return
	}
	v.SetInt(int64(d))
}

func (s *setter) setInteger(v reflect.Value, key string, n int64) {
	if v.Kind() == reflect.Uint64 {
		if n < 0 {
			s.fail(key, "want a number of at least 0, not %d", n)
			return
		}
		v.SetUint(uint64(n))
		return
	}
	v.SetInt(n) // int has 64 bits on every supported platform
}

// setVariable writes an environment variable's text to the setting at path.
func (s *setter) setVariable(root reflect.Value, name string, path []string, text string) {
	if name != strings.ToUpper(name) {
		s.mistakes = append(s.mistakes, Mistake{Source: name, Message: "unknown variable: did you mean " + strings.ToUpper(name) + "?"})
		return
	}
	if !s.descend(root, "", name, path, text) {
		s.mistakes = append(s.mistakes, Mistake{Source: name, Message: "unknown variable" + suggest(name, variableNames())})
	}
}

// descend reports whether path exists.
func (s *setter) descend(v reflect.Value, key, name string, path []string, text string) bool {
	if len(path) == 0 {
		s.setText(v, key, name, text)
		return true
	}
	switch v.Kind() {
	case reflect.Struct:
		field, ok := fieldNamed(v, path[0])
		return ok && s.descend(field, join(key, path[0]), name, path[1:], text)
	case reflect.Map:
		element := reflect.New(v.Type().Elem()).Elem()
		if old := v.MapIndex(reflect.ValueOf(path[0])); old.IsValid() {
			element.Set(old)
		}
		if path[0] == "" || !s.descend(element, join(key, path[0]), name, path[1:], text) {
			return false
		}
		setIndex(v, path[0], element)
		return true
	case reflect.Slice:
		i, err := strconv.Atoi(path[0])
		if err != nil || i < 0 || i > v.Len() || v.Type().Elem().Kind() != reflect.Struct {
			return false
		}
		// A copy, so that an element shared with another Config stays what it was.
		out := reflect.MakeSlice(v.Type(), max(v.Len(), i+1), max(v.Len(), i+1))
		reflect.Copy(out, v)
		if !s.descend(out.Index(i), fmt.Sprintf("%s[%d]", key, i), name, path[1:], text) {
			return false
		}
		v.Set(out)
		return true
	default:
		return false
	}
}

// setText writes an environment variable's text: texts and durations as they are, numbers and truth values as in TOML,
// lists separated by commas or as in TOML, tables and lists of tables as in TOML.
func (s *setter) setText(v reflect.Value, key, name, text string) {
	s.origins.forget(key)
	s.origins.places[key] = place{source: name, environment: true}
	trimmed := strings.TrimSpace(text)
	switch {
	case v.Type() == durationType:
		s.setDuration(v, key, trimmed)
	case v.Kind() == reflect.String:
		v.SetString(text)
	case v.Kind() == reflect.Bool:
		b, err := strconv.ParseBool(trimmed)
		if err != nil {
			s.fail(key, "want true or false, not %s", quote(text))
			return
		}
		v.SetBool(b)
	case v.Kind() == reflect.Int, v.Kind() == reflect.Int64, v.Kind() == reflect.Uint64:
		n, err := strconv.ParseInt(strings.ReplaceAll(trimmed, "_", ""), 10, 64)
		if err != nil {
			s.fail(key, "want a whole number, not %s", quote(text))
			return
		}
		s.setInteger(v, key, n)
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.String && !strings.HasPrefix(trimmed, "["):
		list := []string{}
		for part := range strings.SplitSeq(text, ",") {
			if part = strings.TrimSpace(part); part != "" {
				list = append(list, part)
			}
		}
		v.Set(reflect.ValueOf(list))
	default:
		var document map[string]any
		// A line break would let the text set other keys, and be no value of this one.
		err := toml.Unmarshal([]byte("value = "+strings.ReplaceAll(trimmed, "\n", " ")), &document)
		if err != nil || len(document) != 1 {
			s.fail(key, "want a value as in TOML, as in %s", example(v))
			return
		}
		if v.Kind() == reflect.Map {
			v.Set(reflect.MakeMap(v.Type()))
		}
		s.set(v, key, document["value"])
	}
}

// forget drops the places of key and of everything in it.
func (o *origins) forget(key string) {
	for known := range o.places {
		if rest, ok := strings.CutPrefix(known, key); ok && (rest == "" || rest[0] == '.' || rest[0] == '[') {
			delete(o.places, known)
		}
	}
}

func setIndex(v reflect.Value, name string, element reflect.Value) {
	if v.IsNil() {
		v.Set(reflect.MakeMap(v.Type()))
	}
	v.SetMapIndex(reflect.ValueOf(name), element)
}

func example(v reflect.Value) string {
	if v.Kind() == reflect.Slice {
		if v.Type().Elem().Kind() == reflect.Struct {
			return `[{ name = "a" }]`
		}
		return `["a", "b"]`
	}
	return `{ name = { limit = 10 } }`
}

// fieldNamed finds the field of a struct by its name in TOML. The fields of an embedded struct are its own.
func fieldNamed(v reflect.Value, name string) (reflect.Value, bool) {
	t := v.Type()
	for i := range t.NumField() {
		if t.Field(i).Anonymous {
			if field, ok := fieldNamed(v.Field(i), name); ok {
				return field, true
			}
		}
		if tag, ok := t.Field(i).Tag.Lookup("toml"); ok && tag == name {
			return v.Field(i), true
		}
	}
	return reflect.Value{}, false
}

func fieldNames(t reflect.Type) []string {
	var names []string
	for i := range t.NumField() {
		if t.Field(i).Anonymous {
			names = append(names, fieldNames(t.Field(i).Type)...)
		}
		if tag, ok := t.Field(i).Tag.Lookup("toml"); ok {
			names = append(names, tag)
		}
	}
	return names
}

// variableNames are the names of all variables but for those inside of plans, policies, descriptors and routes, which have no end.
func variableNames() []string {
	var names []string
	var walk func(t reflect.Type, key string)
	walk = func(t reflect.Type, key string) {
		for i := range t.NumField() {
			tag, ok := t.Field(i).Tag.Lookup("toml")
			if !ok {
				continue
			}
			if t.Field(i).Type.Kind() == reflect.Struct {
				walk(t.Field(i).Type, join(key, tag))
				continue
			}
			names = append(names, EnvironmentName(join(key, tag)))
		}
	}
	walk(reflect.TypeFor[Config](), "")
	return names
}

// suggest is ": did you mean …?" where one of the known names is near, "" where none is.
func suggest(name string, known []string) string {
	best, distance := "", len(name)/3+2
	for _, k := range known {
		if d := editDistance(name, k); d < distance {
			best, distance = k, d
		}
	}
	if best == "" {
		return ""
	}
	return ": did you mean " + best + "?"
}

// maxSuggested bounds the work for a name that is longer than any there is.
const maxSuggested = 100

// editDistance counts the bytes to insert, delete or replace (Levenshtein).
func editDistance(a, b string) int {
	if len(a) > maxSuggested || len(b) > maxSuggested {
		return math.MaxInt
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(diagonal+cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// describe names a TOML value for a message.
func describe(value any) string {
	switch v := value.(type) {
	case string:
		return quote(v)
	case int64, float64, bool:
		return fmt.Sprint(v)
	case []any:
		return "a list"
	case map[string]any:
		return "a table"
	default:
		return "a date or time"
	}
}

// quote shortens what a message repeats.
func quote(text string) string {
	if len(text) > 80 {
		cut := 77
		for cut > 0 && !utf8.RuneStart(text[cut]) {
			cut--
		}
		text = text[:cut] + "..."
	}
	return strconv.Quote(text)
}
