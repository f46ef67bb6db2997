package budget

import (
	"math"
	"sync"
	"sync/atomic"
)

// Outbound bounds what was accepted for sending and is not written.
//
// Half of the limit is floors: each connection has its part of that for itself,
// so that none can take away everything. The other half is shared: first come,
// first served. A message that fits neither may take the exempt slot, which
// there is one of, if nothing else is queued on its connection: so a message
// larger than all that is left is delayed, and not refused for ever. The peak
// is the limit and one message, and beside it what Force has taken.
type Outbound[C comparable] struct {
	room func(c C) // called without locks of this package's
	fell func()    // likewise

	limit, step int64 // constant
	shared      atomic.Int64
	floor       atomic.Int64
	used        atomic.Int64
	waiting     atomic.Int64 // len(queue)

	mu    sync.Mutex // guards what follows
	queue []C        // who waits for room
	in    map[C]bool // as queue
	taken bool       // the exempt slot
}

// NewOutbound makes a budget of limit bytes. room is called to tell those that
// wait that there may be room again, fell whenever Used has become less; they
// must not call back.
func NewOutbound[C comparable](limit int64, room func(c C), fell func()) *Outbound[C] {
	b := &Outbound[C]{room: room, fell: fell, in: make(map[C]bool), limit: limit}
	b.shared.Store(limit - limit/2)
	// Shared bytes are taken in steps, so that the counter that all connections
	// share is touched seldom.
	b.step = max(1, min(64<<10, b.shared.Load()/64))
	b.floor.Store(limit / 2)
	return b
}

// Among says how many connections there may be. Where they are too many for floors, the
// whole limit is shared.
func (b *Outbound[C]) Among(conns int) {
	if b.limit == math.MaxInt {
		return
	}
	floor, shared := b.limit/2/int64(max(1, conns)), b.limit-b.limit/2
	if floor == 0 {
		shared = b.limit
	}
	before, had := b.floor.Swap(floor), b.shared.Swap(shared)
	if (floor > before || shared > had) && b.waiting.Load() > 0 {
		b.wake()
	}
}

// Share is one connection's part of an Outbound. Its zero value is none. It is
// guarded by its connection's lock.
type Share struct {
	held   int64 // of the shared half
	exempt int64 // what the message in the exempt slot takes of nothing; 0: none
}

// Used is what is taken of the shared half.
func (b *Outbound[C]) Used() int64 { return b.used.Load() }

// Floor is what each connection has for itself.
func (b *Outbound[C]) Floor() int64 { return b.floor.Load() }

// Has reports whether a connection has room for this charge already.
func (b *Outbound[C]) Has(s *Share, charge int64) bool { return b.lacks(s, charge) <= 0 }

func (b *Outbound[C]) lacks(s *Share, charge int64) int64 {
	return charge - b.floor.Load() - s.held - s.exempt
}

// Take asks for room for a connection whose queue is charged so much with the
// message that is to be accepted. alone: there is no other in it.
func (b *Outbound[C]) Take(s *Share, charge int64, alone bool) bool {
	lacks := b.lacks(s, charge)
	if lacks <= 0 {
		return true
	}
	for {
		used := b.used.Load()
		n := (lacks + b.step - 1) / b.step * b.step
		if n > b.shared.Load()-used {
			n = lacks
		}
		if n > b.shared.Load()-used {
			break
		}
		if b.used.CompareAndSwap(used, used+n) {
			s.held += n
			return true
		}
	}
	return alone && b.takeExempt(s, lacks)
}

// Could reports whether Take would give that much, as things are.
func (b *Outbound[C]) Could(s *Share, charge int64, alone bool) bool {
	if b.lacks(s, charge) <= max(0, b.shared.Load()-b.used.Load()) {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return alone && (!b.taken || s.exempt > 0)
}

// Force takes what Take refuses: what a Handler answers is never refused, but
// the Handler is not called again before there is room.
func (b *Outbound[C]) Force(s *Share, charge int64) {
	if lacks := b.lacks(s, charge); lacks > 0 {
		s.held += lacks
		b.used.Add(lacks)
	}
}

// Overdrawn reports whether Force has taken more than there was, and who has this
// share is one of those who have more than their floor: it is to wait.
func (b *Outbound[C]) Overdrawn(s *Share) bool { return s.held > 0 && b.used.Load() > b.shared.Load() }

// Left is what there is beyond the charge of a connection's queue, as things are.
func (b *Outbound[C]) Left(s *Share, charge int64) int64 {
	if b.limit == math.MaxInt {
		return math.MaxInt
	}
	return b.floor.Load() + s.held + s.exempt - charge + max(0, b.shared.Load()-b.used.Load())
}

func (b *Outbound[C]) takeExempt(s *Share, n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.taken {
		return false
	}
	b.taken, s.exempt = true, n
	return true
}

// Wait says that c was refused, and wants to be told when there is room.
func (b *Outbound[C]) Wait(c C) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.in[c] {
		b.in[c] = true
		b.queue = append(b.queue, c)
		b.waiting.Store(int64(len(b.queue)))
	}
}

// Fell says that a connection's queue is charged so much now, which is less
// than before.
func (b *Outbound[C]) Fell(s *Share, charge int64) {
	if s.held == 0 && s.exempt == 0 {
		return
	}
	freed := false
	if s.exempt > 0 {
		// What was written does not need it any more, and what comes behind is not to have
		// it: small messages without an end would keep it for ever.
		s.exempt = min(s.exempt, max(0, charge-b.floor.Load()-s.held))
		if s.exempt == 0 { // what is left fits without the slot
			b.mu.Lock()
			b.taken = false
			b.mu.Unlock()
			freed = true
		}
	}
	spare := s.held - max(0, charge-b.floor.Load()-s.exempt)
	keep := 2 * b.step // it will be wanted again
	if b.used.Load() > b.shared.Load()/2 {
		keep = b.step / 8 // many who have little in their queues are to leave something to others
	}
	if spare > 0 && (charge == 0 || s.exempt > 0 || spare >= keep) {
		s.held -= spare
		b.used.Add(-spare)
		freed = true
		b.fell()
	}
	if freed && b.waiting.Load() > 0 {
		b.wake()
	}
}

func (b *Outbound[C]) wake() {
	b.mu.Lock()
	waiting := b.queue
	b.queue = nil
	clear(b.in)
	b.waiting.Store(0)
	b.mu.Unlock()
	for _, c := range waiting {
		b.room(c)
	}
}
