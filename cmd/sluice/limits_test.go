package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"sluice/node"
)

func TestLimitsExplain_Text(t *testing.T) {
	t.Parallel()
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	next := now.Add(21 * time.Second)
	refusal := &node.RefusalExplained{Node: "nod_a", At: now.Add(-2 * time.Second), Cost: 1, Reason: "used_up", Detail: "all is used up"}
	answer := node.LimitsExplained{
		AnsweredBy: "nod_a", At: now,
		Subject: node.LimitsSubject{Kind: "api_key", ID: "key_1", OrganizationID: "org_1", Note: "the key has expired", Others: []string{"by-both"}},
		Policies: []node.PolicyExplained{
			{
				Policy: "api_key", Bucket: "0a0b", Limit: 10, WindowSeconds: 60, Algorithm: "sliding_window", Generation: 7, Source: "plan gold",
				WindowBegin: now.Truncate(time.Minute), WindowEnd: now.Truncate(time.Minute).Add(time.Minute),
				Used: 9500, UsedBefore: 3000, Remaining: 0, NextPass: &next, LastRefusal: refusal,
				Nodes: []node.NodeExplained{
					{Node: "nod_a", Name: "one", Answered: true, Share: 4000, Used: 5000, Received: 1000, Charge: 500, Room: 0, Lost: true,
						Ask:     &node.AskExplained{Peer: "nod_b", AgeMillis: 3, Waiting: 2, Units: 2000},
						Beliefs: []node.BeliefExplained{{Peer: "nod_c", Silent: true}, {Peer: "nod_b"}}},
					{Node: "nod_b", Name: "two", Answered: true, Share: 3000, Used: 1000, Given: 1000, Overflow: true, Undecided: "beyond_horizon",
						Transfers: []node.TransferExplained{{Peer: "nod_a", Direction: "to", Units: 1000}}},
					{Node: "nod_c", Error: "connection refused"},
				},
			},
			{Policy: "day", Route: "orders", Shadow: true, Shared: true, Bucket: "0c", Limit: 5, WindowSeconds: 86_400, Algorithm: "fixed_window", NextPass: &now,
				WindowBegin: now.Truncate(24 * time.Hour), WindowEnd: now.Truncate(24 * time.Hour).Add(24 * time.Hour), Complete: true},
		},
	}
	address := adminOf(t, func(w http.ResponseWriter, _ *http.Request) {
		if err := json.NewEncoder(w).Encode(answer); err != nil {
			t.Error(err)
		}
	})
	stdout, stderr, code := program(t, nil, "limits", "explain", "key_1", "--admin", address)
	want := `api_key key_1 of org_1
! the key has expired

policy api_key: 10 in 1m0s, sliding_window (plan gold)
bucket 0a0b, reset at log entry 7
window 03:04:00 to 03:05:00: 9.5 used, 0 left (3 used in the window before), as far as those know that answered
the next request passes at 03:04:26.000, in 21s
last refused 2s ago by one: all is used up (used_up)
NODE   NAME  SHARE  SPENT  GIVEN  RECEIVED  CHARGE  ROOM
nod_a  one   4      5      0      1         0.5     0
nod_b  two   3      1      1      0         0       0
nod_c  -     ?      ?      ?      ?         ?       ?
! one holds no share in this window: what it did before its last start is not known
one asked two 3 ms ago; 2 requests wait for 2
! one gets no answers from nod_c
! two can decide nothing now: beyond_horizon
! two counts other buckets together with this one: its room for counters is used up
two lent 1 to one
! nod_c does not answer: connection refused

policy day on route orders: 5 in 24h0m0s, fixed_window; shadow, never enforced; counts others, too
bucket 0c
window 2030-01-02 00:00:00 to 2030-01-03 00:00:00: 0 used, 0 left
the next request passes now
NODE  NAME  SHARE  SPENT  GIVEN  RECEIVED  CHARGE  ROOM

also counted together with something else: by-both
`
	if code != exitDone || stdout != want {
		t.Errorf("code %d, %s\n got:\n%s\nwant:\n%s", code, stderr, stdout, want)
	}
	stdout, _, code = program(t, nil, "limits", "explain", "key_1", "--admin", address, "--output", "json")
	var back node.LimitsExplained
	if err := json.Unmarshal([]byte(stdout), &back); err != nil || code != exitDone || back.Policies[0].Used != 9500 {
		t.Errorf("code %d, %v\n%s", code, err, stdout)
	}
}

// A key itself never leaves this process, and an id goes as it is.
func TestLimits_WhatIsSent(t *testing.T) {
	t.Parallel()
	secret := "sk_live_" + strings.Repeat("x", 38)
	hash := sha256.Sum256([]byte(secret))
	sent := make(chan string, 1)
	address := adminOf(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		sent <- r.Method + " " + r.URL.String() + " " + string(body)
		if err := json.NewEncoder(w).Encode(node.LimitsReset{
			Subject: node.LimitsSubject{Kind: "api_key", ID: "key_1"},
			Reset:   []node.BucketReset{{Policy: "api_key", Bucket: "0a", Limit: 3, WindowSeconds: 1, Algorithm: "fixed_window"}},
		}); err != nil {
			t.Error(err)
		}
	})
	hashed := `{"key_sha256":"` + hex.EncodeToString(hash[:]) + `"}`
	for _, test := range []struct {
		stdin string
		args  []string
		want  string
	}{
		{"", []string{"reset", "key_1"}, `POST /v1/limits/reset {"subject":"key_1"}`},
		{"", []string{"reset", "key_1", "--policy", "day"}, `POST /v1/limits/reset {"subject":"key_1","policy":"day"}`},
		{"", []string{"reset", "key_1", "--route", "orders"}, `POST /v1/limits/reset {"subject":"key_1","route":"orders"}`},
		{"", []string{"explain", secret}, `POST /v1/limits/explain ` + hashed},
		{secret + "\n", []string{"explain", "-"}, `POST /v1/limits/explain ` + hashed},
		{"192.0.2.1", []string{"explain", "-"}, `POST /v1/limits/explain {"subject":"192.0.2.1"}`},
	} {
		var out, errs bytes.Buffer
		args := append(append([]string{"limits"}, test.args...), "--admin", address)
		code := run(context.Background(), args, environment{stdin: strings.NewReader(test.stdin), stdout: &out, stderr: &errs})
		if got := <-sent; got != test.want || code != exitDone || strings.Contains(out.String()+errs.String(), secret) {
			t.Errorf("%v: code %d, sent %s, want %s\n%s%s", test.args, code, got, test.want, &out, &errs)
		}
		if test.args[0] == "reset" && out.String() != "api_key key_1\nreset: api_key, 3 in 1s, fixed_window; bucket 0a\n" {
			t.Errorf("reset says %s", &out)
		}
	}
	if _, stderr, code := program(t, nil, "limits", "explain", "-"); code != exitUsage || !strings.Contains(stderr, "no standard input") {
		t.Errorf("without standard input: code %d, %s", code, stderr)
	}
}
