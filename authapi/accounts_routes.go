package authapi

// accountRoutes are the rows of the accounts: sign-in, sessions, organizations, keys, audit log and signing keys.
func (s *Server) accountRoutes() []route {
	return nil
}
