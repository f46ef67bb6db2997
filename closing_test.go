package sockhub_test

// How connections and hubs end: Close, Finish, Shutdown, and WriteTimeout.

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
)

// ended takes batches until the connection's Disconnected.
func ended(t *testing.T, hub *sockhub.Hub, c *sockhub.Conn) sockhub.Disconnection {
	t.Helper()
	for b := range hub.Events() {
		for _, d := range b.Disconnected {
			if d.Conn == c {
				return d
			}
		}
	}
	t.Fatal("no Disconnected")
	panic("unreachable")
}

// Who reads now and then is not given up, and who stops is at WriteTimeout, to a second:
// whatever he is sent, and whether or not what is acknowledged can be seen.
func TestWhoStopsReadingGoesInTime(t *testing.T) {
	eachBubble(t, 100, func(t *testing.T, seed uint64) {
		rng := rand.New(rand.NewPCG(seed, 79))
		const timeout = sockhub.DefaultWriteTimeout
		mo := &memnet.Options{
			Seed: seed, Buffer: 3 + rng.IntN(100_000), Unix: rng.IntN(2) == 0, NoUnacked: rng.IntN(2) == 0, NoWriteNow: rng.IntN(3) == 0,
			Faults: memnet.Faults{ShortWrite: []float64{0, 0.3}[rng.IntN(2)], Spurious: []float64{0, 0.3}[rng.IntN(2)]},
		}
		l := newLine(t, &sockhub.Options{ConnOutbound: 8 << 20, IdleTimeout: []time.Duration{-1, time.Hour}[rng.IntN(2)]}, mo, nil)
		sleepFor(time.Duration(rng.IntN(20_000)) * time.Millisecond)
		size := 1<<20 + rng.IntN(1<<20)
		switch rng.IntN(4) {
		case 0:
			l.sent(string(make([]byte, size)))
		case 1:
			for range 100 {
				l.sent(string(make([]byte, size/100)))
			}
		case 2:
			go l.c.SendFrom(t.Context(), uint64(size), bytes.NewReader(make([]byte, size)))
		case 3:
			l.sent(string(make([]byte, size)))
			l.c.Finish()
		}
		stopped := time.Now()
		for range rng.IntN(10) {
			sleepFor(time.Duration(rng.IntN(8500)) * time.Millisecond)
			if err := l.c.Context().Err(); err != nil {
				t.Fatalf("it was given up while it read; %+v", mo)
			}
			io.ReadFull(l.p, make([]byte, 1+rng.IntN(mo.Buffer)))
			stopped = time.Now()
		}
		<-l.c.Context().Done()
		took := time.Since(stopped)
		var d sockhub.Disconnection
		for d.Conn == nil {
			for _, x := range l.take().Disconnected {
				d = x
			}
		}
		checkReport(t, l.c, d, true)
		if !errors.Is(d.Err, sockhub.ErrSlowPeer) || took < timeout || took > timeout+time.Second {
			t.Errorf("%v after %v; %+v", d.Err, took, mo)
		}
	})
}

// A Write of a record layer that does not show what is below it is not cut before
// WriteTimeout: it could be its last, as with package tls.
func TestPauseOfAPeerCutsNoWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, nil)
		a, b := net.Pipe()
		defer b.Close()
		c, err := hub.ServeConn(t.Context(), &brittle{Conn: a}, &sockhub.ListenOptions{Mode: sockhub.Anonymous})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.TrySend(make([]byte, 100_000)); err != nil {
			t.Fatal(err)
		}
		<-time.After(sockhub.DefaultWriteTimeout / 2)
		if n, err := io.ReadFull(b, make([]byte, 100_008)); err != nil {
			t.Errorf("%d bytes came: %v", n, err)
		}
	})
}

// brittle fails for good when a deadline has cut a Write short.
type brittle struct {
	net.Conn
	broken atomic.Bool
}

func (b *brittle) Write(p []byte) (int, error) {
	if b.broken.Load() {
		return 0, errors.New("broken")
	}
	n, err := b.Conn.Write(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		b.broken.Store(true)
	}
	return n, err
}

// A peer that takes a little now and then is slow; one that takes nothing is
// stuck.
func TestWriteTimeoutIsOfProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, c, peer := serveHandler(t, sockhub.Anonymous, nil, nil)
		const n = 50
		for range n {
			if err := c.TrySend(make([]byte, 10_000)); err != nil {
				t.Fatal(err)
			}
		}
		for range 10 {
			<-time.After(8 * time.Second)
			expect(t, peer, frame(string(make([]byte, 10_000)))[:10_008])
		}
		start := time.Now()
		d := ended(t, hub, c)
		if took := time.Since(start); !errors.Is(d.Err, sockhub.ErrSlowPeer) || took < 9*time.Second || took > 11500*time.Millisecond {
			t.Error(d.Err, took)
		}
		cut := uint64(0)
		if d.Report.Cut {
			cut = 1
		}
		if r := d.Report; r.AcceptedMessages != n || r.WrittenMessages+r.UnsentMessages+cut != n || r.UnsentMessages < 20 {
			t.Errorf("%+v", r)
		}
		if s := hub.Stats(); s.SlowPeers != 1 {
			t.Errorf("%d slow peers", s.SlowPeers)
		}
	})
}

func TestFinishFlushesAndLingers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, c, peer := serveHandler(t, sockhub.Anonymous, nil, nil)
		big := string(make([]byte, 300_000))
		c.TrySend([]byte(big))
		c.Finish()
		if err := c.TrySend(nil); !errors.Is(err, sockhub.ErrClosed) {
			t.Error(err)
		}
		peer.Write(frame("too late")) // is discarded
		expect(t, peer, frame(big))
		if _, err := peer.Read(make([]byte, 1)); err != io.EOF {
			t.Error(err)
		}
		start := time.Now() // the peer does not close
		d := ended(t, hub, c)
		if took := time.Since(start); !errors.Is(d.Err, sockhub.ErrClosed) || took < 400*time.Millisecond || took > 600*time.Millisecond {
			t.Error(d.Err, took)
		}
		if r := d.Report; r.WrittenMessages != 1 || c.Stats().MessagesIn != 0 {
			t.Errorf("%+v", r)
		}
		if cause := context.Cause(c.Context()); !errors.Is(cause, sockhub.ErrClosed) {
			t.Error(cause)
		}
	})
}

// A Handler may wait for the connection's context, as what it waits for otherwise may
// not come any more.
func TestCloseEndsTheContextDuringACall(t *testing.T) {
	for what, end := range map[string]func(*testing.T, *sockhub.Hub, *sockhub.Conn){
		"Conn.Close": func(_ *testing.T, _ *sockhub.Hub, c *sockhub.Conn) { c.Close() },
		"Hub.Close":  func(_ *testing.T, hub *sockhub.Hub, _ *sockhub.Conn) { hub.Close() },
		"the end of Shutdown's context": func(t *testing.T, hub *sockhub.Hub, _ *sockhub.Conn) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			hub.Shutdown(ctx)
		},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := openHub(t, nil)
				cause, last := make(chan error, 1), make(chan error, 1)
				h := &handlerFuncs{
					message: func(r *sockhub.Reply, _ []byte) {
						<-r.Conn().Context().Done()
						cause <- context.Cause(r.Conn().Context())
					},
					disconnected: func(d sockhub.Disconnection) { last <- d.Err },
				}
				c, p := serveMemory(t, hub, nil, sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
				p.Write(frame("x"))
				synctest.Wait()
				end(t, hub, c)
				synctest.Wait()
				select {
				case err := <-cause:
					if err != <-last || !errors.Is(err, sockhub.ErrClosed) {
						t.Error(err)
					}
				default:
					t.Error("the call still waits")
				}
			})
		})
	}
}

func TestHalfOpenIsOursToFinish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, nil)
		ours, peer := memnet.Pair(nil)
		c, err := hub.ServeConn(t.Context(), ours, &sockhub.ListenOptions{Mode: sockhub.Anonymous, HalfOpen: true})
		if err != nil {
			t.Fatal(err)
		}
		peer.CloseWrite()
		for b := range hub.Events() {
			if len(b.Ended) > 0 {
				break
			}
		}
		<-time.After(time.Hour)
		if err := c.TrySend([]byte("still")); err != nil {
			t.Error(err)
		}
		expect(t, peer, frame("still"))
		c.Finish()
		if d := ended(t, hub, c); !errors.Is(d.Err, sockhub.ErrClosed) {
			t.Error(d.Err)
		}
		peer.Close()
	})
}

// What was received before Shutdown may be answered until Ended is taken.
func TestShutdownLetsAnswersOut(t *testing.T) {
	for _, linger := range []time.Duration{0, -1} { // -1: our side does not wait for the peer's FIN, but for the user
		synctest.Test(t, func(t *testing.T) {
			hub, _, peer := serveHandler(t, sockhub.Anonymous, nil, &sockhub.Options{Linger: linger})
			peer.Write(frames("1", "2"))
			synctest.Wait()
			done := make(chan error, 1)
			go func() { done <- hub.Shutdown(t.Context()) }()
			synctest.Wait()
			go func() {
				for b := range hub.Events() {
					for c, m := range b.Messages() {
						<-time.After(200 * time.Millisecond)
						if err := c.TrySend(m); err != nil {
							t.Error(err)
						}
					}
				}
			}()
			expect(t, peer, frames("1", "2"))
			if _, err := peer.Read(make([]byte, 1)); err != io.EOF {
				t.Error(err)
			}
			peer.Close()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

// What was read before Shutdown is delivered, also where it waits for room for the answer,
// and gets it just then.
func TestShutdownDeliversWhatWaitsForRoom(t *testing.T) {
	eachBubble(t, 2000, func(t *testing.T, seed uint64) {
		hub := openHub(t, &sockhub.Options{ConnOutbound: 100})
		got := 0
		h := &handlerFuncs{message: func(r *sockhub.Reply, m []byte) {
			got++
			r.Send(make([]byte, 200))
		}}
		_, p := serveMemory(t, hub, &memnet.Options{Buffer: 300, Seed: seed}, sockhub.ListenOptions{
			Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
		const n = 10
		p.Write(bytes.Repeat(frame("m"), n))
		synctest.Wait()
		done := async(func() (int, error) { return 0, hub.Shutdown(t.Context()) })
		for range seed % 50 {
			p.Read(make([]byte, 1))
		}
		go io.Copy(io.Discard, p)
		<-done
		if got != n {
			t.Errorf("%d messages of %d were delivered", got, n)
		}
	})
}

func TestShutdownEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, c, _ := serveHandler(t, sockhub.Anonymous, nil, nil)
		for c.TrySend(make([]byte, 100_000)) == nil { // to a peer that does not read
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		start := time.Now()
		if err := hub.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 3100*time.Millisecond {
			t.Error(err, time.Since(start))
		}
		d := ended(t, hub, c)
		if !errors.Is(d.Err, sockhub.ErrClosed) || d.Report.UnsentMessages == 0 {
			t.Errorf("%v, %+v", d.Err, d.Report)
		}
	})
}

func TestCloseEndsWhateverWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, c, _ := serveHandler(t, sockhub.Anonymous, nil, &sockhub.Options{WriteTimeout: -1, ConnOutbound: 1000})
		id := c.ID()
		for c.TrySend(make([]byte, 100_000)) == nil {
		}
		errs := make(chan error, 10)
		for range 5 {
			go func() { errs <- c.Send(context.Background(), []byte("waits")) }()
			go func() {
				_, err := hub.SendMany(context.Background(), id, func(yield func([]byte) bool) {
					for yield(make([]byte, 10_000)) {
					}
				})
				errs <- err
			}()
		}
		synctest.Wait()
		start := time.Now()
		for range 3 {
			go hub.Close()
		}
		hub.Close()
		for range 10 {
			if err := <-errs; !errors.Is(err, sockhub.ErrClosed) {
				t.Error(err)
			}
		}
		if d := time.Since(start); d > 100*time.Millisecond {
			t.Error("after", d)
		}
		if err := hub.TrySend(id, nil); !errors.Is(err, sockhub.ErrClosed) {
			t.Error(err)
		}
		if _, err := hub.Expect("x", nil); !errors.Is(err, sockhub.ErrClosed) {
			t.Error(err)
		}
	})
}

func TestErrorsOfWhatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, c, peer := serveHandler(t, sockhub.Anonymous, nil, nil)
		if err := hub.TrySend(c.ID()+1<<40, nil); !errors.Is(err, sockhub.ErrUnknownID) {
			t.Error(err)
		}
		peer.Reset()
		synctest.Wait()
		if err := c.TrySend(nil); !errors.Is(err, sockhub.ErrNotConnected) {
			t.Error(err)
		}
		if err := hub.TrySend(c.ID(), nil); !errors.Is(err, sockhub.ErrNotConnected) {
			t.Error("before its Disconnected is taken:", err)
		}
		ended(t, hub, c)
		synctest.Wait()
		if err := hub.TrySend(c.ID(), nil); !errors.Is(err, sockhub.ErrUnknownID) {
			t.Error("after that:", err)
		}
	})
}

// A connection whose output has failed ends when nothing comes, also while a Stream is read,
// and whenever that begins.
func TestFailedWriteEndsAStream(t *testing.T) {
	for _, after := range []time.Duration{0, 5 * time.Second, 11 * time.Second} {
		t.Run(after.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLine(t, &sockhub.Options{FrameTimeout: -1}, &memnet.Options{Faults: memnet.Faults{FailWriteAt: [2]int64{20, 0}}},
					&sockhub.ListenOptions{StreamOver: 100})
				l.p.Write(frame(string(make([]byte, 1000)))[:200])
				var s *sockhub.Stream
				for s == nil {
					for _, d := range l.take().Received {
						s = d.Stream
					}
				}
				l.sent(string(make([]byte, 100)))
				sleepFor(after)
				begun := time.Now()
				if _, err := io.Copy(io.Discard, s); !errors.Is(err, syscall.ETIMEDOUT) {
					t.Error(err)
				}
				if took := time.Since(begun); took > sockhub.DefaultWriteTimeout*5/4 {
					t.Errorf("it ended after %v", took)
				}
			})
		})
	}
}

// A connection that is slow to end, as it says goodbye, stops nobody else's clocks.
func TestHangupThatBlocksStopsNoClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, nil)
		a, b := net.Pipe()
		defer b.Close()
		slow := slowGoodbye{a, make(chan struct{})}
		defer close(slow.end)
		go hub.ServeConn(t.Context(), slow, nil) // its peer gives no name
		synctest.Wait()
		<-time.After(time.Second)
		ours, peer := memnet.Pair(nil) // nor does this one's
		defer peer.Close()
		begun := time.Now()
		if _, err := hub.ServeConn(t.Context(), ours, nil); !errors.Is(err, sockhub.ErrHandshakeTimeout) {
			t.Error(err)
		}
		if took := time.Since(begun); took > sockhub.DefaultHandshakeTimeout+time.Second {
			t.Errorf("its handshake timed out after %v", took)
		}
	})
}

type slowGoodbye struct {
	net.Conn
	end chan struct{}
}

func (slowGoodbye) CloseRead() error    { return nil }
func (c slowGoodbye) CloseWrite() error { <-c.end; return nil }

// A peer that reads all the time is slow, and not stuck, also behind a connection of
// somebody's making that hides a record layer.
func TestSlowPeerOfAHiddenLayer(t *testing.T) {
	server, client := secure()
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, nil)
		ours, peer := memnet.Pair(nil)
		p := tls.Client(peer, client)
		var reader sync.WaitGroup
		defer reader.Wait()
		reader.Go(func() { // 100 kB/s
			defer p.Close()
			for buf := make([]byte, 10_000); ; {
				n, err := p.Read(buf)
				if err != nil {
					return
				}
				<-time.After(time.Duration(n) * 10 * time.Microsecond)
			}
		})
		secured := tls.Server(ours, server)
		if err := secured.HandshakeContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		c, err := hub.ServeConn(t.Context(), struct{ net.Conn }{secured}, &sockhub.ListenOptions{Mode: sockhub.Anonymous})
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if err := c.Send(t.Context(), make([]byte, 1_500_000)); err != nil {
				t.Fatal(err)
			}
		}
		c.Finish()
		if d := ended(t, hub, c); d.Report.WrittenMessages != 3 || !errors.Is(d.Err, sockhub.ErrClosed) {
			t.Errorf("%v; %v", d.Err, d.Report)
		}
	})
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

// What Finish does not let in is discarded however it came: in the same segment, or as
// a message that is too large for one read.
func TestNothingIsDeliveredAfterFinish(t *testing.T) {
	for _, size := range []int{0, 10, 5000, 200_000} {
		for name, finish := range map[string]func(*sockhub.Reply){
			"Conn.Finish":  func(r *sockhub.Reply) { r.Flush(); r.Conn().Finish() },
			"Reply.Finish": (*sockhub.Reply).Finish,
		} {
			t.Run(fmt.Sprint(name, " ", size), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					calls := 0
					h := &handlerFuncs{message: func(r *sockhub.Reply, m []byte) { calls++; r.Send(m); finish(r) }}
					hub, _, peer := serveHandler(t, sockhub.Anonymous, h, nil)
					defer hub.Close()
					m := string(make([]byte, size))
					go func() { peer.Write(frames(m, m, m, m)); peer.CloseWrite() }()
					msgs, cut, err := readAll(peer)
					if len(msgs) != 1 || len(cut) > 0 || err != nil {
						t.Errorf("%d answers, %d bytes more, %v", len(msgs), len(cut), err)
					}
					synctest.Wait()
					if calls != 1 {
						t.Errorf("%d calls", calls)
					}
				})
			})
		}
	}
}

// Whatever had come by then, and wherever it was, Disconnected is the only call behind the
// one that finishes or closes. (Finish of the Conn may be somebody else's: what was
// withdrawn comes all the same.)
func TestNoCallFollowsTheEnd(t *testing.T) {
	message, stream := string(frame("m")), string(frame(strings.Repeat("s", 2000)))
	for _, sent := range []string{message + stream, message + message, message} {
		for name, end := range map[string]func(*sockhub.Reply){
			"Conn.Finish":  func(r *sockhub.Reply) { r.Conn().Finish() },
			"Reply.Finish": (*sockhub.Reply).Finish,
			"Reply.Close":  (*sockhub.Reply).Close,
		} {
			for _, in := range []string{"Message", "Message, withdrawn", "Drained"} {
				if name == "Conn.Finish" && in == "Message, withdrawn" {
					continue
				}
				synctest.Test(t, func(t *testing.T) {
					hub := openHub(t, &sockhub.Options{StreamOver: 1000})
					h := &callsLog{in: strings.TrimSuffix(in, ", withdrawn"), end: end}
					var lo sockhub.ListenOptions
					if h.in == in {
						lo.Handler = func(*sockhub.Conn) sockhub.Handler { return h }
					}
					c, p := serveMemory(t, hub, nil, lo)
					if h.in != in {
						<-hub.Events() // with Connected; what follows is not taken
					}
					p.Write([]byte(sent))
					p.CloseWrite()
					synctest.Wait()
					if h.in != in {
						c.SetHandler(h)
					}
					go io.Copy(io.Discard, p)
					<-c.Context().Done()
					synctest.Wait()
					want := []string{"Message", "Disconnected"}
					if in == "Drained" {
						want = []string{"Message", "Drained", "Disconnected"}
						if sent == message+message {
							want = slices.Insert(want, 0, "Message") // with the first
						}
					}
					if diff := cmp.Diff(want, h.calls); diff != "" {
						t.Errorf("%q, %s in %s (-want +got):\n%s", sent[:min(len(sent), 30)], name, in, diff)
					}
				})
			}
		}
	}
}

// callsLog answers, notes its calls, and ends the connection in one of them.
type callsLog struct {
	in    string // which one
	end   func(*sockhub.Reply)
	calls []string
}

func (h *callsLog) note(r *sockhub.Reply, call string) {
	if h.calls = append(h.calls, call); call == h.in {
		h.end(r)
	}
}

func (h *callsLog) Message(r *sockhub.Reply, m []byte)         { r.Send(m); h.note(r, "Message") }
func (h *callsLog) Drained(r *sockhub.Reply)                   { h.note(r, "Drained") }
func (h *callsLog) Stream(r *sockhub.Reply, _ *sockhub.Stream) { h.note(r, "Stream") }
func (h *callsLog) Ended(r *sockhub.Reply)                     { h.note(r, "Ended") }
func (h *callsLog) Disconnected(sockhub.Disconnection)         { h.calls = append(h.calls, "Disconnected") }

// The end of what was finished says so in every call: SetHandler and SetRaw had another
// error than Send, if the connection had failed before all was written.
func TestCallsAfterFinishAgree(t *testing.T) {
	for name, fail := range map[string]func(*line){
		"reset":   func(l *line) { l.p.Reset() },
		"Close":   func(l *line) { l.c.Close() },
		"timeout": func(*line) { sleepFor(time.Minute) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLine(t, nil, stuck, nil)
				l.sent("never written")
				if err := l.c.Finish(); err != nil {
					t.Error(err)
				}
				fail(l)
				l.ended()
				for call, err := range map[string]error{
					"Send":       l.c.Send(t.Context(), nil),
					"SendFrom":   l.c.SendFrom(t.Context(), 1, bytes.NewReader([]byte("x"))),
					"SetHandler": l.c.SetHandler(nil),
					"SetRaw":     l.c.SetRaw(true),
				} {
					if !errors.Is(err, sockhub.ErrClosed) {
						t.Errorf("%s: %v", call, err)
					}
				}
			})
		})
	}
}

// So is what waited for room for the answer of a Handler that does not have the connection
// any more.
func TestShutdownDeliversToEventsWhatWaitedForRoom(t *testing.T) {
	for _, inCall := range []bool{false, true} {
		t.Run(fmt.Sprint(inCall), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := openHub(t, &sockhub.Options{ConnOutbound: 100})
				var got []string
				h := &handlerFuncs{message: func(r *sockhub.Reply, m []byte) {
					got = append(got, string(m))
					r.Send(make([]byte, 2000))
					if inCall {
						r.SetHandler(nil)
					}
				}}
				c, p := serveMemory(t, hub, &memnet.Options{Buffer: 1000}, sockhub.ListenOptions{
					Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
				p.Write(frames("1", "2", "3"))
				synctest.Wait()
				if !inCall {
					c.SetHandler(nil)
				}
				synctest.Wait()
				done := async(func() (int, error) { return 0, hub.Shutdown(t.Context()) })
				synctest.Wait()
				go io.Copy(io.Discard, p)
				for b := range hub.Events() {
					for _, m := range b.Messages() {
						got = append(got, string(m))
					}
				}
				<-done
				if want := []string{"1", "2", "3"}; !slices.Equal(got, want) {
					t.Errorf("%q, want %q", got, want)
				}
			})
		})
	}
}

// What Classify has had read behind the name waits where InboundLimit is reached, and is
// delivered in Shutdown all the same.
func TestShutdownDeliversWhatWaitsForInboundLimit(t *testing.T) {
	for _, handled := range []bool{false, true} {
		t.Run(fmt.Sprint("handled ", handled), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const size, limit = 64 << 10, 2 * (64<<10 + 64<<10)
				input := frames("worker", "one", "two", "three")
				var got []string
				lo := sockhub.ListenOptions{Classify: func(_ sockhub.Peer, first []byte) (*sockhub.ListenOptions, int, error) {
					if len(first) < len(input) {
						return nil, len(input), nil
					}
					return nil, 0, nil
				}}
				if handled {
					h := &handlerFuncs{message: func(_ *sockhub.Reply, m []byte) { got = append(got, string(m)) }}
					lo.Handler = func(*sockhub.Conn) sockhub.Handler { return h }
				}
				r := newRoom(t, &sockhub.Options{MaxMessage: size, InboundLimit: limit}, &lo)
				_, p := r.serve(nil, nil)
				go p.Write(bytes.Repeat(frame(string(make([]byte, size))), 10))
				synctest.Wait()
				worker, err := r.l.Dial(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer worker.Close()
				worker.Write(input)
				expect(t, worker, frame("OK"))
				synctest.Wait()
				if len(got) > 0 {
					t.Fatal("InboundLimit is not reached")
				}
				done := async(func() (int, error) { return 0, r.Shutdown(t.Context()) })
				synctest.Wait()
				for b := range r.Events() {
					for c, m := range b.Messages() {
						if c.Name() == "worker" {
							got = append(got, string(m))
						}
					}
				}
				returns(t, done, nil)
				if d := cmp.Diff([]string{"one", "two", "three"}, got); d != "" {
					t.Errorf("messages (-want +got):\n%s", d)
				}
			})
		})
	}
}
