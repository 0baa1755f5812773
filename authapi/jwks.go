package authapi

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
)

// jwk is one public key (RFC 7517; RFC 8037 for Ed25519).
type jwk struct {
	KeyType   string `json:"kty"`
	Use       string `json:"use"`
	Algorithm string `json:"alg"`
	KeyID     string `json:"kid"`
	Curve     string `json:"crv"`
	X         string `json:"x"`
	Y         string `json:"y,omitempty"`
}

type jwkSet struct {
	Keys []jwk `json:"keys"`
}

// documentMaxAge is how long clients may keep a document. A new signing key is published longer than that before it signs.
const documentMaxAge = "public, max-age=60"

// handleJWKS publishes every key that verifies, newest first. HS256 has no public half, so its keys are not there.
func handleJWKS(c *call) error {
	ring, err := c.srv.tokens.current()
	if err != nil {
		return err
	}
	set := jwkSet{Keys: []jwk{}}
	for i := len(ring.keys) - 1; i >= 0; i-- {
		k := ring.keys[i]
		if !k.verifiesAt(c.now.UnixMilli()) {
			continue
		}
		out := jwk{Use: "sig", Algorithm: k.record.Algorithm, KeyID: k.record.ID}
		switch public := k.public().(type) {
		case ed25519.PublicKey:
			out.KeyType, out.Curve, out.X = "OKP", "Ed25519", base64.RawURLEncoding.EncodeToString(public)
		case *ecdsa.PublicKey:
			point, err := public.Bytes() // 4, X, Y
			if err != nil {
				return err
			}
			out.KeyType, out.Curve = "EC", "P-256"
			out.X = base64.RawURLEncoding.EncodeToString(point[1:33])
			out.Y = base64.RawURLEncoding.EncodeToString(point[33:])
		default:
			continue
		}
		set.Keys = append(set.Keys, out)
	}
	return c.writeDocument(set)
}

// metadata is the subset of RFC 8414 that holds here: Sluice issues tokens by its own API, not by an OAuth flow.
type metadata struct {
	Issuer        string   `json:"issuer"`
	JWKSURI       string   `json:"jwks_uri"`
	ResponseTypes []string `json:"response_types_supported"`
	GrantTypes    []string `json:"grant_types_supported"`
	SigningAlgs   []string `json:"access_token_signing_alg_values_supported"`
	Documentation string   `json:"service_documentation"`
	Introspection string   `json:"introspection_endpoint"`
	Revocation    string   `json:"revocation_endpoint"`
	// By a key as a bearer token, and by holding the token that is revoked.
	IntrospectionAuth []string `json:"introspection_endpoint_auth_methods_supported"`
	RevocationAuth    []string `json:"revocation_endpoint_auth_methods_supported"`
}

// handleMetadata describes the issuer. Without a configured public URL, links are made from the request's host, which
// only the one who asks is told.
func handleMetadata(c *call) error {
	base := c.srv.cfg.PublicURL
	if base == "" {
		uri := c.ctx.Request.URI()
		base = string(uri.Scheme()) + "://" + string(uri.Host())
	}
	return c.writeDocument(metadata{
		Issuer: c.srv.tokens.issuer, JWKSURI: base + "/.well-known/jwks.json",
		ResponseTypes: []string{}, GrantTypes: []string{}, SigningAlgs: []string{c.srv.cfg.Auth.SigningAlgorithm},
		Documentation: base + "/openapi.json",
		Introspection: base + "/oauth2/introspect", IntrospectionAuth: []string{"Bearer"},
		Revocation: base + "/oauth2/revoke", RevocationAuth: []string{"none"},
	})
}

// writeDocument answers with a public document.
func (c *call) writeDocument(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	c.writeTagged(b, etagOf(b), documentMaxAge)
	return nil
}

// etagOf is the strong validator of a document (RFC 9110, section 8.8.3).
func etagOf(body []byte) string {
	sum := sha256.Sum256(body)
	return `"` + base64.RawURLEncoding.EncodeToString(sum[:12]) + `"`
}

// writeTagged answers with a public document that may be kept for a while and asked for again by its tag, for every page:
// nothing in it is anybody's. body is not copied.
func (c *call) writeTagged(body []byte, etag, maxAge string) {
	h := &c.ctx.Response.Header
	h.Set("ETag", etag)
	h.SetCanonical(headerCacheControl, []byte(maxAge))
	h.SetCanonical(headerAllowOrigin, []byte("*"))
	if tagMatches(c.ctx.Request.Header.PeekAll("If-None-Match"), etag) {
		c.ctx.SetStatusCode(http.StatusNotModified)
		return
	}
	c.ctx.SetStatusCode(http.StatusOK)
	h.SetContentTypeBytes(typeJSON)
	c.ctx.Response.SetBodyRaw(body)
}

// tagMatches says whether one of the tags in If-None-Match is etag, compared weakly (RFC 9110, section 13.1.2).
func tagMatches(lines [][]byte, etag string) bool {
	for _, line := range lines {
		for tag := range bytes.SplitSeq(line, []byte{','}) {
			tag = trimSpace(tag)
			if string(tag) == "*" || string(bytes.TrimPrefix(tag, []byte("W/"))) == etag {
				return true
			}
		}
	}
	return false
}
