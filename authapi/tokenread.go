package authapi

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"strings"
	"time"
)

// tokenShape is what the claims of this node's own tokens look like, byte by byte: encoding/json writes accessClaims in the
// order of its fields. A token that looks so is read here, in one pass, without reflection; any other is the JWT library's
// to read. So this reader has no rules of its own to get wrong: what it takes means the same to both.
type tokenShape struct {
	first    string // up to the subject
	audience string // from the subject's end to the value of exp
}

func newTokenShape(issuer string) (tokenShape, error) {
	quoted, err := json.Marshal(issuer)
	if err != nil {
		return tokenShape{}, err
	}
	text := string(quoted)
	return tokenShape{first: `{"iss":` + text + `,"sub":"`, audience: `","aud":[` + text + `],"exp":`}, nil
}

// read reads claims of this shape; ok is false for any other. Times are in seconds. It keeps parts of payload.
func (s *tokenShape) read(payload string) (cl claims, issued, expires int64, ok bool) {
	r := shapeReader{rest: payload}
	r.text(s.first)
	cl.UserID = r.id()
	r.text(s.audience)
	expires = r.seconds()
	r.text(`,"iat":`)
	issued = r.seconds()
	r.text(`,"jti":"`)
	cl.TokenID = r.id()
	r.text(`","sid":"`)
	cl.SessionID = r.id()
	if strings.HasPrefix(r.rest, `","org":"`) { // which is left out where it is empty
		r.text(`","org":"`)
		cl.OrganizationID = r.id()
	}
	r.text(`"}`)
	return cl, issued, expires, !r.other && r.rest == ""
}

// shapeReader takes one part after another. Once one is not there, other is set for good.
type shapeReader struct {
	rest  string
	other bool
}

func (r *shapeReader) text(want string) {
	rest, found := strings.CutPrefix(r.rest, want)
	r.rest, r.other = rest, r.other || !found
}

// id takes characters that mean themselves in JSON, at least one.
func (r *shapeReader) id() string {
	n := 0
	for n < len(r.rest) && (isBase62(r.rest[n]) || r.rest[n] == '_') {
		n++
	}
	return r.part(n)
}

// seconds takes a whole number as encoding/json writes one.
func (r *shapeReader) seconds() int64 {
	n, v := 0, int64(0)
	for n < len(r.rest) && n < 15 && r.rest[n] >= '0' && r.rest[n] <= '9' {
		v = v*10 + int64(r.rest[n]-'0')
		n++
	}
	if digits := r.part(n); n > 1 && digits[0] == '0' {
		r.other = true
	}
	return v
}

func (r *shapeReader) part(n int) string {
	r.other = r.other || n == 0
	part := r.rest[:n]
	r.rest = r.rest[n:]
	return part
}

// maxSignature is longer than any of the algorithms' signatures, in bytes.
const maxSignature = 64

var strictBase64 = base64.RawURLEncoding.Strict()

// maxOwnPayload is longer than the claims of a token of this node's own, in bytes, unless its issuer's name is very long.
const maxOwnPayload = 1 << 10

// verifyOwn is verifyFully for a token whose header is the key's and that looks as this node's own do; ours is false where it does
// not, and nothing is said of it. The signature is the JWT library's to check. That the rest is three parts of base64url the decoder
// says, but for line breaks, which it skips.
func (t *tokens) verifyOwn(key *signingKey, raw []byte, now time.Time) (cl claims, ours bool, err error) {
	first, last := bytes.IndexByte(raw, '.'), bytes.LastIndexByte(raw, '.')
	if first == last || bytes.IndexByte(raw, '\n') >= 0 || bytes.IndexByte(raw, '\r') >= 0 {
		return claims{}, false, nil
	}
	payload, signature := raw[first+1:last], raw[last+1:]
	if strictBase64.DecodedLen(len(payload)) > maxOwnPayload {
		return claims{}, false, nil
	}
	var text [maxOwnPayload]byte
	n, err := strictBase64.Decode(text[:], payload)
	if err != nil {
		return claims{}, false, nil
	}
	cl, issued, expires, ours := t.shape.read(string(text[:n]))
	if !ours || strictBase64.DecodedLen(len(signature)) > maxSignature {
		return claims{}, false, nil
	}
	signed := make([]byte, maxSignature)
	if n, err = strictBase64.Decode(signed, signature); err != nil {
		return claims{}, false, nil
	}
	switch {
	case key.method.Verify(string(raw[:last]), signed[:n], key.verify) != nil:
		return claims{}, true, errTokenInvalid
	case !now.Before(time.Unix(expires, 0)):
		return claims{}, true, errTokenExpired
	}
	cl, err = cl.plausible(issued, expires, now)
	return cl, true, err
}
