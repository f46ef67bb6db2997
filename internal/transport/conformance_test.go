package transport_test

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sockhub/sockhub/internal/transport"
	"github.com/sockhub/sockhub/internal/transport/transporttest"
)

// sockets returns the two ends of a connection over loopback.
func sockets(t testing.TB, network string) (dialed, accepted net.Conn) {
	t.Helper()
	addr := "127.0.0.1:0"
	if network == "unix" {
		dir, err := os.MkdirTemp("", "s") // t.TempDir can be too long for a socket
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		addr = filepath.Join(dir, "s")
	}
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	type result struct {
		net.Conn
		error
	}
	done := make(chan result, 1)
	go func() {
		c, err := net.Dial(network, l.Addr().String())
		done <- result{c, err}
	}()
	accepted, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	r := <-done
	if r.error != nil {
		t.Fatal(r.error)
	}
	t.Cleanup(func() { r.Conn.Close(); accepted.Close() })
	return r.Conn, accepted
}

// resettable is a TCP peer for the tests of resets.
type resettable struct{ *net.TCPConn }

func (r resettable) Reset() error {
	if err := r.SetLinger(0); err != nil {
		return err
	}
	return r.TCPConn.Close()
}

// unbuffered marks a peer whose writes wait for reads.
type unbuffered struct{ io.ReadWriteCloser }

func (unbuffered) Unbuffered() {}

// duplex joins two one-way pipes.
type duplex struct {
	io.Reader
	io.Writer
	close func() error
}

func (d duplex) Close() error { return d.close() }

func ioPipes() (a, b io.ReadWriteCloser) {
	r1, w1 := io.Pipe()
	r2, w2 := io.Pipe()
	return duplex{r1, w2, func() error { return errors.Join(r1.Close(), w2.Close()) }},
		duplex{r2, w1, func() error { return errors.Join(r2.Close(), w1.Close()) }}
}

// files joins the ends of two os.Pipes, with deadlines.
type files struct {
	duplex
	r, w *os.File
}

func (f files) SetReadDeadline(d time.Time) error  { return f.r.SetReadDeadline(d) }
func (f files) SetWriteDeadline(d time.Time) error { return f.w.SetWriteDeadline(d) }

func osPipes(t testing.TB) (a, b files) {
	t.Helper()
	r1, w1, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r2, w2, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	join := func(r, w *os.File) files {
		return files{duplex{r, w, func() error { return errors.Join(r.Close(), w.Close()) }}, r, w}
	}
	return join(r1, w2), join(r2, w1)
}

// eventually runs ok until it is true. Loopback is quick, but not instant.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	end := time.After(10 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("never: %s", what)
		}
	}
}

// unchanging waits until a count has stood still for a while, as that of bytes
// does when there is no room for more.
func unchanging(t *testing.T, what string, count func() int) {
	t.Helper()
	last, ticks := count(), 0
	eventually(t, what+" stands still", func() bool {
		n := count()
		if ticks++; n != last {
			last, ticks = n, 0
		}
		return ticks > 20
	})
}

func TestTCP(t *testing.T) {
	transporttest.Run(t, func(t *testing.T) (transport.Conn, io.ReadWriteCloser) {
		a, b := sockets(t, "tcp")
		return transport.New(a), resettable{b.(*net.TCPConn)}
	})
}

func TestUnix(t *testing.T) {
	transporttest.Run(t, func(t *testing.T) (transport.Conn, io.ReadWriteCloser) {
		a, b := sockets(t, "unix")
		return transport.New(a), b
	})
}

func TestBlockingTCP(t *testing.T) {
	transporttest.Run(t, func(t *testing.T) (transport.Conn, io.ReadWriteCloser) {
		a, b := sockets(t, "tcp")
		return transport.NewBlocking(a), resettable{b.(*net.TCPConn)}
	})
}

func TestNetPipe(t *testing.T) {
	transporttest.Run(t, func(t *testing.T) (transport.Conn, io.ReadWriteCloser) {
		a, b := net.Pipe()
		return transport.New(a), unbuffered{b}
	})
}

func TestIOPipe(t *testing.T) {
	transporttest.Run(t, func(t *testing.T) (transport.Conn, io.ReadWriteCloser) {
		a, b := ioPipes()
		return transport.New(a), unbuffered{b}
	})
}

func TestOSPipeWithDeadlines(t *testing.T) {
	transporttest.Run(t, func(t *testing.T) (transport.Conn, io.ReadWriteCloser) {
		a, b := osPipes(t)
		return transport.New(a), b
	})
}

func TestOSPipeWithoutDeadlines(t *testing.T) {
	transporttest.Run(t, func(t *testing.T) (transport.Conn, io.ReadWriteCloser) {
		a, b := osPipes(t)
		return transport.New(a.duplex), b
	})
}
