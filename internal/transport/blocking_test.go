package transport_test

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sockhub/sockhub/internal/transport"
)

// tlsPair returns a TLS connection whose handshake is done, over loopback TCP.
// It is of version 1.2, where a record that is an alert shows it outside.
func tlsPair(t *testing.T) (client, server *tls.Conn) {
	t.Helper()
	a, b := sockets(t, "tcp")
	server = tls.Server(b, selfSigned(t))
	client = tls.Client(a, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12})
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := server.Handshake(); err != nil {
			t.Error(err)
		}
	})
	if err := client.Handshake(); err != nil {
		t.Error(err)
	}
	wg.Wait()
	return client, server
}

// readSome reads until n bytes or an error of TryRead's have come.
func readSome(t *testing.T, c transport.Conn, n int) (got []byte, err error) {
	t.Helper()
	var p [1000]byte
	werr := c.Read(func() bool {
		for len(got) < n {
			m, drained, rerr := c.TryRead(p[:])
			got = append(got, p[:m]...)
			if err = rerr; err != nil {
				return false
			}
			if drained {
				break
			}
		}
		return len(got) < n
	})
	if werr != nil {
		t.Fatalf("Read: %v", werr)
	}
	return got, err
}

func TestTLSReadIsKickedAndGoesOn(t *testing.T) {
	client, server := tlsPair(t)
	c := transport.New(client)
	for range 100 {
		kicked := make(chan error, 1)
		parked := make(chan struct{})
		var once sync.Once
		go func() {
			kicked <- c.Read(func() bool { once.Do(func() { close(parked) }); return true })
		}()
		<-parked
		c.Kick(transport.ReadSide)
		if err := <-kicked; err != transport.ErrKicked {
			t.Fatalf("Read = %v, want ErrKicked", err)
		}
		if _, err := server.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if got, err := readSome(t, c, 5); string(got) != "hello" || err != nil {
			t.Fatalf("read %q, %v", got, err)
		}
	}
	if n, ok := c.Unacked(); ok && n > 100 {
		t.Errorf("Unacked = %d", n)
	}
	// An orderly end is a close_notify, and input goes on after it.
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("peer's Read after CloseWrite: %v, want io.EOF", err)
	}
	if _, err := server.Write([]byte("bye")); err != nil {
		t.Fatal(err)
	}
	if got, err := readSome(t, c, 3); string(got) != "bye" || err != nil {
		t.Errorf("read %q, %v after CloseWrite", got, err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

func TestTLSHangupDoesNotWaitForThePeer(t *testing.T) {
	client, server := tlsPair(t)
	c := transport.New(client)
	wrote := make(chan error, 1)
	var total atomic.Int64
	go func() {
		chunk := [][]byte{make([]byte, 64<<10)}
		wrote <- c.Write(func() bool {
			for {
				// The peer does not read.
				n, err := c.TryWritev(chunk)
				total.Add(int64(n))
				if n < len(chunk[0]) || err != nil {
					return true
				}
			}
		})
	}()
	unchanging(t, "output", func() int { return int(total.Load()) })
	start := time.Now()
	c.Hangup()
	if err := <-wrote; err != transport.ErrKicked {
		t.Errorf("Write = %v, want ErrKicked", err)
	}
	c.Close()
	// A close_notify would have waited 5 s for room.
	if d := time.Since(start); d > 3*time.Second {
		t.Errorf("took %v", d)
	}
	wantNoAlert(t, server)
}

func TestTLSHangupIsNoOrderlyEnd(t *testing.T) {
	client, server := tlsPair(t)
	c := transport.New(client)
	c.Hangup()
	c.Close()
	wantNoAlert(t, server)
}

// wantNoAlert reads what is left of a connection that was hung up. Only the
// records can tell: package tls takes a bare FIN between two of them for an
// orderly end.
func wantNoAlert(t *testing.T, c *tls.Conn) {
	t.Helper()
	const alert = 21
	for in := c.NetConn(); ; {
		var header [5]byte
		if _, err := io.ReadFull(in, header[:]); err != nil {
			break
		}
		if header[0] == alert {
			t.Error("the peer was sent an alert")
		}
		if _, err := io.CopyN(io.Discard, in, int64(binary.BigEndian.Uint16(header[3:]))); err != nil {
			break
		}
	}
}

// A record that was cut off could not be finished, so kicks wait for the record.
func TestTLSWriteIsNotCutByAKick(t *testing.T) {
	client, server := tlsPair(t)
	c := transport.New(client)
	defer c.Close()
	defer c.Hangup()
	if !c.WritesWhole() {
		t.Error("it does not say that it writes whole")
	}
	const size = 16 << 20 // more than the buffers between the two
	wrote := make(chan error, 1)
	go func() {
		var err error
		for left := make([]byte, size); len(left) > 0 && err == nil; {
			c.Write(func() bool {
				var n int
				n, err = c.TryWritev([][]byte{left})
				if n > 0 && n < len(left) {
					err = io.ErrShortWrite
				}
				left = left[n:]
				return false
			})
		}
		wrote <- err
	}()
	buf := make([]byte, 64<<10)
	for got := 0; got < size; {
		c.Kick(transport.WriteSide)
		n, err := server.Read(buf)
		if err != nil {
			t.Fatalf("after %d bytes: %v", got, err)
		}
		got += n
	}
	if err := <-wrote; err != nil {
		t.Error(err)
	}
}

// closer is a ReadWriteCloser made of parts.
type closer struct {
	io.Reader
	io.Writer
	close func() error
}

func (c closer) Close() error { return c.close() }

func TestErrorComesAfterTheDataReadWithIt(t *testing.T) {
	boom := errors.New("boom")
	c := transport.NewBlocking(closer{
		iotest.DataErrReader(io.MultiReader(bytes.NewReader(make([]byte, 10_000)), iotest.ErrReader(boom))),
		io.Discard, func() error { return nil }})
	got, err := readSome(t, c, 10_001)
	if len(got) != 10_000 || err != boom {
		t.Errorf("%d bytes, %v; want 10000, %v", len(got), err, boom)
	}
	if _, err := readSome(t, c, 1); err != boom {
		t.Errorf("then %v, want %v again", err, boom)
	}
	if err := c.Gone(); err != boom {
		t.Errorf("Gone = %v, want %v", err, boom)
	}
	c.Close()
}

func TestSmallSlicesAreJoined(t *testing.T) {
	var sizes []int
	var all bytes.Buffer
	c := transport.NewBlocking(closer{iotest.ErrReader(io.EOF), writerFunc(func(p []byte) (int, error) {
		sizes = append(sizes, len(p))
		return all.Write(p)
	}), func() error { return nil }})
	defer c.Close()
	header, body, large := []byte("12345678"), make([]byte, 1000), make([]byte, 100_000)
	var want bytes.Buffer
	for _, v := range [][][]byte{
		{header, body, header, body}, // one Write
		{header, large, nil, header}, // a full record, the rest as it is, the end
		{header},
		{large},
		{},
	} {
		if err := c.Write(func() bool {
			n, err := c.TryWritev(v)
			for _, b := range v {
				n -= len(b)
			}
			if n != 0 || err != nil {
				t.Errorf("TryWritev is off by %d bytes, %v", n, err)
			}
			return false
		}); err != nil {
			t.Fatal(err)
		}
		want.Write(bytes.Join(v, nil))
	}
	if diff := cmp.Diff([]int{2016, 16384, 83_624, 8, 8, 100_000}, sizes); diff != "" {
		t.Errorf("sizes of Writes (-want +got):\n%s", diff)
	}
	if !bytes.Equal(want.Bytes(), all.Bytes()) {
		t.Error("other bytes were written than given")
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestShortWriteOfABrokenWriterIsAnError(t *testing.T) {
	c := transport.NewBlocking(closer{iotest.ErrReader(io.EOF), writerFunc(func(p []byte) (int, error) {
		return len(p) / 2, nil
	}), func() error { return nil }})
	defer c.Close()
	for i, want := range []int{5, 0} {
		c.Write(func() bool {
			if n, err := c.TryWritev([][]byte{make([]byte, 10)}); n != want || err != io.ErrShortWrite {
				t.Errorf("TryWritev %d = %d, %v; want %d, ErrShortWrite", i, n, err, want)
			}
			return false
		})
	}
}

func TestKickOfANetPipeWriteLosesNothing(t *testing.T) {
	a, b := net.Pipe()
	c := transport.New(a)
	defer c.Close()
	sent := []byte("0123456789")
	progress := make(chan int, 1)
	kicked := make(chan error, 1)
	go func() {
		kicked <- c.Write(func() bool {
			n, err := c.TryWritev([][]byte{sent})
			if err != nil {
				t.Errorf("TryWritev: %v", err)
			}
			progress <- n
			return n < len(sent)
		})
	}()
	var p [4]byte
	if _, err := io.ReadFull(b, p[:]); err != nil {
		t.Fatal(err)
	}
	c.Kick(transport.WriteSide)
	if n, err := <-progress, <-kicked; n != 4 || err != transport.ErrKicked {
		t.Errorf("%d bytes, then %v; want 4, ErrKicked", n, err)
	}
	b.Close()
}

func TestCloseIsOnceAndJoinsThePump(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, hangup := range []bool{false, true} {
			r, w := io.Pipe()
			closed := 0
			c := transport.NewBlocking(closer{r, w, func() error { closed++; return r.Close() }})
			kicked := make(chan error, 1)
			go func() { kicked <- c.Read(func() bool { return true }) }()
			synctest.Wait() // the pump is in Read
			if hangup {
				c.Hangup()
			} else {
				c.Kick(transport.ReadSide)
			}
			if err := <-kicked; err != transport.ErrKicked {
				t.Errorf("Read = %v, want ErrKicked", err)
			}
			start := time.Now()
			c.Close()
			if closed != 1 {
				t.Errorf("closed %d times", closed)
			}
			if d := time.Since(start); d != 0 {
				t.Errorf("Close has waited %v", d)
			}
		}
	})
}

// What a pump has read ahead, and nobody wants, keeps neither it nor Close.
func TestCloseJoinsThePumpThatHasReadAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		c := transport.NewBlocking(closer{r, w, r.Close})
		go w.Write([]byte("ahead"))
		turns := 0
		kicked := make(chan error, 1)
		go func() { kicked <- c.Read(func() bool { turns++; return true }) }()
		synctest.Wait()
		c.Kick(transport.ReadSide)
		if err := <-kicked; err != transport.ErrKicked || turns != 2 {
			t.Errorf("Read = %v after %d turns, want ErrKicked after 2", err, turns)
		}
		start := time.Now()
		c.Close()
		if d := time.Since(start); d != 0 {
			t.Errorf("Close has waited %v", d)
		}
	})
}

// A Read that has failed is not called again, as it may not fail twice.
func TestNothingIsReadAfterAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reads := 0
		c := transport.NewBlocking(closer{readerFunc(func(p []byte) (int, error) {
			if reads++; reads > 1 {
				return copy(p, "more"), nil
			}
			return copy(p, "last"), io.ErrUnexpectedEOF
		}), io.Discard, func() error { return nil }})
		defer c.Close()
		for range 2 {
			got, err := readSome(t, c, 5)
			if len(got) > 4 || err != io.ErrUnexpectedEOF {
				t.Errorf("%q, %v", got, err)
			}
			synctest.Wait()
		}
		if reads != 1 {
			t.Errorf("Read was called %d times, want once", reads)
		}
	})
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestCloseDoesNotWaitForAReadThatIgnoresIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		c := transport.NewBlocking(closer{r, w, func() error { return nil }})
		kicked := make(chan error, 1)
		go func() { kicked <- c.Read(func() bool { return true }) }()
		synctest.Wait()
		c.Hangup()
		<-kicked
		start := time.Now()
		c.Close()
		if d := time.Since(start); d > 100*time.Millisecond {
			t.Errorf("Close has waited %v", d)
		}
		w.Close() // at last; the bubble ends when the pump does
	})
}
