package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"sluice/node"
)

type certCommand struct {
	New certNewCommand `cmd:"" help:"Make an authority, or a node's certificate."`
	ID  certIDCommand  `cmd:"" name:"id" help:"Print the id of a node, for its certificate; make it where the node has not started yet."`
}

type certNewCommand struct {
	CA   certNewCACommand   `cmd:"" name:"ca" help:"Make an authority for the certificates of a cluster's nodes: peer-ca.crt and peer-ca.key."`
	Node certNewNodeCommand `cmd:"" help:"Make a node's certificate: peer.crt and peer.key."`
}

// Names of the files. They are never replaced: what a node, or a whole cluster, goes by must not be lost to a second thought.
const (
	caCertFile   = "peer-ca.crt"
	caKeyFile    = "peer-ca.key"
	peerCertFile = "peer.crt"
	peerKeyFile  = "peer.key"
)

// maxDays bounds the life of what is made: 50 years.
const maxDays = 18_250

// lifetime is how long a certificate is good.
func lifetime(days int) (time.Duration, error) {
	if days < 1 || days > maxDays {
		return 0, usagef("--days: want 1 to %d, not %d", maxDays, days)
	}
	return time.Duration(days) * 24 * time.Hour, nil
}

type certNewCACommand struct {
	Cluster string `required:"" placeholder:"NAME" help:"The cluster's name, for people to tell authorities apart."`
	Out     string `default:"." placeholder:"DIR" help:"Where the two files go."`
	Days    int    `default:"3650" help:"How long it is good (1 to 18250)."`
}

// Run makes the two files.
func (c *certNewCACommand) Run(env environment) error {
	life, err := lifetime(c.Days)
	if err != nil {
		return err
	}
	pair, err := node.NewPeerAuthority(c.Cluster, life, time.Now())
	if err != nil {
		return usagef("%v", err)
	}
	cert, key := filepath.Join(c.Out, caCertFile), filepath.Join(c.Out, caKeyFile)
	if err := writePair(cert, key, pair); err != nil {
		return err
	}
	_, err = fmt.Fprintf(env.stdout, "%s: for every node, as peer.tls_ca; good until %s\n%s: whoever has it can make nodes; keep it off the nodes\n",
		cert, pair.NotAfter.UTC().Format(time.RFC3339), key)
	return err
}

type certNewNodeCommand struct {
	CA      string `default:"." placeholder:"DIR" help:"Where the authority's peer-ca.crt and peer-ca.key are."`
	CACert  string `placeholder:"FILE" help:"The authority's certificate, where it has another name."`
	CAKey   string `placeholder:"FILE" help:"The authority's key, where it has another name."`
	Config  string `placeholder:"FILE" help:"The node's configuration, on its machine: names its cluster and the directory with its id."`
	Cluster string `placeholder:"NAME" help:"The cluster's name, in place of --config."`
	NodeID  string `placeholder:"ID" help:"The node's id, as 'sluice cert id' prints it, in place of --config."`
	Out     string `default:"." placeholder:"DIR" help:"Where the two files go."`
	Days    int    `default:"365" help:"How long it is good (1 to 18250), and no longer than the authority."`
}

// Run makes the two files.
func (c *certNewNodeCommand) Run(env environment) error {
	life, err := lifetime(c.Days)
	if err != nil {
		return err
	}
	named := c.Cluster != "" || c.NodeID != ""
	switch {
	case c.Config != "" && named:
		return usagef("--config says what --cluster and --node-id do")
	case c.Config == "" && (c.Cluster == "" || c.NodeID == ""):
		return usagef("give --config, or --cluster and --node-id")
	}
	var authority node.PeerPair
	for _, f := range []struct {
		named, usual, flag string
		into               *[]byte
	}{{c.CACert, caCertFile, "ca-cert", &authority.Certificate}, {c.CAKey, caKeyFile, "ca-key", &authority.Key}} {
		path := f.named
		if path == "" {
			path = filepath.Join(c.CA, f.usual)
		}
		if *f.into, err = os.ReadFile(path); err != nil {
			return usagef("--%s: %v", f.flag, err)
		}
	}
	id := node.PeerIdentity{Cluster: c.Cluster, NodeID: c.NodeID}
	if c.Config != "" {
		if id, err = identityOf(c.Config, env); err != nil {
			return err
		}
	}
	pair, err := node.NewPeerCertificate(authority, id, life, time.Now())
	if err != nil {
		return usagef("%v", err)
	}
	cert, key := filepath.Join(c.Out, peerCertFile), filepath.Join(c.Out, peerKeyFile)
	if err := writePair(cert, key, pair); err != nil {
		return err
	}
	_, err = fmt.Fprintf(env.stdout, "%s: peer.tls_cert of %s in %s; good until %s\n%s: its peer.tls_key\n",
		cert, id.NodeID, id.Cluster, pair.NotAfter.UTC().Format(time.RFC3339), key)
	return err
}

type certIDCommand struct {
	Config string `required:"" placeholder:"FILE" help:"The node's configuration."`
}

// Run prints the id alone, for scripts.
func (c *certIDCommand) Run(env environment) error {
	id, err := identityOf(c.Config, env)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(env.stdout, id.NodeID)
	return err
}

// identityOf is what a node's certificate names.
func identityOf(config string, env environment) (node.PeerIdentity, error) {
	cluster, dir, err := node.LoadIdentity(config, env.variables)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return node.PeerIdentity{}, usagef("%v", err)
	}
	if err != nil {
		return node.PeerIdentity{}, err
	}
	id, err := node.NodeID(dir, time.Now())
	return node.PeerIdentity{NodeID: id, Cluster: cluster}, err
}

// writePair makes both files, for their owner alone, or none.
func writePair(certPath, keyPath string, pair node.PeerPair) (err error) {
	var made []string
	defer func() {
		if err != nil {
			for _, path := range made {
				err = errors.Join(err, os.Remove(path))
			}
		}
	}()
	for _, f := range []struct {
		path string
		text []byte
	}{{keyPath, pair.Key}, {certPath, pair.Certificate}} {
		file, err := os.OpenFile(f.path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if errors.Is(err, fs.ErrExist) {
			return usagef("%s is there already, and is not replaced: take another --out", f.path)
		}
		if err != nil {
			return usagef("%v", err)
		}
		made = append(made, f.path)
		_, err = file.Write(f.text)
		if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
			return fmt.Errorf("write %s: %w", f.path, err)
		}
	}
	return nil
}
