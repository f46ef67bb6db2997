package sockhub_test

// What ConnStats counts of the input: each message and byte that was delivered,
// once, whatever the handler does with it, and never fewer than before.

import (
	"bytes"
	"errors"
	"io"
	"net"
	"runtime"
	"testing"
	"testing/synctest"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
)

// countedIn checks what a connection has counted of its input.
func countedIn(t *testing.T, c *sockhub.Conn, msgs, bytes int) {
	t.Helper()
	if s := c.Stats(); s.MessagesIn != uint64(msgs) || s.BytesIn != uint64(bytes) {
		t.Errorf("%d messages of %d bytes are counted, not %d of %d", s.MessagesIn, s.BytesIn, msgs, bytes)
	}
}

func TestWhatCameUpToAPanicIsCounted(t *testing.T) {
	for _, how := range []string{"panic", "Goexit"} {
		for _, flush := range []bool{false, true} {
			inBubble(t, nil, true, func(t *testing.T, hub *sockhub.Hub) {
				h := &saying{message: func(r *sockhub.Reply, m string) {
					if flush {
						r.Flush()
					}
					if m == "three" {
						leave(how)
					}
				}}
				c, peer := serveHalf(t, hub, h.options())
				peer.Write(frames("one", "two", "three", "four"))
				synctest.Wait()
				countedIn(t, c, 3, 11)
			})
		}
	}
}

// allOf reads a stream, and leaves.
type allOf struct {
	sockhub.BaseHandler
	how string
}

func (h allOf) Stream(_ *sockhub.Reply, s *sockhub.Stream) {
	io.Copy(io.Discard, s)
	if h.how != "" {
		leave(h.how)
	}
}

func TestStreamIsCountedHoweverItsHandlerLeaves(t *testing.T) {
	for _, how := range []string{"", "panic", "Goexit"} {
		inBubble(t, &sockhub.Options{StreamOver: 100}, true, func(t *testing.T, hub *sockhub.Hub) {
			c, peer := serveHalf(t, hub, &sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return allOf{how: how} }})
			peer.Write(frames("one", string(make([]byte, 200))))
			synctest.Wait()
			countedIn(t, c, 2, 203)
		})
	}
}

// serveRaw serves one end of a pipe, raw, and returns the other.
func serveRaw(t *testing.T, hub *sockhub.Hub, message func(*sockhub.Reply, []byte)) (*sockhub.Conn, net.Conn) {
	o := &sockhub.ListenOptions{}
	if message != nil {
		o.Handler = func(*sockhub.Conn) sockhub.Handler { return &handlerFuncs{message: message} }
	}
	c, peer := serveHalf(t, hub, o)
	c.SetRaw(true)
	synctest.Wait()
	return c, peer
}

func TestWhatIsUnreadIsCountedWhenItComesAgain(t *testing.T) {
	// Before or after Flush, which counts what came before.
	for _, flushed := range []bool{false, true} {
		inBubble(t, nil, true, func(t *testing.T, hub *sockhub.Hub) {
			var during, before []uint64
			c, peer := serveRaw(t, hub, func(r *sockhub.Reply, m []byte) {
				if flushed {
					r.Flush()
				}
				if len(m) < 10 {
					r.Unread(m[2:])
				}
				r.Flush()
				during = append(during, r.Conn().Stats().BytesIn)
			})
			for range 2 {
				peer.Write([]byte("abcdefgh"))
				synctest.Wait()
				before = append(before, c.Stats().BytesIn)
			}
			if during[0] > before[0] || before[0] > during[1] {
				t.Errorf("%d during the first call, %d after it, %d during the second", during[0], before[0], during[1])
			}
			countedIn(t, c, 2, 16)
		})
	}
}

func TestWhatIsUnreadAndBecomesMessagesIsCountedOnce(t *testing.T) {
	for _, unreadFirst := range []bool{false, true} {
		inBubble(t, nil, true, func(t *testing.T, hub *sockhub.Hub) {
			raw := true
			c, peer := serveRaw(t, hub, func(r *sockhub.Reply, m []byte) {
				switch {
				case !raw:
				case unreadFirst:
					r.Unread(m[2:])
					r.SetRaw(false)
				default:
					r.SetRaw(false)
					r.Unread(m[2:])
				}
				raw = false
			})
			peer.Write(append([]byte("ab"), frame("message")...))
			synctest.Wait()
			countedIn(t, c, 2, 2+7)
		})
	}
}

func TestWhatAHandlerTakesOverFromEventsIsCountedOnce(t *testing.T) {
	t.Run("Unread", func(t *testing.T) {
		inBubble(t, nil, false, func(t *testing.T, hub *sockhub.Hub) {
			c, peer := serveRaw(t, hub, nil)
			for _, piece := range []string{"abcdefgh", "ijkl"} { // both are withdrawn from Events
				peer.Write([]byte(piece))
				synctest.Wait()
			}
			calls := 0
			c.SetHandler(&handlerFuncs{message: func(r *sockhub.Reply, m []byte) {
				if calls++; calls <= 2 {
					r.Unread(m[2:])
				}
			}})
			synctest.Wait()
			peer.Write([]byte("mn"))
			synctest.Wait()
			countedIn(t, c, 3, 14)
		})
	})
	t.Run("SetRaw", func(t *testing.T) {
		inBubble(t, nil, false, func(t *testing.T, hub *sockhub.Hub) {
			c, peer := serveHalf(t, hub, &sockhub.ListenOptions{})
			peer.Write(frames("one", "two", "three"))
			synctest.Wait()
			var calls, bytes int
			c.SetHandler(&handlerFuncs{message: func(r *sockhub.Reply, m []byte) {
				if calls++; calls == 1 {
					r.SetRaw(true) // what follows comes as it was on the wire
				}
				bytes += len(m)
			}})
			synctest.Wait()
			peer.Write([]byte("x"))
			synctest.Wait()
			countedIn(t, c, calls, bytes)
		})
	})
}

// oddFraming ends the goroutine at the header of a message of 5 bytes.
type oddFraming struct{ shortFraming }

func (oddFraming) Header(p []byte) (int, uint64, error) {
	n, size, err := shortFraming{}.Header(p)
	if size == 5 {
		runtime.Goexit()
	}
	return n, size, err
}

func TestWhatAFramingThatLeavesHasLostIsNotCounted(t *testing.T) {
	inBubble(t, nil, true, func(t *testing.T, hub *sockhub.Hub) {
		c, peer := serveHalf(t, hub, &sockhub.ListenOptions{Framing: oddFraming{}})
		peer.Write([]byte("\x00\x01a"))
		synctest.Wait()
		peer.Write([]byte("\x00\x01b\x00\x05cdefg"))
		synctest.Wait()
		countedIn(t, c, 1, 1)
	})
}

func TestOptionsOfClassifyThatAreWrongCountAsRefusal(t *testing.T) {
	s := newStand(t, nil, nil)
	l := s.listen("tcp4", &sockhub.ListenOptions{Classify: func(sockhub.Peer, []byte) (*sockhub.ListenOptions, int, error) {
		return &sockhub.ListenOptions{Mode: 99}, 0, nil
	}})
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if n, err := c.Read(make([]byte, 1)); n > 0 || errors.Is(err, net.ErrClosed) {
		t.Error(n, err)
	}
	eventually(t, "it is counted", func() bool { return s.Stats().RefusedPolicy == 1 })
}

// What waits for the end of a run is queued, also what is to come from a reader.
func TestQueuedMessagesBehindARun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &handlerFuncs{message: func(r *sockhub.Reply, _ []byte) {
			r.Send([]byte("1"))
			r.SendFrom(100_000, io.NopCloser(bytes.NewReader(make([]byte, 100_000))))
			r.Send([]byte("2"))
		}}
		hub := openHub(t, &sockhub.Options{WriteTimeout: -1})
		c, p := serveMemory(t, hub, &memnet.Options{Buffer: 4096}, sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
		held := make(chan struct{})
		run := async(func() (int, error) {
			return c.SendMany(t.Context(), func(yield func([]byte) bool) {
				yield(make([]byte, 300_000)) // queued as a portion by itself
				yield(make([]byte, 10))
				<-held
			})
		})
		waits(t, run)
		go p.Write(frame("go"))
		synctest.Wait()
		if n := c.Stats().QueuedMessages; n != 4 {
			t.Errorf("%d queued", n)
		}
		close(held)
		got := make(chan [][]byte)
		go func() {
			msgs, _, _ := readAll(p)
			got <- msgs
		}()
		returns(t, run, nil)
		synctest.Wait()
		if n := c.Stats().QueuedMessages; n != 0 {
			t.Errorf("%d queued in the end", n)
		}
		c.Finish()
		if n := len(<-got); n != 5 {
			t.Errorf("%d messages", n)
		}
	})
}
