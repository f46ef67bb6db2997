package sockhub_test

// Every public call in every state.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
)

// TestEveryCallInEveryState makes every public call at random moments, from
// several goroutines and from handlers, on hubs, listeners and connections in
// every state of their lives, those long gone included. Each call has to return
// (in a bubble of synctest, what hangs is seen), with nothing but the errors
// that the documentation names, and at once when the hub has been closed; and
// each connection ends once, with a report that balances.
func TestEveryCallInEveryState(t *testing.T) {
	eachSchedule(t, makeCalls)
}

// callers is one hub whose every call is made.
type callers struct {
	t   *testing.T
	hub *sockhub.Hub
	l   *memnet.Listener
	mo  memnet.Options

	mu        sync.Mutex
	conns     []*sockhub.Conn
	listeners []*sockhub.Listener
	ends      map[*sockhub.Conn]int
	handled   map[*sockhub.Conn]int // Disconnected calls of handlers
}

func makeCalls(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 3))
	c := &callers{t: t, ends: make(map[*sockhub.Conn]int), handled: make(map[*sockhub.Conn]int)}
	var err error
	c.hub, err = sockhub.New(context.Background(), &sockhub.Options{
		Name: "hub", ConnInbound: 1 + r.Int64N(2000), ConnOutbound: 1 + r.Int64N(4000),
		Duplicates: sockhub.DuplicatePolicy(1 + r.IntN(2)), Unexpected: sockhub.UnexpectedPolicy(1 + r.IntN(2)),
		Overflow: sockhub.OverflowPolicy(1 + r.IntN(4)), ReuseBuffers: r.IntN(2) == 0, StreamOver: 200, MaxConns: 3 + r.IntN(20),
		Linger: time.Duration(r.IntN(100)) * time.Millisecond, WriteTimeout: time.Duration(1+r.IntN(2000)) * time.Millisecond,
		FrameTimeout: time.Second, HandshakeTimeout: time.Duration(1+r.IntN(1000)) * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	c.mo = memnet.Options{Seed: seed, Buffer: 1 + r.IntN(4096), Faults: memnet.Faults{
		ShortRead: 0.2, ShortWrite: 0.2, Spurious: 0.1, Blind: 0.2, Delay: 0.2, Stall: 0.05, MaxWait: 50 * time.Millisecond}}
	c.l = memnet.Listen(&c.mo)
	l, err := c.hub.Serve(c.l, c.listenOptions(r))
	if err != nil {
		t.Fatal(err)
	}
	c.listeners = append(c.listeners, l)
	var peers, calling sync.WaitGroup
	for i := range 4 {
		peers.Go(func() { runPeer(c.l, fmt.Sprint("peer ", i%3), rand.New(rand.NewPCG(seed, uint64(20+i)))) })
	}
	received := make(chan struct{})
	go func() {
		defer close(received)
		rr := rand.New(rand.NewPCG(seed, 4))
		for b := range c.hub.Events() {
			c.take(b, rr)
			if rr.IntN(3) == 0 {
				sleepFor(time.Duration(rr.IntN(30)) * time.Millisecond)
			}
		}
	}()
	stop := make(chan struct{})
	for i := range 4 {
		calling.Go(func() {
			rc := rand.New(rand.NewPCG(seed, uint64(30+i)))
			for {
				select {
				case <-stop:
					return
				case <-time.After(time.Duration(1+rc.IntN(20)) * time.Millisecond):
					c.call(rc)
				}
			}
		})
	}
	sleepFor(time.Duration(r.IntN(1500)) * time.Millisecond)
	close(stop)
	if r.IntN(2) == 0 { // else calls meet the end
		calling.Wait()
	}
	if r.IntN(2) == 0 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(r.IntN(300))*time.Millisecond)
		c.hub.Shutdown(ctx)
		cancel()
	}
	c.hub.Close()
	begun := time.Now()
	calling.Wait()
	if d := time.Since(begun); d > 100*time.Millisecond {
		t.Errorf("a call has returned %v after Close", d)
	}
	<-received
	rc := rand.New(rand.NewPCG(seed, 50))
	for range 20 { // when all is over
		c.call(rc)
	}
	peers.Wait()
	<-time.After(time.Minute)
	for _, conn := range c.conns {
		if c.ends[conn]+c.handled[conn] == 0 || c.ends[conn] > 1 || c.handled[conn] > 1 {
			t.Errorf("%v: %d Disconnected in Events, %d of its Handler", conn, c.ends[conn], c.handled[conn])
		}
	}
}

func (c *callers) listenOptions(r *rand.Rand) *sockhub.ListenOptions {
	o := &sockhub.ListenOptions{HalfOpen: r.IntN(4) == 0}
	if r.IntN(2) == 0 {
		o.Handler = c.factory(r.Uint64())
	}
	return o
}

func (c *callers) know(conn *sockhub.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Contains(c.conns, conn) {
		c.conns = append(c.conns, conn)
	}
}

func (c *callers) any(r *rand.Rand) *sockhub.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.conns) == 0 {
		return nil
	}
	if n := len(c.conns); r.IntN(4) > 0 { // mostly a young one
		return c.conns[n-1-r.IntN(min(n, 4))]
	}
	return c.conns[r.IntN(len(c.conns))]
}

func (c *callers) take(b *sockhub.Batch, r *rand.Rand) {
	for _, conn := range slices.Concat(b.Connected, b.Unknown) {
		c.know(conn)
	}
	for conn, m := range b.Messages() {
		if r.IntN(2) == 0 {
			c.check("TrySend", conn.TrySend(m))
		}
	}
	for _, d := range b.Received {
		if d.Stream != nil {
			c.read(d.Stream, r)
		}
	}
	for _, d := range b.Disconnected {
		c.mu.Lock()
		c.ends[d.Conn]++
		c.mu.Unlock()
		c.checkEnd(d)
	}
	b.Release()
	if r.IntN(10) == 0 {
		b.Release() // again is nothing
	}
}

func (c *callers) read(s *sockhub.Stream, r *rand.Rand) {
	if s.Size() <= 200 {
		c.t.Errorf("a stream of %d bytes", s.Size())
	}
	if r.IntN(2) == 0 {
		io.CopyN(io.Discard, s, r.Int64N(300))
	}
	if r.IntN(2) == 0 {
		io.Copy(io.Discard, s)
	}
	s.Close()
}

// checkEnd is checkReport where messages may be SendFrom's, which are counted
// and not given back.
func (c *callers) checkEnd(d sockhub.Disconnection) {
	r, cut := d.Report, uint64(0)
	if r.Cut {
		cut = 1
	}
	var n, bytes uint64
	for m := range r.Unsent() {
		n, bytes = n+1, bytes+uint64(len(m))
	}
	if d.Err == nil || n > r.UnsentMessages || bytes > r.UnsentBytes ||
		r.AcceptedMessages != r.WrittenMessages+r.UnsentMessages+r.DroppedMessages+cut ||
		r.AcceptedBytes != r.WrittenBytes+r.UnsentBytes+r.DroppedBytes+r.CutSize {
		c.t.Errorf("%v, %v: yields %d messages of %d bytes: %+v", d.Conn, d.Err, n, bytes, r)
	}
}

// check reports an error that no call should have.
func (c *callers) check(call string, err error) {
	var (
		opError   *net.OpError
		admission *sockhub.AdmissionError
	)
	for _, known := range []error{nil, sockhub.ErrClosed, sockhub.ErrNotConnected, sockhub.ErrUnknownID, sockhub.ErrBackpressure,
		sockhub.ErrNameTaken, sockhub.ErrBadName, sockhub.ErrRefused, sockhub.ErrTooManyConns, sockhub.ErrHandshakeTimeout, sockhub.ErrSlowPeer,
		sockhub.ErrReplaced, sockhub.ErrFrameTimeout, context.DeadlineExceeded, context.Canceled, io.EOF, io.ErrUnexpectedEOF, errors.ErrUnsupported} {
		if errors.Is(err, known) {
			return
		}
	}
	if !errors.As(err, &opError) && !errors.As(err, &admission) {
		c.t.Errorf("%s: %v", call, err)
	}
}

// call makes one call.
func (c *callers) call(r *rand.Rand) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(r.IntN(200))*time.Millisecond)
	defer cancel()
	msg := make([]byte, r.IntN(500))
	some := slices.Values([][]byte{msg, nil, msg[:len(msg)/2]})
	conn := c.any(r)
	id := sockhub.ID(r.Uint64())
	if conn != nil {
		id = conn.ID()
	}
	if n := r.IntN(40); n < 16 {
		c.callHub(ctx, n, id, r)
		return
	} else if conn == nil {
		return
	} else {
		switch n {
		case 16, 17:
			c.check("Conn.Send", conn.Send(ctx, msg))
		case 18, 19:
			c.check("Conn.TrySend", conn.TrySend(msg))
		case 20:
			c.check("Conn.SendParts", conn.SendParts(ctx, msg, msg))
		case 21, 22:
			_, err := conn.SendMany(ctx, some)
			c.check("Conn.SendMany", err)
		case 23, 24:
			c.check("Conn.SendFrom", conn.SendFrom(ctx, uint64(len(msg)), bytes.NewReader(msg)))
		case 25:
			conn.NotifyDrained()
		case 26:
			if r.IntN(3) == 0 {
				c.check("SetHandler", conn.SetHandler(c.newHandler(r.Uint64())))
			}
		case 27:
			if conn.Raw(); r.IntN(5) == 0 {
				c.check("SetRaw", conn.SetRaw(r.IntN(2) == 0))
			}
		case 28:
			c.check("CloseWrite", conn.CloseWrite())
		case 29:
			c.check("Finish", conn.Finish())
		case 30:
			c.check("Close", conn.Close())
		case 31, 32:
			conn.Stats()
		case 33:
			conn.SetValue(conn.Value())
		case 34:
			if ctx := conn.Context(); ctx.Err() != nil && context.Cause(ctx) == nil {
				c.t.Error("a context that has ended without a cause")
			}
		default:
			if conn.ID() == 0 || conn.Name() != conn.Peer().Name || conn.String() == "" {
				c.t.Errorf("%v: ID %v", conn, conn.ID())
			}
		}
	}
}

func (c *callers) callHub(ctx context.Context, n int, id sockhub.ID, r *rand.Rand) {
	msg := make([]byte, r.IntN(500))
	name := fmt.Sprint("peer ", r.IntN(4))
	switch n {
	case 0:
		c.check("Hub.Send", c.hub.Send(ctx, id, msg))
	case 1:
		c.check("Hub.TrySend", c.hub.TrySend(id, msg))
	case 2:
		_, err := c.hub.SendMany(ctx, id, slices.Values([][]byte{msg, msg}))
		c.check("Hub.SendMany", err)
	case 3:
		if _, err := c.hub.Broadcast(c.hub.Conns(), msg); err != nil {
			var be *sockhub.BroadcastError
			if !errors.As(err, &be) {
				c.t.Errorf("Broadcast: %v", err)
			} else {
				for _, e := range be.Refused {
					c.check("Broadcast", e.Err)
				}
			}
		}
	case 4:
		if conn, ok := c.hub.Conn(id); ok && conn.ID() != id {
			c.t.Errorf("Conn(%d) has ID %d", id, conn.ID())
		}
	case 5:
		for conn := range c.hub.Conns() {
			if conn == nil {
				c.t.Error("Conns yields nil")
			}
			if r.IntN(4) == 0 {
				break
			}
		}
	case 6:
		c.hub.Stats()
	case 7:
		if id, ok := c.hub.Lookup(name); ok == (id == 0) {
			c.t.Errorf("Lookup: %v, %v", id, ok)
		}
	case 8, 9:
		o := &sockhub.ClientOptions{Duplicates: sockhub.DuplicatePolicy(r.IntN(3))}
		if r.IntN(4) == 0 {
			o.Handler = c.factory(r.Uint64())
		}
		_, err := c.hub.Expect(name, o)
		c.check("Expect", err)
	case 10:
		c.check("Forget", c.hub.Forget(id))
	case 11:
		l, err := c.hub.Serve(memnet.Listen(&c.mo), nil)
		c.check("Serve", err)
		if err == nil {
			c.mu.Lock()
			c.listeners = append(c.listeners, l)
			c.mu.Unlock()
		}
	case 12:
		c.mu.Lock()
		l := c.listeners[r.IntN(len(c.listeners))]
		c.mu.Unlock()
		if l.Addr(); r.IntN(3) == 0 {
			c.check("Listener.Close", l.Close())
		}
	case 13, 14:
		ours, theirs := memnet.Pair(&c.mo)
		defer theirs.Close()
		if n == 13 {
			go theirs.Write(frame(name))
			_, err := c.hub.ServeConn(ctx, ours, nil)
			c.check("ServeConn", err)
		} else {
			if r.IntN(4) > 0 {
				go theirs.Write(frame("OK"))
			}
			_, err := c.hub.Attach(ctx, ours, nil)
			c.check("Attach", err)
		}
	case 15:
		switch r.IntN(40) {
		case 0:
			c.check("Shutdown", c.hub.Shutdown(ctx))
		case 1:
			c.check("Close", c.hub.Close())
		}
	}
}

// factory makes handlers, on any goroutine.
func (c *callers) factory(seed uint64) func(*sockhub.Conn) sockhub.Handler {
	var n atomic.Uint64
	return func(conn *sockhub.Conn) sockhub.Handler {
		c.know(conn)
		return c.newHandler(seed + n.Add(1))
	}
}

// caller is a Handler that makes calls.
type caller struct {
	c *callers
	r *rand.Rand
}

func (c *callers) newHandler(seed uint64) sockhub.Handler {
	return &caller{c, rand.New(rand.NewPCG(seed, 5))}
}

func (h *caller) Message(r *sockhub.Reply, msg []byte) { h.reply(r, msg) }
func (h *caller) Drained(r *sockhub.Reply)             { h.reply(r, nil) }
func (h *caller) Ended(r *sockhub.Reply)               { h.reply(r, nil) }
func (h *caller) Stream(r *sockhub.Reply, s *sockhub.Stream) {
	h.c.read(s, h.r)
	h.reply(r, nil)
}

func (h *caller) Disconnected(d sockhub.Disconnection) {
	h.c.mu.Lock()
	h.c.handled[d.Conn]++
	h.c.mu.Unlock()
	h.c.checkEnd(d)
}

func (h *caller) reply(r *sockhub.Reply, msg []byte) {
	h.c.know(r.Conn())
	switch h.r.IntN(30) {
	case 0:
		h.c.check("Reply.SendParts", r.SendParts(msg, msg))
	case 1:
		_, err := r.SendMany(slices.Values([][]byte{msg, nil}))
		h.c.check("Reply.SendMany", err)
	case 2:
		h.c.check("Reply.SendFrom", r.SendFrom(uint64(len(msg)), io.NopCloser(bytes.NewReader(bytes.Clone(msg)))))
	case 3:
		r.Flush()
	case 4:
		r.SetHandler(h.c.newHandler(h.r.Uint64()))
	case 5:
		r.CloseWrite()
	case 6:
		r.Finish()
	case 7:
		r.Close()
	case 8:
		r.SetRaw(r.Conn().Raw())
	case 9:
		if r.Conn().Raw() {
			r.Unread(msg[len(msg)/2:])
		}
	case 10:
		if h.r.IntN(10) == 0 {
			leave([]string{"panic", "goexit"}[h.r.IntN(2)])
		}
	case 11, 12, 13: // what may be called from anywhere may be from here
		h.c.call(h.r)
	case 14:
		runtime.Gosched()
	default:
		h.c.check("Reply.Send", r.Send(msg))
	}
}
