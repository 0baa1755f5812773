package systemtest

import (
	"debug/elf"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/pb33f/go-yaml"
)

func readDeploy(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "deploy", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestDeploy_SystemdUnit lets systemd read the unit, and rate how much it leaves the service.
func TestDeploy_SystemdUnit(t *testing.T) {
	t.Parallel()
	program := needProgram(t, "systemd-analyze")
	unit := filepath.Join(t.TempDir(), "sluice.service")
	text := strings.ReplaceAll(readDeploy(t, "systemd/sluice.service"), "/usr/local/bin/sluice", binary) // which it looks for
	if err := os.WriteFile(unit, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	// Without an error it says nothing; of what it does not know it warns only.
	if out, err := exec.Command(program, "verify", unit).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	out, err := exec.Command(program, "security", "--offline=true", "--threshold=15", "--no-pager", unit).CombinedOutput()
	if err != nil {
		t.Errorf("more than 1.5 of exposure: %v\n%s", err, out)
	}
	if line := regexp.MustCompile("Overall exposure level.*").Find(out); line != nil {
		t.Logf("%s", line)
	}
}

// TestDeploy_DockerBuild runs the build step of the Dockerfile, which has to make a program that needs nothing else of an image.
func TestDeploy_DockerBuild(t *testing.T) {
	t.Parallel()
	m := regexp.MustCompile(`(?m)^RUN (CGO_ENABLED=0 go build .*) -o /out/sluice (\S+)$`).FindStringSubmatch(readDeploy(t, "Dockerfile"))
	if m == nil {
		t.Fatal("the Dockerfile has no such step")
	}
	made := filepath.Join(t.TempDir(), "sluice")
	build := exec.Command("sh", "-c", m[1]+" -o "+made+" "+m[2])
	build.Dir = filepath.Join("..", "..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	file, err := elf.Open(made)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, p := range file.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Error("the program is not static")
		}
	}
	// Nothing of this machine's, and no working directory but an empty one.
	cmd := exec.Command(made, "version")
	cmd.Env, cmd.Dir = []string{}, t.TempDir()
	if out, err := cmd.CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "sluice ") {
		t.Errorf("%v, %s", err, out)
	}
}

// TestDeploy_KubernetesConfiguration checks the node's file in the manifests, with the environment that a pod gives it.
func TestDeploy_KubernetesConfiguration(t *testing.T) {
	t.Parallel()
	type object struct {
		Kind string
		Data map[string]string
		Spec struct {
			Template struct {
				Spec struct {
					Containers []struct {
						Args []string
						Env  []struct {
							Name, Value string
							From        struct {
								Secret *struct{ Key string } `yaml:"secretKeyRef"`
							} `yaml:"valueFrom"`
						}
					}
				}
			}
		}
	}
	var file string
	var set object
	for document := range strings.SplitSeq(readDeploy(t, "kubernetes/sluice.yaml"), "\n---\n") {
		var o object
		if err := yaml.Unmarshal([]byte(document), &o); err != nil {
			t.Fatal(err)
		}
		switch o.Kind {
		case "ConfigMap":
			file = o.Data["node.toml"]
		case "StatefulSet":
			set = o
		}
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "node.toml")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	environment := cleanEnvironment()
	pod := []string{"$(POD_NAME)", "sluice-1", "$(POD_NAMESPACE)", "sluice", "$(POD_IP)", "10.1.2.3"}
	if len(set.Spec.Template.Spec.Containers) != 1 {
		t.Fatal("no container")
	}
	for _, e := range set.Spec.Template.Spec.Containers[0].Env {
		value := strings.NewReplacer(pod...).Replace(e.Value)
		if e.From.Secret != nil {
			out, err := exec.Command(binary, "secret", "new").Output()
			if err != nil {
				t.Fatal(err)
			}
			value = strings.TrimSpace(string(out))
		}
		environment = append(environment, e.Name+"="+value)
	}
	check := exec.Command(binary, "config", "check", "--config", path)
	check.Env = environment
	if out, err := check.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	// The same with a variable that is none says no: the check does look.
	check = exec.Command(binary, "config", "check", "--config", path)
	check.Env = append(environment, "SLUICE_PORT=tcp://10.0.0.1:8080")
	var exit *exec.ExitError
	if err := check.Run(); !errors.As(err, &exit) || exit.ExitCode() != 2 {
		t.Errorf("a variable of Kubernetes' own: %v", err)
	}
}
