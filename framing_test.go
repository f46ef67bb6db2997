package sockhub_test

// Framings over whole connections; frame_test.go has the decoder alone.

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
)

// decimal is a user's own framing: the length in decimal digits, and a colon.
type decimal struct{}

func (decimal) MaxHeader() int { return 21 }
func (decimal) AppendHeader(dst []byte, n uint64) []byte {
	return append(strconv.AppendUint(dst, n, 10), ':')
}

func (decimal) Header(p []byte) (size int, n uint64, err error) {
	p = p[:min(len(p), 21)]
	digits, _, ok := bytes.Cut(p, []byte(":"))
	if !ok && len(p) < 21 {
		return 0, 0, nil
	}
	n, err = strconv.ParseUint(string(digits), 10, 64)
	return len(digits) + 1, n, err
}

func TestMessagesInEveryFraming(t *testing.T) {
	for name, c := range map[string]struct {
		framing sockhub.Framing
		most    int // the longest message that it can express, or that is tried
	}{
		"8 little":  {sockhub.LengthPrefix(8, binary.LittleEndian), 200_000},
		"8 big":     {sockhub.LengthPrefix(8, binary.BigEndian), 200_000},
		"4 little":  {sockhub.LengthPrefix(4, binary.LittleEndian), 200_000},
		"4 big":     {sockhub.LengthPrefix(4, binary.BigEndian), 200_000},
		"2 little":  {sockhub.LengthPrefix(2, binary.LittleEndian), 65535},
		"2 big":     {sockhub.LengthPrefix(2, binary.BigEndian), 65535},
		"1":         {sockhub.LengthPrefix(1, binary.BigEndian), 255},
		"uvarint":   {sockhub.Uvarint(), 200_000},
		"one's own": {decimal{}, 200_000},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := openHub(t, nil)
				b := openHub(t, &sockhub.Options{Name: "me"})
				defer b.Close()
				l := memnet.Listen(nil)
				// The name and the answer are messages of the framing too.
				if _, err := a.Serve(l, &sockhub.ListenOptions{Framing: c.framing}); err != nil {
					t.Fatal(err)
				}
				nc, err := l.Dial(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				conn, err := b.Attach(t.Context(), nc, &sockhub.DialOptions{Framing: c.framing})
				if err != nil {
					t.Fatal(err)
				}
				sizes := []int{0, 1, 127, 128, 255, 256, 16383, 16384, 65535, c.most}
				want := 0
				for _, size := range sizes {
					err := conn.TrySend(pattern(size))
					if size > c.most {
						if !errors.Is(err, sockhub.ErrMessageTooLarge) {
							t.Errorf("%d bytes: %v", size, err)
						}
						continue
					}
					if err != nil {
						t.Errorf("%d bytes: %v", size, err)
					}
					want++
				}
				for got := 0; got < want; {
					for _, m := range (<-a.Events()).Messages() {
						for sizes[got] > c.most {
							sizes = append(sizes[:got], sizes[got+1:]...)
						}
						if !bytes.Equal(m, pattern(sizes[got])) {
							t.Fatalf("message %d: %d bytes, want %d", got, len(m), sizes[got])
						}
						got++
					}
				}
			})
		})
	}
}

// notInPlace returns memory of its own from AppendHeader, as append may.
type notInPlace struct{ sockhub.Framing }

func (f notInPlace) AppendHeader(dst []byte, n uint64) []byte {
	return f.Framing.AppendHeader(slices.Clip(dst), n)
}

func TestFramingThatAppendsToACopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := sockhub.LengthPrefix(4, binary.LittleEndian)
		h := &handlerFuncs{message: func(r *sockhub.Reply, m []byte) { r.Send(m) }}
		_, p := serveMemory(t, openHub(t, nil), nil, sockhub.ListenOptions{
			Framing: notInPlace{f},
			Handler: func(*sockhub.Conn) sockhub.Handler { return h },
		})
		var wire []byte
		for _, m := range []string{"one", "two", "three", "four"} {
			wire = append(f.AppendHeader(wire, uint64(len(m))), m...)
		}
		p.Write(wire)
		expect(t, p, wire)
	})
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

// What a Handler answers in raw bytes is not measured by the Framing either, and messages
// are again: raw bytes were refused like a message of their length.
func TestRawAnswersAreNotMeasuredByTheFraming(t *testing.T) {
	long := make([]byte, 300)
	sends := []struct {
		name string
		send func(*sockhub.Reply) error
	}{
		{"Send", func(r *sockhub.Reply) error { return r.Send(long) }},
		{"SendParts", func(r *sockhub.Reply) error { return r.SendParts(long[:100], long[100:]) }},
		{"SendMany", func(r *sockhub.Reply) error { _, err := r.SendMany(slices.Values([][]byte{long})); return err }},
		{"SendFrom", func(r *sockhub.Reply) error { return r.SendFrom(300, io.NopCloser(bytes.NewReader(long))) }},
	}
	for _, mode := range []sockhub.Mode{sockhub.Raw, sockhub.Anonymous} {
		t.Run(mode.String(), func(t *testing.T) {
			s := newStand(t, nil, nil)
			type outcome struct {
				name string
				raw  bool
				err  error
			}
			all := make(chan outcome, 2*len(sends)+1)
			h := &handlerFuncs{message: func(r *sockhub.Reply, _ []byte) {
				r.SetRaw(true)
				for _, s := range sends {
					all <- outcome{s.name, true, s.send(r)}
				}
				r.SetRaw(false)
				for _, s := range sends {
					all <- outcome{s.name, false, s.send(r)}
				}
				all <- outcome{"Send of one byte", true, r.Send([]byte("x"))}
				close(all)
				r.Finish()
			}}
			l := s.listen("tcp", &sockhub.ListenOptions{Mode: mode, Framing: sockhub.LengthPrefix(1, binary.BigEndian),
				Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
			p := dialHub(t, l, "")
			p.Write([]byte{1, 'x'})
			got, err := io.ReadAll(p)
			if want := slices.Concat(bytes.Repeat(long, len(sends)), []byte{1, 'x'}); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes, %v; want %d", len(got), err, len(want))
			}
			p.Close()
			for o := range all {
				switch {
				case o.raw && o.err != nil:
					t.Errorf("%s of raw bytes: %v", o.name, o.err)
				case !o.raw && !errors.Is(o.err, sockhub.ErrMessageTooLarge):
					t.Errorf("%s of 300 bytes behind a header of one: %v", o.name, o.err)
				}
			}
		})
	}
}

// What a message waits for may be over when the connection is not raw any more, and its
// framing cannot announce so much: it is refused then, takes no room, and holds nobody up.
func TestSetRawMakesWhatWaitsTooLarge(t *testing.T) {
	for name, send := range map[string]func(ctx context.Context, c *sockhub.Conn, n int) error{
		"Send": func(ctx context.Context, c *sockhub.Conn, n int) error { return c.Send(ctx, make([]byte, n)) },
		"SendFrom": func(ctx context.Context, c *sockhub.Conn, n int) error {
			return c.SendFrom(ctx, uint64(n), bytes.NewReader(make([]byte, n)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				budget := sockhub.NewBudget(0, 0, 0)
				l := newLine(t, &sockhub.Options{WriteTimeout: -1, ConnOutbound: 1000, Budget: budget}, stuck, &sockhub.ListenOptions{
					Mode: sockhub.Raw, Framing: sockhub.LengthPrefix(2, binary.BigEndian),
				})
				for _, behind := range []bool{false, true} {
					l.c.SetRaw(true)
					l.sent(string(make([]byte, 2000)))
					large := async(func() (int, error) { return 0, send(t.Context(), l.c, 100_000) })
					waits(t, large)
					var small <-chan result
					if behind {
						small = l.sending(t.Context(), "small")
						waits(t, small)
					}
					l.c.SetRaw(false)
					waits(t, large)
					expect(t, l.p, make([]byte, 2000))
					returns(t, large, sockhub.ErrMessageTooLarge)
					if behind {
						expect(t, l.p, []byte("\x00\x05small"))
						returns(t, small, nil)
					}
					if held := budget.Held(); held != "" {
						t.Error(held)
					}
				}
			})
		})
	}
}

// panicky cannot express more than 200 bytes.
type panicky struct{ sockhub.Framing }

func (f panicky) AppendHeader(dst []byte, n uint64) []byte {
	if n > 200 {
		panic("too long")
	}
	return f.Framing.AppendHeader(dst, n)
}

// unexpressed are the ways to send what the Framing panics for.
var unexpressed = map[string]func(*sockhub.Conn, context.Context, int){
	"Send":      func(c *sockhub.Conn, ctx context.Context, size int) { c.Send(ctx, make([]byte, size)) },
	"SendParts": func(c *sockhub.Conn, ctx context.Context, size int) { c.SendParts(ctx, make([]byte, size), nil) },
	"SendFrom":  func(c *sockhub.Conn, ctx context.Context, size int) { c.SendFrom(ctx, uint64(size), zeros{}) },
}

// A Send that panics because the Framing does gives its turn, and its room, to others, and
// what was queued before and comes behind it is whole.
func TestSendThatPanicsKeepsNobodyWaiting(t *testing.T) {
	for name, send := range unexpressed {
		for _, size := range []int{300, 5000, 100_000} {
			t.Run(fmt.Sprint(name, " ", size), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r := newRoom(t, &sockhub.Options{ConnOutbound: 6000, WriteTimeout: -1}, nil)
					c, p := r.serve(stuck, &sockhub.ListenOptions{Framing: panicky{sockhub.LengthPrefix(8, binary.LittleEndian)}})
					var want []byte
					queue := func() error {
						m := bytes.Repeat([]byte{byte('a' + len(want)%26)}, 150)
						err := c.TrySend(m)
						if err == nil {
							want = append(want, frame(string(m))...)
						}
						return err
					}
					for queue() == nil {
					}
					panics := make(chan result, 1)
					go func() {
						defer func() {
							if recover() != nil {
								panics <- result{}
							}
						}()
						send(c, t.Context(), size)
					}()
					waits(t, panics)
					behind := async(func() (int, error) { return 0, c.Send(t.Context(), []byte("behind")) })
					waits(t, panics, behind)
					expect(t, p, want)
					returns(t, panics, nil)
					returns(t, behind, nil)
					expect(t, p, frame("behind"))
				})
			})
		}
	}
}

func TestSendThatPanicsLeavesOutboundLimit(t *testing.T) {
	for name, send := range unexpressed {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRoom(t, &sockhub.Options{OutboundLimit: 64 << 10, MaxConns: 64}, nil)
				c, _ := r.serve(nil, &sockhub.ListenOptions{Framing: panicky{sockhub.LengthPrefix(8, binary.LittleEndian)}})
				func() {
					defer func() { recover() }()
					send(c, t.Context(), 100_000)
				}()
				other, _ := r.serve(stuck, nil)
				if err := other.TrySend(make([]byte, 100_000)); err != nil { // one at a time may be larger than all the room
					t.Error(err)
				}
			})
		})
	}
}

// What a SendMany or a Broadcast had accepted before the Framing panicked is sent, and what
// comes behind it.
func TestSendManyThatPanicsInAFraming(t *testing.T) {
	long := make([]byte, 300)
	for name, send := range map[string]func(*sockhub.Hub, *sockhub.Conn, context.Context){
		"SendMany": func(_ *sockhub.Hub, c *sockhub.Conn, ctx context.Context) {
			c.SendMany(ctx, slices.Values([][]byte{[]byte("first"), long, []byte("never")}))
		},
		"Broadcast": func(h *sockhub.Hub, c *sockhub.Conn, ctx context.Context) {
			c.Send(ctx, []byte("first"))
			h.Broadcast(slices.Values([]*sockhub.Conn{c}), long)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRoom(t, nil, nil)
				c, p := r.serve(nil, &sockhub.ListenOptions{Framing: panicky{sockhub.LengthPrefix(8, binary.LittleEndian)}})
				func() {
					defer func() {
						if recover() == nil {
							t.Error("no panic")
						}
					}()
					send(r.Hub, c, t.Context())
				}()
				if err := c.Send(t.Context(), []byte("behind")); err != nil {
					t.Error(err)
				}
				expect(t, p, frames("first", "behind"))
				c.Close()
				if d := r.endOf(c); d.Report.AcceptedMessages != 2 || d.Report.WrittenMessages != 2 {
					t.Errorf("%+v", d.Report)
				}
			})
		})
	}
}
