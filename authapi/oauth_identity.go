package authapi

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"
)

const (
	// maxIDToken bounds an ID token before anything in it is looked at, in bytes.
	maxIDToken = 16 << 10
	// maxSubject is how long a subject may be (OpenID Connect Core 1.0, section 2).
	maxSubject = 255
	// maxClaimAhead is how far in the future an ID token may have been issued: clocks differ.
	maxClaimAhead = 5 * time.Minute
)

// idClaims are the claims that go-oidc leaves to its caller.
type idClaims struct {
	AuthorizedParty   string   `json:"azp"`
	Email             string   `json:"email"`
	EmailVerified     flexBool `json:"email_verified"`
	PreferredUsername string   `json:"preferred_username"`
}

// flexBool is a truth value that some providers send as a text.
type flexBool bool

func (b *flexBool) UnmarshalJSON(data []byte) error {
	*b = string(data) == "true" || string(data) == `"true"`
	return nil
}

// watchedKeys remembers why a signature could not be checked: the verifier's own error is text only.
type watchedKeys struct {
	oidc.KeySet
	err error
}

func (w *watchedKeys) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	payload, err := w.KeySet.VerifySignature(ctx, token)
	w.err = err
	return payload, err
}

func errIssuer() *Problem {
	return problem(http.StatusBadRequest, "issuer_mismatch", "the answer is of another issuer than the one that was asked")
}

// ownIssuer says whether an issuer is the provider. Google's tokens may leave the scheme out.
func (p *provider) ownIssuer(issuer string) bool {
	return issuer == p.Issuer || p.Issuer == googleIssuer && issuer == "accounts.google.com"
}

// oidcPerson checks the ID token completely (OpenID Connect Core 1.0, section 3.1.3.7).
func (p *provider) oidcPerson(ctx context.Context, e *endpoints, token *oauth2.Token, nonce string) (*person, error) {
	raw, _ := token.Extra("id_token").(string)
	if raw == "" || len(raw) > maxIDToken {
		return nil, failedAt("id_token_missing", nil)
	}
	keys := &watchedKeys{KeySet: e.keys}
	verifier := oidc.NewVerifier(p.Issuer, keys, &oidc.Config{
		ClientID: p.ClientID, SupportedSigningAlgs: e.algorithms, Now: p.clock,
		SkipIssuerCheck: true, // checked below, where it gets an answer of its own
	})
	id, err := verifier.Verify(ctx, raw)
	if err != nil {
		return nil, failedAt("id_token", errors.Join(err, keys.err))
	}
	var claims idClaims
	switch err := id.Claims(&claims); {
	case err != nil:
		return nil, failedAt("id_token", errors.New("the claims have another shape"))
	case !p.ownIssuer(id.Issuer):
		return nil, &providerError{errIssuer(), "issuer_mismatch", nil}
	case subtle.ConstantTimeCompare([]byte(id.Nonce), []byte(nonce)) != 1:
		return nil, &providerError{errState("the provider's answer belongs to another sign-in"), "nonce_mismatch", nil}
	case claims.AuthorizedParty != "" && claims.AuthorizedParty != p.ClientID, len(id.Audience) > 1 && claims.AuthorizedParty == "":
		return nil, failedAt("id_token", errors.New("the token is for another party"))
	case id.Subject == "" || len(id.Subject) > maxSubject:
		return nil, failedAt("id_token", errors.New("the subject is empty or too long"))
	case id.IssuedAt.After(p.clock().Add(maxClaimAhead)):
		return nil, failedAt("id_token", errors.New("the token is from the future"))
	case id.AccessTokenHash != "" && id.VerifyAccessToken(token.AccessToken) != nil:
		return nil, failedAt("id_token", errors.New("the access token is another one's"))
	}
	who := &person{subject: id.Subject, name: claims.PreferredUsername, email: claims.Email, verified: claims.Email != "" && bool(claims.EmailVerified)}
	if claims.Email == "" && e.userInfo != "" {
		who.more = func(ctx context.Context) (string, bool, error) { return p.userInfoEmail(ctx, e, token, id.Subject) }
	}
	return who, nil
}

// userInfoEmail asks for an address that is not in the ID token.
func (p *provider) userInfoEmail(ctx context.Context, e *endpoints, token *oauth2.Token, subject string) (string, bool, error) {
	var info struct {
		Subject string   `json:"sub"`
		Email   string   `json:"email"`
		Seen    flexBool `json:"email_verified"`
	}
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	if err := p.get(ctx, e.userInfo, token, &info); err != nil {
		return "", false, failedAt("userinfo", err)
	}
	if info.Subject != subject {
		return "", false, failedAt("userinfo", errors.New("the answer is about another subject"))
	}
	return info.Email, bool(info.Seen) && info.Email != "", nil
}

// githubPerson reads the token's user. The number is what stays: names change hands.
func (p *provider) githubPerson(ctx context.Context, e *endpoints, token *oauth2.Token) (*person, error) {
	var user struct {
		ID    json.Number `json:"id"`
		Login string      `json:"login"`
	}
	if err := p.get(ctx, e.userInfo, token, &user); err != nil {
		return nil, failedAt("userinfo", err)
	}
	id, err := strconv.ParseInt(user.ID.String(), 10, 64)
	if err != nil || id <= 0 {
		return nil, failedAt("userinfo", errors.New("the user has no id"))
	}
	return &person{subject: strconv.FormatInt(id, 10), name: user.Login, more: func(ctx context.Context) (string, bool, error) {
		return p.githubEmail(ctx, e, token)
	}}, nil
}

// githubEmail finds the primary address, if GitHub has verified it.
func (p *provider) githubEmail(ctx context.Context, e *endpoints, token *oauth2.Token) (string, bool, error) {
	var list []struct {
		Email    string `json:"email"`
		Primary  bool   `json:"primary"`
		Verified bool   `json:"verified"`
	}
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	if err := p.get(ctx, e.userInfo+"/emails?per_page=100", token, &list); err != nil {
		return "", false, failedAt("emails", fmt.Errorf("read e-mails: %w", err))
	}
	for _, a := range list {
		if a.Primary {
			return a.Email, a.Verified && a.Email != "", nil
		}
	}
	return "", false, nil
}
