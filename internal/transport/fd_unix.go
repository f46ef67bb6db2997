//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package transport

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// rawLimit is the largest transfer that is made without telling the scheduler
// (RawSyscall): such a call saves about 4 % of a small exchange, but keeps its
// P for as long as the copy takes, which must stay far below the time that a
// waiting goroutine would notice. Only calls that cannot wait may be made so;
// on Linux MSG_DONTWAIT sees to that. 16 KiB and a header are below it, as
// messages like to be of a round size.
const rawLimit = 17 << 10

// sendMax bounds the bytes of one sending system call. Linux cuts a longer
// vector silently and others refuse it. The cut must be ours: a short count
// that does not come from a full socket would park a writer whom no edge wakes.
const sendMax = 1 << 30

// iovMax is the number of slices in one sending system call (IOV_MAX of every
// system here).
const iovMax = 1024

// raceReceived and raceSending tell the race detector about transfers, which
// it cannot see in raw system calls. They are nil except in builds for it (see
// race.go), so that the path of data has one predictable branch and no second
// version of itself.
var (
	raceReceived func(fd int, p []byte)
	raceSending  func(v [][]byte)
)

// socket is what the descriptor transport uses of *net.TCPConn and
// *net.UnixConn.
type socket interface {
	net.Conn
	syscall.Conn
}

// fdConn is the transport on a socket's descriptor. Its methods may be called
// concurrently as Conn says.
//
// It does its own system calls inside the callbacks of a syscall.RawConn, and
// leaves waiting, deadlines and the descriptor's lifetime to package net.
//
// There is one per connection, and most connections are idle: it is kept
// small (112 bytes with its callback on 64-bit systems), so whatever is needed
// during a call only comes from a pool or lives on the stack.
type fdConn struct {
	// Immutable after construction.
	conn     socket
	raw      syscall.RawConn
	readable func(fd uintptr) (done bool) // c.runRead, made once: Read allocates nothing
	tcp      bool
	inq      bool // the kernel was asked to tell with each receive how much is left

	// Owned by the goroutine in Read, valid while it is there: TryRead's
	// descriptor is the one that the running callback was given, never one
	// remembered from earlier.
	turn func() (park bool)
	rfd  int32
	bulk bool // the last receive took more than rawLimit

	// wfd is the descriptor of the running Write's callback, else -1. It is
	// owned by the goroutine in Write; the reader only looks at its sign.
	wfd atomic.Int32

	// mu serializes every setting of a deadline, so that none can undo those
	// of Hangup, and every shutdown with the reading of what it changes. No
	// call under it waits.
	mu   sync.Mutex
	hung bool
	fin  bool          // a FIN of ours is or was in the output
	dead syscall.Errno // what Gone has found: reading a socket's error clears it
}

// newFD returns the descriptor transport for rwc, or nil if it has no
// descriptor that could be used in this way.
func newFD(rwc io.ReadWriteCloser) Conn {
	c := newDescriptor(rwc)
	if c == nil {
		return nil // not a nil *fdConn in a Conn
	}
	// Deadlines are ours from now on. One that is left from before, of a
	// handshake for example, would be taken for a kick.
	if err := c.conn.SetDeadline(time.Time{}); err != nil {
		return nil
	}
	if c.tcp {
		c.inq = c.control(enableInq) == nil
	}
	return c
}

// newDescriptor is newFD without any change to the socket.
func newDescriptor(rwc any) *fdConn {
	var tcp bool
	switch rwc.(type) {
	case *net.TCPConn:
		tcp = true
	case *net.UnixConn:
	default:
		// Nor a type that embeds one of these: its own Read may do more.
		return nil
	}
	s := rwc.(socket)
	raw, err := s.SyscallConn()
	if err != nil {
		return nil
	}
	c := &fdConn{conn: s, raw: raw, tcp: tcp, rfd: -1}
	c.wfd.Store(-1)
	c.readable = c.runRead
	err = c.control(func(fd int) error {
		// A UnixConn may also be of datagrams or packets.
		typ, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
		if err == nil && typ != unix.SOCK_STREAM {
			err = errors.ErrUnsupported
		}
		return err
	})
	if err != nil {
		return nil
	}
	return c
}

// underlying returns the descriptor transport for the connection below one
// that Reads and Writes go through, or nil. It serves for the state and the end
// of that connection alone.
func underlying(inner net.Conn) Conn {
	if c := newDescriptor(inner); c != nil {
		return c
	}
	return nil
}

// control runs f on the descriptor, which stays open meanwhile. It allocates;
// WriteNow and Pending have a way of their own.
func (c *fdConn) control(f func(fd int) error) (err error) {
	cerr := c.raw.Control(func(fd uintptr) { err = f(int(fd)) })
	if cerr != nil {
		return cerr
	}
	return err
}

// Read implements Conn.
//
// No edge is lost: RawConn.Read forgets the edges of the past when it begins,
// and runs its callback after that; from there on it keeps an edge that comes
// while the callback runs, and the wait that follows takes it and returns at
// once.
//
// No kick is lost either. Whoever kicks first notes a reason, where the reader
// will look for it, and then calls Kick, which sets a deadline in the past.
// Such a deadline ends a wait at once, the running one or the next, and
// remains. The reader first clears it, here, and takes the reasons after Read
// has returned. For any kick, either its deadline was set before the clearing:
// then its reason was noted before that, and is seen. Or after: then it stands,
// and the next Read returns for it. So the worst is a Read that returns for a
// reason which the reader has taken already. The deadline is set and cleared
// under mu, hence these two are in an order.
func (c *fdConn) Read(turn func() (park bool)) error {
	c.turn = turn
	defer c.endRead() // deferred because turn may panic or end its goroutine
	return c.waited(ReadSide, c.raw.Read(c.readable))
}

func (c *fdConn) runRead(fd uintptr) (done bool) {
	c.rfd = int32(fd)
	return !c.turn()
}

func (c *fdConn) endRead() {
	c.turn, c.rfd = nil, -1
}

// waited turns the error of RawConn's Read or Write into that of ours, and
// consumes the kick.
func (c *fdConn) waited(side Side, err error) error {
	if err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	c.setDeadline(side, time.Time{})
	return ErrKicked
}

// setDeadline sets the deadline of one side, unless Hangup has set it for good.
func (c *fdConn) setDeadline(side Side, t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hung {
		return
	}
	// These fail on a closed connection alone, where there is nobody to call:
	// package net knows that it is closed, whoever has the descriptor's number
	// by now.
	if side == ReadSide {
		c.conn.SetReadDeadline(t)
	} else {
		c.conn.SetWriteDeadline(t)
	}
}

// Kick implements Conn. See Read for why none is lost.
func (c *fdConn) Kick(side Side) { c.setDeadline(side, longPast) }

// TryRead implements Conn.
func (c *fdConn) TryRead(p []byte) (n int, drained bool, err error) {
	fd := int(c.rfd)
	// What will come is not known, but is mostly like what came last. And while
	// the connection's own writer goroutine is about, its P is needed.
	raw := (!c.bulk || len(p) <= rawLimit) && c.wfd.Load() < 0
	var errno unix.Errno
	if c.inq {
		n, drained, errno = receiveInq(fd, p, raw) // from here, for the sake of the stack
	} else {
		n, drained, errno = receive(fd, p, raw)
	}
	switch {
	case errno == 0 && n > 0:
		if bulk := n > rawLimit; bulk != c.bulk {
			c.bulk = bulk
		}
		if raceReceived != nil {
			raceReceived(fd, p[:n])
		}
		return n, drained, nil
	case errno == 0:
		return 0, true, io.EOF
	case errno == unix.EAGAIN:
		return 0, true, nil
	}
	return 0, true, errno
}

// writeCall is a running Write. It is pooled, not part of fdConn, because few
// connections of many are writing at one time.
type writeCall struct {
	writable func(fd uintptr) (done bool) // w.run, made once
	conn     *fdConn
	turn     func() (park bool)
}

var writeCalls = sync.Pool{New: func() any {
	w := new(writeCall)
	w.writable = w.run
	return w
}}

func (w *writeCall) run(fd uintptr) (done bool) {
	w.conn.wfd.Store(int32(fd))
	return !w.turn()
}

func (w *writeCall) end() {
	w.conn.wfd.Store(-1)
	w.conn, w.turn = nil, nil
	writeCalls.Put(w)
}

// Write implements Conn. What Read says of edges and kicks holds here too.
func (c *fdConn) Write(turn func() (park bool)) error {
	w := writeCalls.Get().(*writeCall)
	w.conn, w.turn = c, turn
	defer w.end()
	return c.waited(WriteSide, c.raw.Write(w.writable))
}

// TryWritev implements Conn.
//
// A short count is enough to park on, without another call to see EAGAIN:
// systems report writability again after a send that could not take all.
func (c *fdConn) TryWritev(v [][]byte) (n int, err error) {
	if raceSending != nil {
		raceSending(v)
	}
	// Not a raw call: the reader of this connection is likely to want a P.
	return send(int(c.wfd.Load()), v, false)
}

// quickCall is a call of RawConn.Control that allocates nothing: its callback
// is made once, and it is pooled.
type quickCall struct {
	callback func(fd uintptr)

	// The operation, its argument and its results.
	poll   bool
	v      [][]byte
	n      int
	events int16 // asked for, then found
	err    error
}

var quickCalls = sync.Pool{New: func() any {
	q := new(quickCall)
	q.callback = q.run
	return q
}}

func (q *quickCall) run(fd uintptr) {
	if q.poll {
		q.events, q.err = poll(int(fd), q.events)
		return
	}
	q.n, q.err = send(int(fd), q.v, true)
}

// release keeps the pool from holding on to a user's bytes.
func (q *quickCall) release() {
	*q = quickCall{callback: q.callback}
	quickCalls.Put(q)
}

// WriteNow implements Conn.
func (c *fdConn) WriteNow(v [][]byte) (n int, ok bool, err error) {
	if raceSending != nil {
		raceSending(v)
	}
	q := quickCalls.Get().(*quickCall)
	q.v = v
	err = c.raw.Control(q.callback)
	if err == nil {
		n, err = q.n, q.err
	}
	q.release()
	return n, true, err
}

// WriteInTurn implements Conn. The callback that runs keeps its descriptor open,
// so that a call of Control is spared.
func (c *fdConn) WriteInTurn(v [][]byte) (n int, ok bool, err error) {
	if c.rfd < 0 {
		return c.WriteNow(v)
	}
	if raceSending != nil {
		raceSending(v)
	}
	n, err = send(int(c.rfd), v, true)
	return n, true, err
}

// WritesWhole implements Conn.
func (c *fdConn) WritesWhole() bool { return false }

// Pending implements Conn.
func (c *fdConn) Pending() bool { return c.quickPoll(pendingEvents) }

// Ended implements Conn.
func (c *fdConn) Ended() bool { return c.quickPoll(endedEvents) }

// quickPoll reports whether there is one of events now, or a trouble.
func (c *fdConn) quickPoll(events int16) bool {
	q := quickCalls.Get().(*quickCall)
	q.poll, q.events = true, events
	err := c.raw.Control(q.callback)
	// What cannot be polled is worth a look by the reader as well.
	found := err != nil || q.err != nil || q.events != 0
	q.release()
	return found
}

// PeerEnded reports whether the peer of a socket has ended its output, or is gone, though
// there may be input before that end. It does not wait.
func PeerEnded(raw syscall.RawConn) bool {
	ended := false
	err := raw.Control(func(fd uintptr) {
		revents, err := poll(int(fd), endedEvents)
		ended = err != nil || revents != 0
	})
	return err != nil || ended
}

// poll reports which of events, and which troubles, there are now.
func poll(fd int, events int16) (revents int16, err error) {
	fds := [1]unix.PollFd{{Fd: int32(fd), Events: events}}
	for {
		_, err := unix.Poll(fds[:], 0)
		if err != unix.EINTR {
			return fds[0].Revents, err
		}
	}
}

// CloseWrite implements Conn.
func (c *fdConn) CloseWrite() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.shutdownLocked(unix.SHUT_WR)
}

func (c *fdConn) shutdownLocked(how int) error {
	err := c.control(func(fd int) error { return unix.Shutdown(fd, how) })
	if err == nil {
		c.fin = true
	}
	return err
}

// Hangup implements Conn. The deadlines come first: the reader is then called
// away before it can take our own shutdown for the peer's. After Close all of
// this fails, as in setDeadline, and changes nothing.
func (c *fdConn) Hangup() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hung {
		return
	}
	c.hung = true
	c.conn.SetDeadline(longPast)
	// Fails where the peer has reset the connection, which is as good.
	c.shutdownLocked(unix.SHUT_RDWR)
}

// Close implements Conn.
func (c *fdConn) Close() error { return c.conn.Close() }

// Gone implements Conn.
func (c *fdConn) Gone() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead != 0 {
		return c.dead
	}
	err := c.control(c.goneLocked)
	errors.As(err, &c.dead)
	return err
}

// socketError takes the socket's pending error, or nil.
func socketError(fd int) error {
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && n != 0 {
		err = syscall.Errno(n)
	}
	return err
}

// Unacked implements Conn.
func (c *fdConn) Unacked() (n int, ok bool) {
	c.mu.Lock() // c.fin and the count must belong together
	defer c.mu.Unlock()
	err := c.control(func(fd int) error {
		n, ok = c.unackedLocked(fd)
		return nil
	})
	if err != nil {
		return 0, false
	}
	return n, ok
}
