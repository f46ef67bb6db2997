package sockhub_test

// Promises about single connections, beside those in mended_test.go.

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sockhub/sockhub"
)

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
	s := newStand(t, &sockhub.Options{Linger: math.MaxInt64, HandshakeTimeout: 50 * time.Millisecond}, nil)
	l := s.listen("tcp", nil)
	p := dialHub(t, l, "bob")
	s.first().Finish()
	p.atEnd() // and it does not close
	dialHub(t, l, "").atEnd()
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

// What was cut is in the report, and not queued any more: it was counted as both, if its
// sender had given it up.
func TestStatsAfterTheEndOfACutMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, nil, nil, nil)
		r, w := io.Pipe()
		ctx, cancel := context.WithCancel(t.Context())
		done := async(func() (int, error) { return 0, l.c.SendFrom(ctx, 1<<20, r) })
		go w.Write(make([]byte, 400_000))
		io.ReadFull(l.p, make([]byte, 1000)) // it has begun
		synctest.Wait()
		cancel() // within it
		w.CloseWithError(net.ErrClosed)
		if res := <-done; res.err == nil {
			t.Error("SendFrom has sent all")
		}
		for range 3 {
			l.take()
		}
		if st := l.c.Stats(); st.QueuedMessages != 0 || st.QueuedOut != 0 {
			t.Errorf("%+v", st)
		}
	})
}
