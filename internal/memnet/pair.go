package memnet

import (
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"time"
)

// DefaultBuffer is what one direction of a connection holds if Options.Buffer
// is zero.
const DefaultBuffer = 64 << 10

// DefaultMaxWait bounds the random waits if Faults.MaxWait is zero.
const DefaultMaxWait = 50 * time.Millisecond

// Options describe a connection, or those of a Listener. They are copied. The
// zero value, and nil, are TCP without faults.
type Options struct {
	// Buffer is the number of bytes that each direction holds between its
	// writer and its reader. 0 means DefaultBuffer.
	Buffer int

	// Seed starts the generator from which the connection draws all its
	// faults. The connections of a Listener draw from different sequences
	// of the same seed. Two runs draw the same numbers in the same order;
	// which call draws which one is also up to the scheduler.
	Seed uint64

	// Faults is what goes wrong. The zero value is nothing.
	Faults Faults

	// Unix makes the connection behave as a Unix stream socket instead of
	// TCP: a read never guesses that it drained, a write to a peer that is
	// gone fails at once with EPIPE instead of being accepted and answered
	// by a reset, and Gone sees an orderly close (io.EOF).
	Unix bool

	// AckOnArrival makes Unacked count the bytes that have not arrived at
	// the peer, as TCP does, instead of those that the peer has not read.
	// They differ from 0 only where Faults delay something.
	AckOnArrival bool

	// NoUnacked, NoWriteNow and NoCloseWrite each take from the transports
	// something that not all have: Unacked and WriteNow report !ok,
	// CloseWrite returns errors.ErrUnsupported. The net.Conn view keeps it.
	NoUnacked, NoWriteNow, NoCloseWrite bool

	// Local and Remote are the addresses of Pair's first end, and the
	// second's in reverse; of a Listener, and of those who dial it. nil
	// means an Addr with a name that tells which end it is.
	Local, Remote net.Addr

	// Backlog is the number of connections that wait in a Listener to be
	// accepted before Dial blocks. 0 means DefaultBacklog. Pair ignores it.
	Backlog int
}

// Faults is what goes wrong on a connection. Probabilities are from 0, never,
// to 1, always; even at 1 everything that can finish does.
type Faults struct {
	// ShortRead is the probability that a read returns less than it could.
	ShortRead float64
	// ShortWrite is the probability that a write takes less than it could,
	// as if the buffer had been full for a moment.
	ShortWrite float64
	// Blind is the probability that a read that drained does not know it.
	Blind float64
	// Spurious is the probability that a park returns with nothing new, and
	// that an arrival for one side of an end wakes the other side too.
	Spurious float64
	// Delay is the probability that what is sent, and what is sent behind
	// it, arrives only after a random while; until then it has left the
	// writer, but the reader does not see it. A Reset of the sender
	// meanwhile loses it.
	Delay float64
	// Stall is the probability that sending stalls the whole connection for
	// a random while: nothing arrives in either direction, and no writer
	// hears of room.
	Stall float64
	// MaxWait bounds each Delay and each Stall. 0 means DefaultMaxWait.
	MaxWait time.Duration

	// ResetAt resets the connection, for both ends, as soon as so many bytes
	// were written by Pair's first end or a Listener's accepted one ([0]), or
	// by the other ([1]). The bytes before that arrive. 0 means never.
	ResetAt [2]int64
	// FailWriteAt makes writes fail, of the ends as in ResetAt, that would
	// exceed so many bytes; input is not affected. 0 means never. The
	// write that reaches the limit may report it beside what it wrote, or
	// leave it to the next.
	FailWriteAt [2]int64
	// WriteError is what they fail with. nil means syscall.ETIMEDOUT.
	WriteError error
}

// Addr is the address of an end that was given none.
type Addr string

// Network returns "mem".
func (Addr) Network() string { return "mem" }

// String returns the name that a is.
func (a Addr) String() string { return string(a) }

// Pair returns the two ends of a new connection. A failing test that used
// Options.Seed prints it, so that the run can be repeated.
func Pair(o *Options) (a, b *End) {
	return newPair(o, 0, nil, nil)
}

// pair is a connection: two ends, and the two flows between them.
//
// One mutex guards all of it. It is never held while anybody waits or while a
// caller's turn runs, so contention on it is short, which synctest needs: a
// goroutine that waits for a mutex is not durably blocked.
type pair struct {
	// Immutable.
	opts Options
	ends [2]End

	mu    sync.Mutex
	rng   *rand.Rand
	flows [2]flow // flows[i] is what ends[i] writes

	// The clock of the faults. A zero time means that it does not hold
	// anything back. The timer runs while stall or a flow's hold is set,
	// and an end is open.
	stall time.Time // until then no writer hears of room
	timer *time.Timer
}

// flow is one direction of a pair, guarded by its mutex. Its counters only
// grow: freed ≤ read ≤ arrived ≤ written, and written − freed ≤ limit.
type flow struct {
	src, dst *End
	limit    int
	ring     []byte // holds what is between read and written; grows up to limit

	written int64 // taken from src
	arrived int64 // visible to dst
	read    int64 // taken by dst
	freed   int64 // of read, what src has heard of

	full bool // src met a full buffer, and has not been told of room since

	// What follows the bytes: a FIN, on Unix sockets the knowledge that src
	// is gone altogether, a reset. Each is set when src sends it and arrives
	// after the bytes before it. A reset overtakes those that are held back:
	// only what is before cut arrives.
	fin, finArrived   bool
	gone, goneArrived bool
	rst, rstArrived   bool
	cut               int64

	hold time.Time // nothing arrives until then; zero: at once
}

func newPair(o *Options, sequence uint64, local, remote net.Addr) (a, b *End) {
	p := new(pair)
	if o != nil {
		p.opts = *o
	}
	if p.opts.Buffer <= 0 {
		p.opts.Buffer = DefaultBuffer
	}
	if p.opts.Faults.MaxWait <= 0 {
		p.opts.Faults.MaxWait = DefaultMaxWait
	}
	if p.opts.Faults.WriteError == nil {
		p.opts.Faults.WriteError = syscall.ETIMEDOUT
	}
	addr := func(candidates ...net.Addr) net.Addr {
		for _, a := range candidates {
			if a != nil {
				return a
			}
		}
		return nil
	}
	local = addr(local, p.opts.Local, Addr("a"))
	remote = addr(remote, p.opts.Remote, Addr("b"))
	p.rng = rand.New(rand.NewPCG(p.opts.Seed, sequence))
	for i := range p.ends {
		e := &p.ends[i]
		e.p, e.index = p, i
		e.out, e.in = &p.flows[i], &p.flows[1-i]
		e.out.src, e.in.dst = e, e
		e.out.limit = p.opts.Buffer
		e.rd.wake.L, e.wr.wake.L = &p.mu, &p.mu
		e.local, e.remote = local, remote
		local, remote = remote, local
	}
	return &p.ends[0], &p.ends[1]
}

// chanceLocked reports true with the given probability. It draws nothing where
// the answer is certain, so that faults that are off cost nothing.
func (p *pair) chanceLocked(probability float64) bool {
	return probability > 0 && p.rng.Float64() < probability
}

// shortenLocked returns n, or with the given probability something less, but
// not nothing.
func (p *pair) shortenLocked(n int, probability float64) int {
	if n > 1 && p.chanceLocked(probability) {
		return 1 + p.rng.IntN(n-1)
	}
	return n
}

// sendLocked lets arrive what was just added to f, now or when the faults
// allow it.
func (p *pair) sendLocked(f *flow) {
	if delay := p.chanceLocked(p.opts.Faults.Delay); delay && f.hold.IsZero() {
		// A hold that is there is not made longer: a writer that keeps
		// writing would otherwise keep its bytes from arriving for good.
		f.hold = p.laterLocked()
		p.armLocked()
	}
	if stall := p.chanceLocked(p.opts.Faults.Stall); stall && p.stall.IsZero() {
		p.stall = p.laterLocked()
		for i := range p.flows {
			if g := &p.flows[i]; g.hold.Before(p.stall) {
				g.hold = p.stall
			}
		}
		p.armLocked()
	}
	p.deliverLocked(f)
}

// laterLocked draws the end of a delay or a stall.
func (p *pair) laterLocked() time.Time {
	return time.Now().Add(1 + time.Duration(p.rng.Int64N(int64(p.opts.Faults.MaxWait))))
}

// armLocked sets the timer to the first moment at which something is let go.
func (p *pair) armLocked() {
	next := p.stall
	for i := range p.flows {
		if h := p.flows[i].hold; !h.IsZero() && (next.IsZero() || h.Before(next)) {
			next = h
		}
	}
	switch {
	case next.IsZero() || p.ends[0].closed && p.ends[1].closed:
	case p.timer == nil:
		p.timer = time.AfterFunc(time.Until(next), p.tick)
	default:
		p.timer.Reset(time.Until(next))
	}
}

// tick lets go what is due. It looks at the clock instead of trusting that it
// was called for something, so a call too many, as Reset can leave behind, does
// no harm.
func (p *pair) tick() {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	due := func(t *time.Time) bool {
		if t.IsZero() || now.Before(*t) {
			return false
		}
		*t = time.Time{}
		return true
	}
	due(&p.stall)
	for i := range p.flows {
		f := &p.flows[i]
		if due(&f.hold) {
			p.deliverLocked(f)
		}
		p.freeLocked(f)
	}
	p.armLocked()
}

// stopLocked releases what a closed connection has no use for.
func (p *pair) stopLocked() {
	if p.timer != nil {
		p.timer.Stop()
	}
	for i := range p.flows {
		p.flows[i].ring = nil
	}
}

// deliverLocked makes visible to f.dst what f.src has sent, unless it is held
// back. Every arrival is an edge; those of one delivery are a single one.
func (p *pair) deliverLocked(f *flow) {
	// A reset that arrived at src ended the connection: of what src sent,
	// only a reset of its own, sent before that, still arrives.
	if !f.hold.IsZero() || f.rstArrived || f.src.reset && !f.rst {
		return
	}
	dst, readable, writable := f.dst, false, false
	if end := f.endLocked(); f.arrived < end {
		if dst.closed {
			// Nobody is there to take it, and the answer to that is
			// a reset. The bytes stay as written and not arrived.
			p.resetLocked(dst.out)
			return
		}
		f.arrived, readable = end, true
	}
	if f.fin && !f.finArrived && !f.rst {
		f.finArrived, readable = true, true
	}
	if f.gone && !f.goneArrived {
		f.goneArrived, readable, writable = true, true, true
	}
	if f.rst {
		f.rstArrived, readable, writable = true, true, true
		dst.resetArrivedLocked()
	}
	spurious := p.opts.Faults.Spurious
	if readable {
		dst.rd.raiseLocked()
		// epoll reports all that is ready with an arrival, so a writer
		// wakes for input too.
		writable = writable || p.chanceLocked(spurious)
	}
	if writable {
		dst.wr.raiseLocked()
	}
}

// overLocked reports that a TCP connection has come to its orderly end: both
// FINs have arrived. Then it is in the state CLOSE, or TIME_WAIT, and no reset
// is sent or taken any more, not even for bytes that one end throws away.
func (p *pair) overLocked() bool {
	return !p.opts.Unix && p.flows[0].finArrived && p.flows[1].finArrived
}

// resetLocked sends a reset behind what has arrived of f.
func (p *pair) resetLocked(f *flow) {
	if !f.rst && !p.overLocked() {
		f.rst, f.cut = true, f.arrived
		p.deliverLocked(f)
	}
}

// breakLocked is a reset by the network, to both ends. What f.src wrote arrives
// before it.
func (p *pair) breakLocked(f *flow) {
	back := f.dst.out
	if !f.rst {
		f.rst, f.cut = true, f.written
	}
	if !back.rst {
		back.rst, back.cut = true, back.arrived
	}
	// Both are marked before either is delivered: the first delivery ends
	// the connection for f.dst, and what it has not sent by then is lost.
	p.deliverLocked(f)
	p.deliverLocked(back)
}

// freeLocked tells f's writer of the room that reading made, when that is
// enough to be worth a wake-up. Linux's measure (sk_stream_is_writable) is that
// the room is half of what is queued, which is a third of the buffer.
func (p *pair) freeLocked(f *flow) {
	if !p.stall.IsZero() {
		return
	}
	f.freed = f.read
	if f.full && f.roomLocked() >= (f.limit+2)/3 {
		f.full = false
		f.src.wr.raiseLocked()
		if p.chanceLocked(p.opts.Faults.Spurious) {
			f.src.rd.raiseLocked()
		}
	}
}

// endLocked is how far f may arrive.
func (f *flow) endLocked() int64 {
	if f.rst {
		return f.cut
	}
	return f.written
}

func (f *flow) roomLocked() int { return f.limit - int(f.written-f.freed) }

// putLocked appends n bytes of v, for which there is room.
func (f *flow) putLocked(v [][]byte, n int) {
	f.growLocked(int(f.written-f.read) + n)
	for _, b := range v {
		b = b[:min(len(b), n)]
		n -= len(b)
		for len(b) > 0 {
			k := copy(f.ring[int(f.written%int64(len(f.ring))):], b)
			f.written += int64(k)
			b = b[k:]
		}
	}
}

// takeLocked moves n bytes, which have arrived, to b.
func (f *flow) takeLocked(b []byte, n int) {
	for b = b[:n]; len(b) > 0; {
		k := copy(b, f.ring[int(f.read%int64(len(f.ring))):])
		f.read += int64(k)
		b = b[k:]
	}
}

// growLocked makes the ring hold n bytes, n being at most limit. It begins
// small, so that a test can afford thousands of connections.
func (f *flow) growLocked(n int) {
	if n <= len(f.ring) {
		return
	}
	ring := make([]byte, min(f.limit, max(n, 2*len(f.ring), 512)))
	for i := f.read; i < f.written; {
		from := f.ring[int(i%int64(len(f.ring))):]
		from = from[:min(int64(len(from)), f.written-i)]
		k := copy(ring[int(i%int64(len(ring))):], from)
		i += int64(k)
	}
	f.ring = ring
}
