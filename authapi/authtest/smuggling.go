package authtest

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
)

// Smuggled is a case of a corpus of requests that servers could read in different ways.
type Smuggled struct {
	Name string
	// Want are the statuses of the answers that a server gives alone, with spaces between them; "-" for none.
	Want string
	// Proxied are those through a proxy, where they are neither the same nor refusals; else "".
	Proxied string
	Raw     string
}

// Refused says whether no answer of statuses, in Want's form, is a success. A 100 is none.
func Refused(statuses string) bool {
	for status := range strings.FieldsSeq(statuses) {
		if status != "-" && status < "400" {
			return false
		}
	}
	return true
}

var filling = regexp.MustCompile(`(?s)\{(.*)\*(\d+)\}`)

// ReadSmuggling reads such a corpus. Its file says what its lines mean.
func ReadSmuggling(path string) ([]Smuggled, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var list []Smuggled
	for i, line := range strings.Split(string(text), "\n") {
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if name, ok := strings.CutPrefix(line, "== "); ok {
			list = append(list, Smuggled{Name: name})
			continue
		}
		if len(list) == 0 {
			return nil, fmt.Errorf("%s:%d: no case yet", path, i+1)
		}
		c := &list[len(list)-1]
		if c.Raw == "" {
			if want, ok := strings.CutPrefix(line, "-> "); ok {
				c.Want = want
				continue
			}
			if want, ok := strings.CutPrefix(line, "nginx "); ok {
				c.Proxied = want
				continue
			}
		}
		raw, err := strconv.Unquote(`"` + strings.ReplaceAll(line, `"`, `\"`) + `"`)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, i+1, err)
		}
		c.Raw += filling.ReplaceAllStringFunc(raw, func(s string) string {
			m := filling.FindStringSubmatch(s)
			n, err := strconv.Atoi(m[2])
			if err != nil {
				return s
			}
			return strings.Repeat(m[1], n)
		})
	}
	return list, nil
}
