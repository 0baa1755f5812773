package node_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sluice/node"
	"sluice/node/backup"
	"sluice/node/nodetest"
)

func namesIn(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// Two of three nodes write into one directory; each looks after its own.
func TestBackupSchedule(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "backups")
	path, key := keyFile(t)
	c := nodetest.Start(t, 3, nodetest.WithConfig(func(i int, cfg *node.Config) {
		generous(i, cfg)
		if i < 2 {
			cfg.Backup.Dir, cfg.Backup.Keep, cfg.Backup.KeyFile = dir, 2, path
		}
	}))
	id := c.Members[0].Node.ID()
	var own, others []string
	sorted := func() {
		own, others = nil, nil
		for _, name := range namesIn(t, dir) {
			if strings.Contains(name, id) {
				own = append(own, name)
			} else {
				others = append(others, name)
			}
		}
	}
	nodetest.WaitFor(t, "a backup of each", func() error {
		sorted()
		if len(own) != 1 || len(others) != 1 || strings.HasSuffix(own[0], ".tmp") || strings.HasSuffix(others[0], ".tmp") {
			return fmt.Errorf("there are %v", namesIn(t, dir))
		}
		return nil
	})
	file, err := os.Open(filepath.Join(dir, own[0]))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if h, _, err := backup.Inspect(file, key.Identities); err != nil || !h.Encrypted() || h.NodeID != id {
		t.Errorf("%+v, %v", h, err)
	}
	if info, err := file.Stat(); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	nodetest.WaitFor(t, "its metrics", func() error {
		e := readMetrics(t, adminText(t, c.Members[0].Node, "/metrics"))
		if e.samples["sluice_backup_last_success_timestamp_seconds{}"] == 0 || e.samples["sluice_backup_last_bytes{}"] == 0 ||
			e.samples["sluice_backup_interval_seconds{}"] != 86400 || e.samples["sluice_backup_age_seconds{}"] > 60 || e.samples["sluice_backup_failures_total{}"] != 0 {
			return fmt.Errorf("%v failures, newest at %v", e.samples["sluice_backup_failures_total{}"], e.samples["sluice_backup_last_success_timestamp_seconds{}"])
		}
		return nil
	})
	if e := readMetrics(t, adminText(t, c.Members[2].Node, "/metrics")); e.samples["sluice_backup_interval_seconds{}"] != 0 {
		t.Errorf("a node without a schedule has the interval %v", e.samples["sluice_backup_interval_seconds{}"])
	}

	// A start within the interval writes none; after it, one, and the oldest go. What was left unfinished goes too.
	c.Stop(0)
	stem, _, _ := strings.Cut(own[0], time.Now().UTC().Format("2006"))
	fake := func(at time.Time, suffix string) string {
		name := stem + at.UTC().Format("20060102T150405Z") + suffix
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	unfinished := fake(time.Now(), ".backup.tmp")
	c.Start(0)
	c.WaitReady()
	nodetest.WaitFor(t, "the unfinished one to go", func() error {
		if names := namesIn(t, dir); slices.Contains(names, unfinished) {
			return fmt.Errorf("there are %v", names)
		}
		return nil
	})
	if sorted(); len(own) != 1 {
		t.Errorf("a backup before its time: %v", own)
	}
	c.Stop(0)
	if err := os.Remove(filepath.Join(dir, own[0])); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	newest := fake(now.Add(-25*time.Hour), ".backup")
	fake(now.Add(-50*time.Hour), ".backup")
	fake(now.Add(-75*time.Hour), ".backup")
	c.Start(0)
	c.WaitReady()
	nodetest.WaitFor(t, "a new one, and one before it", func() error {
		sorted()
		if len(own) != 2 || own[0] != newest || len(others) != 1 {
			return fmt.Errorf("there are %v, %v", own, others)
		}
		return nil
	})
}

func TestBackupSchedule_CountsFailures(t *testing.T) {
	t.Parallel()
	path, _ := keyFile(t)
	dir := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c := nodetest.Start(t, 1, nodetest.WithConfig(func(i int, cfg *node.Config) {
		generous(i, cfg)
		cfg.Backup.Dir, cfg.Backup.KeyFile = dir, path
	}))
	nodetest.WaitFor(t, "a failure", func() error {
		e := readMetrics(t, adminText(t, c.Members[0].Node, "/metrics"))
		if e.samples["sluice_backup_failures_total{}"] == 0 || e.samples["sluice_backup_last_success_timestamp_seconds{}"] != 0 {
			return fmt.Errorf("%v failures, newest at %v", e.samples["sluice_backup_failures_total{}"], e.samples["sluice_backup_last_success_timestamp_seconds{}"])
		}
		return nil
	})
	if log := c.Log(); !strings.Contains(log, "backup failed") {
		t.Errorf("log: %s", log)
	}
}
