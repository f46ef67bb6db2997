package sockhub_test

// What ends, is withdrawn or gives way wakes who waits for memory, and no more is held than the limits say.

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
)

// What was not taken when a hub was closed is nobody's any more.
func TestClosedHubGivesItsPartOfASharedBudgetBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := sockhub.NewBudget(1<<20, 1<<20, 1<<30)
		for i := range 20 {
			hub := openHub(t, &sockhub.Options{Budget: b, MaxMessage: 100_000, MaxConns: 10})
			_, peer := serveMemory(t, hub, nil, sockhub.ListenOptions{})
			go peer.Write(frame(string(make([]byte, 90_000))))
			synctest.Wait()
			if n := hub.Stats().QueuedIn; n == 0 {
				t.Errorf("hub %d cannot read any more", i)
			}
			hub.Close()
			for range hub.Events() { // everything is taken
			}
		}
		hub := openHub(t, &sockhub.Options{Budget: b, MaxMessage: 100_000, MaxConns: 10})
		c, peer := serveMemory(t, hub, nil, sockhub.ListenOptions{})
		go peer.Write(frame("hello"))
		timeout := time.After(time.Hour)
		for {
			select {
			case x := <-hub.Events():
				if len(x.Received) > 0 {
					return
				}
			case <-timeout:
				t.Errorf("nothing is read any more: %+v", c.Stats())
				return
			}
		}
	})
}

func TestReaderStoppedByMemoryLimitGoesOnWhenOutputIsWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, &sockhub.Options{MemoryLimit: 1 << 20, MaxMessage: 1 << 20, WriteTimeout: -1, MaxConns: 10_000, ConnOutbound: 2 << 20})
		base := func(*sockhub.Conn) sockhub.Handler { return sockhub.BaseHandler{} }
		a, pa := serveMemory(t, hub, nil, sockhub.ListenOptions{Handler: base})
		_, pb := serveMemory(t, hub, nil, sockhub.ListenOptions{})
		a.TrySend([]byte("x")) // Drained is called once, and not wanted any more
		<-time.After(time.Minute)
		for hub.Stats().QueuedOut < 3<<19 {
			if err := a.TrySend(make([]byte, 100_000)); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		go pb.Write(frame("hello"))
		<-time.After(time.Minute)
		got := make(chan struct{})
		go func() {
			for x := range hub.Events() {
				if len(x.Received) > 0 {
					close(got)
					return
				}
			}
		}()
		<-time.After(time.Minute)
		select {
		case <-got:
			t.Fatal("read though MemoryLimit is reached")
		default:
		}
		start := time.Now()
		go io.Copy(io.Discard, pa)
		select {
		case <-got:
			t.Log(time.Since(start))
		case <-time.After(time.Hour):
		}
		select {
		case <-got:
		default:
			t.Fatal("not read an hour after all output was written")
		}
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestWithdrawnSendFromGivesItsRoomBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, &sockhub.Options{OutboundLimit: 64 << 10, MaxConns: 1000, WriteTimeout: -1})
		a, pa := serveMemory(t, hub, stuck, sockhub.ListenOptions{})
		b, pb := serveMemory(t, hub, nil, sockhub.ListenOptions{})
		_, _ = pa, pb
		pb.Write(nil)
		// Fill a's socket so that nothing of what follows is written, with an empty queue.
		if err := a.SetRaw(true); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if err := a.TrySend([]byte("1234")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := a.Stats().QueuedOut; n != 0 {
			t.Fatal("queued", n)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := a.SendFrom(ctx, 500_000, io.LimitReader(zeros{}, 500_000))
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		if n, _ := hub.Conn(a.ID()); n != a {
			t.Fatal("cut, not withdrawn")
		}
		if n := hub.Stats().QueuedOut; n != 0 {
			t.Fatal("queued", n)
		}
		// Nothing is queued in the whole hub. One message of any size enters an empty queue.
		ctx2, cancel2 := context.WithTimeout(t.Context(), time.Hour)
		defer cancel2()
		go io.Copy(io.Discard, pb)
		if err := b.Send(ctx2, make([]byte, 60_000)); err != nil {
			t.Fatalf("with nothing queued anywhere: %v; a: %+v", err, a.Stats())
		}
	})
}

func TestWhatComesBehindAMessageInTheExemptSlotCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, connOut := range []int64{0, -1} {
			hub := openHub(t, &sockhub.Options{OutboundLimit: 1 << 20, MaxMessage: 1 << 20, ConnOutbound: connOut, MaxConns: 10})
			c, _ := serveMemory(t, hub, nil, sockhub.ListenOptions{})
			if err := c.TrySend(make([]byte, 700_000)); err != nil {
				t.Fatal(err)
			}
			small := make([]byte, 100_000)
			for range 500 {
				if c.TrySend(small) != nil {
					break
				}
			}
			if n := hub.Stats().QueuedOut; n > 2<<20 {
				t.Errorf("ConnOutbound %d: %d bytes queued, OutboundLimit + MaxMessage is %d", connOut, n, 2<<20)
			}
		}
	})
}

// Peers that send no end of a line hold all the memory there is for input.
func TestUnreadBeginningsDoNotStopTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, &sockhub.Options{InboundLimit: 2 << 20, MaxMessage: 900_000})
		var lines atomic.Int32
		h := func(*sockhub.Conn) sockhub.Handler { // lines of text
			return &handlerFuncs{message: func(r *sockhub.Reply, m []byte) {
				for {
					i := slices.Index(m, '\n')
					if i < 0 {
						r.Unread(m)
						return
					}
					lines.Add(1)
					m = m[i+1:]
				}
			}}
		}
		serve := func() *memnet.End {
			ours, peer := memnet.Pair(nil)
			if _, err := hub.ServeConn(t.Context(), ours, &sockhub.ListenOptions{Mode: sockhub.Raw, Handler: h}); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { peer.Close() })
			return peer
		}
		for range 3 {
			go serve().Write(make([]byte, 800_000)) // no end of a line
		}
		<-time.After(time.Minute)
		honest := serve()
		go honest.Write([]byte("hello\n"))
		<-time.After(24 * time.Hour)
		if lines.Load() == 0 {
			t.Fatalf("a line is not read within a day: %+v", hub.Stats())
		}
	})
}

// Peers that send the most of a message, then a byte now and then, and come again when
// they were given up, keep nobody waiting whose messages are small.
func TestHalfReceivedMessagesDoNotStopSmallOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 512 << 10
		hub := openHub(t, &sockhub.Options{MaxMessage: size, InboundLimit: 2<<20 + 256<<10, FrameTimeout: time.Second, WriteTimeout: -1})
		answer := func(*sockhub.Conn) sockhub.Handler {
			return &handlerFuncs{message: func(r *sockhub.Reply, m []byte) { r.Send(m) }}
		}
		lines := func(*sockhub.Conn) sockhub.Handler {
			return &handlerFuncs{message: func(r *sockhub.Reply, m []byte) {
				i := slices.Index(m, '\n') + 1
				r.Send(m[:i])
				r.Unread(m[i:])
			}}
		}
		go func() { // who has no Handler is answered here
			for b := range hub.Events() {
				for c, m := range b.Messages() {
					c.Send(t.Context(), m)
				}
			}
		}()
		serve := func(lo sockhub.ListenOptions) *memnet.End {
			ours, peer := memnet.Pair(nil)
			if _, err := hub.ServeConn(t.Context(), ours, &lo); err != nil {
				t.Fatal(err)
			}
			return peer
		}
		var attackers sync.WaitGroup
		over := make(chan struct{})
		for range 8 {
			attackers.Go(func() {
				for {
					p := serve(sockhub.ListenOptions{Mode: sockhub.Anonymous, Handler: answer})
					_, err := p.Write(frame(string(make([]byte, size)))[:size*3/4])
					for err == nil {
						select {
						case <-over:
							err = io.EOF
						case <-time.After(300 * time.Millisecond):
							p.SetWriteDeadline(time.Now().Add(time.Second)) // it may not be read
							if _, err = p.Write([]byte{0}); errors.Is(err, os.ErrDeadlineExceeded) {
								err = nil
							}
						}
					}
					p.Close()
					select {
					case <-over:
						return
					default:
					}
				}
			})
		}
		<-time.After(time.Second)
		if n := len(slices.Collect(hub.Conns())); n != 8 {
			t.Errorf("%d connections", n)
		}
		var good sync.WaitGroup
		for _, g := range []struct {
			lo   sockhub.ListenOptions
			send []byte
		}{
			{sockhub.ListenOptions{Mode: sockhub.Anonymous, Handler: answer}, frame("hello")},
			{sockhub.ListenOptions{Mode: sockhub.Anonymous}, frame("hello")},
			{sockhub.ListenOptions{Mode: sockhub.Anonymous, Handler: answer}, frame(string(make([]byte, 2<<10-8)))},
			{sockhub.ListenOptions{Mode: sockhub.Anonymous}, frame(string(make([]byte, 2<<10-8)))},
			{sockhub.ListenOptions{Mode: sockhub.Raw, Handler: lines}, []byte("hello\n")},
		} {
			good.Go(func() {
				p := serve(g.lo)
				defer p.Close()
				for range 100 {
					begin := time.Now()
					p.Write(g.send[:len(g.send)/2]) // it comes in two pieces
					<-time.After(100 * time.Millisecond)
					p.Write(g.send[len(g.send)/2:])
					p.SetReadDeadline(time.Now().Add(time.Minute))
					if _, err := io.ReadFull(p, make([]byte, len(g.send))); err != nil {
						t.Errorf("%d bytes: %v", len(g.send), err)
						return
					}
					if d := time.Since(begin); d > 200*time.Millisecond {
						t.Errorf("%d bytes were answered after %v", len(g.send), d)
					}
				}
			})
		}
		good.Wait()
		close(over)
		attackers.Wait()
	})
}

// Where nobody takes what has come, a little more comes of each connection, and then
// nothing, until it is taken: all of it, in order, and never more at a time.
func TestInboundLimitHoldsBackSmallMessagesToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const conns, msgs, size, limit = 50, 300, 1000, 1 << 20
		hub := openHub(t, &sockhub.Options{InboundLimit: limit, MaxMessage: 100_000})
		var peers sync.WaitGroup
		for i := range conns {
			ours, p := memnet.Pair(nil)
			if _, err := hub.ServeConn(t.Context(), ours, &sockhub.ListenOptions{Mode: sockhub.Anonymous}); err != nil {
				t.Fatal(err)
			}
			peers.Go(func() {
				for n := range msgs {
					m := make([]byte, size)
					m[0], m[1], m[2] = byte(i), byte(n), byte(n>>8)
					p.Write(frame(string(m)))
					<-time.After(time.Millisecond)
				}
				p.Close()
			})
		}
		next := make(map[*sockhub.Conn]int)
		first := true
		for left := conns; left > 0; first = false {
			<-time.After(time.Second)
			if n := hub.Stats().QueuedIn; first && n < limit/2 || n > limit+conns*(2<<10) {
				t.Errorf("%d bytes are queued", n)
			}
			b := <-hub.Events()
			for c, m := range b.Messages() {
				if n := int(m[1]) | int(m[2])<<8; n != next[c] {
					t.Fatalf("message %d, want %d", n, next[c])
				}
				next[c]++
			}
			for _, d := range b.Disconnected {
				if next[d.Conn] != msgs {
					t.Errorf("%d messages, then %v", next[d.Conn], d.Err)
				}
				left--
			}
		}
		peers.Wait()
		if n := hub.Stats().QueuedIn; n != 0 {
			t.Errorf("%d bytes are queued at the end", n)
		}
	})
}

// It is in the middle of one, and its own peer does not read.
func TestFinishedConnectionLetsGoOfItsMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, &sockhub.Options{InboundLimit: 2 << 20, MaxMessage: 900_000, WriteTimeout: -1, FrameTimeout: time.Hour, ConnInbound: 8 << 20})
		a, pa := serveMemory(t, hub, nil, sockhub.ListenOptions{})
		b, pb := serveMemory(t, hub, nil, sockhub.ListenOptions{})
		d, pd := serveMemory(t, hub, nil, sockhub.ListenOptions{})
		<-hub.Events()
		big := frame(string(make([]byte, 800_000)))
		go pa.Write(big[:790_000]) // a lacks least
		go pb.Write(big[:400_000])
		go pd.Write(big[:400_000])
		<-time.After(time.Second)
		for a.TrySend(make([]byte, 100_000)) == nil { // its peer does not read
		}
		a.Finish()
		<-time.After(time.Second)
		go pa.Write(big[790_000:])
		go pb.Write(big[400_000:])
		go pd.Write(big[400_000:])
		var got []*sockhub.Conn
		go func() {
			for x := range hub.Events() {
				for _, r := range x.Received {
					got = append(got, r.Conn)
				}
			}
		}()
		<-time.After(30 * time.Minute)
		st := fmt.Sprintf("%+v %+v %+v", a.Stats(), b.Stats(), d.Stats())
		hub.Close()
		synctest.Wait()
		if !slices.Contains(got, b) || !slices.Contains(got, d) {
			t.Fatalf("not read within half an hour: b %v, d %v; %s", slices.Contains(got, b), slices.Contains(got, d), st)
		}
	})
}

func TestFinishedConnectionIsNotCutForWhatItDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, &sockhub.Options{InboundLimit: 2 << 20, MaxMessage: 900_000, ConnInbound: 8 << 20})
		a, pa := serveMemory(t, hub, nil, sockhub.ListenOptions{})
		_, pb := serveMemory(t, hub, nil, sockhub.ListenOptions{})
		_, pd := serveMemory(t, hub, nil, sockhub.ListenOptions{})
		<-hub.Events()
		big := frame(string(make([]byte, 800_000)))
		go pa.Write(big[:790_000])
		go pb.Write(big[:400_000])
		go pd.Write(big[:400_000])
		<-time.After(time.Second)
		for a.TrySend(make([]byte, 100_000)) == nil {
		}
		go func() { // a slow peer, not a stuck one
			for buf := make([]byte, 50_000); ; <-time.After(time.Second) {
				if _, err := io.ReadFull(pa, buf); err != nil {
					return
				}
			}
		}()
		defer func() { <-time.After(2 * time.Second) }() // until the peer has seen that
		defer pa.Close()
		a.Finish()
		go pa.Write(big[790_000:])
		start := time.Now()
		for x := range hub.Events() {
			for _, d := range x.Disconnected {
				if d.Conn == a {
					if !errors.Is(d.Err, sockhub.ErrClosed) || d.Report.UnsentMessages > 0 {
						t.Fatalf("finished, and its peer reads; after %v: %v, %+v", time.Since(start), d.Err, d.Report)
					}
					return
				}
			}
		}
	})
}

// Nobody takes what comes.
func TestSessionsOfPacketsAreWithinTheLimits(t *testing.T) {
	hub := openHub(t, &sockhub.Options{InboundLimit: 1 << 20, MaxMessage: 64_000, MemoryLimit: 2 << 20})
	l, err := hub.Listen(t.Context(), "udp", "127.0.0.1:0", nil)
	if err != nil {
		t.Fatal(err)
	}
	debug.FreeOSMemory()
	var m0, m1 runtime.MemStats
	runtime.ReadMemStats(&m0)
	msg := make([]byte, 8000)
	for range 60 { // 15 MB in all
		c, err := net.Dial("udp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		for range 32 {
			c.Write(msg)
			<-time.After(50 * time.Microsecond) // or the socket's buffer drops it
		}
		c.Close()
	}
	<-time.After(300 * time.Millisecond)
	runtime.GC()
	runtime.ReadMemStats(&m1)
	if n := int64(m1.HeapInuse) - int64(m0.HeapInuse); n > 8<<20 {
		t.Fatalf("%d MiB held, InboundLimit is 1 MiB and MemoryLimit 2 MiB; QueuedIn %d", n>>20, hub.Stats().QueuedIn)
	}
}

// A Handler that takes its time holds up its own peer alone, and is not ended for
// that, though its message could be read only as the one that lacked least.
func TestHandlerThatBlocksDoesNotKeepOthersFromReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, &sockhub.Options{InboundLimit: 2 << 20, MaxMessage: 900_000})
		go func() {
			for range hub.Events() {
			}
		}()
		release := make(chan struct{})
		h := &handlerFuncs{message: func(*sockhub.Reply, []byte) { <-release }}
		a, pa := serveMemory(t, hub, nil, sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
		b, pb := serveMemory(t, hub, nil, sockhub.ListenOptions{})
		d, pd := serveMemory(t, hub, nil, sockhub.ListenOptions{})
		big := frame(string(make([]byte, 800_000)))
		parts := map[*memnet.End]int{pa: 700_000, pb: 400_000, pd: 400_000} // a lacks least
		for p, n := range parts {
			go p.Write(big[:n])
		}
		<-time.After(time.Second)
		for p, n := range parts {
			go p.Write(big[n:])
		}
		<-time.After(time.Second)
		if b.Stats().MessagesIn+d.Stats().MessagesIn < 2 {
			t.Errorf("others wait for a Handler: %+v", hub.Stats())
		}
		<-time.After(10 * time.Minute)
		if err := context.Cause(a.Context()); err != nil {
			t.Errorf("ended within a call: %v", err)
		}
		close(release)
	})
}

// Who may complete a message for the others to go on has to come up to a rate: a
// byte now and then does not do, though it is progress.
func TestWhoHoldsUpAllOthersHasADeadline(t *testing.T) {
	for held := false; !held && !t.Failed(); { // mostly at once
		synctest.Test(t, func(t *testing.T) { held = holdsUpAllOthers(t) })
	}
}

// holdsUpAllOthers reports whether there was somebody to hold up: by the order in which they
// have their turns, the others may have had room for their messages, one after the other.
func holdsUpAllOthers(t *testing.T) bool {
	hub := openHub(t, &sockhub.Options{InboundLimit: 2 << 20, MaxMessage: 900_000, FrameTimeout: 30 * time.Second})
	go func() {
		for range hub.Events() {
		}
	}()
	a, pa := serveMemory(t, hub, nil, sockhub.ListenOptions{})
	b, pb := serveMemory(t, hub, nil, sockhub.ListenOptions{})
	_, pd := serveMemory(t, hub, nil, sockhub.ListenOptions{})
	big := frame(string(make([]byte, 800_000)))
	const lacks = 200_000
	go pa.Write(big[:len(big)-lacks])
	go pb.Write(big[:400_000])
	go pd.Write(big[:400_000])
	<-time.After(time.Second)
	begun := time.Now()
	go func() {
		for i := len(big) - lacks; i < len(big); i++ {
			pa.Write(big[i:][:1])
			select {
			case <-time.After(time.Second):
			case <-a.Context().Done():
				return
			}
		}
	}()
	synctest.Wait() // it lacks least
	go pb.Write(big[400_000:])
	go pd.Write(big[400_000:])
	select {
	case <-a.Context().Done():
	case <-time.After(time.Hour):
		if hub.Stats().MessagesIn == 2 {
			return false
		}
		t.Fatal("a byte a second keeps all others from reading")
	}
	want := 30*time.Second + lacks*time.Second/(64<<10)
	if d := time.Since(begun); d < want-time.Second || d > want+7*time.Second { // it is not the first at once: one that lacks 400,000 may be
		t.Errorf("ended with %v after %v, want %v", context.Cause(a.Context()), d, want)
	}
	if err := context.Cause(a.Context()); !errors.Is(err, sockhub.ErrFrameTimeout) {
		t.Error(err)
	}
	<-time.After(time.Second)
	if b.Stats().MessagesIn != 1 {
		t.Errorf("the others do not go on: %+v", hub.Stats())
	}
	return true
}

// A hub that leaves a Budget leaves its floors to the others.
func TestSendThatWaitsGetsTheFloorOfAClosedHub(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := sockhub.NewBudget(0, 1<<20, 0)
		hub := openHub(t, &sockhub.Options{Budget: b, MaxConns: 10, WriteTimeout: -1})
		other := openHub(t, &sockhub.Options{Budget: b, MaxConns: 1 << 20})
		var cs []*sockhub.Conn
		for range 3 {
			c, _ := serveMemory(t, hub, stuck, sockhub.ListenOptions{})
			cs = append(cs, c)
		}
		msg := make([]byte, 10_000)
		for cs[0].TrySend(msg) == nil { // all that is shared
		}
		if err := cs[1].TrySend(msg); err != nil { // the exempt one
			t.Fatal(err)
		}
		sent := async(func() (int, error) { return 0, cs[2].Send(t.Context(), msg) })
		waits(t, sent)
		other.Close()
		returns(t, sent, nil)
	})
}

// A Handler whose call outlasts its hub gives the connection back to Events, where
// nobody takes what was withdrawn for it.
func TestHandlerThatGivesBackAfterTheEndOfItsHub(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := sockhub.NewBudget(140_000, 0, 0)
		hub := openHub(t, &sockhub.Options{Budget: b, MaxMessage: 1000, ConnInbound: -1})
		other := openHub(t, &sockhub.Options{Budget: b, MaxMessage: 1000})
		c, p := serveMemory(t, hub, nil, sockhub.ListenOptions{})
		<-hub.Events()
		m := frame(string(make([]byte, 1000)))
		go func() {
			for range 100 { // more than there is room for
				p.Write(m)
			}
		}()
		synctest.Wait()
		block := make(chan struct{})
		c.SetHandler(&handlerFuncs{message: func(r *sockhub.Reply, _ []byte) {
			<-block
			r.SetHandler(nil)
		}})
		synctest.Wait()
		hub.Close()
		close(block)
		synctest.Wait()
		d, q := serveMemory(t, other, nil, sockhub.ListenOptions{})
		go q.Write(m)
		<-time.After(time.Minute)
		if s := d.Stats(); s.MessagesIn != 1 {
			t.Errorf("what nobody takes fills the Budget: %+v", s)
		}
	})
}

// exiting ends the goroutine that asks it about a message of 7777 bytes.
type exiting struct{ sockhub.Framing }

func (f exiting) Header(p []byte) (size int, n uint64, err error) {
	if size, n, err = f.Framing.Header(p); n == 7777 {
		runtime.Goexit()
	}
	return size, n, err
}

// What a connection has delivered in the turn in which its Framing ends the goroutine is
// given back once, when it was taken: else InboundLimit would grow with each such connection.
func TestFramingThatEndsTheGoroutineLeavesInboundLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 1 << 20
		r := newRoom(t, &sockhub.Options{MaxMessage: 100_000, InboundLimit: limit}, nil)
		f := exiting{sockhub.LengthPrefix(8, binary.LittleEndian)}
		for range 30 {
			c, p := r.serve(nil, &sockhub.ListenOptions{Framing: f})
			p.Write(f.AppendHeader(bytes.Repeat(frame(string(make([]byte, 15_000))), 4), 7777))
			r.endOf(c)
		}
		for range 40 {
			_, p := r.serve(nil, nil)
			go p.Write(bytes.Repeat(frame(string(make([]byte, 90_000))), 5))
		}
		synctest.Wait()
		if q := r.Stats().QueuedIn; q < limit/2 || q > limit {
			t.Errorf("%d bytes are queued, of %d", q, limit)
		}
	})
}

// A Handler that blocks in a call which has come while its input waits for the budget's token
// does not keep that from others, and its time counts toward no timeout.
func TestHandlerThatBlocksKeepsNoToken(t *testing.T) {
	for _, how := range []string{"in Drained", "in Drained, its hub closed", "with a message that was withdrawn"} {
		t.Run(how, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := &sockhub.Options{Budget: sockhub.NewBudget(2<<20, 0, 0), MaxMessage: 900_000, FrameTimeout: 30 * time.Second}
				hub, other := openHub(t, o), openHub(t, o)
				got := make(map[string]int)
				goOn := make(chan struct{})
				handler := func(name string) *handlerFuncs {
					return &handlerFuncs{
						message: func(_ *sockhub.Reply, m []byte) {
							if string(m) == "wait" {
								<-goOn
							} else {
								got[name] = len(m)
							}
						},
						drained: func(*sockhub.Reply) { <-goOn },
					}
				}
				serve := func(hub *sockhub.Hub, name string, handled bool) (*sockhub.Conn, *memnet.End) {
					return serveMemory(t, hub, nil, sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler {
						if !handled {
							return nil
						}
						return handler(name)
					}})
				}
				zeros := func(size int) []byte { return frame(string(make([]byte, size))) }
				withdrawn := how == "with a message that was withdrawn"
				blocks, p := serve(hub, "blocks", !withdrawn)
				_, first := serve(other, "first", false) // nobody takes what it sends, so it leaves no room
				last, plast := serve(other, "last", true)
				_, full := serve(other, "full", false)
				little, some, more := zeros(12_000), zeros(200_000), zeros(300_000)
				if withdrawn {
					p.Write(frame("wait"))
				}
				p.Write(some[:100_000])
				first.Write(little[:10_000])
				plast.Write(more[:100_000])
				synctest.Wait()
				go full.Write(bytes.Repeat(zeros(1000), 1200))
				synctest.Wait()
				for _, more := range []func(){ // they lack more and more, so the first has the token
					func() { first.Write(little[10_000:10_001]) },
					func() { p.Write(some[100_000:]) },
					func() { plast.Write(more[100_000:]) },
				} {
					go more()
					synctest.Wait()
				}
				if !blocks.Stats().Paused || !last.Stats().Paused {
					t.Fatal("InboundLimit is not reached")
				}
				if withdrawn {
					blocks.SetHandler(handler("blocks"))
				} else {
					blocks.NotifyDrained()
				}
				synctest.Wait()
				if how == "in Drained, its hub closed" {
					hub.Close()
				}
				first.Write(little[10_001:])
				<-time.After(time.Hour)
				if got["last"] != 300_000 {
					t.Error("others wait")
				}
				close(goOn)
				<-time.After(time.Second)
				if how != "in Drained, its hub closed" && got["blocks"] != 200_000 {
					t.Errorf("it has not got its message: %v", context.Cause(blocks.Context()))
				}
			})
		})
	}
}

// wordy is a connection that says goodbye for an hour.
type wordy struct{ net.Conn }

func (w wordy) Close() error {
	<-time.After(time.Hour)
	return w.Conn.Close()
}

// unixpackets is a listener whose connections no hub can serve.
type unixpackets struct{ *memnet.Listener }

func (unixpackets) Addr() net.Addr { return &net.UnixAddr{Name: "p", Net: "unixpacket"} }

func (l unixpackets) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return wordy{c}, nil
}

// A hub that is being closed, and waits for a connection to say goodbye, leaves it to the
// others that share its Budget to go on when output was written.
func TestClosingHubLeavesTheBudgetToOthers(t *testing.T) {
	for range 20 { // one of the hubs is told, which is drawn
		synctest.Test(t, func(t *testing.T) {
			o := &sockhub.Options{Budget: sockhub.NewBudget(0, 0, 1<<20), MaxMessage: 2 << 20, WriteTimeout: -1, MaxConns: 10_000}
			hub, closing := openHub(t, o), openHub(t, o)
			l := memnet.Listen(nil)
			if _, err := closing.Serve(unixpackets{l}, nil); err != nil {
				t.Fatal(err)
			}
			if _, err := l.Dial(t.Context()); err != nil {
				t.Fatal(err)
			}
			const buffer = 2 << 20
			quiet := func(*sockhub.Conn) sockhub.Handler { return sockhub.BaseHandler{} }
			a, pa := serveMemory(t, hub, &memnet.Options{Buffer: buffer}, sockhub.ListenOptions{Handler: quiet})
			b, pb := serveMemory(t, hub, nil, sockhub.ListenOptions{})
			for _, size := range []int{buffer - 8, buffer - 8} { // the second is written at once, when there is room
				if err := a.TrySend(make([]byte, size)); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
			}
			go pb.Write(frame("hello"))
			synctest.Wait()
			closed := async(func() (int, error) { return 0, closing.Close() })
			waits(t, closed)
			<-time.After(time.Second)
			io.ReadFull(pa, make([]byte, buffer))
			<-time.After(time.Minute)
			if n := b.Stats().MessagesIn; n != 1 {
				t.Errorf("%d messages were read: %+v", n, b.Stats())
			}
			<-closed
		})
	}
}
