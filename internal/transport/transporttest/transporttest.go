// Package transporttest holds what every transport.Conn must do, as tests that
// run over any implementation.
package transporttest

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sockhub/sockhub/internal/transport"
)

// stuckAfter is when a test is given up. It is no measure of anything: it turns
// a hang into a failure that names the test.
const stuckAfter = 30 * time.Second

// Unbuffered is implemented by a peer whose Write waits for the other side's
// Read, as net.Pipe's does. Nothing can arrive from it during a turn.
type Unbuffered interface{ Unbuffered() }

// Resetter is implemented by a peer that can end in a reset, at once and
// without a FIN.
type Resetter interface{ Reset() error }

// Run tests the implementation of which newPair returns a new connection, and
// its other end, at each call. The peer is closed by the tests.
//
// The peer may implement Unbuffered and Resetter; without a Reset the tests of
// resets are skipped.
func Run(t *testing.T, newPair func(t *testing.T) (conn transport.Conn, peer io.ReadWriteCloser)) {
	for _, test := range []struct {
		name string
		run  func(e *env)
	}{
		{"ReadRunsTurnAtOnce", testReadRunsTurnAtOnce},
		{"ReadKeepsEdgesThatArriveDuringTurn", testReadKeepsEdges},
		{"ReadReturnsNilWhenTurnIsDone", testReadReturnsNil},
		{"DrainedWithoutDataIsCertain", testDrained},
		{"KickBeforeReadIsNotLost", testKickBeforeRead},
		{"KickDuringTurnEndsReadAfterIt", testKickDuringTurn},
		{"KickOutlivesReadThatIsDone", testKickOutlivesRead},
		{"EveryKickOfAParkedReadIsSeen", testEveryReadKick},
		{"EveryKickOfWriteIsSeen", testEveryWriteKick},
		{"KickOfOneSideLeavesTheOther", testKickOneSide},
		{"HangupUnblocksBoth", testHangupUnblocksBoth},
		{"HangupIsFinalAndIdempotent", testHangupIsFinal},
		{"PeerSeesHangup", testPeerSeesHangup},
		{"KickAndHangupAfterCloseDoNothing", testAfterClose},
		{"InputEndsWithEOFForGood", testEOF},
		{"ShortWriteParksUntilThereIsRoom", testShortWrite},
		{"WriteKeepsOrderOfManySlices", testManySlices},
		{"WriteNowGoesBeforeWrite", testWriteNow},
		{"CloseWriteLeavesInputOpen", testCloseWrite},
		{"BothDirectionsSurviveKicks", testDuplexWithKicks},
		{"DataThenResetEndsInAnError", testReset},
		{"AddressesAreNeverNil", testAddrs},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := newEnv(t, newPair)
			test.run(e)
		})
	}
}

// env is one connection under test, and what uses it.
type env struct {
	*testing.T
	newPair func(t *testing.T) (transport.Conn, io.ReadWriteCloser)
	conn    transport.Conn
	close   func() // closes conn, at the first call
	peer    io.ReadWriteCloser
	wg      sync.WaitGroup // all that may be in Read or Write, or use the peer
}

func newEnv(t *testing.T, newPair func(t *testing.T) (transport.Conn, io.ReadWriteCloser)) *env {
	conn, peer := newPair(t)
	e := &env{T: t, newPair: newPair, conn: conn, peer: peer}
	e.close = sync.OnceFunc(func() { conn.Close() })
	stuck := time.AfterFunc(stuckAfter, func() {
		t.Errorf("stuck for %v", stuckAfter)
		conn.Hangup()
		peer.Close()
	})
	t.Cleanup(func() {
		conn.Hangup()
		peer.Close()
		e.wg.Wait()
		stuck.Stop()
		e.close()
	})
	return e
}

// read reads n bytes through the connection, across kicks. It stops short at an
// error of TryRead's, which it returns.
func (e *env) read(n int) (got []byte, err error) {
	p := make([]byte, 1500)
	for {
		werr := e.conn.Read(func() (park bool) {
			for len(got) < n {
				m, drained, rerr := e.conn.TryRead(p[:min(len(p), n-len(got))])
				got = append(got, p[:m]...)
				if rerr != nil {
					err = rerr
					return false
				}
				if m == 0 && !drained {
					e.Error("TryRead: nothing, but not drained")
				}
				if drained && len(got) < n {
					return true
				}
			}
			return false
		})
		switch {
		case werr == nil:
			return got, err
		case werr != transport.ErrKicked:
			return got, werr
		}
	}
}

func (e *env) wantRead(want []byte) {
	e.Helper()
	got, err := e.read(len(want))
	if err != nil {
		e.Fatalf("read %d of %d bytes: %v", len(got), len(want), err)
	}
	if !bytes.Equal(got, want) {
		e.Fatalf("read other bytes than were sent")
	}
}

// write writes all of v, across kicks.
func (e *env) write(v [][]byte) (err error) {
	for {
		werr := e.conn.Write(func() (park bool) {
			n, terr := e.conn.TryWritev(v)
			v = advance(v, n)
			err = terr
			return terr == nil && len(v) > 0
		})
		switch {
		case werr == nil:
			return err
		case werr != transport.ErrKicked:
			return werr
		}
	}
}

// advance is v without its first n bytes.
func advance(v [][]byte, n int) [][]byte {
	v = append([][]byte(nil), v...)
	for len(v) > 0 && n >= len(v[0]) {
		n -= len(v[0])
		v = v[1:]
	}
	if n > 0 {
		v[0] = v[0][n:]
	}
	return v
}

// send writes p from the peer, beside the test.
func (e *env) send(p []byte) {
	e.wg.Go(func() {
		if _, err := e.peer.Write(p); err != nil {
			e.Errorf("peer's Write: %v", err)
		}
	})
}

// wantPeer makes the peer read what was sent to it.
func (e *env) wantPeer(want []byte) {
	e.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(e.peer, got); err != nil {
		e.Fatalf("peer read %d of %d bytes: %v", n, len(want), err)
	}
	if !bytes.Equal(got, want) {
		e.Fatalf("the peer read other bytes than were sent")
	}
}

// noise is n bytes in which nothing repeats, so that a displaced piece shows.
func noise(n int) []byte {
	p := make([]byte, n)
	r := rand.New(rand.NewPCG(1, uint64(n)))
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}

// parkedRead takes what there is and parks.
func (e *env) parkedRead() (park bool) {
	var p [512]byte
	for {
		if _, drained, err := e.conn.TryRead(p[:]); drained || err != nil {
			return true
		}
	}
}

func testReadRunsTurnAtOnce(e *env) {
	ran := false
	err := e.conn.Read(func() bool { ran = true; return false })
	if err != nil || !ran {
		e.Errorf("Read = %v, turn ran: %v; want nil and true", err, ran)
	}
	ran = false
	err = e.conn.Write(func() bool { ran = true; return false })
	if err != nil || !ran {
		e.Errorf("Write = %v, turn ran: %v; want nil and true", err, ran)
	}
}

func testReadKeepsEdges(e *env) {
	_, unbuffered := e.peer.(Unbuffered)
	var p [64]byte
	for range 200 {
		turns, got := 0, 0
		err := e.conn.Read(func() (park bool) {
			turns++
			for {
				n, drained, err := e.conn.TryRead(p[:])
				if err != nil {
					e.Errorf("TryRead: %v", err)
					return false
				}
				got += n
				if drained {
					break
				}
			}
			if turns == 1 {
				// Behind the receive that found nothing more.
				if unbuffered {
					e.send([]byte("edge"))
				} else if _, err := e.peer.Write([]byte("edge")); err != nil {
					e.Errorf("peer's Write: %v", err)
				}
			}
			return got < len("edge")
		})
		if err != nil || got != len("edge") {
			e.Fatalf("Read = %v after %d bytes, want nil after %d", err, got, len("edge"))
		}
	}
}

func testReadReturnsNil(e *env) {
	e.send([]byte("abcdef"))
	// Whoever stops before all is taken finds the rest next time.
	for _, want := range []string{"ab", "c", "def"} {
		e.wantRead([]byte(want))
	}
}

func testDrained(e *env) {
	err := e.conn.Read(func() bool {
		n, drained, err := e.conn.TryRead(make([]byte, 10))
		if n != 0 || !drained || err != nil {
			e.Errorf("TryRead of nothing = %d, %v, %v; want 0, true, nil", n, drained, err)
		}
		return false
	})
	if err != nil {
		e.Error(err)
	}
	if e.conn.Pending() {
		e.Error("Pending, but nothing was sent")
	}
	if e.conn.Ended() {
		e.Error("Ended, but the peer is there")
	}
	e.send(noise(5000))
	if _, err := e.read(5000); err != nil {
		e.Fatal(err)
	}
	if e.conn.Pending() {
		e.Error("Pending, but all was read")
	}
}

func testKickBeforeRead(e *env) {
	never := func() bool { e.Error("turn ran before the kick was taken"); return false }
	for range 3 {
		e.conn.Kick(transport.ReadSide)
		e.conn.Kick(transport.ReadSide) // coalesces
		if err := e.conn.Read(never); err != transport.ErrKicked {
			e.Errorf("Read = %v, want ErrKicked", err)
		}
		e.conn.Kick(transport.WriteSide)
		e.conn.Kick(transport.WriteSide)
		if err := e.conn.Write(never); err != transport.ErrKicked {
			e.Errorf("Write = %v, want ErrKicked", err)
		}
		// Consumed: both work again.
		e.send([]byte("x"))
		e.wantRead([]byte("x"))
		e.wg.Go(func() {
			if err := e.write([][]byte{[]byte("y")}); err != nil {
				e.Error(err)
			}
		})
		e.wantPeer([]byte("y"))
		e.wg.Wait()
	}
}

func testKickDuringTurn(e *env) {
	turns := 0
	err := e.conn.Read(func() bool {
		turns++
		e.conn.Kick(transport.ReadSide)
		return true
	})
	if err != transport.ErrKicked || turns != 1 {
		e.Errorf("Read = %v after %d turns, want ErrKicked after 1", err, turns)
	}
	turns = 0
	err = e.conn.Write(func() bool {
		turns++
		e.conn.Kick(transport.WriteSide)
		return true
	})
	if err != transport.ErrKicked || turns != 1 {
		e.Errorf("Write = %v after %d turns, want ErrKicked after 1", err, turns)
	}
}

func testKickOutlivesRead(e *env) {
	for _, side := range []struct {
		name string
		side transport.Side
		wait func(func() bool) error
	}{
		{"Read", transport.ReadSide, e.conn.Read},
		{"Write", transport.WriteSide, e.conn.Write},
	} {
		err := side.wait(func() bool { e.conn.Kick(side.side); return false })
		if err != nil {
			e.Errorf("%s = %v, want nil: its turn was done", side.name, err)
		}
		if err := side.wait(func() bool { return false }); err != transport.ErrKicked {
			e.Errorf("next %s = %v, want ErrKicked", side.name, err)
		}
	}
}

// everyKick checks that whatever reason was noted before a kick is seen after a
// return for a kick.
func (e *env) everyKick(kick func(), wait func() error) {
	const kicks = 1000
	var reason atomic.Int64
	seen := make(chan int64)
	e.wg.Go(func() {
		defer close(seen)
		for {
			if err := wait(); err != transport.ErrKicked {
				e.Errorf("returned %v, want ErrKicked", err)
				return
			}
			r := reason.Load()
			seen <- r
			if r == kicks {
				return
			}
		}
	})
	for i := int64(1); i <= kicks; i++ {
		reason.Store(i)
		kick()
		for {
			r, ok := <-seen
			if !ok {
				e.Fatalf("ended before kick %d", i)
			}
			if r == i {
				break
			}
		}
	}
}

func testEveryReadKick(e *env) {
	e.everyKick(
		func() { e.conn.Kick(transport.ReadSide) },
		func() error { return e.conn.Read(e.parkedRead) })
}

func testEveryWriteKick(e *env) {
	e.everyKick(
		func() { e.conn.Kick(transport.WriteSide) },
		func() error { return e.conn.Write(func() bool { return true }) })
}

func testKickOneSide(e *env) {
	e.conn.Kick(transport.WriteSide)
	e.send([]byte("abc"))
	e.wantRead([]byte("abc"))
	if err := e.conn.Write(func() bool { return false }); err != transport.ErrKicked {
		e.Errorf("Write = %v, want ErrKicked", err)
	}
}

func testHangupUnblocksBoth(e *env) {
	read, wrote := make(chan error, 1), make(chan error, 1)
	reading, writing := make(chan struct{}), make(chan struct{})
	e.wg.Go(func() {
		var once sync.Once
		read <- e.conn.Read(func() bool {
			park := e.parkedRead()
			once.Do(func() { close(reading) })
			return park
		})
	})
	e.wg.Go(func() {
		var once sync.Once
		v := [][]byte{noise(1 << 20)}
		wrote <- e.conn.Write(func() bool {
			once.Do(func() { close(writing) })
			// The peer does not read, so this fills the way sooner or
			// later.
			for {
				if n, err := e.conn.TryWritev(v); n < len(v[0]) || err != nil {
					return true
				}
			}
		})
	})
	<-reading
	<-writing
	e.conn.Hangup()
	if err := <-read; err != transport.ErrKicked {
		e.Errorf("Read = %v, want ErrKicked", err)
	}
	if err := <-wrote; err != transport.ErrKicked {
		e.Errorf("Write = %v, want ErrKicked", err)
	}
}

func testHangupIsFinal(e *env) {
	e.conn.Hangup()
	e.conn.Hangup()
	for range 2 {
		if err := e.conn.Read(e.parkedRead); err != transport.ErrKicked {
			e.Errorf("Read = %v, want ErrKicked", err)
		}
		if err := e.conn.Write(func() bool { return true }); err != transport.ErrKicked {
			e.Errorf("Write = %v, want ErrKicked", err)
		}
		e.conn.Kick(transport.ReadSide)
		e.conn.Kick(transport.WriteSide)
	}
}

func testPeerSeesHangup(e *env) {
	e.conn.Hangup()
	if n, err := e.peer.Read(make([]byte, 10)); n != 0 || err == nil {
		e.Errorf("peer's Read = %d, %v; want an end", n, err)
	}
}

func testEOF(e *env) {
	want := noise(100_000)
	e.wg.Go(func() {
		if _, err := e.peer.Write(want); err != nil {
			e.Errorf("peer's Write: %v", err)
		}
		e.peer.Close()
	})
	got, err := e.read(len(want) + 1)
	if err != io.EOF {
		e.Errorf("after %d bytes: %v, want io.EOF", len(got), err)
	}
	if !bytes.Equal(got, want) {
		e.Errorf("got %d bytes that are not the %d that were sent", len(got), len(want))
	}
	for range 2 {
		if got, err := e.read(1); len(got) != 0 || err != io.EOF {
			e.Errorf("after the end: %d bytes, %v; want io.EOF again", len(got), err)
		}
	}
	if runtime.GOOS == "linux" && !e.conn.Ended() {
		e.Error("not Ended after the end")
	}

	// A reader that parks after the end does not spin, and can be kicked.
	turns := 0
	done := make(chan error, 1)
	e.wg.Go(func() {
		done <- e.conn.Read(func() bool { turns++; return e.parkedRead() })
	})
	e.conn.Kick(transport.ReadSide)
	if err := <-done; err != transport.ErrKicked || turns > 10 {
		e.Errorf("Read after the end = %v after %d turns, want ErrKicked after a few", err, turns)
	}
}

func testShortWrite(e *env) {
	_, tries, err := e.conn.WriteNow(nil)
	if err != nil {
		e.Fatal(err)
	}
	if !tries {
		e.Skip("this transport waits in TryWritev")
	}
	const limit = 64 << 20
	chunk := noise(100_000)
	full, sent := make(chan struct{}), make(chan int, 1)
	e.wg.Go(func() {
		defer close(sent)
		var once sync.Once
		total, rest, short := 0, chunk, false
		err := e.conn.Write(func() (park bool) {
			for total < limit {
				n, err := e.conn.TryWritev([][]byte{rest[:len(rest)/2], rest[len(rest)/2:]})
				total += n
				if err != nil {
					e.Errorf("TryWritev: %v", err)
					return false
				}
				if n < len(rest) {
					rest, short = rest[n:], true
					once.Do(func() { close(full) })
					return true
				}
				if rest = chunk; short {
					return false
				}
			}
			e.Errorf("took %d bytes, and never was full", total)
			once.Do(func() { close(full) })
			return false
		})
		if err != nil {
			e.Errorf("Write: %v", err)
		}
		e.conn.Hangup()
		sent <- total
	})
	<-full
	got, got2 := 0, make([]byte, 64<<10)
	for {
		n, err := e.peer.Read(got2)
		for i, b := range got2[:n] {
			if b != chunk[(got+i)%len(chunk)] {
				e.Fatalf("byte %d is wrong", got+i)
			}
		}
		got += n
		if err != nil {
			break
		}
	}
	if want := <-sent; got != want {
		e.Errorf("the peer got %d bytes of %d", got, want)
	}
}

func testManySlices(e *env) {
	var v [][]byte
	var all []byte
	add := func(p []byte) {
		v = append(v, p)
		all = append(all, p...)
	}
	source := noise(200_000)
	for i := range 5000 {
		add(source[i : i+i%7]) // empty ones among them
	}
	add(source[:70_000])
	add(nil)
	for i := range 100 {
		add(source[i*100 : i*100+1000])
	}
	add(source[5 : 16<<10])
	add(nil)
	before := len(v)
	e.wg.Go(func() {
		if err := e.write(v); err != nil {
			e.Errorf("write: %v", err)
		}
	})
	e.wantPeer(all)
	e.wg.Wait()
	if len(v) != before || &v[0][:1][0] != &source[0] {
		e.Error("TryWritev changed its argument")
	}
	e.wg.Go(func() {
		if err := e.write([][]byte{nil, {}}); err != nil {
			e.Errorf("write of nothing: %v", err)
		}
	})
	e.wg.Wait()
}

func testWriteNow(e *env) {
	n, ok, err := e.conn.WriteNow([][]byte{[]byte("ab"), nil, []byte("c")})
	if !ok {
		if n != 0 || err != nil {
			e.Errorf("WriteNow = %d, false, %v; want 0, false, nil", n, err)
		}
		return
	}
	if n != 3 || err != nil {
		e.Fatalf("WriteNow = %d, true, %v; want 3", n, err)
	}
	e.wg.Go(func() {
		if err := e.write([][]byte{[]byte("def")}); err != nil {
			e.Error(err)
		}
	})
	e.wantPeer([]byte("abcdef"))
}

func testCloseWrite(e *env) {
	ended := make(chan error, 1)
	e.wg.Go(func() {
		_, err := io.ReadFull(e.peer, make([]byte, 4))
		if err == nil {
			_, err = e.peer.Read(make([]byte, 1))
		}
		ended <- err
	})
	if err := e.write([][]byte{[]byte("last")}); err != nil {
		e.Fatal(err)
	}
	if err := e.conn.CloseWrite(); errors.Is(err, errors.ErrUnsupported) {
		e.Skip("no CloseWrite")
	} else if err != nil {
		e.Fatalf("CloseWrite: %v", err)
	}
	if err := <-ended; err != io.EOF {
		e.Errorf("peer's Read after CloseWrite: %v, want io.EOF", err)
	}
	want := noise(10_000)
	e.send(want)
	e.wantRead(want)
	if n, ok := e.conn.Unacked(); ok && n != 0 {
		e.Errorf("Unacked = %d after the peer has read the end, want 0", n)
	}
}

func testDuplexWithKicks(e *env) {
	const size = 1 << 20
	in, out := noise(size), noise(size+1)
	var transfers sync.WaitGroup
	transfers.Go(func() {
		for p := in; len(p) > 0; {
			n := min(len(p), 1+rand.IntN(30_000))
			if _, err := e.peer.Write(p[:n]); err != nil {
				e.Errorf("peer's Write: %v", err)
				return
			}
			p = p[n:]
		}
	})
	transfers.Go(func() {
		got := make([]byte, len(out))
		if _, err := io.ReadFull(e.peer, got); err != nil {
			e.Errorf("peer's Read: %v", err)
		}
		if !bytes.Equal(got, out) {
			e.Error("the peer got other bytes")
		}
	})
	transfers.Go(func() {
		got, err := e.read(len(in))
		if err != nil {
			e.Errorf("read: %v", err)
		}
		if !bytes.Equal(got, in) {
			e.Error("got other bytes than the peer sent")
		}
	})
	transfers.Go(func() {
		for p := out; len(p) > 0; {
			var v [][]byte
			for range 1 + rand.IntN(20) {
				n := min(len(p), rand.IntN(5000))
				v, p = append(v, p[:n]), p[n:]
			}
			if err := e.write(v); err != nil {
				e.Errorf("write: %v", err)
				return
			}
		}
	})
	done := make(chan struct{})
	e.wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				e.conn.Kick(transport.Side(rand.IntN(2)))
				e.conn.Pending()
				e.conn.Unacked()
			}
		}
	})
	transfers.Wait()
	close(done)
}

func testReset(e *env) {
	r, ok := e.peer.(Resetter)
	if !ok {
		e.Skip("the peer cannot reset")
	}
	sent := noise(1000)
	if _, err := e.peer.Write(sent); err != nil {
		e.Fatal(err)
	}
	if err := r.Reset(); err != nil {
		e.Fatal(err)
	}
	// A reset behind the data may have had no edge of its own, so somebody
	// must look after a park that lasts.
	done := make(chan struct{})
	e.wg.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				if e.conn.Pending() {
					e.conn.Kick(transport.ReadSide)
				}
			}
		}
	})
	got, err := e.read(len(sent) + 1)
	close(done)
	if err == nil || err == io.EOF {
		e.Errorf("after a reset: %v, want an error that is not io.EOF", err)
	}
	if !bytes.HasPrefix(sent, got) {
		e.Error("got other bytes than were sent before the reset")
	}
}

func testAddrs(e *env) {
	if e.conn.LocalAddr() == nil || e.conn.RemoteAddr() == nil {
		e.Errorf("addresses %v and %v, want some", e.conn.LocalAddr(), e.conn.RemoteAddr())
	}
}
