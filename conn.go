package sockhub

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sockhub/sockhub/internal/budget"
	"github.com/sockhub/sockhub/internal/chunk"
	"github.com/sockhub/sockhub/internal/outq"
	"github.com/sockhub/sockhub/internal/transport"
	"github.com/sockhub/sockhub/internal/watch"
)

// Why a connection ended, or a call was refused. Compare with errors.Is.
var (
	// ErrClosed: the Hub, Listener or Conn was closed or finished by this
	// side. It matches net.ErrClosed.
	ErrClosed error = closedError{}

	// ErrNotConnected: the client is known, but its connection has ended, or there was
	// none yet; or there is another, which comes when the Disconnected of the one before
	// was taken (see Hub.Send).
	ErrNotConnected = errors.New("sockhub: not connected")

	// ErrIdleTimeout: nothing came for IdleTimeout.
	ErrIdleTimeout = errors.New("sockhub: idle for too long")

	// ErrFrameTimeout: a message that had begun made no progress for
	// FrameTimeout.
	ErrFrameTimeout = errors.New("sockhub: a message that had begun made no progress")
)

type closedError struct{}

func (closedError) Error() string        { return "sockhub: closed" }
func (closedError) Is(target error) bool { return target == net.ErrClosed }

// Conn is one connection of a Hub. All methods may be called from any
// goroutine at any time, also after the connection has ended.
//
// A Conn is one connection and not the client behind it: when an expected or
// dialed client comes back, that is another Conn with the same ID.
type Conn struct {
	// What a turn of the reader touches comes first, then what a Send does, and
	// what is rarely looked at last: with a thousand connections each line of it is
	// out of the caches.

	// Immutable after construction.
	hub *Hub
	t   transport.Conn
	set *settings

	// Owned by the reader goroutine.
	handler  Handler    // nil: Events
	scratch  *scratch   // of the turn that the reader is in, or nil
	stream   *Stream    // input waits for it to be read; nil: none
	greet    *greeting  // the handshake under way; nil after it
	diverted *diversion // input waits for what Events has not given away yet; nil mostly
	paused   bool       // input waits for the user to take what he has, or for room for answers
	gated    bool       // input waits until the Disconnected of the same client's last connection was taken
	letGo    bool       // the input is over, and nothing is held of it
	follows  bool       // it takes the place of the connection that had the name; guarded by hub.mu, not the reader's
	skipping bool       // the rest of a stream that was closed
	stopped  bool       // a callback closed or finished the connection
	missed   bool       // a Stream's Read has taken a kick that may be for the reader; guarded by Stream.mu
	starved  bool       // the budget does not let it read
	token    bool       // the budget lets it read to the end of the message that has begun
	untried  bool       // the token has come, and nothing was tried to be read since
	badInput bool       // what came is no message
	inHand   bool       // the handler is called with a message, of handed bytes
	inside   bool       // the reader is inside the turnstile
	input    inputState // set with mu held, so that with mu others may read it

	// change is what SetHandler and SetRaw tell the reader to do; nil: nothing. It is set,
	// and what it points to is read and written, with mu held.
	change atomic.Pointer[change]

	ends atomic.Uint32 // whether, and how: 0, endsInOrder or endsNow. Set with mu held

	// inCall: the reader is in code of the user's, which may take any time, or just before
	// or behind it, between the calls of one turn. So a panic is the user's (recoverCall,
	// lastCall), the clocks of silence stand still (check, shrinkLocked), quick may go on, and
	// Hub.join and drain do not wait for the reader. Only the reader sets it.
	inCall atomic.Bool

	// refuses: out.refuse is set, for a look without mu. Set with it held.
	refuses atomic.Bool

	// busy spares most turns of a busy connection the clock and mu: see parking. While
	// it is set, every turn since then has ended like the first: something came, nothing of
	// it is left over, and nothing is held back. So check is armed within doubt, doubtful
	// is set, and partial, holding and lean are not; lastRead and quiet are behind. Whoever
	// needs those (check, Stats, the reader itself) calls busyLocked, which takes the
	// present for them and clears busy. Only the reader sets it, and both is done with mu
	// held.
	busy atomic.Bool

	// Owned by the reader goroutine.
	turnMsgs  int32 // delivered since bookLocked, and not in inMsgs yet; below 0 where some of inMsgs will come again
	own       int32 // of held: what the budget has beside its limit, for this connection alone
	turnBytes int   // as turnMsgs
	handed    int   // bytes of the message that the handler is called with, or was last
	held      int64 // of the budget: for what was read and not delivered, and for the next read. While a Stream is read it is its reader's, as own and dec are
	dec       decoder
	reply     Reply // the handler's

	// mu guards what follows, up to the next empty line. The lock order is that of Hub.mu.
	// With mu held nobody calls Give, Poke, Wait or Done of the budget of input, which call
	// readOn, which locks a Conn.
	mu       gatheringLock
	out      output
	inMsgs   uint64
	inBytes  uint64
	lastRead time.Duration // end of the last turn in which something came
	quiet    time.Duration // since when the peer has been silent while we listened
	doubtful bool          // the reader has parked, since lastRead, on a guess (transport.Conn.TryRead)
	partial  bool          // it has parked, or a Stream waits, within a message
	holding  bool          // it has parked because the input is held back (holdsBack): no clock of silence runs
	waiting  bool          // the user of a Stream waits for input, so these clocks run though a callback may
	asked    bool          // Close or Finish was called before the connection ended by itself
	shrink   bool          // the reader is to move to a new stack, which is small, when it attends next
	lean     bool          // it was told to, and nothing has come since
	naps     uint8         // how often something came after it was lean, at most maxNaps
	resume   bool          // the reader is to read on
	granted  bool          // resume comes with the budget's token
	endRead  bool          // the reader is to end the input, for Shutdown
	heardEnd bool          // its user knows that the input has ended
	shaking  bool          // the handshake is under way
	overdue  bool          // the drain's deadline has passed
	over     bool          // the reader has left, and closeErr says why
	reclaim  bool          // the next check has the handshake claim its name again, whose owner may be stuck by now
	endErr   error         // what ended the input
	lacks    int           // bytes left of the message that the token is for
	tokenBy  time.Duration // until when its owner has to have read them; 0: nobody
	deadline time.Duration // of the handshake, later of the drain; 0: none
	closeErr error         // why the connection is to end now, or has ended; set once, but for notLetIn
	life     *life         // what Context returns; nil: nobody has asked

	clock watch.Entry // the next moment at which check runs

	// Guarded by hub.fan.mu.
	ev connEvents

	// Written by the reader goroutine before the connection is published,
	// immutable from then on.
	peer   Peer
	client *client

	// Immutable after construction.
	tls      *tls.Conn     // that t is on, or nil
	listener *Listener     // that accepted it, or nil
	born     time.Duration // of hub.watch

	reported  int64                  // of the memory budget: what the report holds. Written by the reader before depart, read by who frees the slot
	streaming atomic.Pointer[Stream] // as stream, if it is of Events
	value     atomic.Pointer[any]
}

// What ends a connection, or a direction of it, and what each sets:
//
//	Close, a failure    closeErr, ends = endsNow, out.frozen, out.refuse
//	Finish              out.finish, ends = endsInOrder, out.fin, out.refuse; then input = discarding
//	CloseWrite          out.fin, out.refuse
//	a failed write      out.err, out.frozen, out.refuse; the input is read to its end
//	the peer's FIN      input = ended, endErr; as Finish does, when Ended was answered (endTaken)
//	Shutdown            endRead; then input = shut, endErr, and likewise
//
// out.refuse is what a Send gets from then on, and asked says that it was this side's wish.
// advanceEndLocked brings these together, and whyLocked makes one reason of them.

// What Conn.ends may be, but for 0. In either case nothing more is delivered.
const (
	endsInOrder = 1 + iota // out.finish is set: when the queue is written, and Drained told
	endsNow                // closeErr is set
)

// life is the context of a connection. It is apart from the Conn because few ask for it.
type life struct {
	ctx  context.Context
	end  context.CancelCauseFunc
	over chan struct{} // closed when Conn.over is set, and the socket closed
}

// inputState is how far the input has come. It only moves on, but for unend.
type inputState uint8

const (
	reading    inputState = iota
	shut                  // ended by Shutdown as if the peer had finished: nothing more is delivered
	discarding            // finished by us: what still comes is dropped
	ended                 // the peer has finished or is gone
)

// ID is the number of the client that this connection belongs to.
func (c *Conn) ID() ID { return c.client.id }

// Name is what the peer called itself, or "" if it gave no name: any 1 to
// MaxNameLen bytes, so print it with %q. On a dialed connection it is what we
// called ourselves.
func (c *Conn) Name() string { return c.peer.Name }

// Peer tells who is at the other end.
func (c *Conn) Peer() Peer { return c.peer }

// String describes the connection for people.
func (c *Conn) String() string { return c.peer.String() }

// LogValue implements slog.LogValuer: what String says.
func (c *Conn) LogValue() slog.Value { return c.peer.LogValue() }

// Context returns a context that ends with the connection; context.Cause of
// it is then the reason, the same as Disconnection.Err. It is made at the
// first call. Close, of the connection or of the hub, and WriteTimeout end it at once,
// also during a call of the Handler. But that a peer has gone is noticed by reading, and
// so not before the call returns: no Handler should wait for this alone. Without a
// Handler, a connection whose peer has finished or closed ends when the batch that says
// so (Ended) was taken, so somebody has to receive from Events meanwhile.
func (c *Conn) Context() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lifeLocked().ctx
}

// afterEnd returns a channel that is closed when the connection has ended, which may be
// long after its context has, as a Handler's call is waited for.
func (c *Conn) afterEnd() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lifeLocked().over
}

func (c *Conn) lifeLocked() *life {
	if c.life == nil {
		ctx, end := context.WithCancelCause(context.Background())
		c.life = &life{ctx, end, make(chan struct{})}
		c.endContextLocked()
		if c.over {
			close(c.life.over)
		}
	}
	return c.life
}

// endContextLocked ends the context when the reason is known, for a call of the Handler
// may be waiting for that. During a handshake the reason is not final: see notLetIn. It
// runs nothing of the user's.
func (c *Conn) endContextLocked() {
	if c.life != nil && c.closeErr != nil && (c.over || !c.shaking) {
		c.life.end(c.closeErr)
	}
}

// Value returns what SetValue has stored last, or nil.
func (c *Conn) Value() any {
	if p := c.value.Load(); p != nil {
		return *p
	}
	return nil
}

// SetValue stores a value of the user's own with the connection.
func (c *Conn) SetValue(v any) { c.value.Store(&v) }

// ConnStats are the figures of one connection.
type ConnStats struct {
	// Delivered; bytes are those of bodies. What was withdrawn from Events for a Handler
	// (see SetHandler) counts also if the connection ended before the Handler had it.
	MessagesIn, BytesIn uint64

	MessagesOut, BytesOut uint64 // handed to the kernel whole
	QueuedIn              int64  // bytes charged to what the user has not taken
	QueuedOut             int64  // bytes charged to what is not written
	QueuedMessages        int    // accepted and not written

	// Paused: reading waits for the user to take what came or to read a Stream, for a
	// limit, or, with a Handler, for room in the queue.
	Paused bool

	Since               time.Time // when it was made
	LastRead, LastWrite time.Time // up to 0.1 s late; LastWrite is zero while nothing was written
}

// Stats returns the connection's figures as they are now.
func (c *Conn) Stats() ConnStats {
	c.hub.fan.mu.Lock()
	queuedIn := c.ev.untaken
	c.hub.fan.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	s := ConnStats{
		MessagesIn: c.inMsgs, BytesIn: c.inBytes,
		MessagesOut: c.out.written.msgs, BytesOut: c.out.written.bytes,
		QueuedIn: queuedIn, QueuedOut: c.out.charge(), QueuedMessages: c.out.len(),
		Paused: c.holding && !c.over,
		Since:  c.hub.watch.Time(c.born),
	}
	if c.over {
		s.QueuedOut, s.QueuedMessages = 0, 0 // a message that was cut is the report's
	}
	c.busyLocked(c.hub.watch.Now())
	s.LastRead = c.hub.watch.Time(c.lastRead)
	if c.out.last != 0 {
		s.LastWrite = c.hub.watch.Time(c.out.last)
	}
	return s
}

// Close ends the connection now, and does not wait. What is queued is not sent, but
// reported in the Disconnection, whose Err is ErrClosed unless the connection had failed
// before. If a Send has returned ErrNotConnected already, Close changes nothing: the
// failure stays the reason, and with Reconnect the client is dialed again. Closing again
// does nothing. The error is always nil.
func (c *Conn) Close() error {
	c.mu.Lock()
	err := c.askLocked()
	c.mu.Unlock()
	c.fail(err)
	return nil
}

// askLocked notes that this side wants the end, whatever comes of it, and returns the
// reason for it: ErrClosed. But where a Send has told that the connection has ended by
// itself, this is only what follows, and the reason what that was.
func (c *Conn) askLocked() error {
	if c.out.told && !c.asked {
		return cmp.Or(c.out.err, c.out.finish, ErrClosed)
	}
	c.asked = c.asked || !c.over
	return ErrClosed
}

// Finish ends the connection when everything in its queue is written: nothing
// more is accepted, and what still comes in is discarded from now on, for at
// most Options.Linger after our FIN. It does not wait; the connection's
// Disconnection, with ErrClosed, tells when it is done. Answers to what was sent
// are discarded too: to wait for them, call CloseWrite. The error is
// ErrNotConnected if the connection had ended for another reason.
func (c *Conn) Finish() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	reason := c.askLocked()
	switch {
	case errors.Is(c.closeErr, ErrClosed):
		return nil
	case c.closeErr != nil:
		return ErrNotConnected
	}
	if c.finishLocked(reason); reason != ErrClosed {
		return ErrNotConnected
	}
	return nil
}

// finishLocked begins the orderly end. reason is what the Disconnection will
// say if nothing goes wrong any more.
func (c *Conn) finishLocked(reason error) {
	if c.out.finish != nil {
		return
	}
	c.out.finish = reason
	c.ends.CompareAndSwap(0, endsInOrder)
	c.endOutputLocked(refusal(reason))
	c.kickReader()
}

// refusal is what a Send gets on a connection that ended for this reason: an error of the
// user's that wraps ErrClosed is not ours.
func refusal(reason error) error {
	if reason == ErrClosed {
		return ErrClosed
	}
	return ErrNotConnected
}

// CloseWrite ends the output: nothing more is accepted, and when all that is
// queued is written, the peer sees the end of its input (a FIN). Input goes
// on. It does not wait. On a transport that cannot end one direction alone the
// peer sees nothing until the connection ends. The error is ErrNotConnected if the output
// had ended for another reason than our Close, Finish, CloseWrite or Shutdown.
func (c *Conn) CloseWrite() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.out.refuse != nil {
		if c.out.refuse == ErrClosed {
			return nil
		}
		return c.out.refuse
	}
	c.endOutputLocked(ErrClosed)
	return nil
}

// fail ends the connection now, for the given reason unless there is one
// already.
func (c *Conn) fail(err error) { c.failIf(func() bool { return true }, err) }

// failIf is fail if something holds, which is asked under mu: asked before, it might
// have changed. It returns what that says.
func (c *Conn) failIf(holds func() bool, err error) bool {
	c.mu.Lock()
	ok := holds()
	if !ok || c.over {
		c.mu.Unlock()
		return ok
	}
	c.failLocked(err)
	c.mu.Unlock()
	c.t.Hangup()
	c.kickReader()
	return true
}

// giveUp is fail of a handshake. That may be over by now: who was let in stays.
func (c *Conn) giveUp(err error) { c.failIf(func() bool { return c.shaking }, err) }

// failLocked is fail without the Hangup that has to follow.
func (c *Conn) failLocked(err error) {
	if c.closeErr == nil {
		c.closeErr = err
		c.ends.Store(endsNow)
		c.endContextLocked()
	}
	c.freezeLocked(refusal(c.closeErr))
}

// opError wraps an error of the transport, once, as package net does. The reader may be
// the first to tell of one that a write has met.
func (c *Conn) opError(op string, err error) error {
	if w, ok := err.(*transport.WriteError); ok {
		op, err = "write", w.Err
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		err = os.NewSyscallError(op, errno)
	}
	return &net.OpError{Op: op, Net: c.peer.Network, Source: c.peer.Local, Addr: c.peer.Remote, Err: err}
}

// ---- the reader goroutine ----

// What comes goes this way, call by call:
//
//	serve                       until the connection is over; behind it comes end
//	    attend                  what others have asked for, and what had to wait
//	    transport.Conn.Read     waits for input, or a kick
//	        readTurn            with a scratch, inside the turnstile if it is for Events
//	            readSome
//	                receive     reads once, as far as the budget lets it (reserve)
//	                cut         hands each message on: to greeted, handle or deliver
//	                afterCalls  writes what the Handler has answered, and tells it Drained
//	                parking     keeps the books, and sets the clocks
//	            settle, starve  give back what is left of the budget, or wait for it
//
// Others ask by a field that mu guards, and kickReader: Read returns, and attend looks.
//
// Input is handed on as long as Conn.input is reading, the end is not decided on (ends)
// and no callback has ended the connection (stopped). Meanwhile it is held back, and
// nothing is read, for as long as one of these is set:
//
//	paused          until readOn, or roomLocked, sets resume: Events has enough, there is
//	                no room in the budget, or none for what the Handler answers
//	stream          until its user has read it, or closed it: serveStream
//	diverted        until Events has given away what is the new Handler's: undivert
//	greet.claiming  until the owner of the name has ended: enter
//	gated           until Events may hear of the connection: enter
//
// attend lifts them all, and holdsBack asks for them. They are the reader's own; holding
// tells others, with mu held, that it has parked because of one.
//
// At InboundLimit it goes like this:
//
//	starved         reserve has found no room, for this turn
//	paused          starve, at the end of the turn, stands in line for it
//	resume          readOn: there is room; granted: no, but it is the one that may read on
//	                to the end of its message, beyond the limit: it has the budget's token
//	token           attend has seen granted. endToken gives it back, at the end of the
//	                message, or before (leaveToken) what may take any time

const (
	readChunk = 16 << 10  // memory shared by the small messages that come together
	minFree   = 2 << 10   // a chunk with less room is left to its messages
	maxRead   = 256 << 10 // at once, into a message's own buffer, for Events
	maxHeard  = 1 << 20   // ... for a Handler, whose call finds it in the caches
	minRate   = 64 << 10  // bytes per second that who was given the budget's token has to come up to
	maxTurn   = 128 << 10 // after this much, others get their turn
	doubt     = 100 * time.Millisecond
)

// scratch is what a reader needs while there is something to read. It is pooled,
// so that a connection that waits holds nothing.
type scratch struct {
	vec       vec            // to write what a handler answers
	gathering *gathering     // of what a handler answers; nil until it is used first
	chunk     *chunk.Chunk   // that free lies in, with ReuseBuffers
	own       []*chunk.Chunk // of large messages in msgs, likewise
	free      []byte         // never delivered to anybody
	msgs      [][]byte       // cut in this round
	credit    int64          // held of the budget for reading
	delivered int64          // of what is held, now the hub's
}

// atATime is how many readers for Events may have a scratch at a time: they have it inside
// Hub.turnstile, where none waits for its user or its peer; those who might stay outside
// (mayWait). But all may wait for fan.mu, or for memory, and so for the system to go on with
// the thread of whoever has that. Each that ran meanwhile took another scratch: with 1,000
// connections and processors that others use too, some 760 of them had a chunk each.
func atATime() int { return max(32, 4*runtime.GOMAXPROCS(0)) }

// mayWait reports whether a turn may wait for code of the user's, beside that of a Handler:
// a rule, a connection, or what TLS tells of on the side that dials (ClientSessionCache).
func (c *Conn) mayWait() bool {
	return c.greet != nil || c.tls != nil && c.peer.Dialed || transport.Waits(c.t)
}

// leaveTurnstile ends the reader's stay inside the turnstile.
func (c *Conn) leaveTurnstile() {
	c.inside = false
	c.hub.turnstile.Leave()
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// reuseScratches have a chunk to read into that is used again.
var reuseScratches = sync.Pool{New: func() any { return &scratch{chunk: chunk.Get(chunk.Size)} }}

// getScratch takes what a turn needs, to be given back by putScratch.
func (c *Conn) getScratch() *scratch {
	if c.set.reuse {
		return reuseScratches.Get().(*scratch)
	}
	return scratches.Get().(*scratch)
}

func (c *Conn) putScratch(s *scratch) {
	if c.reply.gathering != nil {
		c.mu.Lock()
		c.reply.gatherNoMoreLocked()
		c.mu.Unlock()
	}
	c.scratch = nil
	if c.set.reuse {
		reuseScratches.Put(s)
	} else {
		scratches.Put(s)
	}
}

// grow makes free at least n bytes long.
func (s *scratch) grow(n int) {
	switch {
	case s.chunk == nil && len(s.free) < n:
		s.free = make([]byte, max(n, readChunk))
	case s.chunk != nil && s.chunk.Alone() && len(s.chunk.Mem()) >= n:
		s.free = s.chunk.Mem() // nobody has messages in it any more
	case s.chunk != nil && len(s.free) < n:
		s.chunk.Release()
		s.chunk = chunk.Get(max(n, chunk.Size))
		s.free = s.chunk.Mem()
	}
}

// spend takes away the first n bytes of free, which messages lie in now.
func (s *scratch) spend(n int) {
	const line = 64 // the next reader's bytes begin on a cache line of their own
	if n = (n + line - 1) &^ (line - 1); len(s.free)-n < minFree {
		s.free = nil // the next turn gets another
		return
	}
	s.free = s.free[n:]
}

// begin gives the decoder something to work in.
func (d *decoder) begin(s *scratch) {
	if !d.stays() {
		s.grow(d.need())
		d.move(s.free)
		d.letStay()
		return
	}
	s.free = d.stay.mem
	if d.stay.in != nil {
		s.chunk.Release()
		s.chunk = d.stay.in
	}
	d.goOn()
}

// pause ends what begin has begun.
func (d *decoder) pause(s *scratch) {
	if !d.mayStay() {
		large := s.chunk == nil && len(d.chunk) > maxSized
		if s.spend(d.park()); large {
			s.free = nil // what comes next would pin all of it
		}
		return
	}
	d.leave(s.chunk)
	s.free = nil
	if s.chunk != nil {
		s.chunk = chunk.Get(chunk.Size)
		s.free = s.chunk.Mem()
	}
}

// serve is the reader goroutine: it begins the handshake, reads to the end,
// waits for the writer and reports.
//
// A goroutine's stack grows with what was called and does not shrink below what
// it took to read something. So a reader that has had nothing to do for a while
// hands over to another, which waits on a stack of the least size: half of what
// an idle connection would cost otherwise. What is called to find that there is
// nothing to read has room on that. See shrinkLocked.
func (c *Conn) serve() {
	shrink := false
	defer func() {
		if shrink {
			go c.serve()
		} else {
			c.end()
		}
	}()
	defer c.recoverCall()
	if c.handshaking() { // else another reader was before: see shrinkLocked
		if err := c.startHandshake(); err != nil {
			c.fail(err)
		}
	}
	for {
		var over bool
		if over, shrink = c.attend(); over || shrink {
			return
		}
		if s := c.stream; s != nil {
			if s.wake != nil {
				<-s.wake // its user is in Read
			} // else it has begun since attend looked, and is the handler's
			continue
		}
		if err := c.t.Read(c.readTurn); err != nil && err != transport.ErrKicked {
			c.fail(c.opError("read", err))
		}
	}
}

// recoverCall ends the connection when a callback of the user's panicked or
// left by Goexit. It is to be deferred.
func (c *Conn) recoverCall() {
	if c.inCall.Load() { // else the panic is ours
		c.callLeft(&PanicError{Value: recover(), Stack: debug.Stack()})
		if c.inHand {
			c.took()
		}
		c.reply.end() // with what the call has sent before
		c.inCall.Store(false)
	}
}

// attend looks at what others have asked of this connection while its reader
// was busy or parked, and reports whether it is over, or else the reader is to move to a
// new stack.
func (c *Conn) attend() (over, shrink bool) {
	if c.greet != nil && c.greet.claiming || c.gated && c.diverted == nil { // else undivert does
		if err := c.enter(); err != nil {
			c.fail(err)
		}
	}
	c.mu.Lock()
	ch := c.change.Load()
	if ch != nil {
		c.change.Store(nil)
	}
	shrink, c.shrink = c.shrink, false
	ending := c.endRead && c.input == reading
	unheard := c.out.unheard
	resumed := c.resume
	if resumed {
		c.untried = c.untried || c.granted
		c.resume, c.paused = false, false
		c.token, c.granted = c.token || c.granted, false
		c.goOnLocked()
	}
	c.mu.Unlock()
	if c.token && c.input != reading {
		c.endToken() // it was too late
	}
	if ch != nil {
		c.applyChange(ch)
	}
	again := c.diverted != nil && c.undivert()
	if unheard && c.client != nil && !c.gated && c.diverted == nil {
		c.heard()
	}
	handled := c.handler != nil && c.diverted == nil
	if s := c.stream; s != nil && !s.told && (s.wake == nil) != handled {
		c.beginStream(handled) // nobody has seen it, and it is not for whom it has come
	}
	if c.stream != nil {
		c.serveStream()
	}
	if ending && c.paused && !c.waitsForRoom() {
		c.paused = false // what has come behind the name, and waits for the budget, was read: see cut
	}
	if (ending && c.greet == nil || again) && !c.paused && c.stream == nil && c.dec.partial() > 0 { // else the input is still its user's
		c.cutRest()
	}
	switch {
	case c.handler == nil:
	case c.token && c.untried:
		// Drained, for which it is given back, comes behind what is read by it: a handler
		// that always answers there would get no message.
		c.writeAnswers()
	default:
		c.flush()
	}
	if c.token && c.gated {
		c.endToken() // it may be long before Events may hear of it, and asks anew then
	}
	switch { // last, as any of the above may have given it to Events
	case !ending || !c.gated || c.diverted != nil:
	case c.client.giver != nil:
		c.mu.Lock()
		c.finishLocked(ErrClosed)
		c.mu.Unlock()
	default:
		c.fail(ErrClosed) // nobody has heard of it
	}

	c.mu.Lock()
	before := c.input
	over = c.advanceEndLocked(ending || again)
	last := over && !c.out.frozen && c.owesDrained()
	c.mu.Unlock()
	if last { // it was put off, and is called once more, whatever comes of that
		c.reply.drained = false
		c.call(c.handler.Drained)
	}
	if c.input != reading && !c.letGo {
		c.retireStream(ErrClosed)
		if c.token {
			c.endToken()
		}
		if over || !c.mayComeAgain() {
			c.letGoInput()
		}
	}
	if before == reading && c.input == shut {
		c.reportEnd()
	}
	return over, shrink && !over
}

// letGoInput gives back what is held of messages that will not be completed, when
// the input is over and the output is not.
func (c *Conn) letGoInput() {
	c.letGo = true
	c.dec.drop()
	c.giveHeld()
	c.endToken()
}

// mayComeAgain reports whether the input's end, and what was delivered before, may still be
// withdrawn from Events for a Handler, for which what is held may be raw bytes.
func (c *Conn) mayComeAgain() bool {
	if c.handler != nil || len(c.dec.rest) == 0 || c.dec.stream > 0 || c.ends.Load() != 0 {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.heardEnd
}

// giveHeld gives back what is held of the budget for what was not delivered.
func (c *Conn) giveHeld() {
	c.leaveOwn(0)
	c.hub.budget.in.Give(c.held)
	c.held = 0
}

// advanceEndLocked brings the connection nearer to its end, as far as what is asked of it,
// and what is still queued, has it, and reports whether it is over. ending: attend has seen
// that Shutdown ends the input, and has had what was read delivered, unless that waits.
func (c *Conn) advanceEndLocked(ending bool) (over bool) {
	if c.closeErr != nil {
		return true
	}
	resumed := c.resume && c.stream == nil // since attend looked, so it comes again, and delivers what waited
	if ending && !c.gated && c.diverted == nil && !c.out.wantRoom && !resumed && !c.drainedComesLocked() {
		c.input, c.endErr = shut, ErrClosed
	}
	if c.out.finish == nil {
		// A failed write leaves the input to be read to its end.
		return c.out.err != nil && c.input == ended
	}
	if c.input < discarding {
		c.input, c.paused, c.holding = discarding, false, false
		c.out.wantRoom = false
	}
	switch {
	case c.out.err != nil:
		return true
	case c.out.writing || !c.out.empty() || c.drainedComesLocked():
		return false // the writer kicks when it is done, and for Drained
	case c.input == ended || c.overdue:
		return true
	case !c.out.finSent:
		return false
	case c.hub.o.Linger == 0 || c.set.sessions():
		return true // nothing that comes could destroy our last output
	case c.deadline == 0:
		c.deadline = c.hub.watch.Now() + c.hub.o.Linger
		c.arm(c.deadline)
	}
	return false
}

// drainedComesLocked reports whether the Handler's Drained is about to be called: the
// writer wakes the reader when there is room, and again, for Drained, when it has
// seen that everything is written.
func (c *Conn) drainedComesLocked() bool {
	o := &c.out
	return c.handler != nil && !c.stopped && !o.frozen && (o.drained || o.handled && o.writing && o.drainedDue())
}

// readTurn reads until nothing more is there. It runs inside transport.Conn.Read.
func (c *Conn) readTurn() (park bool) {
	c.untried = false
	switch {
	case c.input == ended:
		return c.watchPeer() && !c.owesDrained()
	case c.input == shut:
		return !c.owesDrained()
	case c.input == reading && c.holdsBack():
		c.hold()
		return !c.owesDrained()
	}
	if c.handler == nil && !c.mayWait() {
		c.inside = true
		c.hub.turnstile.Enter()
	}
	s, long := c.getScratch(), false
	c.scratch = s
	if c.input == discarding {
		s.grow(minChunk)
		park = c.discard(s.free)
	} else {
		c.dec.begin(s)
		park, long = c.readSome(s)
		c.dec.pause(s)
		c.settle(s, c.dec.partial())
		if c.starve() {
			park, long = false, true
		}
	}
	c.putScratch(s)
	if c.inside {
		c.leaveTurnstile()
	}
	if long {
		// Only now: who yields comes last, and would keep meanwhile what others wait
		// for. With 1,000 echoes of 1 MiB, all of InboundLimit was in such hands.
		runtime.Gosched()
	}
	return park
}

// owesDrained reports whether the handler's Drained is to be called. Behind flush, it has
// left that for when something else had its turn.
func (c *Conn) owesDrained() bool { return c.reply.drained && c.mayCall() }

// mayCall reports whether there is a handler that is still called, not for the end alone.
func (c *Conn) mayCall() bool {
	return c.handler != nil && !c.stopped && c.ends.Load() != endsNow
}

// holdsBack reports whether the input has to wait.
func (c *Conn) holdsBack() bool {
	return c.paused || c.gated || c.stopped || c.stream != nil || c.ends.Load() != 0 || c.diverted != nil || c.greet != nil && c.greet.claiming
}

// hold stops the clocks of silence, where the input has come to wait outside of a
// turn that has read.
func (c *Conn) hold() {
	now := c.hub.watch.Now()
	c.mu.Lock()
	c.busyLocked(now)
	c.holding = true
	c.mu.Unlock()
}

// goOnLocked starts them anew, where the input goes on. Where it waits for a Stream too, that
// is still its user's, to whom streamWaits sees.
func (c *Conn) goOnLocked() {
	if c.stream == nil {
		c.holding, c.quiet = false, c.hub.watch.Now()
	}
}

// listening starts the clocks of silence anew: what a callback has taken is no
// silence of the peer's, though nothing came. It is called before inCall ends.
func (c *Conn) listening() {
	if !c.timed() {
		return
	}
	now := c.hub.watch.Now()
	c.mu.Lock()
	c.quiet = now
	c.mu.Unlock()
}

// timed reports whether a clock of silence runs that the reader has to see to. While a
// Stream is read, who reads it does, and has the decoder.
func (c *Conn) timed() bool {
	return c.stream == nil && (c.set.idleTimeout != 0 || c.dec.partial() > 0)
}

// readSome is readTurn, with something to read into. long: it was enough for once, and
// others are to have their turn.
func (c *Conn) readSome(s *scratch) (park, long bool) {
	var (
		read, n int
		drained bool
		ok      = true
		called  bool
		err     error
	)
	if !c.dec.spent() { // it came behind the handshake or before a pause
		if called, err = c.cut(s); called {
			c.listening()
			c.afterCalls()
		}
	}
	for err == nil && ok && !drained && read < maxTurn && !c.holdsBack() {
		n, drained, ok, err = c.receive(s)
		read += n
		if (n > 0 && err == nil || err == io.EOF) && c.change.Load() != nil {
			// SetHandler or SetRaw was called since attend looked, and the peer may have been
			// told of it before it sent this, or its end, which comes again: so this is for who
			// is to have it then.
			c.parking(drained && n > 0, read > 0)
			return false, false
		}
		if n > 0 {
			called, e := c.cut(s)
			if e != nil {
				err = e
			}
			if called {
				c.afterCalls()
			}
		}
	}
	c.parking(drained && n > 0, read > 0)
	switch {
	case err == io.EOF:
		c.inputEnded()
		return false, false
	case err != nil:
		c.fail(err)
		return false, false
	}
	long = read >= maxTurn
	return !long && !c.stopped && !c.reply.drained && c.stream == nil, long
}

// receive reads once. ok is false if the budget does not let it.
func (c *Conn) receive(s *scratch) (n int, drained, ok bool, err error) {
	if c.dec.full() {
		c.nextChunk(s)
	}
	if s.chunk != nil && c.dec.atEnd() && s.chunk.Alone() {
		c.dec.move(s.chunk.Mem()) // the front is warm
	}
	space := c.dec.space()
	most := maxRead
	if c.handler != nil {
		most = maxHeard
	}
	space = space[:min(len(space), most)]
	if c.dec.little() {
		// The next is likely to be large too: its body goes to a buffer of its
		// own, and what is read of it here has to be copied.
		space = space[:min(len(space), minChunk)]
	}
	if c.greet != nil {
		// The name lies well within this, so that no more of what follows it
		// is read either before the peer is admitted.
		space = space[:min(len(space), max(1, handshakeBytes-c.dec.partial()))]
	}
	if space = c.reserve(s, space); len(space) == 0 {
		return 0, false, false, nil
	}
	n, drained, err = c.t.TryRead(space)
	c.dec.advance(n)
	s.credit -= int64(n)
	if err != nil && err != io.EOF {
		err = c.opError("read", err)
	}
	return n, drained, true, err
}

// nextChunk gives the decoder another chunk. The bytes of the one before are
// messages', and those of the unfinished one, which move.
func (c *Conn) nextChunk(s *scratch) {
	need := c.dec.need()
	if s.chunk == nil {
		s.free = nil
		s.grow(need)
		c.dec.move(s.free)
		return
	}
	if s.chunk.Alone() && len(s.chunk.Mem()) >= need {
		c.dec.move(s.chunk.Mem()) // to its front
		return
	}
	old := s.chunk
	s.chunk = chunk.Get(max(need, chunk.Size))
	s.free = s.chunk.Mem()
	c.dec.move(s.free)
	old.Release()
}

// reserve takes room in the budget for reading into space, or into less of it.
func (c *Conn) reserve(s *scratch, space []byte) []byte {
	lacks := int64(len(space)) - s.credit
	switch {
	case lacks <= 0:
		return space
	case !c.token && c.hub.budget.in.Reserve(lacks):
		c.reserved(s, lacks)
		return space
	case c.greet != nil:
		// It is little, and who may not be read would be taken for one that says nothing:
		// as long as InboundLimit is reached, nobody would be let in. What follows the
		// name is no part of that: it may be many messages.
		return c.force(s, space, max(1, c.dec.needs()))
	case c.token && c.dec.lacks > 0:
		return c.force(s, space, c.dec.lacks)
	case c.token:
		c.endToken()
	}
	if space = c.takeOwn(s, space); space == nil {
		c.starved = true
	}
	return space
}

// reserved notes that n more bytes of the budget are held, and may be read.
func (c *Conn) reserved(s *scratch, n int64) {
	s.credit += n
	c.held += n
}

// force takes room for reading the first n bytes of space in any case.
func (c *Conn) force(s *scratch, space []byte, n int) []byte {
	space = space[:min(len(space), n)]
	if lacks := int64(len(space)) - s.credit; lacks > 0 {
		c.hub.budget.in.Force(lacks)
		c.reserved(s, lacks)
	}
	return space
}

// takeOwn takes room for reading from what the budget has for this connection alone, or
// returns nil.
func (c *Conn) takeOwn(s *scratch, space []byte) []byte {
	if !c.little() || c.hub.fan.awaits(c) {
		return nil
	}
	if !c.dec.raw { // one message, as of many small ones more is charged than they are long
		space = space[:min(len(space), max(1, c.dec.needs()))]
	}
	space = space[:max(0, min(int64(len(space)), s.credit+budget.Own-c.held))]
	lacks := max(0, int64(len(space))-s.credit)
	if len(space) == 0 || !c.hub.budget.in.TakeOwn(lacks) {
		return nil
	}
	c.reserved(s, lacks)
	c.own += int32(lacks)
	return space
}

// little reports whether what has begun, if anything, fits what the budget has for this
// connection alone, as far as that is known: of raw input that was given back it is not.
func (c *Conn) little() bool {
	begun := c.dec.partial()
	return begun < budget.Own && (c.dec.raw || c.dec.lacks <= budget.Own-begun)
}

// leaveOwn makes what is in the connection's own room all but what is held of a message
// that has begun.
func (c *Conn) leaveOwn(kept int) {
	if own := int(c.own); own > kept {
		c.own = int32(kept)
		c.hub.budget.in.LeaveOwn(int64(own - kept))
	}
}

// settle makes what is held of the budget what it is to be at the end of a
// turn, when kept bytes of an unfinished message are left and the rest was
// delivered, for which the hub holds so much.
func (c *Conn) settle(s *scratch, kept int) {
	if c.own > 0 {
		c.leaveOwn(kept)
	}
	c.hub.budget.in.Give(c.held - int64(kept) - s.delivered)
	c.held = int64(kept)
	s.credit, s.delivered = 0, 0
}

// endToken gives the budget's token back, when the message is complete.
func (c *Conn) endToken() {
	c.token = false
	c.mu.Lock()
	c.tokenBy = 0
	c.mu.Unlock()
	c.hub.budget.in.Done(c)
}

// mayHaveRoom is told by the budget that a Send that waits may go on. It is
// called with another connection's lock held.
func (c *Conn) mayHaveRoom() { c.arm(c.hub.watch.Now()) }

// readOn tells the reader that it may read again: all there is, or, with the budget's
// token, to the end of the message that has begun.
func (c *Conn) readOn(token bool) {
	c.mu.Lock()
	if token && c.inCall.Load() { // see leaveToken
		c.mu.Unlock()
		// Before resume: by that the reader may ask anew, which Done would undo.
		c.hub.budget.in.Done(c)
		c.mu.Lock()
	} else if token {
		c.granted = true
		if t := c.hub.o.FrameTimeout; t > 0 {
			c.tokenBy = c.hub.watch.Now() + t + time.Duration(c.lacks/minRate+1)*time.Second
			c.arm(c.tokenBy)
		}
	}
	c.resume = true
	c.mu.Unlock()
	c.kickReader()
}

// leaveToken gives the budget's token back before a call of the handler that has come while
// the input waits: that may take any time, in which it would hold up all others. inCall is
// set, so that none is granted from here on. The reader asks anew when it is back.
func (c *Conn) leaveToken() {
	if !c.paused && !c.token {
		return // it has not waited
	}
	c.mu.Lock()
	granted := c.granted
	c.granted = false
	c.mu.Unlock()
	if granted || c.token {
		c.endToken()
	}
}

// discard is readTurn after Finish: what comes is dropped.
func (c *Conn) discard(p []byte) (park bool) {
	for read := 0; read < maxTurn; {
		n, drained, err := c.t.TryRead(p)
		read += n
		switch {
		case err == io.EOF:
			c.inputEnded()
			return false
		case err != nil:
			c.fail(c.opError("read", err))
			return false
		case drained:
			c.parking(n > 0, n > 0)
			return true
		}
	}
	return false
}

// cut takes the complete messages out of what was received and delivers them. If it has
// called the handler, afterCalls is to follow.
func (c *Conn) cut(s *scratch) (called bool, err error) {
	for !c.holdsBack() && !c.dec.spent() {
		if c.dec.moveDue() {
			c.nextChunk(s)
		}
		if called && !c.reply.shouldGather() && c.quick() {
			continue
		}
		if c.handler == nil && c.greet == nil && !c.token {
			if s.msgs = c.dec.whole(s.msgs); c.dec.spent() {
				break
			}
		}
		msg, ok, e := c.dec.next()
		if e != nil {
			c.badInput, err = true, c.noMessage(e)
			break
		}
		if !ok {
			if c.dec.stream > 0 && c.passStream() {
				continue
			}
			break
		}
		if c.token {
			c.endToken() // before a callback, which may take its time
		}
		switch {
		case c.greet != nil:
			if err := c.greeted(msg); err != nil {
				return called, err
			}
			if c.greet == nil && c.dec.buffered() && !c.hub.budget.in.Reserve(0) {
				c.starved, c.paused = true, true // Classify, or a proxy, may have had more read than the name
			}
		case c.handler != nil:
			called = true
			c.handle(msg)
			if c.dec.own != nil {
				c.dec.own.Release()
				c.dec.own = nil
			}
		default:
			s.msgs = append(s.msgs, msg)
			if c.dec.own != nil {
				s.own = append(s.own, c.dec.own)
				c.dec.own = nil
			}
		}
	}
	if n := len(s.msgs); n > 0 {
		c.turnMsgs += int32(n)
		c.turnBytes += c.deliver(s)
	}
	return called, err
}

// noMessage is what the connection fails with when what came is no message, for err.
func (c *Conn) noMessage(err error) error {
	switch {
	case c.greet == nil:
		return err
	case c.peer.Dialed:
		return fmt.Errorf("%w: %w", ErrRefused, err) // it is not OK
	}
	return fmt.Errorf("%w: %w", ErrBadName, err)
}

// passStream begins the Stream that the decoder has come to, or goes on skipping the rest
// of one that was closed. It reports whether it has come to the end of that.
func (c *Conn) passStream() (passed bool) {
	if !c.skipping {
		c.beginStream(c.handler != nil)
		return false
	}
	c.dec.skip()
	c.skipping = c.dec.stream > 0
	return !c.skipping
}

// quick calls the handler for the whole messages at the front of the input, as
// long as nothing is out of the ordinary: the default framing, messages that share
// a chunk, and a handler that was called for the one before. For each
// message it does what a round of cut with decoder.next and handle would, and what
// it does not understand it leaves to those.
//
// With 64 messages of 64 bytes in flight, a message takes 240 instructions outside of the
// kernel by this loop, and 420 by the round (BenchmarkTurn).
func (c *Conn) quick() (some bool) {
	d, r := &c.dec, &c.reply
	if !d.ordinary() || c.token || c.greet != nil || !c.inCall.Load() {
		return false
	}
	c.inHand = true
	for again := true; again && !r.shouldGather() && c.handler != nil && !d.raw && !c.holdsBack(); {
		var last int
		if last, again = c.quickCalls(); last > 0 {
			d.passed(last)
			some = true
		}
	}
	c.inHand = false
	return some
}

// quickCalls makes the calls of quick up to one that did more than to send one small
// message. The others change nothing that would have to be looked at again before
// the next: what belongs to the reader changes in a call by Reply's methods alone
// (Reply.more). It returns the size of the last message, or 0, and whether
// the next may follow behind another look.
func (c *Conn) quickCalls() (last int, again bool) {
	d, r, longest := &c.dec, &c.reply, c.dec.longest()
	p := d.chunk[d.r:d.w]
	for c.ends.Load() == 0 {
		end, ok := front(p, longest)
		if !ok {
			break
		}
		d.r += end
		r.begin()
		c.handed = end - headerSize
		c.handler.Message(r, p[headerSize:end:end])
		c.turnMsgs++
		c.turnBytes += end - headerSize
		if r.more || end == len(p) {
			return end, c.betweenCalls()
		}
		if !r.fresh { // Send has gathered it
			r.gathering.slab.Publish()
		}
		p, last = p[end:], end
	}
	r.over()
	return last, false
}

// betweenCalls is what follows a call of the handler with a message. It reports whether
// the next may follow at once.
func (c *Conn) betweenCalls() bool {
	r := &c.reply
	r.over()
	if !c.dec.buffered() {
		if r.gathering != nil {
			r.gathering.slab.Publish()
		}
		return false // flush, which follows at once, accepts the rest of what was gathered
	}
	if r.accept(); r.full {
		c.inCall.Store(false)
		c.writeOrPause()
		return false
	}
	return true
}

// afterCalls is to be done when cut has called the handler. It is not part of cut
// for the sake of the stack: see serve.
func (c *Conn) afterCalls() {
	c.inCall.Store(false) // what panics from here on is ours
	c.flush()
	c.reply.side.Free()
}

// deliver hands the messages in s to the hub, and returns the bytes of their bodies.
func (c *Conn) deliver(s *scratch) (size int) {
	size = sizeOf(s.msgs)
	if c.hub.fan.deliver(c, s, int64(size)+int64(len(s.msgs))*MessageCharge) {
		c.paused = true
	}
	clear(s.msgs)
	s.msgs = s.msgs[:0]
	clear(s.own)
	s.own = s.own[:0]
	return size
}

// parking keeps the books of a turn at its end, and sets the clocks.
//
// Most turns of a busy connection are alike and leave nothing to do here: see
// busy.
func (c *Conn) parking(doubtful, progress bool) {
	if c.handler != nil && progress && c.hub.sent.Load() {
		c.hub.sent.Store(false)
		c.hub.epoch.Add(1)
	}
	partial := c.dec.within()
	holding := c.input == reading && c.holdsBack()
	busy := progress && doubtful && !partial && !holding && c.set.coarse()
	if busy && c.busy.Load() {
		if c.turnMsgs <= 0 && c.turnBytes <= 0 {
			return
		}
		c.mu.Lock()
		c.bookLocked()
		again := c.busy.Load() // what check has not seen until here, it will
		c.mu.Unlock()
		if again {
			return
		}
	}
	now := c.hub.watch.Now()
	c.mu.Lock()
	c.bookLocked()
	c.busyLocked(now) // before busy ends: what it stands for was not long ago
	if progress {
		c.lastRead, c.quiet = now, now
		if c.lean && c.naps < maxNaps {
			c.naps++
		}
		c.lean = false
	}
	if c.out.fresh {
		c.writtenLocked(now)
	}
	c.doubtful, c.partial, c.holding = doubtful, partial, holding
	c.busy.Store(busy)
	lean := c.lean && c.out.err == nil
	c.mu.Unlock()
	if doubtful || !lean {
		c.arm(now + doubt)
	}
	c.armSilence(now, partial)
}

// bookLocked counts what was delivered in the turn so far. What it has counted it
// does not take back: if some of it comes again, that much of what comes is not counted.
func (c *Conn) bookLocked() {
	if c.turnMsgs > 0 {
		c.inMsgs += uint64(c.turnMsgs)
		c.turnMsgs = 0
	}
	if c.turnBytes > 0 {
		c.inBytes += uint64(c.turnBytes)
		c.turnBytes = 0
	}
}

// coarse reports whether the clock of silence may be late by doubt.
func (s *settings) coarse() bool { return s.idleTimeout == 0 || s.idleTimeout >= 100*doubt }

// busyLocked makes up for the turns that have not looked at the clock: the last
// one was now at the latest.
func (c *Conn) busyLocked(now time.Duration) {
	if !c.busy.Load() {
		return
	}
	c.busy.Store(false)
	c.lastRead, c.quiet = now, now
	if c.out.fresh {
		c.writtenLocked(now)
	}
}

// inputEnded is told the end of the input, or what looks like it: a reset
// whose record a failed write has consumed looks the same.
func (c *Conn) inputEnded() {
	if gone := c.t.Gone(); gone != nil && gone != io.EOF {
		c.fail(c.opError("read", gone))
		return
	}
	before := c.input
	c.mu.Lock()
	c.input = ended
	if before == reading {
		c.endErr = io.EOF
		if c.dec.within() {
			c.endErr = io.ErrUnexpectedEOF
		}
	}
	c.mu.Unlock()
	if c.greet != nil {
		c.fail(io.ErrUnexpectedEOF)
	} else if before == reading {
		c.reportEnd()
	}
}

// reportEnd reports the end of the input. Unless the user keeps the connection
// half-open, its output ends when that has been answered.
func (c *Conn) reportEnd() {
	if c.handler == nil {
		c.hub.fan.endedInput(c)
		return
	}
	if h, ok := c.handler.(EndHandler); ok && !c.stopped {
		c.call(func(r *Reply) { h.Ended(r) })
		c.flush()
	}
	c.endTaken()
}

// watchPeer is readTurn of a reader that has seen the end of the input: it
// stays parked, to see it when the peer dies.
func (c *Conn) watchPeer() (park bool) {
	gone := c.t.Gone()
	switch {
	case gone == nil:
		return true
	case gone != io.EOF:
		c.fail(c.opError("read", gone))
		return false
	case c.set.halfOpen && !c.finished(): // else it may be our own FIN that ended the second direction
		c.fail(c.endErr) // nobody is left to finish the conversation with
		return false
	}
	return true // what is accepted until Ended is taken is still tried, and then reported
}

// ---- the clocks ----

// arm sees to it that the connection's clocks are looked at then, or before.
func (c *Conn) arm(at time.Duration) {
	if at < 0 {
		return // an overflow: beyond the years that the clock can count, so never
	}
	c.hub.watch.Arm(&c.clock, (*clocks)(c), at)
}

// clocks is a Conn as a watch.Target, which is nobody's business outside.
type clocks Conn

// Check implements watch.Target: all clocks of a connection.
func (k *clocks) Check(now time.Duration) (next time.Duration) { return (*Conn)(k).check(now) }

// check looks at all clocks, and does what is due.
func (c *Conn) check(now time.Duration) (next time.Duration) {
	var (
		reason error
		kick   bool
	)
	due := func(at time.Duration) bool {
		if at < 0 {
			return false // as in arm
		}
		if now >= at {
			return true
		}
		if next == 0 || at < next {
			next = at
		}
		return false
	}
	c.mu.Lock()
	if c.closeErr != nil {
		c.mu.Unlock()
		return 0
	}
	c.busyLocked(now)
	if c.deadline != 0 && due(c.deadline) {
		if c.deadline = 0; c.shaking {
			reason = ErrHandshakeTimeout
		} else {
			c.overdue, kick = true, true
		}
	}
	if c.reclaim {
		c.reclaim, kick = false, true
	}
	if err := c.silenceLocked(due); err != nil {
		reason = err
	}
	if c.tokenBy != 0 && due(c.tokenBy) {
		reason = ErrFrameTimeout
	}
	if c.doubtful && due(c.lastRead+doubt) {
		c.doubtful = false
		kick = c.t.Pending() || kick // under mu, so before Close
	}
	kick = c.shrinkLocked(due) || kick
	c.roomLocked() // there may be, in the budget
	drained := c.roomAgainLocked() && !c.tellDrainedLocked()
	stuck := c.out.stall.since != 0 && c.hub.o.WriteTimeout > 0 && c.stuckLocked(now, due)
	if reason == nil && c.muteLocked(now, due) {
		reason = c.opError("read", syscall.ETIMEDOUT) // as where keep-alive finds it
	}
	c.mu.Unlock()

	switch {
	case reason == ErrHandshakeTimeout:
		c.giveUp(reason)
		return now + 1 // if it was let in just now, it has other clocks
	case reason != nil:
		c.fail(reason)
		return 0
	case stuck:
		c.t.Kick(transport.WriteSide)
	}
	if drained {
		c.drainedForHub()
	}
	if kick {
		c.kickReader()
	}
	return next
}

// armSilence is arm for the clocks of silence, which begin now. partial: within a message.
func (c *Conn) armSilence(now time.Duration, partial bool) {
	if t := c.hub.o.FrameTimeout; t > 0 && partial {
		c.arm(now + t)
	}
	if t := c.set.idleTimeout; t > 0 {
		c.arm(now + t)
	}
}

// silenceLocked is why the connection is to end because its peer has been silent, or nil.
func (c *Conn) silenceLocked(due func(time.Duration) bool) (reason error) {
	if c.input != reading || c.holding || c.shaking || c.inCall.Load() && !c.waiting {
		return nil
	}
	if t := c.hub.o.FrameTimeout; t > 0 && c.partial && due(c.quiet+t) {
		reason = ErrFrameTimeout
	}
	if t := c.set.idleTimeout; t > 0 && due(c.quiet+t) {
		reason = ErrIdleTimeout
	}
	if c.out.err != nil && due(max(c.out.failed, c.quiet)+c.hub.endAfterFailure()) {
		reason = c.out.err
	}
	return reason
}

// After nap without input a reader is told to move to a new stack. Where that
// was too early it waits twice as long the next time, so that a peer who speaks
// now and then does not cost much more for it; but no longer than nap << maxNaps
// (6.4 s), from where on it costs next to nothing.
const (
	nap     = 200 * time.Millisecond
	maxNaps = 5
)

// shrinkLocked reports whether the reader is to move to a new stack now. One that waits in
// a Read of another's making is left in peace: what it could save is little beside its
// buffer.
func (c *Conn) shrinkLocked(due func(time.Duration) bool) bool {
	if c.lean || c.shaking || c.input != reading || c.holding || c.waiting || c.partial || c.inCall.Load() || transport.Waits(c.t) {
		return false
	}
	if !due(max(c.lastRead, c.born) + nap<<c.naps) {
		return false
	}
	c.lean, c.shrink = true, true
	return true
}

// ---- the end ----

// end is the last act of the reader: it waits for whoever writes, closes the
// descriptor and reports. Nobody else closes: net.Conn.Close waits for the
// callbacks that are running, one of which may be a user's.
func (c *Conn) end() {
	if c.inside { // a Framing has ended the goroutine
		c.leaveTurnstile()
	}
	c.mu.Lock()
	c.bookLocked() // of a turn that a callback has left
	c.freezeLocked(ErrNotConnected)
	c.joinWriterLocked()
	c.joinFeedersLocked()
	report := c.out.report(c.t, c.set.packets())
	err := c.whyLocked(report)
	c.closeErr, c.over = err, true
	life := c.life
	heir, inherited := c.heirLocked()
	c.hub.budget.out.Fell(&c.out.share, 0)
	c.reported = report.charge()
	c.mu.Unlock()

	c.hub.budget.reports.Add(c.reported)
	c.retireStream(err) // before what it is read from
	if c.set.sessions() {
		c.hub.packets.Dropped.Add(c.dec.unseen()) // as Close does with what was not read
	}
	c.dec.drop()
	if s := c.scratch; s != nil { // something of the user's has ended the goroutine in a turn: see settle
		c.held -= s.delivered
	}
	c.giveHeld()
	c.hub.budget.in.Done(c)
	c.hub.watch.Disarm(&c.clock)
	c.t.Close()
	if life != nil {
		life.end(err)
		close(life.over)
	}
	d := Disconnection{Conn: c, Err: err, Report: report}
	if g := c.greet; g != nil {
		defer g.tell(err)
	}
	var giver Handler
	defer func() { // whatever the handler does
		if reported := c.hub.depart(c, d); !reported && giver != nil {
			c.handler = giver
			c.lastCall(d)
		}
	}()
	// The heir may be Events. If that has never heard of the connection, the end would be
	// nobody's. It would be too if Close has not waited for the call that was running, and
	// Events hears of nothing any more: then it is that Handler's who gave it there.
	if inherited && (heir != nil || c.hub.fan.knows(c)) {
		if heir == nil {
			giver = c.handler
		}
		c.handler = heir
	}
	if c.client != nil && c.client.giver != nil {
		if c.handler == nil {
			giver = *c.client.giver
		}
		c.client.giver = nil
	}
	if c.gated && c.handler == nil {
		c.handler, giver = giver, nil
	}
	if c.handler != nil {
		c.lastCall(d)
	}
}

// whyLocked is the reason of the end.
func (c *Conn) whyLocked(report Report) error {
	err := c.closeErr
	if err == nil {
		err = c.out.finish
		if c.out.err != nil && (err == nil || report.UnsentMessages > 0 || report.Cut) {
			err = c.out.err
		}
	}
	if err == nil {
		err = ErrClosed // the reader's goroutine was ended by something of the user's
	}
	if c.greet != nil {
		err = c.notLetIn(err)
	}
	return err
}

// heirLocked is the Handler that was to have the connection next.
func (c *Conn) heirLocked() (h Handler, ok bool) {
	if d := c.diverted; d != nil {
		h, ok = d.handler, true
	}
	if ch := c.change.Load(); ch != nil && ch.setHandler {
		h, ok = ch.handler, true
	}
	return h, ok
}

// ---- what others ask of the reader ----

// resumeReading tells it that what made it pause is no more.
func (c *Conn) resumeReading() { c.readOn(false) }

// kickReader makes the reader attend. While a Stream of Events is read, its user is in
// transport.Conn.Read and the reader waits for wake. Which of them is meant is not known
// here, so both are woken, and the one that is not meant waits again.
func (c *Conn) kickReader() {
	c.t.Kick(transport.ReadSide)
	if s := c.streaming.Load(); s != nil {
		nudge(s.wake)
	}
}

// endInput ends the input as if the peer had finished; a handshake ends at
// once.
func (c *Conn) endInput() {
	c.mu.Lock()
	c.endRead = true
	shaking := c.shaking
	c.mu.Unlock()
	if shaking {
		c.fail(ErrClosed)
		return
	}
	c.kickReader()
}

// endTaken is told that the user has answered all that the peer has sent.
func (c *Conn) endTaken() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.heardEnd = true; c.set.halfOpen {
		c.kickReader() // which holds something of the input, perhaps
	} else if (c.input == shut || c.input == ended) && c.closeErr == nil {
		c.finishLocked(c.endErr)
	}
}

// outlook is how near a connection is to its end, for those who claim its name.
type outlook uint8

const (
	stays      outlook = iota // no end is in sight
	leaving                   // it is about to end, when its user (HalfOpen) or its peer, which may be gone, has done something
	unread                    // its peer has finished, and the reader still reads what that has sent before
	leavesSoon                // nothing that may take long is in the way of its end
)

// outlook asks the transport too: the reader may not have had its turn yet, or hold the
// input back.
func (c *Conn) outlook() outlook {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := &c.out
	switch {
	case c.closeErr != nil, o.err == nil && o.empty() && (o.finish != nil || c.input != reading && !c.set.halfOpen):
		return leavesSoon
	case c.input == reading && c.t.Ended(): // under mu, so before Close
		return unread
	case c.input != reading, o.finish != nil, o.err != nil:
		return leaving
	}
	return stays
}

// patient reports whether a handshake has time left to wait, until it looks again, for an
// owner of the name that it might have end at once: half of what it has in all, since the
// owner's user may not read what he holds.
func (c *Conn) patient() bool {
	t := c.hub.o.HandshakeTimeout
	if t <= 0 {
		t = DefaultHandshakeTimeout
	}
	return c.hub.watch.Now()-c.born+doubt <= t/2
}

// finished reports whether the connection's end has been decided on.
func (c *Conn) finished() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closeErr != nil || c.out.finish != nil
}

// endReason is why the connection is to end now, or nil.
func (c *Conn) endReason() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closeErr
}

// endWasAsked reports, of a connection that has ended, whether this side had
// asked for that, even if something else came in between.
func (c *Conn) endWasAsked() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asked
}

// handshaking reports whether the peer is still to be admitted.
func (c *Conn) handshaking() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.shaking
}

// ---- handlers ----

// PanicError is why a connection ended, or was refused, whose callback (a
// Handler, a Rule) panicked. Value is nil if the callback left by
// runtime.Goexit.
type PanicError struct {
	Value any    // what was given to panic
	Stack []byte // as debug.Stack gives it
}

// Error returns one line, without the stack.
func (e *PanicError) Error() string { return fmt.Sprintf("sockhub: panic in a callback: %v", e.Value) }

// Unwrap returns Value, if that is an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// guarded calls f, which is or calls a function of the user's. If that leaves in another
// way than by returning, left is told. A panic goes no further; Goexit does.
func guarded(f func(), left func(*PanicError)) {
	returned := false
	defer func() {
		if !returned {
			left(&PanicError{Value: recover(), Stack: debug.Stack()})
		}
	}()
	f()
	returned = true
}

// Handler takes what a connection reports, on the connection's own goroutine,
// instead of Events: the fastest way. Calls for one connection never overlap.
//
// A call may block. It then holds back its own peer alone, and its time counts
// toward no timeout; that the peer has gone is not noticed meanwhile, but Conn.Context
// ends when this side closes the connection. A call that panics ends its connection
// with a *PanicError.
//
// Messages are the handler's for good, but with ReuseBuffers only until the
// call returns. They may be changed in place before they are sent on.
type Handler interface {
	Message(r *Reply, msg []byte) // a whole message, or a piece of raw input
	Drained(r *Reply)             // everything queued so far is with the kernel
	Disconnected(d Disconnection) // the last call; Hub.Close and Hub.Shutdown say whether it has returned when they do
}

// BaseHandler does nothing. Embed it to write only the methods that matter. It
// is neither an EndHandler nor a StreamHandler.
type BaseHandler struct{}

// Message implements Handler.
func (BaseHandler) Message(*Reply, []byte) {}

// Drained implements Handler. It does nothing. A connection whose own Handler has this
// method notices that, and spares the calls that follow; a Handler that passes its calls
// on to a BaseHandler goes on being called.
func (BaseHandler) Drained(r *Reply) {
	if r != nil && r.active && calledByConn() {
		r.c.mu.Lock()
		r.c.out.deaf = !r.c.out.unheard // else another is about to hear it
		r.c.mu.Unlock()
	}
}

// calledByConn reports whether the method that it is called from was called by
// Conn.call. That is how a Drained that a Handler has from BaseHandler is told
// from one that a Handler of the user's own passes on to, which wants to be
// called each time. Where a reader wakes up to call Drained after what others
// have sent, that is a third of the cost of a message.
func calledByConn() bool {
	var pc [2]uintptr
	frames := runtime.CallersFrames(pc[:runtime.Callers(3, pc[:])])
	f, _ := frames.Next()
	return f.Function == nameOfCall
}

var nameOfCall = nameOf((*Conn).call)

// Disconnected implements Handler.
func (BaseHandler) Disconnected(Disconnection) {}

// StreamHandler is what a Handler may implement too, for messages above
// StreamOver. What Stream leaves unread is skipped when it returns. With a Handler that
// is no StreamHandler all of such a message is, and it counts in MessagesIn.
type StreamHandler interface {
	Stream(r *Reply, s *Stream) // s is over when the call returns
}

// EndHandler is what a Handler may implement too: Ended tells that the peer
// has finished sending. When it returns, the connection ends after what was
// queued, unless HalfOpen is set.
type EndHandler interface {
	Ended(r *Reply) // no Message or Stream comes after it
}

// ---- from Events to a Handler and back ----

// SetHandler gives the connection to a Handler: everything not in a batch that
// was already taken goes to it, in order. nil gives it back to Events. It may
// be called at any time, and does not wait. If the current Handler is being called, it
// first gets what came together with the message of that call; then the new one takes
// over, and the old one hears nothing more. (Reply.SetHandler takes effect with the next
// message.) A message that the peer sends from here on is for h, and so is the Drained of a
// NotifyDrained that follows. The end of a connection that was reported to Events is reported
// there, and to the Handler that has it then.
//
// The error is that of Send when the connection has ended.
func (c *Conn) SetHandler(h Handler) error {
	return c.order(func(ch *change) {
		ch.setHandler, ch.handler = true, h
		if c.out.deaf {
			c.out.hear()
		}
		c.out.unheard = true // from here on Drained is for h
	})
}

// Raw reports whether what comes is delivered as it comes, without frames.
func (c *Conn) Raw() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.framing == nil
}

// SetRaw switches between messages and raw bytes. Output switches with the
// next message that is sent. Input switches where it happens to be, and keeps
// what was read and not delivered; that is exact only if the peer waits for our
// next bytes. So it comes before the answer that the peer waits for, which is then of
// the new kind too. (Reply.SetRaw is always exact, and follows an answer of the old kind.)
//
// The error is that of Send when the connection has ended, and one that matches
// errors.ErrUnsupported on networks of packets.
func (c *Conn) SetRaw(raw bool) error {
	if c.set.packets() {
		return errRawPackets
	}
	return c.order(func(ch *change) {
		ch.setRaw, ch.raw = true, raw
		c.out.framing = c.set.header(raw)
	})
}

var errRawPackets = fmt.Errorf("sockhub: raw bytes on a network of packets: %w", errors.ErrUnsupported)

// change is what SetHandler and SetRaw ask of the reader.
type change struct {
	setHandler, setRaw bool
	handler            Handler
	raw                bool
}

// order adds to what is asked of the reader. edit is called with mu held.
func (c *Conn) order(edit func(*change)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closeErr != nil {
		return c.refusalLocked()
	}
	ch := c.change.Load()
	if ch == nil {
		ch = new(change)
	}
	edit(ch)
	c.change.Store(ch)
	c.kickReader()
	return nil
}

// applyChange does what SetHandler and SetRaw have asked for.
func (c *Conn) applyChange(ch *change) {
	if ch.setRaw {
		c.dec.setRaw(ch.raw)
		c.frameAnswers(ch.raw)
	}
	switch {
	case !ch.setHandler:
	case c.handler != nil || c.diverted != nil:
		c.setHandler(ch.handler)
	case ch.handler != nil:
		c.diverted = &diversion{handler: ch.handler}
		c.hub.fan.divert(c)
	}
}

// setHandler gives the connection to another Handler, or to Events.
func (c *Conn) setHandler(h Handler) {
	if c.diverted != nil {
		c.diverted.handler = h // nil: what is withdrawn is delivered again
		return
	}
	before := c.handler
	if h == nil {
		c.mu.Lock()
		c.out.unheard = true // until attend: the call that we are in may yet give it to a Handler
		c.kickReader()
		c.mu.Unlock()
	}
	c.useHandler(h)
	if h != nil {
		return // if it was Events' for a moment, it need not be reported there: see enter
	}
	if c.gated = !c.hub.fan.publish(c); before != nil {
		c.client.giver = &before
	}
	c.passDrained()
}

// passDrained has the hub tell, when it hears of the connection, of a Drained that the
// Handler before was to be told of, and will not be.
func (c *Conn) passDrained() {
	c.mu.Lock()
	o := &c.out
	o.notify = o.notify || o.drained || c.reply.drained
	o.drained, c.reply.drained = false, false
	c.mu.Unlock()
}

// useHandler makes h the connection's handler.
func (c *Conn) useHandler(h Handler) {
	c.handler = h
	c.reply.c = c
	c.mu.Lock()
	if c.out.handled = h != nil; c.out.deaf {
		c.out.hear()
	}
	c.reply.refused = c.out.refuse != nil
	c.frameAnswers(c.dec.raw)
	c.mu.Unlock()
}

// diversion is the way from Events to a Handler: what is in a batch that was
// not taken is withdrawn. The reader waits for that meanwhile.
type diversion struct {
	handler Handler

	// Guarded by hub.fan.mu until done.
	done    bool
	msgs    [][]byte
	stream  bool // a Stream was withdrawn behind them
	ended   bool // Ended was withdrawn too
	drained bool // and Drained
	paused  bool // the input waited for them to be taken
}

// undivert gives the handler what was withdrawn from Events, if that is done. again: some
// of it is to be cut again, and that in Shutdown, for which nothing more is read.
func (c *Conn) undivert() (again bool) {
	d := c.diverted
	if !c.hub.fan.isDiverted(d) {
		return false
	}
	c.diverted = nil
	c.mu.Lock()
	if d.paused {
		d.paused, c.paused = false, false
		c.goOnLocked()
	}
	if !c.out.handled && c.out.empty() {
		c.out.flushed = false // while Events had the connection, which does not hear of it
	}
	c.mu.Unlock()
	if d.handler == nil {
		c.hub.fan.undivert(c) // first, as from here on it is said to be Events'
	}
	c.useHandler(d.handler)
	if d.drained {
		d.drained = false
		c.mu.Lock()
		c.out.notify = true // only now: see output.hear
		c.mu.Unlock()
	}
	switch {
	case c.handler == nil:
		if c.passDrained(); c.gated {
			c.kickReader() // Events may hear of it by now
		}
	case c.gated:
		if err := c.enter(); err != nil { // nobody has to be told of it before
			c.fail(err)
		}
	}
	if !c.gated {
		c.heard()
	}
	if c.handWithdrawn(d) {
		// The rest waits as if it had just been read.
		d.handler, c.diverted = c.handler, d
		return false
	}
	if len(d.msgs) > 0 && c.handler == nil {
		s := c.getScratch()
		s.msgs = append(s.msgs, d.msgs...)
		c.deliver(s)
		c.hub.budget.in.Force(s.delivered)
		s.delivered = 0
		c.putScratch(s)
	}
	if d.stream && c.stream != nil {
		c.stream.told = false // it was taken back
	}
	switch {
	case !d.ended:
	case len(c.dec.rest) > 0 && c.ends.Load() == 0:
		return c.unend()
	case c.ends.Load() != endsNow:
		c.reportEnd()
	}
	return false
}

// unend is for when the end of the input was withdrawn, and something of what had come
// before is to be cut again: the reader comes to the end once more behind that. It
// reports whether the end is Shutdown's, which leaves to be cut what was read.
func (c *Conn) unend() (shutdown bool) {
	c.letGo = false
	c.mu.Lock()
	defer c.mu.Unlock()
	c.input, c.quiet = reading, c.hub.watch.Now()
	return c.endRead
}

// handWithdrawn calls the handler with what was withdrawn, and reports whether what is
// left of that has to wait for room.
func (c *Conn) handWithdrawn(d *diversion) (waits bool) {
	for len(d.msgs) > 0 && c.mayCall() {
		if c.waitsForRoom() {
			return true
		}
		c.inCall.Store(true)
		c.leaveToken()
		m := d.msgs[0]
		d.msgs = d.msgs[1:]
		c.turnMsgs-- // it was counted when Events was to have it
		c.turnBytes -= len(m)
		before, raw := len(c.dec.rest), c.dec.raw
		c.handle(m)
		unread := c.dec.rest[:len(c.dec.rest)-before]
		if c.dec.raw != raw {
			c.rereads(d, len(unread)) // may call the user's Framing
		}
		c.listening()
		c.inCall.Store(false)
		if len(unread) > 0 && len(d.msgs) > 0 {
			d.msgs[0] = slices.Clip(slices.Concat(unread, d.msgs[0]))
			c.dec.takeBack(len(unread))
			c.turnBytes += len(unread) // as if they had been counted with that
		}
		c.flush()
	}
	return false
}

// waitsForRoom reports whether the handler is not to be called before there is room
// for its answer.
func (c *Conn) waitsForRoom() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.wantRoom
}

// rereads makes input of what was withdrawn again, as it was on the wire, behind
// the first bytes that were unread: Reply.SetRaw holds for it too.
func (c *Conn) rereads(d *diversion, unread int) {
	var again []byte
	header := c.set.header(false).Append
	for _, m := range d.msgs {
		if c.dec.raw {
			again = header(again, uint64(len(m)))
		}
		again = append(again, m...)
		c.turnMsgs--
		c.turnBytes -= len(m)
	}
	if c.stream != nil && (d.stream || !c.stream.told) {
		again = header(again, c.stream.size)
		d.stream, c.dec.stream = false, 0
		c.leaveStream()
	}
	c.dec.rest = slices.Concat(c.dec.rest[:unread], again, c.dec.rest[unread:])
	d.msgs = nil
}

// ---- calls of the handler ----

// handle calls the handler with one message. inCall stays set, for the next:
// the caller clears it.
func (c *Conn) handle(msg []byte) {
	if !c.inCall.Load() {
		c.inCall.Store(true)
	}
	r := &c.reply
	if r.shouldGather() && c.dec.buffered() {
		r.gather()
	}
	r.begin()
	c.inHand, c.handed = true, len(msg)
	c.handler.Message(r, msg)
	c.took()
	c.betweenCalls()
}

// took counts the message that the handler was called with.
func (c *Conn) took() {
	c.inHand = false
	c.turnMsgs++
	c.turnBytes += c.handed
}

// call calls the handler with anything else than a message, by itself.
func (c *Conn) call(f func(*Reply)) {
	var begun time.Duration
	timed := c.timed()
	if timed {
		begun = c.hub.watch.Now()
	}
	c.inCall.Store(true)
	c.leaveToken()
	c.reply.begin()
	f(&c.reply)
	c.reply.end()
	if timed && c.stream == nil {
		now := c.hub.watch.Now()
		c.mu.Lock()
		c.busyLocked(begun)
		c.quiet = min(c.quiet+now-begun, now) // what was before the call is silence all the same
		c.mu.Unlock()
	}
	c.inCall.Store(false)
}

// lastCall tells the handler the end. A panic ends nothing any more.
func (c *Conn) lastCall(d Disconnection) {
	defer func() {
		if c.inCall.Swap(false) {
			recover()
			c.hub.countPanic()
		}
	}()
	c.inCall.Store(true)
	c.handler.Disconnected(d)
	c.inCall.Store(false)
}

// starve waits until the budget lets the connection read, if it did not. again: it need
// not wait, as it has room of its own.
func (c *Conn) starve() (again bool) {
	if !c.starved {
		return false
	}
	c.starved = false
	own := !c.paused && c.little() // else cut has it wait, with more than one message
	if own && !c.hub.budget.full() {
		if !c.hub.fan.pauseUntaken(c) {
			return true
		}
		c.paused = true
		c.hold()
		return false
	}
	c.paused = true
	c.mu.Lock()
	c.holding = true
	c.lacks = c.dec.lacks
	c.mu.Unlock()
	c.hub.budget.in.Wait(c, int64(c.dec.lacks), own) // may call readOn
	c.hub.budget.awaited()
	return false
}

// cutRest delivers what was read and had to wait for room.
func (c *Conn) cutRest() {
	s := c.getScratch()
	c.dec.begin(s)
	called, err := c.cut(s)
	if called {
		c.afterCalls()
	}
	if err != nil {
		c.fail(err)
	}
	c.dec.pause(s)
	c.settle(s, c.dec.partial())
	c.putScratch(s)
}

// writeOrPause writes what the handler has answered, and pauses the input if that
// leaves no room for another answer.
func (c *Conn) writeOrPause() {
	c.reply.write()
	c.mu.Lock()
	defer c.mu.Unlock()
	if o := &c.out; o.refuse == nil && !c.mayAnswerLocked() {
		o.wantRoom, c.paused = true, true
		c.startWriterLocked()
	}
}

// flush writes what the handler has answered, and calls its Drained when
// everything is written, again if that answered something. A handler that
// always does gets back to it when something else had its turn.
func (c *Conn) flush() {
	r := &c.reply
	for range 16 {
		if c.writeAnswers(); !c.owesDrained() {
			return
		}
		r.drained = false
		c.call(c.handler.Drained)
	}
	r.write()
}

// writeAnswers is flush without Drained.
func (c *Conn) writeAnswers() {
	r := &c.reply
	if r.write(); r.full {
		r.full = false
		c.writeOrPause()
	}
}

// write writes what is queued, and remembers whether Drained is due.
func (r *Reply) write() {
	if r.c.writeNow() {
		r.drained = true
	}
}

// ---- answers ----

// Reply is how a Handler answers. It belongs to the call that it was given to:
// using it later panics, and another goroutine may not use it at all. For
// answers that come later, or from elsewhere, there is Conn.
//
// What a call sends is gathered, and takes its place in the queue when the call
// returns, before what others send after that. It is written when the handler
// has seen all that had been received, so a Handler that takes its time calls
// Flush.
type Reply struct {
	c         *Conn
	framing   *outq.Framing
	gathering *gathering // where small messages gather, before those in side; or nil
	small     int        // longest message of which, as the first of a call, nothing is to be asked but whether gathering has room
	active    bool       // during a call
	fresh     bool       // nothing was sent in it, so that sent and charge are of the call before
	full      bool       // the queue is over its limit
	more      bool       // the call did more than to send one small message, or to ask for the Conn
	drained   bool       // Drained is due
	eager     bool       // there were answers that gathered
	refused   bool       // the output has ended
	side      outq.Queue // gathered
	sent      int        // messages gathered in this call, Flush or not
	charge    int64      // of these, since the room was looked up
	room      int64      // charge that may be gathered, if sent > 0
}

// shouldGather reports whether answers are likely, and do not gather yet.
func (r *Reply) shouldGather() bool { return r.eager && r.gathering == nil }

// begin begins a call of the handler; over ends it.
func (r *Reply) begin() {
	r.active, r.fresh, r.full, r.more = true, true, false, false
	if r.c.refuses.Load() { // since another goroutine has ended the output, perhaps
		r.refused, r.small = true, 0
	}
}

func (r *Reply) over() { r.active, r.fresh = false, false }

// end is over for a call by itself: what it has sent is queued.
func (r *Reply) end() {
	r.accept()
	r.over()
}

// conn is Conn for the methods that do more than to send one small message.
func (r *Reply) conn() *Conn {
	r.more = true
	return r.Conn()
}

// accept queues what was gathered.
func (r *Reply) accept() {
	if g := r.gathering; g != nil {
		if g.slab.Publish(); r.side.Empty() {
			return
		}
	} else if r.side.Empty() {
		return
	}
	r.lock()
	r.acceptLocked()
	r.gatherLocked()
	r.easeSend()
	r.c.mu.Unlock()
	r.eager = true
}

// gather is gatherLocked before the first call of a turn, where answers are
// likely because there were some before: so they lie in one piece, and leave by a
// system call for one piece, which costs less.
func (r *Reply) gather() {
	r.c.mu.Lock()
	r.gatherLocked()
	r.easeSend()
	r.c.mu.Unlock()
}

// gatherLocked makes the next calls' answers gather in the turn's slab: when one
// call has answered, and more messages have come, more answers are likely.
func (r *Reply) gatherLocked() {
	s := r.c.scratch
	if r.refused = r.refused || r.c.out.refuse != nil; s == nil || r.full || r.refused {
		return
	}
	if s.gathering == nil {
		s.gathering = new(gathering)
	}
	g := s.gathering
	o := &r.c.out
	charge := o.charge()
	g.slab.Reset(min(o.limit-charge, r.c.hub.budget.out.Left(&o.share, charge)))
	if r.gathering == nil {
		r.gathering = g
		r.c.mu.gathering.Store(g)
	}
}

// gatherNoMoreLocked ends that.
func (r *Reply) gatherNoMoreLocked() {
	r.c.mu.gathering.Store(nil)
	r.gathering, r.small = nil, 0
}

// easeSend finds out what Send need not ask.
func (r *Reply) easeSend() {
	if r.small = 0; r.gathering != nil && !r.refused && r.framing == outq.Default {
		r.small = int(min(outq.SlabMax, r.c.set.maxMessage))
	}
}

// gathering is where a Handler's answers gather, while it is called again and
// again for messages that came together. What is published there was accepted:
// whoever locks Conn.mu finds it in the queue, because the lock puts it there.
type gathering struct{ slab outq.Slab }

// gatheringLock is a mutex that takes in what was accepted without it: what was
// gathered, or broadcast. There is never something of both, so that they need no
// order among each other: see join.
type gatheringLock struct {
	sync.Mutex
	c         *Conn
	gathering atomic.Pointer[gathering] // set and removed by the reader, with the lock held
	cast      *cast                     // guarded by the lock: that the connection is in, or nil
	seat      int                       // of it there
}

func (l *gatheringLock) Lock() {
	l.Mutex.Lock()
	if g := l.gathering.Load(); g != nil && g.slab.Waiting() {
		l.c.takeInLocked(&g.slab, (*outq.Queue).Take)
	}
	if l.cast != nil {
		l.c.leaveCastLocked()
	}
}

// lock locks Conn.mu for the reader, which is the one that gathers.
func (r *Reply) lock() {
	r.c.mu.Mutex.Lock()
	if g := r.gathering; g != nil && g.slab.Waiting() {
		r.c.takeInLocked(&g.slab, (*outq.Queue).TakeWhole)
	}
	if r.c.mu.cast != nil {
		r.c.leaveCastLocked()
	}
}

// takeInLocked queues what a Handler's calls that have returned have answered.
func (c *Conn) takeInLocked(s *outq.Slab, take func(*outq.Queue, *outq.Slab) (int, int64)) {
	o := &c.out
	if o.answersLate() {
		o.accepted.add(take(o.tooLate(), s))
		return
	}
	alone := o.empty()
	msgs, bytes := take(o.answers(), s)
	o.accepted.add(msgs, bytes)
	o.answersFull = !c.chargeAnswersLocked(o.charge(), alone && msgs == 1) || o.answersFull
}

// chargeAnswersLocked charges what a Handler has answered, which is never refused,
// and reports whether there is room for more. alone: it is one message, and no other
// is queued.
func (c *Conn) chargeAnswersLocked(charge int64, alone bool) (room bool) {
	o := &c.out
	if !c.hub.budget.out.Take(&o.share, charge, alone) {
		c.hub.budget.out.Force(&o.share, charge)
		return false
	}
	return charge < o.limit
}

func (r *Reply) acceptLocked() {
	o := &r.c.out
	if r.refused = o.refuse != nil; o.answersLate() {
		if !r.side.Empty() {
			o.accepted.add(r.side.Len(), r.side.Bytes())
			o.tooLate().Splice(&r.side)
		}
		return
	}
	r.full, o.answersFull = o.answersFull, false
	if r.side.Empty() {
		return
	}
	o.accepted.add(r.side.Len(), r.side.Bytes())
	r.full = !r.c.chargeAnswersLocked(o.charge()+r.side.Charge(), o.empty() && r.side.Len() == 1) || r.full
	o.answers().Absorb(&r.side)
}

// answers is the queue for what a Handler answers: behind a run that is under way, and
// behind what came behind one that the end of the output has cut off.
func (o *output) answers() *outq.Queue {
	if o.run || len(o.behind) > 0 {
		return o.behindRun()
	}
	return &o.q
}

// admit says whether one more message may be gathered: the first of a call
// always.
func (r *Reply) admit(size int) error {
	if err := r.conn().checkFramed(r.framing, size); err != nil {
		return err
	}
	return r.place(size)
}

// place is admit without a look at the size.
func (r *Reply) place(size int) error {
	c := r.c
	if r.fresh {
		r.fresh, r.sent, r.charge = false, 0, 0
	}
	if r.refused {
		return c.sendRefusal()
	}
	if r.sent == 1 {
		c.mu.Lock()
		charge := c.out.charge()
		r.room = min(c.out.limit-charge, c.hub.budget.out.Left(&c.out.share, charge))
		c.mu.Unlock()
	}
	if r.sent > 0 && r.charge >= r.room {
		return ErrBackpressure
	}
	r.charge += int64(size) + MessageCharge
	r.sent++
	return nil
}

// Conn is the connection, for as long as the call lasts.
func (r *Reply) Conn() *Conn {
	if !r.active {
		panic("sockhub: Reply used after its call")
	}
	return r.c
}

// Send answers with one message. It never waits: the message is gathered, or
// refused with ErrMessageTooLarge, when the queue is full with ErrBackpressure, or
// when the output has ended with the error of Conn.Send. If the output ends, or
// the connection fails, before the call returns, the Report counts what was
// gathered as unsent.
//
// The first message of a call is never refused because the queue is full: when
// answers have filled it, the Handler is not called again before there is room.
// Its peer waits, and is given up after WriteTimeout. For more answers to one
// message there is Drained to send the next at, or what waits: Conn.Send and
// Conn.SendMany, in the call, behind a Flush that keeps the order, or beside it in a
// goroutine.
//
// It takes ownership of msg as Conn.Send does, but msg may also be the message
// that the call was given, or a part of it.
func (r *Reply) Send(msg []byte) error {
	if r.fresh && uint(len(msg)-1) < uint(r.small) && r.gathering.slab.AddDefault(msg) {
		r.fresh, r.sent, r.charge = false, 1, int64(len(msg))+MessageCharge
		return nil
	}
	return r.send(msg)
}

// send is Send of any message.
func (r *Reply) send(msg []byte) error {
	if err := r.admit(len(msg)); err != nil {
		return err
	}
	if r.gathering == nil || !r.side.Empty() || !r.gathering.slab.Add(r.framing, msg) {
		appendTo(&r.side, r.framing, msg)
	}
	return nil
}

// SendParts is Send of one message made of parts, which are not joined in
// memory if they are large.
func (r *Reply) SendParts(parts ...[]byte) error {
	size := sizeOf(parts)
	if err := r.admit(size); err != nil {
		return err
	}
	appendPartsTo(&r.side, r.framing, parts, size)
	return nil
}

// SendMany is Send of what m yields, until one is refused: the first n were
// gathered.
func (r *Reply) SendMany(m iter.Seq[[]byte]) (n int, err error) {
	r.conn()
	for msg := range m {
		if err := r.Send(msg); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// SendFrom answers with one message of size bytes that is read from rc, in its
// place among the others, by a goroutine of the connection; see Conn.SendFrom.
// rc is closed when it has been read, or when the connection has ended, also if
// SendFrom refuses it. If rc fails, the connection ends.
func (r *Reply) SendFrom(size uint64, rc io.ReadCloser) error {
	c := r.conn()
	err := c.set.checkPacket(size)
	if err == nil {
		err = c.set.fits(r.framing, size)
	}
	if err == nil {
		err = r.place(0)
	}
	if err != nil {
		rc.Close()
		return err
	}
	r.accept()
	f := &feed{size: size, from: rc, framing: r.framing, moved: make(chan struct{}, 1)}
	c.mu.Lock()
	if err = c.refusalLocked(); err == nil {
		c.feedAnswerLocked(f)
	}
	c.mu.Unlock()
	if err != nil {
		rc.Close()
	}
	return err
}

// feedAnswerLocked accepts a message of Reply.SendFrom: at once, or behind the run that is
// under way.
func (c *Conn) feedAnswerLocked(f *feed) {
	o := &c.out
	o.accepted.addOne(f.size)
	if !o.run {
		c.startFeederLocked(f)
		return
	}
	o.behind = append(o.behind, segment{from: f})
	if !c.chargeAnswersLocked(o.charge(), false) {
		c.reply.full, o.answersFull = true, true
	}
}

// Flush gives what was gathered its place in the queue now, and has it written,
// not when the call returns.
func (r *Reply) Flush() {
	r.acceptNow()
	r.write()
	if !r.fresh && r.sent > 0 {
		r.sent, r.charge = 1, 0 // room is looked up again
	}
}

// Unread gives back the end of the message that the call was given, in raw
// mode: the next input starts with it, and comes when there is more of it, or
// when Reply.SetRaw(false) has made messages of it. So a parser, of lines say, gives
// back what is not complete. FrameTimeout and MaxMessage hold for that, as for a message
// that has begun; and it comes again in the same memory, or in other. It panics if rest is
// not the end of that message.
func (r *Reply) Unread(rest []byte) {
	c := r.conn()
	if len(rest) > 0 && (!c.inHand || len(rest) > c.handed) {
		panic(unreadOther)
	}
	c.dec.unread(rest)
	c.turnBytes -= len(rest) // they come again
}

// SetRaw switches between messages and raw bytes, exactly: input from the byte
// after this message on, output from the next message on. It panics on networks
// of packets.
func (r *Reply) SetRaw(raw bool) {
	c := r.conn()
	if c.set.packets() {
		panic(errRawPackets)
	}
	c.dec.setRaw(raw)
	r.accept()
	c.frameAnswers(raw)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out.framing = r.framing
}

// SetHandler gives the connection to another Handler, from the next call on;
// nil gives it to Events. The current one hears nothing more.
func (r *Reply) SetHandler(h Handler) { r.conn().setHandler(h) }

// CloseWrite is Conn.CloseWrite, after what this call has sent.
func (r *Reply) CloseWrite() {
	r.acceptNow()
	r.c.CloseWrite()
	r.refuse()
}

// Finish is Conn.Finish, after what this call has sent. No further call but
// Disconnected is made.
func (r *Reply) Finish() {
	r.acceptNow()
	r.c.Finish()
	r.refuse()
	r.c.stopped = true
}

// Close is Conn.Close: what was sent and not written is reported as unsent. No
// further call but Disconnected is made.
func (r *Reply) Close() {
	r.acceptNow()
	r.c.Close()
	r.refuse()
	r.c.stopped = true
}

// acceptNow is accept during a call.
func (r *Reply) acceptNow() {
	r.conn()
	r.accept()
}

// frameAnswers says how to frame what a handler answers from now on.
func (c *Conn) frameAnswers(raw bool) {
	r := &c.reply
	r.framing = c.set.header(raw)
	r.easeSend()
}

// refuse lets nothing more be sent.
func (r *Reply) refuse() {
	r.refused = true
	r.easeSend()
}

// ---- streams ----

// Stream is one message above StreamOver, which is read from the connection as
// its user reads it. Until it is read to its end, or closed, the connection's
// further input waits. One goroutine at a time may use it.
//
// A Handler's Stream ends with the call that it was given to. One from Events
// may be used at any time, also after the connection has ended: then Read
// fails. A program that answers after reading one from Events sets HalfOpen and calls
// Conn.Finish: else the connection of a peer that has finished sending may have
// ended before the answer, since Ended comes as soon as the Stream was read.
type Stream struct {
	c    *Conn
	size uint64
	told bool          // it was delivered; the reader's
	wake chan struct{} // capacity 1; sent to without waiting to make the reader attend, never closed; nil: of a Handler

	mu   sync.Mutex  // serializes the use of the transport by the user and by the reader; see Hub.mu
	over atomic.Bool // the input is the reader's again; set with mu held
	err  error       // what Read returns from now on
}

// Size is the length of the message in bytes.
func (s *Stream) Size() uint64 { return s.size }

// Read reads a part of the message: io.EOF at its end. When the connection
// ended in the middle, it fails with the reason, and if its peer has closed it
// with io.ErrUnexpectedEOF. After Hub.Shutdown or Conn.Finish it fails with
// ErrClosed, also if the peer goes on sending.
func (s *Stream) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return 0, s.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := s.c.readStream(p)
	switch {
	case err != nil:
		s.endLocked(err)
	case s.c.dec.stream == 0:
		s.endLocked(io.EOF)
	}
	return n, err
}

// Close skips the rest of the message: the connection goes on behind it. The
// error is always nil.
func (s *Stream) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endLocked(ErrClosed)
	return nil
}

// endLocked gives the input back to the reader, which skips what is left.
func (s *Stream) endLocked(err error) {
	if s.err == nil {
		s.err = err
	}
	if !s.over.Swap(true) && s.wake != nil {
		s.c.kickReader()
	}
}

// beginStream makes the input wait for a stream to be read.
func (c *Conn) beginStream(handled bool) {
	c.stream = &Stream{c: c, size: c.dec.stream}
	if handled {
		c.streaming.Store(nil)
		return
	}
	c.stream.wake = make(chan struct{}, 1)
	c.streaming.Store(c.stream)
	nudge(c.stream.wake) // who has kicked the reader since attend looked has not found it
}

// leaveStream makes the input the reader's again.
func (c *Conn) leaveStream() {
	c.stream = nil
	c.streaming.Store(nil)
}

// retireStream takes the input back from the user in the middle.
func (c *Conn) retireStream(err error) {
	s := c.stream
	if s == nil {
		return
	}
	c.t.Kick(transport.ReadSide)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endLocked(err)
	c.leaveStream()
	if s.told {
		c.mu.Lock()
		c.countStreamLocked(s)
		c.mu.Unlock()
	}
}

// countStreamLocked counts the message, and what of it was read.
func (c *Conn) countStreamLocked(s *Stream) {
	c.inMsgs++
	c.inBytes += s.size - c.dec.stream
}

// serveStream is the reader's part in a stream: to call its handler, or to take
// the input back when the user has finished with it. Meanwhile the reader is
// not in Read, which the stream is then.
func (c *Conn) serveStream() {
	s := c.stream
	if s.wake == nil {
		if s.told = c.ends.Load() == 0; s.told { // else nothing more is delivered
			if h, ok := c.handler.(StreamHandler); ok {
				c.call(func(r *Reply) { h.Stream(r, s) })
				c.reply.write() // also if that was its last call
			}
		}
		s.Close()
	}
	if s.wake != nil && !s.told && c.diverted == nil && !c.gated { // Events is to know of the connection first
		s.told = true // and not before, when the reader still was in Read
		c.hub.fan.deliverStream(c, s)
	}
	if !s.over.Load() {
		return // without waiting for its user, who may be in Read
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.missed {
		c.missed = false
		c.t.Kick(transport.ReadSide)
	}
	c.leaveStream()
	c.skipping = c.dec.stream > 0
	c.mu.Lock()
	c.goOnLocked()
	if s.told {
		c.countStreamLocked(s)
	}
	c.mu.Unlock()
}

// readStream reads from the stream into p, which is not empty.
func (c *Conn) readStream(p []byte) (n int, err error) {
	if n = c.dec.take(p); n > 0 {
		c.giveTaken()
		return n, nil
	}
	p = p[:min(uint64(len(p)), c.dec.stream)]
	var drained bool
	turn := func() (park bool) {
		n, drained, err = c.t.TryRead(p)
		return n == 0 && err == nil && drained
	}
	c.streamWaits(true)
	defer c.streamWaits(false)
	for n == 0 && err == nil {
		if e := c.t.Read(turn); e == transport.ErrKicked {
			c.missed = true
		} else if e != nil {
			err = e
		}
		if e := c.streamEnds(); n == 0 && e != nil {
			return 0, e
		}
	}
	c.dec.stream -= uint64(n)
	if err == io.EOF {
		return n, io.ErrUnexpectedEOF
	}
	if err != nil {
		err = c.opError("read", err)
	}
	return n, err
}

// giveTaken gives back what was held of the budget for what the user of a Stream has, who
// may be long in coming to its end.
func (c *Conn) giveTaken() {
	kept := c.dec.partial()
	c.leaveOwn(kept)
	c.hub.budget.in.Give(c.held - int64(kept))
	c.held = int64(kept)
}

// streamEnds tells why the stream cannot be read any further, or nil.
func (c *Conn) streamEnds() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closeErr != nil:
		return c.closeErr
	case c.out.finish != nil, c.endRead:
		return ErrClosed
	}
	return nil
}

// streamWaits starts or stops the clock of a message that makes no progress.
func (c *Conn) streamWaits(on bool) {
	now := c.hub.watch.Now()
	c.mu.Lock()
	c.partial, c.holding, c.quiet, c.lastRead = on, !on, now, now
	c.waiting = on
	failed := c.out.err != nil
	c.mu.Unlock()
	if !on {
		return
	}
	if failed {
		c.arm(now + c.hub.endAfterFailure())
	}
	c.armSilence(now, true)
}
