package sockhub_test

// Everything that a connection can do, at once.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
)

// TestStormAtRandom has connections of a hub with little room everywhere live through all
// that there is at the same time: Handlers and Events in turn, Streams, all ways to send and
// to end, peers that read slowly or never, Shutdown and Close. Each message that was accepted
// arrives once or is told of in the report, each that was received reaches one receiver, each
// connection ends once, and nothing is left in a budget.
func TestStormAtRandom(t *testing.T) {
	eachBubble(t, 25, func(t *testing.T, seed uint64) {
		s := &storm{t: t, rng: rand.New(rand.NewPCG(seed, 11)), of: make(map[*sockhub.Conn]*ledger)}
		s.run()
	})
}

// storm is one hub and what all have written down of its connections.
type storm struct {
	t      *testing.T
	rng    *rand.Rand
	hub    *sockhub.Hub
	budget *sockhub.Budget
	o      *sockhub.Options
	panics bool
	closed bool

	mu sync.Mutex
	of map[*sockhub.Conn]*ledger
	n  int // handlers
}

// ledger is one connection's.
type ledger struct {
	announced int
	ended     []sockhub.Disconnection
	told      []sockhub.Disconnection // to Handlers
	got       []int                   // numbers of the peer's messages
	last      map[any]int
	streams   int // of got, read from Streams; or tried
	accepted  []string
	doubtful  int // calls that have failed, and may have left a cut message
	noUnsent  map[string]bool
	raw       bool
	switched  bool
	wireGot   []byte
	endedSeen int
}

func (s *storm) ledger(c *sockhub.Conn) *ledger {
	l := s.of[c]
	if l == nil {
		l = &ledger{last: make(map[any]int), noUnsent: make(map[string]bool)}
		s.of[c] = l
	}
	return l
}

func (s *storm) with(c *sockhub.Conn, f func(*ledger)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s.ledger(c))
}

func (s *storm) note(who any, c *sockhub.Conn, m string) {
	s.with(c, func(l *ledger) {
		if l.raw {
			l.wireGot = append(l.wireGot, m...)
			return
		}
		k := number(m)
		if before, ok := l.last[who]; ok && k <= before {
			s.t.Errorf("%v: %d comes after %d", c, k, before)
		}
		l.last[who] = k
		l.got = append(l.got, k)
	})
}

func (s *storm) accept(c *sockhub.Conn, ms ...string) {
	s.with(c, func(l *ledger) { l.accepted = append(l.accepted, ms...) })
}

func pick[T any](rng *rand.Rand, of ...T) T { return of[rng.IntN(len(of))] }

func (s *storm) run() {
	t, rng := s.t, s.rng
	in, out := 150_000+rng.Int64N(30_000), pick(rng, int64(1<<20), 20_000+rng.Int64N(40_000))
	s.budget = sockhub.NewBudget(in, out, pick(rng, int64(0), 300_000))
	s.o = &sockhub.Options{
		Budget: s.budget, MaxMessage: 8000, StreamOver: pick(rng, int64(0), 1500), ReuseBuffers: rng.IntN(2) == 0,
		ConnInbound: 100 + rng.Int64N(3000), ConnOutbound: 100 + rng.Int64N(5000),
		MaxConns: 4 + rng.IntN(8), WriteTimeout: pick(rng, time.Duration(-1), 300*time.Millisecond), FrameTimeout: pick(rng, time.Duration(-1), time.Second),
		Linger: pick(rng, time.Duration(-1), 20*time.Millisecond, 300*time.Millisecond), Overflow: sockhub.OverflowPolicy(rng.IntN(5)),
		Logger: slog.New(slog.DiscardHandler),
	}
	s.panics = rng.IntN(5) == 0
	s.hub = openHub(t, s.o)
	var received sync.WaitGroup
	rec := fork(rng)
	received.Go(func() { s.receive(rec) })

	var work sync.WaitGroup
	type end struct {
		c     *sockhub.Conn
		sent  *int
		wire  *[]byte
		rerr  *error
		whole *bool // the peer has sent all and finished in order
		bytes *[]byte
	}
	var ends []end
	for i := range 1 + rng.IntN(4) {
		ours, peer := s.pair(rng)
		lo := &sockhub.ListenOptions{Mode: sockhub.Anonymous, HalfOpen: rng.IntN(2) == 0}
		raw := rng.IntN(5) == 0
		if raw {
			lo.Mode = sockhub.Raw
		}
		fromOptions := rng.IntN(2) == 0 || raw
		if fromOptions {
			h := s.handler(rng)
			lo.Handler = func(c *sockhub.Conn) sockhub.Handler {
				s.with(c, func(l *ledger) { l.raw = raw })
				return h
			}
		}
		var c *sockhub.Conn
		var err error
		if rng.IntN(2) == 0 {
			c, err = s.hub.ServeConn(t.Context(), ours, lo)
		} else {
			c, err = s.hub.Attach(t.Context(), ours, &sockhub.DialOptions{Mode: lo.Mode, HalfOpen: lo.HalfOpen, Handler: lo.Handler})
		}
		if err != nil {
			if !errors.Is(err, sockhub.ErrTooManyConns) && !errors.Is(err, sockhub.ErrMemoryLimit) {
				t.Error(err)
			}
			peer.Close()
			continue
		}
		e := end{c, new(int), new([]byte), new(error), new(bool), new([]byte)}
		ends = append(ends, e)
		sends, reads := fork(rng), fork(rng)
		work.Go(func() { *e.sent, *e.bytes, *e.whole = s.peerSends(peer, raw, sends) })
		work.Go(func() { *e.wire, *e.rerr = s.peerReads(peer, reads) })
		for j := range rng.IntN(3) {
			own := fork(rng)
			work.Go(func() { s.sends(c, fmt.Sprint("s", i, j), own) })
		}
		if rng.IntN(3) > 0 {
			own := fork(rng)
			work.Go(func() { s.controls(c, own, raw) })
		}
	}
	sleepFor(time.Duration(rng.IntN(600)) * time.Millisecond)
	how := rng.IntN(4)
	s.closed = how == 1 || how == 3
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(1+rng.IntN(2000))*time.Millisecond)
	defer cancel()
	switch how {
	case 0: // each ends by itself
		late, cancel := context.WithTimeout(context.Background(), time.Hour)
		defer cancel()
		for _, e := range ends {
			select {
			case <-e.c.Context().Done():
			case <-late.Done():
				e.c.Close()
			}
		}
	case 1:
		s.hub.Shutdown(ctx)
	case 2:
		for _, e := range ends {
			e.c.Finish()
		}
		<-ctx.Done()
		for _, e := range ends {
			e.c.Close()
		}
	case 3:
		s.hub.Close()
	}
	// A call of a Handler may be under way, or a Stream be read.
	work.Wait()
	sleepFor(time.Minute)
	synctest.Wait()
	if how != 1 && how != 3 {
		for _, e := range ends {
			<-e.c.Context().Done()
		}
		sleepFor(time.Second)
		synctest.Wait()
		if held := s.budget.Held() + s.hub.Held(); held != "" {
			t.Errorf("held: %s", held)
		}
		st := s.hub.Stats()
		if st.QueuedIn != 0 || st.QueuedOut != 0 || st.Paused != 0 || st.Conns != 0 || st.Connecting != 0 || st.Accepted+st.Dialed != st.Disconnected || st.Disconnected != uint64(len(ends)) {
			t.Errorf("%+v", st)
		}
	}
	s.hub.Close()
	received.Wait()
	sleepFor(time.Minute)
	synctest.Wait()
	if held := s.budget.Held(); held != "" {
		t.Errorf("held after Close: %s", held)
	}
	var msgsIn, msgsOut uint64
	for _, e := range ends {
		s.check(e.c, *e.sent, *e.bytes, *e.wire, *e.rerr, *e.whole)
		st := e.c.Stats()
		msgsIn += st.MessagesIn
		msgsOut += st.MessagesOut
	}
	if st := s.hub.Stats(); st.MessagesIn != msgsIn || st.MessagesOut != msgsOut {
		t.Errorf("%d in, %d out: %+v", msgsIn, msgsOut, st)
	}
}

// pair is a connection and the peer's end.
func (s *storm) pair(rng *rand.Rand) (ours, peer net.Conn) {
	if rng.IntN(4) == 0 {
		return net.Pipe()
	}
	f := memnet.Faults{}
	if rng.IntN(2) == 0 {
		f = memnet.Faults{ShortRead: 0.2, ShortWrite: 0.2, Spurious: 0.1, Blind: 0.2, Delay: 0.2, Stall: 0.05, MaxWait: 20 * time.Millisecond}
	}
	return memnet.Pair(&memnet.Options{Seed: rng.Uint64(), Buffer: 1 + rng.IntN(4096), Unix: rng.IntN(2) == 0,
		NoWriteNow: rng.IntN(4) == 0, NoCloseWrite: rng.IntN(4) == 0, Faults: f})
}

func (s *storm) peerSends(p net.Conn, raw bool, rng *rand.Rand) (sent int, all []byte, whole bool) {
	n := rng.IntN(100)
	for k := range n {
		m := fmt.Sprint("p:", k, ":") + strings.Repeat("p", rng.IntN(1+rng.IntN(4000)))
		w := frame(m)
		if k, err := p.Write(w); err != nil {
			all = append(all, w[:k]...)
			if k == len(w) {
				sent++
			}
			return sent, all, false
		}
		all = append(all, w...)
		sent++
		rest(rng, 6, 10)
	}
	switch rng.IntN(6) {
	case 0:
		p.Write(frame("p:100000:cut off")[:1+rng.IntN(10)])
		p.Close()
	case 1:
		p.Close()
	case 2:
		if e, ok := p.(*memnet.End); ok {
			e.Reset()
		}
		p.Close()
	case 3, 4:
		if e, ok := p.(*memnet.End); ok {
			e.CloseWrite()
			return sent, all, true
		}
		p.Close()
	default:
		return sent, all, true
	}
	return sent, all, false
}

func (s *storm) peerReads(p net.Conn, rng *rand.Rand) ([]byte, error) {
	defer p.Close()
	var from io.Reader = &unhurried{p, rng}
	switch rng.IntN(4) {
	case 0: // never, or not for long
		from = io.LimitReader(from, rng.Int64N(20_000))
		w, _ := io.ReadAll(from)
		sleepFor(time.Duration(rng.IntN(3000)) * time.Millisecond)
		return w, errors.New("left")
	case 1:
		from = p
	}
	w, err := io.ReadAll(from)
	return w, err
}

// sends is a sender beside others.
func (s *storm) sends(c *sockhub.Conn, name string, rng *rand.Rand) {
	k := 0
	message := func() string {
		k++
		return fmt.Sprint(name, ":", k, ":") + strings.Repeat("x", rng.IntN(1+rng.IntN(3000)))
	}
	for range 5 + rng.IntN(30) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rng.IntN(1+rng.IntN(400)))*time.Millisecond)
		var err error
		m := message()
		switch rng.IntN(7) {
		case 0:
			if err = c.TrySend([]byte(m)); err == nil {
				s.accept(c, m)
			}
		case 1:
			if err = c.SendParts(ctx, []byte(m[:2]), []byte(m[2:])); err == nil {
				s.accept(c, m)
			}
		case 2, 3:
			if err = c.Send(ctx, []byte(m)); err == nil {
				s.accept(c, m)
			}
		case 4:
			var run []string
			for range rng.IntN(10) {
				run = append(run, message())
			}
			var n int
			n, err = c.SendMany(ctx, of(run...))
			s.accept(c, run[:n]...)
		case 5:
			m += strings.Repeat("f", rng.IntN(2)*rng.IntN(150_000))
			big := len(m) > 64<<10
			s.with(c, func(l *ledger) { l.noUnsent[m] = big })
			if err = c.SendFrom(ctx, uint64(len(m)), strings.NewReader(m)); err == nil {
				s.accept(c, m)
			} else {
				s.with(c, func(l *ledger) { l.doubtful++ })
			}
		case 6:
			if n, _ := s.hub.Broadcast(slices.Values([]*sockhub.Conn{c}), []byte(m)); n == 1 {
				s.accept(c, m)
			}
		}
		cancel()
		if errors.Is(err, sockhub.ErrClosed) || errors.Is(err, sockhub.ErrNotConnected) || errors.Is(err, sockhub.ErrSlowPeer) {
			if rng.IntN(2) == 0 {
				return
			}
		}
		rest(rng, 4, 30)
	}
}

// controls changes what becomes of c.
func (s *storm) controls(c *sockhub.Conn, rng *rand.Rand, raw bool) {
	for range rng.IntN(20) {
		rest(rng, 1, 60)
		switch rng.IntN(16) {
		case 0, 1, 2, 3:
			if !raw {
				c.SetHandler(nil)
				s.with(c, func(l *ledger) { l.switched = true })
			}
		case 4, 5, 6, 7:
			c.SetHandler(s.handler(rng))
			s.with(c, func(l *ledger) { l.switched = true })
		case 8, 9, 10:
			c.NotifyDrained()
		case 11:
			if rng.IntN(3) == 0 {
				c.CloseWrite()
			}
		case 12:
			if rng.IntN(4) == 0 {
				c.Finish()
			}
		case 13:
			if rng.IntN(4) == 0 {
				c.Close()
			}
		case 14:
			c.Stats()
			s.hub.Stats()
		}
	}
}

// receive is the loop over Events.
func (s *storm) receive(rng *rand.Rand) {
	var reads sync.WaitGroup
	defer reads.Wait()
	k := 0
	for b := range s.hub.Events() {
		for _, c := range slices.Concat(b.Connected, b.Unknown) {
			s.with(c, func(l *ledger) { l.announced++ })
		}
		for _, d := range b.Received {
			s.known(d.Conn, "Received")
			for _, m := range d.Messages {
				s.note(d.Conn, d.Conn, string(m))
				k++
				m := fmt.Sprint("e:", k, ":") + strings.Repeat("e", rng.IntN(1+rng.IntN(2000)))
				switch rng.IntN(6) {
				case 0, 1:
					if d.Conn.TrySend([]byte(m)) == nil {
						s.accept(d.Conn, m)
					}
				case 2:
					ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
					if d.Conn.Send(ctx, []byte(m)) == nil {
						s.accept(d.Conn, m)
					}
					cancel()
				}
			}
			if st := d.Stream; st != nil {
				own := fork(rng)
				read := func() { s.read(d.Conn, d.Conn, st, own) }
				if rng.IntN(2) == 0 {
					read()
				} else {
					reads.Go(read)
				}
			}
		}
		for _, c := range b.Drained {
			s.known(c, "Drained")
		}
		for _, c := range b.Ended {
			s.known(c, "Ended")
			s.with(c, func(l *ledger) {
				if l.endedSeen++; l.endedSeen > 1 {
					s.t.Errorf("%v: Ended again", c)
				}
			})
			if rng.IntN(4) > 0 {
				if rng.IntN(2) == 0 {
					c.Finish()
				} else {
					c.CloseWrite()
				}
			}
		}
		for _, d := range b.Disconnected {
			s.known(d.Conn, "Disconnected")
			s.with(d.Conn, func(l *ledger) { l.ended = append(l.ended, d) })
		}
		b.Release()
		rest(rng, 3, 40)
	}
}

func (s *storm) known(c *sockhub.Conn, what string) {
	s.with(c, func(l *ledger) {
		if l.announced != 1 || len(l.ended) > 0 {
			s.t.Errorf("%v: %s, announced %d times, ended %d", c, what, l.announced, len(l.ended))
		}
	})
}

// read reads a Stream, or leaves it.
func (s *storm) read(who any, c *sockhub.Conn, st *sockhub.Stream, rng *rand.Rand) {
	head := make([]byte, 20)
	rest(rng, 2, 200)
	n, _ := io.ReadFull(st, head)
	s.with(c, func(l *ledger) { l.streams++ })
	if n == len(head) {
		s.note(who, c, string(head))
		switch rng.IntN(4) {
		case 0:
			st.Close()
			return
		case 1:
			rest(rng, 1, 2000)
		}
		m, err := io.ReadAll(&unhurried{st, rng})
		if err == nil && uint64(len(m)+n) != st.Size() {
			s.t.Errorf("%v: %d bytes of a Stream of %d", c, len(m)+n, st.Size())
		}
		if strings.Trim(string(m), "p") != "" {
			s.t.Errorf("%v: the Stream has other bytes", c)
		}
	}
	st.Close()
}

func (s *storm) handler(rng *rand.Rand) *stormy {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	return &stormy{s: s, rng: fork(rng), name: fmt.Sprint("h", s.n)}
}

// stormy is a Handler that does whatever a Reply can.
type stormy struct {
	s    *storm
	rng  *rand.Rand
	name string
	k    int
	over bool
	fin  bool // the peer has
}

func (h *stormy) check(r *sockhub.Reply, what string) {
	if h.over {
		h.s.t.Errorf("%v: %s after the last call of %s", r.Conn(), what, h.name)
	}
}

func (h *stormy) Message(r *sockhub.Reply, m []byte) {
	h.check(r, "Message")
	raw := false
	h.s.with(r.Conn(), func(l *ledger) { raw = l.raw })
	if raw && h.rng.IntN(2) == 0 {
		n := h.rng.IntN(len(m) + 1)
		r.Unread(m[n:])
		m = m[:n]
	}
	h.s.note(h, r.Conn(), string(m))
	h.answer(r, raw)
	rest(h.rng, 10, 30)
}

func (h *stormy) Stream(r *sockhub.Reply, st *sockhub.Stream) {
	h.check(r, "Stream")
	h.s.read(h, r.Conn(), st, h.rng)
	h.answer(r, false)
}

func (h *stormy) Ended(r *sockhub.Reply) {
	h.check(r, "Ended")
	if h.fin {
		h.s.t.Errorf("%v: Ended again", r.Conn())
	}
	h.fin = true
	h.answer(r, true)
	if h.rng.IntN(3) == 0 {
		r.Finish()
		h.over = true
	}
}

func (h *stormy) Drained(r *sockhub.Reply) {
	h.check(r, "Drained")
	if h.rng.IntN(3) == 0 {
		h.answer(r, true)
	}
}

func (h *stormy) Disconnected(d sockhub.Disconnection) {
	h.s.with(d.Conn, func(l *ledger) {
		l.told = append(l.told, d)
	})
}

func (h *stormy) answer(r *sockhub.Reply, stay bool) {
	c := r.Conn()
	for range h.rng.IntN(4) {
		h.k++
		m := fmt.Sprint(h.name, ":", h.k, ":") + strings.Repeat("a", h.rng.IntN(1+h.rng.IntN(3000)))
		var err error
		switch h.rng.IntN(12) {
		case 0, 1:
			m += strings.Repeat("b", h.rng.IntN(2)*h.rng.IntN(150_000))
			h.s.with(c, func(l *ledger) { l.noUnsent[m] = true })
			if err = r.SendFrom(uint64(len(m)), io.NopCloser(&unhurried{strings.NewReader(m), fork(h.rng)})); err == nil {
				h.s.accept(c, m)
			}
		case 2:
			if err = r.SendParts([]byte(m[:1]), []byte(m[1:])); err == nil {
				h.s.accept(c, m)
			}
		case 3:
			var run []string
			for range h.rng.IntN(5) {
				h.k++
				run = append(run, fmt.Sprint(h.name, ":", h.k, ":")+strings.Repeat("m", h.rng.IntN(500)))
			}
			n, _ := r.SendMany(of(run...))
			h.s.accept(c, run[:n]...)
		default:
			if err = r.Send([]byte(m)); err == nil {
				h.s.accept(c, m)
			}
		}
		if h.rng.IntN(6) == 0 {
			r.Flush()
		}
	}
	switch h.rng.IntN(100) {
	case 0, 1:
		if !stay {
			h.s.with(c, func(l *ledger) { l.switched = true })
			r.SetHandler(nil)
			h.over = true
		}
	case 2, 3:
		if !stay {
			n := h.s.handler(h.rng)
			r.SetHandler(n)
			h.over = true
		}
	case 4:
		r.CloseWrite()
	case 5:
		r.Finish()
		h.over = true
	case 6:
		r.Close()
		h.over = true
	case 7:
		if h.s.panics {
			panic("of the test")
		}
	}
}

func (s *storm) check(c *sockhub.Conn, sent int, all, wire []byte, rerr error, whole bool) {
	t := s.t
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.ledger(c)
	if l.announced > 1 || len(l.ended) > l.announced || len(l.ended) < l.announced && !s.closed || len(l.told) > 1 || len(l.ended)+len(l.told) == 0 {
		t.Errorf("%v: announced %d times, ended %d, Handlers told %d", c, l.announced, len(l.ended), len(l.told))
		return
	}
	d := slices.Concat(l.ended, l.told)[0]
	r := d.Report
	balances(t, c, d)
	desc := func() string { return fmt.Sprintf("%v: %v, %+v", c, d.Err, r) }

	// What came in.
	if l.raw {
		if len(l.wireGot) > len(all)+20 || !strings.HasPrefix(string(all)+string(frame("p:100000:cut off")), string(l.wireGot)) {
			t.Errorf("%s: raw: %d bytes of %d, or others", desc(), len(l.wireGot), len(all))
		}
		if st := c.Stats(); st.BytesIn != uint64(len(l.wireGot)) {
			t.Errorf("%s: %d bytes in, and delivered %d", desc(), st.BytesIn, len(l.wireGot))
		}
	} else {
		slices.Sort(l.got)
		for i, k := range l.got {
			if k != i {
				t.Errorf("%s: received %v of %d", desc(), l.got, sent)
				break
			}
		}
		if len(l.got) > sent+min(l.streams, 1) {
			t.Errorf("%s: %d received, %d sent", desc(), len(l.got), sent)
		}
		if d.Err == io.EOF && whole && len(l.got) != sent && l.streams == 0 {
			t.Errorf("%s: %d received, %d sent", desc(), len(l.got), sent)
		}
		if st := c.Stats(); st.MessagesIn < uint64(len(l.got)) || st.MessagesIn > uint64(len(l.got)) && l.streams == 0 && !l.switched {
			t.Errorf("%s: %d messages in, and delivered %d", desc(), st.MessagesIn, len(l.got))
		}
	}

	// What went out.
	n := uint64(len(l.accepted))
	if r.AcceptedMessages != n && !(l.doubtful > 0 && r.Cut && r.AcceptedMessages == n+1) {
		t.Errorf("%s: the calls have accepted %d", desc(), n)
	}
	back := unsent(r)
	for _, m := range back {
		if l.noUnsent[m] {
			t.Errorf("%s: yields %.20q", desc(), m)
		}
	}
	if l.raw {
		if len(wire) > int(r.WrittenBytes+r.CutWritten) {
			t.Errorf("%s: %d bytes arrived", desc(), len(wire))
		}
		return
	}
	msgs, cut := parse(wire)
	arrived := texts(msgs)
	if uint64(len(arrived)) > r.WrittenMessages {
		t.Errorf("%s: %d have arrived", desc(), len(arrived))
	}
	if rerr == nil && whole && (uint64(len(arrived)) != r.WrittenMessages || (len(cut) > 8) != (r.Cut && r.CutWritten > 0)) {
		t.Errorf("%s: %d have arrived, to the end, and %d bytes", desc(), len(arrived), len(cut))
	}
	last := make(map[string]int)
	left := make(map[string]int)
	for _, m := range l.accepted {
		left[m]++
	}
	for _, m := range slices.Concat(arrived, back) {
		from, _, _ := strings.Cut(m, ":")
		if k := number(m); k <= last[from] {
			t.Errorf("%s: %d of %s after %d", desc(), k, from, last[from])
		} else {
			last[from] = k
		}
		if left[m]--; left[m] < 0 {
			t.Errorf("%s: %.20q was not accepted, or came twice", desc(), m)
		}
	}
}

func parse(w []byte) ([][]byte, []byte) {
	msgs, cut, _ := readAll(strings.NewReader(string(w)))
	return msgs, cut
}

func balances(t *testing.T, c *sockhub.Conn, d sockhub.Disconnection) {
	r := d.Report
	cut := uint64(0)
	if r.Cut {
		cut = 1
	}
	if d.Err == nil || r.AcceptedMessages != r.WrittenMessages+r.UnsentMessages+r.DroppedMessages+cut ||
		r.AcceptedBytes != r.WrittenBytes+r.UnsentBytes+r.DroppedBytes+r.CutSize {
		t.Errorf("%v: the report does not add up: %v, %+v", c, d.Err, r)
	}
}
