package authapi

// accountRoutes are the rows of the accounts: sign-in, sessions, keys, audit log and signing keys.
func (s *Server) accountRoutes() []route {
	return []route{
		{method: "POST", pattern: "/api/v1/auth/register", handle: handleRegister},
		{method: "POST", pattern: "/api/v1/auth/login", handle: handleLogin},
		{method: "POST", pattern: "/api/v1/auth/refresh", handle: handleRefresh},
		{method: "POST", pattern: "/api/v1/auth/logout", handle: handleLogout, auth: authJWT},
		{method: "POST", pattern: "/api/v1/auth/logout-all", handle: handleLogoutAll, auth: authJWT},
		{method: "GET", pattern: "/api/v1/auth/me", handle: handleMe, auth: authAny},
		{method: "DELETE", pattern: "/api/v1/auth/me", handle: handleDeleteMe, auth: authJWT},
		{method: "POST", pattern: "/api/v1/auth/password", handle: handlePassword, auth: authJWT},
		{method: "GET", pattern: "/api/v1/auth/sessions", handle: handleListSessions, auth: authJWT},
		{method: "DELETE", pattern: "/api/v1/auth/sessions/{id}", handle: handleEndSession, auth: authJWT},

		{method: "POST", pattern: "/api/v1/api-keys", handle: handleCreateKey, auth: authAny},
		{method: "GET", pattern: "/api/v1/api-keys", handle: handleListKeys, auth: authAny},
		{method: "GET", pattern: "/api/v1/api-keys/{id}", handle: handleGetKey, auth: authAny},
		{method: "PATCH", pattern: "/api/v1/api-keys/{id}", handle: handleUpdateKey, auth: authAny},
		{method: "DELETE", pattern: "/api/v1/api-keys/{id}", handle: handleDeleteKey, auth: authAny},
		{method: "POST", pattern: "/api/v1/api-keys/{id}/rotate", handle: handleRotateKey, auth: authAny},

		{method: "GET", pattern: "/api/v1/organizations/{id}/api-keys/stats", handle: handleKeyStats, auth: authAny},

		{method: "GET", pattern: "/api/v1/audit-logs", handle: handleAuditLog, auth: authAny},

		{method: "GET", pattern: "/.well-known/jwks.json", handle: handleJWKS, layer: layerDocuments},
		{method: "GET", pattern: "/.well-known/oauth-authorization-server", handle: handleMetadata, layer: layerDocuments},
	}
}
