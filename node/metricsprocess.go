package node

import (
	"fmt"
	"io"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/common/expfmt"
)

// processMetrics are those of the Go runtime and the process, which all nodes of a process share: under the names that Prometheus' own
// client gives them, since dashboards for any Go program go by these.
var processMetrics = sync.OnceValue(func() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(
		collectors.NewGoCollector(collectors.WithGoCollectorRuntimeMetrics(collectors.MetricsScheduler)),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return r
})

func writeProcessMetrics(w io.Writer) error {
	families, err := processMetrics().Gather()
	for _, f := range families { // what could be read, whatever could not
		if _, err := expfmt.MetricFamilyToText(w, f); err != nil {
			return fmt.Errorf("write metrics of the process: %w", err)
		}
	}
	if err != nil {
		return fmt.Errorf("read metrics of the process: %w", err)
	}
	return nil
}
