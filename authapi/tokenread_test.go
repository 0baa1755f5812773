package authapi_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"sluice/authapi"
	"sluice/raftfsm/state"
)

// ownPayload is what the node itself writes.
func ownPayload() string {
	return fmt.Sprintf(`{"iss":"sluice","sub":%q,"aud":["sluice"],"exp":%d,"iat":%d,"jti":"tok_1","sid":%q,"org":"org_1"}`,
		testUser, start.Unix()+3600, start.Unix(), testSession)
}

func (b *tokenBench) keys() map[string]state.SigningKey {
	return map[string]state.SigningKey{"HS256": b.hs, "EdDSA": b.ed, "ES256": b.es}
}

// TestVerifyOwn_IsTheUsualCase holds the reader to what the node issues: else every token would take the slow way unnoticed.
func TestVerifyOwn_IsTheUsualCase(t *testing.T) {
	t.Parallel()
	b := newTokenBench(t)
	cl, ours, err := b.srv.VerifyOwn(b.hs.ID, []byte(issue(t, b)), start)
	if !ours || err != nil || cl.UserID != testUser || cl.SessionID != testSession || cl.OrganizationID != "org_1" || cl.TokenID == "" ||
		cl.IssuedAt != start.Unix()*1000 || cl.ExpiresAt <= cl.IssuedAt {
		t.Errorf("issued: %+v, ours %v, %v", cl, ours, err)
	}
	for alg, k := range b.keys() {
		for name, payload := range map[string]string{"all": ownPayload(), "no org": strings.Replace(ownPayload(), `,"org":"org_1"`, "", 1)} {
			token := b.srv.SignPayload(k.ID, payload)
			cl, ours, err := b.srv.VerifyOwn(k.ID, []byte(token), start)
			want, wantErr := b.srv.VerifyOther(k.ID, token, start)
			if !ours || err != nil || wantErr != nil || cl != want {
				t.Errorf("%s, %s: %+v, ours %v, %v; want %+v, %v", alg, name, cl, ours, err, want, wantErr)
			}
			for i := len(token) - 1; i > strings.LastIndexByte(token, '.'); i -= 7 {
				forged := []byte(token)
				if forged[i] == 'A' {
					forged[i] = 'Q'
				} else {
					forged[i] = 'A'
				}
				if cl, _, err := b.srv.VerifyOwn(k.ID, forged, start); err == nil && cl != (authapi.Claims{}) {
					t.Errorf("%s: a signature with another character %d verifies", alg, i)
				}
				if _, err := b.srv.VerifyToken(forged, start); !errors.Is(err, authapi.ErrTokenInvalid) {
					t.Errorf("%s: a signature with another character %d: %v", alg, i, err)
				}
			}
		}
	}
}

// TestVerifyOwn_SaysWhatTheLibrarySays changes signed claims by pieces and bytes: what the reader takes for its own must mean the same to the
// JWT library.
func TestVerifyOwn_SaysWhatTheLibrarySays(t *testing.T) {
	t.Parallel()
	b := newTokenBench(t)
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 1))
	pieces := []string{
		`"`, `,`, `:`, `{`, `}`, `0`, `-1`, `1e3`, `\u0041`, `null`, ` `, "é", `","org":"org_2`, `,"nbf":99999999999`, `"sub":"usr_2",`, `sluice`, `"exp":1`, "\x00", "\xff",
	}
	ours, good := 0, 0
	for n := range 20_000 {
		payload := []byte(ownPayload())
		for range random.IntN(3) {
			at := random.IntN(len(payload))
			switch random.IntN(3) {
			case 0:
				payload[at] = " \"0129azAZ_-{}[],:\\"[random.IntN(19)]
			case 1:
				payload = append(payload[:at], payload[min(at+1+random.IntN(3), len(payload)):]...)
			default:
				payload = append(payload[:at:at], append([]byte(pieces[random.IntN(len(pieces))]), payload[at:]...)...)
			}
		}
		now := start.Add(time.Duration(random.IntN(3)-1) * time.Hour)
		token := b.srv.SignPayload(b.hs.ID, string(payload))
		cl, own, err := b.srv.VerifyOwn(b.hs.ID, []byte(token), now)
		if !own {
			continue
		}
		ours++
		want, wantErr := b.srv.VerifyOther(b.hs.ID, token, now)
		if cl != want || !errors.Is(err, wantErr) {
			t.Fatalf("seed %d, token %d, %s: %+v, %v; the library: %+v, %v", seed, n, payload, cl, err, want, wantErr)
		}
		if err == nil {
			good++
		}
	}
	if ours < 1000 || good < 100 {
		t.Errorf("seed %d: %d of the tokens were of the node's own shape, %d of them good", seed, ours, good)
	}
}

// BenchmarkVerifyToken_Unseen verifies a token that nothing is remembered of, beside the bare check of its signature.
func BenchmarkVerifyToken_Unseen(b *testing.B) {
	bench := newTokenBench(b)
	for alg, k := range bench.keys() {
		token := bench.srv.SignPayload(k.ID, ownPayload())
		raw := []byte(token)
		b.Run(alg+"/whole", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, own, err := bench.srv.VerifyOwn(k.ID, raw, start); err != nil || !own {
					b.Fatal(err)
				}
			}
		})
		b.Run(alg+"/library", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := bench.srv.VerifyOther(k.ID, token, start); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(alg+"/signature", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := bench.srv.BareSignature(k.ID, token); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
