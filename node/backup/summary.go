package backup

import (
	"encoding/hex"
	"time"

	"sluice/raftfsm"
)

// Summary says what a backup or a cluster holds, for people and programs. Fields may be added.
type Summary struct {
	ClusterID string    `json:"cluster_id"`
	Index     uint64    `json:"index"` // of the newest log entry in it
	At        time.Time `json:"at"`    // the greatest clock in the log up to there
	// ContentHash is equal for a backup and a cluster that it was restored into, as long as neither accounts nor keys,
	// sessions or secrets change; hex.
	ContentHash string    `json:"content_hash"`
	Sections    []Section `json:"sections"`
}

// Section is one kind of what there is.
type Section struct {
	Name    string `json:"name"`
	Records uint64 `json:"records"`
	SHA256  string `json:"sha256"`
	// InHash is false for what changes by itself and is not part of the content hash.
	InHash bool `json:"in_content_hash"`
}

// Summarize puts contents in words.
func Summarize(c raftfsm.Contents) Summary {
	s := Summary{
		ClusterID: c.Header.ClusterID, Index: c.Header.Index, At: time.UnixMilli(c.Time).UTC(),
		ContentHash: hex.EncodeToString(c.Hash[:]), Sections: []Section{},
	}
	for _, section := range c.Sections {
		s.Sections = append(s.Sections, Section{
			Name: section.Name, Records: section.Records, SHA256: hex.EncodeToString(section.Hash[:]), InHash: section.Counted,
		})
	}
	return s
}
