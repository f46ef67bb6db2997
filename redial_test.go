package sockhub_test

// DialOptions.Reconnect.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/sockhub/sockhub"
)

// noRoute makes dials that fail at once, and notes when they were made.
type noRoute struct {
	mu sync.Mutex
	at []time.Time
}

var errNoRoute = errors.New("no route")

func (n *noRoute) dialer() *net.Dialer {
	return &net.Dialer{Control: func(string, string, syscall.RawConn) error {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.at = append(n.at, time.Now())
		return errNoRoute
	}}
}

// waits are the times between the dials.
func (n *noRoute) waits() (w []time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := 1; i < len(n.at); i++ {
		w = append(w, n.at[i].Sub(n.at[i-1]))
	}
	return w
}

func TestWaitsBetweenDialsGrowUpToTheLongest(t *testing.T) {
	const s, ms = time.Second, time.Millisecond
	for _, test := range []struct {
		name   string
		b      sockhub.Backoff
		want   []time.Duration // then the last one again and again
		jitter float64
	}{
		{"defaults", sockhub.Backoff{}, []time.Duration{100 * ms, 160 * ms, 256 * ms, 409600 * time.Microsecond, 655360 * time.Microsecond,
			1048576 * time.Microsecond, 1677721600, 2684354560, 4294967296, 6871947674, 10995116278, 17592186045, 28147497671, 30 * s}, 0.2},
		{"without jitter", sockhub.Backoff{Min: s, Max: 5 * s, Factor: 2, Jitter: -1}, []time.Duration{s, 2 * s, 4 * s, 5 * s}, 0},
		{"constant", sockhub.Backoff{Min: 50 * ms, Factor: 1, Jitter: -1}, []time.Duration{50 * ms}, 0},
		{"all jitter", sockhub.Backoff{Min: s, Max: 3 * s, Factor: 3, Jitter: 1}, []time.Duration{s, 3 * s}, 1},
		{"longer than the default's longest", sockhub.Backoff{Min: 60 * s}, []time.Duration{60 * s}, 0.2},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := openHub(t, nil)
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute+7*time.Millisecond)
				defer cancel()
				var n noRoute
				_, err := hub.Dial(ctx, "tcp", "127.0.0.1:1", &sockhub.DialOptions{Name: "w", Reconnect: &test.b, Dialer: n.dialer()})
				if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, errNoRoute) {
					t.Errorf("Dial: %v; want the reasons of the context and of the last dial", err)
				}
				waits := n.waits()
				if len(waits) < 15 {
					t.Fatalf("%d dials", len(waits)+1)
				}
				exact := 0
				for i, w := range waits {
					want := test.want[min(i, len(test.want)-1)]
					spread := time.Duration(test.jitter*float64(want)) + time.Microsecond
					if w < want-spread || w > want+spread {
						t.Errorf("wait %d is %v, want %v ± %v", i, w, want, spread)
					}
					if (w - want).Abs() <= time.Microsecond {
						exact++
					}
				}
				if test.jitter > 0 && exact > len(waits)/2 {
					t.Errorf("%d of %d waits were not varied", exact, len(waits))
				}
			})
		})
	}
}

// A client whose end has a path is dialed again from it, and from no file of another's.
func TestRedialFromAPath(t *testing.T) {
	for _, network := range []string{"unix", "unixpacket"} {
		t.Run(network, func(t *testing.T) {
			dir := t.TempDir()
			s := newStand(t, nil, nil)
			l, err := s.Listen(soon(t), network, filepath.Join(dir, "s"), &sockhub.ListenOptions{Mode: sockhub.Anonymous})
			if err != nil {
				t.Skip(err)
			}
			clients := newStand(t, nil, nil)
			own := filepath.Join(dir, "own")
			if _, err := clients.Dial(soon(t), network, l.Addr().String(), &sockhub.DialOptions{
				Mode:   sockhub.Anonymous,
				Dialer: &net.Dialer{LocalAddr: &net.UnixAddr{Name: own, Net: network}}, Reconnect: &sockhub.Backoff{Min: time.Millisecond, Max: time.Millisecond},
			}); err != nil {
				t.Fatal(err)
			}
			for i := range 3 {
				c := s.nth(i)
				if p := c.Peer().Remote.String(); p != own {
					t.Errorf("it comes from %q", p)
				}
				c.Close()
			}
			s.nth(3)
			os.Remove(own)
			if err := os.WriteFile(own, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			s.nth(3).Close()
			eventually(t, "its end is known", func() bool { return clients.Stats().Disconnected == 4 })
			if _, err := os.Stat(own); err != nil {
				t.Error(err)
			}
		})
	}
}

// An attempt whose time is over when it has just bound its end leaves its file behind too.
func TestRedialFromAPathAfterALateAttempt(t *testing.T) {
	dir := t.TempDir()
	s := newStand(t, nil, nil)
	l, err := s.Listen(soon(t), "unix", filepath.Join(dir, "s"), &sockhub.ListenOptions{Mode: sockhub.Anonymous})
	if err != nil {
		t.Fatal(err)
	}
	attempts := 0
	_, err = newStand(t, nil, nil).Dial(soon(t), "unix", l.Addr().String(), &sockhub.DialOptions{
		Mode: sockhub.Anonymous, Timeout: 100 * time.Millisecond, Reconnect: &sockhub.Backoff{Min: time.Millisecond, Max: 50 * time.Millisecond},
		Dialer: &net.Dialer{
			LocalAddr: &net.UnixAddr{Name: filepath.Join(dir, "own"), Net: "unix"},
			Control: func(string, string, syscall.RawConn) error {
				if attempts++; attempts == 1 {
					<-time.After(200 * time.Millisecond)
				}
				return nil
			},
		},
	})
	if err != nil {
		t.Errorf("%v, after %d attempts", err, attempts)
	}
}

// The longest wait that there is does not become none by its jitter.
func TestWaitOfCenturies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, nil)
		for range 10 { // the jitter adds to half of them
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			defer cancel()
			var n noRoute
			hub.Dial(ctx, "tcp", "127.0.0.1:1", &sockhub.DialOptions{Name: "w", Reconnect: &sockhub.Backoff{Min: math.MaxInt64}, Dialer: n.dialer()})
			if w := n.waits(); len(w) > 0 {
				t.Fatalf("dialed again after %v", w[0])
			}
		}
	})
}

func TestFirstDialEndsWithItsContextOrTheHub(t *testing.T) {
	cause := errors.New("changed my mind")
	for _, test := range []struct {
		name string
		end  func(hub *sockhub.Hub, cancel context.CancelCauseFunc)
		want error
	}{
		{"its context", func(_ *sockhub.Hub, cancel context.CancelCauseFunc) { cancel(cause) }, cause},
		{"Close", func(hub *sockhub.Hub, _ context.CancelCauseFunc) { hub.Close() }, sockhub.ErrClosed},
		{"Shutdown", func(hub *sockhub.Hub, _ context.CancelCauseFunc) { hub.Shutdown(context.Background()) }, sockhub.ErrClosed},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := openHub(t, nil)
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				var n noRoute
				time.AfterFunc(50*time.Second, func() { test.end(hub, cancel) })
				begun := time.Now()
				_, err := hub.Dial(ctx, "tcp", "127.0.0.1:1", &sockhub.DialOptions{Name: "w", Reconnect: &sockhub.Backoff{}, Dialer: n.dialer()})
				if !errors.Is(err, test.want) {
					t.Errorf("Dial: %v, want %v", err, test.want)
				}
				if d := time.Since(begun); d != 50*time.Second {
					t.Errorf("it ended after %v", d)
				}
				dials := len(n.waits())
				<-time.After(time.Hour)
				if more := len(n.waits()) - dials; more > 0 {
					t.Errorf("dialed %d times more", more)
				}
			})
		})
	}
}

func TestFailedDialIsNotTriedAgainWithoutReconnect(t *testing.T) {
	s := newStand(t, nil, nil)
	var n noRoute
	_, err := s.Dial(soon(t), "tcp", "127.0.0.1:1", &sockhub.DialOptions{Name: "w", Dialer: n.dialer()})
	if !errors.Is(err, errNoRoute) || len(n.at) != 1 {
		t.Errorf("%d dials, %v", len(n.at), err)
	}
	l := newDialed(t)
	go func() { l.next().Close() }() // after the name, before OK
	if _, err := s.Dial(soon(t), "tcp", l.addr(), &sockhub.DialOptions{Name: "w"}); !errors.Is(err, sockhub.ErrRefused) {
		t.Errorf("refused: %v", err)
	}
	l.quiet()
}

// ---- with a server ----

// often is a Backoff for tests on the real clock.
var often = &sockhub.Backoff{Min: 2 * time.Millisecond, Max: 10 * time.Millisecond}

// dialed is a server that is dialed.
type dialed struct {
	*net.TCPListener
	t *testing.T
}

func newDialed(t *testing.T) dialed {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return dialed{l.(*net.TCPListener), t}
}

func (l dialed) addr() string { return l.Addr().String() }

// next waits for a connection and its name, and does not answer it.
func (l dialed) next() *peer {
	l.t.Helper()
	l.SetDeadline(time.Now().Add(patience))
	nc, err := l.Accept()
	if err != nil {
		l.t.Error(err)
		panic(err)
	}
	p := greet(l.t, nc, "")
	if name, err := p.tryReceive(); err == nil && string(name) != "w" {
		l.t.Errorf("the name is %q", name)
	}
	return p
}

// welcome is next, answered OK.
func (l dialed) welcome() *peer {
	l.t.Helper()
	p := l.next()
	p.Write(wire([]byte("OK")))
	return p
}

// quiet checks that nobody dials for many times the wait of often.
func (l dialed) quiet() {
	l.t.Helper()
	l.SetDeadline(time.Now().Add(100 * time.Millisecond))
	if nc, err := l.Accept(); err == nil {
		nc.Close()
		l.t.Error("dialed again")
	}
}

func TestOneIDThroughAllRedials(t *testing.T) {
	s := newStand(t, &sockhub.Options{Name: "w"}, nil)
	l := newDialed(t)
	go func() {
		for range 3 { // ErrRefused is no reason to give up
			l.next().Close()
		}
		l.welcome().Close()
	}()
	first, err := s.Dial(soon(t), "tcp", l.addr(), &sockhub.DialOptions{Reconnect: often})
	if err != nil {
		t.Fatal(err)
	}
	id := first.ID()
	if _, ok := s.Lookup("w"); ok {
		t.Error("our own name is in the registry")
	}
	const n = 5
	for i := 1; i <= n; i++ {
		l.next().Close()
		p := l.welcome()
		c := s.nth(i)
		if c.ID() != id || !c.Peer().Dialed || c == first {
			t.Errorf("connection %d is %v of %d, want %d", i, c, c.ID(), id)
		}
		if now, ok := s.Conn(id); !ok || now != c {
			t.Errorf("Conn(%d) is %v, want %v", id, now, c)
		}
		if err := s.TrySend(id, []byte{byte(i)}); err != nil {
			t.Error(err)
		}
		if m := p.receive(); len(m) != 1 || int(m[0]) != i {
			t.Errorf("received %q, want %d", m, i)
		}
		p.Close()
		s.end(c)
	}
	l.Close()
	s.until("the last end", func() bool { return len(s.gone) == n+1 })
	if err := s.TrySend(id, nil); !errors.Is(err, sockhub.ErrNotConnected) {
		t.Errorf("TrySend while away: %v", err)
	}
	if st := s.Stats(); st.Dialed != n+1 || st.Conns != 0 {
		t.Errorf("%+v", st)
	}
}

func TestRedialingEndsAsAsked(t *testing.T) {
	for _, test := range []struct {
		name  string
		end   func(s *stand, c *sockhub.Conn)
		after bool // the peer has ended the connection
	}{
		{"Forget", func(s *stand, c *sockhub.Conn) { s.Forget(c.ID()) }, false},
		{"Forget while away", func(s *stand, c *sockhub.Conn) { s.Forget(c.ID()) }, true},
		{"Conn.Close", func(_ *stand, c *sockhub.Conn) { c.Close() }, false},
		{"Conn.Finish", func(_ *stand, c *sockhub.Conn) { c.Finish() }, false},
		{"Hub.Close", func(s *stand, _ *sockhub.Conn) { s.Close() }, false},
		{"Hub.Close while away", func(s *stand, _ *sockhub.Conn) { s.Close() }, true},
		{"Hub.Shutdown", func(s *stand, _ *sockhub.Conn) { s.Shutdown(context.Background()) }, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newStand(t, nil, nil)
			l := newDialed(t)
			c, p := s.keep(l)
			if test.after {
				p.Close()
				s.end(c)
				l.next().Close() // refused, so that there is no connection
			}
			test.end(s, c)
			if !test.after {
				p.atEnd()
				p.Close()
				if d := s.end(c); !errors.Is(d.Err, sockhub.ErrClosed) {
					t.Errorf("the end is %v", d.Err)
				}
			} else if l.SetDeadline(time.Now().Add(20 * time.Millisecond)); true {
				// One dial may have been under way.
				if nc, err := l.Accept(); err == nil {
					nc.Close()
				}
			}
			l.quiet()
			s.gives(c.ID(), sockhub.ErrUnknownID, sockhub.ErrClosed)
		})
	}
}

// keep dials the peer that l lets in, again and again, and returns both ends.
func (s *stand) keep(l dialed) (*sockhub.Conn, *peer) {
	s.t.Helper()
	peers := make(chan *peer, 1)
	go func() { peers <- l.welcome() }()
	c, err := s.Dial(soon(s.t), "tcp", l.addr(), &sockhub.DialOptions{Name: "w", Reconnect: often})
	if err != nil {
		s.t.Fatal(err)
	}
	return c, <-peers
}

// gives waits until a TrySend to the client returns one of these.
func (s *stand) gives(id sockhub.ID, want ...error) {
	s.t.Helper()
	eventually(s.t, fmt.Sprintf("TrySend to %d returns one of %v", id, want), func() bool {
		err := s.TrySend(id, nil)
		return slices.ContainsFunc(want, func(w error) bool { return errors.Is(err, w) })
	})
}

// eventually waits for what no event tells.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// An end that was asked for is one also if it does not go as it should.
func TestFinishThatFailsEndsRedialingToo(t *testing.T) {
	s := newStand(t, nil, nil)
	l := newDialed(t)
	c, p := s.keep(l)
	p.Conn.(*net.TCPConn).SetReadBuffer(64 << 10) // or the system goes on taking more
	full := 0
	eventually(t, "the sockets are full", func() bool {
		if c.TrySend(make([]byte, 1<<20)) == nil {
			full = 0
		}
		full++
		return full > 50 // ms
	})
	if err := c.Finish(); err != nil {
		t.Fatal(err)
	}
	p.Conn.(*net.TCPConn).SetLinger(0)
	p.Close()
	if d := s.end(c); errors.Is(d.Err, sockhub.ErrClosed) || d.Report.UnsentMessages == 0 {
		t.Errorf("the end is %v; %d unsent", d.Err, d.Report.UnsentMessages)
	}
	l.quiet()
	s.gives(c.ID(), sockhub.ErrUnknownID)
}

// What a reader of the user's fails with is no end that was asked for, whatever it wraps.
func TestErrorThatWrapsErrClosedIsNotAskedFor(t *testing.T) {
	s := newStand(t, nil, nil)
	s.readers = true
	l := newDialed(t)
	c, p := s.keep(l)
	go io.Copy(io.Discard, p)
	broken := iotest.ErrReader(fmt.Errorf("relayed: %w", sockhub.ErrClosed))
	if err := c.SendFrom(soon(t), 1<<20, io.MultiReader(io.LimitReader(endless{}, 1<<19), broken)); !errors.Is(err, sockhub.ErrClosed) {
		t.Error(err)
	}
	s.end(c)
	if err := c.TrySend(nil); err != sockhub.ErrNotConnected {
		t.Errorf("a Send is told %v", err)
	}
	l.welcome()
	s.Forget(c.ID())
}

// A Handler that cannot answer closes its connection, and must not end redialing with
// that: what has ended the connection is the peer, which the reader is about to see.
func TestEndThatIsNoticedByASendIsNotAskedFor(t *testing.T) {
	for name, end := range map[string]func(*sockhub.Reply){
		"Close":      (*sockhub.Reply).Close,
		"Finish":     (*sockhub.Reply).Finish,
		"Conn.Close": func(r *sockhub.Reply) { r.Conn().Close() },
		"Conn.Finish": func(r *sockhub.Reply) {
			if err := r.Conn().Finish(); err != sockhub.ErrNotConnected {
				panic(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStand(t, nil, nil)
			l := newDialed(t)
			gone := make(chan struct{})
			reason := make(chan error, 1)
			h := &handlerFuncs{
				message: func(r *sockhub.Reply, m []byte) {
					<-gone
					for r.Send(m) == nil { // until the system knows
						r.Flush()
						<-time.After(time.Millisecond)
					}
					end(r)
				},
				disconnected: func(d sockhub.Disconnection) { reason <- d.Err },
			}
			go func() {
				p := l.welcome()
				p.send([]byte("work"))
				p.Conn.(*net.TCPConn).SetLinger(0)
				p.Close()
				close(gone)
			}()
			o := &sockhub.DialOptions{Name: "w", Reconnect: often, Handler: func(*sockhub.Conn) sockhub.Handler { return h }}
			c, err := s.Dial(soon(t), "tcp", l.addr(), o)
			if err != nil {
				t.Fatal(err)
			}
			var system *net.OpError
			if err := <-reason; errors.Is(err, sockhub.ErrClosed) || !errors.As(err, &system) {
				t.Errorf("the reason is %v", err)
			}
			l.welcome() // again
			s.Forget(c.ID())
		})
	}
}

// The waits grow as if the peer had refused.
func TestPeerThatEndsEveryConnectionIsNotDialedInATightLoop(t *testing.T) {
	for _, test := range []struct {
		name   string
		accept func(l dialed)
	}{
		{"after OK", func(l dialed) { l.welcome().Close() }},
		{"before OK", func(l dialed) { l.next().Close() }},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newStand(t, nil, nil)
			l := newDialed(t)
			b := &sockhub.Backoff{Min: 50 * time.Millisecond, Max: 200 * time.Millisecond, Factor: 2, Jitter: -1}
			const n = 6
			at := make(chan time.Time, n+1)
			go func() {
				l.welcome().Close()
				for range n {
					test.accept(l)
					at <- time.Now()
				}
				close(at)
			}()
			c, err := s.Dial(soon(t), "tcp", l.addr(), &sockhub.DialOptions{Name: "w", Reconnect: b})
			if err != nil {
				t.Fatal(err)
			}
			begun := <-at
			var last time.Time
			for last = range at {
			}
			// It would be n-1 times Min if they did not grow, and is 900 ms if
			// none of the connections lives longer than its wait by accident.
			d := last.Sub(begun)
			if t.Log(n, "dials within", d); d < 2*(n-1)*b.Min {
				t.Errorf("%d dials within %v", n, d)
			}
			s.Forget(c.ID())
		})
	}
}

// A program that takes no events for a while finds the new connection there,
// not the ruins of several.
func TestRedialDoesNotTimeOutBecauseNobodyTakesTheEvents(t *testing.T) {
	hub := openHub(t, nil)
	l := newDialed(t)
	peers := make(chan *peer, 2)
	go func() {
		peers <- l.welcome()
		peers <- l.welcome()
	}()
	if _, err := hub.Dial(soon(t), "tcp", l.addr(), &sockhub.DialOptions{Name: "w", Reconnect: often, Timeout: 50 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	p := <-peers
	p.Conn.(*net.TCPConn).SetLinger(0)
	p.Close()
	p = <-peers
	l.quiet() // longer than Timeout
	p.send([]byte("hello"))
	var got []string
	for len(got) < 4 {
		select {
		case b := <-hub.Events():
			got = append(got, batchText(b)...)
		case <-soon(t).Done():
			t.Fatalf("no more events after %q", got)
		}
	}
	got[1] = got[1][:min(len(got[1]), len("disconnected"))]
	if want := []string{"connected w", "disconnected", "connected w", "message w hello"}; !slices.Equal(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
}

// The answer of the peer and Forget come at the same time.
func TestForgetWhileARedialIsAnswered(t *testing.T) {
	n := 200
	if testing.Short() {
		n = 40
	}
	s := newStand(t, nil, nil)
	for i := range n {
		l := newDialed(t)
		answered := make(chan *peer, 1)
		go func() { l.welcome().Close() }()
		c, err := s.Dial(soon(t), "tcp", l.addr(), &sockhub.DialOptions{
			Name: "w", Reconnect: &sockhub.Backoff{Min: time.Microsecond, Max: time.Microsecond}})
		if err != nil {
			t.Fatal(err)
		}
		s.end(c)
		p := l.next()
		go func() {
			p.Write(wire([]byte("OK")))
			answered <- p
		}()
		if i%2 == 0 {
			<-time.After(time.Duration(i) * time.Microsecond)
		}
		if err := s.Forget(c.ID()); err != nil {
			t.Fatal(err)
		}
		p = <-answered
		if _, err := p.tryReceive(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("round %d: the connection lives on: %v", i, err)
		}
		p.Close()
		s.gives(c.ID(), sockhub.ErrUnknownID)
		l.Close()
	}
	s.until("all ends", func() bool { return len(s.gone) == len(s.conns) })
}

// The wait before a dial goes on from the one before, if the connection did not last.
func TestTheWaitGoesOnAfterAConnection(t *testing.T) {
	s := newStand(t, nil, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var attempts atomic.Int32
	dialer := &net.Dialer{Control: func(string, string, syscall.RawConn) error {
		if attempts.Add(1) == 1 {
			return errors.New("not yet")
		}
		return nil
	}}
	const first = 200 * time.Millisecond // the wait; the next is of an hour
	if _, err := s.Dial(soon(t), "tcp", l.Addr().String(), &sockhub.DialOptions{Mode: sockhub.Anonymous, Dialer: dialer,
		Reconnect: &sockhub.Backoff{Min: first, Factor: 18000, Max: time.Hour, Jitter: -1}}); err != nil {
		t.Fatal(err)
	}
	dialer.Control = nil // it was copied
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
	c := s.first()
	if s.end(c); time.Since(c.Stats().Since) >= first {
		t.Skip("this machine is so slow that the connection has lasted longer than the wait before it")
	}
	l.(*net.TCPListener).SetDeadline(time.Now().Add(2 * first))
	if _, err := l.Accept(); err == nil {
		t.Error("dialed again without the wait")
	}
	if n := attempts.Load(); n != 2 {
		t.Errorf("%d attempts", n)
	}
}

// A connection that lasted longer than the wait before it starts that anew.
func TestTheWaitBeginsAnewAfterAConnectionThatLasted(t *testing.T) {
	s, l := newStand(t, nil, nil), newDialed(t)
	lasted := make(chan time.Time)
	go func() {
		l.next().Close() // then 20 ms
		l.next().Close() // then 400 ms
		p := l.welcome()
		<-time.After(500 * time.Millisecond)
		p.Close()
		lasted <- time.Now()
		l.welcome()
		lasted <- time.Now()
	}()
	c, err := s.Dial(soon(t), "tcp", l.addr(), &sockhub.DialOptions{
		Name: "w", Reconnect: &sockhub.Backoff{Min: 20 * time.Millisecond, Factor: 20, Jitter: -1}})
	if err != nil {
		t.Fatal(err)
	}
	over := <-lasted
	if d := (<-lasted).Sub(over); d > 4*time.Second { // it would be 8 s
		t.Errorf("dialed again after %v", d)
	}
	s.Forget(c.ID())
}
