package node

import (
	"net"
	"net/http"

	"sluice/authapi"
)

// The calls about users, organizations, signing keys and the audit log. What they do and refuse is authapi's; these are
// their ways in.

func (a *adminServer) findUser(r *http.Request) (any, error) {
	return a.node.api.FindUser(r.PathValue("user"))
}

func (a *adminServer) setUserDisabled(disabled bool) func(r *http.Request, in UserStateRequest) (any, error) {
	return func(r *http.Request, in UserStateRequest) (any, error) {
		return a.node.api.SetUserDisabled(r.Context(), operatorOf(r), r.PathValue("user"), disabled, in.Note)
	}
}

func (a *adminServer) setOneTimePassword(r *http.Request, _ struct{}) (any, error) {
	return a.node.api.SetOneTimePassword(r.Context(), operatorOf(r), r.PathValue("user"))
}

func (a *adminServer) setPlan(r *http.Request, in PlanRequest) (any, error) {
	if in.Plan == nil {
		return nil, adminProblem(http.StatusUnprocessableEntity, "invalid_input", `plan is required; "" takes the plan away`)
	}
	return a.node.api.SetPlan(r.Context(), operatorOf(r), r.PathValue("organization"), *in.Plan)
}

func (a *adminServer) rotateSigningKey(r *http.Request, _ struct{}) (any, error) {
	return a.node.api.RotateSigningKey(r.Context(), operatorOf(r))
}

func (a *adminServer) auditLog(r *http.Request) (any, error) {
	return a.node.api.AuditLog(r.URL.Query().Get)
}

// UserStateRequest is the body of POST /v1/users/{user}/disable and …/enable.
type UserStateRequest struct {
	Note string `json:"note,omitempty"` // for the audit log, at most 500 bytes
}

// PlanRequest is the body of POST /v1/organizations/{organization}/plan.
type PlanRequest struct {
	Plan *string `json:"plan"` // of the configuration; "" for none
}

// operatorOf is the caller as the audit log has it. Who holds a token is not known more closely than by address, and who is
// on the Unix socket not at all.
func operatorOf(r *http.Request) authapi.Operator {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = ""
	}
	return authapi.Operator{Address: host, UserAgent: r.UserAgent()}
}
