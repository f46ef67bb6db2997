package packet

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sockhub/sockhub/internal/transport"
)

// session is one remote address as a transport.Conn: a stream of frames.
type session struct {
	// Immutable after construction.
	sock   *socket
	key    string     // of its source
	addr   net.Addr   // likewise
	local  netip.Addr // likewise
	device uint32     // likewise

	// Guarded by socket.mu.
	known      bool     // it was let in, and is in socket.sessions
	entered    bool     // it was let in
	heard      uint64   // when something came for it last, in datagrams of the socket
	next, prev *session // in socket.idle, or nil
	place      int      // else in socket.quiet, if it is known

	ending atomic.Bool // err or hung is set

	mu      sync.Mutex // guards what follows, up to the writer's; nothing is locked inside it
	changed sync.Cond  // mu; anything that Read or Write wait for
	in      []byte     // frames that were received and not read; from the pool while there are any
	r       int        // where in in the next one begins, or what is left of it
	rest    int        // how much that is; 0: the next one begins
	roomed  int        // what Options.Room has allowed of in
	news    bool       // something came since Read's turn began
	took    bool       // that turn has read
	err     error      // why there will be nothing more; behind what is in in
	told    bool       // TryRead has returned err
	room    bool       // the socket has room again since Write's turn began
	kicked  [2]bool    // by transport.Side
	hung    bool
	closed  bool
	evicted bool

	single bool // datagrams to it leave one by one (batch_linux.go); of who has the socket's pen

	// The writer's.
	part  []byte        // the beginning of a frame that TryWritev was given no more of yet
	retry time.Duration // when to try again, where the socket cannot tell
}

func (s *socket) newSession(from source) *session {
	x := &session{sock: s, key: string(from.key), addr: from.addr, local: from.local, device: from.device}
	x.changed.L = &x.mu
	return x
}

// What sessions have received lies in a small buffer each, which their owner's
// limit of sessions bounds, or, if that does not hold it, in a large one, which
// Options.Room has to allow.
const (
	smallBuffer = 4 << 10
	largeBuffer = 64 << 10  // at least
	inBytes     = 256 << 10 // what may wait in a session, or one datagram of more
)

var (
	small = sync.Pool{New: func() any { b := make([]byte, 0, smallBuffer); return &b }}
	large = sync.Pool{New: func() any { return new([]byte) }}
)

// put hands a datagram to the session, unless too much is waiting already.
func (x *session) put(body []byte) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	waiting, n := len(x.in)-x.r, HeaderSize+len(body)
	if x.err != nil || x.hung || waiting > 0 && waiting+n > inBytes {
		return false
	}
	if x.in == nil {
		x.in = (*small.Get().(*[]byte))[:0]
	}
	if x.r > 0 && len(x.in)+n > cap(x.in) {
		x.in = x.in[:copy(x.in, x.in[x.r:])]
		x.r = 0
	}
	if len(x.in)+n > cap(x.in) && !x.growLocked(len(x.in)+n) {
		return false
	}
	x.in = binary.LittleEndian.AppendUint32(x.in, uint32(len(body)))
	x.in = append(x.in, body...)
	x.news = true
	x.changed.Broadcast()
	return true
}

// growLocked gives the session a large buffer, if there is room for it, or else for as
// much as it needs.
func (x *session) growLocked(need int) bool {
	p := large.Get().(*[]byte)
	size := cap(*p)
	if size < need {
		size = max(need, 2*cap(x.in), largeBuffer)
	}
	room := x.roomLocked(size)
	if !room && size > need {
		large.Put(p)
		p, size = new([]byte), need
		room = x.roomLocked(size)
	}
	if !room {
		large.Put(p)
		if len(x.in) == 0 {
			x.dropBufferLocked()
		}
		return false
	}
	if cap(*p) < size {
		*p = make([]byte, 0, size)
	}
	old := x.in
	x.in = append((*p)[:0], old...)
	*p = nil
	if cap(old) == smallBuffer {
		small.Put(&old)
	}
	return true
}

// roomLocked asks for room for a buffer of this size.
func (x *session) roomLocked(size int) bool {
	o, more := &x.sock.o, size-smallBuffer-x.roomed
	if o.Room == nil || more <= 0 {
		return true
	}
	if !o.Room(more) {
		return false
	}
	x.roomed += more
	return true
}

// dropBufferLocked gives the buffer back, and returns for how much of it there
// was to be room, which is to be given to Options.Free without a lock.
func (x *session) dropBufferLocked() (roomed int) {
	b := x.in[:0]
	switch {
	case cap(b) == smallBuffer:
		small.Put(&b)
	case cap(b) > smallBuffer && cap(b) <= 2*inBytes:
		large.Put(&b)
	}
	x.in, x.r, x.rest = nil, 0, 0
	roomed, x.roomed = x.roomed, 0
	return roomed
}

func (x *session) free(roomed int) {
	if roomed > 0 {
		x.sock.o.Free(roomed)
	}
}

// fail ends the session behind what it has received.
func (x *session) fail(err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.failLocked(err)
}

func (x *session) failLocked(err error) {
	if x.err == nil {
		x.err, x.news = err, true
		x.ending.Store(true)
		x.changed.Broadcast()
	}
}

// evict is fail for who has to make place.
func (x *session) evict(err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.evicted = true
	x.failLocked(err)
}

func (x *session) writable() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.room = true
	x.changed.Broadcast()
}

// Read implements transport.Conn.
func (x *session) Read(turn func() (park bool)) error {
	for {
		x.mu.Lock()
		if x.takeKickLocked(transport.ReadSide) {
			x.mu.Unlock()
			return transport.ErrKicked
		}
		x.news, x.took = false, false
		x.mu.Unlock()
		if !turn() {
			return nil
		}
		x.mu.Lock()
		for !x.hung && !x.kicked[transport.ReadSide] && !x.news && !(x.took && x.pendingLocked()) {
			x.changed.Wait()
		}
		x.mu.Unlock()
	}
}

func (x *session) takeKickLocked(side transport.Side) bool {
	kicked := x.kicked[side]
	x.kicked[side] = false
	return kicked || x.hung
}

func (x *session) pendingLocked() bool { return len(x.in) > x.r || x.err != nil && !x.told }

// TryRead implements transport.Conn.
func (x *session) TryRead(p []byte) (n int, drained bool, err error) {
	roomed := 0
	defer func() { x.free(roomed) }()
	x.mu.Lock()
	defer x.mu.Unlock()
	x.took = true
	if len(x.in) == x.r {
		x.told = x.err != nil
		return 0, true, x.err
	}
	n = copy(p, x.in[x.r:])
	if n < len(x.in)-x.r {
		x.passLocked(n)
		return n, false, nil
	}
	roomed = x.dropBufferLocked()
	return n, x.err == nil, nil
}

// passLocked takes n bytes as read, which are not all.
func (x *session) passLocked(n int) {
	next := x.r + x.rest
	for x.r += n; next < x.r; {
		next += HeaderSize + frameSize(x.in[next:])
	}
	x.rest = next - x.r
}

// leftLocked is how many datagrams were not read, or not to their end.
func (x *session) leftLocked() (datagrams int) {
	next := x.r + x.rest
	if x.rest > 0 {
		datagrams++
	}
	for ; next < len(x.in); datagrams++ {
		next += HeaderSize + frameSize(x.in[next:])
	}
	return datagrams
}

// Write implements transport.Conn.
func (x *session) Write(turn func() (park bool)) error {
	for {
		x.mu.Lock()
		if x.takeKickLocked(transport.WriteSide) {
			x.mu.Unlock()
			return transport.ErrKicked
		}
		x.room = false
		x.mu.Unlock()
		if !turn() {
			return nil
		}
		var again *time.Timer
		if x.retry > 0 {
			again = time.AfterFunc(x.retry, x.writable)
		}
		x.mu.Lock()
		for !x.hung && !x.kicked[transport.WriteSide] && !x.room {
			x.changed.Wait()
		}
		x.mu.Unlock()
		if again != nil {
			again.Stop()
		}
	}
}

// TryWritev implements transport.Conn: it queues the datagrams in v. Of one that
// v ends in the middle of it keeps the beginning.
func (x *session) TryWritev(v [][]byte) (n int, err error) {
	switch {
	case x.ending.Load():
		x.mu.Lock()
		defer x.mu.Unlock()
		return 0, x.err
	case x.sock.io.direct():
		return x.writeDirect(v)
	}
	return x.sock.out.write(x, v), nil
}

// writeDirect sends each datagram by itself, where one peer that takes nothing
// keeps the socket from taking what is for others.
func (x *session) writeDirect(v [][]byte) (n int, err error) {
	var one outbox
	for at := (place{}); at.slice < len(v); {
		if at.off == len(v[at.slice]) {
			at = place{slice: at.slice + 1}
			continue
		}
		part := len(x.part)
		used, _ := x.queue(&one, v[at.slice][at.off:], v[at.slice+1:])
		if len(one.items) > 0 {
			var failed error
			sent := x.sock.io.send(&one, noFD, func(_ *session, err error) { failed = err })
			if sent == 0 {
				if part > 0 { // that much of it was taken before
					frame := binary.LittleEndian.AppendUint32(nil, uint32(len(one.bytes)))
					x.part = append(frame, one.bytes...)[:part]
				}
				x.retry = min(max(2*x.retry, time.Millisecond), 50*time.Millisecond)
				return n, nil
			}
			if failed != nil {
				x.sock.unsent(x, failed)
			}
			x.retry = 0
			one.reset()
		}
		n += used
		at.advance(v, used)
	}
	return n, nil
}

// queue adds to out the datagram that first and rest begin with, or that they are
// the end of when part is its beginning, and returns how many of their bytes that
// took.
func (x *session) queue(out *outbox, first []byte, rest [][]byte) (used int, full bool) {
	if len(x.part) == 0 && len(first) >= HeaderSize {
		size, body := frameSize(first), first[HeaderSize:]
		if len(body) == 0 && len(rest) > 0 {
			body = rest[0] // a large body stands alone behind its header
		}
		if len(body) >= size {
			if out.full(size) {
				return 0, true
			}
			out.add(x, body[:size])
			return HeaderSize + size, false
		}
	}
	if len(x.part) >= HeaderSize && out.full(frameSize(x.part)) {
		return 0, true
	}
	for i := -1; i < len(rest); i++ {
		p := first
		if i >= 0 {
			p = rest[i]
		}
		for len(p) > 0 {
			want := HeaderSize
			if len(x.part) >= HeaderSize {
				want += frameSize(x.part)
			}
			m := min(len(p), want-len(x.part))
			x.part = append(x.part, p[:m]...)
			used, p = used+m, p[m:]
			if len(x.part) >= HeaderSize && len(x.part) == HeaderSize+frameSize(x.part) {
				out.add(x, x.part[HeaderSize:])
				x.part = nil
				return used, false
			}
		}
	}
	return used, false
}

// WriteNow implements transport.Conn.
func (x *session) WriteNow(v [][]byte) (n int, ok bool, err error) {
	n, err = x.TryWritev(v)
	return n, true, err
}

// WriteInTurn implements transport.Conn.
func (x *session) WriteInTurn(v [][]byte) (n int, ok bool, err error) { return x.WriteNow(v) }

// WritesWhole implements transport.Conn.
func (x *session) WritesWhole() bool { return false }

// Kick implements transport.Conn.
func (x *session) Kick(side transport.Side) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.kicked[side] = true
	x.changed.Broadcast()
}

// CloseWrite implements transport.Conn: there is no way to tell the peer.
func (x *session) CloseWrite() error { return errors.ErrUnsupported }

// Hangup implements transport.Conn.
func (x *session) Hangup() {
	x.mu.Lock()
	first := !x.hung && !x.closed
	x.hung = true
	x.ending.Store(true)
	x.changed.Broadcast()
	x.mu.Unlock()
	if first && x.sock.only == x {
		x.sock.endReceiver() // it has nobody else to receive for
	}
}

// Close implements transport.Conn. It closes the socket too, if nobody else
// uses it.
func (x *session) Close() error {
	x.mu.Lock()
	again := x.closed
	x.closed, x.hung = true, true
	x.ending.Store(true)
	left := x.leftLocked()
	roomed := x.dropBufferLocked()
	x.mu.Unlock()
	x.free(roomed)
	if again {
		return nil
	}
	return x.sock.closedSession(x, left)
}

// Pending implements transport.Conn.
func (x *session) Pending() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.pendingLocked()
}

// Ended implements transport.Conn: a peer does not say that it has finished.
func (x *session) Ended() bool { return false }

// Gone implements transport.Conn.
func (x *session) Gone() error { return nil }

// Unacked implements transport.Conn: nobody acknowledges datagrams.
func (x *session) Unacked() (n int, ok bool) { return 0, false }

// Conn is a session as a net.Conn, for those who ask for its addresses, or its
// transport. It cannot be read or written otherwise.
type Conn struct{ x *session }

// Transport returns what the session is used by; see transport.New.
func (c *Conn) Transport() transport.Conn { return c.x }

// Answerable reports whether the peer has an address to send to; who sends from
// a Unix socket without one has not.
func (c *Conn) Answerable() bool { return c.x.sock.only != nil || c.x.key != "" }

// LocalAddr is the address that the peer has sent to, where the socket has many.
func (c *Conn) LocalAddr() net.Addr {
	addr := c.x.sock.pc.LocalAddr()
	if own, ok := addr.(*net.UDPAddr); ok && c.x.local.IsValid() {
		return net.UDPAddrFromAddrPort(netip.AddrPortFrom(c.x.local, uint16(own.Port)))
	}
	return addr
}

func (c *Conn) Close() error                     { return c.x.Close() }
func (c *Conn) RemoteAddr() net.Addr             { return c.x.addr }
func (c *Conn) Read([]byte) (int, error)         { return 0, errors.ErrUnsupported }
func (c *Conn) Write([]byte) (int, error)        { return 0, errors.ErrUnsupported }
func (c *Conn) SetDeadline(time.Time) error      { return nil }
func (c *Conn) SetReadDeadline(time.Time) error  { return nil }
func (c *Conn) SetWriteDeadline(time.Time) error { return nil }
