package sockhub_test

// When Drained is told, to whom, and how often.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
)

// Finish during the 16th Drained in a row.
func TestDrainedIsNotLostAfterManyInARow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for at := 1; at < 40; at++ {
			var emptied, told int
			var over bool
			h := &handlerFuncs{
				message: func(r *sockhub.Reply, m []byte) { r.Send([]byte("x")) },
				drained: func(r *sockhub.Reply) {
					told++
					if over {
						return
					}
					r.Send([]byte("y"))
					emptied++
					if told == at {
						over = true
						r.Flush() // written, and so another Drained is due
						r.Conn().Finish()
						<-time.After(time.Second)
					}
				},
			}
			_, c, peer := serveHandler(t, sockhub.Anonymous, h, &sockhub.Options{Linger: -1})
			go io.Copy(io.Discard, peer)
			peer.Write(frame("go"))
			<-c.Context().Done()
			if told != at+1 {
				t.Errorf("at %d: told %d", at, told)
			}
		}
	})
}

// A Handler whose connection's TrySend was refused by a run hears of one Drained.
func TestOneDrainedAfterARun(t *testing.T) {
	for _, handled := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			var told atomic.Int32
			var h sockhub.Handler
			if handled {
				h = &handlerFuncs{drained: func(r *sockhub.Reply) { told.Add(1) }}
			}
			hub, c, peer := serveHandler(t, sockhub.Anonymous, h, &sockhub.Options{ConnOutbound: 1000, WriteTimeout: -1})
			go func() {
				for b := range hub.Events() {
					told.Add(int32(len(b.Drained)))
				}
			}()
			go io.Copy(io.Discard, peer)
			<-time.After(time.Minute)
			at, on, done := make(chan bool), make(chan bool), make(chan bool)
			go func() {
				defer close(done)
				defer func() { recover() }()
				c.SendMany(t.Context(), func(yield func([]byte) bool) {
					yield(make([]byte, 2000))
					yield(make([]byte, 10)) // the first is handed over
					close(at)
					<-on
					panic("x")
				})
			}()
			<-at
			<-time.After(time.Minute)
			told.Store(0)
			if err := c.TrySend([]byte("x")); !errors.Is(err, sockhub.ErrBackpressure) {
				t.Fatal(err)
			}
			<-time.After(time.Minute)
			if n := told.Load(); n != 0 {
				t.Errorf("handled %v: %d during", handled, n)
			}
			close(on)
			<-done
			<-time.After(time.Minute)
			if n := told.Load(); n != 1 {
				t.Errorf("handled %v: Drained %d times after one message was written", handled, n)
			}
		})
	}
}

// A Handler that asks for Drained each time does not keep a connection that is finished.
func TestFinishEndsThoughDrainedIsAskedForAgain(t *testing.T) {
	for _, linger := range []time.Duration{-1, 0} {
		synctest.Test(t, func(t *testing.T) {
			h := &handlerFuncs{drained: func(r *sockhub.Reply) {
				if r.Conn().Context().Err() == nil {
					<-time.After(time.Millisecond)
					r.Conn().NotifyDrained()
				}
			}}
			_, c, peer := serveHandler(t, sockhub.Anonymous, h, &sockhub.Options{Linger: linger})
			go io.Copy(io.Discard, peer)
			c.Send(t.Context(), []byte("x"))
			<-time.After(10 * time.Second)
			c.Finish()
			select {
			case <-c.Context().Done():
			case <-time.After(time.Minute):
				t.Error("hangs")
				c.Close()
			}
		})
	}
}

// What was written before a Handler had the connection is not for its Drained.
func TestDrainedOfBeforeTheHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, nil, nil, nil)
		go io.Copy(io.Discard, l.p)
		l.c.Send(t.Context(), []byte("x"))
		synctest.Wait()
		told := 0
		l.c.SetHandler(&handlerFuncs{drained: func(*sockhub.Reply) { told++ }})
		<-time.After(time.Minute)
		if told != 0 {
			t.Errorf("at once: %d", told)
		}
		l.c.CloseWrite()
		<-time.After(time.Minute)
		if told != 0 {
			t.Errorf("after CloseWrite, and nothing was sent: %d", told)
		}
	})
}

// What was written for a Handler that has its Drained from BaseHandler, and so is not
// told, is not for who has the connection next.
func TestDrainedOfBeforeEventsHadTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, c, peer := serveHandler(t, sockhub.Anonymous, &undrained{}, nil)
		go io.Copy(io.Discard, peer)
		peer.Write(frame("x"))
		synctest.Wait()
		c.Send(t.Context(), make([]byte, 1<<20)) // has to wait
		synctest.Wait()
		c.SetHandler(nil)
		synctest.Wait()
		c.CloseWrite()
		synctest.Wait()
		select {
		case b := <-hub.Events():
			if len(b.Drained) > 0 {
				t.Error("Drained, and nothing was sent")
			}
		default:
			t.Error("no Unknown")
		}
	})
}

// undrained is a Handler that answers, and is not told of Drained.
type undrained struct{ sockhub.BaseHandler }

func (*undrained) Message(r *sockhub.Reply, m []byte) { r.Send(m) }

// A Drained that NotifyDrained has asked for, and that was put off because something was
// queued, is Events' when that has the connection then.
func TestDrainedThatWasPutOffIsEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		on, at, end, ended := make(chan struct{}), make(chan struct{}), make(chan struct{}), make(chan struct{})
		var told atomic.Int32
		h := &handlerFuncs{
			message: func(r *sockhub.Reply, m []byte) { <-on; r.Send([]byte("answer")) },
			drained: func(*sockhub.Reply) { told.Add(1) },
		}
		hub, c, peer := serveHandler(t, sockhub.Anonymous, h, nil)
		go func() {
			for b := range hub.Events() {
				told.Add(int32(len(b.Drained)))
			}
		}()
		go io.Copy(io.Discard, peer)
		go func() {
			defer close(ended)
			c.SendMany(t.Context(), func(yield func([]byte) bool) {
				yield(make([]byte, 300<<10))
				yield(make([]byte, 10)) // the first one is handed over
				close(at)
				<-end
			})
		}()
		<-at
		synctest.Wait()
		peer.Write(frame("go"))
		synctest.Wait()
		told.Store(0)
		c.NotifyDrained()
		close(on) // the answer waits for the end of the run
		synctest.Wait()
		if n := c.Stats().QueuedMessages; told.Load() != 0 || n != 1 {
			t.Fatalf("%d told, %d queued", told.Load(), n)
		}
		c.SetHandler(nil)
		synctest.Wait()
		close(end)
		<-ended
		<-time.After(time.Minute)
		if told.Load() != 1 {
			t.Errorf("NotifyDrained: %d Drained; %+v", told.Load(), c.Stats())
		}
	})
}

// fillOutbound takes all of the shared half of OutboundLimit, and the exempt slot, until
// release.
func fillOutbound(t *testing.T, r *room) (release func()) {
	var peers []*memnet.End
	for i := range 2 {
		c, p := r.serve(nil, &sockhub.ListenOptions{Mode: sockhub.Anonymous, Handler: func(*sockhub.Conn) sockhub.Handler { return sockhub.BaseHandler{} }})
		peers = append(peers, p)
		if i == 0 {
			if err := c.TrySend(make([]byte, 3<<20)); err != nil {
				t.Fatal(err)
			}
		} else {
			for c.TrySend(make([]byte, 1000)) == nil {
			}
			synctest.Wait()
			for c.TrySend(make([]byte, 1000)) == nil {
			}
		}
	}
	synctest.Wait()
	return func() {
		for _, p := range peers {
			go io.Copy(io.Discard, p)
		}
	}
}

// A TrySend that the budget has refused, on a connection that Events is yet to be told of,
// hears of Drained after that.
func TestDrainedAfterRefusalWhileUnheard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conns := make(chan *sockhub.Conn, 2)
		r := newRoom(t, &sockhub.Options{OutboundLimit: 1 << 20, MaxConns: 64, WriteTimeout: -1}, &sockhub.ListenOptions{
			Handler: func(c *sockhub.Conn) sockhub.Handler {
				conns <- c
				return &handlerFuncs{drained: func(*sockhub.Reply) {}}
			},
		})
		if _, err := r.Expect("a", nil); err != nil {
			t.Fatal(err)
		}
		p1 := r.join("a")
		c1 := <-conns
		c1.SetHandler(nil)
		synctest.Wait()
		if b := <-r.Events(); len(b.Connected) != 1 {
			t.Fatalf("%+v", b)
		}
		c1.Close()
		synctest.Wait()
		p1.Close()
		p2 := r.join("a")
		go io.Copy(io.Discard, p2)
		c2 := <-conns
		c2.SetHandler(nil)
		synctest.Wait() // the Disconnected of c1 is not taken
		release := fillOutbound(t, r)
		if err := c2.TrySend(make([]byte, 100_000)); !errors.Is(err, sockhub.ErrBackpressure) {
			t.Fatal(err)
		}
		release()
		<-time.After(time.Minute)
		connected, drained := 0, 0
		for range time.Tick(time.Second) {
			select {
			case b := <-r.Events():
				connected += len(b.Connected)
				for _, c := range b.Drained {
					if c == c2 {
						drained++
					}
				}
				continue
			default:
			}
			break
		}
		if connected != 1 || drained != 1 {
			t.Errorf("%d connected, %d drained", connected, drained)
		}
	})
}

// A TrySend that was refused because a Send stood before it, which waited for the budget
// and has given up, hears of Drained, as it would be accepted now.
func TestDrainedAfterASendThatHasGivenUp(t *testing.T) {
	for _, handled := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			drained := 0
			r := newRoom(t, &sockhub.Options{OutboundLimit: 1 << 20, MaxConns: 64, WriteTimeout: -1}, nil)
			lo := &sockhub.ListenOptions{Mode: sockhub.Anonymous}
			if handled {
				lo.Handler = func(*sockhub.Conn) sockhub.Handler {
					return &handlerFuncs{drained: func(*sockhub.Reply) { drained++ }}
				}
			}
			c, p := r.serve(nil, lo)
			go io.Copy(io.Discard, p)
			r.take()
			fillOutbound(t, r)
			sent := make(chan error, 1)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			go func() { sent <- c.Send(ctx, make([]byte, 1<<20)) }()
			<-time.After(10 * time.Second) // no clock of the handshake's looks at it after that
			if err := c.TrySend(make([]byte, 10)); !errors.Is(err, sockhub.ErrBackpressure) {
				t.Fatal(err)
			}
			if err := <-sent; !errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(err)
			}
			<-time.After(time.Hour)
			synctest.Wait()
			for range time.Tick(time.Second) {
				select {
				case b := <-r.Events():
					drained += len(b.Drained)
					continue
				default:
				}
				break
			}
			n := drained
			if err := c.TrySend(make([]byte, 10)); n != 1 {
				t.Errorf("handled %v: %d Drained; TrySend: %v", handled, n, err)
			}
		})
	}
}

// The Drained that a refused TrySend waits for comes to the Handler or to Events, also if
// the connection goes from one to the other at that very moment.
func TestDrainedWhileEventsGetsTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, &sockhub.Options{ConnOutbound: 1000, WriteTimeout: -1})
		var told atomic.Int32
		go func() {
			for b := range hub.Events() {
				told.Add(int32(len(b.Drained)))
			}
		}()
		for i := range 5000 {
			told.Store(0)
			h := &handlerFuncs{drained: func(*sockhub.Reply) { told.Add(1) }}
			c, p := serveMemory(t, hub, &memnet.Options{Buffer: 1000}, sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
			c.TrySend(make([]byte, 1500))
			if err := c.TrySend(nil); !errors.Is(err, sockhub.ErrBackpressure) {
				// the rest of the first is below the limit
				c.TrySend(make([]byte, 1000))
				if err := c.TrySend(nil); !errors.Is(err, sockhub.ErrBackpressure) {
					t.Fatal(err)
				}
			}
			synctest.Wait()
			go func() {
				for range i % 7 {
					runtime.Gosched()
				}
				io.Copy(io.Discard, p)
			}()
			for range i % 300 {
				_ = time.Now()
			}
			c.SetHandler(nil)
			synctest.Wait()
			if n := told.Load(); n == 0 {
				t.Fatalf("round %d: no Drained: %+v", i, c.Stats())
			}
			c.Close()
			p.Close()
			synctest.Wait()
		}
	})
}

// As above, where the Handler has not had all that was withdrawn from Events for it.
func TestDrainedWhileEventsGetsTheConnectionBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, &sockhub.Options{ConnOutbound: 1000, WriteTimeout: -1})
		told := 0
		take := func() {
			for {
				synctest.Wait()
				select {
				case b := <-hub.Events():
					told += len(b.Drained)
				default:
					return
				}
			}
		}
		for i := range 2000 {
			var heard atomic.Int32
			h := &handlerFuncs{
				drained: func(*sockhub.Reply) { heard.Add(1) },
				message: func(r *sockhub.Reply, _ []byte) { r.Send(make([]byte, 3000)) },
			}
			c, p := serveMemory(t, hub, &memnet.Options{Buffer: 1000}, sockhub.ListenOptions{})
			take()
			told = 0
			p.Write(frames("a", "b"))
			synctest.Wait()
			c.SetHandler(h)
			synctest.Wait()
			if err := c.TrySend(nil); !errors.Is(err, sockhub.ErrBackpressure) {
				t.Fatal(err)
			}
			go func() {
				for range i % 7 {
					runtime.Gosched()
				}
				io.Copy(io.Discard, p)
			}()
			for range i % 300 {
				_ = time.Now()
			}
			c.SetHandler(nil)
			take()
			if n := told + int(heard.Load()); n == 0 {
				t.Fatalf("round %d: no Drained: %+v", i, c.Stats())
			}
			c.Close()
			p.Close()
			take()
		}
	})
}

// What a Handler's factory sends is output like any other: its Drained is told.
func TestDrainedOfWhatTheFactorySent(t *testing.T) {
	for _, waits := range []time.Duration{0, time.Second} {
		for _, mode := range []sockhub.Mode{sockhub.Anonymous, sockhub.Named} {
			t.Run(fmt.Sprint(mode, waits), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					for _, sends := range []bool{true, false} {
						told := 0
						hub := openHub(t, nil)
						ours, peer := memnet.Pair(nil)
						defer peer.Close()
						if mode == sockhub.Named {
							peer.Write(frame("w"))
						}
						go io.Copy(io.Discard, peer)
						if _, err := hub.ServeConn(t.Context(), ours, &sockhub.ListenOptions{Mode: mode, Handler: func(c *sockhub.Conn) sockhub.Handler {
							if sends {
								c.TrySend([]byte("welcome"))
							}
							sleepFor(waits)
							return &handlerFuncs{drained: func(*sockhub.Reply) { told++ }}
						}}); err != nil {
							t.Fatal(err)
						}
						synctest.Wait()
						if (told == 1) != sends {
							t.Errorf("told %d times; it has sent something: %v", told, sends)
						}
					}
				})
			})
		}
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

// Who gave himself to Events, and waits there for the end of the client's last connection,
// was told of a Drained before Events had heard of him, or never.
func TestDrainedOfWhoWaitsForEventsComesAfterHe(t *testing.T) {
	for name, test := range map[string]struct {
		within func(*sockhub.Reply)               // the Handler's last call
		after  func(*sockhub.Conn, io.ReadCloser) // while the connection waits
	}{
		"due before": {
			within: func(r *sockhub.Reply) { r.Conn().NotifyDrained() },
		},
		"due with an answer": {
			within: func(r *sockhub.Reply) { r.Send([]byte("bye")); r.Conn().NotifyDrained() },
		},
		"due while it waits": {
			after: func(c *sockhub.Conn, _ io.ReadCloser) { c.NotifyDrained() },
		},
		"written while it waits": {
			after: func(c *sockhub.Conn, p io.ReadCloser) {
				c.TrySend(make([]byte, 1<<20))
				c.NotifyDrained()
				go io.Copy(io.Discard, p)
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				drained, early := 0, 0
				h := &handlerFuncs{
					message: func(r *sockhub.Reply, _ []byte) {
						if test.within != nil {
							test.within(r)
						}
						r.SetHandler(nil)
					},
					drained: func(*sockhub.Reply) { early++ },
				}
				made := 0
				r := newRoom(t, nil, &sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler {
					if made++; made == 1 {
						return nil
					}
					return h
				}})
				r.expected("bob", nil)
				r.join("bob")
				r.conn("bob").Close()
				synctest.Wait() // its end waits in Events, untaken
				p := r.join("bob")
				c := r.conn("bob")
				p.Write(frame("go"))
				synctest.Wait()
				if test.after != nil {
					test.after(c, p)
				}
				there := false
				for range 10 {
					b := r.take()
					there = there || slices.Contains(b.Connected, c)
					for _, d := range b.Drained {
						if drained++; d != c || !there {
							t.Errorf("Drained of %v before its Connected", d)
						}
					}
				}
				if !there || drained != 1 {
					t.Errorf("connected: %v; %d Drained, want 1, after %d of the Handler", there, drained, early)
				}
			})
		})
	}
}

// Nothing was due, so nothing is told: what was written while nobody could hear of it is
// no reason for a Drained.
func TestNoDrainedOfWhoWaitsForEventsUnasked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		made := 0
		r := newRoom(t, nil, &sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler {
			if made++; made == 1 {
				return nil
			}
			return &handlerFuncs{message: func(r *sockhub.Reply, _ []byte) { r.SetHandler(nil) }}
		}})
		r.expected("bob", nil)
		r.join("bob")
		r.conn("bob").Close()
		synctest.Wait()
		p := r.join("bob")
		c := r.conn("bob")
		p.Write(frame("go"))
		synctest.Wait()
		if err := c.TrySend([]byte("x")); err != nil {
			t.Error(err)
		}
		expect(t, p, frame("x"))
		for range 10 {
			if b := r.take(); len(b.Drained) > 0 {
				t.Errorf("%d Drained", len(b.Drained))
			}
		}
	})
}

// A TrySend that a run of somebody else's has refused hears of the run's end, though the
// run leaves nothing to write.
func TestDrainedComesAfterARunThatHasRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &stalling{sockhub.Uvarint(), 77, make(chan struct{}), make(chan struct{})}
		l := newLine(t, &sockhub.Options{WriteTimeout: -1}, nil, &sockhub.ListenOptions{Framing: f})
		go io.Copy(io.Discard, l.p)
		<-time.After(time.Minute) // now no clock runs that would find it by chance
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			defer func() { recover() }()
			l.c.SendMany(t.Context(), func(yield func([]byte) bool) {
				yield(make([]byte, 300<<10))
				yield(make([]byte, f.size)) // hands the first one over
			})
		}()
		<-f.at
		synctest.Wait()
		for l.c.Stats().QueuedOut > 0 || len(l.take().Drained) > 0 {
			synctest.Wait()
		}
		if err := l.c.TrySend([]byte("x")); !errors.Is(err, sockhub.ErrBackpressure) {
			t.Fatalf("TrySend during a run: %v", err)
		}
		close(f.on)
		<-ended
		told := 0
		for range time.Tick(time.Second) {
			select {
			case b := <-l.Events():
				told += len(b.Drained)
				continue
			default:
			}
			break
		}
		if told != 1 {
			t.Errorf("Drained came %d times", told)
		}
	})
}

// drainedOf returns how many messages were queued at each Drained of a connection whose
// Handler is called with one message.
func drainedOf(t *testing.T, message func(r *sockhub.Reply, m []byte), during func(c *sockhub.Conn)) (queued []int) {
	h := &handlerFuncs{
		message: message,
		drained: func(r *sockhub.Reply) { queued = append(queued, r.Conn().Stats().QueuedMessages) },
	}
	_, c, peer := serveHandler(t, sockhub.Anonymous, h, nil)
	peer.Write(frame("go"))
	synctest.Wait()
	during(c)
	synctest.Wait()
	go io.Copy(io.Discard, peer)
	synctest.Wait()
	return queued
}

func TestDrainedWaitsForWhatIsAnsweredAfterFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		queued := drainedOf(t, func(r *sockhub.Reply, m []byte) {
			r.Send([]byte("first"))
			r.Flush()
			r.Send(make([]byte, 1<<20)) // more than the transport takes
		}, func(*sockhub.Conn) {})
		if !slices.Equal(queued, []int{0}) {
			t.Errorf("messages queued at each Drained: %v", queued)
		}
	})
}

func TestDrainedWaitsForTheAnswerOfTheCallUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		on := make(chan struct{})
		queued := drainedOf(t, func(r *sockhub.Reply, m []byte) {
			<-on
			r.Send(make([]byte, 1<<20))
		}, func(c *sockhub.Conn) {
			c.Send(t.Context(), []byte("of another's")) // is written, which is for Drained to tell
			synctest.Wait()
			close(on)
		})
		if !slices.Equal(queued, []int{0}) {
			t.Errorf("messages queued at each Drained: %v", queued)
		}
	})
}

// stalling is a Framing that takes its time for one size, and then panics.
type stalling struct {
	sockhub.Framing
	size uint64
	at   chan struct{} // closed when it has begun
	on   chan struct{}
}

func (s *stalling) AppendHeader(dst []byte, n uint64) []byte {
	if n == s.size {
		close(s.at)
		<-s.on
		panic("stalling")
	}
	return s.Framing.AppendHeader(dst, n)
}
