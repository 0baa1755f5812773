package authapi

import (
	"bytes"
	"net/http"
	"net/url"
	"strings"
	"unicode/utf8"
)

// maxFormFields bounds the parameters of a form, known or not.
const maxFormFields = 32

func invalidForm(detail string) *Problem {
	return problem(http.StatusBadRequest, "invalid_request", detail)
}

// decodeForm reads the body as application/x-www-form-urlencoded. As RFC 6749, section 3.2, has it: a parameter occurs
// once at most, one without a value is left out, and those that nobody knows are ignored.
func (c *call) decodeForm() (map[string]string, error) {
	h := &c.ctx.Request.Header
	if rawCount(h.RawHeaders(), "content-type") > 1 {
		return nil, duplicateHeader("Content-Type")
	}
	if !isForm(h.ContentType()) {
		return nil, problem(http.StatusUnsupportedMediaType, "unsupported_media_type", "the body must be application/x-www-form-urlencoded")
	}
	if enc := h.Peek("Content-Encoding"); len(enc) > 0 && !bytes.EqualFold(enc, []byte("identity")) {
		return nil, problem(http.StatusUnsupportedMediaType, "unsupported_media_type", "the body must not be compressed")
	}
	b, err := c.body()
	if err != nil {
		return nil, err
	}
	return parseForm(b)
}

// isForm accepts application/x-www-form-urlencoded, with charset=utf-8 or without.
func isForm(contentType []byte) bool {
	media, rest, _ := strings.Cut(string(contentType), ";")
	if !strings.EqualFold(strings.TrimSpace(media), "application/x-www-form-urlencoded") {
		return false
	}
	return isUTF8Parameter(rest)
}

// parseForm is decodeForm without the request.
func parseForm(b []byte) (map[string]string, error) {
	if bytes.Count(b, []byte{'&'}) >= maxFormFields {
		return nil, invalidForm("the form has too many parameters")
	}
	form := map[string]string{}
	seen := map[string]bool{}
	for part := range strings.SplitSeq(string(b), "&") {
		if part == "" {
			continue
		}
		rawName, rawValue, _ := strings.Cut(part, "=")
		name, errName := url.QueryUnescape(rawName)
		value, errValue := url.QueryUnescape(rawValue)
		switch {
		case errName != nil || errValue != nil:
			return nil, invalidForm("the form is not encoded correctly")
		case !utf8.ValidString(name) || !utf8.ValidString(value):
			return nil, invalidForm("the form is not valid UTF-8")
		case seen[name]:
			return nil, invalidForm("the form has a parameter twice")
		}
		seen[name] = true
		if value != "" {
			form[name] = value
		}
	}
	return form, nil
}
