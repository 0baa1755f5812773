package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"time"

	"filippo.io/age"

	"sluice/node/backup"
	"sluice/raftfsm"
)

const (
	// backupStall is how long a client of a backup or a restore may take for one piece of it.
	backupStall = 30 * time.Second
	// maxBackups bounds the backups that a node writes, and the contents that it adds up, at a time: each reads everything.
	maxBackups = 2
)

// contents reads everything, which the listener's time for an answer is too short for.
func (a *adminServer) contents(w http.ResponseWriter, r *http.Request) {
	if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(adminChangeTimeout)); err != nil {
		a.answer(w, r, nil, err)
		return
	}
	contents, err := a.node.contents(r.Context())
	a.answer(w, r, contents, err)
}

// contents says what this node's state holds.
func (n *Node) contents(ctx context.Context) (backup.Summary, error) {
	done, err := n.beginBackup()
	if err != nil {
		return backup.Summary{}, err
	}
	defer done()
	if err := n.upToDate(ctx); err != nil {
		return backup.Summary{}, err
	}
	m, err := n.fsm.Moment()
	if err != nil {
		return backup.Summary{}, err
	}
	defer m.Close()
	contents, err := m.Contents()
	if err != nil {
		return backup.Summary{}, err
	}
	return backup.Summarize(contents), nil
}

// beginBackup takes one of the places for those who read everything.
func (n *Node) beginBackup() (done func(), err error) {
	if !n.backingUp.take() {
		return nil, adminProblem(http.StatusServiceUnavailable, "overloaded", fmt.Sprintf("this node writes %d backups already", maxBackups))
	}
	return n.backingUp.release, nil
}

// upToDate returns once all that was acknowledged before is applied here.
func (n *Node) upToDate(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout+time.Second)
	defer cancel()
	return n.freshness.catchUp(ctx)
}

// backup streams one. An error after the first byte cuts the answer off, which the file's own checksum shows as well.
func (a *adminServer) backup(w http.ResponseWriter, r *http.Request) {
	begun := false
	err := func() error {
		recipients, stale, err := a.backupOptions(r)
		if err != nil {
			return err
		}
		done, err := a.node.beginBackup()
		if err != nil {
			return err
		}
		defer done()
		if !stale {
			if err := a.node.upToDate(r.Context()); err != nil {
				return adminProblem(http.StatusServiceUnavailable, "cluster_unavailable",
					"the leader does not confirm that this node is up to date ("+rootCause(err).Error()+"); a backup of what it has is made with stale=true")
			}
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		out := &patientWriter{w: w, control: http.NewResponseController(w), ctx: r.Context(), begun: &begun}
		header, err := a.node.writeBackup(out, recipients)
		if err == nil {
			a.node.log.Info("backup streamed", "component", "backup", "index", header.Index, "bytes", out.bytes, "encrypted", len(recipients) > 0)
		}
		return err
	}()
	switch {
	case err == nil:
	case begun:
		a.node.log.Warn("backup cut off", "component", "backup", "error", err)
		panic(http.ErrAbortHandler) // the client must not take what it has for all of it
	default:
		w.Header().Del("Content-Type")
		a.answer(w, r, nil, err)
	}
}

// backupOptions reads a backup's query. Without recipients the node's own key is taken, where it has one.
func (a *adminServer) backupOptions(r *http.Request) (recipients []age.Recipient, stale bool, err error) {
	plain := false
	for name, values := range r.URL.Query() {
		switch name {
		case "recipient":
			for _, value := range values {
				list, err := backup.ParseRecipients(value)
				if err != nil {
					return nil, false, adminProblem(http.StatusUnprocessableEntity, "invalid_input", "recipient: "+err.Error())
				}
				recipients = append(recipients, list...)
			}
		case "stale", "unencrypted":
			if len(values) != 1 || values[0] != "true" && values[0] != "false" {
				return nil, false, adminProblem(http.StatusUnprocessableEntity, "invalid_input", name+": want true or false")
			}
			if name == "stale" {
				stale = values[0] == "true"
			} else {
				plain = values[0] == "true"
			}
		default:
			return nil, false, adminProblem(http.StatusUnprocessableEntity, "invalid_input", name+" is unknown: there are recipient, stale and unencrypted")
		}
	}
	switch {
	case plain && len(recipients) > 0:
		return nil, false, adminProblem(http.StatusUnprocessableEntity, "invalid_input", "unencrypted and recipient exclude each other")
	case plain || len(recipients) > 0:
		return recipients, stale, nil
	}
	recipients, err = a.node.cfg.Backup.recipients()
	return recipients, stale, err
}

// writeBackup writes this node's state as it is.
func (n *Node) writeBackup(w io.Writer, recipients []age.Recipient) (backup.Header, error) {
	m, err := n.fsm.Moment()
	if err != nil {
		return backup.Header{}, err
	}
	defer m.Close()
	header := n.backupHeader(m.Header())
	if header.ClusterID == "" {
		return header, adminProblem(http.StatusServiceUnavailable, "cluster_unavailable", "the cluster has not formed yet")
	}
	return header, backup.Write(w, header, recipients, m.WriteSnapshot)
}

func (n *Node) backupHeader(h raftfsm.SnapshotHeader) backup.Header {
	return backup.Header{
		Cluster: n.cfg.Cluster, ClusterID: h.ClusterID, NodeID: n.data.NodeID, Index: h.Index, Term: h.Term,
		CreatedAt: n.opts.clock().UTC().Truncate(time.Second), Version: n.opts.version,
	}
}

// patientWriter gives each piece of a long answer a time of its own, in place of the listener's for whole answers.
type patientWriter struct {
	w       io.Writer
	control *http.ResponseController
	ctx     context.Context
	begun   *bool
	bytes   int64
}

func (p *patientWriter) Write(data []byte) (int, error) {
	if err := p.ctx.Err(); err != nil {
		return 0, err
	}
	if err := p.control.SetWriteDeadline(time.Now().Add(backupStall)); err != nil {
		return 0, err
	}
	*p.begun = true
	n, err := p.w.Write(data)
	p.bytes += int64(n)
	return n, err
}

// restore takes a backup, unencrypted, and brings it into the cluster. The body's type is one that no form and no page from
// elsewhere can send without asking first.
func (a *adminServer) restore(w http.ResponseWriter, r *http.Request) {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "application/octet-stream" {
		a.refuse(w, adminProblem(http.StatusUnsupportedMediaType, "unsupported_media_type", "the body must be application/octet-stream"))
		return
	}
	control := http.NewResponseController(w)
	body := &patientReader{r: http.MaxBytesReader(w, r.Body, maxRestored), control: control}
	restored, err := a.restoreFrom(r, body, func() error {
		// Raft may take its time from here on; the answer itself is small.
		return errors.Join(control.SetReadDeadline(time.Time{}), control.SetWriteDeadline(time.Now().Add(adminChangeTimeout)))
	})
	a.answer(w, r, restored, err)
}

func (a *adminServer) restoreFrom(r *http.Request, body io.Reader, received func() error) (*Restored, error) {
	n := a.node
	options, err := restoreOptions(r)
	if err != nil {
		return nil, err
	}
	// Before the transfer, and again after it.
	if err := n.mayReplace(options); err != nil {
		return nil, err
	}
	if !n.restoring.TryLock() {
		return nil, adminProblem(http.StatusConflict, "conflict", "another backup is being restored")
	}
	defer n.restoring.Unlock()
	file, header, contents, err := n.receiveBackup(body)
	if err != nil {
		return nil, backupProblem(err)
	}
	defer dropFile(file)
	if err := received(); err != nil {
		return nil, err
	}
	if contents.Secrets == nil {
		if header.Encrypted() {
			return nil, adminProblem(http.StatusUnprocessableEntity, "invalid_backup", "it is encrypted, and its key is not sent to nodes: `sluice restore --key-file` decrypts it")
		}
		return nil, adminProblem(http.StatusUnprocessableEntity, "invalid_backup", "it is from before its cluster had formed")
	}
	if err := n.api.OpensSecrets(contents.Secrets); err != nil {
		return nil, adminProblem(http.StatusUnprocessableEntity, "invalid_backup",
			"its secrets are sealed with another key than this cluster's secrets.key: start the cluster with the key of the one that the backup is of")
	}
	ctx, cancel := context.WithTimeout(r.Context(), adminChangeTimeout-time.Minute)
	defer cancel()
	if err := n.upToDate(ctx); err != nil {
		return nil, err
	}
	if err := n.mayReplace(options); err != nil {
		return nil, err
	}
	if n.LeaderID() != n.data.NodeID {
		// A leader's place is with the file.
		if _, err := a.transferLeader(ctx, TransferLeader{Node: n.data.NodeID}); err != nil {
			return nil, err
		}
	}
	how := raftfsm.Replacement{}
	if options.RevokeSessions {
		how.EndSessionsAt = n.opts.clock().UnixMilli()
	}
	n.log.Warn("restoring a backup", "component", "backup", "of", header.ClusterID, "index", header.Index, "made", header.CreatedAt)
	if err := n.restore(ctx, file, contents.Level, how); err != nil {
		n.log.Error("backup not restored", "component", "backup", "error", err)
		return nil, err
	}
	n.log.Warn("backup restored", "component", "backup", "of", header.ClusterID, "index", header.Index)
	by := operatorOf(r)
	event := operatorEvent("cluster.restored", n.data.NodeID, n.opts.clock(), "from", header.ClusterID, "index", strconv.FormatUint(header.Index, 10),
		"made_at", header.CreatedAt.Format(time.RFC3339), "sessions_ended", strconv.FormatBool(options.RevokeSessions))
	event.IP = by.Address
	n.record(ctx, event)
	return &Restored{Cluster: n.clusterID(), From: header, Holds: backup.Summarize(contents)}, nil
}

func restoreOptions(r *http.Request) (o RestoreOptions, err error) {
	for name, values := range r.URL.Query() {
		switch {
		case len(values) != 1:
			return o, adminProblem(http.StatusUnprocessableEntity, "invalid_input", name+" is there more than once")
		case name == "replace":
			o.Replace = values[0]
		case name == "revoke_sessions" && (values[0] == "true" || values[0] == "false"):
			o.RevokeSessions = values[0] == "true"
		case name == "revoke_sessions":
			return o, adminProblem(http.StatusUnprocessableEntity, "invalid_input", name+": want true or false")
		default:
			return o, adminProblem(http.StatusUnprocessableEntity, "invalid_input", name+" is unknown: there are replace and revoke_sessions")
		}
	}
	return o, nil
}

// backupProblem says what is wrong with an uploaded backup.
func backupProblem(err error) error {
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return adminProblem(http.StatusRequestEntityTooLarge, "body_too_large", "the backup is too large")
	case errors.Is(err, backup.ErrDamaged), errors.Is(err, backup.ErrVersion):
		return adminProblem(http.StatusUnprocessableEntity, "invalid_backup", err.Error())
	}
	return err
}

// patientReader gives each piece of a long body a time of its own.
type patientReader struct {
	r       io.Reader
	control *http.ResponseController
}

func (p *patientReader) Read(data []byte) (int, error) {
	now := time.Now()
	// The answer's time counts from the end of the body.
	if err := errors.Join(p.control.SetReadDeadline(now.Add(backupStall)), p.control.SetWriteDeadline(now.Add(2*backupStall))); err != nil {
		return 0, err
	}
	return p.r.Read(data)
}
