package node

import (
	"fmt"
	"time"
)

// ofVolumes reads what is told by volume.
func ofVolumes(read func(s *storage, v *volume, add func(labels string, value float64))) func(*scrape, *samples) {
	return func(s *scrape, out *samples) {
		for _, v := range s.n.storage.volumes {
			read(s.n.storage, v, func(labels string, value float64) { out.add("", fmt.Sprintf("volume=%q", v.name)+labels, value) })
		}
	}
}

func ofStorage(read func(*storage) float64) func(*scrape, *samples) {
	return one(func(s *scrape) float64 { return read(s.n.storage) })
}

var diskMetrics = []metric{
	{"sluice_storage_free_bytes", kindGauge, "Free space on the volume of the Raft log, the state, or the limiter's records, as of the last look.", ofVolumes(func(_ *storage, v *volume, add func(string, float64)) {
		_, space := v.now()
		add("", float64(space.Free))
	})},
	{"sluice_storage_size_bytes", kindGauge, "Size of that volume.", ofVolumes(func(_ *storage, v *volume, add func(string, float64)) {
		_, space := v.now()
		add("", float64(space.Size))
	})},
	{"sluice_storage_mark_bytes", kindGauge, "Free space below which it is low, and critical.", ofVolumes(func(s *storage, v *volume, add func(string, float64)) {
		_, space := v.now()
		low, critical := s.config.marks(space.Size)
		add(`,mark="low"`, float64(low))
		add(`,mark="critical"`, float64(critical))
	})},
	{"sluice_storage_level", kindGauge, "0 for enough space, 1 for low: the node does not lead where another can, 2 for critical: it takes no entries.", ofVolumes(func(_ *storage, v *volume, add func(string, float64)) {
		level, _ := v.now()
		add("", float64(level))
	})},
	{"sluice_storage_failed", kindGauge, "Whether the log or the state could not be written: the node stands back until it is started again.", ofStorage(func(s *storage) float64 {
		return flag(s.failed.Load() != nil)
	})},
	{"sluice_storage_append_seconds", kindHistogram, "How long writes of the Raft log took.", func(s *scrape, out *samples) {
		o := &s.n.storage.appends
		var sum uint64
		for i, bound := range appendBounds {
			sum += o.buckets[i].Load()
			out.add("_bucket", fmt.Sprintf("le=\"%g\"", bound), float64(sum))
		}
		sum += o.buckets[len(appendBounds)].Load()
		out.add("_bucket", `le="+Inf"`, float64(sum))
		out.add("_sum", "", time.Duration(o.nanos.Load()).Seconds())
		out.add("_count", "", float64(sum))
	}},
	{"sluice_storage_pending_seconds", kindGauge, "How long the oldest write that is under way has taken so far: of the Raft log (append), of the state (apply).", func(s *scrape, out *samples) {
		now := time.Now()
		appending, _ := s.n.storage.appends.longest(now)
		applying, _ := s.n.storage.applies.longest(now)
		out.add("", `operation="append"`, appending.Seconds())
		out.add("", `operation="apply"`, applying.Seconds())
	}},
	{"sluice_storage_stalls_total", kindCounter, "Times that one took too long, so that the node stood back from leading.", ofStorage(func(s *storage) float64 { return float64(s.stalls.Load()) })},
	{"sluice_storage_handovers_total", kindCounter, "Times that this node handed leadership over for lack of space.", ofStorage(func(s *storage) float64 { return float64(s.handovers.Load()) })},
	{"sluice_storage_refused_appends_total", kindCounter, "Appends to the Raft log refused for lack of space.", ofStorage(func(s *storage) float64 { return float64(s.refusedAppends.Load()) })},
	{"sluice_storage_refused_writes_total", kindCounter, "Clients' writes that this node, leading, turned away for lack of space.", ofStorage(func(s *storage) float64 { return float64(s.refusedWrites.Load()) })},
	{"sluice_state_value_log_collections_total", kindCounter, "Times that Badger's value log was looked through, once an hour.", ofStorage(func(s *storage) float64 { return float64(s.collections.Load()) })},
	{"sluice_state_value_log_rewrites_total", kindCounter, "Of these, times that a file of it was rewritten.", ofStorage(func(s *storage) float64 { return float64(s.rewritten.Load()) })},
	{"sluice_state_database_bytes", kindGauge, "What Badger has on the disk, as of its last look: tables, and the value log.", func(s *scrape, out *samples) {
		tables, values := s.n.fsm.Size()
		out.add("", `part="tables"`, float64(tables))
		out.add("", `part="values"`, float64(values))
	}},
	{"sluice_files_limit", kindGauge, "File descriptors that the process may have; 0 where that is not known.", one(func(s *scrape) float64 { return float64(s.n.files.limit) })},
	{"sluice_files_needed", kindGauge, "How many the configured connections and the node itself can come to need.", one(func(s *scrape) float64 { return float64(s.n.files.needed) })},
}
