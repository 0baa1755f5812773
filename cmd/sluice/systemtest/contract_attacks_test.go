package systemtest

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// attackWalk sends what an attacker would, each from an address and with a request id of its own, and finds each in the audit log.
type attackWalk struct {
	*walk
	events map[string]string // by request id: the event, and its reason
}

// attack is do for a request that has to be in the audit log as event, and where reason is not "" for that reason.
func (w *attackWalk) attack(k call, status int, event, reason string) response {
	w.t.Helper()
	id := unique("attack-")
	w.events[id] = event + " " + reason
	header := map[string]string{"X-Request-Id": id}
	maps.Copy(header, k.header)
	k.header = header
	return w.do(k, status)
}

// TestContract_Attacks attacks three nodes that sign with EdDSA, whose public key everybody has: forged and stolen credentials,
// guessed keys, and reaching for what belongs to others or takes another role. Each is refused, and each is in the audit log.
func TestContract_Attacks(t *testing.T) {
	t.Parallel()
	c := startCluster(t, options{variables: append([]string{"SLUICE_AUTH__SIGNING_ALGORITHM=EdDSA"}, wide...)})
	w := &attackWalk{walk: &walk{t: t, c: c, seen: map[string]map[int]bool{}, nodes: map[string]map[int]bool{}}, events: map[string]string{}}
	who := w.people()
	at := w.place(who)

	w.tokens(who)
	w.apiKeys(who)
	w.foreign(who, at)
	w.escalation(who, at)

	eventually(t, readyWithin, "every attack is audited", func() error {
		seen := map[string]string{}
		for _, event := range []string{"credential.failed", "access.denied"} {
			for line := range strings.Lines(c.operate(t, 3, "audit", "--event", event, "--limit", "1000", "--output", "json")) {
				var e struct {
					Event, Result, IP string
					RequestID         string `json:"request_id"`
					Detail            map[string]string
				}
				if err := json.Unmarshal([]byte(line), &e); err != nil {
					return fmt.Errorf("%s: %w", line, err)
				}
				if e.IP == "" || e.Result == "success" {
					return fmt.Errorf("event %s", line)
				}
				seen[e.RequestID] = e.Event + " " + e.Detail["reason"]
			}
		}
		for _, id := range slices.Sorted(maps.Keys(w.events)) {
			if want := w.events[id]; seen[id] != want && (!strings.HasSuffix(want, " ") || !strings.HasPrefix(seen[id], want)) {
				return fmt.Errorf("%s is audited as %q, want %q", id, seen[id], want)
			}
		}
		return nil
	})
	t.Logf("%d requests, %d attacks", w.n, len(w.events))
}

// tokens: what somebody makes of a good token who has no secret of the cluster's, only its public key.
func (w *attackWalk) tokens(who people) {
	token := who.stranger.token
	parts := strings.Split(token, ".")
	encode, decode := base64.RawURLEncoding.EncodeToString, base64.RawURLEncoding.DecodeString
	header, err := decode(parts[0])
	if err != nil {
		w.t.Fatal(err)
	}
	claims, err := decode(parts[1])
	if err != nil {
		w.t.Fatal(err)
	}
	var set struct {
		Keys []struct{ Kid, Alg, X string }
	}
	if err := json.Unmarshal(w.do(call{op: documents[0]}, 200).body, &set); err != nil || len(set.Keys) != 1 || set.Keys[0].Alg != "EdDSA" {
		w.t.Fatalf("public keys %+v, %v", set, err)
	}
	key := set.Keys[0]
	public, err := decode(key.X)
	if err != nil {
		w.t.Fatal(err)
	}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	// The keys' own mark of the type stays as it is.
	head := func(change ...string) string {
		return encode([]byte(strings.NewReplacer(change...).Replace(string(header))))
	}
	hmacOf := func(secret []byte, head string) string {
		m := hmac.New(sha256.New, secret)
		m.Write([]byte(head + "." + parts[1]))
		return head + "." + parts[1] + "." + encode(m.Sum(nil))
	}
	own := func(head, claims string) string {
		return head + "." + claims + "." + encode(ed25519.Sign(private, []byte(head+"."+claims)))
	}
	hs := head(`"EdDSA"`, `"HS256"`)
	attackerKey := fmt.Sprintf(`"jwk":{"kty":"OKP","crv":"Ed25519","x":%q},"alg"`, encode(private.Public().(ed25519.PublicKey)))
	for _, a := range []struct{ name, token, reason string }{
		{"alg none", head(`"EdDSA"`, `"none"`) + "." + parts[1] + ".", "invalid"},
		{"alg none, signature kept", head(`"EdDSA"`, `"none"`) + "." + parts[1] + "." + parts[2], "invalid"},
		{"HS256 with the public key", hmacOf(public, hs), "invalid"},
		{"HS256 with the public key as it is published", hmacOf([]byte(key.X), hs), "invalid"},
		{"HS256 with the kid", hmacOf([]byte(key.Kid), hs), "invalid"},
		{"another key under its name", own(parts[0], parts[1]), "invalid"},
		{"a key of the attacker in the header", own(head(`"alg"`, attackerKey), parts[1]), "invalid"},
		{"jku", own(head(`"alg"`, `"jku":"https://evil.example/jwks.json","alg"`), parts[1]), "invalid"},
		{"kid is a path", own(head(key.Kid, "../../../../dev/null"), parts[1]), "invalid"},
		{"kid is SQL", own(head(key.Kid, "x' UNION SELECT 'k"), parts[1]), "invalid"},
		{"kid that nobody has", own(head(key.Kid, "ffffffffffffffff"), parts[1]), "unknown"},
		{"another user", parts[0] + "." + encode([]byte(strings.Replace(string(claims), who.stranger.userID, who.free.userID, 1))) + "." + parts[2], "invalid"},
		{"cut off", token[:len(token)-1], "invalid"},
		{"no signature", parts[0] + "." + parts[1] + ".", "invalid"},
		{"signature twice", token + parts[2], "invalid"},
		{"too long", token + strings.Repeat("A", 8<<10), "invalid"},
		{"a refresh token", who.stranger.refresh, "invalid"},
	} {
		res := w.attack(call{op: opMe, token: a.token, code: "invalid_credential"}, 401, "credential.failed", a.reason)
		if !strings.Contains(res.header.Get("WWW-Authenticate"), `error="invalid_token"`) {
			w.t.Errorf("%s: challenge %q", a.name, res.header.Get("WWW-Authenticate"))
		}
		w.do(call{op: "GET /api/v1/auth/verify", token: a.token}, 401)
	}
	w.do(call{op: opMe, token: token}, 200)
	w.do(call{op: opMe, token: token + strings.Repeat("A", 17<<10), code: "headers_too_large"}, 431)

	ended := register(w.t, w.c.urls[1])
	w.do(call{op: "POST /api/v1/auth/logout", token: ended.token}, 204)
	w.attack(call{op: opMe, token: ended.token, code: "invalid_credential"}, 401, "credential.failed", "session_ended")
}

// apiKeys: guessed ones, and those that were good once.
func (w *attackWalk) apiKeys(who people) {
	guess := []byte(knownToNobody)
	guess[20]++
	w.attack(call{op: opMe, key: string(guess), code: "invalid_credential"}, 401, "credential.failed", "mistyped")
	w.attack(call{op: opMe, key: knownToNobody, code: "invalid_credential"}, 401, "credential.failed", "unknown")
	w.attack(call{op: opMe, key: "sk_live_", code: "invalid_credential"}, 401, "credential.failed", "mistyped")
	w.attack(call{op: opMe, key: "password", code: "invalid_credential"}, 401, "credential.failed", "malformed")
	key := who.stranger.newKey(w.t, w.c.urls[0], 0, "*")
	w.do(call{op: "POST /api/v1/api-keys/{id}/rotate", args: []string{key.id}, token: who.stranger.token}, 200)
	w.attack(call{op: opMe, key: key.secret, code: "invalid_credential"}, 401, "credential.failed", "replaced")
	key = who.stranger.newKey(w.t, w.c.urls[1], 0, "*")
	w.do(call{op: "DELETE /api/v1/api-keys/{id}", args: []string{key.id}, token: who.stranger.token}, 204)
	w.attack(call{op: opMe, key: key.secret, code: "invalid_credential"}, 401, "credential.failed", "revoked")
}

// foreign: every operation that takes an id, by somebody who has nothing to do with it.
func (w *attackWalk) foreign(who people, at *place) {
	for i, row := range organizationRows {
		k := row.call(at)
		k.code = "not_found"
		if i%2 == 0 {
			k.token = who.stranger.token
		} else {
			k.key = who.foreign
		}
		w.attack(k, 404, "access.denied", "foreign")
	}
}

// escalation: every operation by the least of the members who may not.
func (w *attackWalk) escalation(who people, at *place) {
	for _, row := range organizationRows {
		for _, role := range []string{"viewer", "member", "admin"} {
			if !strings.Contains(row.roles, role[:1]) {
				k := row.call(at)
				k.token, k.code = who.byRole[role].token, "forbidden"
				w.attack(k, 403, "access.denied", "")
				break
			}
		}
	}
	// A key that makes itself a stronger one, and an administrator who makes himself the owner.
	w.attack(call{op: "POST /api/v1/api-keys", key: at.keys["api-keys:manage"], code: "forbidden",
		body: object{"name": "k", "organization_id": at.id, "scopes": []string{"*"}}}, 403, "access.denied", "")
	admin := who.byRole["admin"]
	w.attack(call{op: "PATCH /api/v1/organizations/{id}/members/{user_id}", args: []string{at.id, admin.userID}, token: admin.token, code: "forbidden",
		body: object{"role": "owner"}}, 403, "access.denied", "")
}
