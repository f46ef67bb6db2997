// Package packet makes connections of datagrams: each remote address of a
// datagram socket is a session, which package sockhub serves as it serves a
// stream. So the same reader, writer and queues work for both.
//
// One socket has two goroutines. The receiver takes datagrams from the socket,
// as many as there are in one system call where that is possible, and hands
// each to its session. The sender sends what the sessions have queued, again as
// many as there are. What a session hands to the socket is copied, and counts
// as written; the socket holds no more of it than outItems and outBytes, so
// that the queue proper, with its limits and reports, stays the connection's.
//
// Between a session and its connection a datagram is a frame, with a header of
// HeaderSize bytes that never leaves the process.
package packet

import (
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
)

const (
	// HeaderSize is the size of the length before each datagram, which is
	// little-endian.
	HeaderSize = 4

	// MaxUDP is the longest body of a UDP datagram: 65,535 less the headers
	// of UDP and IPv4.
	MaxUDP = 65_507

	// MaxUnix is the longest datagram that is taken from a Unix socket. What
	// can be sent depends on the socket's buffer (about 200 KiB on Linux).
	MaxUnix = 256 << 10

	inBytes  = 256 << 10 // that wait in a session, or one datagram of more
	outItems = 1024      // that wait in the socket to be sent
	outBytes = 1 << 20   // likewise, or one datagram of more
	backlog  = 256       // sessions that wait in Accept
)

// Options are the limits of a Listener.
type Options struct {
	Max      int    // longest datagram; longer ones are dropped and counted
	Sessions int    // how many there may be
	Evicted  error  // the end of the one that is idle for longest, when there are too many
	Stats    *Stats // counts; several sockets may share it
}

// Stats counts datagrams that were lost here.
type Stats struct {
	Truncated atomic.Uint64 // longer than Options.Max
	Dropped   atomic.Uint64 // their session did not keep up, there were too many, or they could not be sent
}

// Listener accepts the sessions of a socket. It is a net.Listener; its
// connections bring their transport (transport.New).
type Listener struct{ s *socket }

// Listen makes a Listener of a socket, which it owns from now on.
func Listen(pc net.PacketConn, o Options) *Listener {
	l := &Listener{newSocket(pc, o)}
	l.s.accepts = make(chan *session, backlog)
	l.s.listening = true
	l.s.start()
	return l
}

// Connect makes the one session of a connected socket, which it owns from now
// on.
func Connect(c net.Conn, o Options) *Conn {
	pc, ok := c.(net.PacketConn)
	if !ok {
		pc = connected{c}
	}
	s := newSocket(pc, o)
	s.only = s.newSession(nil, c.RemoteAddr())
	s.live = 1
	s.start()
	return &Conn{s.only}
}

// connected is a connection whose packets come and go with Read and Write.
type connected struct{ net.Conn }

func (c connected) ReadFrom(p []byte) (int, net.Addr, error) {
	n, err := c.Read(p)
	return n, c.RemoteAddr(), err
}

func (c connected) WriteTo(p []byte, _ net.Addr) (int, error) { return c.Write(p) }

// Addr is the socket's address.
func (l *Listener) Addr() net.Addr { return l.s.pc.LocalAddr() }

// Accept returns the next session.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case s := <-l.s.accepts:
		return &Conn{s}, nil
	case <-l.s.stopped:
		return nil, &net.OpError{Op: "accept", Net: l.Addr().Network(), Addr: l.Addr(), Err: net.ErrClosed}
	}
}

// Close lets no new sessions in. The socket is closed when the last one is.
func (l *Listener) Close() error {
	s := l.s
	s.mu.Lock()
	if !s.listening {
		s.mu.Unlock()
		return net.ErrClosed
	}
	s.listening = false
	close(s.stopped)
	s.mu.Unlock()
	for {
		select {
		case waiting := <-s.accepts: // nobody will accept these
			waiting.Close()
			continue
		default:
		}
		break
	}
	return s.closeIfUnused()
}

// socket is a datagram socket and its sessions.
type socket struct {
	// Immutable after construction.
	pc      net.PacketConn
	io      batcher
	o       Options
	only    *session      // of a connected socket
	accepts chan *session // sent to by the receiver, received by Accept and Close; never closed
	stopped chan struct{} // closed by Listener.Close
	done    sync.WaitGroup

	mu        sync.Mutex // guards what follows; a session's mu may be locked inside it
	sessions  map[string]*session
	idle      list // of sessions, who was heard of last first
	live      int  // sessions that are not closed
	listening bool
	closed    bool // the socket is, or is about to be

	// out is guarded by outMu, inside which nothing is locked.
	outMu   sync.Mutex
	ready   sync.Cond // outMu; there is something to send, or the end
	out     outbox
	waiting []*session // that found out full
	ending  bool
}

func newSocket(pc net.PacketConn, o Options) *socket {
	s := &socket{pc: pc, o: o, stopped: make(chan struct{}), sessions: map[string]*session{}}
	s.idle.init()
	s.ready.L = &s.outMu
	if c, ok := pc.(interface{ SetWriteBuffer(int) error }); ok && pc.LocalAddr().Network() == "unixgram" {
		c.SetWriteBuffer(MaxUnix) // or as much of it as the system allows
	}
	s.io = newBatcher(pc, o.Max)
	return s
}

// start starts the two goroutines, which closeIfUnused joins.
func (s *socket) start() {
	s.done.Go(s.receive)
	s.done.Go(s.send)
}

// closeIfUnused closes the socket when nobody needs it any more, after what is
// queued was sent.
func (s *socket) closeIfUnused() error {
	s.mu.Lock()
	last := !s.listening && s.live == 0 && !s.closed
	s.closed = s.closed || last
	s.mu.Unlock()
	if !last {
		return nil
	}
	s.outMu.Lock()
	s.ending = true
	s.ready.Signal()
	s.outMu.Unlock()
	s.pc.SetWriteDeadline(soon())
	err := s.io.interrupt() // the receiver
	s.done.Wait()
	if e := s.pc.Close(); e != nil {
		err = e
	}
	return err
}

// receive is the receiver goroutine.
func (s *socket) receive() {
	for {
		err := s.io.read(s.received)
		s.mu.Lock()
		closed := s.closed
		s.mu.Unlock()
		switch {
		case closed || errors.Is(err, net.ErrClosed):
			s.fail(net.ErrClosed)
			return
		case err == nil:
		case s.only != nil:
			s.only.fail(err) // nobody is at the other end
			s.io.pause()
		default:
			s.io.pause() // what a datagram that was sent has met, or a lack of memory
		}
	}
}

// fail ends all sessions, when the socket was closed by somebody else.
func (s *socket) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.sessions {
		x.fail(err)
	}
	if s.only != nil {
		s.only.fail(err)
	}
}

// received is told one datagram. key identifies its sender, addr makes its
// address of that.
func (s *socket) received(key []byte, addr func() net.Addr, body []byte, whole bool) {
	if !whole || len(body) > s.o.Max {
		s.o.Stats.Truncated.Add(1)
		return
	}
	if s.only != nil {
		if !s.only.put(body) {
			s.o.Stats.Dropped.Add(1)
		}
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.sessions[string(key)]
	if x == nil {
		if x = s.admitLocked(key, addr); x == nil {
			s.o.Stats.Dropped.Add(1)
			return
		}
	} else {
		s.idle.toFront(x)
	}
	if !x.put(body) {
		s.o.Stats.Dropped.Add(1)
	}
}

// admitLocked makes a session for a new sender, or nil if there is no place for
// it: then the one that is idle for longest makes place for who comes next.
func (s *socket) admitLocked(key []byte, addr func() net.Addr) *session {
	if !s.listening {
		return nil
	}
	if s.live >= s.o.Sessions {
		if old := s.idle.last(); old != nil {
			s.forgetLocked(old)
			old.fail(s.o.Evicted)
		}
		return nil
	}
	x := s.newSession(key, addr())
	select {
	case s.accepts <- x:
	default:
		return nil
	}
	s.sessions[x.key] = x
	s.idle.add(x)
	s.live++
	return x
}

func (s *socket) forgetLocked(x *session) {
	if s.sessions[x.key] == x {
		delete(s.sessions, x.key)
		s.idle.remove(x)
	}
}

// send is the sender goroutine.
func (s *socket) send() {
	var box outbox
	for {
		s.outMu.Lock()
		for len(s.out.items) == 0 && !s.ending {
			s.ready.Wait()
		}
		if len(s.out.items) == 0 {
			s.outMu.Unlock()
			return
		}
		box, s.out = s.out, box
		waiting := s.waiting
		s.waiting = nil
		s.outMu.Unlock()
		for _, x := range waiting {
			x.writable()
		}
		s.io.write(&box, s.unsent)
		box.reset()
	}
}

// unsent is told what became of a datagram that was not sent.
func (s *socket) unsent(x *session, err error) {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EDESTADDRREQ):
		x.fail(err) // nobody is there any more
	default:
		s.o.Stats.Dropped.Add(1)
	}
}

// outbox holds datagrams that wait to be sent.
type outbox struct {
	items []item
	bytes []byte // their bodies, one after the other
}

type item struct {
	to        *session
	from, end int // in bytes
}

func (b *outbox) full(more int) bool {
	return len(b.items) >= outItems || len(b.items) > 0 && len(b.bytes)+more > outBytes
}

func (b *outbox) add(to *session, parts ...[]byte) {
	from := len(b.bytes)
	for _, p := range parts {
		b.bytes = append(b.bytes, p...)
	}
	b.items = append(b.items, item{to, from, len(b.bytes)})
}

func (b *outbox) reset() {
	clear(b.items)
	b.items, b.bytes = b.items[:0], b.bytes[:0]
	if cap(b.bytes) > 256<<10 {
		b.bytes = nil // after a burst
	}
}

func frameSize(header []byte) int { return int(binary.LittleEndian.Uint32(header)) }
