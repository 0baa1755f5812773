package authapi_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	slashes "path"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"sluice/authapi"
)

type decoded struct {
	Name   string            `json:"name"`
	Count  int32             `json:"count"`
	Scopes []string          `json:"scopes"`
	Expiry *string           `json:"expires_at"`
	Limit  *struct{ N int }  `json:"rate_limit"`
	Free   map[string]string `json:"free"`
}

func TestDecodeJSON(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		body  string
		ok    bool
		field string
	}{
		{`{}`, true, ""},
		{` {"name":"a","count":1,"scopes":["a"],"expires_at":null,"rate_limit":{"N":1},"free":{"x":"y"}} `, true, ""},
		{`{"name":"\ud83d\ude00"}`, true, ""},
		{``, false, ""}, {`null`, false, ""}, {`[]`, false, ""}, {`"a"`, false, ""}, {`{`, false, ""}, {`{}{}`, false, ""}, {`{} x`, false, ""},
		{"{\"name\":\"\xff\"}", false, ""}, {`{"name":"\ud83d"}`, false, ""}, {`{"name":"\ude00"}`, false, ""}, {`{"name":"\ud83dx"}`, false, ""},
		{`{"name":"a","name":"b"}`, false, "name"},
		{`{"name":"a","n\u0061me":"b"}`, false, "name"},
		{`{"Name":"a"}`, false, "Name"},
		{`{"other":1}`, false, "other"},
		{`{"rate_limit":{"M":1}}`, false, "rate_limit.M"},
		{`{"free":{"x":"y","x":"z"}}`, false, "free.x"},
		{`{"name":5}`, false, "name"},
		{`{"count":"5"}`, false, "count"},
		{`{"count":1.5}`, false, "count"},
		{`{"count":99999999999}`, false, "count"},
		{`{"scopes":"a"}`, false, "scopes"},
		{`{"scopes":[1]}`, false, "scopes"},
		{`{"free":` + strings.Repeat(`[`, 16) + strings.Repeat(`]`, 16) + `}`, false, ""},
		{strings.Repeat(`{"free":`, 100000), false, ""},
	} {
		var v decoded
		err := authapi.DecodeJSON([]byte(tt.body), &v)
		if (err == nil) != tt.ok {
			t.Errorf("%.80s: error %v, want ok %v", tt.body, err, tt.ok)
		}
		if p, _ := err.(*authapi.Problem); err != nil && (p == nil || p.Status != 400) {
			t.Errorf("%.80s: %v is not a 400", tt.body, err)
		} else if tt.field != "" && (len(p.Errors) != 1 || !strings.HasPrefix(p.Errors[0].Field, tt.field)) {
			t.Errorf("%.80s: errors %v, want field %s", tt.body, p.Errors, tt.field)
		}
	}
}

func FuzzDecodeJSON(f *testing.F) {
	f.Add([]byte(`{"name":"a","count":1,"scopes":["a"],"expires_at":null,"rate_limit":{"N":1},"free":{"x":"y"}}`))
	f.Add([]byte(`{"name":"\ud83d\ude00","name":1}`))
	f.Add([]byte(`[[[[{"a":"\\\""}]]]]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var v decoded
		if err := authapi.DecodeJSON(b, &v); err != nil {
			if p, ok := err.(*authapi.Problem); !ok || p.Status != 400 {
				t.Fatalf("%q: %v is not a 400", b, err)
			}
			return
		}
		var m map[string]any
		if err := json.Unmarshal(b, &m); err != nil {
			t.Fatalf("%q was taken, and is not an object: %v", b, err)
		}
		for name := range m {
			switch name {
			case "name", "count", "scopes", "expires_at", "rate_limit", "free":
			default:
				t.Fatalf("%q was taken with the unknown name %q", b, name)
			}
		}
	})
}

// FuzzCheckBody holds the reader of checks against the one of all other bodies: both take the same and read the same.
func FuzzCheckBody(f *testing.F) {
	for _, s := range []string{
		`{"key":"k","limit":1,"window_seconds":60,"algorithm":"sliding_window","burst":null,"cost":0,"policy":"p"}`,
		` { "checks" : [ {"key":"\u00e9\ud83d\ude00\n\"\\\/\b\f\r\t"} , null , {} ] , "atomic" : true } `,
		`{"checks":[]}`, `{"checks":null,"atomic":false}`, `{"limit":-0}`, `{"limit":-9223372036854775808}`, `{"limit":9223372036854775807}`,
		`{"limit":9223372036854775808}`, `{"limit":1.0}`, `{"limit":1e1}`, `{"limit":00}`, `{"limit":-}`, `{"k\u0065y":"a","key":"b"}`,
		`{"key":"\ud800"}`, `{"key":"a","Key":"b"}`, `{"checks":[{"checks":[]}]}`, `{"key":"k"}x`, `{,}`, `{"key"}`, `{"atomic":nulll}`, "{\"key\":\"\x00\"}", "",
		`{"checks":[` + strings.Repeat(`{},`, 100) + `{}]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, many, err := authapi.ReadChecks(b)
		if p, ok := err.(*authapi.Problem); err != nil && (!ok || p.Status != 400 && !many) {
			t.Fatalf("%q: %v is not a 400", b, err)
		}
		var want authapi.CheckRequest
		wantErr := authapi.DecodeJSON(b, &want)
		if many {
			return // whatever follows
		}
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%q: %v, and the other reader says %v", b, err, wantErr)
		}
		if err != nil {
			return
		}
		for i, c := range want.Checks {
			if c == nil {
				want.Checks[i] = &authapi.CheckFields{}
			}
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("%q is read as %s, and by the other reader as %s", b, encode(got), encode(want))
		}
	})
}

func TestAPIKey_Format(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, env := range []string{"live", "test"} {
		for range 200 {
			secret, _, prefix := authapi.NewAPIKey(env)
			if len(secret) != 46 || !strings.HasPrefix(secret, "sk_"+env+"_") || !strings.HasPrefix(secret, prefix) || len(prefix) != 12 {
				t.Fatalf("key %q, prefix %q", secret, prefix)
			}
			if seen[secret] || !authapi.ValidAPIKey([]byte(secret)) {
				t.Fatalf("key %q is a repetition or not valid", secret)
			}
			seen[secret] = true
			for i := range secret {
				b := []byte(secret)
				if b[i]++; authapi.ValidAPIKey(b) {
					t.Fatalf("%q is taken for a key", b)
				}
			}
		}
	}
	// Fixed, so that keys in use stay valid: CRC-32 (IEEE) of the first 40 characters is 0x88205678.
	if !authapi.ValidAPIKey([]byte("sk_live_00000000000000000000000000000000" + "2UYg5A")) {
		t.Error("the checksum has changed")
	}
}

func FuzzAPIKey(f *testing.F) {
	secret, _, _ := authapi.NewAPIKey("test")
	f.Add([]byte(secret))
	f.Add([]byte("sk_live_"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if authapi.ValidAPIKey(b) && (len(b) != 46 || !bytes.HasPrefix(b, []byte("sk_"))) {
			t.Fatalf("%q is taken for a key", b)
		}
	})
}

func FuzzForwardedFor(f *testing.F) {
	for _, s := range []string{"1.2.3.4", "[::1]:80", "::ffff:1.2.3.4", "1.2.3.4:", "[", "]:1", "fe80::1%eth0", ":", "::", "1:2:3:4:5:6:7:8"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 {
			return
		}
		if a, ok := authapi.ParseForwarded(b); ok && (!a.IsValid() || a.Is4In6() || a.Zone() != "") {
			t.Fatalf("%q gives %v", b, a)
		}
	})
}

// FuzzForwardedList holds the walk along whole lists, several lines among them, against a plain one.
func FuzzForwardedList(f *testing.F) {
	for _, s := range []string{
		"1.2.3.4", "6.6.6.6, 1.2.3.4, 127.0.0.1", "1.2.3.4\n127.0.0.2", "x\n127.0.0.1, 127.0.0.2", ",, 1.2.3.4 ,\t127.0.0.1:80,",
		"::1\n[::ffff:127.0.0.1]:5,2001:db8::1", "\n\n", "1.2.3.4, unknown",
	} {
		f.Add([]byte(s))
	}
	cfg, _, _, _ := edgeConfig(trustLoopback)
	srv, err := authapi.New(cfg)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		if err := srv.Shutdown(context.Background()); err != nil {
			f.Error(err)
		}
	})
	peer := netip.MustParseAddr("127.0.0.9")
	trusted := netip.MustParsePrefix("127.0.0.0/8")
	f.Fuzz(func(t *testing.T, b []byte) {
		want := peer
		entries := strings.Split(strings.ReplaceAll(string(b), "\n", ","), ",")
		for _, entry := range slices.Backward(entries) {
			entry = strings.Trim(entry, " \t")
			if entry == "" {
				continue
			}
			a, ok := authapi.ParseForwarded([]byte(entry))
			if !ok {
				want = peer
				break
			}
			if want = a; !trusted.Contains(a) {
				break
			}
		}
		if got := srv.ClientAddress(peer, bytes.Split(b, []byte("\n"))...); got != want {
			t.Fatalf("%q comes from %v, want %v", b, got, want)
		}
	})
}

func FuzzCanonicalPath(f *testing.F) {
	for _, s := range []string{"/", "/a/b", "/a%20b", "/..", "/%2e", "/a//b", "/a/./b", "/a;b", "\\", "/%zz", "/%c3%a9", "/%c0%ae", "/%ef%bf%bd", "/%f0%9f%98%80x", "/#"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if !authapi.CanonicalPath(b) {
			return
		}
		if s := string(b); s[0] != '/' || strings.Contains(s, "//") || strings.Contains(s, "/../") || strings.HasSuffix(s, "/..") || strings.Contains(strings.ToLower(s), "%2f") || strings.Contains(s, "#") {
			t.Fatalf("%q is taken for canonical", b)
		}
		plain, err := url.PathUnescape(string(b))
		if err != nil || !utf8.ValidString(plain) || slashes.Clean(plain) != strings.TrimSuffix(plain, "/") && plain != "/" {
			t.Fatalf("%q is taken for canonical, and is %q unescaped (%v)", b, plain, err)
		}
	})
}

// FuzzRequest sends any bytes over a connection: the server answers with well-formed responses that carry a request id,
// or closes. (What a panic would do to the process is the point of it.)
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		"GET /api/v1/auth/verify HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST /api/v1/auth/login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
		"POST /api/v1/auth/register HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		"GET /api/v1/auth/verify/envoy/../x?cost=1&scope=a%20b HTTP/1.0\r\nX-Forwarded-For: 1.2.3.4, ::1\r\nAuthorization: Bearer a.b.c\r\n\r\n",
		"DELETE /api/v1/api-keys/%ff HTTP/1.1\r\nHost: a\r\nX-API-Key: sk_live_\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n",
		"GET http://b/api/v1/events HTTP/1.1\r\nHost: a\r\nConnection: close, X-Auth-User\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	cfg, _, _, _ := edgeConfig(func(c *authapi.Config) {
		trustLoopback(c)
		apiRoutes(c)
		c.Limit.Anonymous = rule(1e12)
		c.ReadTimeout = 50 * time.Millisecond
	})
	srv, err := authapi.New(cfg)
	if err != nil {
		f.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	go srv.Serve(ln)
	f.Cleanup(func() { srv.Shutdown(f.Context()) })
	f.Fuzz(func(t *testing.T, b []byte) {
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			return
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(5 * time.Second))
		go func() {
			conn.Write(b)
			conn.(*net.TCPConn).CloseWrite()
		}()
		r := bufio.NewReader(conn)
		method := http.MethodGet
		if bytes.HasPrefix(b, []byte("HEAD ")) {
			method = http.MethodHead
		}
		resp, err := http.ReadResponse(r, &http.Request{Method: method})
		if err != nil {
			return // closed without an answer
		}
		defer resp.Body.Close()
		if resp.StatusCode >= 200 && resp.Header.Get("X-Request-Id") == "" {
			t.Fatalf("%q: a %d without X-Request-Id", b, resp.StatusCode)
		}
		if resp.StatusCode == 500 {
			t.Fatalf("%q: 500", b)
		}
	})
}
