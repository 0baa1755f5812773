// Package authtest has what tests of package authapi and of its users put in the place of a cluster: [Cluster], an
// in-memory replicated state of one node that is its own leader, [Limits], a limiter without a ledger, [Sealer], and
// [Clock]. They keep the contracts of authapi's interfaces, in the simplest way there is.
//
// It imports authapi, so tests that use it are in package authapi_test; what they need of authapi's inside goes through
// authapi's export_test.go.
package authtest
