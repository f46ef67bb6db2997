package sockhub_test

// The limits that connections, and hubs, share.

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
)

// attachMany serves n in-memory connections, anonymously, and returns the
// peers' ends.
func attachMany(t *testing.T, hub *sockhub.Hub, n int) (ours []*sockhub.Conn, peers []*memnet.End) {
	t.Helper()
	for range n {
		a, b := memnet.Pair(nil)
		c, err := hub.ServeConn(t.Context(), a, &sockhub.ListenOptions{Mode: sockhub.Anonymous})
		if err != nil {
			t.Fatal(err)
		}
		ours, peers = append(ours, c), append(peers, b)
	}
	return ours, peers
}

var full = flag.Bool("full", false, "tests of memory in their full size: slow under the race detector")

// A thousand messages that together are eight times the limit, all begun at
// once: a budget that gave each connection a fair share would stand still with
// a thousand beginnings.
func TestThousandHalfReceivedMessagesDoNotFillTheInboundLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		scale := 8
		if *full {
			scale = 1
		}
		conns, size, limit := 1000, 1<<20/scale, int64(130<<20/scale)
		hub := openHub(t, &sockhub.Options{InboundLimit: limit, MaxMessage: int64(64 << 20 / scale), FrameTimeout: time.Hour})
		_, peers := attachMany(t, hub, conns)
		wire := frame(string(make([]byte, size)))
		for _, p := range peers {
			go func() {
				p.Write(wire[:size/4])
				<-time.After(time.Second) // meanwhile everybody has begun
				p.Write(wire[size/4:])
			}()
		}
		var peak int64
		for got := 0; got < conns; {
			b := <-hub.Events()
			for _, m := range b.Messages() {
				if len(m) != size {
					t.Fatal(len(m))
				}
				got++
			}
			peak = max(peak, hub.Stats().QueuedIn)
		}
		if peak > limit {
			t.Errorf("%d bytes held", peak)
		}
	})
}

// A message that the hub's limit refuses on an empty queue has no writer behind
// it that could tell when there is room again.
func TestDrainedComesWhenTheHubHasRoomAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, &sockhub.Options{OutboundLimit: 1 << 20, MaxConns: 64, WriteTimeout: -1})
		ours, peers := attachMany(t, hub, 3)
		for ours[0].TrySend(make([]byte, 10_000)) == nil {
		}
		if err := ours[2].TrySend(make([]byte, 400_000)); err != nil { // the exempt one
			t.Fatal(err)
		}
		big := make([]byte, 100_000)
		if err := ours[1].TrySend(big); !errors.Is(err, sockhub.ErrBackpressure) {
			t.Fatal(err)
		}
		drained := make(chan struct{})
		go func() {
			for b := range hub.Events() {
				if slices.Contains(b.Drained, ours[1]) {
					close(drained)
					return
				}
			}
		}()
		<-time.After(time.Second)
		select {
		case <-drained:
			t.Fatal("Drained, and there is no room")
		default:
		}
		go io.Copy(io.Discard, peers[0])
		select {
		case <-drained:
		case <-time.After(time.Minute):
			t.Fatal("no Drained")
		}
		if err := ours[1].TrySend(big); err != nil {
			t.Error(err)
		}
	})
}

func TestOutboundLimitIsSharedByAllConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, &sockhub.Options{OutboundLimit: 1 << 20, MaxConns: 64, WriteTimeout: -1})
		ours, peers := attachMany(t, hub, 3)
		msg := make([]byte, 10_000)
		fill := func(c *sockhub.Conn) (n int) {
			for c.TrySend(msg) == nil {
				n++
			}
			return n
		}
		sent := fill(ours[0])
		if q := ours[0].Stats().QueuedOut; q < 400_000 || q > 600_000 {
			t.Errorf("%d bytes queued of half a MiB that is shared", q)
		}
		// Its floor is left to another connection, and no more.
		if err := ours[1].TrySend(make([]byte, 4000)); err != nil {
			t.Error(err)
		}
		// Nothing else is queued there: the exempt message.
		if err := ours[2].TrySend(make([]byte, 200_000)); err != nil {
			t.Error(err)
		}
		done := make(chan error, 1)
		go func() { done <- ours[1].Send(context.Background(), make([]byte, 100_000)) }()
		<-time.After(time.Second)
		select {
		case err := <-done:
			t.Fatal("Send did not wait", err)
		default:
		}
		for range sent {
			expect(t, peers[0], frame(string(msg)))
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestBudgetIsSharedByHubs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := sockhub.NewBudget(0, 1<<20, 0)
		var conns []*sockhub.Conn
		for range 2 {
			hub := openHub(t, &sockhub.Options{Budget: b, MaxConns: 100, WriteTimeout: -1})
			ours, _ := attachMany(t, hub, 2)
			conns = append(conns, ours...)
		}
		for conns[0].TrySend(make([]byte, 10_000)) == nil {
		}
		conns[2].TrySend(make([]byte, 100_000)) // the exempt one
		if err := conns[3].TrySend(make([]byte, 100_000)); !errors.Is(err, sockhub.ErrBackpressure) {
			t.Error(err)
		}
	})
}

func TestLimitsThatContradictMaxMessage(t *testing.T) {
	for _, o := range []*sockhub.Options{
		{InboundLimit: 100 << 20},
		{MaxMessage: 1 << 30},
		{MaxMessage: -1},
		{Budget: sockhub.NewBudget(1<<20, 0, 0)},
		{Budget: sockhub.NewBudget(0, 0, 0), InboundLimit: 1 << 30},
	} {
		if hub, err := sockhub.New(context.Background(), o); err == nil {
			hub.Close()
			t.Errorf("%+v was accepted", o)
		}
	}
	hub, err := sockhub.New(context.Background(), &sockhub.Options{MaxMessage: -1, InboundLimit: -1})
	if err != nil {
		t.Fatal(err)
	}
	hub.Close()
}

// MemoryLimit stops accepting, and reading, and never sending.
func TestUnreadReportsCountAgainstTheMemoryLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, &sockhub.Options{MemoryLimit: 300_000, WriteTimeout: -1})
		ours, _ := attachMany(t, hub, 2)
		for range 50 {
			if err := ours[0].TrySend(make([]byte, 10_000)); err != nil {
				t.Fatal(err)
			}
		}
		ours[0].Close()
		synctest.Wait()
		if err := ours[1].TrySend([]byte("still")); err != nil {
			t.Error(err)
		}
		a, _ := memnet.Pair(nil)
		if _, err := hub.ServeConn(t.Context(), a, &sockhub.ListenOptions{Mode: sockhub.Anonymous}); !errors.Is(err, sockhub.ErrMemoryLimit) {
			t.Error(err)
		}
		if s := hub.Stats(); s.RefusedLimit != 1 {
			t.Errorf("%+v", s)
		}
		<-hub.Events() // the report is the user's now
		synctest.Wait()
		a, _ = memnet.Pair(nil)
		if _, err := hub.ServeConn(t.Context(), a, &sockhub.ListenOptions{Mode: sockhub.Anonymous}); err != nil {
			t.Error(err)
		}
	})
}

// A loop over Events that answers with TrySend, and a Handler, each with one
// peer that never reads, go on serving the others.
func TestPeerThatNeverReadsStopsNobodyElse(t *testing.T) {
	for _, events := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			hub := openHub(t, &sockhub.Options{ConnOutbound: 100_000, OutboundLimit: 1 << 20, WriteTimeout: time.Hour})
			lo := &sockhub.ListenOptions{Mode: sockhub.Anonymous}
			if !events {
				lo.Handler = func(*sockhub.Conn) sockhub.Handler {
					return &handlerFuncs{message: func(r *sockhub.Reply, m []byte) { r.Send(m) }}
				}
			}
			go func() {
				for b := range hub.Events() {
					for c, m := range b.Messages() {
						c.TrySend(m)
					}
				}
			}()
			const others = 100
			var peers []*memnet.End
			for range others + 1 {
				a, b := memnet.Pair(nil)
				if _, err := hub.ServeConn(t.Context(), a, lo); err != nil {
					t.Fatal(err)
				}
				peers = append(peers, b)
			}
			msg := bytes.Repeat([]byte("x"), 5000)
			go func() {
				for {
					if _, err := peers[others].Write(frame(string(msg))); err != nil {
						return
					}
				}
			}()
			for i := range 20 {
				for _, p := range peers[:others] {
					m := frame(fmt.Sprint("message ", i))
					p.Write(m)
					expect(t, p, m)
				}
			}
			peers[others].Close()
		})
	}
}

// Messages that have begun are completed at the memory limit, lest it be reached
// by beginnings alone, but no further than one of them goes beyond it while nobody
// takes them.
func TestMemoryLimitHoldsForMessagesThatHaveBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const conns, size, limit = 50, 1 << 20, 8 << 20
		hub := openHub(t, &sockhub.Options{MaxMessage: size, MemoryLimit: limit, FrameTimeout: -1, HandshakeTimeout: -1})
		big := frame(string(make([]byte, size)))
		_, peers := attachMany(t, hub, conns)
		for _, p := range peers {
			go func() {
				p.Write(big[:100_000])
				<-time.After(time.Second) // meanwhile everybody has begun
				p.Write(big[100_000:])
			}()
		}
		<-time.After(time.Minute)
		if in := hub.Stats().QueuedIn; in > limit+size {
			t.Errorf("%d bytes wait", in)
		}
		for got := 0; got < conns; {
			select {
			case b := <-hub.Events():
				for range b.Messages() {
					got++
				}
			case <-time.After(time.Minute):
				t.Fatalf("nothing comes after %d messages: %+v", got, hub.Stats())
			}
		}
	})
}

// What an iterator that panics has yielded is queued whatever the limit says, and
// counts against it: others get no more than there is.
func TestWhatAnIteratorThatPanicsHasYieldedCountsAgainstOutboundLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, &sockhub.Options{OutboundLimit: 256 << 10, MaxConns: 4, WriteTimeout: -1})
		a, _ := serveMemory(t, hub, stuck, sockhub.ListenOptions{})
		b, _ := serveMemory(t, hub, stuck, sockhub.ListenOptions{})
		func() {
			defer func() { recover() }()
			a.SendMany(t.Context(), func(yield func([]byte) bool) {
				for range 20 {
					yield(make([]byte, 10_000))
				}
				panic("boom")
			})
		}()
		for b.TrySend(make([]byte, 1000)) == nil {
		}
		const floor = 32 << 10
		if q := b.Stats().QueuedOut; q < floor/2 || q > floor {
			t.Errorf("%d bytes are queued beside all that is shared", q)
		}
	})
}

// Answers of Handlers are not refused, so Handlers are not called while there is
// no room for more: whose own queue is empty may answer once.
func TestHandlersWaitForRoomInOutboundLimit(t *testing.T) {
	for _, size := range []int{100, 10_000} {
		synctest.Test(t, func(t *testing.T) {
			const limit, each, conns = 256 << 10, 512 << 10, 4
			hub := openHub(t, &sockhub.Options{OutboundLimit: limit, MaxConns: conns, WriteTimeout: -1})
			var peers []*memnet.End
			for range conns {
				h := &handlerFuncs{message: func(r *sockhub.Reply, m []byte) { r.Send(m) }}
				_, p := serveMemory(t, hub, &memnet.Options{Buffer: 5000}, sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
				peers = append(peers, p)
				go func() {
					for range each / size {
						p.Write(frame(string(make([]byte, size))))
					}
				}()
			}
			synctest.Wait()
			const turn = 32 << 10 // what small answers to what has come at once may be charged
			if q := hub.Stats().QueuedOut; q < limit/2 || q > limit+conns*(turn+int64(size)) {
				t.Errorf("answers of %d bytes: %d bytes are queued", size, q)
			}
			for _, p := range peers {
				for range each / size {
					expect(t, p, frame(string(make([]byte, size))))
				}
			}
		})
	}
}

// Nor do answers that are much longer than what they answer, when much of that has
// come at once.
func TestHandlersWithLongAnswersWaitForRoomInOutboundLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit, conns, size = 1 << 20, 100, 400
		hub := openHub(t, &sockhub.Options{OutboundLimit: limit, MaxConns: conns, WriteTimeout: -1})
		h := &handlerFuncs{message: func(r *sockhub.Reply, m []byte) { r.Send(make([]byte, size)) }}
		for range conns {
			_, p := serveMemory(t, hub, nil, sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
			go p.Write(bytes.Repeat(frame("?"), 4000))
			synctest.Wait()
		}
		if q := hub.Stats().QueuedOut; q < limit/2 || q > limit+conns*(size+sockhub.MessageCharge) {
			t.Errorf("%d bytes are queued", q)
		}
	})
}

// A message of a reader's that was not sent takes no memory.
func TestUnsentReaderIsNotChargedToMemoryLimit(t *testing.T) {
	for _, size := range []uint64{1 << 40, 1 << 63} {
		synctest.Test(t, func(t *testing.T) {
			hub := openHub(t, nil)
			blocked := make(chan struct{})
			h := &handlerFuncs{
				message: func(r *sockhub.Reply, m []byte) {
					r.Send(m)
					r.SendFrom(size, io.NopCloser(strings.NewReader("")))
				},
				disconnected: func(sockhub.Disconnection) { <-blocked },
			}
			got := 0
			count := &handlerFuncs{message: func(*sockhub.Reply, []byte) { got++ }}
			_, p := serveMemory(t, hub, stuck, sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
			_, q := serveMemory(t, hub, nil, sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return count }})
			p.Write(frames("one"))
			synctest.Wait()
			p.Write(frames("one"))
			synctest.Wait()
			q.Write(frame("x"))
			synctest.Wait()
			if got != 1 {
				t.Errorf("%d messages", got)
			}
			close(blocked)
		})
	}
}

// All answers of a call but its first are refused where there is no room.
func TestReplyIsRefusedAtOutboundLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit, conns, size = 256 << 10, 4, 10_000
		hub := openHub(t, &sockhub.Options{OutboundLimit: limit, MaxConns: conns, WriteTimeout: -1})
		for range conns {
			h := &handlerFuncs{message: func(r *sockhub.Reply, m []byte) {
				for n := 0; ; n++ {
					if err := r.Send(make([]byte, size)); err == nil {
						continue
					} else if n == 0 || !errors.Is(err, sockhub.ErrBackpressure) {
						t.Errorf("answer %d: %v", n, err)
					}
					return
				}
			}}
			_, p := serveMemory(t, hub, stuck, sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
			p.Write(frame("x"))
			synctest.Wait()
		}
		if q := hub.Stats().QueuedOut; q < limit/2 || q > limit+conns*2*size {
			t.Errorf("%d bytes are queued", q)
		}
	})
}

// DropOldest drops nothing for a message that OutboundLimit has no room for even then.
func TestDropOldestDropsNothingInVain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, &sockhub.Options{OutboundLimit: 1 << 20, MaxConns: 64, WriteTimeout: -1}, nil)
		c, _ := r.serve(stuck, &sockhub.ListenOptions{Mode: sockhub.Anonymous, Overflow: sockhub.DropOldest})
		fillOutbound(t, r)
		const n = 10
		for range n {
			if err := c.TrySend(make([]byte, 100)); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if err := c.TrySend(make([]byte, 500_000)); !errors.Is(err, sockhub.ErrBackpressure) {
			t.Error(err)
		}
		if q := c.Stats().QueuedMessages; q != n {
			t.Errorf("it was refused, and %d messages were dropped for it", n-q)
		}
		// What fits when others are gone is worth them.
		for dropped := uint64(0); dropped == 0; dropped = r.Stats().Dropped {
			if err := c.TrySend(make([]byte, 1000)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// What Handlers of others have overdrawn takes nothing of a connection's own part.
func TestDropOldestWithinItsOwnPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, &sockhub.Options{OutboundLimit: 1 << 20, MaxConns: 64, WriteTimeout: -1}, nil)
		c, _ := r.serve(stuck, &sockhub.ListenOptions{Mode: sockhub.Anonymous, Overflow: sockhub.DropOldest, ConnOutbound: 2000})
		for range 2 {
			h := &handlerFuncs{message: func(r *sockhub.Reply, m []byte) { r.Send(make([]byte, 3<<20)) }}
			_, p := r.serve(nil, &sockhub.ListenOptions{Mode: sockhub.Anonymous, Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
			p.Write(frame("go"))
			synctest.Wait()
		}
		for i := range 100 {
			if err := c.TrySend(make([]byte, 100)); err != nil {
				t.Fatalf("message %d: %v", i, err)
			}
			synctest.Wait()
		}
	})
}

// A Send under DropOldest for which OutboundLimit has had no room is told when it has,
// though its own queue is full: the oldest make place for it then.
func TestDropOldestWaitsForOutboundLimitAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, &sockhub.Options{OutboundLimit: 40_000, MaxConns: 2, WriteTimeout: -1},
			stuck, &sockhub.ListenOptions{ConnOutbound: 5000, Overflow: sockhub.DropOldest})
		other, _ := l.serve(stuck, &sockhub.ListenOptions{ConnOutbound: 50_000})
		l.take()
		for k := range 29 {
			if err := l.c.TrySend(numbered(k, 150)); err != nil {
				t.Fatal(err)
			}
		}
		if err := other.TrySend(numbered(1, 29_000)); err != nil {
			t.Fatal(err)
		}
		call := l.sending(t.Context(), string(numbered(99, 12_000)))
		waits(t, call)
		other.Close()
		synctest.Wait()
		returns(t, call, nil)
	})
}

// A large message is delayed by another that has the exempt slot, and not by the small
// ones that are sent behind that for ever.
func TestExemptSlotIsNotKeptForSmallMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, &sockhub.Options{OutboundLimit: 200 << 10, MaxConns: 64})
		go func() {
			for range hub.Events() {
			}
		}()
		ours, peers := attachMany(t, hub, 2)
		large := make([]byte, 3<<20)
		if n, err := ours[0].SendMany(t.Context(), func(yield func([]byte) bool) {
			for range 240 {
				if !yield(make([]byte, 1000)) {
					return
				}
			}
		}); n != 240 {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		sent := 0
		go func() {
			for ours[0].Send(ctx, make([]byte, 1000)) == nil {
				sent++
			}
		}()
		go func() {
			for ctx.Err() == nil { // 4 MB/s
				io.CopyN(io.Discard, peers[0], 4<<10)
				<-time.After(time.Millisecond)
			}
		}()
		go io.Copy(io.Discard, peers[1])
		<-time.After(10 * time.Millisecond)
		waits, cancel2 := context.WithTimeout(t.Context(), time.Minute)
		defer cancel2()
		begun := time.Now()
		if err := ours[1].Send(waits, large); err != nil {
			t.Errorf("waits for the slot for %v, in which its holder has sent %d messages: %v; %+v", time.Since(begun), sent, err, ours[0].Stats())
		}
		cancel()
		<-time.After(time.Second)
		go io.Copy(io.Discard, peers[0])
		synctest.Wait()
	})
}

// The slot for a message larger than what the budget has left is free again when what
// is queued fits without it, though something always is.
func TestExemptSlotIsFreeWhenItIsNotNeeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, &sockhub.Options{OutboundLimit: 1 << 20, MaxConns: 64})
		go func() {
			for range hub.Events() {
			}
		}()
		ours, peers := attachMany(t, hub, 2)
		large, small := make([]byte, 3<<20), make([]byte, 1000)
		if err := ours[0].TrySend(large); err != nil {
			t.Fatal(err)
		}
		for range 200 {
			if err := ours[0].TrySend(small); err != nil {
				t.Fatal(err)
			}
		}
		sent := make(chan error, 1)
		go func() { sent <- ours[1].Send(t.Context(), large) }()
		go io.Copy(io.Discard, peers[1])
		synctest.Wait()
		if n := ours[1].Stats().QueuedMessages; n != 0 {
			t.Fatalf("two messages of 3 MiB within 1 MiB: %d of the second connection", n)
		}
		for ours[0].Stats().QueuedMessages > 100 {
			io.CopyN(io.Discard, peers[0], 4<<10)
			synctest.Wait()
		}
		select {
		case err := <-sent:
			if err != nil {
				t.Error(err)
			}
		default:
			t.Errorf("it waits, and there are %+v", ours[0].Stats())
		}
		go io.Copy(io.Discard, peers[0])
		synctest.Wait()
	})
}

// Who comes while InboundLimit is reached is let in, and who is dialed then too: only its
// messages wait.
func TestHandshakesAtInboundLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size, limit = 64 << 10, 2 * (64<<10 + 64<<10)
		hub := openHub(t, &sockhub.Options{MaxMessage: size, InboundLimit: limit})
		_, p := serveMemory(t, hub, nil, sockhub.ListenOptions{})
		go p.Write(bytes.Repeat(frame(string(make([]byte, size))), 10))
		synctest.Wait()
		if q := hub.Stats().QueuedIn; q < limit/4 {
			t.Fatalf("%d bytes are queued", q)
		}

		ours, peer := memnet.Pair(nil)
		go hub.ServeConn(t.Context(), ours, nil)
		peer.Write(frame("worker"))
		expect(t, peer, frame("OK"))
		peer.Close()

		ours, peer = memnet.Pair(nil)
		go func() {
			io.ReadFull(peer, make([]byte, len(frame("me"))))
			peer.Write(frame("OK"))
		}()
		if _, err := hub.Attach(t.Context(), ours, &sockhub.DialOptions{Name: "me"}); err != nil {
			t.Error(err)
		}
		peer.Close()
	})
}

// Also if they come together with the name: as many strangers as there are places could
// exceed the limit many times.
func TestMessagesBehindTheNameAtInboundLimit(t *testing.T) {
	classify := func(_ sockhub.Peer, first []byte) (*sockhub.ListenOptions, int, error) {
		return nil, 1 - len(first), nil
	}
	for _, lo := range []sockhub.ListenOptions{{}, {Framing: sockhub.Uvarint()}, {Classify: classify}} {
		synctest.Test(t, func(t *testing.T) {
			const size, limit, conns, msgs = 64 << 10, 2 * (64<<10 + 64<<10), 100, 50
			hub := openHub(t, &sockhub.Options{MaxMessage: size, InboundLimit: limit})
			_, p := serveMemory(t, hub, nil, sockhub.ListenOptions{})
			go p.Write(bytes.Repeat(frame(string(make([]byte, size))), 10))
			synctest.Wait()
			before := hub.Stats().QueuedIn
			header := func(n byte) []byte { return frame(string(make([]byte, n)))[:8] }
			if lo.Framing != nil {
				header = func(n byte) []byte { return []byte{n} }
			}
			l := memnet.Listen(nil)
			if _, err := hub.Serve(l, &lo); err != nil {
				t.Fatal(err)
			}
			for i := range conns {
				peer, err := l.Dial(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer peer.Close()
				peer.Write(slices.Concat(header(2), []byte{'0' + byte(i/10), '0' + byte(i%10)}, bytes.Repeat(header(0), msgs)))
				expect(t, peer, append(header(2), "OK"...))
			}
			synctest.Wait()
			if grown := hub.Stats().QueuedIn - before; grown > limit/8 {
				t.Errorf("%d bytes more are queued, of %d", grown, limit)
			}
			for n := 0; n < conns*msgs+10; synctest.Wait() { // when there is room again, they come
				for range (<-hub.Events()).Messages() {
					n++
				}
			}
		})
	}
}

// What SendFrom and Reply.SendFrom have read counts against OutboundLimit.
func TestMessagesOfReadersAndOutboundLimit(t *testing.T) {
	for _, call := range []string{"Conn.SendFrom", "Reply.SendFrom"} {
		t.Run(call, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const limit, conns, size, piece = 1 << 20, 64, 512 << 10, 64 << 10
				hub := openHub(t, &sockhub.Options{OutboundLimit: limit, MaxConns: conns, WriteTimeout: -1})
				h := &handlerFuncs{message: func(r *sockhub.Reply, m []byte) {
					if call == "Conn.SendFrom" {
						go r.Conn().SendFrom(t.Context(), size, bytes.NewReader(make([]byte, size)))
					} else if err := r.SendFrom(size, io.NopCloser(bytes.NewReader(make([]byte, size)))); err != nil {
						t.Error(err)
					}
				}}
				var peers []*memnet.End
				for range conns {
					_, p := serveMemory(t, hub, &memnet.Options{Buffer: 4 << 10}, sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
					peers = append(peers, p)
					p.Write(frame("x"))
					synctest.Wait()
				}
				most := int64(limit + conns*(piece+sockhub.MessageCharge))
				if call == "Conn.SendFrom" { // which waits for room
					most = limit
				}
				if q := hub.Stats().QueuedOut; q < limit/4 || q > most {
					t.Errorf("%d bytes are queued, of %d", q, limit)
				}
				done := make(chan int64)
				for _, p := range peers {
					go func() {
						n, _ := io.CopyN(io.Discard, p, 8+size)
						done <- n
					}()
				}
				for range peers {
					if n := <-done; n != 8+size {
						t.Errorf("%d bytes came", n)
					}
				}
			})
		})
	}
}

// Where it is OutboundLimit that has no room, the peer is not to blame for it: DisconnectPeer
// acts as BlockSender.
func TestDisconnectPeerAtOutboundLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, &sockhub.Options{OutboundLimit: 64 << 10, MaxConns: 64, WriteTimeout: -1}, nil)
		other, otherPeer := r.serve(stuck, nil)
		for other.TrySend(make([]byte, 1000)) == nil {
		}
		c, p := r.serve(stuck, &sockhub.ListenOptions{Overflow: sockhub.DisconnectPeer})
		var err error
		for err == nil {
			err = c.TrySend(make([]byte, 1000))
		}
		if !errors.Is(err, sockhub.ErrBackpressure) {
			t.Error(err)
		}
		call := async(func() (int, error) { return 0, c.Send(t.Context(), make([]byte, 1000)) })
		waits(t, call)
		go io.Copy(io.Discard, p)
		go io.Copy(io.Discard, otherPeer)
		returns(t, call, nil)
		if s := r.Stats(); s.SlowPeers != 0 || s.Conns != 2 {
			t.Errorf("%+v", s)
		}
	})
}
