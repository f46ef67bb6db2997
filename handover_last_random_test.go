package sockhub_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sockhub/sockhub"
)

// TestLastHandlerHearsWhatComesBehindIt changes who has a connection, by SetHandler and within
// calls, while other things are done with it, and while the end of its client's last one waits
// in Events or does not. Who is set last, a Handler or Events, has to hear of a NotifyDrained
// behind that; and nobody else hears of what the peer sends then, nor that it has ended.
func TestLastHandlerHearsWhatComesBehindIt(t *testing.T) {
	eachBubble(t, 1000, func(t *testing.T, seed uint64) {
		rng := rand.New(rand.NewPCG(seed, 0))
		h := &hearers{rng: fork(rng), heard: make(map[string][]string)}
		conns := make(chan *sockhub.Conn, 2)
		r := newRoom(t, nil, &sockhub.ListenOptions{HalfOpen: true, Handler: func(c *sockhub.Conn) sockhub.Handler {
			conns <- c
			return h.another()
		}})
		r.expected("bob", nil)
		for range rng.IntN(2) {
			r.join("bob")
			(<-conns).Close()
			synctest.Wait()
		}
		p := r.claim("bob")
		go io.Copy(io.Discard, p)
		c := <-conns
		sent := make(chan string, 100)
		go func() {
			for m := range sent {
				p.Write(frame(m))
			}
			p.CloseWrite()
		}()
		for range rng.IntN(12) {
			switch rng.IntN(5) {
			case 0:
				c.SetHandler(h.another())
			case 1:
				c.NotifyDrained()
			case 2:
				c.TrySend([]byte("x"))
			case 3:
				h.take(r.Hub)
			case 4:
				for range 1 + rng.IntN(3) {
					sent <- []string{"two", "ask", "answer", "rest", "x"}[rng.IntN(5)]
				}
			}
			switch rng.IntN(4) {
			case 0:
				synctest.Wait()
			case 1:
				for range rng.IntN(20) {
					runtime.Gosched()
				}
			}
		}
		last := "Events"
		if rng.IntN(2) == 0 {
			last = "last"
			c.SetHandler(h.handler(last))
		} else {
			c.SetHandler(nil)
		}
		before := len(h.of(last))
		c.NotifyDrained()
		sent <- "behind"
		close(sent)
		for range 20 {
			<-time.After(time.Second)
			h.take(r.Hub)
		}
		if !slices.Contains(h.of(last)[before:], "Drained") {
			t.Errorf("%s has not heard Drained, but %q", last, h.of(last)[before:])
		}
		for name, heard := range h.heard {
			for _, what := range []string{"behind", "Ended"} {
				n := 0
				for _, s := range heard {
					if s == what {
						n++
					}
				}
				if want := map[bool]int{true: 1}[name == last]; n != want {
					t.Errorf("%s has heard %q %d times, want %d", name, what, n, want)
				}
			}
		}
	})
}

// hearers are all who hear of one connection, and what they have heard.
type hearers struct {
	mu    sync.Mutex
	rng   *rand.Rand
	count int
	heard map[string][]string
}

func (h *hearers) note(who, what string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.heard[who] = append(h.heard[who], what)
}

func (h *hearers) of(who string) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.heard[who]
}

func (h *hearers) draw(n int) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.rng.IntN(n)
}

// another is a new Handler that changes who has the connection, one that hears nothing, or nil.
func (h *hearers) another() sockhub.Handler {
	switch h.draw(5) {
	case 0:
		return nil
	case 1:
		return sockhub.BaseHandler{}
	}
	h.mu.Lock()
	h.count++
	name := fmt.Sprint("Handler ", h.count)
	h.mu.Unlock()
	changes := h.handler(name).(*handlerFuncs)
	changes.message = func(r *sockhub.Reply, m []byte) {
		switch h.note(name, string(m)); string(m) {
		case "two":
			r.SetHandler(h.another())
			r.SetHandler(h.another())
		case "ask":
			r.Conn().NotifyDrained()
			r.SetHandler(h.another())
		case "answer":
			r.Send([]byte("answer"))
		case "rest":
			sleepFor(time.Duration(h.draw(3)) * time.Millisecond)
		}
	}
	return changes
}

// handler is one that notes what it hears.
func (h *hearers) handler(name string) sockhub.Handler {
	return &handlerFuncs{
		message: func(_ *sockhub.Reply, m []byte) { h.note(name, string(m)) },
		drained: func(*sockhub.Reply) { h.note(name, "Drained") },
		ended:   func(*sockhub.Reply) { h.note(name, "Ended") },
	}
}

// take notes what Events tells of next, if anything.
func (h *hearers) take(hub *sockhub.Hub) {
	select {
	case b := <-hub.Events():
		for _, d := range b.Received {
			for _, m := range d.Messages {
				h.note("Events", string(m))
			}
		}
		for range b.Drained {
			h.note("Events", "Drained")
		}
		for range b.Ended {
			h.note("Events", "Ended")
		}
		b.Release()
	default:
	}
}
