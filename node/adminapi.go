package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"sluice/authapi"
	"sluice/raftfsm/state"
)

const (
	// maxAdminBody bounds the body of a call; the largest sensible one is some hundred bytes.
	maxAdminBody = 64 << 10
	// adminChangeTimeout bounds a call that changes something: a node that leaves drains first.
	adminChangeTimeout = 10 * time.Minute
)

// AdminProblem is an error of the admin API: application/problem+json (RFC 9457), as on the public listener.
type AdminProblem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
	Code   string `json:"code"` // one of docs/errors.md
	// Errors tell every mistake of settings.
	Errors []AdminFieldError `json:"errors,omitempty"`
}

// AdminFieldError is one mistake, as in a configuration.
type AdminFieldError struct {
	Field  string `json:"field"` // the key; "" for a mistake of the text as a whole
	Detail string `json:"detail"`
	Source string `json:"source,omitempty"` // what the caller called the document, or where the node's own configuration is
	Line   int    `json:"line,omitempty"`   // from 1
	Column int    `json:"column,omitempty"` // from 1, in bytes
}

// Error is for logs.
func (p *AdminProblem) Error() string { return p.Code + ": " + p.Detail }

func adminProblem(status int, code, detail string) *AdminProblem {
	return &AdminProblem{Type: "about:blank", Title: http.StatusText(status), Status: status, Code: code, Detail: detail}
}

// adminProblemOf is the one table from errors to answers. listed is false where err belongs in the log.
func adminProblemOf(err error) (p *AdminProblem, listed bool) {
	var own *AdminProblem
	var refused *refusedError
	var refusal *state.Refusal
	var public *authapi.Problem
	switch {
	case errors.As(err, &own):
		return own, true
	case errors.As(err, &public):
		detail := public.Detail
		if len(public.Errors) > 0 {
			var fields []string
			for _, f := range public.Errors {
				fields = append(fields, f.Field+" "+f.Detail)
			}
			detail = strings.Join(fields, "; ")
		}
		return adminProblem(public.Status, public.Code, detail), true
	case errors.As(err, &refused):
		return adminProblem(http.StatusConflict, "conflict", refused.reason), true
	case errors.As(err, &refusal) && refusal.Code != state.CodeInvalid:
		return adminProblem(http.StatusConflict, "conflict", "the cluster refused it: "+refusal.Code), true
	case errors.Is(err, errNotLeader), errors.Is(err, errUnavailable), errors.Is(err, errNotSent), errors.Is(err, errNoAddress):
		return adminProblem(http.StatusServiceUnavailable, "cluster_unavailable", "nothing was changed: "+rootCause(err).Error()), true
	case errors.Is(err, errUnknown), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return adminProblem(http.StatusServiceUnavailable, "cluster_unavailable", "the outcome is unknown; look before you repeat the call: "+rootCause(err).Error()), true
	}
	return adminProblem(http.StatusInternalServerError, "internal_error", "the node's log says more"), false
}

// read is a call that changes nothing. What fn returns is the answer's JSON.
func (a *adminServer) read(fn func(r *http.Request) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, err := fn(r)
		a.answer(w, r, answer, err)
	})
}

// adminChange is a call that changes something. Its body is one JSON object of type T and nothing else: a page in a
// browser cannot send such a body elsewhere without asking first, and nobody answers that question here.
func adminChange[T any](a *adminServer, fn func(ctx context.Context, in T) (any, error)) http.Handler {
	return adminChangeOf(a, func(r *http.Request, in T) (any, error) { return fn(r.Context(), in) })
}

// adminChangeOf is adminChange for a call that looks at its path or its caller too. The request's context ends when the
// call's time is up.
func adminChangeOf[T any](a *adminServer, fn func(r *http.Request, in T) (any, error)) http.Handler {
	return adminChangeUpTo(a, maxAdminBody, fn)
}

// adminChangeUpTo is adminChangeOf for a body of up to most bytes, a multiple of 1 KiB.
func adminChangeUpTo[T any](a *adminServer, most int64, fn func(r *http.Request, in T) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
		if err != nil || kind != "application/json" {
			a.refuse(w, adminProblem(http.StatusUnsupportedMediaType, "unsupported_media_type", "the body must be application/json"))
			return
		}
		var in T
		decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, most))
		decoder.DisallowUnknownFields()
		err = decoder.Decode(&in)
		var tooLarge *http.MaxBytesError
		switch {
		case errors.As(err, &tooLarge):
			a.refuse(w, adminProblem(http.StatusRequestEntityTooLarge, "body_too_large", fmt.Sprintf("the body is longer than %d KiB", most>>10)))
			return
		case err != nil:
			a.refuse(w, adminProblem(http.StatusBadRequest, "invalid_json", strings.TrimPrefix(err.Error(), "json: ")))
			return
		}
		if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
			a.refuse(w, adminProblem(http.StatusBadRequest, "invalid_json", "the body holds more than one JSON object"))
			return
		}
		// The listener's own time-outs are for reads.
		control := http.NewResponseController(w)
		if err := errors.Join(control.SetReadDeadline(time.Time{}), control.SetWriteDeadline(time.Now().Add(adminChangeTimeout+10*time.Second))); err != nil {
			a.answer(w, r, nil, err)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), adminChangeTimeout)
		defer cancel()
		answer, err := fn(r.WithContext(ctx), in)
		a.answer(w, r, answer, err)
	})
}

func (a *adminServer) answer(w http.ResponseWriter, r *http.Request, v any, err error) {
	var text []byte
	if err == nil {
		text, err = json.MarshalIndent(v, "", "  ")
	}
	if err != nil {
		p, listed := adminProblemOf(err)
		if !listed {
			a.node.log.Error("admin call failed", "component", "admin", "method", r.Method, "path", r.URL.Path, "error", err)
		}
		a.refuse(w, p)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.Write(append(text, '\n'))
}

func (a *adminServer) refuse(w http.ResponseWriter, p *AdminProblem) {
	text, err := json.Marshal(p)
	if err != nil {
		text = []byte(`{"type":"about:blank","title":"Internal Server Error","status":500,"code":"internal_error"}`)
	}
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	switch p.Status {
	case http.StatusUnauthorized:
		h.Set("WWW-Authenticate", `Bearer realm="sluice admin"`)
	case http.StatusServiceUnavailable:
		h.Set("Retry-After", "1")
	}
	w.WriteHeader(p.Status)
	w.Write(append(text, '\n'))
}
