package authapi

import "bytes"

// Keys that were imported come from programs with forms of their own. One is told from a token by how it begins, as
// AuthConfig.ImportedKeyPrefixes says, and known by its hash like any other.
const (
	importedKeyMin = 16 // bytes; a shorter one could be guessed
	importedKeyMax = 512
)

// meantAsKey says whether a credential is meant as an API key rather than as a JWT, well-formed or not.
func (s *Server) meantAsKey(b []byte) bool { return looksLikeKey(b) || s.importedForm(b) }

// wellFormedKey says whether a credential can be an API key, without a look-up.
func (s *Server) wellFormedKey(b []byte) bool {
	return validAPIKey(b) || s.importedForm(b) && len(b) >= importedKeyMin && len(b) <= importedKeyMax
}

func (s *Server) importedForm(b []byte) bool {
	for _, prefix := range s.importedPrefixes {
		if bytes.HasPrefix(b, prefix) {
			return true
		}
	}
	return false
}
