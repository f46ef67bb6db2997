package budget

import (
	"flag"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

var runs = flag.Int("runs", 500, "random runs of the simulation of the inbound rule")

// peer is a connection in the simulation: it receives messages, and holds what
// it received until the user takes it.
type peer struct {
	left    []int64 // sizes of the messages to come
	got     int64   // of the first of them
	own     int64   // of got, in its own room
	untaken int64
	waits   bool // was refused
	paused  bool // waits until all was taken
	token   bool
	stuck   bool // sends nothing more, with this message begun
}

// simulation is one run: peers whose bytes come in random pieces, and stall at
// random, and a user who takes at random.
type simulation struct {
	b     *Inbound[*peer]
	limit int64
	conn  int64 // ConnInbound
	peers []*peer
	peak  int64

	received int64
}

// small reports whether what p has begun fits its own room, as far as it can know.
func (p *peer) small() bool { return p.got < Own && (p.got == 0 || p.left[0] <= Own) }

func (s *simulation) resume(p *peer, token bool) { p.waits, p.token = false, token }

// read lets p receive up to n bytes, as a connection's reader does.
func (s *simulation) read(p *peer, n int64) {
	if p.waits || p.paused || p.stuck || len(p.left) == 0 || p.untaken >= s.conn && p.untaken > 0 {
		return
	}
	rest := p.left[0] - p.got
	switch {
	case p.token:
		n = min(n, rest)
		s.b.Force(n)
	case s.b.Reserve(n):
	case p.small() && p.untaken > 0:
		p.paused = true
		return
	case p.small():
		n = min(n, Own-p.got)
		if !s.b.TakeOwn(n) {
			panic("there is no other limit")
		}
		p.own += n
	default:
		p.waits = true
		s.b.Wait(p, rest, false)
		return
	}
	for n > 0 && len(p.left) > 0 {
		m := min(n, p.left[0]-p.got)
		p.got += m
		s.received += m
		n -= m
		if p.got == p.left[0] {
			p.untaken += p.got
			p.left, p.got = p.left[1:], 0
			if p.token {
				p.token = false
				s.b.Done(p)
			}
		}
	}
	s.peak = max(s.peak, s.b.Used())
	if more := p.own - p.got; more > 0 {
		p.own -= more
		s.b.LeaveOwn(more)
	}
	s.b.Give(n) // there was less to read
}

// moves reports whether anybody can receive anything, when the user takes all.
func (s *simulation) moves() bool {
	before := s.received
	for range 2 {
		for _, p := range s.peers {
			s.take(p)
		}
		for _, p := range s.peers {
			s.read(p, 1)
		}
	}
	return s.received > before
}

func (s *simulation) take(p *peer) {
	n := p.untaken
	p.untaken, p.paused = 0, false
	s.b.Give(n)
}

// TestInboundNeverComesToAStandstill is the claim that the rule's comment
// argues: whatever the sizes and stalls, as long as the user takes what is
// whole and the peers go on, every message is received, and never more than the
// limit is held.
func TestInboundNeverComesToAStandstill(t *testing.T) {
	for seed := range uint64(*runs) {
		r := rand.New(rand.NewPCG(seed, 1))
		m := 1 + r.Int64N(1<<(10+r.IntN(11)))
		s := &simulation{limit: 2*(m+Slack) + r.Int64N(4*m), conn: 1 + r.Int64N(2*m)}
		s.b = NewInbound(s.limit, m, s.resume, func(int64) bool { return false })
		for range 1 + r.IntN(100) {
			p := &peer{}
			for range 1 + r.IntN(3) {
				p.left = append(p.left, 1+r.Int64N(m))
			}
			s.peers = append(s.peers, p)
		}
		for step := 0; ; step++ {
			done := 0
			for _, p := range s.peers {
				if len(p.left) == 0 {
					done++
				}
			}
			if done == len(s.peers) {
				break
			}
			if step%100 == 0 && !s.moves() {
				t.Fatalf("seed %d: %d of %d peers wait for ever, %d of %d bytes held", seed, len(s.peers)-done, len(s.peers), s.b.Used(), s.limit)
			}
			// Mostly a round of everybody; sometimes one alone, the others
			// stalling; the user takes seldom.
			if r.IntN(4) > 0 {
				s.read(s.peers[r.IntN(len(s.peers))], 1+r.Int64N(oneRead))
			} else {
				for _, p := range s.peers {
					s.read(p, oneRead)
				}
			}
			if r.IntN(3) == 0 {
				for _, p := range s.peers {
					s.take(p)
				}
			}
		}
		for _, p := range s.peers {
			s.take(p)
		}
		if s.b.Used() != 0 {
			t.Fatalf("seed %d: %d bytes held at the end", seed, s.b.Used())
		}
		if most := s.limit + Own*int64(len(s.peers)); s.peak > most {
			t.Fatalf("seed %d: %d bytes held, %d is the most", seed, s.peak, most)
		}
		if n := s.b.line.Load(); n != s.limit-m-Slack {
			t.Fatalf("seed %d: own room was not given back: the line is at %d", seed, n)
		}
	}
}

// Whoever has begun a message and sends nothing more, and holds the token too, keeps
// nobody waiting whose messages fit his own room; and where nothing is taken, no more
// than that comes of anybody.
func TestInboundSmallMessagesPassThoseThatAreStuck(t *testing.T) {
	for seed := range uint64(*runs / 4) {
		r := rand.New(rand.NewPCG(seed, 2))
		m := int64(Own + 1 + r.IntN(1<<20))
		s := &simulation{limit: 2*(m+Slack) + r.Int64N(4*m), conn: 1 + r.Int64N(2*m)}
		s.b = NewInbound(s.limit, m, s.resume, func(int64) bool { return false })
		var good []*peer
		for range 1 + r.IntN(100) {
			p := &peer{}
			for range 1 + r.IntN(20) {
				p.left = append(p.left, 1+r.Int64N(Own))
			}
			good = append(good, p)
		}
		s.peers = slices.Clone(good)
		for s.b.Reserve(1) {
			s.b.Give(1)
			p := &peer{left: []int64{m}}
			s.peers = append(s.peers, p)
			for size := 1 + r.Int64N(m-1); p.got < size && !p.waits; {
				s.read(p, min(size-p.got, oneRead))
			}
		}
		for range r.IntN(50) { // who have begun in their own room
			p := &peer{left: []int64{m}}
			s.peers = append(s.peers, p)
			s.read(p, 1+r.Int64N(Own))
		}
		for _, p := range s.peers[len(good):] {
			s.read(p, 1) // who gets the token is stuck with it
			p.stuck = true
		}
		for range 100 {
			for _, p := range good {
				s.read(p, 1+r.Int64N(oneRead))
			}
		}
		if most := s.limit + Own*int64(len(s.peers)); s.peak > most {
			t.Fatalf("seed %d: %d bytes held, %d is the most", seed, s.peak, most)
		}
		for round := 0; ; round++ {
			left := 0
			for _, p := range good {
				left += len(p.left)
				s.take(p)
				s.read(p, 1+r.Int64N(oneRead))
				s.read(p, oneRead)
			}
			if left == 0 {
				break
			}
			if round > 100_000 {
				t.Fatalf("seed %d: %d small messages wait for ever", seed, left)
			}
		}
	}
}

// Own room is no way around another limit.
func TestInboundOwnRoomAndMemoryLimit(t *testing.T) {
	over := true
	var resumed []string
	b := NewInbound(2*(1000+Slack), 1000, func(c string, token bool) {
		if token {
			c += " with the token"
		}
		resumed = append(resumed, c)
	}, func(int64) bool { return over })
	b.Force(b.line.Load())
	if b.TakeOwn(1) {
		t.Error("taken over another limit")
	}
	b.Wait("small", 10, false) // what it said last counts
	b.Wait("large", 5, false)
	b.Wait("small", 10, true)
	if len(resumed) > 0 {
		t.Error("resumed over another limit:", resumed)
	}
	over = false
	b.Poke()
	if !slices.Equal(resumed, []string{"large with the token", "small"}) || b.Waiting() || !b.TakeOwn(Own) {
		t.Error("resumed:", resumed)
	}
	if b.Reserve(1) {
		t.Error("own room is for all")
	}
	b.LeaveOwn(Own)
	b.Give(Own + 1)
	if !b.Reserve(1) {
		t.Error("own room is not given back")
	}
}

// The largest message of all counts, whoever takes own room meanwhile.
func TestInboundRaise(t *testing.T) {
	b := NewInbound(2*(1000+Slack), 10, func(int, bool) {}, func(int64) bool { return false })
	b.Raise(1000)
	b.Raise(100)
	b.TakeOwn(Own)
	b.Raise(500)
	b.LeaveOwn(Own)
	b.Give(Own)
	b.Raise(200)
	if !b.Reserve(1000+Slack-1) || !b.Reserve(1) || b.Reserve(1) {
		t.Error("not what is left beside a message of 1000 bytes", b.Used())
	}
}

// As many are resumed as there is likely to be room for.
func TestInboundResumesNoMoreThanMayRead(t *testing.T) {
	over := true
	var resumed []string
	b := NewInbound(2*(1<<20+Slack), 1<<20, func(c string, token bool) { resumed = append(resumed, c) }, func(int64) bool { return over })
	b.Force(b.line.Load() - 40<<10)
	b.Wait("a", 0, false)      // is likely to take 16 KiB
	b.Wait("b", 25<<10, false) // the rest of its message
	b.Wait("c", 0, false)
	over = false
	b.Poke()
	if !slices.Equal(resumed, []string{"a", "b"}) {
		t.Errorf("resumed: %q", resumed)
	}
}

// The token's owner may go one message beyond the memory limit, and own room of others
// does not keep him from it.
func TestInboundTokenBeyondMemoryLimit(t *testing.T) {
	const memory = 50_000
	var resumed []string
	b := NewInbound(1<<20, 1000, func(c string, token bool) { resumed = append(resumed, c) }, func(used int64) bool { return used >= memory })
	b.Force(memory + Slack + 600)
	b.Wait("a", 400, false)
	if len(resumed) > 0 {
		t.Error("may go more than one message beyond it")
	}
	b.Wait("b", 399, false)
	if !slices.Equal(resumed, []string{"b"}) {
		t.Error("may not complete a message", resumed)
	}

	b = NewInbound(2*(1000+Slack), 1000, func(c string, token bool) { resumed = append(resumed, c) }, func(int64) bool { return false })
	b.Force(b.line.Load())
	for range 100 {
		b.TakeOwn(Own)
	}
	b.Wait("c", 1000, false)
	if !slices.Equal(resumed, []string{"b", "c"}) {
		t.Error("may not complete a message, for the own room of others", resumed)
	}
}

func TestInboundWithoutLimit(t *testing.T) {
	b := NewInbound(math.MaxInt, math.MaxInt64, func(int, bool) {}, func(int64) bool { return false })
	if !b.Reserve(1) {
		t.Error("refused")
	}
	if b.TakeOwn(1) || !b.Reserve(1) {
		t.Error("there is no need for own room")
	}
}

func TestCheckInbound(t *testing.T) {
	for _, c := range []struct {
		limit, max int64
		ok         bool
	}{
		{512 << 20, 64 << 20, true},
		{130 << 20, 64 << 20, true},
		{128 << 20, 64 << 20, false},
		{2 * (1000 + Slack), 1000, true},
		{2*(1000+Slack) - 1, 1000, false},
		{math.MaxInt, math.MaxInt64, true}, // no limits
	} {
		if ok := CheckInbound(c.limit, c.max); ok != c.ok {
			t.Errorf("%d bytes for messages of %d: %v", c.limit, c.max, ok)
		}
	}
}

func TestMemoryLimitStopsReading(t *testing.T) {
	over := false
	var resumed []string
	b := NewInbound(1<<20, 1000, func(c string, token bool) { resumed = append(resumed, c) }, func(int64) bool { return over })
	over = true
	if b.Reserve(1) {
		t.Error("reserved over another limit")
	}
	b.Wait("a", 0, true)
	if len(resumed) > 0 {
		t.Error("resumed over another limit")
	}
	over = false
	b.Poke()
	if len(resumed) != 1 {
		t.Error("not resumed")
	}
}

func TestOutboundFloorSharedExempt(t *testing.T) {
	var woken []string
	b := NewOutbound(1000, func(c string) { woken = append(woken, c) }, func() {})
	b.Among(5) // floors of 100, 500 shared
	var a, c, d, e Share
	if !b.Take(&a, 100, true) || a.held != 0 {
		t.Error("the floor is one's own")
	}
	if !b.Take(&a, 600, false) || b.Used() != 500 {
		t.Error("the shared half is for all", b.Used())
	}
	if !b.Take(&c, 100, true) {
		t.Error("the floor is there when the shared half is not")
	}
	if b.Take(&c, 101, false) {
		t.Error("beyond the limit")
	}
	if !b.Take(&d, 5000, true) || d.exempt == 0 {
		t.Error("one message enters an empty queue")
	}
	if b.Take(&d, 5100, false) {
		t.Error("another one behind it, without room")
	}
	if b.Take(&e, 5000, true) {
		t.Error("a second exempt message")
	}
	b.Wait("e")
	b.Fell(&d, 4000)
	if len(woken) != 0 {
		t.Error("woken without room")
	}
	b.Fell(&d, 0)
	if len(woken) != 1 || !b.Take(&e, 5000, true) {
		t.Error("not woken by the exempt slot")
	}
	b.Wait("c")
	b.Fell(&a, 0)
	if b.Used() != 0 || len(woken) != 2 || !b.Take(&c, 300, false) {
		t.Error("not woken by the shared half", b.Used())
	}
}

// Who has little left in his queue keeps some of what he had, but not all do so
// until there is nothing for anybody else.
func TestOutboundOfManyWithLittleQueuedHasRoom(t *testing.T) {
	const limit, conns = 512 << 20, 4096
	b := NewOutbound(limit, func(int) {}, func() {})
	b.Among(1 << 16)
	shares := make([]Share, conns)
	for i := range shares {
		if !b.Take(&shares[i], 128<<10, false) {
			t.Fatalf("no room for connection %d", i)
		}
		b.Fell(&shares[i], 5000)
	}
	if used := b.Used(); used > limit/2-64<<20 {
		t.Errorf("%d bytes are taken for %d that are queued", used, conns)
	}
}

// Among more than there are bytes for, nobody has a floor, and nothing is kept for floors.
func TestOutboundWithoutFloorsIsShared(t *testing.T) {
	var woken []string
	b := NewOutbound(1000, func(c string) { woken = append(woken, c) }, func() {})
	b.Among(5)
	var a, c Share
	if !b.Take(&a, 600, false) || b.Take(&c, 101, false) {
		t.Error("floors of 100, 500 shared", b.Used())
	}
	b.Wait("c")
	b.Among(math.MaxInt)
	if len(woken) != 1 || !b.Take(&c, 500, false) || b.Take(&c, 501, false) {
		t.Error("1000 shared", woken, b.Used())
	}
	b.Wait("c")
	b.Among(500)
	if len(woken) != 2 {
		t.Error("not woken by floors")
	}
	b.Among(5)
	if !b.Overdrawn(&c) || !b.Take(&c, 600, false) || b.Take(&c, 601, false) {
		t.Error("500 shared, all of it taken", b.Used())
	}
}

// The token goes from one to the next, to who lacks least of a message that has begun, and
// not to who is gone.
func TestInboundTokenGoesToWhoLacksLeast(t *testing.T) {
	var resumed []string
	b := NewInbound(2*(1000+Slack), 1000, func(c string, token bool) {
		if !token {
			c += " without"
		}
		resumed = append(resumed, c)
	}, func(int64) bool { return false })
	held := b.line.Load()
	b.Force(held)
	b.Wait("first", 100, false)
	b.Wait("50", 50, false)
	b.Wait("gone", 5, false)
	b.Wait("10", 10, false)
	b.Wait("nothing", 0, false)
	b.Wait("30", 30, false)
	b.Done("gone")
	b.Poke()
	if !slices.Equal(resumed, []string{"first"}) {
		t.Errorf("got the token: %q, and the first still has it", resumed)
	}
	for _, c := range []string{"first", "10", "30", "50"} {
		b.Done(c)
	}
	if want := []string{"first", "10", "30", "50"}; !slices.Equal(resumed, want) || !b.Waiting() {
		t.Errorf("got the token: %q, want %q", resumed, want)
	}
	b.Give(1)
	if last := resumed[len(resumed)-1]; last != "nothing without" || b.Waiting() {
		t.Errorf("%q was resumed last", last)
	}
}

// What no connection has read yet takes half of what there is for those; where there is
// nothing of it, as long as they may read.
func TestInboundSpareIsHalf(t *testing.T) {
	over := false
	b := NewInbound(2*(1000+Slack), 1000, func(int, bool) {}, func(int64) bool { return over })
	line := int(b.line.Load())
	if !b.ReserveSpare(line/2-1) || !b.ReserveSpare(1) || b.ReserveSpare(1) {
		t.Error("not half of it", b.Used())
	}
	b.GiveSpare(line / 2)
	if b.ReserveSpare(line) || !b.ReserveSpare(line-1) || b.ReserveSpare(1) {
		t.Error("not all but what lets others read", b.Used())
	}
	b.GiveSpare(line - 1)
	over = true
	if b.ReserveSpare(1) {
		t.Error("taken over another limit")
	}
	over = false
	if !b.ReserveSpare(line/2+1) || b.Used() != int64(line/2+1) {
		t.Error("what was refused is held", b.Used())
	}
}

// What Force has taken of what there is not holds up those who hold it, and no others.
func TestOutboundForced(t *testing.T) {
	fell := 0
	b := NewOutbound(1000, func(string) {}, func() { fell++ })
	b.Among(5) // floors of 100, 500 shared
	var a, c, d Share
	b.Force(&a, 600)
	if b.Overdrawn(&a) || b.Used() != 500 || b.Left(&a, 600) != 0 || b.Left(&c, 0) != 100 {
		t.Error("all that there is", b.Used(), b.Left(&a, 600), b.Left(&c, 0))
	}
	b.Force(&a, 700)
	b.Force(&a, 50)
	if !b.Overdrawn(&a) || b.Overdrawn(&c) || b.Used() != 600 || b.Left(&c, 40) != 60 {
		t.Error("more than there is", b.Used())
	}
	if !b.Could(&c, 100, false) || b.Could(&c, 101, false) || !b.Could(&c, 101, true) {
		t.Error("its floor, or the exempt slot")
	}
	if !b.Take(&c, 5000, true) || b.Could(&d, 5000, true) || !b.Could(&c, 6000, true) {
		t.Error("the exempt slot is one")
	}
	b.Fell(&c, 0)
	b.Fell(&a, 0)
	if b.Used() != 0 || fell != 1 || b.Left(&d, 50) != 550 || !b.Could(&d, 600, false) || b.Could(&d, 601, false) {
		t.Error("not given back", b.Used(), fell, b.Left(&d, 50))
	}
	if left := NewOutbound(math.MaxInt, func(int) {}, func() {}).Left(&d, 50); left != math.MaxInt {
		t.Error("without a limit", left)
	}
}

// Who waits is told once, and again if it waits again.
func TestOutboundWaitersAreToldOnce(t *testing.T) {
	var told []string
	b := NewOutbound(1000, func(c string) { told = append(told, c) }, func() {})
	b.Among(5)
	var a Share
	for range 2 {
		b.Take(&a, 600, false)
		b.Wait("x")
		b.Wait("y")
		b.Wait("x")
		b.Fell(&a, 0)
		b.Take(&a, 600, false)
		b.Fell(&a, 0) // nobody waits
	}
	if want := []string{"x", "y", "x", "y"}; !slices.Equal(told, want) {
		t.Errorf("told: %q, want %q", told, want)
	}
}
