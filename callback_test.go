package sockhub_test

// Callbacks that call back, block, panic, or leave.

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
)

func mustEndWithin(t *testing.T, what string, d time.Duration, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(d):
		t.Fatalf("%s hangs", what)
	}
}

func TestShutdownWithinAHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		done := make(chan error, 1)
		var hub *sockhub.Hub
		h := &handlerFuncs{message: func(r *sockhub.Reply, m []byte) {
			ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
			defer cancel()
			start := time.Now()
			err := hub.Shutdown(ctx)
			if time.Since(start) > time.Minute {
				err = errors.New("took an hour: " + err.Error())
			}
			done <- err
		}}
		hub = openHub(t, nil)
		_, p := serveMemory(t, hub, nil, sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
		p.Write(frame("x"))
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

// Each of them waits for the other's connection too.
func TestShutdownWithinTwoHandlers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, nil)
		done := make(chan error, 2)
		h := &handlerFuncs{message: func(*sockhub.Reply, []byte) {
			<-time.After(time.Second) // both are called
			ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
			defer cancel()
			done <- hub.Shutdown(ctx)
		}}
		for range 2 {
			_, p := serveMemory(t, hub, nil, sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
			p.Write(frame("x"))
		}
		start := time.Now()
		for range 2 {
			if err := <-done; err != nil || time.Since(start) > time.Minute {
				t.Errorf("%v after %v", err, time.Since(start))
			}
		}
	})
}

// The connection of who calls it from a reader that is sent from waits for him.
func TestShutdownWithinAReaderToSendFrom(t *testing.T) {
	for _, where := range []string{"Read", "Close"} {
		t.Run(where, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := openHub(t, nil)
				done := make(chan error, 1)
				shutdown := func() {
					ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
					defer cancel()
					done <- hub.Shutdown(ctx)
				}
				from := &hookedReader{read: func() {}, close: func() {}}
				if where == "Read" {
					from.read = shutdown
				} else {
					from.close = shutdown
				}
				h := &handlerFuncs{message: func(r *sockhub.Reply, _ []byte) { r.SendFrom(1000, from) }}
				_, p := serveMemory(t, hub, nil, sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
				start := time.Now()
				p.Write(frame("x"))
				if err := <-done; err != nil || time.Since(start) > time.Minute {
					t.Errorf("%v after %v", err, time.Since(start))
				}
			})
		})
	}
}

// hookedReader calls back when it is read first, and when it is closed.
type hookedReader struct {
	endless
	once        sync.Once
	read, close func()
}

func (r *hookedReader) Read(p []byte) (int, error) {
	r.once.Do(r.read)
	return r.endless.Read(p)
}

func (r *hookedReader) Close() error { r.close(); return nil }

// What runs in a handshake lets nobody in any more, and so is not what Shutdown is given
// time for; but a Handler is, also where it is called from there.
func TestShutdownDuringAHandshakeThatBlocks(t *testing.T) {
	server, client := secure()
	type call func() error // made in the handshake of a peer that says who it is
	for what, in := range map[string]func(o *sockhub.Options, lo *sockhub.ListenOptions, call call) *sockhub.ClientOptions{
		"a hub's rule": func(o *sockhub.Options, _ *sockhub.ListenOptions, call call) *sockhub.ClientOptions {
			o.Admit = func(sockhub.Peer) error { return call() }
			return nil
		},
		"a listener's rule": func(_ *sockhub.Options, lo *sockhub.ListenOptions, call call) *sockhub.ClientOptions {
			lo.Admit = func(sockhub.Peer) error { return call() }
			return nil
		},
		"a name's rule": func(_ *sockhub.Options, _ *sockhub.ListenOptions, call call) *sockhub.ClientOptions {
			return &sockhub.ClientOptions{Admit: func(sockhub.Peer) error { return call() }}
		},
		"Classify": func(_ *sockhub.Options, lo *sockhub.ListenOptions, call call) *sockhub.ClientOptions {
			lo.Classify = func(sockhub.Peer, []byte) (*sockhub.ListenOptions, int, error) { return nil, 0, call() }
			return nil
		},
		"GetConfigForClient": func(_ *sockhub.Options, lo *sockhub.ListenOptions, call call) *sockhub.ClientOptions {
			lo.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return server, call() }}
			return nil
		},
	} {
		for _, within := range []bool{false, true} {
			for _, busy := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, called there %v, beside a Handler %v", what, within, busy), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						const long = 10 * sockhub.DefaultLinger
						var (
							o     sockhub.Options
							lo    sockhub.ListenOptions
							hub   *sockhub.Hub
							asked = make(chan struct{})
							leave = make(chan struct{})
							done  = make(chan error, 1)
						)
						shutdown := func() {
							ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
							defer cancel()
							done <- hub.Shutdown(ctx)
						}
						name := in(&o, &lo, func() error {
							close(asked)
							if within {
								shutdown()
							}
							<-leave
							return nil
						})
						hub = openHub(t, &o)
						inner := memnet.Listen(nil)
						if _, err := hub.Serve(inner, &lo); err != nil {
							t.Fatal(err)
						}
						if _, err := hub.Expect("x", name); err != nil {
							t.Fatal(err)
						}
						defer close(leave)
						least := time.Duration(0)
						if busy && o.Admit == nil {
							least = long
							h := &handlerFuncs{message: func(*sockhub.Reply, []byte) { <-time.After(long) }}
							_, p := serveMemory(t, hub, nil, sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
							p.Write(frame("x"))
							synctest.Wait() // it is called
						}
						begun := time.Now()
						var p net.Conn
						p, err := inner.Dial(t.Context())
						if err != nil {
							t.Fatal(err)
						}
						defer p.Close()
						go func() {
							if lo.TLS != nil {
								p = tls.Client(p, client)
							}
							p.Write(frame("x"))
						}()
						<-asked
						if !within {
							shutdown()
						}
						if err, took := <-done, time.Since(begun); err != nil || took < least || took > least+3*sockhub.DefaultLinger {
							t.Errorf("%v after %v", err, took)
						}
					})
				})
			}
		}
	}
}

func TestCloseWithinClassify(t *testing.T) {
	hub, _ := sockhub.New(context.Background(), nil)
	done := make(chan struct{})
	l, err := hub.Listen(t.Context(), "tcp", "127.0.0.1:0", &sockhub.ListenOptions{Mode: sockhub.Anonymous,
		Classify: func(sockhub.Peer, []byte) (*sockhub.ListenOptions, int, error) {
			hub.Close()
			close(done)
			return nil, 0, nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	nc, _ := net.Dial("tcp", l.Addr().String())
	defer nc.Close()
	mustEndWithin(t, "Close within Classify", 3*time.Second, func() { <-done })
}

func TestCloseWithinACallbackOfTLS(t *testing.T) {
	hub, _ := sockhub.New(context.Background(), nil)
	done := make(chan struct{})
	l, err := hub.Listen(t.Context(), "tcp", "127.0.0.1:0", &sockhub.ListenOptions{Mode: sockhub.Anonymous,
		TLS: &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			hub.Close()
			close(done)
			return nil, io.EOF
		}}})
	if err != nil {
		t.Fatal(err)
	}
	nc, _ := net.Dial("tcp", l.Addr().String())
	defer nc.Close()
	go tls.Client(nc, &tls.Config{InsecureSkipVerify: true}).Handshake()
	mustEndWithin(t, "Close within GetCertificate", 3*time.Second, func() { <-done })
}

// The goroutine that dials again waits for the Handler, and Close for this goroutine.
func TestCloseWithinTheFactoryOfARedial(t *testing.T) {
	for name, end := range map[string]func(*sockhub.Hub){
		"Close":    func(h *sockhub.Hub) { h.Close() },
		"Shutdown": func(h *sockhub.Hub) { h.Shutdown(context.Background()) },
	} {
		t.Run(name, func(t *testing.T) {
			server := newStand(t, nil, nil)
			l := server.listen("tcp4", nil)
			hub := openHub(t, &sockhub.Options{Linger: 50 * time.Millisecond})
			var made atomic.Int32
			done := make(chan struct{})
			_, err := hub.Dial(soon(t), "tcp4", l.Addr().String(), &sockhub.DialOptions{
				Name: "a", Reconnect: &sockhub.Backoff{Min: time.Millisecond, Max: time.Millisecond},
				Handler: func(*sockhub.Conn) sockhub.Handler {
					if made.Add(1) == 2 {
						end(hub)
						close(done)
					}
					return sockhub.BaseHandler{}
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			server.first().Close()
			mustEndWithin(t, name, patience, func() { <-done })
		})
	}
}

type askingLog struct {
	slog.Handler
	hub **sockhub.Hub
	n   *atomic.Int32
}

func (l askingLog) Enabled(context.Context, slog.Level) bool { return true }

func (l askingLog) Handle(context.Context, slog.Record) error {
	(*l.hub).Stats()
	l.n.Add(1)
	return nil
}

func TestLoggerAsksTheHub(t *testing.T) {
	var hub *sockhub.Hub
	var n atomic.Int32
	h, err := sockhub.New(context.Background(), &sockhub.Options{Admit: sockhub.Nobody(), Logger: slog.New(askingLog{slog.DiscardHandler, &hub, &n})})
	if err != nil {
		t.Fatal(err)
	}
	hub = h
	l, err := hub.Listen(t.Context(), "tcp", "127.0.0.1:0", &sockhub.ListenOptions{Mode: sockhub.Anonymous})
	if err != nil {
		t.Fatal(err)
	}
	nc, _ := net.Dial("tcp", l.Addr().String())
	defer nc.Close()
	io.ReadAll(nc)
	<-time.After(200 * time.Millisecond)
	mustEndWithin(t, "Stats after a refused peer", 3*time.Second, func() { hub.Stats(); hub.Close() })
}

type stuckCloser struct {
	r     *io.PipeReader
	w     *io.PipeWriter
	block chan struct{}
}

func (x *stuckCloser) Read(p []byte) (int, error) { return x.r.Read(p) }

func (x *stuckCloser) Write(p []byte) (int, error) { return len(p), nil }

func (x *stuckCloser) Close() error {
	x.r.Close()
	<-x.block // like the Close of a child's pipes, which waits for the child
	return nil
}

func TestCloseThatBlocksStopsNoClocks(t *testing.T) {
	hub, err := sockhub.New(context.Background(), &sockhub.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	x := &stuckCloser{r, w, make(chan struct{})}
	defer hub.Close()
	defer close(x.block)
	lo := &sockhub.ListenOptions{Mode: sockhub.Anonymous, IdleTimeout: 100 * time.Millisecond}
	if _, err := hub.ServeConn(t.Context(), x, lo); err != nil {
		t.Fatal(err)
	}
	<-time.After(300 * time.Millisecond) // it is given up
	a, b := net.Pipe()
	defer b.Close()
	c, err := hub.ServeConn(t.Context(), a, lo)
	if err != nil {
		t.Fatal(err)
	}
	timeout := time.After(3 * time.Second)
	for {
		select {
		case bt := <-hub.Events():
			for _, d := range bt.Disconnected {
				if d.Conn == c {
					return
				}
			}
		case <-timeout:
			t.Fatal("IdleTimeout of 100 ms is not seen: another connection's Close holds up the clocks of the hub")
		}
	}
}

func TestCloseThatBlocksWithinForget(t *testing.T) {
	hub, err := sockhub.New(context.Background(), &sockhub.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	x := &stuckCloser{r, w, make(chan struct{})}
	defer hub.Close()
	var once sync.Once
	unblock := func() { once.Do(func() { close(x.block) }) }
	defer unblock()
	id, _ := hub.Expect("child", nil)
	go w.Write(frame("child"))
	if _, err := hub.ServeConn(t.Context(), x, nil); err != nil {
		t.Fatal(err)
	}
	go hub.Forget(id)
	<-time.After(100 * time.Millisecond)
	done := make(chan struct{})
	go func() { hub.Lookup("somebody else"); close(done) }()
	select {
	case <-done:
	case <-time.After(3 * time.Second):
		t.Error("Lookup of another name hangs while Forget closes")
		unblock()
	}
}

type lateReader struct{ closed, late atomic.Int32 }

func (r *lateReader) Read(p []byte) (int, error) {
	if r.closed.Load() > 0 {
		r.late.Add(1)
		return 0, os.ErrClosed
	}
	return len(p), nil
}

func (r *lateReader) Close() error { r.closed.Add(1); return nil }

// It stands behind a SendMany that outlives the connection.
func TestReaderToSendFromIsNotReadAfterTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, nil)
		rc := new(lateReader)
		h := &handlerFuncs{message: func(r *sockhub.Reply, m []byte) { r.SendFrom(1000, rc) }}
		c, p := serveMemory(t, hub, nil, sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
		go io.Copy(io.Discard, p)
		goOn := make(chan struct{})
		done := make(chan struct{})
		go func() {
			defer close(done)
			c.SendMany(t.Context(), func(yield func([]byte) bool) {
				for range 10 {
					yield(make([]byte, 100_000)) // so that the run has begun
				}
				<-goOn
			})
		}()
		synctest.Wait()
		p.Write(frame("x"))
		synctest.Wait()
		hub.Close()
		for range hub.Events() {
		}
		synctest.Wait()
		close(goOn)
		<-done
		synctest.Wait()
		if rc.late.Load() > 0 {
			t.Fatal("read after it was closed, the connection had ended, and Hub.Close had returned")
		}
	})
}

func TestRuleThatLeavesRefuses(t *testing.T) {
	hub := openHub(t, &sockhub.Options{Admit: func(sockhub.Peer) error { runtime.Goexit(); return nil }})
	a, b := memnet.Pair(nil)
	defer b.Close()
	c, err := hub.ServeConn(t.Context(), a, &sockhub.ListenOptions{Mode: sockhub.Anonymous})
	if err == nil {
		defer func() { t.Fatalf("ServeConn returned no error; ID: %v", recover()) }()
		c.ID()
	}
	t.Log(err)
}

func TestClassifyThatLeavesRefuses(t *testing.T) {
	hub := openHub(t, &sockhub.Options{MaxPending: 1, HandshakeTimeout: 200 * time.Millisecond})
	l, err := hub.Listen(t.Context(), "tcp", "127.0.0.1:0", &sockhub.ListenOptions{Mode: sockhub.Anonymous,
		Classify: func(sockhub.Peer, []byte) (*sockhub.ListenOptions, int, error) { runtime.Goexit(); return nil, 0, nil }})
	if err != nil {
		t.Fatal(err)
	}
	nc, _ := net.Dial("tcp", l.Addr().String())
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := nc.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("not closed after 2 s: %v", err)
	}
}

type leavingReader struct{}

func (leavingReader) Read([]byte) (int, error) { runtime.Goexit(); return 0, nil }

func (leavingReader) Close() error { return nil }

func TestReaderToSendFromThatLeavesEndsTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, err := sockhub.New(context.Background(), nil)
		if err != nil {
			t.Fatal(err)
		}
		h := &handlerFuncs{message: func(r *sockhub.Reply, m []byte) { r.SendFrom(1000, leavingReader{}) }}
		c, p := serveMemory(t, hub, nil, sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
		p.Write(frame("x"))
		synctest.Wait()
		p.Close()
		<-time.After(time.Minute)
		n := hub.Stats().Conns
		hub.Close()
		if n != 0 {
			t.Errorf("%d connections a minute after the peer has gone: %+v", n, c.Stats())
			runtime.Goexit()
		}
	})
}

type shortFraming struct{}

func (shortFraming) MaxHeader() int { return 2 }

func (shortFraming) AppendHeader(dst []byte, n uint64) []byte {
	if n > 0xffff {
		panic("too long")
	}
	return binary.BigEndian.AppendUint16(dst, uint16(n))
}

func (shortFraming) Header(p []byte) (int, uint64, error) {
	if len(p) < 2 {
		return 0, 0, nil
	}
	return 2, uint64(binary.BigEndian.Uint16(p)), nil
}

func TestFramingThatPanicsLeavesNoLock(t *testing.T) {
	hub, err := sockhub.New(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	c, _ := serveMemory(t, hub, nil, sockhub.ListenOptions{Framing: shortFraming{}})
	try := func(f func() error) (what any) {
		defer func() { what = recover() }()
		f()
		return nil
	}
	big := make([]byte, 100_000)
	t.Log(try(func() error { return c.TrySend(big) }))
	t.Log(try(func() error { return c.SendFrom(t.Context(), 100_000, bytes.NewReader(big)) }))
	mustEndWithin(t, "Stats", 2*time.Second, func() { c.Stats() })
	mustEndWithin(t, "Close", 2*time.Second, func() { hub.Close() })
}

// It would end the program, so it is another one.
func TestPanicInACallbackOfTLSEndsOneConnection(t *testing.T) {
	if os.Getenv("SOCKHUB_TEST_CHILD") == "" {
		cmd := exec.Command(os.Args[0], "-test.run", "^TestPanicInACallbackOfTLSEndsOneConnection$")
		cmd.Env = append(os.Environ(), "SOCKHUB_TEST_CHILD=1")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %.300s", err, out)
		}
		return
	}
	hub, _ := sockhub.New(context.Background(), nil)
	defer hub.Close()
	l, err := hub.Listen(t.Context(), "tcp", "127.0.0.1:0", &sockhub.ListenOptions{Mode: sockhub.Anonymous,
		TLS: &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { panic("a user's") }}})
	if err != nil {
		t.Fatal(err)
	}
	nc, _ := net.Dial("tcp", l.Addr().String())
	defer nc.Close()
	tls.Client(nc, &tls.Config{InsecureSkipVerify: true}).Handshake()
	<-time.After(200 * time.Millisecond)
}

// slowListener accepts connections whose Close takes until block is closed.
type slowListener struct {
	net.Listener
	block, blocks chan struct{}
}

func (l *slowListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &slowConn{c, l}, nil
}

type slowConn struct {
	net.Conn
	l *slowListener
}

func (c *slowConn) Close() error {
	c.l.blocks <- struct{}{}
	<-c.l.block
	return c.Conn.Close()
}

func TestCloseThatBlocksBeforeTheHandshake(t *testing.T) {
	hub := openHub(t, nil)
	inner := memnet.Listen(nil)
	slow := &slowListener{inner, make(chan struct{}), make(chan struct{}, 2)}
	asked := make(chan struct{}, 1)
	l, err := hub.Serve(slow, &sockhub.ListenOptions{
		Classify: func(sockhub.Peer, []byte) (*sockhub.ListenOptions, int, error) {
			asked <- struct{}{}
			return nil, 1, nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	p, err := inner.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	<-asked
	closed := make(chan error, 1)
	go func() { closed <- l.Close() }()
	defer func() { <-closed }()
	defer close(slow.block)
	select {
	case <-slow.blocks:
	case <-time.After(3 * time.Second):
		t.Fatal("Listener.Close does not close what waits for its first byte")
	}
	mustEndWithin(t, "Lookup while a connection closes", 3*time.Second, func() { hub.Lookup("somebody") })
}

// badCloser is read without end, and leaves its Close.
type badCloser struct {
	io.Reader
	how string
}

func (b badCloser) Close() error { leave(b.how); return nil }

// stop is a reader that gives nothing before it is closed.
type stop chan struct{}

func (s stop) Read([]byte) (int, error) { <-s; return 0, io.ErrClosedPipe }

func (s stop) Close() error { close(s); return nil }

func TestReaderToSendFromThatLeavesItsClose(t *testing.T) {
	for _, how := range []string{"panic", "Goexit"} {
		for _, where := range []string{"read", "cut", "behind"} {
			t.Run(how+", "+where, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					hub := openHub(t, nil)
					size := uint64(1000)
					if where != "read" {
						size = 1 << 40
					}
					gone := 0
					h := &handlerFuncs{
						message: func(r *sockhub.Reply, _ []byte) {
							if where == "behind" {
								r.SendFrom(1000, make(stop))
							}
							r.SendFrom(size, badCloser{endless{}, how})
						},
						disconnected: func(sockhub.Disconnection) { gone++ },
					}
					c, p := serveMemory(t, hub, nil, sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
					p.Write(frame("x"))
					synctest.Wait()
					c.Close()
					synctest.Wait()
					if n := hub.Stats().Panics; gone != 1 || n != 1 {
						t.Errorf("Disconnected %d times; %d panics", gone, n)
					}
				})
			})
		}
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// patientCloser's Close takes its time, and is the user's to wait for.
type patientCloser struct {
	endless
	block chan struct{}
}

func (s patientCloser) Close() error { <-s.block; return nil }

func TestCloseOfTheHubDoesNotWaitForAReaderBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, nil)
		block := make(chan struct{})
		h := &handlerFuncs{message: func(r *sockhub.Reply, _ []byte) {
			r.SendFrom(1000, make(stop))
			r.SendFrom(1000, patientCloser{block: block})
		}}
		_, p := serveMemory(t, hub, nil, sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
		p.Write(frame("x"))
		synctest.Wait()
		closed := async(func() (int, error) { return 0, hub.Close() })
		<-time.After(time.Second)
		returns(t, closed, nil)
		close(block)
	})
}

// A reader that leaves is one that fails: its message is withdrawn, or cut.
func TestReaderOfSendFromThatLeaves(t *testing.T) {
	for _, how := range []string{"panic", "Goexit"} {
		for _, buffer := range []int{0, 4} {
			t.Run(fmt.Sprint(how, buffer), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					l := newLine(t, nil, &memnet.Options{Buffer: buffer}, nil)
					if buffer > 0 {
						l.sent("before") // and nothing is read, so the message waits
					}
					done := make(chan any, 1)
					go func() {
						defer func() { done <- recover() }()
						l.c.SendFrom(t.Context(), 1<<20, io.MultiReader(io.LimitReader(zeros{}, 100_000), leaver(how)))
					}()
					if v := <-done; how == "panic" && v != "boom" {
						t.Errorf("recovered %v", v)
					}
					sent := l.sending(t.Context(), "behind")
					if buffer == 0 {
						returns(t, sent, sockhub.ErrNotConnected)
						d := ended(t, l.Hub, l.c)
						if checkReport(t, l.c, d, true); !d.Report.Cut {
							t.Errorf("%v, %+v", d.Err, d.Report)
						}
						return
					}
					returns(t, sent, nil)
					expect(t, l.p, frames("before", "behind"))
				})
			})
		}
	}
}

type leaver string

func (l leaver) Read([]byte) (int, error) {
	<-time.After(time.Second) // meanwhile what came before is written, where there is room
	leave(string(l))
	return 0, nil
}

type panickyFraming struct{ shortFraming }

func (panickyFraming) Header(p []byte) (int, uint64, error) {
	return 2, uint64(binary.BigEndian.Uint16(p)), nil // whatever came
}

func TestFramingThatPanicsEndsOneConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, nil)
		c, p := serveMemory(t, hub, nil, sockhub.ListenOptions{Framing: panickyFraming{}})
		p.Write([]byte{0})
		d := ended(t, hub, c)
		if _, ok := errors.AsType[*sockhub.PanicError](d.Err); !ok || hub.Stats().Panics != 1 {
			t.Errorf("%v; %+v", d.Err, hub.Stats())
		}
	})
}

type headlessFraming struct{ shortFraming }

func (headlessFraming) MaxHeader() int { panic("no idea") }

// It is asked before there is a connection.
func TestFramingOfClassifyThatPanicsRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, nil, &sockhub.ListenOptions{
			Classify: func(sockhub.Peer, []byte) (*sockhub.ListenOptions, int, error) {
				return &sockhub.ListenOptions{Framing: headlessFraming{}}, 0, nil
			},
		})
		r.refused("x")
		synctest.Wait()
		if s := r.Stats(); s.Panics != 1 || s.RefusedPolicy != 1 {
			t.Errorf("%+v", s)
		}
	})
}

type wordlessFraming struct{ shortFraming }

func (wordlessFraming) AppendHeader([]byte, uint64) []byte { panic("not expressible") }

// What it cannot express may be the first that the hub itself has to say.
func TestFramingThatCannotExpressTheHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, nil)
		ours, p := memnet.Pair(nil)
		defer p.Close()
		p.Write([]byte("\x00\x01w"))
		_, err := hub.ServeConn(t.Context(), ours, &sockhub.ListenOptions{Framing: wordlessFraming{}})
		if _, ok := errors.AsType[*sockhub.PanicError](err); !ok {
			t.Error("OK: ", err)
		}
		ours, q := memnet.Pair(nil)
		defer q.Close()
		_, err = hub.Attach(t.Context(), ours, &sockhub.DialOptions{Framing: wordlessFraming{}, Name: "w"})
		if _, ok := errors.AsType[*sockhub.PanicError](err); !ok {
			t.Error("the name: ", err)
		}
	})
}

// leave leaves a callback in a way that it should not.
func leave(how string) {
	if how == "panic" {
		panic("boom")
	}
	runtime.Goexit()
}

// Within a callback, Shutdown waits for the callbacks of others that do not wait for it,
// however long they take.
func TestShutdownWithinAHandlerBesideABusyOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const busy = 10 * sockhub.DefaultLinger
		hub := openHub(t, nil)
		done := make(chan error, 1)
		serve := func(f func(r *sockhub.Reply)) *memnet.End {
			h := &handlerFuncs{message: func(r *sockhub.Reply, _ []byte) { f(r) }}
			_, p := serveMemory(t, hub, nil, sockhub.ListenOptions{Handler: func(*sockhub.Conn) sockhub.Handler { return h }})
			p.Write(frame("x"))
			synctest.Wait() // it is called
			return p
		}
		p := serve(func(r *sockhub.Reply) {
			<-time.After(busy)
			r.Send([]byte("answer"))
		})
		begun := time.Now()
		serve(func(*sockhub.Reply) {
			ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
			defer cancel()
			done <- hub.Shutdown(ctx)
		})
		expect(t, p, frame("answer"))
		if err := <-done; err != nil || time.Since(begun) < busy || time.Since(begun) > busy+time.Minute {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
	})
}
