package sockhub_test

// Ends that come between two steps of a beginning, and what is left of them.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
)

type stoppingListener struct {
	net.Listener
	at, goOn chan struct{}
}

// stoppingConn waits where its transport is made, which is behind Classify.
type stoppingConn struct {
	net.Conn
	l    *stoppingListener
	made bool
}

func (l *stoppingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &stoppingConn{Conn: c, l: l}, nil
}

func (c *stoppingConn) SetReadDeadline(t time.Time) error {
	if !c.made {
		c.made = true
		c.l.at <- struct{}{}
		<-c.l.goOn
	}
	return c.Conn.SetReadDeadline(t)
}

func TestListenerCloseFindsWhatIsBehindClassify(t *testing.T) {
	hub := openHub(t, nil)
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	bl := &stoppingListener{inner, make(chan struct{}), make(chan struct{})}
	l, err := hub.Serve(bl, &sockhub.ListenOptions{Mode: sockhub.Anonymous,
		Classify: func(sockhub.Peer, []byte) (*sockhub.ListenOptions, int, error) { return nil, 0, nil }})
	if err != nil {
		t.Fatal(err)
	}
	nc, _ := net.Dial("tcp", inner.Addr().String())
	defer nc.Close()
	<-bl.at
	l.Close()
	close(bl.goOn)
	select {
	case b := <-hub.Events():
		if len(b.Unknown) > 0 {
			t.Fatalf("%v connected after Listener.Close has returned", b.Unknown[0])
		}
	case <-time.After(300 * time.Millisecond):
	}
}

func TestLentMessageIsSentByAnotherHub(t *testing.T) {
	in := openHub(t, &sockhub.Options{ReuseBuffers: true})
	out := openHub(t, nil)
	defer out.Close()
	ci, pi := net.Pipe()
	co, po := net.Pipe()
	o := &sockhub.ListenOptions{Mode: sockhub.Anonymous}
	if _, err := in.ServeConn(t.Context(), ci, o); err != nil {
		t.Fatal(err)
	}
	c, err := out.ServeConn(t.Context(), co, o)
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte("x"), 1_000_000)
	go pi.Write(frame(string(want)))
	sent := false
	for !sent {
		b := <-in.Events()
		for _, m := range b.Messages() {
			if err := c.TrySend(m); err != nil {
				t.Fatal(err)
			}
			sent = true
		}
		b.Release()
	}
	<-time.After(50 * time.Millisecond)
	got := make([]byte, 8+len(want))
	if _, err := io.ReadFull(po, got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got[8:], want) {
		t.Fatalf("sent other bytes than it was given: %q...", got[8:24])
	}
}

func TestLastWriteOfWhatSendWrote(t *testing.T) {
	hub := openHub(t, nil)
	l, err := hub.Listen(t.Context(), "tcp", "127.0.0.1:0", &sockhub.ListenOptions{Mode: sockhub.Anonymous})
	if err != nil {
		t.Fatal(err)
	}
	nc, _ := net.Dial("tcp", l.Addr().String())
	defer nc.Close()
	var c *sockhub.Conn
	for c == nil {
		for _, x := range (<-hub.Events()).Unknown {
			c = x
		}
	}
	<-time.After(2 * time.Second) // the reader sleeps
	before := time.Now()
	if err := c.TrySend([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	io.ReadFull(nc, make([]byte, 13))
	<-time.After(time.Second)
	if s := c.Stats(); s.MessagesOut != 1 || s.LastWrite.Before(before) {
		t.Fatalf("1 message written after %v: %+v", before, s)
	}
}

// A peer gives up waiting, and comes again.
func TestOldClaimDoesNotReplaceANewerOne(t *testing.T) {
	wrong := 0
	for range 200 {
		synctest.Test(t, func(t *testing.T) {
			block := make(chan struct{})
			first := true
			hub, _ := sockhub.New(context.Background(), &sockhub.Options{Duplicates: sockhub.ReplaceOld, HandshakeTimeout: time.Hour})
			defer hub.Close()
			l := memnet.Listen(nil)
			hub.Serve(l, &sockhub.ListenOptions{Handler: func(c *sockhub.Conn) sockhub.Handler {
				h := &handlerFuncs{}
				if first {
					first = false
					h.message = func(*sockhub.Reply, []byte) { <-block }
				}
				return h
			}})
			dial := func() *memnet.End {
				p, err := l.Dial(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				p.Write(frame("x"))
				synctest.Wait()
				return p
			}
			a := dial()
			a.Write(frame("block"))
			synctest.Wait()
			b := dial()
			b.Close() // it has given up, and
			synctest.Wait()
			c := dial() // comes again
			close(block)
			<-time.After(time.Second)
			c.SetReadDeadline(time.Now().Add(time.Minute))
			buf := make([]byte, 10)
			if _, err := io.ReadFull(c, buf); err != nil {
				wrong++ // not even let in
			} else if _, err := c.Read(buf); err == io.EOF || errors.Is(err, syscall.ECONNRESET) {
				wrong++ // replaced by b
			}
			c.Close()
		})
	}
	if wrong > 0 {
		t.Fatalf("%d of 200", wrong)
	}
}

func TestReplacementTakesThePlaceAtMaxConns(t *testing.T) {
	hub := openHub(t, &sockhub.Options{MaxConns: 1, Duplicates: sockhub.ReplaceOld})
	go func() {
		for range hub.Events() {
		}
	}()
	refused := 0
	for range 20 {
		l := memnet.Listen(nil)
		if _, err := hub.Serve(l, nil); err != nil {
			t.Fatal(err)
		}
		var old *memnet.End
		for i := 0; old == nil; i++ {
			p, _ := l.Dial(t.Context())
			p.Write(frame("x"))
			if _, err := io.ReadFull(p, make([]byte, 10)); err == nil {
				old = p
			}
		}
		p, _ := l.Dial(t.Context())
		p.Write(frame("x"))
		if _, err := io.ReadFull(p, make([]byte, 10)); err != nil {
			refused++
		}
		if _, err := old.Read(make([]byte, 1)); err == nil {
			t.Error("the old one lives")
		}
		p.Close()
		old.Close()
		<-time.After(10 * time.Millisecond)
	}
	if refused > 0 {
		t.Fatalf("%d of 20 that replaced were refused, though the old one was ended for them: %+v", refused, hub.Stats())
	}
}

func TestForgottenNamesFreeTheirIDs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub(t, nil)
		l := memnet.Listen(nil)
		block := make(chan struct{})
		hub.Serve(l, &sockhub.ListenOptions{Handler: func(c *sockhub.Conn) sockhub.Handler {
			return &handlerFuncs{message: func(*sockhub.Reply, []byte) { <-block }}
		}})
		p, _ := l.Dial(t.Context())
		p.Write(frame("x"))
		expect(t, p, frame("OK"))
		p.Write(frame("block"))
		synctest.Wait()
		var ids []sockhub.ID
		for range 5 {
			id, err := hub.Expect("x", &sockhub.ClientOptions{Admit: sockhub.Nobody()})
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, id)
			if err := hub.Forget(id); err != nil {
				t.Fatal(err)
			}
		}
		close(block)
		synctest.Wait()
		<-time.After(time.Second)
		var errs []string
		for _, id := range ids {
			errs = append(errs, fmt.Sprint(hub.TrySend(id, nil)))
		}
		if slices.Contains(errs, sockhub.ErrNotConnected.Error()) {
			t.Fatalf("forgotten IDs, and nobody is connected: %q", errs)
		}
	})
}

func TestCloseOfAFailingConnectionIsNotDialedAgain(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var dials atomic.Int32
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			if dials.Add(1) == 1 {
				nc.Write(frame("hello"))
			}
			defer nc.Close() // and reads nothing
		}
	}()
	hub := openHub(t, &sockhub.Options{WriteTimeout: 200 * time.Millisecond})
	defer hub.Close()
	closed := make(chan struct{})
	h := &handlerFuncs{message: func(r *sockhub.Reply, m []byte) {
		c := r.Conn()
		for c.TrySend(make([]byte, 1<<20)) == nil {
		}
		<-time.After(time.Second) // meanwhile the peer is given up
		r.Close()
		close(closed)
	}}
	_, err = hub.Dial(t.Context(), "tcp", l.Addr().String(), &sockhub.DialOptions{
		Mode: sockhub.Anonymous, Reconnect: &sockhub.Backoff{Min: 10 * time.Millisecond},
		Handler: func(*sockhub.Conn) sockhub.Handler { return h },
	})
	if err != nil {
		t.Fatal(err)
	}
	<-closed
	<-time.After(500 * time.Millisecond)
	if n := dials.Load(); n > 1 {
		t.Fatalf("dialed again after Close: %d", n)
	}
}

type stuckPackets struct {
	mu      sync.Mutex
	in      chan string
	rd, wd  time.Time
	changed chan struct{}
	closed  chan struct{}
	once    sync.Once
}

type anyAddr string

func (anyAddr) Network() string { return "any" }

func (a anyAddr) String() string { return string(a) }

func (p *stuckPackets) wait(which *time.Time) error {
	for {
		p.mu.Lock()
		d, ch := *which, p.changed
		p.mu.Unlock()
		var timer <-chan time.Time
		if !d.IsZero() {
			if !time.Now().Before(d) {
				return os.ErrDeadlineExceeded
			}
			timer = time.After(time.Until(d))
		}
		select {
		case <-ch:
		case <-timer:
		case <-p.closed:
			return net.ErrClosed
		}
	}
}

func (p *stuckPackets) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case from := <-p.in:
		return copy(b, "hello"), anyAddr(from), nil
	default:
	}
	return 0, nil, p.wait(&p.rd)
}

func (p *stuckPackets) WriteTo(b []byte, _ net.Addr) (int, error) { return 0, p.wait(&p.wd) }

func (p *stuckPackets) Close() error { p.once.Do(func() { close(p.closed) }); return nil }

func (p *stuckPackets) LocalAddr() net.Addr { return anyAddr("here") }

func (p *stuckPackets) set(d *time.Time, t time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	*d = t
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *stuckPackets) SetDeadline(t time.Time) error { p.set(&p.rd, t); p.set(&p.wd, t); return nil }

func (p *stuckPackets) SetReadDeadline(t time.Time) error { p.set(&p.rd, t); return nil }

func (p *stuckPackets) SetWriteDeadline(t time.Time) error { p.set(&p.wd, t); return nil }

func TestCloseBesideAStuckPacketConn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, err := sockhub.New(context.Background(), nil)
		if err != nil {
			t.Fatal(err)
		}
		pc := &stuckPackets{in: make(chan string, 1), changed: make(chan struct{}), closed: make(chan struct{})}
		pc.in <- "there"
		if _, err := hub.ServePacket(pc, nil); err != nil {
			t.Fatal(err)
		}
		var c *sockhub.Conn
		for c == nil {
			for _, x := range (<-hub.Events()).Unknown {
				c = x
			}
		}
		for range 1000 {
			if err := c.TrySend([]byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		start := time.Now()
		hub.Close()
		if d := time.Since(start); d > time.Second {
			t.Fatalf("Close took %v", d)
		}
	})
}

func TestSessionsEvictedWhileTheyAreAnswered(t *testing.T) {
	hub := openHub(t, nil)
	l, err := hub.Listen(t.Context(), "udp", "127.0.0.1:0", &sockhub.ListenOptions{MaxConns: 2})
	if err != nil {
		t.Fatal(err)
	}
	var conns, gone atomic.Int32
	var sum atomic.Int64
	go func() {
		for b := range hub.Events() {
			conns.Add(int32(len(b.Unknown)))
			for c, m := range b.Messages() {
				for range 50 {
					c.TrySend(m)
				}
			}
			for _, d := range b.Disconnected {
				gone.Add(1)
				r := d.Report
				if r.AcceptedMessages != r.WrittenMessages+r.UnsentMessages+r.DroppedMessages {
					t.Errorf("%+v", r)
				}
				sum.Add(int64(r.AcceptedMessages))
			}
		}
	}()
	for range 300 {
		c, err := net.Dial("udp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			c.Write([]byte("hello"))
		}
		c.Close()
	}
	<-time.After(500 * time.Millisecond)
	s := hub.Stats()
	t.Logf("%d connected, %d gone, %d accepted; %+v", conns.Load(), gone.Load(), sum.Load(), s)
	if s.Conns > 2 {
		t.Error("more sessions than MaxConns")
	}
	hub.Close()
	<-time.After(50 * time.Millisecond)
	if conns.Load() != gone.Load() {
		t.Errorf("%d connected, %d gone", conns.Load(), gone.Load())
	}
}
