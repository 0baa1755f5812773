package grpcapi_test

import (
	"encoding/json"
	"os"
	"regexp"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3" // types that the document names
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ratelimit/v3"
	managerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"github.com/pb33f/go-yaml"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
)

// What docs/envoy.md says to Envoy is valid by Envoy's own messages and their rules.
func TestDocument_IsWhatEnvoyTakes(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../../docs/envoy.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)\n```yaml\n(.*?)\n```\n").FindAllSubmatch(doc, -1)
	if len(blocks) != 4 {
		t.Fatalf("%d blocks of YAML, want 4", len(blocks))
	}
	read := func(i int) any {
		var v any
		if err := yaml.Unmarshal(blocks[i][1], &v); err != nil {
			t.Fatalf("block %d: %v", i, err)
		}
		return v
	}
	for i, m := range []struct {
		value any
		into  proto.Message
	}{
		{read(0).(map[string]any)["clusters"].([]any)[0], &clusterv3.Cluster{}},
		{read(1).(map[string]any)["http_filters"].([]any)[0], &managerv3.HttpFilter{}},
		{read(2).([]any)[0], &managerv3.HttpFilter{}},
		{map[string]any{"match": map[string]any{"prefix": "/"}, "direct_response": map[string]any{"status": 200}, "typed_per_filter_config": read(3).(map[string]any)["typed_per_filter_config"]}, &routev3.Route{}},
	} {
		text, err := json.Marshal(m.value)
		if err != nil {
			t.Fatal(err)
		}
		if err := protojson.Unmarshal(text, m.into); err != nil {
			t.Errorf("block %d: %v", i, err)
			continue
		}
		valid(t, m.into)
	}
}

// valid holds a message and all that is packed into it against the rules that Envoy has for them.
func valid(t *testing.T, m proto.Message) {
	t.Helper()
	if v, ok := m.(interface{ ValidateAll() error }); ok {
		if err := v.ValidateAll(); err != nil {
			t.Errorf("%T: %v", m, err)
		}
	}
	var walk func(protoreflect.Message)
	walk = func(m protoreflect.Message) {
		if packed, ok := m.Interface().(*anypb.Any); ok {
			inner, err := packed.UnmarshalNew()
			if err != nil {
				t.Errorf("%s: %v", packed.GetTypeUrl(), err)
				return
			}
			valid(t, inner)
			return
		}
		m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			switch {
			case f.IsMap() && f.MapValue().Message() != nil:
				v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool { walk(v.Message()); return true })
			case f.IsList() && f.Message() != nil:
				for i := range v.List().Len() {
					walk(v.List().Get(i).Message())
				}
			case f.Message() != nil && !f.IsMap():
				walk(v.Message())
			}
			return true
		})
	}
	walk(m.ProtoReflect())
}
