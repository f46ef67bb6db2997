package sockhub_test

// Sends: their order, what waits, what is refused and dropped.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
)

// of is an iterator over messages.
func of(msgs ...string) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for _, m := range msgs {
			if !yield([]byte(m)) {
				return
			}
		}
	}
}

func TestMessagesLeaveInTheOrderOfTheirAcceptance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, &sockhub.Options{ConnOutbound: 3000}, &memnet.Options{Buffer: 100}, nil)
		const n = 400
		got := make(chan [][]byte)
		go func() {
			msgs, _, _ := readAll(l.p)
			got <- msgs
		}()
		var want [][]byte
		message := func() []byte {
			k := len(want)
			m := numbered(k, k*k%5000)
			if k%50 == 7 {
				m = nil // an empty message is one too
			}
			want = append(want, m)
			return m
		}
		for len(want) < n {
			var err error
			switch len(want) % 4 {
			case 0:
				err = l.c.Send(t.Context(), message())
			case 1:
				m := message()
				err = l.c.SendParts(t.Context(), m[:len(m)/3], nil, m[len(m)/3:len(m)/2], m[len(m)/2:])
			case 2:
				_, err = l.c.SendMany(t.Context(), func(yield func([]byte) bool) {
					for range 10 {
						if !yield(message()) {
							return
						}
					}
				})
			case 3:
				m := message()
				for err = l.c.TrySend(m); errors.Is(err, sockhub.ErrBackpressure); err = l.c.TrySend(m) {
					<-time.After(time.Millisecond)
				}
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		l.c.Finish()
		if err := sameBodies(<-got, want); err != nil {
			t.Error(err)
		}
		l.p.Close()
		r := l.endsWith(sockhub.ErrClosed).Report
		if r.WrittenMessages != uint64(len(want)) || r.AcceptedMessages != r.WrittenMessages {
			t.Errorf("%+v", r)
		}
	})
}

func TestRunOfSendManyIsContiguous(t *testing.T) {
	eachBubble(t, 20, func(t *testing.T, seed uint64) {
		l := newLine(t, &sockhub.Options{ConnOutbound: 1 + int64(seed*211)%3000},
			&memnet.Options{Buffer: 100, Seed: seed, Faults: memnet.Faults{ShortWrite: 0.3, Delay: 0.2}}, nil)
		const senders, runs, length = 4, 5, 12
		var wg sync.WaitGroup
		for s := range senders {
			wg.Go(func() {
				for r := range runs {
					n, err := l.c.SendMany(t.Context(), func(yield func([]byte) bool) {
						for i := range length {
							if i%5 == 2 {
								sleepFor(time.Duration(i*s) * time.Millisecond)
							}
							if !yield(fmt.Appendf(nil, "%d.%d.%d %s", s, r, i, strings.Repeat("x", i*17))) {
								return
							}
						}
					})
					if n != length || err != nil {
						t.Errorf("SendMany: %d, %v", n, err)
					}
				}
			})
			wg.Go(func() {
				for i := range runs * 3 {
					if err := l.c.Send(t.Context(), fmt.Appendf(nil, "%d..%d ", s, i)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		go func() { wg.Wait(); l.c.Finish() }()
		msgs, _, _ := readAll(l.p)
		if want := senders * runs * (length + 3); len(msgs) != want {
			t.Errorf("%d messages, want %d", len(msgs), want)
		}
		next := make(map[string]int) // by run, or sender of single messages
		last := ""
		for _, m := range msgs {
			id, _, _ := strings.Cut(string(m), " ")
			dot := strings.LastIndexByte(id, '.')
			which := id[:dot]
			if fmt.Sprint(next[which]) != id[dot+1:] {
				t.Fatalf("%s came where %d was due", id, next[which])
			}
			if i := next[which]; i > 0 && !strings.HasSuffix(which, ".") && last != which {
				t.Fatalf("%s of a run has something of %s before it", id, last)
			}
			next[which]++
			last = which
		}
	})
}

func TestSendManyTellsExactlyWhatWasAcceptedWhenItsContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// Each message counts 100 bytes, so that ten fill the queue.
		l := newLine(t, &sockhub.Options{ConnOutbound: 1000}, stuck, nil)
		why := errors.New("changed my mind")
		ctx, cancel := context.WithCancelCause(t.Context())
		yielded := 0
		call := async(func() (int, error) {
			return l.c.SendMany(ctx, func(yield func([]byte) bool) {
				for ; yield(numbered(yielded, 36)); yielded++ {
				}
			})
		})
		waits(t, call)
		other := l.sending(t.Context(), "another")
		waits(t, call, other)
		cancel(why)
		n := returns(t, call, why)
		if n < 10 || n > yielded {
			t.Errorf("%d of %d were accepted", n, yielded)
		}
		waits(t, other)
		go func() { <-other; l.c.Finish() }()
		msgs, _, _ := readAll(l.p)
		if len(msgs) != n+1 || string(msgs[n]) != "another" || string(msgs[n-1]) != string(numbered(n-1, 36)) {
			t.Errorf("%d were accepted, and the peer got %q", n, msgs)
		}
	})
}

func TestSendManyTellsExactlyWhatWasAcceptedWhenTheConnectionEnds(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(*line)
		want error
	}{
		{"closed", func(l *line) { l.c.Close() }, sockhub.ErrClosed},
		{"finished", func(l *line) { l.c.Finish() }, sockhub.ErrClosed},
		{"output closed", func(l *line) { l.c.CloseWrite() }, sockhub.ErrClosed},
		{"hub closed", func(l *line) { l.Close() }, sockhub.ErrClosed},
		{"reset", func(l *line) { l.p.Reset() }, sockhub.ErrNotConnected},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLine(t, &sockhub.Options{ConnOutbound: 1000}, stuck, nil)
				call := async(func() (int, error) {
					return l.c.SendMany(t.Context(), func(yield func([]byte) bool) {
						for k := 0; yield(numbered(k, 36)); k++ {
						}
					})
				})
				waits(t, call)
				tt.end(l)
				n := returns(t, call, tt.want)
				l.p.Reset()
				if r := l.ended().Report; r.AcceptedMessages != uint64(n) || n < 10 {
					t.Errorf("%d accepted, and the report %+v", n, r)
				}
			})
		})
	}
}

func TestPanicOfAnIteratorAcceptsWhatItYielded(t *testing.T) {
	for _, tt := range []struct {
		queued  string
		yielded []string
	}{
		{"", nil},
		{"", []string{"one", "two"}},
		{strings.Repeat("x", 1000), []string{"one"}}, // the panic does not wait for the peer
	} {
		synctest.Test(t, func(t *testing.T) {
			l := newLine(t, &sockhub.Options{ConnOutbound: 300}, &memnet.Options{Buffer: 10}, nil)
			l.sent(tt.queued)
			d := within(func() {
				defer func() {
					if v := recover(); v != "boom" {
						t.Errorf("recovered %v", v)
					}
				}()
				l.c.SendMany(t.Context(), func(yield func([]byte) bool) {
					for _, m := range tt.yielded {
						yield([]byte(m))
					}
					panic("boom")
				})
			})
			if d != 0 {
				t.Errorf("the panic waited %v", d)
			}
			if n := l.c.Stats().QueuedMessages; n > 1+len(tt.yielded) {
				t.Errorf("%d messages are queued", n)
			}
			behind := l.sending(t.Context(), "behind")
			expect(t, l.p, frames(append(append([]string{tt.queued}, tt.yielded...), "behind")...))
			returns(t, behind, nil)
		})
	}
}

func TestSendsThatWaitAreAcceptedInTheirOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, &sockhub.Options{ConnOutbound: 200}, stuck, nil)
		l.sent(strings.Repeat("x", 500))
		ctx, cancel := context.WithCancel(t.Context())
		var calls []<-chan result
		for i := range 9 {
			c := t.Context()
			if i%3 == 1 {
				c = ctx
			}
			calls = append(calls, l.sending(c, fmt.Sprint("message ", i)))
			waits(t, calls...)
		}
		if err := l.c.TrySend(nil); !errors.Is(err, sockhub.ErrBackpressure) {
			t.Errorf("TrySend: %v", err)
		}
		cancel()
		for i := 1; i < 9; i += 3 {
			returns(t, calls[i], context.Canceled)
		}
		waits(t, calls[0], calls[2])
		expect(t, l.p, frame(strings.Repeat("x", 500)))
		for i := range 9 {
			if i%3 != 1 {
				expect(t, l.p, frame(fmt.Sprint("message ", i)))
				returns(t, calls[i], nil)
			}
		}
		if s := l.c.Stats(); s.QueuedMessages != 0 || s.QueuedOut != 0 || s.MessagesOut != 7 {
			t.Errorf("%+v", s)
		}
	})
}

func TestSendWithAContextThatHasEndedIsTriedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, &sockhub.Options{ConnOutbound: 100}, stuck, nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := l.c.Send(ctx, make([]byte, 500)); err != nil {
			t.Error(err)
		}
		call := l.sending(ctx, "late")
		waits(t, call)
		<-time.After(time.Second)
		returns(t, call, context.DeadlineExceeded)
		returns(t, l.sending(ctx, "later"), context.DeadlineExceeded)
		if n, err := l.c.SendMany(ctx, of("later")); n != 0 || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("SendMany: %d, %v", n, err)
		}
	})
}

// ---- policies ----

func TestDropNewestRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, &sockhub.Options{Overflow: sockhub.DropNewest}, stuck, &sockhub.ListenOptions{ConnOutbound: 300})
		for _, m := range []string{"0", "1", "2", "3", "4"} { // 65 each: below the limit
			if err := l.c.Send(t.Context(), []byte(m)); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.c.Send(t.Context(), []byte("5")); !errors.Is(err, sockhub.ErrBackpressure) {
			t.Errorf("Send: %v", err)
		}
		if n, err := l.c.SendMany(t.Context(), of("5", "6")); n != 0 || !errors.Is(err, sockhub.ErrBackpressure) {
			t.Errorf("SendMany: %d, %v", n, err)
		}
		expect(t, l.p, frames("0", "1"))
		if n, err := l.c.SendMany(t.Context(), of("7", "8", "9", "10")); n != 2 || !errors.Is(err, sockhub.ErrBackpressure) {
			t.Errorf("SendMany: %d, %v", n, err)
		}
		expect(t, l.p, frames("2", "3", "4", "7", "8"))
		l.c.Close()
		if r := l.ended().Report; r.AcceptedMessages != 7 || r.DroppedMessages != 0 {
			t.Errorf("%+v", r)
		}
	})
}

func TestDropOldestDropsWhatWaitsLongest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, nil, stuck, &sockhub.ListenOptions{ConnOutbound: 300, Overflow: sockhub.DropOldest})
		for k := range 20 {
			if err := l.c.Send(t.Context(), numbered(k, 10)); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		if s := l.c.Stats(); s.QueuedOut > 300+74 {
			t.Errorf("%+v", s)
		}
		go l.c.Finish()
		msgs, _, _ := readAll(l.p)
		l.p.Close()
		r := l.endsWith(sockhub.ErrClosed).Report
		n := len(msgs)
		if n < 4 || r.AcceptedMessages != 20 || r.WrittenMessages != uint64(n) || r.DroppedMessages != uint64(20-n) || r.DroppedBytes != uint64(20-n)*10 {
			t.Fatalf("the peer got %q: %+v", msgs, r)
		}
		// The first was being written, and cannot be dropped any more.
		if string(msgs[0]) != string(numbered(0, 10)) {
			t.Errorf("the peer got %q first", msgs[0])
		}
		for i, m := range msgs[1:] {
			if k := 20 - (n - 1) + i; string(m) != string(numbered(k, 10)) {
				t.Errorf("%q instead of message %d", m, k)
			}
		}
		if s := l.Stats(); s.Dropped != r.DroppedMessages {
			t.Errorf("%+v", s)
		}
	})
}

// The OK of the handshake is not dropped, and what is sent before its writer has begun is
// held to ConnOutbound all the same.
func TestDropOldestBehindTheHandshake(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // so the writer does not begin before the factory returns
	synctest.Test(t, func(t *testing.T) {
		const limit, size, n = 4000, 936, 100 // each is charged 1000
		hub := openHub(t, &sockhub.Options{Overflow: sockhub.DropOldest, ConnOutbound: limit})
		var queued int64
		lo := &sockhub.ListenOptions{Handler: func(c *sockhub.Conn) sockhub.Handler {
			for k := range n {
				if err := c.TrySend(numbered(k, size)); err != nil {
					t.Error(err)
				}
			}
			queued = c.Stats().QueuedOut
			return sockhub.BaseHandler{}
		}}
		ours, p := memnet.Pair(nil)
		p.Write(frame("name"))
		c, err := hub.ServeConn(t.Context(), ours, lo)
		if err != nil {
			t.Fatal(err)
		}
		c.Finish()
		msgs, _, err := readAll(p)
		p.Close()
		if err != nil || len(msgs) == 0 || string(msgs[0]) != "OK" || !bytes.Equal(msgs[len(msgs)-1], numbered(n-1, size)) {
			t.Errorf("received %.10q, %v", texts(msgs), err)
		}
		if queued > limit+2000 {
			t.Errorf("%d were queued, with a limit of %d", queued, limit)
		}
	})
}

func TestDisconnectPeerEndsTheConnectionThatIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, nil, stuck, &sockhub.ListenOptions{ConnOutbound: 100, Overflow: sockhub.DisconnectPeer})
		other, op := l.serve(nil, nil)
		l.sent("one", "two")
		if err := l.c.TrySend([]byte("three")); !errors.Is(err, sockhub.ErrSlowPeer) {
			t.Errorf("TrySend: %v", err)
		}
		r := l.endsWith(sockhub.ErrSlowPeer).Report
		if d := cmp.Diff([]string{"two"}, unsent(r)); d != "" || string(r.CutMessage()) != "one" || r.AcceptedMessages != 2 {
			t.Errorf("%s%+v", d, r)
		}
		if s := l.Stats(); s.SlowPeers != 1 || s.Conns != 1 {
			t.Errorf("%+v", s)
		}
		if err := other.TrySend([]byte("x")); err != nil {
			t.Error(err)
		}
		expect(t, op, frame("x"))
	})
}

func TestOneMessageAlwaysEntersAnEmptyQueue(t *testing.T) {
	for p := sockhub.BlockSender; p <= sockhub.DisconnectPeer; p++ {
		synctest.Test(t, func(t *testing.T) {
			l := newLine(t, nil, nil, &sockhub.ListenOptions{ConnOutbound: 1, Overflow: p, MaxMessage: 1 << 20})
			m := bytes.Repeat([]byte("x"), 1<<20)
			for range 2 {
				if err := l.c.TrySend(m); err != nil {
					t.Fatalf("policy %v: %v", p, err)
				}
				expect(t, l.p, frame(string(m)))
				synctest.Wait() // until the writer knows
			}
		})
	}
}

func TestMessageAboveMaxMessageIsNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, nil, nil, &sockhub.ListenOptions{MaxMessage: 10})
		good, bad := []byte("0123456789"), []byte("0123456789.")
		for name, err := range map[string]error{
			"Send":      l.c.Send(t.Context(), bad),
			"TrySend":   l.c.TrySend(bad),
			"SendParts": l.c.SendParts(t.Context(), good, bad[:1]),
			"by ID":     l.Send(t.Context(), l.c.ID(), bad),
		} {
			if !errors.Is(err, sockhub.ErrMessageTooLarge) {
				t.Errorf("%s: %v", name, err)
			}
		}
		n, err := l.c.SendMany(t.Context(), slices.Values([][]byte{good, good, bad, good}))
		if n != 2 || !errors.Is(err, sockhub.ErrMessageTooLarge) {
			t.Errorf("SendMany: %d, %v", n, err)
		}
		l.sent("end")
		expect(t, l.p, frames(string(good), string(good), "end"))
	})
}

func TestBroadcastWaitsForNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, nil, nil)
		good, gp := r.serve(nil, nil)
		full, _ := r.serve(stuck, &sockhub.ListenOptions{ConnOutbound: 1})
		small, _ := r.serve(nil, &sockhub.ListenOptions{MaxMessage: 1})
		closed, _ := r.serve(nil, nil)
		away, ap := r.serve(nil, nil)
		last, lp := r.serve(nil, nil)
		full.TrySend([]byte("x"))
		closed.Close()
		ap.Reset()
		synctest.Wait()
		m := []byte(strings.Repeat("m", 5000))
		n, err := r.Broadcast(slices.Values([]*sockhub.Conn{good, full, small, closed, away, last}), m)
		var be *sockhub.BroadcastError
		if n != 2 || !errors.As(err, &be) || len(be.Refused) != 4 {
			t.Fatalf("%d, %v", n, err)
		}
		for i, want := range []sockhub.SendError{{full, sockhub.ErrBackpressure}, {small, sockhub.ErrMessageTooLarge},
			{closed, sockhub.ErrClosed}, {away, sockhub.ErrNotConnected}} {
			if got := be.Refused[i]; got.Conn != want.Conn || !errors.Is(got.Err, want.Err) || !errors.Is(err, want.Err) {
				t.Errorf("%d: %v, want %v", i, got.Err, want.Err)
			}
		}
		expect(t, gp, frame(string(m)))
		expect(t, lp, frame(string(m)))
		if n, err := r.Broadcast(r.Conns(), nil); n != 4-1 || !errors.As(err, &be) || len(be.Refused) != 1 {
			t.Errorf("to all: %d, %v", n, err)
		}
		if n, err := r.Broadcast(slices.Values([]*sockhub.Conn{}), nil); n != 0 || err != nil {
			t.Errorf("to nobody: %d, %v", n, err)
		}
	})
}

// ---- Drained ----

func TestDrainedComesWhenOutputHadToWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, nil, &memnet.Options{Buffer: 100}, nil)
		l.sent("all of it fits")
		if n := l.drained(); n != 0 {
			t.Errorf("%d Drained, and nothing had to wait", n)
		}
		l.sent(strings.Repeat("x", 500), "behind it")
		if n := l.drained(); n != 0 {
			t.Errorf("%d Drained while something waits", n)
		}
		expect(t, l.p, frames("all of it fits", strings.Repeat("x", 500), "behind it"))
		if n := l.drained(); n != 1 {
			t.Errorf("%d Drained, want 1", n)
		}
		l.sent("fits again")
		if n := l.drained(); n != 0 {
			t.Errorf("%d Drained, and nothing had to wait", n)
		}
	})
}

func TestDrainedComesAfterARefusedTrySend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, &sockhub.Options{ConnOutbound: 100}, &memnet.Options{Buffer: 150}, nil)
		l.sent(strings.Repeat("x", 500))
		if err := l.c.TrySend([]byte("y")); !errors.Is(err, sockhub.ErrBackpressure) {
			t.Fatal(err)
		}
		expect(t, l.p, frame(strings.Repeat("x", 500)))
		if n := l.drained(); n != 1 {
			t.Errorf("%d Drained, want 1", n)
		}
		l.sent("y")
	})
}

func TestNotifyDrainedGivesOneDrained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, nil, &memnet.Options{Buffer: 100}, nil)
		l.c.NotifyDrained()
		l.c.NotifyDrained() // within one batch, one is all
		if n := l.drained(); n != 1 {
			t.Errorf("%d Drained at once, want 1", n)
		}
		l.sent("something that fits")
		if n := l.drained(); n != 0 {
			t.Errorf("%d Drained that nobody asked for", n)
		}
		l.sent(strings.Repeat("x", 500))
		l.c.NotifyDrained()
		if n := l.drained(); n != 0 {
			t.Errorf("%d Drained while something is queued", n)
		}
		expect(t, l.p, frames("something that fits", strings.Repeat("x", 500)))
		if n := l.drained(); n != 1 {
			t.Errorf("%d Drained, want 1", n)
		}
		l.sent(strings.Repeat("x", 500))
		l.c.NotifyDrained()
		l.c.Close()
		if l.ended(); l.drained() != 0 {
			t.Error("Drained after the end")
		}
		l.c.NotifyDrained()
		if n := l.drained(); n != 0 {
			t.Errorf("%d Drained of one who is gone", n)
		}
	})
}

func TestTrySendDoesNotWaitForARun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, &sockhub.Options{ConnOutbound: 100}, nil, nil)
		more := make(chan struct{})
		call := async(func() (int, error) {
			return l.c.SendMany(t.Context(), func(yield func([]byte) bool) {
				for k := range 3 {
					yield(numbered(k, 100))
				}
				<-more
			})
		})
		waits(t, call)
		if err := l.c.TrySend([]byte("x")); !errors.Is(err, sockhub.ErrBackpressure) {
			t.Errorf("TrySend: %v", err)
		}
		send := l.sending(t.Context(), "y")
		waits(t, call, send)
		close(more)
		if n := returns(t, call, nil); n != 3 {
			t.Errorf("SendMany: %d", n)
		}
		returns(t, send, nil)
		expect(t, l.p, frames(string(numbered(0, 100)), string(numbered(1, 100)), string(numbered(2, 100)), "y"))
	})
}

// What an iterator that panics has yielded does not come into the middle of what
// somebody else is sending.
func TestPanicOfAnIteratorBesideARun(t *testing.T) {
	panics := func(l *line) {
		defer func() {
			if v := recover(); v != "boom" {
				t.Errorf("recovered %v", v)
			}
		}()
		l.c.SendMany(t.Context(), func(yield func([]byte) bool) {
			yield([]byte("one"))
			panic("boom")
		})
	}
	t.Run("SendMany", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := newLine(t, &sockhub.Options{ConnOutbound: 100}, nil, nil)
			more := make(chan struct{})
			run := async(func() (int, error) {
				return l.c.SendMany(t.Context(), func(yield func([]byte) bool) {
					for k := range 3 {
						yield(numbered(k, 100))
					}
					<-more
				})
			})
			waits(t, run)
			panics(l)
			close(more)
			returns(t, run, nil)
			expect(t, l.p, frames(string(numbered(0, 100)), string(numbered(1, 100)), string(numbered(2, 100)), "one"))
			l.c.Close()
			if r := l.ended().Report; r.WrittenMessages != 4 {
				t.Errorf("%+v", r)
			}
		})
	})
	t.Run("SendFrom", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := newLine(t, nil, nil, nil)
			big := pattern(200_000)
			pr, pw := io.Pipe()
			from := async(func() (int, error) { return 0, l.c.SendFrom(t.Context(), uint64(len(big)), pr) })
			pw.Write(big[:100_000])
			waits(t, from) // a piece of it has left
			panics(l)
			go pw.Write(big[100_000:])
			expect(t, l.p, frames(string(big), "one"))
			returns(t, from, nil)
		})
	})
}
