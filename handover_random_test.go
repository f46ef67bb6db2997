package sockhub_test

// The subject of handover_test.go, at random.

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
)

// TestHandoverAtRandom gives connections from Events to Handlers and back at any
// moment, over faulty transports and with little room everywhere, while their peers
// send, Handlers answer, and others send too. Each message of a peer's has to come
// once, in order for each who receives; and each that was accepted for a peer has to
// arrive, in the order of its sender, or to be in the report.
func TestHandoverAtRandom(t *testing.T) {
	eachBubble(t, 100, func(t *testing.T, seed uint64) { handOverAtRandom(t, rand.New(rand.NewPCG(seed, 6))) })
}

func handOverAtRandom(t *testing.T, rng *rand.Rand) {
	const conns, messages = 3, 80
	o := &sockhub.Options{
		MaxMessage: 8000, StreamOver: []int64{0, 1500}[rng.IntN(2)], ReuseBuffers: rng.IntN(2) == 0,
		ConnInbound: 200 + rng.Int64N(3000), ConnOutbound: 200 + rng.Int64N(5000), InboundLimit: 150_000 + rng.Int64N(20_000),
		OutboundLimit: []int64{0, 20_000 + rng.Int64N(40_000)}[rng.IntN(2)], MaxConns: 8, WriteTimeout: -1, FrameTimeout: -1,
	}
	hub := openHub(t, o)
	v := &handovers{t: t, last: make(map[any]int), got: make(map[*sockhub.Conn][]string),
		accepted: make(map[*sockhub.Conn][]string), ended: make(map[*sockhub.Conn]sockhub.Disconnection)}
	var received sync.WaitGroup
	receiving := fork(rng)
	received.Go(func() { v.receive(hub, receiving) })

	var work sync.WaitGroup
	want := make(map[*sockhub.Conn][]string)
	wire := make(map[*sockhub.Conn]*[][]byte)
	for i := range conns {
		mo := &memnet.Options{Seed: rng.Uint64(), Buffer: 1 + rng.IntN(4096), Unix: rng.IntN(2) == 0, Faults: memnet.Faults{
			ShortRead: 0.2, ShortWrite: 0.2, Spurious: 0.1, Blind: 0.2, Delay: 0.2, Stall: 0.05, MaxWait: 20 * time.Millisecond}}
		var lo sockhub.ListenOptions
		if rng.IntN(2) == 0 {
			h := v.handler(rng)
			lo.Handler = func(*sockhub.Conn) sockhub.Handler { return h }
		}
		c, p := serveMemory(t, hub, mo, lo)
		for k := range messages {
			want[c] = append(want[c], fmt.Sprint("peer:", k, ":")+strings.Repeat("p", rng.IntN(1+rng.IntN(4000))))
		}
		all, out := want[c], new([][]byte)
		wire[c] = out
		sends, reads, others, gives := fork(rng), fork(rng), fork(rng), fork(rng)
		work.Go(func() {
			for _, m := range all {
				p.Write(frame(m))
				rest(sends, 4, 10)
			}
			p.CloseWrite()
		})
		work.Go(func() {
			msgs, cut, err := readAll(&unhurried{p, reads})
			if *out = msgs; len(cut) > 0 || err != nil {
				t.Errorf("%v: %d bytes of a message, %v", c, len(cut), err)
			}
		})
		work.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			for _, m := range sendAtRandom(t, ctx, c, i, others, time.Millisecond) {
				v.accept(c, m)
			}
		})
		work.Go(func() {
			for range 20 {
				rest(gives, 1, 60)
				if gives.IntN(2) == 0 {
					c.SetHandler(nil)
				} else {
					c.SetHandler(v.handler(gives))
				}
			}
		})
	}
	for c := range want {
		select {
		case <-c.Context().Done():
		case <-time.After(24 * time.Hour):
			t.Errorf("stands still: %+v", c.Stats())
			c.Close()
		}
	}
	work.Wait()
	synctest.Wait()
	if s := hub.Stats(); s.QueuedIn != 0 || s.QueuedOut != 0 || s.Paused != 0 {
		t.Errorf("something is left: %+v", s)
	}
	hub.Close()
	received.Wait()
	for c := range want {
		v.check(c, want[c], texts(*wire[c]))
	}
}

// fork makes a generator for another goroutine.
func fork(rng *rand.Rand) *rand.Rand { return rand.New(rand.NewPCG(rng.Uint64(), 0)) }

// rest waits for up to so many milliseconds, once in so many times.
func rest(rng *rand.Rand, times, ms int) {
	if rng.IntN(times) == 0 {
		sleepFor(time.Duration(rng.IntN(ms)) * time.Millisecond)
	}
}

// unhurried reads a little at a time.
type unhurried struct {
	from io.Reader
	rng  *rand.Rand
}

func (u *unhurried) Read(p []byte) (int, error) {
	rest(u.rng, 10, 20)
	return u.from.Read(p[:min(len(p), 1+u.rng.IntN(3000))])
}

// handovers is what all who receive and answer write down.
type handovers struct {
	t *testing.T

	mu       sync.Mutex
	handlers int
	last     map[any]int                // number of the last message, by who received it
	got      map[*sockhub.Conn][]string // the peer's messages
	accepted map[*sockhub.Conn][]string // for the peer
	ended    map[*sockhub.Conn]sockhub.Disconnection
}

// note writes down a message that somebody has received.
func (v *handovers) note(who any, c *sockhub.Conn, m []byte) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.got[c] = append(v.got[c], string(m))
	k := number(string(m))
	if before, ok := v.last[who]; ok && k <= before {
		v.t.Errorf("%v: %d comes after %d", c, k, before)
	}
	v.last[who] = k
}

func (v *handovers) accept(c *sockhub.Conn, m string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.accepted[c] = append(v.accepted[c], m)
}

func (v *handovers) end(d sockhub.Disconnection) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.ended[d.Conn] = d
}

// number is the second part of a message, after that of its sender.
func number(m string) (k int) {
	if parts := strings.SplitN(m, ":", 3); len(parts) == 3 {
		fmt.Sscan(parts[1], &k)
	}
	return k
}

// receive is the program's loop.
func (v *handovers) receive(hub *sockhub.Hub, rng *rand.Rand) {
	for b := range hub.Events() {
		for _, d := range b.Received {
			for _, m := range d.Messages {
				v.note(d.Conn, d.Conn, m)
			}
			if d.Stream != nil {
				v.read(d.Conn, d.Conn, d.Stream)
			}
		}
		for _, d := range b.Disconnected {
			v.end(d)
		}
		b.Release()
		rest(rng, 3, 40)
	}
}

func (v *handovers) read(who any, c *sockhub.Conn, s *sockhub.Stream) {
	m, err := io.ReadAll(s)
	if err != nil {
		v.t.Errorf("%v: %v", c, err)
	}
	v.note(who, c, m)
}

// check compares what was written down with what happened.
func (v *handovers) check(c *sockhub.Conn, sent, wire []string) {
	t := v.t
	t.Helper()
	got := v.got[c]
	slices.Sort(got)
	slices.Sort(sent)
	if !slices.Equal(got, sent) {
		t.Errorf("%v: received %d messages of %d, or others", c, len(got), len(sent))
	}
	d := v.ended[c]
	if checkReport(t, c, d, false); d.Err != io.EOF || d.Report.Cut {
		t.Errorf("%v: %v, %+v", c, d.Err, d.Report)
	}
	last := make(map[string]int)
	for _, m := range wire {
		from, _, _ := strings.Cut(m, ":")
		if k := number(m); k <= last[from] {
			t.Errorf("%v: %d of sender %s arrives after %d", c, k, from, last[from])
		} else {
			last[from] = k
		}
	}
	all, accepted := append(wire, unsent(d.Report)...), v.accepted[c]
	slices.Sort(all)
	slices.Sort(accepted)
	if !slices.Equal(all, accepted) {
		t.Errorf("%v: %d were accepted from %d, %d arrived, %+v", c, len(accepted), len(last), len(wire), d.Report)
	}
}

// handler makes another Handler, which one connection will have.
func (v *handovers) handler(rng *rand.Rand) sockhub.Handler {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.handlers++
	return &passer{v: v, rng: fork(rng), name: fmt.Sprint("handler ", v.handlers)}
}

// passer answers at random, and passes its connection on now and then.
type passer struct {
	v    *handovers
	rng  *rand.Rand
	name string
	k    int
}

func (p *passer) Message(r *sockhub.Reply, m []byte) {
	p.v.note(p, r.Conn(), m)
	p.answer(r)
	rest(p.rng, 10, 20)
}

func (p *passer) Stream(r *sockhub.Reply, s *sockhub.Stream) {
	p.v.read(p, r.Conn(), s)
	p.answer(r)
}

func (p *passer) Drained(r *sockhub.Reply) {
	if p.rng.IntN(3) == 0 {
		p.answer(r)
	}
}

func (p *passer) Disconnected(d sockhub.Disconnection) { p.v.end(d) }

func (p *passer) answer(r *sockhub.Reply) {
	for range p.rng.IntN(3) {
		p.k++
		m := fmt.Sprint(p.name, ":", p.k, ":") + strings.Repeat("a", p.rng.IntN(1+p.rng.IntN(4000)))
		var err error
		if p.rng.IntN(15) == 0 {
			err = r.SendFrom(uint64(len(m)), io.NopCloser(&unhurried{strings.NewReader(m), fork(p.rng)}))
		} else {
			err = r.Send([]byte(m))
		}
		if err == nil {
			p.v.accept(r.Conn(), m)
		}
		if p.rng.IntN(8) == 0 {
			r.Flush()
		}
	}
	switch p.rng.IntN(40) {
	case 0:
		r.SetHandler(nil)
	case 1:
		r.SetHandler(p.v.handler(p.rng))
	}
}

// TestRawHandoverAtRandom has a Handler switch to raw bytes and back where its peer says
// so, while its connection is given to Events and withdrawn again, of which nobody receives
// meanwhile. It gets all of what the peer has sent, in order, and then the end.
func TestRawHandoverAtRandom(t *testing.T) {
	eachBubble(t, 150, func(t *testing.T, seed uint64) {
		rng := rand.New(rand.NewPCG(seed, 9))
		hub := openHub(t, &sockhub.Options{
			MaxMessage: 8000, StreamOver: []int64{0, 700}[rng.IntN(2)], ReuseBuffers: rng.IntN(2) == 0,
			ConnInbound: 200 + rng.Int64N(6000), ConnOutbound: 100 + rng.Int64N(2000), InboundLimit: 150_000,
			WriteTimeout: -1, FrameTimeout: -1,
		})
		c, p := serveMemory(t, hub, &memnet.Options{Seed: rng.Uint64(), Buffer: 1 + rng.IntN(4096), Unix: rng.IntN(2) == 0, Faults: memnet.Faults{
			ShortRead: 0.2, ShortWrite: 0.2, Spurious: 0.1, Blind: 0.2, Delay: 0.2, Stall: 0.05, MaxWait: 20 * time.Millisecond}}, sockhub.ListenOptions{})
		<-hub.Events()

		var wire []byte // what is raw in it could be messages too, as which it waits for the Handler
		some := func() []byte { return frame(strings.Repeat("m", rng.IntN(1200))) }
		for range 30 {
			var raw []byte
			for range max(0, rng.IntN(9)-4) {
				raw = append(raw, some()...)
			}
			if len(raw) > 0 {
				wire = append(append(wire, frame(fmt.Sprint("raw ", len(raw)))...), raw...)
			}
			wire = append(wire, some()...)
		}
		var work sync.WaitGroup
		sends, reads, waits := fork(rng), fork(rng), fork(rng)
		work.Go(func() {
			for w := wire; len(w) > 0; rest(sends, 3, 20) {
				n := min(len(w), 1+sends.IntN(3000))
				p.Write(w[:n])
				w = w[n:]
			}
			p.CloseWrite()
		})
		work.Go(func() { io.Copy(io.Discard, &unhurried{p, reads}) })
		h := &rawSwitcher{rng: fork(rng)}
		h.giveBack = func(r *sockhub.Reply) {
			r.SetHandler(nil)
			work.Go(func() {
				sleepFor(time.Duration(waits.IntN(60)) * time.Millisecond)
				c.SetHandler(h)
			})
		}
		c.SetHandler(h)
		select {
		case <-c.Context().Done():
		case <-time.After(24 * time.Hour):
			t.Errorf("stands still: %+v", c.Stats())
			c.Close()
		}
		work.Wait()
		synctest.Wait()
		if string(h.got) != string(wire)+" ended" || h.end.Err != io.EOF {
			t.Errorf("%d bytes of %d, or others; %v", len(h.got), len(wire)+len(" ended"), h.end.Err)
		}
		checkReport(t, c, h.end, false)
	})
}

// rawSwitcher notes what comes as it is on the wire.
type rawSwitcher struct {
	rng      *rand.Rand
	giveBack func(*sockhub.Reply)
	raw      int // so many bytes are
	got      []byte
	end      sockhub.Disconnection
}

func (h *rawSwitcher) Message(r *sockhub.Reply, m []byte) {
	switch {
	case h.raw == 0:
		h.got = append(h.got, frame(string(m))...)
		if _, err := fmt.Sscanf(string(m), "raw %d", &h.raw); err == nil {
			r.SetRaw(true)
		}
	case len(m) >= h.raw:
		h.got = append(h.got, m[:h.raw]...)
		r.Unread(m[h.raw:])
		r.SetRaw(false)
		h.raw = 0
	default:
		n := []int{len(m), h.rng.IntN(len(m) + 1)}[h.rng.IntN(2)]
		h.got = append(h.got, m[:n]...)
		r.Unread(m[n:])
		h.raw -= n
	}
	h.answer(r)
}

func (h *rawSwitcher) Stream(r *sockhub.Reply, s *sockhub.Stream) {
	m, _ := io.ReadAll(s)
	h.got = append(h.got, frame(string(m))...)
	h.answer(r)
}

func (h *rawSwitcher) answer(r *sockhub.Reply) {
	switch h.rng.IntN(6) {
	case 0:
		r.Send(make([]byte, h.rng.IntN(300)))
	case 1:
		r.Send(make([]byte, h.rng.IntN(300)))
		r.Flush()
	case 2:
		if h.raw == 0 {
			h.giveBack(r)
		}
	case 3:
		rest(h.rng, 4, 20)
	}
}

func (h *rawSwitcher) Drained(*sockhub.Reply)               {}
func (h *rawSwitcher) Ended(*sockhub.Reply)                 { h.got = append(h.got, " ended"...) }
func (h *rawSwitcher) Disconnected(d sockhub.Disconnection) { h.end = d }
