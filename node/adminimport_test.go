package node_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/bcrypt"

	"sluice/authapi"
	"sluice/node"
	"sluice/node/nodetest"
)

func sendLines(t *testing.T, m *nodetest.Member, query, lines string, want int) (report authapi.ImportReport) {
	t.Helper()
	req, err := http.NewRequestWithContext(bounded(t), "POST", adminURL(m)+"/import"+query, strings.NewReader(lines))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-ndjson")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != want {
		t.Fatalf("import: %d %s, %v; want %d", resp.StatusCode, text, err, want)
	}
	if want == 200 {
		if err := json.Unmarshal(text, &report); err != nil {
			t.Fatal(err)
		}
	}
	return report
}

func hexHash(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:])
}

func TestAdminImport_PeopleMoveHere(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 3, nodetest.WithConfig(func(i int, cfg *node.Config) {
		generous(i, cfg)
		cfg.Auth.ImportedKeyPrefixes = []string{"acme_"}
	}))
	crypted, err := bcrypt.GenerateFromPassword([]byte("an old fine password"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	// A hash as libsodium and others write it: weaker than this program's own.
	const argon = "$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHRzYWx0$" // its hash follows
	old, oldKey := "acme_0123456789abcdefghij", "acme_of-nobody-0123456789"
	lines := strings.Join([]string{
		`{"type":"api_key","name":"first","owner":"Anna","sha256":"` + hexHash(old) + `","scopes":["organizations:read"],"prefix":"acme_0123"}`,
		`{"type":"user","username":"Anna","email":"anna@example.com","password_hash":"` + string(crypted) + `","created_at":"2020-01-02T03:04:05Z"}`,
		`{"type":"user","username":"bert","email":"bert@example.com","disabled_at":"2024-01-02T03:04:05Z"}`,
		``,
		`{"type":"user","username":"carl","email":"anna@example.com"}`,
		`{"type":"user","username":"x","email":"x@example.com"}`,
		`{"type":"user","username":"dora","email":"dora@example.com","password_hash":"$1$md5"}`,
		`{"type":"user","username":"emil","email":"emil@example.com","password_hash":"` + argon + `"}`,
		`{"type":"api_key","name":"k","owner":"nobody","sha256":"` + hexHash(oldKey) + `","scopes":["*"]}`,
		`{"type":"api_key","name":"k","owner":"anna","sha256":"abc","scopes":["*"]}`,
		`{"type":"member","organization_id":"o"}`,
		`{"type":"user","username":"fritz","email":"fritz@example.com","shoe_size":43}`,
		`not json`,
	}, "\n")
	wantLines := []int{5, 6, 7, 8, 9, 10, 11, 12, 13}
	linesOf := func(r authapi.ImportReport) (list []int) {
		for _, e := range r.Errors {
			if e.Code == "" || e.Detail == "" {
				t.Errorf("error %+v", e)
			}
			list = append(list, e.Line)
		}
		slices.Sort(list)
		return list
	}
	before := contentHash(t, c.Members[0])
	dry := sendLines(t, c.Members[1], "?dry_run=true", lines, 200)
	if dry.Users < 2 || dry.Keys != 1 || contentHash(t, c.Members[0]) != before {
		t.Errorf("dry run: %+v", dry)
	}
	got := sendLines(t, c.Members[1], "?first_line=1", lines, 200)
	if got.Lines != 12 || got.Users != 2 || got.Keys != 1 || got.Exist != 0 || got.Failed != 9 || !slices.Equal(linesOf(got), wantLines) {
		t.Errorf("import: %+v", got)
	}
	again := sendLines(t, c.Members[2], "?first_line=101", lines, 200)
	if again.Users != 0 || again.Keys != 0 || again.Exist != 3 || again.Failed != 9 || linesOf(again)[0] != 105 {
		t.Errorf("again: %+v", again)
	}

	// Her key and her password work on every node, and the password's hash is this cluster's own from the first sign-in on.
	for _, m := range c.Members {
		exchange(t, "GET", publicURL(m)+"/api/v1/auth/me", old, nil, nil, 200)
		exchange(t, "GET", publicURL(m)+"/api/v1/auth/me", old+"x", nil, nil, 401)
		exchange(t, "GET", publicURL(m)+"/api/v1/auth/me", oldKey, nil, nil, 401)
		exchange(t, "GET", publicURL(m)+"/api/v1/auth/me", "acme_short", nil, nil, 401)
	}
	hashOf := func(m *nodetest.Member) string {
		user, err := m.Node.State().UserByName("anna")
		if err != nil || user == nil {
			t.Fatalf("user %v, %v", user, err)
		}
		return user.PasswordHash
	}
	if hash := hashOf(c.Members[0]); hash != string(crypted) {
		t.Errorf("imported hash %s", hash)
	}
	login := map[string]string{"username": "anna", "password": "a wrong fine password"}
	exchange(t, "POST", publicURL(c.Members[0])+"/api/v1/auth/login", "", login, nil, 401)
	login["password"] = "an old fine password"
	var first, second struct{ Token string }
	exchange(t, "POST", publicURL(c.Members[0])+"/api/v1/auth/login", "", login, &first, 200)
	hash := hashOf(c.Members[0])
	if !strings.HasPrefix(hash, "$argon2id$v=19$m=19456,") {
		t.Errorf("hash after the first sign-in: %s", hash)
	}
	exchange(t, "POST", publicURL(c.Members[1])+"/api/v1/auth/login", "", login, &second, 200)
	if hashOf(c.Members[1]) != hash {
		t.Error("a second sign-in made the hash anew")
	}
	exchange(t, "GET", publicURL(c.Members[2])+"/api/v1/auth/me", first.Token, nil, nil, 200)
	exchange(t, "POST", publicURL(c.Members[2])+"/api/v1/auth/login", "", map[string]string{"username": "bert", "password": "whatever it may be"}, nil, 401)

	// What comes out has everybody, and nothing that opens anything.
	status, header, text := tell(t, "GET", adminURL(c.Members[2])+"/export", "", nil)
	if status != 200 || header.Get("Content-Type") != "application/x-ndjson" {
		t.Fatalf("export: %d %s", status, text)
	}
	kinds := map[string]int{}
	for line := range bytes.Lines(text) {
		var l struct{ Type, Username, Name, Prefix string }
		if err := json.Unmarshal(line, &l); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		kinds[l.Type]++
	}
	if want := map[string]int{"user": 2, "organization": 2, "member": 2, "api_key": 1}; fmt.Sprint(kinds) != fmt.Sprint(want) {
		t.Errorf("exported %v, want %v", kinds, want)
	}
	for _, secret := range []string{string(crypted), "argon2id", hexHash(old)} {
		if bytes.Contains(text, []byte(secret)) {
			t.Errorf("%s is in the export", secret)
		}
	}
	if !bytes.Contains(text, []byte(`"created_at":"2020-01-02T03:04:05Z"`)) || !bytes.Contains(text, []byte(`"disabled_at":"2024-01-02T03:04:05Z"`)) {
		t.Errorf("times are not as they were: %s", text)
	}
	sendLines(t, c.Members[0], "?first_line=0", lines, http.StatusUnprocessableEntity)
	long := `{"type":"user","username":"` + strings.Repeat("a", 80_000) + `"}`
	if r := sendLines(t, c.Members[0], "", long+"\n"+long+"\n"+`{"type":"user","username":"gina","email":"gina@example.com"}`, 200); r.Failed != 2 || r.Users != 1 || r.Errors[1].Line != 2 {
		t.Errorf("long lines: %+v", r)
	}
}

// A key that was revoked here does not come back by the file that brought it.
func TestAdminImport_RevokedStaysRevoked(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 1, nodetest.WithConfig(generous))
	m := c.Members[0]
	anna := signUp(t, m, "anna")
	var made struct{ ID, Key string }
	exchange(t, "POST", publicURL(m)+"/api/v1/api-keys", anna.Token, map[string]any{
		"name": "k", "organization_id": anna.Org, "scopes": []string{"organizations:read"}}, &made, 201)
	line := `{"type":"api_key","name":"k","organization_id":"` + anna.Org + `","sha256":"` + hexHash(made.Key) + `","scopes":["*"]}`
	if r := sendLines(t, m, "", line, 200); r.Exist != 1 {
		t.Errorf("a key that is there: %+v", r)
	}
	exchange(t, "DELETE", publicURL(m)+"/api/v1/api-keys/"+made.ID, anna.Token, nil, nil, 204)
	for _, query := range []string{"?dry_run=true", ""} {
		if r := sendLines(t, m, query, line, 200); r.Failed != 1 || r.Errors[0].Code != "conflict" {
			t.Errorf("a revoked key: %+v", r)
		}
	}
	exchange(t, "GET", publicURL(m)+"/api/v1/auth/me", made.Key, nil, nil, 401)
}

// Lines are applied while later ones are read: neither keys before their owners nor keys behind them lose their way, and what is
// wrong is told in the order of the lines.
func TestAdminImport_OrderOfLines(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 1, nodetest.WithConfig(generous))
	const n = 1100 // more than two commands of users, and of keys
	var lines strings.Builder
	key := func(kind string, i int) {
		fmt.Fprintf(&lines, `{"type":"api_key","name":"k","owner":"user%d","sha256":%q,"scopes":["*"]}`+"\n", i, hexHash(fmt.Sprint(kind, i)))
	}
	for i := range n {
		key("early", i)
	}
	key("nobody's", n)
	for i := range n {
		fmt.Fprintf(&lines, `{"type":"user","username":"user%d","email":"user%d@example.com"}`+"\n", i, i)
		key("late", i)
	}
	key("nobody's", n+1)
	fmt.Fprintln(&lines, "no JSON")
	got := sendLines(t, c.Members[0], "", lines.String(), 200)
	if got.Lines != 3*n+3 || got.Users != n || got.Keys != 2*n || got.Failed != 3 || got.Exist != 0 {
		t.Errorf("%d lines, %d users, %d keys, %d failed, %d exist", got.Lines, got.Users, got.Keys, got.Failed, got.Exist)
	}
	var failed []int
	for _, e := range got.Errors {
		failed = append(failed, e.Line)
	}
	if want := []int{n + 1, 3*n + 2, 3*n + 3}; !slices.Equal(failed, want) {
		t.Errorf("lines %v were not taken, want %v", failed, want)
	}
	again := sendLines(t, c.Members[0], "", lines.String(), 200)
	if again.Exist != 3*n || again.Users+again.Keys != 0 || again.Failed != 3 {
		t.Errorf("again: %d exist, %d added, %d failed", again.Exist, again.Users+again.Keys, again.Failed)
	}
}
