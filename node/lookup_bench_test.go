package node_test

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"log/slog"
	"net"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/valyala/fasthttp"

	"sluice/authapi"
	"sluice/authapi/authtest"
	"sluice/limiter"
	"sluice/raftfsm"
	"sluice/raftfsm/state"
)

const base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// numberedKey is the i-th of any number of well-formed API keys.
func numberedKey(i int) string {
	b := append(make([]byte, 0, 46), "sk_live_"...)
	sum := sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(i)))
	for _, c := range sum {
		b = append(b, base62[c%62])
	}
	crc := crc32.ChecksumIEEE(b)
	var digits [6]byte
	for j := len(digits) - 1; j >= 0; j-- {
		digits[j] = base62[crc%62]
		crc /= 62
	}
	return string(append(b, digits[:]...))
}

// admitAll leaves the limiter out of a measurement.
type admitAll struct{}

func (admitAll) Bucket(string, limiter.Rule, []byte) limiter.BucketID { return limiter.BucketID{1} }
func (admitAll) Take(_ []limiter.Charge, verdicts []limiter.Verdict) limiter.Outcome {
	for i := range verdicts {
		verdicts[i] = limiter.Verdict{Outcome: limiter.Admitted, Limit: 100, Remaining: 99}
	}
	return limiter.Admitted
}
func (a admitAll) TryTake(c []limiter.Charge, v []limiter.Verdict) (limiter.Outcome, bool) {
	return a.Take(c, v), false
}
func (admitAll) Peek(limiter.Charge) limiter.Verdict {
	return limiter.Verdict{Outcome: limiter.Admitted}
}
func (admitAll) Refund([]limiter.Charge) {}

// keyState is a state on a disk with n keys of 1,000 organizations.
func keyState(b *testing.B, n int) *raftfsm.FSM {
	b.Helper()
	config := raftfsm.Config{Dir: filepath.Join(b.TempDir(), "state"), Logger: slog.New(slog.DiscardHandler), Fatal: func(err error) { b.Error(err) }}
	fsm, err := raftfsm.Open(config)
	if err != nil {
		b.Fatal(err)
	}
	const now = 1_700_000_000_000
	var logs []*raft.Log
	index := uint64(0)
	flush := func() {
		for _, answer := range fsm.ApplyBatch(logs) {
			if result, ok := answer.(state.Result); !ok || result.Refused != "" {
				b.Fatalf("apply: %v", answer)
			}
		}
		logs = logs[:0]
	}
	apply := func(c state.Command) {
		data, err := state.Encode(state.Envelope{ProposedAt: now, Command: c})
		if err != nil {
			b.Fatal(err)
		}
		index++
		if logs = append(logs, &raft.Log{Index: index, Term: 1, Type: raft.LogCommand, Data: data}); len(logs) == 256 {
			flush()
		}
	}
	const orgs = 1000
	for i := range orgs {
		user, org := fmt.Sprintf("usr_%026d", i), fmt.Sprintf("org_%026d", i)
		apply(state.RegisterUser{
			User:         state.User{ID: user, Username: user, Email: user + "@example.com", CreatedAt: now, PersonalOrg: org},
			Organization: state.Organization{ID: org, Name: "An organization", Personal: true, CreatedAt: now, CreatedBy: user},
		})
	}
	for i := range n {
		user, org := fmt.Sprintf("usr_%026d", i%orgs), fmt.Sprintf("org_%026d", i%orgs)
		secret := numberedKey(i)
		hash := sha256.Sum256([]byte(secret))
		apply(state.CreateKey{
			Key: state.APIKey{ID: fmt.Sprintf("key_%026d", i), OrganizationID: org, CreatedBy: user, Name: "A key", Hash: hash[:], Prefix: secret[:12],
				Scopes: []string{"events:read", "triggers:*"}, Environment: "live", CreatedAt: now},
			Actor: state.Actor{UserID: user, Roles: []string{state.RoleOwner}},
		})
	}
	flush()
	// As a node finds it at its start: what was just written is no longer in memory.
	if err := fsm.Close(); err != nil {
		b.Fatal(err)
	}
	indexed := make(chan struct{})
	config.Logger = slog.New(indexedHandler{indexed})
	if fsm, err = raftfsm.Open(config); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := fsm.Close(); err != nil {
			b.Error(err)
		}
	})
	select {
	case <-indexed:
	case <-time.After(time.Minute):
		b.Fatal("the hashes of the keys are not indexed")
	}
	return fsm
}

// indexedHandler is a log that closes a channel when the state has indexed its keys.
type indexedHandler struct{ indexed chan struct{} }

func (h indexedHandler) Enabled(context.Context, slog.Level) bool { return true }
func (h indexedHandler) WithAttrs([]slog.Attr) slog.Handler       { return h }
func (h indexedHandler) WithGroup(string) slog.Handler            { return h }
func (h indexedHandler) Handle(_ context.Context, r slog.Record) error {
	if r.Message == "hashes of keys indexed" {
		close(h.indexed)
	}
	return nil
}

// cpuTime is what this thread, or with RUSAGE_SELF the whole process, has used of processors.
func cpuTime(b *testing.B, who int) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(who, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkLookup is the forward-auth check of API keys out of a million on disk, without network and limiter: one key
// that the node has seen lately, and keys that it has not; what the request costs without a key is to be taken off. Its
// cpu-ns/op is what the look-ups used of a processor, whatever else the machine did meanwhile; process-cpu-ns/op has the
// collector, the database's own work and the noting of uses in it. Making the keys takes a minute or two.
func BenchmarkLookup(b *testing.B) {
	for _, n := range []int{1_000, 1_000_000} {
		b.Run(fmt.Sprintf("keys=%.0e", float64(n)), func(b *testing.B) { benchmarkLookup(b, n) })
	}
}

func benchmarkLookup(b *testing.B, n int) {
	fsm := keyState(b, n)
	srv, err := authapi.New(authapi.Config{
		State: fsm.View(), Cluster: authtest.NewCluster(), Limits: admitAll{}, Sealer: authtest.NewSealer(), Limit: authapi.DefaultLimits(),
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := srv.Shutdown(ctx); err != nil {
			b.Error(err)
		}
	})
	var text []byte // without pointers, so that a million keys of the benchmark's own are nothing to the collector
	for i := range n {
		text = append(text, numberedKey(i)...)
	}
	key := func(i int) []byte { return text[i*len(text)/n:][:len(text)/n] }
	var ctx fasthttp.RequestCtx
	ctx.Init(&fasthttp.Request{}, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}, nil)
	ctx.Request.SetRequestURI("/api/v1/auth/verify")
	ctx.Request.Header.SetHost("a")
	handler := srv.Handler()
	verify := func(b *testing.B, key []byte, want int) {
		ctx.Request.Header.SetBytesV("X-API-Key", key)
		ctx.Response.Reset()
		handler(&ctx)
		if got := ctx.Response.StatusCode(); got != want {
			b.Fatalf("%s: status %d, want %d: %s", key, got, want, ctx.Response.Body())
		}
	}
	measure := func(name string, fn func(b *testing.B)) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			thread, process := cpuTime(b, syscall.RUSAGE_THREAD), cpuTime(b, syscall.RUSAGE_SELF)
			for b.Loop() {
				fn(b)
			}
			b.ReportMetric(float64(cpuTime(b, syscall.RUSAGE_THREAD)-thread)/float64(b.N), "cpu-ns/op")
			b.ReportMetric(float64(cpuTime(b, syscall.RUSAGE_SELF)-process)/float64(b.N), "process-cpu-ns/op")
		})
	}
	measure("without a key", func(b *testing.B) {
		ctx.Request.Header.Del("X-API-Key")
		ctx.Response.Reset()
		handler(&ctx)
		if got := ctx.Response.StatusCode(); got != fasthttp.StatusOK {
			b.Fatalf("status %d", got)
		}
	})
	measure("known", func(b *testing.B) { verify(b, key(0), fasthttp.StatusOK) })
	at := 0 // the stride reaches all keys before it comes back to one, long after the cache has lost it
	measure("unknown to the cache", func(b *testing.B) {
		at = (at + 7919) % n
		verify(b, key(at), fasthttp.StatusOK)
	})
	view := fsm.View()
	measure("state alone", func(b *testing.B) {
		at = (at + 7919) % n
		if auth, err := view.KeyAuth(sha256.Sum256(key(at))); err != nil || auth == nil {
			b.Fatal(auth, err)
		}
	})
}
