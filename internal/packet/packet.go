// Package packet makes connections of datagrams: each remote address of a
// datagram socket is a session, which package sockhub serves as it serves a
// stream. So the same reader, writer and queues work for both.
//
// The way of a datagram in: the receiver, a goroutine of the socket, takes as
// many as there are in one system call (batcher), copies each into its session
// and wakes that session's reader. It lets these run, and then sends what they
// have answered, all of it together.
//
// The way out: what a connection writes is copied to the outbox of the socket
// (sender), and counts as written. Whoever sends it, sends all that is there: the
// receiver after its turn, the writing goroutine itself when it is the only one
// or has gathered many, else a goroutine that exists while there is output.
// The outbox is small, so that the queue proper, with its limits and reports,
// stays the connection's.
//
// Between a session and its connection a datagram is a frame, with a header of
// HeaderSize bytes that never leaves the process.
package packet

import (
	"cmp"
	"encoding/binary"
	"net"
	"sync/atomic"
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
)

// Options are the limits of a socket, and what it asks of its owner.
type Options struct {
	Max      int    // longest datagram; longer ones are dropped and counted
	Sessions int    // how many may be let in (LetIn)
	Evicted  error  // the end of one that has to make place
	Stats    *Stats // counts; several sockets may share it

	// Room reports whether there is room for n more bytes of what sessions have received;
	// nil: always. It is called with locks held, and must neither wait nor call back.
	Room func(n int) bool
	Free func(n int) // so many of them are free again; nil if Room is. No lock of this package is held
}

// Stats counts datagrams that were lost here.
type Stats struct {
	Truncated atomic.Uint64 // longer than Options.Max
	Dropped   atomic.Uint64 // their session did not keep up, or has ended, there were too many, or they could not be sent
}

// Listener accepts the sessions of a socket. It is a net.Listener; its
// connections bring their transport (transport.New).
type Listener struct{ s *socket }

// Listen makes a Listener of a socket, which it owns from now on.
func Listen(pc net.PacketConn, o Options) *Listener {
	s := newSocket(pc, o)
	s.listening = true
	s.start()
	return &Listener{s}
}

// Connect makes the one session of a connected socket, which it owns from now
// on.
func Connect(c net.Conn, o Options) *Conn {
	pc, ok := c.(net.PacketConn)
	if !ok {
		pc = connected{c}
	}
	s := newSocket(pc, o)
	s.only = s.newSession(source{addr: c.RemoteAddr()})
	s.live = 1
	s.start()
	return &Conn{s.only}
}

// connected is a connection whose packets come and go with Read and Write.
type connected struct{ net.Conn }

// ReadFrom implements net.PacketConn.
func (c connected) ReadFrom(p []byte) (int, net.Addr, error) {
	n, err := c.Read(p)
	return n, c.RemoteAddr(), err
}

// WriteTo implements net.PacketConn.
func (c connected) WriteTo(p []byte, _ net.Addr) (int, error) { return c.Write(p) }

// Addr is the socket's address.
func (l *Listener) Addr() net.Addr { return l.s.pc.LocalAddr() }

// Accept returns the next session.
func (l *Listener) Accept() (net.Conn, error) {
	if x := l.s.accept(); x != nil {
		return &Conn{x}, nil
	}
	return nil, net.ErrClosed
}

// Close lets no new sessions in. The socket is closed when the last one is. Until then
// it has no place in the file system any more, if it has the method Unlink() error.
func (l *Listener) Close() error {
	unaccepted, was := l.s.stop()
	if !was {
		return net.ErrClosed
	}
	var err error
	if u, ok := l.s.pc.(interface{ Unlink() error }); ok {
		err = u.Unlink()
	}
	discard(unaccepted)
	return cmp.Or(l.s.closeIfUnused(), err)
}

// Abort closes the socket although there are sessions, which fail. It is called
// after Close.
func (l *Listener) Abort() { l.s.abort() }

// Abort closes the socket of a connection that Connect has made, whose transport c may
// be, although it has not ended.
func Abort(c any) {
	if x, ok := c.(*session); ok && x.sock.only == x {
		x.sock.abort()
	}
}

// Shared reports whether c, whose transport is a session or another one, is a session of a
// Listener.
func Shared(c any) bool {
	x, ok := c.(*session)
	return ok && x.sock.only != x
}

// AtLimit reports whether all places that there are for c, which is Shared, are taken.
func AtLimit(c any) bool {
	s := c.(*session).sock
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known >= s.o.Sessions
}

// LetIn gives c, which is Shared, one of the places that there are for these. If all are
// taken, or full is set, the one that was silent for longest has to make place, if mayEvict
// is set. ok is false, and nothing has changed, if there is no place.
func LetIn(c any, full, mayEvict bool) (evicted, ok bool) {
	x := c.(*session)
	return x.sock.letIn(x, full, mayEvict)
}

// Sessions is how many there are that LetIn has let in, and that have not ended nor had
// to make place.
func (l *Listener) Sessions() int {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	return l.s.known
}

// Evict ends the session that was silent for longest, of those that Sessions counts, and
// reports whether there is one.
func (l *Listener) Evict() bool {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	return l.s.evictLocked()
}

// WasEvicted reports whether c, whose transport is a session or another one, is
// a session that had to make place.
func WasEvicted(c any) bool {
	x, ok := c.(*session)
	if !ok {
		return false
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.evicted
}

func frameSize(header []byte) int { return int(binary.LittleEndian.Uint32(header)) }
