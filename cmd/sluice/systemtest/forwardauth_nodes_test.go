package systemtest

import (
	"fmt"
	"io"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"
)

// outcome is what became of one request of a flood.
type outcome struct {
	at     time.Time // it was sent
	took   time.Duration
	status int
	err    error
}

// flood is what clients of one proxy go through while nodes come and go.
type flood struct {
	front *front
	spent apiKey // a key whose limit is used up

	mu       sync.Mutex
	outcomes []outcome
}

// run asks one thing after another until stop is closed.
func (f *flood) run(stop <-chan struct{}) {
	client := clientAt(f.front.client)
	for {
		select {
		case <-stop:
			return
		default:
		}
		o := outcome{at: time.Now()}
		req, err := http.NewRequest("GET", f.front.url+"/app", http.NoBody)
		if err == nil {
			req.Header.Set("X-API-Key", f.front.reader.secret)
			req.Header.Set("X-Test-Id", "flood/"+f.front.kind.name)
			var res *http.Response
			if res, err = client.Do(req); err == nil {
				_, err = io.Copy(io.Discard, res.Body)
				res.Body.Close()
				o.status = res.StatusCode
			}
		}
		o.err, o.took = err, time.Since(o.at)
		f.mu.Lock()
		f.outcomes = append(f.outcomes, o)
		f.mu.Unlock()
	}
}

// notice is how long a proxy may take to find that a node is lost: nginx by the first check that fails, the others by /readyz, twice a
// second and with a second to answer.
const notice = 2 * time.Second

// judge tells what happened after each loss of a node. Clients may see errors only while their proxy may not know yet, and few then.
func (f *flood) judge(t *testing.T, losses map[string]time.Time) {
	t.Helper()
	name := f.front.kind.name
	var early, late, served int
	var longest time.Duration
	for _, o := range f.outcomes {
		longest = max(longest, o.took)
		if o.status == http.StatusOK && o.err == nil {
			served++
			continue
		}
		when := "with all nodes"
		known := true
		for loss, at := range losses {
			if since := o.at.Add(o.took).Sub(at); since > 0 && o.at.Sub(at) < notice {
				when, known = fmt.Sprintf("%v after the node was %s", since.Round(time.Millisecond), loss), false
			}
		}
		t.Logf("%s: %d, %v %s", name, o.status, o.err, when)
		if known {
			late++
		} else {
			early++
		}
	}
	t.Logf("%s: %d requests, of which %d failed while the proxy noticed; the longest took %v", name, len(f.outcomes), early, longest.Round(time.Millisecond))
	if late > 0 || served < 300 || early > served/50 {
		t.Errorf("%s: %d failed outside of the %v in which the proxy may notice, %d within, %d were served", name, late, notice, early, served)
	}
}

// lostNodes drains a node, and later has another one hang and then die, while clients go on through all kinds of proxies at once.
func lostNodes(t *testing.T, p *protected) {
	var floods []*flood
	var group sync.WaitGroup
	stop := make(chan struct{})
	for i, kind := range proxyKinds {
		if kind.program != "" && findProgram(kind.program) == "" {
			continue // which the other tests tell
		}
		f := &flood{front: &front{protected: p, kind: kind, url: kind.start(t, p, false), client: fmt.Sprintf("127.0.6.%d", i+1)}, spent: p.limitedKey(t, 1)}
		floods = append(floods, f)
		f.front.want(t, request{method: "GET", path: "/app", key: f.spent.secret}, 200)
	}
	for _, f := range floods {
		for range 3 {
			group.Go(func() { f.run(stop) })
		}
	}
	losses := make(map[string]time.Time)
	lose := func(node int, what string, signal syscall.Signal) {
		t.Helper()
		pid := p.cluster.pid(t, node)
		losses[what] = time.Now()
		if err := syscall.Kill(pid, signal); err != nil {
			t.Fatal(err)
		}
		<-time.After(notice + time.Second)
	}
	lose(3, "drained", syscall.SIGTERM)
	p.cluster.startNode(t, 3)
	p.cluster.waitReadyz(t, 3, 3*readyWithin)
	<-time.After(notice) // in which the proxies take it back
	lose(2, "stuck", syscall.SIGSTOP)
	lose(2, "killed", syscall.SIGKILL)
	// A 429 is one also where the node that was asked first is the dead one.
	for _, f := range floods {
		for range 12 {
			res, _ := f.front.want(t, request{method: "GET", path: "/app", key: f.spent.secret}, 429)
			f.front.problem(t, res, "rate_limit_exceeded")
		}
	}
	close(stop)
	group.Wait()
	for _, f := range floods {
		f.judge(t, losses)
	}
	if problems := p.app.complaints(); len(problems) > 0 {
		t.Errorf("the application got what it never may: %q", problems)
	}
}
