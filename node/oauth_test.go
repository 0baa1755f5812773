package node_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"sluice/authapi/authtest/idp"
	"sluice/node"
	"sluice/node/nodetest"
)

const oauthReturn = "https://app.example.com/signed-in"

// newOAuthCluster is a cluster whose nodes all know one fake provider, under the name of Google.
func newOAuthCluster(t *testing.T, n int) (*nodetest.Cluster, *idp.Server) {
	t.Helper()
	provider := idp.Start(t, time.Now)
	c := nodetest.Start(t, n, nodetest.WithConfig(func(_ int, cfg *node.Config) {
		cfg.PublicURL = "http://api.example.com"
		cfg.TrustedProxies = []string{"127.0.0.0/8"}
		cfg.Limits.Anonymous.Limit = 100_000
		cfg.OAuth.RedirectURIs = []string{oauthReturn}
		cfg.OAuth.Google.ClientID, cfg.OAuth.Google.ClientSecret, cfg.OAuth.Google.Issuer = idp.ClientID, idp.ClientSecret, provider.URL
	}))
	for i := range c.Members {
		nodetest.WaitFor(t, "the provider on every node", func() error {
			if a := ask(t, c, i, "GET", "/api/v1/auth/google", "", ""); a.status != http.StatusFound {
				return fmt.Errorf("node %d: %d %s", i, a.status, a.body)
			}
			return nil
		})
	}
	return c, provider
}

type httpAnswer struct {
	status   int
	location string
	cookie   string
	body     string
}

var oauthClient = &http.Client{
	Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// ask sends a request to one node.
func ask(t testing.TB, c *nodetest.Cluster, member int, method, path, cookie, body string) httpAnswer {
	t.Helper()
	req, err := http.NewRequest(method, "http://"+c.Members[member].Config.HTTP.Listen+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if cookie != "" {
		req.Header.Set("Cookie", cookie)
	}
	res, err := oauthClient.Do(req)
	if err != nil {
		t.Errorf("%s %s at node %d: %v", method, path, member, err)
		return httpAnswer{}
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		t.Errorf("%s %s at node %d: %v", method, path, member, err)
	}
	set, _, _ := strings.Cut(res.Header.Get("Set-Cookie"), ";")
	return httpAnswer{res.StatusCode, res.Header.Get("Location"), set, string(data)}
}

// callbackOf begins a sign-in on one node and gives the path and the cookie of its callback.
func callbackOf(t *testing.T, c *nodetest.Cluster, provider *idp.Server, member int, mode string) (path, cookie string) {
	t.Helper()
	begun := ask(t, c, member, "GET", "/api/v1/auth/google?"+url.Values{"redirect_uri": {oauthReturn}, "response_mode": {mode}}.Encode(), "", "")
	if begun.status != http.StatusFound || begun.cookie == "" {
		t.Fatalf("begin at node %d: %+v", member, begun)
	}
	return strings.TrimPrefix(provider.Authorize(t, begun.location), "http://api.example.com"), begun.cookie
}

// TestOAuth_AnyNodeFinishes goes from node to node with one sign-in: begun on the first, finished on the second, exchanged on
// the third.
func TestOAuth_AnyNodeFinishes(t *testing.T) {
	t.Parallel()
	c, provider := newOAuthCluster(t, 3)
	for round, who := range []idp.User{
		{Subject: "1", Name: "ada", Email: "ada@example.com"}, // makes the account
		{Subject: "1", Name: "ada", Email: "ada@example.com"},
		{Subject: "2", Name: "bob", Email: "bob@example.com"},
	} {
		provider.Set(who)
		first, second, third := round%3, (round+1)%3, (round+2)%3
		path, cookie := callbackOf(t, c, provider, first, "code")
		back := ask(t, c, second, "GET", path, cookie, "")
		u, err := url.Parse(back.location)
		if err != nil || back.status != http.StatusFound || u.Query().Get("code") == "" {
			t.Fatalf("round %d: callback: %+v", round, back)
		}
		code := fmt.Sprintf(`{"code":%q}`, u.Query().Get("code"))
		exchanged := ask(t, c, third, "POST", "/api/v1/auth/exchange", "", code)
		var tokens struct{ Token string }
		if err := json.Unmarshal([]byte(exchanged.body), &tokens); err != nil || exchanged.status != http.StatusOK || tokens.Token == "" {
			t.Fatalf("round %d: exchange: %+v", round, exchanged)
		}
		// What was spent on one node is spent on all.
		for i := range c.Members {
			if a := ask(t, c, i, "GET", path, cookie, ""); a.status != http.StatusBadRequest || !strings.Contains(a.body, "invalid_state") {
				t.Errorf("round %d: callback again on node %d: %+v", round, i, a)
			}
			if a := ask(t, c, i, "POST", "/api/v1/auth/exchange", "", code); a.status != http.StatusUnauthorized || !strings.Contains(a.body, "invalid_code") {
				t.Errorf("round %d: exchange again on node %d: %+v", round, i, a)
			}
		}
		identity, err := c.Members[first].Node.State().Identity("google", who.Subject)
		if err != nil || identity == nil {
			t.Fatalf("round %d: identity %+v, %v", round, identity, err)
		}
		user, err := c.Members[third].Node.State().User(identity.UserID)
		if err != nil || user == nil || user.Username != who.Name {
			t.Errorf("round %d: user %+v, %v", round, user, err)
		}
	}
}

// TestOAuth_RaceBetweenNodes: of callbacks of one sign-in on several nodes at the same instant exactly one wins, and of
// exchanges of one code too.
func TestOAuth_RaceBetweenNodes(t *testing.T) {
	t.Parallel()
	c, provider := newOAuthCluster(t, 3)
	const rounds = 20
	race := func(send func(member int) httpAnswer, good int) (won httpAnswer) {
		t.Helper()
		answers := make(chan httpAnswer, 2*len(c.Members))
		var wg sync.WaitGroup
		for i := range cap(answers) {
			wg.Go(func() { answers <- send(i % len(c.Members)) })
		}
		wg.Wait()
		close(answers)
		count := 0
		for a := range answers {
			switch a.status {
			case good:
				count++
				won = a
			case http.StatusBadRequest, http.StatusUnauthorized:
			default:
				t.Errorf("answer %+v", a)
			}
		}
		if count != 1 {
			t.Fatalf("%d of %d won", count, cap(answers))
		}
		return won
	}
	for round := range rounds {
		// Each is a new person, so that the account is made in the race as well.
		provider.Set(idp.User{Subject: fmt.Sprint(round), Name: fmt.Sprint("racer-", round), Email: fmt.Sprintf("racer-%d@example.com", round)})
		path, cookie := callbackOf(t, c, provider, round%3, "code")
		won := race(func(member int) httpAnswer { return ask(t, c, member, "GET", path, cookie, "") }, http.StatusFound)
		u, err := url.Parse(won.location)
		if err != nil || u.Query().Get("code") == "" {
			t.Fatalf("callback: %+v", won)
		}
		code := fmt.Sprintf(`{"code":%q}`, u.Query().Get("code"))
		race(func(member int) httpAnswer { return ask(t, c, member, "POST", "/api/v1/auth/exchange", "", code) }, http.StatusOK)
	}
	// Two sign-ins of one new person at once, on two nodes, make one account.
	for round := range rounds {
		provider.Set(idp.User{Subject: fmt.Sprint("twice-", round), Name: fmt.Sprint("twice-", round), Email: fmt.Sprintf("twice-%d@example.com", round)})
		var wg sync.WaitGroup
		for i := range 2 {
			path, cookie := callbackOf(t, c, provider, i, "fragment")
			wg.Go(func() {
				if a := ask(t, c, i, "GET", path, cookie, ""); a.status != http.StatusFound || !strings.Contains(a.location, "#token=") {
					t.Errorf("round %d: %+v", round, a)
				}
			})
		}
		wg.Wait()
	}
}
