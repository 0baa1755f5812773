package node

import (
	"fmt"
	"io"
	"maps"
	"reflect"

	"github.com/pelletier/go-toml/v2"
)

// Show writes the configuration as TOML, secrets masked. What it writes can be read again but for the secrets that were
// set as values.
func (c Config) Show(w io.Writer) error {
	// go-toml writes a text type as its bytes, whatever its MarshalText says.
	for _, secret := range []*Secret{&c.Secrets.Cluster, &c.Secrets.Key, &c.Secrets.PreviousKey, &c.Admin.Token, &c.Admin.ReadToken, &c.GRPC.Token} {
		*secret = Secret(secret.String())
	}
	c.OAuth.Providers = maps.Clone(c.OAuth.Providers) // the caller's keep their secrets
	for _, p := range c.oauthProviders() {
		p.ClientSecret = Secret(p.ClientSecret.String())
		p.put()
	}
	encoder := toml.NewEncoder(w)
	encoder.SetIndentTables(false)
	if err := encoder.Encode(c); err != nil {
		return fmt.Errorf("encode configuration: %w", err)
	}
	return nil
}

// Equal reports whether two configurations say the same, wherever they say it.
func (c Config) Equal(other Config) bool {
	c.origins, other.origins = nil, nil
	return reflect.DeepEqual(c, other)
}
