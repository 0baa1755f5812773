// Package check holds the examples in deploy/ to the definitions of those who read them: Envoy's protobuf messages, Kubernetes' types and
// BuildKit's parser. It is a module of its own, so that their dependencies are not Sluice's. What nginx, HAProxy, Caddy and systemd read is
// checked with these themselves, in cmd/sluice/systemtest.
package check
