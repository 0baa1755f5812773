package check_test

import (
	"os"
	"testing"

	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	extauthz "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3" // named in the example
	manager "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"sigs.k8s.io/yaml"
)

// TestEnvoy reads the example as Envoy does: unknown fields, wrong types and what its validation rules refuse are errors, inside of
// typed configurations too.
func TestEnvoy(t *testing.T) {
	text, err := os.ReadFile("../forward-auth/envoy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	asJSON, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		t.Fatal(err)
	}
	var b bootstrap.Bootstrap
	if err := protojson.Unmarshal(asJSON, &b); err != nil {
		t.Fatal(err)
	}
	if err := b.ValidateAll(); err != nil {
		t.Error(err)
	}
	var m manager.HttpConnectionManager
	if err := b.GetStaticResources().GetListeners()[0].GetFilterChains()[0].GetFilters()[0].GetTypedConfig().UnmarshalTo(&m); err != nil {
		t.Fatal(err)
	}
	if err := m.ValidateAll(); err != nil {
		t.Error(err)
	}
	var auth extauthz.ExtAuthz
	if err := m.GetHttpFilters()[0].GetTypedConfig().UnmarshalTo(&auth); err != nil {
		t.Fatal(err)
	}
	if err := auth.ValidateAll(); err != nil {
		t.Error(err)
	}
	clusters := make(map[string]bool)
	for _, c := range b.GetStaticResources().GetClusters() {
		clusters[c.GetName()] = true
		if c.GetName() == "sluice" && (len(c.GetLoadAssignment().GetEndpoints()[0].GetLbEndpoints()) != 3 || c.GetHealthChecks()[0].GetHttpHealthCheck().GetPath() != "/readyz") {
			t.Error("the cluster sluice is not three nodes that /readyz is asked of")
		}
	}
	service := auth.GetHttpService()
	if !clusters[service.GetServerUri().GetCluster()] || !clusters[m.GetRouteConfig().GetVirtualHosts()[0].GetRoutes()[0].GetRoute().GetCluster()] {
		t.Error("a cluster that is named is not there")
	}
	if auth.GetFailureModeAllow() || service.GetPathPrefix() != "/api/v1/auth/verify/envoy" || service.GetServerUri().GetTimeout().AsDuration() <= 0 {
		t.Error("the filter lets requests pass that were not checked, or asks elsewhere")
	}
}
