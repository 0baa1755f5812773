package authapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"reflect"
	"strings"
	"unicode/utf8"
)

const (
	// maxBody bounds the body of every request but those of gateway routes, in bytes.
	maxBody = 64 << 10
	// maxDepth bounds how deep JSON may be nested.
	maxDepth = 16
)

var errRequestTimeout = problem(http.StatusRequestTimeout, "request_timeout", "the request took too long to arrive")

var errBodyTooLarge = problem(http.StatusRequestEntityTooLarge, "body_too_large", "the body is longer than 64 KiB")

// body reads the request's body, at most maxBody bytes of it, and gives it again when asked again. The bytes die with
// the call.
func (c *call) body() ([]byte, error) {
	if c.sent != nil {
		return c.sent, nil
	}
	b, err := c.readBody(nil)
	if err == nil && c.ctx.Request.BodyStream() != nil {
		c.sent = b
	}
	return b, err
}

// readBody reads the body once, into room where it comes as a stream.
func (c *call) readBody(room []byte) ([]byte, error) {
	req := &c.ctx.Request
	if req.Header.ContentLength() > maxBody {
		return nil, errBodyTooLarge
	}
	stream := req.BodyStream()
	if stream == nil {
		b := req.Body()
		if len(b) > maxBody {
			return nil, errBodyTooLarge
		}
		return b, nil
	}
	b, err := readUpTo(stream, room, maxBody)
	if err != nil {
		c.closeAfter = true // nobody knows where the next request would begin
		var netErr net.Error
		if errors.As(err, &netErr) && netErr.Timeout() {
			return nil, errRequestTimeout
		}
		return nil, problem(http.StatusBadRequest, "invalid_body", "the body ended early or is not framed correctly")
	}
	if len(b) > maxBody {
		return nil, errBodyTooLarge
	}
	return b, nil
}

// readUpTo reads r to its end, or one byte more than most, into the room behind b.
func readUpTo(r io.Reader, b []byte, most int) ([]byte, error) {
	if cap(b) == 0 {
		b = make([]byte, 0, 512)
	}
	for len(b) <= most {
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
		n, err := r.Read(b[len(b):min(cap(b), most+1)])
		b = b[:len(b)+n]
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	return b, nil
}

// decode reads the body into v, a pointer to a struct: one JSON object in UTF-8, every name known and spelled exactly,
// none twice, nothing after it. What does not hold is a 400 that names the field where there is one.
func (c *call) decode(v any) error {
	b, err := c.body()
	if err != nil {
		return err
	}
	return c.decodeBytes(b, v)
}

// decodeOptional is decode for requests whose body may be empty; v is then left as it is.
func (c *call) decodeOptional(v any) error {
	b, err := c.body()
	if err != nil || len(b) == 0 {
		return err
	}
	return c.decodeBytes(b, v)
}

func (c *call) decodeBytes(b []byte, v any) error {
	if err := c.checkBodyHeaders(); err != nil {
		return err
	}
	return decodeJSON(b, v)
}

// checkBodyHeaders refuses a body that says of itself that it is not plain JSON.
func (c *call) checkBodyHeaders() error {
	h := &c.ctx.Request.Header
	if rawCount(h.RawHeaders(), "content-type") > 1 {
		return duplicateHeader("Content-Type")
	}
	// A body of no stated type cannot be a form that a browser was made to send: what a cookie authorises needs a header
	// that no form can set (checkCSRF).
	if t := h.ContentType(); len(t) > 0 && !isJSON(t) {
		return problem(http.StatusUnsupportedMediaType, "unsupported_media_type", "the body must be application/json")
	}
	if enc := h.Peek("Content-Encoding"); len(enc) > 0 && !bytes.EqualFold(enc, []byte("identity")) {
		return problem(http.StatusUnsupportedMediaType, "unsupported_media_type", "the body must not be compressed")
	}
	return nil
}

// isJSON accepts application/json, with charset=utf-8 or without.
func isJSON(contentType []byte) bool {
	media, rest, _ := strings.Cut(string(contentType), ";")
	if !strings.EqualFold(strings.TrimSpace(media), "application/json") {
		return false
	}
	return isUTF8Parameter(rest)
}

// isUTF8Parameter accepts no parameter of a media type, or charset=utf-8.
func isUTF8Parameter(rest string) bool {
	rest = strings.TrimSpace(rest)
	if rest == "" {
		return true
	}
	name, value, _ := strings.Cut(rest, "=")
	return strings.EqualFold(strings.TrimSpace(name), "charset") && strings.EqualFold(strings.Trim(strings.TrimSpace(value), `"`), "utf-8")
}

func invalidJSON(detail string) *Problem {
	return problem(http.StatusBadRequest, "invalid_json", detail)
}

func invalidJSONField(field, detail string) *Problem {
	p := invalidJSON("the body does not have the expected shape")
	p.Errors = []FieldError{{Field: field, Detail: detail}}
	return p
}

// decodeJSON is decode without the request.
func decodeJSON(b []byte, v any) error {
	if !utf8.Valid(b) {
		return invalidJSON("the body is not valid UTF-8")
	}
	if err := checkDepth(b); err != nil {
		return err
	}
	if !json.Valid(b) {
		return invalidJSON("the body is not valid JSON")
	}
	if t := bytes.TrimLeft(b, " \t\r\n"); t[0] != '{' {
		return invalidJSON("the body is not a JSON object")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := checkNames(d, reflect.TypeOf(v), ""); err != nil {
		return err
	}
	err := json.Unmarshal(b, v)
	var wrong *json.UnmarshalTypeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &wrong) && wrong.Field != "":
		return invalidJSONField(wrong.Field, "must be "+typeName(wrong.Type))
	default:
		return invalidJSON("the body does not have the expected shape")
	}
}

// typeName says in JSON's words what a Go type takes.
func typeName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice, reflect.Array:
		return "an array"
	case reflect.Struct, reflect.Map:
		return "an object"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "a whole number in range"
	default:
		return "of another type"
	}
}

// checkDepth refuses deep nesting before anything recursive looks at the bytes, and escaped surrogates without their
// partner, which encoding/json would quietly replace.
func checkDepth(b []byte) error {
	depth, inString := 0, false
	for i := 0; i < len(b); i++ {
		switch ch := b[i]; {
		case inString && ch == '\\':
			if i+1 < len(b) && b[i+1] == 'u' {
				if !pairedEscape(b, i) {
					return invalidJSON("the body is not valid UTF-8")
				}
				if high, ok := hex4(b, i+2); ok && high >= 0xD800 && high < 0xDC00 {
					i += 6
				}
			}
			i++
		case ch == '"':
			inString = !inString
		case inString:
		case ch == '{' || ch == '[':
			if depth++; depth > maxDepth {
				return invalidJSON("the body is nested too deep")
			}
		case ch == '}' || ch == ']':
			depth--
		}
	}
	return nil
}

// pairedEscape says whether the \uXXXX at b[i:] is a character, or the first half of one that is followed by the second.
func pairedEscape(b []byte, i int) bool {
	r, ok := hex4(b, i+2)
	switch {
	case !ok || r < 0xD800 || r > 0xDFFF:
		return true // malformed escapes are json.Valid's to find
	case r >= 0xDC00 || i+7 >= len(b) || b[i+6] != '\\' || b[i+7] != 'u':
		return false
	}
	low, ok := hex4(b, i+8)
	return ok && low >= 0xDC00 && low <= 0xDFFF
}

func hex4(b []byte, i int) (r rune, ok bool) {
	if i+4 > len(b) {
		return 0, false
	}
	for _, ch := range b[i : i+4] {
		switch {
		case ch >= '0' && ch <= '9':
			r = r<<4 | rune(ch-'0')
		case ch|0x20 >= 'a' && ch|0x20 <= 'f':
			r = r<<4 | rune(ch|0x20-'a'+10)
		default:
			return 0, false
		}
	}
	return r, true
}

// checkNames walks one value and refuses names that occur twice in an object or that t, a struct type, does not have in
// exactly that spelling: encoding/json alone takes the last of two, and any case.
func checkNames(d *json.Decoder, t reflect.Type, at string) error {
	tok, err := d.Token()
	if err != nil {
		return invalidJSON("the body is not valid JSON")
	}
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch tok {
	case json.Delim('{'):
		seen := map[string]bool{}
		for d.More() {
			tok, err := d.Token()
			if err != nil {
				return invalidJSON("the body is not valid JSON")
			}
			name, _ := tok.(string)
			field := name
			if at != "" {
				field = at + "." + name
			}
			if seen[name] {
				return invalidJSONField(field, "is given twice")
			}
			seen[name] = true
			var next reflect.Type
			switch {
			case t != nil && t.Kind() == reflect.Struct:
				if next = fieldType(t, name); next == nil {
					return invalidJSONField(field, "is not known")
				}
			case t != nil && t.Kind() == reflect.Map:
				next = t.Elem()
			}
			if err := checkNames(d, next, field); err != nil {
				return err
			}
		}
		_, err = d.Token()
	case json.Delim('['):
		var next reflect.Type
		if t != nil && (t.Kind() == reflect.Slice || t.Kind() == reflect.Array) {
			next = t.Elem()
		}
		for d.More() {
			if err := checkNames(d, next, at); err != nil {
				return err
			}
		}
		_, err = d.Token()
	}
	if err != nil {
		return invalidJSON("the body is not valid JSON")
	}
	return nil
}

// fieldType is the type of the field with that JSON name, nil where there is none. Embedded structs are looked into.
func fieldType(t reflect.Type, name string) reflect.Type {
	for i := range t.NumField() {
		f := t.Field(i)
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && tag == "" && f.Type.Kind() == reflect.Struct:
			if found := fieldType(f.Type, name); found != nil {
				return found
			}
		case !f.IsExported() || tag == "-":
		case tag == name || tag == "" && f.Name == name:
			return f.Type
		}
	}
	return nil
}
