package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"sluice/node"
)

// maxAdminAnswer bounds what is read of an answer.
const maxAdminAnswer = 64 << 20

// adminFlags are those of every command that calls a node's admin listener. Commands embed them.
type adminFlags struct {
	Admin     string        `placeholder:"ADDR" help:"Admin listener of a node: host:port, https://host:port or unix:/path; 127.0.0.1:7102, unless given."`
	AdminCA   string        `name:"admin-ca" placeholder:"FILE" help:"Certificates (PEM) that vouch for the listener's; implies https."`
	AdminCert string        `placeholder:"FILE" help:"Certificate (PEM) to show to the listener, where it asks for one."`
	AdminKey  string        `placeholder:"FILE" help:"Its key (PEM)."`
	Config    string        `placeholder:"FILE" help:"A node's configuration, to take the address, the token and the listener's certificate from."`
	Output    string        `enum:"text,json" default:"text" help:"text or json."`
	Timeout   time.Duration `placeholder:"DURATION" help:"Of the whole command (100ms to 1h); 10s to 3m, by the command, unless given."`
}

// adminClient calls one node's admin API.
type adminClient struct {
	http  *http.Client
	base  string // without a slash at its end
	name  string // of the listener, for people
	token string
}

// client finds out whom to call. The token, where one is needed, comes from the file, or from SLUICE_ADMIN__TOKEN.
func (f *adminFlags) client(env environment) (*adminClient, error) {
	if f.Admin != "" && f.Config != "" {
		return nil, usagef("--admin and --config both say whom to call")
	}
	var cfg node.Config
	var err error
	if f.Config != "" {
		if cfg, err = readable(node.LoadUnchecked(f.Config, env.variables)); err != nil {
			return nil, err
		}
		if cfg.Admin.Listen == "" {
			return nil, usagef("%s: admin.listen is empty: this node has no admin listener", f.Config)
		}
	} else if cfg, err = node.DefaultsWith(env.variables); err != nil {
		return nil, err
	}
	target, err := f.target(cfg)
	if err != nil {
		return nil, err
	}
	token, err := cfg.Admin.BearerToken()
	if err != nil {
		return nil, usagef("%v", err)
	}
	if f.Config != "" && token != "" && target.tls == nil && target.network == "tcp" && !loopback(target.address) {
		return nil, usagef("%s: admin.tls_cert is missing: the token would cross the network for anyone to read", f.Config) // no node starts with it
	}
	return &adminClient{
		http: &http.Client{Transport: target.transport(), CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
		base: target.base, name: target.name, token: token,
	}, nil
}

// loopback reports whether host:port is on this machine.
func loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	return err == nil && (host == "localhost" || net.ParseIP(host).IsLoopback())
}

// context ends at a signal or after the command's time, which is usual unless --timeout says otherwise.
func (f *adminFlags) context(ctx context.Context, usual time.Duration) (context.Context, context.CancelFunc, error) {
	if f.Timeout == 0 {
		f.Timeout = usual
	}
	if f.Timeout < 100*time.Millisecond || f.Timeout > time.Hour {
		return nil, nil, usagef("--timeout: want 100ms to 1h, not %v", f.Timeout)
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeoutCause(ctx, f.Timeout, fmt.Errorf("no answer within %v", f.Timeout))
	return ctx, func() { cancel(); stop() }, nil
}

// begin finds out whom to call, and for how long.
func (f *adminFlags) begin(ctx context.Context, env environment, usual time.Duration) (*adminClient, context.Context, context.CancelFunc, error) {
	client, err := f.client(env)
	if err != nil {
		return nil, nil, nil, err
	}
	ctx, cancel, err := f.context(ctx, usual)
	return client, ctx, cancel, err
}

// print writes out as JSON, or as text does.
func (f *adminFlags) print(env environment, out any, text func(w io.Writer) error) error {
	if f.Output != "json" {
		return text(env.stdout)
	}
	encoder := json.NewEncoder(env.stdout)
	encoder.SetIndent("", "  ")
	return encoder.Encode(out)
}

// get reads path into out.
func (c *adminClient) get(ctx context.Context, path string, query url.Values, out any) error {
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	return c.call(ctx, http.MethodGet, path, nil, out)
}

// post sends in as JSON and reads the answer into out.
func (c *adminClient) post(ctx context.Context, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("encode the call: %w", err)
	}
	return c.call(ctx, http.MethodPost, path, body, out)
}

// put is post for what takes the place of something.
func (c *adminClient) put(ctx context.Context, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("encode the call: %w", err)
	}
	return c.call(ctx, http.MethodPut, path, body, out)
}

// call is one exchange of JSON. What the node refuses is a *node.AdminProblem; wrong input among it is wrong usage,
// and mistakes with their places are a *node.ConfigError.
func (c *adminClient) call(ctx context.Context, method, path string, body []byte, out any) error {
	kind := ""
	if body != nil {
		kind = "application/json"
	}
	answer, err := c.send(ctx, method, path, kind, bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer answer.Close()
	return c.decode(answer, out)
}

// decode reads a JSON answer.
func (c *adminClient) decode(answer io.Reader, out any) error {
	text, err := io.ReadAll(io.LimitReader(answer, maxAdminAnswer+1))
	if err == nil && len(text) > maxAdminAnswer {
		err = errors.New("the answer is too large")
	}
	if err != nil {
		return fmt.Errorf("call %s: %w", c.name, err)
	}
	if err := json.Unmarshal(text, out); err != nil {
		return fmt.Errorf("call %s: not an answer of a node: %w", c.name, err)
	}
	return nil
}

// send sends a body of some kind, "" for none, and returns that of a good answer. Errors are as call's.
func (c *adminClient) send(ctx context.Context, method, path, kind string, body io.Reader) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, fmt.Errorf("call %s: %w", c.name, err)
	}
	req.Header.Set("Accept", "application/json, application/octet-stream, application/x-ndjson")
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			err = wrapped.Err // it names the address once more
		}
		var dial *net.OpError
		if errors.As(err, &dial) && dial.Op == "dial" {
			return nil, fmt.Errorf("call %s: %w: --config or --admin says whom to call", c.name, err)
		}
		return nil, fmt.Errorf("call %s: %w", c.name, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAdminAnswer))
	if err != nil {
		return nil, fmt.Errorf("call %s: %w", c.name, err)
	}
	problem := new(node.AdminProblem)
	if !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/problem+json") || json.Unmarshal(text, problem) != nil {
		return nil, fmt.Errorf("call %s: answered %s: not an admin listener?", c.name, resp.Status)
	}
	if len(problem.Errors) > 0 {
		wrong := new(node.ConfigError)
		for _, e := range problem.Errors {
			wrong.Mistakes = append(wrong.Mistakes, node.Mistake{Source: e.Source, Line: e.Line, Column: e.Column, Key: e.Field, Message: e.Detail})
		}
		return nil, wrong
	}
	if problem.Status == http.StatusBadRequest || problem.Status == http.StatusUnprocessableEntity {
		return nil, &usageError{problem.Error()}
	}
	return nil, problem
}
