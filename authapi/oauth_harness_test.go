package authapi_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"sluice/authapi"
	"sluice/authapi/authtest/idp"
	"sluice/raftfsm/state"
)

const (
	publicURL = "https://api.example.com"
	returnTo  = "https://app.example.com/signed-in"
)

// oauthEdge is an API whose provider "google" is a fake one.
type oauthEdge struct {
	*edge
	idp *idp.Server
}

// newOAuth is an API with a provider called "google" that is found by discovery, and with "github".
func newOAuth(t *testing.T, change func(*authapi.Config), opts ...idp.Option) *oauthEdge {
	t.Helper()
	x := &oauthEdge{}
	x.idp = idp.Start(t, func() time.Time { return x.clock.Now() }, opts...)
	x.edge = newAccounts(t, func(cfg *authapi.Config) {
		cfg.PublicURL = publicURL
		cfg.OAuth = authapi.OAuthConfig{
			RedirectURIs: []string{returnTo, returnTo + "?from=sluice"},
			Providers: []authapi.OAuthProvider{
				{Name: "google", ClientID: idp.ClientID, ClientSecret: idp.ClientSecret, Issuer: x.idp.URL},
				{Name: "github", ClientID: idp.ClientID, ClientSecret: idp.ClientSecret,
					AuthURL: x.idp.URL + "/authorize", TokenURL: x.idp.URL + "/token", UserInfoURL: x.idp.URL + "/user"},
			},
		}
		if change != nil {
			change(cfg)
		}
	})
	return x
}

// ready waits until the discovery document was read.
func (x *oauthEdge) ready(provider string) *oauthEdge {
	x.t.Helper()
	eventually(x.t, "the provider is known", func() bool { return x.do("GET", "/api/v1/auth/"+provider, "").status == 302 })
	return x
}

// browser keeps cookies as one does.
type browser struct {
	e       *edge
	cookies map[string]string
}

func (e *edge) browser() *browser { return &browser{e, map[string]string{}} }

func (b *browser) header() string {
	var parts []string
	for name, value := range b.cookies {
		parts = append(parts, name+"="+value)
	}
	return strings.Join(parts, "; ")
}

func (b *browser) keep(a answer) answer {
	for _, c := range (&http.Response{Header: a.header}).Cookies() {
		if c.MaxAge < 0 || !c.Expires.IsZero() && c.Expires.Before(start) {
			delete(b.cookies, c.Name)
		} else {
			b.cookies[c.Name] = c.Value
		}
	}
	return a
}

// get is a navigation.
func (b *browser) get(path string) answer {
	b.e.t.Helper()
	b.e.clock.Advance(time.Millisecond)
	return b.keep(b.e.do("GET", path, "", "Cookie", b.header()))
}

func (b *browser) post(path, credential string, body any, headers ...string) answer {
	b.e.t.Helper()
	return b.keep(b.e.send("POST", path, credential, body, append(headers, "Cookie", b.header())...))
}

// begin goes to a provider and gives the provider's address.
func (b *browser) begin(provider, query string) string {
	b.e.t.Helper()
	a := b.get("/api/v1/auth/" + provider + query)
	b.e.want(a, 302, "")
	return a.header.Get("Location")
}

// path is what a browser asks of this node when it is sent to a callback.
func path(t *testing.T, location string) string {
	t.Helper()
	u, err := url.Parse(location)
	if err != nil || !strings.HasPrefix(location, publicURL+"/") {
		t.Fatalf("callback %q is not of %s", location, publicURL)
	}
	return u.RequestURI()
}

// signIn goes to the provider and back.
func (x *oauthEdge) signIn(b *browser, provider, query string) answer {
	x.t.Helper()
	return b.get(path(x.t, x.idp.Authorize(x.t, b.begin(provider, query))))
}

func query(redirect, mode string) string {
	v := url.Values{}
	if redirect != "" {
		v.Set("redirect_uri", redirect)
	}
	if mode != "" {
		v.Set("response_mode", mode)
	}
	return "?" + v.Encode()
}

// fragment reads what came back behind the '#'.
func fragment(t *testing.T, a answer) url.Values {
	t.Helper()
	base, rest, ok := strings.Cut(a.header.Get("Location"), "#")
	if a.status != 302 || !ok || base != returnTo {
		t.Fatalf("status %d, Location %q; want a fragment of %s; body %s", a.status, a.header.Get("Location"), returnTo, a.body)
	}
	v, err := url.ParseQuery(rest)
	if err != nil {
		t.Fatalf("fragment %q: %v", rest, err)
	}
	return v
}

// operatorEvents are the events without an organization, or all.
func (e *edge) operatorEvents(name string) []state.AuditEvent {
	e.t.Helper()
	events, _, err := e.cluster.Audit(state.AuditFilter{Event: name}, "", 100)
	if err != nil {
		e.t.Fatalf("audit: %v", err)
	}
	return events
}

// reasonAudited waits until a failed sign-in with this reason is in the audit log.
func (e *edge) reasonAudited(provider, reason string) {
	e.t.Helper()
	eventually(e.t, "audited: "+provider+" "+reason, func() bool {
		for _, ev := range e.operatorEvents("oauth.failed") {
			detail := map[string]string{}
			for _, p := range ev.Detail {
				detail[p.Name] = p.Value
			}
			if detail["provider"] == provider && detail["reason"] == reason && ev.Result == "failure" && ev.IP != "" {
				return true
			}
		}
		return false
	})
}

// wantUser checks whose token it is.
func (e *edge) wantUser(token, username string) (userID string) {
	e.t.Helper()
	a := e.send("GET", "/api/v1/auth/me", token, nil)
	e.want(a, 200, "")
	user := a.object(e.t)["user"].(object)
	if user["username"] != username {
		e.t.Fatalf("the token is of %v, want %s", user["username"], username)
	}
	return user["id"].(string)
}
