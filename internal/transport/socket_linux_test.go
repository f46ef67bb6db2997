package transport_test

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockhub/sockhub/internal/transport"
)

// This file tests what only Linux promises, or only real sockets show.

// once runs one turn of Read.
func once(t *testing.T, c transport.Conn, turn func()) {
	t.Helper()
	if err := c.Read(func() bool { turn(); return false }); err != nil {
		t.Fatalf("Read: %v", err)
	}
}

func reset(t *testing.T, c net.Conn) {
	t.Helper()
	if err := (resettable{c.(*net.TCPConn)}).Reset(); err != nil {
		t.Fatal(err)
	}
}

func TestDataThenResetIsDoubtfulAndPending(t *testing.T) {
	for range 20 {
		a, b := sockets(t, "tcp")
		c := transport.New(a)
		if _, err := b.Write([]byte("last words")); err != nil {
			t.Fatal(err)
		}
		reset(t, b)
		eventually(t, "state CLOSE", func() bool { return tcpState(t, a) == unix.BPF_TCP_CLOSE })

		var p [100]byte
		once(t, c, func() {
			// This one is the guess that is wrong.
			n, drained, err := c.TryRead(p[:])
			if string(p[:n]) != "last words" || !drained || err != nil {
				t.Fatalf("TryRead = %q, %v, %v; want the data, drained, nil", p[:n], drained, err)
			}
		})
		if !c.Pending() {
			t.Fatal("not Pending, though there is a reset")
		}
		once(t, c, func() {
			if n, _, err := c.TryRead(p[:]); n != 0 || !errors.Is(err, syscall.ECONNRESET) {
				t.Fatalf("TryRead = %d, %v; want 0, ECONNRESET", n, err)
			}
		})
		c.Close()
	}
}

func tcpState(t *testing.T, c net.Conn) (state uint8) {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO)
		if err != nil {
			t.Error(err)
			return
		}
		state = info.State
	})
	if err != nil {
		t.Fatal(err)
	}
	return state
}

func TestDrainedReadOfTCPNeedsNoSecondReceive(t *testing.T) {
	a, b := sockets(t, "tcp")
	c := transport.New(a)
	defer c.Close()
	if _, err := b.Write(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "data pending", c.Pending)
	once(t, c, func() {
		if n, drained, err := c.TryRead(make([]byte, 60)); n != 60 || drained || err != nil {
			t.Errorf("TryRead = %d, %v, %v; want 60, false, nil", n, drained, err)
		}
		if n, drained, err := c.TryRead(make([]byte, 60)); n != 40 || !drained || err != nil {
			t.Errorf("TryRead = %d, %v, %v; want 40, true, nil", n, drained, err)
		}
	})
	// An end behind the data is one more byte to the kernel.
	if _, err := b.Write(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	b.Close()
	eventually(t, "state CLOSE_WAIT", func() bool { return tcpState(t, a) == unix.BPF_TCP_CLOSE_WAIT })
	once(t, c, func() {
		if n, drained, err := c.TryRead(make([]byte, 200)); n != 100 || drained || err != nil {
			t.Errorf("TryRead = %d, %v, %v; want 100, false, nil", n, drained, err)
		}
		if n, _, err := c.TryRead(make([]byte, 200)); n != 0 || err != io.EOF {
			t.Errorf("TryRead = %d, %v; want 0, io.EOF", n, err)
		}
	})
}

func TestGoneTellsResetFromHalfClose(t *testing.T) {
	wantEOF := func(t *testing.T, c transport.Conn) {
		t.Helper()
		eventually(t, "input pending", c.Pending)
		once(t, c, func() {
			if _, _, err := c.TryRead(make([]byte, 10)); err != io.EOF {
				t.Errorf("TryRead: %v, want io.EOF", err)
			}
		})
	}
	halfClose := func(t *testing.T, c net.Conn) {
		t.Helper()
		if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
			t.Fatal(err)
		}
	}
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network+" half-close", func(t *testing.T) {
			a, b := sockets(t, network)
			c := transport.New(a)
			defer c.Close()
			halfClose(t, b)
			wantEOF(t, c)
			if err := c.Gone(); err != nil {
				t.Errorf("Gone = %v while the peer can read, want nil", err)
			}
			// Our own end does not make a peer gone that has yet to read.
			if _, _, err := c.WriteNow([][]byte{[]byte("answer")}); err != nil {
				t.Fatal(err)
			}
			if network == "unix" {
				if err := c.CloseWrite(); err != nil {
					t.Fatal(err)
				}
				if err := c.Gone(); err != nil {
					t.Errorf("Gone = %v before the peer has read the answer, want nil", err)
				}
			}
			if got, err := io.ReadAll(io.LimitReader(b, 6)); string(got) != "answer" || err != nil {
				t.Errorf("peer got %q, %v", got, err)
			}
		})
	}
	t.Run("tcp reset after half-close", func(t *testing.T) {
		a, b := sockets(t, "tcp")
		c := transport.New(a)
		defer c.Close()
		halfClose(t, b)
		wantEOF(t, c)
		reset(t, b)
		eventually(t, "gone", func() bool { return c.Gone() != nil })
		for range 2 {
			if err := c.Gone(); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("Gone = %v, want ECONNRESET", err)
			}
		}
	})
	t.Run("tcp reset whose error a write has taken", func(t *testing.T) {
		a, b := sockets(t, "tcp")
		c := transport.New(a)
		defer c.Close()
		halfClose(t, b)
		wantEOF(t, c)
		reset(t, b)
		eventually(t, "write error", func() bool {
			_, _, err := c.WriteNow([][]byte{[]byte("x")})
			return err != nil
		})
		wantEOF(t, c) // so input alone looks orderly
		if err := c.Gone(); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("Gone = %v, want ECONNRESET", err)
		}
	})
	t.Run("tcp both ended", func(t *testing.T) {
		a, b := sockets(t, "tcp")
		c := transport.New(a)
		defer c.Close()
		halfClose(t, b)
		wantEOF(t, c)
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "gone", func() bool { return c.Gone() != nil })
		if err := c.Gone(); err != io.EOF {
			t.Errorf("Gone = %v, want io.EOF", err)
		}
		if n, ok := c.Unacked(); n != 0 || !ok {
			t.Errorf("Unacked = %d, %v; want 0, true", n, ok)
		}
	})
	t.Run("unix close", func(t *testing.T) {
		a, b := sockets(t, "unix")
		c := transport.New(a)
		defer c.Close()
		b.Close()
		wantEOF(t, c)
		if err := c.Gone(); err != io.EOF {
			t.Errorf("Gone = %v, want io.EOF", err)
		}
	})
}

func TestUnackedLeavesOutOurFIN(t *testing.T) {
	a, b := sockets(t, "tcp")
	// A window that is shut keeps bytes, and the FIN behind them, here. (A
	// small one of the peer's would do it too, but takes minutes to drain.)
	if err := a.(*net.TCPConn).SetWriteBuffer(64 << 10); err != nil {
		t.Fatal(err)
	}
	c := transport.New(a)
	defer c.Close()
	total := 0
	chunk := make([]byte, 1<<16)
	for {
		n, _, err := c.WriteNow([][]byte{chunk})
		if err != nil {
			t.Fatal(err)
		}
		total += n
		if n < len(chunk) {
			break
		}
	}
	var before int
	unchanging(t, "Unacked", func() int {
		n, ok := c.Unacked()
		if !ok || n == 0 || n > total {
			t.Fatalf("Unacked = %d, %v after %d bytes", n, ok, total)
		}
		before = n
		return n
	})
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if after, ok := c.Unacked(); after != before || !ok {
		t.Errorf("Unacked = %d, %v after the FIN; want %d as before it", after, ok, before)
	}
	if n, err := io.Copy(io.Discard, b); n != int64(total) || err != nil {
		t.Errorf("peer read %d bytes, %v; want %d", n, err, total)
	}
	eventually(t, "all acknowledged", func() bool { n, _ := c.Unacked(); return n == 0 })
}

func TestDeadlineOfEarlierUseIsNoKick(t *testing.T) {
	a, _ := sockets(t, "tcp")
	a.SetDeadline(time.Unix(1, 0))
	c := transport.New(a)
	defer c.Close()
	once(t, c, func() {})
}

func TestTransferOrdersMemoryAsPackageNetDoes(t *testing.T) {
	// Only the race detector can fail this.
	a, b := sockets(t, "tcp")
	c := transport.New(a)
	defer c.Close()
	request, reply := 0, 0
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.Write([]byte("?"))
	}()
	<-done
	answered := make(chan struct{})
	go func() {
		var p [1]byte
		c.Read(func() bool {
			n, _, _ := c.TryRead(p[:])
			if n == 0 {
				return true
			}
			request++
			reply = 1
			c.WriteNow([][]byte{p[:]})
			return false
		})
		<-answered // not before
	}()
	var p [1]byte
	if _, err := io.ReadFull(b, p[:]); err != nil {
		t.Fatal(err)
	}
	if request != 1 || reply != 1 {
		t.Errorf("request %d, reply %d", request, reply)
	}
	close(answered)
}

func BenchmarkTryReadAndWriteNow(bench *testing.B) {
	for _, network := range []string{"tcp", "unix"} {
		bench.Run(network, func(bench *testing.B) {
			a, b := sockets(bench, network)
			c, peer := transport.New(a), transport.New(b)
			var in [4096]byte
			v := [][]byte{make([]byte, 8), make([]byte, 100)}
			bench.ReportAllocs()
			turn := func() bool {
				n, _, err := peer.TryRead(in[:])
				if err != nil {
					bench.Fatal(err)
				}
				return n == 0
			}
			for bench.Loop() {
				if n, _, err := c.WriteNow(v); n != 108 || err != nil {
					bench.Fatal(n, err)
				}
				if err := peer.Read(turn); err != nil {
					bench.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkTryWritevOfManySlices(bench *testing.B) {
	a, b := sockets(bench, "tcp")
	c := transport.New(a)
	go io.Copy(io.Discard, b)
	source := make([]byte, 64)
	all := make([][]byte, 1000)
	for i := range all {
		all[i] = source
	}
	var v [][]byte
	bench.ReportAllocs()
	turn := func() bool {
		n, err := c.TryWritev(v)
		if err != nil {
			bench.Fatal(err)
		}
		v = v[n/len(source):] // to the slice; near enough for a benchmark
		return len(v) > 0
	}
	for bench.Loop() {
		v = all
		if err := c.Write(turn); err != nil {
			bench.Fatal(err)
		}
	}
}

// A socket tells once that its peer is lost. Package tls takes that for something passing,
// as it is a time-out, so over TLS too it must not be the end of the input the next time.
func TestTimeoutBehindDataIsNoOrderlyEnd(t *testing.T) {
	for _, secured := range []bool{false, true} {
		var c transport.Conn
		var ours, theirs net.Conn
		if secured {
			ours, theirs = sockets(t, "tcp")
			server := selfSigned(t)
			_, c = transport.NewTLS(ours, nil, true, func(nc net.Conn) *tls.Conn { return tls.Server(nc, server) })
			peer := tls.Client(theirs, &tls.Config{InsecureSkipVerify: true})
			shaken := make(chan error, 1)
			go func() { shaken <- peer.Handshake() }()
			if err := errors.Join(transport.Handshake(c), <-shaken); err != nil {
				t.Fatal(err)
			}
			peer.Write([]byte("data"))
		} else {
			ours, theirs = sockets(t, "tcp")
			c = transport.New(ours)
			theirs.Write([]byte("data"))
		}
		defer c.Close()
		raw, err := ours.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) {
			// Linux gives a peer up after it that has no room, and says ETIMEDOUT. Without
			// the other, as on older systems, there is another receive behind the data.
			err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_TCP, unix.TCP_USER_TIMEOUT, 100),
				unix.SetsockoptInt(int(fd), unix.SOL_TCP, unix.TCP_INQ, 0))
		})
		if err != nil {
			t.Fatal(err)
		}
		for chunk := make([]byte, 1<<20); ; {
			n, ok, err := c.WriteNow([][]byte{chunk})
			if !ok || err != nil {
				t.Fatal(ok, err)
			}
			if n < len(chunk) {
				break
			}
		}
		eventually(t, "state CLOSE", func() bool { return tcpState(t, ours) == unix.BPF_TCP_CLOSE })
		got, buf := 0, make([]byte, 100)
		once(t, c, func() {
			for range 10 {
				var n int
				if n, _, err = c.TryRead(buf); err != nil {
					break
				}
				got += n
			}
		})
		if got != len("data") || !errors.Is(err, syscall.ETIMEDOUT) {
			t.Errorf("TLS %v: %d bytes, then %v; want 4, then ETIMEDOUT", secured, got, err)
		}
	}
}

// The system tells of an error once, Gone as often as it is asked.
func TestGoneStaysTheSame(t *testing.T) {
	a, b := sockets(t, "unix")
	c := transport.New(a)
	defer c.Close()
	if _, _, err := c.WriteNow([][]byte{[]byte("x")}); err != nil {
		t.Fatal(err)
	}
	b.Close() // with something unread
	for range 2 {
		if err := c.Gone(); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("Gone = %v, want ECONNRESET", err)
		}
	}
}

// Keep-alive finds a silent peer after the first probe's time and those of all the others.
func TestPatienceIsThatOfKeepAlive(t *testing.T) {
	a, _ := sockets(t, "tcp")
	c := transport.New(a)
	defer c.Close()
	for _, tt := range []struct {
		net.KeepAliveConfig
		want time.Duration
	}{
		{net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}, 30 * time.Second},
		{net.KeepAliveConfig{Enable: true, Idle: 7 * time.Second, Interval: 2 * time.Second, Count: 1}, 9 * time.Second},
		{net.KeepAliveConfig{Enable: false}, 0},
	} {
		if err := a.(*net.TCPConn).SetKeepAliveConfig(tt.KeepAliveConfig); err != nil {
			t.Fatal(err)
		}
		if d := transport.Patience(c); d != tt.want {
			t.Errorf("%+v: %v, want %v", tt.KeepAliveConfig, d, tt.want)
		}
	}
}

// What a peer has no room for waits for its answer, though all that was sent is acknowledged.
func TestOutputWithoutRoomWaits(t *testing.T) {
	a, _ := sockets(t, "tcp")
	c := transport.New(a)
	defer c.Close()
	if waits, tries, _ := c.(transport.Prober).Unanswered(); waits || tries > 0 {
		t.Errorf("%v, %d tries, where nothing was sent", waits, tries)
	}
	eventually(t, "full", func() bool {
		n, _, err := c.WriteNow([][]byte{make([]byte, 1<<20)})
		if err != nil {
			t.Fatal(err)
		}
		return n == 0
	})
	begun := time.Now()
	for time.Since(begun) < 100*time.Millisecond { // before the first probe of its window
		if waits, _, _ := c.(transport.Prober).Unanswered(); !waits {
			t.Fatal("nothing waits")
		}
		runtime.Gosched()
	}
}
