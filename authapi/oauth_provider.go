package authapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"
)

const (
	// maxProviderBody bounds what a provider may answer, in bytes.
	maxProviderBody = 1 << 20
	// keysEvery is how often a provider's key set is fetched at most, whatever its tokens name.
	keysEvery = 10 * time.Second
	// A discovery document is looked at again so often, and after a failure so soon.
	discoverEvery = time.Hour
	discoverFirst = time.Second
	discoverMost  = time.Minute
)

// provider is one provider as this node knows it.
type provider struct {
	OAuthProvider
	clock     Clock
	log       *slog.Logger
	transport http.RoundTripper
	client    *http.Client
	timeout   time.Duration
	found     atomic.Pointer[endpoints]
}

// endpoints is where a provider is and how it wants to be talked to: built in, configured or discovered. Immutable.
type endpoints struct {
	oauth2.Endpoint
	userInfo   string
	jwks       string
	keys       oidc.KeySet
	algorithms []string // of ID tokens
	// sendsIssuer: every answer of the provider names its issuer (RFC 9207), so one that does not is not the provider's.
	sendsIssuer bool
}

// signatures are the algorithms of ID tokens that are accepted: asymmetric, so that no secret of ours can make one.
var signatures = []string{
	oidc.RS256, oidc.RS384, oidc.RS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.EdDSA,
}

// newProviderTransport connects to providers: with TLS 1.2 or newer, following no redirect, reading no endless answer.
func newProviderTransport(timeout time.Duration) *http.Transport {
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: timeout}).DialContext,
		ForceAttemptHTTP2:      true,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    timeout,
		ResponseHeaderTimeout:  timeout,
		MaxResponseHeaderBytes: 64 << 10,
		MaxIdleConnsPerHost:    4,
		IdleConnTimeout:        30 * time.Second,
	}
}

func providerClient(transport http.RoundTripper, timeout time.Duration) *http.Client {
	return &http.Client{
		Transport: transport, Timeout: timeout,
		// The code, the client's secret and the token are for the endpoint that is configured and for no other.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// open makes the provider ready, as far as that takes no discovery.
func (p *provider) open(transport http.RoundTripper, timeout time.Duration) {
	p.transport = bounded{transport}
	p.client, p.timeout = providerClient(p.transport, timeout), timeout
	if p.discovers() {
		return
	}
	e := &endpoints{
		Endpoint: oauth2.Endpoint{AuthURL: p.AuthURL, TokenURL: p.TokenURL, AuthStyle: p.authStyle(nil)},
		userInfo: p.UserInfoURL, jwks: p.JWKSURL, algorithms: signatures,
	}
	if p.Issuer == googleIssuer {
		e.algorithms = []string{oidc.RS256}
	}
	if p.Kind == KindOIDC {
		e.keys = p.keySet(e.jwks)
	}
	p.found.Store(e)
}

// authStyle is how the client's secret goes to the token endpoint, given the methods that discovery lists (nil for
// none). It is never tried out: that could send a code twice.
func (p *provider) authStyle(methods []string) oauth2.AuthStyle {
	_, own := builtIn[p.Name]
	switch {
	case slices.Contains(methods, "client_secret_post") && (own || !slices.Contains(methods, "client_secret_basic")):
		return oauth2.AuthStyleInParams
	case methods == nil && (own || p.Kind == KindGitHub):
		return oauth2.AuthStyleInParams
	}
	return oauth2.AuthStyleInHeader // the specification's default
}

func (p *provider) keySet(jwks string) oidc.KeySet {
	source := &keySource{next: p.transport, clock: p.clock}
	return oidc.NewRemoteKeySet(oidc.ClientContext(context.Background(), providerClient(source, p.timeout)), jwks)
}

// endpoints is where the provider is. A provider that is not known yet cannot be used: nobody waits for it.
func (p *provider) endpoints() (*endpoints, error) {
	if e := p.found.Load(); e != nil {
		return e, nil
	}
	pr := problem(http.StatusServiceUnavailable, "provider_unavailable", "this node has not found out yet where the provider is; try again soon")
	pr.RetryAfter = retryUnavailable
	return nil, pr
}

// discover finds out where the provider is, until ctx ends.
func (p *provider) discover(ctx context.Context) {
	pause := discoverFirst
	for {
		wait := discoverEvery
		if err := p.discoverOnce(ctx); err != nil && ctx.Err() == nil {
			p.log.Warn("discovery of a provider failed", "issuer", p.Issuer, "error", err, "known", p.found.Load() != nil)
			wait, pause = pause, min(2*pause, discoverMost)
		} else {
			pause = discoverFirst
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// discovered are the parts of a discovery document that go-oidc does not keep.
type discovered struct {
	Keys        string   `json:"jwks_uri"`
	AuthMethods []string `json:"token_endpoint_auth_methods_supported"`
	Algorithms  []string `json:"id_token_signing_alg_values_supported"`
	SendsIssuer bool     `json:"authorization_response_iss_parameter_supported"`
}

func (p *provider) discoverOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	document, err := oidc.NewProvider(oidc.ClientContext(ctx, p.client), p.Issuer)
	if err != nil {
		return fmt.Errorf("read discovery document: %w", err)
	}
	var more discovered
	if err := document.Claims(&more); err != nil {
		return fmt.Errorf("read discovery document: %w", err)
	}
	endpoint := document.Endpoint()
	e := &endpoints{
		Endpoint: oauth2.Endpoint{AuthURL: endpoint.AuthURL, TokenURL: endpoint.TokenURL, AuthStyle: p.authStyle(more.AuthMethods)},
		userInfo: document.UserInfoEndpoint(), jwks: more.Keys, sendsIssuer: more.SendsIssuer,
	}
	for _, a := range more.Algorithms {
		if slices.Contains(signatures, a) {
			e.algorithms = append(e.algorithms, a)
		}
	}
	if len(more.Algorithms) == 0 {
		e.algorithms = []string{oidc.RS256} // which every provider has
	}
	if len(e.algorithms) == 0 {
		return errors.New("the provider signs with no algorithm that is accepted")
	}
	for _, u := range []struct {
		name, configured string
		url              *string
	}{
		{"authorization_endpoint", p.AuthURL, &e.AuthURL}, {"token_endpoint", p.TokenURL, &e.TokenURL},
		{"jwks_uri", p.JWKSURL, &e.jwks}, {"userinfo_endpoint", p.UserInfoURL, &e.userInfo},
	} {
		if u.configured != "" {
			*u.url = u.configured
			continue
		}
		if *u.url == "" && u.name == "userinfo_endpoint" {
			continue
		}
		if err := checkEndpoint(*u.url, p.Issuer); err != nil {
			return fmt.Errorf("%s: %w", u.name, err)
		}
	}
	// The keys that are known already stay known.
	if old := p.found.Load(); old != nil && old.jwks == e.jwks {
		e.keys = old.keys
	} else {
		e.keys = p.keySet(e.jwks)
	}
	p.found.Store(e)
	return nil
}

// checkEndpoint accepts https, and http where the issuer itself, which the operator chose, is of this machine by http.
func checkEndpoint(endpoint, issuer string) error {
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || u.User != nil || u.Fragment != "" {
		return errors.New("is no URL of an endpoint")
	}
	own, err := url.Parse(issuer)
	if u.Scheme != "https" && (u.Scheme != "http" || err != nil || own.Scheme != "http" || !isLoopback(u.Hostname())) {
		return errors.New("is not https")
	}
	return nil
}

// isLoopback says whether a host is this machine.
func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// config is the client at its provider.
func (p *provider) config(e *endpoints, callback string) *oauth2.Config {
	return &oauth2.Config{ClientID: p.ClientID, ClientSecret: p.ClientSecret, Endpoint: e.Endpoint, RedirectURL: callback, Scopes: p.Scopes}
}

// authorizationURL is where the browser goes.
func (p *provider) authorizationURL(e *endpoints, st *signIn, state string) string {
	options := []oauth2.AuthCodeOption{oauth2.S256ChallengeOption(st.Verifier)}
	if p.Kind == KindOIDC {
		options = append(options, oidc.Nonce(st.Nonce))
	}
	return p.config(e, st.Callback).AuthCodeURL(state, options...)
}

// person is whom a provider vouches for.
type person struct {
	subject  string
	name     string // what the provider calls the user; "" where it does not say
	email    string
	verified bool // the provider has seen that the address is the user's
	// more asks for what is not known yet of the address; nil where there is nothing to ask.
	more func(context.Context) (email string, verified bool, err error)
}

// address is the person's verified e-mail, "" for none.
func (w *person) address(ctx context.Context) (string, error) {
	if w.more != nil && !w.verified {
		email, verified, err := w.more(ctx)
		if err != nil {
			return "", err
		}
		w.email, w.verified, w.more = email, verified, nil
	}
	if !w.verified {
		return "", nil
	}
	return w.email, nil
}

// providerError is what went wrong at a provider: what the client is told, what the audit log says, and what the node's
// log may know beside it. None of them holds anything secret.
type providerError struct {
	problem *Problem
	reason  string
	cause   error
}

func (e *providerError) Error() string {
	if e.cause == nil {
		return e.reason
	}
	return e.reason + ": " + e.cause.Error()
}

func (e *providerError) Unwrap() []error { return []error{e.problem, e.cause} }

// failedAt makes the error of a step.
func failedAt(reason string, cause error) *providerError {
	var netErr net.Error
	if errors.Is(cause, context.DeadlineExceeded) || errors.As(cause, &netErr) && netErr.Timeout() {
		return &providerError{problem(http.StatusGatewayTimeout, "provider_timeout", "the provider did not answer in time"), reason, cause}
	}
	return &providerError{problem(http.StatusBadGateway, "provider_error", "the provider failed, or its answer cannot be trusted"), reason, cause}
}

// identify spends the code and finds out whose it is.
func (p *provider) identify(ctx context.Context, e *endpoints, st *signIn, code string) (*person, error) {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	ctx = oidc.ClientContext(ctx, p.client)
	token, err := p.config(e, st.Callback).Exchange(ctx, code, oauth2.VerifierOption(st.Verifier))
	if err != nil {
		return nil, exchangeError(err)
	}
	if p.Kind == KindGitHub {
		return p.githubPerson(ctx, e, token)
	}
	return p.oidcPerson(ctx, e, token, st.Nonce)
}

func exchangeError(err error) error {
	var refused *oauth2.RetrieveError
	if !errors.As(err, &refused) {
		return failedAt("token_request", err)
	}
	switch refused.ErrorCode {
	case "invalid_grant", "bad_verification_code":
		return &providerError{errInvalidCode(), "invalid_code", nil}
	}
	status := 0
	if refused.Response != nil {
		status = refused.Response.StatusCode
	}
	// Not the error itself: it would hold whatever the provider wrote.
	return failedAt("token_request", fmt.Errorf("status %d, error %q", status, plainCode(refused.ErrorCode)))
}

// plainCode is an error code that a provider sent, "" for what is none (RFC 6749, section 5.2).
func plainCode(code string) string {
	if len(code) > 64 {
		return ""
	}
	for _, ch := range []byte(code) {
		if !isBase62(ch) && ch != '_' && ch != '-' && ch != '.' {
			return ""
		}
	}
	return code
}

// get reads JSON that the token gives access to.
func (p *provider) get(ctx context.Context, address string, token *oauth2.Token, v any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+token.AccessToken)
	req.Header.Set("User-Agent", "sluice")
	req.Header.Set("Accept", "application/json")
	if p.Kind == KindGitHub {
		req.Header.Set("Accept", "application/vnd.github+json")
		req.Header.Set("X-GitHub-Api-Version", "2022-11-28")
	}
	res, err := p.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", res.StatusCode)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return errors.New("the answer is not the expected JSON")
	}
	return nil
}

// bounded cuts answers that are too long.
type bounded struct{ next http.RoundTripper }

func (b bounded) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := b.next.RoundTrip(req)
	if err == nil {
		res.Body = &boundedBody{ReadCloser: res.Body, left: maxProviderBody}
	}
	return res, err
}

type boundedBody struct {
	io.ReadCloser
	left int
}

var errLongAnswer = errors.New("the provider's answer is too long")

func (b *boundedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left -= n; b.left < 0 {
		return 0, errLongAnswer
	}
	return n, err
}

// keySource answers requests for a key set from memory where one was fetched a moment ago: a token that names an unknown
// key makes the verifier fetch the set again, and such tokens must not become requests one to one.
type keySource struct {
	next  http.RoundTripper
	clock Clock

	mu   sync.Mutex
	at   time.Time
	last *http.Response // without its body
	body []byte
}

func (k *keySource) RoundTrip(req *http.Request) (*http.Response, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.last != nil && k.clock().Sub(k.at) < keysEvery {
		return k.answer(), nil
	}
	res, err := k.next.RoundTrip(req)
	if err != nil || res.StatusCode != http.StatusOK {
		return res, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, fmt.Errorf("read key set: %w", err)
	}
	k.at, k.last, k.body = k.clock(), res, body
	return k.answer(), nil
}

func (k *keySource) answer() *http.Response {
	res := *k.last
	res.Body = io.NopCloser(bytes.NewReader(k.body))
	return &res
}
