// Package grpcapi is what proxies and services reach over gRPC: Envoy's rate-limit service
// (envoy.service.ratelimit.v3.RateLimitService), its external authorization (envoy.service.auth.v3.Authorization),
// Gubernator's API (pb.gubernator.V1) and the health service (grpc.health.v1.Health). Start with [New] and [Server.Serve].
//
// It translates: every decision is one of authapi.Server's, the same that HTTP gets. Whoever may call is believed about the
// requests that it describes and the descriptors that it sends, so the listener is for proxies and services alone: by a token, by
// certificates of the clients, or by the network that it is in.
package grpcapi
