package memnet_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sockhub/sockhub/internal/memnet"
	"github.com/sockhub/sockhub/internal/transport"
)

// read returns what one turn of c's Read can receive, with an error at which it
// stopped. It does not park.
func read(t *testing.T, c transport.Conn) (string, error) {
	t.Helper()
	var got []byte
	var failed error
	if err := c.Read(func() bool {
		for {
			b := make([]byte, 16)
			n, drained, err := c.TryRead(b)
			got = append(got, b[:n]...)
			if failed = err; err != nil || n == 0 && drained {
				return false
			}
		}
	}); err != nil {
		t.Fatalf("Read: %v", err)
	}
	return string(got), failed
}

// write makes one TryWritev of s.
func write(t *testing.T, c transport.Conn, s string) (n int, failed error) {
	t.Helper()
	if err := c.Write(func() bool {
		n, failed = c.TryWritev([][]byte{[]byte(s)})
		return false
	}); err != nil {
		t.Fatalf("Write: %v", err)
	}
	return n, failed
}

func mustWrite(t *testing.T, w io.Writer, s string) {
	t.Helper()
	if n, err := io.WriteString(w, s); n != len(s) || err != nil {
		t.Fatalf("Write(%q) = %d, %v", s, n, err)
	}
}

func wantError(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Fatalf("%s: got error %v, want %v", what, got, want)
	}
}

// parked starts call in a goroutine, and returns when that waits, with a
// function that returns call's result and fails if it goes on waiting.
func parked(t *testing.T, call func() error) (result func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- call() }()
	synctest.Wait()
	select {
	case err := <-done:
		t.Fatalf("returned %v instead of waiting", err)
	default:
	}
	return func() error {
		t.Helper()
		synctest.Wait()
		select {
		case err := <-done:
			return err
		default:
			t.Fatal("still waiting")
			return nil
		}
	}
}

func TestNewFindsTheTransport(t *testing.T) {
	a, b := memnet.Pair(nil)
	defer a.Close()
	defer b.Close()
	if got := transport.New(a); got != a.Transport() {
		t.Errorf("transport.New = %T, want the end's own", got)
	}
}

func TestEdgesCoalesceAndNoneIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := memnet.Pair(nil)
		c := a.Transport()
		var got []string
		result := parked(t, func() error {
			return c.Read(func() bool {
				buf := make([]byte, 100)
				n, drained, err := c.TryRead(buf)
				if !drained || err != nil {
					t.Errorf("TryRead = %d, %v, %v", n, drained, err)
				}
				got = append(got, string(buf[:n]))
				if string(buf[:n]) == "one" {
					// What arrives in a turn is for the next.
					mustWrite(t, b, "two")
				}
				return string(buf[:n]) != "threefour"
			})
		})
		mustWrite(t, b, "one")
		synctest.Wait()
		mustWrite(t, b, "three")
		mustWrite(t, b, "four")
		if err := result(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"", "one", "two", "threefour"}, got); diff != "" {
			t.Errorf("turns (-want +got):\n%s", diff)
		}
		c.Close()
		b.Close()
	})
}

// TestParkWithoutDraining shows that the edge is forgotten by the first turn,
// as on a descriptor: code that parks without a receive sleeps beside its data.
func TestParkWithoutDraining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := memnet.Pair(nil)
		c := a.Transport()
		mustWrite(t, b, "data")
		turns := 0
		result := parked(t, func() error {
			return c.Read(func() bool { turns++; return true })
		})
		if !c.Pending() {
			t.Error("not Pending")
		}
		if turns != 1 {
			t.Errorf("%d turns, want 1", turns)
		}
		c.Kick(transport.ReadSide)
		wantError(t, "Read", result(), transport.ErrKicked)
		c.Close()
		b.Close()
	})
}

// TestResetBehindDataIsNotInTheGuess is the one case in which drained is wrong:
// one edge stands for the data and the reset, and only Pending tells.
func TestResetBehindDataIsNotInTheGuess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := memnet.Pair(nil)
		c := a.Transport()
		mustWrite(t, b, "data")
		b.Reset()
		var failed error
		result := parked(t, func() error {
			return c.Read(func() bool {
				buf := make([]byte, 100)
				n, drained, err := c.TryRead(buf)
				failed = err
				if n > 0 && !drained {
					t.Error("the guess saw the reset")
				}
				return err == nil
			})
		})
		if !c.Pending() {
			t.Error("not Pending")
		}
		c.Kick(transport.ReadSide)
		wantError(t, "Read", result(), transport.ErrKicked)
		for range 2 {
			_, failed = read(t, c)
			wantError(t, "TryRead", failed, syscall.ECONNRESET)
		}
		wantError(t, "Gone", c.Gone(), syscall.ECONNRESET)
		c.Close()
	})
}

// TestFINIsInTheGuess is the counterpart: before a FIN the kernel never says
// drained.
func TestFINIsInTheGuess(t *testing.T) {
	a, b := memnet.Pair(nil)
	c := a.Transport()
	mustWrite(t, b, "data")
	b.CloseWrite()
	c.Read(func() bool {
		if n, drained, err := c.TryRead(make([]byte, 100)); n != 4 || drained || err != nil {
			t.Errorf("TryRead = %d, %v, %v", n, drained, err)
		}
		return false
	})
	for range 2 {
		_, err := read(t, c)
		wantError(t, "TryRead", err, io.EOF)
	}
	if err := c.Gone(); err != nil {
		t.Errorf("Gone = %v of a peer that reads", err)
	}
	if n, err := write(t, c, "answer"); n != 6 || err != nil {
		t.Errorf("write after the peer's FIN = %d, %v", n, err)
	}
	c.Close()
	if got, err := io.ReadAll(b); string(got) != "answer" || err != nil {
		t.Errorf("peer read %q, %v", got, err)
	}
	b.Close()
}

func TestResetThatLooksLikeEOF(t *testing.T) {
	a, b := memnet.Pair(nil)
	c := a.Transport()
	mustWrite(t, b, "data")
	b.Reset()
	_, err := write(t, c, "x")
	wantError(t, "first write", err, syscall.ECONNRESET)
	_, err = write(t, c, "x")
	wantError(t, "second write", err, syscall.EPIPE)
	got, err := read(t, c)
	if got != "data" {
		t.Errorf("read %q", got)
	}
	wantError(t, "TryRead", err, io.EOF)
	wantError(t, "Gone", c.Gone(), syscall.ECONNRESET)
	c.Close()
}

func TestWriteToAClosedPeer(t *testing.T) {
	for _, test := range []struct {
		name          string
		options       memnet.Options
		first, second error
		gone, later   error
	}{
		{"tcp", memnet.Options{}, nil, syscall.EPIPE, nil, syscall.ECONNRESET},
		{"unix", memnet.Options{Unix: true}, syscall.EPIPE, syscall.EPIPE, io.EOF, io.EOF},
	} {
		t.Run(test.name, func(t *testing.T) {
			a, b := memnet.Pair(&test.options)
			c := a.Transport()
			b.Close()
			_, err := read(t, c)
			wantError(t, "TryRead", err, io.EOF)
			wantError(t, "Gone", c.Gone(), test.gone)
			_, err = write(t, c, "x")
			wantError(t, "first write", err, test.first)
			_, err = write(t, c, "x")
			wantError(t, "second write", err, test.second)
			_, err = read(t, c)
			wantError(t, "TryRead", err, io.EOF)
			wantError(t, "Gone", c.Gone(), test.later)
			c.Close()
		})
	}
}

func TestCloseWithUnreadInputResets(t *testing.T) {
	for _, unix := range []bool{false, true} {
		a, b := memnet.Pair(&memnet.Options{Unix: unix})
		c := a.Transport()
		if n, ok, err := c.WriteNow([][]byte{[]byte("unr"), []byte("ead")}); n != 6 || !ok || err != nil {
			t.Errorf("WriteNow = %d, %v, %v", n, ok, err)
		}
		mustWrite(t, b, "data")
		b.Close()
		got, err := read(t, c)
		if got != "data" {
			t.Errorf("read %q", got)
		}
		wantError(t, "TryRead", err, syscall.ECONNRESET)
		if n, ok := c.Unacked(); n != 6 || !ok {
			t.Errorf("Unacked = %d, %v, want 6", n, ok)
		}
		c.Close()
	}
}

// TestNoResetAfterBothFINs is the case in which a peer throws bytes away and
// nobody hears of it, on TCP; a Unix socket tells.
func TestNoResetAfterBothFINs(t *testing.T) {
	for _, test := range []struct {
		unix bool
		want error
	}{{false, io.EOF}, {true, syscall.ECONNRESET}} {
		a, b := memnet.Pair(&memnet.Options{Unix: test.unix})
		c := a.Transport()
		write(t, c, "data")
		c.CloseWrite()
		b.CloseWrite()
		b.Close()
		_, err := read(t, c)
		wantError(t, "TryRead", err, test.want)
		wantError(t, "Gone", c.Gone(), test.want)
		c.Close()
	}
}

func TestBackpressure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := memnet.Pair(&memnet.Options{Buffer: 90})
		c := a.Transport()
		var counts []int
		result := parked(t, func() error {
			return c.Write(func() bool {
				n, err := c.TryWritev([][]byte{make([]byte, 60), make([]byte, 60)})
				if err != nil {
					t.Errorf("TryWritev: %v", err)
				}
				counts = append(counts, n)
				return len(counts) < 2
			})
		})
		if n, ok := c.Unacked(); n != 90 || !ok {
			t.Errorf("Unacked = %d, %v", n, ok)
		}
		buf := make([]byte, 29)
		io.ReadFull(b, buf)
		synctest.Wait()
		if len(counts) != 1 {
			t.Error("woken before a third of the buffer was free")
		}
		io.ReadFull(b, buf[:1])
		if err := result(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]int{90, 30}, counts); diff != "" {
			t.Errorf("counts (-want +got):\n%s", diff)
		}
		c.Close()
		b.Close()
	})
}

func TestKick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := memnet.Pair(nil)
		c := a.Transport()
		for _, side := range []struct {
			side transport.Side
			wait func(func() bool) error
		}{{transport.ReadSide, c.Read}, {transport.WriteSide, c.Write}} {
			turns := 0
			turn := func() bool { turns++; return true }

			c.Kick(side.side)
			c.Kick(side.side)
			wantError(t, "kicked before", side.wait(turn), transport.ErrKicked)
			if turns != 0 {
				t.Error("a turn ran after the kick")
			}
			// The two kicks were one: the next call waits.
			result := parked(t, func() error { return side.wait(turn) })
			c.Kick(side.side)
			wantError(t, "kicked while parked", result(), transport.ErrKicked)

			wantError(t, "kicked in a turn", side.wait(func() bool {
				c.Kick(side.side)
				return true
			}), transport.ErrKicked)

			// A turn that ends the call leaves the kick to the next.
			if err := side.wait(func() bool { c.Kick(side.side); return false }); err != nil {
				t.Error(err)
			}
			wantError(t, "kicked by the call before", side.wait(turn), transport.ErrKicked)
			if err := side.wait(func() bool { return false }); err != nil {
				t.Errorf("a kick came twice: %v", err)
			}
		}
		c.Close()
		b.Close()
	})
}

func TestHangup(t *testing.T) {
	for _, unix := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			a, b := memnet.Pair(&memnet.Options{Buffer: 8, Unix: unix})
			c := a.Transport()
			reading := parked(t, func() error { return c.Read(func() bool { return true }) })
			writing := parked(t, func() error {
				return c.Write(func() bool {
					c.TryWritev([][]byte{make([]byte, 100)})
					return true
				})
			})
			c.Hangup()
			c.Hangup()
			wantError(t, "Read", reading(), transport.ErrKicked)
			wantError(t, "Write", writing(), transport.ErrKicked)
			for range 2 {
				wantError(t, "later Read", c.Read(nil), transport.ErrKicked)
				wantError(t, "later Write", c.Write(nil), transport.ErrKicked)
			}
			if got, err := io.ReadAll(b); len(got) != 8 || err != nil {
				t.Errorf("the peer read %d bytes, %v", len(got), err)
			}
			c.Close()
			b.Close()
		})
	}
}

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := memnet.Pair(&memnet.Options{Buffer: 4})
		start := time.Now()
		elapsed := func(want time.Duration) {
			t.Helper()
			if got := time.Since(start); got != want {
				t.Errorf("after %v, want %v", got, want)
			}
		}
		timeout := func(err error) {
			t.Helper()
			wantError(t, "deadline", err, os.ErrDeadlineExceeded)
			var ne net.Error
			if !errors.As(err, &ne) || !ne.Timeout() {
				t.Errorf("%v is no timeout", err)
			}
		}
		a.SetReadDeadline(start.Add(time.Hour))
		a.SetReadDeadline(start.Add(time.Second))
		_, err := a.Read(make([]byte, 1))
		timeout(err)
		elapsed(time.Second)
		mustWrite(t, b, "data")
		_, err = a.Read(make([]byte, 1))
		timeout(err) // also where there would be something

		a.SetDeadline(start.Add(2 * time.Second))
		n, err := a.Write(make([]byte, 10))
		timeout(err)
		elapsed(2 * time.Second)
		if n != 4 {
			t.Errorf("wrote %d bytes, want 4", n)
		}
		a.SetDeadline(time.Time{})
		if got, err := io.ReadFull(a, make([]byte, 4)); got != 4 || err != nil {
			t.Errorf("Read = %d, %v", got, err)
		}
		reading := parked(t, func() error { _, err := a.Read(make([]byte, 1)); return err })
		a.SetReadDeadline(time.Unix(1, 0))
		timeout(reading())

		a.SetDeadline(time.Now().Add(time.Hour))
		writing := parked(t, func() error { _, err := a.Write(make([]byte, 1)); return err })
		a.Close()
		wantError(t, "Write", writing(), net.ErrClosed)
		wantError(t, "second Close", a.Close(), net.ErrClosed)
		b.Close()
	})
}

func TestConcurrentWritesDoNotMix(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := memnet.Pair(&memnet.Options{Buffer: 7})
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() { mustWrite(t, a, strings.Repeat(fmt.Sprint(i), 50)) })
		}
		for range 4 {
			got := make([]byte, 50)
			io.ReadFull(b, got)
			if want := bytes.Repeat(got[:1], 50); !bytes.Equal(got, want) {
				t.Errorf("mixed: %q", got)
			}
		}
		wg.Wait()
		a.Close()
		b.Close()
	})
}

func TestResetAt(t *testing.T) {
	for _, direction := range []int{0, 1} {
		var at [2]int64
		at[direction] = 5
		ends := [2]*memnet.End{}
		ends[0], ends[1] = memnet.Pair(&memnet.Options{Faults: memnet.Faults{ResetAt: at}})
		from, to := ends[direction], ends[1-direction]
		mustWrite(t, to, "other")
		mustWrite(t, from, "abc")
		n, err := from.Write([]byte("defgh"))
		wantError(t, "Write", err, syscall.ECONNRESET)
		if n != 2 {
			t.Errorf("wrote %d bytes, want 2", n)
		}
		got, err := io.ReadAll(to)
		wantError(t, "Read", err, syscall.ECONNRESET)
		if string(got) != "abcde" {
			t.Errorf("%q arrived", got)
		}
		if got, err := io.ReadAll(from); string(got) != "other" || err != nil {
			t.Errorf("Read after the error was taken = %q, %v, want EOF", got, err)
		}
		wantError(t, "Gone", from.Transport().Gone(), syscall.ECONNRESET)
	}
}

// TestResetAtWaitsForItsReturn has the reset come back late to the writer, which
// must then sleep: if it tried again at once, the bubble's clock would stand
// still, and the reset would never come.
func TestResetAtWaitsForItsReturn(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			defer printSeed(t, seed)
			a, b := memnet.Pair(&memnet.Options{Seed: seed, Faults: memnet.Faults{
				ShortWrite: 1, Spurious: 1, Stall: 1, ResetAt: [2]int64{5, 0},
			}})
			n, err := a.Write(make([]byte, 100))
			if n != 5 {
				t.Errorf("wrote %d bytes, want 5", n)
			}
			wantError(t, "Write", err, syscall.ECONNRESET)
			got, err := io.ReadAll(b)
			if len(got) != 5 {
				t.Errorf("%d bytes arrived, want 5", len(got))
			}
			wantError(t, "Read", err, syscall.ECONNRESET)
		})
	}
}

func TestFailWriteAt(t *testing.T) {
	for seed := range uint64(10) {
		boom := errors.New("boom")
		a, b := memnet.Pair(&memnet.Options{Seed: seed, Faults: memnet.Faults{
			FailWriteAt: [2]int64{5, 0}, WriteError: boom,
		}})
		n, err := a.Write([]byte("abcdefgh"))
		if n != 5 {
			t.Errorf("wrote %d bytes, want 5", n)
		}
		wantError(t, "Write", err, boom)
		_, err = a.Write([]byte("x"))
		wantError(t, "next Write", err, boom)
		mustWrite(t, b, "data")
		if n, err := io.ReadFull(a, make([]byte, 4)); n != 4 || err != nil {
			t.Errorf("Read = %d, %v", n, err)
		}
		a.Close()
		if got, err := io.ReadAll(b); string(got) != "abcde" || err != nil {
			t.Errorf("the peer read %q, %v", got, err)
		}
		b.Close()
	}
}

func TestDelayAndUnacked(t *testing.T) {
	for _, onArrival := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			a, b := memnet.Pair(&memnet.Options{AckOnArrival: onArrival, Faults: memnet.Faults{
				Delay: 1, MaxWait: time.Second,
			}})
			c := a.Transport()
			unacked := func(want int) {
				t.Helper()
				if n, ok := c.Unacked(); n != want || !ok {
					t.Errorf("Unacked = %d, %v, want %d", n, ok, want)
				}
			}
			write(t, c, "data")
			unacked(4)
			b.SetReadDeadline(time.Now())
			_, err := b.Read(make([]byte, 9))
			wantError(t, "Read", err, os.ErrDeadlineExceeded)
			b.SetReadDeadline(time.Time{})
			<-time.After(time.Second)
			synctest.Wait()
			if onArrival {
				unacked(0)
			} else {
				unacked(4)
			}
			io.ReadFull(b, make([]byte, 4))
			unacked(0)

			// A peer that dies takes what was under way with it.
			mustWrite(t, b, "lost")
			b.Reset()
			<-time.After(time.Second)
			synctest.Wait()
			got, err := read(t, c)
			wantError(t, "TryRead", err, syscall.ECONNRESET)
			if got != "" {
				t.Errorf("read %q", got)
			}
			c.Close()
		})
	}
}

func TestStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := memnet.Pair(&memnet.Options{Buffer: 3, Faults: memnet.Faults{Stall: 1, MaxWait: time.Minute}})
		start := time.Now()
		done := make(chan error, 1)
		go func() {
			_, err := a.Write(make([]byte, 30))
			a.Close()
			done <- err
		}()
		got, err := io.ReadAll(b)
		if len(got) != 30 || err != nil {
			t.Errorf("read %d bytes, %v", len(got), err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		if time.Since(start) < time.Second {
			t.Error("nothing stalled")
		}
		b.Close()
	})
}

func TestRulesArePanics(t *testing.T) {
	for name, breach := range map[string]func(transport.Conn){
		"two Reads": func(c transport.Conn) {
			c.Read(func() bool { c.Read(nil); return false })
		},
		"TryRead outside": func(c transport.Conn) { c.TryRead(make([]byte, 1)) },
		"TryRead into nothing": func(c transport.Conn) {
			c.Read(func() bool { c.TryRead(nil); return false })
		},
		"TryWritev outside":     func(c transport.Conn) { c.TryWritev(nil) },
		"WriteNow in a Write":   func(c transport.Conn) { c.Write(func() bool { c.WriteNow(nil); return false }) },
		"Close in a Read":       func(c transport.Conn) { c.Read(func() bool { c.Close(); return false }) },
		"second Close":          func(c transport.Conn) { c.Close(); c.Close() },
		"Pending after Close":   func(c transport.Conn) { c.Close(); c.Pending() },
		"TryWritev from a Read": func(c transport.Conn) { c.Read(func() bool { c.TryWritev(nil); return false }) },
	} {
		t.Run(name, func(t *testing.T) {
			a, _ := memnet.Pair(nil)
			defer func() {
				if s, _ := recover().(string); !strings.HasPrefix(s, "memnet: ") {
					t.Errorf("recovered %q", s)
				}
				// The mutex was let go, whatever the breach.
				a.Close()
			}()
			breach(a.Transport())
		})
	}
}

func TestLacking(t *testing.T) {
	a, b := memnet.Pair(&memnet.Options{NoUnacked: true, NoWriteNow: true, NoCloseWrite: true})
	c := a.Transport()
	if _, ok := c.Unacked(); ok {
		t.Error("Unacked is ok")
	}
	if _, ok, _ := c.WriteNow([][]byte{{1}}); ok {
		t.Error("WriteNow is ok")
	}
	wantError(t, "CloseWrite", c.CloseWrite(), errors.ErrUnsupported)
	if err := b.CloseWrite(); err != nil {
		t.Errorf("CloseWrite of the other view: %v", err)
	}
}

func TestAddresses(t *testing.T) {
	local := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}
	remote := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2), Port: 2}
	names := func(ends ...net.Conn) (s []string) {
		for _, e := range ends {
			s = append(s, e.LocalAddr().Network()+" "+e.LocalAddr().String()+" "+e.RemoteAddr().String())
		}
		return s
	}
	a, b := memnet.Pair(nil)
	got := names(a, b)
	a, b = memnet.Pair(&memnet.Options{Local: local, Remote: remote})
	got = append(got, names(a, b)...)

	l := memnet.Listen(&memnet.Options{Local: local})
	for _, from := range []net.Addr{nil, remote} {
		dialed, err := l.DialFrom(t.Context(), from)
		if err != nil {
			t.Fatal(err)
		}
		accepted, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, names(accepted, dialed)...)
	}
	want := []string{
		"mem a b", "mem b a",
		"tcp 127.0.0.1:1 127.0.0.2:2", "tcp 127.0.0.2:2 127.0.0.1:1",
		"tcp 127.0.0.1:1 dialer-1", "mem dialer-1 127.0.0.1:1",
		"tcp 127.0.0.1:1 127.0.0.2:2", "tcp 127.0.0.2:2 127.0.0.1:1",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
}

func TestListener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := memnet.Listen(&memnet.Options{Backlog: 1})
		accept := func() error { _, err := l.Accept(); return err }
		dial := func() error { _, err := l.Dial(t.Context()); return err }

		result := parked(t, accept)
		if err := dial(); err != nil {
			t.Fatal(err)
		}
		if err := result(); err != nil {
			t.Fatal(err)
		}

		result = parked(t, accept)
		l.AcceptError(syscall.EMFILE, syscall.ENFILE)
		wantError(t, "Accept", result(), syscall.EMFILE)
		waiting, err := l.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		full := parked(t, dial)
		wantError(t, "Accept", accept(), syscall.ENFILE)
		if err := accept(); err != nil {
			t.Fatal(err)
		}
		if err := full(); err != nil {
			t.Fatal(err)
		}

		ctx, cancel := context.WithCancel(t.Context())
		full = parked(t, func() error { _, err := l.Dial(ctx); return err })
		cancel()
		wantError(t, "Dial", full(), context.Canceled)
		full = parked(t, dial)
		l.Close()
		wantError(t, "Dial", full(), syscall.ECONNREFUSED)
		wantError(t, "Accept", accept(), net.ErrClosed)
		wantError(t, "second Close", l.Close(), net.ErrClosed)
		if _, err := waiting.Write([]byte("x")); err != nil {
			t.Errorf("an accepted connection did not outlive its listener: %v", err)
		}
	})
}

func TestListenerCloseEndsAcceptAndResetsTheBacklog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := memnet.Listen(nil)
		result := parked(t, func() error { _, err := l.Accept(); return err })
		l.Close()
		wantError(t, "Accept", result(), net.ErrClosed)

		l = memnet.Listen(nil)
		e, err := l.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		_, err = e.Read(make([]byte, 1))
		wantError(t, "Read", err, syscall.ECONNRESET)
	})
}

// faults draws a bad connection.
func faults(rng *rand.Rand) memnet.Faults {
	p := func() float64 { return max(0, rng.Float64()*1.5-0.25) } // 0 and 1 included
	return memnet.Faults{
		ShortRead: min(1, p()), ShortWrite: min(1, p()), Blind: min(1, p()), Spurious: min(1, p()),
		Delay: p() * p() / 2, Stall: p() * p() / 4,
	}
}

// printSeed names the seed of a failed run. A failure in a bubble ends the test
// that made it, so nobody after the bubble could.
func printSeed(t *testing.T, seed uint64) {
	if t.Failed() {
		t.Logf("seed %d", seed)
	}
}

// TestRandomConnections sends bytes in both directions through two transports
// at once, and through a transport and a plain stream, under random faults and
// kicks. All of it must arrive, in order; no wake-up may be lost, or the bubble
// reports a deadlock; every kick must be heard.
func TestRandomConnections(t *testing.T) {
	seeds := uint64(2000)
	if testing.Short() {
		seeds = 200
	}
	for seed := range seeds {
		synctest.Test(t, func(t *testing.T) {
			defer printSeed(t, seed)
			randomConnection(t, seed)
		})
	}
}

func randomConnection(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	a, b := memnet.Pair(&memnet.Options{
		Buffer: 1 + rng.IntN(300), Seed: seed, Faults: faults(rng), Unix: rng.IntN(2) == 0,
	})
	content := func() []byte {
		b := make([]byte, rng.IntN(2000))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	up, down := content(), content()

	var wg sync.WaitGroup
	var gotUp, gotDown []byte
	c := a.Transport()
	wg.Go(func() { writeAll(t, c, up, seed) })
	wg.Go(func() { gotDown = readAll(t, c, seed) })
	plain := rng.IntN(2) == 0
	if plain {
		wg.Go(func() {
			if _, err := b.Write(down); err != nil {
				t.Errorf("plain Write: %v", err)
			}
			b.CloseWrite()
		})
		wg.Go(func() {
			var err error
			if gotUp, err = io.ReadAll(b); err != nil {
				t.Errorf("plain Read: %v", err)
			}
		})
	} else {
		wg.Go(func() { writeAll(t, b.Transport(), down, seed+1) })
		wg.Go(func() { gotUp = readAll(t, b.Transport(), seed+2) })
	}
	wg.Wait()
	if !bytes.Equal(gotUp, up) || !bytes.Equal(gotDown, down) {
		t.Errorf("got %d and %d bytes, want %d and %d, or they differ", len(gotUp), len(gotDown), len(up), len(down))
	}
	<-time.After(time.Second) // the last stall ends
	if err := c.Gone(); err != io.EOF {
		t.Errorf("Gone = %v after both FINs", err)
	}
	if n, ok := c.Unacked(); n != 0 || !ok {
		t.Errorf("Unacked = %d, %v at the end", n, ok)
	}
	c.Close()
	b.Close()
}

// kicker kicks one side now and then, each time only after the kick before was
// heard, so that every single one must be.
type kicker struct {
	conn  transport.Conn
	side  transport.Side
	heard chan struct{} // from the kicked goroutine to the kicker; never closed
	quit  chan struct{} // closed by stop
	done  chan struct{} // closed by the kicker when it ends
	open  bool          // a kick was not heard; owned by the kicker until done
}

func startKicker(c transport.Conn, side transport.Side, seed uint64) *kicker {
	k := &kicker{conn: c, side: side, heard: make(chan struct{}), quit: make(chan struct{}), done: make(chan struct{})}
	rng := rand.New(rand.NewPCG(seed, 2))
	go func() {
		defer close(k.done)
		for {
			select {
			case <-k.quit:
				return
			case <-time.After(time.Duration(1 + rng.IntN(int(10*time.Millisecond)))):
			}
			c.Kick(side)
			select {
			case <-k.quit:
				k.open = true
				return
			case <-k.heard:
			}
		}
	}()
	return k
}

// stop ends the kicker. The kick that nobody heard is for the next call, and no
// other one is.
func (k *kicker) stop(t *testing.T) {
	close(k.quit)
	<-k.done
	wait := k.conn.Read
	if k.side == transport.WriteSide {
		wait = k.conn.Write
	}
	for _, want := range []bool{k.open, false} {
		if err := wait(func() bool { return false }); (err != nil) != want {
			t.Errorf("side %v: got %v, want a kick: %v", k.side, err, want)
		}
	}
}

// writeAll writes data and a FIN as a writer goroutine does.
func writeAll(t *testing.T, c transport.Conn, data []byte, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 3))
	kicks := startKicker(c, transport.WriteSide, seed)
	defer kicks.stop(t)
	turn := func() bool {
		for len(data) > 0 {
			want := 1 + rng.IntN(len(data))
			cut := rng.IntN(want + 1)
			n, err := c.TryWritev([][]byte{data[:cut], data[cut:want]})
			data = data[n:]
			if err != nil {
				t.Errorf("TryWritev: %v", err)
				return false
			}
			if n < want {
				return true
			}
			if rng.IntN(8) == 0 {
				return false // leave Write, as to look at something else
			}
		}
		return false
	}
	for len(data) > 0 && !t.Failed() {
		if rng.IntN(8) == 0 {
			n, ok, err := c.WriteNow([][]byte{data})
			if data = data[n:]; !ok || err != nil {
				t.Errorf("WriteNow: %v, %v", ok, err)
			}
			continue
		}
		if err := c.Write(turn); errors.Is(err, transport.ErrKicked) {
			kicks.heard <- struct{}{}
		} else if err != nil {
			t.Errorf("Write: %v", err)
		}
	}
	if err := c.CloseWrite(); err != nil {
		t.Errorf("CloseWrite: %v", err)
	}
}

// readAll reads to the end of the input as a reader goroutine does.
func readAll(t *testing.T, c transport.Conn, seed uint64) (got []byte) {
	rng := rand.New(rand.NewPCG(seed, 4))
	kicks := startKicker(c, transport.ReadSide, seed)
	defer kicks.stop(t)
	end := false
	turn := func() bool {
		for {
			b := make([]byte, 1+rng.IntN(400))
			n, drained, err := c.TryRead(b)
			got = append(got, b[:n]...)
			switch {
			case err != nil:
				if err != io.EOF {
					t.Errorf("TryRead: %v", err)
				}
				end = true
				return false
			case drained:
				return true
			case n == 0:
				t.Error("nothing read, not drained and no error")
				end = true
				return false
			case rng.IntN(8) == 0:
				return false
			}
		}
	}
	for !end {
		if err := c.Read(turn); errors.Is(err, transport.ErrKicked) {
			kicks.heard <- struct{}{}
		} else if err != nil {
			t.Errorf("Read: %v", err)
			return got
		}
	}
	return got
}

// TestRandomEnds kills connections at random, and holds what every end must
// hold: the peer has seen a prefix of what was written, it has read at least
// what is not Unacked, and both sides hear of the end.
func TestRandomEnds(t *testing.T) {
	seeds := uint64(1000)
	if testing.Short() {
		seeds = 100
	}
	for seed := range seeds {
		synctest.Test(t, func(t *testing.T) {
			defer printSeed(t, seed)
			randomEnd(t, seed)
		})
	}
}

func randomEnd(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 5))
	o := &memnet.Options{Buffer: 1 + rng.IntN(300), Seed: seed, Faults: faults(rng), Unix: rng.IntN(2) == 0}
	kind := rng.IntN(5)
	switch kind {
	case 0, 1:
		o.Faults.ResetAt[kind] = 1 + rng.Int64N(900)
	case 2:
		o.Faults.FailWriteAt[0] = 1 + rng.Int64N(900)
	}
	a, b := memnet.Pair(o)
	c := a.Transport()
	data := make([]byte, 1000)
	for i := range data {
		data[i] = byte(rng.Uint32())
	}

	var wg sync.WaitGroup
	var written int
	var writeErr, readErr error
	var peerGot []byte
	var hung atomic.Bool
	hangup := func() { hung.Store(true); c.Hangup() }
	wg.Go(func() { // the writer; it hangs up when it fails
		err := c.Write(func() bool {
			var n int
			n, writeErr = c.TryWritev([][]byte{data[written:]})
			written += n
			return writeErr == nil && written < len(data)
		})
		if err != nil && !errors.Is(err, transport.ErrKicked) {
			t.Errorf("Write: %v", err)
		}
		if err == nil && writeErr == nil {
			c.CloseWrite()
		}
		if writeErr != nil {
			hangup()
		}
	})
	wg.Go(func() { // the reader, and a watch of doubtful parks
		defer hangup()
		stop := watch(c)
		defer stop()
		for {
			err := c.Read(func() bool {
				for {
					n, drained, err := c.TryRead(make([]byte, 64))
					readErr = err
					if err != nil || drained && n == 0 {
						return err == nil
					}
					if drained {
						return true
					}
				}
			})
			if err == nil || hung.Load() {
				return
			}
		}
	})
	wg.Go(func() { // the peer
		limit := int64(1 << 20)
		if kind >= 3 {
			limit = rng.Int64N(900)
		}
		peerGot, _ = io.ReadAll(io.LimitReader(b, limit))
		if kind == 3 {
			b.Reset()
			return
		}
		b.Close()
	})
	wg.Wait()
	if !bytes.HasPrefix(data, peerGot) {
		t.Error("the peer did not see a prefix")
	}
	if len(peerGot) > written {
		t.Errorf("the peer read %d of %d bytes written", len(peerGot), written)
	}
	if n, ok := c.Unacked(); !ok || n < written-len(peerGot) {
		t.Errorf("Unacked = %d, %v; %d written, %d read by the peer", n, ok, written, len(peerGot))
	}
	if written < len(data) && writeErr == nil && readErr == nil {
		t.Error("cut short, and nobody heard of it")
	}
	c.Close()
}

// watch kicks c's reader while something is pending, as a hub's watch
// goroutine does for parks that follow a guess.
func watch(c transport.Conn) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-quit:
				return
			case <-time.After(100 * time.Millisecond):
				if c.Pending() {
					c.Kick(transport.ReadSide)
				}
			}
		}
	}()
	return func() { close(quit); <-done }
}

func BenchmarkPair(b *testing.B) {
	for b.Loop() {
		x, y := memnet.Pair(nil)
		x.Close()
		y.Close()
	}
}

func BenchmarkPingPong(b *testing.B) {
	x, y := memnet.Pair(nil)
	defer x.Close()
	go io.Copy(y, y)
	msg := make([]byte, 64)
	b.ReportAllocs()
	for b.Loop() {
		x.Write(msg)
		io.ReadFull(x, msg)
	}
}
