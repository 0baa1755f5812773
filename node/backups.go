package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

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

const (
	// backupRetryLeast and backupRetryMost bound the time to the next try after a failure, a tenth of the interval.
	backupRetryLeast = 10 * time.Second
	backupRetryMost  = 5 * time.Minute
	// backupLook is how often the wall clock is looked at while none is due: it may be set, or stand still with the machine.
	backupLook = time.Minute

	backupPrefix     = "sluice-"
	backupSuffix     = ".backup"
	backupTemporary  = ".tmp"
	backupTimeLayout = "20060102T150405Z"
)

// backupSchedule writes backups into a directory. Each node that is told to does so by itself, of its own state: no leader
// has to be known at the time, and a directory holds all backups of whoever writes there, whoever led meanwhile.
type backupSchedule struct {
	n      *Node
	config BackupConfig

	began    atomic.Int64 // Unix milliseconds: since when there could have been one
	last     atomic.Int64 // Unix milliseconds: the newest in the directory, by its name; 0 for none
	failures atomic.Uint64
	size     atomic.Int64 // bytes, of the last that this process wrote
	took     atomic.Int64 // nanoseconds, the same
}

// run writes one whenever it is due, until ctx ends.
func (s *backupSchedule) run(ctx context.Context) {
	select {
	case <-s.n.ready: // before that it would only fail
	case <-ctx.Done():
		return
	}
	log := s.n.log.With("component", "backup", "dir", s.config.Dir)
	if err := s.lookAround(); err != nil {
		log.Warn("directory of backups not read", "error", err)
	}
	for {
		wait := s.due()
		if wait <= 0 {
			err := s.write(ctx)
			switch {
			case ctx.Err() != nil:
				return
			case err != nil:
				s.failures.Add(1)
				log.Error("backup failed", "error", err)
				wait = min(max(time.Duration(s.config.Interval)/10, backupRetryLeast), backupRetryMost)
			default:
				log.Info("backup written", "bytes", s.size.Load(), "took", time.Duration(s.took.Load()).Round(time.Millisecond).String())
				if err := s.prune(); err != nil {
					log.Error("old backups not removed", "error", err)
				}
				continue
			}
		}
		select {
		case <-time.After(min(wait, backupLook)):
		case <-ctx.Done():
			return
		}
	}
}

// due is how long until the next one.
func (s *backupSchedule) due() time.Duration {
	now, last := s.n.opts.clock(), s.last.Load()
	if last == 0 || last > now.UnixMilli() { // the clock was set back: its time means nothing
		return 0
	}
	return time.UnixMilli(last).Add(time.Duration(s.config.Interval)).Sub(now)
}

// age is how old the newest backup is; without one, since when there could have been one.
func (s *backupSchedule) age(now time.Time) time.Duration {
	since := s.last.Load()
	if since == 0 {
		since = s.began.Load()
	}
	return max(now.Sub(time.UnixMilli(since)), 0)
}

// own begins the names of this node's backups of this cluster. The directory may be shared.
func (s *backupSchedule) own() string {
	return backupPrefix + s.n.clusterID() + "-" + s.n.data.NodeID + "-"
}

// list is this node's backups, oldest first, and the times in their names.
func (s *backupSchedule) list() (names []string, times []time.Time, err error) {
	entries, err := os.ReadDir(s.config.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	for _, entry := range entries { // by name, so by time
		text, ok := strings.CutPrefix(entry.Name(), s.own())
		if !ok {
			continue
		}
		if text, ok = strings.CutSuffix(text, backupSuffix); !ok {
			continue
		}
		at, err := time.Parse(backupTimeLayout, text)
		if err == nil && entry.Type().IsRegular() {
			names, times = append(names, entry.Name()), append(times, at)
		}
	}
	return names, times, nil
}

// lookAround finds the newest backup, and removes what an earlier process left unfinished.
func (s *backupSchedule) lookAround() error {
	_, times, err := s.list()
	if err != nil {
		return err
	}
	if len(times) > 0 {
		s.last.Store(times[len(times)-1].UnixMilli())
	}
	left, err := filepath.Glob(filepath.Join(s.config.Dir, s.own()+"*"+backupTemporary))
	for _, path := range left {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

// write makes a backup. It bears its name once it is on the disk as a whole.
func (s *backupSchedule) write(ctx context.Context) error {
	recipients, err := s.config.recipients()
	if err != nil {
		return err
	}
	done, err := s.n.beginBackup()
	if err != nil {
		return err
	}
	defer done()
	// One that looks new and is not would be found out when it is needed.
	if err := s.n.upToDate(ctx); err != nil {
		return err
	}
	if err := os.MkdirAll(s.config.Dir, 0o700); err != nil {
		return err
	}
	began, now := time.Now(), s.n.opts.clock().UTC().Truncate(time.Second)
	path := filepath.Join(s.config.Dir, s.own()+now.Format(backupTimeLayout)+backupSuffix)
	file, err := os.OpenFile(path+backupTemporary, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	out := &boundedWriter{file: file, ctx: ctx}
	_, err = s.n.writeBackup(&backup.Paced{File: out}, recipients)
	err = errors.Join(err, file.Sync(), file.Close())
	if err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", filepath.Base(path), err), os.Remove(file.Name()))
	}
	if err := syncDir(s.config.Dir); err != nil {
		return err
	}
	s.last.Store(now.UnixMilli())
	s.size.Store(out.bytes)
	s.took.Store(int64(time.Since(began)))
	return nil
}

// prune removes all but the newest of this node's.
func (s *backupSchedule) prune() error {
	names, _, err := s.list()
	if err != nil {
		return err
	}
	for _, name := range names[:max(len(names)-s.config.Keep, 0)] {
		err = errors.Join(err, os.Remove(filepath.Join(s.config.Dir, name)))
	}
	return err
}

// boundedWriter stops with its context.
type boundedWriter struct {
	file  *os.File
	ctx   context.Context
	bytes int64
}

func (b *boundedWriter) Write(data []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, context.Cause(b.ctx)
	}
	n, err := b.file.Write(data)
	b.bytes += int64(n)
	return n, err
}

// Sync implements backup.Paced's file.
func (b *boundedWriter) Sync() error { return b.file.Sync() }

// backupMetrics are 0 on a node that writes none by itself, but for the failures and sizes of before.
var backupMetrics = []metric{
	{"sluice_backup_interval_seconds", kindGauge, "How often this node writes a backup by itself; 0 for never.", one(func(s *scrape) float64 {
		if s.n.cfg.Backup.Dir == "" {
			return 0
		}
		return time.Duration(s.n.cfg.Backup.Interval).Seconds()
	})},
	{"sluice_backup_age_seconds", kindGauge, "How old the newest backup in its directory is; without one, for how long this node has been to write one.", one(func(s *scrape) float64 {
		if s.n.cfg.Backup.Dir == "" {
			return 0
		}
		return s.n.schedule.age(s.now).Seconds()
	})},
	{"sluice_backup_last_success_timestamp_seconds", kindGauge, "When the newest backup in its directory was made, in Unix time; 0 for none.", one(func(s *scrape) float64 {
		return float64(s.n.schedule.last.Load()) / 1000
	})},
	{"sluice_backup_failures_total", kindCounter, "Backups by schedule that failed; each is tried again.", one(func(s *scrape) float64 {
		return float64(s.n.schedule.failures.Load())
	})},
	{"sluice_backup_last_bytes", kindGauge, "Size of the last backup by schedule that this process wrote.", one(func(s *scrape) float64 {
		return float64(s.n.schedule.size.Load())
	})},
	{"sluice_backup_last_duration_seconds", kindGauge, "How long that took.", one(func(s *scrape) float64 {
		return time.Duration(s.n.schedule.took.Load()).Seconds()
	})},
}
