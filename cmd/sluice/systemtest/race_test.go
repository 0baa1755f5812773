package systemtest

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"sync"
	"testing"
)

var raceTries = flag.Int("tries", 200, "how often the tests of races between nodes try")

// answersOf sends requests at the same moment, the i-th to the i-th node of urls.
func answersOf(t *testing.T, urls []string, requests ...request) []response {
	t.Helper()
	answers := make([]response, len(requests))
	errs := make([]error, len(requests))
	ready := make(chan struct{})
	var all sync.WaitGroup
	for i, r := range requests {
		all.Go(func() {
			<-ready
			answers[i], errs[i] = send(urls[i%len(urls)], r)
		})
	}
	close(ready)
	all.Wait()
	for i, err := range errs {
		if err != nil {
			t.Fatalf("%s %s at %s: %v", requests[i].method, requests[i].path, urls[i%len(urls)], err)
		}
	}
	return answers
}

// TestRegister_OneOfTwo registers one user name, or one address, on two nodes at the same moment, again and again:
//
//	go test ./cmd/sluice/systemtest -run OneOfTwo -tries 1000
func TestRegister_OneOfTwo(t *testing.T) {
	c := sharedCluster(t)
	for try := range *raceTries {
		person := func(name, email string) request {
			return request{method: "POST", path: "/api/v1/auth/register", address: newAddress(),
				body: map[string]any{"username": name, "email": email + "@example.com", "password": "seven lamps by the tide"}}
		}
		taken := "username_taken"
		var first, second request
		if try%2 == 0 {
			name := unique("twice")
			first, second = person(name, unique("mail")), person(name, unique("mail"))
		} else {
			taken = "email_taken"
			email := unique("mail")
			first, second = person(unique("twice"), email), person(unique("twice"), email)
		}
		a := answersOf(t, []string{c.urls[try%3], c.urls[(try+1)%3]}, first, second)
		if a[0].status == http.StatusConflict {
			a[0], a[1] = a[1], a[0]
		}
		if a[0].status != http.StatusCreated || a[1].status != http.StatusConflict || a[1].field(t, "code") != taken {
			t.Fatalf("try %d: %v and %v, want one 201 and one 409 %s", try, a[0], a[1], taken)
		}
	}
}

// TestRefresh_OneSuccessor spends one refresh token on all nodes at the same moment: an honest race gets one successor.
// Without a grace one wins, and the session ends.
func TestRefresh_OneSuccessor(t *testing.T) {
	c := sharedCluster(t)
	strict := startCluster(t, options{variables: []string{"SLUICE_AUTH__REFRESH_REUSE_GRACE=0s"}})
	refresh := func(token string) request {
		return request{method: "POST", path: "/api/v1/auth/refresh", address: newAddress(), body: map[string]any{"refresh_token": token}}
	}
	for round := range 10 {
		a := register(t, c.urls[round%3])
		r := refresh(a.refresh)
		successors := map[string]bool{}
		for i, answer := range answersOf(t, c.urls, r, r, r) {
			if answer.status != http.StatusOK {
				t.Fatalf("round %d: node%d answers %v", round, i+1, answer)
			}
			successors[answer.field(t, "refresh_token")] = true
		}
		if len(successors) != 1 {
			t.Fatalf("round %d: %d successors of one token", round, len(successors))
		}

		b := register(t, strict.urls[round%3])
		r = refresh(b.refresh)
		won := 0
		for i, answer := range answersOf(t, strict.urls, r, r, r) {
			switch {
			case answer.status == http.StatusOK:
				won++
			case answer.status != http.StatusUnauthorized || answer.field(t, "code") != "refresh_token_reused":
				t.Fatalf("round %d: node%d answers %v", round, i+1, answer)
			}
		}
		if won != 1 {
			t.Fatalf("round %d: %d refreshes with one token won without a grace", round, won)
		}
		everywhere(t, strict, request{path: "/api/v1/auth/me", token: b.token, address: newAddress()}, http.StatusUnauthorized)
	}
}

// TestRefresh_OlderTokenEndsTheSession replays the last token but one, within the grace and on another node.
func TestRefresh_OlderTokenEndsTheSession(t *testing.T) {
	c := sharedCluster(t)
	a := register(t, c.urls[0])
	tokens := []string{a.refresh}
	access := ""
	for i := range 2 {
		answer := must(t, c.urls[i+1], request{method: "POST", path: "/api/v1/auth/refresh", address: a.address,
			body: map[string]any{"refresh_token": tokens[i]}}, http.StatusOK)
		tokens = append(tokens, answer.field(t, "refresh_token"))
		access = answer.field(t, "token")
	}
	everywhere(t, c, request{path: "/api/v1/auth/me", token: access, address: newAddress()}, http.StatusOK)
	for i, token := range []string{tokens[0], tokens[2]} { // the replay, and then even the present one
		answer := must(t, c.urls[i], request{method: "POST", path: "/api/v1/auth/refresh", address: a.address,
			body: map[string]any{"refresh_token": token}}, http.StatusUnauthorized)
		if code := answer.field(t, "code"); code != "refresh_token_reused" {
			t.Errorf("%s answers %q", []string{"the replay", "the present token"}[i], code)
		}
	}
	everywhere(t, c, request{path: "/api/v1/auth/me", token: access, address: newAddress()}, http.StatusUnauthorized)
}

// TestIdempotency_OverALeaderChange repeats a write under its key while its leader dies, on the nodes that are left: it
// happens once.
func TestIdempotency_OverALeaderChange(t *testing.T) {
	c := startCluster(t, options{})
	a := register(t, c.urls[0])
	leader := c.leader(t)
	others := []string{c.urls[leader%3], c.urls[(leader+1)%3]}
	create := func(key string) request {
		return request{method: "POST", path: "/api/v1/organizations", token: a.token, address: a.address,
			body: map[string]any{"name": "made once"}, header: map[string]string{"Idempotency-Key": key}}
	}
	before := must(t, c.urls[leader-1], create("before"), http.StatusCreated).field(t, "id")
	// One that is under way when the leader dies may be answered by 503: then its outcome is unknown, and is asked for again.
	underWay := make(chan error, 1)
	go func() {
		_, err := send(others[0], create("under way"))
		underWay <- err
	}()
	c.kill(t, leader)
	if err := <-underWay; err != nil {
		t.Fatal(err)
	}
	made := map[string]string{}
	for _, url := range others {
		for _, key := range []string{"before", "under way"} {
			eventually(t, readyWithin, "an answer to "+key, func() error {
				answer, err := send(url, create(key))
				if err != nil {
					return err
				}
				if answer.status != http.StatusCreated {
					return fmt.Errorf("%v", answer)
				}
				id := answer.field(t, "id")
				if made[key] != "" && made[key] != id {
					t.Fatalf("%s was made twice: %s and %s", key, made[key], id)
				}
				made[key] = id
				return nil
			})
		}
	}
	if made["before"] != before {
		t.Errorf("before is %s after the leader's death, and was %s", made["before"], before)
	}
	list := must(t, others[1], request{path: "/api/v1/organizations", token: a.token, address: a.address}, http.StatusOK)
	var page struct{ Data []struct{ Name string } }
	if err := json.Unmarshal(list.body, &page); err != nil || len(page.Data) != 3 {
		t.Errorf("organizations %v (%v), want the personal one and two", list, err)
	}
}
