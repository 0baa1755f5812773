package node

import (
	"context"
	"net/http"
	"net/http/pprof"
	"time"
)

// maxProfileTime bounds what a profile may take, its own seconds included.
const maxProfileTime = 5 * time.Minute

// profile serves one of net/http/pprof. Profiles show what is in the process's memory, command line included, so they are for
// who may do anything. The listener's time for an answer is too short for them.
func (a *adminServer) profile(serve http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(maxProfileTime)); err != nil {
			a.answer(w, r, nil, err)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), maxProfileTime)
		defer cancel()
		w.Header().Set("Cache-Control", "no-store")
		// pprof looks up the server to compare the profile's time with its time-out, which does not hold here.
		serve(w, r.WithContext(context.WithValue(ctx, http.ServerContextKey, nil)))
	})
}

// profiles are the routes of net/http/pprof, whose index shows the named ones too.
func (a *adminServer) profiles() []adminRoute {
	return []adminRoute{
		{"GET /debug/pprof/", adminOperate, a.profile(pprof.Index)},
		{"GET /debug/pprof/cmdline", adminOperate, a.profile(pprof.Cmdline)},
		{"GET /debug/pprof/profile", adminOperate, a.profile(pprof.Profile)},
		{"GET /debug/pprof/symbol", adminOperate, a.profile(pprof.Symbol)},
		{"GET /debug/pprof/trace", adminOperate, a.profile(pprof.Trace)},
	}
}
