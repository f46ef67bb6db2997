package sockhub_test

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/sockhub/sockhub"
)

// What a dialed unixgram socket has written is with the peer's system: it was with a
// buffer of ours.
func TestWrittenDatagramsAreWithThePeer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	srv, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	s := newStand(t, nil, nil)
	c, err := s.Dial(soon(t), "unixgram", path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		c.TrySend(make([]byte, 1000))
	}
	c.Close()
	written := s.end(c).Report.WrittenMessages
	var n uint64
	raw, err := srv.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Read(func(fd uintptr) bool {
		for buf := make([]byte, 2000); ; n++ {
			if _, _, err := syscall.Recvfrom(int(fd), buf, syscall.MSG_DONTWAIT); err != nil {
				return true
			}
		}
	})
	if n != written || n == 0 {
		t.Errorf("%d written, %d are there", written, n)
	}
}

// Listener.Close frees the path of a datagram socket, although a client lives, who can
// still be answered.
func TestListenerCloseFreesThePathOfDatagrams(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s, other, client := newStand(t, nil, nil), newStand(t, nil, nil), newStand(t, nil, nil)
	l, err := s.Listen(soon(t), "unixgram", path, nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.Dial(soon(t), "unixgram", path, &sockhub.DialOptions{Dialer: &net.Dialer{
		// It took the place of the hook that gives the socket an address.
		ControlContext: func(context.Context, string, string, syscall.RawConn) error { return nil },
	}})
	if err != nil {
		t.Fatal(err)
	}
	c.TrySend([]byte("hello"))
	there := s.first()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the file is there: %v", err)
	}
	if _, err := other.Listen(soon(t), "unixgram", path, nil); err != nil {
		t.Error(err)
	}
	if err := there.TrySend([]byte("still")); err != nil {
		t.Error(err)
	}
	client.got(c, 1)
}

// Packets over what cannot tell that one was cut are refused.
func TestWrappedUnixpacketIsRefused(t *testing.T) {
	s := newStand(t, nil, nil)
	inner, err := net.Listen("unixpacket", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Serve(foreign{inner}, nil); err != nil {
		t.Fatal(err)
	}
	p, err := net.Dial("unixpacket", inner.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	greet(t, p, "").atEnd()
}

// foreign is a listener of connections of a type of its own.
type foreign struct{ net.Listener }

func (l foreign) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return struct{ net.Conn }{c}, nil
}

// A client that comes back is let in as soon as its old connection has ended, though the
// packets before that end were not read yet.
func TestUnixpacketComesBackAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s := newStand(t, &sockhub.Options{ConnInbound: 500}, nil)
	if _, err := s.Expect("w", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Listen(soon(t), "unixpacket", path, &sockhub.ListenOptions{Mode: sockhub.Named}); err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		nc, err := net.Dial("unixpacket", path)
		if err != nil {
			t.Fatal(err)
		}
		nc.SetDeadline(time.Now().Add(patience))
		io.WriteString(nc, "w")
		ok := make([]byte, 10)
		if n, err := nc.Read(ok); string(ok[:n]) != "OK" {
			t.Fatalf("connection %d: %q, %v", i, ok[:n], err)
		}
		for range i % 3 {
			nc.Write(make([]byte, 300))
		}
		nc.Close()
	}
}
