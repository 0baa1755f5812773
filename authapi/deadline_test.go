package authapi

import (
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"testing"
	"time"
)

// scriptedConn gives one result after another, and notes the deadlines that are set.
type scriptedConn struct {
	net.Conn
	reads, writes []error // of the next calls; io.EOF reads nothing more
	taken         int     // bytes that each write takes that fails
	set           []time.Time
}

func (c *scriptedConn) Read(p []byte) (int, error) {
	err := c.reads[0]
	c.reads = c.reads[1:]
	if err != nil {
		return 0, err
	}
	return copy(p, "word"), nil
}

func (c *scriptedConn) Write(p []byte) (int, error) {
	err := c.writes[0]
	c.writes = c.writes[1:]
	if err != nil {
		return c.taken, err
	}
	return len(p), nil
}

func (c *scriptedConn) SetReadDeadline(t time.Time) error {
	c.set = append(c.set, t)
	return nil
}
func (c *scriptedConn) SetWriteDeadline(t time.Time) error { return c.SetReadDeadline(t) }

func TestConn_LaterDeadlinesAreNoted(t *testing.T) {
	t.Parallel()
	now := time.Now()
	first, second, last := now.Add(time.Minute), now.Add(2*time.Minute), now.Add(3*time.Minute)
	inner := &scriptedConn{reads: []error{nil, os.ErrDeadlineExceeded, os.ErrDeadlineExceeded, nil}}
	c := &conn{Conn: inner}
	for _, at := range []time.Time{first, last, second, last} {
		if err := c.SetReadDeadline(at); err != nil {
			t.Fatal(err)
		}
	}
	if want := []time.Time{first}; !slices.Equal(inner.set, want) {
		t.Fatalf("set %v, want the first alone, %v", inner.set, want)
	}
	p := make([]byte, 10)
	for range 2 { // the second one times out twice on its way
		if n, err := c.Read(p); n != 4 || err != nil {
			t.Fatalf("read %d, %v", n, err)
		}
	}
	if want := []time.Time{first, last, last}; !slices.Equal(inner.set, want) {
		t.Errorf("set %v, want %v", inner.set, want)
	}
	if err := c.SetReadDeadline(second); err != nil { // earlier than what is set now
		t.Fatal(err)
	}
	if got := inner.set[len(inner.set)-1]; !got.Equal(second) {
		t.Errorf("set %v, want %v", got, second)
	}
	if err := errors.Join(c.SetReadDeadline(time.Time{}), c.SetReadDeadline(last)); err != nil { // none, then one
		t.Fatal(err)
	}
	if len(inner.set) != 4 {
		t.Errorf("set %v", inner.set)
	}
}

func TestConn_PassedDeadlineEndsARead(t *testing.T) {
	t.Parallel()
	inner := &scriptedConn{reads: []error{os.ErrDeadlineExceeded, os.ErrDeadlineExceeded, os.ErrDeadlineExceeded, io.EOF}}
	c := &conn{Conn: inner}
	// As a handler does that wakes one which reads.
	if err := errors.Join(c.SetReadDeadline(time.Now().Add(time.Minute)), c.SetReadDeadline(time.Unix(1, 0))); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(nil); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("error %v", err)
	}
	// Put off again, none at all: what has passed in the connection is no end.
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(nil); !errors.Is(err, io.EOF) {
		t.Fatalf("error %v", err)
	}
	if got := inner.set[len(inner.set)-1]; !got.IsZero() {
		t.Errorf("set %v, want none", got)
	}
}

func TestConn_WriteGoesOnWhereItStopped(t *testing.T) {
	t.Parallel()
	inner := &scriptedConn{writes: []error{os.ErrDeadlineExceeded, os.ErrDeadlineExceeded, nil, os.ErrDeadlineExceeded}, taken: 3}
	c := &conn{Conn: inner}
	if err := errors.Join(c.SetWriteDeadline(time.Now().Add(time.Minute)), c.SetWriteDeadline(time.Now().Add(time.Hour))); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Write([]byte("0123456789")); n != 10 || err != nil {
		t.Fatalf("wrote %d, %v", n, err)
	}
	if err := c.SetWriteDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Write([]byte("0123456789")); n != 3 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("wrote %d, %v", n, err)
	}
}
