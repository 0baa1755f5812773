package node

import (
	"filippo.io/age"

	"sluice/node/backup"
)

// recipients are whom the node's backups are encrypted for, none where they are not. The file is read each time: it may be
// replaced while the node runs.
func (c BackupConfig) recipients() ([]age.Recipient, error) {
	if c.KeyFile == "" {
		return nil, nil
	}
	key, err := backup.ReadKeyFile(c.KeyFile)
	return key.Recipients, err
}
