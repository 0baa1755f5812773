package state_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"sluice/raftfsm/state"
)

var update = flag.Bool("update", false, "write the golden files anew")

const goldenDir = "../testdata/commands"

// samples has every command once; fill sets all their fields.
var samples = []state.Command{
	&state.InitCluster{}, &state.RegisterUser{}, &state.CreateSession{}, &state.RefreshSession{}, &state.EndSession{},
	&state.EndSessions{}, &state.CreateOrg{}, &state.CreateKey{}, &state.UpdateKey{}, &state.RotateKey{},
	&state.RevokeKey{}, &state.TouchKeys{}, &state.AppendAudit{}, &state.PutSigningKey{}, &state.Prune{},
	&state.Horizon{}, &state.SetRoster{}, &state.PutNode{}, &state.Barrier{}, &state.SetPassword{},
	&state.ResetBucket{},
	&state.Leave{},

	&state.UpdateOrg{}, &state.DeleteOrg{}, &state.AddMember{}, &state.UpdateMember{}, &state.RemoveMember{},
	&state.TransferOrg{}, &state.SetPlan{}, &state.DeleteUser{}, &state.SetUserDisabled{},

	&state.RecordKeyUse{}, &state.RevokeKeyBySecret{},
	&state.ImportAccounts{}, &state.ReplacePassword{},
	&state.UseOnce{}, &state.RegisterIdentity{}, &state.SignInByIdentity{}, &state.LinkIdentity{}, &state.UnlinkIdentity{},
	&state.StartSession{},
	&state.PutSettings{},
	&state.RaiseLevel{},
	&state.PutGossipKeyring{},
	&state.RotateSecretsKey{}, &state.Reseal{},
	&state.RecoverCluster{},
}

// fill sets every field of v to something that is not zero and depends on nothing but the order of the fields.
func fill(v reflect.Value, n *int64) {
	*n++
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), n)
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), n)
		}
	case reflect.Slice:
		size := 2
		if v.Type().Elem().Kind() == reflect.Uint8 {
			size = 32
		}
		v.Set(reflect.MakeSlice(v.Type(), size, size))
		for i := range size {
			fill(v.Index(i), n)
		}
	case reflect.String:
		v.SetString(fmt.Sprintf("text %d", *n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(1_700_000_000_000 + *n)
	case reflect.Uint64:
		v.SetUint(1<<63 + uint64(*n))
	case reflect.Uint8:
		v.SetUint(uint64(*n%251 + 1))
	default:
		panic("no rule for " + v.Kind().String())
	}
}

func filled(sample state.Command) state.Envelope {
	value := reflect.New(reflect.TypeOf(sample).Elem())
	var n int64
	fill(value.Elem(), &n)
	e := state.Envelope{ProposedAt: 1_700_000_000_123, Command: value.Elem().Interface().(state.Command)}
	for i := range e.RequestID {
		e.RequestID[i] = byte(i + 1)
	}
	return e
}

func goldenFile(c state.Command) string {
	return filepath.Join(goldenDir, fmt.Sprintf("%03d_%s.bin", c.CommandType(), reflect.Indirect(reflect.ValueOf(c)).Type().Name()))
}

// The bytes are in logs on disks: what an older version wrote must read the same for ever.
func TestCommands_GoldenBytes(t *testing.T) {
	t.Parallel()
	for _, sample := range samples {
		e := filled(sample)
		got, err := state.Encode(e)
		if err != nil {
			t.Fatalf("encode %T: %v", e.Command, err)
		}
		if *update {
			if err := os.WriteFile(goldenFile(sample), got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(goldenFile(sample))
		if err != nil {
			t.Fatalf("no golden bytes of %T (make them with -update): %v", e.Command, err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%T encodes to other bytes than before:\n got %x\nwant %x", e.Command, got, want)
		}
		back, err := state.Decode(want)
		if err != nil {
			t.Fatalf("decode golden %T: %v", e.Command, err)
		}
		if !reflect.DeepEqual(back, e) {
			t.Errorf("golden %T decodes to %+v, want %+v", e.Command, back, e)
		}
	}
}

// Every Type… constant has a sample, hence golden bytes, and a decoder.
func TestCommands_AllHaveGoldenBytes(t *testing.T) {
	t.Parallel()
	file, err := parser.ParseFile(token.NewFileSet(), "command.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var declared []string
	for _, decl := range file.Decls {
		constants, ok := decl.(*ast.GenDecl)
		if !ok || constants.Tok != token.CONST {
			continue
		}
		for _, spec := range constants.Specs {
			for _, name := range spec.(*ast.ValueSpec).Names {
				if strings.HasPrefix(name.Name, "Type") {
					declared = append(declared, strings.TrimPrefix(name.Name, "Type"))
				}
			}
		}
	}
	sampled := map[string]bool{}
	numbers := map[uint16]bool{}
	for _, sample := range samples {
		sampled[reflect.TypeOf(sample).Elem().Name()] = true
		if numbers[sample.CommandType()] {
			t.Errorf("number %d is used twice", sample.CommandType())
		}
		numbers[sample.CommandType()] = true
	}
	for _, name := range declared {
		if !sampled[name] {
			t.Errorf("command %s has no sample and no golden bytes", name)
		}
	}
	types := state.CommandTypes()
	if len(declared) != len(types) || len(declared) != len(samples) {
		t.Errorf("%d commands declared, %d decoded, %d sampled", len(declared), len(types), len(samples))
	}
	for _, number := range types {
		if !numbers[number] {
			t.Errorf("command %d has a decoder and no sample", number)
		}
	}
}

func TestEncode_NilAndEmptyAreTheSame(t *testing.T) {
	t.Parallel()
	none, err := state.Encode(state.Envelope{Command: state.CreateKey{}})
	if err != nil {
		t.Fatal(err)
	}
	empty, err := state.Encode(state.Envelope{Command: state.CreateKey{
		Key: state.APIKey{Hash: []byte{}, Scopes: []string{}}, Audit: []state.AuditEvent{},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(none, empty) {
		t.Errorf("nil %x, empty %x", none, empty)
	}
	var scopes []string
	data, err := state.Encode(state.Envelope{Command: state.UpdateKey{Scopes: &scopes}})
	if err != nil {
		t.Fatal(err)
	}
	back, err := state.Decode(data)
	if err != nil {
		t.Fatal(err)
	}
	if back.Command.(state.UpdateKey).Scopes == nil {
		t.Error("setting no scopes came back as not setting the scopes")
	}
}

type unknownCommand struct{}

func (unknownCommand) CommandType() uint16 { return 9999 }

func TestEncode_Refuses(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		command state.Command
		want    error
	}{
		"nil":       {nil, state.ErrUnknownCommand},
		"unknown":   {unknownCommand{}, state.ErrUnknownCommand},
		"too large": {state.TouchKeys{Keys: make([]state.KeyUse, 20_000)}, state.ErrTooLarge},
	} {
		if _, err := state.Encode(state.Envelope{Command: test.command}); !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", name, err, test.want)
		}
	}
}

func TestDecode_Refuses(t *testing.T) {
	t.Parallel()
	good, err := state.Encode(state.Envelope{Command: state.Horizon{Until: 5, Leader: "n"}})
	if err != nil {
		t.Fatal(err)
	}
	header := good[:27]
	with := func(payload ...byte) []byte { return append(bytes.Clone(header), payload...) }
	change := func(at int, to byte) []byte {
		data := bytes.Clone(good)
		data[at] = to
		return data
	}
	for name, test := range map[string]struct {
		data []byte
		want error
	}{
		"empty":              {nil, state.ErrMalformed},
		"newer version":      {change(0, 2), state.ErrUnknownCommand},
		"newer type":         {change(1, 9), state.ErrUnknownCommand},
		"header only":        {header, state.ErrMalformed},
		"cut off":            {good[:len(good)-1], state.ErrMalformed},
		"trailing":           {append(bytes.Clone(good), 0), state.ErrMalformed},
		"unknown field":      {with(0xa1, 0x18, 0x63, 0x01), state.ErrMalformed},
		"duplicate key":      {with(0xa2, 0x01, 0x01, 0x01, 0x02), state.ErrMalformed},
		"indefinite length":  {with(0xbf, 0x01, 0x01, 0xff), state.ErrMalformed},
		"tag":                {with(0xc1, 0xa0), state.ErrMalformed},
		"deep":               {with(bytes.Repeat([]byte{0x81}, 100)...), state.ErrMalformed},
		"long array claimed": {with(0xa1, 0x01, 0x9b, 0, 0, 0, 0xff, 0, 0, 0, 0), state.ErrMalformed},
		"wrong type":         {with(0xa1, 0x01, 0x61, 'x'), state.ErrMalformed},
		"too large":          {make([]byte, state.MaxCommandSize+1), state.ErrTooLarge},
	} {
		if e, err := state.Decode(test.data); !errors.Is(err, test.want) {
			t.Errorf("%s: got %+v, %v, want %v", name, e, err, test.want)
		}
	}
}

func TestResult_RoundTrip(t *testing.T) {
	t.Parallel()
	var want state.Result
	var n int64
	fill(reflect.ValueOf(&want).Elem(), &n)
	data, err := state.EncodeResult(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := state.DecodeResult(data)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	data[0]++
	if _, err := state.DecodeResult(data); !errors.Is(err, state.ErrUnknownCommand) {
		t.Errorf("another version: %v", err)
	}
	for _, bad := range [][]byte{nil, {1}, append(bytes.Clone(data), 0)} {
		if len(bad) > 1 {
			bad[0] = 1
		}
		if _, err := state.DecodeResult(bad); !errors.Is(err, state.ErrMalformed) {
			t.Errorf("%x: %v", bad, err)
		}
	}
	if _, err := state.EncodeResult(state.Result{Replay: &state.Idempotency{SealedBody: make([]byte, state.MaxResultSize)}}); !errors.Is(err, state.ErrTooLarge) {
		t.Errorf("large result: %v", err)
	}
}

// Whatever decodes is a value that encodes, and from then on its bytes do not change.
func FuzzDecode(f *testing.F) {
	for _, sample := range samples {
		data, err := state.Encode(filled(sample))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := state.Decode(data)
		if err != nil {
			return
		}
		first, err := state.Encode(e)
		if errors.Is(err, state.ErrTooLarge) {
			return // shorter forms than the canonical ones do not exist, but nulls grow into empty slices
		}
		if err != nil {
			t.Fatalf("decoded %+v does not encode: %v", e, err)
		}
		again, err := state.Decode(first)
		if err != nil {
			t.Fatalf("encoded %+v does not decode: %v", e, err)
		}
		second, err := state.Encode(again)
		if err != nil || !bytes.Equal(first, second) {
			t.Fatalf("not stable: %x, then %x (%v)", first, second, err)
		}
	})
}

func FuzzDecodeResult(f *testing.F) {
	data, err := state.EncodeResult(state.Result{Refused: "x", Index: 5})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := state.DecodeResult(data)
		if err != nil {
			return
		}
		if _, err := state.EncodeResult(r); err != nil && !errors.Is(err, state.ErrTooLarge) {
			t.Fatalf("decoded %+v does not encode: %v", r, err)
		}
	})
}

func TestScopeAllows(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		granted string
		need    string
		want    bool
	}{
		{"", "events:read", false},
		{"events:read", "events:read", true},
		{"events:read", "events:write", false},
		{"events:*", "events:write", true},
		{"events:*", "events:*", true},
		{"events:read", "events:*", false},
		{"events:*", "eventsx:read", false},
		{"events:*", "events", false},
		{"events:*", "events:", false},
		{"events:*", "*", false},
		{"*", "events:write", true},
		{"*", "*", true},
		{"*", "", false},
		{":*", ":x", false},
		{"triggers:read events:*", "events:read", true},
		{"api-keys:manage", "api-keys:manage:all", false},
	} {
		if got := state.ScopeAllows(strings.Fields(test.granted), test.need); got != test.want {
			t.Errorf("granted %q, need %q: got %v, want %v", test.granted, test.need, got, test.want)
		}
	}
	if !state.ScopeCovers([]string{"a:*", "b:x"}, []string{"a:1", "a:*", "b:x"}) || state.ScopeCovers([]string{"a:*"}, []string{"a:1", "b:x"}) || !state.ScopeCovers(nil, nil) {
		t.Error("ScopeCovers")
	}
}
