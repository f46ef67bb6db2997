package sockhub_test

// The rule of InboundLimit among Handlers that block, at random.

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
)

// TestSharedBudgetAtRandom has connections of two hubs with little room for input, whose
// Handlers block in any of their calls, go to Events and come back, and whose peers send in
// pieces. Everything arrives, in order and in time, and nobody is given up.
func TestSharedBudgetAtRandom(t *testing.T) {
	eachBubble(t, 10, func(t *testing.T, seed uint64) {
		rng := rand.New(rand.NewPCG(seed, 5))
		const size = 100_000
		limit := int64(2*(size+64<<10) + rng.IntN(100_000))
		b := sockhub.NewBudget(limit, 0, 0)
		var mu sync.Mutex
		draw := func(n int) int {
			mu.Lock()
			defer mu.Unlock()
			return rng.IntN(n)
		}
		block := func(most int) {
			if draw(3) == 0 {
				sleepFor(time.Duration(draw(most)) * time.Millisecond)
			}
		}
		longest := 1000 + draw(2)*100_000 // perhaps longer than FrameTimeout
		o := &sockhub.Options{Budget: b, MaxMessage: size, FrameTimeout: 20 * time.Second, ConnInbound: 1 + rng.Int64N(200_000), ReuseBuffers: draw(2) == 0}
		hubs := []*sockhub.Hub{openHub(t, o), openHub(t, o)}
		got := make(map[*sockhub.Conn][]byte) // numbers
		note := func(c *sockhub.Conn, m []byte) {
			mu.Lock()
			defer mu.Unlock()
			got[c] = append(got[c], m[0])
		}
		ends := make(map[*sockhub.Conn]error)
		var receivers sync.WaitGroup
		for _, h := range hubs {
			receivers.Go(func() {
				for x := range h.Events() {
					for c, m := range x.Messages() {
						note(c, m)
					}
					for _, d := range x.Disconnected {
						mu.Lock()
						ends[d.Conn] = d.Err
						mu.Unlock()
					}
					x.Release()
					block(2000)
				}
			})
		}
		var newHandler func() sockhub.Handler
		newHandler = func() sockhub.Handler {
			most := 1000
			if draw(3) == 0 {
				most = longest
			}
			return &handlerFuncs{
				message: func(r *sockhub.Reply, m []byte) {
					note(r.Conn(), m)
					block(most)
					switch draw(12) {
					case 0:
						r.SetHandler(nil)
					case 1:
						r.SetHandler(newHandler())
					case 2:
						r.Conn().NotifyDrained()
					case 3:
						r.Send([]byte("answer"))
					case 4:
						r.SetHandler(nil)
						r.SetHandler(newHandler())
					}
				},
				drained:      func(*sockhub.Reply) { block(most) },
				disconnected: func(d sockhub.Disconnection) { mu.Lock(); defer mu.Unlock(); ends[d.Conn] = d.Err },
			}
		}
		var peers sync.WaitGroup
		type one struct {
			c *sockhub.Conn
			n int
		}
		var all []one
		for range 3 + draw(8) {
			h := hubs[draw(2)]
			lo := sockhub.ListenOptions{}
			if draw(2) == 0 {
				lo.Handler = func(*sockhub.Conn) sockhub.Handler { return newHandler() }
			}
			c, p := serveMemory(t, h, &memnet.Options{Buffer: 1 << (8 + draw(10))}, lo)
			n := 1 + draw(12)
			all = append(all, one{c, n})
			peers.Go(func() {
				go func() {
					buf := make([]byte, 1000)
					for {
						if _, err := p.Read(buf); err != nil {
							return
						}
					}
				}()
				for k := range n {
					body := make([]byte, 1+draw([]int{10, 3000, size}[draw(3)]))
					body[0] = byte(k)
					w := frame(string(body))
					for len(w) > 0 {
						i := 1 + draw(len(w))
						if _, err := p.Write(w[:i]); err != nil {
							t.Errorf("%v: %v", c, err)
							return
						}
						w = w[i:]
						block(1000)
					}
				}
			})
			peers.Go(func() { // others ask for things
				for range draw(20) {
					block(1000)
					switch draw(5) {
					case 0, 1:
						c.NotifyDrained()
					case 2:
						c.SetHandler(newHandler())
					case 3:
						c.SetHandler(nil)
					case 4:
						c.TrySend([]byte("x"))
					}
				}
			})
		}
		peers.Wait()
		begun := time.Now()
		done := func() bool {
			mu.Lock()
			defer mu.Unlock()
			for _, x := range all {
				if len(got[x.c]) < x.n {
					return false
				}
			}
			return true
		}
		for !done() && time.Since(begun) < 2*time.Hour {
			<-time.After(time.Second)
		}
		mu.Lock()
		for _, x := range all {
			if err := ends[x.c]; err != nil {
				t.Errorf("%v ended: %v", x.c, err)
			}
			if len(got[x.c]) != x.n {
				t.Errorf("%v: %d messages of %d: %+v, cause %v", x.c, len(got[x.c]), x.n, x.c.Stats(), context.Cause(x.c.Context()))
			}
			for k, g := range got[x.c] {
				if int(g) != k {
					t.Errorf("%v: message %d is number %d", x.c, k, g)
				}
			}
		}
		mu.Unlock()
		for i, h := range hubs {
			if err := h.Shutdown(context.Background()); err != nil && !errors.Is(err, sockhub.ErrClosed) {
				t.Error(i, err)
			}
		}
		receivers.Wait()
		synctest.Wait()
		<-time.After(10 * time.Minute)
		for _, h := range hubs {
			if held := b.Held() + h.Held(); held != "" {
				t.Errorf("held: %s", held)
			}
		}
	})
}
