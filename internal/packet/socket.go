package packet

import (
	"container/heap"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
)

// socket is a datagram socket and its sessions.
type socket struct {
	// Immutable after construction.
	pc   net.PacketConn
	io   batcher
	o    Options
	only *session      // of a connected socket
	done chan struct{} // closed by the receiver at its end

	out  sender
	over atomic.Bool           // the receiver is to end
	gone atomic.Pointer[error] // a sender has found nobody at the other end of a connected socket

	// mu guards what follows. A session's mu may be taken inside it.
	mu        sync.Mutex
	sessions  map[string]*session // by the key of their source
	known     int                 // of these, those that were let in; each is in idle or in quiet
	idle      list                // those that were heard of since they were let in; the last one first
	quiet     quiet               // those that were not
	heard     uint64              // datagrams; see session.heard
	live      int                 // sessions that are not closed
	listening bool
	closed    bool       // the socket is, or is about to be
	accepts   []*session // wait for Accept
	accepting sync.Cond  // mu; there are some, or not listening
}

// backlog is how many sessions may wait for Accept at least.
const backlog = 1024

// source is where datagrams come from and are answered to. Its slices are good
// during a call only.
type source struct {
	key     []byte // identifies it; the address as the batcher has it
	control []byte // what came beside the datagram

	// Filled in by the batcher's resolve, when it is a new one.
	addr   net.Addr
	ap     netip.AddrPort // of an IP source, else not valid
	local  netip.Addr     // our address that it has sent to, where the socket has many; else not valid
	device uint32         // the index of its interface, where it holds on that alone
}

func newSocket(pc net.PacketConn, o Options) *socket {
	s := &socket{pc: pc, o: o, done: make(chan struct{}), sessions: map[string]*session{}}
	s.idle.init()
	s.accepting.L = &s.mu
	if c, ok := pc.(interface{ SetWriteBuffer(int) error }); ok {
		if a, ok := pc.LocalAddr().(*net.UnixAddr); ok && a != nil && a.Net == "unixgram" {
			c.SetWriteBuffer(MaxUnix) // or as much of it as the system allows
		}
	}
	s.io = newBatcher(pc, o.Max)
	s.out.init(s.io, s.unsent)
	return s
}

// start starts the receiver, which closeSocket joins.
func (s *socket) start() {
	go func() {
		unaccepted := s.receive()
		close(s.done)
		// This may close the socket, which waits for done. So nobody joins it; it calls
		// only what may be called after the hub's end.
		discard(unaccepted)
	}()
}

// discard ends sessions that nobody will accept.
func discard(unaccepted []*session) {
	for _, x := range unaccepted {
		x.Close()
	}
}

// accept waits for the next session; nil: there will be none.
func (s *socket) accept() *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.listening && len(s.accepts) == 0 {
		s.accepting.Wait()
	}
	if !s.listening {
		return nil
	}
	x := s.accepts[0]
	s.accepts[0] = nil
	if s.accepts = s.accepts[1:]; len(s.accepts) == 0 {
		s.accepts = nil
	}
	return x
}

// stop ends the accepting of new sessions, and returns those that nobody will
// accept.
func (s *socket) stop() (unaccepted []*session, was bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	unaccepted, was = s.accepts, s.listening
	s.accepts, s.listening = nil, false
	s.accepting.Broadcast()
	return unaccepted, was
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
	return s.closeSocket()
}

func (s *socket) closeSocket() error {
	s.io.hurry(soon())
	s.out.join()
	s.endReceiver()
	<-s.done
	return s.io.close()
}

// abort is closeIfUnused for who does not wait for the sessions.
func (s *socket) abort() {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	s.mu.Unlock()
	if first {
		s.closeSocket()
	}
}

// endReceiver makes the receiver leave, now or at the end of its turn.
func (s *socket) endReceiver() {
	s.over.Store(true)
	s.io.interrupt()
}

// receive is the receiver goroutine. What it fails with has been met by a
// datagram that was sent, or is a lack of memory, or the end of the socket. That a
// datagram was too large for the way (EMSGSIZE) ends nothing: the system, which has
// been told by a router, sends the next ones in smaller pieces.
func (s *socket) receive() (unaccepted []*session) {
	for {
		err := s.io.receive(s)
		if gone := s.gone.Load(); gone != nil && err != nil {
			err = *gone
		}
		switch {
		case s.over.Load():
			return nil
		case errors.Is(err, net.ErrClosed): // by somebody else
			return s.fail(net.ErrClosed)
		case err == nil:
			continue
		case s.only != nil && !s.only.ending.Load() && !errors.Is(err, syscall.EMSGSIZE): // nobody is at the other end
			s.io.drain(s)
			s.only.fail(err)
		}
		s.io.pause()
	}
}

// left is told by a sender that nobody is at the other end of a connected socket. The
// receiver ends the session, behind what has come before.
func (s *socket) left(err error) {
	if s.gone.CompareAndSwap(nil, &err) && s.pc.SetReadDeadline(longPast) != nil {
		s.only.fail(err)
	}
}

// fail ends everything, when the socket was closed by somebody else.
func (s *socket) fail(err error) (unaccepted []*session) {
	unaccepted, _ = s.stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.sessions {
		x.fail(err)
	}
	if s.only != nil {
		s.only.fail(err)
	}
	return unaccepted
}

// A round is what the receiver does with the datagrams of one system call,
// between begin and end.
type round struct {
	s       *socket
	last    *session // that of the datagram before, which is often the next one's too
	woken   bool
	sending bool // the sender's pen is ours
}

// begin also keeps the sessions' readers from sending one by one.
func (s *socket) begin() round {
	r := round{s: s, sending: s.out.acquire()}
	s.mu.Lock()
	return r
}

// end lets the readers run, and sends what they have to say. fd is the socket's
// descriptor, or noFD.
func (r *round) end(fd int) {
	r.s.mu.Unlock()
	if r.woken {
		runtime.Gosched()
	}
	if r.sending {
		r.s.out.flush(fd)
	}
}

// datagram is told one of them.
func (r *round) datagram(from *source, body []byte, whole bool) {
	s := r.s
	if !whole || len(body) > s.o.Max {
		s.o.Stats.Truncated.Add(1)
		return
	}
	x := s.only
	if x == nil {
		if x = r.last; x == nil || x.key != string(from.key) {
			x = s.sessions[string(from.key)]
		}
	}
	if x != nil && s.only == nil && x.ending.Load() {
		s.forgetLocked(x) // it takes nothing more; who goes on sending is another
		x = nil
	}
	if x == nil {
		if x = s.admitLocked(from); x == nil {
			s.o.Stats.Dropped.Add(1)
			return
		}
	} else if x != s.only {
		s.heardLocked(x)
	}
	r.last, r.woken = x, true
	if !x.put(body) {
		s.o.Stats.Dropped.Add(1)
	}
}

// admitLocked makes a session for a new source, or nil if too many wait already. It takes
// nobody's place before it is let in: who is not is to make nobody leave.
func (s *socket) admitLocked(from *source) *session {
	if !s.listening {
		return nil
	}
	if s.io.resolve(from); !s.answerable(from) {
		return nil
	}
	if len(s.accepts) >= max(s.o.Sessions, backlog) {
		return nil
	}
	x := s.newSession(*from)
	s.sessions[x.key] = x
	s.heardLocked(x)
	s.live++
	s.accepts = append(s.accepts, x)
	s.accepting.Signal()
	return x
}

// heardLocked notes that something came for a session.
func (s *socket) heardLocked(x *session) {
	s.heard++
	x.heard = s.heard
	switch {
	case !x.known:
	case x.next == nil:
		heap.Remove(&s.quiet, x.place)
		s.idle.add(x)
	default:
		s.idle.toFront(x)
	}
}

// answerable reports whether a source is one that a peer can have: port 0 is
// nobody's, and our own address is that of who wants us to answer ourselves.
func (s *socket) answerable(from *source) bool {
	if !from.ap.IsValid() {
		return true // not IP
	}
	if from.ap.Port() == 0 {
		return false
	}
	own, ok := s.pc.LocalAddr().(*net.UDPAddr)
	if !ok || own == nil || int(from.ap.Port()) != own.Port {
		return true
	}
	local := from.local
	if !local.IsValid() {
		local, _ = netip.AddrFromSlice(own.IP)
	}
	return local.Unmap().WithZone("") != from.ap.Addr().Unmap().WithZone("")
}

// letIn is LetIn of a session of s.
func (s *socket) letIn(x *session, full, mayEvict bool) (evicted, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if full || s.known >= s.o.Sessions {
		if !mayEvict || !s.evictLocked() {
			return false, false
		}
		evicted = true
	}
	x.entered = true
	if s.sessions[x.key] == x { // else it has hung up
		x.known = true
		s.known++
		heap.Push(&s.quiet, x)
	}
	return evicted, true
}

// evictLocked is Listener.Evict. Who was let in late was silent since it was heard of, which
// others may have been after that: so it cannot just come in front of idle, and waits in quiet
// until it is heard of again. (A list that has those too who are not let in yet would do, but
// as many as a rule holds up would have to be passed over each time.)
func (s *socket) evictLocked() bool {
	old := s.idle.last()
	if len(s.quiet) > 0 && (old == nil || s.quiet[0].heard < old.heard) {
		old = s.quiet[0]
	}
	if old == nil {
		return false
	}
	s.forgetLocked(old)
	old.evict(s.o.Evicted)
	return true
}

func (s *socket) forgetLocked(x *session) {
	if s.sessions[x.key] == x {
		delete(s.sessions, x.key)
	}
	if !x.known {
		return
	}
	x.known = false
	s.known--
	if x.next == nil {
		heap.Remove(&s.quiet, x.place)
	} else {
		s.idle.remove(x)
	}
}

// closedSession takes a session out that is closed. So many datagrams had come for it
// that nobody will read, which are counted if it was let in.
func (s *socket) closedSession(x *session, left int) error {
	s.mu.Lock()
	if x.entered || x == s.only {
		s.o.Stats.Dropped.Add(uint64(left))
	}
	s.forgetLocked(x)
	s.live--
	s.mu.Unlock()
	return s.closeIfUnused()
}
