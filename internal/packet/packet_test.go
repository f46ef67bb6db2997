package packet

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sockhub/sockhub/internal/leakcheck"
	"github.com/sockhub/sockhub/internal/transport"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

// frames is what a connection writes for some datagrams.
func frames(bodies [][]byte) (w []byte) {
	for _, b := range bodies {
		w = binary.LittleEndian.AppendUint32(w, uint32(len(b)))
		w = append(w, b...)
	}
	return w
}

// cuts is w in slices of random lengths, some of them empty.
func cuts(r *rand.Rand, w []byte) (v [][]byte) {
	for len(w) > 0 {
		n := min(len(w), r.IntN(1+r.IntN(3000)))
		v, w = append(v, w[:n]), w[n:]
	}
	return v
}

// The writer may hand over frames cut anywhere, in one slice or many, and be
// told in the middle that there is no more room.
func TestDatagramsAreCutOutOfWhatIsWritten(t *testing.T) {
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 0))
		var bodies [][]byte
		for range 1 + r.IntN(3000) {
			b := make([]byte, r.IntN(1+r.IntN(2000)))
			for i := range b {
				b[i] = byte(r.Uint32())
			}
			bodies = append(bodies, b)
		}
		s := newSocket(nowhere{}, Options{Max: MaxUDP, Stats: new(Stats)})
		s.out.pen, s.out.stalled = taken, true // so that nothing is sent
		x := s.newSession(source{key: []byte("x")})
		var got [][]byte
		take := func() {
			for _, it := range s.out.box.items {
				got = append(got, slices.Clone(s.out.box.bytes[it.from:it.end]))
			}
			s.out.box.reset()
			s.out.waiting = nil
		}
		for w := frames(bodies); len(w) > 0; {
			v := cuts(r, w[:min(len(w), 1+r.IntN(100_000))])
			before := slices.Concat(v...)
			n, err := x.TryWritev(v)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(slices.Concat(v...), before) {
				t.Fatal("the caller's slices have changed")
			}
			if n < len(before) && len(s.out.waiting) == 0 {
				t.Fatalf("seed %d: %d of %d bytes, and nobody will call again", seed, n, len(before))
			}
			if w = w[n:]; len(s.out.waiting) > 0 || r.IntN(3) == 0 {
				take()
			}
		}
		take()
		if len(x.part) > 0 || !slices.EqualFunc(got, bodies, bytes.Equal) {
			t.Fatalf("seed %d: %d datagrams of %d, and %d bytes", seed, len(got), len(bodies), len(x.part))
		}
	}
}

// nowhere is a socket that is not used.
type nowhere struct{ net.PacketConn }

func (nowhere) LocalAddr() net.Addr         { return &net.UDPAddr{} }
func (nowhere) SetDeadline(time.Time) error { return nil }

func TestWhatIsReadAreTheDatagramsThatCame(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	s := newSocket(nowhere{}, Options{Max: MaxUDP, Stats: new(Stats)})
	x := s.newSession(source{key: []byte("x")})
	var put, got []byte
	for range 5000 {
		b := make([]byte, r.IntN(1+r.IntN(3000)))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		if x.put(b) {
			put = append(put, frames([][]byte{b})...)
		} else if len(put)-len(got) < inBytes-4000 {
			t.Fatalf("refused with %d bytes waiting", len(put)-len(got))
		}
		for r.IntN(4) > 0 {
			p := make([]byte, 1+r.IntN(8000))
			n, drained, err := x.TryRead(p)
			got = append(got, p[:n]...)
			if err != nil || drained != (len(got) == len(put)) {
				t.Fatalf("%d of %d bytes: %v, %v", len(got), len(put), drained, err)
			}
		}
	}
	if !bytes.HasPrefix(put, got) {
		t.Error("not what came")
	}
}

// The portable way behaves as the fast one does.
func TestPlainSocketDoesAllThatTheFastOneDoes(t *testing.T) {
	for _, fast := range []bool{true, false} {
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if !fast {
			pc = struct{ net.PacketConn }{pc}
		}
		stats := new(Stats)
		l := Listen(pc, Options{Max: 1000, Sessions: 10, Stats: stats})
		p, err := net.Dial("udp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		p.SetDeadline(time.Now().Add(10 * time.Second))
		p.Write(make([]byte, 1001))
		p.Write([]byte("hello"))
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		x := c.(*Conn).Transport()
		buf := make([]byte, 2000)
		n := 0
		x.Read(func() bool {
			m, _, _ := x.TryRead(buf[n:])
			n += m
			return n < HeaderSize+5
		})
		if string(buf[:n]) != "\x05\x00\x00\x00hello" {
			t.Errorf("read %q", buf[:n])
		}
		if n, ok, err := x.WriteNow([][]byte{buf[:n]}); n != HeaderSize+5 || !ok || err != nil {
			t.Errorf("WriteNow: %d, %v, %v", n, ok, err)
		}
		if n, err := p.Read(buf); err != nil || string(buf[:n]) != "hello" {
			t.Errorf("%q, %v", buf[:n], err)
		}
		if n := stats.Truncated.Load(); n != 1 {
			t.Errorf("%d were too long", n)
		}
		x.Kick(transport.ReadSide)
		if err := x.Read(func() bool { return true }); err != transport.ErrKicked {
			t.Errorf("kicked: %v", err)
		}
		l.Close()
		x.Close()
		p.Close()
		if _, err := l.Accept(); err == nil {
			t.Error("Accept after Close")
		}
	}
}

// What sessions hold that nobody has accepted is free again when the user has closed the
// socket: their bytes stayed taken.
func TestSocketThatItsUserClosesGivesBackWhatItHolds(t *testing.T) {
	for name, wrap := range map[string]func(net.PacketConn) net.PacketConn{
		"fast":  func(pc net.PacketConn) net.PacketConn { return pc },
		"plain": func(pc net.PacketConn) net.PacketConn { return struct{ net.PacketConn }{pc} },
	} {
		t.Run(name, func(t *testing.T) {
			pc, err := net.ListenPacket("udp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			var taken atomic.Int64
			l := Listen(wrap(pc), Options{
				Max: MaxUDP, Sessions: 1, Stats: new(Stats),
				Room: func(n int) bool { taken.Add(int64(n)); return true },
				Free: func(n int) { taken.Add(-int64(n)) },
			})
			for range 3 {
				c, err := net.Dial("udp", pc.LocalAddr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				for range 3 {
					c.Write(make([]byte, 3000))
				}
			}
			live := func() int {
				l.s.mu.Lock()
				defer l.s.mu.Unlock()
				return l.s.live
			}
			until(t, "they came", func() bool { return taken.Load() > 0 && live() == 3 })
			pc.Close()
			<-l.s.done
			if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Accept: %v", err)
			}
			until(t, "all is given back", func() bool { return taken.Load() == 0 && live() == 0 })
			if err := l.Close(); err != net.ErrClosed {
				t.Errorf("Close: %v", err)
			}
			if taken.Load() != 0 || live() != 0 {
				t.Errorf("given back twice: %d bytes, %d live", taken.Load(), live())
			}
		})
	}
}

// until waits for what nothing tells.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !cond(); <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// told is a connection that tells first of a path for which a datagram was too large.
type told struct {
	net.Conn
	news  atomic.Int32
	waits chan struct{} // closed when it is read after that, and not for a moment alone
	brief atomic.Bool
}

func (c *told) SetReadDeadline(t time.Time) error {
	c.brief.Store(!t.IsZero())
	return c.Conn.SetReadDeadline(t)
}

func (c *told) Read(p []byte) (int, error) {
	if c.news.Add(1) == 1 {
		return 0, &net.OpError{Op: "read", Net: "udp", Err: os.NewSyscallError("read", syscall.EMSGSIZE)}
	}
	if c.news.Load() == 2 && !c.brief.Load() {
		close(c.waits)
	}
	return c.Conn.Read(p)
}

// A router that takes no more than so much at a time is no reason to end anything.
func TestNewsOfThePathEndNothing(t *testing.T) {
	peer, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	nc, err := net.Dial("udp", peer.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	way := &told{Conn: nc, waits: make(chan struct{})}
	c := Connect(way, Options{Max: 1000, Stats: new(Stats)})
	defer c.Close()
	x, sent, over := c.Transport(), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(sent)
		select {
		case <-way.waits:
			peer.WriteTo([]byte("hello"), nc.LocalAddr())
		case <-over:
		}
	}()
	var n int
	buf := make([]byte, 1000)
	x.Read(func() (park bool) {
		n, _, err = x.TryRead(buf)
		return n == 0 && err == nil
	})
	close(over)
	<-sent
	if string(buf[:n]) != "\x05\x00\x00\x00hello" || err != nil {
		t.Errorf("read %q, %v", buf[:n], err)
	}
}

// What has come for a session, and was not read when that ended, is counted.
func TestUnreadDatagramsOfAnEndedSession(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 3))
	for range 200 {
		stats := new(Stats)
		s := newSocket(nowhere{}, Options{Max: MaxUDP, Sessions: 1, Stats: stats})
		s.listening = true
		x := s.admitLocked(&source{key: []byte("x")})
		s.letIn(x, false, false)
		var ends []int // of each frame
		put, read := 0, 0
		for range 1 + r.IntN(100) {
			b := make([]byte, r.IntN(1+r.IntN(1000)))
			if !x.put(b) {
				t.Fatal("refused")
			}
			put += HeaderSize + len(b)
			ends = append(ends, put)
			if r.IntN(3) == 0 {
				n, _, err := x.TryRead(make([]byte, 1+r.IntN(2000)))
				if err != nil {
					t.Fatal(err)
				}
				read += n
			}
		}
		want := len(ends)
		for _, end := range ends {
			if end <= read {
				want--
			}
		}
		x.Hangup()
		x.Close()
		if n := stats.Dropped.Load(); n != uint64(want) {
			t.Fatalf("%d counted; want %d of %d", n, want, len(ends))
		}
	}
}

// Whoever has to make place was heard of before all others that are let in.
func TestWhoHasToMakePlace(t *testing.T) {
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(1, seed))
		s := newSocket(nowhere{}, Options{Max: MaxUDP, Sessions: 1 + r.IntN(20), Evicted: io.EOF, Stats: new(Stats)})
		s.listening = true
		var known, waiting []string // who was heard of last, last; who waits, first
		for range 2000 {
			key := string(rune('a' + r.IntN(40)))
			switch r.IntN(4) {
			case 0, 1:
				(&round{s: s}).datagram(&source{key: []byte(key)}, nil, true)
				if i := slices.Index(known, key); i >= 0 {
					known = append(slices.Delete(known, i, i+1), key)
				} else if !slices.Contains(waiting, key) {
					waiting = append(waiting, key)
				}
			case 2:
				if len(waiting) == 0 {
					continue
				}
				key := waiting[r.IntN(len(waiting))]
				waiting = slices.DeleteFunc(waiting, func(k string) bool { return k == key })
				x := s.sessions[key]
				if evicted, ok := s.letIn(x, false, true); !ok || evicted != (len(known) == s.o.Sessions) {
					t.Fatal(seed, evicted, ok)
				} else if evicted {
					if s.sessions[known[0]] != nil {
						t.Fatalf("seed %d: %q had to go, and not somebody else", seed, known[0])
					}
					known = known[1:]
				}
				i, _ := slices.BinarySearchFunc(known, x.heard, func(k string, heard uint64) int { return cmp.Compare(s.sessions[k].heard, heard) })
				known = slices.Insert(known, i, key)
			default:
				if x := s.sessions[key]; x != nil {
					x.Close()
					known = slices.DeleteFunc(known, func(k string) bool { return k == key })
					waiting = slices.DeleteFunc(waiting, func(k string) bool { return k == key })
				}
			}
			if s.known != len(known) || len(s.sessions) != len(known)+len(waiting) {
				t.Fatalf("seed %d: %d of %d are let in; want %d of %d", seed, s.known, len(s.sessions), len(known), len(known)+len(waiting))
			}
		}
		for range len(known) {
			s.evictLocked()
		}
		if s.evictLocked() || s.idle.last() != nil || len(s.quiet) > 0 {
			t.Fatal(seed, "somebody is left")
		}
	}
}

// Who is new behind the end of the Listener is nobody's, and would keep the socket open.
func TestNewSourceBehindTheEndOfTheListener(t *testing.T) {
	stats := new(Stats)
	s := newSocket(nowhere{}, Options{Max: MaxUDP, Sessions: 10, Stats: stats})
	for range 3 {
		(&round{s: s}).datagram(&source{key: []byte("x")}, []byte("body"), true)
	}
	if len(s.sessions) > 0 || s.live > 0 || len(s.accepts) > 0 || stats.Dropped.Load() != 3 {
		t.Errorf("%d sessions, %d of them live, %d wait; %d dropped", len(s.sessions), s.live, len(s.accepts), stats.Dropped.Load())
	}
}

// A session has room for one datagram, however long, and for no more than inBytes else. What
// it has no room for is counted.
func TestDatagramsForWhichASessionHasNoRoom(t *testing.T) {
	stats := new(Stats)
	s := newSocket(nowhere{}, Options{Max: MaxUnix, Sessions: 10, Stats: stats})
	s.listening = true
	come := func(key string, size int, dropped uint64) {
		t.Helper()
		(&round{s: s}).datagram(&source{key: []byte(key)}, make([]byte, size), true)
		if n := stats.Dropped.Load(); n != dropped {
			t.Errorf("%d dropped, want %d", n, dropped)
		}
	}
	come("a", MaxUnix, 0)
	come("a", 0, 1)
	come("b", inBytes/2-HeaderSize, 1)
	come("b", inBytes/2-HeaderSize, 1)
	come("b", 0, 2)
}

// What a session's memory takes beyond its small buffer is asked for, as little as has to be
// if there is no room for more, and given back, all of it once.
func TestRoomOfASessionIsGivenBack(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(2, seed))
		limit, used := r.IntN(300_000), 0
		s := newSocket(nowhere{}, Options{
			Max: MaxUDP, Sessions: 1, Stats: new(Stats),
			Room: func(n int) bool {
				if used+n > limit {
					return false
				}
				used += n
				return true
			},
			Free: func(n int) { used -= n },
		})
		s.listening = true
		x := s.admitLocked(&source{key: []byte("x")})
		for range 100 {
			if r.IntN(4) > 0 {
				body := make([]byte, r.IntN(1+r.IntN(MaxUDP)))
				waiting, n := len(x.in)-x.r, HeaderSize+len(body)
				fits := waiting == 0 || waiting+n <= inBytes
				if got, want := x.put(body), fits && waiting+n-smallBuffer <= limit; got != want {
					t.Fatalf("seed %d: %d bytes behind %d, with room for %d: %v", seed, n, waiting, limit, got)
				}
			} else if _, _, err := x.TryRead(make([]byte, r.IntN(200_000))); err != nil {
				t.Fatal(err)
			}
			if want := max(0, cap(x.in)-smallBuffer); used != want {
				t.Fatalf("seed %d: room for %d, and %d bytes of memory", seed, used, want)
			}
		}
		x.Close()
		if used != 0 {
			t.Fatalf("seed %d: %d are left", seed, used)
		}
	}
}
