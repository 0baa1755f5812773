package grpcapi

import (
	"context"
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sluice/authapi"
)

// authorization is envoy.service.auth.v3.Authorization.
type authorization struct {
	authv3.UnimplementedAuthorizationServer
	server *Server
}

// What an operator may set in Envoy's context_extensions of a route, as the query of the check over HTTP.
const (
	extensionScope     = "scope"     // several, separated by spaces
	extensionAnonymous = "anonymous" // "deny"
	extensionCost      = "cost"
)

// Check implements the service.
func (a *authorization) Check(_ context.Context, req *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	d, err := descriptionOf(req.GetAttributes())
	if err != nil {
		return nil, err
	}
	answer := a.server.api.CheckDescribed(d)
	switch {
	case answer.Status == http.StatusOK:
		return allowed(answer, a.server.api.IdentityHeaderNames()), nil
	case answer.Status >= http.StatusInternalServerError:
		// No decision: an error, for which Envoy has status_on_error and failure_mode_allow, and not a denial.
		return nil, status.Error(codes.Unavailable, "this node cannot decide now; nothing was spent")
	}
	return denied(answer), nil
}

// descriptionOf is the request that Envoy asks about.
func descriptionOf(from *authv3.AttributeContext) (*authapi.Description, error) {
	r := from.GetRequest().GetHttp()
	if r == nil {
		return nil, status.Error(codes.InvalidArgument, "attributes.request.http is missing: only requests of HTTP can be checked")
	}
	d := &authapi.Description{Method: r.GetMethod(), Host: r.GetHost(), Path: r.GetPath()}
	if addr, err := netip.ParseAddr(from.GetSource().GetAddress().GetSocketAddress().GetAddress()); err == nil {
		d.Source = addr.Unmap().WithZone("")
	}
	header := func(name, value string) {
		switch name = strings.ToLower(name); {
		case authapi.DescribedHeader(name):
			d.Headers = append(d.Headers, authapi.HeaderPair{Name: name, Value: value})
		case name == "x-request-id":
			d.RequestID = value
		}
	}
	for name, value := range r.GetHeaders() {
		header(name, value)
	}
	for _, h := range r.GetHeaderMap().GetHeaders() {
		if value := h.GetRawValue(); len(value) > 0 {
			header(h.GetKey(), string(value))
		} else {
			header(h.GetKey(), h.GetValue())
		}
	}
	extensions := from.GetContextExtensions()
	d.Scopes = strings.Fields(extensions[extensionScope])
	switch text := extensions[extensionAnonymous]; text {
	case "", "allow":
	case "deny":
		d.DenyAnonymous = true
	default:
		return nil, status.Errorf(codes.InvalidArgument, "context_extensions.anonymous must be deny or allow")
	}
	if text := extensions[extensionCost]; text != "" {
		cost, err := strconv.ParseInt(text, 10, 64)
		if err != nil || cost < 1 {
			return nil, status.Errorf(codes.InvalidArgument, "context_extensions.cost must be a number of at least 1")
		}
		d.Cost = cost
	}
	return d, nil
}

// allowed lets the request pass with the client's identity under names, and takes off what a client sent in its place.
func allowed(answer authapi.Answer, names []string) *authv3.CheckResponse {
	ok := &authv3.OkHttpResponse{}
	identity := map[string]string{}
	for _, name := range names {
		identity[name] = ""
	}
	for _, h := range answer.Headers {
		switch _, own := identity[h.Name]; {
		case own:
			identity[h.Name] = h.Value
		case limitHeader(h.Name):
			ok.ResponseHeadersToAdd = append(ok.ResponseHeadersToAdd, overwrite(h))
		}
	}
	for _, name := range names {
		if value := identity[name]; value != "" {
			ok.Headers = append(ok.Headers, overwrite(authapi.HeaderPair{Name: name, Value: value}))
		} else {
			ok.HeadersToRemove = append(ok.HeadersToRemove, name) // Envoy sets no empty header
		}
	}
	return &authv3.CheckResponse{
		Status:       &rpcstatus.Status{Code: int32(codes.OK)},
		HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: ok},
	}
}

// limitHeader says whether a header of a check that passes is for the client.
func limitHeader(name string) bool {
	return strings.HasPrefix(strings.ToLower(name), "x-ratelimit-") || name == "RateLimit" || name == "RateLimit-Policy"
}

// denied gives the client what it would get from the check over HTTP.
func denied(answer authapi.Answer) *authv3.CheckResponse {
	no := &authv3.DeniedHttpResponse{Status: &typev3.HttpStatus{Code: typev3.StatusCode(answer.Status)}, Body: string(answer.Body)}
	for _, h := range answer.Headers {
		no.Headers = append(no.Headers, overwrite(h))
	}
	return &authv3.CheckResponse{
		Status:       &rpcstatus.Status{Code: int32(codeOf(answer.Status))},
		HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: no},
	}
}

// codeOf is the code that means what a status of a denial does.
func codeOf(httpStatus int) codes.Code {
	switch httpStatus {
	case http.StatusUnauthorized:
		return codes.Unauthenticated
	case http.StatusTooManyRequests:
		return codes.ResourceExhausted
	case http.StatusBadRequest:
		return codes.InvalidArgument
	}
	return codes.PermissionDenied
}

func overwrite(h authapi.HeaderPair) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: h.Name, Value: h.Value},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}
