package node

import (
	"net"
	"net/http"

	"sluice/authapi"
)

// accounts adds the calls about users, organizations, signing keys and the audit log. What they do and refuse is
// authapi's; this is their way in.
func (a *adminServer) accounts(mux *http.ServeMux) {
	mux.Handle("GET /v1/users/{user}", a.read(func(r *http.Request) (any, error) {
		return a.node.api.FindUser(r.PathValue("user"))
	}))
	for _, call := range []struct {
		name     string
		disabled bool
	}{{"disable", true}, {"enable", false}} {
		mux.Handle("POST /v1/users/{user}/"+call.name, adminChangeOf(a, func(r *http.Request, in UserStateRequest) (any, error) {
			return a.node.api.SetUserDisabled(r.Context(), operatorOf(r), r.PathValue("user"), call.disabled, in.Note)
		}))
	}
	mux.Handle("POST /v1/users/{user}/password", adminChangeOf(a, func(r *http.Request, _ struct{}) (any, error) {
		return a.node.api.SetOneTimePassword(r.Context(), operatorOf(r), r.PathValue("user"))
	}))
	mux.Handle("POST /v1/organizations/{organization}/plan", adminChangeOf(a, func(r *http.Request, in PlanRequest) (any, error) {
		if in.Plan == nil {
			return nil, adminProblem(http.StatusUnprocessableEntity, "invalid_input", `plan is required; "" takes the plan away`)
		}
		return a.node.api.SetPlan(r.Context(), operatorOf(r), r.PathValue("organization"), *in.Plan)
	}))
	mux.Handle("POST /v1/cluster/rotate-signing-key", adminChangeOf(a, func(r *http.Request, _ struct{}) (any, error) {
		return a.node.api.RotateSigningKey(r.Context(), operatorOf(r))
	}))
	mux.Handle("GET /v1/audit", a.read(func(r *http.Request) (any, error) {
		return a.node.api.AuditLog(r.URL.Query().Get)
	}))
}

// UserStateRequest is the body of POST /v1/users/{user}/disable and …/enable.
type UserStateRequest struct {
	Note string `json:"note,omitempty"` // for the audit log, at most 500 bytes
}

// PlanRequest is the body of POST /v1/organizations/{organization}/plan.
type PlanRequest struct {
	Plan *string `json:"plan"` // of the configuration; "" for none
}

// operatorOf is the caller as the audit log has it. Who holds the token is not known more closely than by address.
func operatorOf(r *http.Request) authapi.Operator {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = ""
	}
	return authapi.Operator{Address: host, UserAgent: r.UserAgent()}
}
