package sockhub_test

// Broadcast, and what small messages in a burst share.

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
)

// crowd is several connections of a hub, and what each has accepted.
type crowd struct {
	*room
	size  int  // of messages, mostly at most
	runs  bool // there are SendManys, a portion of which may overfill a queue
	conns []*sockhub.Conn
	most  map[*sockhub.Conn]int                   // longest message that may be sent
	full  map[*sockhub.Conn]int64                 // largest charge of a queue, of those without a handler
	ends  map[*sockhub.Conn]sockhub.Disconnection // of those without a handler, until Events is closed
	got   map[*sockhub.Conn][]string              // by the peers, at their end

	mu       sync.Mutex
	accepted map[*sockhub.Conn][]string // of each sender in its order
	handled  map[*sockhub.Conn]sockhub.Disconnection
}

// source is who sends, from one goroutine at a time; what it sends is "name:number".
type source struct {
	*crowd
	name string
	n    int
	rnd  *rand.Rand
}

func (s *source) message() []byte {
	s.n++
	size := s.rnd.IntN(s.size)
	if s.rnd.IntN(30) == 0 {
		size = 3000
	}
	return append(fmt.Appendf(nil, "%s:%d ", s.name, s.n), bytes.Repeat([]byte{'x'}, size)...)
}

func (s *source) took(c *sockhub.Conn, m []byte) {
	if len(m) > s.most[c] {
		s.t.Errorf("%d bytes accepted, at most %d may be sent", len(m), s.most[c])
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.accepted[c] = append(s.accepted[c], string(m))
}

func (s *source) send(c *sockhub.Conn) {
	if m := s.message(); c.TrySend(slices.Clone(m)) == nil {
		s.took(c, m)
	}
}

// sendMany sends messages in one run, whose name they have in common.
func (s *source) sendMany(c *sockhub.Conn) {
	run := fmt.Sprintf("run=%s.%d", s.name, s.n)
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Duration(s.rnd.IntN(20))*time.Millisecond)
	defer cancel()
	var msgs [][]byte
	for range 1 + s.rnd.IntN(100) {
		if m := append(s.message(), run...); len(m) <= s.most[c] {
			msgs = append(msgs, m)
		}
	}
	n, _ := c.SendMany(ctx, func(yield func([]byte) bool) {
		for _, m := range msgs {
			if !yield(slices.Clone(m)) {
				return
			}
		}
	})
	for _, m := range msgs[:n] {
		s.took(c, m)
	}
}

// broadcast sends one message to each of to, and checks what Broadcast says.
func (s *source) broadcast(to []*sockhub.Conn) {
	m := s.message()
	n, err := s.Broadcast(slices.Values(to), slices.Clone(m))
	refused := make(map[*sockhub.Conn]int)
	var be *sockhub.BroadcastError
	if errors.As(err, &be) {
		for _, r := range be.Refused {
			refused[r.Conn]++
		}
	} else if err != nil {
		s.t.Error(err)
	}
	for _, c := range to {
		if refused[c]--; refused[c] < 0 {
			n--
			s.took(c, m)
		}
	}
	if n != 0 {
		s.t.Errorf("%d more have accepted than were not refused", n)
	}
}

// some is a part of the connections, mostly all.
func (s *source) some() []*sockhub.Conn {
	to := slices.Clone(s.conns)
	switch s.rnd.IntN(8) {
	case 0:
		return to[:s.rnd.IntN(len(to)+1)]
	case 1:
		s.rnd.Shuffle(len(to), func(i, j int) { to[i], to[j] = to[j], to[i] })
	case 2:
		return append(to, to[s.rnd.IntN(len(to))]) // one of them twice
	case 3:
		to[s.rnd.IntN(len(to))] = to[s.rnd.IntN(len(to))] // and another not
	}
	return to
}

// burst broadcasts some messages, one after the other.
func (s *source) burst(n int) {
	to := s.some()
	for range n {
		s.broadcast(to)
		c := s.conns[s.rnd.IntN(len(s.conns))]
		switch s.rnd.IntN(30) {
		case 0:
			s.send(c)
		case 1:
			to = s.some()
		}
		if s.rnd.IntN(10) > 0 {
			continue
		}
		if q, most := c.Stats().QueuedOut, s.full[c]; most > 0 && !s.runs && q > most {
			s.t.Errorf("%d bytes queued, at most %d may be", q, most)
		}
	}
}

// answering is a Handler that broadcasts and answers. Its answers take their place
// when the call returns, so that they are behind what it has broadcast.
type answering struct {
	sockhub.BaseHandler
	source
}

func (h *answering) Message(r *sockhub.Reply, _ []byte) {
	if h.rnd.IntN(3) == 0 {
		h.burst(1 + h.rnd.IntN(4))
	}
	for range h.rnd.IntN(3) {
		if m := h.message(); r.Send(slices.Clone(m)) == nil {
			h.took(r.Conn(), m)
		}
	}
}

func (h *answering) Disconnected(d sockhub.Disconnection) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.handled[d.Conn] = d
}

// Bursts of broadcasts from several goroutines, from handlers too, among other
// messages, ends of connections, and peers that take their time: each connection
// gets of each sender what it has accepted, in order, without a gap, once; and its
// report agrees.
func TestBroadcastsAmongEverythingElse(t *testing.T) {
	eachBubble(t, 40, func(t *testing.T, seed uint64) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		o := &sockhub.Options{
			ConnOutbound: 500 + rnd.Int64N(60_000), ReuseBuffers: rnd.IntN(2) == 0, WriteTimeout: time.Hour,
			Overflow: []sockhub.OverflowPolicy{sockhub.BlockSender, sockhub.DropNewest, sockhub.DisconnectPeer}[rnd.IntN(3)],
		}
		if rnd.IntN(3) == 0 {
			o.OutboundLimit, o.MaxConns, o.MaxMessage = 1<<20, 64, 4<<10 // floors of 8 KiB
		}
		k := &crowd{room: newRoom(t, o, nil), size: []int{30, 300, 1500}[rnd.IntN(3)], runs: rnd.IntN(2) == 0, most: make(map[*sockhub.Conn]int), full: make(map[*sockhub.Conn]int64),
			got: make(map[*sockhub.Conn][]string), accepted: make(map[*sockhub.Conn][]string),
			ends: make(map[*sockhub.Conn]sockhub.Disconnection), handled: make(map[*sockhub.Conn]sockhub.Disconnection)}
		newSource := func(name string) source {
			return source{crowd: k, name: name, rnd: rand.New(rand.NewPCG(seed, uint64(rnd.Uint32())))}
		}
		var peers, senders sync.WaitGroup
		closed, begin := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(closed)
			for b := range k.Events() {
				for _, d := range b.Disconnected {
					k.ends[d.Conn] = d
				}
				b.Release()
			}
		}()
		for i := range 3 + rnd.IntN(12) {
			mo := &memnet.Options{Seed: seed, Buffer: 1 + rnd.IntN(8<<10), Faults: memnet.Faults{ShortWrite: 0.1, Stall: 0.1, MaxWait: 20 * time.Millisecond}}
			lo := &sockhub.ListenOptions{MaxMessage: 4 << 10}
			if rnd.IntN(4) == 0 {
				lo.MaxMessage = 200
			}
			handled := rnd.IntN(2) == 0
			if handled {
				h := &answering{source: newSource(fmt.Sprint("handler", i))}
				lo.Handler = func(*sockhub.Conn) sockhub.Handler { return h }
			}
			c, p := k.serve(mo, lo)
			k.conns = append(k.conns, c)
			k.most[c] = int(lo.MaxMessage)
			if !handled {
				k.full[c] = o.ConnOutbound + lo.MaxMessage + sockhub.MessageCharge
			}
			pause := time.Duration(rnd.IntN(3)) * time.Millisecond
			requests := rnd.IntN(200)
			peers.Go(func() {
				msgs, _, _ := readAll(slow{p, pause})
				k.mu.Lock()
				defer k.mu.Unlock()
				k.got[c] = texts(msgs)
			})
			peers.Go(func() {
				<-begin
				for range requests {
					p.Write(bytes.Repeat(frame("request"), 5))
					<-time.After(time.Millisecond)
				}
			})
		}
		close(begin)
		for i := range 3 {
			s := newSource(fmt.Sprint("sender", i))
			senders.Go(func() {
				for range 40 {
					s.burst(1 + s.rnd.IntN(40))
					c := s.conns[s.rnd.IntN(len(s.conns))]
					switch s.rnd.IntN(60) {
					case 0:
						c.Close()
					case 1:
						c.Finish()
					case 2:
						c.NotifyDrained()
					case 3, 4, 5, 6:
						if s.runs {
							s.sendMany(c)
						}
					}
					if s.rnd.IntN(3) > 0 {
						sleepFor(time.Duration(s.rnd.IntN(3)) * time.Millisecond)
					}
				}
			})
		}
		if rnd.IntN(2) == 0 {
			senders.Wait()
		}
		flushed := false
		if rnd.IntN(2) == 0 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rnd.IntN(5000))*time.Millisecond)
			flushed = k.Shutdown(ctx) == nil
			cancel()
		}
		k.Close()
		senders.Wait()
		<-closed
		peers.Wait()
		maps.Copy(k.ends, k.handled)
		for i, c := range k.conns {
			d, ok := k.ends[c]
			if !ok {
				t.Errorf("connection %d has not ended", i)
				continue
			}
			checkReport(t, c, d, false)
			if n := uint64(len(k.accepted[c])); d.Report.AcceptedMessages != n {
				t.Errorf("connection %d: %d accepted, its report says %d", i, n, d.Report.AcceptedMessages)
			}
			all, got, left := bySender(k.accepted[c]), bySender(k.got[c]), bySender(unsent(d.Report))
			n := 0
			for name, a := range all {
				g, l := got[name], left[name]
				n += len(g)
				if len(g)+len(l) > len(a) || !slices.Equal(a[:len(g)], g) || !slices.Equal(a[len(a)-len(l):], l) {
					t.Errorf("connection %d accepted %d of %s, got %d, unsent %d: not the first and the last", i, len(a), name, len(g), len(l))
				}
			}
			over, last := make(map[string]bool), ""
			for _, m := range k.got[c] {
				_, run, _ := strings.Cut(m, "run=")
				if run != last {
					over[last] = true
				}
				if last = run; run != "" && over[run] {
					t.Errorf("connection %d: something came within the run of %s", i, run)
				}
			}
			if n != len(k.got[c]) || flushed && d.Report.UnsentMessages == 0 && !d.Report.Cut && d.Report.Unacked == 0 && n != len(k.accepted[c]) {
				t.Errorf("connection %d accepted %d messages, and got %d, %d of them accepted", i, len(k.accepted[c]), len(k.got[c]), n)
			}
		}
	})
}

// bySender parts messages by who has sent them.
func bySender(msgs []string) map[string][]string {
	m := make(map[string][]string)
	for _, s := range msgs {
		name, _, _ := strings.Cut(s, ":")
		m[name] = append(m[name], s)
	}
	return m
}

// slow reads with a pause before each Read.
type slow struct {
	p     *memnet.End
	pause time.Duration
}

func (s slow) Read(p []byte) (int, error) {
	sleepFor(s.pause)
	return s.p.Read(p)
}

// A burst of broadcasts fills a queue as far as the same messages one at a time, and
// not beyond; and comes to nobody within a message from a reader.
func TestBurstOfBroadcastsKeepsTheLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit, size = 40_000, 500
		r := newRoom(t, &sockhub.Options{ConnOutbound: limit, MaxConns: 16, WriteTimeout: -1}, nil)
		var conns []*sockhub.Conn
		for i := range 16 {
			var lo sockhub.ListenOptions
			if i == 15 {
				lo.ConnOutbound = 10 << 20 // so that it is not for want of room
			}
			c, _ := r.serve(stuck, &lo)
			conns = append(conns, c)
			c.TrySend([]byte("being written"))
		}
		fed := conns[15]
		go fed.SendFrom(t.Context(), 1<<20, io.MultiReader(bytes.NewReader(make([]byte, 300_000)), blocks{t.Context()}))
		synctest.Wait()
		accepted := 0
		for range 100 {
			n, err := r.Broadcast(r.Conns(), make([]byte, size))
			accepted += n
			var be *sockhub.BroadcastError
			if !errors.As(err, &be) || be.Refused[len(be.Refused)-1].Conn != fed || n+len(be.Refused) != len(conns) {
				t.Fatalf("%d accepted, %v", n, err)
			}
		}
		first := int64(len("being written") + sockhub.MessageCharge)
		each := (limit - first + size + sockhub.MessageCharge - 1) / (size + sockhub.MessageCharge)
		if want := int(each) * (len(conns) - 1); accepted != want {
			t.Errorf("%d accepted, want %d", accepted, want)
		}
		for _, c := range conns[:15] {
			if q := c.Stats().QueuedOut; q != first+each*(size+sockhub.MessageCharge) {
				t.Errorf("%d bytes queued", q)
			}
		}
	})
}

// blocks is a reader that has nothing until the end of a context.
type blocks struct{ ctx context.Context }

func (b blocks) Read([]byte) (int, error) {
	<-b.ctx.Done()
	return 0, b.ctx.Err()
}

// What an iterator yielded before it panicked has the message, also as the
// repetition of another broadcast.
func TestBroadcastWhoseIteratorPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, nil, nil)
		var (
			conns []*sockhub.Conn
			peers []*memnet.End
		)
		for range 12 {
			c, p := r.serve(nil, nil)
			conns, peers = append(conns, c), append(peers, p)
		}
		for k := range 5 {
			func() {
				defer func() { recover() }()
				r.Broadcast(func(yield func(*sockhub.Conn) bool) {
					for i, c := range conns {
						if k == 3 && i == 10 {
							panic("the iterator's")
						}
						yield(c)
					}
				}, fmt.Append(nil, k))
			}()
		}
		for i, p := range peers {
			want := frames("0", "1", "2", "3", "4")
			if i >= 10 {
				want = frames("0", "1", "2", "4")
			}
			expect(t, p, want)
		}
	})
}

// What a report tells of is the caller's, also what was broadcast to others at once.
func TestUnsentOfABurstIsTheCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, &sockhub.Options{WriteTimeout: -1, MaxConns: 64}, nil)
		var (
			conns []*sockhub.Conn
			peers []*memnet.End
		)
		for range 8 {
			c, p := r.serve(stuck, nil)
			c.TrySend([]byte("being written"))
			conns, peers = append(conns, c), append(peers, p)
		}
		r.take()
		for range 5 {
			if n, err := r.Broadcast(slices.Values(conns), []byte("broadcast")); n != len(conns) {
				t.Fatal(n, err)
			}
		}
		conns[6].Close()
		for m := range r.endOf(conns[6]).Report.Unsent() {
			copy(m, "overwritten")
		}
		conns[7].Finish()
		synctest.Wait()
		got, _, _ := readAll(peers[7])
		for _, m := range got[1:] {
			if string(m) != "broadcast" {
				t.Fatalf("got %q", texts(got))
			}
		}
	})
}

// A peer that takes nothing costs about as much memory as it is charged for,
// whatever way its messages came.
func TestSlowPeerCostsWhatItIsCharged(t *testing.T) {
	large := make([]byte, 2500) // is referred to
	for name, send := range map[string]func(slow *sockhub.Conn, burst func()) error{
		"bursts": func(_ *sockhub.Conn, burst func()) error {
			burst()
			return nil
		},
		"bursts, and one alone": func(slow *sockhub.Conn, burst func()) error {
			burst()
			return slow.TrySend([]byte{1})
		},
		"SendMany of one": func(slow *sockhub.Conn, _ func()) error {
			_, err := slow.SendMany(t.Context(), slices.Values([][]byte{{1}}))
			return err
		},
		"SendMany of one small and one large": func(slow *sockhub.Conn, _ func()) error {
			_, err := slow.SendMany(t.Context(), slices.Values([][]byte{{1}, bytes.Clone(large)}))
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRoom(t, &sockhub.Options{MaxConns: 64, ConnOutbound: 16 << 20}, nil)
				var conns []*sockhub.Conn
				for range 8 {
					c, p := r.serve(nil, nil)
					conns = append(conns, c)
					go io.Copy(io.Discard, p)
				}
				slow, _ := r.serve(stuck, nil)
				conns = append(conns, slow)
				slow.TrySend([]byte("being written"))
				r.take()
				synctest.Wait()
				heap := func() int64 {
					runtime.GC()
					runtime.GC() // what pools hold goes with the second
					var m runtime.MemStats
					runtime.ReadMemStats(&m)
					return int64(m.HeapAlloc)
				}
				burst := func() {
					for range 3 {
						if n, err := r.Broadcast(slices.Values(conns), []byte{1}); n != len(conns) {
							t.Fatal(n, err)
						}
					}
				}
				before := heap()
				for range 3_000 {
					if err := send(slow, burst); err != nil {
						t.Fatal(err)
					}
					synctest.Wait()
				}
				if more, charged := heap()-before, slow.Stats().QueuedOut; more > 3*charged {
					t.Errorf("%d bytes of memory for a queue that is charged %d", more, charged)
				}
				runtime.KeepAlive(conns)
			})
		})
	}
}

// A broadcast in a burst is for whom its own iterator yields, however little that differs
// from the one before.
func TestBroadcastToOthersInABurst(t *testing.T) {
	const conns = 12
	all := make([]int, conns)
	for i := range all {
		all[i] = i
	}
	swapped := slices.Clone(all)
	swapped[8], swapped[9] = swapped[9], swapped[8]
	for name, to := range map[string][]int{
		"fewer":         all[:10],
		"nobody":        {},
		"without one":   slices.Delete(slices.Clone(all), 6, 7),
		"not the first": all[1:],
		"another order": swapped,
		"one twice":     append(slices.Clone(all), 5),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRoom(t, &sockhub.Options{WriteTimeout: -1, MaxConns: 64}, nil)
				var (
					cs    []*sockhub.Conn
					peers []*memnet.End
					want  [conns][]string
				)
				for range conns {
					c, p := r.serve(stuck, nil)
					c.TrySend([]byte("being written"))
					cs, peers = append(cs, c), append(peers, p)
				}
				r.take()
				broadcast := func(m string, to []int) {
					n, err := r.Broadcast(func(yield func(*sockhub.Conn) bool) {
						for _, i := range to {
							yield(cs[i])
						}
					}, []byte(m))
					if n != len(to) || err != nil {
						t.Errorf("%s: %d accepted of %d, %v", m, n, len(to), err)
					}
					for _, i := range to {
						want[i] = append(want[i], m)
					}
				}
				for _, m := range []string{"1", "2", "3", "4"} {
					broadcast(m, all)
				}
				broadcast("other", to)
				broadcast("5", all)
				for i, c := range cs {
					c.Finish()
					got, _, _ := readAll(peers[i])
					if got := texts(got)[1:]; !slices.Equal(got, want[i]) {
						t.Errorf("%d got %q, want %q", i, got, want[i])
					}
				}
			})
		})
	}
}

// In a burst too, a broadcast is refused where a Send is, and is in the form that the
// connection has.
func TestBroadcastInABurstIsRefusedWhereASendIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, &sockhub.Options{WriteTimeout: -1, MaxConns: 64}, nil)
		var (
			conns []*sockhub.Conn
			peers []*memnet.End
		)
		for i := range 12 {
			lo := &sockhub.ListenOptions{}
			switch i {
			case 7:
				lo.MaxMessage = 13
			case 8:
				lo.Mode = sockhub.Raw
			case 9:
				lo.Framing = sockhub.LengthPrefix(4, binary.BigEndian)
			}
			c, p := r.serve(stuck, lo)
			c.TrySend([]byte("being written"))
			conns, peers = append(conns, c), append(peers, p)
		}
		r.take()
		conns[6].Finish()
		held := make(chan struct{})
		run := async(func() (int, error) {
			return conns[10].SendMany(t.Context(), func(yield func([]byte) bool) {
				yield(make([]byte, 300_000))
				yield(make([]byte, 10))
				<-held
			})
		})
		waits(t, run)
		const rounds = 5
		for range rounds {
			n, err := r.Broadcast(slices.Values(conns), []byte("the broadcast"))
			var be *sockhub.BroadcastError
			if !errors.As(err, &be) || n != 10 || len(be.Refused) != 2 {
				t.Fatalf("%d accepted, %v", n, err)
			}
			if !errors.Is(be.Refused[0].Err, sockhub.ErrClosed) || be.Refused[0].Conn != conns[6] {
				t.Error(be.Refused[0])
			}
			if !errors.Is(be.Refused[1].Err, sockhub.ErrBackpressure) || be.Refused[1].Conn != conns[10] {
				t.Error(be.Refused[1])
			}
		}
		for range rounds {
			n, err := r.Broadcast(slices.Values(conns), []byte("longer than 13 bytes"))
			var be *sockhub.BroadcastError
			if !errors.As(err, &be) || n != 9 || len(be.Refused) != 3 || !errors.Is(be.Refused[1].Err, sockhub.ErrMessageTooLarge) {
				t.Fatalf("%d accepted, %v", n, err)
			}
		}
		close(held)
		for _, i := range []int{8, 9} {
			conns[i].Finish()
			var want []byte
			for _, m := range append([]string{"being written"}, append(slices.Repeat([]string{"the broadcast"}, rounds), slices.Repeat([]string{"longer than 13 bytes"}, rounds)...)...) {
				if i == 9 {
					want = binary.BigEndian.AppendUint32(want, uint32(len(m)))
				}
				want = append(want, m...)
			}
			if got, _ := io.ReadAll(peers[i]); !bytes.Equal(got, want) {
				t.Errorf("%d got %q", i, got)
			}
		}
	})
}

// What a burst queues is within the hub's budget.
func TestBurstOfBroadcastsKeepsTheBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit, conns, maxConns, size = 256 << 10, 16, 64, 1500
		r := newRoom(t, &sockhub.Options{OutboundLimit: limit, MaxConns: maxConns, MaxMessage: 4 << 10, WriteTimeout: -1}, nil)
		for range conns {
			c, _ := r.serve(stuck, nil)
			c.TrySend([]byte("being written"))
		}
		for range 200 {
			r.Broadcast(r.Conns(), make([]byte, size))
		}
		const most = limit/2 + conns*(limit/2/maxConns)
		if q := r.Stats().QueuedOut; q > most || q < limit/3 {
			t.Errorf("%d bytes queued, %d is the most", q, most)
		}
	})
}
