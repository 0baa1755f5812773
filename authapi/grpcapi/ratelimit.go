package grpcapi

import (
	"context"
	"math"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"sluice/authapi"
	"sluice/limiter"
)

// rateLimits is envoy.service.ratelimit.v3.RateLimitService.
type rateLimits struct {
	ratelimitv3.UnimplementedRateLimitServiceServer
	server *Server
}

// ShouldRateLimit implements the service.
func (r *rateLimits) ShouldRateLimit(_ context.Context, req *ratelimitv3.RateLimitRequest) (*ratelimitv3.RateLimitResponse, error) {
	list := make([]authapi.Descriptor, 0, min(len(req.GetDescriptors()), authapi.MaxDescriptors+1))
	hits := int64(max(req.GetHitsAddend(), 1))
	for i, from := range req.GetDescriptors() {
		if i > authapi.MaxDescriptors {
			break // too many already, which LimitDescriptors says
		}
		d, err := descriptorOf(from, hits)
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "descriptors[%d].%v", i, err)
		}
		list = append(list, d)
	}
	statuses, over, err := r.server.api.LimitDescriptors(req.GetDomain(), list)
	if err != nil {
		return nil, r.server.failure("ShouldRateLimit", err)
	}
	out := &ratelimitv3.RateLimitResponse{
		OverallCode: ratelimitv3.RateLimitResponse_OK,
		Statuses:    make([]*ratelimitv3.RateLimitResponse_DescriptorStatus, len(statuses)),
	}
	if over {
		out.OverallCode = ratelimitv3.RateLimitResponse_OVER_LIMIT
	}
	for i := range statuses {
		out.Statuses[i] = statusOf(&statuses[i])
	}
	if !r.server.cfg.NoHeaders {
		for _, h := range r.server.api.DescriptorHeaders(statuses) {
			out.ResponseHeadersToAdd = append(out.ResponseHeadersToAdd, &corev3.HeaderValue{Key: h.Name, Value: h.Value})
		}
	}
	return out, nil
}

// fieldError names a field of a descriptor and says what is wrong with it.
type fieldError string

func (e fieldError) Error() string { return string(e) }

// descriptorOf translates a descriptor. hits is what the request adds for those that do not say.
func descriptorOf(from *commonv3.RateLimitDescriptor, hits int64) (authapi.Descriptor, error) {
	d := authapi.Descriptor{Cost: hits, Entries: make([]authapi.DescriptorEntry, 0, min(len(from.GetEntries()), authapi.MaxEntries+1))}
	if from.GetIsNegativeHits() {
		return d, fieldError("is_negative_hits must not be set: what was spent is not given back")
	}
	if own := from.GetHitsAddend(); own != nil {
		d.Cost = int64(min(own.GetValue(), math.MaxInt64)) // LimitDescriptors has a lower bound
	}
	for i, e := range from.GetEntries() {
		if i > authapi.MaxEntries {
			break
		}
		d.Entries = append(d.Entries, authapi.DescriptorEntry{Key: e.GetKey(), Value: e.GetValue()})
	}
	if own := from.GetLimit(); own != nil {
		seconds := unitSeconds[own.GetUnit()]
		if seconds == 0 {
			return d, fieldError("limit.unit must be SECOND, MINUTE, HOUR, DAY or MONTH")
		}
		if m := own.GetUnitMultiplier(); m != nil {
			if m.GetValue() == 0 {
				return d, fieldError("limit.unit_multiplier must be at least 1")
			}
			seconds *= int64(m.GetValue())
		}
		d.Limit = &limiter.Rule{Limit: int64(own.GetRequestsPerUnit()), Window: seconds, Algorithm: limiter.SlidingWindow}
	}
	return d, nil
}

// unitSeconds are the units of limits that descriptors bring along; a month has 30 days. A year is longer than any window.
var unitSeconds = map[typev3.RateLimitUnit]int64{
	typev3.RateLimitUnit_SECOND: 1, typev3.RateLimitUnit_MINUTE: 60, typev3.RateLimitUnit_HOUR: 3600, typev3.RateLimitUnit_DAY: 86400,
	typev3.RateLimitUnit_MONTH: 30 * 86400,
}

// statusOf is what Envoy is told of a descriptor.
func statusOf(st *authapi.DescriptorStatus) *ratelimitv3.RateLimitResponse_DescriptorStatus {
	out := &ratelimitv3.RateLimitResponse_DescriptorStatus{Code: ratelimitv3.RateLimitResponse_OK}
	if st.Policy == "" {
		return out
	}
	if st.Over() {
		out.Code = ratelimitv3.RateLimitResponse_OVER_LIMIT
	}
	out.CurrentLimit = limitOf(st)
	out.LimitRemaining = clamp(st.Remaining)
	out.DurationUntilReset = durationpb.New(time.Duration(st.ResetIn) * time.Second)
	return out
}

// limitOf says a limit in Envoy's units. A window that is no unit is several of the greatest that divides it.
func limitOf(st *authapi.DescriptorStatus) *ratelimitv3.RateLimitResponse_RateLimit {
	out := &ratelimitv3.RateLimitResponse_RateLimit{Name: st.Policy, RequestsPerUnit: clamp(st.Rule.Limit)}
	for _, u := range []struct {
		seconds int64
		unit    ratelimitv3.RateLimitResponse_RateLimit_Unit
	}{
		{7 * 86400, ratelimitv3.RateLimitResponse_RateLimit_WEEK}, {86400, ratelimitv3.RateLimitResponse_RateLimit_DAY},
		{3600, ratelimitv3.RateLimitResponse_RateLimit_HOUR}, {60, ratelimitv3.RateLimitResponse_RateLimit_MINUTE},
		{1, ratelimitv3.RateLimitResponse_RateLimit_SECOND},
	} {
		if st.Rule.Window%u.seconds != 0 {
			continue
		}
		out.Unit = u.unit
		if n := st.Rule.Window / u.seconds; n > 1 {
			out.UnitMultiplier = wrapperspb.UInt32(uint32(n))
		}
		break
	}
	return out
}

func clamp(n int64) uint32 { return uint32(min(max(n, 0), math.MaxUint32)) }
