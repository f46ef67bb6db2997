package sockhub_test

// Promises that were once broken in a corner.

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sockhub/sockhub"
)

// What is sent to a peer does not hide that the peer is silent. Each call of Drained took
// the present for the time of its last input.
func TestDrainedIsNoInput(t *testing.T) {
	for name, c := range map[string]struct {
		o    sockhub.Options
		want error
	}{
		"IdleTimeout":  {sockhub.Options{IdleTimeout: time.Second}, sockhub.ErrIdleTimeout},
		"FrameTimeout": {sockhub.Options{FrameTimeout: time.Second}, sockhub.ErrFrameTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				end := make(chan error, 1)
				h := &handlerFuncs{
					drained:      func(*sockhub.Reply) {},
					disconnected: func(d sockhub.Disconnection) { end <- d.Err },
				}
				hub, conn, peer := serveHandler(t, sockhub.Anonymous, h, &c.o)
				defer hub.Close()
				go io.Copy(io.Discard, peer)
				peer.Write(frame("half of it")[:12])
				for range 20 {
					sleepFor(100 * time.Millisecond)
					if conn.TrySend([]byte("ping")) != nil {
						break
					}
				}
				synctest.Wait()
				select {
				case err := <-end:
					if !errors.Is(err, c.want) {
						t.Errorf("ended with %v, want %v", err, c.want)
					}
				default:
					t.Error("silent for 2 s, and let be")
				}
			})
		})
	}
}

// The clocks go on when a timeout is as long as can be: the moment at which it would have
// been due overflowed, and stood before all others.
func TestTheLongestTimeoutStopsNoClock(t *testing.T) {
	const longest = time.Duration(math.MaxInt64)
	for name, o := range map[string]sockhub.Options{
		"IdleTimeout":  {IdleTimeout: longest},
		"FrameTimeout": {FrameTimeout: longest},
		"WriteTimeout": {WriteTimeout: longest},
	} {
		t.Run(name, func(t *testing.T) {
			o.HandshakeTimeout = 50 * time.Millisecond
			s := newStand(t, &o, nil)
			l := s.listen("tcp", nil)
			p := dialHub(t, l, "bob")
			p.Write(wire(make([]byte, 1000))[:500])
			s.first().TrySend(make([]byte, 32<<20)) // more than p's system takes
			silent := dialHub(t, l, "")
			silent.atEnd()
		})
	}
}

// A Handler that sends the next part in each Drained comes to its end also where no more
// input comes: after 16 in a row the reader parked.
func TestAChainOfDrainedEnds(t *testing.T) {
	const parts = 100
	for _, end := range []string{"the peer's", "Shutdown"} {
		t.Run(end, func(t *testing.T) {
			s := newStand(t, nil, nil)
			n := 0
			h := &handlerFuncs{
				ended: func(r *sockhub.Reply) { r.Send([]byte("x")) },
				drained: func(r *sockhub.Reply) {
					if n++; n < parts {
						r.Send([]byte("x"))
					} else {
						r.Finish()
					}
				},
			}
			l := s.listen("tcp", &sockhub.ListenOptions{Mode: sockhub.Anonymous, HalfOpen: true, Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
			p := dialHub(t, l, "")
			if end == "Shutdown" {
				eventually(t, "the connection is there", func() bool { return s.Stats().Conns == 1 })
				go s.Shutdown(soon(t))
			} else {
				p.closeWrite()
			}
			all, err := io.ReadAll(p)
			if len(all) != parts*9 || err != nil {
				t.Errorf("%d messages, %v; want %d", len(all)/9, err, parts)
			}
		})
	}
}

// The end of a connection is told to its old Handler if Events has not heard of it: one
// that its Handler gave to Events while the Disconnected of the client's last connection
// was not taken. Shutdown flushes it.
func TestTheEndOfWhoWaitsForEventsIsTold(t *testing.T) {
	const size = 16 << 20
	for _, end := range []string{"Close", "Shutdown"} {
		t.Run(end, func(t *testing.T) {
			hub, err := sockhub.New(t.Context(), &sockhub.Options{ConnOutbound: 2 * size})
			if err != nil {
				t.Fatal(err)
			}
			defer hub.Close()
			if _, err := hub.Expect("bob", nil); err != nil {
				t.Fatal(err)
			}
			given := make(chan *sockhub.Conn, 1)
			var told atomic.Int32
			h := &handlerFuncs{
				message:      func(r *sockhub.Reply, _ []byte) { r.SetHandler(nil); given <- r.Conn() },
				disconnected: func(sockhub.Disconnection) { told.Add(1) },
			}
			join := func(o *sockhub.ListenOptions) *peer {
				l, err := hub.Listen(t.Context(), "tcp", "127.0.0.1:0", o)
				if err != nil {
					t.Fatal(err)
				}
				return dialHub(t, l, "bob")
			}
			join(nil)
			first := <-conns(hub)
			first.Close()
			<-first.Context().Done()
			p := join(&sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
			p.send([]byte("go"))
			c := <-given
			if err := c.TrySend(make([]byte, size)); err != nil {
				t.Fatal(err)
			}
			if end == "Close" {
				eventually(t, "it waits", func() bool { return c.Stats().Paused })
				c.Close()
				<-c.Context().Done()
				go hub.Close()
			} else {
				go hub.Shutdown(soon(t))
				if n, err := io.Copy(io.Discard, p); n != size+8 || err != nil {
					t.Errorf("%d bytes of %d, %v", n, size+8, err)
				}
			}
			for b := range hub.Events() {
				for _, d := range b.Disconnected {
					if d.Conn == c {
						told.Add(1)
					}
				}
			}
			if n := told.Load(); n != 1 {
				t.Errorf("told %d times", n)
			}
		})
	}
}

// conns yields a connection of the hub when there is one.
func conns(hub *sockhub.Hub) <-chan *sockhub.Conn {
	found := make(chan *sockhub.Conn, 1)
	go func() {
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); <-time.After(time.Millisecond) {
			for c := range hub.Conns() {
				found <- c
				return
			}
		}
		close(found)
	}()
	return found
}

// Finish discards what still comes in, also what came together with the message in whose
// call it was called.
func TestFinishWithinMessageIsTheLastCall(t *testing.T) {
	s := newStand(t, nil, nil)
	var calls atomic.Int32
	h := &handlerFuncs{message: func(r *sockhub.Reply, _ []byte) { calls.Add(1); r.Conn().Finish() }}
	l := s.listen("tcp", &sockhub.ListenOptions{Mode: sockhub.Anonymous, Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
	p := dialHub(t, l, "")
	p.send([]byte("1"), []byte("2"), []byte("3"), []byte("4"))
	p.atEnd()
	if n := calls.Load(); n != 1 {
		t.Errorf("%d calls", n)
	}
}

// NotifyDrained may be called before anybody has heard of the connection.
func TestNotifyDrainedInTheFactory(t *testing.T) {
	for _, handled := range []bool{false, true} {
		drained := make(chan struct{}, 10)
		s := newStand(t, nil, func(b *sockhub.Batch) {
			for range b.Drained {
				drained <- struct{}{}
			}
		})
		l := s.listen("tcp", &sockhub.ListenOptions{Mode: sockhub.Anonymous, Handler: func(c *sockhub.Conn) sockhub.Handler {
			c.NotifyDrained()
			if !handled {
				return nil
			}
			return &handlerFuncs{drained: func(*sockhub.Reply) { drained <- struct{}{} }}
		}})
		dialHub(t, l, "")
		select {
		case <-drained:
		case <-time.After(patience):
			t.Errorf("handled %v: no Drained", handled)
		}
	}
}

// Raw bytes have no Framing that could be too narrow for them, and messages have it again.
func TestRawBytesAreNotMeasuredByTheFraming(t *testing.T) {
	s := newStand(t, nil, nil)
	a, b := net.Pipe()
	go io.Copy(io.Discard, b)
	defer b.Close()
	c, err := s.ServeConn(soon(t), a, &sockhub.ListenOptions{Mode: sockhub.Raw, Framing: sockhub.LengthPrefix(1, binary.BigEndian)})
	if err != nil {
		t.Fatal(err)
	}
	long := make([]byte, 300)
	sends := map[string]func() error{
		"Send": func() error { return c.Send(soon(t), long) },
		"SendMany": func() error {
			_, err := c.SendMany(soon(t), func(yield func([]byte) bool) { yield(long) })
			return err
		},
		"SendParts": func() error { return c.SendParts(soon(t), long[:100], long[100:]) },
		"SendFrom":  func() error { return c.SendFrom(soon(t), 300, bytes.NewReader(long)) },
	}
	for name, send := range sends {
		if err := send(); err != nil {
			t.Errorf("%s of 300 raw bytes: %v", name, err)
		}
	}
	if err := c.SetRaw(false); err != nil {
		t.Fatal(err)
	}
	for name, send := range sends {
		if err := send(); !errors.Is(err, sockhub.ErrMessageTooLarge) {
			t.Errorf("%s of 300 bytes behind a header of one: %v", name, err)
		}
	}
}

// SetHandler and SetRaw have the error of Send.
func TestSetHandlerAfterFinish(t *testing.T) {
	s := newStand(t, &sockhub.Options{ConnOutbound: 64 << 20}, nil)
	l := s.listen("tcp", &sockhub.ListenOptions{Mode: sockhub.Anonymous})
	p := dialHub(t, l, "")
	c := s.first()
	c.TrySend(make([]byte, 32<<20))
	c.Finish()
	p.Conn.(*net.TCPConn).SetLinger(0)
	p.Close()
	s.end(c)
	for name, err := range map[string]error{"Send": c.TrySend(nil), "SetHandler": c.SetHandler(nil), "SetRaw": c.SetRaw(true)} {
		if !errors.Is(err, sockhub.ErrClosed) {
			t.Errorf("%s after Finish: %v", name, err)
		}
	}
}

// A message that was cut is the report's, and not queued any more.
func TestNothingIsQueuedAfterTheEnd(t *testing.T) {
	s := newStand(t, nil, nil)
	s.readers = true
	l := s.listen("tcp", &sockhub.ListenOptions{Mode: sockhub.Anonymous})
	dialHub(t, l, "")
	c := s.first()
	r, w := io.Pipe()
	done := async(func() (int, error) { return 0, c.SendFrom(soon(t), 1<<40, r) })
	w.Write(make([]byte, 300_000))
	eventually(t, "a part is written", func() bool { return c.Stats().QueuedMessages == 1 })
	c.Close()
	w.CloseWithError(io.ErrClosedPipe)
	<-done
	s.end(c)
	if n := c.Stats().QueuedMessages; n != 0 {
		t.Errorf("%d messages are queued", n)
	}
}

// What comes instead of OK is ErrRefused however long it is, and no name was refused.
func TestALongAnswerThatIsNotOK(t *testing.T) {
	s := newStand(t, &sockhub.Options{Name: "me"}, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		c.Write(wire(make([]byte, 300)))
		io.Copy(io.Discard, c)
	}()
	if _, err := s.Dial(soon(t), "tcp", l.Addr().String(), nil); !errors.Is(err, sockhub.ErrRefused) {
		t.Error(err)
	}
	eventually(t, "it is gone", func() bool { return s.Stats().Connecting == 0 })
	if n := s.Stats().RefusedName; n != 0 {
		t.Errorf("RefusedName %d", n)
	}
}

// The last attempt's error is told, also if ctx ends during the next.
func TestTheLastAttemptIsTold(t *testing.T) {
	s := newStand(t, &sockhub.Options{Name: "me"}, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(soon(t))
	go func() {
		for _, then := range []func(){func() {}, cancel} {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			c.Read(make([]byte, 100))
			if then(); ctx.Err() == nil {
				c.Close() // refused
			}
		}
	}()
	_, err = s.Dial(ctx, "tcp", l.Addr().String(), &sockhub.DialOptions{Reconnect: &sockhub.Backoff{Min: time.Millisecond}})
	if !errors.Is(err, sockhub.ErrRefused) || !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// The wait before a dial goes on from the one before, if the connection did not last.
func TestTheWaitGoesOnAfterAConnection(t *testing.T) {
	s := newStand(t, nil, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var attempts atomic.Int32
	dialer := &net.Dialer{Control: func(string, string, syscall.RawConn) error {
		if attempts.Add(1) == 1 {
			return errors.New("not yet")
		}
		return nil
	}}
	const first = 200 * time.Millisecond // the wait; the next is of an hour
	if _, err := s.Dial(soon(t), "tcp", l.Addr().String(), &sockhub.DialOptions{Mode: sockhub.Anonymous, Dialer: dialer,
		Reconnect: &sockhub.Backoff{Min: first, Factor: 18000, Max: time.Hour, Jitter: -1}}); err != nil {
		t.Fatal(err)
	}
	dialer.Control = nil // it was copied
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
	c := s.first()
	if s.end(c); time.Since(c.Stats().Since) >= first {
		t.Skip("this machine is so slow that the connection has lasted longer than the wait before it")
	}
	l.(*net.TCPListener).SetDeadline(time.Now().Add(2 * first))
	if _, err := l.Accept(); err == nil {
		t.Error("dialed again without the wait")
	}
	if n := attempts.Load(); n != 2 {
		t.Errorf("%d attempts", n)
	}
}

// A socket that ServePacket refuses stays its owner's.
func TestServePacketThatFailsLeavesTheSocket(t *testing.T) {
	s := newStand(t, &sockhub.Options{MaxMessage: 1024, InboundLimit: 200 << 10}, nil)
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	if _, err := s.ServePacket(pc, &sockhub.ListenOptions{MaxMessage: 65507}); err == nil {
		t.Fatal("served")
	}
	if _, err := pc.WriteTo([]byte("x"), pc.LocalAddr()); err != nil {
		t.Error(err)
	}
}

// A socket without a peer is nobody's connection: it was one client that heard everybody.
func TestAnUnconnectedSocketIsNoConnection(t *testing.T) {
	s := newStand(t, nil, nil)
	pc, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.ServeConn(soon(t), pc, nil); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
}

// The last Drained comes, whoever has asked for the end.
func TestDrainedComesBeforeAnEndInOrder(t *testing.T) {
	for _, end := range []string{"Finish", "the peer's", "Shutdown"} {
		t.Run(end, func(t *testing.T) {
			s := newStand(t, nil, nil)
			drained, gone := 0, make(chan int, 1)
			h := &handlerFuncs{
				message: func(r *sockhub.Reply, _ []byte) {
					r.Send(make([]byte, 8<<20)) // more than a system takes at once
					switch end {
					case "Finish":
						r.Flush()
						r.Conn().Finish()
					case "Shutdown":
						go s.Shutdown(soon(t))
					}
				},
				drained:      func(*sockhub.Reply) { drained++ },
				disconnected: func(sockhub.Disconnection) { gone <- drained },
			}
			l := s.listen("tcp", &sockhub.ListenOptions{Mode: sockhub.Anonymous, Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
			p := dialHub(t, l, "")
			p.send([]byte("x"))
			if end == "the peer's" {
				p.closeWrite()
			}
			p.receive()
			p.atEnd()
			p.Close()
			if n := <-gone; n != 1 {
				t.Errorf("%d times", n)
			}
		})
	}
}

// What the Framing cannot express is refused before room is made for it: no other message
// is dropped, and nobody given up.
func TestWhatCannotBeExpressedDisplacesNothing(t *testing.T) {
	for _, policy := range []sockhub.OverflowPolicy{sockhub.BlockSender, sockhub.DropNewest, sockhub.DropOldest, sockhub.DisconnectPeer} {
		s := newStand(t, &sockhub.Options{ConnOutbound: 2000, Overflow: policy}, nil)
		a, b := net.Pipe()
		defer b.Close()
		c, err := s.ServeConn(soon(t), a, &sockhub.ListenOptions{Mode: sockhub.Anonymous, Framing: sockhub.LengthPrefix(1, binary.BigEndian)})
		if err != nil {
			t.Fatal(err)
		}
		for c.Stats().QueuedOut < 2000 {
			if err := c.TrySend(make([]byte, 200)); err != nil {
				t.Fatal(err)
			}
		}
		before := c.Stats().QueuedMessages
		if err := c.TrySend(make([]byte, 300)); !errors.Is(err, sockhub.ErrMessageTooLarge) {
			t.Errorf("policy %d: %v", policy, err)
		}
		if after := c.Stats().QueuedMessages; after != before || c.TrySend(nil) == sockhub.ErrClosed {
			t.Errorf("policy %d: %d were queued, and then %d", policy, before, after)
		}
	}
}

// Messages that are withdrawn from Events for a Handler reach it, also if the connection
// finishes meanwhile.
func TestWithdrawnMessagesReachTheirHandler(t *testing.T) {
	hub, err := sockhub.New(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer hub.Close()
	l, err := hub.Listen(t.Context(), "tcp", "127.0.0.1:0", &sockhub.ListenOptions{Mode: sockhub.Anonymous})
	if err != nil {
		t.Fatal(err)
	}
	p := dialHub(t, l, "")
	p.send([]byte("1"), []byte("2"), []byte("3"))
	c := <-conns(hub)
	eventually(t, "they came", func() bool { return c.Stats().MessagesIn == 3 })
	entered, goOn, gone := make(chan struct{}, 3), make(chan struct{}), make(chan struct{})
	c.SetHandler(&handlerFuncs{
		message:      func(*sockhub.Reply, []byte) { entered <- struct{}{}; <-goOn },
		disconnected: func(sockhub.Disconnection) { close(gone) },
	})
	<-entered
	c.Finish()
	close(goOn)
	<-gone
	if n := 1 + len(entered); n != 3 {
		t.Errorf("%d messages of 3", n)
	}
}
