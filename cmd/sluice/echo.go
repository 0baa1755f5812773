package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// echoAnswer is what the echo upstream saw of a request.
type echoAnswer struct {
	Method    string            `json:"method"`
	Host      string            `json:"host"`
	Path      string            `json:"path"`
	Query     string            `json:"query"`
	Headers   map[string]string `json:"headers"` // several lines of one name joined by ", "
	BodyBytes int64             `json:"body_bytes"`
}

// startEcho serves the upstream of the development cluster's routes. The caller closes it.
func startEcho(address string) (*http.Server, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("start the echo upstream: %w", err)
	}
	server := &http.Server{Addr: listener.Addr().String(), Handler: http.HandlerFunc(echo), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 5 * time.Minute}
	go server.Serve(listener) // ends with Close, and its error says only that
	return server, nil
}

func echo(w http.ResponseWriter, r *http.Request) {
	n, err := io.Copy(io.Discard, r.Body)
	if err != nil {
		http.Error(w, "the body broke off", http.StatusBadRequest)
		return
	}
	headers := make(map[string]string, len(r.Header))
	for name, values := range r.Header {
		headers[name] = strings.Join(values, ", ")
	}
	w.Header().Set("Content-Type", "application/json")
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	// A client that has gone away is the only reason to fail.
	_ = encoder.Encode(echoAnswer{Method: r.Method, Host: r.Host, Path: r.URL.EscapedPath(), Query: r.URL.RawQuery, Headers: headers, BodyBytes: n})
}
