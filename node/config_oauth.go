package node

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"sluice/authapi"
)

// oauthProvider is one provider of a configuration, with its key.
type oauthProvider struct {
	*ProviderConfig
	key, name, kind string
	put             func() // writes changes back
}

// oauthProviders lists all that the configuration has a table for, the built-in ones first.
func (c *Config) oauthProviders() []oauthProvider {
	list := []oauthProvider{
		{&c.OAuth.Google, "oauth.google", authapi.ProviderGoogle, authapi.KindOIDC, func() {}},
		{&c.OAuth.GitHub, "oauth.github", authapi.ProviderGitHub, authapi.KindGitHub, func() {}},
	}
	for _, name := range slices.Sorted(maps.Keys(c.OAuth.Providers)) {
		p := c.OAuth.Providers[name]
		list = append(list, oauthProvider{&p.ProviderConfig, "oauth.providers." + name, name, p.Kind, func() { c.OAuth.Providers[name] = p }})
	}
	return list
}

// oauthOn lists the providers that users may sign in with.
func (c *Config) oauthOn() []oauthProvider {
	return slices.DeleteFunc(c.oauthProviders(), func(p oauthProvider) bool { return p.ClientID == "" })
}

// clientSecret is a provider's secret, from the value or the file. The error never quotes it.
func (p *oauthProvider) clientSecret() (string, error) {
	switch {
	case p.ClientSecret != "" && p.ClientSecretFile != "":
		return "", fmt.Errorf("%s.client_secret and %s.client_secret_file are both set", p.key, p.key)
	case p.ClientSecretFile != "":
		data, err := os.ReadFile(p.ClientSecretFile)
		if err != nil {
			return "", fmt.Errorf("read %s.client_secret_file: %w", p.key, err)
		}
		text := strings.TrimSpace(string(data))
		if text == "" || strings.ContainsAny(text, "\r\n") {
			return "", fmt.Errorf("%s.client_secret_file: want one line with the secret", p.key)
		}
		return text, nil
	case p.ClientSecret == "":
		return "", errors.New("neither client_secret nor client_secret_file is set")
	}
	return string(p.ClientSecret), nil
}

// apiOAuth maps the providers that are on.
func (c *Config) apiOAuth() (authapi.OAuthConfig, error) {
	out := authapi.OAuthConfig{RedirectURIs: slices.Clone(c.OAuth.RedirectURIs)}
	for _, p := range c.oauthOn() {
		secret, err := p.clientSecret()
		if err != nil {
			return out, err
		}
		out.Providers = append(out.Providers, authapi.OAuthProvider{
			Name: p.name, Kind: p.kind, ClientID: p.ClientID, ClientSecret: secret, Issuer: p.Issuer, AuthURL: p.AuthURL,
			TokenURL: p.TokenURL, UserInfoURL: p.UserInfoURL, JWKSURL: p.JWKSURL, Scopes: slices.Clone(p.Scopes),
		})
	}
	return out, nil
}

func (v *validator) oauth() {
	v.redirects()
	for _, p := range v.c.oauthProviders() {
		v.provider(p)
	}
}

func (v *validator) redirects() {
	secure := strings.HasPrefix(strings.ToLower(v.c.PublicURL), "https://")
	for i, uri := range v.c.OAuth.RedirectURIs {
		if err := authapi.CheckRedirectURI(uri, secure); err != nil {
			v.fail(fmt.Sprintf("oauth.redirect_uris[%d]", i), "%v, not %s", err, quote(uri))
		}
	}
}

func (v *validator) provider(p oauthProvider) {
	named := strings.HasPrefix(p.key, "oauth.providers.")
	if named {
		switch err := authapi.CheckProviderName(p.name); {
		case p.name == authapi.ProviderGoogle || p.name == authapi.ProviderGitHub:
			v.fail(p.key, "is built in: its settings are in oauth.%s", p.name)
		case err != nil:
			v.fail(p.key, "%v", err)
		}
		v.oneOf(p.key+".kind", p.kind, authapi.KindOIDC, authapi.KindGitHub)
		if p.ClientID == "" {
			v.fail(p.key+".client_id", "is missing")
		}
	}
	secret := p.key + ".client_secret"
	switch {
	case p.ClientID == "" && p.ClientSecret == "" && p.ClientSecretFile == "":
	case p.ClientID != "" && p.ClientSecret == "" && p.ClientSecretFile == "":
		v.fail(secret, "is missing, and %s is set; %s sets it without writing it down, and %s_file names a file", v.also(p.key+".client_id"), EnvironmentName(secret), secret)
	case p.ClientSecret != "" && p.ClientSecretFile != "":
		v.fail(secret+"_file", "is set together with %s", v.also(secret))
	case p.ClientID == "" && !named && p.ClientSecret != "":
		v.fail(p.key+".client_id", "is missing, and %s is set", v.also(secret))
	case p.ClientID == "" && !named:
		v.fail(p.key+".client_id", "is missing, and %s is set", v.also(secret+"_file"))
	case p.ClientSecretFile != "":
		if _, err := p.clientSecret(); err != nil {
			v.fail(secret+"_file", "%v", err)
		}
	}
	type setting struct{ name, value string }
	urls := []setting{{"issuer", p.Issuer}, {"auth_url", p.AuthURL}, {"token_url", p.TokenURL}, {"userinfo_url", p.UserInfoURL}, {"jwks_url", p.JWKSURL}}
	for _, u := range urls {
		if u.value == "" {
			continue
		}
		if problem := urlProblem(u.value, true); problem != "" {
			v.fail(p.key+"."+u.name, "%s", problem)
		}
	}
	for _, u := range urls {
		needed := named && (p.kind == authapi.KindOIDC && u.name == "issuer" ||
			p.kind == authapi.KindGitHub && (u.name == "auth_url" || u.name == "token_url" || u.name == "userinfo_url"))
		if needed && u.value == "" {
			v.fail(p.key+"."+u.name, "is missing: nothing about a provider of this name is built in")
		}
	}
	for i, scope := range p.Scopes {
		if scope == "" || strings.ContainsAny(scope, " \t\r\n\"\\") {
			v.fail(fmt.Sprintf("%s.scopes[%d]", p.key, i), "want a scope without spaces, not %s", quote(scope))
		}
	}
}
