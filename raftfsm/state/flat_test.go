package state_test

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"sluice/raftfsm/state"
)

// flatRecords are the records that are read without reflection.
func flatRecords() []any {
	return []any{state.APIKey{}, state.User{}, state.Session{}, state.Organization{}, state.Membership{}}
}

// same holds the two ways of decoding a record of record's type against each other.
func same(t *testing.T, record any, data []byte) {
	t.Helper()
	kept := bytes.Clone(data)
	want, got := reflect.New(reflect.TypeOf(record)), reflect.New(reflect.TypeOf(record))
	var n int64
	fill(got.Elem(), &n) // of the caller before
	wantErr, gotErr := state.UnmarshalByReflection(data, want.Interface()), state.Unmarshal(data, got.Interface())
	if (wantErr == nil) != (gotErr == nil) {
		t.Fatalf("%T, %x: got error %v, want %v", record, data, gotErr, wantErr)
	}
	if wantErr == nil {
		clear(data) // nothing of it is kept
		if !reflect.DeepEqual(got.Interface(), want.Interface()) {
			t.Fatalf("%T, %x: got %+v, want %+v", record, kept, got.Elem(), want.Elem())
		}
	}
}

func marshalled(t testing.TB, record any) []byte {
	t.Helper()
	data, err := state.Marshal(record)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// encodings are well-formed and other bytes: of records that are full, empty and odd, and what no version of Marshal writes.
func encodings(t testing.TB) (list [][]byte) {
	for _, record := range flatRecords() {
		full := reflect.New(reflect.TypeOf(record)).Elem()
		var n int64
		fill(full, &n)
		odd := reflect.New(full.Type()).Elem()
		odd.Set(full)
		for i := range odd.NumField() {
			switch f := odd.Field(i); f.Interface().(type) {
			case string:
				f.SetString("Schlüssel \x00 " + strings.Repeat("n", 300))
			case []string:
				f.Set(reflect.ValueOf(make([]string, 30)))
			case []byte:
				f.SetBytes(make([]byte, 300))
			case int64:
				f.SetInt(-1)
			}
		}
		list = append(list, marshalled(t, record), marshalled(t, full.Interface()), marshalled(t, odd.Interface()))
	}
	return append(list, marshalled(t, state.APIKey{ID: "key_1", Scopes: []string{"*"}, CreatedAt: 1 << 62}),
		[]byte{0xa0}, []byte{0xa1, 1, 0x61, 'k'}, // a record of before there were more fields
		[]byte{0xa1, 1, 0xf6}, []byte{0xa1, 3, 0xf4}, []byte{0xa1, 3, 0xf7}, // null, false, undefined
		[]byte{0xa2, 2, 0x60, 1, 0x60}, []byte{0xa2, 1, 0x60, 1, 0x60}, []byte{0xa1, 0, 0x60}, []byte{0xa1, 18, 0x60}, // order, twice, unknown
		[]byte{0xa1, 9, 0x18, 5}, []byte{0xa1, 9, 0x1b, 0xff, 0, 0, 0, 0, 0, 0, 0}, []byte{0xa1, 9, 0x1c}, []byte{0xa1, 9, 0xfb, 0, 0, 0, 0, 0, 0, 0, 0}, // not shortest, too large, reserved, a float
		[]byte{0xa1, 1, 0x61, 0xff}, []byte{0xa1, 1, 0x62, 'k'}, []byte{0xa1, 7, 0x9b, 1, 0, 0, 0, 0, 0, 0, 0}, []byte{0xbf, 0xff}, []byte{0xa0, 0}, nil,
	)
}

func TestUnmarshal_FlatRecordsAreAsByReflection(t *testing.T) {
	t.Parallel()
	for _, data := range encodings(t) {
		for _, record := range flatRecords() {
			for end := range data {
				same(t, record, bytes.Clone(data[:end]))
			}
			same(t, record, bytes.Clone(data))
		}
	}
}

// TestUnmarshal_FlatRecordsTakeTheShortWay: a field that is added to a record and not to its reader costs no correctness, only time.
func TestUnmarshal_FlatRecordsTakeTheShortWay(t *testing.T) {
	t.Parallel()
	for _, record := range flatRecords() {
		full := reflect.New(reflect.TypeOf(record))
		var n int64
		fill(full.Elem(), &n)
		for _, data := range [][]byte{marshalled(t, record), marshalled(t, full.Interface())} {
			if !state.UnmarshalFlat(data, full.Interface()) {
				t.Errorf("%T: %x is read by reflection", record, data)
			}
		}
	}
}

// What it returns belongs to the caller: no append to one part reaches another one.
func TestUnmarshal_PartsAreApart(t *testing.T) {
	t.Parallel()
	var key state.APIKey
	if err := state.Unmarshal(marshalled(t, state.APIKey{Hash: []byte("present"), PreviousHash: []byte("previous")}), &key); err != nil {
		t.Fatal(err)
	}
	_ = append(key.Hash, '!')
	if string(key.PreviousHash) != "previous" {
		t.Errorf("the previous hash is %q now", key.PreviousHash)
	}
}

func TestUnmarshal_FlatRecordsHardlyAllocate(t *testing.T) {
	for record, most := range map[any]float64{new(state.APIKey): 3, new(state.Session): 2, new(state.User): 1, new(state.Organization): 1, new(state.Membership): 1} {
		var n int64
		fill(reflect.ValueOf(record).Elem(), &n)
		data := marshalled(t, record)
		if n := testing.AllocsPerRun(100, func() {
			if err := state.Unmarshal(data, record); err != nil {
				t.Fatal(err)
			}
		}); n > most {
			t.Errorf("%T: %v allocations, want %v at most", record, n, most)
		}
	}
}

func FuzzUnmarshal_Flat(f *testing.F) {
	for _, data := range encodings(f) {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, record := range flatRecords() {
			same(t, record, bytes.Clone(data))
		}
	})
}
