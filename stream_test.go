package sockhub_test

// SendFrom, and Stream on the other side.

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
)

// pattern is n bytes that differ from place to place.
func pattern(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*31 + i>>8*7)
	}
	return p
}

// streamHandler reads streams, as far as read says.
type streamHandler struct {
	sockhub.BaseHandler
	read func(s *sockhub.Stream)
	msgs []string
	end  error
}

func (h *streamHandler) Stream(r *sockhub.Reply, s *sockhub.Stream) { h.read(s) }
func (h *streamHandler) Message(r *sockhub.Reply, m []byte)         { h.msgs = append(h.msgs, string(m)) }
func (h *streamHandler) Disconnected(d sockhub.Disconnection)       { h.end = d.Err }

// pair connects two hubs in memory, anonymously.
func pair(t *testing.T, oa, ob *sockhub.Options, lo *sockhub.ListenOptions) (a, b *sockhub.Hub, ca, cb *sockhub.Conn) {
	t.Helper()
	var hubs [2]*sockhub.Hub
	for i, o := range []*sockhub.Options{oa, ob} {
		h, err := sockhub.New(context.Background(), o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { h.Close() })
		hubs[i] = h
	}
	x, y := memnet.Pair(nil)
	if lo == nil {
		lo = new(sockhub.ListenOptions)
	}
	lo.Mode = sockhub.Anonymous
	ca, err := hubs[0].ServeConn(t.Context(), x, lo)
	if err != nil {
		t.Fatal(err)
	}
	cb, err = hubs[1].Attach(t.Context(), y, &sockhub.DialOptions{Mode: sockhub.Anonymous})
	if err != nil {
		t.Fatal(err)
	}
	return hubs[0], hubs[1], ca, cb
}

func TestLargeMessageFromAReaderToAStreamOfAHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		want := pattern(10 << 20)
		h := &streamHandler{}
		var got []byte
		h.read = func(s *sockhub.Stream) {
			if s.Size() != uint64(len(want)) {
				t.Error(s.Size())
			}
			var err error
			if got, err = io.ReadAll(s); err != nil {
				t.Error(err)
			}
		}
		_, _, _, c := pair(t, &sockhub.Options{StreamOver: 1 << 20}, nil,
			&sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
		ctx := t.Context()
		c.Send(ctx, []byte("before"))
		if err := c.SendFrom(ctx, uint64(len(want)), bytes.NewReader(want)); err != nil {
			t.Fatal(err)
		}
		c.Send(ctx, []byte("after"))
		synctest.Wait()
		if !bytes.Equal(got, want) || len(h.msgs) != 2 || h.msgs[1] != "after" {
			t.Errorf("%d bytes, %q", len(got), h.msgs)
		}
		if s := c.Stats(); s.MessagesOut != 3 || s.BytesOut != uint64(len(want))+11 || s.QueuedOut != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestStreamOfEventsHoldsItsConnectionBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		want := pattern(3 << 20)
		hub, _, _, c := pair(t, &sockhub.Options{StreamOver: 1 << 20}, &sockhub.Options{WriteTimeout: -1}, nil)
		ctx := t.Context()
		sent := make(chan error, 1)
		go func() {
			c.Send(ctx, []byte("before"))
			c.SendFrom(ctx, uint64(len(want)), bytes.NewReader(want))
			c.SendFrom(ctx, uint64(len(want)), bytes.NewReader(want))
			sent <- c.Send(ctx, []byte("after"))
		}()
		<-time.After(time.Minute)
		var msgs []string
		var streams []*sockhub.Stream
		take := func() {
			for _, d := range (<-hub.Events()).Received {
				for _, m := range d.Messages {
					msgs = append(msgs, string(m))
				}
				if d.Stream != nil {
					streams = append(streams, d.Stream)
				}
			}
		}
		take()
		if len(msgs) != 1 || len(streams) != 1 {
			t.Fatal(msgs, streams)
		}
		got := make([]byte, 1000)
		if _, err := io.ReadFull(streams[0], got); err != nil || !bytes.Equal(got, want[:1000]) {
			t.Fatal(err)
		}
		streams[0].Close() // skips the rest
		if _, err := streams[0].Read(got); !errors.Is(err, sockhub.ErrClosed) {
			t.Error(err)
		}
		for len(streams) < 2 {
			take()
		}
		all, err := io.ReadAll(streams[1])
		if err != nil || !bytes.Equal(all, want) {
			t.Error(len(all), err)
		}
		for len(msgs) < 2 {
			take()
		}
		if err := <-sent; err != nil || msgs[1] != "after" {
			t.Error(err, msgs)
		}
	})
}

// A stream that lies in what was read when the hub shuts down is begun late; a
// handler that then fills the queue in Drained leaves its input waiting for room,
// with the stream at its front.
func TestShutdownWhileAStreamAndRoomAreAwaited(t *testing.T) {
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			h := &drainedStreamHandler{left: 1}
			ours, peer := memnet.Pair(&memnet.Options{Buffer: 100})
			hub, err := sockhub.New(t.Context(), &sockhub.Options{StreamOver: 200, ConnOutbound: 10})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := hub.ServeConn(t.Context(), ours, &sockhub.ListenOptions{
				Mode: sockhub.Anonymous, Handler: func(*sockhub.Conn) sockhub.Handler { return h }}); err != nil {
				t.Fatal(err)
			}
			peer.Write(append(frame("a"), frame(string(pattern(300)))[:40]...))
			synctest.Wait()
			ends := make(chan error)
			go func() { ends <- hub.Shutdown(t.Context()) }()
			synctest.Wait()
			for range 2 {
				expect(t, peer, frame(string(pattern(1000))))
			}
			go io.Copy(io.Discard, peer)
			if err := <-ends; err != nil {
				t.Error(err)
			}
			peer.Close()
			hub.Close()
		})
	}
}

// drainedStreamHandler answers a message, and Drained as long as left is not 0.
type drainedStreamHandler struct {
	sockhub.BaseHandler
	left int
}

func (h *drainedStreamHandler) Message(r *sockhub.Reply, m []byte)         { r.Send(pattern(1000)) }
func (h *drainedStreamHandler) Stream(_ *sockhub.Reply, s *sockhub.Stream) { io.Copy(io.Discard, s) }
func (h *drainedStreamHandler) Drained(r *sockhub.Reply) {
	if h.left > 0 {
		h.left--
		r.Send(pattern(1000))
	}
}

func TestStreamEndsWithItsConnection(t *testing.T) {
	ends := map[string]struct {
		end  func(hub *sockhub.Hub, ours *sockhub.Conn, peer *memnet.End)
		want error
	}{
		"peer closes":  {func(_ *sockhub.Hub, _ *sockhub.Conn, p *memnet.End) { p.Close() }, io.ErrUnexpectedEOF},
		"we close":     {func(_ *sockhub.Hub, c *sockhub.Conn, _ *memnet.End) { c.Close() }, sockhub.ErrClosed},
		"we finish":    {func(_ *sockhub.Hub, c *sockhub.Conn, _ *memnet.End) { c.Finish() }, sockhub.ErrClosed},
		"hub closes":   {func(h *sockhub.Hub, _ *sockhub.Conn, _ *memnet.End) { h.Close() }, sockhub.ErrClosed},
		"shutdown":     {func(h *sockhub.Hub, _ *sockhub.Conn, _ *memnet.End) { h.Shutdown(context.Background()) }, sockhub.ErrClosed},
		"peer stalls":  {func(*sockhub.Hub, *sockhub.Conn, *memnet.End) {}, sockhub.ErrFrameTimeout},
		"peer is gone": {func(_ *sockhub.Hub, _ *sockhub.Conn, p *memnet.End) { p.Reset() }, nil},
	}
	for name, e := range ends {
		for _, events := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				read := make(chan error, 1)
				var h sockhub.Handler
				if !events {
					h = &streamHandler{read: func(s *sockhub.Stream) {
						_, err := io.ReadAll(s)
						read <- err
					}}
				}
				hub, c, peer := serveHandler(t, sockhub.Anonymous, h, &sockhub.Options{StreamOver: 1000, FrameTimeout: time.Second})
				if events {
					go func() {
						for b := range hub.Events() {
							for _, d := range b.Received {
								go func() {
									_, err := io.ReadAll(d.Stream)
									read <- err
								}()
							}
						}
					}()
				}
				peer.Write(sockhub.LengthPrefix(8, binary.LittleEndian).AppendHeader(nil, math.MaxUint64))
				peer.Write(make([]byte, 5000))
				synctest.Wait()
				go e.end(hub, c, peer)
				if err := <-read; err == nil || e.want != nil && !errors.Is(err, e.want) {
					t.Errorf("%s, events %v: %v", name, events, err)
				}
				<-time.After(time.Second)
				peer.Close()
			})
		}
	}
}

func TestReaderThatFails(t *testing.T) {
	boom := errors.New("boom")
	for _, at := range []int{0, 1000, 100_000, 5 << 20} {
		synctest.Test(t, func(t *testing.T) {
			hub, _, _, c := pair(t, nil, nil, nil)
			go func() {
				for range hub.Events() {
				}
			}()
			r := io.MultiReader(bytes.NewReader(make([]byte, at)), &failing{boom})
			err := c.SendFrom(t.Context(), 6<<20, r)
			if !errors.Is(err, boom) {
				t.Error(at, err)
			}
			synctest.Wait()
			if at <= 1000 {
				// Nothing of it left: the connection lives on.
				if err := c.TrySend(nil); err != nil {
					t.Error(at, err)
				}
			} else if cause := context.Cause(c.Context()); !errors.Is(cause, boom) {
				t.Error(at, cause)
			}
		})
	}
}

type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) {
	<-time.After(time.Second) // what was read before is with the peer
	return 0, f.err
}

// What cannot be written because the peer does not read is withdrawn whole as
// long as nothing of it has left.
func TestSendFromIsWithdrawnWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, _, peer := serveHandler(t, sockhub.Anonymous, nil, &sockhub.Options{WriteTimeout: -1})
		c := (<-hub.Events()).Unknown[0]
		for c.TrySend(make([]byte, 100_000)) == nil && c.Stats().QueuedOut < 1<<20 {
		}
		n := c.Stats().MessagesOut + uint64(c.Stats().QueuedMessages)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := c.SendFrom(ctx, 10<<20, bytes.NewReader(pattern(10<<20))); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		c.TrySend([]byte("end"))
		for range n {
			expect(t, peer, frame(string(make([]byte, 100_000))))
		}
		expect(t, peer, frame("end"))
		c.Close()
		for b := range hub.Events() {
			for _, d := range b.Disconnected {
				if r := d.Report; r.AcceptedMessages != n+1 || r.WrittenMessages != n+1 || r.Cut {
					t.Errorf("%+v", r)
				}
			}
			if len(b.Disconnected) > 0 {
				break
			}
		}
	})
}

func TestReplySendFromKeepsItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		big := pattern(1 << 20)
		var closed atomic.Int32
		h := &handlerFuncs{message: func(r *sockhub.Reply, m []byte) {
			r.Send([]byte("1"))
			for _, size := range []int{len(big), 10, 0} {
				r.SendFrom(uint64(size), &closer{bytes.NewReader(big), &closed})
				r.Send([]byte("then"))
			}
		}}
		hub, c, peer := serveHandler(t, sockhub.Anonymous, h, nil)
		peer.Write(frames("go", "go"))
		for range 2 {
			expect(t, peer, frame("1"))
			for _, size := range []int{len(big), 10, 0} {
				expect(t, peer, frame(string(big[:size])))
				expect(t, peer, frame("then"))
			}
		}
		synctest.Wait()
		if s := c.Stats(); closed.Load() != 6 || s.MessagesOut != 14 || s.QueuedMessages != 0 {
			t.Errorf("%d closed, %+v", closed.Load(), s)
		}
		_ = hub
	})
}

type closer struct {
	io.Reader
	n *atomic.Int32
}

func (c *closer) Close() error { c.n.Add(1); return nil }

// A connection ends while the reader of a message that is written is being
// closed: when nothing else is under way, and when another message is.
func TestEndWaitsForTheCloseOfReaders(t *testing.T) {
	for _, what := range []string{"nothing", "Reply.SendFrom", "Conn.SendFrom"} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var closed atomic.Int32
				closing := make(chan struct{})
				ends := make(chan sockhub.Disconnection, 1)
				h := &handlerFuncs{
					message: func(r *sockhub.Reply, m []byte) {
						r.SendFrom(5, &slowCloser{strings.NewReader("first"), closing})
						if what == "Reply.SendFrom" {
							r.SendFrom(10<<20, &closer{bytes.NewReader(pattern(10 << 20)), &closed})
						}
					},
					disconnected: func(d sockhub.Disconnection) { ends <- d },
				}
				_, c, peer := serveHandler(t, sockhub.Anonymous, h, nil)
				peer.Write(frame("go"))
				expect(t, peer, frame("first"))
				if what == "Conn.SendFrom" {
					go c.SendFrom(t.Context(), 10<<20, bytes.NewReader(pattern(10<<20)))
				}
				synctest.Wait()
				c.Close()
				synctest.Wait()
				if len(ends) > 0 {
					t.Error("the end did not wait")
				}
				close(closing)
				synctest.Wait()
				if len(ends) != 1 || what == "Reply.SendFrom" && closed.Load() != 1 {
					t.Errorf("%d ends, %d closed", len(ends), closed.Load())
				}
			})
		})
	}
}

// slowCloser takes its time to close.
type slowCloser struct {
	io.Reader
	closing chan struct{} // closed when it may
}

func (c *slowCloser) Close() error { <-c.closing; return nil }

func TestReportCountsMessagesFromReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reports := make(chan sockhub.Disconnection, 1)
		closed, big := atomic.Int32{}, pattern(10<<20)
		h := &handlerFuncs{
			message: func(r *sockhub.Reply, m []byte) {
				for range 3 {
					r.SendFrom(10<<20, &closer{bytes.NewReader(big), &closed})
				}
				r.Send([]byte("last"))
			},
			disconnected: func(d sockhub.Disconnection) { reports <- d },
		}
		_, c, peer := serveHandler(t, sockhub.Anonymous, h, nil)
		peer.Write(frame("go"))
		expect(t, peer, frame(string(big))[:100_000])
		synctest.Wait()
		c.Close()
		d := <-reports
		r := d.Report
		if r.AcceptedMessages != 4 || !r.Cut || r.CutSize != 10<<20 || r.CutWritten < 99_992 || r.UnsentMessages != 3 ||
			r.UnsentBytes != 20<<20+4 || r.AcceptedBytes != 30<<20+4 || r.CutMessage() != nil || closed.Load() != 3 {
			t.Errorf("%+v, %d closed", r, closed.Load())
		}
		for m := range r.Unsent() {
			if string(m) != "last" {
				t.Errorf("%.20q", m)
			}
		}
	})
}

// A reader that gives a little at a time is not read on when ctx or the connection has
// ended.
func TestSendFromEndsBetweenReads(t *testing.T) {
	for name, tt := range map[string]struct {
		after time.Duration // a Read gives 1 KiB and takes 10 ms, so that 64 KiB take 640 ms
		close bool          // the connection, and not ctx
		kept  bool          // the connection, as nothing was accepted
	}{
		"ctx, before the first piece":   {after: 100 * time.Millisecond, kept: true},
		"ctx, within a later one":       {after: time.Second},
		"Close, before the first piece": {after: 100 * time.Millisecond, close: true},
		"Close, within a later one":     {after: time.Second, close: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLine(t, nil, nil, nil)
				go io.Copy(io.Discard, l.p)
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				enough := errors.New("enough")
				want := enough
				if tt.close {
					want = sockhub.ErrClosed
					time.AfterFunc(tt.after, func() { l.c.Close() })
				} else {
					time.AfterFunc(tt.after, func() { cancel(enough) })
				}
				begun := time.Now()
				err := l.c.SendFrom(ctx, 1<<20, slowly{})
				if took := time.Since(begun); !errors.Is(err, want) || took > tt.after+10*time.Millisecond {
					t.Errorf("%v after %v", err, took)
				}
				synctest.Wait()
				if alive := l.c.Context().Err() == nil; alive != tt.kept {
					t.Errorf("the connection lives: %v", alive)
				}
				if tt.kept {
					l.sent("whole")
				}
			})
		})
	}
}

// Nor is one that gives nothing for now, without an error.
func TestSendFromEndsBetweenReadsOfNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, nil, nil, nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := l.c.SendFrom(ctx, 1000, silence{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}

// Close behind a SendFrom that was ErrNotConnected leaves the reason what it was.
func TestCloseAfterSendFromThatWasRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, &sockhub.Options{WriteTimeout: -1}, stuck, nil)
		l.sent("does not fit")
		result := make(chan error)
		go func() { result <- l.c.SendFrom(t.Context(), 1<<20, slowly{}) }()
		<-time.After(15 * time.Millisecond) // it has read a little
		l.p.CloseWrite()
		for range 3 {
			l.take() // with the Ended, and then the end can be seen
		}
		if err := <-result; err != sockhub.ErrNotConnected {
			t.Fatal(err)
		}
		l.c.Close()
		if d := l.ended(); d.Err != io.EOF {
			t.Errorf("ended with %v, want io.EOF", d.Err)
		}
	})
}

type silence struct{}

func (silence) Read([]byte) (int, error) {
	<-time.After(10 * time.Millisecond)
	return 0, nil
}

// slowly reads 1 KiB at a time.
type slowly struct{}

func (slowly) Read(p []byte) (int, error) {
	<-time.After(10 * time.Millisecond)
	return min(len(p), 1<<10), nil
}

// What of a Stream was read is its reader's, and not held against InboundLimit until the
// Stream ends: a few that go on for long would keep others from being read.
func TestWhatWasReadOfAStreamIsNotHeld(t *testing.T) {
	for _, reuse := range []bool{false, true} {
		for _, handled := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				const size, came = 100_000, 50_000
				budget := sockhub.NewBudget(0, 0, 0)
				hub := openHub(t, &sockhub.Options{StreamOver: 1000, ReuseBuffers: reuse, Budget: budget})
				read := 0
				take := func(s *sockhub.Stream) {
					for p := make([]byte, 700); ; {
						n, err := s.Read(p)
						if read += n; err != nil {
							return
						}
					}
				}
				var lo sockhub.ListenOptions
				if handled {
					lo.Handler = func(*sockhub.Conn) sockhub.Handler { return &streamHandler{read: take} }
				}
				go func() {
					for b := range hub.Events() {
						for _, d := range b.Received {
							take(d.Stream)
						}
					}
				}()
				_, p := serveMemory(t, hub, nil, lo)
				whole := frame(string(make([]byte, size)))
				p.Write(whole[:8+came])
				synctest.Wait()
				if held := budget.Held(); read != came || held != "" {
					t.Errorf("%d bytes of %d were read, held is %s", read, came, held)
				}
				p.Write(whole[8+came:])
				synctest.Wait()
				if held := budget.Held(); read != size || held != "" {
					t.Errorf("%d bytes of %d were read, held is %s", read, size, held)
				}
			})
		}
	}
}

// A message of StreamOver bytes is a message still, and one byte more makes a Stream.
func TestStreamBeginsAboveStreamOver(t *testing.T) {
	for _, framing := range []sockhub.Framing{nil, sockhub.Uvarint()} {
		synctest.Test(t, func(t *testing.T) {
			l := newLine(t, nil, nil, &sockhub.ListenOptions{StreamOver: 300, Framing: framing})
			if framing == nil {
				framing = sockhub.LengthPrefix(8, binary.LittleEndian)
			}
			for _, cut := range []int{0, 200} {
				for _, size := range []int{300, 301} {
					wire := append(framing.AppendHeader(nil, uint64(size)), make([]byte, size)...)
					l.p.Write(wire[:cut])
					synctest.Wait()
					l.p.Write(wire[cut:])
					d := l.take().Received
					if len(d) != 1 || (size > 300) != (d[0].Stream != nil) || (size > 300) != (len(d[0].Messages) == 0) {
						t.Fatalf("%d bytes: %+v", size, d)
					}
					if s := d[0].Stream; s != nil {
						if n, err := io.Copy(io.Discard, s); n != int64(s.Size()) || n != int64(size) || err != nil {
							t.Errorf("read %d of %d bytes: %v", n, s.Size(), err)
						}
					}
				}
			}
		})
	}
}

// The first pieces of a message from a reader wait behind others, and the connection ends:
// SendFrom fails, so nobody has accepted it.
func TestReportWithoutTheSendFromThatFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, &sockhub.Options{WriteTimeout: -1}, stuck, nil)
		l.sent("before")
		call := async(func() (int, error) {
			return 0, l.c.SendFrom(t.Context(), 10<<20, bytes.NewReader(make([]byte, 10<<20)))
		})
		waits(t, call)
		l.c.Close()
		returns(t, call, sockhub.ErrClosed)
		if r := l.endsWith(sockhub.ErrClosed).Report; r.AcceptedMessages != 1 || r.AcceptedBytes != 6 || !r.Cut || r.UnsentMessages != 0 {
			t.Errorf("%+v", r)
		}
	})
}

// A Write that cannot be taken back has the beginning of the message: the end of ctx ends
// the connection, and does not wait for the Write.
func TestSendFromEndsBehindAWriteThatCannotBeInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, &sockhub.Options{WriteTimeout: -1}, nil)
		ours, theirs := io.Pipe()
		reading, ending := io.Pipe()
		c, err := r.ServeConn(t.Context(), struct {
			io.Reader
			io.Writer
			io.Closer
		}{reading, theirs, closers{theirs, ending}}, &sockhub.ListenOptions{Mode: sockhub.Anonymous})
		if err != nil {
			t.Fatal(err)
		}
		defer ours.Close()
		enough := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		call := async(func() (int, error) { return 0, c.SendFrom(ctx, 1<<20, bytes.NewReader(make([]byte, 1<<20))) })
		waits(t, call)
		cancel(enough)
		returns(t, call, enough)
		<-c.Context().Done()
	})
}

// closers are closed together.
type closers []io.Closer

func (c closers) Close() error {
	for _, c := range c {
		c.Close()
	}
	return nil
}
