// Package transporttest holds what every transport.Conn must do, as tests that
// run over any implementation.
package transporttest

import (
	"bytes"
	"io"
	"math/rand/v2"
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
	for i := range 4 {
		if i == 2 { // after two that no kick has called away
			e.conn.Kick(transport.ReadSide)
			e.conn.Kick(transport.WriteSide)
		}
		if err := e.conn.Read(e.parkedRead); err != transport.ErrKicked {
			e.Errorf("Read = %v, want ErrKicked", err)
		}
		if err := e.conn.Write(func() bool { return true }); err != transport.ErrKicked {
			e.Errorf("Write = %v, want ErrKicked", err)
		}
	}
}

func testPeerSeesHangup(e *env) {
	e.conn.Hangup()
	if n, err := e.peer.Read(make([]byte, 10)); n != 0 || err == nil {
		e.Errorf("peer's Read = %d, %v; want an end", n, err)
	}
}
