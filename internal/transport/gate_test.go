package transport

import (
	"bytes"
	"testing"
)

// narrow is a transport that takes so many bytes.
type narrow struct {
	Conn
	takes int
	got   []byte
}

func (c *narrow) WriteNow(v [][]byte) (n int, ok bool, err error) {
	n = min(c.takes, len(v[0]))
	c.takes -= n
	c.got = append(c.got, v[0][:n]...)
	return n, true, nil
}

func (c *narrow) Unacked() (n int, ok bool) { return 3, true }

// What the transport does not take of a record, and of an answer of package tls behind it,
// leaves in order, and the record is out as soon as nothing of it is kept.
func TestGateKeepsOrderAndCount(t *testing.T) {
	under := new(narrow)
	g := &gate{open: true, under: under}
	c := &tlsConn{gate: g}
	write := func(takes int, p []byte) {
		t.Helper()
		under.takes = takes
		if n, err := g.Write(p); n != len(p) || err != nil {
			t.Fatal(n, err)
		}
	}
	check := func(left int, out bool) {
		t.Helper()
		if n, isOut := g.left(), g.out(20); n != left || isOut != out {
			t.Errorf("%d bytes are kept, and the record is out: %v; want %d, %v", n, isOut, left, out)
		}
		if n, ok := c.Unacked(); n != 3+left || !ok {
			t.Errorf("%d bytes are not acknowledged, %v; want %d", n, ok, 3+left)
		}
	}
	flush := func(takes int, want bool) {
		t.Helper()
		under.takes = takes
		if all, err := g.flush(); all != want || err != nil {
			t.Errorf("flush: %v, %v", all, err)
		}
	}
	record, answer := []byte("01234567890123456789"), []byte("abcde")
	write(10, record)
	check(10, false)
	write(100, answer) // which has room by now, but its turn is behind
	check(15, false)
	flush(7, false)
	check(8, false)
	flush(3, false)
	check(5, true)
	flush(0, false)
	flush(5, true)
	check(0, true)
	if want := append(record, answer...); !bytes.Equal(under.got, want) {
		t.Errorf("%q was sent, want %q", under.got, want)
	}

	write(0, make([]byte, keptMax))
	if _, err := g.Write([]byte("x")); err != errKept {
		t.Errorf("%v from who keeps more than is allowed, want %v", err, errKept)
	}
}
