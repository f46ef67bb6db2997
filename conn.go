package sockhub

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sockhub/sockhub/internal/transport"
	"github.com/sockhub/sockhub/internal/watch"
)

// Why a connection ended, or a call was refused. Compare with errors.Is.
var (
	// ErrClosed: the Hub, Listener or Conn was closed or finished by this
	// side. It matches net.ErrClosed.
	ErrClosed error = closedError{}

	// ErrNotConnected: the client is known, but its connection has ended.
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
	// Immutable after construction.
	hub      *Hub
	t        transport.Conn
	set      *settings
	listener *Listener     // that accepted it, or nil
	born     time.Duration // of hub.watch

	// Written by the reader goroutine before the connection is published,
	// immutable from then on.
	peer   Peer
	client *client

	// Owned by the reader goroutine.
	dec      decoder
	greet    *greeting // the handshake under way; nil after it
	paused   bool      // input waits for the user to take what he has
	badInput bool      // what came is no message

	inCall atomic.Bool // the reader is in a callback of the user's, which may take any time
	clock  watch.Entry // the next moment at which check runs

	value atomic.Pointer[any]

	// mu guards what follows. It may be taken with hub.mu held, and nothing is
	// locked inside it.
	mu       sync.Mutex
	input    inputState // written by the reader alone, which so may read it without mu
	endErr   error      // what ended the input
	inMsgs   uint64
	inBytes  uint64
	lastRead time.Duration // end of the last turn in which something came
	quiet    time.Duration // since when the peer has been silent while we listened
	doubtful bool          // parked since then on a guess (transport.Conn.TryRead)
	partial  bool          // ... within a message
	holding  bool          // ... because we hold it back (paused)
	resume   bool          // told to go on reading
	endRead  bool          // told to end the input, by Shutdown
	shaking  bool          // the handshake is under way
	deadline time.Duration // of the handshake, later of the drain; 0: none
	overdue  bool          // the drain's deadline has passed
	closeErr error         // why the connection is to end now; set once
	over     bool          // the reader has left
	ctx      context.Context
	cancel   context.CancelCauseFunc
	out      output

	// Guarded by hub.fan.mu.
	ev connEvents
}

// inputState is how far the input has come. It only moves on.
type inputState uint8

const (
	reading    inputState = iota
	held                  // ended by Shutdown as if the peer had finished: nothing more is delivered
	discarding            // finished by us: what still comes is dropped
	ended                 // the peer has finished or is gone
)

// ID is the number of the client that this connection belongs to.
func (c *Conn) ID() ID { return c.client.id }

// Name is what the peer called itself, or "" if it gave no name. On a dialed
// connection it is what we called ourselves.
func (c *Conn) Name() string { return c.peer.Name }

// Peer tells who is at the other end.
func (c *Conn) Peer() Peer { return c.peer }

// String describes the connection for people.
func (c *Conn) String() string { return c.peer.String() }

// Context returns a context that ends with the connection; context.Cause of
// it is then the reason, the same as Disconnection.Err. It is made at the
// first call.
func (c *Conn) Context() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx == nil {
		c.ctx, c.cancel = context.WithCancelCause(context.Background())
		if c.over {
			c.cancel(c.closeErr)
		}
	}
	return c.ctx
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
	MessagesIn, MessagesOut, BytesIn, BytesOut uint64    // delivered; handed to the kernel whole. Bytes of bodies
	QueuedIn, QueuedOut                        int64     // bytes charged to what the user has not taken; to what is not written
	QueuedMessages                             int       // accepted and not written
	Paused                                     bool      // reading waits for the user
	Since, LastRead, LastWrite                 time.Time // LastWrite is zero while nothing was written
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
		Paused:   c.holding,
		Since:    c.hub.watch.Time(c.born),
		LastRead: c.hub.watch.Time(c.lastRead),
	}
	if c.out.last != 0 {
		s.LastWrite = c.hub.watch.Time(c.out.last)
	}
	return s
}

// Close ends the connection now: what is queued is not sent, but reported in
// its Disconnection, whose Err is ErrClosed. It does not wait. Closing again
// does nothing. The error is always nil.
func (c *Conn) Close() error {
	c.fail(ErrClosed)
	return nil
}

// Finish ends the connection when everything in its queue is written: nothing
// more is accepted, and what still comes in is discarded from now on, for at
// most Options.Linger after our FIN. It does not wait; the connection's
// Disconnection, with ErrClosed, tells when it is done. The error is
// ErrNotConnected if the connection had ended for another reason.
func (c *Conn) Finish() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over || c.closeErr != nil {
		if errors.Is(c.closeErr, ErrClosed) {
			return nil
		}
		return ErrNotConnected
	}
	c.finishLocked(ErrClosed)
	return nil
}

// finishLocked begins the orderly end. reason is what the Disconnection will
// say if nothing goes wrong any more.
func (c *Conn) finishLocked(reason error) {
	if c.out.finish != nil {
		return
	}
	c.out.finish = reason
	c.endOutputLocked(refusal(reason))
	c.t.Kick(transport.ReadSide)
}

// refusal is what a Send gets on a connection that ended for this reason.
func refusal(reason error) error {
	if errors.Is(reason, ErrClosed) {
		return ErrClosed
	}
	return ErrNotConnected
}

// CloseWrite ends the output: nothing more is accepted, and when all that is
// queued is written, the peer sees the end of its input (a FIN). Input goes
// on. It does not wait. On a transport that cannot end one direction alone the
// peer sees nothing until the connection ends.
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
func (c *Conn) fail(err error) {
	c.mu.Lock()
	if c.over {
		c.mu.Unlock()
		return
	}
	if c.closeErr == nil {
		c.closeErr = err
	}
	c.freezeLocked(refusal(c.closeErr))
	c.mu.Unlock()
	c.t.Hangup()
}

// opError wraps an error of the transport, once, as package net does.
func (c *Conn) opError(op string, err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		err = os.NewSyscallError(op, errno)
	}
	return &net.OpError{Op: op, Net: c.peer.Network, Source: c.peer.Local, Addr: c.peer.Remote, Err: err}
}

// ---- the reader goroutine ----

const (
	readChunk = 16 << 10  // memory shared by the small messages that come together
	minFree   = 2 << 10   // a chunk with less room is left to its messages
	readTurn  = 128 << 10 // after this much, others get their turn
	doubt     = 100 * time.Millisecond
)

// turn is what a reader needs while there is something to read. It is pooled,
// so that a connection that waits holds nothing.
type turn struct {
	free []byte   // never delivered to anybody
	msgs [][]byte // cut in this round
}

var turns = sync.Pool{New: func() any { return &turn{free: make([]byte, readChunk)} }}

// spend takes away the first n bytes of free, which messages lie in now.
func (t *turn) spend(n int) {
	const line = 64 // the next reader's bytes begin on a cache line of their own
	if n = (n + line - 1) &^ (line - 1); len(t.free)-n < minFree {
		t.free = make([]byte, readChunk)
		return
	}
	t.free = t.free[n:]
}

// serve is the reader goroutine: it begins the handshake, reads to the end,
// waits for the writer and reports.
func (c *Conn) serve() {
	defer c.end()
	defer c.recoverCall()
	if err := c.begin(); err != nil {
		c.fail(err)
	}
	for !c.attend() {
		if err := c.t.Read(c.turn); err != nil && err != transport.ErrKicked {
			c.fail(c.opError("read", err))
		}
	}
}

// recoverCall ends the connection when a callback of the user's panicked or
// left by Goexit. It is to be deferred.
func (c *Conn) recoverCall() {
	if c.inCall.Load() { // else the panic is ours
		c.fail(&PanicError{Value: recover(), Stack: debug.Stack()})
		c.inCall.Store(false)
	}
}

// attend looks at what others have asked of this connection while its reader
// was busy or parked, and reports whether it is over.
func (c *Conn) attend() (over bool) {
	if c.greet != nil && c.greet.waits() {
		if err := c.enter(); err != nil {
			c.fail(err)
		}
	}
	c.mu.Lock()
	before := c.input
	over = c.attendLocked()
	c.mu.Unlock()
	if before == reading && c.input == held {
		c.hub.fan.endedInput(c)
	}
	return over
}

func (c *Conn) attendLocked() (over bool) {
	if c.resume {
		c.resume, c.paused, c.holding = false, false, false
		c.quiet = c.hub.watch.Now()
	}
	if c.closeErr != nil {
		return true
	}
	if c.endRead && c.input == reading {
		c.input, c.endErr = held, ErrClosed
	}
	if c.out.finish == nil {
		// A failed write leaves the input to be read to its end.
		return c.out.err != nil && c.input == ended
	}
	if c.input < discarding {
		c.input, c.paused, c.holding = discarding, false, false
	}
	switch {
	case c.out.err != nil:
		return true
	case c.out.writing || !c.out.empty():
		return false // the writer kicks when it is done
	case c.input == ended || c.overdue:
		return true
	case !c.out.finSent:
		return false
	case c.hub.o.Linger == 0:
		return true
	case c.deadline == 0:
		c.deadline = c.hub.watch.Now() + c.hub.o.Linger
		c.hub.watch.Arm(&c.clock, c, c.deadline)
	}
	return false
}

// turn reads until nothing more is there. It runs inside transport.Conn.Read.
func (c *Conn) turn() (park bool) {
	switch {
	case c.input == ended:
		return c.watchPeer()
	case c.input == held, c.holdsBack():
		return true
	}
	t := turns.Get().(*turn)
	if c.input == discarding {
		park = c.discard(t.free)
	} else {
		c.dec.move(t.free)
		park = c.readSome(t)
		t.spend(c.dec.park())
	}
	turns.Put(t)
	return park
}

// holdsBack reports whether the input has to wait.
func (c *Conn) holdsBack() bool { return c.paused || c.greet != nil && c.greet.waits() }

// readSome is turn, with something to read into.
func (c *Conn) readSome(t *turn) (park bool) {
	var (
		read, n int
		drained bool
		err     = c.cut(t) // what came behind the handshake or before a pause
	)
	for err == nil && !drained && read < readTurn && !c.holdsBack() {
		if n, drained, err = c.receive(t); n > 0 {
			read += n
			if e := c.cut(t); e != nil {
				err = e
			}
		}
	}
	c.parking(drained && n > 0, read > 0)
	switch {
	case err == io.EOF:
		c.inputEnded()
		return false
	case err != nil:
		c.fail(err)
		return false
	case read >= readTurn:
		runtime.Gosched() // the others' turn
		return false
	}
	return true
}

// receive reads once.
func (c *Conn) receive(t *turn) (n int, drained bool, err error) {
	if c.dec.full() {
		chunk := make([]byte, readChunk)
		c.dec.move(chunk)
		t.free = chunk
	}
	space := c.dec.space()
	if c.greet != nil {
		// The name lies well within this, so that no more of what follows it
		// is read either before the peer is admitted.
		space = space[:min(len(space), handshakeBytes)]
	}
	n, drained, err = c.t.TryRead(space)
	c.dec.advance(n)
	if err != nil && err != io.EOF {
		err = c.opError("read", err)
	}
	return n, drained, err
}

// discard is turn after Finish: what comes is dropped.
func (c *Conn) discard(p []byte) (park bool) {
	for read := 0; read < readTurn; {
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

// cut takes the complete messages out of what was received and delivers them.
func (c *Conn) cut(t *turn) error {
	bytes := 0
	for c.greet == nil || !c.greet.waits() {
		msg, ok, err := c.dec.next()
		if err != nil {
			c.badInput = true
			c.deliver(t, bytes)
			return err
		}
		if !ok {
			break
		}
		if c.greet != nil {
			if err := c.greeted(msg); err != nil {
				return err
			}
			continue
		}
		t.msgs = append(t.msgs, msg)
		bytes += len(msg)
	}
	c.deliver(t, bytes)
	return nil
}

// deliver hands the messages in t to the hub.
func (c *Conn) deliver(t *turn, bytes int) {
	if len(t.msgs) == 0 {
		return
	}
	c.mu.Lock()
	c.inMsgs += uint64(len(t.msgs))
	c.inBytes += uint64(bytes)
	c.mu.Unlock()
	if c.hub.fan.deliver(c, t.msgs, int64(bytes)+int64(len(t.msgs))*MessageCharge) {
		c.paused = true
	}
	clear(t.msgs)
	t.msgs = t.msgs[:0]
}

// parking keeps the books of a turn at its end, and sets the clocks.
func (c *Conn) parking(doubtful, progress bool) {
	now := c.hub.watch.Now()
	c.mu.Lock()
	if progress {
		c.lastRead, c.quiet = now, now
	}
	c.doubtful = doubtful
	c.partial = c.dec.partial() > 0
	c.holding = c.holdsBack()
	partial := c.partial
	c.mu.Unlock()
	if doubtful {
		c.hub.watch.Arm(&c.clock, c, now+doubt)
	}
	if partial && c.hub.o.FrameTimeout > 0 {
		c.hub.watch.Arm(&c.clock, c, now+c.hub.o.FrameTimeout)
	}
	if c.set.idleTimeout > 0 {
		c.hub.watch.Arm(&c.clock, c, now+c.set.idleTimeout)
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
		if c.dec.partial() > 0 {
			c.endErr = io.ErrUnexpectedEOF
		}
	}
	c.mu.Unlock()
	if c.greet != nil {
		c.fail(io.ErrUnexpectedEOF)
	} else if before == reading {
		c.hub.fan.endedInput(c)
	}
}

// watchPeer is the turn of a reader that has seen the end of the input: it
// stays parked, to see it when the peer dies.
func (c *Conn) watchPeer() (park bool) {
	gone := c.t.Gone()
	switch {
	case gone == nil:
		return true
	case gone != io.EOF:
		c.fail(c.opError("read", gone))
		return false
	case c.set.halfOpen:
		c.fail(c.endErr) // nobody is left to finish the conversation with
		return false
	}
	return true // what is accepted until Ended is taken is still tried, and then reported
}

// Check implements watch.Target: all clocks of a connection.
func (c *Conn) Check(now time.Duration) (next time.Duration) {
	var (
		reason     error
		poll, kick bool
	)
	due := func(at time.Duration) bool {
		if now >= at {
			return true
		}
		if next == 0 || at < next {
			next = at
		}
		return false
	}
	c.mu.Lock()
	if c.over || c.closeErr != nil {
		c.mu.Unlock()
		return 0
	}
	if c.deadline != 0 && due(c.deadline) {
		if c.deadline = 0; c.shaking {
			reason = ErrHandshakeTimeout
		} else {
			c.overdue, kick = true, true
		}
	}
	if c.input == reading && !c.holding && !c.shaking && !c.inCall.Load() {
		if t := c.hub.o.FrameTimeout; t > 0 && c.partial && due(c.quiet+t) {
			reason = ErrFrameTimeout
		}
		if t := c.set.idleTimeout; t > 0 && due(c.quiet+t) {
			reason = ErrIdleTimeout
		}
	}
	if c.doubtful && due(c.lastRead+doubt) {
		c.doubtful, poll = false, true
	}
	stuck := c.out.since != 0 && c.hub.o.WriteTimeout > 0 && c.stuckLocked(now, due)
	c.mu.Unlock()

	switch {
	case reason != nil:
		c.fail(reason)
		return 0
	case stuck:
		c.t.Kick(transport.WriteSide) // the writer tries once more, and decides
	}
	if kick || poll && c.t.Pending() {
		c.t.Kick(transport.ReadSide)
	}
	return next
}

// end is the last act of the reader: it waits for whoever writes, closes the
// descriptor and reports. Nobody else closes: net.Conn.Close waits for the
// callbacks that are running, one of which may be a user's.
func (c *Conn) end() {
	c.mu.Lock()
	c.freezeLocked(ErrNotConnected)
	c.joinWriterLocked()
	report := c.out.report(c.t)
	err := c.closeErr
	if err == nil {
		err = c.out.finish
		if c.out.err != nil && (err == nil || report.UnsentMessages > 0 || report.Cut) {
			err = c.out.err
		}
	}
	err = c.refused(err)
	c.closeErr, c.over = err, true
	cancel := c.cancel
	c.mu.Unlock()

	c.hub.watch.Disarm(&c.clock)
	c.t.Close()
	if cancel != nil {
		cancel(err)
	}
	c.hub.depart(c, Disconnection{Conn: c, Err: err, Report: report})
	if c.greet != nil {
		c.greet.tell(err)
	}
}

// ---- what others ask of the reader ----

// resumeReading tells it that what made it pause is no more.
func (c *Conn) resumeReading() {
	c.mu.Lock()
	c.resume = true
	c.mu.Unlock()
	c.t.Kick(transport.ReadSide)
}

// wakeReader makes it look again whether it can be let in.
func (c *Conn) wakeReader() { c.t.Kick(transport.ReadSide) }

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
	c.t.Kick(transport.ReadSide)
}

// endTaken is told that the user has answered all that the peer has sent.
func (c *Conn) endTaken() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if (c.input == held || c.input == ended) && !c.set.halfOpen && c.closeErr == nil && !c.over {
		c.finishLocked(c.endErr)
	}
}

// leaving reports whether the connection is about to end by itself: its peer
// has finished, or it has failed.
func (c *Conn) leaving() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.input != reading || c.closeErr != nil || c.out.finish != nil || c.out.err != nil
}

// finished reports whether the connection's end has been decided on.
func (c *Conn) finished() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closeErr != nil || c.out.finish != nil
}

// handshaking reports whether the peer is still to be admitted.
func (c *Conn) handshaking() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.shaking
}

// PanicError is why a connection ended, or was refused, whose callback (a
// Handler, a Rule) panicked. Value is nil if the callback left by
// runtime.Goexit.
type PanicError struct {
	Value any
	Stack []byte // as debug.Stack gives it
}

// Error returns one line, without the stack.
func (e *PanicError) Error() string { return fmt.Sprintf("sockhub: panic in a callback: %v", e.Value) }

// Unwrap returns Value, if that is an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// Handler takes what a connection reports, on its reader goroutine.
type Handler interface {
	Message(r *Reply, msg []byte) // a whole message, or a piece of raw input
	Drained(r *Reply)             // all output is with the kernel
	Disconnected(d Disconnection) // the last call
}

// Reply is how a Handler answers.
type Reply struct{}

// Stream is one message too large to buffer.
type Stream struct{}

// Budget lets several hubs share their byte limits.
type Budget struct{}
