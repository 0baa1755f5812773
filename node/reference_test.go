package node

import (
	goflag "flag"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

var updateReference = goflag.Bool("update-reference", false, "write docs/reference.md anew")

const referencePath = "../docs/reference.md"

var (
	referenceHeader  = regexp.MustCompile(`^\[\[?([a-z0-9_.]+)\]\]?$`)
	referenceSetting = regexp.MustCompile(`^([a-z0-9_]+) = (.*)$`)
)

// typeOfSetting says what a setting takes, "" where the configuration has none of that name.
func typeOfSetting(key string) string {
	typ := reflect.TypeFor[Config]()
	var find func(typ reflect.Type, name string) (reflect.Type, bool)
	find = func(typ reflect.Type, name string) (reflect.Type, bool) {
		for i := range typ.NumField() {
			f := typ.Field(i)
			if f.Tag.Get("toml") == name {
				return f.Type, true
			}
			if f.Anonymous {
				if t, ok := find(f.Type, name); ok {
					return t, true
				}
			}
		}
		return nil, false
	}
	for name := range strings.SplitSeq(key, ".") {
		for typ.Kind() == reflect.Slice {
			typ = typ.Elem()
		}
		if typ.Kind() == reflect.Map {
			typ = typ.Elem()
			continue
		}
		if typ.Kind() != reflect.Struct {
			return ""
		}
		var ok bool
		if typ, ok = find(typ, name); !ok {
			return ""
		}
	}
	return typeText(typ)
}

func typeText(typ reflect.Type) string {
	switch {
	case typ == durationType:
		return "duration"
	case typ == secretType:
		return "secret"
	case typ.Kind() == reflect.String:
		return "text"
	case typ.Kind() == reflect.Bool:
		return "true or false"
	case typ.Kind() == reflect.Slice:
		if item := typeText(typ.Elem()); item != "table" {
			return "list of " + item + "s"
		}
		return "list of tables"
	case typ.Kind() == reflect.Map:
		return "table of " + typeText(typ.Elem())
	case typ.Kind() == reflect.Struct:
		return "table"
	}
	return "number"
}

// reference is docs/reference.md: the example's settings and comments, with what the configuration's types say of them.
func reference(t *testing.T, example string) string {
	t.Helper()
	var out strings.Builder
	out.WriteString(`# Configuration reference

Made from [cluster.example.toml](../cluster.example.toml) and the configuration's types by a test; do not edit. [configuration.md](configuration.md)
explains how files, the environment and mistakes work. The value beside a setting is its default, and under a heading in double brackets or
with a name of your own (` + "`plans.pro`" + `) an example. The variable of ` + "`http.listen`" + ` is ` + "`SLUICE_HTTP__LISTEN`" + `, and so on.

`)
	section, template := "", false
	var comment, settings []string
	flush := func() {
		if len(settings) > 0 {
			fmt.Fprintf(&out, "- %s\n", strings.Join(append([]string{strings.Join(settings, ", ")}, comment...), " "))
		} else if len(comment) > 0 && section != "" {
			fmt.Fprintf(&out, "%s\n\n", strings.Join(comment, " "))
		}
		comment, settings = nil, nil
	}
	preamble := true
	for line := range strings.Lines(example) {
		line = strings.TrimRight(line, "\n")
		bare, commented := strings.CutPrefix(line, "#")
		bare = strings.TrimPrefix(bare, " ")
		if line == "" {
			if !preamble && len(settings) > 0 {
				flush()
			}
			preamble, template = false, false
			if len(settings) == 0 {
				comment = nil
			}
			continue
		}
		if preamble {
			continue
		}
		if commented && referenceHeader.MatchString(bare) {
			template = true
		}
		if template && commented {
			line = bare
		}
		if m := referenceHeader.FindStringSubmatch(line); m != nil {
			if len(settings) > 0 {
				flush()
			}
			intro := comment
			comment, section = nil, m[1]
			fmt.Fprintf(&out, "\n## `%s`\n\n", line)
			if len(intro) > 0 {
				fmt.Fprintf(&out, "%s\n\n", strings.Join(intro, " "))
			}
			continue
		}
		if m := referenceSetting.FindStringSubmatch(line); m != nil || commented && !template && referenceSetting.MatchString(bare) {
			if m == nil {
				m = referenceSetting.FindStringSubmatch(bare)
			}
			key := m[1]
			if section != "" {
				key = section + "." + key
			}
			typ := typeOfSetting(key)
			if typ != "" {
				settings = append(settings, fmt.Sprintf("**`%s`** (%s, `%s`)", key, typ, m[2]))
				continue
			}
			if !commented {
				t.Errorf("%s is no setting", key)
			}
		}
		if text, ok := strings.CutPrefix(line, "#"); ok {
			if len(settings) > 0 {
				flush()
			}
			if text = strings.TrimSpace(text); text != "" {
				comment = append(comment, text)
			}
		}
	}
	flush()
	return out.String()
}

// The reference follows the code: the example holds every setting with its default, which other tests see to.
func TestReference_IsOfTheExample(t *testing.T) {
	t.Parallel()
	example, err := os.ReadFile(examplePath)
	if err != nil {
		t.Fatal(err)
	}
	want := reference(t, string(example))
	if *updateReference {
		if err := os.WriteFile(referencePath, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(referencePath)
	if err != nil || string(got) != want {
		t.Errorf("docs/reference.md is not what the example says (%v): go test ./node -run Reference -update-reference", err)
	}
}
