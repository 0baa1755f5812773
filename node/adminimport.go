package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"time"

	"sluice/authapi"
	"sluice/raftfsm"
)

// maxImportBody bounds the lines of one call; a long import is many calls.
const maxImportBody = 16 << 20

// maxImports bounds the calls at a time, each of which holds its lines.
const maxImports = 8

var _ authapi.Export = (*raftfsm.Moment)(nil)

// export streams users, organizations, members and keys as of one moment.
func (a *adminServer) export(w http.ResponseWriter, r *http.Request) {
	begun := false
	err := func() error {
		done, err := a.node.beginBackup()
		if err != nil {
			return err
		}
		defer done()
		if err := a.node.upToDate(r.Context()); err != nil {
			return err
		}
		m, err := a.node.fsm.Moment()
		if err != nil {
			return err
		}
		defer m.Close()
		w.Header().Set("Content-Type", "application/x-ndjson")
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		out := bufio.NewWriterSize(&patientWriter{w: w, control: http.NewResponseController(w), ctx: r.Context(), begun: &begun}, 64<<10)
		return errors.Join(authapi.WriteExport(out, m), out.Flush())
	}()
	switch {
	case err == nil:
	case begun:
		a.node.log.Warn("export cut off", "component", "admin", "error", err)
		panic(http.ErrAbortHandler)
	default:
		w.Header().Del("Content-Type")
		a.answer(w, r, nil, err)
	}
}

// importLines takes lines of NDJSON; the query has dry_run and first_line, by which mistakes are told.
func (a *adminServer) importLines(w http.ResponseWriter, r *http.Request) {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "application/x-ndjson" {
		a.refuse(w, adminProblem(http.StatusUnsupportedMediaType, "unsupported_media_type", "the body must be application/x-ndjson"))
		return
	}
	if !a.node.importing.take() {
		a.refuse(w, adminProblem(http.StatusServiceUnavailable, "overloaded", fmt.Sprintf("this node takes in %d imports already", maxImports)))
		return
	}
	defer a.node.importing.release()
	first, dry, err := importOptions(r)
	if err != nil {
		a.answer(w, r, nil, err)
		return
	}
	control := http.NewResponseController(w)
	body := &patientReader{r: http.MaxBytesReader(w, r.Body, maxImportBody), control: control}
	ctx, cancel := context.WithTimeout(r.Context(), adminChangeTimeout)
	defer cancel()
	if dry {
		err = a.node.upToDate(ctx)
	}
	var report authapi.ImportReport
	if err == nil {
		report, err = a.node.api.Import(ctx, body, first, dry)
	}
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		err = adminProblem(http.StatusRequestEntityTooLarge, "body_too_large", "the lines of one call are more than 16 MiB")
	}
	if report.Users+report.Keys > 0 && !dry {
		event := operatorEvent("accounts.imported", a.node.data.NodeID, a.node.opts.clock(),
			"users", strconv.Itoa(report.Users), "api_keys", strconv.Itoa(report.Keys))
		event.IP = operatorOf(r).Address
		a.node.record(ctx, event)
	}
	if deadline := control.SetWriteDeadline(time.Now().Add(backupStall)); err == nil {
		err = deadline
	}
	a.answer(w, r, report, err)
}

func importOptions(r *http.Request) (first int, dry bool, err error) {
	first = 1
	for name, values := range r.URL.Query() {
		ok := len(values) == 1
		switch {
		case !ok:
		case name == "first_line":
			first, err = strconv.Atoi(values[0])
			ok = err == nil && first > 0
		case name == "dry_run":
			dry = values[0] == "true"
			ok = dry || values[0] == "false"
		default:
			ok = false
		}
		if !ok {
			return 0, false, adminProblem(http.StatusUnprocessableEntity, "invalid_input", name+": there are first_line (from 1) and dry_run (true or false), once each")
		}
	}
	return first, dry, nil
}
