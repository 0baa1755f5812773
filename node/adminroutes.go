package node

import (
	"io"
	"net/http"
	"slices"
)

// adminRoute is one call of the admin listener. What is not in the table is not served.
type adminRoute struct {
	pattern string // "METHOD /path", as http.ServeMux takes it
	role    adminRole
	handler http.Handler
}

// routes is the one table of the listener. What changes something, or shows what opens or undoes something (a backup holds all
// hashes, an export everybody's address, a profile the memory), is for adminOperate.
func (a *adminServer) routes() []adminRoute {
	return slices.Concat([]adminRoute{
		{"GET /livez", adminOpen, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })},
		{"GET /readyz", adminOpen, http.HandlerFunc(a.readyz)},
		{"GET /metrics", adminOpen, http.HandlerFunc(a.metrics)},

		{"GET /v1/cluster", adminRead, a.read(a.cluster)},
		{"POST /v1/cluster/remove", adminOperate, adminChange(a, a.removeNode)},
		{"POST /v1/cluster/promote", adminOperate, adminChange(a, a.promoteNode)},
		{"POST /v1/cluster/demote", adminOperate, adminChange(a, a.demoteNode)},
		{"POST /v1/cluster/transfer-leader", adminOperate, adminChange(a, a.transferLeader)},
		{"POST /v1/cluster/rotate-signing-key", adminOperate, adminChangeOf(a, a.rotateSigningKey)},

		{"GET /v1/limits/explain", adminRead, a.read(a.explainGet)},
		{"POST /v1/limits/explain", adminRead, adminChange(a, a.explainPost)},
		{"POST /v1/limits/reset", adminOperate, adminChange(a, a.resetLimits)},

		{"GET /v1/settings", adminRead, a.read(a.settingsNow)},
		{"GET /v1/settings/versions", adminRead, a.read(a.settingsVersions)},
		{"GET /v1/settings/versions/{version}", adminRead, a.read(a.settingsVersion)},
		{"POST /v1/settings/check", adminRead, adminChangeUpTo(a, maxSettingsBody, a.checkSettings)},
		{"PUT /v1/settings", adminOperate, adminChangeUpTo(a, maxSettingsBody, a.putSettings)},
		{"POST /v1/settings/rollback", adminOperate, adminChangeOf(a, a.rollBackSettings)},

		{"GET /v1/users/{user}", adminRead, a.read(a.findUser)},
		{"POST /v1/users/{user}/disable", adminOperate, adminChangeOf(a, a.setUserDisabled(true))},
		{"POST /v1/users/{user}/enable", adminOperate, adminChangeOf(a, a.setUserDisabled(false))},
		{"POST /v1/users/{user}/password", adminOperate, adminChangeOf(a, a.setOneTimePassword)},
		{"POST /v1/organizations/{organization}/plan", adminOperate, adminChangeOf(a, a.setPlan)},
		{"GET /v1/audit", adminRead, a.read(a.auditLog)},

		{"GET /v1/secrets", adminRead, a.read(a.secretsStatus)},
		{"POST /v1/secrets/rotate", adminOperate, adminChangeOf(a, a.rotateSecrets)},

		{"GET /v1/contents", adminRead, http.HandlerFunc(a.contents)},
		{"GET /v1/backup", adminOperate, http.HandlerFunc(a.backup)},
		{"POST /v1/restore", adminOperate, http.HandlerFunc(a.restore)},
		{"GET /v1/export", adminOperate, http.HandlerFunc(a.export)},
		{"POST /v1/import", adminOperate, http.HandlerFunc(a.importLines)},

		// Who may call nothing is not told what there is.
		{"/v1/", adminRead, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			a.refuse(w, adminProblem(http.StatusNotFound, "not_found", "there is no "+r.Method+" of this path"))
		})},
	}, a.keyringRoutes(), a.profiles())
}

// serveRoutes gives the mux the routes, each behind its role.
func (a *adminServer) serveRoutes(mux *http.ServeMux, routes []adminRoute) {
	for _, route := range routes {
		mux.HandleFunc(route.pattern, func(w http.ResponseWriter, r *http.Request) {
			if p := a.access.check(r, route.role); p != nil {
				a.refuse(w, p)
				return
			}
			route.handler.ServeHTTP(w, r)
		})
	}
}

func (a *adminServer) metrics(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	if a.node.writeMetrics(w) != nil {
		return // the scraper has gone
	}
	if err := writeProcessMetrics(w); err != nil {
		a.node.log.Debug("metrics are incomplete", "component", "admin", "error", err)
	}
}
