package authtest

import "sluice/authapi"

// HealthCheck is authapi's.
type HealthCheck = authapi.HealthCheck

var (
	_ authapi.State   = (*Cluster)(nil)
	_ authapi.Cluster = (*Cluster)(nil)
	_ authapi.Limits  = (*Limits)(nil)
	_ authapi.Sealer  = (*Sealer)(nil)
)
