package sockhub_test

// What happens between a change of who has a connection and its reader's turn.

import (
	"bytes"
	"context"
	"io"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
)

// NotifyDrained behind SetHandler is for who gets the connection, also where the Handler that
// has it until then does not hear of Drained.
func TestNotifyDrainedBehindSetHandlerOfADeafHandler(t *testing.T) {
	for _, name := range []string{"to Events", "to a Handler"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				told := 0
				var h sockhub.Handler
				if name == "to a Handler" {
					h = &handlerFuncs{drained: func(*sockhub.Reply) { told++ }}
				}
				hub, c, peer := serveHandler(t, sockhub.Anonymous, sockhub.BaseHandler{}, nil)
				go io.Copy(io.Discard, peer)
				if err := c.TrySend([]byte("x")); err != nil {
					t.Fatal(err)
				}
				synctest.Wait() // its Drained was called, and does nothing
				if err := c.SetHandler(h); err != nil {
					t.Fatal(err)
				}
				c.NotifyDrained()
				synctest.Wait()
				select {
				case b := <-hub.Events():
					told += len(b.Drained)
				default:
				}
				if told != 1 {
					t.Errorf("told %d times", told)
				}
			})
		})
	}
}

// Who waits until Events may hear of it does not keep the budget's token meanwhile.
func TestWhoWaitsForEventsKeepsNoToken(t *testing.T) {
	for _, order := range []string{"the token comes first", "SetHandler comes first"} {
		t.Run(order, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := &sockhub.Options{Budget: sockhub.NewBudget(2<<20, 0, 0), MaxMessage: 900_000, FrameTimeout: 30 * time.Second}
				hub, other := openHub(t, o), openHub(t, o)
				got := make(map[string]int)
				handler := func(name string) sockhub.Handler {
					return &handlerFuncs{message: func(_ *sockhub.Reply, m []byte) { got[name] = len(m) }}
				}
				l := memnet.Listen(nil)
				conns := make(chan *sockhub.Conn, 2)
				var h sockhub.Handler
				if _, err := hub.Serve(l, &sockhub.ListenOptions{Handler: func(c *sockhub.Conn) sockhub.Handler { conns <- c; return h }}); err != nil {
					t.Fatal(err)
				}
				if _, err := hub.Expect("bob", nil); err != nil {
					t.Fatal(err)
				}
				join := func() (*sockhub.Conn, *memnet.End) {
					p, err := l.Dial(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					p.Write(frame("bob"))
					go io.Copy(io.Discard, p)
					return <-conns, p
				}
				before, _ := join()
				synctest.Wait()
				<-hub.Events()
				before.Close()
				synctest.Wait() // its end waits in Events
				h = handler("bob")
				bob, p := join()
				serve := func(name string, handled bool) (*sockhub.Conn, *memnet.End) {
					return serveMemory(t, other, nil, sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler {
						if !handled {
							return nil
						}
						return handler(name)
					}})
				}
				zeros := func(size int) []byte { return frame(string(make([]byte, size))) }
				_, first := serve("first", false)
				last, plast := serve("last", true)
				_, full := serve("full", false)
				little, some, more := zeros(12_000), zeros(200_000), zeros(300_000)
				p.Write(some[:100_000])
				first.Write(little[:10_000])
				plast.Write(more[:100_000])
				synctest.Wait()
				go full.Write(bytes.Repeat(zeros(1000), 1200))
				synctest.Wait()
				tail := some[100_000:]
				if order == "the token comes first" {
					tail = tail[:1000]
				}
				for _, more := range []func(){
					func() { first.Write(little[10_000:10_001]) },
					func() { p.Write(tail) },
					func() { plast.Write(more[100_000:]) },
				} {
					go more()
					synctest.Wait()
				}
				if !bob.Stats().Paused || !last.Stats().Paused {
					t.Fatal("InboundLimit is not reached")
				}
				give := func() {
					bob.SetHandler(nil)
					synctest.Wait()
				}
				if order == "SetHandler comes first" {
					give()
				}
				first.Write(little[10_001:])
				synctest.Wait()
				if order == "the token comes first" {
					give()
				}
				<-time.After(time.Hour)
				if got["last"] != 300_000 {
					t.Error("others wait")
				}
				if err := context.Cause(bob.Context()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// The end of the input is for who gets the connection, if it comes behind SetHandler.
func TestEndBehindSetHandlerIsTheNextHandlers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, nil)
		entered, goOn := make(chan struct{}), make(chan struct{})
		var told []string
		before := &handlerFuncs{
			message: func(*sockhub.Reply, []byte) { close(entered); <-goOn },
			ended:   func(*sockhub.Reply) { told = append(told, "before") },
		}
		c, p := serveMemory(t, hub, &memnet.Options{Unix: true}, sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return before }})
		p.Write(frame("x"))
		<-entered
		c.SetHandler(&handlerFuncs{ended: func(*sockhub.Reply) { told = append(told, "next") }})
		p.CloseWrite()
		close(goOn)
		synctest.Wait()
		if !slices.Equal(told, []string{"next"}) {
			t.Errorf("told: %v", told)
		}
	})
}

// A Handler that is set behind SetHandler(nil), in one call, gets the Drained too.
func TestDrainedBehindEventsInOneCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told := 0
		next := &handlerFuncs{drained: func(*sockhub.Reply) { told++ }}
		before := &handlerFuncs{message: func(r *sockhub.Reply, _ []byte) {
			r.Conn().NotifyDrained()
			r.SetHandler(nil)
			r.SetHandler(next)
		}}
		hub, c, p := serveHandler(t, sockhub.Anonymous, before, nil)
		p.Write(frame("x"))
		synctest.Wait()
		n := 0
		select {
		case b := <-hub.Events():
			n = len(b.Drained)
		default:
		}
		if told != 1 || n != 0 {
			t.Errorf("the Handler has heard %d, Events %d", told, n)
		}
		c.NotifyDrained()
		synctest.Wait()
		if told != 2 {
			t.Errorf("told %d", told)
		}
	})
}

// A Drained is the Handler's that a connection gets which waits until Events may hear of it,
// though that may just then.
func TestDrainedOfWhoWaitsForEventsIsTheHandlers(t *testing.T) {
	for i := range 200 {
		synctest.Test(t, func(t *testing.T) {
			conns := make(chan *sockhub.Conn, 2)
			r := newRoom(t, nil, &sockhub.ListenOptions{Handler: func(c *sockhub.Conn) sockhub.Handler { conns <- c; return nil }})
			r.expected("bob", nil)
			r.join("bob")
			(<-conns).Close()
			synctest.Wait() // its end waits in Events, untaken
			r.join("bob")
			c := <-conns
			c.NotifyDrained()
			synctest.Wait()
			told, behind := 0, 0
			set := make(chan struct{})
			go func() {
				defer close(set)
				for range i % 10 {
					runtime.Gosched()
				}
				c.SetHandler(&handlerFuncs{drained: func(*sockhub.Reply) { told++ }})
			}()
			early := <-r.Events()
			<-set
			synctest.Wait()
			for range 5 {
				behind += len(r.take().Drained)
			}
			if told != 1 || behind+len(early.Drained) > 0 {
				t.Errorf("%d: the Handler has heard %d, Events %d", i, told, behind)
			}
		})
		if t.Failed() {
			return
		}
	}
}

// What is withdrawn from Events, and waits for room for the Handler's answers, goes on when
// there is some, also where a Stream is behind it and the Handler does not hear of Drained.
func TestRoomForAnswersToWhatIsBeforeAStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, &sockhub.Options{StreamOver: 1000, ConnOutbound: 1000})
		c, p := serveMemory(t, hub, &memnet.Options{Buffer: 6000}, sockhub.ListenOptions{})
		p.Write(append(frames("one", "two", "three"), frame(string(make([]byte, 2000)))...))
		synctest.Wait()
		h := new(answersMuch)
		c.SetHandler(h)
		synctest.Wait()
		if h.calls == 3 {
			t.Fatal("there was room for all")
		}
		go io.Copy(io.Discard, p)
		synctest.Wait()
		if h.calls != 3 || h.streamed != 2000 {
			t.Errorf("%d calls, and %d bytes of the Stream", h.calls, h.streamed)
		}
	})
}

type answersMuch struct {
	sockhub.BaseHandler
	calls    int
	streamed int64
}

func (h *answersMuch) Message(r *sockhub.Reply, _ []byte) {
	h.calls++
	r.Send(make([]byte, 5000))
}

func (h *answersMuch) Stream(_ *sockhub.Reply, s *sockhub.Stream) {
	h.streamed, _ = io.Copy(io.Discard, s)
}

// A Stream that its user takes his time for is no silence of the peer's, also where more than
// ConnInbound came before it, which is taken.
func TestStreamBehindMuchIsItsUsersToWaitFor(t *testing.T) {
	for _, given := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			l := newLine(t, &sockhub.Options{StreamOver: 1000, ConnInbound: 100, FrameTimeout: time.Second}, nil, nil)
			l.p.Write(append(frame(string(make([]byte, 500))), frame(string(make([]byte, 2000)))...))
			synctest.Wait()
			if given { // for a moment, and so withdrawn, and delivered again
				l.c.SetHandler(sockhub.BaseHandler{})
				l.c.SetHandler(nil)
				synctest.Wait()
			}
			b := l.take()
			<-time.After(time.Minute)
			if n, err := io.Copy(io.Discard, b.Received[0].Stream); n != 2000 || err != nil {
				t.Errorf("given %v: read %d bytes, %v", given, n, err)
			}
		})
	}
}
