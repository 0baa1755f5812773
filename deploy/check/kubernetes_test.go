package check_test

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	"sigs.k8s.io/yaml"
)

// manifests are what deploy/kubernetes has, strictly decoded.
type manifests struct {
	accounts map[string]core.ServiceAccount
	configs  map[string]core.ConfigMap
	services map[string]core.Service
	sets     map[string]apps.StatefulSet
	budgets  map[string]policy.PodDisruptionBudget
	policies map[string]networking.NetworkPolicy
}

func decode[T any](t *testing.T, text []byte, into map[string]T) {
	t.Helper()
	var head struct{ Metadata struct{ Name string } }
	if err := yaml.Unmarshal(text, &head); err != nil {
		t.Fatal(err)
	}
	var v T
	if err := yaml.UnmarshalStrict(text, &v); err != nil {
		t.Errorf("%s: %v", head.Metadata.Name, err)
	}
	if _, twice := into[head.Metadata.Name]; twice {
		t.Errorf("%s is there twice", head.Metadata.Name)
	}
	into[head.Metadata.Name] = v
}

func readManifests(t *testing.T) manifests {
	t.Helper()
	text, err := os.ReadFile("../kubernetes/sluice.yaml")
	if err != nil {
		t.Fatal(err)
	}
	m := manifests{map[string]core.ServiceAccount{}, map[string]core.ConfigMap{}, map[string]core.Service{}, map[string]apps.StatefulSet{},
		map[string]policy.PodDisruptionBudget{}, map[string]networking.NetworkPolicy{}}
	for document := range bytes.SplitSeq(text, []byte("\n---\n")) {
		var head struct {
			APIVersion, Kind string
			Metadata         struct{ Namespace string }
		}
		if err := yaml.Unmarshal(document, &head); err != nil {
			t.Fatal(err)
		}
		switch kind := head.APIVersion + " " + head.Kind; kind {
		case " ": // comments alone
			continue
		case "v1 ServiceAccount":
			decode(t, document, m.accounts)
		case "v1 ConfigMap":
			decode(t, document, m.configs)
		case "v1 Service":
			decode(t, document, m.services)
		case "apps/v1 StatefulSet":
			decode(t, document, m.sets)
		case "policy/v1 PodDisruptionBudget":
			decode(t, document, m.budgets)
		case "networking.k8s.io/v1 NetworkPolicy":
			decode(t, document, m.policies)
		default:
			t.Errorf("a %s, which nothing here checks", kind)
		}
		if head.Metadata.Namespace != "sluice" {
			t.Errorf("a %s in the namespace %q", head.Kind, head.Metadata.Namespace)
		}
	}
	return m
}

// TestKubernetes looks whether the objects fit together, which no schema says.
func TestKubernetes(t *testing.T) {
	m := readManifests(t)
	set, ok := m.sets["sluice"]
	if !ok {
		t.Fatal("no StatefulSet")
	}
	labels := set.Spec.Template.Labels
	selects := func(what string, selector map[string]string) {
		t.Helper()
		for k, v := range selector {
			if labels[k] != v {
				t.Errorf("%s selects %s=%s, and the pods have %v", what, k, v, labels)
			}
		}
		if len(selector) == 0 {
			t.Errorf("%s selects everything", what)
		}
	}
	selects("the StatefulSet", set.Spec.Selector.MatchLabels)
	selects("the PodDisruptionBudget", m.budgets["sluice"].Spec.Selector.MatchLabels)
	selects("the NetworkPolicy", m.policies["sluice"].Spec.PodSelector.MatchLabels)
	if b := m.budgets["sluice"].Spec.MaxUnavailable; b == nil || b.IntValue() != 1 {
		t.Error("more than one node may be taken away at a time")
	}
	pod := set.Spec.Template.Spec
	if len(pod.Containers) != 1 {
		t.Fatalf("%d containers", len(pod.Containers))
	}
	c := pod.Containers[0]
	ports := make(map[string]core.ContainerPort)
	for _, p := range c.Ports {
		ports[p.Name] = p
	}
	for name, s := range m.services {
		selects("the Service "+name, s.Spec.Selector)
		for _, p := range s.Spec.Ports {
			target, ok := ports[p.TargetPort.StrVal]
			if protocol := cmp.Or(p.Protocol, core.ProtocolTCP); !ok || protocol != cmp.Or(target.Protocol, core.ProtocolTCP) {
				t.Errorf("the port %s of the Service %s goes to %v, which the container does not have", p.Name, name, p.TargetPort)
			}
		}
	}
	headless := m.services[set.Spec.ServiceName]
	if headless.Spec.ClusterIP != core.ClusterIPNone || !headless.Spec.PublishNotReadyAddresses {
		t.Errorf("the Service %q of the StatefulSet does not name pods that are not ready", set.Spec.ServiceName)
	}
	if set.Spec.PodManagementPolicy != apps.ParallelPodManagement {
		t.Error("the first pod would wait for the others, and they for it")
	}
	if _, ok := m.accounts[pod.ServiceAccountName]; !ok {
		t.Errorf("no ServiceAccount %q", pod.ServiceAccountName)
	}

	file := m.configs[pod.Volumes[0].ConfigMap.Name].Data["node.toml"]
	for i := range int(*set.Spec.Replicas) {
		member := fmt.Sprintf("%q", fmt.Sprintf("%s-%d.%s.%s.svc.cluster.local:7100", "sluice", i, set.Spec.ServiceName, "sluice"))
		if !strings.Contains(file, member) {
			t.Errorf("%s is no initial member", member)
		}
	}
	if strings.Count(file, "\"sluice-") != int(*set.Spec.Replicas)+1 {
		t.Error("there are other initial members than pods")
	}
	if want := fmt.Sprintf("join = [\"%s.%s.svc.cluster.local:7100\"]", set.Spec.ServiceName, headless.Namespace); !strings.Contains(file, want) {
		t.Errorf("pods beyond the first do not join by the headless Service: no %s", want)
	}
	environment := make(map[string]string)
	for _, e := range c.Env {
		environment[e.Name] = e.Value
	}
	if got := environment["SLUICE_PEER__ADVERTISE"]; got != "$(POD_NAME)."+set.Spec.ServiceName+".$(POD_NAMESPACE).svc.cluster.local:7100" {
		t.Errorf("a node advertises %q", got)
	}
	for _, name := range []string{"POD_NAME", "POD_NAMESPACE", "POD_IP", "SLUICE_SECRETS__CLUSTER", "SLUICE_SECRETS__KEY"} {
		if i := slices.IndexFunc(c.Env, func(e core.EnvVar) bool { return e.Name == name }); i < 0 || c.Env[i].ValueFrom == nil {
			t.Errorf("%s does not come from the pod or a secret", name)
		}
	}
	// A variable is replaced in those that follow it only.
	seen := make(map[string]bool)
	for _, e := range c.Env {
		for rest := e.Value; ; {
			_, after, ok := strings.Cut(rest, "$(")
			if !ok {
				break
			}
			name, tail, _ := strings.Cut(after, ")")
			if !seen[name] {
				t.Errorf("%s uses %s, which comes later", e.Name, name)
			}
			rest = tail
		}
		seen[e.Name] = true
	}

	for what, probe := range map[string]*core.Probe{"/livez": c.LivenessProbe, "/livez ": c.StartupProbe, "/readyz": c.ReadinessProbe} {
		if probe == nil || probe.HTTPGet == nil || probe.HTTPGet.Path != strings.TrimSpace(what) || ports[probe.HTTPGet.Port.StrVal].ContainerPort != 8080 {
			t.Errorf("no probe of %s on the public port", what)
		}
	}
	mounts := make(map[string]string)
	for _, v := range c.VolumeMounts {
		mounts[v.Name] = v.MountPath
	}
	volumes := map[string]bool{}
	for _, v := range pod.Volumes {
		volumes[v.Name] = true
	}
	for _, v := range set.Spec.VolumeClaimTemplates {
		volumes[v.Name] = true
	}
	if got := slices.Sorted(maps.Keys(mounts)); !slices.Equal(got, slices.Sorted(maps.Keys(volumes))) {
		t.Errorf("mounts of %v, volumes %v", got, volumes)
	}
	if mounts["data"] != "/var/lib/sluice" || !strings.Contains(file, `data_dir = "/var/lib/sluice"`) || mounts["config"] != "/etc/sluice" || !slices.Contains(c.Args, "/etc/sluice/node.toml") {
		t.Errorf("data and configuration are elsewhere: %v", mounts)
	}

	if s := pod.SecurityContext; s == nil || s.RunAsNonRoot == nil || !*s.RunAsNonRoot || s.RunAsUser == nil || *s.RunAsUser == 0 || s.FSGroup == nil || s.SeccompProfile == nil {
		t.Error("the pod may run as root")
	}
	if s := c.SecurityContext; s == nil || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem || len(s.Capabilities.Drop) != 1 || s.Capabilities.Drop[0] != "ALL" {
		t.Error("the container has more rights than it needs")
	}
	if pod.EnableServiceLinks == nil || *pod.EnableServiceLinks {
		t.Error("Kubernetes would add variables that begin with SLUICE_ and are no settings")
	}
	if pod.TerminationGracePeriodSeconds == nil || *pod.TerminationGracePeriodSeconds < 30 {
		t.Error("a node has no time to drain")
	}
}
