package authapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// OAuthConfig says with which providers users may sign in, and where a sign-in may return to.
type OAuthConfig struct {
	// RedirectURIs are compared whole, byte for byte: absolute, without a fragment.
	RedirectURIs []string
	Providers    []OAuthProvider
	// Timeout is for all that one sign-in asks of a provider; 0: DefaultProviderTimeout.
	Timeout time.Duration
}

// OAuthProvider is one provider. What is empty of the two built-in ones, ProviderGoogle and ProviderGitHub, is built in.
type OAuthProvider struct {
	Name         string // in the paths and in audit events; see CheckProviderName
	Kind         string // KindOIDC or KindGitHub; "" for a built-in one
	ClientID     string
	ClientSecret string
	// Issuer is a provider's name for itself. For KindOIDC the URLs that are empty come from its discovery document.
	Issuer      string
	AuthURL     string
	TokenURL    string
	UserInfoURL string // KindGitHub: the e-mails are at UserInfoURL + "/emails"
	JWKSURL     string
	Scopes      []string // empty: those that an identity takes
}

// Kinds of providers.
const (
	// KindOIDC is OpenID Connect: the ID token says who it is.
	KindOIDC = "oidc"
	// KindGitHub is OAuth with GitHub's API for users.
	KindGitHub = "github"
)

// Names of the built-in providers.
const (
	ProviderGoogle = "google"
	ProviderGitHub = "github"
)

// DefaultProviderTimeout is how long a provider may take in all. It leaves a request time for what comes after.
const DefaultProviderTimeout = 5 * time.Second

const googleIssuer = "https://accounts.google.com"

// builtIn are the providers whose endpoints need no configuration and no discovery, so that a redirect to them asks
// nobody.
var builtIn = map[string]OAuthProvider{
	ProviderGoogle: {
		Kind: KindOIDC, Issuer: googleIssuer, AuthURL: "https://accounts.google.com/o/oauth2/v2/auth",
		TokenURL: "https://oauth2.googleapis.com/token", UserInfoURL: "https://openidconnect.googleapis.com/v1/userinfo",
		JWKSURL: "https://www.googleapis.com/oauth2/v3/certs",
	},
	ProviderGitHub: {
		Kind: KindGitHub, Issuer: "https://github.com/login/oauth", AuthURL: "https://github.com/login/oauth/authorize",
		TokenURL: "https://github.com/login/oauth/access_token", UserInfoURL: "https://api.github.com/user",
	},
}

// complete fills in what is built in.
func (p OAuthProvider) complete() OAuthProvider {
	own, ok := builtIn[p.Name]
	if ok {
		p.Kind = own.Kind
	}
	switch {
	case !ok:
	case p.Kind == KindOIDC && p.Issuer != "" && p.Issuer != own.Issuer:
		// Somebody else: nothing of the built-in one applies to it.
	default:
		if p.Issuer == "" && (p.Kind == KindOIDC || p.AuthURL == "") {
			p.Issuer = own.Issuer
		}
		setDefault(&p.AuthURL, own.AuthURL)
		setDefault(&p.TokenURL, own.TokenURL)
		setDefault(&p.UserInfoURL, own.UserInfoURL)
		setDefault(&p.JWKSURL, own.JWKSURL)
	}
	p.Scopes = slices.Clone(p.Scopes)
	switch {
	case p.Kind == KindGitHub && len(p.Scopes) == 0:
		p.Scopes = []string{"user:email"}
	case p.Kind == KindOIDC && len(p.Scopes) == 0:
		p.Scopes = []string{"openid", "email", "profile"}
	case p.Kind == KindOIDC && !slices.Contains(p.Scopes, "openid"):
		p.Scopes = append([]string{"openid"}, p.Scopes...)
	}
	return p
}

// discovers says whether something of a completed provider has to be found out from its discovery document.
func (p OAuthProvider) discovers() bool {
	return p.Kind == KindOIDC && (p.AuthURL == "" || p.TokenURL == "" || p.JWKSURL == "")
}

// check says what is missing of a completed provider.
func (p OAuthProvider) check() error {
	if err := CheckProviderName(p.Name); err != nil {
		return err
	}
	switch {
	case p.Kind != KindOIDC && p.Kind != KindGitHub:
		return fmt.Errorf("kind %q is neither %s nor %s", p.Kind, KindOIDC, KindGitHub)
	case p.ClientID == "":
		return errors.New("the client id is missing")
	case p.Kind == KindOIDC && p.Issuer == "":
		return errors.New("the issuer is missing")
	case p.Kind == KindGitHub && (p.AuthURL == "" || p.TokenURL == "" || p.UserInfoURL == ""):
		return errors.New("an endpoint is missing")
	}
	return nil
}

var providerName = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,31}$`)

// reservedNames are the words that stand below /api/v1/auth already.
var reservedNames = sync.OnceValue(func() []string {
	var names []string
	for _, r := range (*Server)(nil).routeTable() {
		if rest, ok := strings.CutPrefix(r.pattern, authPath+"/"); ok {
			if name, _, _ := strings.Cut(rest, "/"); name[0] != '{' && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names
})

const authPath = "/api/v1/auth"

// CheckProviderName says why a provider cannot have a name, nil where it can.
func CheckProviderName(name string) error {
	if !providerName.MatchString(name) {
		return errors.New("want a name of up to 32 lower-case letters, digits, dashes and underscores that begins with a letter")
	}
	if slices.Contains(reservedNames(), name) {
		return fmt.Errorf("%s/%s is another endpoint", authPath, name)
	}
	return nil
}

// CheckRedirectURI says why a sign-in cannot return to a URI, nil where it can. secure leaves http to this machine alone.
func CheckRedirectURI(uri string, secure bool) error {
	const longest = 1024 // it travels in a cookie
	u, err := url.Parse(uri)
	switch {
	case err != nil || u.Scheme == "" || u.Opaque == "" && u.Host == "" && !strings.Contains(u.Scheme, "."):
		return errors.New("want an absolute URI")
	case strings.Contains(uri, "#"):
		return errors.New("want a URI without a fragment, which is where the answer goes")
	case len(uri) > longest:
		return fmt.Errorf("want at most %d bytes", longest)
	case u.User != nil:
		return errors.New("must not hold a user name or password")
	case u.Scheme == "https" && u.Host != "":
		return nil
	case u.Scheme == "http" && u.Host != "":
		if secure && !isLoopback(u.Hostname()) {
			return errors.New("want https: tokens would cross the network in the clear")
		}
		return nil
	case strings.Contains(u.Scheme, "."):
		return nil // an application's own (RFC 8252, section 7.1)
	}
	return errors.New("want https, or the scheme of an application as in com.example.app:/signed-in")
}

// oauthClients is what the configuration of one moment makes possible. It is immutable but for what its providers find out.
type oauthClients struct {
	providers map[string]*provider

	stop context.CancelFunc
	wg   sync.WaitGroup // discoveries
	idle func()         // closes idle connections
}

// SetOAuth replaces the providers, and where sign-ins may return to, while the server runs. Sign-ins that are under way go on with the new settings. The
// error names what is missing or impossible; nothing was changed then.
func (s *Server) SetOAuth(cfg OAuthConfig) error {
	redirects, err := newRedirects(cfg.RedirectURIs)
	if err != nil {
		return fmt.Errorf("configure providers: %w", err)
	}
	next, err := s.newOAuthClients(cfg)
	if err != nil {
		return fmt.Errorf("configure providers: %w", err)
	}
	s.redirects.Store(&redirects)
	if old := s.oauth.Swap(next); old != nil {
		old.close()
	}
	if s.draining.Load() {
		next.close() // Shutdown may have been here already
	}
	return nil
}

// samePlace says whether two providers are one, whatever client we are there.
func samePlace(a, b OAuthProvider) bool {
	a.ClientID, a.ClientSecret, a.Scopes = b.ClientID, b.ClientSecret, nil
	b.Scopes = nil
	return reflect.DeepEqual(a, b)
}

func (s *Server) newOAuthClients(cfg OAuthConfig) (*oauthClients, error) {
	setDefault(&cfg.Timeout, DefaultProviderTimeout)
	x := &oauthClients{providers: map[string]*provider{}}
	var problems []error
	for _, p := range cfg.Providers {
		p = p.complete()
		err := p.check()
		if x.providers[p.Name] != nil {
			err = errors.New("is there twice")
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("provider %q: %w", p.Name, err))
			continue
		}
		x.providers[p.Name] = &provider{OAuthProvider: p, clock: s.clock, log: s.log.With("provider", p.Name)}
	}
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	transport := newProviderTransport(cfg.Timeout)
	x.idle = transport.CloseIdleConnections
	ctx, cancel := context.WithCancel(context.Background())
	x.stop = cancel
	last := s.oauth.Load()
	for _, p := range x.providers {
		p.open(transport, cfg.Timeout)
		if last != nil {
			// What was found out stays known: a reload makes no provider unavailable.
			if old := last.providers[p.Name]; old != nil && samePlace(old.OAuthProvider, p.OAuthProvider) {
				p.found.Store(old.found.Load())
			}
		}
		if p.discovers() {
			x.wg.Go(func() { p.discover(ctx) })
		}
	}
	return x, nil
}

// close ends what runs in the background. Requests that hold x may go on with it.
func (x *oauthClients) close() {
	x.stop()
	x.wg.Wait()
	x.idle()
}

func errNoProvider() *Problem {
	return problem(http.StatusNotFound, "provider_not_configured", "sign-in with this provider is not configured")
}

// provider is the provider of the route.
func (x *oauthClients) provider(name string) (*provider, error) {
	if p := x.providers[name]; p != nil {
		return p, nil
	}
	return nil, errNoProvider()
}

func errRedirectURI() *Problem {
	return problem(http.StatusBadRequest, "invalid_redirect_uri", "redirect_uri is not one of those that a sign-in may return to")
}

// oauthRoutes are the rows of sign-in with a provider.
func oauthRoutes() []route {
	return []route{
		{method: "GET", pattern: authPath + "/{provider}", handle: handleBeginSignIn},
		{method: "GET", pattern: authPath + "/{provider}/callback", handle: handleCallback},
		{method: "POST", pattern: authPath + "/exchange", handle: handleExchange},
		{method: "GET", pattern: authPath + "/identities", handle: handleListIdentities, auth: authJWT},
		{method: "POST", pattern: authPath + "/identities/{provider}/link", handle: handleBeginLink, auth: authJWT},
		{method: "DELETE", pattern: authPath + "/identities/{provider}", handle: handleUnlink, auth: authJWT},
	}
}
