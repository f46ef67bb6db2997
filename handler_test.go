package sockhub_test

// Handler and Reply: the calls, their order, and what is refused.

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
)

// handlerFuncs is a Handler made of functions; nil ones do nothing.
type handlerFuncs struct {
	message      func(*sockhub.Reply, []byte)
	drained      func(*sockhub.Reply)
	ended        func(*sockhub.Reply)
	disconnected func(sockhub.Disconnection)
}

func (h *handlerFuncs) Message(r *sockhub.Reply, m []byte) {
	if h.message != nil {
		h.message(r, m)
	}
}
func (h *handlerFuncs) Drained(r *sockhub.Reply) {
	if h.drained != nil {
		h.drained(r)
	}
}
func (h *handlerFuncs) Ended(r *sockhub.Reply) {
	if h.ended != nil {
		h.ended(r)
	}
}
func (h *handlerFuncs) Disconnected(d sockhub.Disconnection) {
	if h.disconnected != nil {
		h.disconnected(d)
	}
}

// unruly is a Handler that does what it may.
type unruly struct {
	sockhub.BaseHandler
	rng     *rand.Rand
	drained int
}

func (h *unruly) Message(r *sockhub.Reply, m []byte) {
	answer := bytes.Clone(m)
	switch h.rng.IntN(10) {
	case 0:
		r.SendMany(slices.Values(slices.Repeat([][]byte{answer}, h.rng.IntN(50))))
	case 1:
		r.SendFrom(uint64(len(answer)+h.rng.IntN(2)), io.NopCloser(bytes.NewReader(answer)))
	case 2:
		if r.Conn().Raw() {
			r.Unread(m[len(m)/2:])
		}
	case 3:
		rest(h.rng, 2, 3)
	case 4:
		if h.rng.IntN(20) == 0 {
			[]func(){r.Close, r.Finish, func() { r.SetHandler(nil) }, func() { panic("unruly") }}[h.rng.IntN(4)]()
		}
	case 5:
		r.Send(answer)
		r.Flush()
	default:
		r.Send(answer)
	}
}

func (h *unruly) Drained(r *sockhub.Reply) {
	if h.drained++; h.drained < 30 {
		r.Send(make([]byte, 100))
	}
}

func (h *unruly) Ended(r *sockhub.Reply) { r.Send([]byte("bye")) }

func (h *unruly) Stream(_ *sockhub.Reply, s *sockhub.Stream) {
	io.CopyN(io.Discard, s, h.rng.Int64N(250_000))
}

// serveHandler serves one end of an in-memory connection with h, as mode says,
// and returns the hub and the other end.
func serveHandler(t *testing.T, mode sockhub.Mode, h sockhub.Handler, o *sockhub.Options) (*sockhub.Hub, *sockhub.Conn, *memnet.End) {
	t.Helper()
	hub, err := sockhub.New(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hub.Close() })
	ours, theirs := memnet.Pair(nil)
	lo := &sockhub.ListenOptions{Mode: mode}
	if h != nil {
		lo.Handler = func(*sockhub.Conn) sockhub.Handler { return h }
	}
	c, err := hub.ServeConn(t.Context(), ours, lo)
	if err != nil {
		t.Fatal(err)
	}
	return hub, c, theirs
}

// frame is m on the wire.
func frame(m string) []byte {
	return append(sockhub.LengthPrefix(8, binary.LittleEndian).AppendHeader(nil, uint64(len(m))), m...)
}

func frames(ms ...string) (wire []byte) {
	for _, m := range ms {
		wire = append(wire, frame(m)...)
	}
	return wire
}

// expect reads exactly want from r.
func expect(t *testing.T, r io.Reader, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read %q, %v; want %q", got[:n], err, want)
	}
}

func TestHandlerEchoesInOrderAndHearsTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log []string
		h := &handlerFuncs{
			message: func(r *sockhub.Reply, m []byte) { r.Send(m) },
			ended:   func(r *sockhub.Reply) { log = append(log, "ended"); r.Send([]byte("bye")) },
			disconnected: func(d sockhub.Disconnection) {
				log = append(log, fmt.Sprint("disconnected ", d.Err, d.Report.WrittenMessages))
			},
		}
		hub, _, peer := serveHandler(t, sockhub.Anonymous, h, nil)
		in := frames("a", "", strings.Repeat("b", 100000))
		go peer.Write(in)
		expect(t, peer, in)
		peer.CloseWrite()
		expect(t, peer, frame("bye"))
		if n, err := peer.Read(make([]byte, 1)); err != io.EOF {
			t.Fatal(n, err)
		}
		peer.Close()
		synctest.Wait()
		if got := strings.Join(log, "; "); got != "ended; disconnected EOF 4" {
			t.Error(got)
		}
		hub.Close()
		for b := range hub.Events() {
			t.Errorf("Events of a program of handlers: %+v", b)
		}
	})
}

func TestPanicInAHandlerEndsItsConnectionAlone(t *testing.T) {
	for _, how := range []string{"panic", "Goexit"} {
		synctest.Test(t, func(t *testing.T) {
			var end error
			h := &handlerFuncs{
				message:      func(*sockhub.Reply, []byte) { leave(how) },
				disconnected: func(d sockhub.Disconnection) { end = d.Err },
			}
			hub, _, peer := serveHandler(t, sockhub.Anonymous, h, nil)
			peer.Write(frame("x"))
			if _, err := peer.Read(make([]byte, 1)); err == nil {
				t.Error("still open")
			}
			synctest.Wait()
			var p *sockhub.PanicError
			if !errors.As(end, &p) || how == "panic" && p.Value != "boom" || len(p.Stack) == 0 {
				t.Errorf("ended with %v", end)
			}
			if n := hub.Stats().Panics; n != 1 {
				t.Errorf("%d panics", n)
			}
		})
	}
}

func TestReplyPanicsAfterItsCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var kept *sockhub.Reply
		h := &handlerFuncs{message: func(r *sockhub.Reply, m []byte) { kept = r }}
		_, _, peer := serveHandler(t, sockhub.Anonymous, h, nil)
		peer.Write(frame("x"))
		synctest.Wait()
		defer func() {
			if recover() == nil {
				t.Error("no panic")
			}
		}()
		kept.Send(nil)
	})
}

func TestReplyRefusesBeyondTheLimitButNeverTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got [][]string
		h := &handlerFuncs{message: func(r *sockhub.Reply, m []byte) {
			var errs []string
			for range 3 {
				errs = append(errs, fmt.Sprint(r.Send(make([]byte, 1000))))
			}
			got = append(got, errs)
		}}
		hub, c, peer := serveHandler(t, sockhub.Anonymous, h, &sockhub.Options{ConnOutbound: 1500})
		peer.Write(frames("1", "2", "3"))
		for range 6 {
			expect(t, peer, frame(string(make([]byte, 1000))))
		}
		synctest.Wait()
		if s := fmt.Sprint(got); s != "[[<nil> <nil> sockhub: output queue is full] [<nil> <nil> sockhub: output queue is full] [<nil> <nil> sockhub: output queue is full]]" {
			t.Error(s)
		}
		if n := c.Stats().MessagesOut; n != 6 {
			t.Error(n)
		}
		_ = hub
	})
}

// A peer that asks and does not read is held back by its own full queue, also when
// it has asked many times at once.
func TestPeerThatDoesNotReadAnswersIsHeldBack(t *testing.T) {
	for _, size := range []int{100, 1000, 20_000} {
		for _, flush := range []bool{false, true} {
			t.Run(fmt.Sprint(size, " bytes, flushed ", flush), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					calls := 0
					answer := make([]byte, size)
					h := &handlerFuncs{message: func(r *sockhub.Reply, m []byte) {
						calls++
						if err := r.Send(answer); err != nil {
							t.Error(err)
						}
						if flush {
							r.Flush()
						}
					}}
					_, c, peer := serveHandler(t, sockhub.Anonymous, h, &sockhub.Options{ConnOutbound: 10_000, WriteTimeout: -1})
					const n = 5000
					go peer.Write(bytes.Repeat(frame("q"), n))
					synctest.Wait()
					if q := c.Stats().QueuedOut; q > 10_000+int64(size)+sockhub.MessageCharge || calls == n {
						t.Errorf("%d bytes queued after %d calls", q, calls)
					}
					for range n {
						expect(t, peer, frame(string(answer)))
					}
				})
			})
		}
	}
}

func TestDrainedComesAfterEveryFlushThatEmptiedTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		left := 5
		h := &handlerFuncs{
			message: func(r *sockhub.Reply, m []byte) { r.Send([]byte("first")) },
			drained: func(r *sockhub.Reply) {
				if left > 0 {
					left--
					r.Send(fmt.Appendf(nil, "%d", left))
				}
			},
		}
		_, _, peer := serveHandler(t, sockhub.Anonymous, h, nil)
		peer.Write(frame("go"))
		expect(t, peer, frames("first", "4", "3", "2", "1", "0"))
		synctest.Wait()
		if left != 0 {
			t.Error(left)
		}
	})
}

func TestHandlerThatSwitchesToRawAndBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &handlerFuncs{}
		h.message = func(r *sockhub.Reply, m []byte) {
			if !r.Conn().Raw() {
				r.Send(append([]byte("framed "), m...))
				if string(m) == "raw" {
					r.SetRaw(true)
				}
				return
			}
			// In raw mode: lines, then END and a newline, then frames again.
			for {
				line, rest, ok := bytes.Cut(m, []byte("\n"))
				if !ok {
					r.Unread(m)
					return
				}
				r.Send(append(append([]byte("line "), line...), '\n'))
				m = rest
				if string(line) == "END" {
					r.SetRaw(false)
					r.Unread(rest)
					return
				}
			}
		}
		_, _, peer := serveHandler(t, sockhub.Anonymous, h, nil)
		in := append(frames("a", "raw"), "one\ntwo\nEND\n"...)
		in = append(in, frames("b", "c")...)
		out := append(frames("framed a", "framed raw"), "line one\nline two\nline END\n"...)
		out = append(out, frames("framed b", "framed c")...)
		peer.Write(in)
		expect(t, peer, out)
		for i := range in {
			peer.Write(in[i : i+1])
			synctest.Wait()
		}
		expect(t, peer, out)
	})
}

func TestSetHandlerTakesEverythingNotTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, c, peer := serveHandler(t, sockhub.Anonymous, nil, nil)
		b := <-hub.Events()
		if len(b.Unknown) != 1 {
			t.Fatalf("%+v", b)
		}
		peer.Write(frames("0", "1"))
		synctest.Wait()
		var seen []string
		for _, m := range (<-hub.Events()).Messages() {
			seen = append(seen, string(m))
		}
		peer.Write(frames("2", "3"))
		synctest.Wait()
		peer.Write(frames("4"))
		synctest.Wait()
		c.SetHandler(&handlerFuncs{
			message:      func(r *sockhub.Reply, m []byte) { seen = append(seen, "h"+string(m)); r.Send(m) },
			ended:        func(*sockhub.Reply) { seen = append(seen, "ended") },
			disconnected: func(d sockhub.Disconnection) { seen = append(seen, fmt.Sprint(d.Err)) },
		})
		peer.Write(frames("5"))
		expect(t, peer, frames("2", "3", "4", "5"))
		peer.Close()
		synctest.Wait()
		hub.Close()
		for b := range hub.Events() {
			if len(b.Received)+len(b.Ended) > 0 {
				t.Errorf("%+v", b)
			}
			for _, d := range b.Disconnected {
				seen = append(seen, "too: "+fmt.Sprint(d.Err))
			}
		}
		if got := strings.Join(seen, " "); got != "0 1 h2 h3 h4 h5 ended EOF too: EOF" {
			t.Error(got)
		}
	})
}

func TestNamedRawGivesANameAndThenBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got bytes.Buffer
		h := &handlerFuncs{message: func(r *sockhub.Reply, m []byte) {
			got.Write(m)
			r.Send([]byte("seen"))
		}}
		hub := openHub(t, nil)
		ours, peer := memnet.Pair(nil)
		peer.Write(append(frame("me"), "bytes behind the name"...))
		c, err := hub.ServeConn(t.Context(), ours, &sockhub.ListenOptions{
			Mode: sockhub.NamedRaw, Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
		if err != nil {
			t.Fatal(err)
		}
		expect(t, peer, append(frame("OK"), "seen"...))
		if c.Name() != "me" || got.String() != "bytes behind the name" || !c.Raw() {
			t.Error(c, got.String(), c.Raw())
		}
	})
}

func TestCloseFromAHandlerDoesNotDeadlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		done := make(chan error, 1)
		var hub *sockhub.Hub
		h := &handlerFuncs{
			message:      func(*sockhub.Reply, []byte) { hub.Close() },
			disconnected: func(d sockhub.Disconnection) { done <- d.Err },
		}
		hub, _, peer := serveHandler(t, sockhub.Anonymous, h, nil)
		_ = hub
		peer.Write(frame("x"))
		if err := <-done; !errors.Is(err, sockhub.ErrClosed) {
			t.Error(err)
		}
		<-time.After(time.Second)
	})
}

// The first answers fill the queue and are written at once; that they are gone
// must still be told.
func TestDrainedComesAlsoWhenTheQueueWasFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		drained := 0
		h := &handlerFuncs{
			message: func(r *sockhub.Reply, m []byte) { r.Send(make([]byte, 1000)) },
			drained: func(*sockhub.Reply) { drained++ },
		}
		_, _, peer := serveHandler(t, sockhub.Anonymous, h, &sockhub.Options{ConnOutbound: 10})
		peer.Write(frames("a", "b"))
		expect(t, peer, frames(string(make([]byte, 1000)), string(make([]byte, 1000))))
		synctest.Wait()
		if drained == 0 {
			t.Error("no Drained")
		}
	})
}

// What the last call has answered is written, and the next message is for
// Events.
func TestReplyThatGivesTheConnectionToEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &handlerFuncs{message: func(r *sockhub.Reply, m []byte) {
			r.Send([]byte("bye"))
			r.SetHandler(nil)
		}}
		hub, _, peer := serveHandler(t, sockhub.Anonymous, h, nil)
		peer.Write(frames("a", "b"))
		expect(t, peer, frame("bye"))
		synctest.Wait() // then both are in one batch
		b := <-hub.Events()
		if len(b.Unknown) != 1 || len(b.Received) != 1 || string(b.Received[0].Messages[0]) != "b" {
			t.Errorf("%+v", b)
		}
	})
}

// What a call has answered is accepted when it returns: what another goroutine
// sends during the next call comes behind it, and before the next call's answer.
func TestAnswersAreAcceptedCallByCall(t *testing.T) {
	const n = 300 // more than gather at once
	synctest.Test(t, func(t *testing.T) {
		ask, done := make(chan int), make(chan error)
		k := 0
		h := &handlerFuncs{message: func(r *sockhub.Reply, m []byte) {
			r.Send(m)
			ask <- k
			if err := <-done; err != nil {
				t.Error(err)
			}
			k++
		}}
		_, c, peer := serveHandler(t, sockhub.Anonymous, h, nil)
		go func() {
			for k := range ask {
				done <- c.Send(context.Background(), fmt.Appendf(nil, "other %d", k))
			}
		}()
		defer close(ask)
		var in, out []byte
		for i := range n {
			in = append(in, frame(fmt.Sprint("answer ", i))...)
			out = append(out, frames(fmt.Sprint("other ", i), fmt.Sprint("answer ", i))...)
		}
		go peer.Write(in)
		expect(t, peer, out)
	})
}

// What Unread is given may be a part of a message that was copied out of memory made for a
// large one, and may have been changed in place.
func TestUnreadBehindALargeMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []string
		h := &handlerFuncs{message: func(r *sockhub.Reply, m []byte) {
			if len(m) > 100 {
				return
			}
			if got = append(got, string(m)); string(m) == "headTAIL" {
				m[4] = 't'
				r.SetRaw(true)
				r.Unread(m[4:])
			}
		}}
		_, _, peer := serveHandler(t, sockhub.Anonymous, h, nil)
		defer peer.Close()
		peer.Write(frames(strings.Repeat("x", 20<<10)))
		synctest.Wait()
		peer.Write(append(frames("1", "headTAIL"), "more"...))
		synctest.Wait()
		if s := strings.Join(got, " "); s != "1 headTAIL tAILmore" {
			t.Error(s)
		}
	})
}

// What is no part of the message that a call is given is not taken for input.
func TestUnreadOfSomethingElse(t *testing.T) {
	for name, h := range map[string]*handlerFuncs{
		"another slice": {message: func(r *sockhub.Reply, m []byte) { r.Unread(slices.Clone(m)) }},
		"more":          {message: func(r *sockhub.Reply, m []byte) { r.Unread(append(m, 'x')) }},
		"Drained":       {drained: func(r *sockhub.Reply) { r.Unread([]byte("x")) }},
	} {
		synctest.Test(t, func(t *testing.T) {
			end := make(chan sockhub.Disconnection, 1)
			h.disconnected = func(d sockhub.Disconnection) { end <- d }
			_, c, peer := serveHandler(t, sockhub.Raw, h, nil)
			defer peer.Close()
			if h.message != nil {
				peer.Write([]byte("raw"))
			} else {
				c.NotifyDrained()
			}
			if d := <-end; !errors.As(d.Err, new(*sockhub.PanicError)) {
				t.Errorf("%s: %v", name, d.Err)
			}
		})
	}
}

// What is given back and comes again as raw input counts once, also behind messages
// that were answered together.
func TestUnreadCountsOnceBehindOtherMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []string
		h := &handlerFuncs{message: func(r *sockhub.Reply, m []byte) {
			got = append(got, string(m))
			r.Send([]byte("a"))
			if string(m) == "headTAIL" {
				r.SetRaw(true)
				r.Unread(m[4:])
			}
		}}
		_, c, peer := serveHandler(t, sockhub.Anonymous, h, nil)
		go io.Copy(io.Discard, peer)
		defer peer.Close()
		peer.Write(append(frames("1", "2", "3", "headTAIL"), "more"...))
		synctest.Wait()
		if s := strings.Join(got, " "); s != "1 2 3 headTAIL TAILmore" && s != "1 2 3 headTAIL TAIL more" {
			t.Error(s)
		}
		if n := c.Stats().BytesIn; n != 3+4+8 {
			t.Errorf("BytesIn is %d", n)
		}
	})
}

// Large raw input that is not complete stays where it is, however little comes at a time:
// a peer that drips would make the reader copy all of it for every byte.
func TestALittleMoreDoesNotCopyWhatWasUnread(t *testing.T) {
	for _, reuse := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			const begun, more = 4 << 20, 200
			want, calls := body(1, 1, begun+more), 0
			h := &handlerFuncs{message: func(r *sockhub.Reply, m []byte) {
				calls++
				if !bytes.Equal(m, want[:len(m)]) {
					t.Errorf("call %d differs", calls)
				}
				if len(m) < len(want) {
					r.Unread(m)
					return
				}
				r.Send([]byte("whole"))
			}}
			_, _, peer := serveHandler(t, sockhub.Raw, h, &sockhub.Options{ReuseBuffers: reuse})
			peer.Write(want[:begun])
			synctest.Wait()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			calls = 0
			for i := range more {
				peer.Write(want[begun+i : begun+i+1])
				synctest.Wait()
			}
			runtime.ReadMemStats(&after)
			expect(t, peer, []byte("whole"))
			if calls != more {
				t.Errorf("%d calls for %d bytes", calls, more)
			}
			if n := (after.TotalAlloc - before.TotalAlloc) >> 20; n > 8*begun>>20 {
				t.Errorf("with ReuseBuffers %t, %d bytes took %d MiB", reuse, more, n)
			}
			peer.Close()
		})
	}
}

// What comes after large raw input does not lie in the memory that was made for that: who
// keeps it would keep all of it.
func TestWhatComesAfterLargeRawInputKeepsLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const large = 16 << 20
		var kept []byte
		h := &handlerFuncs{message: func(r *sockhub.Reply, m []byte) {
			switch {
			case len(m) == large:
				r.Send([]byte("whole"))
			case len(m) > 1:
				r.Unread(m)
			default:
				kept = m
			}
		}}
		_, _, peer := serveHandler(t, sockhub.Raw, h, nil)
		heap := func() uint64 {
			var m runtime.MemStats
			for range 3 {
				runtime.GC() // what lies in a Pool is gone after two
			}
			runtime.ReadMemStats(&m)
			return m.HeapAlloc
		}
		before := heap()
		peer.Write(make([]byte, large))
		expect(t, peer, []byte("whole"))
		peer.Write([]byte("x"))
		synctest.Wait()
		if more := int64(heap() - before); string(kept) != "x" || more > large/4 {
			t.Errorf("%q keeps %d bytes", kept, more)
		}
		peer.Close()
	})
}

// Parts of all sizes are taken from the front of raw input, however it comes, and nothing
// that the program has kept, or sent, changes.
func TestUnreadGivesAllSizesWhole(t *testing.T) {
	for seed := range uint64(12) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 1))
			var in []byte
			var want [][]byte
			for k := range 12 {
				part := body(int(seed), k, 1+random.IntN(1<<(4+2*random.IntN(9))))
				want = append(want, part)
				in = append(binary.LittleEndian.AppendUint32(in, uint32(len(part))), part...)
			}
			reuse := seed%2 == 1
			var got [][]byte
			h := &handlerFuncs{}
			h.message = func(r *sockhub.Reply, m []byte) {
				for len(m) >= 4 && len(m)-4 >= int(binary.LittleEndian.Uint32(m)) {
					end := 4 + int(binary.LittleEndian.Uint32(m))
					part := m[4:end]
					m = m[end:]
					if reuse {
						got = append(got, bytes.Clone(part))
					} else {
						got = append(got, part)
					}
					if err := r.Conn().Send(t.Context(), part); err != nil {
						t.Error(err)
					}
					if len(got) == len(want) {
						r.SetRaw(false) // what follows is messages
						break
					}
				}
				r.Unread(m)
				if len(got) == len(want) {
					h.message = func(r *sockhub.Reply, m []byte) { r.Send(m) }
				}
			}
			_, _, peer := serveHandler(t, sockhub.Raw, h, &sockhub.Options{ReuseBuffers: reuse})
			last := body(int(seed), 99, 200<<10)
			in = append(in, frame(string(last))...)
			answers, size := make(chan []byte), len(in)-4*len(want)
			go func() {
				b := make([]byte, size)
				n, _ := io.ReadFull(peer, b)
				answers <- b[:n]
			}()
			for len(in) > 0 {
				n := min(len(in), 1+random.IntN(1<<(2*random.IntN(10))))
				peer.Write(in[:n])
				if in = in[n:]; random.IntN(4) > 0 {
					synctest.Wait()
				}
			}
			answer := <-answers
			if err := sameBodies(got, want); err != nil {
				t.Errorf("seed %d: %v", seed, err)
			}
			if all := append(slices.Concat(want...), frame(string(last))...); !bytes.Equal(answer, all) {
				t.Errorf("seed %d: %d bytes came back, not the %d that were sent, or others", seed, len(answer), len(all))
			}
			peer.Close()
		})
	}
}

func TestReplyOfACallThatPanickedIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var (
			kept *sockhub.Reply
			late any
			d    sockhub.Disconnection
		)
		h := &handlerFuncs{
			message: func(r *sockhub.Reply, m []byte) {
				kept = r
				r.Send(m)
				if string(m) == "c" {
					panic("boom")
				}
			},
			disconnected: func(x sockhub.Disconnection) {
				d = x
				defer func() { late = recover() }()
				kept.Send([]byte("late"))
			},
		}
		_, _, peer := serveHandler(t, sockhub.Anonymous, h, nil)
		peer.Write(frames("a", "b", "c", "d"))
		synctest.Wait()
		var boom *sockhub.PanicError
		if late == nil || !errors.As(d.Err, &boom) || d.Report.AcceptedMessages != 3 {
			t.Errorf("Send after the end: %v; %v, %+v", late, d.Err, d.Report)
		}
	})
}

// For what Unread gives back MaxMessage and FrameTimeout hold, as for a message that has
// begun.
func TestUnreadInputIsLimited(t *testing.T) {
	for want, send := range map[error][]int{sockhub.ErrMessageTooLarge: {60, 40}, sockhub.ErrFrameTimeout: {60, 39}} {
		synctest.Test(t, func(t *testing.T) {
			end := make(chan sockhub.Disconnection, 1)
			h := &handlerFuncs{message: func(r *sockhub.Reply, m []byte) { r.Unread(m) }, disconnected: func(d sockhub.Disconnection) { end <- d }}
			_, _, peer := serveHandler(t, sockhub.Raw, h, &sockhub.Options{MaxMessage: 100})
			defer peer.Close()
			took := within(func() {
				for _, n := range send {
					peer.Write(make([]byte, n))
					synctest.Wait()
				}
				if d := <-end; !errors.Is(d.Err, want) {
					t.Errorf("%v, want %v", d.Err, want)
				}
			})
			if late := want == sockhub.ErrFrameTimeout; late != (took == sockhub.DefaultFrameTimeout) || !late && took != 0 {
				t.Errorf("%v after %v", want, took)
			}
		})
	}
}

// Whoever appends to a message copies it, whichever way it has come.
func TestMessagesHaveNoSpareCapacity(t *testing.T) {
	for _, mode := range []sockhub.Mode{sockhub.Anonymous, sockhub.Raw} {
		for _, reuse := range []bool{false, true} {
			for _, handled := range []bool{false, true} {
				synctest.Test(t, func(t *testing.T) {
					n := 0
					check := func(m []byte) {
						if n++; cap(m) != len(m) {
							t.Errorf("mode %v, ReuseBuffers %v, a Handler %v: message %d of %d bytes has room for %d", mode, reuse, handled, n, len(m), cap(m))
						}
					}
					lo := &sockhub.ListenOptions{Mode: mode, ReuseBuffers: reuse, ConnInbound: -1}
					if handled {
						lo.Handler = func(*sockhub.Conn) sockhub.Handler {
							return &handlerFuncs{message: func(r *sockhub.Reply, m []byte) { check(m); r.Send([]byte("x")) }}
						}
					}
					r := newRoom(t, nil, nil)
					_, p := r.serve(nil, lo)
					go io.Copy(io.Discard, p)
					for range 3 { // what came before decides how the next is read
						for _, size := range []int{1, 1000, 20_000, 100_000, 1 << 20} {
							m := string(make([]byte, size))
							p.Write(frames("", "a", m, m[:size/2], "b", m))
						}
					}
					synctest.Wait()
					if !handled {
						for _, m := range r.take().Messages() {
							check(m)
						}
					}
					if n < 90 && mode == sockhub.Anonymous || n == 0 {
						t.Errorf("%d messages", n)
					}
				})
			}
		}
	}
}

// Unread takes the end of the message behind which SetRaw has switched, of whatever size it
// is, and what comes then is read as raw bytes are.
func TestUnreadOfAMessageOfAnySize(t *testing.T) {
	for _, reuse := range []bool{false, true} {
		for _, size := range []int{100, 10_000, 20_000, 100_000, 300_000} {
			for _, again := range []bool{false, true} { // frames again
				t.Run(fmt.Sprint(reuse, size, again), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						hub := openHub(t, &sockhub.Options{ReuseBuffers: reuse})
						tail := frames("one", "two")
						var got []string
						var end error
						_, p := serveMemory(t, hub, nil, sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler {
							first := true
							return &handlerFuncs{message: func(r *sockhub.Reply, m []byte) {
								if !first {
									got = append(got, string(m))
									return
								}
								first = false
								r.SetRaw(true)
								if r.Unread(m[len(m)-len(tail):]); again {
									r.SetRaw(false)
								}
							}, disconnected: func(d sockhub.Disconnection) { end = d.Err }}
						}})
						go p.Write(frame(string(append(make([]byte, size), tail...))))
						synctest.Wait()
						want := []string{"one", "two"}
						if !again {
							const more = 64 << 10
							p.Write(make([]byte, 1))
							synctest.Wait()
							p.Write(make([]byte, more-1))
							synctest.Wait()
							if n := len(got); n > 10 {
								t.Errorf("%d KiB come in %d pieces", more>>10, n)
							}
							got, want = []string{strings.Join(got, "")}, []string{string(tail) + string(make([]byte, more))}
						}
						if !slices.Equal(got, want) {
							t.Errorf("%d messages, or others: %v", len(got), end)
						}
					})
				})
			}
		}
	}
}
