package sockhub

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"math"
	"reflect"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sockhub/sockhub/internal/budget"
	"github.com/sockhub/sockhub/internal/chunk"
	"github.com/sockhub/sockhub/internal/fanin"
	"github.com/sockhub/sockhub/internal/packet"
	"github.com/sockhub/sockhub/internal/pending"
	"github.com/sockhub/sockhub/internal/places"
	"github.com/sockhub/sockhub/internal/registry"
	"github.com/sockhub/sockhub/internal/transport"
	"github.com/sockhub/sockhub/internal/turnstile"
	"github.com/sockhub/sockhub/internal/watch"
)

// Why a client cannot be reached, or a peer not be taken.
var (
	// ErrUnknownID: no client has this ID, or none any more.
	ErrUnknownID = errors.New("sockhub: unknown client ID")

	// ErrTooManyConns: MaxConns of the hub or the listener is reached.
	ErrTooManyConns = errors.New("sockhub: too many connections")

	// ErrMemoryLimit: a limit that all connections share is reached.
	ErrMemoryLimit = errors.New("sockhub: memory limit reached")
)

// ID names a client for the life of its Hub and is never used again. A client
// registered with Expect keeps its ID over reconnects, and so does a dialed
// one; the others lose theirs when their Disconnected is taken. 0 is nobody.
type ID uint64

// client is who has an ID.
type client struct {
	id   ID
	name string               // "" if it gave none
	conn atomic.Pointer[Conn] // the current connection; nil while there is none

	// Guarded by hub.mu.
	expected *ClientOptions     // registered with Expect; written with fan.mu held too, so either is enough to read it
	redial   context.CancelFunc // dialed, and dialed again when the connection ends; nil: not, or no longer
	owner    *Conn              // holds the name, from its admission to its end
	seq      uint64             // of owner's claim
	claims   []*Conn            // handshakes that wait for owner's end

	// Guarded by hub.fan.mu.
	ending bool  // a Disconnected of it is in a batch that was not taken
	next   *Conn // admitted, and published when that was taken

	// Owned by the reader of the connection: one has departed before the next is admitted.
	giver *Handler // had it until SetHandler(nil), and hears of its end if Events does not; else nil
}

// Number implements registry.Entry.
func (cl *client) Number() uint64 { return uint64(cl.id) }

// Hub owns connections. Create it with New, add connections with Listen,
// Serve, Dial and their like, receive from Events, send with Send and its
// like, and end it with Shutdown or Close. All methods may be called from any
// goroutine.
type Hub struct {
	// Immutable after construction.
	o         Options // resolved
	log       *slog.Logger
	watch     *watch.Watch
	events    chan *Batch     // sent to and closed by the hub goroutine alone, see package fanin
	wake      chan struct{}   // capacity 1; sent to without waiting by whoever has something for the hub goroutine; never closed
	quit      chan struct{}   // closed by Close when the connections are gone: the hub goroutine and the watch end
	dials     context.Context // ends when Shutdown or Close begins: nothing new is dialed
	stopDials context.CancelFunc
	closed    chan struct{} // closed by Close at its begin: what waits gives up
	over      chan struct{} // closed by Close at its end
	left      chan struct{} // capacity 1; sent to without waiting when a connection is gone; never closed
	unbind    func() bool   // takes the hub off its context

	// Synchronized by themselves.
	within   atomic.Int32   // Shutdowns that were called from callbacks of the hub's, and wait
	stopping sync.WaitGroup // Listeners that are being closed, by whomever
	tasks    errgroup.Group // the hub goroutine, the watch, the listeners, who dials again, and aside; the connections are in live

	budget    *Budget
	poke      atomic.Bool   // readers that wait for the budget are to be told; the hub goroutine does
	turnstile turnstile.T   // of readers for Events
	epoch     atomic.Uint64 // counts batches taken, and turns of Handlers' readers that end with sent set; see burst.Pace
	sent      atomic.Bool   // a Send has happened since the last turn of a Handler's reader
	packets   packet.Stats  // of all sockets
	table     registry.Table[client, *client]

	// mu guards what follows. The lock order of the package: mu, or a Stream.mu; then fan.mu
	// or a Conn.mu, never one of these inside the other; inside a Conn.mu those of
	// casts. The locks of the registry, the budget, the watch, the packet sockets and the
	// transports may be taken inside any of them, and none of them inside those.
	mu        sync.Mutex
	stage     stage
	live      map[*Conn]struct{} // every connection whose reader runs, handshakes included
	listeners map[*Listener]struct{}
	names     map[string]*client
	pending   *pending.Table[source, pendingPeer] // handshakes of accepted connections
	prefaces  map[*preface]struct{}
	sockets   map[*Listener]struct{} // of datagrams, those that have clients, closed or not
	places    places.Hub             // of connections past their handshake, until their Disconnected was taken
	lastClaim uint64                 // connections that have asked for a client so far
	logging   int                    // connections that are in live no more, and of whose end the log is being told
	totals    Stats

	fan   fan   // what goes to Events
	casts casts // what Broadcasts share
}

// stage is how far the hub's end has come.
type stage int

const (
	running  stage = iota
	draining       // Shutdown was called: nothing new
	closing        // Close was called
)

// New makes a Hub. When ctx ends, that does what Close does; for a graceful
// end call Shutdown, and do not give New the context that a signal ends.
//
// Errors: ErrBadName for Options.Name; options that contradict each other, or that
// have no meaning.
func New(ctx context.Context, o *Options) (*Hub, error) {
	r, err := o.resolve()
	if err != nil {
		return nil, err
	}
	h := &Hub{
		o:         r,
		log:       r.Logger,
		watch:     watch.New(),
		events:    make(chan *Batch, 1),
		wake:      make(chan struct{}, 1),
		quit:      make(chan struct{}),
		closed:    make(chan struct{}),
		places:    places.NewHub(r.MaxConns),
		pending:   pending.New[source, pendingPeer](r.MaxPending, r.MaxPendingPerSource),
		over:      make(chan struct{}),
		left:      make(chan struct{}, 1),
		live:      make(map[*Conn]struct{}),
		listeners: make(map[*Listener]struct{}),
		prefaces:  make(map[*preface]struct{}),
		sockets:   make(map[*Listener]struct{}),
		names:     make(map[string]*client),
		turnstile: turnstile.New(atATime()),
	}
	h.dials, h.stopDials = context.WithCancel(context.Background())
	if h.budget = r.Budget; h.budget == nil {
		h.budget = NewBudget(r.InboundLimit, r.OutboundLimit, r.MemoryLimit)
	}
	if err := h.budget.join(h, &r); err != nil {
		return nil, err
	}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	h.fan.hub, h.fan.next = h, batch{new(Batch), &notes{seq: 1}}
	h.tasks.Go(func() error { fanin.Run(h.events, h.wake, h.quit, &h.fan); return nil })
	h.tasks.Go(func() error { h.watch.Run(h.quit); return nil })
	h.mu.Lock() // ctx may have ended already: then Close waits until unbind is set
	defer h.mu.Unlock()
	h.unbind = context.AfterFunc(ctx, func() { h.Close() })
	return h, nil
}

// Events is where everything that happens on the connections without a Handler
// arrives, in batches. Range over it, or select on it beside other channels.
// It is closed after the last batch, when the hub was closed.
//
// While nobody receives, what happens is merged into the batch that waits, so
// memory is bounded by the limits on input; reading pauses at these, and a client that
// connects again waits: see Send. So a program receives, even if it only sends, unless all of
// its connections have Handlers from the options.
func (h *Hub) Events() <-chan *Batch { return h.events }

// Send is Conn.Send on the client's current connection: also if it waits, it
// stays with that connection. ErrUnknownID and ErrNotConnected, if there is
// none; ErrClosed once the hub is closed.
//
// A client has its connection from when it is reported on, or when its Handler was made:
// its peer may have heard OK before. One that has connected again gets its new connection
// when the batch with the Disconnected of the one before was received from Events, which
// may be a moment before that batch was handled. A program that keeps accounts of what
// each connection was sent, to compare them with its Report, uses Conn.Send.
func (h *Hub) Send(ctx context.Context, to ID, msg []byte) error {
	c, err := h.current(to)
	if err != nil {
		return err
	}
	return c.Send(ctx, msg)
}

// TrySend is Conn.TrySend on the client's current connection: ErrBackpressure
// instead of waiting. Otherwise as Send.
func (h *Hub) TrySend(to ID, msg []byte) error {
	c, err := h.current(to)
	if err != nil {
		return err
	}
	return c.TrySend(msg)
}

// SendMany is Conn.SendMany on the client's current connection: the first n
// were accepted, in one run. They are queued in portions, so msgs should not wait
// for something. Errors as those of Send.
func (h *Hub) SendMany(ctx context.Context, to ID, msgs iter.Seq[[]byte]) (n int, err error) {
	c, err := h.current(to)
	if err != nil {
		return 0, err
	}
	return c.SendMany(ctx, msgs)
}

// current is the connection that a client has now, or what a Send gets if there is none.
func (h *Hub) current(id ID) (*Conn, error) {
	cl := h.table.Get(uint64(id))
	if cl != nil {
		if c := cl.conn.Load(); c != nil {
			return c, nil
		}
	}
	select {
	case <-h.closed:
		return nil, ErrClosed
	default:
	}
	if cl == nil {
		return nil, ErrUnknownID
	}
	return nil, ErrNotConnected
}

// ---- budgets ----

// Budget is a set of limits on the bytes that all connections of one or more
// hubs hold. Give it to each of them as Options.Budget.
type Budget struct {
	in                       *budget.Inbound[*Conn]
	out                      *budget.Outbound[*Conn]
	reports                  atomic.Int64 // charge of the unsent messages in reports that were not taken
	lent                     atomic.Int64 // bytes of memory for messages that have begun
	inLimit, outLimit, total int64

	mu   sync.Mutex
	hubs map[*Hub]int // that share it, with how many connections each may have
}

// NewBudget makes a Budget. The limits, in bytes, are those of
// Options.InboundLimit, OutboundLimit and MemoryLimit: 0 means the default,
// less than 0 none. Any number of hubs may use it at once.
func NewBudget(inbound, outbound, total int64) *Budget {
	b := &Budget{
		inLimit:  or(inbound, DefaultInboundLimit),
		outLimit: or(outbound, DefaultOutboundLimit),
		total:    or(total, DefaultMemoryLimit),
		hubs:     make(map[*Hub]int),
	}
	b.in = budget.NewInbound(b.inLimit, 0, (*Conn).readOn, b.over)
	b.out = budget.NewOutbound(b.outLimit, (*Conn).mayHaveRoom, b.outputFell)
	return b
}

// join adds a hub to those that share b.
func (b *Budget) join(h *Hub, o *Options) error {
	if err := b.allow("Options.MaxMessage", uint64(o.MaxMessage)); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hubs[h] = o.MaxConns
	b.sharedLocked()
	return nil
}

// leave is told that a hub has ended.
func (b *Budget) leave(h *Hub) {
	b.mu.Lock()
	delete(b.hubs, h)
	b.sharedLocked()
	b.mu.Unlock()
	b.in.Poke() // what outputFell has asked of it
}

func (b *Budget) sharedLocked() {
	conns := 0
	for _, n := range b.hubs {
		conns += min(n, math.MaxInt-conns)
	}
	b.out.Among(conns)
}

// outputFell sees to it that readers who wait because of the memory limit are
// told. It is called with a Conn's lock held, and they have to be told without.
func (b *Budget) outputFell() {
	if !b.in.Waiting() {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for h := range b.hubs {
		h.poke.Store(true)
		h.signal()
		return // one will do
	}
}

// awaited tells the hubs that a reader has begun to wait for room: what it
// waits for may be that some batch is taken, which a hub finds out only while
// it knows that somebody wants to know (fan.Wanted).
func (b *Budget) awaited() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for h := range b.hubs {
		h.signal()
	}
}

// allow sees to it that messages of max bytes can be received, or says that
// the limit is too low for that.
func (b *Budget) allow(field string, max uint64) error {
	if max > math.MaxInt64 || !budget.CheckInbound(b.inLimit, int64(max)) {
		return optionError(field, "%d bytes are too many for InboundLimit, which is %d and must be at least twice as much and 128 KiB", max, b.inLimit)
	}
	b.in.Raise(int64(max))
	return nil
}

// lend lends n bytes of memory for a message that has begun, which lies about unused:
// so it need not be earned by bytes that have come, as new memory must, and the
// message is not copied each time that it has grown. But who uses it up is made
// to get new memory, so that all that is lent is within InboundLimit too, beside what
// has come. decoder.earned gives it back.
func (b *Budget) lend(n int) bool {
	if b == nil {
		return false
	}
	if b.lent.Add(int64(n)) > b.inLimit-b.in.Used() {
		b.lent.Add(-int64(n))
		return false
	}
	return true
}

// over reports whether the memory limit is reached, at so many bytes of input.
func (b *Budget) over(inbound int64) bool {
	return inbound+b.out.Used()+b.reports.Load() >= b.total
}

// full reports whether it is reached now.
func (b *Budget) full() bool { return b.over(b.in.Used()) }

// forget gives back what a report held that was taken.
func (b *Budget) forget(unsent int64) {
	if unsent > 0 {
		b.reports.Add(-unsent)
		b.in.Poke()
	}
}

// ---- all connections: Broadcast, Conns, Stats ----

// SendError is one connection that a Broadcast could not queue for.
type SendError struct {
	Conn *Conn // that did not accept the message
	Err  error // as TrySend returns it
}

// BroadcastError lists the connections that did not accept a Broadcast.
type BroadcastError struct {
	Refused []SendError // in the order of the iterator; never empty
}

// Error returns one line, with the first connection and its error.
func (e *BroadcastError) Error() string {
	first := e.Refused[0]
	if len(e.Refused) == 1 {
		return fmt.Sprintf("sockhub: broadcast refused by %v: %v", first.Conn, first.Err)
	}
	return fmt.Sprintf("sockhub: broadcast refused by %d connections, the first %v: %v", len(e.Refused), first.Conn, first.Err)
}

// Unwrap returns the error of each connection.
func (e *BroadcastError) Unwrap() []error {
	errs := make([]error, len(e.Refused))
	for i, r := range e.Refused {
		errs[i] = r.Err
	}
	return errs
}

// Broadcast queues msg for each connection that to yields, and waits for
// none: n accepted it, and the others are in the *BroadcastError, with the
// error that TrySend would have returned. It takes ownership of msg.
//
// Small messages that are broadcast in a burst to the same connections, yielded in
// the same order as by Conns, are kept once for all of them; a connection may then
// have such a message only when to has ended. So to should not wait for something.
// It runs on the caller's goroutine, without any lock of the hub; if it panics, what
// it yielded before has the message.
func (h *Hub) Broadcast(to iter.Seq[*Conn], msg []byte) (n int, err error) {
	b := broadcast{hub: h, msg: msg}
	b.again, b.to, b.begin = h.casts.Find(h.epoch.Load(), len(msg))
	defer func() { // also when to panics
		if b.end(); b.refused != nil {
			err = &BroadcastError{b.refused}
		}
		n = b.n
	}()
	for c := range to {
		b.next(c)
	}
	return 0, nil // see above
}

// Conn returns the current connection of a client, and whether there is one.
func (h *Hub) Conn(id ID) (*Conn, bool) {
	c, err := h.current(id)
	return c, err == nil
}

// Conns yields every connection past its handshake. No lock is held while it
// yields: connections that come or go meanwhile may be yielded or not.
func (h *Hub) Conns() iter.Seq[*Conn] {
	return func(yield func(*Conn) bool) {
		for cl := range h.table.All {
			if c := cl.conn.Load(); c != nil && !yield(c) {
				return
			}
		}
	}
}

// Stats are the figures of a hub: the first group and the last as they are now, which
// are the ints, the others since New. What was refused with ErrBackpressure counts only
// where it was sent from; QueuedIn has nothing of messages that have only begun, and
// Paused no connection whose Handler is being called.
type Stats struct {
	Conns      int // past their handshake
	Connecting int // in their handshake, or before it in a PROXY header or Classify
	Paused     int // of Conns: not read until the user takes what they have sent
	Expected   int // names registered with Expect
	Listeners  int // open; one whose net.Listener was closed counts until Accept has said so

	Accepted     uint64 // connections that a handshake has let in
	Dialed       uint64 // connections of Dial and Attach that the peer has let in
	Disconnected uint64 // of Accepted and Dialed, those that have ended

	RefusedPolicy     uint64 // handshakes ended by a rule, RefuseUnexpected, Classify or a bad PROXY header
	RefusedName       uint64 // by a name that is bad or taken
	RefusedLimit      uint64 // by MaxConns, MaxPending or MemoryLimit
	HandshakeTimeouts uint64 // by HandshakeTimeout

	AcceptErrors   uint64 // calls of Accept that have failed; they are tried again
	SlowPeers      uint64 // connections ended with ErrSlowPeer
	ProtocolErrors uint64 // connections ended by input that is no message; accepted ones whose TLS handshake has failed; packets that were too long
	Panics         uint64 // of callbacks

	MessagesIn  uint64 // delivered; see ConnStats
	MessagesOut uint64 // handed to the kernel whole
	BytesIn     uint64 // of the bodies of MessagesIn
	BytesOut    uint64 // of the bodies of MessagesOut
	Dropped     uint64 // messages dropped by DropOldest; packets for which a client had no room, that had come when it ended, or that the system refused to send
	Batches     uint64 // made for Events

	QueuedIn  int64 // bytes charged to input that was not taken
	QueuedOut int64 // bytes charged to output that is not written
}

// Stats returns the hub's figures. It visits every connection, so it is for
// every second, not for every message.
func (h *Hub) Stats() Stats {
	h.mu.Lock()
	s := h.totals
	s.Listeners = len(h.listeners)
	for p := range h.prefaces {
		if !p.handed { // else it is in live, or has left it
			s.Connecting++
		}
	}
	for _, cl := range h.names {
		if cl.expected != nil {
			s.Expected++
		}
	}
	conns := make([]*Conn, 0, len(h.live))
	for c := range h.live {
		conns = append(conns, c)
	}
	h.mu.Unlock()
	for _, c := range conns {
		if c.handshaking() {
			s.Connecting++
			continue
		}
		s.Conns++
		s.add(c.Stats())
		c.mu.Lock()
		s.Dropped += c.out.dropped.msgs
		c.mu.Unlock()
	}
	h.fan.mu.Lock()
	s.Paused, s.QueuedIn, s.Batches = h.fan.paused, h.fan.untaken, h.fan.made
	h.fan.mu.Unlock()
	s.ProtocolErrors += h.packets.Truncated.Load()
	s.Dropped += h.packets.Dropped.Load()
	return s
}

// add counts in what one connection did.
func (s *Stats) add(c ConnStats) {
	s.MessagesIn += c.MessagesIn
	s.MessagesOut += c.MessagesOut
	s.BytesIn += c.BytesIn
	s.BytesOut += c.BytesOut
	s.QueuedOut += c.QueuedOut
}

// ---- the end ----

// Close ends everything now: listeners, handshakes and connections, whose
// output that is not written yet is reported as unsent. It returns when every
// socket is closed, or shut down where a callback of the user's is running on
// the connection's reader (it may be Close's own caller), and no other
// goroutine of the hub is left. Nobody needs to receive from Events, which
// yields what remains and is then closed; of a connection in such a callback it
// does not tell the end. Calling it again waits for the same.
// The error is always nil.
//
// A Handler whose call is running when Close returns has its Disconnected called
// after that call, so after Close. All others have had theirs.
func (h *Hub) Close() error {
	h.mu.Lock()
	if h.stage == closing {
		h.mu.Unlock()
		<-h.over
		return nil
	}
	h.stage = closing
	h.stopDials()
	close(h.closed)
	h.mu.Unlock()
	conns, listeners := h.everything()
	for _, l := range listeners {
		l.stop()
	}
	prefaces := h.failPrefaces(nil)
	for _, c := range conns {
		c.fail(ErrClosed)
	}
	h.join()
	prefaces.Wait()
	for _, l := range listeners {
		l.abort()
	}
	for _, c := range conns {
		if c.listener != nil {
			c.listener.abort() // which was closed before, as by Shutdown
		}
		packet.Abort(c.t) // of a dialed one that is in a callback
	}
	h.stopping.Wait() // all listeners have been taken out of the map by now
	h.fan.finish()
	close(h.quit)
	h.budget.leave(h) // now, as nobody answers outputFell any more, whatever is waited for
	h.tasks.Wait()
	h.unbind()
	close(h.over)
	return nil
}

// everything is what the hub has to end. Once stage says so, nothing is added.
func (h *Hub) everything() (conns []*Conn, listeners []*Listener) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.live {
		conns = append(conns, c)
	}
	for l := range h.listeners {
		listeners = append(listeners, l)
	}
	return conns, listeners
}

// join waits for the readers, but not for those that have been in a callback
// of the user's for some time: such a callback may be waiting for this very
// call, and its connection is shut down anyway. That they are in one changes without
// telling anybody, so they are looked at every 5 ms; five times in a row is for some time.
func (h *Hub) join() {
	const look, patience = 5 * time.Millisecond, 4
	for in := 0; ; {
		rest, inCall, _, _ := h.liveConns()
		switch {
		case rest == 0:
			return
		case rest == inCall:
			if in++; in > patience {
				return
			}
		default:
			in = 0
		}
		select {
		case <-h.left:
		case <-time.After(look):
		}
	}
}

// liveConns counts connections, those whose reader is in a callback, of these the ones in
// their handshake, and others that send from a reader of the user's, which is called beside
// theirs.
func (h *Hub) liveConns() (n, inCall, shaking, fed int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.live {
		switch {
		case c.inCall.Load():
			if inCall++; c.client == nil {
				shaking++
			}
		case c.hasFeeders():
			fed++
		}
	}
	for p := range h.prefaces {
		if p.inCall.Load() {
			inCall++
			shaking++
		}
	}
	return len(h.live) + len(h.prefaces) + h.logging, inCall, shaking, fed
}

// Shutdown ends everything gracefully: it stops accepting and dialing, and
// ends the input of every connection as if its peer had finished. What was
// read before is delivered and may still be answered until Ended is taken;
// then each connection's output is flushed and ended, its input drained for at
// most Options.Linger, and it is closed. When all are, Shutdown does what Close
// does. When ctx ends before, the rest is closed and reported, and the cause of
// ctx's end is returned. After a nil error, Disconnected of every Handler has
// returned, unless a callback has called Shutdown, or somebody Close meanwhile; else
// it is as after Close.
//
// It may be called where Events is received from, and so waits for the loop to come back
// for another batch no longer than Linger, or twice that if it has one in hand
// (DefaultLinger, if that is none), whatever ctx is. A loop that takes longer for one may
// find its answers refused with ErrClosed, although Shutdown returns nil: it sets a longer
// Linger, or HalfOpen. What was accepted before is written, unless Close is called then.
// Connections with HalfOpen set are the user's to Finish until ctx ends. Each of the
// others ends by itself: what is passed on to it may be refused with ErrClosed while
// there is input from others.
//
// Handshakes end at once. A rule, a Classify or a callback of TLS that is running in one is
// waited for no longer than Linger (likewise).
//
// Of a hub that is closed already, Shutdown waits for the end and returns nil.
//
// Messages that have not come completely are not delivered, and a Stream that is
// being read fails with ErrClosed; nor is what came behind that. What the peer still
// sends of it is discarded, so that the peer notices nothing but that no answer comes
// before the end. To let Streams end, close the Listeners, wait until they were read, and
// then call Shutdown.
func (h *Hub) Shutdown(ctx context.Context) error {
	h.mu.Lock()
	if h.stage == running {
		h.stage = draining
		h.stopDials()
	}
	h.mu.Unlock()
	conns, listeners := h.everything()
	for _, l := range listeners {
		l.stop()
	}
	prefaces := h.failPrefaces(nil)
	for _, c := range conns {
		c.endInput()
	}
	err := h.drain(ctx)
	h.Close()
	prefaces.Wait()
	return err
}

// drain waits until all connections are gone or ctx ends. Whenever the user
// has not taken a batch for Linger, it counts all Ended as taken.
//
// A caller in a callback would wait for its own connection, which waits for the
// callback. So if for Linger nothing is left but connections whose callbacks wait here,
// drain returns; likewise if nothing is but handshakes in callbacks, which let nobody in any
// more.
func (h *Hub) drain(ctx context.Context) error {
	const look = 5 * time.Millisecond
	linger := orElse(h.o.Linger, DefaultLinger) // without one, the user gets as much time all the same
	taken, since := h.fan.taken(), h.watch.Now()
	within := withinCallback()
	if within {
		h.within.Add(1)
		defer h.within.Add(-1)
	}
	var alone time.Duration // since when
	for {
		n, inCall, shaking, fed := h.liveConns()
		switch in := n - shaking; {
		case n == 0:
			return nil
		case in > 0 && (!within || in > int(h.within.Load())) || inCall+fed < n:
			alone = 0
		case alone == 0:
			alone = h.watch.Now()
		case h.watch.Now()-alone >= linger:
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-h.closed:
			return nil
		case <-h.left:
			continue
		case <-time.After(max(since+linger-h.watch.Now(), look)):
		}
		if now := h.fan.taken(); now != taken {
			taken, since = now, h.watch.Now()
		} else if h.watch.Now()-since >= linger {
			conns, _ := h.everything()
			for _, c := range conns {
				c.endTaken()
			}
		}
	}
}

// withinCallback reports whether this goroutine is in a callback of some hub's, other than
// those of a handshake, which drain does not wait for anyway. Nothing
// but the stack can tell: Shutdown is given neither the callback's Reply nor its Conn.
// Every goroutine of the hub that runs code of the user's begins with one of these
// functions; one that is added has to be named here.
func withinCallback() bool {
	var pcs [64]uintptr
	for skip := 2; ; skip += len(pcs) {
		n := runtime.Callers(skip, pcs[:])
		frames := runtime.CallersFrames(pcs[:n])
		for more := n > 0; more; {
			var f runtime.Frame
			f, more = frames.Next()
			switch f.Function {
			case nameOfAsk, nameOfTLS, nameOfPreface: // the first two are called by serve
				return false
			case nameOfServe, nameOfFeeder, nameOfCloser:
				return true
			}
		}
		if n < len(pcs) {
			return false
		}
	}
}

var (
	nameOfServe   = nameOf((*Conn).serve)
	nameOfAsk     = nameOf((*Conn).ask)
	nameOfTLS     = nameOf(transport.Handshake)
	nameOfPreface = nameOf((*preface).run)
	nameOfFeeder  = nameOf((*Conn).feedFrom)
	nameOfCloser  = nameOf((*Conn).callClose)
)

// nameOf is the name that runtime.Frame has for a function.
func nameOf(function any) string {
	return runtime.FuncForPC(reflect.ValueOf(function).Pointer()).Name()
}

// ---- clients and names ----

// Lookup returns the ID of the client with this name: an expected one, or an
// unexpected one that is connected. It also returns whether there is one.
func (h *Hub) Lookup(name string) (ID, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if cl := h.names[name]; cl != nil {
		return cl.id, true
	}
	return 0, false
}

// Expect registers a client by its name, and returns the ID that it has from
// then on, connected or not. If a peer is connected under this name already, it
// becomes the client, keeps its ID and is reported in Connected; but if
// ClientOptions.Admit does not admit it, its connection ends. (Since it was
// in Unknown it may have ended, or another one of its name have come: the ID is that
// one's then.)
//
// Errors: ErrBadName; ErrNameTaken if the name is registered; ErrClosed.
func (h *Hub) Expect(name string, o *ClientOptions) (ID, error) {
	if err := checkName(name); err != nil {
		return 0, err
	}
	r, err := o.resolve()
	if err != nil {
		return 0, err
	}
	for {
		owner, err := h.unexpectedOwner(name)
		if err != nil {
			return 0, err
		}
		var denied error
		if owner != nil {
			denied = admit(owner.peer, r.Admit)
		}
		if id, done := h.register(name, r, owner, denied); done {
			return id, nil
		}
	}
}

// unexpectedOwner returns the connection that has a name which is not
// registered, or nil.
func (h *Hub) unexpectedOwner(name string) (*Conn, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stage != running {
		return nil, ErrClosed
	}
	cl := h.names[name]
	switch {
	case cl == nil:
		return nil, nil
	case cl.expected != nil:
		return nil, fmt.Errorf("%w: %q is registered", ErrNameTaken, name)
	}
	return cl.owner, nil
}

// register is the last step of Expect. It is not done if the name changed
// hands meanwhile.
func (h *Hub) register(name string, o *ClientOptions, owner *Conn, denied error) (id ID, done bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	cl := h.names[name]
	if cl == nil && owner != nil || cl != nil && (cl.expected != nil || cl.owner != owner) {
		return 0, false
	}
	if cl == nil || denied != nil || owner.finished() {
		// Who is not admitted, or about to be gone, keeps the ID that he had,
		// and the name to his very end.
		old := cl
		if cl = h.newClientLocked(name); old != nil {
			cl.owner, cl.seq, old.claims, cl.claims = owner, old.seq, nil, old.claims
			if owner.client != old { // old was registered and forgotten before
				h.table.Remove(uint64(old.id))
			}
		}
		cl.expected = o
		if denied != nil {
			owner.fail(denied) // before anybody can Forget the name, and Expect and adopt it again
		}
		return cl.id, true
	}
	if o.Overflow != 0 {
		owner.mu.Lock()
		owner.out.policy = o.Overflow
		owner.mu.Unlock()
	}
	h.fan.adopt(owner, o)
	return cl.id, true
}

func (h *Hub) newClientLocked(name string) *client {
	cl := h.table.Add(func(n uint64) *client { return &client{id: ID(n), name: name} })
	if name != "" {
		h.names[name] = cl
	}
	return cl
}

// Forget ends what Expect or Dial began: the name is not registered any more,
// or the peer not dialed again, and the live connection ends with ErrClosed.
// The ID is gone when its Disconnected was taken. ErrUnknownID if there is no
// such client.
func (h *Hub) Forget(id ID) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	cl := h.table.Get(uint64(id))
	if cl == nil {
		return ErrUnknownID
	}
	h.letGoLocked(cl)
	if c := cl.owner; c != nil && c.client == cl { // else it only keeps the name until it has ended
		c.fail(ErrClosed) // before anybody can Expect the name and adopt it
	}
	return nil
}

// letGoLocked makes cl a client who does not come back.
func (h *Hub) letGoLocked(cl *client) {
	if cl.redial != nil {
		cl.redial()
		cl.redial = nil
	}
	h.fan.mu.Lock()
	cl.expected = nil
	ending := cl.ending
	h.fan.mu.Unlock()
	if cl.owner == nil {
		if h.names[cl.name] == cl {
			remove(&h.names, cl.name)
		}
		if !ending { // else at that moment
			h.table.Remove(uint64(cl.id))
		}
	}
}

// admission is what became of a connection that asked to be let in.
type admission int

const (
	admitted   admission = iota
	nameBusy             // the name's owner is about to end; the connection is woken when it has
	ruleUnread           // another rule holds for the name than the connection was asked
)

// nameOptions are those with which the name is registered, or nil.
func (h *Hub) nameOptions(name string) *ClientOptions {
	h.mu.Lock()
	defer h.mu.Unlock()
	if cl := h.names[name]; cl != nil {
		return cl.expected
	}
	return nil
}

// admit finds or makes the client of a connection whose handshake is otherwise
// done, and takes a slot for it. If another connection has to go first, that
// is returned too, for the caller to end it.
func (h *Hub) admit(c *Conn) (a admission, replaced *Conn, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stage != running {
		return 0, nil, ErrClosed
	}
	g := c.greet
	if g.seq == 0 {
		h.lastClaim++
		g.seq = h.lastClaim
	}
	name, cl := "", g.client
	if cl != nil && cl.redial == nil {
		return 0, nil, ErrClosed // forgotten meanwhile
	}
	if !c.peer.Dialed {
		name = c.peer.Name
		cl = h.names[name]
	}
	var registered *ClientOptions
	if cl != nil {
		registered = cl.expected
	}
	if registered != g.asked {
		return ruleUnread, nil, nil
	}
	if cl != nil && cl.owner != nil {
		replaced, err := h.claimLocked(cl, c)
		return nameBusy, replaced, err
	}
	if name != "" && (cl == nil || cl.expected == nil) && h.o.Unexpected == RefuseUnexpected {
		return 0, nil, &AdmissionError{Peer: c.peer, Err: errUnexpected}
	}
	if err := h.roomForLocked(c); err != nil {
		if g.outbid && err == ErrTooManyConns {
			err = ErrReplaced
		}
		return 0, nil, err
	}
	if err := c.letIn(); err != nil {
		return 0, nil, err
	}
	h.places.Take(c.group(), &g.place)
	if packet.Shared(c.t) {
		h.sockets[c.listener] = struct{}{}
	}
	if cl == nil {
		cl = h.newClientLocked(name)
	}
	if c.peer.Dialed {
		h.totals.Dialed++
	} else {
		h.totals.Accepted++
	}
	h.removePendingLocked(g)
	cl.owner, cl.seq, c.client = c, g.seq, cl
	return admitted, nil, nil
}

// claimLocked has c wait for the end of the connection that has its name, unless that is
// to keep it, and returns that connection if it is for the caller to end.
func (h *Hub) claimLocked(cl *client, c *Conn) (replaced *Conn, err error) {
	refuse := cl.duplicates(h) == RefuseNew
	// Came c before the owner, which did not have to wait, or was faster? Or is c what its
	// peer has left, perhaps for the owner, before the name was read?
	later := cl.seq > c.greet.seq || cl.owner.born > c.born && c.outlook() != stays
	switch ends := cl.owner.outlook(); {
	case refuse && ends == stays:
		return nil, fmt.Errorf("%w: %q", ErrNameTaken, cl.name)
	case later && ends == stays:
		return nil, ErrReplaced
	case refuse, later:
		// It ends by itself.
	case ends == leavesSoon:
		h.outbidLocked(cl, c) // likewise, or for another that claims the name
	case ends == unread && c.patient():
		// What its peer has sent before it finished, and came back, is to be read.
	default:
		if err := h.promiseLocked(c, cl.owner); err != nil {
			return nil, err
		}
		replaced = cl.owner
	}
	if !slices.Contains(cl.claims, c) {
		cl.claims = append(cl.claims, c)
	}
	return replaced, nil
}

// unclaimLocked has c, which was not let in, wait no longer, and reports whether it did.
func (h *Hub) unclaimLocked(c *Conn) (waited bool) {
	cl := h.names[c.peer.Name]
	if c.peer.Dialed {
		cl = c.greet.client // which is not in names, as its peer has given none
	}
	if cl == nil || !slices.Contains(cl.claims, c) {
		return false
	}
	cl.claims = without(cl.claims, c)
	for _, w := range slices.Backward(cl.claims) {
		if w.listener == c.listener && c.greet.place.Pass(&w.greet.place) {
			w.greet.outbid = false
		}
	}
	return true
}

// outbidLocked gives c the place that was promised to one on the same listener that has
// claimed the name before: it would keep c out, which is to have the name.
func (h *Hub) outbidLocked(cl *client, c *Conn) {
	for _, w := range cl.claims {
		if w.listener == c.listener && w.greet.seq < c.greet.seq && w.greet.place.Pass(&c.greet.place) {
			w.greet.outbid = true
		}
	}
}

var errUnexpected = errors.New("nobody is expected under this name")

// promiseLocked keeps a place for c, for which old is to go, or returns which limit keeps
// it out: else both would be gone.
func (h *Hub) promiseLocked(c, old *Conn) error {
	switch place := &c.greet.place; {
	case place.Made():
		return nil
	case h.budget.full():
		return ErrMemoryLimit
	case !h.places.Promise(place, c.group(), old.group()):
		return ErrTooManyConns
	}
	return nil
}

// roomForLocked returns which limit keeps c out, or nil. One that follows the owner of its
// name may go beyond MaxConns: the owner's place is free when its Disconnected was taken. And
// anybody may take the place of a session of packets while these have more than half of the
// places, and a session always that of another on its socket.
func (h *Hub) roomForLocked(c *Conn) error {
	place := &c.greet.place
	full := h.places.FullBeyond(place) || h.places.Full() && !c.follows
	switch {
	case h.budget.full():
		return ErrMemoryLimit
	case packet.Shared(c.t):
		if full && !packet.AtLimit(c.t) && h.evictLocked() {
			full = false
		}
		evicted, ok := packet.LetIn(c.t, full, h.places.MayEvict())
		if !ok {
			return ErrTooManyConns
		}
		if evicted {
			h.places.Evicted()
		}
	case c.group().Full(place), full && (h.places.FullBeyond(place) || !h.evictLocked()):
		return ErrTooManyConns
	}
	return nil
}

// group is the places of the listener that has accepted c, or nil.
func (c *Conn) group() *places.Group {
	if c.listener == nil {
		return nil
	}
	return &c.listener.places
}

// evictLocked ends a session of packets, which need not share a socket with the one that
// it makes place for, and reports whether it has. It is the one that was silent for longest
// where there are most of them. That sessions yield is because anybody can have as many as
// there are addresses to send from. They do not below half of the places: who connects
// could have them all as well, one after the other.
func (h *Hub) evictLocked() bool {
	var most *packet.Listener
	n, sessions := 0, 0
	for l := range h.sockets {
		p := l.inner.(*packet.Listener) // nobody else has clients that share a socket
		k := p.Sessions()
		sessions += k
		if k > n {
			most, n = p, k
		}
	}
	if sessions <= h.o.MaxConns/2 || !h.places.MayEvict() || !most.Evict() {
		return false
	}
	h.places.Evicted()
	return true
}

// duplicates is the policy that holds for a second claim on the name.
func (cl *client) duplicates(h *Hub) DuplicatePolicy {
	if cl.expected != nil && cl.expected.Duplicates != 0 {
		return cl.expected.Duplicates
	}
	return h.o.Duplicates
}

func (h *Hub) removePendingLocked(g *greeting) {
	if g.entry != nil {
		h.pending.Remove(g.entry)
		g.entry = nil
	}
}

// depart takes a connection whose reader is done out of the hub. It returns whether Events
// is told.
func (h *Hub) depart(c *Conn, d Disconnection) (reported bool) {
	stats := c.Stats()
	var claims []*Conn
	h.mu.Lock()
	remove(&h.live, c)
	if c.client == nil && h.unclaimLocked(c) && errors.Is(d.Err, ErrHandshakeTimeout) {
		d.Err = fmt.Errorf("%w: the connection that has the name has not ended", d.Err)
	}
	if c.greet != nil {
		h.removePendingLocked(c.greet)
		h.places.Withdraw(&c.greet.place)
	}
	refused := h.countLocked(c, d.Err)
	h.totals.add(stats)
	h.totals.Dropped += d.Report.DroppedMessages
	if cl := c.client; cl != nil {
		h.totals.Disconnected++
		cl.conn.CompareAndSwap(c, nil)
		claims = h.disownLocked(cl, c)
		if n := h.names[cl.name]; n != nil && n != cl {
			claims = append(claims, h.disownLocked(n, c)...)
		}
		if c.group().Leave() {
			delete(h.sockets, c.listener)
		}
		// Before anybody who claims the name can be let in, so that the old
		// connection's end is reported first.
		if reported = h.fan.disconnected(c, d); !reported {
			h.freeLocked(c)
		}
	} else {
		h.leftLocked(c)
	}
	if refused {
		h.logging++
		defer h.logged()
	}
	h.mu.Unlock()
	for _, w := range claims {
		w.kickReader()
	}
	switch {
	case refused && c.peer.Dialed:
		h.log.Info("handshake failed", "peer", c, "error", d.Err)
	case refused:
		h.log.Info("connection refused", "peer", c, "error", d.Err)
	}
	h.someoneLeft()
	return reported
}

// logged is told that the log has the end of one that has left live before.
func (h *Hub) logged() {
	h.mu.Lock()
	h.logging--
	h.mu.Unlock()
	h.someoneLeft()
}

// someoneLeft wakes whoever waits for all to leave.
func (h *Hub) someoneLeft() { nudge(h.left) }

// disownLocked takes a client from its owner, if that is c, and returns the
// connections that have waited for this.
func (h *Hub) disownLocked(cl *client, c *Conn) (claims []*Conn) {
	if cl.owner != c {
		return nil
	}
	cl.owner = nil
	if cl.expected == nil && h.names[cl.name] == cl {
		remove(&h.names, cl.name)
		if c.client != cl { // which was registered for another, and forgotten before c's end
			h.table.Remove(uint64(cl.id))
		}
	}
	claims, cl.claims = cl.claims, nil
	for _, w := range claims {
		w.follows = true
	}
	return claims
}

// remove deletes a key. A map keeps the table that it has once needed, so one
// that has become empty is replaced: a crowd that has left costs no memory.
func remove[K comparable, V any](m *map[K]V, key K) {
	delete(*m, key)
	if len(*m) == 0 {
		*m = make(map[K]V)
	}
}

// without takes c out of conns, whose memory it uses again.
func without(conns []*Conn, c *Conn) []*Conn {
	return slices.DeleteFunc(conns, func(x *Conn) bool { return x == c })
}

// leftLocked is told that a connection is gone, and that nobody will hear of it any more.
func (h *Hub) leftLocked(c *Conn) {
	if packet.WasEvicted(c.t) {
		h.places.EvictedGone()
	}
}

// free gives back the slots of connections that have ended and of which nobody
// will hear any more, and the IDs under which nobody will come back.
func (h *Hub) free(gone []*Conn) {
	if len(gone) == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range gone {
		h.freeLocked(c)
	}
}

// freeLocked gives back what one of them still has.
func (h *Hub) freeLocked(c *Conn) {
	cl := c.client
	h.places.Free()
	h.budget.forget(c.reported)
	h.leftLocked(c)
	h.fan.mu.Lock()
	ending := cl.ending // another connection's Disconnected is still to be taken
	h.fan.mu.Unlock()
	if cl.expected == nil && cl.redial == nil && cl.owner == nil && !ending {
		h.table.Remove(uint64(cl.id))
	}
}

// countLocked files the end of a connection, and reports whether that is one that
// was refused.
func (h *Hub) countLocked(c *Conn, err error) (refused bool) {
	var (
		denied   *AdmissionError
		panicked *PanicError
		t        = &h.totals
	)
	if errors.As(err, &panicked) {
		t.Panics++
	}
	switch {
	case c.client != nil:
		if errors.Is(err, ErrSlowPeer) {
			t.SlowPeers++
		}
		if c.badInput || errors.Is(err, ErrMessageTooLarge) { // also a packet
			t.ProtocolErrors++
		}
		return false
	case errors.As(err, &denied):
		t.RefusedPolicy++
	case errors.Is(err, ErrBadName), errors.Is(err, ErrNameTaken), errors.Is(err, ErrReplaced),
		(c.badInput || errors.Is(err, ErrMessageTooLarge)) && !c.peer.Dialed: // also a packet
		t.RefusedName++
	case errors.Is(err, ErrTooManyConns), errors.Is(err, ErrMemoryLimit):
		t.RefusedLimit++
	case errors.Is(err, ErrHandshakeTimeout):
		t.HandshakeTimeouts++
	case errors.Is(err, ErrClosed), errors.Is(err, io.ErrUnexpectedEOF):
		return false
	case errors.Is(err, errTLSHandshake) && !c.peer.Dialed && !hasLeft(err):
		t.ProtocolErrors++
	}
	return true
}

// hasLeft reports that a handshake has failed because its peer is gone.
func hasLeft(err error) bool {
	var errno syscall.Errno
	return errors.Is(err, io.EOF) || errors.As(err, &errno)
}

// ---- batches ----

// Batch is what happened on a hub's connections since the batch before. Its
// fields stand in the order in which to handle them. It concerns at most one
// connection of any ID, and may be empty. It belongs to whoever received it: the
// hub does not touch its slices any more, and what is in the messages is the
// receiver's too, with ReuseBuffers until Release.
type Batch struct {
	Connected    []*Conn         // expected and dialed clients that connected
	Unknown      []*Conn         // other clients that connected: anonymous, or with a name nobody registered
	Received     []Delivery      // data, connection by connection
	Drained      []*Conn         // the queue is empty again, after output had to wait or was refused, or as NotifyDrained has asked
	Ended        []*Conn         // peers that finished sending
	Disconnected []Disconnection // exactly one for each connection reported before

	lent atomic.Pointer[chunk.Loan] // what Release gives back; nil: nothing
}

// batch is a Batch until the hub knows that it was taken. Its receiver may have it
// already, so that the hub changes no more than the notes then.
type batch struct {
	*Batch
	*notes
}

// notes are the hub's own about a Batch, whose slices are its receiver's to change.
// They are used again: where every message comes alone, a third of what it takes would be
// theirs, and what the slowest messages wait for is the garbage collector.
type notes struct {
	seq     uint64   // of the batch
	charges []charge // of Received, in the same order
	ended   []*Conn  // as Ended
	gone    []*Conn  // as in Disconnected
}

// Delivery is what came on one connection: whole messages, or pieces of raw
// input. Every slice has cap == len, so appending to one copies it.
type Delivery struct {
	Conn     *Conn    // on which it came
	Messages [][]byte // in the order in which they came; in raw mode pieces
	Stream   *Stream  // at most one, after Messages; nil mostly
}

// Disconnection is the end of one connection. Its Err matches one of these:
//
//	io.EOF               the peer has finished or closed, between two messages, for whatever reason
//	io.ErrUnexpectedEOF  it has finished in the middle of one
//	ErrClosed            this side has closed or finished it, or the hub
//	ErrSlowPeer          WriteTimeout, or DisconnectPeer
//	ErrFrameTimeout      a message that had begun stood still
//	ErrIdleTimeout       nothing came
//	ErrMessageTooLarge   what came was announced as larger than MaxMessage
//	ErrReplaced          another has its name now; the peer itself sees a plain close
//	ErrTooManyConns      a datagram client that made place for another
//	*AdmissionError      a later Expect does not admit it
//	*PanicError          a callback has panicked
//	*net.OpError         an error of the system, such as a reset
//
// or is an error of the user's: of a Framing that cannot read what came, or of a
// SendFrom that has failed when a part of its message was written.
type Disconnection struct {
	Conn   *Conn  // that has ended
	Err    error  // why; never nil
	Report Report // what became of its output
}

// charge is what a connection's part of a batch counts against its limit.
type charge struct {
	conn  *Conn
	bytes int64
}

// Messages yields all messages of Received, connection by connection. It passes
// over Delivery.Stream: a program that sets StreamOver and receives from Events
// has to read or close each one, or its connection stands still. If it answers from
// the goroutine that reads, it needs HalfOpen: see Stream.
func (b *Batch) Messages() iter.Seq2[*Conn, []byte] {
	return func(yield func(*Conn, []byte) bool) {
		for _, d := range b.Received {
			for _, m := range d.Messages {
				if !yield(d.Conn, m) {
					return
				}
			}
		}
	}
}

// Release gives the buffers of all messages in the batch back, where
// ReuseBuffers is set; they, and the Delivery.Messages that list them, must not be
// used after it. Otherwise it does nothing. Calling it again does nothing. It may be
// called after the hub was closed.
func (b *Batch) Release() {
	if l := b.lent.Swap(nil); l != nil {
		l.Release()
	}
}

// loan is b's, which is made with the first thing that is lent. b is the hub's still.
func (b *Batch) loan() *chunk.Loan {
	l := b.lent.Load()
	if l == nil {
		l = chunk.GetLoan()
		b.lent.Store(l)
	}
	return l
}

// ---- the fan-in ----

// fan gathers what readers and writers report into the next batch, and is the
// fanin.Source of the hub goroutine, which puts it into Events.
type fan struct {
	hub *Hub

	// mu guards what follows and every Conn.ev. It may be taken with hub.mu held. Inside
	// it only a transport's lock is taken, by kickReader; no Conn.mu.
	mu       sync.Mutex
	put      batch   // in Events, and not known to be taken; or nothing
	next     batch   // what is reported now goes here
	some     bool    // there is something in next
	seq      uint64  // of the last batch that was taken
	endLater []*Conn // Ended waits until their last data was taken
	diverts  []*Conn // what of them is in no batch that was taken is withdrawn
	paused   int     // connections that do not read because too much of theirs was not taken
	untaken  int64   // charged to input that was not taken
	likely   int     // connections whose input was in the last batch
	spare    *notes  // of a batch that was taken, for the next; or nil
	made     uint64  // batches
	finished bool    // Close is about to put the last batch: nothing is reported any more
}

// connEvents is what the fan knows of one connection.
type connEvents struct {
	published bool     // it was reported
	adopted   bool     // by Expect, after that
	over      bool     // its Disconnected was, or it never will be
	endLater  bool     // it is in fan.endLater
	paused    bool     // it does not read
	diverted  bool     // a Handler gets it, or has it
	untaken   int64    // charged to input that was not taken
	last      uint64   // the batch that its last data is in
	in        [2]place // where it stands in a batch; the index is the batch's seq mod 2
}

// maxLikely is the most room that is made beforehand, for deliveries.
const maxLikely = 1024

// place is where a connection stands in a batch that is still added to. There
// are two of these at most, the one that waits in the channel and the next, and
// of their numbers one is odd and one even.
type place struct {
	seq      uint64 // of the batch; what follows is nothing in another
	received int32  // index in Received plus 1
	drained  bool   // it is in Drained
}

// inLocked returns c's place in b.
func (c *Conn) inLocked(b batch) *place {
	p := &c.ev.in[b.seq%2]
	if p.seq != b.seq {
		*p = place{seq: b.seq}
	}
	return p
}

// present makes a connection the one of its client.
func (f *fan) present(c *Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c.client.conn.Store(c)
	if c.client.next == c {
		c.client.next = nil // it has waited to be reported, and will not be
	}
}

// publish reports a new connection, unless the end of another one of the same
// client was reported and not taken yet: then that is waited for.
func (f *fan) publish(c *Conn) (published bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c.ev.diverted = false
	switch {
	case f.finished:
		return false // nobody would hear of its end
	case c.ev.published:
		return true // before it had a Handler
	case c.client.ending:
		c.client.next = c
		return false
	}
	c.ev.published = true
	c.client.conn.Store(c)
	if c.client.expected != nil || c.peer.Dialed {
		f.next.Connected = append(f.next.Connected, c)
	} else {
		f.next.Unknown = append(f.next.Unknown, c)
	}
	f.addedLocked()
	return true
}

// knows reports whether a connection was reported.
func (f *fan) knows(c *Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return c.ev.published
}

// adopt makes the client of an unexpected connection an expected one.
func (f *fan) adopt(c *Conn, o *ClientOptions) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c.client.expected = o
	if !c.ev.published {
		return // it will be reported as what it is then
	}
	c.ev.adopted = true
	f.adoptedLocked(f.next, c)
	f.addedLocked()
}

// adoptedLocked reports a connection in b as an expected one's.
func (f *fan) adoptedLocked(b batch, c *Conn) {
	b.Unknown = without(b.Unknown, c)
	b.Connected = append(b.Connected, c)
}

// deliver reports what came, and takes over what that is charged; but not when
// nobody receives any more. The caller is to pause reading if it says so, until the
// connection is told to go on.
func (f *fan) deliver(c *Conn, s *scratch, bytes int64) (pause bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.finished {
		return false
	}
	s.delivered += bytes
	f.receivedLocked(f.next, c, s.msgs, bytes, nil)
	if s.chunk != nil {
		l := f.next.loan()
		l.Keep(s.chunk)
		l.Take(s.own)
	}
	f.untaken += bytes
	c.ev.untaken += bytes
	pause = c.ev.untaken >= c.set.connIn
	f.pauseLocked(c, pause)
	f.addedLocked()
	return pause
}

// awaits reports whether something of a connection was not taken.
func (f *fan) awaits(c *Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return c.ev.untaken > 0 && !f.finished
}

// pauseUntaken has a connection told to go on when all of it was taken, if there is
// something that was not.
func (f *fan) pauseUntaken(c *Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c.ev.untaken == 0 || f.finished {
		return false
	}
	f.pauseLocked(c, true)
	f.hub.signal() // it is wanted now
	return true
}

// deliverStream reports a message that is to be read by the user.
func (f *fan) deliverStream(c *Conn, s *Stream) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.receivedLocked(f.next, c, nil, 0, s)
	f.addedLocked()
}

// receivedLocked adds to a batch.
func (f *fan) receivedLocked(b batch, c *Conn, msgs [][]byte, bytes int64, s *Stream) {
	in := c.inLocked(b)
	if in.received == 0 {
		if b.Received == nil { // as many are likely as the last time
			b.Received = make([]Delivery, 0, f.likely)
		}
		b.Received = append(b.Received, Delivery{Conn: c})
		b.charges = append(b.charges, charge{conn: c})
		in.received = int32(len(b.Received))
	}
	d := &b.Received[in.received-1]
	switch {
	case len(msgs) == 0:
	case c.set.reuse:
		d.Messages = b.loan().List(d.Messages, msgs)
	default:
		d.Messages = append(d.Messages, msgs...)
	}
	if s != nil {
		d.Stream = s // nothing comes behind it until it was read, so until b was taken
	}
	b.charges[in.received-1].bytes += bytes
	c.ev.last = b.seq
}

// endedInput reports that a peer has finished sending, in a later batch than that
// with its last data: when it is taken, its receiver has answered that.
func (f *fan) endedInput(c *Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c.ev.last > f.seq {
		c.ev.endLater = true
		f.endLater = append(f.endLater, c)
		f.hub.signal()
		return
	}
	f.endLocked(c)
}

func (f *fan) endLocked(c *Conn) {
	f.next.Ended = append(f.next.Ended, c)
	f.next.ended = append(f.next.ended, c)
	f.addedLocked()
}

// drained reports that a connection's output is with the kernel, unless that is not for
// Events any more.
func (f *fan) drained(c *Conn) (ours bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c.ev.diverted {
		return false
	}
	if c.ev.published && !c.ev.over {
		f.drainedLocked(f.next, c)
		f.addedLocked()
	}
	return true
}

func (f *fan) drainedLocked(b batch, c *Conn) {
	if in := c.inLocked(b); !in.drained {
		in.drained = true
		b.Drained = append(b.Drained, c)
	}
}

// disconnected reports the end of a connection, if it was reported itself.
func (f *fan) disconnected(c *Conn, d Disconnection) (reported bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c.ev.over = true
	f.pauseLocked(c, false)
	if c.ev.endLater {
		c.ev.endLater = false
		f.endLater = without(f.endLater, c)
	}
	if c.client.next == c {
		c.client.next = nil
	}
	f.diverts = without(f.diverts, c)
	if !c.ev.published || f.finished {
		return false
	}
	c.client.ending = true
	f.next.Disconnected = append(f.next.Disconnected, d)
	f.next.gone = append(f.next.gone, c)
	f.addedLocked()
	return true
}

// divert withdraws everything of a connection that is in no batch that was
// taken, for its new Handler; its reader is told when that is done. Nothing may
// be delivered meanwhile.
func (f *fan) divert(c *Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c.ev.diverted = true
	f.diverts = append(f.diverts, c)
	f.addedLocked()
}

// undivert has what is reported from now on of c in the batches again.
func (f *fan) undivert(c *Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c.ev.diverted = false
}

func (f *fan) isDiverted(d *diversion) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return d.done
}

// withdrawLocked takes what was delivered of c out of b, which holds all that
// was not taken. It returns what that was charged.
func (f *fan) withdrawLocked(b batch, c *Conn) (charged int64) {
	d := c.diverted
	if in := c.inLocked(b); in.received > 0 {
		i, last := int(in.received)-1, len(b.Received)-1
		d.msgs, d.stream = b.Received[i].Messages, b.Received[i].Stream != nil
		if c.set.reuse { // the batch keeps their chunks, but not for us
			d.msgs = slices.Clone(d.msgs)
			for j, m := range d.msgs {
				d.msgs[j] = slices.Clip(bytes.Clone(m))
			}
		}
		charged = b.charges[i].bytes
		f.untaken -= charged
		c.ev.untaken -= charged
		b.Received[i], b.charges[i] = b.Received[last], b.charges[last]
		b.Received[i].Conn.inLocked(b).received = in.received
		b.Received, b.charges = b.Received[:last], b.charges[:last]
		in.received = 0
	}
	if c.ev.endLater || slices.Contains(b.ended, c) {
		f.endLater = without(f.endLater, c)
		b.ended = without(b.ended, c)
		b.Ended = without(b.Ended, c)
		c.ev.endLater, d.ended = false, true
	}
	if in := c.inLocked(b); in.drained {
		in.drained, d.drained = false, true
		b.Drained = without(b.Drained, c)
	}
	d.paused = c.ev.paused
	f.pauseLocked(c, false)
	d.done = true
	return charged
}

func (f *fan) pauseLocked(c *Conn, pause bool) {
	if c.ev.paused == pause {
		return
	}
	c.ev.paused = pause
	if pause {
		f.paused++
	} else {
		f.paused--
	}
}

// addedLocked wakes the hub goroutine for the first thing in a batch.
func (f *fan) addedLocked() {
	if !f.some {
		f.some = true
		f.hub.signal()
	}
}

// taken tells which batch was taken last.
func (f *fan) taken() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seq
}

// Pending implements fanin.Source. It is where the hub goroutine comes whenever
// it was woken.
func (f *fan) Pending() bool {
	if f.hub.poke.Swap(false) {
		f.hub.budget.in.Poke()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.some
}

// Collect implements fanin.Source. What it, Wanted and Taken are given is put.
func (f *fan) Collect(*Batch) *Batch {
	b, withdrawn := f.collect()
	f.hub.budget.in.Give(withdrawn)
	return b
}

// collect makes one batch of put, if there is one, and of what is pending.
func (f *fan) collect() (put *Batch, withdrawn int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.some {
		return f.put.Batch, 0
	}
	b := f.next
	seq := b.seq + 1
	if f.put.Batch == nil {
		f.made++
		f.put = b
	} else {
		f.mergeLocked(f.put, b)
		f.doneLocked(b.notes)
		b = f.put
	}
	for _, c := range f.diverts {
		withdrawn += f.withdrawLocked(b, c)
		c.kickReader()
	}
	f.diverts = nil
	f.some, f.likely = false, min(len(b.Received), maxLikely)
	if seq%2 == b.seq%2 { // the two batches that are added to have different places, see place
		seq++
	}
	n := f.spare
	if f.spare = nil; n == nil {
		n = new(notes)
	}
	n.seq = seq
	f.next = batch{new(Batch), n}
	return b.Batch, withdrawn
}

// doneLocked keeps the notes of a batch that needs them no more.
func (f *fan) doneLocked(n *notes) {
	clear(n.charges)
	*n = notes{charges: n.charges[:0]}
	if cap(n.charges) <= maxLikely {
		f.spare = n
	}
}

// mergeLocked adds what is in b, the later one, to a.
func (f *fan) mergeLocked(a, b batch) {
	for _, c := range b.Connected {
		if c.ev.adopted {
			f.adoptedLocked(a, c)
		} else {
			a.Connected = append(a.Connected, c)
		}
	}
	a.Unknown = append(a.Unknown, b.Unknown...)
	for i, d := range b.Received {
		f.receivedLocked(a, d.Conn, d.Messages, b.charges[i].bytes, d.Stream)
	}
	for _, c := range b.Drained {
		f.drainedLocked(a, c)
	}
	if l := b.lent.Swap(nil); l != nil {
		a.loan().Absorb(l)
	}
	a.Ended = append(a.Ended, b.Ended...)
	a.ended = append(a.ended, b.ended...)
	a.Disconnected = append(a.Disconnected, b.Disconnected...)
	a.gone = append(a.gone, b.gone...)
}

// Wanted implements fanin.Source.
func (f *fan) Wanted(*Batch) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.put.notes
	return len(f.endLater) > 0 || f.paused > 0 || len(n.ended) > 0 || len(n.gone) > 0 ||
		len(n.charges) > 0 && f.hub.budget.in.Waiting()
}

// Taken implements fanin.Source. What follows from it is done to connections
// and clients, so outside the fan's lock.
func (f *fan) Taken(*Batch) {
	var (
		resumed []*Conn
		taken   int64
	)
	f.mu.Lock()
	n := f.put.notes
	f.put, f.seq = batch{}, n.seq
	for _, ch := range n.charges {
		taken += ch.bytes
		e := &ch.conn.ev
		e.untaken -= ch.bytes
		if e.paused && e.untaken < ch.conn.set.connIn {
			f.pauseLocked(ch.conn, false)
			resumed = append(resumed, ch.conn)
		}
	}
	f.endLater = slices.DeleteFunc(f.endLater, func(c *Conn) bool {
		if c.ev.last > f.seq {
			return false
		}
		c.ev.endLater = false
		f.endLocked(c)
		return true
	})
	var next []*Conn
	for _, c := range n.gone {
		c.client.ending = false
		if heir := c.client.next; heir != nil {
			c.client.next = nil
			next = append(next, heir)
		}
	}
	f.untaken -= taken
	ended, gone := n.ended, n.gone
	f.doneLocked(n)
	f.mu.Unlock()

	f.hub.epoch.Add(1)
	f.hub.budget.in.Give(taken)
	for _, c := range resumed {
		c.resumeReading()
	}
	for _, c := range ended {
		c.endTaken()
	}
	f.hub.free(gone)
	for _, c := range next {
		c.resumeReading() // its reader publishes it
	}
}

// finish has nothing reported any more but what was: that is in the last batch.
func (f *fan) finish() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.finished = true
}

// countPanic counts the panic of a callback that ended nothing.
func (h *Hub) countPanic() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.totals.Panics++
}

// signal tells the hub goroutine that there is something for it.
func (h *Hub) signal() { nudge(h.wake) }

// nudge wakes who receives from a channel of capacity 1, now or when he next comes to it.
func nudge(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default: // he will find the one before
	}
}
