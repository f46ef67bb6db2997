package sockhub_test

// The clocks of a connection, and of its handshake: what is silence, and what is not.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
)

func TestHandshakeTimeoutIsAbsolute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, nil)
		l := memnet.Listen(nil)
		if _, err := hub.Serve(l, nil); err != nil {
			t.Fatal(err)
		}
		c, err := l.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		go func() {
			for _, b := range frame("a name that comes one byte at a time") {
				c.Write([]byte{b})
				<-time.After(time.Second)
			}
		}()
		if n, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("answered", n)
		}
		if d := time.Since(start); d < 5*time.Second || d > 5*time.Second+200*time.Millisecond {
			t.Error("ended after", d)
		}
		synctest.Wait()
		if s := hub.Stats(); s.HandshakeTimeouts != 1 || s.Conns != 0 || s.Connecting != 0 {
			t.Errorf("%+v", s)
		}
		<-time.After(time.Minute)
	})
}

func TestFrameTimeoutIsOfProgressWhileWeListen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, c, peer := serveHandler(t, sockhub.Anonymous, nil, &sockhub.Options{FrameTimeout: time.Second, ConnInbound: 100})
		peer.Write(frame(string(make([]byte, 200)))) // pauses reading
		whole := frame("in time")
		peer.Write(whole[:9])
		<-time.After(time.Minute) // ours to lose
		for n := 0; n == 0; {
			n = len((<-hub.Events()).Received)
			synctest.Wait()
		}
		for _, b := range whole[9:] {
			<-time.After(900 * time.Millisecond)
			peer.Write([]byte{b})
		}
		synctest.Wait()
		if n := c.Stats().MessagesIn; n != 2 {
			t.Fatalf("%d messages", n)
		}
		start := time.Now()
		peer.Write(whole[:9])
		if d := ended(t, hub, c); !errors.Is(d.Err, sockhub.ErrFrameTimeout) || time.Since(start) > 1100*time.Millisecond {
			t.Error(d.Err, time.Since(start))
		}
	})
}

func TestIdleTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, c, peer := serveHandler(t, sockhub.Anonymous, nil, &sockhub.Options{IdleTimeout: time.Minute})
		for range 3 {
			<-time.After(50 * time.Second)
			peer.Write(frame("alive"))
		}
		start := time.Now()
		if d := ended(t, hub, c); !errors.Is(d.Err, sockhub.ErrIdleTimeout) || time.Since(start) < 59*time.Second {
			t.Error(d.Err, time.Since(start))
		}
	})
}

// A connection on which much happens does not look at the clock at each turn.
// So a long IdleTimeout may be late by a tenth of a second, and never early; a
// short one is exact.
func TestIdleTimeoutOfABusyConnection(t *testing.T) {
	for _, timeout := range []time.Duration{5 * time.Second, time.Minute} {
		for _, kicked := range []bool{false, true} {
			t.Run(fmt.Sprint(timeout, ", kicked ", kicked), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					late := time.Duration(0)
					if timeout >= 10*time.Second {
						late = 100 * time.Millisecond
					}
					hub, c, peer := serveHandler(t, sockhub.Anonymous, nil, &sockhub.Options{IdleTimeout: timeout})
					for i := range 100 {
						if <-time.After(7 * time.Millisecond); i == 50 {
							<-time.After(timeout - time.Second)
						}
						peer.Write(frame("alive"))
					}
					synctest.Wait()
					start := time.Now()
					if kicked {
						c.SetRaw(false) // changes nothing, but wakes the reader
						synctest.Wait()
					}
					if s := c.Stats(); s.MessagesIn != 100 || s.LastRead.Before(start) || s.LastRead.After(start.Add(late)) {
						t.Errorf("%d messages, the last one %v ago", s.MessagesIn, start.Sub(s.LastRead))
					}
					d := ended(t, hub, c)
					if took := time.Since(start); !errors.Is(d.Err, sockhub.ErrIdleTimeout) || took < timeout || took > timeout+late {
						t.Error(d.Err, took)
					}
				})
			})
		}
	}
}

// A Handler whose Drained has filled the queue is not called, and its peer not
// listened to: no clock runs meanwhile.
func TestClocksStopWhileDrainedHasFilledTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var (
			end  error
			n    int
			msgs []string
		)
		h := &handlerFuncs{
			message: func(r *sockhub.Reply, m []byte) { msgs = append(msgs, string(m)); r.Send(make([]byte, 100)) },
			drained: func(r *sockhub.Reply) {
				if n++; n == 1 {
					r.Send(make([]byte, 1000))
				}
			},
			disconnected: func(d sockhub.Disconnection) { end = d.Err },
		}
		hub := openHub(t, &sockhub.Options{ConnOutbound: 500, FrameTimeout: 5 * time.Second, WriteTimeout: time.Hour})
		c, p := serveMemory(t, hub, &memnet.Options{Buffer: 20}, sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
		w := frames("ask", "second")
		p.Write(w[:len(w)-3])
		expect(t, p, frame(string(make([]byte, 100))))
		synctest.Wait()
		p.Write(w[len(w)-3:]) // it is there, but not read
		synctest.Wait()
		if s := c.Stats(); n != 1 || !s.Paused {
			t.Errorf("Drained %d times, Paused %v", n, s.Paused)
		}
		<-time.After(20 * time.Second)
		expect(t, p, frame(string(make([]byte, 1000))))
		synctest.Wait()
		if len(msgs) != 2 || end != nil {
			t.Errorf("%d messages, %v", len(msgs), end)
		}
	})
}

func TestIdleTimeoutHoldsWithinAStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, &sockhub.Options{StreamOver: 1000, FrameTimeout: -1, IdleTimeout: time.Minute})
		c, p := serveMemory(t, hub, nil, sockhub.ListenOptions{})
		_ = c
		go p.Write(frame(string(make([]byte, 5000)))[:3000])
		var s *sockhub.Stream
		for s == nil {
			for _, d := range (<-hub.Events()).Received {
				s = d.Stream
			}
		}
		<-time.After(2 * time.Minute) // ours
		done := make(chan error, 1)
		go func() { _, err := io.Copy(io.Discard, s); done <- err }()
		select {
		case err := <-done:
			if !errors.Is(err, sockhub.ErrIdleTimeout) {
				t.Fatal(err)
			}
		case <-time.After(time.Hour):
			t.Fatal("nothing came for an hour, and IdleTimeout is a minute")
		}
	})
}

func TestTimeInDrainedIsNotIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		end := make(chan error, 1)
		n := 0
		h := &handlerFuncs{
			drained: func(*sockhub.Reply) {
				if n++; n == 1 {
					<-time.After(90 * time.Second)
				}
			},
			disconnected: func(d sockhub.Disconnection) { end <- d.Err },
		}
		hub := openHub(t, &sockhub.Options{IdleTimeout: time.Minute})
		c, p := serveMemory(t, hub, nil, sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
		go io.Copy(io.Discard, p)
		<-time.After(time.Second)
		if err := c.TrySend([]byte("x")); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		err := <-end
		if d := time.Since(start) - 90*time.Second; d < 50*time.Second {
			t.Fatalf("ended with %v, %v after Drained had returned", err, d)
		}
	})
}

// What Drained has sent fills the queue, so the peer is not listened to.
func TestIdleClockStopsWhileWhatDrainedHasSentWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		got := make(chan string, 1)
		h := &handlerFuncs{
			message: func(r *sockhub.Reply, m []byte) { got <- string(m) },
			drained: func(r *sockhub.Reply) {
				if n++; n == 1 {
					r.Send(make([]byte, 200_000))
				}
			},
		}
		hub := openHub(t, &sockhub.Options{IdleTimeout: time.Minute, ConnOutbound: 100_000, WriteTimeout: -1})
		c, p := serveMemory(t, hub, nil, sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
		c.TrySend([]byte("x"))
		<-time.After(time.Second)
		if !c.Stats().Paused {
			t.Errorf("not paused: %+v", c.Stats())
		}
		p.Write(frame("hello"))
		<-time.After(10 * time.Minute)
		if err := context.Cause(c.Context()); err != nil {
			t.Fatalf("ended while we did not listen: %v", err)
		}
		go io.Copy(io.Discard, p)
		if m := <-got; m != "hello" {
			t.Error(m)
		}
		start := time.Now()
		<-c.Context().Done()
		if d := time.Since(start); d < 59*time.Second || d > 61*time.Second {
			t.Errorf("ended with %v %v later", context.Cause(c.Context()), d)
		}
	})
}

// A connection that is given to Events waits until the end of the same client's
// last one is taken, and its peer with it.
func TestIdleClockStopsWhileAConnectionWaitsToBeReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, &sockhub.Options{IdleTimeout: time.Minute}, nil)
		var conns []*sockhub.Conn
		_, err := r.Expect("alice", &sockhub.ClientOptions{Handler: func(c *sockhub.Conn) sockhub.Handler {
			if conns = append(conns, c); len(conns) == 1 {
				return nil
			}
			return new(handlerFuncs)
		}})
		if err != nil {
			t.Fatal(err)
		}
		p := r.claim("alice")
		expect(t, p, frame("OK"))
		r.take()
		p.Close()
		r.take()
		p = r.claim("alice")
		expect(t, p, frame("OK"))
		<-time.After(time.Second)
		conns[1].SetHandler(nil)
		<-time.After(10 * time.Minute)
		if err := context.Cause(conns[1].Context()); err != nil {
			t.Fatalf("ended before it was reported: %v", err)
		}
		if b := r.take(); len(b.Disconnected) != 1 {
			t.Errorf("%q", batchText(b))
		}
		if b := r.take(); len(b.Connected) != 1 {
			t.Errorf("%q", batchText(b))
		}
	})
}

// The time in a callback is no silence of the peer's, whatever called it.
func TestTimeInCallbacksIsNotIdle(t *testing.T) {
	var returned chan time.Time
	long := func() {
		<-time.After(90 * time.Second)
		returned <- time.Now()
	}
	for what, begin := range map[string]func(t *testing.T, hub *sockhub.Hub) *sockhub.Conn{
		"the function that makes a Handler": func(t *testing.T, hub *sockhub.Hub) *sockhub.Conn {
			c, _ := serveMemory(t, hub, nil, sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler {
				long()
				return sockhub.BaseHandler{}
			}})
			return c
		},
		"Message of what was withdrawn": func(t *testing.T, hub *sockhub.Hub) *sockhub.Conn {
			c, p := serveMemory(t, hub, nil, sockhub.ListenOptions{})
			<-hub.Events()
			p.Write(frame("x"))
			synctest.Wait()
			c.SetHandler(&handlerFuncs{message: func(*sockhub.Reply, []byte) { long() }})
			return c
		},
		"Message of what had to wait for room": func(t *testing.T, hub *sockhub.Hub) *sockhub.Conn {
			n := 0
			h := &handlerFuncs{message: func(r *sockhub.Reply, _ []byte) {
				if n++; n == 1 {
					r.Send(make([]byte, 200_000)) // more than the peer has room for
					return
				}
				long()
			}}
			c, p := serveMemory(t, hub, nil, sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
			p.Write(frames("1", "2"))
			<-time.After(5 * time.Second)
			go io.Copy(io.Discard, p)
			return c
		},
		"Drained soon after input": func(t *testing.T, hub *sockhub.Hub) *sockhub.Conn {
			h := &handlerFuncs{
				message: func(r *sockhub.Reply, m []byte) { r.Send(m) },
				drained: func(*sockhub.Reply) { long() },
			}
			_, p := serveMemory(t, hub, nil, sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
			p.Write(frame("x"))
			for c := range hub.Conns() {
				return c
			}
			return nil
		},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				returned = make(chan time.Time, 1)
				hub := openHub(t, &sockhub.Options{IdleTimeout: time.Minute, ConnOutbound: 100_000})
				c := begin(t, hub)
				<-c.Context().Done()
				select {
				case at := <-returned:
					if d := time.Since(at); d < 59*time.Second {
						t.Errorf("ended with %v, %v after the call", context.Cause(c.Context()), d)
					}
				default:
					t.Errorf("ended with %v before the call returned", context.Cause(c.Context()))
				}
			})
		})
	}
}

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
			t.Parallel()
			o.HandshakeTimeout = time.Second // enough for p on a busy machine
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

// The peer is silent on real sockets too while a Handler of its own hears of every Drained.
func TestSilentPeersEndThoughSomethingIsSent(t *testing.T) {
	for _, kind := range withTLS() {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := newStand(t, &sockhub.Options{IdleTimeout: 200 * time.Millisecond}, nil)
			end := make(chan error, 1)
			h := &handlerFuncs{drained: func(*sockhub.Reply) {}, disconnected: func(d sockhub.Disconnection) { end <- d.Err }}
			l := s.listen(kind, &sockhub.ListenOptions{Mode: sockhub.Anonymous, Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
			p := dialKind(t, kind, l, "")
			go io.Copy(io.Discard, p)
			c, ok := <-conns(s.Hub)
			if !ok {
				t.Fatal("no connection")
			}
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for late := time.After(patience); ; {
				select {
				case <-tick.C:
					c.TrySend([]byte("ping"))
				case err := <-end:
					if !errors.Is(err, sockhub.ErrIdleTimeout) {
						t.Errorf("ended with %v", err)
					}
					return
				case <-late:
					t.Fatal("silent, and let be")
				}
			}
		})
	}
}

// The other clocks go on while a connection lingers for ever: the moment of its end
// overflowed.
func TestTheLongestLingerStopsNoClock(t *testing.T) {
	s := newStand(t, &sockhub.Options{Linger: math.MaxInt64, HandshakeTimeout: time.Second /* enough for p on a busy machine */}, nil)
	l := s.listen("tcp", nil)
	p := dialHub(t, l, "bob")
	s.first().Finish()
	p.atEnd() // and it does not close
	dialHub(t, l, "").atEnd()
}

// Where there is no Linger, a connection that was finished ends with the last byte of its
// output, and else after Linger, if its peer does not finish.
func TestLingerIsOfAPeerThatDoesNotFinish(t *testing.T) {
	for linger, want := range map[time.Duration]time.Duration{-1: 0, 0: sockhub.DefaultLinger, time.Minute: time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			l := newLine(t, &sockhub.Options{Linger: linger}, nil, nil)
			l.sent("x")
			took := within(func() {
				l.c.Finish()
				if d := ended(t, l.Hub, l.c); d.Err != sockhub.ErrClosed || d.Report.WrittenMessages != 1 {
					t.Errorf("%v, %v", d.Err, d.Report)
				}
			})
			if took != want {
				t.Errorf("Linger %v: it ended after %v", linger, took)
			}
		})
	}
}

// DialOptions.Timeout holds for all of an attempt, and its end is ErrHandshakeTimeout where
// the peer has not answered; a context that ends first is its own cause.
func TestTimeoutOfADial(t *testing.T) {
	s, l := newStand(t, nil, nil), newDialed(t)
	begun := time.Now()
	_, err := s.Dial(soon(t), "tcp", l.addr(), &sockhub.DialOptions{Name: "w", Timeout: 100 * time.Millisecond})
	if !errors.Is(err, sockhub.ErrHandshakeTimeout) || !errors.As(err, new(*net.OpError)) || time.Since(begun) < 100*time.Millisecond {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(soon(t), 100*time.Millisecond)
	defer cancel()
	_, err = s.Dial(ctx, "tcp", l.addr(), &sockhub.DialOptions{Name: "w", Timeout: -1})
	if errors.Is(err, sockhub.ErrHandshakeTimeout) || !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	ours, peer := net.Pipe()
	go io.Copy(io.Discard, peer)
	_, err = s.Attach(soon(t), ours, &sockhub.DialOptions{Name: "w", Timeout: 100 * time.Millisecond})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}
