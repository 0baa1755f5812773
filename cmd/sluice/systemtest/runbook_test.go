package systemtest

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// notRunnable are the programs of the runbook that a test cannot run, and why. Nothing else of it is left out.
var notRunnable = map[string]string{
	"systemctl":   "needs systemd as the first process; what it does to a node the test does with signals",
	"journalctl":  "needs systemd's journal; what is looked for has to be a text of the sources",
	"timedatectl": "needs systemd",
	"chronyc":     "needs a time service",
	"nc":          "may be missing, and needs another machine",
	"tcpdump":     "needs root",
	"iptables":    "needs root",
}

// runbookCommands are the lines of the blocks of commands in docs/runbook.md, each once.
func runbookCommands(t *testing.T) (lines []string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "runbook.md"))
	if err != nil {
		t.Fatal(err)
	}
	fenced, ours, commands := false, false, 0
	for number, line := range strings.Split(string(text), "\n") {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "```"):
			if fenced && ours && commands == 0 {
				t.Errorf("docs/runbook.md:%d: a block without a command", number+1)
			}
			fenced, ours, commands = !fenced, !fenced && line == "```sh", 0
			if fenced && !ours {
				t.Errorf("docs/runbook.md:%d: a block of something else than commands (sh): %s", number+1, line)
			}
		case ours && line != "":
			commands++
			if !slices.Contains(lines, line) {
				lines = append(lines, line)
			}
		}
	}
	if fenced {
		t.Error("the last block does not end")
	}
	return lines
}

// runbook runs the lines of the runbook, with what stands for something replaced.
type runbook struct {
	*cluster
	t      *testing.T
	work   string // where commands run
	page   []string
	ran    map[string]bool
	values map[string]string
	token  string
}

var placeholder = regexp.MustCompile(`\b[A-Z]{3,}\b`)

// fill puts values into a line.
func (r *runbook) fill(line string) string {
	r.t.Helper()
	line = strings.ReplaceAll(line, "/etc/sluice/", r.dir+"/")
	return placeholder.ReplaceAllStringFunc(line, func(name string) string {
		switch name {
		case "TOKEN", "DELETE", "API": // a variable, a method, a part of a header's name
			return name
		}
		value, ok := r.values[name]
		if !ok {
			r.t.Fatalf("%s: %s stands for nothing that the test knows", line, name)
		}
		return value
	})
}

// try runs a line, whatever comes of it.
func (r *runbook) try(line string) (out string, code int) {
	r.t.Helper()
	if !slices.Contains(r.page, line) {
		r.t.Errorf("the runbook has no such command any more: %s", line)
	}
	r.ran[line] = true
	cmd := exec.CommandContext(r.t.Context(), "sh", "-c", r.fill(line))
	cmd.Dir = r.work
	cmd.Env = append(cleanEnvironment(), "PATH="+filepath.Dir(binary)+":"+os.Getenv("PATH"), "TOKEN="+r.token)
	text, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		r.t.Fatalf("%s: %v", line, err)
	}
	return string(text), cmd.ProcessState.ExitCode()
}

// do runs a line, which has to end with a code and to print something. It returns what it printed.
func (r *runbook) do(line string, code int, want string) string {
	r.t.Helper()
	out, got := r.try(line)
	if got != code || !regexp.MustCompile(want).MatchString(out) {
		r.t.Fatalf("%s\nended with %d, want %d, and %q in:\n%s", line, got, code, want, out)
	}
	return out
}

// until runs a line again and again until it does as do wants.
func (r *runbook) until(line string, code int, want string) {
	r.t.Helper()
	eventually(r.t, 3*readyWithin, line, func() error {
		out, got := r.try(line)
		if got != code || !regexp.MustCompile(want).MatchString(out) {
			return fmt.Errorf("ended with %d, want %d, and %q in:\n%s", got, code, want, out)
		}
		return nil
	})
}

const (
	lookMetrics   = "curl -s http://ADMIN/metrics | grep "
	lookReadiness = "curl -s 'http://ADMIN/readyz?verbose'"
	lookErrors    = `curl -s http://ADMIN/metrics | grep -E '^sluice_http_requests_total.*status="50[03]"'` // for when there are some
	lookStatus    = "sluice cluster status --config FILE"
)

// looks runs what only looks at a sound node: each metric that a line names has to be there.
func (r *runbook) looks() {
	r.t.Helper()
	metric := regexp.MustCompile(`\b(?:sluice|process)_[a-z0-9_]+`)
	n := 0
	for _, line := range r.page {
		switch {
		case line == lookErrors:
		case line == lookReadiness:
			r.do(line, 0, `(?m)^\[\+\] leader: ok`)
		case strings.HasPrefix(line, lookMetrics):
			n++
			out := r.do(line, 0, "")
			for _, name := range metric.FindAllString(line, -1) {
				if !strings.Contains("\n"+out, "\n"+name) {
					r.t.Errorf("%s: no %s in\n%s", line, name, out)
				}
			}
		}
	}
	if n < 20 {
		r.t.Errorf("%d looks at metrics", n)
	}
}

// write puts a file beside the commands.
func (r *runbook) write(name, text string) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.work, name), []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// first is what a pattern's group matches.
func (r *runbook) first(pattern, text string) string {
	r.t.Helper()
	m := regexp.MustCompile(pattern).FindStringSubmatch(text)
	if m == nil {
		r.t.Fatalf("no %s in %s", pattern, text)
	}
	return m[1]
}

// signal sends one to nodes, wherever they run.
func (r *runbook) signal(sig syscall.Signal, nodes ...int) {
	r.t.Helper()
	for _, node := range nodes {
		var pid int
		r.mu.Lock()
		p, byHand := r.byHand[node]
		r.mu.Unlock()
		if byHand {
			pid = p.cmd.Process.Pid
		} else {
			pid = r.pid(r.t, node)
		}
		if err := syscall.Kill(pid, sig); err != nil {
			r.t.Fatalf("signal %v to node%d: %v", sig, node, err)
		}
	}
}

// ended waits until nodes have.
func (r *runbook) ended(nodes ...int) {
	r.t.Helper()
	for _, node := range nodes {
		r.mu.Lock()
		p, byHand := r.byHand[node]
		r.mu.Unlock()
		if byHand {
			select {
			case <-p.done:
			case <-time.After(stopWithin):
				r.t.Fatalf("node%d did not end within %v", node, stopWithin)
			}
			continue
		}
		eventually(r.t, stopWithin, fmt.Sprintf("node%d has ended", node), func() error {
			if !strings.Contains(r.stderr.String(), fmt.Sprintf("node%d (pid %d) ended", node, r.pid(r.t, node))) {
				return errors.New("it runs")
			}
			return nil
		})
	}
}

// leader makes the node that leads the one that looks are at.
func (r *runbook) leader() {
	r.t.Helper()
	out := r.do(lookStatus, 0, "0 more may fail|1 more may fail")
	n, err := strconv.Atoi(r.first(`(?m)^node(\d+) leads`, out))
	if err != nil {
		r.t.Fatal(err)
	}
	r.values["ADMIN"] = nodeSetting(r.t, r.cluster, n, "admin")
}

// TestRunbook runs every command of docs/runbook.md: on a sound cluster, and on one to which happens what the page is about.
func TestRunbook(t *testing.T) {
	for _, program := range []string{"curl", "openssl"} {
		needProgram(t, program)
	}
	t.Parallel()
	r := &runbook{
		cluster: startCluster(t, options{}), t: t, work: t.TempDir(), page: runbookCommands(t), ran: make(map[string]bool),
	}
	r.values = map[string]string{
		"FILE": filepath.Join(r.dir, "node1.toml"), "ADMIN": nodeSetting(t, r.cluster, 1, "admin"), "PUBLIC": strings.TrimPrefix(r.urls[0], "http://"),
		"DIR": filepath.Join(r.dir, "node1"), "NAME": "dev", "TIME": time.Now().Add(-time.Hour).UTC().Format(time.RFC3339),
	}
	for _, part := range []struct {
		name string
		run  func()
	}{{"sound", r.sound}, {"accounts", r.accounts}, {"backups", r.backups}, {"secrets", r.secrets}, {"nodes", r.nodes}, {"majority", r.majority}} {
		begun := time.Now()
		part.run()
		t.Logf("%s: %d commands so far, %v", part.name, len(r.ran), time.Since(begun).Round(time.Millisecond))
	}

	for _, line := range r.page {
		program, _, _ := strings.Cut(line, " ")
		if notRunnable[program] == "" {
			if !r.ran[line] {
				t.Errorf("the test does not run: %s", line)
			}
			continue
		}
		if r.ran[line] || regexp.MustCompile(`[|;&(]\s*(sluice|curl)\b`).MatchString(line) {
			t.Errorf("%s cannot be run, and the line has to be: %s", program, line)
		}
	}
}

// TestRunbook_NotRun holds what TestRunbook leaves out against the page: no program is excused that is not there, and what is looked
// for in a log is a text that a node may write.
func TestRunbook_NotRun(t *testing.T) {
	t.Parallel()
	var sources strings.Builder
	for _, dir := range []string{"node", "authapi", "limiter", "raftfsm", "cmd"} {
		err := filepath.WalkDir(filepath.Join("..", "..", "..", dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			sources.Write(text)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	page := runbookCommands(t)
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "runbook.md"))
	if err != nil {
		t.Fatal(err)
	}
	// What the text between the blocks calls by name is a command of the blocks.
	for _, m := range regexp.MustCompile("`(sluice(?: [a-z][a-z-]*)+)").FindAllStringSubmatch(string(text), -1) {
		if !slices.ContainsFunc(page, func(line string) bool { return strings.Contains(line, m[1]) }) {
			t.Errorf("no block has a command as %q", m[1])
		}
	}
	used, searched := make(map[string]string), 0
	for _, line := range page {
		program, _, _ := strings.Cut(line, " ")
		used[program] = line
		if m := regexp.MustCompile(`^journalctl -u .*\| grep -F '(.+)'$`).FindStringSubmatch(line); m != nil {
			searched++
			if !strings.Contains(sources.String(), m[1]) {
				t.Errorf("no node writes what is looked for: %s", line)
			}
		}
	}
	for _, program := range slices.Sorted(maps.Keys(notRunnable)) {
		if used[program] == "" || notRunnable[program] == "" {
			t.Errorf("%s is excused, and not in the runbook or without a reason", program)
		}
	}
	if searched < 10 {
		t.Errorf("%d looks into the log", searched)
	}
}

// sound runs what looks at a sound cluster, or works without one.
func (r *runbook) sound() {
	a := register(r.t, r.urls[0])
	for _, url := range r.urls {
		for password, status := range map[string]int{a.password: http.StatusOK, "not the one": http.StatusUnauthorized} {
			must(r.t, url, request{method: "POST", path: "/api/v1/auth/login", address: newAddress(), body: map[string]any{"username": a.username, "password": password}}, status)
		}
	}
	r.do(lookStatus, 0, "3 of 3 voters answer, 1 more may fail")
	r.leader()
	r.looks()
	r.do("curl -s http://PUBLIC/readyz", 0, "^ready")
	r.do(`curl -s -o /dev/null -w '%{http_code}\n' http://PUBLIC/readyz`, 0, "^200\n$")
	r.do("sluice config check --config FILE", 0, ": ok")
	r.do(`sluice config show --config FILE | grep -E '^\[|tls_'`, 0, `(?s)\[http\].*tls_cert.*\[admin\].*tls_cert`)
	r.do("sluice config show --config FILE | grep trusted_proxies", 0, "127")
	r.do("sluice config show --config FILE | grep -E 'trusted_proxies|max_connections'", 0, "max_connections_per_address")
	r.do("sluice config show --config FILE | grep -E 'drain_(delay|timeout)'", 0, "(?s)drain_delay.*drain_timeout")
	r.do("sluice version", 0, "^sluice ")
	r.do(`sluice cluster status --config FILE --output json | grep '"level"'`, 0, `"level": \d`)
	r.do("df -h DIR", 0, "%")
	r.do("df -i DIR", 0, "%")
	r.do("du -xhD --max-depth=2 DIR", 0, "raft")
	r.do("mkdir -m 700 successor && sluice cert new ca --cluster NAME --out successor", 0, "peer-ca.key")
	r.move(filepath.Join(r.work, "successor"), filepath.Join(r.work, "authority"))
	r.do("sluice secret new", 0, ".{40}")
	r.do("(umask 077 && sluice backup key >backup.key.new)", 0, "^$")
	r.do("grep -o 'age1.*' backup.key.new", 0, "^age1")

	r.values["SUBJECT"] = newAddress()
	for range 12 {
		if _, err := send(r.urls[0], request{path: "/api/v1/auth/verify", address: r.values["SUBJECT"]}); err != nil {
			r.t.Fatal(err)
		}
	}
	r.do("sluice limits explain SUBJECT --config FILE", 0, "last refused")
	r.do("sluice limits reset SUBJECT --config FILE", 0, "reset: anonymous")
	r.do("sluice policy show --config FILE >live.toml", 0, "version 0")
	r.write("live.toml", "[limits.anonymous]\nlimit = 20\n")
	r.do("sluice policy diff live.toml --config FILE", 0, "10 → 20")
	r.do("sluice policy apply live.toml --yes --config FILE", 0, "version 1 is in force")
	r.do("sluice policy history --config FILE", 0, `(?m)^1 `)
	r.do("sluice policy rollback 0 --yes --config FILE", 0, "version 2 is in force")
	r.do("sluice cluster transfer-leader --config FILE", 0, "leads")
}

// accounts runs what is about users and keys of them that have leaked.
func (r *runbook) accounts() {
	a := register(r.t, r.urls[1])
	key := a.newKey(r.t, r.urls[1], 0, "triggers:read")
	r.token = a.token
	r.write("leaked", key.secret+"\n")
	r.values["USER"], r.values["USERID"] = a.username, a.userID
	out := r.do("sluice limits explain - --config FILE <leaked", 0, "^api_key key_")
	r.values["KEYID"] = r.first(`^api_key (key_\w+) of org_`, out)
	r.do("sluice audit --event api_key.created --subject KEYID --config FILE", 0, "user:"+a.userID+" -> api_key:"+key.id)
	r.do("sluice audit --actor KEYID --config FILE", 0, "")
	r.do("sluice user show USER --config FILE", 0, "^"+a.userID)
	r.do("sluice audit --actor USERID --since TIME --config FILE", 0, "user.registered")
	r.do(`curl -s -o /dev/null -w '%{http_code}\n' -X DELETE -H "Authorization: Bearer $TOKEN" http://PUBLIC/api/v1/api-keys/KEYID`, 0, "^204\n$")
	r.until(`curl -s -o /dev/null -w '%{http_code}\n' -H "X-API-Key: $(cat leaked)" http://PUBLIC/api/v1/auth/me`, 0, "^401\n$")
	other := a.newKey(r.t, r.urls[1], 0, "triggers:read")
	r.do("sluice user disable USER --note 'a key has leaked' --config FILE", 0, "disabled")
	eventually(r.t, readyWithin, "the user's other key is refused", func() error {
		res, err := send(r.urls[2], request{path: "/api/v1/auth/me", key: other.secret, address: newAddress()})
		if err == nil && res.status != http.StatusUnauthorized {
			err = fmt.Errorf("got %v", res)
		}
		return err
	})
	r.do("sluice user enable USER --config FILE", 0, "enabled")
	r.do("sluice user set-password USER --config FILE", 0, "")
	r.do("sluice audit --event session.failed --limit 50 --config FILE", 0, "failure session.failed")
	r.do("sluice audit --since TIME --limit 1000 --config FILE | grep operator:", 0, "user.disabled")
}

// backups runs what makes and restores them, the latter into a new cluster and into this one.
func (r *runbook) backups() {
	r.do("sluice backup by-hand.backup --config FILE", 0, "not encrypted")
	r.do("sluice backup verify by-hand.backup", 0, "content hash")
	r.move(filepath.Join(r.work, "by-hand.backup"), filepath.Join(r.work, "nightly.backup"))
	hash := r.first(`content hash (\w+)`, r.do("sluice backup verify nightly.backup", 0, "content hash"))
	register(r.t, r.urls[2]) // after the backup
	r.do("sluice backup before-restore.backup --config FILE", 0, "not encrypted")
	r.do("sluice audit --event 'api_key.*' --since TIME --limit 100000 --config FILE >keys-since.txt", 0, "^$")
	r.do("sluice audit --event 'user.*' --since TIME --limit 100000 --config FILE >users-since.txt", 0, "^$")
	for name, want := range map[string]string{"keys-since.txt": "api_key.revoked", "users-since.txt": "user.disabled"} {
		if text := read(r.t, filepath.Join(r.work, name)); !strings.Contains(string(text), want) {
			r.t.Errorf("no %s in %s: %s", want, name, text)
		}
	}

	restore := "sluice restore nightly.backup --config FILE"
	r.do(restore, 1, "has users")
	key := strings.TrimSpace(string(read(r.t, filepath.Join(r.dir, "key.secret"))))
	fresh := startCluster(r.t, options{nodes: 1, variables: []string{"SLUICE_SECRETS__KEY=" + key}})
	here := r.values["FILE"]
	r.values["FILE"] = filepath.Join(fresh.dir, "node1.toml")
	r.do(restore, 0, "now has what this backup holds")
	r.do("sluice cluster contents --config FILE", 0, "content hash "+hash)
	fresh.stop()

	r.values["FILE"] = here
	r.values["CLUSTER"] = r.first(`\((clu_\w+)\)`, r.do(lookStatus, 0, ""))
	r.do("sluice restore nightly.backup --force --yes-replace CLUSTER --revoke-sessions --config FILE", 0, "now has what this backup holds")
	if got := r.first(`content hash (\w+)`, r.do("sluice cluster contents --config FILE", 0, "")); got == hash {
		r.t.Error("the content hash is the backup's though sessions were ended")
	}
	r.until(lookStatus, 0, "3 of 3 voters answer")
}

// secrets replaces all of them.
func (r *runbook) secrets() {
	r.do("sluice cluster rotate-signing-key --config FILE", 0, "signs from")
	r.values["OLDKEY"] = r.first(`(?m)^(\w{16}) +yes`, r.do("sluice cluster keyring list --config FILE", 0, ""))
	r.values["NEWKEY"] = r.first(`^(\w{16}) is installed`, r.do("sluice cluster keyring install --config FILE", 0, ""))
	r.do("sluice cluster keyring use NEWKEY --config FILE", 0, "is in use")
	r.do("sluice cluster keyring remove OLDKEY --config FILE", 0, "is removed")
	r.do("sluice cluster keyring list --config FILE", 0, `(?m)^`+r.values["NEWKEY"]+` +yes .*3 of 3 +3 of 3$`)

	r.do("(umask 077 && sluice secret new >key.secret.new)", 0, "^$")
	r.move(filepath.Join(r.dir, "key.secret"), filepath.Join(r.dir, "previous.secret"))
	r.move(filepath.Join(r.work, "key.secret.new"), filepath.Join(r.dir, "key.secret"))
	for node := 1; node <= 3; node++ {
		path := filepath.Join(r.dir, fmt.Sprintf("node%d.toml", node))
		text := strings.Replace(string(read(r.t, path)), "key_file = \"key.secret\"", "key_file = \"key.secret\"\nprevious_key_file = \"previous.secret\"", 1)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			r.t.Fatal(err)
		}
	}
	r.signal(syscall.SIGHUP, 1, 2, 3)
	r.until("sluice secret status --config FILE", 0, `(?s)(yes +\w{16} \w{16}\n.*){3}would seal under`)
	r.do("sluice secret rotate --config FILE", 0, "is needed until")
	r.do("sluice secret status --config FILE", 0, `(?s)(yes +\w{16} \w{16}\n.*){3}`)

	r.do("(umask 077 && sluice secret new >cluster.secret.new)", 0, "^$")
	r.signal(syscall.SIGTERM, 1, 2, 3)
	r.ended(1, 2, 3)
	r.do("mv cluster.secret.new /etc/sluice/cluster.secret", 0, "^$")
	for node := 1; node <= 3; node++ {
		r.startNode(r.t, node)
	}
	r.until(lookStatus, 0, "3 of 3 voters answer, 1 more may fail")
}

func (r *runbook) move(from, to string) {
	r.t.Helper()
	if err := os.Rename(from, to); err != nil {
		r.t.Fatal(err)
	}
}

// nodes has one die and come back, and another take its place.
func (r *runbook) nodes() {
	r.signal(syscall.SIGKILL, 3)
	r.until(lookStatus, 1, `(?s)2 of 3 voters answer, 0 more may fail.*! nod_\w+ \(node3\): does not answer.*> node3`)
	// A limit is explained though the node that was asked for its share is dead.
	r.values["SUBJECT"] = newAddress()
	for range 12 {
		if _, err := send(r.urls[0], request{path: "/api/v1/auth/verify", address: r.values["SUBJECT"]}); err != nil {
			r.t.Fatal(err)
		}
	}
	r.do("sluice limits explain SUBJECT --config FILE", 0, "last refused")
	r.startNode(r.t, 3)
	r.until(lookStatus, 0, "3 of 3 voters answer")

	r.do("sluice cluster add --config FILE", 0, `join = \[`)
	r.join(r.t, 1)
	r.until(lookStatus, 0, "4 of 4 voters answer")
	r.signal(syscall.SIGKILL, 3)
	r.ended(3)
	r.values["NODE"] = "node3"
	r.do("sluice cluster remove NODE --config FILE", 0, "is removed")
}

// majority loses it, and makes a cluster of the node that is left.
func (r *runbook) majority() {
	r.signal(syscall.SIGKILL, 2, 4)
	r.ended(2, 4)
	r.until(lookStatus, 1, "nobody leads; 1 of 3 voters answer, 0 more may fail")
	r.values["ADMIN"] = nodeSetting(r.t, r.cluster, 1, "admin")
	r.do(`curl -s -o /dev/null -w '%{http_code}\n' http://PUBLIC/readyz`, 0, "^503\n$")
	r.do(lookErrors, 0, `status="503"`)
	r.do(lookReadiness, 0, `(?m)^\[-\] leader: `)
	r.do("sluice backup --stale stale.backup --config FILE", 0, "not encrypted")
	recovery := "sluice cluster recover --config FILE"
	r.signal(syscall.SIGTERM, 1)
	r.ended(1)
	r.do("sluice cert id --config FILE", 0, "^nod_")
	r.do("mkdir -m 700 renewed && sluice cert new node --config FILE --ca authority --out renewed", 0, "peer.tls_cert of nod_")
	r.values["CERT"] = filepath.Join("renewed", "peer.crt")
	r.do("openssl x509 -in CERT -noout -enddate -subject -issuer", 0, "notAfter=")
	r.do(recovery, 0, `(?s)its log ends with entry.*Nothing was changed`)
	r.do("SLUICE_SECRETS__CLUSTER_FILE=/etc/sluice/cluster.secret SLUICE_SECRETS__KEY_FILE=/etc/sluice/key.secret "+recovery, 0, "Nothing was changed")
	r.do("sluice cluster recover --yes --config FILE", 0, "It is the cluster clu_\\w+_r1_")
	r.do("chown -R -H --reference=DIR DIR", 0, "^$")
	r.startNode(r.t, 1)
	r.until(lookStatus, 0, "1 of 1 voters answer")
	r.do("sluice backup recovered.backup --config FILE", 0, "not encrypted")
	r.do("sluice cluster add --config FILE", 0, `join = \["`+regexp.QuoteMeta(nodeSetting(r.t, r.cluster, 1, "peer"))+`"\]`)
}
