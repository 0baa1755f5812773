package node

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestLoadConfig_GRPC(t *testing.T) {
	t.Parallel()
	secret := filepath.Join(t.TempDir(), "grpc.token")
	if err := os.WriteFile(secret, []byte(NewSecret()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	path := write(t, minimal+`
grpc.listen = "127.0.0.1:7103"
grpc.token_file = "`+secret+`"
grpc.max_streams = 7
gubernator.listen = "127.0.0.1:7104"
[[limits.policies]]
name = "per-address"
by = ["descriptor"]
limit = 100
window = "1m"
shadow = true
[[limits.descriptors]]
domain = "edge"
entries = [{ key = "remote_address" }, { key = "path", value = "/api/*" }]
policy = "per-address"
[[limits.descriptors]]
domain = "edge"
entries = [{ key = "remote_address", value = "10.0.0.1" }]
unlimited = true
`)
	cfg, err := LoadConfig(path, secretVariables())
	if err != nil {
		t.Fatal(err)
	}
	if cfg.GRPC.Listen != "127.0.0.1:7103" || cfg.GRPC.MaxStreams != 7 || cfg.GRPC.MaxConns != 1024 || !cfg.GRPC.ResponseHeaders || cfg.Gubernator.Listen != "127.0.0.1:7104" {
		t.Errorf("read %+v, %+v", cfg.GRPC, cfg.Gubernator)
	}
	limits, err := cfg.apiLimits()
	if err != nil || len(limits.Descriptors) != 2 || limits.Descriptors[0].Entries[1].Value != "/api/*" || !limits.Descriptors[1].Unlimited {
		t.Errorf("descriptors %+v, %v", limits.Descriptors, err)
	}
	if notes := strings.Join(cfg.Notes(), "\n"); strings.Contains(notes, "grpc.listen") || strings.Contains(notes, "gubernator.listen") {
		t.Errorf("notes of listeners on loopback: %s", notes)
	}
	cfg.GRPC.Listen, cfg.Gubernator.Listen = ":7103", "10.0.0.1:7104"
	if notes := strings.Join(cfg.Notes(), "\n"); strings.Contains(notes, "grpc.listen") || !strings.Contains(notes, "gubernator.listen is 10.0.0.1:7104") {
		t.Errorf("notes: %s", notes)
	}
	cfg.GRPC.TokenFile = ""
	if notes := strings.Join(cfg.Notes(), "\n"); !strings.Contains(notes, "grpc.listen is :7103") {
		t.Errorf("notes: %s", notes)
	}
	cfg.GRPC.Token = Secret(NewSecret())
	var shown strings.Builder
	if err := cfg.Show(&shown); err != nil || strings.Contains(shown.String(), string(cfg.GRPC.Token)) || !strings.Contains(shown.String(), "[grpc]") {
		t.Errorf("%v; the token, or nothing of it, is in\n%s", err, shown.String())
	}
}

func TestLoadConfig_GRPCMistakes(t *testing.T) {
	t.Parallel()
	policy := "[[limits.policies]]\nname = \"d\"\nby = [\"descriptor\"]\nlimit = 1\nwindow = \"1m\"\n"
	for _, tt := range []struct{ name, text, want string }{
		{"no address", "grpc.listen = \"nowhere\"\n", "grpc.listen: want host:port"},
		{"another's address", "grpc.listen = \"127.0.0.1:7100\"\n", "grpc.listen: 127.0.0.1:7100 collides with peer.listen"},
		{"each other's", "grpc.listen = \"127.0.0.1:7103\"\ngubernator.listen = \":7103\"\n", "gubernator.listen: :7103 collides with grpc.listen"},
		{"a certificate without a key", "grpc.tls_cert = \"a.pem\"\n", "grpc.tls_key: is missing"},
		{"a certificate that is not there", "grpc.tls_cert = \"a.pem\"\ngrpc.tls_key = \"a.key\"\n", "grpc.tls_cert: open "},
		{"clients' certificates without TLS", "grpc.client_ca = \"a.pem\"\n", "grpc.client_ca: is of TLS"},
		{"a token that is not there", "grpc.token_file = \"a.token\"\n", "grpc.token_file: read grpc.token_file"},
		{"a weak token", "grpc.token = \"hello\"\n", "grpc.token"},
		{"no streams", "grpc.max_streams = 0\n", "grpc.max_streams: want 1 to"},
		{"no domain", policy + "[[limits.descriptors]]\nentries = [{ key = \"a\" }]\npolicy = \"d\"\n", "limits.descriptors[0].domain: want 1 to 1024 bytes"},
		{"no entries", policy + "[[limits.descriptors]]\ndomain = \"x\"\npolicy = \"d\"\n", "limits.descriptors[0].entries: want 1 to 32"},
		{"no key", policy + "[[limits.descriptors]]\ndomain = \"x\"\nentries = [{ value = \"a\" }]\npolicy = \"d\"\n", "limits.descriptors[0].entries[0].key: want 1"},
		{"no policy", policy + "[[limits.descriptors]]\ndomain = \"x\"\nentries = [{ key = \"a\" }]\n", "limits.descriptors[0].policy: is missing"},
		{"no such policy", policy + "[[limits.descriptors]]\ndomain = \"x\"\nentries = [{ key = \"a\" }]\npolicy = \"e\"\n", `there is no policy "e"`},
		{"a policy and none", policy + "[[limits.descriptors]]\ndomain = \"x\"\nentries = [{ key = \"a\" }]\npolicy = \"d\"\nunlimited = true\n", "limits.descriptors[0].unlimited: is set together with"},
		{"a policy of requests", "[[limits.policies]]\nname = \"d\"\nby = [\"address\"]\nlimit = 1\nwindow = \"1m\"\n[[limits.descriptors]]\ndomain = \"x\"\nentries = [{ key = \"a\" }]\npolicy = \"d\"\n", `"d" is no policy for descriptors`},
		{"the same twice", policy + strings.Repeat("[[limits.descriptors]]\ndomain = \"x\"\nentries = [{ key = \"a\" }]\npolicy = \"d\"\n", 2), "limits.descriptors[1].entries: has the domain and entries of limits.descriptors[0]"},
		{"descriptor beside others", strings.Replace(policy, `["descriptor"]`, `["descriptor", "address"]`, 1), "limits.policies[0].by: descriptor stands alone"},
		{"layers of descriptors", policy + "layers = [\"user\"]\n", "limits.policies[0].layers: means nothing to a policy for descriptors"},
		{"a name that is there", strings.Replace(policy, `"d"`, `"gubernator"`, 1), "always there"},
	} {
		_, err := LoadConfig(write(t, minimal+tt.text), secretVariables())
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

// What the documents of these listeners show is a configuration.
func TestLoadConfig_GRPCDocuments(t *testing.T) {
	t.Parallel()
	block := regexp.MustCompile("(?s)\n```toml\n(.*?)\n```\n")
	for _, name := range []string{"envoy.md", "gubernator.md"} {
		doc, err := os.ReadFile(filepath.Join("..", "docs", name))
		if err != nil {
			t.Fatal(err)
		}
		blocks := block.FindAllSubmatch(doc, -1)
		if len(blocks) == 0 {
			t.Errorf("%s shows none", name)
		}
		for _, b := range blocks {
			if _, err := LoadConfig(write(t, minimal+string(b[1])+"\n"), secretVariables()); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}
