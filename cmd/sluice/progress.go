package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// progressEvery is how often a line of progress is written anew.
const progressEvery = 200 * time.Millisecond

// progress shows on a terminal how far a long copy is. Nothing is shown elsewhere: a log is not to fill with bars. Not safe
// for concurrent use.
type progress struct {
	out   io.Writer // nil: no terminal
	what  string
	unit  func(n int64) string
	total int64 // 0: not known
	done  int64
	began time.Time
	next  time.Time
}

func newProgress(env environment, what string, total int64, unit func(int64) string) *progress {
	p := &progress{what: what, unit: unit, total: total, began: time.Now()}
	if terminal(env.stderr) {
		p.out = env.stderr
	}
	return p
}

// terminal reports whether w is one that can show a line anew.
func terminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	if !ok || os.Getenv("TERM") == "dumb" {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// Write counts data, as part of an io.MultiWriter or a TeeReader.
func (p *progress) Write(data []byte) (int, error) {
	p.add(int64(len(data)))
	return len(data), nil
}

func (p *progress) add(n int64) {
	p.done += n
	if now := time.Now(); p.out != nil && now.After(p.next) {
		p.next = now.Add(progressEvery)
		fmt.Fprintf(p.out, "\r%s\x1b[K", p.line(now))
	}
}

const progressWidth = 30

func (p *progress) line(now time.Time) string {
	rate := ""
	if passed := now.Sub(p.began).Seconds(); passed > 0 {
		rate = ", " + p.unit(int64(float64(p.done)/passed)) + "/s"
	}
	if p.total <= 0 {
		return fmt.Sprintf("%s %s%s", p.what, p.unit(p.done), rate)
	}
	part := min(float64(p.done)/float64(p.total), 1)
	filled := int(part * progressWidth)
	return fmt.Sprintf("%s [%s%s] %3.0f%% %s of %s%s", p.what, strings.Repeat("=", filled), strings.Repeat(" ", progressWidth-filled),
		part*100, p.unit(p.done), p.unit(p.total), rate)
}

// end takes the line away.
func (p *progress) end() {
	if p.out != nil {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
}

// byteCount writes a number of bytes in powers of 1024.
func byteCount(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d B", n)
}
