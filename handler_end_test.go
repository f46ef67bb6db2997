package sockhub_test

// Answers of a Handler about the time at which its connection ends.

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/sockhub/sockhub"
)

// saying is a Handler that does what a test says with each message, and notes what
// it was called for.
type saying struct {
	sockhub.BaseHandler
	message func(r *sockhub.Reply, m string)
	calls   []string
	end     sockhub.Disconnection
}

func (h *saying) Message(r *sockhub.Reply, m []byte) {
	h.calls = append(h.calls, string(m))
	h.message(r, string(m))
}
func (h *saying) Drained(*sockhub.Reply) { h.calls = append(h.calls, "drained") }
func (h *saying) Disconnected(d sockhub.Disconnection) {
	h.calls = append(h.calls, "end")
	h.end = d
}

func (h *saying) options() *sockhub.ListenOptions {
	return &sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return h }}
}

type openFile struct {
	io.Reader
	open *atomic.Int64
}

func (f openFile) Close() error { f.open.Add(-1); return nil }

// A peer that asks for files, and reads none, is not read any further when those
// that wait fill its queue: each is open.
func TestFilesThatAPeerDoesNotReadAreLimited(t *testing.T) {
	inBubble(t, &sockhub.Options{ConnOutbound: 1 << 20, WriteTimeout: -1}, true, func(t *testing.T, hub *sockhub.Hub) {
		var open atomic.Int64
		most := int64(0)
		h := &saying{message: func(r *sockhub.Reply, _ string) {
			most = max(most, open.Add(1))
			r.Send([]byte("head"))
			r.SendFrom(1<<20, openFile{strings.NewReader(strings.Repeat("x", 1<<20)), &open})
		}}
		c, peer := serveHalf(t, hub, h.options())
		go peer.Write(frames(make([]string, 1000)...))
		synctest.Wait()
		if most < 2 || most > 20 || !c.Stats().Paused {
			t.Errorf("%d files are open, %d bytes are charged of 1 MiB, paused: %v", most, c.Stats().QueuedOut, c.Stats().Paused)
		}
		c.Close()
		synctest.Wait()
		if open.Load() != 0 {
			t.Errorf("%d files are open in the end", open.Load())
		}
	})
}

func TestAnswersAfterSomebodyHasEndedTheOutputAreRefused(t *testing.T) {
	inBubble(t, nil, true, func(t *testing.T, hub *sockhub.Hub) {
		accepted := 0
		h := &saying{message: func(r *sockhub.Reply, m string) {
			if err := r.Send([]byte(m)); err == nil {
				accepted++
			} else if !errors.Is(err, sockhub.ErrClosed) {
				t.Error(err)
			}
		}}
		c, peer := serveHalf(t, hub, h.options())
		go io.Copy(io.Discard, peer)
		burst := frames("a", "b", "c", "d", "e", "f")
		peer.Write(burst) // from now on they gather
		synctest.Wait()
		c.CloseWrite()
		before := accepted
		for range 100 {
			peer.Write(burst)
		}
		synctest.Wait()
		if n := accepted - before; before != 6 || n != 0 {
			t.Errorf("%d answers were accepted after CloseWrite, %d before", n, before)
		}
	})
}

func TestNoCallFollowsTheEndOfTheHub(t *testing.T) {
	for _, tt := range []struct {
		name    string
		handled func(c *sockhub.Conn, h *saying) // makes h the Handler of a connection that events had
		opts    func(h *saying) *sockhub.ListenOptions
	}{
		{"Drained", nil, (*saying).options},
		{"messages taken back from Events", func(c *sockhub.Conn, h *saying) { c.SetHandler(h) }, func(*saying) *sockhub.ListenOptions { return &sockhub.ListenOptions{} }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, nil, false, func(t *testing.T, hub *sockhub.Hub) {
				hold := make(chan struct{})
				h := &saying{message: func(*sockhub.Reply, string) { <-hold }}
				c, peer := serveHalf(t, hub, tt.opts(h))
				go io.Copy(io.Discard, peer)
				if tt.handled != nil {
					<-hub.Events() // c is known, and its messages will wait
				}
				peer.Write(frames("1", "2", "3"))
				synctest.Wait()
				if tt.handled != nil {
					tt.handled(c, h)
					synctest.Wait()
				}
				c.TrySend([]byte("x"))
				c.TrySend([]byte("y"))
				synctest.Wait()
				hub.Close()
				close(hold)
				synctest.Wait()
				if want := []string{"1", "end"}; !slices.Equal(h.calls, want) {
					t.Errorf("called for %q, want %q", h.calls, want)
				}
			})
		})
	}
}

func TestUnsentIsInOrderWhenTheOutputEndsTwice(t *testing.T) {
	inBubble(t, nil, true, func(t *testing.T, hub *sockhub.Hub) {
		h := &saying{message: func(r *sockhub.Reply, m string) {
			switch m {
			case "b":
				r.Conn().CloseWrite()
			case "c":
				r.Conn().Close()
			}
			r.Send([]byte(m))
		}}
		_, peer := serveHalf(t, hub, h.options())
		before := frames("1", "2", "3")
		go io.ReadFull(peer, make([]byte, len(before))) // and no more, so that nothing else is written
		peer.Write(before)
		synctest.Wait()
		peer.Write(frames("a", "b", "c", "d"))
		synctest.Wait()
		var unsent []string
		for m := range h.end.Report.Unsent() {
			unsent = append(unsent, string(m))
		}
		if want := []string{"a", "b"}; !slices.Equal(unsent, want) {
			t.Errorf("%q, %v", unsent, h.end.Report)
		}
	})
}

// A connection that Events was never told of keeps its Handler to the end, if that comes
// before the SetHandler that would have made it one of Events.
func TestEndComesBeforeTheFirstOfEvents(t *testing.T) {
	for _, how := range []string{"Close", "Finish", "panic", "peer"} {
		synctest.Test(t, func(t *testing.T) {
			r := newRoom(t, nil, nil)
			hold := make(chan struct{})
			h := &saying{message: func(r *sockhub.Reply, m string) {
				r.Send([]byte(m))
				if <-hold; how == "panic" {
					panic(how)
				}
			}}
			c, peer := serveHalf(t, r.Hub, h.options())
			peer.Write(frames("x"))
			synctest.Wait()
			c.SetHandler(nil)
			switch how {
			case "Close":
				c.Close()
			case "Finish":
				c.Finish()
			case "peer":
				peer.Close()
			}
			close(hold)
			go io.Copy(io.Discard, peer)
			synctest.Wait()
			peer.Close()
			ends := 0
			for _, e := range r.news() {
				if strings.HasPrefix(e, "disconnected") {
					ends++
				}
			}
			if h.end.Conn != nil {
				ends++
			}
			if ends != 1 {
				t.Errorf("%s: the end is reported %d times", how, ends)
			}
		})
	}
}

func TestWhatWasSentBeforeAPanicIsInTheReport(t *testing.T) {
	inBubble(t, nil, true, func(t *testing.T, hub *sockhub.Hub) {
		h := &saying{message: func(r *sockhub.Reply, m string) {
			if err := r.Send([]byte(m)); err != nil {
				t.Error(err)
			}
			panic("after it")
		}}
		_, peer := serveHalf(t, hub, h.options())
		peer.Write(frames("x"))
		synctest.Wait()
		if r := h.end.Report; r.AcceptedMessages != 1 || r.UnsentMessages != 1 {
			t.Errorf("%v", r)
		}
	})
}

// Whoever gives a connection to Events in the call that Hub.Close does not wait for hears of
// its end himself, as Events tells of nothing any more.
func TestEndIsToldThoughEventsIsClosed(t *testing.T) {
	for name, give := range map[string]func(*sockhub.Conn, *sockhub.Reply){
		"SetHandler":       func(c *sockhub.Conn, _ *sockhub.Reply) { c.SetHandler(nil) },
		"Reply.SetHandler": func(_ *sockhub.Conn, r *sockhub.Reply) { r.SetHandler(nil) },
	} {
		for _, when := range []string{"before Close", "after Close"} {
			for _, known := range []bool{false, true} {
				t.Run(fmt.Sprint(name, " ", when, ", known to Events ", known), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						hub := openHub(t, nil)
						goOn, ends := make(chan struct{}), 0
						h := &handlerFuncs{
							message: func(r *sockhub.Reply, _ []byte) {
								if when == "before Close" {
									give(r.Conn(), r)
								}
								<-goOn
								if when == "after Close" {
									give(r.Conn(), r)
								}
							},
							disconnected: func(sockhub.Disconnection) { ends++ },
						}
						var lo sockhub.ListenOptions
						if !known {
							lo.Handler = func(*sockhub.Conn) sockhub.Handler { return h }
						}
						c, p := serveMemory(t, hub, nil, lo)
						if known {
							<-hub.Events()
							c.SetHandler(h)
						}
						p.Write(frame("m"))
						synctest.Wait()
						hub.Close()
						for b := range hub.Events() {
							ends += len(b.Disconnected)
						}
						close(goOn)
						synctest.Wait()
						if ends != 1 {
							t.Errorf("the end was told %d times", ends)
						}
					})
				})
			}
		}
	}
}

// What SetHandler has said holds though the connection ends before its reader has looked:
// Events hears of the end, and the Handler before of nothing.
func TestEventsHearsOfAnEndThatComesBehindSetHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, nil, nil)
		h := &saying{}
		c, _ := r.serve(nil, h.options())
		synctest.Wait()
		c.SetHandler(nil)
		c.Close()
		if r.happened("unknown", "disconnected  sockhub: closed"); len(h.calls) > 0 {
			t.Errorf("the Handler was called for %q", h.calls)
		}
	})
}

// Messages that wait for room for a Handler's answers, and are given back to Events, are
// its also if the connection ends at once.
func TestMessagesGivenBackToEventsComeBeforeTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, &sockhub.Options{ConnOutbound: 1, WriteTimeout: -1}, nil)
		c, p := r.serve(stuck, nil)
		r.take()
		go p.Write(frames("1", "2", "3"))
		synctest.Wait()
		h := &saying{message: func(r *sockhub.Reply, m string) { r.Send([]byte(m)) }}
		c.SetHandler(h)
		synctest.Wait()
		c.SetHandler(nil)
		c.Close()
		r.happened("message  2", "message  3", "disconnected  sockhub: closed")
		if want := []string{"1"}; !slices.Equal(h.calls, want) {
			t.Errorf("the Handler was called for %q, want %q", h.calls, want)
		}
	})
}
