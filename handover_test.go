package sockhub_test

// SetHandler, Streams and ends that meet each other.

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
	"github.com/sockhub/sockhub/internal/transport"
)

func serveMemory(t *testing.T, hub *sockhub.Hub, mo *memnet.Options, lo sockhub.ListenOptions) (*sockhub.Conn, *memnet.End) {
	t.Helper()
	ours, peer := memnet.Pair(mo)
	lo.Mode = sockhub.Anonymous
	c, err := hub.ServeConn(t.Context(), ours, &lo)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { peer.Close() })
	return c, peer
}

func TestSlowPeerEndsThoughAStreamIsUnread(t *testing.T) {
	for _, policy := range []sockhub.OverflowPolicy{sockhub.DisconnectPeer, sockhub.BlockSender} {
		t.Run(policy.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := openHub(t, &sockhub.Options{StreamOver: 1000, Overflow: policy, ConnOutbound: 100_000})
				c, p := serveMemory(t, hub, nil, sockhub.ListenOptions{})
				p.Write(frame(string(make([]byte, 2000)))[:100])
				var s *sockhub.Stream
				gone := make(chan error, 1)
				go func() {
					for b := range hub.Events() {
						for _, d := range b.Received {
							s = d.Stream
						}
						for _, d := range b.Disconnected {
							gone <- d.Err
						}
					}
				}()
				synctest.Wait()
				if s == nil {
					t.Fatal("no stream")
				}
				for c.TrySend(make([]byte, 10_000)) == nil {
				}
				<-time.After(10 * time.Minute)
				select {
				case err := <-gone:
					if !errors.Is(err, sockhub.ErrSlowPeer) {
						t.Fatal(err)
					}
				default:
					t.Fatalf("not reported after 10 minutes: %+v; TrySend: %v", c.Stats(), c.TrySend(nil))
				}
			})
		})
	}
}

func TestSetHandlerGetsAStreamThatWasNotTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, &sockhub.Options{StreamOver: 1000})
		c, p := serveMemory(t, hub, nil, sockhub.ListenOptions{})
		go p.Write(slices.Concat(frame("before"), frame(string(make([]byte, 2000))), frame("after")))
		synctest.Wait() // the batch waits in the channel
		var read int64
		h := &streamHandler{read: func(s *sockhub.Stream) { read, _ = io.Copy(io.Discard, s) }}
		if err := c.SetHandler(h); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		var streams int
		go func() {
			for b := range hub.Events() {
				for _, d := range b.Received {
					if d.Stream != nil {
						streams++
						io.Copy(io.Discard, d.Stream)
					}
				}
			}
		}()
		<-time.After(time.Minute)
		stats := c.Stats()
		hub.Close()
		synctest.Wait()
		if read+int64(streams) == 0 || !slices.Equal(h.msgs, []string{"before", "after"}) {
			t.Fatalf("the handler got %q and read %d bytes of a stream, Events had %d streams; %v %+v", h.msgs, read, streams, h.end, stats)
		}
	})
}

func TestHandlerGivesBackWhatWasWithdrawnForIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, nil)
		c, p := serveMemory(t, hub, nil, sockhub.ListenOptions{})
		p.Write(frames("1", "2", "3"))
		synctest.Wait()
		var end error
		var first string
		h := &handlerFuncs{
			message: func(r *sockhub.Reply, m []byte) {
				first += string(m)
				r.SetHandler(nil)
			},
			disconnected: func(d sockhub.Disconnection) { end = d.Err },
		}
		if err := c.SetHandler(h); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		<-time.After(time.Second)
		var got []string
		for {
			b := <-hub.Events()
			for _, m := range b.Messages() {
				got = append(got, string(m))
			}
			for _, d := range b.Disconnected {
				t.Fatalf("ended: %v (handler %q, %v), events %q", d.Err, first, end, got)
			}
			if len(got) == 2 {
				return
			}
		}
	})
}

func TestHandlerThatComesTooLateHearsTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, nil)
		c, _ := serveMemory(t, hub, nil, sockhub.ListenOptions{})
		<-hub.Events()
		var end error
		if err := c.SetHandler(&handlerFuncs{disconnected: func(d sockhub.Disconnection) { end = d.Err }}); err != nil {
			t.Fatal(err)
		}
		c.Close()
		for b := range hub.Events() {
			if len(b.Disconnected) > 0 {
				break
			}
		}
		synctest.Wait()
		if end == nil {
			t.Fatal("the handler has not heard of the end")
		}
	})
}

// It waits for the Disconnected of the one before to be taken.
func TestConnectionThatWaitsToBeReportedGetsAHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, nil)
		l := memnet.Listen(nil)
		conns := make(chan *sockhub.Conn, 10)
		if _, err := hub.Serve(l, &sockhub.ListenOptions{Handler: func(c *sockhub.Conn) sockhub.Handler { conns <- c; return nil }}); err != nil {
			t.Fatal(err)
		}
		if _, err := hub.Expect("x", nil); err != nil {
			t.Fatal(err)
		}
		dial := func() *memnet.End {
			p, err := l.Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			p.Write(frame("x"))
			return p
		}
		p := dial()
		<-conns
		synctest.Wait()
		<-hub.Events() // Connected
		p.Close()
		synctest.Wait() // Disconnected waits
		q := dial()
		c := <-conns
		synctest.Wait()
		expect(t, q, frame("OK"))
		var got []string
		h := &handlerFuncs{message: func(r *sockhub.Reply, m []byte) { got = append(got, string(m)) }}
		if err := c.SetHandler(h); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		go func() {
			for b := range hub.Events() {
				for _, m := range b.Messages() {
					got = append(got, string(m))
				}
			}
		}()
		<-time.After(time.Second)
		q.Write(frame("hello"))
		<-time.After(time.Minute)
		synctest.Wait()
		if len(got) == 0 {
			t.Fatalf("nothing is read: %+v", c.Stats())
		}
	})
}

func TestStreamIsReadWhileItsConnectionEnds(t *testing.T) {
	hub := openHub(t, &sockhub.Options{StreamOver: 1000})
	for range 300 {
		c, p := serveMemory(t, hub, nil, sockhub.ListenOptions{})
		go p.Write(frame(string(make([]byte, 8000))))
		var s *sockhub.Stream
		for s == nil {
			for _, d := range (<-hub.Events()).Received {
				if d.Conn == c {
					s = d.Stream
				}
			}
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			for b := make([]byte, 1); ; {
				if _, err := s.Read(b); err != nil {
					return
				}
			}
		}()
		c.Close()
		<-done
		p.Close()
	}
}

func TestUnreadOfWhatWasWithdrawnKeepsWhatFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, nil)
		c, p := serveMemory(t, hub, nil, sockhub.ListenOptions{})
		p.Write(append(frames("m1", "m2"), "\x05\x00\x00"...)) // two messages and a part of what may be raw bytes
		synctest.Wait()
		var got []string
		h := &handlerFuncs{message: func(r *sockhub.Reply, m []byte) {
			got = append(got, string(m))
			if len(got) == 1 {
				r.Unread(m[len(m)-1:])
			}
		}}
		c.SetRaw(true)
		if err := c.SetHandler(h); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		p.Write([]byte("!"))
		synctest.Wait()
		all := strings.Join(got, "")
		if !strings.Contains(all, "\x05\x00\x00!") {
			t.Fatalf("%q: three bytes that were read are lost", got)
		}
	})
}

func TestNotifyDrainedBeforeTheEndOfTheOutput(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, nil)
		c, p := serveMemory(t, hub, stuck, sockhub.ListenOptions{})
		<-hub.Events()
		c.TrySend(make([]byte, 100))
		c.NotifyDrained()
		c.CloseWrite()
		go io.Copy(io.Discard, p)
		<-time.After(time.Second)
		drained := 0
		for drained == 0 {
			select {
			case b := <-hub.Events():
				drained += len(b.Drained)
			default:
				t.Fatal("no Drained")
			}
		}
	})
}

func TestUnreadOfWhatWasWithdrawnLeavesNoSpareCapacity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, p := memnet.Pair(nil)
		defer p.Close()
		c, err := openHub(t, nil).ServeConn(t.Context(), ours, &sockhub.ListenOptions{Mode: sockhub.Raw})
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range []string{"12345", "6789012"} {
			p.Write([]byte(m))
			synctest.Wait()
		}
		var got []string
		c.SetHandler(&handlerFuncs{message: func(r *sockhub.Reply, m []byte) {
			if cap(m) != len(m) {
				t.Errorf("%q has a capacity of %d", m, cap(m))
			}
			if got = append(got, string(m)); len(got) == 1 {
				r.Unread(m[2:])
			}
		}})
		synctest.Wait()
		if want := []string{"12345", "3456789012"}; !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	})
}

// What it waited for to be taken is its Handler's, so it does not wait any more.
func TestConnectionThatIsPausedGetsAHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, &sockhub.Options{ConnInbound: 1000})
		c, p := serveMemory(t, hub, nil, sockhub.ListenOptions{})
		m := frame(strings.Repeat("x", 1000))
		for range 3 {
			p.Write(m)
			synctest.Wait()
		}
		if s := c.Stats(); !s.Paused || s.MessagesIn != 1 {
			t.Fatalf("not paused: %+v", s)
		}
		n := 0
		c.SetHandler(&handlerFuncs{message: func(*sockhub.Reply, []byte) { n++ }})
		synctest.Wait()
		p.Write(m)
		synctest.Wait()
		if s := c.Stats(); n != 4 || s.Paused {
			t.Errorf("the Handler has got %d of 4 messages: %+v", n, s)
		}
	})
}

// SetRaw is exact within what was withdrawn too, whichever way it switches.
func TestSetRawWithinWhatWasWithdrawn(t *testing.T) {
	whole := frames("one", "two", strings.Repeat("a Stream", 100))
	for _, tt := range []struct {
		mode  sockhub.Mode
		first string
	}{
		{sockhub.Raw, "upgrade"},
		{sockhub.Anonymous, string(frame("upgrade"))},
	} {
		for n := range len(whole) {
			synctest.Test(t, func(t *testing.T) {
				hub := openHub(t, &sockhub.Options{StreamOver: 100})
				ours, p := memnet.Pair(nil)
				defer p.Close()
				c, err := hub.ServeConn(t.Context(), ours, &sockhub.ListenOptions{Mode: tt.mode})
				if err != nil {
					t.Fatal(err)
				}
				<-hub.Events()
				p.Write([]byte(tt.first))
				synctest.Wait()
				p.Write(whole[:n])
				synctest.Wait()
				var got []byte
				h := &wireHandler{raw: tt.mode != sockhub.Raw, got: &got}
				if err := c.SetHandler(h); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				p.Write(whole[n:])
				synctest.Wait()
				if want := append([]byte("upgrade"), whole...); !bytes.Equal(got, want) {
					t.Errorf("%v, %d bytes withdrawn: %q, want %q", tt.mode, n, got, want)
				}
			})
		}
	}
}

// Nor is anything of it lost when the end of the input was withdrawn with it.
func TestSetRawWithinWhatWasWithdrawnWithTheEnd(t *testing.T) {
	whole := frames("one", "two", strings.Repeat("a Stream", 100))
	for _, tt := range []struct {
		mode       sockhub.Mode
		first      string
		streamOver int64
		shutdown   bool // is the end, not the peer's FIN
	}{
		{sockhub.Raw, "upgrade", 100, false},
		{sockhub.Anonymous, string(frame("upgrade")), 100, false},
		{sockhub.Raw, "upgrade", 0, true}, // which ends a Stream
		{sockhub.Anonymous, string(frame("upgrade")), 0, true},
	} {
		for _, outbound := range []int64{0, 1} { // the least has each message wait for the answer to the one before
			synctest.Test(t, func(t *testing.T) {
				hub := openHub(t, &sockhub.Options{StreamOver: tt.streamOver, ConnOutbound: outbound, Linger: time.Hour})
				ours, p := memnet.Pair(nil)
				defer p.Close()
				c, err := hub.ServeConn(t.Context(), ours, &sockhub.ListenOptions{Mode: tt.mode})
				if err != nil {
					t.Fatal(err)
				}
				<-hub.Events()
				go io.Copy(io.Discard, p)
				p.Write([]byte(tt.first))
				synctest.Wait()
				p.Write(whole)
				synctest.Wait()
				if tt.shutdown {
					go hub.Shutdown(t.Context())
				} else {
					p.CloseWrite()
				}
				synctest.Wait()
				var got []byte
				h := &endingHandler{wireHandler: wireHandler{raw: tt.mode != sockhub.Raw, got: &got}}
				if err := c.SetHandler(h); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				p.Close()
				synctest.Wait()
				if want := string(append([]byte("upgrade"), whole...)) + " ended"; string(got) != want {
					t.Errorf("%+v, %d: %q, want %q", tt, outbound, got, want)
				}
				if want := map[bool]error{false: io.EOF, true: sockhub.ErrClosed}[tt.shutdown]; h.end != want {
					t.Errorf("%+v, %d: ended with %v, want %v", tt, outbound, h.end, want)
				}
			})
		}
	}
}

// endingHandler is a wireHandler that answers, and notes the end.
type endingHandler struct {
	wireHandler
	end error
}

func (h *endingHandler) Message(r *sockhub.Reply, m []byte) {
	h.wireHandler.Message(r, m)
	r.Send(make([]byte, 10))
}

func (h *endingHandler) Ended(*sockhub.Reply)                 { *h.got = append(*h.got, " ended"...) }
func (h *endingHandler) Disconnected(d sockhub.Disconnection) { h.end = d.Err }

// wireHandler switches at its first message, and notes what follows as it is on
// the wire.
type wireHandler struct {
	sockhub.BaseHandler
	raw bool // what it switches to
	got *[]byte
}

func (h *wireHandler) Message(r *sockhub.Reply, m []byte) {
	switch {
	case len(*h.got) == 0:
		r.SetRaw(h.raw)
	case !h.raw:
		m = frame(string(m))
	}
	*h.got = append(*h.got, m...)
}

func (h *wireHandler) Stream(_ *sockhub.Reply, s *sockhub.Stream) {
	b, _ := io.ReadAll(s)
	*h.got = append(*h.got, frame(string(b))...)
}

// What a Handler is to get of what was read before waits for room in its queue,
// and not for others' input to be taken.
func TestHandlerGetsWhatWasWithdrawnThoughInputIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, &sockhub.Options{MaxMessage: 4000, InboundLimit: 140_000, ConnInbound: -1})
		c, p := serveMemory(t, hub, nil, sockhub.ListenOptions{})
		_, other := serveMemory(t, hub, nil, sockhub.ListenOptions{})
		_, slow := serveMemory(t, hub, nil, sockhub.ListenOptions{})
		synctest.Wait()
		<-hub.Events()
		slow.Write(frame(string(make([]byte, 4000)))[:3900])
		p.Write(frame("one"))
		synctest.Wait()
		go func() {
			for range 100 {
				other.Write(frame(string(make([]byte, 4000))))
			}
		}()
		synctest.Wait()
		slow.Write([]byte{0}) // may read on alone, to the end of its message
		synctest.Wait()
		two := strings.Repeat("two", 1000) // more than may always be read of one connection
		p.Write(frame(two))
		synctest.Wait()
		var got []string
		h := &handlerFuncs{message: func(_ *sockhub.Reply, m []byte) { got = append(got, string(m)) }}
		if err := c.SetHandler(h); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !slices.Equal(got, []string{"one"}) {
			t.Errorf("%.99q, want what was read; %+v", got, c.Stats())
		}
		go func() {
			for range hub.Events() {
			}
		}()
		synctest.Wait()
		if !slices.Equal(got, []string{"one", two}) {
			t.Errorf("%.99q", got)
		}
	})
}

// Shutdown leaves to a Stream's reader what is his, though a Handler waits.
func TestShutdownBesideAStreamAndAHandler(t *testing.T) {
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			hub := openHub(t, &sockhub.Options{StreamOver: 100})
			c, p := serveMemory(t, hub, nil, sockhub.ListenOptions{})
			want := []byte(strings.Repeat("0123456789", 1000))
			p.Write(frame(string(want))[:8000])
			synctest.Wait()
			var s *sockhub.Stream
			for s == nil {
				for _, d := range (<-hub.Events()).Received {
					s = d.Stream
				}
			}
			if err := c.SetHandler(&handlerFuncs{}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			go hub.Shutdown(t.Context())
			got := []byte(nil)
			for b := make([]byte, 1); ; got = append(got, b...) {
				if _, err := s.Read(b); err != nil {
					break
				}
			}
			if !bytes.HasPrefix(want, got) {
				t.Errorf("read %d bytes that are not what was sent", len(got))
			}
		})
	}
}

// A Drained that is due when the connection is given back to Events is told there,
// and the reader does not go on looking for who wants to hear it.
func TestHandlerGivesBackBeforeDrained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, nil)
		h := &handlerFuncs{message: func(r *sockhub.Reply, m []byte) {
			if string(m) == "ask" {
				r.Send(make([]byte, 1000))
				return
			}
			<-time.After(time.Second) // meanwhile that is written
			r.Conn().NotifyDrained()
			r.SetHandler(nil)
		}}
		ours, p := memnet.Pair(&memnet.Options{Buffer: 100})
		defer p.Close()
		_, err := hub.ServeConn(t.Context(), &counted{End: ours}, &sockhub.ListenOptions{
			Mode: sockhub.Anonymous, Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
		if err != nil {
			t.Fatal(err)
		}
		p.Write(frame("ask"))
		synctest.Wait()
		p.Write(frame("give back"))
		expect(t, p, frame(string(make([]byte, 1000))))
		<-time.After(time.Minute)
		p.Write(frame("for Events"))
		synctest.Wait()
		b := <-hub.Events()
		if len(b.Unknown) != 1 || len(b.Received) != 1 || len(b.Drained) != 1 || len(b.Disconnected) != 0 {
			t.Errorf("%+v", b)
		}
	})
}

// counted is an End whose transport fails when it is read too often.
type counted struct{ *memnet.End }

func (c *counted) Transport() transport.Conn { return &countedConn{Conn: c.End.Transport()} }

type countedConn struct {
	transport.Conn
	reads int
}

func (c *countedConn) Read(turn func() (park bool)) error {
	if c.reads++; c.reads > 1000 {
		return errors.New("the reader spins")
	}
	return c.Conn.Read(turn)
}

// A Stream that has come, and that nobody has seen, is for who has the connection
// when it is delivered.
func TestStreamIsOfWhoGetsTheConnection(t *testing.T) {
	for _, by := range []string{"SetHandler", "Drained"} {
		t.Run(by, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := openHub(t, &sockhub.Options{StreamOver: 1000})
				h := &handlerFuncs{message: func(r *sockhub.Reply, m []byte) {
					if by == "Drained" {
						r.Send(m)
						return
					}
					r.Conn().SetHandler(nil)
				}}
				if by == "Drained" {
					h.drained = func(r *sockhub.Reply) { r.SetHandler(nil) }
				}
				_, p := serveMemory(t, hub, nil, sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
				want := strings.Repeat("x", 2000)
				p.Write(frames("first", want))
				for begun := time.Now(); time.Since(begun) < time.Minute; {
					select {
					case b := <-hub.Events():
						for _, d := range b.Received {
							if d.Stream == nil {
								continue
							}
							if got, err := io.ReadAll(d.Stream); err != nil || string(got) != want {
								t.Errorf("%d bytes, %v", len(got), err)
							}
							return
						}
					case <-time.After(time.Second):
					}
				}
				t.Error("no Stream")
			})
		})
	}
}

// lastWord answers a Stream, and gives the connection back.
type lastWord struct{ sockhub.BaseHandler }

func (lastWord) Stream(r *sockhub.Reply, s *sockhub.Stream) {
	io.Copy(io.Discard, s)
	r.Send([]byte("bye"))
	r.SetHandler(nil)
}

func TestAnswerToAStreamThatGivesBackIsWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, &sockhub.Options{StreamOver: 1000})
		c, p := serveMemory(t, hub, nil, sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return lastWord{} }})
		p.Write(frame(strings.Repeat("x", 2000)))
		<-time.After(time.Minute)
		if s := c.Stats(); s.QueuedMessages > 0 {
			t.Fatalf("not written after a minute: %+v", s)
		}
		expect(t, p, frame("bye"))
	})
}

// skipper reads Streams.
type skipper struct{ sockhub.BaseHandler }

func (skipper) Stream(_ *sockhub.Reply, s *sockhub.Stream) { io.Copy(io.Discard, s) }

// What is asked of the reader while its Handler reads a Stream is done after that.
func TestSetHandlerWhileAStreamIsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, &sockhub.Options{StreamOver: 1000})
		c, p := serveMemory(t, hub, nil, sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return skipper{} }})
		m := frame(strings.Repeat("x", 2000))
		p.Write(m[:1000])
		synctest.Wait()
		if err := c.SetHandler(nil); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		p.Write(m[1000:])
		synctest.Wait()
		select {
		case b := <-hub.Events():
			if len(b.Unknown) != 1 {
				t.Errorf("%+v", b)
			}
		default:
			t.Error("nothing in Events")
		}
	})
}

// A Handler that got the connection is called beside the user of a Stream of
// Events, who has the input.
func TestDrainedBesideAStreamOfEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, &sockhub.Options{StreamOver: 1000})
		c, p := serveMemory(t, hub, nil, sockhub.ListenOptions{})
		<-hub.Events()
		p.Write(frame(strings.Repeat("x", 2000)))
		synctest.Wait()
		s := (<-hub.Events()).Received[0].Stream
		drained := 0
		c.SetHandler(&handlerFuncs{drained: func(*sockhub.Reply) { drained++ }})
		synctest.Wait()
		c.NotifyDrained()
		n, _ := s.Read(make([]byte, 100)) // at the same time: the race detector sees what they share
		synctest.Wait()
		if drained != 1 {
			t.Errorf("Drained is called %d times", drained)
		}
		if b, err := io.ReadAll(s); n+len(b) != 2000 || err != nil {
			t.Errorf("%d bytes, %v", len(b), err)
		}
	})
}

// secondOf is a client's second connection, which h has given to Events. The Disconnected
// of the first is not taken.
func secondOf(t *testing.T, hub *sockhub.Hub, mo *memnet.Options, h sockhub.Handler) *memnet.End {
	t.Helper()
	if _, err := hub.Expect("w", nil); err != nil {
		t.Fatal(err)
	}
	serve := func(mo *memnet.Options, lo *sockhub.ListenOptions) (*sockhub.Conn, *memnet.End) {
		ours, p := memnet.Pair(mo)
		t.Cleanup(func() { p.Close() })
		p.Write(frame("w"))
		c, err := hub.ServeConn(t.Context(), ours, lo)
		if err != nil {
			t.Fatal(err)
		}
		expect(t, p, frame("OK"))
		return c, p
	}
	first, _ := serve(nil, nil)
	<-hub.Events()
	first.Close()
	_, p := serve(mo, &sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
	return p
}

// What Events is told of a connection begins with Connected, for which the Disconnected of
// the client's last one has to be taken.
func TestNothingIsToldOfAConnectionThatWasNotReported(t *testing.T) {
	giveBack := func(r *sockhub.Reply, _ []byte) { r.SetHandler(nil) }
	calls := 0
	for name, tt := range map[string]struct {
		o       sockhub.Options
		mo      memnet.Options
		message func(*sockhub.Reply, []byte)
		second  int // size of the message behind the first
		end     bool
		want    []string
	}{
		"a Stream": {
			o:       sockhub.Options{StreamOver: 1000},
			message: giveBack,
			second:  2000,
			want:    []string{"disconnected w " + sockhub.ErrClosed.Error(), "connected w", "stream w"},
		},
		"Shutdown": {
			message: func(r *sockhub.Reply, _ []byte) { r.Conn().SetHandler(nil); sleepFor(time.Second) },
			second:  1,
			end:     true,
			want:    []string{"disconnected w " + sockhub.ErrClosed.Error()},
		},
		"Shutdown, and its last call": {
			o:  sockhub.Options{ConnOutbound: 1000},
			mo: memnet.Options{Buffer: 500},
			message: func(r *sockhub.Reply, m []byte) {
				if calls++; calls == 1 {
					r.Send(make([]byte, 5000)) // no room for a second answer: the second message waits
				} else {
					giveBack(r, m)
				}
			},
			second: 1,
			end:    true,
			want:   []string{"disconnected w " + sockhub.ErrClosed.Error()},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := openHub(t, &tt.o)
				told := 0
				p := secondOf(t, hub, &tt.mo, streamIgnored{&handlerFuncs{
					message:      tt.message,
					disconnected: func(sockhub.Disconnection) { told++ },
				}})
				p.Write(frames("x", string(make([]byte, tt.second))))
				synctest.Wait()
				if tt.end {
					go hub.Shutdown(t.Context())
					synctest.Wait()
				}
				go io.Copy(io.Discard, p)
				sleepFor(time.Minute)
				synctest.Wait()
				var got []string
				take := func() {
					for {
						synctest.Wait()
						select {
						case b, open := <-hub.Events():
							if !open {
								return
							}
							got = append(got, batchText(b)...)
							for _, d := range b.Received {
								if d.Stream != nil {
									got = append(got, "stream "+d.Conn.Name())
								}
							}
						default:
							return
						}
					}
				}
				take()
				if d := cmp.Diff(tt.want, got); d != "" {
					t.Errorf("events (-want +got):\n%s", d)
				}
				if tt.end != (told == 1) {
					t.Errorf("the Handler that gave it back was told of the end %d times", told)
				}
			})
		})
	}
}

// streamIgnored is a Handler that takes Streams.
type streamIgnored struct{ *handlerFuncs }

func (streamIgnored) Stream(*sockhub.Reply, *sockhub.Stream) {}

// The end of a connection is told to its old Handler if Events has not heard of it: one
// that its Handler gave to Events while the Disconnected of the client's last connection
// was not taken. Shutdown flushes it.
func TestTheEndOfWhoWaitsForEventsIsTold(t *testing.T) {
	const size = 16 << 20
	for _, end := range []string{"Close", "Shutdown"} {
		t.Run(end, func(t *testing.T) {
			hub := openHub(t, &sockhub.Options{ConnOutbound: 2 * size})
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

// Messages that are withdrawn from Events for a Handler reach it, also if the connection
// finishes meanwhile.
func TestWithdrawnMessagesReachTheirHandler(t *testing.T) {
	hub := openHub(t, nil)
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

// What is behind a message that was withdrawn with the end, and no whole message, is raw
// bytes if the Handler says so.
func TestSetRawBeforeWhatIsNoMessageAndTheEnd(t *testing.T) {
	for _, shutdown := range []bool{false, true} {
		for _, rest := range []string{"hello", string(frame("hello")[:10])} {
			t.Run(fmt.Sprintf("%v %q", shutdown, rest), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					hub := openHub(t, &sockhub.Options{Linger: time.Hour})
					c, p := serveMemory(t, hub, nil, sockhub.ListenOptions{})
					<-hub.Events()
					go io.Copy(io.Discard, p)
					p.Write(append(frame("upgrade"), rest...))
					synctest.Wait()
					if shutdown {
						go hub.Shutdown(t.Context())
					} else {
						p.CloseWrite()
					}
					synctest.Wait()
					var got []byte
					if err := c.SetHandler(&endingHandler{wireHandler: wireHandler{raw: true, got: &got}}); err != nil {
						t.Fatal(err)
					}
					synctest.Wait()
					p.Close()
					synctest.Wait()
					if want := "upgrade" + rest + " ended"; string(got) != want {
						t.Errorf("%q, want %q", got, want)
					}
				})
			})
		}
	}
}

// It is held until the end was taken, and no longer.
func TestWhatIsNoMessageGoesWithTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 4000
		hub := openHub(t, &sockhub.Options{MaxMessage: size, InboundLimit: 140_000, ConnInbound: -1})
		others := make([]*memnet.End, 40)
		for i := range others {
			_, p := serveMemory(t, hub, nil, sockhub.ListenOptions{HalfOpen: true})
			p.Write(frame(string(make([]byte, size)))[:size])
			p.CloseWrite()
			others[i] = p
		}
		_, p := serveMemory(t, hub, nil, sockhub.ListenOptions{})
		go p.Write(bytes.Repeat(frame(string(make([]byte, size))), 10))
		got := 0
		go func() {
			for b := range hub.Events() {
				for range b.Messages() {
					got++
				}
			}
		}()
		synctest.Wait()
		<-time.After(time.Second)
		if got != 10 {
			t.Errorf("%d messages of 10: %+v", got, hub.Stats())
		}
	})
}

// A Handler that is set behind SetHandler(nil), in one call, does not wait for the end of the
// last connection to be taken, which would matter to Events alone.
func TestHandlerBehindEventsInOneCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, nil, nil)
		var got []string
		second := &handlerFuncs{message: func(_ *sockhub.Reply, m []byte) { got = append(got, string(m)) }}
		first := &handlerFuncs{message: func(r *sockhub.Reply, m []byte) {
			r.SetHandler(nil)
			r.SetHandler(second)
		}}
		conns := 0
		r.expected("w", &sockhub.ClientOptions{Handler: func(*sockhub.Conn) sockhub.Handler {
			if conns++; conns == 1 {
				return nil
			}
			return first
		}})
		p := r.join("w")
		r.happened("connected w")
		r.conn("w").Close() // and nobody takes that
		endsUnheard(t, p)
		p = r.join("w")
		p.Write(frames("a", "b", "c"))
		synctest.Wait()
		if d := cmp.Diff([]string{"b", "c"}, got); d != "" {
			t.Errorf("messages (-want +got):\n%s", d)
		}
		r.happened("disconnected w sockhub: closed")
	})
}

// switching is a Handler that has others change its connection in its first call, and stays
// in that until the peer, told of it, has sent more.
type switching struct {
	sockhub.BaseHandler
	change func(c *sockhub.Conn) // and tells the peer
	sent   <-chan struct{}
	got    chan<- string
}

func (s *switching) Message(r *sockhub.Reply, m []byte) {
	if s.change == nil {
		s.got <- string(m)
		return
	}
	s.change(r.Conn())
	s.change = nil
	<-s.sent
}

func (s *switching) Disconnected(d sockhub.Disconnection) { s.got <- d.Err.Error() }

// upgraded is a Handler of messages whose first one makes raw bytes of what follows.
type upgraded struct {
	sockhub.BaseHandler
	got chan<- string
}

func (u upgraded) Message(r *sockhub.Reply, m []byte) {
	if !r.Conn().Raw() {
		r.SetRaw(true)
	}
	u.got <- string(m)
}

func (u upgraded) Disconnected(d sockhub.Disconnection) { u.got <- d.Err.Error() }

// What a peer sends when it has seen the answer is for who has the connection by then, and
// raw if it is so by then, though it comes while the reader has not attended to that.
func TestWhatComesBehindTheAnswerToAnUpgrade(t *testing.T) {
	const raw = "\xff\xff\xff\xff\xff\xff\xff\xff no message"
	for _, kind := range withTLS() {
		t.Run(kind, func(t *testing.T) {
			for _, test := range []struct {
				name   string
				change func(c *sockhub.Conn, got chan<- string) error
				send   string
				want   []string
			}{
				{"SetRaw", func(c *sockhub.Conn, _ chan<- string) error { return c.SetRaw(true) }, raw, []string{raw}},
				{"SetHandler", func(c *sockhub.Conn, got chan<- string) error { return c.SetHandler(upgraded{got: got}) },
					string(wire([]byte("upgrade"))) + raw, []string{"upgrade", raw}},
			} {
				t.Run(test.name, func(t *testing.T) {
					s := newStand(t, nil, nil)
					sent, got := make(chan struct{}), make(chan string, 10)
					l := s.listen(kind, &sockhub.ListenOptions{Mode: sockhub.Anonymous, Handler: func(*sockhub.Conn) sockhub.Handler {
						return &switching{sent: sent, got: got, change: func(c *sockhub.Conn) {
							if err := test.change(c, got); err != nil {
								t.Error(err)
							}
							if err := c.TrySend([]byte("go")); err != nil {
								t.Error(err)
							}
						}}
					}})
					p := dialKind(t, kind, l, "")
					p.send([]byte("first"))
					answer := "go"
					if test.name == "SetHandler" {
						answer = string(wire([]byte(answer)))
					}
					if _, err := io.ReadFull(p, make([]byte, len(answer))); err != nil {
						t.Fatal(err)
					}
					if _, err := io.WriteString(p, test.send); err != nil {
						t.Fatal(err)
					}
					close(sent)
					for _, want := range test.want {
						select {
						case m := <-got:
							if m != want {
								t.Errorf("%q, want %q", m, want)
							}
						case <-time.After(patience):
							t.Fatalf("no %q", want)
						}
					}
				})
			}
		})
	}
}

// A Drained in a batch that nobody has taken goes to the Handler that the connection gets, and
// back to Events if it is given back before that is called.
func TestDrainedOfAnUntakenBatchGoesToTheHandler(t *testing.T) {
	for _, test := range []struct {
		name     string
		back     bool
		toldHub  int
		toldHand int
	}{
		{"SetHandler", false, 0, 1},
		{"and SetHandler(nil)", true, 1, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRoom(t, nil, nil)
				c, _ := r.serve(nil, nil)
				r.take()
				c.NotifyDrained()
				synctest.Wait()
				told := 0
				c.SetHandler(&handlerFuncs{drained: func(*sockhub.Reply) { told++ }})
				if test.back {
					c.SetHandler(nil)
				}
				synctest.Wait()
				if b := r.take(); told != test.toldHand || len(b.Drained) != test.toldHub {
					t.Errorf("the Handler has heard %d Drained, Events %d", told, len(b.Drained))
				}
				c.NotifyDrained()
				synctest.Wait()
				if !test.back && told != 2 {
					t.Errorf("of the next one the Handler has heard %d", told-1)
				}
			})
		})
	}
}

// Whoever has the connection hears of the Drained that was asked for, while it is given from
// Events to a Handler and back.
func TestDrainedInHandoverAtRandom(t *testing.T) {
	eachSeed(t, 30, func(t *testing.T, seed uint64) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 0))
			r := newRoom(t, nil, nil)
			c, peer := r.serve(nil, nil)
			go io.Copy(io.Discard, peer)
			r.take()
			var told atomic.Int32
			h := &handlerFuncs{drained: func(*sockhub.Reply) { told.Add(1) }}
			var owner sockhub.Handler
			for i := range 40 {
				told.Store(0)
				changes := 1 + rnd.IntN(3)
				size, asksFirst, spins := rnd.IntN(3)*1000, rnd.IntN(2) == 0, rnd.IntN(20)
				asked := make(chan struct{})
				go func() {
					defer close(asked)
					for range spins {
						runtime.Gosched()
					}
					if size > 0 {
						c.TrySend(make([]byte, size))
					}
					c.NotifyDrained()
				}()
				if asksFirst {
					<-asked
				}
				for range changes {
					if owner = nil; rnd.IntN(3) > 0 {
						owner = h
					}
					if err := c.SetHandler(owner); err != nil {
						t.Fatal(err)
					}
					for range rnd.IntN(30) {
						runtime.Gosched()
					}
				}
				synctest.Wait()
				b := r.take()
				switch {
				case int(told.Load())+len(b.Drained) == 0:
					t.Fatalf("round %d: nobody has heard of Drained", i)
				case owner != nil && len(b.Drained) > 0:
					t.Fatalf("round %d: Events has heard of the Handler's Drained", i)
				}
			}
		})
	})
}
