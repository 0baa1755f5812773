package state_test

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"sluice/raftfsm/state"
)

// same holds the two decoders against each other.
func same(t *testing.T, data []byte) {
	t.Helper()
	kept := bytes.Clone(data)
	var want, got state.APIKey
	got.ID = "of the caller before"
	wantErr, gotErr := state.Unmarshal(data, &want), state.UnmarshalAPIKey(data, &got)
	if (wantErr == nil) != (gotErr == nil) {
		t.Fatalf("%x: got error %v, want %v", data, gotErr, wantErr)
	}
	if wantErr == nil {
		clear(data) // nothing of it is kept
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("%x: got %+v, want %+v", kept, got, want)
		}
	}
}

func keyRecords(t testing.TB) [][]byte {
	var full state.APIKey
	var n int64
	fill(reflect.ValueOf(&full).Elem(), &n)
	odd := full
	odd.Name, odd.Scopes, odd.Hash = "Schlüssel \x00 "+strings.Repeat("n", 300), make([]string, 30), make([]byte, 300)
	negative := full
	negative.ExpiresAt = -1
	var records [][]byte
	for _, key := range []state.APIKey{{}, full, odd, negative, {ID: "key_1", Scopes: []string{"*"}, CreatedAt: 1 << 62}} {
		data, err := state.Marshal(key)
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, data)
	}
	return append(records,
		[]byte{0xa0}, []byte{0xa1, 1, 0x61, 'k'}, // a record of before there were more fields
		[]byte{0xa1, 1, 0xf6},                                                                                         // null
		[]byte{0xa2, 2, 0x60, 1, 0x60}, []byte{0xa2, 1, 0x60, 1, 0x60}, []byte{0xa1, 0, 0x60}, []byte{0xa1, 18, 0x60}, // order, twice, unknown
		[]byte{0xa1, 9, 0x18, 5}, []byte{0xa1, 9, 0x1b, 0xff, 0, 0, 0, 0, 0, 0, 0}, []byte{0xa1, 9, 0x1c}, []byte{0xa1, 9, 0xfb, 0, 0, 0, 0, 0, 0, 0, 0}, // not shortest, too large, reserved, a float
		[]byte{0xa1, 1, 0x61, 0xff}, []byte{0xa1, 1, 0x62, 'k'}, []byte{0xa1, 7, 0x9b, 1, 0, 0, 0, 0, 0, 0, 0}, []byte{0xbf, 0xff}, []byte{0xa0, 0}, nil,
	)
}

func TestUnmarshalAPIKey_IsUnmarshal(t *testing.T) {
	t.Parallel()
	for _, data := range keyRecords(t) {
		for end := range data {
			same(t, bytes.Clone(data[:end]))
		}
		same(t, data)
	}
}

// What it returns belongs to the caller: no append to one part reaches another one.
func TestUnmarshalAPIKey_PartsAreApart(t *testing.T) {
	t.Parallel()
	data, err := state.Marshal(state.APIKey{Hash: []byte("present"), PreviousHash: []byte("previous")})
	if err != nil {
		t.Fatal(err)
	}
	var key state.APIKey
	if err := state.UnmarshalAPIKey(data, &key); err != nil {
		t.Fatal(err)
	}
	_ = append(key.Hash, '!')
	if string(key.PreviousHash) != "previous" {
		t.Errorf("the previous hash is %q now", key.PreviousHash)
	}
}

func TestUnmarshalAPIKey_Allocations(t *testing.T) {
	data := keyRecords(t)[1]
	var key state.APIKey
	if n := testing.AllocsPerRun(100, func() {
		if err := state.UnmarshalAPIKey(data, &key); err != nil {
			t.Fatal(err)
		}
	}); n > 3 {
		t.Errorf("%v allocations, want 3 at most", n)
	}
}

func FuzzUnmarshalAPIKey(f *testing.F) {
	for _, data := range keyRecords(f) {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) { same(t, bytes.Clone(data)) })
}
