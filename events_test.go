package sockhub_test

// What a receiver of Events sees, whatever he does.

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
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

// TestNothingIsLostWhatTheReceiverDoes lets peers with names and without come,
// send, and leave in every way, while the receiver takes batches, pauses and
// registers names as it likes. It knows, from the peers, what every one of them
// has sent, and so sees what TestRandomSchedules cannot: a message that is
// missing.
func TestNothingIsLostWhatTheReceiverDoes(t *testing.T) {
	n := 250
	if testing.Short() {
		n = 50
	}
	eachBubble(t, n, func(t *testing.T, seed uint64) {
		defer func() {
			if t.Failed() {
				t.Logf("seed %d", seed)
			}
		}()
		runVoyages(t, seed)
	})
}

// voyage is one connection as its peer knows it.
type voyage struct {
	sent  int  // messages that were wholly written
	clean bool // it ended with a FIN, and not with a reset
	part  bool // and in the middle of a message
}

// voyages is what all peers know of all connections. Each message begins with
// the number of its voyage and its own.
type voyages struct {
	mu  sync.Mutex
	all []*voyage
}

func (v *voyages) begin() (n int, y *voyage) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.all = append(v.all, &voyage{})
	return len(v.all) - 1, v.all[len(v.all)-1]
}

func cargo(voyage, k, size int) string {
	m := binary.LittleEndian.AppendUint32(nil, uint32(voyage))
	m = binary.LittleEndian.AppendUint32(m, uint32(k))
	return string(m) + strings.Repeat(string(rune('a'+(voyage+k)%26)), size)
}

// seafarer makes some connections, one after the other, anonymously if it has
// no name.
func (v *voyages) seafarer(l *memnet.Listener, name string, r *rand.Rand) {
	for range 1 + r.IntN(4) {
		sleepFor(time.Duration(r.IntN(150)) * time.Millisecond)
		p, err := l.Dial(context.Background())
		if err != nil {
			return // the hub has ended
		}
		n, y := v.begin()
		if name != "" {
			p.Write(frame(name))
			if _, err := io.ReadFull(p, make([]byte, len(frame("OK")))); err != nil {
				p.Close() // somebody else has the name
				continue
			}
		}
		for k := range r.IntN(40) {
			size := r.IntN(200)
			if r.IntN(20) == 0 {
				size = r.IntN(20_000)
			}
			if _, err := p.Write(frame(cargo(n, k, size))); err != nil {
				break
			}
			y.sent++
			if r.IntN(5) == 0 {
				sleepFor(time.Duration(r.IntN(30)) * time.Millisecond)
			}
		}
		if r.IntN(8) == 0 {
			y.part = true
			p.Write(frame("half of this")[:1+r.IntN(18)])
		}
		switch r.IntN(3) {
		case 0:
			y.clean = true
			p.CloseWrite()
			io.Copy(io.Discard, p)
		case 1:
			y.clean = true
		case 2:
			p.Reset()
		}
		p.Close()
	}
}

// logbook is what Events has told of one connection.
type logbook struct {
	voyage    int // -1 before its first message
	received  int
	last      int // the batch of its last message
	unknown   bool
	connected bool
	ended     int // the batch of its Ended, 0 before
	gone      error
}

type harbour struct {
	t        *testing.T
	hub      *sockhub.Hub
	batch    int
	books    map[*sockhub.Conn]*logbook
	ids      map[sockhub.ID]*sockhub.Conn // the first connection of each
	expected map[string]sockhub.ID
}

func runVoyages(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 3))
	hub, err := sockhub.New(context.Background(), &sockhub.Options{
		ConnInbound: 1 + r.Int64N(5000), Linger: time.Duration(r.IntN(100)-1) * time.Millisecond,
		HandshakeTimeout: time.Second, FrameTimeout: -1,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer hub.Close()
	if cap(hub.Events()) != 1 {
		t.Fatal("more than one batch may wait")
	}
	mo := &memnet.Options{Seed: seed, Buffer: 50 + r.IntN(5000), Unix: r.IntN(4) == 0, NoUnacked: r.IntN(4) == 0, Faults: memnet.Faults{
		ShortRead: 0.2, Blind: 0.2, Spurious: 0.1, Delay: 0.2, Stall: 0.05, MaxWait: 40 * time.Millisecond}}
	named, anonymous := memnet.Listen(mo), memnet.Listen(mo)
	if _, err := hub.Serve(named, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := hub.Serve(anonymous, &sockhub.ListenOptions{Mode: sockhub.Anonymous}); err != nil {
		t.Fatal(err)
	}
	h := &harbour{t: t, hub: hub, books: make(map[*sockhub.Conn]*logbook),
		ids: make(map[sockhub.ID]*sockhub.Conn), expected: make(map[string]sockhub.ID)}
	v := &voyages{}
	var peers sync.WaitGroup
	for i := range 7 {
		r, name, l := rand.New(rand.NewPCG(seed, uint64(20+i))), fmt.Sprint("ship ", i%2), named
		if i > 3 {
			name, l = "", anonymous
		}
		peers.Go(func() { v.seafarer(l, name, r) })
	}
	home := make(chan struct{})
	go func() { peers.Wait(); close(home) }()

	patience := time.Hour
	if r.IntN(3) == 0 {
		patience = time.Duration(r.IntN(400)) * time.Millisecond
	}
	early := make(chan struct{}, 2) // no timer's own channel: see sleepFor
	timer := time.AfterFunc(patience, func() { early <- struct{}{} })
	defer timer.Stop()
	whole := false
	for sailing := true; sailing; {
		select {
		case b := <-hub.Events():
			h.take(b)
			if name := fmt.Sprint("ship ", r.IntN(2)); r.IntN(20) == 0 && h.expected[name] == 0 {
				if h.expected[name], err = hub.Expect(name, nil); err != nil {
					t.Error(err)
				}
			}
			if r.IntN(3) == 0 {
				sleepFor(time.Duration(r.IntN(200)) * time.Millisecond)
			}
		case <-early:
			sailing = false
		case <-home:
			home = nil
			if whole = timer.Stop(); whole { // else patience has ended meanwhile
				timer.Reset(time.Minute) // for what is still on its way
			}
		}
	}
	hub.Close() // nobody receives
	left := 0
	for b := range hub.Events() {
		h.take(b)
		left++
	}
	if left > 1 {
		t.Errorf("%d batches waited", left)
	}
	peers.Wait()
	h.compare(v, whole)
}

// take checks one batch.
func (h *harbour) take(b *sockhub.Batch) {
	h.batch++
	t, ids := h.t, make(map[sockhub.ID]*sockhub.Conn)
	book := func(c *sockhub.Conn) *logbook {
		if other := ids[c.ID()]; other != nil && other != c {
			t.Errorf("batch %d has two connections of ID %d", h.batch, c.ID())
		}
		ids[c.ID()] = c
		k := h.books[c]
		if k == nil || k.gone != nil {
			t.Errorf("batch %d tells of %v, which was not reported or is gone: %+v", h.batch, c, k)
			k = &logbook{}
		}
		return k
	}
	for i, c := range append(b.Connected[:len(b.Connected):len(b.Connected)], b.Unknown...) {
		k, expected := h.books[c], i < len(b.Connected)
		if k == nil {
			k = &logbook{voyage: -1}
			h.books[c] = k
			if first := h.ids[c.ID()]; first != nil && (c.Name() == "" || first.Name() != c.Name() || h.expected[c.Name()] == 0) {
				t.Errorf("ID %d of %v was %v's", c.ID(), c, first)
			}
			h.ids[c.ID()] = c
		} else if !expected || k.connected || k.gone != nil {
			t.Errorf("%v is reported again: %+v", c, k)
		}
		if expected && (c.Name() == "" || h.expected[c.Name()] != c.ID()) {
			t.Errorf("%v with ID %d is reported as expected", c, c.ID())
		}
		k.connected, k.unknown = k.connected || expected, k.unknown || !expected
		book(c)
	}
	for _, d := range b.Received {
		k := book(d.Conn)
		if len(d.Messages) == 0 {
			t.Errorf("a delivery of nothing from %v", d.Conn)
		}
		if k.ended != 0 {
			t.Errorf("data of %v after Ended", d.Conn)
		}
		k.last = h.batch
		for _, m := range d.Messages {
			voyage, n := int(binary.LittleEndian.Uint32(m)), int(binary.LittleEndian.Uint32(m[4:]))
			if k.voyage == -1 {
				k.voyage = voyage
			}
			if voyage != k.voyage || n != k.received || string(m) != cargo(voyage, n, len(m)-8) {
				t.Errorf("message %d.%d of %v instead of %d.%d", voyage, n, d.Conn, k.voyage, k.received)
			}
			k.received++
		}
	}
	for _, c := range b.Ended {
		k := book(c)
		if k.ended != 0 || k.last == h.batch {
			t.Errorf("Ended of %v in batch %d: %+v", c, h.batch, k)
		}
		k.ended = h.batch
	}
	for _, d := range b.Disconnected {
		k := book(d.Conn)
		if k.gone = d.Err; d.Err == nil {
			t.Fatalf("no reason for the end of %v", d.Conn)
		}
		if errors.Is(d.Err, io.EOF) && (k.ended == 0 || k.ended == h.batch) {
			t.Errorf("%v has ended before its Ended was taken: %+v", d.Conn, k)
		}
	}
}

// compare checks what was told against what the peers know.
func (h *harbour) compare(v *voyages, whole bool) {
	t := h.t
	seen := make(map[int]*sockhub.Conn)
	for c, k := range h.books {
		if k.gone == nil {
			t.Errorf("no Disconnected of %v", c)
		}
		if n := c.Stats().MessagesIn; n != uint64(k.received) {
			t.Errorf("%v: %d messages delivered, %d taken", c, n, k.received)
		}
		if k.voyage < 0 {
			continue
		}
		if other := seen[k.voyage]; other != nil {
			t.Errorf("one voyage on two connections: %v and %v", c, other)
		}
		seen[k.voyage] = c
		y := v.all[k.voyage]
		// A write that failed may have left the whole message.
		if k.received > y.sent+1 {
			t.Errorf("%v: %d messages received, and %d sent", c, k.received, y.sent)
		}
		if errors.Is(k.gone, io.EOF) && k.received != y.sent {
			t.Errorf("%v: %d of %d messages before the end", c, k.received, y.sent)
		}
		if !whole || !y.clean {
			continue
		}
		if want := map[bool]error{false: io.EOF, true: io.ErrUnexpectedEOF}[y.part]; !errors.Is(k.gone, want) || k.received != y.sent {
			t.Errorf("%v ended with %v, want %v, after %d of %d messages", c, k.gone, want, k.received, y.sent)
		}
	}
	if !whole {
		return
	}
	for n, y := range v.all {
		if y.clean && y.sent > 0 && seen[n] == nil {
			t.Errorf("nothing came of voyage %d, which sent %d messages", n, y.sent)
		}
	}
	if s := h.hub.Stats(); s.Accepted != uint64(len(h.books)) || s.Disconnected != s.Accepted || s.QueuedIn != 0 || s.Paused != 0 {
		t.Errorf("%d connections were reported: %+v", len(h.books), s)
	}
}

// ---- one thing at a time ----

func TestEventsAreMergedWhileNobodyReceives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, nil, nil)
		c, p := r.serve(nil, nil)
		other, op := r.serve(nil, nil)
		for i := range 50 {
			p.Write(frame(fmt.Sprint(i)))
			op.Write(frame("x"))
			<-time.After(time.Second)
		}
		p.CloseWrite()
		other.NotifyDrained()
		op.Reset()
		<-time.After(time.Second)
		if n := r.Stats().Batches; n != 1 {
			t.Errorf("%d batches", n)
		}
		b := r.take()
		// Nothing orders connections among each other.
		slices.SortFunc(b.Received, func(x, y sockhub.Delivery) int { return cmp.Compare(x.Conn.ID(), y.Conn.ID()) })
		if len(b.Unknown) != 2 || len(b.Received) != 2 || b.Received[0].Conn != c || b.Received[1].Conn != other ||
			len(b.Drained) != 1 || len(b.Ended) != 0 || len(b.Disconnected) != 1 || b.Disconnected[0].Conn != other {
			t.Fatalf("%+v", b)
		}
		for _, d := range b.Received {
			if len(d.Messages) != 50 {
				t.Errorf("%v: %d messages", d.Conn, len(d.Messages))
			}
		}
		for i, m := range b.Received[0].Messages {
			if string(m) != fmt.Sprint(i) {
				t.Errorf("%q instead of %d", m, i)
			}
		}
		r.happened("ended", "disconnected  EOF")
	})
}

// TestReceiverMayPrintABatch is for the race detector: a batch belongs to who has
// received it, all of it.
func TestReceiverMayPrintABatch(t *testing.T) {
	for _, reuse := range []bool{false, true} {
		s := newStand(t, &sockhub.Options{ReuseBuffers: reuse}, func(b *sockhub.Batch) {
			echo(b)
			fmt.Fprintf(io.Discard, "%+v", b)
			b.Received = nil // the stand would keep what Release takes
			b.Release()
		})
		l := s.listen("tcp4", nil)
		var peers sync.WaitGroup
		for i := range 4 {
			p := dialHub(t, l, fmt.Sprint("peer ", i))
			peers.Go(func() {
				for i := range 100 {
					p.send(body(1, i, 20))
					if m := p.receive(); !bytes.Equal(m, body(1, i, 20)) {
						t.Errorf("%q", m)
					}
				}
			})
		}
		peers.Wait()
	}
}

func TestConnInboundPausesItsConnectionAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 300
		r := newRoom(t, &sockhub.Options{ConnInbound: 5000}, nil)
		c, p := r.serve(&memnet.Options{Buffer: 2000}, nil)
		other, op := r.serve(nil, nil)
		r.take()
		wrote := async(func() (int, error) {
			for k := range n {
				if _, err := p.Write(frame(string(numbered(k, 100)))); err != nil {
					return k, err
				}
			}
			return n, p.CloseWrite()
		})
		waits(t, wrote)
		op.Write(frame("not held back"))
		synctest.Wait()
		if s := c.Stats(); !s.Paused || s.QueuedIn < 5000 || s.QueuedIn > 5000+2*164+2000*2 {
			t.Errorf("%+v", s)
		}
		if s := r.Stats(); s.Paused != 1 || other.Stats().Paused || other.Stats().MessagesIn != 1 {
			t.Errorf("%+v", s)
		}
		<-time.After(time.Hour) // and neither timeout minds
		next, paused := 0, 0
		for next < n {
			b := r.take()
			if len(b.Received) == 0 {
				t.Fatalf("nothing more after %d messages: %+v", next, c.Stats())
			}
			for from, m := range b.Messages() {
				if from != c {
					continue
				}
				if string(m) != string(numbered(next, 100)) {
					t.Fatalf("%q instead of message %d", m, next)
				}
				next++
			}
			paused += r.Stats().Paused
		}
		returns(t, wrote, nil)
		if paused == 0 {
			t.Error("it was not paused again")
		}
		r.happened("ended", "disconnected  EOF")
		if s := r.Stats(); s.Paused != 0 || s.QueuedIn != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// What is paused when it ends is not counted as paused any more.
func TestPausedConnectionThatEndsLosesNothingThatWasDelivered(t *testing.T) {
	for _, end := range []func(*line){
		func(l *line) { l.c.Close() },
		func(l *line) { l.Hub.Close() },
	} {
		synctest.Test(t, func(t *testing.T) {
			l := newLine(t, &sockhub.Options{ConnInbound: 1}, nil, nil)
			l.p.Write(frames("a", "b", "c"))
			synctest.Wait()
			delivered := l.c.Stats().MessagesIn
			if s := l.Stats(); delivered == 0 || s.Paused != 1 {
				t.Errorf("%+v", s)
			}
			end(l)
			synctest.Wait()
			b := l.take()
			if len(b.Received) != 1 || len(b.Received[0].Messages) != int(delivered) || len(b.Disconnected) != 1 {
				t.Errorf("%+v", b)
			}
			if s := l.Stats(); s.Paused != 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

func TestEndedWaitsUntilTheLastDataWasTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, nil, nil, nil)
		l.p.Write(frame("question"))
		l.p.CloseWrite()
		<-time.After(time.Hour)
		b := l.take()
		if len(b.Received) != 1 || len(b.Ended)+len(b.Disconnected) != 0 {
			t.Fatalf("%+v", b)
		}
		<-time.After(time.Hour) // Ended waits in the next batch
		l.sent("answer")
		if b := l.take(); len(b.Ended) != 1 || len(b.Received)+len(b.Disconnected) != 0 {
			t.Fatalf("%+v", b)
		}
		if err := l.c.TrySend(nil); !errors.Is(err, sockhub.ErrNotConnected) {
			t.Error("after Ended:", err)
		}
		expect(t, l.p, frame("answer"))
		if r := l.endsWith(io.EOF).Report; r.WrittenMessages != 1 {
			t.Errorf("%+v", r)
		}
	})
}

func TestCloseLeavesOneLastBatchForWhoeverComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, nil, nil)
		var conns []*sockhub.Conn
		for i := range 20 {
			c, p := r.serve(nil, nil)
			p.Write(frame(fmt.Sprint(i)))
			conns = append(conns, c)
			synctest.Wait()
		}
		r.Close()
		b, ok := <-r.Events()
		if !ok || len(b.Unknown) != 20 || len(b.Received) != 20 || len(b.Disconnected) != 20 {
			t.Fatalf("%+v", b)
		}
		if b, ok := <-r.Events(); ok {
			t.Errorf("one more: %+v", b)
		}
		for _, d := range b.Disconnected {
			if d.Err != sockhub.ErrClosed {
				t.Error(d.Err)
			}
		}
		if c, ok := r.Conn(conns[0].ID()); ok {
			t.Errorf("%v is still there", c)
		}
	})
}
