package authapi

import (
	"math"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// check is one limit that a caller asks about, as sent. Its bytes are the body's, or of the reader's room.
type check struct {
	key, policy, algorithm     []byte
	limit, window, burst, cost int64
	given                      checkField // fields that are there and not null
}

// checkField is a set of the fields of a check, or of the object around several.
type checkField uint16

const (
	fieldKey checkField = 1 << iota
	fieldLimit
	fieldWindow
	fieldAlgorithm
	fieldBurst
	fieldCost
	fieldPolicy
	fieldChecks // of the object around alone, as is the next
	fieldAtomic
)

// checkNamed finds a field by its name, 0 where there is none.
func checkNamed(name []byte, outer bool) checkField {
	switch string(name) {
	case "key":
		return fieldKey
	case "limit":
		return fieldLimit
	case "window_seconds":
		return fieldWindow
	case "algorithm":
		return fieldAlgorithm
	case "burst":
		return fieldBurst
	case "cost":
		return fieldCost
	case "policy":
		return fieldPolicy
	}
	if outer {
		switch string(name) {
		case "checks":
			return fieldChecks
		case "atomic":
			return fieldAtomic
		}
	}
	return 0
}

// name is the field's own.
func (f checkField) name() string {
	switch f {
	case fieldKey:
		return "key"
	case fieldLimit:
		return "limit"
	case fieldWindow:
		return "window_seconds"
	case fieldAlgorithm:
		return "algorithm"
	case fieldBurst:
		return "burst"
	case fieldCost:
		return "cost"
	case fieldPolicy:
		return "policy"
	case fieldChecks:
		return "checks"
	case fieldAtomic:
		return "atomic"
	}
	return ""
}

// checkReader reads the body of a check by the same rules as decodeJSON reads others, without allocating for what is right.
type checkReader struct {
	body []byte
	at   int    // of the next byte
	text []byte // room for strings with escapes
	// list is where the elements of "checks" go, n how many came; index is that of the element at hand, -1 outside of them.
	list   []check
	n      int
	index  int
	atomic bool
}

const (
	detailNotJSON   = "the body is not valid JSON"
	detailNotString = "must be a string"
	detailNotNumber = "must be a whole number in range"
)

// read reads body: the outer object into outer, what "checks" holds into r.list. It gives nil where the body is well-formed.
func (r *checkReader) read(body []byte, outer *check) *Problem {
	r.body, r.at, r.n, r.index, r.atomic = body, 0, 0, -1, false
	*outer = check{}
	if !utf8.Valid(body) {
		return invalidJSON("the body is not valid UTF-8")
	}
	if err := checkDepth(body); err != nil {
		p, _ := problemOf(err)
		return p
	}
	r.space()
	if r.at < len(r.body) && r.body[r.at] != '{' {
		return invalidJSON("the body is not a JSON object")
	}
	if bad := r.object(outer); bad != nil {
		return bad
	}
	r.space()
	if r.at != len(r.body) {
		return invalidJSON(detailNotJSON)
	}
	return nil
}

// path names a field of the object at hand.
func (r *checkReader) path(name string) string { return checkPath(r.index, name) }

// checkPath names a field of the i-th check, or of the only one where i is negative.
func checkPath(i int, name string) string {
	if i < 0 {
		return name
	}
	return "checks[" + strconv.Itoa(i) + "]." + name
}

func (r *checkReader) space() {
	for r.at < len(r.body) {
		switch r.body[r.at] {
		case ' ', '\t', '\r', '\n':
			r.at++
		default:
			return
		}
	}
}

func (r *checkReader) take(c byte) bool {
	if r.at < len(r.body) && r.body[r.at] == c {
		r.at++
		return true
	}
	return false
}

func (r *checkReader) word(w string) bool {
	if len(r.body)-r.at >= len(w) && string(r.body[r.at:r.at+len(w)]) == w {
		r.at += len(w)
		return true
	}
	return false
}

// object reads an object's fields into c. The outer object may have "checks" and "atomic" besides.
func (r *checkReader) object(c *check) *Problem {
	if !r.take('{') {
		return invalidJSON(detailNotJSON)
	}
	r.space()
	if r.take('}') {
		return nil
	}
	var seen checkField
	for {
		name, ok := r.str()
		r.space()
		if !ok || !r.take(':') {
			return invalidJSON(detailNotJSON)
		}
		f := checkNamed(name, r.index < 0)
		switch {
		case f == 0:
			return invalidJSONField(r.path(string(name)), "is not known")
		case seen&f != 0:
			return invalidJSONField(r.path(f.name()), "is given twice")
		}
		seen |= f
		r.space()
		if !r.word("null") { // which is as good as nothing
			if bad := r.value(c, f); bad != nil {
				return bad
			}
			c.given |= f
		}
		r.space()
		switch {
		case r.take('}'):
			return nil
		case !r.take(','):
			return invalidJSON(detailNotJSON)
		}
		r.space()
	}
}

func (r *checkReader) value(c *check, f checkField) *Problem {
	switch f {
	case fieldKey:
		return r.stringInto(&c.key, f)
	case fieldPolicy:
		return r.stringInto(&c.policy, f)
	case fieldAlgorithm:
		return r.stringInto(&c.algorithm, f)
	case fieldLimit:
		return r.numberInto(&c.limit, f)
	case fieldWindow:
		return r.numberInto(&c.window, f)
	case fieldBurst:
		return r.numberInto(&c.burst, f)
	case fieldCost:
		return r.numberInto(&c.cost, f)
	case fieldAtomic:
		switch {
		case r.word("true"):
			r.atomic = true
		case !r.word("false"):
			return invalidJSONField(r.path(f.name()), "must be true or false")
		}
		return nil
	}
	return r.elements()
}

// elements reads "checks".
func (r *checkReader) elements() *Problem {
	if !r.take('[') {
		return invalidJSONField("checks", "must be an array")
	}
	defer func() { r.index = -1 }()
	r.space()
	if r.take(']') {
		return nil
	}
	for {
		if r.n == len(r.list) {
			return invalid("checks", "may have "+strconv.Itoa(len(r.list))+" entries")
		}
		r.index = r.n
		c := &r.list[r.n]
		*c = check{}
		r.n++
		switch {
		case r.word("null"):
		case r.at < len(r.body) && r.body[r.at] != '{':
			return invalidJSONField("checks["+strconv.Itoa(r.index)+"]", "must be an object")
		default:
			if bad := r.object(c); bad != nil {
				return bad
			}
		}
		r.space()
		switch {
		case r.take(']'):
			return nil
		case !r.take(','):
			return invalidJSON(detailNotJSON)
		}
		r.space()
	}
}

func (r *checkReader) stringInto(to *[]byte, f checkField) *Problem {
	if r.at < len(r.body) && r.body[r.at] != '"' {
		return invalidJSONField(r.path(f.name()), detailNotString)
	}
	s, ok := r.str()
	if !ok {
		return invalidJSON(detailNotJSON)
	}
	*to = s
	return nil
}

// str reads a string. One without escapes is the body's own bytes.
func (r *checkReader) str() (s []byte, ok bool) {
	if !r.take('"') {
		return nil, false
	}
	start, from := r.at, -1 // from is where the string begins in r.text, once it has to be there
	for r.at < len(r.body) {
		ch := r.body[r.at]
		switch {
		case ch == '"':
			r.at++
			if from < 0 {
				return r.body[start : r.at-1], true
			}
			return r.text[from:], true
		case ch < ' ':
			return nil, false
		case ch == '\\':
			if from < 0 {
				from = len(r.text)
				r.text = append(r.text, r.body[start:r.at]...)
			}
			if !r.escape() {
				return nil, false
			}
		default:
			if from >= 0 {
				r.text = append(r.text, ch)
			}
			r.at++
		}
	}
	return nil, false
}

// escape reads what follows a backslash into r.text. Halves of surrogate pairs are checkDepth's to refuse.
func (r *checkReader) escape() bool {
	if r.at+1 >= len(r.body) {
		return false
	}
	ch := r.body[r.at+1]
	switch ch {
	case '"', '\\', '/':
	case 'b':
		ch = '\b'
	case 'f':
		ch = '\f'
	case 'n':
		ch = '\n'
	case 'r':
		ch = '\r'
	case 't':
		ch = '\t'
	case 'u':
		char, ok := hex4(r.body, r.at+2)
		if !ok {
			return false
		}
		r.at += 6
		if utf16.IsSurrogate(char) {
			low, ok := hex4(r.body, r.at+2)
			if !ok {
				return false
			}
			r.at += 6
			char = utf16.DecodeRune(char, low)
		}
		r.text = utf8.AppendRune(r.text, char)
		return true
	default:
		return false
	}
	r.at += 2
	r.text = append(r.text, ch)
	return true
}

// numberInto reads a whole number that an int64 holds. One with a fraction or an exponent is none, whatever its value.
func (r *checkReader) numberInto(to *int64, f checkField) *Problem {
	negative := r.take('-')
	start := r.at
	var n uint64
	tooLong := false
	for ; r.at < len(r.body) && r.body[r.at] >= '0' && r.body[r.at] <= '9'; r.at++ {
		if n > math.MaxInt64/10 {
			tooLong = true
			continue
		}
		n = n*10 + uint64(r.body[r.at]-'0')
	}
	most := uint64(math.MaxInt64)
	if negative {
		most++
	}
	switch {
	case r.at == start:
		return invalidJSONField(r.path(f.name()), detailNotNumber)
	case r.body[start] == '0' && r.at > start+1:
		return invalidJSON(detailNotJSON)
	case tooLong || n > most || r.at < len(r.body) && (r.body[r.at] == '.' || r.body[r.at]|0x20 == 'e'):
		return invalidJSONField(r.path(f.name()), detailNotNumber)
	}
	*to = int64(n)
	if negative {
		*to = -*to
	}
	return nil
}
