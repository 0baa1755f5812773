package node

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestOpenDataDir(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "data")
	first, err := openDataDir(path, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v, want 0700", info.Mode(), err)
	}
	if !validNodeID(first.NodeID) {
		t.Errorf("malformed id %q", first.NodeID)
	}
	if _, err := openDataDir(path, time.Now()); !errors.Is(err, ErrDataDirInUse) {
		t.Errorf("second open: %v, want ErrDataDirInUse", err)
	}
	if inc, err := first.nextIncarnation(); err != nil || inc != 1 {
		t.Errorf("first incarnation is %d, %v", inc, err)
	}
	if err := first.setMembership("clu_1", time.Now(), true); err != nil {
		t.Fatal(err)
	}
	if err := first.close(); err != nil {
		t.Fatal(err)
	}
	second, err := openDataDir(path, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	defer second.close()
	if second.NodeID != first.NodeID {
		t.Errorf("id %s after reopening, %s before", second.NodeID, first.NodeID)
	}
	if inc, err := second.nextIncarnation(); err != nil || inc != 2 {
		t.Errorf("second incarnation is %d, %v", inc, err)
	}
	if m, err := second.membership(); err != nil || m == nil || m.ClusterID != "clu_1" {
		t.Errorf("membership %+v, %v", m, err)
	}
	if f, err := second.formation(); err != nil || f != nil {
		t.Errorf("formation %+v, %v, want none", f, err)
	}
}

// A directory with state but without a name must not get a new one: its state was another node's.
func TestOpenDataDir_IdentityLost(t *testing.T) {
	t.Parallel()
	path := t.TempDir()
	if err := os.Mkdir(filepath.Join(path, raftDir), 0o700); err != nil {
		t.Fatal(err)
	}
	if d, err := openDataDir(path, time.Now()); err == nil {
		d.close()
		t.Error("a directory with a log but no identity was opened")
	}
}

func TestOpenDataDir_Garbled(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"empty": "", "other version": `{"version":2,"node_id":"nod_01h455vb4pex5vsknk084sn02q"}`, "no id": `{"version":1}`,
		"bad id": `{"version":1,"node_id":"node1"}`,
	} {
		path := t.TempDir()
		if err := os.WriteFile(filepath.Join(path, identityFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if d, err := openDataDir(path, time.Now()); err == nil {
			d.close()
			t.Errorf("%s: opened", name)
		}
	}
}
