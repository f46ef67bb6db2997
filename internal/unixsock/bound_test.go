//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package unixsock

import (
	"net"
	"os"
	"testing"
)

func TestBoundDialsFromOnePathAgain(t *testing.T) {
	to := &net.UnixAddr{Net: "unix", Name: tempPath(t)}
	l, err := net.ListenUnix("unix", to)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	own := &net.UnixAddr{Net: "unix", Name: to.Name + "own"}
	b := NewBound(own)
	dial := func() (net.Conn, error) { return net.DialUnix("unix", own, to) }
	for i := range 3 {
		c, err := b.Dial(dial)
		if err != nil {
			t.Fatalf("attempt %d: %v", i, err)
		}
		c.Close()
	}
	// What was there before, or is another's by now, stays.
	if err := os.Remove(own.Name); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(own.Name, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := b.Dial(dial); err == nil {
			t.Error("bound to a path that was taken")
		}
		if _, err := os.Lstat(own.Name); err != nil {
			t.Error(err)
		}
	}
}

func TestBoundOfNoPath(t *testing.T) {
	for _, local := range []net.Addr{nil, (*net.UnixAddr)(nil), &net.UnixAddr{}, &net.UnixAddr{Name: "@a"}, &net.UnixAddr{Name: "\x00a"}, &net.TCPAddr{}} {
		b := NewBound(local)
		if b != nil {
			t.Errorf("%v is a path", local)
		}
		called := false
		if b.Dial(func() (net.Conn, error) { called = true; return nil, nil }); !called {
			t.Errorf("%v is not dialed from", local)
		}
	}
}
