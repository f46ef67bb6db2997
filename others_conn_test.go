package sockhub_test

// Connections of another's making.

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
)

// A deadline that passes within a TLS handshake ends that for good, so nothing of the
// hub's may set one there.
func TestTLSConnOfTheUsersOwnShakesHandsFirst(t *testing.T) {
	for _, what := range []string{"a slow peer", "SetHandler at once"} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ca := newAuthority()
				r := newRoom(t, nil, nil)
				l := memnet.Listen(nil)
				if _, err := r.Serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{ca.certify("hub.example")}}),
					&sockhub.ListenOptions{Mode: sockhub.Anonymous}); err != nil {
					t.Fatal(err)
				}
				go func() {
					for b := range r.Events() {
						for _, c := range b.Unknown {
							if what == "SetHandler at once" {
								c.SetHandler(&handlerFuncs{message: func(r *sockhub.Reply, m []byte) { r.Send(m) }})
							}
						}
						for c, m := range b.Messages() {
							c.TrySend(m)
						}
					}
				}()
				p, err := l.Dial(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				<-time.After(time.Second)
				peer := tls.Client(p, &tls.Config{RootCAs: ca.pool, ServerName: "hub.example"})
				defer peer.Close()
				if err := peer.Handshake(); err != nil {
					t.Fatal(err)
				}
				peer.Write(frame("x"))
				expect(t, peer, frame("x"))
			})
		})
	}
	t.Run("Attach", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ca := newAuthority()
			r := newRoom(t, nil, nil)
			ours, theirs := memnet.Pair(nil)
			peer := tls.Server(theirs, &tls.Config{Certificates: []tls.Certificate{ca.certify("hub.example")}})
			defer peer.Close()
			time.AfterFunc(time.Second, func() { peer.Handshake() })
			c, err := r.Attach(t.Context(), tls.Client(ours, &tls.Config{RootCAs: ca.pool, ServerName: "hub.example"}),
				&sockhub.DialOptions{Mode: sockhub.Anonymous})
			if err != nil {
				t.Fatal(err)
			}
			if err := c.TrySend([]byte("x")); err != nil {
				t.Fatal(err)
			}
			expect(t, peer, frame("x"))
		})
	})
}

// It has HandshakeTimeout for that, as with ListenOptions.TLS.
func TestTLSConnOfTheUsersOwnThatStalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority()
		r := newRoom(t, nil, nil)
		ours, theirs := memnet.Pair(nil)
		defer theirs.Close()
		var err error
		took := within(func() {
			_, err = r.ServeConn(t.Context(), tls.Server(ours, &tls.Config{Certificates: []tls.Certificate{ca.certify("hub.example")}}),
				&sockhub.ListenOptions{Mode: sockhub.Anonymous})
		})
		if !errors.Is(err, sockhub.ErrHandshakeTimeout) || took != sockhub.DefaultHandshakeTimeout {
			t.Errorf("%v, after %v", err, took)
		}
	})
}

// spent is a connection that a read deadline ends for good if it passes during a Read,
// as it does with many that are streams over WebSockets.
type spent struct {
	net.Conn
	err error
}

func (b *spent) Read(p []byte) (n int, err error) {
	if b.err == nil {
		n, b.err = b.Conn.Read(p)
	}
	return n, b.err
}

// A connection that is silent is left in peace.
func TestSilentConnOfAnothersMakingIsNotInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, nil, nil)
		ours, theirs := net.Pipe()
		defer theirs.Close()
		c, err := r.ServeConn(t.Context(), &spent{Conn: ours}, &sockhub.ListenOptions{Mode: sockhub.Anonymous})
		if err != nil {
			t.Fatal(err)
		}
		r.take()
		<-time.After(time.Hour)
		if err := context.Cause(c.Context()); err != nil {
			t.Fatal(err)
		}
		theirs.Write(frame("x"))
		if b := r.take(); len(b.Received) != 1 {
			t.Error("nothing came")
		}
	})
}

// curt writes less than it was given, and says nothing of it.
type curt struct {
	net.Conn
	left int // bytes that it writes before that
}

func (c *curt) Write(p []byte) (int, error) {
	if c.left -= len(p); c.left < 0 {
		p = p[:len(p)/2]
	}
	return c.Conn.Write(p)
}

// Package tls relies on the error that goes with a short count.
func TestShortCountBelowTLS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority()
		r := newRoom(t, nil, nil)
		ours, theirs := memnet.Pair(nil)
		peer := tls.Client(theirs, &tls.Config{RootCAs: ca.pool, ServerName: "hub.example"})
		defer peer.Close()
		shaken := make(chan error, 1)
		go func() { shaken <- peer.Handshake() }()
		c, err := r.ServeConn(t.Context(), &curt{ours, 20_000}, &sockhub.ListenOptions{
			Mode: sockhub.Anonymous, TLS: &tls.Config{Certificates: []tls.Certificate{ca.certify("hub.example")}}})
		if err := errors.Join(err, <-shaken); err != nil {
			t.Fatal(err)
		}
		r.take()
		go io.Copy(io.Discard, peer)
		for k := range 300 {
			c.TrySend(numbered(k, 100))
		}
		<-c.Context().Done()
		if d := r.endOf(c); !errors.Is(d.Err, io.ErrShortWrite) || d.Report.WrittenMessages == 300 {
			t.Errorf("%v: %v", d.Err, d.Report)
		}
	})
}

// mirror gives itself as what lies below it.
type mirror struct{ net.Conn }

func (m mirror) NetConn() net.Conn { return m }

func TestConnWithoutAnEndOfLayers(t *testing.T) {
	r := openHub(t, nil)
	ours, theirs := net.Pipe()
	defer theirs.Close()
	served := make(chan error, 1)
	go func() {
		_, err := r.ServeConn(t.Context(), mirror{ours}, &sockhub.ListenOptions{Mode: sockhub.Anonymous})
		served <- err
	}()
	select {
	case err := <-served:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Error("ServeConn does not return")
	}
}

// late is a connection one Write of which takes everything, and fails.
type late struct {
	net.Conn
	after atomic.Int32 // so many Writes
}

func (l *late) Write(p []byte) (n int, err error) {
	if n, err = l.Conn.Write(p); err == nil && l.after.Add(-1) == 0 {
		err = errLate
	}
	return n, err
}

var errLate = errors.New("written, and failed")

// What has left counts as written, over TLS as without it.
func TestWriteThatTakesAllAndFails(t *testing.T) {
	for _, secured := range []bool{false, true} {
		for _, size := range []int{100, 20_000} {
			t.Run(fmt.Sprintf("TLS %v, %d bytes", secured, size), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r := newRoom(t, nil, nil)
					ours, theirs := memnet.Pair(nil)
					l := &late{Conn: ours}
					lo := &sockhub.ListenOptions{Mode: sockhub.Anonymous}
					var peer net.Conn = theirs
					shaken := make(chan error, 1)
					if secured {
						ca := newAuthority()
						lo.TLS = &tls.Config{Certificates: []tls.Certificate{ca.certify("hub.example")}}
						p := tls.Client(theirs, &tls.Config{RootCAs: ca.pool, ServerName: "hub.example"})
						go func() { shaken <- p.Handshake() }()
						peer = p
					} else {
						shaken <- nil
					}
					defer peer.Close()
					c, err := r.ServeConn(t.Context(), l, lo)
					if err := errors.Join(err, <-shaken); err != nil {
						t.Fatal(err)
					}
					r.take()
					synctest.Wait()
					l.after.Store(3)
					received := make(chan int, 1)
					go func() {
						n, _ := io.Copy(io.Discard, peer)
						received <- int(n) / len(frame(string(make([]byte, size))))
					}()
					for k := range 10 {
						c.TrySend(numbered(k, size))
						synctest.Wait()
					}
					<-c.Context().Done()
					d := r.endOf(c)
					if got := <-received; !errors.Is(d.Err, errLate) || int(d.Report.WrittenMessages) != got || d.Report.Cut && size == 100 {
						t.Errorf("%v: %v; %d came whole", d.Err, d.Report, got)
					}
				})
			})
		}
	}
}

// The reason of the end says what has failed, also where the reader tells of it because it
// has come to the end of the input.
func TestFailedWriteIsNoFailedRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, nil, nil)
		ours, theirs := memnet.Pair(nil)
		l := &late{Conn: ours}
		l.after.Store(1)
		c, err := r.ServeConn(t.Context(), l, &sockhub.ListenOptions{Mode: sockhub.Anonymous})
		if err != nil {
			t.Fatal(err)
		}
		r.take()
		c.TrySend([]byte("x"))
		expect(t, theirs, frame("x"))
		synctest.Wait()
		theirs.Close()
		<-c.Context().Done()
		d := r.endOf(c)
		if op, ok := errors.AsType[*net.OpError](d.Err); !ok || op.Op != "write" || op.Err != errLate {
			t.Errorf("ended with %v", d.Err)
		}
	})
}

// lingering is a connection of which Close waits.
type lingering struct {
	net.Conn
	closing, until chan struct{}
	once           sync.Once
}

func (l *lingering) Close() error {
	l.once.Do(func() { close(l.closing) })
	<-l.until
	return l.Conn.Close()
}

// some is a listener that gives what it is given.
type some struct {
	net.Listener
	conns chan net.Conn
}

func (s some) Accept() (net.Conn, error) {
	if c, ok := <-s.conns; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

func (s some) Close() error { close(s.conns); return nil }

// A Close that takes its time keeps nobody else from being accepted.
func TestCloseThatWaitsKeepsNobodyOut(t *testing.T) {
	for _, what := range []string{"refused", "refused before Classify", "evicted in Classify"} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRoom(t, &sockhub.Options{MaxPending: 1, HandshakeTimeout: -1}, nil)
				lo := &sockhub.ListenOptions{}
				if what != "refused" {
					lo.Classify = func(sockhub.Peer, []byte) (*sockhub.ListenOptions, int, error) { return nil, 1, nil }
				}
				l := some{memnet.Listen(nil), make(chan net.Conn)}
				defer l.Listener.Close()
				if _, err := r.Serve(l, lo); err != nil {
					t.Fatal(err)
				}
				until := make(chan struct{})
				defer close(until)
				closing := 0
				for range 4 {
					ours, theirs := memnet.Pair(nil)
					defer theirs.Close()
					c := &lingering{Conn: ours, closing: make(chan struct{}), until: until}
					go func() {
						<-c.closing
						closing++
					}()
					select {
					case l.conns <- c:
					case <-time.After(time.Minute):
						t.Fatal("is not accepted")
					}
					if synctest.Wait(); what == "evicted in Classify" {
						<-time.After(2 * time.Second)
					}
				}
				if synctest.Wait(); closing != 3 {
					t.Errorf("%d are closed; want 3", closing)
				}
			})
		})
	}
}

// polite is a connection of which Close takes its time, and which counts its calls.
type polite struct {
	net.Conn
	takes  time.Duration
	closes atomic.Int32
}

func (s *polite) Close() error {
	s.closes.Add(1)
	sleepFor(s.takes)
	return s.Conn.Close()
}

// Not every net.Conn can be closed twice.
func TestConnIsClosedOnce(t *testing.T) {
	server, _ := secure()
	const limit = 100 * time.Millisecond
	stays := func(sockhub.Peer, []byte) (*sockhub.ListenOptions, int, error) { return nil, 1, nil }
	for _, tt := range []struct {
		name string
		o    sockhub.Options
		lo   sockhub.ListenOptions
		end  func(*room, *sockhub.Listener)
	}{
		{name: "timeout in Classify", o: sockhub.Options{HandshakeTimeout: limit}, lo: sockhub.ListenOptions{Classify: stays}},
		{name: "timeout behind Classify", o: sockhub.Options{HandshakeTimeout: limit}, lo: sockhub.ListenOptions{
			Classify: func(sockhub.Peer, []byte) (*sockhub.ListenOptions, int, error) { return nil, 0, nil }}},
		{name: "refused by Classify", lo: sockhub.ListenOptions{
			Classify: func(sockhub.Peer, []byte) (*sockhub.ListenOptions, int, error) { return nil, 0, io.ErrNoProgress }}},
		{name: "made room in Classify", o: sockhub.Options{MaxPending: 1}, lo: sockhub.ListenOptions{Classify: stays}},
		{name: "Listener.Close", lo: sockhub.ListenOptions{Classify: stays}, end: func(_ *room, l *sockhub.Listener) { l.Close() }},
		{name: "Hub.Close", lo: sockhub.ListenOptions{Classify: stays}, end: func(r *room, _ *sockhub.Listener) { r.Close() }},
		{name: "Shutdown", lo: sockhub.ListenOptions{Classify: stays}, end: func(r *room, _ *sockhub.Listener) { r.Shutdown(context.Background()) }},
		{name: "timeout in TLS", o: sockhub.Options{HandshakeTimeout: limit}, lo: sockhub.ListenOptions{TLS: server}},
		{name: "Hub.Close in TLS", lo: sockhub.ListenOptions{TLS: server}, end: func(r *room, _ *sockhub.Listener) { r.Close() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRoom(t, &tt.o, nil)
				l := some{memnet.Listen(nil), make(chan net.Conn)}
				defer l.Listener.Close()
				sl, err := r.Serve(l, &tt.lo)
				if err != nil {
					t.Fatal(err)
				}
				var all []*polite
				for range 2 {
					ours, theirs := net.Pipe()
					defer theirs.Close()
					all = append(all, &polite{Conn: ours})
					l.conns <- all[len(all)-1]
					<-time.After(2 * time.Second) // who comes may make room then
				}
				if tt.end != nil {
					tt.end(r, sl)
				}
				r.Close()
				for _, c := range all {
					if n := c.closes.Load(); n != 1 {
						t.Errorf("closed %d times", n)
					}
				}
			})
		})
	}
}

// Nor do connections that say goodbye when they are closed keep others waiting.
func TestCloseThatWaitsKeepsNobodyIn(t *testing.T) {
	for what, end := range map[string]func(*room, *sockhub.Listener){
		"Hub.Close":      func(r *room, _ *sockhub.Listener) { r.Close() },
		"Shutdown":       func(r *room, _ *sockhub.Listener) { r.Shutdown(context.Background()) },
		"Listener.Close": func(_ *room, l *sockhub.Listener) { l.Close() },
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRoom(t, &sockhub.Options{HandshakeTimeout: -1}, nil)
				l := some{memnet.Listen(nil), make(chan net.Conn)}
				defer l.Listener.Close()
				sl, err := r.Serve(l, &sockhub.ListenOptions{
					Classify: func(sockhub.Peer, []byte) (*sockhub.ListenOptions, int, error) { return nil, 1, nil },
				})
				if err != nil {
					t.Fatal(err)
				}
				for range 5 {
					ours, theirs := net.Pipe()
					defer theirs.Close()
					l.conns <- &polite{Conn: ours, takes: time.Second}
				}
				_, p := r.serve(nil, nil)
				synctest.Wait()
				begun := time.Now()
				if what != "Listener.Close" {
					go func() {
						if n, err := p.Read(make([]byte, 1)); err == nil || time.Since(begun) > time.Second {
							t.Errorf("after %v another connection has %d, %v", time.Since(begun), n, err)
						}
					}()
				}
				if end(r, sl); time.Since(begun) > 2*time.Second {
					t.Errorf("it took %v", time.Since(begun))
				}
			})
		})
	}
}

// leaves is a connection of which Close ends the goroutine, as a test may that has failed.
type leaves struct{ net.Conn }

func (l leaves) Close() error {
	l.Conn.Close()
	runtime.Goexit()
	return nil
}

func TestCloseThatLeavesIsWaitedForNoLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, nil, nil)
		l := some{memnet.Listen(nil), make(chan net.Conn)}
		defer l.Listener.Close()
		if _, err := r.Serve(l, &sockhub.ListenOptions{
			Classify: func(sockhub.Peer, []byte) (*sockhub.ListenOptions, int, error) { return nil, 1, nil },
		}); err != nil {
			t.Fatal(err)
		}
		ours, theirs := net.Pipe()
		defer theirs.Close()
		l.conns <- leaves{ours}
		synctest.Wait()
		r.Close()
	})
}

// miscounts is a connection whose Reads say that they have got what they have not, from the
// one on before which so many were right.
type miscounts struct {
	net.Conn
	right int
	n     func(p []byte) int
}

func (m *miscounts) Read(p []byte) (int, error) {
	n, err := m.Conn.Read(p)
	if m.right--; m.right < 0 && err == nil {
		n = m.n(p)
	}
	return n, err
}

// A count that cannot be ends the connection alone, wherever it is read from.
func TestConnThatCannotCount(t *testing.T) {
	server, client := secure()
	server = server.Clone()
	server.SessionTicketsDisabled = true
	for _, tt := range []struct {
		name  string
		lo    sockhub.ListenOptions
		tls   bool
		right int
	}{
		{name: "messages", lo: sockhub.ListenOptions{Mode: sockhub.Anonymous}},
		{name: "Classify", lo: sockhub.ListenOptions{Classify: func(sockhub.Peer, []byte) (*sockhub.ListenOptions, int, error) { return nil, 8, nil }}},
		{name: "a PROXY header", lo: sockhub.ListenOptions{ProxyFrom: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}},
		{name: "a TLS handshake", lo: sockhub.ListenOptions{TLS: server}, tls: true},
		{name: "TLS", lo: sockhub.ListenOptions{TLS: server, Mode: sockhub.Anonymous}, tls: true, right: 4},
	} {
		for what, n := range map[string]func(p []byte) int{
			"more":              func(p []byte) int { return len(p) + 1 },
			"less than nothing": func([]byte) int { return -1 },
		} {
			t.Run(tt.name+", "+what, func(t *testing.T) {
				s := newStand(t, nil, nil)
				inner, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				defer inner.Close()
				l := some{inner, make(chan net.Conn)}
				if _, err := s.Serve(l, &tt.lo); err != nil {
					t.Fatal(err)
				}
				nc, err := net.Dial("tcp", inner.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer nc.Close()
				ours, err := inner.Accept()
				if err != nil {
					t.Fatal(err)
				}
				l.conns <- &miscounts{Conn: ours, right: tt.right, n: n}
				if tt.tls {
					nc = tls.Client(nc, client)
				}
				nc.SetDeadline(time.Now().Add(patience))
				for range 20 { // as TLS may have read a few times by then
					if _, err := nc.Write(wire([]byte("a message"))); err != nil {
						break
					}
					<-time.After(time.Millisecond)
				}
				if _, err := nc.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("the peer reads %v", err)
				}
				s.until("nobody is there", func() bool { st := s.Stats(); return st.Conns+st.Connecting == 0 })
				if n := s.Stats().Panics; n > 0 {
					t.Errorf("%d panics", n)
				}
			})
		}
	}
}

// odd does what a net.Conn may do, and sockets do not.
type odd struct {
	net.Conn
	rng     *rand.Rand
	most    int           // bytes that a Read gives
	nothing bool          // some Reads give no byte, and no error
	takes   int           // bytes that it writes before it fails
	closing time.Duration // that Close takes
}

func (o *odd) Read(p []byte) (int, error) {
	if o.nothing && o.rng.IntN(4) == 0 {
		return 0, nil
	}
	return o.Conn.Read(p[:min(len(p), 1+o.rng.IntN(o.most))])
}

func (o *odd) Write(p []byte) (int, error) {
	if o.takes -= len(p); o.takes >= 0 {
		return o.Conn.Write(p)
	}
	n, err := o.Conn.Write(p[:max(0, len(p)+o.takes)])
	return n, errors.Join(errors.New("it has failed"), err)
}

func (o *odd) Close() error {
	sleepFor(o.closing)
	return o.Conn.Close()
}

// oddHalves can end its output alone.
type oddHalves struct{ *odd }

func (o oddHalves) CloseWrite() error { return o.Conn.(interface{ CloseWrite() error }).CloseWrite() }

// oddly hides most connections behind odd ones, some of which fail.
func oddly(t *testing.T, nc net.Conn, rng *rand.Rand) (_ net.Conn, fails bool) {
	if rng.IntN(3) == 0 {
		return nc, false
	}
	o := &odd{Conn: nc, rng: fork(rng), most: 1 + rng.IntN(100_000), nothing: rng.IntN(3) == 0, takes: math.MaxInt}
	if fails = rng.IntN(4) == 0; fails {
		o.takes = 1000 + rng.IntN(200_000)
	}
	if rng.IntN(4) == 0 {
		o.closing = time.Duration(rng.IntN(30)) * time.Millisecond
	}
	var c net.Conn = o
	if _, ok := nc.(interface{ CloseWrite() error }); ok && rng.IntN(2) == 0 {
		c = oddHalves{o}
	} else if rng.IntN(2) == 0 {
		c = timelessConn{o}
	}
	t.Logf("%T: Reads of %d, or of nothing %v, takes %d, closes in %v", c, o.most, o.nothing, o.takes, o.closing)
	return c, fails
}

// wrapsErrors says more about its errors, so that they are not temporary any more.
type wrapsErrors struct{ net.Conn }

func (w wrapsErrors) Read(p []byte) (n int, err error) {
	if n, err = w.Conn.Read(p); err != nil && err != io.EOF {
		err = fmt.Errorf("on its way: %w", err)
	}
	return n, err
}

// What interrupts a Read below TLS does not end the connection.
func TestSetRawOverTLSOnAConnThatWrapsItsErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority()
		r := newRoom(t, nil, nil)
		ours, theirs := memnet.Pair(nil)
		peer := tls.Client(theirs, &tls.Config{RootCAs: ca.pool, ServerName: "hub.example"})
		defer peer.Close()
		go peer.Handshake()
		c, err := r.ServeConn(t.Context(), wrapsErrors{ours}, &sockhub.ListenOptions{
			Mode: sockhub.Anonymous, TLS: &tls.Config{Certificates: []tls.Certificate{ca.certify("hub.example")}}})
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for b := range r.Events() {
				for c, m := range b.Messages() {
					c.TrySend(m)
				}
			}
		}()
		synctest.Wait()
		c.SetRaw(true)
		synctest.Wait()
		peer.Write([]byte("raw"))
		expect(t, peer, []byte("raw"))
	})
}

// A connection of package net's that has no socket ends at once, and is an error where the peer
// is to say something first.
func TestConnWithoutASocket(t *testing.T) {
	hub := openHub(t, nil)
	for _, nc := range []net.Conn{new(net.TCPConn), new(net.UnixConn)} {
		if c, err := hub.ServeConn(t.Context(), nc, nil); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("ServeConn of a %T: %v, %v", nc, c, err)
		}
		c, err := hub.Attach(t.Context(), nc, &sockhub.DialOptions{Mode: sockhub.Anonymous})
		if err != nil {
			t.Fatal(err)
		}
		<-c.Context().Done()
		if err := context.Cause(c.Context()); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("Attach of a %T ended by: %v", nc, err)
		}
	}
}

// No connection at all is an error too, and one of Accept for a listener that gives none.
func TestNoConn(t *testing.T) {
	hub := openHub(t, nil)
	if _, err := hub.ServeConn(t.Context(), nil, nil); !errors.Is(err, syscall.EINVAL) {
		t.Error(err)
	}
	if _, err := hub.Attach(t.Context(), nil, &sockhub.DialOptions{Mode: sockhub.Raw}); !errors.Is(err, syscall.EINVAL) {
		t.Error(err)
	}
	l := some{memnet.Listen(nil), make(chan net.Conn, 1)}
	defer l.Listener.Close()
	if _, err := hub.Serve(l, nil); err != nil {
		t.Fatal(err)
	}
	l.conns <- nil
	eventually(t, "Accept has failed", func() bool { return hub.Stats().AcceptErrors == 1 })
}
