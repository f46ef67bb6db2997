package sockhub_test

// The contract of Events, at random.

import (
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
)

var (
	schedules = flag.Uint64("schedules", 150, "random schedules of TestRandomSchedules")
	seed      = flag.Int64("seed", -1, "the only schedule to run")
	firstSeed = flag.Uint64("schedules.from", 0, "the first schedule")
)

// TestRandomSchedules lets peers come, send, finish, close and reset, and a
// receiver take batches and answer, all at random moments, and checks what
// Events promises:
//
//   - data of a connection comes whole and in order, and after the connection
//   - Ended comes in a later batch than the last data, once at most
//   - exactly one Disconnected ends each reported connection, after all of that
//   - one batch holds at most one connection of any ID
//   - one batch at most waits, and after Close what is left comes in one more
//   - the report's books balance, and what the peer got is what was accepted
func TestRandomSchedules(t *testing.T) {
	eachSchedule(t, runSchedule)
}

// eachSchedule runs a test in a bubble for each seed that the flags ask for.
func eachSchedule(t *testing.T, run func(t *testing.T, seed uint64)) {
	for i := range *schedules {
		s := *firstSeed + i
		if *seed >= 0 {
			s = uint64(*seed)
		}
		synctest.Test(t, func(t *testing.T) {
			defer func() {
				if t.Failed() {
					t.Logf("run again with -args -seed %d", s)
				}
			}()
			run(t, s)
		})
		if *seed >= 0 {
			break
		}
	}
}

// history is what Events has told of one connection.
type history struct {
	name     string
	next     uint32 // number of the next message
	lastData int    // batch of the last message
	ended    bool
	gone     bool
	accepted uint64 // messages that it took from the receiver
}

type schedule struct {
	t     *testing.T
	r     *rand.Rand
	hub   *sockhub.Hub
	batch int
	conns map[*sockhub.Conn]*history
}

func runSchedule(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 2))
	hub, err := sockhub.New(context.Background(), &sockhub.Options{
		ConnInbound: 1 + r.Int64N(2000), ConnOutbound: 1 + r.Int64N(5000), Linger: time.Duration(r.IntN(100)) * time.Millisecond,
		Duplicates: sockhub.DuplicatePolicy(1 + r.IntN(2)), ReuseBuffers: r.IntN(2) == 0,
	})
	if err != nil {
		t.Fatal(err)
	}
	s := &schedule{t: t, r: r, hub: hub, conns: make(map[*sockhub.Conn]*history)}
	if cap(hub.Events()) != 1 {
		t.Error("more than one batch may wait")
	}
	l := memnet.Listen(&memnet.Options{Seed: seed, Buffer: 1 + r.IntN(4096), Faults: memnet.Faults{
		ShortRead: 0.2, ShortWrite: 0.2, Spurious: 0.1, Blind: 0.2, Delay: 0.3, MaxWait: 50 * time.Millisecond}})
	if _, err := hub.Serve(l, nil); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if r.IntN(2) == 0 {
			if _, err := hub.Expect(fmt.Sprint("peer ", i), nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i := range 6 {
		go runPeer(l, fmt.Sprint("peer ", i%3), rand.New(rand.NewPCG(seed, uint64(10+i))))
	}
	end, cancel := context.WithTimeout(t.Context(), time.Duration(1+r.IntN(2000))*time.Millisecond) // no timer's channel: see sleepFor
	defer cancel()
	for open := true; open; {
		select {
		case b := <-hub.Events():
			s.take(b)
			sleepFor(time.Duration(r.IntN(30)) * time.Millisecond)
		case <-end.Done():
			open = false
		}
	}
	if r.IntN(2) == 0 {
		hub.Close()
	} else {
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(r.IntN(500))*time.Millisecond)
		done := make(chan error, 1)
		go func() { done <- hub.Shutdown(ctx) }()
		for closing := true; closing; {
			select {
			case b, ok := <-hub.Events():
				if closing = ok; ok {
					s.take(b)
				}
			case <-time.After(time.Hour):
				t.Fatal("Shutdown does not end")
			}
		}
		<-done
		cancel()
	}
	left := 0
	for b := range hub.Events() {
		s.take(b)
		left++
	}
	if left > 1 {
		t.Errorf("%d batches waited", left)
	}
	for c, h := range s.conns {
		if !h.gone {
			t.Errorf("no Disconnected for %v", c)
		}
	}
	<-time.After(time.Minute) // the peers see it
}

// take checks a batch against what was told before, and answers some of it.
func (s *schedule) take(b *sockhub.Batch) {
	s.batch++
	ids := make(map[sockhub.ID]*sockhub.Conn)
	know := func(c *sockhub.Conn) *history {
		if other := ids[c.ID()]; other != nil && other != c {
			s.t.Errorf("a batch with two connections of ID %d", c.ID())
		}
		ids[c.ID()] = c
		h := s.conns[c]
		if h == nil || h.gone {
			s.t.Errorf("batch %d is of %v, which was not reported or is gone: %+v; %+v", s.batch, c, h, b)
			h = &history{}
		}
		return h
	}
	for _, list := range [][]*sockhub.Conn{b.Connected, b.Unknown} {
		for _, c := range list {
			if s.conns[c] != nil {
				s.t.Errorf("%v is reported twice", c)
			}
			s.conns[c] = &history{name: c.Name()}
			know(c)
		}
	}
	for _, d := range b.Received {
		h := know(d.Conn)
		if h.ended {
			s.t.Errorf("data of %v after Ended", d.Conn)
		}
		h.lastData = s.batch
		for _, m := range d.Messages {
			if n := binary.LittleEndian.Uint32(m); n != h.next {
				s.t.Errorf("%v: message %d instead of %d", d.Conn, n, h.next)
			}
			h.next++
			if cap(m) != len(m) {
				s.t.Error("a message with room behind it")
			}
			if s.r.IntN(2) == 0 && d.Conn.TrySend(m) == nil {
				h.accepted++
			}
		}
	}
	for _, c := range b.Drained {
		know(c)
	}
	for _, c := range b.Ended {
		h := know(c)
		if h.ended || h.lastData == s.batch {
			s.t.Errorf("Ended of %v: again %v, with its last data %v", c, h.ended, h.lastData == s.batch)
		}
		h.ended = true
	}
	for _, d := range b.Disconnected {
		h := know(d.Conn)
		h.gone = true
		r := d.Report
		cut := uint64(0)
		if r.Cut {
			cut = 1
		}
		if d.Err == nil || r.AcceptedMessages != h.accepted ||
			r.AcceptedMessages != r.WrittenMessages+r.UnsentMessages+r.DroppedMessages+cut ||
			r.AcceptedBytes != r.WrittenBytes+r.UnsentBytes+r.DroppedBytes+r.CutSize {
			s.t.Errorf("%v, %v: %d accepted, and the report %+v", d.Conn, d.Err, h.accepted, r)
		}
		n := uint64(0)
		for range r.Unsent() {
			n++
		}
		if n != r.UnsentMessages {
			s.t.Errorf("%d unsent messages, %d in the report", n, r.UnsentMessages)
		}
	}
	if s.r.IntN(20) == 0 {
		for c := range s.hub.Conns() {
			if s.r.IntN(2) == 0 {
				c.Finish()
			} else {
				c.Close()
			}
			break
		}
	}
	b.Release()
}

// runPeer connects under a name, again and again, sends numbered messages of
// random sizes, and leaves in every way there is.
func runPeer(l *memnet.Listener, name string, r *rand.Rand) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		sleepFor(time.Duration(r.IntN(100)) * time.Millisecond)
		c, err := l.Dial(ctx)
		if err != nil {
			return
		}
		go func() { // what it is answered does not matter here
			buf := make([]byte, 1000)
			for {
				if _, err := c.Read(buf); err != nil {
					return
				}
			}
		}()
		c.Write(frame(name))
		for i := range uint32(r.IntN(50)) {
			m := make([]byte, 4+r.IntN(300))
			binary.LittleEndian.PutUint32(m, i)
			if _, err := c.Write(frame(string(m))); err != nil {
				break
			}
			if r.IntN(4) == 0 {
				sleepFor(time.Duration(r.IntN(20)) * time.Millisecond)
			}
		}
		switch r.IntN(3) {
		case 0:
			c.CloseWrite()
			sleepFor(time.Duration(r.IntN(200)) * time.Millisecond)
		case 1:
			c.Reset()
		}
		c.Close()
	}
}
