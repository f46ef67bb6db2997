package sockhub

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sockhub/sockhub/internal/budget"
	"github.com/sockhub/sockhub/internal/burst"
	"github.com/sockhub/sockhub/internal/outq"
	"github.com/sockhub/sockhub/internal/transport"
)

// Why a message was not accepted, or a peer given up.
var (
	// ErrBackpressure: the queue is full, and the call may not wait.
	ErrBackpressure = errors.New("sockhub: output queue is full")

	// ErrSlowPeer: the peer took nothing for WriteTimeout, or its queue was
	// full under DisconnectPeer.
	ErrSlowPeer = errors.New("sockhub: peer is too slow")
)

// output is a connection's out-queue and what has become of it so far.
// Everything in it is guarded by Conn.mu.
//
// Whoever writes to the transport holds the pen (writing). Who does not get it only
// queues his message. Who gets it writes once himself (tryLocked), or starts the writer
// goroutine, which holds the pen as long as there is output, and then is gone. The
// reader outlives and joins it (joinWriterLocked).
//
// What is sent goes this way, call by call:
//
//	Send                    likewise SendMany (run.flush) and SendFrom (beginFrom)
//	    admitLocked         waits for room, and for its turn; then the message is in q
//	    sendLocked          by whom is it written?
//	writeNow                by the reader, for what its Handler has answered; as
//	    tryLocked           by the sender: once, and what is left by
//	write                   the writer goroutine
//	    writeTurn
//	        nextWrite       from q, or the feed, to w; or Drained, or the FIN
//	        wroteLocked     accounts for what the transport took, and wakes who waits
//	    releaseLocked       gives the pen back, if there is nothing more to do
type output struct {
	// What a Send looks at comes first: see Conn.
	framing *outq.Framing // nil: raw bytes
	limit   int64

	writing bool // somebody has the pen
	inline  bool // the reader has it, in writeNow
	run     bool // a SendMany is between its first message and its last, or there is a feed
	feeding bool // w holds pieces of the feed

	// How far the output's end has come. The queue is written as long as frozen is not
	// set; finish, below, says that the connection ends too.
	fin     bool // after the queue, our end of the stream
	finSent bool // that was attempted
	frozen  bool // nothing more is written: what is left is reported; refuse is set then
	told    bool // a Send was ErrNotConnected

	// Drained: see drainedDue.
	handled bool // it is for a Handler
	deaf    bool // whose Drained does nothing
	unheard bool // it has to wait: nobody has been told of the connection, or another is about to get it
	flushed bool // something was written since the queue was empty last
	waited  bool // output had to wait
	notify  bool // NotifyDrained asked for it
	drained bool // it is due: the reader is to call the Handler

	wantRoom    bool // the reader waits until charge is below limit
	answersFull bool // what its Handler has answered, and was taken in, left no room for more
	fresh       bool // last was in this turn of the reader
	mute        bool // the peer has not answered, as far as the last look could tell: see muteLocked

	// said is the length plus 1 of the handshake's message (Conn.say), which is the
	// first of all and nobody's, until it is written.
	said uint16

	patience uint16 // in seconds: what transport.Patience was when it was asked last; 0: there are no looks

	refuse   error        // what a Send gets now; nil: it is accepted
	q        outq.Queue   // accepted, and nobody writes it yet
	w        outq.Writing // taken out of q by the holder of the pen
	share    budget.Share // of the hub's budget
	accepted counter

	sends   burst.Pace // Sends
	feed    *feed      // the message of a SendFrom that is not wholly written; comes after q
	behind  []segment  // of a Handler's, or of an iterator's that panicked: accepted during a run, and queued at its end
	waiters []*waiter  // Sends that wait, in the order in which they came

	// lacked is the charge of a message that the hub's budget refused when
	// the queue was empty; Drained is due when there is room for it. Else 0.
	lacked int64

	written counter
	last    time.Duration // of the last progress
	stall   stall         // since then
	look    time.Duration // when to look whether what was written is answered; 0: not at all

	finish   error         // not nil: the connection ends after the queue, for this reason
	err      error         // of the write that failed
	failed   time.Duration // when it did
	released chan struct{} // made by who waits for the pen's release, closed by it
	late     *outq.Queue   // of a Handler's, answered before its call saw the end of the output: unsent. nil: none

	dropped counter
	policy  OverflowPolicy

	feeders *feeders // goroutines of Reply.SendFrom; nil: there are none
}

// counter counts messages and the bytes of their bodies.
type counter struct{ msgs, bytes uint64 }

func (n *counter) add(msgs int, bytes int64) {
	n.msgs += uint64(msgs)
	n.bytes += uint64(bytes)
}

// addOne adds one message of any size.
func (n *counter) addOne(size uint64) {
	n.msgs++
	n.bytes += size
}

// waiter is a Send that waits for its turn.
type waiter struct {
	ready chan struct{} // closed, under mu, when it is this waiter's turn
	woken bool
	mine  bool // it is the one that has the run
}

// charge is what everything that was accepted and is not written counts
// against the limit.
func (o *output) charge() int64 {
	n := o.q.Charge() + o.w.Charge() + o.behindCharge()
	if o.feed != nil {
		n += o.feed.pieces.Charge()
	}
	return n
}

// behindCharge is the part of it that waits for the end of a run.
func (o *output) behindCharge() (n int64) {
	for i := range o.behind {
		n += o.behind[i].q.Charge()
		if o.behind[i].from != nil {
			n += pieceSize // as the first that it will read, and because it may be an open file
		}
	}
	return n
}

// len is the number of messages that were accepted and are not written.
func (o *output) len() int {
	n := o.q.Len()
	if o.feed != nil {
		n++
	}
	if !o.feeding {
		n += o.w.Len()
	}
	for i := range o.behind {
		n += o.behind[i].q.Len()
		if o.behind[i].from != nil {
			n++
		}
	}
	return n
}

// answersLate reports whether what a Handler answers is not to be written: another
// goroutine has ended the output during the call, and what was queued before is still on
// its way. When nothing is written any more, q will do, unless some are in late already.
func (o *output) answersLate() bool { return o.refuse != nil && (!o.frozen || o.late != nil) }

// tooLate is where such answers go, for the report to tell of.
func (o *output) tooLate() *outq.Queue {
	if o.late == nil {
		o.late = new(outq.Queue)
	}
	return o.late
}

// empty reports that everything accepted was written, idle that nothing can be
// written now.
func (o *output) empty() bool { return o.idle() && o.feed == nil && len(o.behind) == 0 }
func (o *output) idle() bool {
	return o.q.Empty() && o.w.Empty() && (o.feed == nil || o.feed.pieces.Empty() && o.feed.file == nil)
}

// ---- accepting messages ----

// Send queues msg for the peer, and waits for room in the queue until ctx ends
// if the policy is BlockSender; where there is room, it does not look at ctx. A nil
// error means that the message is in the queue, exactly once; an error means that
// nothing of it is.
//
// Send takes ownership of msg, as a channel send does: it must not be changed
// afterwards, but may be sent to others too. Nothing tells when it may be used again, not
// even Drained, so it should not come from a pool; what a Report yields as unsent is the
// user's again.
//
// Errors: ErrMessageTooLarge; ErrClosed after our Close, Finish, CloseWrite or
// Shutdown, else ErrNotConnected; ErrBackpressure under DropNewest; ErrSlowPeer
// under DisconnectPeer; the cause of ctx's end.
func (c *Conn) Send(ctx context.Context, msg []byte) error {
	return c.send(ctx, len(msg), func(q *outq.Queue, f *outq.Framing) { appendTo(q, f, msg) })
}

// TrySend is Send, but ErrBackpressure instead of waiting.
func (c *Conn) TrySend(msg []byte) error { return c.Send(noWait, msg) }

// noWait is the context of a send that does not wait: one that has ended, and
// whose cause is what the caller gets when there is no room.
var noWait = func() context.Context {
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(ErrBackpressure)
	return ctx
}()

// SendParts is Send of one message that is made of parts, which are not joined
// in memory if they are large.
func (c *Conn) SendParts(ctx context.Context, parts ...[]byte) error {
	size := sizeOf(parts)
	return c.send(ctx, size, func(q *outq.Queue, f *outq.Framing) { appendPartsTo(q, f, parts, size) })
}

// sizeOf is how many bytes there are in parts.
func sizeOf(parts [][]byte) (n int) {
	for _, p := range parts {
		n += len(p)
	}
	return n
}

// lends is set when a connection of any hub has ReuseBuffers: from then on, what
// is to be sent may be a message that was received and is lent.
var lends atomic.Bool

// appendTo queues a message that may be one that was received.
func appendTo(q *outq.Queue, f *outq.Framing, msg []byte) {
	if lends.Load() {
		q.AppendBorrowed(f, msg)
	} else {
		q.Append(f, msg)
	}
}

// appendPartsTo is appendTo for one that is made of parts, of size bytes.
func appendPartsTo(q *outq.Queue, f *outq.Framing, parts [][]byte, size int) {
	if lends.Load() {
		q.AppendPartsBorrowed(f, parts, size)
	} else {
		q.AppendParts(f, parts, size)
	}
}

// send queues one message of size bytes.
func (c *Conn) send(ctx context.Context, size int, put func(*outq.Queue, *outq.Framing)) error {
	if err := c.checkSize(size); err != nil {
		return err
	}
	return c.queue(ctx, size, put)
}

// queue is send for a message whose size was checked.
func (c *Conn) queue(ctx context.Context, size int, put func(*outq.Queue, *outq.Framing)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.set.fits(c.out.framing, uint64(size)); err != nil {
		return err
	}
	if err := c.admitLocked(ctx, int64(size)+MessageCharge, false); err != nil {
		return err
	}
	if err := c.set.fits(c.out.framing, uint64(size)); err != nil { // SetRaw while it waited
		return c.unadmitLocked(err)
	}
	if c.set.framing == nil {
		put(&c.out.q, c.out.framing)
	} else {
		c.frameLocked(func() { put(&c.out.q, c.out.framing) })
	}
	c.out.accepted.add(1, int64(size))
	c.sendLocked()
	return nil
}

// frameLocked calls what calls a Framing of the user's, behind admitLocked. If that panics,
// as it does where it cannot express the message, nothing was accepted.
func (c *Conn) frameLocked(put func()) {
	framed := false
	defer func() {
		if !framed {
			c.unadmitLocked(nil)
		}
	}()
	put()
	framed = true
}

// sendLocked sees to it that what was accepted is written: by the caller, at
// once, if that saves waking a goroutine and costs no batching; else by the
// writer goroutine. A connection that is sent one message for each batch that
// its user handles, or for each turn of a Handler, gets it from the caller; of a
// burst, what comes behind the first message is queued, and after a burst the
// first one too. So a connection that is asked and answers has one system call
// for each answer and no goroutine, and a stream of messages leaves in large
// writes. Datagrams are gathered by their socket, from all of its connections, so
// that to write one at once is to hand it over.
func (c *Conn) sendLocked() {
	o := &c.out
	c.hub.noteSend()
	single := !o.sends.Next(c.hub.epoch.Load())
	if (single || c.set.sessions()) && !o.writing && len(o.waiters) == 0 && !o.idle() {
		o.writing = true
		c.tryLocked()
		return
	}
	c.startWriterLocked()
	if len(o.waiters) > 0 {
		c.roomLocked()
	}
}

// noteSend makes the epoch end with the next turn of a Handler's reader.
func (h *Hub) noteSend() {
	if !h.sent.Load() {
		h.sent.Store(true)
	}
}

// checkFramed says whether a message of this size may be sent with this framing.
func (c *Conn) checkFramed(framing *outq.Framing, size int) error {
	if err := c.checkSize(size); err != nil {
		return err
	}
	return c.set.fits(framing, uint64(size))
}

// checkSize is checkFramed where it is not known yet how the message is framed.
func (c *Conn) checkSize(size int) error {
	if size > 0 && uint64(size) <= c.set.maxMessage {
		return nil // and nothing else can be wrong with it
	}
	return c.checkOdd(size)
}

// checkOdd is checkSize of the few that have to be looked at.
func (c *Conn) checkOdd(size int) error {
	if uint64(size) > c.set.maxMessage {
		return tooLarge(uint64(size))
	}
	return c.set.checkPacket(uint64(size))
}

func tooLarge(size uint64) error { return fmt.Errorf("%w: %d bytes to send", ErrMessageTooLarge, size) }

// fits says whether framing, which may be nil for raw bytes, can express a message of
// this size.
func (s *settings) fits(framing *outq.Framing, size uint64) error {
	if s.framing == nil || framing == nil || expressible(s.framing, size) {
		return nil
	}
	return tooLarge(size)
}

// checkPacket says whether a message of this size can be a packet, if it is to be one.
func (s *settings) checkPacket(size uint64) error {
	switch {
	case s.packets() && size > s.maxMessage:
		return tooLarge(size)
	case size == 0 && s.network == "unixpacket":
		return fmt.Errorf("sockhub: an empty packet would be the end: %w", errors.ErrUnsupported)
	}
	return nil
}

// admitLocked returns when messages of this charge may be queued, or why none
// may. mine: the caller is in a run of its own. It gives mu up while it waits.
func (c *Conn) admitLocked(ctx context.Context, charge int64, mine bool) error {
	o := &c.out
	var w *waiter // nil: has not waited
	for {
		free := mine || !o.run && (len(o.waiters) == 0 || o.waiters[0] == w)
		if o.refuse != nil {
			return c.leaveLineLocked(w, c.refusalLocked())
		}
		if free && (c.hasRoomLocked(charge, mine) || c.makeRoomLocked(charge, mine) || mine && c.passLocked(charge)) {
			o.lacked = 0
			return c.leaveLineLocked(w, nil)
		}
		if o.refuse != nil { // makeRoomLocked has given the peer up
			return c.leaveLineLocked(w, ErrSlowPeer)
		}
		o.waited = true // or would have to, which is for Drained to tell too
		if o.empty() && !o.writing && (o.lacked == 0 || charge < o.lacked) {
			o.lacked = charge // no writer will tell: check does
		}
		switch {
		case o.policy == DropNewest && free:
			return c.leaveLineLocked(w, ErrBackpressure)
		case ctx.Err() != nil:
			return c.leaveLineLocked(w, context.Cause(ctx))
		case w == nil && mine:
			w = &waiter{ready: make(chan struct{}), mine: true}
			o.waiters = slices.Insert(o.waiters, 0, w)
		case w == nil:
			w = &waiter{ready: make(chan struct{})}
			o.waiters = append(o.waiters, w)
		case w.woken:
			w.ready, w.woken = make(chan struct{}), false
		}
		ready := w.ready
		c.mu.Unlock()
		select {
		case <-ready:
		case <-ctx.Done():
		}
		c.mu.Lock()
	}
}

// refusalLocked is what a Send gets now, if that is refused. Its caller knows from then
// on that the connection has ended.
func (c *Conn) refusalLocked() error {
	o := &c.out
	o.told = o.told || o.refuse == ErrNotConnected
	return o.refuse
}

// sendRefusal is refusalLocked for who does not have mu.
func (c *Conn) sendRefusal() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.refusalLocked()
}

// leaveLineLocked takes w out of the line; the next one may then go.
func (c *Conn) leaveLineLocked(w *waiter, err error) error {
	if w != nil {
		c.out.waiters = slices.DeleteFunc(c.out.waiters, func(x *waiter) bool { return x == w })
	}
	if err != nil {
		c.roomLocked()
		if w != nil && c.out.lacked != 0 {
			c.arm(c.hub.watch.Now()) // who was refused because w stood before him may have room
		}
	}
	return err
}

// unadmitLocked gives back the room that admitLocked has given, as err is in the way.
func (c *Conn) unadmitLocked(err error) error {
	c.hub.budget.out.Fell(&c.out.share, c.out.charge())
	c.roomLocked()
	return err
}

// roomLocked wakes the first who waits, if his turn has come. It is called
// whenever that may have become true: charge fell, a run ended, one left the
// line or was accepted, the queue was closed (then all go).
func (c *Conn) roomLocked() {
	o := &c.out
	if o.wantRoom && (o.refuse != nil || c.mayAnswerLocked()) {
		o.wantRoom = false
		c.resume = true
		c.kickReader() // which may wait for a Stream that is behind what waits for room
	}
	for i, w := range o.waiters {
		if o.refuse == nil && (i > 0 || o.run && !w.mine || !c.mayEnterLocked(w)) {
			return
		}
		if !w.woken {
			w.woken = true
			close(w.ready)
		}
	}
}

// mayEnterLocked reports whether it is worth while that w looks for room. Under DropOldest
// it always is, as w can make some, where the budget lets it.
func (c *Conn) mayEnterLocked(w *waiter) bool {
	o := &c.out
	return o.policy == DropOldest || c.hasRoomLocked(0, w.mine) || w.mine && o.onlyBehind()
}

// hasRoomLocked reports whether messages of this charge may be queued: as long
// as the queue is below its limit, and the budget has room. If it has not, the
// connection is told when it may have. mine: they are of the run under way, to which
// what waits for its end is nothing.
func (c *Conn) hasRoomLocked(charge int64, mine bool) bool {
	o, b := &c.out, c.hub.budget.out
	queued := o.charge()
	if o.full(queued, mine) {
		return false
	}
	if b.Take(&o.share, queued+charge, queued == 0) {
		return true
	}
	b.Wait(c)
	return b.Take(&o.share, queued+charge, queued == 0) // what fell before that has told nobody
}

// full reports whether a queue of this charge is at its limit: for the run under way, if
// mine, without what waits for its end, as that cannot become less before.
func (o *output) full(charge int64, mine bool) bool {
	if mine {
		charge -= o.behindCharge()
	}
	return charge >= o.limit
}

// onlyBehind reports whether all that is queued waits for the end of the run under way.
func (o *output) onlyBehind() bool { return o.idle() && o.feed == nil && len(o.behind) > 0 }

// passLocked lets a run go on to which the budget has no room, where nothing but what
// waits for its end is queued: answers, which may have taken it all. Like them it is not
// refused, a portion at a time.
func (c *Conn) passLocked(charge int64) bool {
	if !c.out.onlyBehind() {
		return false
	}
	c.chargeAnswersLocked(c.out.charge()+charge, false)
	return true
}

// mayAnswerLocked reports whether there is room for what a Handler may answer.
// That is never refused, and may have taken of the budget what there was not.
func (c *Conn) mayAnswerLocked() bool {
	o, b := &c.out, c.hub.budget.out
	if !c.hasRoomLocked(0, false) {
		return false
	}
	if !b.Overdrawn(&o.share) {
		return true
	}
	b.Wait(c)
	return !b.Overdrawn(&o.share) // as in hasRoomLocked
}

// roomAgainLocked reports whether Drained is due for a message that was refused
// when the queue was empty. Whoever is told has to be faster than others then:
// nothing is kept for him.
func (c *Conn) roomAgainLocked() bool {
	o := &c.out
	if o.lacked == 0 || o.frozen || o.writing || o.unheard || !o.empty() || !c.hasRoomLocked(o.lacked, false) {
		return false
	}
	c.hub.budget.out.Fell(&o.share, 0)
	o.lacked, o.waited = 0, false
	return true
}

// makeRoomLocked does what the policy says about a full queue, and reports
// whether there is room then.
func (c *Conn) makeRoomLocked(charge int64, mine bool) bool {
	o := &c.out
	full := o.full(o.charge(), mine) // else it is the budget that has no room
	switch o.policy {
	case DropOldest:
		left := o.charge() - o.q.Charge()
		could := func() bool { return c.hub.budget.out.Could(&o.share, left+charge, left == 0) }
		if !could() {
			c.hub.budget.out.Wait(c)
			if !could() { // as in hasRoomLocked
				return false // even with nothing else in the queue
			}
		}
		if o.said > 0 && o.w.Empty() {
			o.take() // its writer has not begun, and OK is not to be dropped
		}
		for !o.q.Empty() {
			if !full && c.hasRoomLocked(charge, mine) {
				return true
			}
			o.dropped.add(1, int64(o.q.DropFirst()))
			c.hub.budget.out.Fell(&o.share, o.charge())
			full = o.full(o.charge(), mine)
		}
		// What is being written cannot be dropped any more. It alone may
		// fill the queue: then one more message fits, and is the oldest.
		return full && c.hub.budget.out.Take(&o.share, o.charge()+charge, false) || c.hasRoomLocked(charge, mine)
	case DisconnectPeer:
		if full {
			c.giveUpLocked()
		}
	}
	return false
}

// ---- broadcasts ----

// Small messages that are broadcast in bursts are kept once for all connections, in a cast.
// A connection joins it that would only queue the message: nobody has had its lock since
// then, as gatheringLock has it leave; and while a Handler's answers gather, which takes no
// lock, it is in none.
//
// With a thousand connections and 16 messages in flight the server spends 290 ns of
// its own on a message for one of them, and 650 if each visits each connection,
// whose memory is out of the caches by the time that the next one comes.
type (
	cast  = burst.Cast[*Conn]
	casts = burst.Casts[*Conn]
)

const (
	castCharge = 16 << 10 // limit of a cast, or the budget's floor if that is less
	castFew    = 3        // so many are visited always: a cast has to be worth its memory
)

// newCast begins a cast, to which the first castFew connections do not belong.
func (h *Hub) newCast(first []byte) *cast {
	k := h.casts.Begin(first, min(castCharge, h.budget.out.Floor()))
	for range castFew {
		k.Pass()
	}
	return k
}

// join has c join a cast, if a message of this size would be queued and nothing else would
// have to be seen to.
func (c *Conn) join(k *cast, size int) (joined bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := &c.out
	if o.framing != outq.Default || c.checkSize(size) != nil || c.set.sessions() || o.refuse != nil || o.run ||
		len(o.waiters) > 0 || c.mu.gathering.Load() != nil {
		return false
	}
	if room := o.charge() + k.Limit(); int64(size)+MessageCharge > k.Limit() || room > o.limit || !c.hub.budget.out.Has(&o.share, room) {
		return false
	}
	epoch := c.hub.epoch.Load()
	if !o.writing && !o.sends.Would(epoch) {
		return false // to be written at once: see sendLocked
	}
	o.sends.Next(epoch)
	c.hub.noteSend()
	o.lacked = 0
	c.mu.cast, c.mu.seat = k, k.Join(c.set.maxMessage)
	if !o.writing {
		c.runWriterLocked()
	}
	return true
}

// leaveCastLocked queues what c has of its cast.
func (c *Conn) leaveCastLocked() {
	k, o := c.mu.cast, &c.out
	c.mu.cast = nil
	msgs, bytes := k.Leave(c.mu.seat, &o.q)
	o.accepted.add(msgs, bytes)
	o.sends.More(msgs - 1) // the first was counted
}

// broadcast is one Broadcast.
type broadcast struct {
	hub     *Hub
	msg     []byte
	n       int         // accepted by
	refused []SendError // by the others

	again *cast   // what this may be added to, as long as its connections are yielded; or nil
	to    []*Conn // these, by their seats; if again is nil, those that were visited, if begin
	seen  int     // how many of again's were yielded, and have not got the message yet
	begin bool    // a cast may be begun
	made  *cast   // that was, with this message as the first
}

// next is for a connection that was yielded.
func (b *broadcast) next(c *Conn) {
	if b.again != nil {
		if b.seen < len(b.to) && b.to[b.seen] == c {
			b.seen++
			return
		}
		b.differ()
	}
	b.visit(c)
}

// differ is for when this broadcast cannot be another's repetition.
func (b *broadcast) differ() {
	seen := b.to[:b.seen]
	b.again, b.to = nil, nil
	for _, c := range seen {
		b.visit(c)
	}
}

func (b *broadcast) visit(c *Conn) {
	if b.begin {
		if b.to = append(b.to, c); len(b.to) > castFew {
			if b.made == nil {
				b.made = b.hub.newCast(b.msg)
			}
			if c.join(b.made, len(b.msg)) {
				b.n++
				return
			}
			b.made.Pass()
		}
	}
	b.send(c)
}

func (b *broadcast) send(c *Conn) {
	if err := c.TrySend(b.msg); err != nil {
		b.refused = append(b.refused, SendError{c, err})
	} else {
		b.n++
	}
}

// end is for when all were yielded.
func (b *broadcast) end() {
	if k := b.again; k != nil && b.seen == len(b.to) {
		b.hub.noteSend()
		if n, others, ok := k.Add(b.msg); ok {
			b.n += n
			for _, i := range others {
				b.send(b.to[i])
			}
			return
		}
		k.Drop()
	}
	if b.again != nil {
		b.differ()
	}
	if b.made != nil {
		b.hub.casts.Publish(b.made, b.to)
	}
}

// ---- runs: SendMany ----

// SendMany queues the messages that m yields, in one run: nobody else's come
// between them. It waits for room as Send does. It returns how many were
// accepted, which are the first n that m yielded; m may have been asked for
// some more.
//
// What m yields is gathered, and queued in portions: when it is charged 256 KiB, or
// as much as the queue had room for if that is less, and when m has ended. What
// others send before the first portion is queued comes before it; what they send
// from then on waits for the end of the run. So m should not wait for something:
// what it has yielded before would wait with it, and so would they. For messages
// that come one at a time, use Send. What a Handler of the connection answers meanwhile
// is accepted, comes behind the run, and takes none of its room.
//
// m runs on the caller's goroutine, without any lock of the hub, and must not send
// to this connection. If m panics, what it yielded before is queued.
//
// In a loop over Events whose answers go to peers that do the same, use TrySend
// or another goroutine: two loops that wait for each other's queues stand still
// until WriteTimeout.
func (c *Conn) SendMany(ctx context.Context, m iter.Seq[[]byte]) (n int, err error) {
	r := run{c: c, ctx: ctx}
	if err := r.flush(); err != nil { // learns how much room there is
		return 0, err
	}
	defer func() { n = r.end() }() // also when m panics
	for msg := range m {
		r.yielded = true
		// As below, in one piece: most messages go this way.
		if uint(len(msg)-1) < uint(r.small) && r.side.Charge() < r.room && r.side.AppendFitting(msg) {
			continue
		}
		if err := c.checkFramed(r.framing, len(msg)); err != nil {
			return 0, errors.Join(r.flush(), err)
		}
		if r.side.Charge() >= r.room {
			if err := r.flush(); err != nil {
				return 0, err
			}
		}
		appendTo(&r.side, r.framing, msg)
	}
	r.yielded = false
	return 0, r.flush()
}

// run is a SendMany under way.
type run struct {
	c       *Conn
	ctx     context.Context
	framing *outq.Framing
	side    outq.Queue // gathered, and accepted at the next flush
	room    int64      // charge that may be gathered before that
	small   int        // longest message of which nothing else is to be asked
	begun   bool       // the first flush was, so c.out.run is ours
	yielded bool       // m has not come to its end
	n       int        // accepted
}

// flush queues what was gathered, when there is room for it.
func (r *run) flush() error {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	if err := r.c.refusalLocked(); err != nil {
		return err
	}
	if !r.side.Empty() {
		if err := r.c.admitLocked(r.ctx, r.side.Charge(), r.begun); err != nil {
			r.side, r.yielded = outq.Queue{}, false
			return err
		}
		r.acceptLocked()
	}
	o := &r.c.out
	r.room = min(o.limit-o.charge()+o.behindCharge(), portion)
	r.framing, r.small = o.framing, 0
	if r.framing == outq.Default {
		r.small = int(min(outq.Inline, r.c.set.maxMessage))
	}
	return nil
}

func (r *run) acceptLocked() {
	msgs, bytes := r.side.Len(), r.side.Bytes()
	r.c.out.run, r.begun = true, true
	r.c.out.q.Absorb(&r.side)
	r.c.out.accepted.add(msgs, bytes)
	r.n += msgs
	if r.yielded { // more will come
		r.c.startWriterLocked()
	}
}

// end lets others send again and returns how many messages were accepted. If
// m panicked, what it yielded is accepted now, whatever the limit says: the
// panic is not to wait for a peer.
func (r *run) end() int {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	if o := &r.c.out; r.yielded && !r.side.Empty() && o.refuse == nil {
		r.c.chargeAnswersLocked(o.charge()+r.side.Charge(), o.empty() && r.side.Len() == 1) // like answers, it is not refused
		if !o.run || r.begun {
			r.acceptLocked()
		} else { // behind somebody else's run
			r.n += r.side.Len()
			o.accepted.add(r.side.Len(), r.side.Bytes())
			o.behindRun().Splice(&r.side)
		}
	}
	if r.begun {
		r.c.endRunLocked()
	}
	if r.side.Empty() {
		r.side.Free()
	}
	return r.n
}

// segment is what was accepted during a run that is not its sender's, and could
// not wait for its end: messages, then perhaps one of a reader's.
type segment struct {
	q    outq.Queue
	from *feed
}

// behindRun is the queue of what is accepted during the run under way, and comes
// behind it.
func (o *output) behindRun() *outq.Queue {
	if last := len(o.behind) - 1; last < 0 || o.behind[last].from != nil {
		o.behind = append(o.behind, segment{})
	}
	return &o.behind[len(o.behind)-1].q
}

// endRunLocked lets others send again, but first what was accepted meanwhile.
func (c *Conn) endRunLocked() {
	o := &c.out
	if o.frozen {
		o.run = false
		return // what is left is reported
	}
	for o.run = false; len(o.behind) > 0 && !o.run; o.behind = o.behind[1:] {
		o.q.Splice(&o.behind[0].q)
		if f := o.behind[0].from; f != nil {
			c.startFeederLocked(f)
		}
	}
	if len(o.behind) == 0 {
		o.behind = nil
	}
	c.hub.budget.out.Fell(&o.share, o.charge()) // a feed that has begun counts what it has read
	c.sendLocked()
	c.roomLocked()
	switch {
	case o.lacked == 0:
	case o.empty() && !o.writing:
		c.arm(c.hub.watch.Now()) // it was the run that had refused it: check tells that there is room
	default:
		o.lacked = 0 // the writer does
	}
}

// portion is the charge after which SendMany hands over what it has, so that the
// writer has something to do meanwhile.
const portion = 256 << 10

// NotifyDrained asks for one Drained: now if nothing is queued, else when
// everything queued is with the kernel.
func (c *Conn) NotifyDrained() {
	c.mu.Lock()
	now := c.out.empty() && !c.out.writing && !c.over && !c.out.unheard
	c.out.notify = !now && !c.over
	handled := now && c.tellDrainedLocked()
	c.mu.Unlock()
	if now && !handled {
		c.drainedForHub()
	}
}

// drainedForHub has the hub tell of Drained. If a Handler gets the connection just now, it is
// for that.
func (c *Conn) drainedForHub() {
	if !c.hub.fan.drained(c) {
		c.NotifyDrained()
	}
}

// tellDrainedLocked makes the reader tell the Handler. Without one it returns
// false: then it is for the hub to tell, by drainedForHub without mu.
func (c *Conn) tellDrainedLocked() bool {
	if c.out.handled && !c.out.deaf {
		c.out.drained = true
		c.kickReader()
	}
	return c.out.handled
}

// ---- messages from a reader: SendFrom ----

// A feed is a message whose body comes in pieces from a reader of the user's.
// From its first piece on, it holds the run until its last one is written. Its
// fields are guarded by Conn.mu, but size, from, framing and moved, which are constant.
type feed struct {
	size      uint64
	from      io.ReadCloser // of Reply.SendFrom, else nil
	framing   *outq.Framing // of that call
	closing   sync.Once     // of from
	pieces    outq.Queue    // not taken by the writer
	queued    int           // pieces that were queued
	fed       int           // and of these written
	file      *os.File      // the rest comes from its descriptor, behind the pieces; nil: not, or not any more
	left      uint64        // bytes of that
	fileErr   error         // why it did not come to its end
	wire      uint64        // bytes written, the header's included
	header    int
	complete  bool // the last piece was queued
	withdraw  bool // it is to leave the queue if nothing of it was written
	withdrawn bool // it has left it so, and its feeder feeds no more

	// moved has capacity 1. It is sent to without waiting when the feeder may have to look
	// again: something was written, the file is done, or the output has frozen. It is never
	// closed.
	moved chan struct{}
}

const (
	pieceSize = 64 << 10
	window    = 4 // pieces of a message that are read ahead of the writer
)

// SendFrom sends one message of size bytes that it reads from r, of any size:
// MaxMessage does not count, and no more than 256 KiB of it are in memory; where
// r is an *os.File of ordinary data, the system sends it without its coming
// through memory of the program's (Linux, TCP and Unix sockets, no TLS). It
// waits for room as Send does, and returns when r has been read. It reads 64 KiB at a
// time, and sends them when it has them. From the first ones on, and
// until the message is written, other Sends to this connection wait.
//
// If r fails or ends early, or ctx ends (which does not interrupt a Read), before
// the first byte was written, nothing was accepted; after that the message is cut
// and the connection closed, with the same error as its reason. If r panics, that
// is a failure too.
//
// What r has beyond size is not read, and r is not closed; Reply.SendFrom does that.
//
// Errors: those of Send, with ErrMessageTooLarge only where the Framing cannot
// express size, or a packet not hold it; r's error, wrapped, which matches
// io.ErrUnexpectedEOF if r ended early; the cause of ctx's end; ErrNotConnected, or
// ErrClosed, also if the connection ended in the middle, and so the message is cut.
func (c *Conn) SendFrom(ctx context.Context, size uint64, r io.Reader) error {
	if err := c.set.checkPacket(size); err != nil {
		return err
	}
	c.mu.Lock()
	err := c.set.fits(c.out.framing, size) // before r is read, for nothing
	c.mu.Unlock()
	if err != nil {
		return err
	}
	first := make([]byte, min(size, pieceSize))
	over, err := readFull(r, first, func() error { return c.sendOver(ctx) })
	switch {
	case over != nil:
		return over
	case err != nil:
		return fromError(err)
	}
	if uint64(len(first)) == size {
		return c.queue(ctx, len(first), func(q *outq.Queue, f *outq.Framing) { q.Append(f, first) })
	}
	f := &feed{size: size, moved: make(chan struct{}, 1)}
	if err := c.beginFrom(ctx, f, first); err != nil {
		return err
	}
	return c.feedRest(ctx, f, r, first)
}

// sendOver is why a message need not be read on of which nothing is accepted yet, or nil.
func (c *Conn) sendOver(ctx context.Context) error {
	return cmp.Or(c.sendRefusal(), context.Cause(ctx))
}

// beginFrom has a feed accepted.
func (c *Conn) beginFrom(ctx context.Context, f *feed, first []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.admitLocked(ctx, pieceSize, false); err != nil {
		return err
	}
	if err := c.set.fits(c.out.framing, f.size); err != nil { // it was raw when its caller looked
		return c.unadmitLocked(err)
	}
	c.frameLocked(func() { f.begin(c.out.framing, first) })
	c.out.run = true
	c.out.accepted.addOne(f.size)
	c.queueFeedLocked(f)
	return nil
}

// readFull is io.ReadFull, which believes whatever count a reader returns. Between two
// Reads it asks whether to stop, and returns what that says as over. err is r's failure.
func readFull(r io.Reader, p []byte, stop func() error) (over, err error) {
	for first := true; len(p) > 0 && err == nil; first = false {
		if !first {
			if over = stop(); over != nil {
				return over, nil
			}
		}
		var n int
		if n, err = r.Read(p); n < 0 || n > len(p) {
			return nil, errors.New("Read returned an impossible count")
		}
		p = p[n:]
	}
	if len(p) == 0 {
		err = nil
	}
	return nil, err
}

// fromError is a reader's failure as its caller is told. Whenever it ends before it has
// given what was announced, that is unexpected.
func fromError(err error) error {
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("sockhub: message from a reader: %w", err)
}

// begin makes the first piece, with the header.
func (f *feed) begin(framing *outq.Framing, first []byte) {
	f.pieces.Append(&outq.Framing{Append: func(dst []byte, _ uint64) []byte {
		if framing == nil {
			return dst
		}
		at := len(dst)
		dst = framing.Append(dst, f.size)
		f.header = len(dst) - at
		return dst
	}}, first)
	f.queued = 1
	f.complete = uint64(len(first)) == f.size
}

// queueFeedLocked makes it the one that is written when the queue is empty.
func (c *Conn) queueFeedLocked(f *feed) {
	c.out.feed = f
	c.startWriterLocked()
}

// feedRest queues what comes behind the first piece.
func (c *Conn) feedRest(ctx context.Context, f *feed, r io.Reader, first []byte) error {
	returned := false
	defer func() {
		if !returned && f.from == nil { // else feedFrom sees it
			c.cutFeed(f, fromError(errReaderLeft))
		}
	}()
	err := c.feedPieces(ctx, f, r, first)
	returned = true
	return err
}

var errReaderLeft = errors.New("it has panicked, or ended its goroutine")

func (c *Conn) feedPieces(ctx context.Context, f *feed, r io.Reader, first []byte) error {
	var buffers [window][]byte
	buffers[0] = first
	left := f.size - uint64(len(first))
	if file := c.fileToSend(r); file != nil {
		var err error
		if left, err = c.feedFile(ctx, f, file, left); err != nil {
			return err
		}
	}
	stop := func() error { return c.feedOver(ctx, f) }
	for left > 0 {
		if err := c.awaitFeed(ctx, f, func() bool { return c.mayReadPieceLocked(f, &buffers) }); err != nil {
			return err
		}
		if over := stop(); over != nil {
			return over
		}
		i := f.queued % window // only this goroutine writes it
		if buffers[i] == nil {
			buffers[i] = make([]byte, pieceSize)
		}
		piece := buffers[i][:min(left, pieceSize)]
		over, err := readFull(r, piece, stop)
		switch {
		case over != nil:
			return over
		case err != nil:
			return c.cutFeed(f, fromError(err))
		}
		left -= uint64(len(piece))
		c.mu.Lock()
		if c.out.frozen {
			c.mu.Unlock()
			return c.sendRefusal()
		}
		f.pieces.Append(nil, piece)
		f.queued++
		f.complete = left == 0
		c.chargeAnswersLocked(c.out.charge(), false)
		c.startWriterLocked()
		c.mu.Unlock()
	}
	return nil
}

// mayReadPieceLocked reports whether another piece is to be read: always when nothing of
// the message waits to be written, else as far as the hub's budget has room. Where it has
// none, the buffers that wait for a piece are let go.
func (c *Conn) mayReadPieceLocked(f *feed, buffers *[window][]byte) bool {
	switch o, n := &c.out, f.queued-f.fed; {
	case n == window:
		return false
	case n == 0, c.hub.budget.out.Left(&o.share, o.charge()) >= pieceSize+MessageCharge:
		return true
	}
	for i := f.queued; i < f.fed+window; i++ {
		buffers[i%window] = nil
	}
	return false
}

// fileToSend is the file that r reads, if the system can send it without its
// coming through here.
func (c *Conn) fileToSend(r io.Reader) *os.File {
	file, ok := r.(*os.File)
	if _, can := c.t.(transport.FileSender); !ok || !can {
		return nil
	}
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil
	}
	return file
}

// feedFile makes the writer send the next n bytes of a file, and waits for that.
// What it returns is left for others to send, because the system could not.
func (c *Conn) feedFile(ctx context.Context, f *feed, file *os.File, n uint64) (left uint64, err error) {
	c.mu.Lock()
	if c.out.frozen {
		c.mu.Unlock()
		return 0, c.sendRefusal()
	}
	f.file, f.left = file, n
	c.startWriterLocked()
	c.mu.Unlock()
	err = c.awaitFeed(ctx, f, func() bool { return f.file == nil })
	c.mu.Lock()
	f.file = nil
	left, failed := f.left, f.fileErr
	c.mu.Unlock()
	switch {
	case left == 0 && (err == nil || ctx.Err() == nil):
		return 0, nil // whatever happened to the connection then, if it was not we who ended it
	case err != nil:
		return 0, err
	case failed == transport.ErrNoFile:
		return left, nil
	default:
		return 0, c.cutFeed(f, fromError(failed))
	}
}

// awaitFeed waits until ready, which is called with mu held.
func (c *Conn) awaitFeed(ctx context.Context, f *feed, ready func() bool) error {
	for {
		c.mu.Lock()
		frozen, open := c.out.frozen, ready()
		c.mu.Unlock()
		switch {
		case frozen:
			return c.sendRefusal()
		case open:
			return nil
		}
		select {
		case <-f.moved:
		case <-ctx.Done():
			return c.cutFeed(f, context.Cause(ctx))
		}
	}
}

// feedOver is why no more of a message is wanted that is not complete, or nil: its
// connection has ended, or ctx, whose end withdraws or cuts it.
func (c *Conn) feedOver(ctx context.Context, f *feed) error {
	c.mu.Lock()
	frozen := c.out.frozen
	c.mu.Unlock()
	switch {
	case frozen:
		return c.sendRefusal()
	case ctx.Err() != nil:
		return c.cutFeed(f, context.Cause(ctx))
	}
	return nil
}

// cutFeed withdraws the message, or cuts it and ends the connection if it has
// begun to leave. That of a Reply.SendFrom, whose caller can be told nothing any more,
// always ends it.
func (c *Conn) cutFeed(f *feed, err error) error {
	if f.from != nil {
		c.fail(err)
		return err
	}
	c.mu.Lock()
	f.withdraw = true
	for f.wire == 0 && !f.withdrawn && !c.out.frozen {
		if !c.out.writing || !c.out.feeding {
			c.withdrawLocked()
			break
		}
		if c.t.WritesWhole() {
			f.withdraw = false
			break // who knows whether its first byte was written
		}
		c.t.Kick(transport.WriteSide) // the writer withdraws it, or has written
		c.mu.Unlock()
		<-f.moved
		c.mu.Lock()
	}
	withdrawn, whole := f.withdrawn, !f.withdrawn && c.out.feed != f
	c.mu.Unlock()
	switch {
	case whole:
		return nil // it was written to its end meanwhile
	case !withdrawn:
		c.fail(err)
	}
	return err
}

// withdrawLocked takes the feed out of the queue, unless it has begun to leave.
func (c *Conn) withdrawLocked() {
	o := &c.out
	f := o.feed
	f.withdraw = false
	if f.wire > 0 {
		f.signal()
		return
	}
	if o.feeding {
		o.w, o.feeding = outq.Writing{}, false
	}
	o.feed = nil
	o.accepted.msgs--
	o.accepted.bytes -= f.size
	f.withdrawn = true
	f.signal()
	c.hub.budget.out.Fell(&o.share, o.charge())
	c.endRunLocked()
}

// closeFeed closes the reader of a Reply.SendFrom, once. That is a callback of the
// user's too, and however it leaves, it ends the connection alone: so it has a
// goroutine of its own, which is waited for.
func (c *Conn) closeFeed(f *feed) {
	f.closing.Do(func() {
		closed := make(chan struct{})
		go c.callClose(f, closed)
		<-closed
	})
}

func (c *Conn) callClose(f *feed, closed chan<- struct{}) {
	defer close(closed)
	guarded(func() { f.from.Close() }, c.callLeft)
}

// callLeft is told that a callback has left in a way that it should not, which may
// be when the connection is ending already.
func (c *Conn) callLeft(err *PanicError) {
	c.mu.Lock()
	late := c.closeErr != nil
	c.mu.Unlock()
	if late {
		c.hub.countPanic()
	} else {
		c.fail(err)
	}
}

// signal makes the feeder look again.
func (f *feed) signal() { nudge(f.moved) }

// fedLocked accounts for n written bytes of the feed, which completed so many
// pieces.
func (c *Conn) fedLocked(pieces, n int) {
	f := c.out.feed
	f.fed += pieces
	f.wire += uint64(n)
	f.signal()
	if f.complete && f.fed == f.queued {
		c.feedWrittenLocked()
	}
}

// sentFileLocked accounts for n bytes that were sent of the feed's file.
func (c *Conn) sentFileLocked(n int) {
	f := c.out.feed
	f.wire += uint64(n)
	if f.left -= uint64(n); f.left == 0 {
		f.file = nil
		f.signal()
		c.feedWrittenLocked()
	}
}

func (c *Conn) feedWrittenLocked() {
	o := &c.out
	o.written.addOne(o.feed.size)
	o.feed, o.feeding = nil, false
	c.endRunLocked()
}

// feeders are goroutines of one connection, as long as there are any.
type feeders struct {
	n    int           // guarded by Conn.mu
	none chan struct{} // closed by the last
}

// startFeederLocked starts the goroutine that reads for Reply.SendFrom. It is
// joined by the connection's reader, in joinFeedersLocked.
func (c *Conn) startFeederLocked(f *feed) {
	c.out.run, c.out.feed = true, f
	if c.out.feeders == nil {
		c.out.feeders = &feeders{none: make(chan struct{})}
	}
	c.out.feeders.n++
	go c.feedFrom(f)
}

// feedFrom is the feeder goroutine. Its reader is a callback of the user's.
func (c *Conn) feedFrom(f *feed) {
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if fs := c.out.feeders; fs.n == 1 {
			c.out.feeders = nil
			close(fs.none)
		} else {
			fs.n--
		}
	}()
	defer c.closeFeed(f)
	guarded(func() {
		first := make([]byte, min(f.size, pieceSize))
		if _, err := readFull(f.from, first, func() error { return nil }); err != nil {
			c.fail(fromError(err))
		} else if c.beginFeed(f, first) {
			c.feedRest(context.Background(), f, f.from, first)
		}
	}, c.callLeft)
}

// beginFeed begins a feed that was accepted, unless the output is frozen.
func (c *Conn) beginFeed(f *feed, first []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.out.frozen {
		return false
	}
	f.begin(f.framing, first)
	c.queueFeedLocked(f)
	c.chargeAnswersLocked(c.out.charge(), false)
	return true
}

// hasFeeders reports whether there is a reader of Reply.SendFrom that may be called.
func (c *Conn) hasFeeders() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.feeders != nil
}

// joinFeedersLocked ends what Reply.SendFrom has begun. The output is frozen.
func (c *Conn) joinFeedersLocked() {
	c.inCall.Store(true) // a reader's Close may take any time
	defer c.inCall.Store(false)
	for _, s := range c.out.behind {
		if s.from != nil {
			c.mu.Unlock()
			c.closeFeed(s.from)
			c.mu.Lock()
		}
	}
	fs := c.out.feeders
	if fs == nil {
		return
	}
	// One at most still reads. Others were written, and are being closed; then
	// feed is nil, or it may be a Conn.SendFrom's.
	f := c.out.feed
	c.mu.Unlock()
	if f != nil && f.from != nil {
		c.closeFeed(f)
	}
	<-fs.none
	c.mu.Lock()
}

// ---- ending the output ----

// endOutputLocked refuses further messages with the given error, and ends our
// side of the stream after the queue.
func (c *Conn) endOutputLocked(refuse error) {
	c.refuseLocked(refuse)
	c.roomLocked()
	c.out.fin = true
	c.startWriterLocked()
}

// refuseLocked has further messages refused, with the first error that is given.
func (c *Conn) refuseLocked(err error) {
	if c.out.refuse == nil {
		c.out.refuse = err
		c.refuses.Store(true)
	}
}

// freezeLocked stops the output where it is.
func (c *Conn) freezeLocked(refuse error) {
	c.refuseLocked(refuse)
	c.out.frozen = true
	if c.out.feed != nil {
		c.out.feed.signal()
	}
	c.roomLocked()
}

// joinWriterLocked waits for the release of the pen. The output is frozen,
// so nobody takes it again.
func (c *Conn) joinWriterLocked() {
	for c.out.writing {
		released := make(chan struct{})
		c.out.released = released
		c.mu.Unlock()
		c.t.Hangup()
		<-released
		c.mu.Lock()
	}
}

// ---- the writer goroutine ----

const (
	writeSlices = 64      // in one call; few messages are worth more
	writeBytes  = 4 << 20 // in one call; a socket hardly ever has room for more

	// writeWhole is writeBytes where a call cannot be interrupted. A peer
	// that takes so little within WriteTimeout is given up even if the
	// system cannot tell what it has acknowledged.
	writeWhole = 32 << 10

	// writeHidden is writeBytes where it is a Write of another's making that writes, which
	// shows nothing before it is done, and if it hides a record layer does not survive that
	// WriteTimeout cuts it short. In that time a peer that reads 10 kB/s takes more. For
	// messages of 1 MiB it costs an eighth of the CPU time.
	writeHidden = 64 << 10
)

// vec is the slices of one write. It is pooled.
type vec struct{ slices [writeSlices][]byte }

var vecs = sync.Pool{New: func() any { return new(vec) }}

// startWriterLocked has the writer goroutine write, if there is something for it and
// nobody has the pen.
func (c *Conn) startWriterLocked() {
	o := &c.out
	if !o.writing && !o.frozen && (!o.idle() || o.finDue()) {
		c.runWriterLocked()
	}
}

// runWriterLocked starts the writer goroutine with the pen, which nobody has, or the
// caller.
func (c *Conn) runWriterLocked() {
	o := &c.out
	o.writing, o.inline = true, false
	if t := c.hub.o.WriteTimeout; t > 0 {
		now := c.hub.watch.Now()
		o.stall.begin(now)
		c.arm(now + t/looks)
	}
	go c.write()
}

// write is the writer goroutine. It ends by releasing the pen, which the
// reader waits for before it ends itself.
func (c *Conn) write() {
	v := vecs.Get().(*vec)
	turn := func() (park bool) { return c.writeTurn(v) }
	for {
		if err := c.t.Write(turn); err != nil && err != transport.ErrKicked {
			c.wrote(0, 0, c.opError("write", err))
		}
		if c.release() {
			break
		}
	}
	clear(v.slices[:])
	vecs.Put(v)
}

// writeTurn writes until there is nothing more to write, or the transport is
// full.
func (c *Conn) writeTurn(v *vec) (park bool) {
	for {
		slices, size, file := c.nextWrite(v)
		n, err := 0, error(nil)
		switch {
		case file != nil:
			n, err = c.t.(transport.FileSender).TrySendFile(file, size)
			if err == io.EOF || err == transport.ErrNoFile {
				c.endOfFile(n, err)
				continue
			}
			if err != nil {
				err = c.opError("sendfile", err)
			}
		case slices == nil:
			return false
		case size > 0:
			if n, err = c.t.TryWritev(slices); err != nil {
				err = c.opError("write", err)
			}
		}
		c.wrote(n, size, err)
		if err == nil && n < size {
			return true
		}
	}
}

// writeNow is the writer's work done by the reader, for what a Handler has
// answered: one attempt, which mostly is enough. What is left is the writer
// goroutine's. It reports whether Handler.Drained is due.
func (c *Conn) writeNow() (drained bool) {
	o, r := &c.out, &c.reply
	r.lock()
	c.bookLocked()
	if !r.active {
		if !r.side.Empty() || o.answersFull {
			r.acceptLocked()
		}
		if r.gathering != nil {
			r.gatherNoMoreLocked()
		}
	}
	if !o.writing && !o.frozen && !o.idle() {
		o.writing, o.inline = true, true
		c.tryLocked()
	}
	drained = o.drained || r.drained
	o.drained, r.drained = false, false
	if drained && !o.empty() {
		// Not before what was queued since is written too. It is whoever's the connection is then.
		drained, o.notify = false, true
	}
	if r.active { // it is Flush, and the call may send more
		r.refused = r.refused || o.refuse != nil
		r.easeSend()
	}
	c.mu.Unlock()
	return drained
}

// tryLocked is one attempt to write what is queued, made by the holder of the
// pen, who gives it back here: the writer goroutine gets it if something is
// left. It gives mu up while it writes.
func (c *Conn) tryLocked() {
	o := &c.out
	inTurn := o.inline && c.scratch != nil
	var v *vec
	if inTurn {
		v = &c.scratch.vec
	} else {
		v = vecs.Get().(*vec)
	}
	if o.w.Empty() {
		o.take()
	}
	slices := o.w.Vec(v.slices[:0], writeBytes)
	if size := sizeOf(slices); size > 0 {
		var (
			n   int
			ok  bool
			err error
		)
		c.mu.Unlock()
		if inTurn {
			n, ok, err = c.t.WriteInTurn(slices)
		} else {
			n, ok, err = c.t.WriteNow(slices)
		}
		if err != nil {
			err = c.opError("write", err)
		}
		c.mu.Lock()
		if ok || err != nil {
			now := time.Duration(0)
			if !inTurn && !c.busy.Load() { // else check, which is due, takes the time for it
				now = c.hub.watch.Now()
			}
			c.wroteLocked(n, size, err, now)
		}
	}
	clear(v.slices[:len(slices)])
	if !inTurn {
		vecs.Put(v)
	}
	if o.handled && !o.frozen && o.drainedDue() {
		o.drainedTold()
		o.drained = true
	}
	if !c.releaseLocked() {
		c.runWriterLocked()
	}
}

// endOfFile tells the feed why its file could not be sent to the end, but for n
// more bytes.
func (c *Conn) endOfFile(n int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.out.feed; f != nil && f.file != nil {
		f.left -= uint64(n)
		f.wire += uint64(n)
		f.file, f.fileErr = nil, err
		f.signal()
	}
}

// nextWrite returns what to write next, and its size; or nil when everything is
// written, and what follows from that was done, or the output is frozen.
func (c *Conn) nextWrite(v *vec) (slices [][]byte, size int, file *os.File) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := &c.out
	for !o.frozen {
		if f := o.feed; f != nil && f.withdraw {
			c.withdrawLocked() // starts no writer: the pen is taken
			continue
		}
		if o.w.Empty() {
			o.take()
		}
		switch {
		case !o.w.Empty():
			limit := writeBytes
			switch {
			case c.t.WritesWhole():
				limit = writeWhole
			case !c.set.packets() && transport.KeepsTrying(c.t):
				limit = writeHidden
			}
			slices = o.w.Vec(v.slices[:0], limit)
			return slices, sizeOf(slices), nil
		case o.feeding && o.feed.file != nil:
			return nil, int(min(o.feed.left, writeBytes)), o.feed.file
		case o.drainedDue():
			if o.drainedTold(); o.handled {
				o.drained = true // releaseLocked wakes the reader, which calls it
				continue
			}
			c.mu.Unlock()
			c.drainedForHub()
			c.mu.Lock()
		case o.finDue():
			o.finSent = true
			c.mu.Unlock()
			err := c.t.CloseWrite()
			c.mu.Lock()
			if err != nil && !errors.Is(err, errors.ErrUnsupported) && o.finish == nil {
				c.writeFailedLocked(c.opError("shutdown", err))
			}
		default:
			return nil, 0, nil
		}
	}
	return nil, 0, nil
}

// drainedTold forgets why Drained was due.
func (o *output) drainedTold() { o.flushed, o.waited, o.notify = false, false, false }

// drainedDue reports whether everything is written, and somebody is to be told so.
func (o *output) drainedDue() bool {
	return o.empty() && !o.deaf && !o.unheard && (o.waited || o.notify || o.handled && o.flushed)
}

// hear is for a Handler, or the hub, that comes after one that did not
// want to hear of Drained: what that missed is not due any more.
func (o *output) hear() {
	if o.deaf = false; o.empty() {
		o.drainedTold()
	}
}

// finDue reports whether it is time to end our side of the stream.
func (o *output) finDue() bool { return o.empty() && o.fin && !o.finSent }

// release gives the pen back, unless there is something for its holder to do.
func (c *Conn) release() (released bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.releaseLocked()
}

func (c *Conn) releaseLocked() (released bool) {
	o := &c.out
	if !o.frozen && (!o.idle() || o.drainedDue() || o.finDue() || o.feed != nil && o.feed.withdraw) {
		return false
	}
	o.writing = false
	o.stall.end()
	if o.released != nil {
		close(o.released)
		o.released = nil
	}
	if o.finish != nil || o.err != nil || o.drained && !o.inline {
		c.kickReader() // it may have waited for this
	}
	o.inline = false
	return true
}

// take moves what is to be written next to w.
func (o *output) take() {
	if o.feeding = o.q.Empty() && o.feed != nil; o.feeding {
		o.w.Take(&o.feed.pieces)
	} else {
		o.w.Take(&o.q)
	}
}

// wrote accounts for an attempt to write size bytes, n of which were written.
func (c *Conn) wrote(n, size int, err error) {
	now := c.hub.watch.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wroteLocked(n, size, err, now)
}

// wroteLocked is wrote at a time that is known, or that the reader will see at
// the end of its turn (0).
func (c *Conn) wroteLocked(n, size int, err error, now time.Duration) {
	o := &c.out
	if n > 0 || size == 0 && err == nil { // empty raw messages are written by being passed over
		var msgs int
		var bytes int64
		if o.feeding && o.w.Empty() {
			c.sentFileLocked(n)
		} else if msgs, bytes = o.w.Wrote(n); o.feeding {
			c.fedLocked(msgs, n)
			msgs, bytes = 0, 0
		}
		handshakes := o.said > 0
		if handshakes && msgs > 0 {
			msgs, bytes, o.said = msgs-1, bytes-int64(o.said-1), 0
		}
		o.written.add(msgs, bytes)
		o.flushed = o.flushed || !handshakes || msgs > 0
		c.hub.budget.out.Fell(&o.share, o.charge())
		o.fresh = now == 0
		if now != 0 {
			c.writtenLocked(now)
		}
		o.stall.moved(now)
		c.roomLocked()
	}
	switch {
	case err != nil:
		c.writeFailedLocked(err)
	case n < size && o.stall.probing:
		c.giveUpLocked()
	case n < size:
		o.waited = true
	}
}

// writeFailedLocked ends the output. The input is read to its end, which mostly is
// there too; where none comes, and nothing else, the connection ends after a while.
func (c *Conn) writeFailedLocked(err error) {
	if o := &c.out; o.err == nil {
		o.err, o.failed = err, c.hub.watch.Now()
		c.arm(o.failed + c.hub.endAfterFailure())
	}
	c.freezeLocked(ErrNotConnected)
}

// endAfterFailure is how long nothing may come when the output has failed.
func (h *Hub) endAfterFailure() time.Duration {
	return orElse(h.o.WriteTimeout, DefaultWriteTimeout)
}

// stall is a lack of progress in writing: it tells a slow peer from one that takes
// nothing. The kernel asks for more output only when a good part of its buffer is free,
// which a slow peer may take many times WriteTimeout for, while the bytes that it
// acknowledged can be seen.
type stall struct {
	since   time.Duration // when it began; 0: nothing is to be written
	unacked int32         // bytes, at the last look; -1: it was not looked at
	probing bool          // the next write without progress is the last
}

func (s *stall) begin(now time.Duration) { s.since, s.unacked = now, -1 }
func (s *stall) end()                    { s.since, s.probing = 0, false }

// moved is told that a write has made progress: now, or, if that is 0, since the reader
// has looked at the clock.
func (s *stall) moved(now time.Duration) {
	if now != 0 {
		s.since = now
	}
	s.unacked, s.probing = -1, false
}

// look looks for progress that no write shows, and reports whether to try one: when there
// was progress, or may have been before the first look, so that what has become free is
// filled, and is not taken for progress later. known: unacked is what the peer has not
// acknowledged. idle: the writer waits for the kernel to ask.
func (s *stall) look(now, timeout time.Duration, unacked int, known, idle bool) (try bool) {
	n := int32(min(unacked, math.MaxInt32))
	switch {
	case known && s.unacked >= 0:
		if n < s.unacked {
			s.since, try = now, true
		}
		s.unacked = n
	case now-s.since >= timeout/looks: // the first one, or there is nothing to be seen
		try = idle
		if known {
			s.unacked = n
		}
	}
	return try
}

// looks is how often a lack of progress is looked at within WriteTimeout. What a
// look sees may be as old as the one before, so a connection that takes nothing
// ends up to WriteTimeout/looks late, and one that took a little first, which only
// trying again shows, up to three times that: within a second, of ten.
const looks = 32

// stuckLocked looks at a write that makes no progress. It reports whether the writer is to
// try again: as stall.look says, and when there was no progress for WriteTimeout, for the
// last time. A writer that cannot be made to try again has been trying all the time, so
// that was its last.
func (c *Conn) stuckLocked(now time.Duration, due func(time.Duration) bool) (again bool) {
	s, t := &c.out.stall, c.hub.o.WriteTimeout
	n, known := c.t.Unacked()
	again = s.look(now, t, n, known || n > 0, !transport.KeepsTrying(c.t)) // that it falls will do
	last := due(s.since + t)
	due(now + t/looks)
	switch {
	case !c.t.WritesWhole():
		s.probing = last
		return again || last
	case last:
		c.giveUpLocked()
	}
	return false
}

// writtenLocked notes when something was written last.
func (c *Conn) writtenLocked(now time.Duration) {
	o := &c.out
	o.last, o.fresh = now, false
	if o.patience != 0 && o.look == 0 {
		o.look = now + o.untilLook()
		c.arm(o.look)
	}
}

const (
	// answerLooks is how often it is looked at, within the time that keep-alive lets a
	// peer be silent, whether what is under way to it is answered. So one that is not ends
	// up to two such parts later than it would with nothing under way.
	answerLooks = 12

	// answerTries is how often the system is to have sent in vain, as with the probes of
	// our keep-alive. Where the peer has no room it is two minutes from one to the next,
	// and one that was lost says nothing.
	answerTries = 3
)

// bePatient notes for how long a peer may be silent, and so how often to look.
func (o *output) bePatient(d time.Duration) {
	o.patience = uint16(min(d/time.Second, math.MaxUint16)) // a system counts it in seconds
}

// untilLook is how long it is from one look to the next.
func (o *output) untilLook() time.Duration {
	return time.Duration(o.patience) * time.Second / answerLooks
}

// muteLocked reports that the peer's system has answered nothing of what is under way to it
// for as long as keep-alive, which rests meanwhile, lets it be silent. It looks twice, as a
// machine that has stood still had nobody to hear an answer.
func (c *Conn) muteLocked(now time.Duration, due func(time.Duration) bool) bool {
	o := &c.out
	if o.look == 0 || !due(o.look) {
		return false
	}
	before := o.mute
	o.look, o.mute = 0, false
	waits, tries, heard := c.t.(transport.Prober).Unanswered()
	if !waits {
		return false // until something is written
	}
	long := func() bool { return heard >= time.Duration(o.patience)*time.Second }
	o.mute = tries > 0 && heard >= o.untilLook()
	gone := o.mute && before && tries >= answerTries && long()
	if gone {
		o.bePatient(transport.Patience(c.t)) // somebody may have changed it, or turned keep-alive off
		gone = o.patience != 0 && long()
	}
	if o.patience != 0 {
		o.look = now + o.untilLook()
		due(o.look)
	}
	return gone
}

// giveUpLocked ends the connection of a peer that takes nothing.
func (c *Conn) giveUpLocked() {
	c.failLocked(ErrSlowPeer)
	c.t.Hangup()
	c.kickReader() // which may wait for the user of a Stream
}

// ---- the report ----

// Report tells what became of one connection's output:
//
//	AcceptedMessages = WrittenMessages + UnsentMessages + DroppedMessages + (1 if Cut)
//	AcceptedBytes    = WrittenBytes    + UnsentBytes    + DroppedBytes    + CutSize
//
// Unsent and dropped messages certainly did not reach the peer. A cut message was
// written in part: the peer has received no more than that part of it, and if it
// speaks the same framing, its program sees nothing of it. Written ones were handed
// to the kernel: those whose bytes are not among Unacked are in the peer's kernel; of
// the others nobody knows. Whether the peer's program has handled a message, only its
// answer can tell. On udp and unixgram a message is written when it is with the socket
// that all sessions share; what the system then refuses to send is in Stats.Dropped.
type Report struct {
	AcceptedMessages, WrittenMessages, UnsentMessages, DroppedMessages uint64 // whole messages, but AcceptedMessages counts the one that was cut too
	AcceptedBytes, WrittenBytes, UnsentBytes, DroppedBytes             uint64 // of bodies of whole messages; AcceptedBytes includes CutSize

	Cut                 bool   // one message was partly written; not on networks of packets
	CutSize, CutWritten uint64 // its length, and how much of that was written

	// Unacked is how many bytes on the wire, headers included, were written
	// and not acknowledged by the peer's kernel; -1 if unknown. It was measured
	// when the connection ended, and the kernel goes on after that: also after an
	// orderly end it is often not 0, though everything arrives.
	Unacked int64

	left *outq.Writing // what was not written, the rest of a cut message too; nil: nothing
}

// String is a line for a log: "3 of 3 messages written", or, if not all were, what
// became of the others, as in "5 accepted: 1 written, 3 unsent, 1 cut". Bytes and
// Unacked are not in it.
func (r Report) String() string {
	cut := uint64(0)
	if r.Cut {
		cut = 1
	}
	if r.UnsentMessages+r.DroppedMessages+cut == 0 {
		return fmt.Sprintf("%d of %d messages written", r.WrittenMessages, r.AcceptedMessages)
	}
	text := fmt.Sprintf("%d accepted: %d written", r.AcceptedMessages, r.WrittenMessages)
	for _, other := range []struct {
		n    uint64
		what string
	}{{r.UnsentMessages, "unsent"}, {r.DroppedMessages, "dropped"}, {cut, "cut"}} {
		if other.n > 0 {
			text += fmt.Sprintf(", %d %s", other.n, other.what)
		}
	}
	return text
}

// Unsent yields the messages that were accepted and of which nothing was
// written, in order. They are the caller's for good. It may be called again,
// also concurrently. Messages of Reply.SendFrom, and those of Conn.SendFrom above 64 KiB,
// are counted as unsent and not yielded: they were never in memory as a whole.
func (r Report) Unsent() iter.Seq[[]byte] {
	if r.left == nil {
		return func(func([]byte) bool) {}
	}
	return r.left.Unwritten()
}

// CutMessage is the message that was partly written, and the caller's for good.
// It is nil if there is none, or if it was one of those that Unsent does not yield.
func (r Report) CutMessage() []byte {
	if r.left == nil {
		return nil
	}
	msg, _, _ := r.left.Cut()
	return msg
}

// charge is what the messages that it holds count against the limits, empty ones too.
func (r Report) charge() int64 {
	if r.left == nil {
		return 0
	}
	return r.left.Charge()
}

// report is made by the reader when nobody writes nor will. A packet that is not whole has
// not left, although a part of it was taken to be written.
func (o *output) report(t transport.Conn, packets bool) Report {
	if packets {
		o.w.Restart()
	}
	r := Report{
		AcceptedMessages: o.accepted.msgs, AcceptedBytes: o.accepted.bytes,
		WrittenMessages: o.written.msgs, WrittenBytes: o.written.bytes,
		DroppedMessages: o.dropped.msgs, DroppedBytes: o.dropped.bytes,
		Unacked: -1,
	}
	if n, ok := t.Unacked(); ok {
		r.Unacked = int64(n)
	}
	if o.feed != nil {
		o.feed.report(&r, packets)
	}
	if o.feeding {
		o.w = outq.Writing{}
	}
	for i := range o.behind {
		o.q.Splice(&o.behind[i].q)
		if from := o.behind[i].from; from != nil {
			r.UnsentMessages++
			r.UnsentBytes += from.size
		}
	}
	o.behind = nil
	if o.late != nil {
		o.q.Splice(o.late)
	}
	o.w.Take(&o.q)
	if o.said > 0 {
		o.w.Skip() // it was the handshake's, and is no message
	}
	if !o.w.Empty() {
		o.reportLeft(&r)
	}
	return r
}

// report tells what became of the message that f is.
func (f *feed) report(r *Report, packets bool) {
	switch {
	case f.wire > 0 && !packets:
		r.Cut, r.CutSize, r.CutWritten = true, f.size, f.wire-min(f.wire, uint64(f.header))
	case f.from == nil && !f.complete: // its SendFrom fails
		r.AcceptedMessages--
		r.AcceptedBytes -= f.size
	default:
		r.UnsentMessages, r.UnsentBytes = 1, f.size
	}
}

// reportLeft tells of what is in w.
func (o *output) reportLeft(r *Report) {
	o.w.Own() // what is told is the caller's for good
	left := o.w
	r.left, o.w = &left, outq.Writing{}
	msgs, bytes := uint64(left.Len()), uint64(left.Bytes())
	if body, written, cut := left.Cut(); cut {
		r.Cut, r.CutSize, r.CutWritten = true, uint64(len(body)), uint64(written)
		msgs, bytes = msgs-1, bytes-r.CutSize
	}
	r.UnsentMessages += msgs
	r.UnsentBytes += bytes
}
