package sockhub_test

import (
	"crypto/tls"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/sockhub/sockhub"
)

// below is a connection of another's making that shows what is below it.
type below struct{ net.Conn }

func (b below) NetConn() net.Conn { return b.Conn }

// A Unix socket has room again when its peer has read three quarters of what it holds.
// With TLS nobody tries before that.
func TestSlowTLSPeerOnAUnixSocket(t *testing.T) {
	server, client := secure()
	for _, direct := range []bool{true, false} {
		_, path := address(t, "unix")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		theirs, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		ours, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		ours.(*net.UnixConn).SetWriteBuffer(64 << 10)
		peer := tls.Client(theirs, client)
		defer peer.Close()
		shaken := make(chan error, 1)
		go func() { shaken <- peer.Handshake() }()
		if !direct {
			ours = below{ours}
		}
		s := newStand(t, &sockhub.Options{WriteTimeout: 500 * time.Millisecond}, nil)
		c, err := s.ServeConn(soon(t), ours, &sockhub.ListenOptions{Mode: sockhub.Raw, TLS: server})
		if err := errors.Join(err, <-shaken); err != nil {
			t.Fatal(err)
		}
		if err := c.TrySend(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
		buf, begun := make([]byte, 16<<10), time.Now()
		for n := 0; time.Since(begun) < 2*time.Second; <-time.After(200 * time.Millisecond) {
			m, err := peer.Read(buf)
			if n += m; err != nil {
				t.Fatalf("direct %v: after %d bytes in %v: %v", direct, n, time.Since(begun), err)
			}
		}
		c.Close()
	}
}
