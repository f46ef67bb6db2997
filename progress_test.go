package sockhub_test

// Many senders and little room, at random: everybody gets on.

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
)

// TestEverySenderGetsOn has several send to each of a few peers that read slowly, but
// always, with little room everywhere, in all ways that there are and while Handlers
// answer. Nobody waits for ever, whom TrySend has refused hears of a Drained, a run stays
// whole, and everything arrives, in the order of its sender.
func TestEverySenderGetsOn(t *testing.T) {
	eachBubble(t, 100, func(t *testing.T, seed uint64) { sendToSlowPeers(t, rand.New(rand.NewPCG(seed, 7))) })
}

// forever is longer than anything takes.
const forever = time.Hour

// bell is the Drained of one connection.
type bell struct {
	mu   sync.Mutex
	rung chan struct{} // closed by the next one
}

func (b *bell) next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rung
}

func (b *bell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.rung)
	b.rung = make(chan struct{})
}

func sendToSlowPeers(t *testing.T, rng *rand.Rand) {
	const conns, senders, requests = 3, 3, 30
	hub := openHub(t, &sockhub.Options{
		ConnOutbound: 2000 + rng.Int64N(30_000), OutboundLimit: []int64{0, 20_000 + rng.Int64N(100_000)}[rng.IntN(2)],
		ReuseBuffers: rng.IntN(2) == 0, MaxConns: 8, WriteTimeout: -1,
	})
	go func() {
		for b := range hub.Events() {
			for _, c := range b.Drained {
				c.Value().(*bell).ring()
			}
			b.Release()
		}
	}()
	var work, reads sync.WaitGroup
	for i := range conns {
		p := &promises{t: t, accepted: make([][]string, senders+1)}
		var lo sockhub.ListenOptions
		if handled := i > 0; handled {
			answers := fork(rng)
			lo.Handler = func(*sockhub.Conn) sockhub.Handler { return p.handler(answers) }
		}
		mo := &memnet.Options{Seed: rng.Uint64(), Buffer: 1 + rng.IntN(20_000), Unix: rng.IntN(2) == 0}
		c, peer := serveMemory(t, hub, mo, lo)
		p.c = c
		c.SetValue(&bell{rung: make(chan struct{})})
		reading := fork(rng)
		reads.Go(func() {
			msgs, cut, err := readAll(&unhurried{peer, reading})
			if len(cut) > 0 || err != nil {
				t.Errorf("%d bytes of a message, %v", len(cut), err)
			}
			p.check(texts(msgs))
		})
		for s := range senders {
			sending := fork(rng)
			work.Go(func() { p.send(s, sending) })
		}
		if i > 0 {
			asking := fork(rng)
			work.Go(func() {
				for range requests {
					peer.Write(frame("request"))
					rest(asking, 2, 30)
				}
			})
		}
		reads.Go(func() {
			work.Wait()
			for begun := time.Now(); c.Stats().QueuedMessages > 0 || i > 0 && p.answered.Load() < requests; <-time.After(time.Second) {
				if time.Since(begun) > forever {
					t.Errorf("it stands still: %d requests answered, %+v", p.answered.Load(), c.Stats())
					break
				}
			}
			c.Finish()
		})
	}
	work.Wait()
	reads.Wait()
}

// promises is what was accepted for one connection.
type promises struct {
	t        *testing.T
	c        *sockhub.Conn
	accepted [][]string // by sender, of which the Handler is the last
	answered atomic.Int64
	last     atomic.Int64 // run
}

// message makes the next message of a sender's. run: of a SendMany, or 0.
func (p *promises) message(s int, run int64, k int, rng *rand.Rand) string {
	most := 3000
	if rng.IntN(20) == 0 {
		most = 200_000
	}
	return fmt.Sprintf("%d %d %d ", s, run, k) + strings.Repeat("x", rng.IntN(1+rng.IntN(most)))
}

func (p *promises) handler(rng *rand.Rand) sockhub.Handler {
	s, k := len(p.accepted)-1, 0
	return &handlerFuncs{
		message: func(r *sockhub.Reply, _ []byte) {
			for range rng.IntN(3) {
				m := p.message(s, 0, k, rng)
				if k++; r.Send([]byte(m)) == nil {
					p.accepted[s] = append(p.accepted[s], m)
				}
				if rng.IntN(3) == 0 {
					r.Flush()
				}
			}
			p.answered.Add(1)
		},
		drained: func(r *sockhub.Reply) { r.Conn().Value().(*bell).ring() },
	}
}

// send sends in all ways until each message was accepted.
func (p *promises) send(s int, rng *rand.Rand) {
	ctx, cancel := context.WithTimeout(context.Background(), forever)
	defer cancel()
	for k := 0; k < 60; {
		var err error
		all := []string{p.message(s, 0, k, rng)}
		switch rng.IntN(4) {
		case 0:
			err = p.c.Send(ctx, []byte(all[0]))
		case 1:
			err = p.trySend([]byte(all[0]))
		case 2:
			err = p.c.SendFrom(ctx, uint64(len(all[0])), strings.NewReader(all[0]))
		case 3:
			all = nil
			run := p.last.Add(1)
			for i := range rng.IntN(30) {
				all = append(all, p.message(s, run, k+i, rng))
			}
			var n int
			n, err = p.c.SendMany(ctx, func(yield func([]byte) bool) {
				for _, m := range all {
					if rest(rng, 10, 20); !yield([]byte(m)) {
						return
					}
				}
			})
			if err == nil && n != len(all) {
				p.t.Errorf("SendMany: %d of %d", n, len(all))
			}
		}
		if err != nil {
			p.t.Errorf("sender %d, message %d: %v; %+v", s, k, err, p.c.Stats())
			return
		}
		p.accepted[s] = append(p.accepted[s], all...)
		k += len(all)
		rest(rng, 4, 20)
	}
}

// trySend tries again when there may be room.
func (p *promises) trySend(m []byte) error {
	for {
		drained := p.c.Value().(*bell).next()
		if err := p.c.TrySend(m); !errors.Is(err, sockhub.ErrBackpressure) {
			return err
		}
		select {
		case <-drained:
		case <-time.After(forever):
			return errors.New("refused, and no Drained came")
		}
	}
}

// check compares what has arrived with what was accepted.
func (p *promises) check(arrived []string) {
	got := make([][]string, len(p.accepted))
	var before int64
	ended := make(map[int64]bool) // runs
	for _, m := range arrived {
		var s, k int
		var run int64
		if _, err := fmt.Sscanf(m, "%d %d %d", &s, &run, &k); err != nil || s >= len(got) {
			p.t.Errorf("%.20q has arrived", m)
			return
		}
		got[s] = append(got[s], m)
		if run != before {
			ended[before] = true
			if run != 0 && ended[run] {
				p.t.Errorf("something came into run %d", run)
			}
		}
		before = run
	}
	for s := range got {
		if err := sameTexts(got[s], p.accepted[s]); err != nil {
			p.t.Errorf("sender %d: %v", s, err)
		}
	}
}

func sameTexts(got, want []string) error {
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || got[i] != want[i] {
			return fmt.Errorf("of %d messages %d have arrived; number %d is lost, or another", len(want), len(got), i)
		}
	}
	return nil
}
