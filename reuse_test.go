package sockhub_test

// ReuseBuffers, Release, and messages that are passed on.

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
)

// seeded is a message that tells its own seed and size.
func seeded(seed uint32, size int) []byte {
	p := make([]byte, size)
	for i := range p {
		p[i] = byte(uint32(i)*31 + uint32(i)>>8*7 + seed*13)
	}
	return p
}

// relaySizes are those at which messages are kept in another way: small ones are
// copied, large ones in a chunk too, those with a chunk of their own are not.
var relaySizes = []int{1, 64, 2048, 2049, 5000, 16 << 10, 40_000, 100_000, 131_000, 200_000, 1 << 20, 3 << 20}

// relay is a hub with ReuseBuffers and peers: what the first one sends, the hub
// passes on to the others before it gives the memory back.
func relay(t *testing.T, handler func(others []*sockhub.Conn) func(*sockhub.Reply, []byte), events func(others []*sockhub.Conn, b *sockhub.Batch)) (first *memnet.End, others []*memnet.End) {
	t.Helper()
	hub, err := sockhub.New(context.Background(), &sockhub.Options{ReuseBuffers: true, ConnOutbound: 64 << 20, WriteTimeout: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hub.Close() })
	conns, others := attachMany(t, hub, 3)
	ours, first := memnet.Pair(nil)
	lo := &sockhub.ListenOptions{Mode: sockhub.Anonymous}
	if handler != nil {
		h := &handlerFuncs{message: handler(conns)}
		lo.Handler = func(*sockhub.Conn) sockhub.Handler { return h }
	}
	if _, err := hub.ServeConn(t.Context(), ours, lo); err != nil {
		t.Fatal(err)
	}
	go func() {
		for b := range hub.Events() {
			if events != nil {
				events(conns, b)
			}
			b.Release()
			b.Release() // harmless
		}
	}()
	return first, others
}

// A batch that is released again gives nothing back that later ones have meanwhile:
// what one of these holds stays when the other is released.
func TestBatchIsReleasedOnce(t *testing.T) {
	hub := openHub(t, &sockhub.Options{ReuseBuffers: true})
	_, peers := attachMany(t, hub, 1)
	next := func(seed uint32) *sockhub.Batch {
		peers[0].Write(frame(string(seeded(seed, 100))))
		for b := range hub.Events() {
			if len(b.Received) > 0 {
				return b
			}
			b.Release()
		}
		return nil
	}
	for round := range uint32(50) { // a pool may forget
		first := next(round)
		first.Release()
		first.Release()
		second, third := next(round+1000), next(round+2000)
		first.Release()
		second.Release()
		if m := third.Received[0].Messages[0]; !bytes.Equal(m, seeded(round+2000, 100)) {
			t.Fatalf("round %d: % x", round, m)
		}
		third.Release()
	}
}

// ways are those to pass a message on.
var ways = map[string]func(c *sockhub.Conn, m []byte) error{
	"Send":    func(c *sockhub.Conn, m []byte) error { return c.Send(context.Background(), m) },
	"TrySend": func(c *sockhub.Conn, m []byte) error { return c.TrySend(m) },
	"SendParts": func(c *sockhub.Conn, m []byte) error {
		return c.SendParts(context.Background(), m[:len(m)/3], m[len(m)/3:])
	},
	"SendMany": func(c *sockhub.Conn, m []byte) error {
		_, err := c.SendMany(context.Background(), slices.Values([][]byte{m}))
		return err
	},
}

func TestBorrowedMessagesArePassedOnIntact(t *testing.T) {
	for way, send := range ways {
		for _, byHandler := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, handler %v", way, byHandler), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					all := func(others []*sockhub.Conn, m []byte) {
						for _, c := range others {
							if err := send(c, m); err != nil {
								t.Error(err)
							}
						}
					}
					var first *memnet.End
					var others []*memnet.End
					if byHandler {
						first, others = relay(t, func(others []*sockhub.Conn) func(*sockhub.Reply, []byte) {
							return func(r *sockhub.Reply, m []byte) { all(others, m); r.Send(m[:len(m)/2]) }
						}, nil)
					} else {
						first, others = relay(t, nil, func(others []*sockhub.Conn, b *sockhub.Batch) {
							for _, m := range b.Messages() {
								all(others, m)
							}
						})
					}
					go func() {
						for i, size := range relaySizes {
							first.Write(frame(string(seeded(uint32(i), size))))
						}
					}()
					// The peers read late, so that much is queued when the memory
					// is used again.
					<-time.After(time.Second)
					for i, size := range relaySizes {
						want := seeded(uint32(i), size)
						if byHandler {
							expect(t, first, frame(string(want[:size/2])))
						}
						for _, p := range others {
							expect(t, p, frame(string(want)))
						}
					}
				})
			})
		}
	}
}

// Until Release a batch's messages are intact, whatever comes meanwhile; and one
// that is never released, for ever.
func TestBatchIsIntactUntilItsRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, &sockhub.Options{ReuseBuffers: true})
		_, peers := attachMany(t, hub, 4)
		r := rand.New(rand.NewPCG(1, 2))
		const each = 200
		for k, p := range peers {
			sizes := make([]int, each)
			for i := range sizes {
				sizes[i] = r.IntN(1 << (4 + r.IntN(14)))
			}
			go func() {
				for i, size := range sizes {
					p.Write(frame(string(seeded(uint32(k*1000+i), size))))
					<-time.After(time.Millisecond)
				}
			}()
		}
		type kept struct {
			b    *sockhub.Batch
			seed []uint32
			msgs [][]byte
		}
		var held []kept
		check := func(h kept) {
			for i, m := range h.msgs {
				if !bytes.Equal(m, seeded(h.seed[i], len(m))) {
					t.Errorf("message %d of %d bytes was overwritten: %.20x, want %.20x", h.seed[i], len(m), m, seeded(h.seed[i], len(m)))
					return
				}
			}
		}
		index := make(map[*sockhub.Conn]int)
		next := make(map[*sockhub.Conn]uint32)
		for got := 0; got < each*len(peers); {
			b := <-hub.Events()
			for _, c := range b.Unknown {
				index[c] = len(index)
			}
			h := kept{b: b}
			for c, m := range b.Messages() {
				h.msgs = append(h.msgs, m)
				h.seed = append(h.seed, uint32(index[c]*1000)+next[c])
				next[c]++
				got++
			}
			held = append(held, h)
			if len(held) > 5 {
				i := r.IntN(len(held))
				check(held[i])
				if i%3 > 0 { // some are never released
					held[i].b.Release()
					held = slices.Delete(held, i, i+1)
				}
			}
		}
		hub.Close()
		for _, h := range held {
			check(h)
			h.b.Release() // valid after Close
		}
		<-time.After(time.Second) // the peers return
	})
}

// What a report tells is ordinary memory.
func TestUnsentBorrowedMessagesAreOnesOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, &sockhub.Options{ReuseBuffers: true, WriteTimeout: -1, ConnOutbound: 64 << 20})
		conns, peers := attachMany(t, hub, 2)
		go func() {
			for i, size := range relaySizes {
				peers[0].Write(frame(string(seeded(uint32(i), size))))
			}
		}()
		var report sockhub.Report
		for sent := 0; report.AcceptedMessages == 0; {
			b := <-hub.Events()
			for _, m := range b.Messages() {
				conns[1].TrySend(m)
				sent++
			}
			b.Release()
			if sent == len(relaySizes) {
				conns[1].Close()
				sent = 0
			}
			for _, d := range b.Disconnected {
				report = d.Report
			}
		}
		// Memory that is used again is used again now.
		go peers[0].Write(frame(string(make([]byte, 4<<20))))
		for got := 0; got < 1; {
			b := <-hub.Events()
			for range b.Messages() {
				got++
			}
			b.Release()
		}
		i := len(relaySizes) - int(report.UnsentMessages)
		if report.Cut {
			if m := report.CutMessage(); !bytes.Equal(m, seeded(uint32(i-1), relaySizes[i-1])) {
				t.Errorf("the cut message of %d bytes is not what was sent", len(m))
			}
		}
		for m := range report.Unsent() {
			if !bytes.Equal(m, seeded(uint32(i), relaySizes[i])) {
				t.Errorf("unsent message %d of %d bytes is not what was sent", i, len(m))
			}
			i++
		}
		if i != len(relaySizes) {
			t.Error(i)
		}
	})
}

func TestBroadcastOfABorrowedMessageAndDroppedOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, err := sockhub.New(context.Background(), &sockhub.Options{ReuseBuffers: true, WriteTimeout: -1,
			Overflow: sockhub.DropOldest, ConnOutbound: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		defer hub.Close()
		conns, peers := attachMany(t, hub, 4)
		const n, size = 40, 150_000
		go func() {
			for i := range uint32(n) {
				peers[0].Write(frame(string(seeded(i, size))))
			}
			peers[0].CloseWrite()
		}()
		for ended := false; !ended; {
			b := <-hub.Events()
			for _, m := range b.Messages() {
				hub.Broadcast(slices.Values(conns[1:]), m)
			}
			b.Release()
			ended = len(b.Ended) > 0
		}
		for _, c := range conns[1:] {
			c.Finish()
		}
		for _, p := range peers[1:] {
			last, got := -1, 0
			for {
				f := make([]byte, 8+size)
				if _, err := io.ReadFull(p, f); err != nil {
					break
				}
				i := -1
				for k := last + 1; k < n && i < 0; k++ {
					if bytes.Equal(f[8:], seeded(uint32(k), size)) {
						i = k
					}
				}
				if i < 0 {
					t.Fatalf("what came after message %d is none", last)
				}
				last, got = i, got+1
			}
			if last != n-1 || got < 3 || got == n {
				t.Errorf("%d messages, the last one %d", got, last)
			}
		}
	})
}

// What was lent is the hub's again when it was given back, which the tests' hub shows by
// writing over it; else it is the user's for good.
func TestLentMemoryIsTakenBack(t *testing.T) {
	const size = 1 << 20 // with a chunk of its own
	for _, reuse := range []bool{false, true} {
		for _, handled := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				r := newRoom(t, nil, nil)
				var kept []byte
				lo := &sockhub.ListenOptions{ReuseBuffers: reuse}
				if handled {
					lo.Handler = func(*sockhub.Conn) sockhub.Handler {
						return &handlerFuncs{message: func(_ *sockhub.Reply, m []byte) { kept = m }}
					}
				}
				_, p := r.serve(nil, lo)
				p.Write(frame(string(make([]byte, size))))
				synctest.Wait()
				if !handled {
					b := r.take()
					for _, m := range b.Messages() {
						kept = m
					}
					if kept[0] != 0 {
						t.Error("it was taken back before Release")
					}
					b.Release()
				}
				if taken := kept[0] != 0; len(kept) != size || taken != reuse {
					t.Errorf("ReuseBuffers %v, a Handler %v: taken back is %v", reuse, handled, taken)
				}
			})
		}
	}
}
