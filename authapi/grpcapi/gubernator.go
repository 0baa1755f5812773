package grpcapi

import (
	"context"

	"sluice/authapi/gubernatorpb"
)

// gubernator is pb.gubernator.V1.
type gubernator struct {
	gubernatorpb.UnimplementedV1Server
	server *Server
}

// GetRateLimits implements the service.
func (g *gubernator) GetRateLimits(ctx context.Context, req *gubernatorpb.GetRateLimitsReq) (*gubernatorpb.GetRateLimitsResp, error) {
	resp, err := g.server.api.GetRateLimits(ctx, "", req)
	if err != nil {
		return nil, g.server.failure("GetRateLimits", err)
	}
	return resp, nil
}

// HealthCheck implements the service.
func (g *gubernator) HealthCheck(context.Context, *gubernatorpb.HealthCheckReq) (*gubernatorpb.HealthCheckResp, error) {
	return g.server.api.GubernatorHealth(), nil
}
